//! What the session has heard about each of its leases.

use crate::event::Happening;
use crate::lease::{BreakNotice, LeaseState, RevokeNotice};
use leasehold_core::ids::LeaseId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// The leases that the holder still has in its hands.
///
/// A break can arrive before the answer to the acquire that granted its lease (they travel on different streams), so
/// what is heard of unknown leases is kept while an acquire is under way.
///
/// Invariant: `early` is empty unless `acquiring > 0`.
#[derive(Default)]
pub(crate) struct Registry {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashMap<LeaseId, watch::Sender<LeaseState>>,
    acquiring: usize,
    early: HashMap<LeaseId, LeaseState>,
    ended: Option<String>,
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An acquire is under way until the guard is dropped.
    pub(crate) fn acquiring(&self) -> Acquiring<'_> {
        self.state().acquiring += 1;
        Acquiring(self)
    }

    /// The holder has let go of the lease.
    pub(crate) fn remove(&self, lease: LeaseId) {
        self.state().held.remove(&lease);
    }

    /// Takes note of what happened to a lease.
    pub(crate) fn hear(&self, happening: &Happening) {
        let Some((lease, news)) = news(happening) else { return };
        let mut state = self.state();
        if let Some(held) = state.held.get(&lease) {
            held.send_if_modified(|now| now.advance(news));
        } else if state.acquiring > 0 {
            state.early.entry(lease).or_insert(LeaseState::Live).advance(news);
        }
    }

    /// The session is over, and every lease with it.
    pub(crate) fn end(&self, why: &str) {
        let mut state = self.state();
        state.ended.get_or_insert_with(|| why.to_owned());
        for (lease, held) in &state.held {
            held.send_if_modified(|now| now.advance(session_ended(*lease, why)));
        }
    }

    /// Why the session is over, if it is.
    pub(crate) fn ended(&self) -> Option<String> {
        self.state().ended.clone()
    }
}

/// While it lives, nothing that is heard of unknown leases is lost.
pub(crate) struct Acquiring<'a>(&'a Registry);

impl Acquiring<'_> {
    /// The lease was granted: follow it.
    pub(crate) fn granted(&self, lease: LeaseId) -> watch::Receiver<LeaseState> {
        let mut state = self.0.state();
        let mut now = state.early.remove(&lease).unwrap_or(LeaseState::Live);
        if let Some(why) = &state.ended {
            now.advance(session_ended(lease, why));
        }
        let (sender, receiver) = watch::channel(now);
        state.held.insert(lease, sender);
        receiver
    }
}

impl Drop for Acquiring<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.acquiring -= 1;
        if state.acquiring == 0 {
            state.early.clear();
        }
    }
}

fn session_ended(lease: LeaseId, why: &str) -> LeaseState {
    LeaseState::Revoked(RevokeNotice { lease, why: format!("the session has ended ({why})"), by: None })
}

fn news(happening: &Happening) -> Option<(LeaseId, LeaseState)> {
    match happening {
        Happening::Break { id, lease, path, range, breaker, operation, grace, .. } => {
            let notice = BreakNotice {
                id: *id,
                lease: *lease,
                path: path.clone(),
                range: *range,
                breaker: breaker.clone(),
                operation: operation.clone(),
                grace: *grace,
                deadline: Instant::now() + *grace,
            };
            Some((*lease, LeaseState::Breaking(notice)))
        }
        Happening::Revoked { lease, why, by, .. } => {
            let notice = RevokeNotice { lease: *lease, why: why.clone(), by: by.clone() };
            Some((*lease, LeaseState::Revoked(notice)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leasehold_core::ids::SessionId;
    use leasehold_core::range::ByteRange;

    fn revoked(lease: u64) -> Happening {
        Happening::Revoked {
            lease: LeaseId(lease),
            session: SessionId(1),
            path: "/x".to_owned(),
            range: ByteRange::ALL,
            why: "the grace period was over".to_owned(),
            by: None,
        }
    }

    #[test]
    fn a_revoke_that_overtakes_the_answer_to_its_acquire_is_not_lost() {
        let registry = Registry::default();
        let acquiring = registry.acquiring();
        registry.hear(&revoked(7));
        assert!(matches!(*acquiring.granted(LeaseId(7)).borrow(), LeaseState::Revoked(_)));
        assert!(matches!(*acquiring.granted(LeaseId(8)).borrow(), LeaseState::Live));
    }

    #[test]
    fn news_of_leases_that_are_over_do_not_pile_up() {
        let registry = Registry::default();
        registry.hear(&revoked(7));
        assert!(registry.state().early.is_empty());
        let acquiring = registry.acquiring();
        registry.hear(&revoked(8));
        assert_eq!(registry.state().early.len(), 1);
        drop(acquiring);
        assert!(registry.state().early.is_empty());
    }

    #[test]
    fn the_end_of_the_session_revokes_what_is_held_and_what_is_granted_late() {
        let registry = Registry::default();
        let acquiring = registry.acquiring();
        let held = acquiring.granted(LeaseId(1));
        registry.end("closed by the peer");
        for state in [held, acquiring.granted(LeaseId(2))] {
            let LeaseState::Revoked(notice) = state.borrow().clone() else { panic!("not revoked") };
            assert_eq!(notice.why, "the session has ended (closed by the peer)");
        }
    }
}
