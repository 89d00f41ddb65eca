//! Runs of many seeds.
//!
//! `LEASEHOLD_SIM_SEEDS` sets which: so many, or `FIRST..END` (`SEEDS` if not set).

use super::fabric::{Skip, Weather};
use super::world::{GRACE, Plan, Tally, live};
use super::{Outcome, jump_the_clock, simulate, try_simulate};
use crate::driver::Clock;
use crate::storage::tests::power::recorder::Lie;
use crate::sync;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// As many as it takes for all of `SOMETIMES` to happen: the rarest, torn blocks, do so in five runs of a thousand.
const SEEDS: u64 = 2000;

/// Seeds that once failed, and why. A seed means something else once the engine or the simulation has changed, so they cost
/// little and prove little; what they taught has tests of its own.
const ONCE_FAILED: [(u64, &str); 7] = [
    (15, "the disk failed a write on the thread that asked for it, which held what the answer needs"),
    (948, "a read that a commit made the file longer under was as long as before, with the new bytes"),
    (1431, "the oracle took a change of names for acknowledged that was under way when a sync began"),
    (7192, "a batch that failed took the open records, which no segment had any more"),
    (3595, "a write was forgotten whose checksums could not be noted, and tried again"),
    (15703, "a truncate failed half way, and what it had cut read as zeros"),
    (475, "a change that the disk failed half way left blocks that fail to read, as it should"),
];

fn run(seed: u64, plan: Plan) -> Result<Outcome<Tally>, String> {
    let Outcome { value: (tally, places), steps, time, digest } = try_simulate(seed, move || live(plan))?;
    // Now that no task is left that could look for its store.
    drop(places);
    Ok(Outcome { value: tally, steps, time, digest })
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("LEASEHOLD_SIM_SEEDS") else { return 0..SEEDS };
    let (first, end) = text.split_once("..").unwrap_or(("0", &text));
    let number = |text: &str| text.parse().expect("LEASEHOLD_SIM_SEEDS is a number, or FIRST..END");
    number(first)..number(end)
}

/// What is to be said of a seed that failed.
fn failed(seed: u64, what: &str) -> String {
    let test = "simulation::tests::whatever_happens_the_engine_keeps_its_promises";
    let range = format!("{seed}..{}", seed + 1);
    format!(
        "{what}\n\nto see it again: LEASEHOLD_SIM_SEEDS={range} cargo test -p leasehold-engine --lib {test}"
    )
}

/// Runs them on two threads. The sums of what happened, the number of steps, and the first failure.
fn run_all(seeds: Range<u64>) -> (Tally, u64, Option<String>) {
    let left = Mutex::new((seeds, Tally::default(), 0, None));
    let work = || {
        loop {
            let Some(seed) = left.lock().unwrap().0.next() else { return };
            let outcome = run(seed, Plan::of(seed));
            let mut all = left.lock().unwrap();
            match outcome {
                Ok(outcome) => {
                    all.1.add(outcome.value);
                    all.2 += outcome.steps;
                }
                Err(what) => {
                    all.3.get_or_insert(failed(seed, &what));
                    all.0 = 0..0;
                }
            }
        }
    };
    thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let (_, tally, steps, failed) = left.into_inner().unwrap();
    (tally, steps, failed)
}

#[test]
fn whatever_happens_the_engine_keeps_its_promises() {
    let began = Instant::now();
    let runs = seeds().end - seeds().start;
    let (tally, steps, failed) = run_all(seeds());
    if let Some(failed) = failed {
        panic!("{failed}");
    }
    eprintln!("{runs} runs, {steps} steps, {:.1} s: {:?}", began.elapsed().as_secs_f64(), tally.0);
    if runs >= SEEDS {
        for what in SOMETIMES {
            assert!(tally.0.get(what).is_some_and(|times| *times > 0), "there were no {what} at all");
        }
    }
}

/// What must happen now and then: else nothing is tried.
const SOMETIMES: [&str; 21] = [
    "breaks",
    "captures",
    "clones",
    "collapses",
    "commits",
    "commits by call",
    "faults",
    "fetches",
    "late parts",
    "looks at a clock that jumps",
    "power losses",
    "power losses at the start",
    "punches",
    "removals",
    "renames over",
    "revokes",
    "syncs",
    "torn blocks",
    "truncates",
    "writes",
    "zeros",
];

#[test]
fn what_once_failed_does_not_fail_again() {
    for (seed, story) in ONCE_FAILED {
        if let Err(what) = run(seed, Plan::of(seed)) {
            panic!("{story}: {}", failed(seed, &what));
        }
    }
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    for seed in 0..60 {
        let outcome = || run(seed, Plan::of(seed)).map(|run| (run.digest, run.steps, run.time, run.value.0));
        assert_eq!(outcome(), outcome(), "seed {seed}");
    }
}

/// Grace periods, leases, sessions, tokens and the order of breaks: none of them is decided by the clock on the wall.
#[test]
fn a_run_is_the_same_however_the_clock_on_the_wall_jumps() {
    let mut looks = 0;
    for seed in 0..100 {
        let outcome = |jumps| {
            let mut plan = Plan::of(seed);
            plan.jumps = jumps;
            let mut run = run(seed, plan).unwrap();
            let jumped = run.value.0.remove("looks at a clock that jumps").unwrap();
            (jumped, (run.digest, run.steps, run.time, run.value.0))
        };
        let (steady, jumping) = (outcome(false), outcome(true));
        assert_eq!(steady.1, jumping.1, "seed {seed}");
        assert_eq!(steady.0, 0);
        looks += jumping.0;
    }
    assert!(looks > 100, "the clock was looked at {looks} times");
}

/// Where the clock on the wall is looked at, and what for. Whoever wants to decide something by it has to say so here.
#[test]
fn only_what_people_are_told_is_taken_from_the_clock_on_the_wall() {
    const USES: [(&str, &str); 9] = [
        ("leasehold-engine/src/sync.rs", "times of breaks and deadlines, for people"),
        ("leasehold-engine/src/simulation/", "the same, simulated"),
        ("leasehold-host/src/guard.rs", "times of breaks and deadlines, for people and the guarded program"),
        ("leasehold/src/server/calls.rs", "since when the server runs"),
        ("leasehold/src/server/rows.rs", "when an event happened"),
        ("leasehold/src/mount/times.rs", "times of modification"),
        ("leasehold/src/command/administer.rs", "how much time is left, for people"),
        ("leasehold/src/command/cert.rs", "from when until when a certificate is valid"),
        ("leasehold/src/command/", "the time beside a line"),
    ];
    const CLOCKS: [&str; 5] =
        ["SystemTime::now", "Timestamp::now", "Zoned::now", "Utc::now", "CLOCK_REALTIME"];
    fn look(directory: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                look(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                if CLOCKS.iter().any(|clock| text.contains(clock)) {
                    found.push(path.to_str().unwrap().to_owned());
                }
            }
        }
    }
    let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for krate in std::fs::read_dir(crates).unwrap().map(Result::unwrap) {
        look(&krate.path().join("src"), &mut found);
    }
    let below = |path: &str| path.strip_prefix(crates.to_str().unwrap()).unwrap()[1..].to_owned();
    let found: Vec<String> = found.iter().map(|path| below(path)).collect();
    for path in &found {
        let known = USES.iter().any(|(place, _)| path.starts_with(place));
        assert!(known, "{path} looks at the clock on the wall, which may jump: what for?");
    }
    for (place, what) in USES {
        assert!(found.iter().any(|path| path.starts_with(place)), "{place} no longer does ({what})");
    }
}

/// Deadlines were told as the clock would have shown them had nobody set it since the start.
#[test]
fn what_people_are_told_follows_the_clock_on_the_wall() {
    simulate(1, || {
        let clock = Clock::start();
        sync::sleep(Duration::from_secs(10));
        let tick = clock.now();
        let told = |tick| clock.system(tick).duration_since(sync::wall());
        assert!(told(tick.after_ms(5_000)).is_ok_and(|ahead| ahead.as_millis().abs_diff(5_000) < 10));
        let before = clock.system(tick);
        jump_the_clock();
        sync::wall();
        let jumped = clock.system(tick).duration_since(before).expect("it jumped forwards");
        assert!(jumped > Duration::from_secs(4 * 300_000_000), "{jumped:?}");
    });
}

/// How the plan of any seed is spoilt.
type Spoil = fn(&mut Plan);

/// What is broken on purpose is found out, each within so many seeds.
#[test]
fn what_is_broken_is_found_out() {
    let broken: [(&str, u64, Spoil); 8] = [
        ("a fence that does not revoke", 100, |plan| plan.skip = Skip::Fence),
        ("a fence that does not wait for its proof", 400, |plan| {
            plan.skip = Skip::Proof;
            plan.weather.stall = 20;
        }),
        ("a frame whose checksum nobody looks at", 200, |plan| {
            plan.skip = Skip::Checksum;
            plan.weather = Weather { poison: 20, ..Weather::default() };
        }),
        ("a flush that lies", 400, |plan| plan.lie = Lie::Flushes),
        ("a flush of a directory that lies", 400, |plan| plan.lie = Lie::Directories),
        ("a write of data that lies", 200, |plan| plan.lie = Lie::Writes("files/")),
        ("a record that is not awaited", 200, |plan| plan.lie = Lie::Writes(".leasehold/log")),
        ("a grace period that is too long", 400, |plan| plan.grace = GRACE * 10),
    ];
    for (what, seeds, spoil) in broken {
        let found = (0..seeds).find_map(|seed| {
            let mut plan = Plan::of(seed);
            plan.trouble = 0;
            spoil(&mut plan);
            run(seed, plan).err().map(|how| (seed, how))
        });
        let (seed, how) = found.unwrap_or_else(|| panic!("{what} was not found out by {seeds} seeds"));
        eprintln!("{what}: {}", how.lines().next().unwrap_or_default().chars().take(300).collect::<String>());
        assert!(seed < seeds);
    }
}

#[test]
fn tasks_that_wait_for_each_other_are_named() {
    let stuck = try_simulate(1, || {
        let (send, receive) = sync::mpsc::channel::<()>();
        let waits = sync::spawn("waits", move || receive.recv()).expect("a task");
        let _ended = sync::join(waits);
        drop(send);
    });
    let what = stuck.err().expect("it is stuck");
    assert!(what.contains("seed 1,") && what.contains("waits (2)") && what.contains("main (1)"), "{what}");
}

#[test]
fn time_passes_at_once() {
    let outcome = simulate(1, || {
        let began = sync::now();
        sync::sleep(Duration::from_secs(1000));
        sync::now().duration_since(began)
    });
    assert!(outcome.value >= Duration::from_secs(1000));
    assert!(outcome.time >= outcome.value && outcome.steps < 10);
}
