//! The secrets by which clients name their sessions.
//!
//! The engine's session ids are small numbers, good for people and easy to guess. Clients hold 16 random bytes instead,
//! so that nobody can act for another (P10).

use leasehold_core::ids::SessionId;
use leasehold_engine::event::Event;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Names one session.
pub(crate) type Secret = [u8; 16];

/// The sessions that clients may name. The engine decides when a session ends; an entry that outlives it is harmless,
/// and is dropped when its owner has been silent for long.
pub(crate) struct Sessions {
    table: Mutex<HashMap<Secret, Entry>>,
    silence_max: Duration,
}

struct Entry {
    id: SessionId,
    /// The tenant that opened it; `None` for the operator.
    tenant: Option<String>,
    /// Until the client asks for its events.
    events: Option<mpsc::Receiver<Event>>,
    heard: Instant,
}

impl Sessions {
    /// For sessions that the engine ends after `time_to_live` of silence.
    pub(crate) fn new(time_to_live: Duration) -> Sessions {
        Sessions { table: Mutex::default(), silence_max: time_to_live * 2 }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Secret, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a session its secret.
    pub(crate) fn insert(
        &self,
        id: SessionId,
        tenant: Option<String>,
        events: mpsc::Receiver<Event>,
    ) -> Result<Secret, getrandom::Error> {
        let mut secret = Secret::default();
        getrandom::fill(&mut secret)?;
        let now = Instant::now();
        let mut table = self.table();
        table.retain(|_, entry| now.duration_since(entry.heard) <= self.silence_max);
        table.insert(secret, Entry { id, tenant, events: Some(events), heard: now });
        Ok(secret)
    }

    /// The session of that secret.
    pub(crate) fn get(&self, secret: &Secret) -> Option<SessionId> {
        self.table().get(secret).map(|entry| entry.id)
    }

    /// The same, with a sign of life.
    pub(crate) fn heard(&self, secret: &Secret) -> Option<SessionId> {
        let mut table = self.table();
        let entry = table.get_mut(secret)?;
        entry.heard = Instant::now();
        Some(entry.id)
    }

    /// Whether there is such a session, and it was opened by this tenant (`None`: by the operator).
    pub(crate) fn belongs(&self, secret: &Secret, tenant: Option<&str>) -> bool {
        self.table().get(secret).is_some_and(|entry| entry.tenant.as_deref() == tenant)
    }

    /// The session's events; the second time, `Some` with nothing in it.
    pub(crate) fn events(&self, secret: &Secret) -> Option<(SessionId, Option<mpsc::Receiver<Event>>)> {
        let mut table = self.table();
        let entry = table.get_mut(secret)?;
        Some((entry.id, entry.events.take()))
    }

    /// Forgets the secret.
    pub(crate) fn remove(&self, secret: &Secret) -> Option<SessionId> {
        self.table().remove(secret).map(|entry| entry.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_by_its_secret_until_it_is_removed_and_gives_its_events_once() {
        let sessions = Sessions::new(Duration::from_secs(60));
        let secret = sessions.insert(SessionId(7), Some("train".to_owned()), mpsc::channel(1).1).unwrap();
        assert_eq!(sessions.get(&secret), Some(SessionId(7)));
        assert_eq!(sessions.get(&[0; 16]), None);
        assert!(sessions.belongs(&secret, Some("train")));
        assert!(!sessions.belongs(&secret, Some("other")) && !sessions.belongs(&secret, None));
        assert!(matches!(sessions.events(&secret), Some((SessionId(7), Some(_)))));
        assert!(matches!(sessions.events(&secret), Some((SessionId(7), None))));
        assert_eq!(sessions.remove(&secret), Some(SessionId(7)));
        assert_eq!(sessions.heard(&secret), None);
    }

    #[test]
    fn the_secrets_of_silent_sessions_are_dropped() {
        let sessions = Sessions::new(Duration::ZERO);
        let first = sessions.insert(SessionId(1), None, mpsc::channel(1).1).unwrap();
        while sessions.table()[&first].heard.elapsed().is_zero() {}
        let second = sessions.insert(SessionId(2), None, mpsc::channel(1).1).unwrap();
        assert_eq!((sessions.get(&first), sessions.get(&second)), (None, Some(SessionId(2))));
    }
}
