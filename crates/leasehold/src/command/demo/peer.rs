//! The remote machine of a scheme's demo: a session, and its data connection over a real socket.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use leasehold_client::{Access, Buffer, ByteRange, LeaseId, OnConflict, SessionId, this_process};
use leasehold_engine::engine::{AcquireError, Wanted};
use leasehold_engine::event::Event;
use leasehold_engine::path::StorePath;
use leasehold_engine::throw_away::ThrowAway;
use leasehold_fabric::iwarp::{self, Iwarp};
use leasehold_fabric::message::{Commit, Fetch, Message, Status};
use leasehold_fabric::{CloseReason, Endpoint, Fabric as _, Handler, Remote, Source, Tag};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

/// One peer.
pub(super) struct Peer {
    session: SessionId,
    endpoint: Arc<dyn Endpoint>,
    answers: mpsc::UnboundedReceiver<Message>,
    events: mpsc::Receiver<Event>,
    _fabric: Iwarp,
}

/// What it was given: a lease under the schemes that have such, else just a key.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) lease: LeaseId,
    pub(super) tag: Tag,
}

/// Deaf once the connection is gone, which ends the answers.
struct Ears(Option<mpsc::UnboundedSender<Message>>);

impl Handler for Ears {
    fn connected(&mut self, _endpoint: Arc<dyn Endpoint>) {}

    fn message(&mut self, message: &[u8]) {
        if let (Ok(message), Some(answers)) = (Message::parse(message), &self.0) {
            let _nobody_listens = answers.send(message);
        }
    }

    fn poisoned(&mut self) {}

    fn closed(&mut self, _why: &CloseReason) {
        self.0 = None;
    }
}

impl Peer {
    pub(super) async fn connect(store: &ThrowAway) -> anyhow::Result<Peer> {
        let engine = store.engine();
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (tell, events) = mpsc::channel(64);
        let opened = engine.open_session(this_process(), None, here, tell).await?;
        let (send, answers) = mpsc::unbounded_channel();
        let address = engine.started().data_address;
        let connect = move || {
            let fabric = Iwarp::new(iwarp::Config::default()).context("cannot start a thread")?;
            let ears = Box::new(Ears(Some(send)));
            let (endpoint, _) = fabric.connect(address, &opened.token, ears, PATIENCE)?;
            anyhow::Ok((fabric, endpoint))
        };
        let (fabric, endpoint) = tokio::task::spawn_blocking(connect).await??;
        Ok(Peer { session: opened.session, endpoint, answers, events, _fabric: fabric })
    }

    pub(super) async fn acquire(
        &self,
        store: &ThrowAway,
        path: &StorePath,
        range: ByteRange,
        access: Access,
    ) -> Result<Held, AcquireError> {
        let wanted = Wanted { path: path.clone(), range, access, create: false };
        let granted =
            store.engine().acquire(self.session, vec![wanted], OnConflict::Refuse, PATIENCE).await?;
        Ok(Held { lease: granted[0].lease, tag: Tag(granted[0].tag) })
    }

    /// Writes under the key, and returns once all has arrived. If the key was taken back, the device faults first. `false`:
    /// there is no key any more.
    pub(super) async fn write(
        &mut self,
        store: &ThrowAway,
        held: &mut Held,
        bytes: Bytes,
    ) -> anyhow::Result<bool> {
        let Some(tag) = store.key(self.session, held.lease).await else { return Ok(false) };
        held.tag = Tag(tag);
        self.write_blindly(*held, bytes).await?;
        Ok(true)
    }

    /// Writes under the key that it was given, whatever has become of that since, and returns once all has arrived.
    pub(super) async fn write_blindly(&mut self, held: Held, bytes: Bytes) -> anyhow::Result<()> {
        self.endpoint.write(Source::Bytes(bytes), Remote { tag: held.tag, offset: 0 }, Box::new(|_| ()));
        // No such lease: but the answer comes when everything before the question has been placed, or dropped.
        self.fetch(LeaseId(u64::MAX), Tag(0), 0).await.map(drop)
    }

    /// Reads the first bytes under the key. `None`: the key is over.
    pub(super) async fn read(
        &mut self,
        store: &ThrowAway,
        held: Held,
        length: usize,
    ) -> anyhow::Result<Option<Buffer>> {
        if store.key(self.session, held.lease).await.is_none() {
            return Ok(None);
        }
        let sink = Buffer::new(length).expose(self.endpoint.clone(), length)?;
        let status = self.fetch(held.lease, sink.tag(), length as u64).await?;
        let buffer = tokio::task::spawn_blocking(move || sink.fence(PATIENCE)).await??;
        Ok((status == Status::Ok).then_some(buffer))
    }

    async fn fetch(&mut self, lease: LeaseId, sink_tag: Tag, length: u64) -> anyhow::Result<Status> {
        let fetch = Fetch { request: 1, lease: lease.0, offset: 0, length, sink_tag, sink_offset: 0 };
        match self.ask(Message::Fetch(fetch)).await? {
            Some(Message::Fetched(answer)) => Ok(answer.status),
            None => Ok(Status::NoLease),
            other => bail!("another answer to a fetch: {other:?}"),
        }
    }

    /// Says that all is written. Whether that was acknowledged.
    pub(super) async fn commit(&mut self, held: Held) -> anyhow::Result<bool> {
        let commit = Commit { request: 2, lease: held.lease.0, crc32c: None };
        match self.ask(Message::Commit(commit)).await? {
            Some(Message::Committed(answer)) => Ok(answer.status == Status::Ok),
            None => Ok(false),
            other => bail!("another answer to a commit: {other:?}"),
        }
    }

    /// The answer; `None`: the connection is gone.
    async fn ask(&mut self, question: Message) -> anyhow::Result<Option<Message>> {
        self.endpoint.send(question.encode(), None, Box::new(|_| ()));
        let answer = tokio::time::timeout(PATIENCE, self.answers.recv()).await;
        answer.context("the engine gave no answer within 30 s")
    }

    /// Lets go. What is over is let go already.
    pub(super) async fn release(&self, store: &ThrowAway, held: Held) {
        let _over = store.engine().release(self.session, held.lease).await;
    }

    /// Whether it has heard who needs the range of this lease.
    pub(super) fn was_told(&mut self, held: Held) -> bool {
        let mut told = false;
        while let Ok(event) = self.events.try_recv() {
            told |= matches!(event, Event::Break { lease, .. } if lease == held.lease);
        }
        told
    }
}
