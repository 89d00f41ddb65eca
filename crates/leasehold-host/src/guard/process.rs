//! Processes, as /proc has them: who somebody is, and who descends from whom.
//!
//! Nothing here takes a lock of the process that is looked at, so nothing here waits for somebody who is held.

use leasehold_core::identity::{Evidence, Identity};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::OwnedFd;

/// More generations than these are no descent.
const GENERATIONS_MAX: usize = 64;

/// Who a process is. The kernel vouches for it if the descriptor that came with the event shows that the process lived
/// while /proc was read: then its number had not been given to another.
pub(super) fn identity(host: &str, pid: u32, pidfd: Option<&OwnedFd>) -> Identity {
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim_end().to_owned());
    let uid = fs::read_to_string(format!("/proc/{pid}/status")).ok().and_then(|status| uid(&status));
    let known = program.is_ok() && uid.is_some();
    let verified = known && pidfd.is_some_and(|pidfd| !has_ended(pidfd));
    Identity {
        host: host.to_owned(),
        pid,
        uid: uid.unwrap_or(u32::MAX),
        program: program.unwrap_or_else(|_| "?".to_owned()),
        evidence: if verified { Evidence::Verified } else { Evidence::Claimed },
    }
}

fn uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether the process is over.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(ready) if ready > 0)
}

/// A descriptor of the process.
pub(super) fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Sends it a signal; one that is over does not get it.
pub(super) fn signal(pidfd: &OwnedFd, signal: Signal) {
    let _ = pidfd_send_signal(pidfd, signal);
}

/// State and parent.
fn stat(pid: u32) -> Option<(char, u32)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<(char, u32)> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether it is `root`, or descends from it.
pub(super) fn descends(mut pid: u32, root: u32) -> bool {
    for _ in 0..GENERATIONS_MAX {
        if pid == root {
            return true;
        }
        match stat(pid) {
            Some((_, parent)) if parent > 1 || root == 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

/// Those that live and descend from `root`, which is not among them.
pub(super) fn descendants(root: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid != root && stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X')))
        .filter(|&pid| descends(pid, root))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_whose_name_has_brackets_and_spaces_has_a_parent_all_the_same() {
        assert_eq!(parse_stat("7 (a) b (c) S 42 7 7 0"), Some(('S', 42)));
    }

    #[test]
    fn we_descend_from_our_parent_and_not_the_other_way_round() {
        let (own, parent) = (std::process::id(), std::os::unix::process::parent_id());
        assert!(descends(own, own) && descends(own, parent));
        assert!(!descends(parent, own));
    }

    #[test]
    fn the_kernel_vouches_for_a_process_whose_descriptor_it_gave() {
        let own = std::process::id();
        let pidfd = open(own).expect("our own");
        let who = identity("here", own, Some(&pidfd));
        assert_eq!((who.pid, who.evidence), (own, Evidence::Verified));
        assert_eq!(who.uid, rustix::process::getuid().as_raw());
        assert_eq!(identity("here", own, None).evidence, Evidence::Claimed);
    }
}
