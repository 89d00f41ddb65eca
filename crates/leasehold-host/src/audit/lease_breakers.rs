//! What can break a lease on this host, and what goes past one.
//!
//! The kernel's own part was measured with fcntl leases on ext4, XFS, btrfs, tmpfs, overlay and FUSE (Linux 6.18), and is
//! the same everywhere. The rest is what was found here.

use super::leases::Leases;
use super::mounts::{Family, Mounts};
use super::processes::Processes;
use super::services::Services;
use super::{host::Host, trim::Loops};
use serde::Serialize;

/// What something does to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The holder is told, and the breaker waits.
    Breaks,
    /// It changes or takes what the lease is on, and nobody is told.
    Bypasses,
    /// It leaves alone what a lease is on.
    Neither,
}

impl Effect {
    /// As it is printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Effect::Breaks => "breaks",
            Effect::Bypasses => "bypasses",
            Effect::Neither => "neither",
        }
    }
}

/// Something that can break or bypass a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Breaker {
    /// What it does to leases.
    pub effect: Effect,
    /// Who or what.
    pub what: String,
    /// By what.
    pub how: String,
    /// What was seen of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

impl Breaker {
    pub(crate) fn new(effect: Effect, what: impl Into<String>, how: impl Into<String>) -> Breaker {
        Breaker { effect, what: what.into(), how: how.into(), evidence: Vec::new() }
    }

    pub(crate) fn seen(mut self, evidence: impl Into<String>) -> Breaker {
        self.evidence.push(evidence.into());
        self
    }
}

/// How many names are named.
const NAMES_MAX: usize = 3;

pub(crate) fn of(
    host: &Host,
    mounts: &Mounts,
    processes: &Processes,
    services: &Services,
    leases: &Leases,
    loops: &Loops,
) -> Vec<Breaker> {
    let mut breakers = kernel(leases);
    breakers.extend(writers(processes));
    breakers.extend(of_mounts(mounts));
    breakers.extend(services.breakers());
    breakers.extend(loops.breakers());
    let threads = host.text("/proc/fs/nfsd/threads").ok().and_then(|text| text.trim().parse::<u32>().ok());
    if let Some(threads) = threads.filter(|threads| *threads > 0) {
        let how = "clients' opens and truncates; delegations and layouts are leases, too";
        breakers.push(
            Breaker::new(Effect::Breaks, "the NFS server", how).seen(format!("{threads} threads of nfsd")),
        );
    }
    if processes.all.iter().any(|process| process.name == "smbd") {
        breakers.push(
            Breaker::new(Effect::Breaks, "smbd", "clients' opens; with kernel oplocks it holds leases, too")
                .seen("smbd runs"),
        );
    }
    breakers.sort_by_key(|breaker| breaker.effect);
    breakers
}

fn kernel(leases: &Leases) -> Vec<Breaker> {
    let forced = match leases.break_time_s {
        Some(seconds) => format!("{seconds} s without an answer, and it is gone; the mapping stays writable"),
        None => "without an answer it is gone then; the mapping stays writable".to_owned(),
    };
    vec![
        Breaker::new(Effect::Breaks, "open(2) by another process", "for reading: only write leases"),
        Breaker::new(Effect::Breaks, "truncate(2) by path", "every lease"),
        Breaker::new(Effect::Breaks, "lease-break-time", forced),
        Breaker::new(
            Effect::Bypasses,
            "descriptors opened before, or inherited",
            "write, ftruncate, fallocate, FICLONE onto the file",
        ),
        Breaker::new(Effect::Bypasses, "unlink, rename, link", "the name goes, the lease stays"),
        Breaker::new(Effect::Bypasses, "chmod, setxattr, stat", "no data are changed"),
    ]
}

fn writers(processes: &Processes) -> Option<Breaker> {
    let writers: Vec<String> = processes
        .all
        .iter()
        .filter(|process| process.written().next().is_some())
        .map(|process| process.called())
        .collect();
    let (first, rest) = writers.split_at(writers.len().min(NAMES_MAX));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    let programs = if writers.len() == 1 { "1 process" } else { &format!("{} processes", writers.len()) };
    (!first.is_empty()).then(|| {
        Breaker::new(
            Effect::Bypasses,
            format!("{programs} with files mapped shared for writing"),
            "a store through a mapping breaks nothing",
        )
        .seen(format!("{}{more}", first.join(", ")))
    })
}

fn of_mounts(mounts: &Mounts) -> Vec<Breaker> {
    let breaker = |mount: &super::mounts::Mount| {
        let point = mount.point.to_string_lossy();
        if mount.dax {
            let how = "a truncate waits for pins without end, whoever has a lease";
            return Some(Breaker::new(Effect::Neither, format!("{point} (DAX)"), how));
        }
        let how = match mount.family {
            Family::Network => "other clients, and the server's recalls",
            Family::Fuse => "its daemon, and whatever changes what lies below",
            Family::Overlay => "whatever changes the layers below",
            Family::Disk | Family::Memory | Family::Other => return None,
        };
        Some(Breaker::new(Effect::Bypasses, format!("{point} ({})", mount.kind), how))
    };
    mounts.chosen.iter().filter_map(breaker).collect()
}
