//! The project's own tasks, each one command: `cargo xtask demo`, `test`, `soak`, `bench`, `lab`.
//!
//! Each installs what it needs: Rust components and cargo tools by cargo, others by apt where that is possible. Tests
//! that need what a machine lacks say so by name and are skipped.
#![forbid(unsafe_code)]

mod lab;
mod mount;
mod step;

use anyhow::{Context as _, Result, bail};
use step::{cargo, cargo_tool, debian_package};

const USAGE: &str = "\
The tasks of this project.

Usage: cargo xtask TASK [ARGUMENTS]

  demo    builds Leasehold and runs the main job on a throw-away store (30 s after the build)
  test    everything that must pass: format, lints, tests, the mount under public suites, the memory-order
          model, docs, licences
  soak    the slow tier: the revocation storm with 100,000 rounds, 100 crashes, power lost at every
          moment of 2000 recordings, 200,000 simulated runs, every design for DMA into files
          judged, long random tests, clients, breakers and kills under an oracle, hostile peers,
          every parser under a fuzzer, the mount under public suites for hours, and a part of the lab
          (some hours in all);
          `soak --minutes N`: only the clients, breakers and kills, for so long
  bench   the figures, as ratios against baselines measured in the same run
  lab     boots Debian's kernels 6.1 and 6.12 in QEMU: what they do to files that a device writes to,
          and their iWARP against this project's (x86-64 Debian; packages are unpacked under
          target/lab, not installed); `--smoke` for some minutes, `--only PART`, `--kernel VERSION`

ARGUMENTS are passed on (demo, bench), or name the only parts to run (test, soak).
";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match task.as_str() {
        "demo" => demo(&rest),
        "test" => run_parts(TEST, &rest),
        "soak" => match rest.as_slice() {
            [flag, minutes] if flag == "--minutes" => {
                mixed(60 * minutes.parse::<u64>().context("the minutes")?)
            }
            _ => run_parts(SOAK, &rest),
        },
        "bench" => bench(&rest),
        "lab" => lab::run(&rest),
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
    ("mixed", || mixed(600)),
    ("hostile", || {
        cargo(&["test", "--release", "--package", "leasehold", "--test", "hostile", "--", "--nocapture"])
            .env("LEASEHOLD_HOSTILE_STREAMS", "20000")
            .run()
    }),
    ("fuzz", fuzz),
    ("mount", mount::soak),
    ("lab", || lab::run(&["--smoke".to_owned()])),
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

/// Clients, breakers, kills and restarts, for so long, with an oracle that knows every acknowledged byte.
fn mixed(seconds: u64) -> Result<()> {
    cargo(&["test", "--release", "--package", "leasehold", "--test", "soak", "--", "--nocapture"])
        .env("LEASEHOLD_SOAK_SECONDS", &seconds.to_string())
        .run()
}

/// Every parser of bytes from outside, each for a minute. What is found lies in `fuzz/artifacts`; what reaches new places in
/// `target/fuzz`, of which `fuzz/corpus` has what the tests try.
fn fuzz() -> Result<()> {
    cargo_tool("cargo-fuzz", "0.13.2")?;
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for target in std::fs::read_dir(format!("{root}/fuzz/fuzz_targets"))? {
        let file = target?.path();
        let target = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        println!("\n--- {target}");
        let (found, known) = (format!("target/fuzz/{target}"), format!("fuzz/corpus/{target}"));
        std::fs::create_dir_all(format!("{root}/{found}"))?;
        let limits = ["-max_total_time=60", "-timeout=20", "-rss_limit_mb=2048"];
        cargo(&["fuzz", "run", target, &found, &known, "--"])
            .args(&limits.map(str::to_owned))
            // The sanitizers' flags are not stable; nothing else of it is used.
            .env("RUSTC_BOOTSTRAP", "1")
            .run()?;
    }
    Ok(())
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
