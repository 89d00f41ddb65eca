//! What can happen.

use crate::identity::Identity;
use crate::ids::{FileId, LeaseId, RequestId, SessionId, TenantId, Tick, WriteId};
use crate::range::ByteRange;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// How much the sessions of a tenant may have at once, all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Leases, granted or wanted.
    pub leases_max: usize,
    /// Frames of these.
    pub frames_max: u32,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Time has passed. Deadlines that `now` has reached take effect (they do on every other input too).
    Tick,

    /// A client has come. One too many is answered by `Output::Disconnect`. Opening `LOCAL`, which is always there, only
    /// says who it is.
    SessionOpened { session: SessionId, identity: Arc<Identity> },
    /// The session, which has nothing yet, is of this tenant, whose sessions have at most this share from now on, all together.
    SessionShares { session: SessionId, tenant: TenantId, share: Share },
    /// A client has gone, or must go. Its leases end, its keys are fenced, its acquires are refused, and it is
    /// disconnected. Commits that it had sent take effect.
    SessionEnded { session: SessionId },
    /// A frame of the session's data stream failed its checksum after bytes had been placed: no write lease that it
    /// holds uncommitted may ever be committed.
    Poisoned { session: SessionId },
    /// Nothing of the session's endpoint exists any more, so nothing of it can place a byte: its quarantine ends.
    EndpointGone { session: SessionId },

    /// The engine has opened a file whose committed size is `size` bytes. Opening it again changes nothing.
    FileOpened { file: FileId, size: u64 },
    /// The engine would like to forget the file. Ignored while the core has anything to do with it.
    FileClosed { file: FileId },

    /// Asks for leases on all of the ranges, or none.
    Acquire {
        request: RequestId,
        session: SessionId,
        wants: Vec<Want>,
        on_conflict: OnConflict,
        /// When to give up waiting, be it for a conflict or for frames.
        deadline: Tick,
    },
    /// The holder says that the range is complete. Ends the lease, whatever comes of it.
    Commit { request: RequestId, session: SessionId, lease: LeaseId },
    /// The holder lets go without committing: its bytes leave no trace. Also the answer to a break.
    Release { request: RequestId, session: SessionId, lease: LeaseId },
    /// The holder of a write lease wants what it has placed so far in `range`, a part of the leased one, to be committed,
    /// and goes on writing. Bytes placed before this are captured; later ones are, or are not, byte by byte. The deadline
    /// is for the wait for frames. Only of leases for updating. One that has its frames takes effect, in the order in
    /// which they came and before a commit of the lease, even if the lease is broken or the session ends.
    Capture { request: RequestId, session: SessionId, lease: LeaseId, range: ByteRange, deadline: Tick },
    /// A read of committed bytes, without a lease, into frames that are lent until `ReadFinished`.
    Read { request: RequestId, file: FileId, range: ByteRange, deadline: Tick },
    /// The reader is done with the frames of `Reply::Read`. Nothing else gives them back, `Cancel` neither.
    ReadFinished { request: RequestId },
    /// A change, or what must have a file to itself in the same way.
    Change { request: RequestId, file: FileId, change: Change, breaker: Arc<Identity> },
    /// fsync: reply once every commit acknowledged before now is durable.
    Sync { request: RequestId, file: FileId },
    /// It is time to write back what is dirty. Under [`crate::schemes::LEASEHOLD`] nothing waits for that.
    Writeback { file: FileId },
    /// Memory is short: what is clean goes. Under [`crate::schemes::LEASEHOLD`] there is no such memory.
    Reclaim { file: FileId },
    /// The device needs a key that was taken back from it. Ignored if it was not, or cannot be given at the moment: the device
    /// tries again.
    DeviceFault { lease: LeaseId },
    /// Whoever asked has gone: forget the request if it has not taken effect. No reply follows, unless the request was
    /// due, and answered, in this very step. A commit or release always goes on; so does a change being performed, and a
    /// capture that has its frames.
    Cancel { request: RequestId },
    /// A breaker has gone before it got what it wanted: as `Cancel`, and the breaks that it began are over, so that no
    /// holder loses anything for it.
    Withdraw { request: RequestId },

    /// `Output::Load` for a lease is done: its frames hold the file's bytes (or zeros).
    LeaseLoaded { lease: LeaseId, result: Result<(), Fault> },
    /// `Output::Load` for a read is done.
    ReadLoaded { request: RequestId, result: Result<(), Fault> },
    /// `Output::Expose` is done: the key is live.
    Exposed { lease: LeaseId, result: Result<(), Fault> },
    /// `Output::Fence` is proven: no byte sent under the key can land any more.
    Fenced { lease: LeaseId },
    /// `Output::Fence` could not be proven within `fence_ms`.
    FenceUnproven { lease: LeaseId },
    /// `Output::Verify` is done: does the CRC of the committed range agree with the holder's?
    Verified { lease: LeaseId, agrees: bool },
    /// `Output::Merge` is done: the boundary frames hold the file's bytes outside the lease.
    Merged { lease: LeaseId, result: Result<(), Fault> },
    /// `Output::Capture` is done: the frames hold what was under the key, and it is summed up. Nothing lies there that did
    /// not pass its checksum on the way: an update lease is exposed so, or else `Poisoned` comes before this.
    Captured { lease: LeaseId },
    /// `Output::Record` is done: the data may be written.
    Recorded { write: WriteId, result: Result<(), Fault> },
    /// `Output::Write` is done: data, record and checksums are durable.
    Written { write: WriteId, result: Result<(), Fault> },
    /// `Output::Perform` is done. `Some` size, as found: the answer to a `Change::Adopt` that reaches past the end of file.
    Performed { request: RequestId, result: Result<Option<u64>, Fault> },
    /// `Output::Flush` is done.
    Flushed { request: RequestId, result: Result<(), Fault> },
}

/// One range that an acquire wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    /// The file.
    pub file: FileId,
    /// The bytes. Any alignment; past the end of file too.
    pub range: ByteRange,
    /// What the key may do.
    pub access: Access,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Read the committed bytes. The frames are loaded first.
    Read,
    /// Write all of the range: the frames need no loading, the commit's CRC covers every byte.
    Overwrite,
    /// Write some of the range: the frames are loaded with the committed bytes first.
    Update,
}

impl Access {
    /// Whether the key may change bytes.
    #[must_use]
    pub fn writes(self) -> bool {
        !matches!(self, Access::Read)
    }
}

/// What an acquire does when a live lease is in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnConflict {
    /// Refuse at once.
    Refuse,
    /// Wait for its turn, until the deadline.
    Wait,
    /// Break the lease.
    Break,
}

/// What changes a file's layout, or must have the file to itself in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Set the size, up or down.
    Truncate { size: u64 },
    /// Free the range; it reads as zeros, the size stays.
    Punch { range: ByteRange },
    /// The range reads as zeros and stays allocated, the size stays.
    Zero { range: ByteRange },
    /// Take the range out: what is behind it moves to the front. It is of whole blocks, and ends before the end of file.
    Collapse { range: ByteRange },
    /// Take a copy of the file: all that is committed, at one moment. It takes nothing from leases.
    Clone,
    /// Take the bytes on disk for what was committed, whoever wrote them; a range that reaches past the end of file, the
    /// size too, and so has all blocks to itself. It is performed as a range without an end then, and no other is. It takes
    /// nothing from leases: one that was loaded before has the bytes of then.
    Adopt { range: ByteRange },
    /// The last name goes: an unlink, or a rename over it.
    Remove,
}

/// What the environment did to us. The engine logs the details; the core needs the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Fault {
    /// No space, or a quota.
    #[error("no space left on the store's filesystem; free some, then retry")]
    NoSpace,
    /// The disk.
    #[error("the store could not read or write; see the server's log for the file, the range and the cause")]
    Io,
    /// The name that was to go stands for another file by now, or for none.
    #[error("the name stands for something else by now; look at it again, then retry")]
    Moved,
    /// The bytes on disk are not what was committed.
    #[error(
        "bytes on disk do not match their checksum: damaged, or changed by another tool; `leasehold scrub` names them, \
         and putting the file again replaces them"
    )]
    Checksum,
    /// The fabric has no place for one more key, or the session has no endpoint.
    #[error("the fabric has no endpoint or no key to give to this session; connect first, or release leases")]
    NoKey,
}
