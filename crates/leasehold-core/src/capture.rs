//! Captures: what lies under a live key gets into the file, and the lease goes on.
//!
//! ```text
//! in line for frames --> queued behind earlier captures of its lease --> merging (copy, merge) --> over
//! ```
//! A capture becomes a lease of its own, without a key, and goes the way of a commit: once its blocks are quiet, what is
//! under the key is copied to its frames, and these are swapped in. So a change waits for it as for a commit in progress.
//! The captures of one lease take effect one after the other, as they came. The lease itself ends after them, however it
//! ends: nobody may use its frames again while a copy is made from them, and its own commit must not come before older
//! bytes of the same range.
//!
//! One that has no frames yet holds up nobody: the deadline ends it, or the end of its lease.
//!
//! Only the frames of an update lease hold the file's bytes wherever the holder wrote nothing; an overwrite lease has
//! nothing to capture until all of it is written, and then it can be committed.
//!
//! Invariant: a lease with captures is live, or ending and not over; the first of its captures has a phase, the others
//! are queued.

use crate::core::{Core, Timer};
use crate::frame::Owner;
use crate::ids::{FrameId, LeaseId, RequestId, SessionId, Tick};
use crate::input::Access;
use crate::lease::{Lease, State, Step};
use crate::output::{CommitError, Committed, Output, Reply};
use crate::phase::PhaseId;
use crate::range::{ByteRange, Run};
use crate::request::{Blocker, Kind};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// A capture in line for frames.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Capture {
    pub session: SessionId,
    /// Of which lease.
    pub of: LeaseId,
    pub range: ByteRange,
    pub deadline: Tick,
    /// The lease, too, whose end is this one's.
    pub blocker: Option<Blocker>,
}

impl Core {
    /// The holder of a lease that it may use wants a part of it captured.
    pub(crate) fn capture(
        &mut self,
        id: RequestId,
        of: LeaseId,
        range: ByteRange,
        deadline: Tick,
        out: &mut Vec<Output>,
    ) {
        if let Err(error) = self.admit_capture(of, range) {
            return self.reply(id, Reply::Capture(Err(error)), out);
        }
        let lease = &self.leases[of];
        let (session, file) = (lease.session, lease.file);
        if self.lands_in_file() {
            // What the peer has placed is the file's already.
            let size = self.file(file).size;
            return self.reply(id, Reply::Capture(Ok(Committed { size })), out);
        }
        self.leases_wanted += 1;
        let owner = self.sessions.get_mut(&session).expect("a live lease has its session");
        owner.leases_wanted += 1;
        owner.requests.insert(id);
        let tenant = owner.tenant;
        self.charge(tenant, 1, range.blocks().len());
        let capture = Capture { session, of, range, deadline, blocker: None };
        self.insert_request(id, Kind::Capture(capture));
        self.timers.insert((deadline, Timer::Request(id)));
        self.advance_capture(id, out);
    }

    /// Whether the capture may wait for frames at all.
    fn admit_capture(&self, of: LeaseId, range: ByteRange) -> Result<(), CommitError> {
        let lease = &self.leases[of];
        match lease.access {
            Access::Read => return Err(CommitError::ReadOnly(of)),
            Access::Overwrite => return Err(CommitError::NotPreloaded(of)),
            Access::Update => {}
        }
        if range.start() < lease.range.start() || lease.range.end() < range.end() {
            return Err(CommitError::OutOfLease { lease: of, range });
        }
        if let Some((limit, max)) = self.is_full_of_requests() {
            return Err(CommitError::Limit { limit, max });
        }
        let full = |limit, max| Err(CommitError::Limit { limit, max });
        let limits = self.config.limits;
        let owner = &self.sessions[&lease.session];
        if owner.leases.len() + owner.leases_wanted >= limits.leases_per_session_max {
            return full("leases_per_session_max", limits.leases_per_session_max as u64);
        }
        if self.leases.len() + self.leases_wanted >= limits.leases_max {
            return full("leases_max", limits.leases_max as u64);
        }
        if let Err((limit, max)) = self.fits(lease.session, 1, range.blocks().len()) {
            return Err(CommitError::Limit { limit, max });
        }
        // As long as the lease lives, it never gets more.
        if range.blocks().len() > u64::from(self.config.frames - lease.run.frames) {
            return full("frames", u64::from(self.config.frames));
        }
        Ok(())
    }

    /// Takes frames if it is the capture's turn, and joins the captures of its lease.
    pub(crate) fn advance_capture(&mut self, id: RequestId, out: &mut Vec<Output>) {
        self.unblock(id);
        let Kind::Capture(capture) = &self.requests[&id].kind else { return };
        let (session, of, range) = (capture.session, capture.of, capture.range);
        if !self.is_usable(session, of) {
            let error = self.late_commit(session, of, out);
            return self.refuse_capture(id, error, out);
        }
        let max = self.config.limits.captures_per_lease_max;
        if self.captures.get(&of).is_some_and(|line| line.len() >= max) {
            let error = CommitError::Limit { limit: "captures_per_lease_max", max: max as u64 };
            return self.refuse_capture(id, error, out);
        }
        let lease = self.next_lease();
        let frames = u32::try_from(range.blocks().len()).expect("no larger than the arena");
        let after_others = self.frame_queue.first().is_some_and(|&first| first < id);
        let run = if after_others { None } else { self.frames.allocate(frames, Owner::Lease(lease)) };
        match run {
            Some(run) => {
                self.forget_capture(id);
                self.queue_capture(lease, id, of, range, run);
            }
            None => {
                self.frame_queue.insert(id);
                self.block_on(id, Blocker::Lease(of));
            }
        }
    }

    fn queue_capture(&mut self, id: LeaseId, request: RequestId, of: LeaseId, range: ByteRange, run: Run) {
        // The lease's frames were loaded from the file.
        self.frames.mix_bytes(run);
        let lease = &self.leases[of];
        let (session, file, tenant) = (lease.session, lease.file, lease.tenant);
        let mut capture =
            Lease::new(session, lease.identity.clone(), file, range, lease.access, run, self.now);
        capture.state = State::Queued { request };
        capture.of = Some(of);
        capture.tenant = tenant;
        self.charge(tenant, 1, range.blocks().len());
        self.file_mut(file).leases.insert(range, capture.access.writes(), id);
        self.sessions.get_mut(&session).expect("a live lease has its session").leases.insert(id, ());
        self.leases.insert(id, Box::new(capture));
        self.answers.insert(request, id);
        let queue = self.captures.entry(of).or_default();
        queue.push_back(id);
        if queue.len() == 1 {
            self.begin_capture(id);
        }
    }

    /// All captures before it have taken effect.
    fn begin_capture(&mut self, id: LeaseId) {
        let lease = &self.leases[id];
        let State::Queued { request } = lease.state else { return };
        self.enter_commit_phase(id, request);
    }

    /// Its blocks are quiet, so nothing but the copy is missing.
    pub(crate) fn copy_under_key(&mut self, id: LeaseId, of: LeaseId, phase: PhaseId, out: &mut Vec<Output>) {
        let whole = &self.leases[of];
        let (first, leased) = (whole.run.first.0, whole.range.blocks());
        let lease = self.lease_mut(id);
        let State::Merging { request, .. } = lease.state else { return };
        lease.state = State::Merging { request, phase, step: Step::Copying(lease.run) };
        let (file, range, into) = (lease.file, lease.range, lease.run);
        let before = u32::try_from(range.blocks().start() - leased.start()).expect("within the lease");
        let from = Run { first: FrameId(first + before), frames: into.frames };
        out.push(Output::Capture { lease: id, file, range, from, into });
    }

    pub(crate) fn captured(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        match self.leases.get(id).map(|lease| lease.state) {
            Some(State::Merging { step: Step::Copying(into), .. }) => {
                let run = core::mem::replace(&mut self.lease_mut(id).run, into);
                if run != into {
                    self.free_frames(run, Owner::Lease(id));
                }
                self.complete_boundary(id, out);
            }
            Some(_) => {}
            None => self.snapshot_taken(id, out),
        }
    }

    /// The first capture of a lease is over: the next one begins, or the lease ends if that was waiting.
    pub(crate) fn next_capture(&mut self, of: LeaseId, out: &mut Vec<Output>) {
        let queue = self.captures.get_mut(&of).expect("it had a capture");
        queue.pop_front();
        if let Some(&next) = queue.front() {
            return self.begin_capture(next);
        }
        self.captures.remove(&of);
        self.end_fenced(of, out);
    }

    /// The lease is over, or the deadline has come, and nothing was captured.
    pub(crate) fn refuse_capture(&mut self, id: RequestId, error: CommitError, out: &mut Vec<Output>) {
        self.forget_capture(id);
        self.reply(id, Reply::Capture(Err(error)), out);
    }

    pub(crate) fn capture_timed_out(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let Kind::Capture(capture) = &self.requests[&id].kind else { return };
        let error = CommitError::ArenaFull(capture.of);
        self.refuse_capture(id, error, out);
    }

    /// Takes a capture that waits for frames out of all tables.
    pub(crate) fn forget_capture(&mut self, id: RequestId) {
        self.leave_frame_queue(id);
        let Kind::Capture(capture) = self.remove_request(id).kind else { return };
        self.stop_timer(capture.deadline, Timer::Request(id));
        self.leases_wanted -= 1;
        if let Some(session) = self.sessions.get_mut(&capture.session) {
            session.leases_wanted -= 1;
            session.requests.remove(&id);
            let tenant = session.tenant;
            self.refund(tenant, 1, capture.range.blocks().len());
        }
    }
}
