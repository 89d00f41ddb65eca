//! The project's own tasks, each one command: `cargo xtask demo`, `test`, `soak`, `bench`.
//!
//! Each installs what it needs: Rust components and cargo tools by cargo, others by apt where that is possible. Tests
//! that need what a machine lacks say so by name and are skipped.
#![forbid(unsafe_code)]

mod mount;
mod step;

use anyhow::{Result, bail};
use step::{cargo, cargo_tool, debian_package};

const USAGE: &str = "\
The tasks of this project.

Usage: cargo xtask TASK [ARGUMENTS]

  demo    builds Leasehold and runs the main job on a throw-away store (30 s after the build)
  test    everything that must pass: format, lints, tests, the mount under public suites, the memory-order
          model, docs, licences
  soak    the slow tier: the revocation storm with 100,000 rounds, 100 crashes, power lost at every
          moment of 2000 recordings, 200,000 simulated runs, every design for DMA into files
          judged, long random tests, the mount under public suites for hours (some hours in all)
  bench   the figures, as ratios against baselines measured in the same run

ARGUMENTS are passed on (demo, bench), or name the only parts to run (test, soak).
";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match task.as_str() {
        "demo" => demo(&rest),
        "test" => run_parts(TEST, &rest),
        "soak" => run_parts(SOAK, &rest),
        "bench" => bench(&rest),
        "" | "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no task {other:?}\n\n{USAGE}"),
    }
}

/// A named part of a task.
type Part = (&'static str, fn() -> Result<()>);

const TEST: &[Part] = &[
    ("format", || cargo(&["fmt", "--all", "--check"]).run()),
    ("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()),
    ("no-std", || cargo(&["check", "--package", "leasehold-core", "--lib", "--profile", "release"]).run()),
    ("tests", tests),
    ("mount", mount::test),
    ("memory-order", memory_order),
    ("docs", || {
        cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .run()
    }),
    ("licences", || {
        cargo_tool("cargo-deny", "0.20.2")?;
        cargo(&["deny", "--workspace", "check", "licenses", "bans", "sources"]).run()
    }),
];

const SOAK: &[Part] = &[
    ("storm", || {
        cargo(&["test", "--release", "--package", "leasehold-fabric", "--test", "storm", "--", "--nocapture"])
            .env("LEASEHOLD_STORM_ROUNDS", "100000")
            .run()
    }),
    ("crash", || {
        cargo(&["test", "--release", "--package", "leasehold", "--test", "crash", "--", "--nocapture"])
            .env("LEASEHOLD_CRASH_ROUNDS", "100")
            .run()
    }),
    ("power", || {
        let tests = ["--lib", "storage::tests::power", "--", "--nocapture"];
        let mut all = vec!["test", "--release", "--package", "leasehold-engine"];
        all.extend(tests);
        cargo(&all).env("LEASEHOLD_POWER_SEEDS", "2000").run()
    }),
    ("simulate", || {
        let test = "simulation::tests::whatever_happens";
        cargo(&["test", "--release", "--package", "leasehold-engine", "--lib", test, "--", "--nocapture"])
            .env("LEASEHOLD_SIM_SEEDS", "200000")
            .run()
    }),
    ("space", || {
        cargo(&["test", "--release", "--package", "leasehold-check", "--lib", "space::tests"])
            .env("LEASEHOLD_SPACE_CASES", "2000")
            .run()?;
        cargo(&["run", "--release", "--quiet", "--package", "leasehold", "--", "check", "--space"]).run()
    }),
    ("random", || {
        cargo(&["test", "--release", "--package", "leasehold-core", "--package", "leasehold-engine"])
            .env("PROPTEST_CASES", "20000")
            .run()
    }),
    ("mount", mount::soak),
];

/// Runs the parts of a task in order; those that `only` names, or all.
fn run_parts(parts: &[Part], only: &[String]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|name| parts.iter().all(|(part, _)| part != name)) {
        let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
        bail!("there is no part {unknown:?}; the parts are: {}", names.join(", "));
    }
    for (name, part) in parts {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            let started = std::time::Instant::now();
            println!("\n=== {name}");
            part()?;
            println!("=== {name}: passed in {:.0} s", started.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

fn demo(arguments: &[String]) -> Result<()> {
    let mut run = cargo(&["run", "--release", "--quiet", "--package", "leasehold", "--", "demo"]);
    run.args(arguments);
    println!("Building Leasehold (some minutes the first time) ..");
    run.run()
}

fn tests() -> Result<()> {
    debian_package("tshark", "tshark", "the test that shows our traffic to tshark's dissectors");
    debian_package("xfsprogs", "mkfs.xfs", "the tests of clones that share blocks, on XFS");
    debian_package("btrfs-progs", "mkfs.btrfs", "the same on btrfs");
    cargo(&["test", "--workspace", "--no-fail-fast"]).run()
}

/// The fence's order of memory operations, modelled with loom.
fn memory_order() -> Result<()> {
    cargo(&["test", "--release", "--package", "leasehold-fabric", "--lib", "fence::model"])
        .env("RUSTFLAGS", "--cfg loom")
        .env("LOOM_MAX_PREEMPTIONS", "3")
        .env("CARGO_TARGET_DIR", "target/loom")
        .run()
}

fn bench(arguments: &[String]) -> Result<()> {
    let mut run = cargo(&["run", "--release", "--quiet", "--package", "leasehold", "--", "bench"]);
    run.args(arguments);
    println!("Building Leasehold (some minutes the first time) ..");
    run.run()
}
