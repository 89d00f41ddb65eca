//! What can go wrong, one type for each operation.

use crate::lease::RevokeNotice;
use crate::location::Server;
use leasehold_core::ids::LeaseId;
use leasehold_core::range::ByteRange;
use leasehold_fabric::message::Status;
use tonic_types::StatusExt as _;

/// No control connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address makes no sense.
    #[error("{server} is not an address to connect to: {source}")]
    Address {
        /// What was asked for.
        server: Server,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// Nobody answers.
    #[error("cannot reach {server}: {why}; is `leasehold serve` running there?")]
    Unreachable {
        /// What was asked for.
        server: Server,
        /// The innermost cause.
        why: String,
    },
    /// Somebody answers, and is not the server that the credentials are for.
    #[error(
        "cannot trust {server}: {why}; do the credentials belong to this server, does its certificate have this name, and \
         does it serve TLS?"
    )]
    Untrusted {
        /// What was asked for.
        server: Server,
        /// The innermost cause.
        why: String,
    },
    /// The server does not know us.
    #[error("{server} does not let us in: {why}")]
    Refused {
        /// What was asked for.
        server: Server,
        /// The server's words.
        why: String,
    },
    /// The connection stands, and the first call failed.
    #[error(
        "{server} does not answer: {why}; a server that asks for credentials needs --credentials (LEASEHOLD_CREDENTIALS)"
    )]
    NoAnswer {
        /// What was asked for.
        server: Server,
        /// What came of the call.
        why: String,
    },
    /// The certificates or the key of the credentials make no sense.
    #[error("the credentials cannot be used: {why}")]
    Credentials {
        /// What is wrong.
        why: String,
    },
}

/// Why a call failed, for programs. The names are those of the proto file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "documented where the protocol is: proto/leasehold.proto")]
#[non_exhaustive]
pub enum Reason {
    NotFound,
    AlreadyExists,
    WrongKind,
    Invalid,
    Conflict,
    TimedOut,
    Limit,
    NoSession,
    NoLease,
    Revoked,
    Mismatch,
    Unproven,
    NoSpace,
    Denied,
    Unauthenticated,
    ReadOnly,
    Io,
    Stopping,
    /// The server could not be reached, or went away during the call.
    Unreachable,
    /// The server, or something between, gave a status without a reason of ours.
    Other,
}

impl Reason {
    /// All that travel on the wire, with their names there.
    pub const NAMED: &'static [(Reason, &'static str)] = &[
        (Reason::NotFound, "NOT_FOUND"),
        (Reason::AlreadyExists, "ALREADY_EXISTS"),
        (Reason::WrongKind, "WRONG_KIND"),
        (Reason::Invalid, "INVALID"),
        (Reason::Conflict, "CONFLICT"),
        (Reason::TimedOut, "TIMED_OUT"),
        (Reason::Limit, "LIMIT"),
        (Reason::NoSession, "NO_SESSION"),
        (Reason::NoLease, "NO_LEASE"),
        (Reason::Revoked, "REVOKED"),
        (Reason::Mismatch, "MISMATCH"),
        (Reason::Unproven, "UNPROVEN"),
        (Reason::NoSpace, "NO_SPACE"),
        (Reason::Denied, "DENIED"),
        (Reason::Unauthenticated, "UNAUTHENTICATED"),
        (Reason::ReadOnly, "READ_ONLY"),
        (Reason::Io, "IO"),
        (Reason::Stopping, "STOPPING"),
    ];

    /// The domain of our reasons in a `google.rpc.ErrorInfo`.
    pub const DOMAIN: &'static str = "leasehold";

    /// The name on the wire; `None` for what only the client can see.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Reason::NAMED.iter().find(|(reason, _)| *reason == self).map(|(_, name)| *name)
    }

    fn of(status: &tonic::Status) -> Reason {
        let named = status.get_details_error_info().filter(|info| info.domain == Reason::DOMAIN);
        let by_name =
            named.and_then(|info| Reason::NAMED.iter().find(|(_, name)| *name == info.reason).copied());
        match (by_name, status.code()) {
            (Some((reason, _)), _) => reason,
            (None, tonic::Code::Unavailable) => Reason::Unreachable,
            // What the server says has no cause on this side; a connection that breaks in the middle of a call has.
            (None, _) if std::error::Error::source(status).is_some() => Reason::Unreachable,
            (None, _) => Reason::Other,
        }
    }
}

/// A gRPC call that the server refused, or that did not reach it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// For programs.
    pub reason: Reason,
    /// For people: what, where, and what to do. The server's words, if it was the server that refused.
    pub message: String,
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> CallError {
        let reason = Reason::of(&status);
        let message = match reason {
            Reason::Unreachable => format!(
                "the server went away during the call ({}); see whether it runs, then retry",
                status.message()
            ),
            Reason::Other if status.code() == tonic::Code::Unimplemented => {
                "the server does not know this call; it is older than this program: update it".to_owned()
            }
            Reason::Other => {
                format!("the server answered {:?} ({})", status.code(), status.message())
            }
            _ => status.message().to_owned(),
        };
        CallError { reason, message }
    }
}

impl From<crate::convert::Malformed> for CallError {
    fn from(malformed: crate::convert::Malformed) -> CallError {
        CallError {
            reason: Reason::Other,
            message: format!(
                "the server's answer breaks the protocol: {malformed}; do both ends have the same version?"
            ),
        }
    }
}

impl CallError {
    /// Whether the server, the way to it, or the session is gone: a new connection and a new session may help.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.reason, Reason::Unreachable | Reason::Stopping | Reason::NoSession)
    }
}

/// No session.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The control plane said no.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The fabric did not start on this machine.
    #[error("cannot start the fabric: {0}; check the limits of threads and open files")]
    Fabric(#[source] std::io::Error),
    /// An RDMA device was asked for.
    #[error("no data by verbs: {0}; `--fabric iwarp` needs no device")]
    Verbs(String),
    /// A kind was asked for that the server does not accept.
    #[error(
        "the server does not accept data by {asked}, but by {offered}; leave --fabric out, or change its setting `fabric`"
    )]
    NotOffered {
        /// The kind that was asked for.
        asked: &'static str,
        /// Those that it accepts.
        offered: String,
    },
    /// The data address that the server gave has no meaning here.
    #[error("the server gives {address:?} as its data address, which does not resolve: {why}")]
    Address {
        /// The server's words.
        address: String,
        /// The resolver's words.
        why: String,
    },
    /// No data connection.
    #[error("no data connection: {0}")]
    Data(#[from] leasehold_fabric::ConnectError),
}

/// Bytes were not written under a lease.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// Not within the lease.
    #[error("bytes {wanted} are not within lease {lease}, which covers {leased}")]
    OutOfBounds {
        /// Which.
        lease: LeaseId,
        /// Its range.
        leased: ByteRange,
        /// What was to be written.
        wanted: ByteRange,
    },
    /// The lease is for reading.
    #[error("lease {0} is for reading; acquire the range for writing")]
    ReadOnly(LeaseId),
    /// The lease is over.
    #[error("lease {} is over: {}; acquire the range again, then write it again", .0.lease, .0)]
    Revoked(Box<RevokeNotice>),
    /// The data connection is gone, and the session with it.
    #[error("the data connection of the session is gone ({0}); open a new session")]
    Closed(String),
}

/// Nothing was committed; the file is as it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// Some bytes were never written, so there is no CRC.
    #[error(
        "bytes {missing} of lease {lease} were not written; write all of {leased}, or lease it for update"
    )]
    Incomplete {
        /// Which.
        lease: LeaseId,
        /// Its range.
        leased: ByteRange,
        /// The first gap.
        missing: ByteRange,
    },
    /// Some bytes were written twice, in pieces that overlap.
    #[error("parts of lease {0} were written twice in different pieces; commit with a CRC of your own")]
    Overlapping(LeaseId),
    /// The lease is over.
    #[error("lease {} is over: {}; acquire the range again, then write it again", .0.lease, .0)]
    Revoked(Box<RevokeNotice>),
    /// The server said no.
    #[error("{text}")]
    Refused {
        /// For programs.
        status: Status,
        /// The server's words.
        text: String,
    },
    /// The data connection is gone, and the session with it: whether the commit took effect is not known.
    #[error(
        "the data connection closed before the commit was answered ({0}); read the range to see what is there"
    )]
    Closed(String),
}

/// What was written under a lease was not captured; the lease goes on unless the error says that it is over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CaptureError {
    /// Not within the lease.
    #[error("bytes {wanted} are not within lease {lease}, which covers {leased}")]
    OutOfBounds {
        /// Which.
        lease: LeaseId,
        /// Its range.
        leased: ByteRange,
        /// What was to be captured.
        wanted: ByteRange,
    },
    /// The lease is for reading, or for overwriting.
    #[error("lease {0} is not for update, so no part of it can be captured; acquire the range for update")]
    NotForUpdate(LeaseId),
    /// The lease is over.
    #[error("lease {} is over: {}; acquire the range again, then write it again", .0.lease, .0)]
    Revoked(Box<RevokeNotice>),
    /// The server said no.
    #[error("{text}")]
    Refused {
        /// For programs.
        status: Status,
        /// The server's words.
        text: String,
    },
    /// The data connection is gone, and the session with it: whether the capture took effect is not known.
    #[error(
        "the data connection closed before the capture was answered ({0}); read the range to see what is there"
    )]
    Closed(String),
}

/// What was written under a lease is not known to be durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SyncError {
    /// It was not all captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// It was captured, and the fsync failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Bytes were not read under a lease.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Not within the lease.
    #[error("bytes {wanted} are not within lease {lease}, which covers {leased}")]
    OutOfBounds {
        /// Which.
        lease: LeaseId,
        /// Its range.
        leased: ByteRange,
        /// What was to be read.
        wanted: ByteRange,
    },
    /// The buffer is shorter than the range.
    #[error("the buffer has {buffer} bytes and the range {range} has {}; use a larger one", .range.len())]
    BufferTooSmall {
        /// Its length.
        buffer: usize,
        /// What was to be read.
        range: ByteRange,
    },
    /// The lease is over.
    #[error("lease {} is over: {}; acquire the range again, then read it again", .0.lease, .0)]
    Revoked(Box<RevokeNotice>),
    /// The fabric has no place for the buffer.
    #[error(transparent)]
    Expose(#[from] leasehold_fabric::ExposeError),
    /// The server said no.
    #[error("{text}")]
    Refused {
        /// For programs.
        status: Status,
        /// The server's words.
        text: String,
    },
    /// This end could not prove that the server is done with the buffer. The buffer is given up.
    #[error(transparent)]
    Unproven(#[from] leasehold_fabric::Unproven),
    /// The data connection is gone, and the session with it.
    #[error("the data connection of the session is gone ({0}); open a new session")]
    Closed(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn every_reason_survives_the_wire_with_its_message() {
        for (reason, name) in Reason::NAMED {
            let details = ErrorDetails::with_error_info(*name, Reason::DOMAIN, []);
            let status = tonic::Status::with_error_details(tonic::Code::Aborted, "the text", details);
            let error = CallError::from(status);
            assert_eq!((error.reason, error.message.as_str()), (*reason, "the text"));
        }
    }

    #[test]
    fn a_foreign_reason_is_not_taken_for_one_of_ours() {
        let details = ErrorDetails::with_error_info("CONFLICT", "example.com", []);
        let status = tonic::Status::with_error_details(tonic::Code::Aborted, "a proxy", details);
        assert_eq!(CallError::from(status).reason, Reason::Other);
    }
}
