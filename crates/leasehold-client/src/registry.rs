//! What the session has heard about each of its leases.

use crate::event::Happening;
use crate::lease::{BreakNotice, LeaseState, RevokeNotice};
use leasehold_core::ids::LeaseId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// The leases that the holder still has in its hands.
///
/// A break can arrive before the answer to the acquire that granted its lease (they travel on different streams), so
/// what is heard of unknown leases is kept while an acquire is under way.
///
/// A lease can also be granted to a caller that has just given up: the answer is lost then, and the event tells. Such
/// leases are let go.
///
/// Invariant: `early` is empty unless `acquiring > 0`.
pub(crate) struct Registry {
    state: Mutex<State>,
    /// Takes the leases that nobody has in its hands, and whether something was written under them.
    dropped: mpsc::UnboundedSender<(LeaseId, bool)>,
}

#[derive(Default)]
struct State {
    held: HashMap<LeaseId, watch::Sender<LeaseState>>,
    acquiring: usize,
    early: HashMap<LeaseId, LeaseState>,
    /// Some caller has given up, so what nobody takes may be a lease that nobody holds.
    given_up: bool,
    ended: Option<String>,
}

impl Registry {
    pub(crate) fn new(dropped: mpsc::UnboundedSender<(LeaseId, bool)>) -> Registry {
        Registry { state: Mutex::default(), dropped }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An acquire is under way until the guard is dropped.
    pub(crate) fn acquiring(&self) -> Acquiring<'_> {
        self.state().acquiring += 1;
        Acquiring { registry: self, answered: false }
    }

    /// Lets go of a lease in the background.
    pub(crate) fn release_later(&self, lease: LeaseId, wrote: bool) {
        // If the session's tasks are gone, so is the lease.
        let _ = self.dropped.send((lease, wrote));
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
        } else if state.given_up && news == LeaseState::Live {
            self.release_later(lease, false);
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
pub(crate) struct Acquiring<'a> {
    registry: &'a Registry,
    answered: bool,
}

impl Acquiring<'_> {
    /// The answer has come, be it leases or a refusal.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }

    /// The lease was granted: follow it.
    pub(crate) fn granted(&self, lease: LeaseId) -> watch::Receiver<LeaseState> {
        let mut state = self.registry.state();
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
        let mut state = self.registry.state();
        state.acquiring -= 1;
        state.given_up |= !self.answered;
        if state.acquiring == 0 {
            // Whatever is over by now: a release of it does no harm.
            let orphans = std::mem::take(&mut state.early);
            if state.given_up {
                orphans.into_keys().for_each(|lease| self.registry.release_later(lease, false));
            }
        }
    }
}

fn session_ended(lease: LeaseId, why: &str) -> LeaseState {
    LeaseState::Revoked(RevokeNotice { lease, why: format!("the session has ended ({why})"), by: None })
}

fn news(happening: &Happening) -> Option<(LeaseId, LeaseState)> {
    match happening {
        Happening::Granted { lease, .. } => Some((*lease, LeaseState::Live)),
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

    fn registry() -> (Registry, mpsc::UnboundedReceiver<(LeaseId, bool)>) {
        let (dropped, releases) = mpsc::unbounded_channel();
        (Registry::new(dropped), releases)
    }

    fn granted(lease: u64) -> Happening {
        Happening::Granted {
            lease: LeaseId(lease),
            session: SessionId(1),
            path: "/x".to_owned(),
            range: ByteRange::ALL,
            writes: true,
        }
    }

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
        let (registry, _releases) = registry();
        let acquiring = registry.acquiring();
        registry.hear(&revoked(7));
        assert!(matches!(*acquiring.granted(LeaseId(7)).borrow(), LeaseState::Revoked(_)));
        assert!(matches!(*acquiring.granted(LeaseId(8)).borrow(), LeaseState::Live));
    }

    #[test]
    fn news_of_leases_that_are_over_do_not_pile_up() {
        let (registry, _releases) = registry();
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
        let (registry, _releases) = registry();
        let acquiring = registry.acquiring();
        let held = acquiring.granted(LeaseId(1));
        registry.end("closed by the peer");
        for state in [held, acquiring.granted(LeaseId(2))] {
            let LeaseState::Revoked(notice) = state.borrow().clone() else { panic!("not revoked") };
            assert_eq!(notice.why, "the session has ended (closed by the peer)");
        }
    }

    #[test]
    fn a_lease_that_was_granted_to_a_caller_that_gave_up_is_let_go_and_no_other() {
        let (registry, mut releases) = registry();
        registry.hear(&granted(1)); // late news of a lease that its holder has let go
        let mut other = registry.acquiring();
        let gives_up = registry.acquiring();
        registry.hear(&granted(2));
        registry.hear(&granted(3));
        drop(gives_up);
        assert!(releases.try_recv().is_err(), "either may be the other's, whose answer may be on its way");
        other.answered();
        let _held = other.granted(LeaseId(3));
        drop(other);
        assert_eq!(releases.try_recv(), Ok((LeaseId(2), false)));
        registry.hear(&granted(3));
        assert!(releases.try_recv().is_err(), "what is held stays held");
        registry.hear(&granted(4));
        assert_eq!(releases.try_recv(), Ok((LeaseId(4), false)), "the event can come later than the end");
    }
}
