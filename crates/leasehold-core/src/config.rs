//! What the operator decides, and how much of everything there may be.

use crate::scheme::{Backing, Host, Scheme};
use crate::schemes;

/// How a core behaves; fixed for its life, so that its hash tells no two states of one core apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The design. Only [`schemes::LEASEHOLD`] may serve a store.
    pub scheme: Scheme,
    /// What the scheme lives on. [`schemes::LEASEHOLD`] does not care.
    pub host: Host,
    /// How long the holder of a lease under break has to answer.
    pub grace_ms: u64,
    /// What happens to a holder that does not answer in time.
    pub on_expiry: OnExpiry,
    /// How long after a failed writeback it is tried again, unless a sync tries it earlier.
    pub retry_ms: u64,
    /// Frames in the arena.
    pub frames: u32,
    /// How much of everything there may be.
    pub limits: Limits,
}

impl core::hash::Hash for Config {
    fn hash<H: core::hash::Hasher>(&self, _: &mut H) {}
}

impl Default for Config {
    fn default() -> Config {
        Config {
            scheme: schemes::LEASEHOLD,
            host: Host { backing: Backing::PageCache, device_faults: false },
            grace_ms: 5_000,
            on_expiry: OnExpiry::FenceLease,
            retry_ms: 1_000,
            frames: 65_536,
            limits: Limits::default(),
        }
    }
}

/// What happens when the grace period of a break is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnExpiry {
    /// Fence the one lease; the holder's other leases go on (P7).
    FenceLease,
    /// End the holder's session: for holders whose fabric cannot revoke one key alone. [`SessionId::LOCAL`] has no
    /// key, and only loses the lease.
    ///
    /// [`SessionId::LOCAL`]: crate::ids::SessionId::LOCAL
    EndSession,
    /// The holder keeps its lease, and the breaker is refused with [`ChangeError::Busy`]. An acquire that breaks goes on
    /// waiting, until its own deadline.
    ///
    /// [`ChangeError::Busy`]: crate::output::ChangeError::Busy
    RefuseBreaker,
}

/// How much of everything there may be. Full is an ordinary answer: see the `Limit` variants in [`crate::output`],
/// which carry the names of these fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Sessions, not counting `LOCAL`. One more is answered by `Output::Disconnect`.
    pub sessions_max: usize,
    /// Open files. One more is not opened, and requests on it find no file.
    pub files_max: usize,
    /// Leases, granted or wanted, of all sessions. A capture counts as a lease while it is under way.
    pub leases_max: usize,
    /// Leases, granted or wanted, of one session.
    pub leases_per_session_max: usize,
    /// Acquires, reads (until finished), changes, syncs, and captures without frames that are owed an answer.
    pub requests_max: usize,
    /// Ranges in one acquire.
    pub acquire_ranges_max: usize,
    /// Bytes of one lease, and of one read.
    pub lease_bytes_max: u64,
    /// Break records of one lease. A breaker beyond them waits like the others, but the holder hears no more of it.
    pub breaks_per_lease_max: usize,
    /// Captures of one lease that have their frames: a breaker waits for each of them, whatever the holder does.
    pub captures_per_lease_max: usize,
    /// Leases of one session that ended without a commit, and whose reason and key are remembered so that a late
    /// commit gets a good answer and late bytes are swallowed.
    pub remembered_per_session_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions_max: 4_096,
            files_max: 1 << 20,
            leases_max: 1 << 20,
            leases_per_session_max: 1 << 18,
            requests_max: 1 << 16,
            acquire_ranges_max: 1_024,
            lease_bytes_max: 1 << 30,
            breaks_per_lease_max: 8,
            captures_per_lease_max: 64,
            remembered_per_session_max: 64,
        }
    }
}
