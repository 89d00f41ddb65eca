//! Breaks: one breaker against one lease.
//!
//! A break begins when the breaker arrives: the holder is told who, what for, which range, and how long it has. The
//! grace periods of all leases in its way run in parallel. A holder answers by committing or releasing; else the lease
//! is fenced at the deadline.

use crate::config::OnExpiry;
use crate::core::{Core, Timer};
use crate::identity::Identity;
use crate::ids::{BreakId, FileId, LeaseId, RequestId, SessionId, Tick};
use crate::output::{AcquireError, ChangeError, Notice, Operation, Output, RevokeReason};
use crate::range::ByteRange;
use crate::request::Kind;
use crate::scheme::LayoutRule;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One break, from the notice to its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Break {
    /// Its id.
    pub id: BreakId,
    /// Which lease.
    pub lease: LeaseId,
    /// Of which session.
    pub session: SessionId,
    /// Who held it.
    pub holder: Arc<Identity>,
    /// On which file.
    pub file: FileId,
    /// On which range.
    pub range: ByteRange,
    /// What was asked for: the change, or the acquire.
    pub request: RequestId,
    /// Who broke it.
    pub breaker: Arc<Identity>,
    /// What for.
    pub operation: Operation,
    /// When the holder was told.
    pub started: Tick,
    /// When its grace is (was) over.
    pub deadline: Tick,
    /// How and when it ended; `None` while it goes on.
    pub ended: Option<(Tick, Outcome)>,
}

/// What the holder did about a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It committed within its grace period.
    Committed,
    /// It let go within its grace period.
    Released,
    /// It did not answer, and was fenced at the deadline.
    Fenced,
    /// It did not answer, and the fence could not be proven: the frames are in quarantine, the connection dropped.
    Quarantined,
    /// Its session ended first.
    SessionEnded,
    /// It did not answer, and kept the lease: the breaker was refused.
    Refused,
    /// The breaker gave up before it did.
    Withdrawn,
}

impl Core {
    /// Tells the holder that `breaker` needs the range, and sets the deadline of the lease if it has none.
    ///
    /// Once begun, a break goes to its outcome even if the breaker gives up. A lease that is ending already is not
    /// broken; the breaker waits for its end.
    pub(crate) fn begin_break(
        &mut self,
        id: LeaseId,
        request: RequestId,
        breaker: &Arc<Identity>,
        operation: Operation,
        out: &mut Vec<Output>,
    ) {
        let (now, deadline) = (self.now, self.now.after_ms(self.config.grace_ms));
        let break_id = BreakId(self.next_id());
        let max = self.config.limits.breaks_per_lease_max;
        let lease = self.lease_mut(id);
        if lease.is_ending() {
            return;
        }
        let recorded = lease.breaks.len() < max;
        let granted = lease.request.is_none();
        if recorded {
            lease.breaks.push(break_id);
        }
        lease.by.get_or_insert_with(|| breaker.clone());
        let record = Break {
            id: break_id,
            lease: id,
            session: lease.session,
            holder: lease.identity.clone(),
            file: lease.file,
            range: lease.range,
            request,
            breaker: breaker.clone(),
            operation,
            started: now,
            deadline,
            ended: None,
        };
        // Grace periods are all of one length, so the first deadline is the earliest.
        if lease.deadline.is_none() {
            lease.deadline = Some(deadline);
            self.timers.insert((deadline, Timer::Grace(id)));
        }
        if recorded {
            if granted {
                out.push(notice(&record));
            }
            self.breaks.insert(break_id, record);
        }
    }

    /// Acquires that break leases break a new one as well, if it was granted to somebody before them in line.
    pub(crate) fn break_for_those_who_wait(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let (range, access, file) = (lease.range, lease.access, lease.file);
        let waiting: Vec<RequestId> = self.file(file).breakers.conflicting(range, access.writes()).collect();
        for request in waiting {
            let Kind::Acquire(acquire) = &self.requests[&request].kind else { continue };
            let want = acquire.wants.iter().find(|want| want.file == file && want.range.overlaps(range));
            let breaker = self.sessions.get(&acquire.session).map(|session| session.identity.clone());
            if let (Some(want), Some(breaker)) = (want, breaker) {
                let operation = Operation::Acquire { range: want.range, access: want.access };
                self.begin_break(id, request, &breaker, operation, out);
            }
        }
    }

    /// The lease has just been granted: its holder hears of breaks that began before.
    pub(crate) fn tell_breaks(&self, id: LeaseId, out: &mut Vec<Output>) {
        out.extend(self.leases[id].breaks.iter().map(|broken| notice(&self.breaks[broken])));
    }

    /// The holder did not answer in time.
    pub(crate) fn grace_over(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = self.lease_mut(id);
        lease.deadline = None;
        let (session, by) = (lease.session, lease.by.clone());
        if let Some(request) = lease.request {
            // The holder does not know the lease yet: the acquire fails, and that is all it hears.
            let (file, range) = (lease.file, lease.range);
            let error = AcquireError::Conflict { file, range, holder: None };
            return self.refuse_acquire(request, error, Outcome::Fenced, out);
        }
        if self.config.on_expiry == OnExpiry::RefuseBreaker {
            return self.refuse_breakers(id, out);
        }
        let kills = self.config.on_expiry == OnExpiry::EndSession
            || self.config.scheme.layout == LayoutRule::BreakThenKill;
        if kills && session != SessionId::LOCAL {
            self.end_session(session, by, out);
        } else if !self.is_fenceable(id) {
            return;
        }
        // Nothing if the session's end has seen to it.
        self.revoke(id, RevokeReason::GraceOver, out);
    }

    /// The breakers whose time is over are refused, and the lease goes on.
    fn refuse_breakers(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let holder = self.leases[id].identity.clone();
        for request in self.end_breaks(id, Outcome::Refused, |this, broken| broken.deadline <= this.now, out)
        {
            self.refuse_change(request, ChangeError::Busy { lease: id, holder: holder.clone() }, out);
        }
    }

    /// Whoever asked has gone, and what it asked for breaks nothing any more: holders keep what they have not let go.
    pub(crate) fn withdraw(&mut self, request: RequestId, out: &mut Vec<Output>) {
        let leases: BTreeSet<LeaseId> = self
            .breaks
            .values()
            .filter(|broken| broken.request == request)
            .map(|broken| broken.lease)
            .collect();
        for lease in leases {
            if self.leases.get(lease).is_some_and(|lease| !lease.is_ending()) {
                self.end_breaks(lease, Outcome::Withdrawn, |_, broken| broken.request == request, out);
            }
        }
        self.cancel(request, out);
    }

    /// Ends some breaks of a lease that goes on, and says what was asked for. The deadline is that of the next.
    fn end_breaks(
        &mut self,
        id: LeaseId,
        outcome: Outcome,
        ends: impl Fn(&Core, &Break) -> bool,
        out: &mut Vec<Output>,
    ) -> Vec<RequestId> {
        self.stop_grace(id);
        let all = core::mem::take(&mut self.lease_mut(id).breaks);
        let (over, left): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|broken| ends(self, &self.breaks[broken]));
        let next = left.first().map(|broken| &self.breaks[broken]);
        let (by, deadline) = (next.map(|next| next.breaker.clone()), next.map(|next| next.deadline));
        if let Some(deadline) = deadline {
            self.timers.insert((deadline, Timer::Grace(id)));
        }
        let lease = self.lease_mut(id);
        (lease.breaks, lease.by, lease.deadline) = (left, by, deadline);
        let requests = over.iter().map(|broken| self.breaks[broken].request).collect();
        for broken in over {
            self.end_break(broken, outcome, out);
        }
        requests
    }

    /// The key is live again. Its grace period may have ended while it was on its way.
    pub(crate) fn end_if_overdue(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let Some(lease) = self.leases.get(id) else { return };
        if !lease.breaks.is_empty() && lease.deadline.is_none() && !lease.is_ending() {
            self.grace_over(id, out);
        }
    }

    pub(crate) fn end_break(&mut self, id: BreakId, outcome: Outcome, out: &mut Vec<Output>) {
        let mut record = self.breaks.remove(&id).expect("a break ends once");
        record.ended = Some((self.now, outcome));
        out.push(Output::BreakEnded { record });
    }
}

fn notice(record: &Break) -> Output {
    let notice = Notice::Break {
        id: record.id,
        lease: record.lease,
        file: record.file,
        range: record.range,
        breaker: record.breaker.clone(),
        operation: record.operation,
        deadline: record.deadline,
    };
    Output::Notify { session: record.session, notice }
}
