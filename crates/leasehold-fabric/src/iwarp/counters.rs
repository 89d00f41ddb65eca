//! What the fabric counts.

use super::terminate::Violation;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the fabric began, of all its connections.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames received whole.
    pub segments: AtomicU64,
    /// Bytes placed in exposed memory.
    pub bytes_placed: AtomicU64,
    /// Bytes dropped because their tag was revoked.
    pub bytes_discarded: AtomicU64,
    /// Frames whose CRC was wrong.
    pub bad_crcs: AtomicU64,
    /// Terminates sent.
    pub terminates_sent: AtomicU64,
    /// Terminates received.
    pub terminates_received: AtomicU64,
    /// Connections that stood.
    pub connections: AtomicU64,
    /// Peers that were not let in.
    pub rejected: AtomicU64,
    /// Peers that took too long to set up.
    pub setup_timeouts: AtomicU64,
    violations: [AtomicU64; Violation::COUNT],
}

impl Counters {
    /// How often peers broke the protocol in this way.
    pub fn violations(&self, violation: Violation) -> u64 {
        self.violations[violation as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count_violation(&self, violation: Violation) {
        add(&self.violations[violation as usize], 1);
        if violation == Violation::Crc {
            add(&self.bad_crcs, 1);
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
