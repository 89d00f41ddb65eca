//! Sessions: clients, and what is theirs.
//!
//! A session that has ended is forgotten at once; its leases outlive it until their keys are fenced, and commits that
//! it had sent take effect.

use crate::breaks::Outcome;
use crate::core::Core;
use crate::identity::{Evidence, Identity};
use crate::ids::{LeaseId, RequestId, SessionId, TenantId};
use crate::input::Access;
use crate::lease::{Ending, State};
use crate::output::{AcquireError, CommitError, NoSuchLease, Output, RevokeReason};
use crate::request::Kind;
use crate::sparse::SparseTable;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    pub identity: Arc<Identity>,
    /// With whose other sessions it shares what one may have.
    pub tenant: Option<TenantId>,
    /// Its leases in any state.
    pub leases: SparseTable<LeaseId, ()>,
    /// Leases that these will need.
    pub leases_wanted: usize,
    /// Its acquires that are owed an answer, and its captures that have no frames yet.
    pub requests: BTreeSet<RequestId>,
    /// Leases that ended without a commit, oldest first: what a late commit of them is told. Their keys swallow late
    /// bytes until they are forgotten.
    remembered: VecDeque<(LeaseId, CommitError)>,
}

impl Session {
    fn new(identity: Arc<Identity>) -> Session {
        Session {
            identity,
            tenant: None,
            leases: SparseTable::default(),
            leases_wanted: 0,
            requests: BTreeSet::new(),
            remembered: VecDeque::new(),
        }
    }

    /// The server itself, until it says more precisely who it is by opening [`SessionId::LOCAL`].
    pub fn local() -> Session {
        Session::new(Arc::new(Identity {
            host: String::from("localhost"),
            pid: 0,
            uid: 0,
            program: String::from("leasehold"),
            evidence: Evidence::Verified,
        }))
    }
}

impl Core {
    pub(crate) fn open_session(&mut self, id: SessionId, identity: Arc<Identity>, out: &mut Vec<Output>) {
        if let Some(session) = self.sessions.get_mut(&id) {
            if id == SessionId::LOCAL {
                session.identity = identity;
            }
        } else if self.sessions.len() > self.config.limits.sessions_max {
            // `LOCAL` is always there and does not count.
            out.push(Output::Disconnect { session: id });
        } else {
            self.sessions.insert(id, Session::new(identity));
        }
    }

    /// The client goes, or must go; `by` whom, if a break was the reason.
    pub(crate) fn end_session(&mut self, id: SessionId, by: Option<Arc<Identity>>, out: &mut Vec<Output>) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (requests, leases, identity) =
            (session.requests.clone(), session.leases.clone(), session.identity.clone());
        if id != SessionId::LOCAL {
            out.push(Output::Disconnect { session: id });
        }
        for request in requests {
            match &self.requests[&request].kind {
                Kind::Capture(capture) => {
                    let error = NoSuchLease(capture.of).into();
                    self.refuse_capture(request, error, out);
                }
                _ => self.refuse_acquire(request, AcquireError::NoSession, Outcome::SessionEnded, out),
            }
        }
        for (lease, ()) in leases.iter() {
            if let Some(state) = self.leases.get_mut(lease) {
                state.by = state.by.take().or_else(|| by.clone());
                self.revoke(lease, RevokeReason::SessionEnded, out);
            }
        }
        let Some(session) = self.sessions.remove(&id) else { return };
        if id == SessionId::LOCAL {
            let left = Session { leases: session.leases, ..Session::new(identity) };
            self.sessions.insert(id, left);
        }
        self.session_shares_no_more(session.tenant);
    }

    /// The session's data stream has failed a checksum: whatever it wrote and has not committed cannot be trusted.
    pub(crate) fn poison_session(&mut self, id: SessionId, out: &mut Vec<Output>) {
        let leases: Vec<LeaseId> = match self.sessions.get(&id) {
            Some(session) => session.leases.iter().map(|(id, ())| id).collect(),
            // It has ended, but what it had sent in time is on its way.
            None => self.leases.iter().filter(|(_, lease)| lease.session == id).map(|(id, _)| id).collect(),
        };
        for lease in leases {
            let Some(state) = self.leases.get_mut(lease) else { continue };
            if state.access == Access::Read {
                continue;
            }
            state.poisoned = true;
            if state.request.is_none() {
                self.revoke(lease, RevokeReason::Poisoned, out);
            }
        }
    }

    /// Keeps the reason why the lease is over for its holder; a key too many is forgotten.
    pub(crate) fn remember(
        &mut self,
        id: SessionId,
        lease: LeaseId,
        error: CommitError,
        out: &mut Vec<Output>,
    ) {
        let max = self.config.limits.remembered_per_session_max;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.remembered.push_back((lease, error));
        if session.remembered.len() > max
            && let Some((oldest, _)) = session.remembered.pop_front()
        {
            out.push(Output::Forget { lease: oldest, session: id });
        }
    }

    /// What a commit of a lease that is over, or ending, is told. The holder knows then, and its key can be forgotten.
    pub(crate) fn late_commit(
        &mut self,
        id: SessionId,
        lease: LeaseId,
        out: &mut Vec<Output>,
    ) -> CommitError {
        if let Some(state) = self.leases.get(lease)
            && state.session == id
            && let State::Fencing(Ending::Revoke(reason))
            | State::Fenced { ending: Ending::Revoke(reason), .. } = state.state
        {
            return state.commit_error(lease, reason);
        }
        let remembered = self.sessions.get_mut(&id).map(|session| &mut session.remembered);
        if let Some(remembered) = remembered
            && let Some(at) = remembered.iter().position(|&(other, _)| other == lease)
            && let Some((_, error)) = remembered.remove(at)
        {
            out.push(Output::Forget { lease, session: id });
            return error;
        }
        NoSuchLease(lease).into()
    }
}
