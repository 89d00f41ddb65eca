//! Leases: from frames to a live key, and from the fence to the end.
//!
//! ```text
//! Loading | Zeroing | (nothing to do) --> Exposing --> Live --> Fencing --> Fenced --commit--> Verifying --> Merging --> over
//!                                                                            \--anything else, or unproven-----------> over
//! a capture of it, without a key:                               Queued --> Merging --> over
//! ```
//! The one rule that everything hangs on: frames leave a lease only after its fence is proven, or into quarantine; and
//! after its captures, which are copied from them.
//! A lease that must end while an answer for its frames or key is outstanding is abandoned, and ends when that comes.

use crate::breaks::Outcome;
use crate::core::{Core, Timer};
use crate::frame::Owner;
use crate::identity::Identity;
use crate::ids::{BreakId, FileId, LeaseId, RequestId, SessionId, TenantId, Tick};
use crate::input::{Access, Fault, Want};
use crate::output::{CommitError, Loader, NoSuchLease, Notice, Output, Reply, RevokeReason};
use crate::phase::{PhaseId, PhaseOwner};
use crate::range::{BLOCK_BYTES, ByteRange, Run};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One lease. Its frames are one run, of the blocks of its range.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    pub session: SessionId,
    pub identity: Arc<Identity>,
    /// To whose share it counts.
    pub tenant: Option<TenantId>,
    pub file: FileId,
    pub range: ByteRange,
    pub access: Access,
    pub run: Run,
    pub state: State,
    pub since: Tick,
    /// A capture has no key, and copies what is under the key of this lease.
    pub of: Option<LeaseId>,
    /// The acquire that it is for, until that is granted: its holder does not know it before.
    pub request: Option<RequestId>,
    /// It must end, with this outcome for those who broke it, once the outstanding answer has come.
    pub abandoned: Option<Outcome>,
    /// What it wrote may be wrong; it is never committed.
    pub poisoned: bool,
    /// The breaks against it.
    pub breaks: Vec<BreakId>,
    /// When it falls if its holder does not answer them.
    pub deadline: Option<Tick>,
    /// Who broke it first.
    pub by: Option<Arc<Identity>>,
    /// Requests that wait for its end.
    pub watchers: BTreeSet<RequestId>,
}

/// How far a lease has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Its frames get the file's bytes; `asked`: `Output::Load` is out.
    Loading {
        phase: PhaseId,
        asked: bool,
    },
    Zeroing,
    Exposing,
    Live,
    /// Its key was taken back, under schemes that do such a thing, and comes again when the device needs it.
    Parked,
    Fencing(Ending),
    /// The fence is proven, or will never be; it waits for its captures.
    Fenced {
        ending: Ending,
        proven: bool,
    },
    Verifying {
        request: RequestId,
    },
    /// A capture behind earlier ones of the same lease.
    Queued {
        request: RequestId,
    },
    /// It waits for its phase and then swaps its blocks in.
    Merging {
        request: RequestId,
        phase: PhaseId,
        step: Step,
    },
}

/// How far a commit, or a capture, has come with its phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    InLine,
    /// `Output::Capture` into this run is out.
    Copying(Run),
    /// `Output::Merge` is out.
    Merging,
}

/// Why a lease is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    Commit(RequestId),
    Release(RequestId),
    Revoke(RevokeReason),
    /// Its acquire failed; the holder never knew it.
    Abandon(Outcome),
    /// Not an end: the key is taken back.
    Park,
}

impl Lease {
    /// A lease of fresh frames.
    pub fn new(
        session: SessionId,
        identity: Arc<Identity>,
        file: FileId,
        range: ByteRange,
        access: Access,
        run: Run,
        since: Tick,
    ) -> Lease {
        Lease {
            session,
            identity,
            tenant: None,
            file,
            range,
            access,
            run,
            state: State::Exposing,
            since,
            of: None,
            request: None,
            abandoned: None,
            poisoned: false,
            breaks: Vec::new(),
            deadline: None,
            by: None,
            watchers: BTreeSet::new(),
        }
    }

    /// Whether a key of it may be able to place bytes.
    pub fn has_key(&self) -> bool {
        matches!(
            self.state,
            State::Exposing | State::Live | State::Fencing(_) | State::Fenced { proven: false, .. }
        )
    }

    /// Whether it ends soon, whatever its holder does.
    pub fn is_ending(&self) -> bool {
        self.abandoned.is_some()
            || match self.state {
                State::Loading { .. } | State::Zeroing | State::Exposing | State::Live | State::Parked => {
                    false
                }
                State::Fencing(Ending::Park) => false,
                State::Fencing(_)
                | State::Fenced { .. }
                | State::Verifying { .. }
                | State::Queued { .. }
                | State::Merging { .. } => true,
            }
    }

    /// What a commit is told after a revoke.
    pub fn commit_error(&self, id: LeaseId, reason: RevokeReason) -> CommitError {
        match (reason, &self.by) {
            (RevokeReason::GraceOver | RevokeReason::Taken, Some(by)) => {
                CommitError::Revoked { lease: id, by: by.clone() }
            }
            (RevokeReason::Poisoned, _) => CommitError::Poisoned(id),
            (RevokeReason::Unproven, _) => CommitError::Unproven(id),
            (RevokeReason::Removed, _) => CommitError::Removed(id),
            (RevokeReason::GraceOver | RevokeReason::Taken | RevokeReason::SessionEnded, _) => {
                NoSuchLease(id).into()
            }
        }
    }
}

impl Core {
    pub(crate) fn lease_mut(&mut self, id: LeaseId) -> &mut Lease {
        self.leases.get_mut(id).expect("a lease that is referred to is not over")
    }

    /// A lease that has its frames: they are filled, and its key is made.
    pub(crate) fn begin_lease(
        &mut self,
        id: LeaseId,
        request: RequestId,
        session: SessionId,
        want: Want,
        run: Run,
        out: &mut Vec<Output>,
    ) {
        let owner = self.sessions.get_mut(&session).expect("requests end with their session");
        owner.leases.insert(id, ());
        let Want { file, range, access } = want;
        let mut lease = Lease::new(session, owner.identity.clone(), file, range, access, run, self.now);
        (lease.request, lease.tenant) = (Some(request), owner.tenant);
        self.leases.insert(id, Box::new(lease));
        self.file_mut(file).leases.insert(range, access.writes(), id);
        self.break_for_those_who_wait(id, out);

        if self.lands_in_file() {
            self.pin_pages(id, out);
        } else if access != Access::Overwrite {
            let phase = self.enter_phase(file, range.blocks(), PhaseOwner::Load(id), None);
            self.lease_mut(id).state = State::Loading { phase, asked: false };
        } else if self.frames.take_bytes(run, session) {
            self.lease_mut(id).state = State::Zeroing;
            out.push(Output::Zero { lease: id, into: run });
        } else {
            self.expose(id, out);
        }
    }

    pub(crate) fn load_phase_held(&mut self, id: LeaseId, phase: PhaseId, out: &mut Vec<Output>) {
        if self.has_all_pages(id) {
            self.leave_phase(self.leases[id].file, phase);
            return self.expose(id, out);
        }
        let lease = self.lease_mut(id);
        lease.state = State::Loading { phase, asked: true };
        let (file, blocks, into) = (lease.file, lease.range.blocks(), lease.run);
        self.frames.mix_bytes(into);
        let size = self.file(file).size;
        out.push(Output::Load { by: Loader::Lease(id), file, blocks, size, into });
    }

    pub(crate) fn lease_loaded(&mut self, id: LeaseId, result: Result<(), Fault>, out: &mut Vec<Output>) {
        let Some(lease) = self.leases.get(id) else { return };
        match lease.state {
            State::Loading { phase, asked: true } => self.leave_phase(lease.file, phase),
            State::Zeroing => {}
            _ => return,
        }
        self.pages_loaded(id, result.is_ok());
        if result.is_err() {
            let run = self.leases[id].run;
            self.frames.mix_bytes(run);
        }
        match (self.leases[id].abandoned, result) {
            (Some(outcome), _) => self.drop_without_key(id, outcome, out),
            (None, Err(fault)) => self.preparation_failed(id, fault, out),
            (None, Ok(())) => self.expose(id, out),
        }
    }

    pub(crate) fn expose(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = self.lease_mut(id);
        lease.state = State::Exposing;
        out.push(Output::Expose {
            lease: id,
            session: lease.session,
            run: lease.run,
            skip: (lease.range.start() % BLOCK_BYTES) as u16,
            length: lease.range.len(),
            access: lease.access,
        });
    }

    pub(crate) fn exposed(&mut self, id: LeaseId, result: Result<(), Fault>, out: &mut Vec<Output>) {
        let Some(lease) = self.leases.get_mut(id) else { return };
        if lease.state != State::Exposing {
            return;
        }
        match (lease.abandoned, result) {
            (Some(outcome), Err(_)) => self.drop_without_key(id, outcome, out),
            (Some(outcome), Ok(())) => self.fence(id, Ending::Abandon(outcome), out),
            (None, Err(fault)) => self.preparation_failed(id, fault, out),
            (None, Ok(())) => {
                lease.state = State::Live;
                let request = lease.request;
                self.pages_registered(id, request.is_none());
                if let Some(request) = request {
                    self.one_is_live(request, out);
                }
                self.take_if_wanted(id, out);
                self.end_if_overdue(id, out);
            }
        }
    }

    /// The lease has no key and never gets one; its acquire is refused.
    pub(crate) fn preparation_failed(&mut self, id: LeaseId, fault: Fault, out: &mut Vec<Output>) {
        let request = self.leases[id].request;
        self.drop_without_key(id, Outcome::Released, out);
        if let Some(request) = request {
            self.acquire_failed(request, fault, out);
        }
    }

    /// Ends a lease that was not granted, as soon as nothing is outstanding for it.
    pub(crate) fn abandon(&mut self, id: LeaseId, outcome: Outcome, out: &mut Vec<Output>) {
        let Some(lease) = self.leases.get_mut(id) else { return };
        lease.request = None;
        match lease.state {
            State::Loading { phase, asked: false } => {
                let file = lease.file;
                self.leave_phase(file, phase);
                self.drop_without_key(id, outcome, out);
            }
            State::Loading { asked: true, .. } | State::Zeroing | State::Exposing => {
                lease.abandoned = Some(outcome);
                self.stop_grace(id);
            }
            State::Live | State::Parked => self.fence(id, Ending::Abandon(outcome), out),
            State::Fencing(_)
            | State::Fenced { .. }
            | State::Verifying { .. }
            | State::Queued { .. }
            | State::Merging { .. } => {}
        }
    }

    /// Ends a lease against its holder's will. One that is ending already goes its way, a commit in time included.
    pub(crate) fn revoke(&mut self, id: LeaseId, reason: RevokeReason, out: &mut Vec<Output>) {
        match self.leases.get(id).map(|lease| lease.state) {
            Some(State::Live | State::Parked) => self.fence(id, Ending::Revoke(reason), out),
            // Its key is being taken back, and does not come again.
            Some(State::Fencing(Ending::Park)) => {
                self.lease_mut(id).state = State::Fencing(Ending::Revoke(reason))
            }
            _ => {}
        }
    }

    pub(crate) fn fence(&mut self, id: LeaseId, ending: Ending, out: &mut Vec<Output>) {
        if ending != Ending::Park {
            self.stop_grace(id);
        }
        let lease = self.lease_mut(id);
        lease.state = State::Fencing(ending);
        out.push(Output::Fence { lease: id, session: lease.session });
    }

    pub(crate) fn stop_grace(&mut self, id: LeaseId) {
        if let Some(deadline) = self.lease_mut(id).deadline.take() {
            self.stop_timer(deadline, Timer::Grace(id));
        }
    }

    /// The fence is proven, or will never be. The lease ends when its captures are over.
    pub(crate) fn fence_answered(&mut self, id: LeaseId, proven: bool, out: &mut Vec<Output>) {
        let Some(lease) = self.leases.get_mut(id) else { return };
        let State::Fencing(ending) = lease.state else { return };
        lease.state = State::Fenced { ending, proven };
        self.end_fenced(id, out);
    }

    /// Ends the lease, if it is fenced and nothing is copied from its frames any more.
    pub(crate) fn end_fenced(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let State::Fenced { ending, proven } = lease.state else { return };
        if self.captures.contains_key(&id) {
            return;
        }
        match ending {
            _ if !proven => self.quarantine(id, out),
            Ending::Park => return self.parked(id, out),
            Ending::Commit(request) => return self.commit_fenced(id, request, out),
            _ if self.lands_in_file() => self.release_pages(id, out),
            _ => {
                let run = lease.run;
                self.free_frames(run, Owner::Lease(id));
            }
        }
        self.tell_uncommitted(id, ending, proven, out);
    }

    /// Bytes may still land in its frames, until nothing is left of the session's endpoint.
    fn quarantine(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let (run, session) = (lease.run, lease.session);
        if self.lands_in_file() {
            self.quarantine_pages(id);
        } else {
            self.frames.hand_over(run, Owner::Lease(id), Owner::Quarantine(session));
        }
        out.push(Output::Disconnect { session });
    }

    /// The lease is over without a commit: tells its holder, and those who wait.
    fn tell_uncommitted(&mut self, id: LeaseId, ending: Ending, proven: bool, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let (session, file, range, by) = (lease.session, lease.file, lease.range, lease.by.clone());
        // Nobody writes under a key that nobody was given, or that only reads and was given back.
        let forgettable = match ending {
            Ending::Abandon(_) => true,
            Ending::Release(_) => lease.access == Access::Read,
            Ending::Commit(_) | Ending::Revoke(_) | Ending::Park => false,
        };
        let mut error = NoSuchLease(id).into();
        let mut outcome = Outcome::Released;
        match ending {
            Ending::Commit(request) => {
                error = CommitError::Unproven(id);
                self.answer(request, Reply::Commit(Err(CommitError::Unproven(id))), out);
            }
            Ending::Release(request) => self.answer(request, Reply::Release(Ok(())), out),
            Ending::Abandon(why) => outcome = why,
            Ending::Park => {}
            Ending::Revoke(reason) => {
                let why = if proven { reason } else { RevokeReason::Unproven };
                error = lease.commit_error(id, why);
                outcome = match reason {
                    RevokeReason::SessionEnded => Outcome::SessionEnded,
                    _ => Outcome::Fenced,
                };
                let notice = Notice::Revoked { lease: id, file, range, why, by };
                out.push(Output::Notify { session, notice });
            }
        }
        if !proven {
            outcome = Outcome::Quarantined;
        }
        if forgettable {
            out.push(Output::Forget { lease: id, session });
        } else {
            self.remember(session, id, error, out);
        }
        self.lease_over(id, outcome, out);
    }

    fn drop_without_key(&mut self, id: LeaseId, outcome: Outcome, out: &mut Vec<Output>) {
        if self.lands_in_file() {
            self.unpin(id, out);
        } else {
            let run = self.leases[id].run;
            self.free_frames(run, Owner::Lease(id));
        }
        self.lease_over(id, outcome, out);
    }

    pub(crate) fn free_frames(&mut self, run: Run, owner: Owner) {
        self.frames.release(run, owner);
        self.work.frames = true;
    }

    /// Takes a lease whose frames are no longer its own out of all tables.
    pub(crate) fn lease_over(&mut self, id: LeaseId, outcome: Outcome, out: &mut Vec<Output>) {
        self.stop_grace(id);
        let lease = self.leases.remove(id).expect("a lease is over once");
        self.file_mut(lease.file).leases.remove(lease.range, lease.access.writes(), id);
        if let Some(session) = self.sessions.get_mut(&lease.session) {
            session.leases.remove(id);
        }
        self.refund(lease.tenant, 1, lease.range.blocks().len());
        for broken in lease.breaks {
            self.end_break(broken, outcome, out);
        }
        self.work.requests.extend(lease.watchers);
        if let Some(of) = lease.of {
            self.next_capture(of, out);
        }
    }
}
