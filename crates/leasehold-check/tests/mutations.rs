//! `leasehold` with one rule less: the checker must find out.
//!
//! Where a decision of the scheme is the rule, another answer is put in its place, so that the core itself is mutated; the other
//! rules are taken out by the world ([`Mutation`]), which answers the core as if they had been kept. What is not noticed has a
//! reason, in `docs/check.md`, and a test that it is so: when it changes, the reason is no longer true.
//!
//! `cargo test -p leasehold-check --test mutations -- --nocapture` prints the table.

use leasehold_check::check;
use leasehold_check::explorer::{Bounds, explore};
use leasehold_check::scenario::{self, Act, Scenario, Slot};
use leasehold_check::world::{FIRST, MAIN, Mutation, SECOND, Setting};
use leasehold_core::input::Access;
use leasehold_core::promise::Promise;
use leasehold_core::scheme::{
    Admission, AdmissionRules, DataPath, DirtyWhen, FsyncRule, LayoutRule, Scheme, Writeback,
};
use leasehold_core::schemes::{self, Entry, LEASEHOLD};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The shortest way to break each promise that is broken, in actions; one that starves somebody counts as one of P5.
type Broken = BTreeMap<Promise, usize>;

/// The worlds of `leasehold` under another scheme, in the scenarios whose name holds `name`.
fn worlds(scheme: Scheme, name: &str) -> Vec<Setting> {
    let scenarios: Vec<Scenario> =
        scenario::all().into_iter().filter(|scenario| scenario.name.contains(name)).collect();
    assert!(!scenarios.is_empty(), "no scenario is called {name:?}");
    let entry = schemes::named("leasehold").expect("it is there");
    check::settings(&Entry { scheme, ..*entry }, &scenarios)
}

fn broken(settings: Vec<Setting>) -> Broken {
    let mut broken = Broken::new();
    let bounds = Bounds { threads: 2, states_max: 1_000_000, ..Bounds::default() };
    for setting in settings {
        let exploration = explore(&setting, &bounds);
        let ways = Promise::ALL.into_iter().filter_map(|promise| {
            exploration.path(promise.name()).map(|path| (promise, path.clone().into_actions().len()))
        });
        let starved = exploration.starved.iter();
        let starved = starved.map(|starvation| (Promise::P5, starvation.path.clone().into_actions().len()));
        for (promise, length) in ways.chain(starved).collect::<Vec<_>>() {
            let shortest = broken.entry(promise).or_insert(length);
            *shortest = length.min(*shortest);
        }
    }
    broken
}

fn row(table: &mut String, rule: &str, broken: &Broken) {
    let ways: Vec<String> =
        broken.iter().map(|(promise, length)| format!("{} in {length}", promise.name())).collect();
    let ways = if ways.is_empty() { String::from("unnoticed") } else { ways.join(", ") };
    writeln!(table, "{rule:<60} {ways}").expect("a string");
}

/// Each world rule of `leasehold`, where its absence shows, and which promise it breaks at least.
const RULES: [(Mutation, &str, Promise, &str); 15] = [
    (
        Mutation::NoFenceAtCommit,
        "commit before writeback: the commit fences",
        Promise::P1,
        "the power is lost",
    ),
    (Mutation::NoFenceAtCommit, "fence before reuse: a release fences", Promise::P3, "unlink"),
    (
        Mutation::NoFenceAtBreak,
        "fence before the change: a revoke fences",
        Promise::P3,
        "a truncate under a key",
    ),
    (Mutation::NoQuarantine, "quarantine of what is not fenced", Promise::P3, "a truncate under a key"),
    (Mutation::NoVerify, "commit by its CRC", Promise::P8, "overtakes"),
    (Mutation::NoRecord, "write-ahead before write", Promise::P1, "two leases in one block"),
    (Mutation::NoImage, "an image of blocks that hold others' bytes", Promise::P2, "two leases in one block"),
    (Mutation::NoMerge, "two leases in one block merged", Promise::P8, "a local writer beside"),
    (Mutation::NoZero, "zero before another tenant", Promise::P10, "unlink"),
    (Mutation::NoBreak, "break before truncate", Promise::P3, "a truncate under a key"),
    (Mutation::NoNotice, "notice before revoke", Promise::P6, "a truncate under a key"),
    (Mutation::NoGrace, "the grace period ends", Promise::P5, "a truncate under a key"),
    (Mutation::NoSyncWait, "a sync waits for the writebacks", Promise::P2, "the power is lost"),
    (Mutation::NoReadWait, "a read waits for the writebacks", Promise::P8, "a local writer beside"),
    (Mutation::NoDrain, "drain before truncate and clone", Promise::P8, "a clone under a key"),
];

#[test]
fn without_any_one_of_its_rules_leasehold_breaks_a_promise() {
    let mut table = String::from("\n");
    let mut missed = Vec::new();
    for (mutation, rule, promise, name) in RULES {
        let mut settings = worlds(LEASEHOLD, name);
        settings.iter_mut().for_each(|setting| setting.mutation = Some(mutation));
        let broken = broken(settings);
        row(&mut table, rule, &broken);
        if !broken.contains_key(&promise) {
            missed.push((rule, promise));
        }
    }
    println!("{table}");
    assert!(missed.is_empty(), "unnoticed: {missed:?}{table}");
}

/// Frames that no key reaches once they are the file's are all that writeback and fsync ever find, and a commit is what makes
/// them so: of `leasehold` these decisions are answered by its data path, and another answer makes no difference at all.
#[test]
fn with_private_frames_writeback_dirty_tracking_and_fsync_decide_nothing() {
    let uncommitted = DirtyWhen { committed: false, released: true, ..LEASEHOLD.dirty };
    let explored = |scheme| {
        let worlds = worlds(scheme, "the power is lost").into_iter();
        worlds
            .map(|setting| explore(&setting, &Bounds::default()))
            .map(|all| (all.states, all.transitions))
            .collect()
    };
    let as_it_is: Vec<(u64, u64)> = explored(LEASEHOLD);
    for scheme in [
        Scheme { writeback: Writeback::AsIs, ..LEASEHOLD },
        Scheme { dirty: uncommitted, ..LEASEHOLD },
        Scheme { fsync: FsyncRule::Acknowledge, ..LEASEHOLD },
    ] {
        assert_eq!(explored(scheme), as_it_is, "{scheme:?}");
    }
    assert_ne!(explored(Scheme { data_path: DataPath::Copied, ..LEASEHOLD }), as_it_is);
}

/// Each decision of `leasehold` with other answers; the promise that goes with it, or `None`: none does.
fn decisions() -> Vec<(&'static str, Scheme, Option<Promise>, &'static str)> {
    let reads =
        AdmissionRules { cache_read: Admission::Allow, dax_read: Admission::Allow, ..LEASEHOLD.admission };
    vec![
        (
            "layout: ignore the key",
            Scheme { layout: LayoutRule::Ignore, ..LEASEHOLD },
            Some(Promise::P3),
            "a truncate under",
        ),
        (
            "layout: wait for the holder",
            Scheme { layout: LayoutRule::Wait, ..LEASEHOLD },
            Some(Promise::P5),
            "a truncate under",
        ),
        (
            "layout: fence at once",
            Scheme { layout: LayoutRule::Fence, ..LEASEHOLD },
            Some(Promise::P6),
            "a truncate under",
        ),
        (
            "layout: kill after the grace",
            Scheme { layout: LayoutRule::BreakThenKill, ..LEASEHOLD },
            Some(Promise::P7),
            "a punch of one",
        ),
        (
            "admission: keys for reading without a lease",
            Scheme { admission: reads, ..LEASEHOLD },
            Some(Promise::P8),
            "a key for reading",
        ),
        (
            "data path: DMA into the file's frames",
            Scheme { data_path: DataPath::FileFrames, ..LEASEHOLD },
            Some(Promise::P1),
            "in one block",
        ),
        ("layout: refuse", Scheme { layout: LayoutRule::Refuse, ..LEASEHOLD }, None, "a truncate under"),
        (
            "admission: keys without a lease",
            Scheme { admission: AdmissionRules::all(Admission::Allow), ..LEASEHOLD },
            Some(Promise::P5),
            "two leases",
        ),
        ("data path: copied", Scheme { data_path: DataPath::Copied, ..LEASEHOLD }, None, "a truncate under"),
    ]
}

/// Two peers load a block, each writes its half, and both say that the bytes between are the file's.
fn two_updates() -> Scenario {
    let update = |session, writes| Slot {
        session,
        file: MAIN,
        parts: 0..2,
        access: Access::Update,
        writes,
        rounds: 1,
    };
    Scenario {
        name: "two leases for updates of the same bytes",
        blocks: 1,
        slots: vec![update(FIRST, 0..1), update(SECOND, 1..2)],
        acts: vec![Act::Acquire(0), Act::Acquire(1), Act::Commit(0), Act::Commit(1), Act::Read],
        crash: false,
        unproven: false,
        commit_overtakes: false,
        faults_max: 0,
    }
}

/// That write leases are exclusive by byte matters to updates only: of two that load the same block, the second to commit puts
/// back what the first has changed. Two that overwrite all they lease come one after the other, whoever has keys.
#[test]
fn without_exclusive_leases_an_update_is_lost() {
    let conflicting = Scheme { admission: AdmissionRules::all(Admission::Allow), ..LEASEHOLD };
    for (scheme, lost) in [(conflicting, true), (LEASEHOLD, false)] {
        let entry = Entry { scheme, ..*schemes::named("leasehold").expect("it is there") };
        let broken = broken(check::settings(&entry, &[two_updates()]));
        assert_eq!(broken.contains_key(&Promise::P8), lost, "{broken:?}");
        assert!(lost || broken.is_empty(), "{broken:?}");
    }
}

#[test]
fn each_other_answer_to_a_decision_breaks_its_promise_or_is_known_to_break_none() {
    let mut table = String::from("\n");
    let mut wrong = Vec::new();
    for (decision, scheme, promise, name) in decisions() {
        let broken = broken(worlds(scheme, name));
        row(&mut table, decision, &broken);
        if promise.is_some_and(|promise| !broken.contains_key(&promise))
            || promise.is_none() && !broken.is_empty()
        {
            wrong.push((decision, promise));
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "otherwise than said: {wrong:?}{table}");
}
