//! What a program gets to see of an error.

use crate::server::refusal::chain;
use fuser::Errno;
use leasehold_core::input::Fault;
use leasehold_core::output;
use leasehold_engine::files::FileError;
use leasehold_engine::storage::NamespaceError;

/// The system's.
pub(super) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn fault(fault: Fault) -> Errno {
    match fault {
        Fault::NoSpace => Errno::ENOSPC,
        Fault::Moved => Errno::ESTALE,
        Fault::Io | Fault::Checksum => Errno::EIO,
        Fault::NoKey => Errno::EAGAIN,
    }
}

/// What a program gets to see; what was the matter is in the log, if it is the server's.
pub(super) fn refused(error: FileError) -> Errno {
    let errno = errno_of(&error);
    if i32::from(errno) == i32::from(Errno::EIO) {
        tracing::warn!("EIO through the mount: {}", chain(&error));
    } else {
        tracing::debug!("refused through the mount: {}", chain(&error));
    }
    errno
}

fn errno_of(error: &FileError) -> Errno {
    match error {
        FileError::Path(error) => match error {
            NamespaceError::NotFound { .. } => Errno::ENOENT,
            NamespaceError::Exists { .. } => Errno::EEXIST,
            NamespaceError::NotAFile { .. } | NamespaceError::NotALink { .. } => Errno::EINVAL,
            NamespaceError::NotText { .. } => Errno::EILSEQ,
            NamespaceError::NotADirectory { .. } => Errno::ENOTDIR,
            NamespaceError::NotEmpty { .. } => Errno::ENOTEMPTY,
            NamespaceError::Link { .. } => Errno::ELOOP,
            NamespaceError::Root => Errno::EBUSY,
            NamespaceError::LastName { .. } => Errno::ESTALE,
            NamespaceError::Sidecar { .. } => Errno::EIO,
            NamespaceError::System { source, .. } => {
                source.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
            }
        },
        FileError::TooLong { .. } | FileError::SameFile { .. } | FileError::Overlap { .. } => Errno::EINVAL,
        FileError::BadRange { .. } => Errno::EFBIG,
        FileError::Collapse { .. } => Errno::EINVAL,
        FileError::NoLease(_) => Errno::ESTALE,
        FileError::Stopping => Errno::EIO,
        FileError::Evict { source, .. } => fault(*source),
        FileError::Change { source, .. } => match source {
            output::ChangeError::NoFile => Errno::ESTALE,
            output::ChangeError::Limit { .. } => Errno::EAGAIN,
            output::ChangeError::Busy { .. } => Errno::ETXTBSY,
            output::ChangeError::CannotCollapse { .. } => Errno::EINVAL,
            output::ChangeError::Fault(kind) => fault(*kind),
        },
        FileError::Read { source, .. } => match source {
            output::ReadError::TimedOut(_) => Errno::ETIMEDOUT,
            output::ReadError::Limit { .. } => Errno::EAGAIN,
            output::ReadError::NoFile => Errno::ESTALE,
            output::ReadError::Fault(kind) => fault(*kind),
        },
        FileError::Acquire { source, .. } => match source {
            output::AcquireError::Fault(kind) => fault(*kind),
            output::AcquireError::NoFile => Errno::ESTALE,
            _ => Errno::EAGAIN,
        },
        FileError::Commit { source, .. } => match source {
            output::CommitError::Fault(kind) => fault(*kind),
            output::CommitError::Removed(_) => Errno::ESTALE,
            _ => Errno::EIO,
        },
        FileError::Sync { source, .. } => match source {
            output::SyncError::NoFile => Errno::ESTALE,
            output::SyncError::Limit { .. } => Errno::EAGAIN,
            output::SyncError::Fault(kind) => fault(*kind),
        },
    }
}
