//! `fio`: writes at random, by every way that programs write, and reads all of it again to compare.

use super::served::Served;
use super::{shared_mappings, tool};
use crate::step::debian_package;
use anyhow::Result;
use std::process::Command;
use std::time::Duration;

/// The ways, each with what it needs.
const ENGINES: &[(&str, &[&str])] = &[
    ("psync", &[]),
    ("libaio", &["--direct=1", "--iodepth=8"]),
    ("io_uring", &["--iodepth=8"]),
    // Of a mapping, fio writes whole pages.
    ("mmap", &["--bs=4k"]),
];
const PATIENCE: Duration = Duration::from_secs(1200);

pub fn installed() -> bool {
    debian_package("fio", "fio", "fio on the mount");
    Command::new("fio").arg("--version").output().is_ok()
}

/// A file of this size by each of the ways.
pub fn verify(served: Served, size: &str) -> Result<Served> {
    for (engine, needs) in ENGINES.iter().filter(|(engine, _)| shared_mappings() || *engine != "mmap") {
        let mut fio = Command::new("fio");
        fio.args(["--name=verify", "--rw=randwrite", "--bsrange=4k-128k", "--end_fsync=1", "--size", size]);
        fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--verify_backlog=256"]);
        fio.args(["--ioengine", engine]).args(*needs).arg("--filename").arg(served.at().join(engine));
        tool::run(&mut fio, PATIENCE)?;
    }
    Ok(served)
}
