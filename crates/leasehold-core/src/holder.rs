//! What a holder asks of a lease of its own: to commit it, to release it, to capture a part of it.
//!
//! The lease carries the request until it is answered. One that is over, or ending, can do nothing for its holder any
//! more, and says why.

use crate::core::Core;
use crate::ids::{LeaseId, RequestId, SessionId, Tick};
use crate::lease::{Ending, State};
use crate::output::{CommitError, NoSuchLease, Output, Reply};
use crate::range::ByteRange;
use crate::scheme::Writeback;
use alloc::vec::Vec;

/// One thing that a holder asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Commit,
    Release,
    Capture { range: ByteRange, deadline: Tick },
}

impl Core {
    pub(crate) fn holder_asks(
        &mut self,
        request: RequestId,
        session: SessionId,
        id: LeaseId,
        ask: Ask,
        out: &mut Vec<Output>,
    ) {
        if self.is_known(request) {
            return;
        }
        if !self.is_usable(session, id) {
            let why = self.late_commit(session, id, out);
            return self.reply(request, ask.refused(id, why), out);
        }
        let ends = self.config.scheme.writeback == Writeback::FencedAtCommit || session == SessionId::LOCAL;
        let ending = match ask {
            Ask::Commit if self.lands_in_file() && !ends => {
                return self.commit_in_place(id, request, out);
            }
            Ask::Commit => Ending::Commit(request),
            Ask::Release => Ending::Release(request),
            Ask::Capture { range, deadline } => return self.capture(request, id, range, deadline, out),
        };
        self.answers.insert(request, id);
        match self.leases[id].state {
            State::Fencing(Ending::Park) => self.lease_mut(id).state = State::Fencing(ending),
            _ => self.fence(id, ending, out),
        }
    }

    /// Whether the session has been granted the lease, and it is not ending.
    pub(crate) fn is_usable(&self, session: SessionId, id: LeaseId) -> bool {
        self.leases.get(id).is_some_and(|lease| {
            let has_key = matches!(lease.state, State::Live | State::Parked | State::Fencing(Ending::Park));
            lease.session == session && has_key && lease.request.is_none()
        })
    }
}

impl Ask {
    fn refused(self, id: LeaseId, why: CommitError) -> Reply {
        match self {
            Ask::Commit => Reply::Commit(Err(why)),
            Ask::Release => Reply::Release(Err(NoSuchLease(id))),
            Ask::Capture { .. } => Reply::Capture(Err(why)),
        }
    }
}
