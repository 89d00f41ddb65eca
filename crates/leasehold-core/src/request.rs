//! Requests: what was asked and is still owed an answer.
//!
//! Every request is answered exactly once, unless it was cancelled; a read stays until its frames come back. Acquires
//! and changes wait for their turn by watching one lease or request in their way, and are looked at again when that
//! has gone, so that waking is as cheap with a million leases as with one.
//!
//! A change goes before acquires that are not granted yet: otherwise a queue of them could delay it by a grace period
//! each (P5). Among acquires, and among changes, it is first come, first served.
//!
//! Commits and releases are not here: their leases carry them, and those of captures as soon as they have frames.

use crate::acquire::Acquire;
use crate::breaks::Outcome;
use crate::capture::Capture;
use crate::change::ChangeRequest;
use crate::core::{Core, Timer};
use crate::ids::{LeaseId, RequestId};
use crate::output::{Output, Reply};
use crate::read::Read;
use crate::sync::Sync;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub since: crate::ids::Tick,
    /// Requests that wait for this one.
    pub watchers: BTreeSet<RequestId>,
    pub kind: Kind,
}

/// What was asked, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Acquire(Acquire),
    Read(Read),
    Change(ChangeRequest),
    Sync(Sync),
    Capture(Capture),
}

/// What an acquire, a change or a capture watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Blocker {
    Lease(LeaseId),
    Request(RequestId),
}

impl Core {
    /// Whether the id is in use: the caller must not ask twice under one id.
    pub(crate) fn is_known(&self, request: RequestId) -> bool {
        self.requests.contains_key(&request) || self.answers.contains_key(&request)
    }

    pub(crate) fn is_full_of_requests(&self) -> Option<(&'static str, u64)> {
        let max = self.config.limits.requests_max;
        (self.requests.len() >= max).then_some(("requests_max", max as u64))
    }

    pub(crate) fn insert_request(&mut self, id: RequestId, kind: Kind) {
        let request = Request { since: self.now, watchers: BTreeSet::new(), kind };
        self.requests.insert(id, request);
    }

    /// Forgets the request, and has those that wait for it looked at.
    pub(crate) fn remove_request(&mut self, id: RequestId) -> Request {
        self.unblock(id);
        let request = self.requests.remove(&id).expect("a request is removed once");
        self.work.requests.extend(request.watchers.iter());
        request
    }

    pub(crate) fn reply(&mut self, request: RequestId, reply: Reply, out: &mut Vec<Output>) {
        out.push(Output::Reply { request, reply });
    }

    /// The answer to a commit, a capture or a release, if anybody still wants it.
    pub(crate) fn answer(&mut self, request: RequestId, reply: Reply, out: &mut Vec<Output>) {
        if self.answers.remove(&request).is_some() {
            self.reply(request, reply, out);
        }
    }

    /// Has the request looked at again when `blocker` has gone.
    pub(crate) fn block_on(&mut self, id: RequestId, blocker: Blocker) {
        let watchers = match blocker {
            Blocker::Lease(lease) => &mut self.leases.get_mut(lease).expect("it is in the way").watchers,
            Blocker::Request(other) => &mut self.requests.get_mut(&other).expect("it is in the way").watchers,
        };
        watchers.insert(id);
        *self.blocker_mut(id).expect("only acquires and changes wait for a turn") = Some(blocker);
    }

    /// The request waits for nothing in its way any more.
    pub(crate) fn unblock(&mut self, id: RequestId) {
        let Some(blocker) = self.blocker_mut(id).and_then(Option::take) else { return };
        let watchers = match blocker {
            Blocker::Lease(lease) => self.leases.get_mut(lease).map(|lease| &mut lease.watchers),
            Blocker::Request(other) => self.requests.get_mut(&other).map(|other| &mut other.watchers),
        };
        if let Some(watchers) = watchers {
            watchers.remove(&id);
        }
    }

    fn blocker_mut(&mut self, id: RequestId) -> Option<&mut Option<Blocker>> {
        match &mut self.requests.get_mut(&id)?.kind {
            Kind::Acquire(acquire) => Some(&mut acquire.blocker),
            Kind::Change(change) => Some(&mut change.blocker),
            Kind::Capture(capture) => Some(&mut capture.blocker),
            Kind::Read(_) | Kind::Sync(_) => None,
        }
    }

    /// Looks at a request again after something that was in its way has gone.
    pub(crate) fn advance_request(&mut self, id: RequestId, out: &mut Vec<Output>) {
        match self.requests.get(&id).map(|request| &request.kind) {
            Some(Kind::Acquire(_)) => self.advance_acquire(id, out),
            Some(Kind::Change(_)) => self.advance_change(id),
            Some(Kind::Capture(_)) => self.advance_capture(id, out),
            Some(Kind::Sync(_)) => self.advance_sync(id, out),
            Some(Kind::Read(_)) | None => {}
        }
    }

    /// Those in line for frames, as far as there are any.
    pub(crate) fn serve_frames(&mut self, out: &mut Vec<Output>) {
        while let Some(&first) = self.frame_queue.first() {
            match &self.requests[&first].kind {
                Kind::Acquire(_) => self.advance_acquire(first, out),
                Kind::Read(_) => self.advance_read(first, out),
                Kind::Capture(_) => self.advance_capture(first, out),
                Kind::Change(_) | Kind::Sync(_) => unreachable!("changes and syncs need no frames"),
            }
            if self.frame_queue.first() == Some(&first) {
                return;
            }
        }
    }

    /// Takes the request out of the line for frames.
    pub(crate) fn leave_frame_queue(&mut self, id: RequestId) {
        if self.frame_queue.first() == Some(&id) {
            self.work.frames = true;
        }
        self.frame_queue.remove(&id);
    }

    /// Whoever asked has gone.
    pub(crate) fn cancel(&mut self, id: RequestId, out: &mut Vec<Output>) {
        // A commit, a capture or a release goes on. Only its answer is dropped.
        self.answers.remove(&id);
        match self.requests.get(&id).map(|request| &request.kind) {
            Some(Kind::Acquire(_)) => self.end_acquire(id, Outcome::Released, out),
            Some(Kind::Read(_)) => self.cancel_read(id),
            Some(Kind::Change(_)) => self.cancel_change(id),
            Some(Kind::Sync(_)) => self.cancel_sync(id),
            Some(Kind::Capture(_)) => self.forget_capture(id),
            None => {}
        }
    }

    /// The request's deadline has come.
    pub(crate) fn request_timed_out(&mut self, id: RequestId, out: &mut Vec<Output>) {
        match self.requests.get(&id).map(|request| &request.kind) {
            Some(Kind::Acquire(_)) => self.acquire_timed_out(id, out),
            Some(Kind::Read(_)) => self.read_timed_out(id, out),
            Some(Kind::Capture(_)) => self.capture_timed_out(id, out),
            Some(Kind::Change(_) | Kind::Sync(_)) | None => {}
        }
    }

    pub(crate) fn stop_timer(&mut self, at: crate::ids::Tick, timer: Timer) {
        self.timers.remove(&(at, timer));
    }
}
