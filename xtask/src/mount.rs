//! The mount under suites that others wrote for filesystems: `fsx`, `pjdfstest`, SQLite, `fio`, git and cargo.
//!
//! A suite that cannot run here (no root, no `/dev/fuse`, a tool that cannot be installed) is skipped by name. One that
//! runs and finds something fails the task. After each, all blocks match their checksums, and the server ends well.

mod fio;
mod fsx;
mod pjdfstest;
mod served;
mod sqlite;
mod tool;
mod tree;

use crate::step::cargo;
use anyhow::{Context as _, Result};
use served::Served;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Whether programs can map files of the mount shared, which takes Linux 6.9. What takes such mappings is off where they
/// cannot: the operations of `fsx`, the engine of `fio`, and SQLite's write-ahead log.
fn shared_mappings() -> bool {
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

/// A suite: its name, how it gets its tool, and what it does with a mounted store.
struct Suite {
    name: &'static str,
    /// Whether the tool is there, once it was tried to install it.
    installed: fn() -> bool,
    run: fn(Served) -> Result<Served>,
}

const TEST: &[Suite] = &[
    Suite { name: "fsx", installed: fsx::installed, run: |served| fsx::seeds(served, 3, 10_000) },
    Suite { name: "pjdfstest", installed: pjdfstest::installed, run: pjdfstest::all },
    Suite { name: "sqlite", installed: sqlite::installed, run: |served| sqlite::killed(served, 32) },
    Suite { name: "fio", installed: fio::installed, run: |served| fio::verify(served, "64M") },
];

const SOAK: &[Suite] = &[
    Suite { name: "fsx", installed: fsx::installed, run: |served| fsx::seeds(served, 1, 1_000_000) },
    Suite { name: "sqlite", installed: sqlite::installed, run: |served| sqlite::killed(served, 400) },
    Suite { name: "fio", installed: fio::installed, run: |served| fio::verify(served, "512M") },
    Suite { name: "git and cargo", installed: tree::installed, run: tree::clone_and_check },
];

/// Some minutes, with the server as tests build it: its assertions are on.
pub fn test() -> Result<()> {
    run(TEST, Path::new("debug"), &["build", "--quiet", "--package", "leasehold"])
}

/// Hours.
pub fn soak() -> Result<()> {
    run(SOAK, Path::new("release"), &["build", "--quiet", "--release", "--package", "leasehold"])
}

fn run(suites: &[Suite], profile: &Path, build: &[&str]) -> Result<()> {
    if let Some(why) = cannot_mount() {
        let names: Vec<&str> = suites.iter().map(|suite| suite.name).collect();
        println!("skipped: {}: {why}", names.join(", "));
        return Ok(());
    }
    cargo(build).run()?;
    let program = target()?.join(profile).join("leasehold");
    for suite in suites {
        if !(suite.installed)() {
            println!("skipped: {}: its tool is not here and could not be installed", suite.name);
            continue;
        }
        let began = Instant::now();
        let served = Served::start(&program, &target()?)?;
        (suite.run)(served).and_then(Served::end).with_context(|| format!("{} on the mount", suite.name))?;
        println!("{}: passed in {:.0} s", suite.name, began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn cannot_mount() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        Some("to mount a store takes root")
    } else if !Path::new("/dev/fuse").exists() {
        Some("to mount a store takes /dev/fuse")
    } else {
        None
    }
}

/// Where cargo puts what it builds: this program is in there, too.
fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("this program has no path")?;
    let target = program.ancestors().nth(2).context("this program is not where cargo puts programs")?;
    Ok(target.to_owned())
}
