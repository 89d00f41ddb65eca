//! Sessions: who is there, by which token their data connection comes in, and when they were last heard of.
//!
//! A session begins on the control plane, which gives it a token. The first data connection that shows the token
//! becomes the session's only one: so every byte of a lease comes from one stream, behind which its commit travels. A
//! token is 128 random bits, lives for seconds, works once, and only from the address that the session came from.

use crate::driver::{Asker, Driver, Handle, Work};
use crate::event::Event;
use crate::storage::Detail;
use crate::sync::{self, Mutex, MutexGuard};
use bytes::Bytes;
use leasehold_core::ids::{LeaseId, RequestId, SessionId, TenantId};
use leasehold_core::input::{Access, Input, Share};
use leasehold_core::range::ByteRange;
use leasehold_fabric::message::{Captured, Committed, Fetched, Message, Status};
use leasehold_fabric::{Admitted, CloseReason, Endpoint, Gate, Handler, OperationError, Remote, Source, Tag};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How many tags of leases that were committed or released by the control plane go on swallowing late bytes, a session.
pub(crate) const LINGERING_MAX: usize = 256;

/// How many commits and captures of one session may wait for their answers. A peer that has more is flooding, and is dropped.
const IN_FLIGHT_MAX: usize = 16_384;

const NO_LEASE: &str = "no such lease of this session: it was never granted, or it is over";

/// What a peer shows when it connects to the data port.
pub type Token = [u8; 16];

/// Whose sessions share what one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// The tenant.
    pub id: TenantId,
    /// How many sessions it may have.
    pub sessions_max: usize,
    /// What these may have at once, all together.
    pub share: Share,
}

/// All sessions, and the tokens that wait for their connection.
pub(crate) struct Sessions {
    table: Mutex<Table>,
    ttl: Duration,
    token_ttl: Duration,
}

#[derive(Default)]
struct Table {
    next: u64,
    sessions: BTreeMap<SessionId, Arc<Session>>,
    tokens: HashMap<Token, Ticket>,
}

struct Ticket {
    session: SessionId,
    peer: IpAddr,
    expires: Instant,
}

/// One session, as the threads of the engine share it.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    tenant: Option<TenantId>,
    events: mpsc::Sender<Event>,
    /// Requests of its data stream that are not answered.
    in_flight: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    last_heard: Instant,
    endpoint: Option<Arc<dyn Endpoint>>,
    /// The keys that the session has: what a fetch may be served from.
    keys: HashMap<LeaseId, Key>,
    /// Tags of leases that are over and under which bytes may still come; oldest first.
    lingering: VecDeque<Tag>,
}

/// The key of a lease, on the session's connection.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    pub(crate) tag: Tag,
    pub(crate) range: ByteRange,
    pub(crate) access: Access,
    pub(crate) revoked: bool,
    /// Bytes under it may come after its lease is over.
    pub(crate) lingers: bool,
}

impl Sessions {
    pub(crate) fn new(ttl: Duration, token_ttl: Duration) -> Sessions {
        Sessions { table: Mutex::new(Table { next: 1, ..Table::default() }), ttl, token_ttl }
    }

    /// A new session, not heard of by the core yet. `Err` if there are `max`, or so many of its tenant: the limit.
    pub(crate) fn open(
        &self,
        events: mpsc::Sender<Event>,
        max: usize,
        tenant: Option<&Tenant>,
    ) -> Result<Arc<Session>, (&'static str, usize)> {
        let mut table = self.lock();
        if table.sessions.len() >= max {
            return Err(("sessions_max", max));
        }
        if let Some(Tenant { id, sessions_max, .. }) = tenant {
            let theirs = table.sessions.values().filter(|session| session.tenant == Some(*id)).count();
            if theirs >= *sessions_max {
                return Err(("the tenant's sessions_max", *sessions_max));
            }
        }
        let id = SessionId(table.next);
        table.next += 1;
        let state = State {
            last_heard: sync::now(),
            endpoint: None,
            keys: HashMap::new(),
            lingering: VecDeque::new(),
        };
        let session = Arc::new(Session {
            id,
            tenant: tenant.map(|tenant| tenant.id),
            events,
            in_flight: AtomicUsize::new(0),
            state: Mutex::new(state),
        });
        table.sessions.insert(id, session.clone());
        Ok(session)
    }

    /// An id for a session of the server's own, which has no entry here: it fills its frames itself.
    pub(crate) fn own(&self) -> SessionId {
        let mut table = self.lock();
        table.next += 1;
        SessionId(table.next - 1)
    }

    /// A token for the session's data connection, which must come from `peer`.
    pub(crate) fn token(&self, session: SessionId, peer: IpAddr) -> Result<Token, getrandom::Error> {
        let mut token = Token::default();
        getrandom::fill(&mut token)?;
        let expires = sync::now() + self.token_ttl;
        self.lock().tokens.insert(token, Ticket { session, peer: peer.to_canonical(), expires });
        Ok(token)
    }

    pub(crate) fn get(&self, session: SessionId) -> Option<Arc<Session>> {
        self.lock().sessions.get(&session).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// Notes a sign of life. `false`: there is no such session.
    pub(crate) fn heard(&self, session: SessionId) -> bool {
        self.get(session).map(|session| session.lock().last_heard = sync::now()).is_some()
    }

    pub(crate) fn remove(&self, session: SessionId) -> Option<Arc<Session>> {
        let mut table = self.lock();
        table.tokens.retain(|_, ticket| ticket.session != session);
        table.sessions.remove(&session)
    }

    /// The sessions that were silent for too long. Tokens that nobody used in time are forgotten.
    pub(crate) fn silent(&self) -> Vec<SessionId> {
        let now = sync::now();
        let mut table = self.lock();
        table.tokens.retain(|_, ticket| ticket.expires > now);
        let silent = |session: &Session| now.duration_since(session.lock().last_heard) > self.ttl;
        table.sessions.values().filter(|session| silent(session)).map(|session| session.id).collect()
    }

    /// Takes the token, if it is good.
    fn redeem(&self, private_data: &[u8], peer: IpAddr) -> Result<Arc<Session>, &'static str> {
        let token = Token::try_from(private_data).map_err(|_| "the private data is not a 16-byte token")?;
        let mut table = self.lock();
        let ticket = table.tokens.remove(&token).ok_or("unknown token: it was used, or it has expired")?;
        if ticket.expires <= sync::now() {
            return Err("the token has expired");
        }
        if ticket.peer != peer.to_canonical() {
            return Err("the token was given to another address");
        }
        table.sessions.get(&ticket.session).cloned().ok_or("the session has ended")
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics while it holds the table of sessions")
    }
}

impl Session {
    /// Tells the session. `false`: it does not listen, or it is too far behind, and must go.
    pub(crate) fn tell(&self, event: Event) -> bool {
        self.events.try_send(event).is_ok()
    }

    /// Tells the session what it can do without, and never so much of it that a break would find no room.
    pub(crate) fn tell_if_there_is_room(&self, event: Event) {
        if self.events.capacity() > self.events.max_capacity() / 2 {
            let _gone = self.events.try_send(event);
        }
    }

    pub(crate) fn endpoint(&self) -> Option<Arc<dyn Endpoint>> {
        self.lock().endpoint.clone()
    }

    /// The lease's key, until it is forgotten.
    pub(crate) fn key(&self, lease: LeaseId) -> Option<Key> {
        self.lock().keys.get(&lease).copied()
    }

    pub(crate) fn insert_key(&self, lease: LeaseId, key: Key) {
        self.lock().keys.insert(lease, key);
    }

    /// Marks the key as revoked. It is kept until it is forgotten.
    pub(crate) fn revoke_key(&self, lease: LeaseId) -> Option<Key> {
        let mut state = self.lock();
        let key = state.keys.get_mut(&lease)?;
        key.revoked = true;
        Some(*key)
    }

    /// A commit or release comes by the control plane, which may overtake the bytes: they must not meet a tag that is
    /// unknown.
    pub(crate) fn key_lingers(&self, lease: LeaseId) {
        if let Some(key) = self.lock().keys.get_mut(&lease) {
            key.lingers = true;
        }
    }

    /// The holder is done with the lease. Returns the tag that can be forgotten: that of the lease, or, if that lingers,
    /// of one that has lingered for long.
    pub(crate) fn forget_key(&self, lease: LeaseId) -> Option<Tag> {
        let mut state = self.lock();
        let key = state.keys.remove(&lease)?;
        if !key.lingers {
            return Some(key.tag);
        }
        state.lingering.push_back(key.tag);
        (state.lingering.len() > LINGERING_MAX).then(|| state.lingering.pop_front()).flatten()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds a session")
    }
}

/// Lets a peer in that shows a good token.
pub(crate) struct TokenGate {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) driver: Driver,
    /// How long a capture may wait for frames.
    pub(crate) patience_ms: u64,
}

impl Gate for TokenGate {
    fn admit(&self, private_data: &[u8], peer: SocketAddr) -> Result<Admitted, Bytes> {
        // RoCE and InfiniBand fill up with zeros what a third party shows.
        let shown = match private_data.split_at_checked(size_of::<Token>()) {
            Some((token, rest)) if rest.iter().all(|byte| *byte == 0) => token,
            _ => private_data,
        };
        match self.sessions.redeem(shown, peer.ip()) {
            Ok(session) => {
                let (sessions, driver) = (self.sessions.clone(), self.driver.clone());
                let patience_ms = self.patience_ms;
                let handler = DataHandler { session, sessions, driver, patience_ms, endpoint: None };
                Ok(Admitted { handler: Box::new(handler), private_data: Bytes::new() })
            }
            Err(why) => {
                tracing::warn!(%peer, why, "data connection rejected");
                Err(Bytes::from_static(why.as_bytes()))
            }
        }
    }
}

/// Hears one session's data stream, on a thread of the fabric.
struct DataHandler {
    session: Arc<Session>,
    sessions: Arc<Sessions>,
    driver: Driver,
    patience_ms: u64,
    endpoint: Option<Arc<dyn Endpoint>>,
}

impl Handler for DataHandler {
    fn connected(&mut self, endpoint: Arc<dyn Endpoint>) {
        self.session.lock().endpoint = Some(endpoint.clone());
        if self.sessions.get(self.session.id).is_none() {
            endpoint.close(); // the session ended before it heard of its connection
        }
        self.endpoint = Some(endpoint);
    }

    fn message(&mut self, message: &[u8]) {
        match Message::parse(message) {
            Ok(Message::Commit(commit)) => {
                let (session, lease) = (self.session.id, LeaseId(commit.lease));
                let input = move |request| Input::Commit { request, session, lease };
                self.ask(commit.request, input, Detail::Crc(commit.crc32c));
            }
            Ok(Message::Capture(capture)) => self.capture(capture),
            Ok(Message::Fetch(fetch)) => self.fetch(fetch),
            Ok(other) => self.misspoke(&format!("a message for clients: {other:?}")),
            Err(error) => self.misspoke(&error.to_string()),
        }
    }

    fn poisoned(&mut self) {
        self.driver.send(Work::Poisoned(self.session.id));
    }

    fn closed(&mut self, why: &CloseReason) {
        self.endpoint = None;
        self.driver.send(Work::ConnectionClosed { session: self.session.id, why: why.to_string() });
    }
}

impl DataHandler {
    /// A peer that speaks another language is better told so by the end of its stream than by silence.
    fn misspoke(&self, what: &str) {
        tracing::warn!(session = %self.session.id, what, "message not understood; the connection is closed");
        if let Some(endpoint) = &self.endpoint {
            endpoint.close();
        }
    }

    /// Asks the core, on behalf of the peer.
    fn ask(&self, peers: u64, input: impl FnOnce(RequestId) -> Input, detail: Detail) {
        let Some(endpoint) = self.endpoint.clone() else { return };
        let Some(in_flight) = InFlight::begin(&self.session) else {
            tracing::warn!(session = %self.session.id, max = IN_FLIGHT_MAX, "too many requests at once");
            return endpoint.close();
        };
        let asker = Asker::Peer { endpoint, request: peers, _in_flight: in_flight };
        self.driver.request(input, asker, detail, Handle::Common);
    }

    /// The core judges the range and the lease, a revoked one too; only what it could not name is refused here.
    fn capture(&self, capture: leasehold_fabric::message::Capture) {
        let (session, lease) = (self.session.id, LeaseId(capture.lease));
        let refuse = |status, text: &str| {
            let Some(endpoint) = &self.endpoint else { return };
            let request = capture.request;
            send_captured(endpoint, Captured { request, status, size: 0, text: text.to_owned() });
        };
        let Some(key) = self.session.key(lease) else { return refuse(Status::NoLease, NO_LEASE) };
        let offset = key.range.start().checked_add(capture.offset);
        let Some(range) = offset.and_then(|offset| ByteRange::at(offset, capture.length)) else {
            return refuse(Status::OutOfBounds, "the range is empty, or not within the lease");
        };
        let deadline = self.driver.clock.now().after_ms(self.patience_ms);
        let input = move |request| Input::Capture { request, session, lease, range, deadline };
        self.ask(capture.request, input, Detail::None);
    }

    /// Serves a read lease's bytes by RDMA Write and a message behind it, without troubling the core: the key's
    /// existence is the right to read, and a fence stops the write between two segments.
    fn fetch(&self, fetch: leasehold_fabric::message::Fetch) {
        let Some(endpoint) = self.endpoint.clone() else { return };
        let request = fetch.request;
        let refuse = |status, text: &str| {
            send_fetched(&endpoint, Fetched { request, status, text: text.to_owned() });
        };
        let key = self.session.key(LeaseId(fetch.lease)).filter(|key| !key.revoked);
        let Some(key) = key else { return refuse(Status::NoLease, NO_LEASE) };
        if key.access != Access::Read {
            return refuse(Status::WrongAccess, "the lease is for writing; acquire a read lease to fetch");
        }
        if fetch.offset.checked_add(fetch.length).is_none_or(|end| end > key.range.len()) {
            return refuse(Status::OutOfBounds, "the range is not within the lease");
        }
        let source = Source::Exposed { tag: key.tag, offset: fetch.offset, length: fetch.length };
        let sink = Remote { tag: fetch.sink_tag, offset: fetch.sink_offset };
        let answer = endpoint.clone();
        endpoint.write(
            source,
            sink,
            Box::new(move |result| {
                let (status, text) = match result {
                    Ok(()) => (Status::Ok, String::new()),
                    Err(OperationError::Revoked(_)) => {
                        (Status::Revoked, "the lease was revoked before all of it was sent".to_owned())
                    }
                    Err(error) => (Status::Io, error.to_string()),
                };
                send_fetched(&answer, Fetched { request, status, text });
            }),
        );
    }
}

/// Answers a fetch. If the connection is gone there is nobody to tell.
fn send_fetched(endpoint: &Arc<dyn Endpoint>, answer: Fetched) {
    send(endpoint, Message::Fetched(answer));
}

/// Answers a commit. If the connection is gone there is nobody to tell: the session's end follows.
pub(crate) fn send_committed(endpoint: &Arc<dyn Endpoint>, answer: Committed) {
    send(endpoint, Message::Committed(answer));
}

/// Answers a capture, likewise.
pub(crate) fn send_captured(endpoint: &Arc<dyn Endpoint>, answer: Captured) {
    send(endpoint, Message::Captured(answer));
}

/// A peer that takes no answers is dropped, so that nobody waits for one for ever.
fn send(endpoint: &Arc<dyn Endpoint>, answer: Message) {
    let full = endpoint.clone();
    let done = move |result| {
        if let Err(OperationError::QueueFull { .. }) = result {
            full.close();
        }
    };
    endpoint.send(answer.encode(), None, Box::new(done));
}

/// One request of a data stream that is not answered yet.
pub(crate) struct InFlight(Arc<Session>);

impl InFlight {
    /// `None`: there are too many.
    fn begin(session: &Arc<Session>) -> Option<InFlight> {
        let in_flight = InFlight(session.clone());
        (session.in_flight.fetch_add(1, Ordering::Relaxed) < IN_FLIGHT_MAX).then_some(in_flight)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
