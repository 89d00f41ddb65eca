use super::*;
use crate::report::Verdict;
use leasehold_core::scheme::{AdmissionRules, DirtyWhen, FsyncRule, LayoutRule, Writeback};
use proptest::prelude::*;

fn any_scheme() -> impl Strategy<Value = Scheme> {
    let rest = prop::sample::select(answers_but_admission().collect::<Vec<_>>());
    let admission = || prop::sample::select(ADMISSIONS.to_vec());
    (rest, admission(), admission()).prop_map(|(scheme, read, write)| Scheme {
        admission: admissions((read, write), (read, write)),
        ..scheme
    })
}

fn broken(setting: &Setting) -> Vec<&'static str> {
    let found = explore(setting, &Bounds { threads: 1, ..Bounds::default() });
    let mut broken: Vec<_> =
        Promise::ALL.map(Promise::name).into_iter().filter(|name| found.path(name).is_some()).collect();
    broken.extend(found.starved.first().map(|_| "starves"));
    broken
}

/// `cargo xtask soak space` wants more.
fn cases() -> ProptestConfig {
    let cases = std::env::var("LEASEHOLD_SPACE_CASES").map_or(12, |cases| cases.parse().expect("a number"));
    // A scheme that gives no key there has nothing to compare.
    ProptestConfig { cases, max_global_rejects: 10 * cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_design_breaks_what_the_one_that_stands_for_it_breaks(
        scheme in any_scheme(),
        host in prop::sample::select(HOSTS.to_vec()),
        filesystem in prop::sample::select(vec![Filesystem::InPlace, Filesystem::CopyOnWrite]),
        scenario in prop::sample::select(scenario::all()),
    ) {
        let admits = |writes| scheme.admission.of(host.backing, writes);
        let gives = scenario.slots.iter().any(|slot| match admits(slot.access.writes()) {
            Admission::Refuse => false,
            Admission::IfFaults => host.device_faults,
            _ => true,
        });
        prop_assume!(gives);
        let (like, on) = seen(&scheme, host, Sight::of(&scenario));
        prop_assume!((like, on) != (Scheme { name: "", ..scheme }, host));
        let itself = broken(&Setting::new(scheme, host, filesystem, scenario.clone()));
        let stand_in = broken(&Setting::new(like, on, filesystem, scenario));
        prop_assert_eq!(itself, stand_in, "{:?} on {:?}", like, on);
    }
}

#[test]
fn who_stands_for_others_stands_for_itself() {
    for scheme in answers_but_admission().step_by(97) {
        for host in HOSTS {
            for admission in ADMISSIONS {
                let scheme = Scheme { admission: AdmissionRules::all(admission), ..scheme };
                let (once, on) = seen(&scheme, host, Sight::ALL);
                assert_eq!(seen(&once, on, Sight::ALL), (once, on), "{scheme:?} on {host:?}");
            }
        }
    }
}

fn walk_of(schemes: &[Scheme], scenarios: usize) -> (Walk, Vec<Combination>) {
    let mut walk = Walk::default();
    let of = |scheme: &Scheme, walk: &mut Walk| Combination {
        scheme: *scheme,
        kinds: HOSTS.map(|host| walk.kind_of(scheme, host)),
    };
    let all = schemes.iter().map(|scheme| of(scheme, &mut walk)).collect();
    let mut small = smallest_first(scenario::all());
    small.truncate(scenarios);
    walk.explore_all(&small, &check::bounds(&Options::default()), NonZeroUsize::MIN, &|_| {});
    (walk, all)
}

/// In the small worlds; `leasehold check --space` has all of them.
#[test]
fn leasehold_and_bounce_are_safe_and_who_pins_pages_is_not() {
    let (walk, all) =
        walk_of(&[schemes::LEASEHOLD, schemes::BOUNCE, schemes::NAIVE, schemes::STABLE_PAGES], 6);
    let safe: Vec<bool> = all.iter().map(|design| walk.is_safe(design)).collect();
    assert_eq!(safe, [true, true, false, false]);
}

#[test]
fn the_walk_never_says_broken_of_what_an_entry_declares_kept() {
    let entries: Vec<_> = schemes::ALL.iter().filter(|entry| !entry.layout_is_fixed).collect();
    let (walk, all) = walk_of(&entries.iter().map(|entry| entry.scheme).collect::<Vec<_>>(), 5);
    for (entry, design) in entries.iter().zip(&all) {
        for fate in walk.fates(design) {
            if let Some(kill) = &fate.killed {
                assert_eq!(
                    entry.declared(kill.promise).0,
                    Verdict::Broken,
                    "{} {}",
                    entry.scheme.name,
                    kill.promise
                );
            }
            assert!(
                fate.untold.is_none() || entry.declared(Promise::P6).0 == Verdict::Broken,
                "{}",
                entry.scheme.name
            );
        }
    }
}

/// Found by the walk: the fence by which writeback took the key woke the sync, which then waited for nobody's wake-up.
#[test]
fn a_sync_waits_on_for_a_holder_whose_key_is_taken_for_writeback_and_comes_again() {
    let scheme = Scheme { fsync: FsyncRule::Wait, ..schemes::NOTIFIER };
    let mut scenarios = scenario::all().into_iter();
    let scenario = scenarios.find(|scenario| scenario.name.starts_with("a local writer")).unwrap();
    let setting = Setting::new(scheme, HOSTS[1], Filesystem::InPlace, scenario);
    let found = explore(&setting, &Bounds { threads: 1, states_max: 20_000, ..Bounds::default() });
    assert!(found.path("synced").is_some());
}

/// A private frame does not come back: a key that could fault, taken for a truncate, is over.
#[test]
fn a_key_to_private_frames_that_is_taken_does_not_come_again() {
    let admission = AdmissionRules::all(Admission::IfFaults);
    let scheme = Scheme { admission, layout: LayoutRule::Fence, ..schemes::LEASEHOLD };
    let scenario = smallest_first(scenario::all()).into_iter().find(|scenario| {
        Sight::of(scenario).changes && scenario.slots.iter().all(|slot| slot.access.writes())
    });
    let setting = Setting::new(scheme, HOSTS[1], Filesystem::InPlace, scenario.unwrap());
    let found = explore(&setting, &Bounds { threads: 1, states_max: 20_000, ..Bounds::default() });
    assert!(found.path("changed").is_some() && found.path("P3").is_none());
}

/// What ends the design in that world, and what it breaks besides.
fn fate_of(scheme: Scheme, host: Host, scenario: &str) -> Option<Promise> {
    let scenario = scenario::all().into_iter().find(|one| one.name.starts_with(scenario)).unwrap();
    let setting = Setting::new(scheme, host, Filesystem::InPlace, scenario);
    let (fate, explored) = judge(&setting, &Bounds { threads: 1, enough: &ENOUGH, ..Bounds::default() });
    assert_eq!(explored.cut_off, None);
    fate.killed.or(fate.untold).map(|kill| kill.promise)
}

/// Found by looking at why the walk called designs unsafe: each was the core's fault, in a scheme that has no name.
#[test]
fn a_design_is_not_ended_by_what_is_not_its_own_fault() {
    let leased = AdmissionRules::all(Admission::Lease);
    let never =
        DirtyWhen { registered: false, faulted: false, released: false, committed: false, under_io: false };
    let told = Scheme { layout: LayoutRule::Break, ..schemes::NOTIFIER };
    let copied = Scheme {
        admission: leased,
        writeback: Writeback::Snapshot,
        fsync: FsyncRule::CommittedBytes,
        dirty: DirtyWhen { committed: true, ..never },
        ..told
    };
    let skipped = Scheme {
        writeback: Writeback::Skip,
        fsync: FsyncRule::FenceAndWrite,
        dirty: DirtyWhen { under_io: true, ..copied.dirty },
        ..copied
    };
    let [cache, faults] = [HOSTS[0], HOSTS[1]];
    // Its key was taken for writeback during the grace period, and nobody looked at the clock any more.
    assert_eq!(fate_of(told, faults, "a truncate"), None);
    assert_eq!(fate_of(told, faults, "a punch"), None);
    // A page that is dirtied again while it is written is written again for the fsync.
    assert_eq!(fate_of(copied, cache, "a commit that overtakes"), None);
    assert_eq!(fate_of(copied, cache, "two leases in one block"), None);
    // An fsync that has a way of its own to write under a key finds what writeback skips.
    assert_eq!(fate_of(skipped, faults, "a peer writes"), None);
    assert_eq!(fate_of(skipped, cache, "a peer writes"), Some(Promise::P1));
    // A key that is tied to no lease cannot be fenced at the end of a grace period either.
    let pinned = Scheme { admission: AdmissionRules::all(Admission::Allow), ..copied };
    assert_eq!(fate_of(copied, cache, "a truncate"), None);
    assert_eq!(fate_of(pinned, cache, "a truncate"), Some(Promise::P5));
}
