//! Who asks, and whether he has been interrupted meanwhile.
//!
//! fuser answers the kernel's own word for an interrupt (`FUSE_INTERRUPT`) with ENOSYS, whereupon no signal reaches a caller
//! before his answer does. But on this machine the signal is pending, and can be seen; and the kernel of another machine is
//! not asked by fuser, but by the end of ours that is there, which passes its word on.

use super::message::Unique;
use super::remote::Callers as RemoteCallers;
use crate::server::peer;
use fuser::Request;
use leasehold_core::identity::{Evidence, Identity};
use std::sync::Arc;
use std::time::Duration;

/// How often is looked whether a caller that waits was interrupted.
const LOOK: Duration = Duration::from_millis(50);

/// Where the callers of a mount are.
pub(super) enum Callers {
    /// On this machine: the kernel knows them.
    Local,
    /// On another, whose word we take for it.
    Remote(Arc<RemoteCallers>),
}

impl Callers {
    pub fn identity(&self, request: &Request) -> Identity {
        match self {
            Callers::Local => local(request.pid(), request.uid()),
            Callers::Remote(callers) => {
                callers.identity(Unique(request.unique().0), request.pid(), request.uid())
            }
        }
    }

    /// Returns once the caller is interrupted.
    pub fn interrupted(&self, request: &Request) -> impl Future<Output = ()> + Send + 'static {
        let pid = request.pid();
        let told = match self {
            Callers::Local => None,
            Callers::Remote(callers) => Some(callers.interrupted(Unique(request.unique().0))),
        };
        async move {
            match told {
                None => signalled(pid).await,
                Some(told) => told.notified().await,
            }
        }
    }

    pub fn are_remote(&self) -> bool {
        matches!(self, Callers::Remote(_))
    }
}

/// The process that the kernel names. Of the writeback of a mapping it names none.
fn local(pid: u32, uid: u32) -> Identity {
    Identity {
        host: peer::this_host(),
        pid,
        uid,
        program: peer::program_of(pid).unwrap_or_else(|| "unknown".to_owned()),
        evidence: Evidence::Verified,
    }
}

/// Whoever changed a page by a mapping: the kernel does not say who, but it is one of those who have the file open.
pub(super) fn mappers(openers: &[u32], uid: u32) -> Identity {
    let named =
        |&pid: &u32| format!("{}[{pid}]", peer::program_of(pid).unwrap_or_else(|| "unknown".to_owned()));
    let openers = openers.iter().map(named).collect::<Vec<_>>().join(", ");
    Identity { program: format!("a mapping, by one of {openers}"), ..local(0, uid) }
}

/// Returns once a signal waits for the process that it would act on.
async fn signalled(pid: u32) {
    if pid == 0 {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if has_signal(&status) {
            return;
        }
    }
}

fn has_signal(status: &str) -> bool {
    let mask = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0)
    };
    // What is ignored or blocked does not end a wait; SIGCHLD (17), SIGURG (23) and SIGWINCH (28) do nothing by default.
    let harmless = 1 << 16 | 1 << 22 | 1 << 27;
    let handled = mask("SigCgt");
    let ends = !mask("SigBlk") & !mask("SigIgn") & (!harmless | handled);
    (mask("SigPnd") | mask("ShdPnd")) & ends != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: &str, blocked: &str, ignored: &str, caught: &str) -> String {
        format!(
            "Name:\tx\nSigPnd:\t{pending}\nShdPnd:\t0000000000000000\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n"
        )
    }

    #[test]
    fn a_signal_ends_a_wait_unless_it_is_blocked_ignored_or_does_nothing() {
        assert!(has_signal(&status("0000000000000002", "0", "0", "0")), "SIGINT");
        assert!(has_signal(&status("0000000000000100", "0", "0", "0")), "SIGKILL");
        assert!(!has_signal(&status("0000000000000002", "2", "0", "0")));
        assert!(!has_signal(&status("0000000000000002", "0", "2", "0")));
        assert!(!has_signal(&status("0000000000010000", "0", "0", "0")), "SIGCHLD");
        assert!(has_signal(&status("0000000000010000", "0", "0", "10000")), "SIGCHLD with a handler");
        assert!(!has_signal(""));
    }
}
