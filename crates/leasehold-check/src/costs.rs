//! What a scheme costs, counted: short runs of the same world in which the environment does what it is asked.

use crate::report::Costs;
use crate::scenario::{Act, Scenario};
use crate::world::{FIRST, Filesystem, PART_BYTES, SECOND, Setting, Sometimes, Trial};
use leasehold_core::input::{Access, Change};
use leasehold_core::range::ByteRange;
use leasehold_core::scheme::{Backing, Host, LayoutRule, Scheme};

const CACHE: Host = Host { backing: Backing::PageCache, device_faults: false };

/// The costs of a scheme.
pub(crate) fn of(scheme: &Scheme) -> Costs {
    let (copies, refaults) = copies_and_refaults(scheme);
    Costs {
        copies,
        refaults,
        waits: waits(scheme),
        refuses: refuses(scheme),
        kills: scheme.layout == LayoutRule::BreakThenKill,
        half_writes: half_writes(scheme),
    }
}

fn setting(scheme: &Scheme, host: Host, acts: Vec<Act>, shared: bool) -> Setting {
    let (scheme, filesystem) = (*scheme, Filesystem::InPlace);
    let scenario = Scenario::of_costs(acts, shared);
    Setting { scheme, host, filesystem, scenario, thorough: false, mutation: None }
}

/// A host on which the scheme gives a key for writing at all.
fn host_that_admits(scheme: &Scheme) -> Option<Host> {
    let hosts = [CACHE, Host { device_faults: true, ..CACHE }];
    hosts.into_iter().find(|&host| Trial::new(&setting(scheme, host, vec![Act::Acquire(0)], false)).acts(0))
}

/// Two rounds of writes to one whole block, each committed and synced while the key lives, if it may.
fn copies_and_refaults(scheme: &Scheme) -> (f64, f64) {
    let Some(host) = host_that_admits(scheme) else { return (0.0, 0.0) };
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
    (f64::from(trial.copied) / f64::from(rounds.max(1)), f64::from(trial.faulted) / f64::from(rounds.max(1)))
}

/// Half of a write lands, and its holder lets go without a commit: is any of it in the file?
fn half_writes(scheme: &Scheme) -> bool {
    let Some(host) = host_that_admits(scheme) else { return false };
    let setting = setting(scheme, host, vec![Act::Acquire(0), Act::Release(0), Act::Read], false);
    let mut trial = Trial::new(&setting);
    trial.acts(0);
    trial.writes_half();
    trial.acts(1);
    trial.acts(2);
    trial.has_seen(Sometimes::Read)
}

fn waits(scheme: &Scheme) -> Vec<&'static str> {
    let Some(host) = host_that_admits(scheme) else { return Vec::new() };
    let mut found = Vec::new();
    let trial = |act: Act, shared: bool| {
        let setting = setting(scheme, host, vec![Act::Acquire(0), act], shared);
        let mut trial = Trial::new(&setting);
        trial.acts(0);
        let at_once = trial.acts(1);
        (at_once, at_once || trial.ends_in_time(1))
    };
    let changes = [
        (
            Change::Truncate { size: 0 },
            "a truncate for the holder, at most grace and fence",
            "a truncate for the holder, for ever",
        ),
        (
            Change::Clone,
            "a clone for the holder, at most grace and fence",
            "a clone for the holder, for ever",
        ),
    ];
    for (change, bounded, unbounded) in changes {
        match trial(Act::Change(change), false) {
            (true, _) => {}
            (false, true) => found.push(bounded),
            (false, false) => found.push(unbounded),
        }
    }
    if !trial(Act::Sync, false).0 {
        found.push("an fsync for the holder, for ever");
    }
    match trial(Act::LocalWrite(0..2), false) {
        (true, _) => {}
        (false, true) => found.push("a local write of the same bytes, at most grace and fence"),
        (false, false) => found.push("a local write of the same bytes, for ever"),
    }
    if !trial(Act::Acquire(1), true).1 {
        found.push("a second key in the same block, for ever");
    }
    if !trial(Act::Read, false).0 {
        found.push("a local read, for ever");
    }
    found
}

fn refuses(scheme: &Scheme) -> Vec<&'static str> {
    let mut found = Vec::new();
    let dax = Host { backing: Backing::Dax, ..CACHE };
    let admits = |host: Host, access: Access| {
        let mut setting = setting(scheme, host, vec![Act::Acquire(0)], false);
        setting.scenario.slots[0].access = access;
        Trial::new(&setting).acts(0)
    };
    let faults = |host: Host| Host { device_faults: true, ..host };
    let rows = [
        (
            CACHE,
            Access::Overwrite,
            "keys for writing the page cache",
            "keys for writing the page cache, unless the device can fault",
        ),
        (
            CACHE,
            Access::Read,
            "keys for reading the page cache",
            "keys for reading the page cache, unless the device can fault",
        ),
        (dax, Access::Overwrite, "keys for writing DAX", "keys for writing DAX, unless the device can fault"),
        (dax, Access::Read, "keys for reading DAX", "keys for reading DAX, unless the device can fault"),
    ];
    for (host, access, always, unless) in rows {
        match (admits(host, access), admits(faults(host), access)) {
            (true, _) => {}
            (false, true) => found.push(unless),
            (false, false) => found.push(always),
        }
    }
    if scheme.layout == LayoutRule::Refuse {
        found.push("truncate, punch, unlink and clone under a key");
    }
    found
}

impl Scenario {
    /// One block, two peers: of whole blocks, or of half of one each (`shared`).
    fn of_costs(acts: Vec<Act>, shared: bool) -> Scenario {
        let slot = |session, parts: std::ops::Range<usize>, rounds| crate::scenario::Slot {
            session,
            file: crate::world::MAIN,
            writes: parts.clone(),
            parts,
            access: Access::Overwrite,
            rounds,
        };
        let slots = if shared {
            vec![slot(FIRST, 0..1, 2), slot(SECOND, 1..2, 2)]
        } else {
            vec![slot(FIRST, 0..2, 2), slot(SECOND, 2..4, 2)]
        };
        debug_assert!(ByteRange::new(0, 2 * PART_BYTES).is_some());
        Scenario {
            name: "what it costs",
            blocks: 1,
            slots,
            acts,
            crash: false,
            unproven: false,
            commit_overtakes: false,
            faults_max: u8::MAX,
        }
    }
}
