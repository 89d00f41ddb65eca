//! `cargo xtask lab --only crash`: the machine is gone after an fsync, and comes back on the same disks.
//!
//! What an RDMA device wrote into a mapped file before the fsync is lost, where a kernel accepts such memory; what was put
//! into a store is there, and every checksum matches.

use super::hazards;
use super::{Kernel, boot};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The longest that a guest may run, in seconds.
const GUEST_MAX_S: &str = "900";

/// The filesystems that have a disk.
const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// What came out on one filesystem of one kernel: what the kernel had said of the file, how many of its pages were lost, and
/// what of the store.
#[derive(Deserialize, Serialize)]
pub struct Crash {
    pub kernel: String,
    pub filesystem: String,
    pub told: String,
    pub lost: String,
    pub store: String,
}

/// Where it is kept.
pub fn document(lab: &Path, kernel: &Kernel) -> PathBuf {
    lab.join(format!("crash-{}.json", kernel.release))
}

/// Crashes each kernel once.
pub fn run(lab: &Path, root: &Path, kernels: &[Kernel]) -> Result<()> {
    for kernel in kernels {
        let (file, devices) = hazards::prepare(lab, root, kernel, include_str!("crash/crash.sh"))?;
        let said = |name: &str| -> Result<Vec<String>> {
            let console = boot(root, kernel, &file, GUEST_MAX_S, &format!("boot={name}"), &devices)?;
            let lines: Vec<String> = console
                .lines()
                .filter_map(|line| line.split_once("CRASH ").map(|(_, said)| said.trim().to_owned()))
                .collect();
            let whole = lines.last().is_some_and(|line| line.starts_with("done"));
            ensure!(whole, "{}: the guest ended too early; its console:\n{console}", kernel.release);
            Ok(lines)
        };
        let (before, after) = (said("before")?, said("after")?);
        let mut crashes = Vec::new();
        for filesystem in FILESYSTEMS {
            let find = |lines: &[String], what: &str| -> Result<String> {
                let start = format!("{what} {filesystem} ");
                let found = lines.iter().find_map(|line| line.strip_prefix(&start).map(str::to_owned));
                found.with_context(|| format!("{}, {filesystem}: no word of {what}", kernel.release))
            };
            let crash = Crash {
                kernel: kernel.release.clone(),
                filesystem: filesystem.to_owned(),
                told: find(&before, "before")?,
                lost: find(&after, "plain")?,
                store: find(&after, "store")?,
            };
            let Crash { kernel: release, told, lost, store, .. } = &crash;
            let lost_of_it = if told == "refused" { String::new() } else { format!(", {lost} pages lost") };
            println!(
                "{release}, {filesystem}: RDMA memory of a file: {told}{lost_of_it}; the store: {store}"
            );
            let as_known = match kernel.version.as_str() {
                "6.1" => told == "acknowledged" && !lost.starts_with("0 "),
                "6.12" => told == "refused",
                _ => true,
            };
            ensure!(as_known, "{release}, {filesystem}: not as known of this kernel");
            ensure!(store.starts_with("kept"), "{release}, {filesystem}: {store}");
            crashes.push(crash);
        }
        std::fs::write(document(lab, kernel), serde_json::to_vec(&crashes)?)?;
    }
    Ok(())
}
