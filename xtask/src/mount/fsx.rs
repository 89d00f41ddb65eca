//! `fsx`: operations on one file at random, each read compared with what was written.

use super::served::Served;
use super::{shared_mappings, tool};
use crate::step::cargo_tool;
use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Every operation of fsx, with how often it is done compared with the others.
const WEIGHTS: &[(&str, u32)] = &[
    ("read", 10),
    ("write", 10),
    ("truncate", 5),
    ("punch_hole", 5),
    ("copy_file_range", 5),
    ("close_open", 1),
    ("fsync", 3),
    ("fdatasync", 3),
    ("posix_fallocate", 3),
    ("posix_fadvise", 2),
    ("sendfile", 2),
    ("mapread", 10),
    ("mapwrite", 10),
    ("invalidate", 2),
];

/// What takes a shared mapping.
const MAPPED: &[&str] = &["mapread", "mapwrite", "invalidate"];
/// What changes where the file ends, and what closes it: fsx does not do these in its block mode.
const NOT_IN_PLACE: &[&str] = &["truncate", "posix_fallocate", "close_open"];

/// The part of a file that fsx works in while somebody works in the rest of it.
const SHARE: u64 = 256 << 10;
/// The most operations of one process. fsx 0.3.2 leaves a mapping of its file behind with every twelfth or so: all that follow get
/// slower, since each truncate goes through them, and a million operations need more than a process may have.
const AT_ONCE: u32 = 25_000;
/// Of 10,000 operations, which take seconds.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn installed() -> bool {
    cargo_tool("fsx", "0.3.2").is_ok()
}

/// So many operations on each of so many files, and on one more beside a remote writer, all at once. Every process has a seed and a
/// file of its own.
pub fn seeds(served: Served, files: u32, operations: u32) -> Result<Served> {
    let mut seeds = 1..;
    let mut left = operations;
    while left > 0 {
        let count = left.min(AT_ONCE);
        let seeds: Vec<u32> = seeds.by_ref().take(files as usize + 1).collect();
        round(&served, &seeds, count)?;
        left -= count;
    }
    Ok(served)
}

/// The last of the seeds is for the one beside a writer.
fn round(served: &Served, seeds: &[u32], operations: u32) -> Result<()> {
    let (last, alone) = seeds.split_last().expect("there is one for the one beside a writer");
    thread::scope(|scope| {
        let exercised = |seed: &u32| {
            let (seed, path) = (*seed, served.at().join(format!("file-{seed}")));
            scope.spawn(move || {
                exercise(&path, seed, operations, "", &[])?;
                Ok(std::fs::remove_file(path)?)
            })
        };
        let beside = scope.spawn(|| beside_a_writer(served, *last, operations));
        let all: Vec<_> = alone.iter().map(exercised).chain([beside]).collect();
        all.into_iter().try_for_each(|one| one.join().expect("it fails without a panic"))
    })
}

/// So many operations on the first part of a file, while a remote session holds a lease on the rest, writes there without
/// a pause, and makes it durable twenty times a second. Nobody breaks that lease. It is fsx's block mode that keeps to a
/// part, so the file's end stays where it is.
fn beside_a_writer(served: &Served, seed: u32, operations: u32) -> Result<()> {
    let path = served.at().join("shared");
    File::create(&path)?.set_len(2 * SHARE)?;
    let (half, end) = (SHARE.to_string(), 2 * SHARE);
    let mut writer = served.command(&["hold", "--update", "--write", "--sync", "50ms"]);
    writer.args(["--offset", &half, "--length", &half, "/shared"]).stdout(Stdio::null());
    let mut writer = tool::spawn(&mut writer)?;
    let in_place = format!("blockmode = true\nflen = {SHARE}\n");
    let exercised = exercise(&path, seed, operations, &in_place, NOT_IN_PLACE);
    let lost = writer.try_wait()?;
    if lost.is_none() {
        kill_process(Pid::from_child(&writer), Signal::INT)?;
    }
    let status = writer.wait()?;
    exercised?;
    ensure!(lost.is_none() && status.success(), "the writer beside fsx lost its lease: {status}");
    let bytes = std::fs::read(&path)?;
    ensure!(bytes.len() as u64 == end, "the file has {} bytes instead of {end}", bytes.len());
    ensure!(bytes[SHARE as usize..].iter().all(|&byte| byte == 0xA5), "the writer's bytes are not there");
    Ok(std::fs::remove_file(path)?)
}

fn exercise(path: &Path, seed: u32, operations: u32, settings: &str, without: &[&str]) -> Result<()> {
    let directory = TempDir::new()?;
    let configuration = directory.path().join("fsx.toml");
    std::fs::write(&configuration, format!("{settings}[weights]\n{}", weights(without)))?;
    let mut fsx = Command::new("fsx");
    fsx.arg("-f").arg(configuration).arg("-P").arg(directory.path());
    fsx.args(["-S", &seed.to_string(), "-N", &operations.to_string()]).arg(path);
    tool::run(&mut fsx, PATIENCE * operations.div_ceil(10_000))
}

fn weights(without: &[&str]) -> String {
    let weight = |(name, weight): &(&str, u32)| {
        let is_off = without.contains(name) || (!shared_mappings() && MAPPED.contains(name));
        format!("{name} = {}\n", if is_off { 0 } else { *weight })
    };
    WEIGHTS.iter().map(weight).collect()
}
