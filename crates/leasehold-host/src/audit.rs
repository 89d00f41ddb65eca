//! `leasehold audit`: is this host safe for DMA into files?
//!
//! It reads and judges, and changes nothing. Everything is read through a [`Host`], which can be a copy of one; what is
//! found is a case of an entry of the [`catalogue`]. Without privileges it sees less, and says what it could not see.
//!
//! ```text
//! host ---> kernel, mounts, rdma, processes, units, leases, ..   what there is
//!                \        |         /
//!                 findings (catalogue)     lease_breakers
//!                          \                 /
//!                               report  --->  text, JSON, sarif
//! ```
//!
//! Invariant: no path is touched by this process that another machine or a daemon may have to answer for; see [`look`].
//!
//! Sources: `docs/audit.md` has what was measured, and where the rest is from.

mod baseline;
mod capabilities;
pub mod catalogue;
mod dma;
mod evidence;
mod finding;
mod host;
mod kernel;
mod lease_breakers;
mod leases;
mod limits;
pub mod look;
pub mod markdown;
mod mounts;
mod netlink;
mod processes;
mod rdma;
mod report;
pub mod sarif;
mod services;
mod shell;
pub mod text;
mod trim;
mod units;

#[cfg(test)]
mod tests;

pub use baseline::{Accepted, Baseline, BaselineError};
pub use capabilities::Capabilities;
pub use dma::DmaProcess;
pub use evidence::{Evidence, EvidenceError};
pub use finding::{Finding, Severity};
pub use host::{Host, HostError, RECORDED};
pub use kernel::{Does, Kernel, Pin};
pub use lease_breakers::{Breaker, Effect};
pub use leases::{Lease, Leases};
pub use mounts::Mount;
pub use processes::DmaDevice;
pub use rdma::Device;
pub use report::{DOCUMENT_VERSION, Facts, Report};

use crate::guard;
use dma::Dma;
use mounts::Mounts;
use processes::Processes;
use services::Services;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use trim::Loops;
use units::Units;

/// How long the configuration files may take, all together: some may be links to where nobody answers.
const FILES_TIME: Duration = Duration::from_secs(3);

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The mounts that these are on; without any, all that matter.
    pub paths: Vec<PathBuf>,
    /// What a probe measured.
    pub evidence: Option<Evidence>,
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// What there must be is not there.
    #[error("cannot read {path}: {error}; is /proc mounted?")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A path that there is nothing to say about.
    #[error("cannot audit {path}: {reason}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Looks at a host, and judges.
///
/// # Errors
/// If a path cannot be looked at, or not even the mounts can be read.
pub fn audit(host: Host, options: &Options) -> Result<Report, AuditError> {
    let host = Arc::new(host);
    let mut unseen = Vec::new();
    let mounts = Arc::new(Mounts::of(&host, &options.paths, &mut unseen)?);
    let kernel = Kernel::of(&host, options.evidence.as_ref(), &mut unseen);
    let processes = Processes::of(&host, &mounts, &mut unseen);
    let rdma = rdma::Rdma::of(&host, &kernel, &mut unseen);
    let leases = Leases::of(&host, &mut unseen);
    let capabilities = Capabilities::of(&host, &kernel.release, &mut unseen);
    let processes = Arc::new(processes);
    let (units, services) = configuration(&host, &processes, &mut unseen);
    let loops = Loops::of(&host, &mounts, &services);
    let dma = Dma::of(&processes, &rdma);

    let mut findings = kernel.findings();
    findings.extend(mounts.findings());
    findings.extend(services.findings());
    findings.extend(loops.findings());
    findings.extend(dma.findings(&kernel));
    findings.extend(leases.findings(&mounts, &processes, &dma));
    findings.extend(rdma.findings());
    findings.extend(limits::findings(&units, &processes));
    findings.extend(capabilities.findings());
    // Whoever sees nothing of others' processes cannot say that none of them does DMA.
    let does_dma = dma.is_there();
    if !does_dma && processes.hidden == 0 {
        for finding in findings.iter_mut().filter(|finding| finding.entry.needs_dma) {
            finding.severity = Severity::Low;
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let lease_breakers = lease_breakers::of(&host, &mounts, &processes, &services, &leases, &loops);
    if !host.is_live() {
        unseen.push("this is a copy of a host: what has changed since is not in it".to_owned());
    }
    let guards = if host.is_live() { guards(&mut unseen) } else { Vec::new() };
    Ok(Report {
        findings,
        accepted_and_gone: Vec::new(),
        lease_breakers,
        host: Facts {
            mounts: mounts.chosen.clone(),
            rdma: rdma.devices.clone(),
            does_dma,
            processes: processes.count as u64,
            dma_processes: dma.list(),
            kernel,
            leases,
            guards,
            capabilities,
        },
        not_seen: unseen,
    })
}

/// The guards that live. Of one that was killed, and of what no guard sees, there is a word.
fn guards(unseen: &mut Vec<String>) -> Vec<guard::Entry> {
    let mut live = Vec::new();
    match guard::guards(Path::new(guard::REGISTRY)) {
        Ok(all) => {
            for (entry, lives) in all {
                let (pid, command, files) = (entry.guard, &entry.command, entry.files.len());
                unseen.push(match lives {
                    true => format!(
                        "unlink, rename and stores through mappings: the guard of {command:?} (pid {pid}, {files} files) \
                         does not see them"
                    ),
                    false => format!("the guard of {command:?} (pid {pid}) was killed: nobody holds its {files} files"),
                });
                if lives {
                    live.push(entry);
                }
            }
        }
        Err(error) => unseen.push(format!("guards: {}: {error}", guard::REGISTRY)),
    }
    live
}

/// What is started by itself; on a thread, as a unit may be a link to a filesystem that hangs.
fn configuration(
    host: &Arc<Host>,
    processes: &Arc<Processes>,
    unseen: &mut Vec<String>,
) -> (Units, Services) {
    let (sender, receiver) = mpsc::channel();
    let read = {
        let (host, processes) = (Arc::clone(host), Arc::clone(processes));
        move || {
            let mut unseen = Vec::new();
            let units = Units::of(&host, &mut unseen);
            let services = Services::of(&host, &units, &processes);
            // If it took too long, nobody waits for it any more.
            let _ = sender.send((units, services, unseen));
        }
    };
    let started = thread::Builder::new().name("audit-files".to_owned()).spawn(read);
    match started.ok().and_then(|_| receiver.recv_timeout(FILES_TIME).ok()) {
        Some((units, services, more)) => {
            unseen.extend(more);
            (units, services)
        }
        None => {
            unseen.push(format!(
                "services and jobs: the files of systemd and cron did not answer in {} s",
                FILES_TIME.as_secs()
            ));
            Default::default()
        }
    }
}
