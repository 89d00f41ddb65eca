//! Turns the engine's errors into gRPC statuses: a reason for programs, the engine's text for people.
//!
//! The text is all that a client sees, so it is made of the whole chain of causes.

use leasehold_client::Reason;
use leasehold_client::convert::Malformed;
use leasehold_core::input::Fault;
use leasehold_core::output;
use leasehold_engine::engine::{AcquireError, CommitError, NoSuchSession, OpenSessionError, ReleaseError};
use leasehold_engine::files::FileError;
use leasehold_engine::path::PathError;
use leasehold_engine::storage::NamespaceError;
use std::error::Error;
use std::io::{self, ErrorKind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// An error of the engine, as clients hear of it.
pub(crate) trait Refusal: Error {
    /// For programs.
    fn reason(&self) -> Reason;
}

/// The status of a refusal.
pub(crate) fn refuse(error: &(impl Refusal + 'static)) -> Status {
    status(error.reason(), chain(error))
}

/// How long a text may be: it travels in HTTP headers, and clients take only so much of these.
const TEXT_MAX: usize = 1500;

/// The text, without its middle if it is too long: what is wrong stands at its beginning, what to do at its end.
fn cut(text: String) -> String {
    if text.len() <= TEXT_MAX {
        return text;
    }
    let head = text.floor_char_boundary(TEXT_MAX / 2);
    let tail = text.ceil_char_boundary(text.len() - TEXT_MAX / 2);
    format!("{} .. {}", &text[..head], &text[tail..])
}

/// A status with a reason.
pub(crate) fn status(reason: Reason, text: impl Into<String>) -> Status {
    let text = cut(text.into());
    let name = reason.name().unwrap_or("IO");
    let details = ErrorDetails::with_error_info(name, Reason::DOMAIN, []);
    Status::with_error_details(code(reason), text, details)
}

fn code(reason: Reason) -> Code {
    match reason {
        Reason::NotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::Invalid => Code::InvalidArgument,
        Reason::WrongKind | Reason::NoSession | Reason::NoLease | Reason::ReadOnly => {
            Code::FailedPrecondition
        }
        Reason::Conflict | Reason::Revoked | Reason::Unproven => Code::Aborted,
        Reason::TimedOut => Code::DeadlineExceeded,
        Reason::Limit | Reason::NoSpace => Code::ResourceExhausted,
        Reason::Mismatch => Code::DataLoss,
        Reason::Denied => Code::PermissionDenied,
        Reason::Unauthenticated => Code::Unauthenticated,
        Reason::Stopping => Code::Unavailable,
        _ => Code::Internal,
    }
}

/// The error and its causes, without those that it repeats itself.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

pub(crate) fn system(error: &io::Error) -> Reason {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Reason::NoSpace,
        ErrorKind::PermissionDenied => Reason::Denied,
        ErrorKind::ReadOnlyFilesystem => Reason::ReadOnly,
        ErrorKind::NotFound => Reason::NotFound,
        _ => Reason::Io,
    }
}

fn fault(fault: Fault) -> Reason {
    match fault {
        Fault::NoSpace => Reason::NoSpace,
        Fault::NoKey => Reason::Limit,
        Fault::Io => Reason::Io,
        Fault::Checksum => Reason::Mismatch,
        Fault::Moved => Reason::NotFound,
    }
}

impl Refusal for Malformed {
    fn reason(&self) -> Reason {
        Reason::Invalid
    }
}

impl Refusal for PathError {
    fn reason(&self) -> Reason {
        Reason::Invalid
    }
}

impl Refusal for NoSuchSession {
    fn reason(&self) -> Reason {
        Reason::NoSession
    }
}

impl Refusal for OpenSessionError {
    fn reason(&self) -> Reason {
        match self {
            OpenSessionError::Stopping => Reason::Stopping,
            OpenSessionError::Limit { .. } => Reason::Limit,
            OpenSessionError::Random(_) => Reason::Io,
        }
    }
}

impl Refusal for NamespaceError {
    fn reason(&self) -> Reason {
        match self {
            NamespaceError::NotFound { .. } => Reason::NotFound,
            NamespaceError::Exists { .. } => Reason::AlreadyExists,
            NamespaceError::NotAFile { .. }
            | NamespaceError::NotALink { .. }
            | NamespaceError::NotText { .. }
            | NamespaceError::NotADirectory { .. }
            | NamespaceError::NotEmpty { .. } => Reason::WrongKind,
            NamespaceError::Link { .. } | NamespaceError::Root => Reason::Invalid,
            NamespaceError::LastName { .. } => Reason::Conflict,
            NamespaceError::Sidecar { .. } => Reason::Mismatch,
            NamespaceError::System { source, .. } => system(source),
        }
    }
}

impl Refusal for output::AcquireError {
    fn reason(&self) -> Reason {
        use output::AcquireError::*;
        match self {
            Conflict { .. } | Refused { .. } => Reason::Conflict,
            TimedOut { .. } => Reason::TimedOut,
            ArenaFull | ArenaTooSmall { .. } | Limit { .. } => Reason::Limit,
            Overlap { .. } => Reason::Invalid,
            NoSession => Reason::NoSession,
            NoFile => Reason::NotFound,
            Fault(kind) => fault(*kind),
        }
    }
}

impl Refusal for AcquireError {
    fn reason(&self) -> Reason {
        match self {
            AcquireError::TooManyRanges { .. } => Reason::Limit,
            AcquireError::BadRange { .. } => Reason::Invalid,
            AcquireError::Stopping => Reason::Stopping,
            AcquireError::Path(error) => error.reason(),
            AcquireError::Refused { source, .. } => source.reason(),
        }
    }
}

impl Refusal for ReleaseError {
    fn reason(&self) -> Reason {
        match self {
            ReleaseError::Stopping => Reason::Stopping,
            ReleaseError::NoLease(_) => Reason::NoLease,
        }
    }
}

impl Refusal for output::CommitError {
    fn reason(&self) -> Reason {
        use output::CommitError::*;
        match self {
            NoLease(_) => Reason::NoLease,
            ReadOnly(_) | NotPreloaded(_) | OutOfLease { .. } => Reason::Invalid,
            ArenaFull(_) | Limit { .. } => Reason::Limit,
            Revoked { .. } => Reason::Revoked,
            Mismatch(_) | Poisoned(_) => Reason::Mismatch,
            Unproven(_) => Reason::Unproven,
            Removed(_) => Reason::NotFound,
            Fault(kind) => fault(*kind),
        }
    }
}

impl Refusal for CommitError {
    fn reason(&self) -> Reason {
        match self {
            CommitError::Stopping => Reason::Stopping,
            CommitError::Refused(error) => error.reason(),
        }
    }
}

impl Refusal for FileError {
    fn reason(&self) -> Reason {
        match self {
            FileError::Stopping => Reason::Stopping,
            FileError::Path(error) => error.reason(),
            FileError::NoLease(_) => Reason::NoLease,
            FileError::TooLong { .. }
            | FileError::BadRange { .. }
            | FileError::SameFile { .. }
            | FileError::Overlap { .. }
            | FileError::Collapse { .. } => Reason::Invalid,
            FileError::Evict { source, .. } => fault(*source),
            FileError::Change { source, .. } => match source {
                output::ChangeError::NoFile => Reason::NotFound,
                output::ChangeError::Limit { .. } => Reason::Limit,
                output::ChangeError::Busy { .. } => Reason::Conflict,
                output::ChangeError::CannotCollapse { .. } => Reason::Invalid,
                output::ChangeError::Fault(kind) => fault(*kind),
            },
            FileError::Read { source, .. } => match source {
                output::ReadError::TimedOut(_) => Reason::TimedOut,
                output::ReadError::Limit { .. } => Reason::Limit,
                output::ReadError::NoFile => Reason::NotFound,
                output::ReadError::Fault(kind) => fault(*kind),
            },
            FileError::Acquire { source, .. } => source.reason(),
            FileError::Commit { source, .. } => source.reason(),
            FileError::Sync { source, .. } => match source {
                output::SyncError::NoFile => Reason::NotFound,
                output::SyncError::Limit { .. } => Reason::Limit,
                output::SyncError::Fault(kind) => fault(*kind),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leasehold_client::CallError;
    use leasehold_engine::path::StorePath;

    #[test]
    fn a_client_reads_the_reason_and_the_whole_text() {
        let full = NamespaceError::System {
            operation: "create",
            path: StorePath::parse("/x").unwrap(),
            source: io::Error::from(ErrorKind::StorageFull),
        };
        let error = CallError::from(refuse(&full));
        assert_eq!(error.reason, Reason::NoSpace);
        assert_eq!(error.message, "cannot create /x: no storage space");
    }

    #[test]
    fn a_cause_that_the_text_repeats_is_not_said_twice() {
        let path = StorePath::parse("/x").unwrap();
        let error = FileError::Sync { path, source: output::SyncError::Fault(Fault::NoSpace) };
        assert_eq!(chain(&error), "/x: no space left on the store's filesystem; free some, then retry");
    }

    #[test]
    fn a_text_that_no_header_could_carry_loses_its_middle_and_keeps_the_remedy() {
        let error = StorePath::parse(&format!("/{}", "ü".repeat(100_000))).unwrap_err();
        let status = refuse(&error);
        assert!(status.message().len() < 2000, "{}", status.message().len());
        assert!(status.message().starts_with("the path \"/ü") && status.message().ends_with("at 4095"));
    }

    #[test]
    fn every_reason_has_a_code_that_is_not_ok() {
        for (reason, _) in Reason::NAMED {
            assert_ne!(status(*reason, "").code(), Code::Ok);
        }
    }
}
