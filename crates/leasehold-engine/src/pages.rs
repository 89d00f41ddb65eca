//! Pages and sizes of files that somebody keeps beside the engine: the kernel, of a store that is mounted.
//!
//! What is committed must not be read from an old page, and an old page must not be written over it (P8, P2). So:
//!
//! - A commit or a change of layout is acknowledged once the keeper has forgotten the pages that it made old.
//! - Until then a page of that range that is written back is *overtaken*: it is of before the commit, and is dropped.
//! - Before a lease is granted to a peer, the keeper writes back its pages of the range, and forgets them.
//! - What the keeper itself changes, by its own handle on the engine, is no news to it.
//!
//! A page that is written back is a local write, and breaks leases as one.

use crate::files::FileError;
use leasehold_core::Core;
use leasehold_core::ids::FileId;
use leasehold_core::input::{Change, Input};
use leasehold_core::output::Reply;
use leasehold_core::range::ByteRange;
use tokio::sync::oneshot;

/// Who keeps pages. Files are named by their inode on the store's filesystem.
pub trait Keeper: Send + Sync {
    /// Whether it may have pages of this file, or knows its size. Called on the core's thread: does not wait.
    fn keeps(&self, inode: u64) -> bool;

    /// Writes back what it has changed of the range, forgets it, the file's size too, and runs `then`. Called on the core's
    /// thread: does not wait.
    fn forget(&self, inode: u64, range: ByteRange, then: Box<dyn FnOnce() + Send>);

    /// The file has no name any more: its inode may be another's soon. Called on the core's thread, after [`Keeper::forget`].
    fn removed(&self, inode: u64);
}

/// Why a page was not written back.
#[derive(Debug, thiserror::Error)]
pub enum WriteBackError {
    /// These bytes of it are older than the file's: they are to be forgotten, and the others may be written again.
    #[error("bytes {0} were committed, or cut off, after the page was read")]
    Overtaken(ByteRange),
    /// As any write.
    #[error(transparent)]
    Failed(#[from] FileError),
}

/// A page on its way into the file.
pub(crate) struct WriteBack {
    pub(crate) file: FileId,
    pub(crate) range: ByteRange,
    /// `None` once it was overtaken: it is not to be written any more.
    overtaken: Option<oneshot::Sender<ByteRange>>,
}

impl WriteBack {
    pub(crate) fn new(file: FileId, range: ByteRange) -> (WriteBack, oneshot::Receiver<ByteRange>) {
        let (overtaken, told) = oneshot::channel();
        (WriteBack { file, range, overtaken: Some(overtaken) }, told)
    }

    /// These bytes of the file are newer than any page.
    pub(crate) fn overtake(&mut self, file: FileId, range: ByteRange) {
        if self.file == file
            && self.range.overlaps(range)
            && let Some(overtaken) = self.overtaken.take()
        {
            let _gone = overtaken.send(range);
        }
    }

    pub(crate) fn is_overtaken(&self) -> bool {
        self.overtaken.is_none()
    }
}

/// What a request makes new, if it succeeds.
#[derive(Clone, Copy)]
pub(crate) struct Renewed {
    pub(crate) file: FileId,
    pub(crate) range: ByteRange,
    /// There is no such file any more.
    pub(crate) is_removed: bool,
}

pub(crate) fn renewed(core: &Core, input: &Input) -> Option<Renewed> {
    let bytes = |file, range| Renewed { file, range, is_removed: false };
    match *input {
        Input::Commit { lease, .. } => core.lease(lease).map(|lease| bytes(lease.file, lease.range)),
        Input::Capture { lease, range, .. } => core.lease(lease).map(|lease| bytes(lease.file, range)),
        Input::Change { file, change, .. } => match change {
            Change::Truncate { size } => Some(bytes(file, ByteRange::from(size))),
            Change::Punch { range } | Change::Zero { range } | Change::Adopt { range } => {
                Some(bytes(file, range))
            }
            Change::Collapse { range } => Some(bytes(file, ByteRange::from(range.start()))),
            Change::Remove => Some(Renewed { file, range: ByteRange::ALL, is_removed: true }),
            Change::Clone => None,
        },
        _ => None,
    }
}

/// Whether it did.
pub(crate) fn succeeded(reply: &Reply) -> bool {
    matches!(reply, Reply::Commit(Ok(_)) | Reply::Capture(Ok(_)) | Reply::Change(Ok(_)))
}
