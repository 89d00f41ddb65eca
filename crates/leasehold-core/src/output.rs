//! What to do about it.

use crate::breaks::Break;
use crate::identity::Identity;
use crate::ids::{BreakId, FileId, LeaseId, RequestId, SessionId, Tick, WriteId};
use crate::input::{Access, Change, Fault};
use crate::range::{BLOCK_BYTES, BlockRange, ByteRange, Run};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One thing to do. Every one that says so is answered by an input with the same id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// The answer to a request; exactly one for each that was not cancelled.
    Reply { request: RequestId, reply: Reply },
    /// Something that a session must hear without having asked.
    Notify { session: SessionId, notice: Notice },
    /// A break has ended: for the break log.
    BreakEnded { record: Break },

    /// Fill `into` with the file's committed bytes of `blocks`, zeros past `size`. Answer: `LeaseLoaded`/`ReadLoaded`.
    Load { by: Loader, file: FileId, blocks: BlockRange, size: u64, into: Run },
    /// Fill `into` with zeros: another session's bytes were in it. Answer: `LeaseLoaded`.
    Zero { lease: LeaseId, into: Run },
    /// Make the key of the lease: `range.len()` bytes, the first of which is at `skip` bytes into `run`. For
    /// `SessionId::LOCAL` nothing needs to be done, now or at the fence. Answer: `Exposed`.
    Expose { lease: LeaseId, session: SessionId, run: Run, skip: u16, length: u64, access: Access },
    /// Make the key invalid, and prove that nothing sent under it can still land. Answer: `Fenced`/`FenceUnproven`.
    Fence { lease: LeaseId, session: SessionId },
    /// The holder knows that the lease is over: its key need not swallow late bytes any more.
    Forget { lease: LeaseId, session: SessionId },
    /// Drop the session's connection. Also the core's word that a session is over, or was never let in. Answer, each
    /// time, be there a connection or not: `EndpointGone`, once nothing of it is left. A quarantine waits for it.
    Disconnect { session: SessionId },

    /// Compute the blocks' CRCs, and compare that of `range` with the holder's. Answer: `Verified`.
    Verify { lease: LeaseId, file: FileId, range: ByteRange, run: Run },
    /// Fill the bytes of the run's first and last block that lie outside `range` with the file's committed bytes, zeros
    /// past `size`. Answer: `Merged`.
    Merge { lease: LeaseId, file: FileId, range: ByteRange, size: u64, run: Run },
    /// Copy the blocks of `range` from `from`, which lie under a live key, to `into`, and compute the CRCs of the copies.
    /// `lease` is the capture's own number, by which `Merge` will call it. Answer: `Captured`.
    Capture { lease: LeaseId, file: FileId, range: ByteRange, from: Run, into: Run },
    /// Make durable what recovery needs to know before these blocks are overwritten. `range` is what was committed.
    ///
    /// `size`, here and in `Write`: how long the file is at least once these blocks are in it. It never reaches past the
    /// blocks: one writeback does not vouch for another's blocks, and does not undo a truncate behind them. So a write
    /// never makes a file shorter. Answer: `Recorded`.
    Record { write: WriteId, file: FileId, range: ByteRange, size: u64, run: Run },
    /// Write the blocks from their frames, durably. After `Err` the same write, or new ones for parts of it, are tried
    /// again, with the record if that had failed too or for parts. Answer: `Written`.
    Write { write: WriteId, file: FileId, blocks: BlockRange, size: u64, run: Run },
    /// Perform the change on the real file, durably as far as its promises go. Answer: `Performed`.
    Perform { request: RequestId, file: FileId, change: Change },
    /// Make durable what a sync owes beyond the data: names and sizes. Answer: `Flushed`.
    Flush { request: RequestId, file: FileId },
}

/// For whom a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loader {
    /// A read lease, or an update lease.
    Lease(LeaseId),
    /// A read without a lease.
    Read(RequestId),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// To `Acquire`: the leases, in the order of the wants.
    Acquire(Result<Vec<LeaseId>, AcquireError>),
    /// To `Commit`: visible from now on, not yet durable. `size` is the file's.
    Commit(Result<Committed, CommitError>),
    /// To `Capture`: as to a commit, but the lease goes on.
    Capture(Result<Committed, CommitError>),
    /// To `Release`.
    Release(Result<(), NoSuchLease>),
    /// To `Read`: the frames hold the blocks of `range` (cut at the end of file) until `ReadFinished`.
    Read(Result<Option<ReadReady>, ReadError>),
    /// To `Change`.
    Change(Result<(), ChangeError>),
    /// To `Sync`.
    Sync(Result<(), SyncError>),
}

/// A commit that took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Committed {
    /// The file's size now.
    pub size: u64,
}

/// A read that can be served. `None` in its place: the range begins at or past the end of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReadReady {
    /// What was read: the range asked for, cut at the end of file.
    pub range: ByteRange,
    /// Frames of `range.blocks()`.
    pub run: Run,
}

/// Why leases were not granted. Nothing was acquired.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AcquireError {
    /// A live lease, or somebody who waits, has a claim on some byte.
    #[error("{range} is {}; wait (--wait), break the lease (--break), or try again", held_by(.holder))]
    Conflict { file: FileId, range: ByteRange, holder: Option<(LeaseId, Arc<Identity>)> },
    /// The deadline came first, while waiting for a conflicting lease or change to end.
    #[error("gave up waiting for {range} at the deadline; ask `leasehold why` who holds it")]
    TimedOut { file: FileId, range: ByteRange },
    /// The deadline came first, while waiting for frames.
    #[error(
        "the arena was full until the deadline; wait longer, lease less at once, or serve with a larger arena"
    )]
    ArenaFull,
    /// The request could never be granted.
    #[error(
        "the leases need {wanted} frames at once and the arena has {frames}; lease less, or serve with a larger arena"
    )]
    ArenaTooSmall { wanted: u64, frames: u64 },
    /// A limit of the server.
    #[error("limit reached: {limit} is {max}; release leases, or raise it in the server's configuration")]
    Limit { limit: &'static str, max: u64 },
    /// The same request asks twice for the same byte.
    #[error("the request wants {range} twice; ask for each byte once")]
    Overlap { range: ByteRange },
    /// The scheme gives no key to this memory.
    #[error("under the scheme {scheme} no key is given to such memory; use a buffer of your own, and copy")]
    Refused { scheme: &'static str },
    /// The session does not exist (any more).
    #[error("the session has ended; open a new one")]
    NoSession,
    /// The file is not open, or it was removed in the meantime.
    #[error("the file is gone; open it again")]
    NoFile,
    /// Loading or exposing the frames failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

fn held_by(holder: &Option<(LeaseId, Arc<Identity>)>) -> impl core::fmt::Display + '_ {
    struct Shown<'a>(&'a Option<(LeaseId, Arc<Identity>)>);
    impl core::fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            match self.0 {
                Some((lease, who)) => {
                    write!(f, "under lease {lease} of {} (pid {} on {})", who.program, who.pid, who.host)
                }
                None => write!(f, "wanted by an earlier request"),
            }
        }
    }
    Shown(holder)
}

/// Why nothing was committed, or captured; the file is as it was. After a commit the lease is over in every case; after
/// a capture it goes on, if it is not over or ending for another reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CommitError {
    /// Not, or no more, a lease of this session.
    #[error(transparent)]
    NoLease(#[from] NoSuchLease),
    /// Read leases have nothing to commit.
    #[error("lease {0} is for reading; release it instead")]
    ReadOnly(LeaseId),
    /// Somebody broke the lease and the grace period ran out.
    #[error("lease {lease} was revoked at its deadline; acquire the range again, then retry")]
    Revoked { lease: LeaseId, by: Arc<Identity> },
    /// The bytes in the frames are not those that the holder summed up.
    #[error(
        "the CRC of lease {0} does not match its bytes: some were not written, or changed on the way; write it again"
    )]
    Mismatch(LeaseId),
    /// The session's data stream broke a checksum.
    #[error("the connection of lease {0} failed a checksum, so its bytes cannot be trusted; write it again")]
    Poisoned(LeaseId),
    /// The fence could not be proven; the frames are in quarantine.
    #[error("the fence of lease {0} could not be proven in time; connect again, then write it again")]
    Unproven(LeaseId),
    /// The file was removed.
    #[error("the file of lease {0} was removed")]
    Removed(LeaseId),
    /// A capture of a lease whose frames need not hold the file's bytes where nothing was written.
    #[error(
        "lease {0} is for overwriting, so a part of it cannot be captured; acquire it for updating instead"
    )]
    NotPreloaded(LeaseId),
    /// A capture of bytes that are not all under the lease.
    #[error("{range} is not all within lease {lease}; capture what is leased")]
    OutOfLease { lease: LeaseId, range: ByteRange },
    /// No frames came free for a capture.
    #[error(
        "the arena was full until the deadline, so nothing of lease {0} was captured; capture a shorter range, or serve \
         with a larger arena"
    )]
    ArenaFull(LeaseId),
    /// A capture for which a limit of the server leaves no room.
    #[error("limit reached: {limit} is {max}; raise it in the server's configuration")]
    Limit { limit: &'static str, max: u64 },
    /// The boundary blocks could not be read, or an earlier commit of the blocks not written.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The lease does not exist, is not of this session, or is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("no lease {0} of this session: it was never granted, or it is over; acquire it again")]
pub struct NoSuchLease(pub LeaseId);

/// Why a read was not served.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ReadError {
    /// The deadline came first.
    #[error("gave up at the deadline, while waiting for {0}")]
    TimedOut(&'static str),
    /// More at once than the arena holds or a limit allows.
    #[error("limit reached: {limit} is {max}; read less at once, or raise it in the server's configuration")]
    Limit { limit: &'static str, max: u64 },
    /// The file is not open, or it was removed in the meantime.
    #[error("the file is gone; open it again")]
    NoFile,
    /// The disk said no, or the bytes do not match their checksum.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Why a change was not made. The file is as it was, unless the disk failed half way through the change: then blocks that it had
/// changed by then fail to be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ChangeError {
    /// The file is not open, or it was removed in the meantime.
    #[error("the file is gone; open it again")]
    NoFile,
    /// A limit of the server.
    #[error("limit reached: {limit} is {max}; raise it in the server's configuration")]
    Limit { limit: &'static str, max: u64 },
    /// The scheme refuses changes under a live key.
    #[error("busy: {} (pid {} on {}) holds {lease}; ask it to let go", .holder.program, .holder.pid, .holder.host)]
    Busy { lease: LeaseId, holder: Arc<Identity> },
    /// A collapse of a range that is not of whole blocks, or does not end before the end of file.
    #[error(
        "cannot take {range} out of a file of {size} bytes: it must begin and end at a multiple of {BLOCK_BYTES} bytes, \
         and end before the end of file; choose such a range, or truncate the file"
    )]
    CannotCollapse { range: ByteRange, size: u64 },
    /// The file system said no.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Why a sync could not be acknowledged. Committed bytes stay in their frames and are tried again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SyncError {
    /// The file is not open, or it was removed in the meantime.
    #[error("the file is gone; open it again")]
    NoFile,
    /// A limit of the server.
    #[error("limit reached: {limit} is {max}; raise it in the server's configuration")]
    Limit { limit: &'static str, max: u64 },
    /// The disk said no.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What a session hears without having asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// Somebody needs the range: commit or release before the deadline, or lose it.
    Break {
        id: BreakId,
        lease: LeaseId,
        file: FileId,
        range: ByteRange,
        breaker: Arc<Identity>,
        operation: Operation,
        deadline: Tick,
    },
    /// The lease is over, and fenced. `by`: who broke it, if a break was the reason.
    Revoked { lease: LeaseId, file: FileId, range: ByteRange, why: RevokeReason, by: Option<Arc<Identity>> },
}

/// What a breaker wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A change of the file's layout, or what must have the file to itself in the same way.
    Change(Change),
    /// An acquire with `OnConflict::Break` (a local write is one, too: the holder is `SessionId::LOCAL`).
    Acquire { range: ByteRange, access: Access },
}

/// Why a lease ended against its holder's will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RevokeReason {
    /// It was broken and the grace period ran out.
    GraceOver,
    /// Its range was taken without asking, under a scheme that does such a thing.
    Taken,
    /// The data stream failed a checksum.
    Poisoned,
    /// The session ended.
    SessionEnded,
    /// The fence could not be proven.
    Unproven,
    /// The file was removed.
    Removed,
}
