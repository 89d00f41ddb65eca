//! How the command ends.

use crate::command::show;
use leasehold_client::{
    CallError, CaptureError, CommitError, ConnectError, LocationError, OpenError, ReadError, Reason,
    SyncError, WriteError,
};
use leasehold_fabric::message::Status;
use std::error::Error;
use std::io;
use std::process::ExitCode;

/// A command's end: `Err` with whatever went wrong; [`report`] finds the code in its chain of causes.
pub(crate) type Outcome = anyhow::Result<()>;

/// The exit codes; documented in `leasehold --help` and in `docs/command.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Lease = 4,
    Checksum = 5,
    Unreachable = 6,
}

impl Exit {
    /// The code that a process of ours ended with.
    pub(crate) fn of(code: i32) -> Exit {
        let all = [Exit::Ok, Exit::Usage, Exit::NotFound, Exit::Lease, Exit::Checksum, Exit::Unreachable];
        all.into_iter().find(|exit| *exit as i32 == code).unwrap_or(Exit::Failed)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// An end with a code of its own choice.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }
}

/// An end of which all is said: by a process that we started, or by what was printed.
#[derive(Debug, thiserror::Error)]
#[error("it has said why")]
pub(crate) struct Told(pub(crate) Exit);

/// Tells people what went wrong, and the shell by which code.
pub(crate) fn report(ended: Outcome) -> Exit {
    let Err(error) = ended else { return Exit::Ok };
    if let Some(Told(exit)) = error.downcast_ref() {
        return *exit;
    }
    if is_broken_pipe(&error) {
        // Whoever read our output has seen enough: `leasehold ls | head`.
        return Exit::Ok;
    }
    eprintln!("leasehold: {}", show::name(&text(&error)));
    code(&error)
}

/// Like `{:#}`, without causes that a text repeats.
pub(crate) fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// The code that an error ends the command with.
pub(crate) fn code(error: &anyhow::Error) -> Exit {
    error.chain().find_map(code_of).unwrap_or(Exit::Failed)
}

fn code_of(error: &(dyn Error + 'static)) -> Option<Exit> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if let Some(call) = error.downcast_ref::<CallError>() {
        return Some(of_reason(call.reason));
    }
    if let Some(open) = error.downcast_ref::<OpenError>() {
        return Some(match open {
            OpenError::Call(call) => of_reason(call.reason),
            OpenError::Fabric(_) | OpenError::Verbs(_) | OpenError::NotOffered { .. } => Exit::Failed,
            OpenError::Address { .. } | OpenError::Data(_) => Exit::Unreachable,
        });
    }
    if let Some(write) = error.downcast_ref::<WriteError>() {
        return Some(match write {
            WriteError::Revoked(_) => Exit::Lease,
            WriteError::Closed(_) => Exit::Unreachable,
            WriteError::OutOfBounds { .. } | WriteError::ReadOnly(_) => Exit::Failed,
        });
    }
    if let Some(commit) = error.downcast_ref::<CommitError>() {
        return Some(match commit {
            CommitError::Revoked(_) => Exit::Lease,
            CommitError::Closed(_) => Exit::Unreachable,
            CommitError::Refused { status, .. } => of_status(*status),
            CommitError::Incomplete { .. } | CommitError::Overlapping(_) => Exit::Failed,
        });
    }
    if let Some(capture) = error.downcast_ref::<CaptureError>() {
        return Some(of_capture(capture));
    }
    if let Some(sync) = error.downcast_ref::<SyncError>() {
        return Some(match sync {
            SyncError::Capture(capture) => of_capture(capture),
            SyncError::Call(call) => of_reason(call.reason),
        });
    }
    if let Some(read) = error.downcast_ref::<ReadError>() {
        return Some(match read {
            ReadError::Revoked(_) => Exit::Lease,
            ReadError::Closed(_) => Exit::Unreachable,
            ReadError::Refused { status, .. } => of_status(*status),
            _ => Exit::Failed,
        });
    }
    if error.downcast_ref::<LocationError>().is_some() {
        return Some(Exit::Usage);
    }
    error.downcast_ref::<ConnectError>().map(|_| Exit::Unreachable)
}

fn of_capture(error: &CaptureError) -> Exit {
    match error {
        CaptureError::Revoked(_) => Exit::Lease,
        CaptureError::Closed(_) => Exit::Unreachable,
        CaptureError::Refused { status, .. } => of_status(*status),
        CaptureError::OutOfBounds { .. } | CaptureError::NotForUpdate(_) => Exit::Failed,
    }
}

fn of_reason(reason: Reason) -> Exit {
    match reason {
        Reason::NotFound => Exit::NotFound,
        Reason::Conflict | Reason::TimedOut | Reason::Revoked | Reason::NoLease | Reason::Unproven => {
            Exit::Lease
        }
        Reason::Mismatch => Exit::Checksum,
        Reason::Invalid => Exit::Usage,
        Reason::Unreachable | Reason::Stopping | Reason::NoSession => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

fn of_status(status: Status) -> Exit {
    match status {
        Status::NoLease | Status::Revoked | Status::Unproven => Exit::Lease,
        Status::Mismatch | Status::Poisoned => Exit::Checksum,
        Status::Removed => Exit::NotFound,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_code_is_found_behind_what_was_said_around_the_error() {
        let call = CallError { reason: Reason::NotFound, message: "/x does not exist".to_owned() };
        let error = Err::<(), _>(call).context("cannot put y").unwrap_err();
        assert_eq!(code(&error), Exit::NotFound);
        let error = anyhow::Error::from(Failure::new(Exit::Checksum, "2 blocks"));
        assert_eq!(code(&error), Exit::Checksum);
        assert_eq!(code(&anyhow::anyhow!("something else")), Exit::Failed);
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure() {
        let error = Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe)).context("printing");
        assert_eq!(report(error), Exit::Ok);
    }
}
