//! What developers do on a filesystem: `git clone` of this repository, and `cargo check` of a crate of it.

use super::served::Served;
use super::tool;
use anyhow::Result;
use std::process::Command;
use std::time::Duration;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PATIENCE: Duration = Duration::from_secs(1800);

/// Whether there is git, and this is a repository of it.
pub fn installed() -> bool {
    Command::new("git")
        .args(["-C", REPOSITORY, "rev-parse"])
        .output()
        .is_ok_and(|answer| answer.status.success())
}

pub fn clone_and_check(served: Served) -> Result<Served> {
    let (tree, target) = (served.at().join("tree"), served.at().join("target"));
    let mut clone = Command::new("git");
    // So that it copies what it would link.
    tool::run(clone.args(["clone", "--no-hardlinks", REPOSITORY]).arg(&tree), PATIENCE)?;
    let git =
        |arguments: &[&str]| tool::run(Command::new("git").arg("-C").arg(&tree).args(arguments), PATIENCE);
    git(&["fsck", "--full"])?;
    git(&["diff", "--exit-code"])?;
    let mut check = Command::new("cargo");
    check.args(["check", "--package", "leasehold-core"]).current_dir(&tree).env("CARGO_TARGET_DIR", target);
    tool::run(&mut check, PATIENCE)?;
    Ok(served)
}
