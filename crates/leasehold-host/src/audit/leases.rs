//! The kernel's file leases: who has which, and how breaks of them go.

use super::catalogue;
use super::dma::Dma;
use super::finding::Finding;
use super::host::Host;
use super::processes::Processes;
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
    /// `READ` or `WRITE`.
    pub kind: String,
    /// Whether somebody waits for it.
    pub is_breaking: bool,
    /// `08:01:1234`, device and inode.
    pub file: String,
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
            Ok(text) => text.lines().filter_map(parse).collect(),
            Err(error) => {
                unseen.push(format!("leases that are held: /proc/locks: {error}"));
                Vec::new()
            }
        };
        Leases { enabled, break_time_s, held }
    }

    pub(crate) fn findings(&self, processes: &Processes, dma: &Dma) -> Vec<Finding> {
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
        for lease in &self.held {
            let process = processes.all.iter().find(|process| process.pid == lease.pid);
            let name = process.map_or_else(|| "a process".to_owned(), |process| process.name.clone());
            let seen = format!("{name} [{}]: {} lease on {}", lease.pid, lease.kind, lease.file);
            let entry = match lease.is_breaking {
                true => &catalogue::LEASE_BREAKING,
                false if dma.holds_for_long(lease.pid) => &catalogue::LEASE_NO_FENCE,
                false => continue,
            };
            found.push(Finding::new(entry, name).seen(seen).with("pid", lease.pid.to_string()));
        }
        found
    }
}

/// `1: LEASE  ACTIVE    READ  1234 08:01:5678 0 EOF`
fn parse(line: &str) -> Option<Lease> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "LEASE", state, kind, pid, file, ..] = fields.as_slice() else { return None };
    let is_breaking = match *state {
        "ACTIVE" => false,
        "BREAKING" => true,
        // Whoever waits for the break.
        _ => return None,
    };
    Some(Lease { pid: pid.parse().ok()?, kind: (*kind).to_owned(), is_breaking, file: (*file).to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_told_from_locks_and_those_that_are_broken_from_others() {
        let lease = parse("2: LEASE  BREAKING  READ  4711 08:01:99 0 EOF").unwrap();
        assert!(lease.is_breaking);
        assert_eq!((lease.pid, lease.kind.as_str(), lease.file.as_str()), (4711, "READ", "08:01:99"));
        assert!(!parse("3: LEASE  ACTIVE    WRITE 1 08:01:99 0 EOF").unwrap().is_breaking);
        for line in
            ["1: POSIX  ADVISORY  WRITE 1 08:01:2 0 EOF", "4: LEASE  BREAKER   READ 1 08:01:2 0 EOF", ""]
        {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
