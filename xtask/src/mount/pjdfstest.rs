//! `pjdfstest`: what POSIX says of names, owners, permissions and errors, a small test each.

use super::served::Served;
use super::tool;
use crate::step::cargo_tool;
use anyhow::{Result, bail};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Which of them are expected to fail, and why. One that is in there and passes fails the suite, too.
const CONFIGURATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/mount/pjdfstest.toml");
const PATIENCE: Duration = Duration::from_secs(300);

pub fn installed() -> bool {
    cargo_tool("pjdfstest", "0.2.2").is_ok()
}

pub fn all(served: Served) -> Result<Served> {
    // Another filesystem, for what must not cross from one to another.
    let other = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new())?;
    let mut suite = Command::new("pjdfstest");
    suite
        .env("RUST_BACKTRACE", "0")
        .arg("-c")
        .arg(CONFIGURATION)
        .arg("-p")
        .arg(served.at())
        .arg("-s")
        .arg(other.path());
    let (status, said) = tool::output(&mut suite, PATIENCE)?;
    if !status.success() {
        let good = [" ok", " skipped", " failed as expected"];
        let bad: Vec<&str> = said
            .lines()
            .filter(|line| !good.iter().any(|end| line.ends_with(end)) && !line.contains("allow_remount"))
            .collect();
        bail!("{status}; {CONFIGURATION} has those that may fail\n{}", bad.join("\n"));
    }
    println!("{}", said.lines().last().unwrap_or_default());
    Ok(served)
}
