use super::*;
use crate::report::Verdict;
use proptest::prelude::*;
use std::num::NonZeroUsize;

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

/// Few states, so that both are explored to the end.
fn small_scenarios() -> Vec<Scenario> {
    let mut scenarios = smallest_first(scenario::all());
    scenarios.truncate(4);
    scenarios
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_design_breaks_what_the_one_that_stands_for_it_breaks(
        scheme in any_scheme(),
        host in prop::sample::select(HOSTS.to_vec()),
        scenario in prop::sample::select(small_scenarios()),
    ) {
        let admits = |writes| scheme.admission.of(host.backing, writes);
        let gives = scenario.slots.iter().any(|slot| match admits(slot.access.writes()) {
            Admission::Refuse => false,
            Admission::IfFaults => host.device_faults,
            _ => true,
        });
        prop_assume!(gives);
        let (like, on) = seen(&scheme, host, Sight::of(&scenario));
        let itself = broken(&setting(scheme, host, Filesystem::InPlace, &scenario));
        let stand_in = broken(&setting(like, on, Filesystem::InPlace, &scenario));
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
    let options = Options { threads: NonZeroUsize::MIN, ..Options::default() };
    walk.explore_all(&small, &check::bounds(&options));
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
                !fate.untold || entry.declared(Promise::P6).0 == Verdict::Broken,
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
    let setting = setting(scheme, HOSTS[1], Filesystem::InPlace, &scenario);
    let found = explore(&setting, &Bounds { threads: 1, states_max: 20_000, ..Bounds::default() });
    assert!(found.path("synced").is_some());
}

/// A private frame does not come back: a key that could fault, taken for a truncate, is over.
#[test]
fn a_key_to_private_frames_that_is_taken_does_not_come_again() {
    let admission = AdmissionRules::all(Admission::IfFaults);
    let scheme = Scheme { admission, layout: LayoutRule::Fence, ..schemes::LEASEHOLD };
    let scenario = smallest_first(scenario::all())
        .into_iter()
        .find(|scenario| scenario.changes_layout() && scenario.slots.iter().all(|slot| slot.access.writes()));
    let setting = setting(scheme, HOSTS[1], Filesystem::InPlace, &scenario.unwrap());
    let found = explore(&setting, &Bounds { threads: 1, states_max: 20_000, ..Bounds::default() });
    assert!(found.path("changed").is_some() && found.path("P3").is_none());
}
