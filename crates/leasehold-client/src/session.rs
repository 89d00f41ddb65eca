//! A session: the holder of leases, with its data connection.

use crate::client::Client;
use crate::convert::{self, Malformed};
use crate::data::{Answers, Closed, Data, Owed};
use crate::error::{CallError, OpenError, Reason};
use crate::event::{Event, Happening};
use crate::fabrics::{self, Offered};
use crate::lease::Lease;
use crate::location::Server;
use crate::proto;
use crate::registry::Registry;
use bytes::Bytes;
use leasehold_core::identity::Identity;
use leasehold_core::ids::{LeaseId, SessionId};
use leasehold_core::input::{Access, OnConflict};
use leasehold_core::range::ByteRange;
use leasehold_fabric::Tag;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

/// How many events a slow listener may be behind before it misses some.
const EVENTS_MAX: usize = 1024;

/// One range that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The file, from the root of the store. It must exist.
    pub path: String,
    /// The bytes. Any alignment; past the end of file too.
    pub range: ByteRange,
    /// What the key may do.
    pub access: Access,
}

/// How to acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcquireOptions {
    /// What to do when a live lease is in the way.
    pub on_conflict: OnConflict,
    /// How long to wait for conflicts to end, and for room in the arena.
    pub wait: Duration,
}

impl Default for AcquireOptions {
    /// Conflicts are refused; waits up to 10 seconds for room in the arena.
    fn default() -> Self {
        AcquireOptions { on_conflict: OnConflict::Refuse, wait: Duration::from_secs(10) }
    }
}

/// A session on a server. Dropping it ends it: what is not committed leaves no trace.
pub struct Session {
    shared: Arc<Shared>,
    number: SessionId,
    known_as: Option<Identity>,
    grace: Duration,
    /// Keep-alive, events, releases. Aborted when the session is dropped.
    _tasks: JoinSet<()>,
}

/// What a session and its leases have in common.
pub(crate) struct Shared {
    client: Client,
    secret: Bytes,
    pub(crate) data: Data,
    pub(crate) registry: Registry,
    events: broadcast::Sender<Event>,
}

impl Session {
    /// Opens a session, and its data connection by the kind of fabric that the client is to use ([`Client::by`]).
    pub async fn open(client: &Client) -> Result<Session, OpenError> {
        let request = proto::OpenSessionRequest { caller: Some(client.caller()) };
        let opened = client.calls().open_session(request).await.map_err(CallError::from)?.into_inner();
        // The events first: nothing can be missed, since no lease exists before.
        let request = proto::EventsRequest { session: opened.session.clone() };
        let events = client.calls().events(request).await.map_err(CallError::from)?.into_inner();

        let address = data_address(client.server(), &opened.data_address).await?;
        let token = convert::sixteen("token", &opened.token).map_err(CallError::from)?;
        let owed = Arc::new(Owed::default());
        let offered = Offered { address, by: opened.data_by, tls_key: opened.data_tls_key };
        let (asked, answers) = (client.fabric(), owed.clone());
        let handler = move || Box::new(Answers(answers.clone()));
        let connecting = move || fabrics::connect(asked, &offered, &token, handler);
        let (endpoint, _) =
            tokio::task::spawn_blocking(connecting).await.expect("connecting does not panic")?;

        let (dropped, releases) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            client: client.clone(),
            secret: opened.session,
            data: Data::new(endpoint, owed),
            registry: Registry::new(dropped),
            events: broadcast::Sender::new(EVENTS_MAX),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(shared.clone(), events));
        tasks.spawn(keep_alive(shared.clone(), convert::duration_in(opened.time_to_live)));
        tasks.spawn(release_dropped(shared.clone(), releases));
        Ok(Session {
            shared,
            number: SessionId(opened.number),
            known_as: opened.known_as.map(Identity::from),
            grace: convert::duration_in(opened.grace),
            _tasks: tasks,
        })
    }

    /// The session's number, as `leases` and `watch` show it.
    #[must_use]
    pub fn number(&self) -> SessionId {
        self.number
    }

    /// What the server calls this process in other people's notices.
    #[must_use]
    pub fn known_as(&self) -> Option<&Identity> {
        self.known_as.as_ref()
    }

    /// How long there is to answer a break.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Its client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.shared.client
    }

    /// Leases all of the ranges, or none; the leases come in the order of the wants. Dropping the future gives up.
    ///
    /// # Errors
    /// [`Reason::Conflict`] names the holder; [`Reason::TimedOut`] that `wait` was over.
    pub async fn acquire(&self, wants: &[Want], options: AcquireOptions) -> Result<Vec<Lease>, CallError> {
        self.acquire_with(wants, options, false).await
    }

    /// The same, and creates the files that do not exist; [`Lease::created`] tells which. They stay if the acquire fails.
    pub async fn acquire_or_create(
        &self,
        wants: &[Want],
        options: AcquireOptions,
    ) -> Result<Vec<Lease>, CallError> {
        self.acquire_with(wants, options, true).await
    }

    async fn acquire_with(
        &self,
        wants: &[Want],
        options: AcquireOptions,
        create: bool,
    ) -> Result<Vec<Lease>, CallError> {
        let request = proto::AcquireRequest {
            session: self.shared.secret.clone(),
            wants: wants
                .iter()
                .map(|want| proto::Want {
                    path: want.path.clone(),
                    range: Some(want.range.into()),
                    access: convert::access_number(want.access),
                    create,
                })
                .collect(),
            on_conflict: convert::on_conflict_number(options.on_conflict),
            wait: Some(convert::duration_out(options.wait)),
        };
        let mut acquiring = self.shared.registry.acquiring();
        let answer = self.shared.client.calls().acquire(request).await;
        acquiring.answered();
        let grants = answer?.into_inner().grants;
        let leases: Vec<Lease> = grants
            .iter()
            .zip(wants)
            .map(|(grant, want)| {
                let id = LeaseId(grant.lease);
                let what = (Arc::from(want.path.as_str()), want.range, want.access);
                let state = acquiring.granted(id);
                Lease::new(self.shared.clone(), (id, Tag(grant.tag)), what, grant.created, state)
            })
            .collect();
        let as_asked = grants.len() == wants.len()
            && grants.iter().zip(wants).all(|(grant, want)| grant.range == Some(want.range.into()));
        // Otherwise the leases are released as they drop.
        as_asked.then_some(leases).ok_or_else(|| Malformed::Missing("grants").into())
    }

    /// Everything that this session hears: breaks, revocations, its end.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// fsync: returns once every commit of the file that was acknowledged before is durable.
    ///
    /// # Errors
    /// [`Reason::NoSession`] if the server was started anew since: what this session committed may be lost with the old one.
    pub async fn sync(&self, path: &str) -> Result<(), CallError> {
        self.sync_all([path.to_owned()]).await
    }

    /// [`Session::sync`] of many files in one call.
    ///
    /// # Errors
    /// As there; about one of the files.
    pub async fn sync_all(&self, paths: impl IntoIterator<Item = String>) -> Result<(), CallError> {
        let (session, paths) = (self.shared.secret.clone(), paths.into_iter().collect::<Vec<_>>());
        if paths.is_empty() {
            return Ok(());
        }
        let request = proto::SyncRequest { session, paths, ..Default::default() };
        self.shared.client.calls().sync(request).await?;
        Ok(())
    }

    /// Releases many read leases in one call.
    ///
    /// # Errors
    /// The server could not be told. The leases end with the session then.
    pub async fn release_all(&self, leases: Vec<Lease>) -> Result<(), CallError> {
        let leases: Vec<u64> = leases.into_iter().filter_map(Lease::let_go).map(|lease| lease.0).collect();
        if leases.is_empty() {
            return Ok(());
        }
        let request = proto::ReleaseRequest { session: self.shared.secret.clone(), lease: 0, leases };
        self.shared.client.calls().release(request).await?;
        Ok(())
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.shared.registry.ended()
    }

    /// Ends the session: its keys are fenced, what it did not commit leaves no trace. If the server cannot be told, it
    /// finds out by itself.
    pub async fn close(self) {
        let request = proto::CloseSessionRequest { session: self.shared.secret.clone() };
        if let Err(status) = self.shared.client.calls().close_session(request).await {
            tracing::debug!(%status, "closing a session");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.registry.end("closed by this end");
        self.shared.data.endpoint.close();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Shared {
    /// Tells the server that this end is done with a lease. `wrote`: bytes may still be on their way, which must not meet
    /// a tag that the server has forgotten.
    pub(crate) async fn release(&self, lease: LeaseId, wrote: bool) -> Result<(), CallError> {
        if wrote && let Err(Closed(why)) = self.data.drain().await {
            let message = format!("the data connection of the session is gone ({why}); open a new session");
            return Err(CallError { reason: Reason::NoSession, message });
        }
        let request =
            proto::ReleaseRequest { session: self.secret.clone(), lease: lease.0, leases: Vec::new() };
        self.client.calls().release(request).await?;
        Ok(())
    }

    /// fsync of the file of a lease, whatever it is called by now.
    pub(crate) async fn sync(&self, lease: LeaseId) -> Result<(), CallError> {
        let of = proto::LeaseOfSession { session: self.secret.clone(), lease: lease.0 };
        let request = proto::SyncRequest { lease: Some(of), ..Default::default() };
        self.client.calls().sync(request).await?;
        Ok(())
    }
}

/// The server says "0.0.0.0:7118" if it listens everywhere: then it is where the control plane is.
async fn data_address(server: &Server, text: &str) -> Result<SocketAddr, OpenError> {
    let bad = |why: String| OpenError::Address { address: text.to_owned(), why };
    let unspecified = match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => address,
        Ok(address) => return Ok(address),
        Err(_) => return resolve(text).await.map_err(bad),
    };
    match server {
        Server::Tcp { host, .. } => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            resolve(&format!("{host}:{}", unspecified.port())).await.map_err(bad)
        }
        Server::Unix(_) => Ok(SocketAddr::from(([127, 0, 0, 1], unspecified.port()))),
    }
}

async fn resolve(text: &str) -> Result<SocketAddr, String> {
    let mut found = tokio::net::lookup_host(text).await.map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| "the name has no address".to_owned())
}

/// How long the server's last words are waited for once the data connection is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Hears the server's events until the session is over, by whatever way. A server that ends a session closes the data
/// connection and says why: which of them comes first is chance, and who broke a lease must be heard in either case.
async fn listen(shared: Arc<Shared>, mut events: tonic::Streaming<proto::Event>) {
    let mut closed = shared.data.closed();
    let (mut lost, mut give_up) = (None, Instant::now());
    let why = loop {
        tokio::select! {
            event = events.next() => match event.map(|event| event.map(Event::try_from)) {
                Some(Ok(Ok(event))) => {
                    shared.registry.hear(&event.what);
                    let over = match &event.what {
                        Happening::SessionEnded { why, .. } => Some(why.clone()),
                        _ => None,
                    };
                    // Nobody may be listening.
                    let _ = shared.events.send(event);
                    if let Some(why) = over {
                        break why;
                    }
                }
                Some(Ok(Err(malformed))) => tracing::warn!(%malformed, "ignored an event"),
                Some(Err(status)) => break lost.unwrap_or_else(|| CallError::from(status).message),
                None => break lost.unwrap_or_else(|| "the server ended it".to_owned()),
            },
            why = gone(&mut closed), if lost.is_none() => {
                (lost, give_up) = (Some(why), Instant::now() + LAST_WORDS);
            }
            () = tokio::time::sleep_until(give_up.into()), if lost.is_some() => {
                break lost.unwrap_or_default();
            }
        }
    };
    shared.registry.end(&why);
}

/// Waits until the data connection is gone, and returns why.
async fn gone(closed: &mut watch::Receiver<Option<Closed>>) -> String {
    match closed.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(Closed(why))) => format!("data connection: {why}"),
        Ok(None) | Err(_) => "data connection gone".to_owned(),
    }
}

/// Says three times per time to live that the session lives; gives up when the server cannot have heard it in time.
async fn keep_alive(shared: Arc<Shared>, time_to_live: Duration) {
    let period = (time_to_live / 3).max(Duration::from_millis(10));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        ticks.tick().await;
        let request = proto::KeepAliveRequest { session: shared.secret.clone() };
        let mut calls = shared.client.calls();
        let call = tokio::time::timeout(time_to_live, calls.keep_alive(request));
        match call.await.map(|answer| answer.map_err(CallError::from)) {
            Ok(Ok(_)) => heard = Instant::now(),
            Ok(Err(error)) if error.reason == Reason::NoSession => {
                return shared.registry.end(&error.message);
            }
            Ok(Err(_)) | Err(_) if heard.elapsed() > time_to_live => {
                return shared.registry.end("the server did not answer within the session's time to live");
            }
            Ok(Err(error)) => tracing::debug!(%error, "keep-alive"),
            Err(_) => tracing::debug!("keep-alive timed out"),
        }
    }
}

async fn release_dropped(shared: Arc<Shared>, mut dropped: mpsc::UnboundedReceiver<(LeaseId, bool)>) {
    while let Some((lease, wrote)) = dropped.recv().await {
        if let Err(error) = shared.release(lease, wrote).await {
            tracing::debug!(%lease, %error, "releasing a dropped lease");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unspecified_data_address_is_where_the_control_plane_is() {
        let tcp = Server::Tcp { host: "127.0.0.1".to_owned(), port: 7117 };
        let unix = Server::Unix("/run/x.sock".into());
        for (server, text, address) in [
            (&tcp, "0.0.0.0:7118", "127.0.0.1:7118"),
            (&unix, "[::]:7118", "127.0.0.1:7118"),
            (&unix, "192.0.2.1:7118", "192.0.2.1:7118"),
        ] {
            let found = data_address(server, text).await.unwrap();
            assert_eq!(found, address.parse().unwrap(), "{text} by {server}");
        }
        let error = data_address(&tcp, "no port").await.unwrap_err().to_string();
        assert!(error.starts_with(r#"the server gives "no port" as its data address"#), "{error}");
    }
}
