//! What sessions and administrators hear as it happens.

use leasehold_core::identity::Identity;
use leasehold_core::ids::{BreakId, LeaseId, SessionId};
use leasehold_core::range::ByteRange;
use std::time::{Duration, SystemTime};

/// Something that happened to a lease or a session.
#[derive(Clone, Debug)]
pub enum Event {
    /// Leases were granted.
    Granted {
        /// To whom.
        session: SessionId,
        /// Which.
        lease: LeaseId,
        /// The file's path in the store.
        path: String,
        /// The bytes.
        range: ByteRange,
        /// Whether the key may change them.
        writes: bool,
    },
    /// Somebody needs the range: commit or release before the deadline, or lose it.
    Break {
        /// Of whom.
        session: SessionId,
        /// The break.
        id: BreakId,
        /// The lease.
        lease: LeaseId,
        /// The file's path in the store.
        path: String,
        /// The bytes under lease.
        range: ByteRange,
        /// Who needs it.
        breaker: Identity,
        /// What for, for people: `truncate to 4096`.
        operation: String,
        /// When the lease falls.
        deadline: SystemTime,
        /// How long that is from now.
        grace: Duration,
    },
    /// The lease is over against its holder's will, and fenced.
    Revoked {
        /// Whose.
        session: SessionId,
        /// Which.
        lease: LeaseId,
        /// The file's path in the store.
        path: String,
        /// The bytes.
        range: ByteRange,
        /// Why, for people.
        why: &'static str,
        /// Who broke it, if a break was the reason.
        by: Option<Identity>,
    },
    /// A break has ended.
    BreakEnded(crate::break_log::BreakRow),
    /// The session is over.
    SessionEnded {
        /// Which.
        session: SessionId,
        /// Why, for people.
        why: String,
    },
}
