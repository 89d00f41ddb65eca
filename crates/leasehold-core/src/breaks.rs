//! Breaks: one breaker against one lease.

use crate::identity::Identity;
use crate::ids::{BreakId, FileId, LeaseId, SessionId, Tick};
use crate::output::Operation;
use crate::range::ByteRange;
use alloc::sync::Arc;

/// One break, from the notice to its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Break {
    /// Its id.
    pub id: BreakId,
    /// Which lease.
    pub lease: LeaseId,
    /// Of which session.
    pub session: SessionId,
    /// Who held it.
    pub holder: Arc<Identity>,
    /// On which file.
    pub file: FileId,
    /// On which range.
    pub range: ByteRange,
    /// Who broke it.
    pub breaker: Arc<Identity>,
    /// What for.
    pub operation: Operation,
    /// When the holder was told.
    pub started: Tick,
    /// When its grace is (was) over.
    pub deadline: Tick,
    /// How and when it ended; `None` while it goes on.
    pub ended: Option<(Tick, Outcome)>,
}

/// What the holder did about a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It committed within its grace period.
    Committed,
    /// It let go within its grace period.
    Released,
    /// It did not answer, and was fenced at the deadline.
    Fenced,
    /// It did not answer, and the fence could not be proven: the frames are in quarantine, the connection dropped.
    Quarantined,
    /// Its session ended first.
    SessionEnded,
}
