//! Acquires: leases on all of some ranges, or on none.
//!
//! ```text
//! waiting (claims, no lease) --nothing in the way, frames for all--> preparing (leases) --all keys live--> granted
//! ```
//! An acquire holds nothing while it waits, so acquires cannot deadlock. One that need not wait makes no claims.

use crate::breaks::Outcome;
use crate::core::{Core, Timer};
use crate::frame::Owner;
use crate::ids::{LeaseId, RequestId, SessionId, Tick};
use crate::input::{Fault, OnConflict, Want};
use crate::output::{AcquireError, Operation, Output, Reply, RevokeReason};
use crate::range::Run;
use crate::request::{Blocker, Kind};
use crate::scheme::{Admission, DataPath};
use alloc::vec::Vec;

/// An acquire that is owed an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Acquire {
    pub session: SessionId,
    pub wants: Vec<Want>,
    pub on_conflict: OnConflict,
    pub deadline: Tick,
    /// It has had to wait: its files know what it wants, and its deadline is set.
    pub waits: bool,
    /// What is in its way.
    pub blocker: Option<Blocker>,
    /// Its leases, once it has frames for all.
    pub group: Option<Group>,
}

/// The leases of one acquire while they are prepared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub leases: Vec<LeaseId>,
    /// How many have no live key yet.
    pub left: usize,
}

impl Core {
    pub(crate) fn acquire(
        &mut self,
        id: RequestId,
        session: SessionId,
        wants: Vec<Want>,
        on_conflict: OnConflict,
        deadline: Tick,
        out: &mut Vec<Output>,
    ) {
        if self.is_known(id) {
            return;
        }
        if let Err(error) = self.admit(id, session, &wants, on_conflict) {
            return self.reply(id, Reply::Acquire(Err(error)), out);
        }
        let owner = self.sessions.get_mut(&session).expect("admitted");
        owner.requests.insert(id);
        let tenant = owner.tenant;
        self.charge(tenant, wants.len(), blocks(&wants));
        let acquire =
            Acquire { session, wants, on_conflict, deadline, waits: false, blocker: None, group: None };
        self.insert_request(id, Kind::Acquire(acquire));
        match on_conflict {
            // Nothing is in its way, or it would not have been admitted.
            OnConflict::Refuse => return self.take_frames(id, out),
            OnConflict::Break => self.break_leases_in_the_way(id, out),
            OnConflict::Wait => {}
        }
        self.advance_acquire(id, out);
    }

    /// Whether the acquire may wait for its turn at all.
    fn admit(
        &mut self,
        id: RequestId,
        session: SessionId,
        wants: &[Want],
        on_conflict: OnConflict,
    ) -> Result<(), AcquireError> {
        let limits = self.config.limits;
        let full = |limit, max: usize| Err(AcquireError::Limit { limit, max: max as u64 });
        let Some(owner) = self.sessions.get(&session) else { return Err(AcquireError::NoSession) };
        if let Some((limit, max)) = self.is_full_of_requests() {
            return Err(AcquireError::Limit { limit, max });
        }
        if wants.len() > limits.acquire_ranges_max {
            return full("acquire_ranges_max", limits.acquire_ranges_max);
        }
        if owner.leases.len() + owner.leases_wanted + wants.len() > limits.leases_per_session_max {
            return full("leases_per_session_max", limits.leases_per_session_max);
        }
        if self.leases.len() + self.leases_wanted + wants.len() > limits.leases_max {
            return full("leases_max", limits.leases_max);
        }
        let mut wanted = 0_u64;
        for want in wants {
            if self.named_file(want.file).is_none() {
                return Err(AcquireError::NoFile);
            }
            if session != SessionId::LOCAL && !self.is_admitted(want.access.writes()) {
                return Err(AcquireError::Refused { scheme: self.config.scheme.name });
            }
            if want.range.len() > limits.lease_bytes_max {
                return Err(AcquireError::Limit { limit: "lease_bytes_max", max: limits.lease_bytes_max });
            }
            wanted = wanted.saturating_add(self.frames_wanted(want));
        }
        if wanted > u64::from(self.config.frames) {
            return Err(AcquireError::ArenaTooSmall { wanted, frames: u64::from(self.config.frames) });
        }
        if let Err((limit, max)) = self.fits(session, wants.len(), wanted) {
            return Err(AcquireError::Limit { limit, max });
        }
        disjoint(wants)?;
        if on_conflict == OnConflict::Refuse
            && let Some((blocker, at)) = self.in_the_way(id, wants)
        {
            return Err(self.conflict(blocker, &wants[at]));
        }
        Ok(())
    }

    /// Whether the scheme gives such a key at all.
    fn is_admitted(&self, writes: bool) -> bool {
        match self.admission(writes) {
            Admission::Allow | Admission::Lease => true,
            Admission::Refuse => false,
            Admission::IfFaults => self.config.host.device_faults,
        }
    }

    fn conflict(&self, blocker: Blocker, want: &Want) -> AcquireError {
        let holder = match blocker {
            Blocker::Lease(lease) => {
                let state = &self.leases[lease];
                // Nobody knows a capture by its own number.
                Some((state.of.unwrap_or(lease), state.identity.clone()))
            }
            Blocker::Request(_) => None,
        };
        AcquireError::Conflict { file: want.file, range: want.range, holder }
    }

    /// Something that must go before the wants can be granted, and which of the wants it is about. Of several acquires
    /// that of the latest: it waits for the earlier ones itself, so that each waits in line and not in a crowd.
    fn in_the_way(&self, id: RequestId, wants: &[Want]) -> Option<(Blocker, usize)> {
        wants.iter().enumerate().find_map(|(at, want)| {
            let file = self.file(want.file);
            if let Some(change) = file.changes.overlapping(want.range).next() {
                return Some((Blocker::Request(change), at));
            }
            let writes = want.access.writes();
            if self.lands_in_file()
                && let Some(lease) = self.page_in_the_way(want.file, want.range.blocks())
            {
                return Some((Blocker::Lease(lease), at));
            }
            if self.admission(writes) != Admission::Lease {
                return None;
            }
            let earlier = self.acquire_ahead(id, want);
            let lease = || file.leases.conflicting(want.range, writes).next().map(Blocker::Lease);
            earlier.map(Blocker::Request).or_else(lease).map(|blocker| (blocker, at))
        })
    }

    /// The last acquire in line before `id` that is in conflict with the want.
    fn acquire_ahead(&self, id: RequestId, want: &Want) -> Option<RequestId> {
        let file = self.file(want.file);
        let writes = want.access.writes();
        // In a crowd that wants the same bytes it is the next one ahead, and for the first in line there is none: only
        // lines for several ranges need the search.
        let &next = file.acquire_line.range(..id).next_back()?;
        let next_is_in_conflict = match &self.requests[&next].kind {
            Kind::Acquire(ahead) => ahead.wants.iter().any(|other| {
                let both_read = !writes && !other.access.writes();
                other.file == want.file && other.range.overlaps(want.range) && !both_read
            }),
            _ => false,
        };
        if next_is_in_conflict {
            return Some(next);
        }
        file.acquires.conflicting(want.range, writes).filter(|&other| other < id).max()
    }

    fn break_leases_in_the_way(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let Kind::Acquire(acquire) = &self.requests[&id].kind else { return };
        let breaker = self.sessions[&acquire.session].identity.clone();
        for want in acquire.wants.clone() {
            // A key without a lease is nothing that could be broken.
            let is_lease =
                |&lease: &LeaseId| self.admission(self.leases[lease].access.writes()) == Admission::Lease;
            let conflicting = self.file(want.file).leases.conflicting(want.range, want.access.writes());
            let leases: Vec<LeaseId> = conflicting.filter(is_lease).collect();
            let operation = Operation::Acquire { range: want.range, access: want.access };
            for lease in leases {
                self.begin_break(lease, id, &breaker, operation, out);
            }
        }
    }

    /// From now on it is in line, and gives up at its deadline.
    fn claim_wants(&mut self, id: RequestId) {
        let Some(Kind::Acquire(acquire)) = self.requests.get_mut(&id).map(|request| &mut request.kind) else {
            return;
        };
        if core::mem::replace(&mut acquire.waits, true) {
            return;
        }
        self.timers.insert((acquire.deadline, Timer::Request(id)));
        self.leases_wanted += acquire.wants.len();
        if let Some(owner) = self.sessions.get_mut(&acquire.session) {
            owner.leases_wanted += acquire.wants.len();
        }
        for want in &acquire.wants {
            let file = self.files.get_mut(&want.file).expect("a file that is in use is not closed");
            file.requests.insert(id);
            file.acquire_line.insert(id);
            file.acquires.insert(want.range, want.access.writes(), id);
            if acquire.on_conflict == OnConflict::Break {
                file.breakers.insert(want.range, want.access.writes(), id);
            }
        }
    }

    fn drop_claims(&mut self, id: RequestId) {
        let Some(Kind::Acquire(acquire)) = self.requests.get_mut(&id).map(|request| &mut request.kind) else {
            return;
        };
        if !core::mem::take(&mut acquire.waits) {
            return;
        }
        self.timers.remove(&(acquire.deadline, Timer::Request(id)));
        self.leases_wanted -= acquire.wants.len();
        if let Some(owner) = self.sessions.get_mut(&acquire.session) {
            owner.leases_wanted -= acquire.wants.len();
        }
        for want in &acquire.wants {
            let file = self.files.get_mut(&want.file).expect("a file that is in use is not closed");
            file.requests.remove(&id);
            file.acquire_line.remove(&id);
            file.acquires.remove(want.range, want.access.writes(), id);
            file.breakers.remove(want.range, want.access.writes(), id);
        }
    }

    /// Grants what can be granted now; else the acquire waits for what is in its way.
    pub(crate) fn advance_acquire(&mut self, id: RequestId, out: &mut Vec<Output>) {
        self.unblock(id);
        let Kind::Acquire(acquire) = &self.requests[&id].kind else { return };
        if acquire.group.is_some() {
            return;
        }
        if let Some((blocker, _)) = self.in_the_way(id, &acquire.wants) {
            self.claim_wants(id);
            self.leave_frame_queue(id);
            return self.block_on(id, blocker);
        }
        self.take_frames(id, out);
    }

    /// Turns an acquire that has nothing in its way into leases, if there are frames for all, else puts it in line.
    fn take_frames(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let after_others = self.frame_queue.first().is_some_and(|&first| first < id);
        match if after_others { None } else { self.allocate_for(id) } {
            Some(runs) => {
                self.leave_frame_queue(id);
                self.prepare(id, runs, out);
            }
            None => {
                self.claim_wants(id);
                self.frame_queue.insert(id);
            }
        }
    }

    /// Frames for all the wants, or nothing changes.
    fn allocate_for(&mut self, id: RequestId) -> Option<Vec<(LeaseId, Want, Run)>> {
        if self.lands_in_file() {
            return self.pages_for(id);
        }
        let Kind::Acquire(acquire) = &self.requests[&id].kind else { return None };
        let mut runs = Vec::with_capacity(acquire.wants.len());
        for &want in &acquire.wants {
            let lease = LeaseId(self.last_lease.next());
            let frames =
                u32::try_from(self.frames_wanted(&want)).expect("admitted, so no larger than the arena");
            let Some(run) = self.frames.allocate(frames, Owner::Lease(lease)) else {
                for (lease, _, run) in runs {
                    self.frames.release(run, Owner::Lease(lease));
                }
                return None;
            };
            runs.push((lease, want, run));
        }
        Some(runs)
    }

    /// How many frames a lease has.
    fn frames_wanted(&self, want: &Want) -> u64 {
        match self.config.scheme.data_path {
            DataPath::Elsewhere => 0,
            _ => want.range.blocks().len(),
        }
    }

    /// Turns the claims into leases.
    fn prepare(&mut self, id: RequestId, runs: Vec<(LeaseId, Want, Run)>, out: &mut Vec<Output>) {
        self.drop_claims(id);
        let request = self.requests.get_mut(&id).expect("it is being granted");
        let watchers = core::mem::take(&mut request.watchers);
        self.work.requests.extend(watchers);
        let Kind::Acquire(acquire) = &mut request.kind else { return };
        acquire.group =
            Some(Group { leases: runs.iter().map(|&(lease, ..)| lease).collect(), left: runs.len() });
        let session = acquire.session;
        if runs.is_empty() {
            return self.granted(id, out);
        }
        for (lease, want, run) in runs {
            self.begin_lease(lease, id, session, want, run, out);
        }
    }

    /// One more of the acquire's keys is live.
    pub(crate) fn one_is_live(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let Some(Kind::Acquire(acquire)) = self.requests.get_mut(&id).map(|request| &mut request.kind) else {
            return;
        };
        let Some(group) = &mut acquire.group else { return };
        group.left -= 1;
        if group.left == 0 {
            self.granted(id, out);
        }
    }

    fn granted(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let leases = self.forget_acquire(id).map(|group| group.leases).unwrap_or_default();
        self.reply(id, Reply::Acquire(Ok(leases.clone())), out);
        for lease in leases {
            let state = self.lease_mut(lease);
            state.request = None;
            let poisoned = state.poisoned;
            self.tell_breaks(lease, out);
            if poisoned {
                self.revoke(lease, RevokeReason::Poisoned, out);
            }
        }
    }

    /// Takes the acquire out of all tables, and leaves its leases to the caller.
    fn forget_acquire(&mut self, id: RequestId) -> Option<Group> {
        self.drop_claims(id);
        self.leave_frame_queue(id);
        let Kind::Acquire(acquire) = self.remove_request(id).kind else { return None };
        if let Some(session) = self.sessions.get_mut(&acquire.session) {
            session.requests.remove(&id);
            let tenant = session.tenant;
            if acquire.group.is_none() {
                self.refund(tenant, acquire.wants.len(), blocks(&acquire.wants));
            }
        }
        acquire.group
    }

    /// Ends an acquire that is not granted yet; leases that it has go, with `outcome` for those who broke them.
    pub(crate) fn end_acquire(&mut self, id: RequestId, outcome: Outcome, out: &mut Vec<Output>) {
        let Some(group) = self.forget_acquire(id) else { return };
        for lease in group.leases {
            self.abandon(lease, outcome, out);
        }
    }

    pub(crate) fn refuse_acquire(
        &mut self,
        id: RequestId,
        error: AcquireError,
        outcome: Outcome,
        out: &mut Vec<Output>,
    ) {
        self.reply(id, Reply::Acquire(Err(error)), out);
        self.end_acquire(id, outcome, out);
    }

    pub(crate) fn acquire_failed(&mut self, id: RequestId, fault: Fault, out: &mut Vec<Output>) {
        self.refuse_acquire(id, AcquireError::Fault(fault), Outcome::Released, out);
    }

    /// One of its files is gone. Leases that it has already are broken by whoever removed the file, if by anybody.
    pub(crate) fn acquire_lost_its_file(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let Kind::Acquire(acquire) = &self.requests[&id].kind else { return };
        if acquire.group.is_none() {
            self.refuse_acquire(id, AcquireError::NoFile, Outcome::Released, out);
        }
    }

    pub(crate) fn acquire_timed_out(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let Kind::Acquire(acquire) = &self.requests[&id].kind else { return };
        let error = match self.in_the_way(id, &acquire.wants) {
            Some((_, at)) => {
                AcquireError::TimedOut { file: acquire.wants[at].file, range: acquire.wants[at].range }
            }
            None => AcquireError::ArenaFull,
        };
        self.refuse_acquire(id, error, Outcome::Released, out);
    }
}

/// How many frames they take.
pub(crate) fn blocks(wants: &[Want]) -> u64 {
    wants.iter().map(|want| want.range.blocks().len()).sum()
}

/// Whether no byte is wanted twice.
fn disjoint(wants: &[Want]) -> Result<(), AcquireError> {
    if wants.len() < 2 {
        return Ok(());
    }
    let mut sorted: Vec<&Want> = wants.iter().collect();
    sorted.sort_unstable_by_key(|want| (want.file, want.range));
    for pair in sorted.windows(2) {
        if pair[0].file == pair[1].file && pair[0].range.overlaps(pair[1].range) {
            return Err(AcquireError::Overlap { range: pair[1].range });
        }
    }
    Ok(())
}
