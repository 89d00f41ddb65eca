//! Promises that a state can break, and does under some schemes.

use crate::ids::{LeaseId, RequestId, WriteId};
use alloc::string::String;

/// A promise of the design (or an invariant of the core itself) that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// P1.
    #[error(
        "P1 stable writeback: {write} has handed frames to the disk that the live key of {lease} can change"
    )]
    UnstableWriteback { write: WriteId, lease: LeaseId },
    /// P3.
    #[error(
        "P3 no stray DMA: the key of {lease} is live, but its blocks are not its range of the file any more"
    )]
    StrayKey { lease: LeaseId },
    /// P4.
    #[error("P4 no disowned page: {lease} marked frames dirty after the file had given them up")]
    DisownedDirty { lease: LeaseId },
    /// P5.
    #[error("P5 bounded breaks: {request} waits for {lease}, which has no deadline")]
    UnboundedWait { request: RequestId, lease: LeaseId },
    /// The core's own bookkeeping is wrong under every scheme.
    #[error("invariant of the core: {0}")]
    Inconsistent(String),
}

impl Violation {
    /// The promise's name in the design, or `core`.
    #[must_use]
    pub fn promise(&self) -> &'static str {
        match self {
            Violation::UnstableWriteback { .. } => "P1",
            Violation::StrayKey { .. } => "P3",
            Violation::DisownedDirty { .. } => "P4",
            Violation::UnboundedWait { .. } => "P5",
            Violation::Inconsistent(_) => "core",
        }
    }
}
