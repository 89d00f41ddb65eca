//! What a scheme costs, counted: short runs of the same world in which the environment does what it is asked.

use crate::report::costs::{Costs, Refusal, Wait, Waiter, Work};
use crate::scenario::{Act, Scenario, Slot, writer};
use crate::world::{Filesystem, SECOND, Setting, Sometimes, Trial};
use leasehold_core::input::{Access, Change};
use leasehold_core::scheme::{Backing, Host, LayoutRule, Scheme};

const CACHE: Host = Host { backing: Backing::PageCache, device_faults: false };
const DAX: Host = Host { backing: Backing::Dax, device_faults: false };

/// The costs of a scheme.
pub(crate) fn of(scheme: &Scheme) -> Costs {
    let mut costs = Costs {
        refuses: refuses(scheme),
        kills: scheme.layout == LayoutRule::BreakThenKill,
        ..Costs::default()
    };
    for host in [CACHE, DAX].into_iter().filter_map(|host| that_admits(scheme, host)) {
        let counted = count(scheme, host);
        costs.copies = costs.copies.max(counted.copies);
        costs.refaults = costs.refaults.max(counted.refaults);
        costs.one_commit |= counted.one_commit;
        costs.half_writes |= half_writes(scheme, host);
        costs.waits.extend(waits(scheme, host));
    }
    // Of two waits of the same, the longer one stays.
    costs.waits.sort_unstable_by_key(|wait| (wait.what, !wait.for_ever));
    costs.waits.dedup_by_key(|wait| wait.what);
    costs
}

fn setting(scheme: &Scheme, host: Host, acts: Vec<Act>, shared: bool) -> Setting {
    Setting::new(*scheme, host, Filesystem::InPlace, Scenario::of_costs(acts, shared))
}

/// The host, its device able to fault if it must, if the scheme gives a key for writing there.
fn that_admits(scheme: &Scheme, host: Host) -> Option<Host> {
    let hosts = [host, Host { device_faults: true, ..host }];
    hosts.into_iter().find(|&host| Trial::new(&setting(scheme, host, vec![Act::Acquire(0)], false)).acts(0))
}

/// Two rounds of writes to one whole block, each committed and synced while the key lives, if it may.
fn count(scheme: &Scheme, host: Host) -> Costs {
    let acts = vec![
        Act::Acquire(0),
        Act::Commit(0),
        Act::Sync,
        Act::Commit(0),
        Act::Sync,
        Act::Release(0),
        Act::Sync,
    ];
    let setting = setting(scheme, host, acts, false);
    let mut trial = Trial::new(&setting);
    let mut rounds = 0;
    for act in 0..7 {
        if matches!(setting.scenario.acts[act], Act::Commit(_)) {
            rounds += u32::from(trial.writes_round());
        }
        trial.acts(act);
    }
    Costs {
        copies: f64::from(trial.copied) / f64::from(rounds.max(1)),
        refaults: f64::from(trial.faulted) / f64::from(rounds.max(1)),
        one_commit: rounds == 1,
        ..Costs::default()
    }
}

/// Half of a write lands, and its holder lets go without a commit: is any of it in the file?
fn half_writes(scheme: &Scheme, host: Host) -> bool {
    let setting = setting(scheme, host, vec![Act::Acquire(0), Act::Release(0), Act::Read], false);
    let mut trial = Trial::new(&setting);
    trial.acts(0);
    trial.writes_half();
    trial.acts(1);
    trial.acts(2);
    trial.has_seen(Sometimes::Read)
}

fn waits(scheme: &Scheme, host: Host) -> impl Iterator<Item = Wait> {
    let acts = [
        (Waiter::Truncate, Act::Change(Change::Truncate { size: 0 }), false),
        (Waiter::Clone, Act::Change(Change::Clone), false),
        (Waiter::Fsync, Act::Sync, false),
        (Waiter::LocalWrite, Act::LocalWrite(0..2), false),
        (Waiter::SecondKey, Act::Acquire(1), true),
        (Waiter::LocalRead, Act::Read, false),
    ];
    let wait = move |(what, act, shared)| {
        let setting = setting(scheme, host, vec![Act::Acquire(0), act], shared);
        let mut trial = Trial::new(&setting);
        trial.acts(0);
        (!trial.acts(1)).then(|| Wait { what, for_ever: !trial.ends_in_time(1) })
    };
    acts.into_iter().filter_map(wait)
}

/// What the scheme refuses, by host.
pub(crate) fn refuses(scheme: &Scheme) -> Vec<Refusal> {
    let admits = |host: Host, access: Access| {
        let mut setting = setting(scheme, host, vec![Act::Acquire(0)], false);
        setting.scenario.slots[0].access = access;
        Trial::new(&setting).acts(0)
    };
    let keys = [
        (Work::WritePageCache, CACHE, Access::Overwrite),
        (Work::ReadPageCache, CACHE, Access::Read),
        (Work::WriteDax, DAX, Access::Overwrite),
        (Work::ReadDax, DAX, Access::Read),
    ];
    let refused = keys.into_iter().filter(|&(_, host, access)| !admits(host, access));
    let mut found: Vec<Refusal> = refused
        .map(|(what, host, access)| Refusal {
            what,
            unless_faults: admits(Host { device_faults: true, ..host }, access),
        })
        .collect();
    if scheme.layout == LayoutRule::Refuse {
        found.push(Refusal { what: Work::ChangeLayout, unless_faults: false });
    }
    found
}

impl Scenario {
    /// One block, two peers: of whole blocks, or of half of one each (`shared`).
    fn of_costs(acts: Vec<Act>, shared: bool) -> Scenario {
        let (first, second) = if shared { (0..1, 1..2) } else { (0..2, 2..4) };
        let slots = vec![writer(first, 2), Slot { session: SECOND, ..writer(second, 2) }];
        Scenario { faults_max: u8::MAX, ..Scenario::new("what it costs", slots, acts) }
    }
}
