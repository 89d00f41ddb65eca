//! The kernel's file leases: who has which, and how breaks of them go.

use super::catalogue;
use super::dma::Dma;
use super::finding::Finding;
use super::host::Host;
use super::mounts::{Device, Mounts};
use super::processes::{Process, Processes};
use serde::Serialize;

/// Below this, a holder cannot stop what it does.
const BREAK_TIME_MIN_S: u64 = 5;
/// Above this, whoever waits takes the host for dead.
const BREAK_TIME_MAX_S: u64 = 120;

/// A lease that somebody has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// The holder's process.
    pub pid: u32,
    /// `READ` or `WRITE`; while it is broken, what it is to become, which can be `UNLCK`.
    pub kind: String,
    /// Whether somebody waits for it.
    pub is_breaking: bool,
    /// `08:01:1234`, device and inode.
    pub file: String,
    /// The processes that wait for it.
    pub waiting: Vec<u32>,
}

/// What is known of leases.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Leases {
    /// Whether programs can take one.
    pub enabled: Option<bool>,
    /// The time to answer a break.
    pub break_time_s: Option<u64>,
    /// Those that there are.
    pub held: Vec<Lease>,
}

impl Leases {
    pub(crate) fn of(host: &Host, unseen: &mut Vec<String>) -> Leases {
        let mut number = |path: &str| match host.text(path) {
            Ok(text) => text.trim().parse::<u64>().ok(),
            Err(error) => {
                unseen.push(format!("{path}: {error}"));
                None
            }
        };
        let enabled = number("/proc/sys/fs/leases-enable").map(|number| number != 0);
        let break_time_s = number("/proc/sys/fs/lease-break-time");
        let held = match host.text("/proc/locks") {
            Ok(text) => parse_all(&text),
            Err(error) => {
                unseen.push(format!("leases that are held: /proc/locks: {error}"));
                Vec::new()
            }
        };
        Leases { enabled, break_time_s, held }
    }

    pub(crate) fn findings(&self, mounts: &Mounts, processes: &Processes, dma: &Dma) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.enabled == Some(false) {
            found.push(
                Finding::new(&catalogue::LEASE_DISABLED, "fs.leases-enable").seen("fs.leases-enable = 0"),
            );
        }
        match self.break_time_s {
            Some(seconds) if seconds < BREAK_TIME_MIN_S => found.push(
                Finding::new(&catalogue::LEASE_BREAK_SHORT, "fs.lease-break-time")
                    .seen(format!("fs.lease-break-time = {seconds}")),
            ),
            Some(seconds) if seconds > BREAK_TIME_MAX_S => found.push(
                Finding::new(&catalogue::LEASE_BREAK_LONG, "fs.lease-break-time")
                    .seen(format!("fs.lease-break-time = {seconds}")),
            ),
            _ => {}
        }
        let called = |pid: u32| {
            let process = processes.all.iter().find(|process| process.pid == pid);
            process.map_or_else(|| format!("process {pid}"), Process::called)
        };
        for lease in &self.held {
            let entry = match lease.is_breaking {
                true => &catalogue::LEASE_BREAKING,
                false if dma.holds_for_long(lease.pid) => &catalogue::LEASE_NO_FENCE,
                false => continue,
            };
            let process = processes.all.iter().find(|process| process.pid == lease.pid);
            let name = process.map_or_else(|| "a process".to_owned(), |process| process.name.clone());
            let what = if lease.is_breaking { "a lease that is to become" } else { "a lease to" };
            let seen = format!("{}: {what} {} on {}", called(lease.pid), lease.kind, lease.file);
            let (mount, inode) = lease.place(mounts);
            let finding = Finding::new(entry, name)
                .seen(seen)
                .with("pid", lease.pid.to_string())
                .with("mount", mount)
                .with("inode", inode);
            let waiting: Vec<String> = lease.waiting.iter().map(|pid| called(*pid)).collect();
            found.push(match waiting.is_empty() {
                true => finding,
                false => finding.seen(format!("waiting for it: {}", waiting.join(", "))),
            });
        }
        found
    }
}

impl Lease {
    /// Where its file can be looked for: the mount, and the inode's number.
    fn place(&self, mounts: &Mounts) -> (String, String) {
        let (device, inode) = self.file.rsplit_once(':').unwrap_or(("", ""));
        let device = Device::parse(device, 16);
        let mount = mounts.all.iter().find(|mount| Some(mount.device) == device);
        let point = mount.map_or_else(|| "/".to_owned(), |mount| mount.point.to_string_lossy().into_owned());
        (point, inode.to_owned())
    }
}

/// A line each; whoever waits for a lease has one behind it, with the same number:
///
/// ```text
/// 1: LEASE  BREAKING  UNLCK 300 08:01:42 0 EOF
/// 1: -> LEASE  BREAKER   WRITE 4711 <none>:0 0 EOF
/// ```
fn parse_all(text: &str) -> Vec<Lease> {
    let mut leases: Vec<(&str, Lease)> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            [number, "LEASE", state @ ("ACTIVE" | "BREAKING"), kind, pid, file, ..] => {
                let Ok(pid) = pid.parse() else { continue };
                let (kind, file) = ((*kind).to_owned(), (*file).to_owned());
                let is_breaking = *state == "BREAKING";
                leases.push((number, Lease { pid, kind, is_breaking, file, waiting: Vec::new() }));
            }
            [number, "->", "LEASE", "BREAKER", _, pid, ..] => {
                let lease = leases.iter_mut().rev().find(|(other, _)| other == number);
                if let (Some((_, lease)), Ok(pid)) = (lease, pid.parse()) {
                    lease.waiting.push(pid);
                }
            }
            _ => {}
        }
    }
    leases.into_iter().map(|(_, lease)| lease).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_told_from_locks_and_each_has_those_that_wait_for_it() {
        let text = "1: POSIX  ADVISORY  WRITE 1 08:01:2 0 EOF\n\
                    2: LEASE  BREAKING  UNLCK 4711 08:01:99 0 EOF\n\
                    2: -> LEASE  BREAKER   WRITE 22598 <none>:0 0 EOF\n\
                    2: -> LEASE  BREAKER   READ  22599 <none>:0 0 EOF\n\
                    3: LEASE  ACTIVE    WRITE 1 fe:00:100 0 EOF\n\
                    nonsense\n";
        let lease = |pid, kind: &str, is_breaking, file: &str, waiting: &[u32]| Lease {
            pid,
            kind: kind.to_owned(),
            is_breaking,
            file: file.to_owned(),
            waiting: waiting.to_owned(),
        };
        let expected = [
            lease(4711, "UNLCK", true, "08:01:99", &[22598, 22599]),
            lease(1, "WRITE", false, "fe:00:100", &[]),
        ];
        assert_eq!(parse_all(text), expected);
    }
}
