//! What is going on, for people: who holds what, who waits for whom, how full the tables are.
//!
//! Views are computed when asked for and cost nothing otherwise. They are the other half of promise P6: a breaker can
//! always learn whom it waits for.

use crate::identity::Identity;
use crate::ids::{BreakId, FileId, LeaseId, RequestId, SessionId, Tick, WriteId};
use crate::input::Access;
use crate::output::Operation;
use crate::range::{ByteRange, Run};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One lease, as `leasehold leases` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseView {
    /// The lease.
    pub id: LeaseId,
    /// Whose it is.
    pub session: SessionId,
    /// Who that is.
    pub identity: Arc<Identity>,
    /// On which file.
    pub file: FileId,
    /// On which bytes.
    pub range: ByteRange,
    /// What its key may do.
    pub access: Access,
    /// How far it has come.
    pub state: LeaseState,
    /// Since when it holds its frames.
    pub since: Tick,
    /// The frames of `range.blocks()`, for a server that fills them itself (`SessionId::LOCAL`).
    pub run: Run,
    /// When it falls if its holder does not answer; `None` unless it is under break.
    pub deadline: Option<Tick>,
    /// The breaks against it that go on; see `Core::breaks`.
    pub breaks: Vec<BreakId>,
}

/// How far a lease has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseState {
    /// Its frames are being filled, or its key made. The holder does not know it yet.
    Preparing,
    /// Its key is live and its holder may use it.
    Live,
    /// Its key is being fenced, be it for a commit, a release or a break.
    Fencing,
    /// Fenced; its bytes are on their way into the file.
    Committing,
    /// It ended before it was granted; an answer for its frames or its key is still to come.
    Abandoned,
}

/// One request that waits, as `leasehold why` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wait {
    /// The request.
    pub request: RequestId,
    /// The file that it waits for (of several, the first that is in its way).
    pub file: FileId,
    /// What it wants.
    pub what: WaitKind,
    /// Who asked, if that is known.
    pub who: Option<Arc<Identity>>,
    /// Since when.
    pub since: Tick,
    /// When it gives up.
    pub until: Option<Tick>,
    /// Whom or what it waits for.
    pub on: Vec<WaitOn>,
}

/// What a request that waits wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitKind {
    /// A change or an acquire.
    Operation(Operation),
    /// A read without a lease.
    Read(ByteRange),
    /// An fsync.
    Sync,
    /// A commit of this lease.
    Commit(LeaseId),
    /// A release of this lease.
    Release(LeaseId),
}

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WaitOn {
    /// A lease in conflict, until its holder answers or the deadline (`None`: for ever, if need be).
    Lease { id: LeaseId, holder: Arc<Identity>, deadline: Option<Tick> },
    /// The fence of this lease.
    Fence(LeaseId),
    /// A request whose turn comes first.
    Request(RequestId),
    /// A writeback of the same blocks.
    Writeback(WriteId),
    /// Free frames.
    Frames,
    /// The disk, which is at work for this very request, or for one before it in the same blocks.
    Disk,
}

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stats {
    /// Sessions, not counting `LOCAL`.
    pub sessions: usize,
    /// Files the core knows.
    pub files: usize,
    /// Leases in any state.
    pub leases: usize,
    /// Requests that are owed an answer, and reads that are not finished.
    pub requests: usize,
    /// Breaks that go on.
    pub breaks: usize,
    /// Writebacks that are not durable, failed ones among them.
    pub writebacks: usize,
    /// Writebacks that failed and wait to be tried again.
    pub writebacks_failed: usize,
    /// Frames, by owner.
    pub frames: FrameStats,
}

/// Frames by owner; their sum is the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FrameStats {
    /// Nobody's.
    pub free: u32,
    /// Of leases.
    pub leased: u32,
    /// On their way to the disk.
    pub writeback: u32,
    /// Lent to readers.
    pub reading: u32,
    /// Not to be touched until their endpoint is gone.
    pub quarantined: u32,
}
