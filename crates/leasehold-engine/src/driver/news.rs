//! `Output::Notify` and `Output::BreakEnded`: holders hear, whoever watches hears, and the break log has it.

use super::{Granted, State, Work, unix_ms};
use crate::break_log::BreakRow;
use crate::event::Event;
use crate::metrics::Breaker;
use crate::session::Session;
use leasehold_core::breaks::{Break, Outcome};
use leasehold_core::output::{Notice, RevokeReason};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl State {
    pub(super) fn announce_granted(&self, granted: &Granted) {
        let Some(lease) = self.parts.core.lease(granted.lease) else { return };
        let Some(session) = self.parts.sessions.get(lease.session) else { return };
        let event = Event::Granted {
            session: lease.session,
            lease: lease.id,
            path: self.path(lease.file),
            range: lease.range,
            writes: lease.access.writes(),
        };
        session.tell_if_there_is_room(event.clone());
        self.announce(event);
    }

    pub(super) fn notify(&mut self, session: Option<Arc<Session>>, notice: Notice) {
        let Some(session) = session else { return };
        let event = match notice {
            Notice::Break { id, lease, file, range, breaker, operation, deadline } => {
                self.parts.counters.breaks.fetch_add(1, Ordering::Relaxed);
                let grace = Duration::from_micros(deadline.0.saturating_sub(self.clock.now().0));
                Event::Break {
                    session: session.id,
                    id,
                    lease,
                    path: self.path(file),
                    range,
                    breaker: (*breaker).clone(),
                    operation: self.operations.describe(operation, Some(&breaker)),
                    deadline: self.clock.system(deadline),
                    grace,
                }
            }
            Notice::Revoked { lease, file, range, why, by } => {
                self.parts.counters.revoked.fetch_add(1, Ordering::Relaxed);
                Event::Revoked {
                    session: session.id,
                    lease,
                    path: self.path(file),
                    range,
                    why: revoke_reason(why),
                    by: by.map(|by| (*by).clone()),
                }
            }
        };
        if !session.tell(event.clone()) {
            // A holder that cannot be told cannot be given a grace period in good faith: it must reconnect.
            let why = "it does not read its events".to_owned();
            self.driver.send(Work::EndSession { session: session.id, why });
        }
        self.announce(event);
    }

    pub(super) fn break_ended(&mut self, record: &Break) {
        let Some((ended, outcome)) = record.ended else { return };
        let row = BreakRow {
            id: record.id.0,
            lease: record.lease.0,
            holder: (&*record.holder).into(),
            breaker: (&*record.breaker).into(),
            path: self.path(record.file),
            start: record.range.start(),
            end: record.range.end(),
            operation: self.operations.describe(record.operation, Some(&record.breaker)),
            started_ms: unix_ms(self.clock.system(record.started)),
            took_us: ended.0.saturating_sub(record.started.0),
            grace_ms: record.deadline.0.saturating_sub(record.started.0) / 1000,
            outcome: outcome_name(outcome).to_owned(),
        };
        let (program, uid) = (record.breaker.program.clone(), record.breaker.uid);
        let breaker = Breaker { program, uid, outcome: outcome_name(outcome) };
        self.parts.counters.breakers.count(breaker);
        self.parts.counters.broke(Duration::from_micros(row.took_us));
        self.parts.break_log.append(row.clone());
        self.announce(Event::BreakEnded(row));
    }

    pub(super) fn announce(&self, event: Event) {
        let _nobody_watches = self.parts.watch.send(event);
    }
}

fn revoke_reason(why: RevokeReason) -> &'static str {
    match why {
        RevokeReason::GraceOver => "it was broken, and the grace period ran out",
        RevokeReason::Taken => "its range was taken",
        RevokeReason::Poisoned => "the data connection failed a checksum",
        RevokeReason::SessionEnded => "the session ended",
        RevokeReason::Unproven => "its fence could not be proven in time",
        RevokeReason::Removed => "the file was removed",
    }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::Released => "released",
        Outcome::Fenced => "fenced",
        Outcome::Quarantined => "quarantined",
        Outcome::SessionEnded => "session ended",
        Outcome::Refused => "breaker refused",
        Outcome::Withdrawn => "breaker gone",
    }
}
