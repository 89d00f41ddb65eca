//! What a session or an administrator hears without having asked.

use crate::convert::{self, Malformed};
use crate::proto;
use leasehold_core::identity::Identity;
use leasehold_core::ids::{BreakId, LeaseId, SessionId};
use leasehold_core::range::ByteRange;
use std::time::{Duration, SystemTime};

/// Something that happened on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the server's clock.
    pub at: SystemTime,
    /// What.
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are documented in proto/leasehold.proto")]
#[non_exhaustive]
pub enum Happening {
    /// A lease was granted.
    Granted { lease: LeaseId, session: SessionId, path: String, range: ByteRange, writes: bool },
    /// Somebody needs the range: commit or release before the deadline, or lose it.
    Break {
        id: BreakId,
        lease: LeaseId,
        session: SessionId,
        path: String,
        range: ByteRange,
        breaker: Identity,
        operation: String,
        deadline: SystemTime,
        grace: Duration,
    },
    /// A lease is over against its holder's will, and fenced.
    Revoked {
        lease: LeaseId,
        session: SessionId,
        path: String,
        range: ByteRange,
        why: String,
        by: Option<Identity>,
    },
    /// A break is over.
    BreakEnded {
        id: BreakId,
        lease: LeaseId,
        holder: Identity,
        breaker: Identity,
        path: String,
        range: ByteRange,
        operation: String,
        started: SystemTime,
        took: Duration,
        grace: Duration,
        outcome: String,
    },
    /// A session is over.
    SessionEnded { session: SessionId, why: String },
    /// The listener was too slow; so many events were dropped.
    Missed { events: u64 },
}

impl TryFrom<proto::Event> for Event {
    type Error = Malformed;

    fn try_from(event: proto::Event) -> Result<Event, Malformed> {
        let what = event.what.ok_or(Malformed::Missing("what"))?;
        Ok(Event { at: convert::time_in(event.at), what: what.try_into()? })
    }
}

fn identity(field: Option<proto::Identity>, name: &'static str) -> Result<Identity, Malformed> {
    field.map(Identity::from).ok_or(Malformed::Missing(name))
}

impl TryFrom<proto::event::What> for Happening {
    type Error = Malformed;

    fn try_from(what: proto::event::What) -> Result<Happening, Malformed> {
        use proto::event::What;
        Ok(match what {
            What::Granted(e) => Happening::Granted {
                lease: LeaseId(e.lease),
                session: SessionId(e.session),
                path: e.path,
                range: convert::range(e.range)?,
                writes: e.writes,
            },
            What::Break(e) => Happening::Break {
                id: BreakId(e.id),
                lease: LeaseId(e.lease),
                session: SessionId(e.session),
                path: e.path,
                range: convert::range(e.range)?,
                breaker: identity(e.breaker, "breaker")?,
                operation: e.operation,
                deadline: convert::time_in(e.deadline),
                grace: convert::duration_in(e.grace),
            },
            What::Revoked(e) => Happening::Revoked {
                lease: LeaseId(e.lease),
                session: SessionId(e.session),
                path: e.path,
                range: convert::range(e.range)?,
                why: e.why,
                by: e.by.map(Identity::from),
            },
            What::BreakEnded(e) => Happening::BreakEnded {
                id: BreakId(e.id),
                lease: LeaseId(e.lease),
                holder: identity(e.holder, "holder")?,
                breaker: identity(e.breaker, "breaker")?,
                path: e.path,
                range: convert::range(e.range)?,
                operation: e.operation,
                started: convert::time_in(e.started),
                took: convert::duration_in(e.took),
                grace: convert::duration_in(e.grace),
                outcome: e.outcome,
            },
            What::SessionEnded(e) => Happening::SessionEnded { session: SessionId(e.session), why: e.why },
            What::Missed(events) => Happening::Missed { events },
        })
    }
}
