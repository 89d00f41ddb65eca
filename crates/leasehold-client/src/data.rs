//! The data connection of a session: requests on it, and the answers that come back.

use bytes::Bytes;
use leasehold_core::ids::LeaseId;
use leasehold_fabric::message::{Capture, Captured, Commit, Committed, Fetch, Fetched, Message, Status};
use leasehold_fabric::{CloseReason, Endpoint, Handler, Remote, Source, Tag};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};

/// The connection is gone; the text says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed(pub(crate) String);

/// The answer to one request on the data connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    /// The file's size; 0 for a fetch.
    pub(crate) size: u64,
    /// What the server says about a failure.
    pub(crate) text: String,
}

/// The answers that are owed. Shared with the fabric's thread, which fills them in.
#[derive(Default)]
pub(crate) struct Owed {
    state: Mutex<State>,
    closed: watch::Sender<Option<Closed>>,
}

#[derive(Default)]
struct State {
    last_request: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    closed: Option<Closed>,
}

impl Owed {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self) -> Result<(u64, oneshot::Receiver<Answer>), Closed> {
        let mut state = self.state();
        if let Some(closed) = &state.closed {
            return Err(closed.clone());
        }
        let (sender, receiver) = oneshot::channel();
        state.last_request += 1;
        let request = state.last_request;
        state.waiting.insert(request, sender);
        Ok((request, receiver))
    }

    fn close(&self, why: &str) {
        let closed = Closed(why.to_owned());
        let mut state = self.state();
        state.closed.get_or_insert_with(|| closed.clone());
        state.waiting.clear();
        drop(state);
        self.closed.send_if_modified(|now| {
            let first = now.is_none();
            now.get_or_insert(closed);
            first
        });
    }

    fn why_closed(&self) -> Closed {
        self.state().closed.clone().unwrap_or_else(|| Closed("no answer".to_owned()))
    }
}

/// What the fabric calls.
pub(crate) struct Answers(pub(crate) Arc<Owed>);

impl Handler for Answers {
    fn connected(&mut self, _endpoint: Arc<dyn Endpoint>) {}

    fn message(&mut self, message: &[u8]) {
        let (request, answer) = match Message::parse(message) {
            Ok(
                Message::Committed(Committed { request, status, size, text })
                | Message::Captured(Captured { request, status, size, text }),
            ) => (request, Answer { status, size, text }),
            Ok(Message::Fetched(Fetched { request, status, text })) => {
                (request, Answer { status, size: 0, text })
            }
            Ok(other) => return tracing::warn!(?other, "ignored a message for servers"),
            Err(error) => return tracing::warn!(%error, "ignored a message on the data connection"),
        };
        // Whoever asked may have gone.
        if let Some(waiting) = self.0.state().waiting.remove(&request) {
            let _ = waiting.send(answer);
        }
    }

    fn poisoned(&mut self) {
        tracing::warn!("the data connection failed a checksum; the session ends");
    }

    fn closed(&mut self, why: &CloseReason) {
        self.0.close(&why.to_string());
    }
}

/// One data connection.
pub(crate) struct Data {
    pub(crate) endpoint: Arc<dyn Endpoint>,
    owed: Arc<Owed>,
}

impl Data {
    pub(crate) fn new(endpoint: Arc<dyn Endpoint>, owed: Arc<Owed>) -> Data {
        Data { endpoint, owed }
    }

    /// Becomes `Some` once the connection is gone.
    pub(crate) fn closed(&self) -> watch::Receiver<Option<Closed>> {
        self.owed.closed.subscribe()
    }

    /// Writes into the server's frames; returns once `bytes` are not needed any more.
    pub(crate) async fn write(&self, to: Remote, bytes: Bytes) -> Result<(), Closed> {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.endpoint.write(Source::Bytes(bytes), to, done);
        match receiver.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Closed(error.to_string())),
            Err(_) => Err(self.owed.why_closed()),
        }
    }

    /// Commits behind everything written so far.
    pub(crate) async fn commit(&self, lease: LeaseId, crc32c: Option<u32>) -> Result<Answer, Closed> {
        self.ask(|request| Message::Commit(Commit { request, lease: lease.0, crc32c })).await
    }

    /// Captures, behind everything written so far, `length` bytes at `offset` of a write lease.
    pub(crate) async fn capture(&self, lease: LeaseId, offset: u64, length: u64) -> Result<Answer, Closed> {
        let lease = lease.0;
        self.ask(|request| Message::Capture(Capture { request, lease, offset, length })).await
    }

    /// Asks for bytes of a read lease; they have landed in `sink` once this returns.
    pub(crate) async fn fetch(
        &self,
        lease: LeaseId,
        offset: u64,
        length: u64,
        sink: Tag,
    ) -> Result<Answer, Closed> {
        let lease = lease.0;
        let fetch = |request| Fetch { request, lease, offset, length, sink_tag: sink, sink_offset: 0 };
        self.ask(|request| Message::Fetch(fetch(request))).await
    }

    /// Returns once the server has placed or dropped everything that was written so far.
    ///
    /// A release travels by gRPC and could overtake bytes of its lease, which would then meet a tag that the server has
    /// forgotten: a protocol error that ends the whole stream. The commit of a lease that cannot exist changes
    /// nothing, and its answer comes behind those bytes.
    pub(crate) async fn drain(&self) -> Result<(), Closed> {
        let answer = self.commit(LeaseId(u64::MAX), None).await?;
        debug_assert_eq!(answer.status, Status::NoLease);
        Ok(())
    }

    async fn ask(&self, message: impl FnOnce(u64) -> Message) -> Result<Answer, Closed> {
        let (request, answer) = self.owed.expect()?;
        // If sending fails the connection is closed, and `closed` drops the waiting end.
        self.endpoint.send(message(request).encode(), None, Box::new(|_| ()));
        answer.await.map_err(|_| self.owed.why_closed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(request: u64) -> Bytes {
        let text = String::new();
        Message::Committed(Committed { request, status: Status::Ok, size: 42, text }).encode()
    }

    #[test]
    fn an_answer_reaches_the_request_that_it_names() {
        let owed = Arc::new(Owed::default());
        let mut answers = Answers(owed.clone());
        let (_, mut first) = owed.expect().unwrap();
        let (second_number, mut second) = owed.expect().unwrap();
        answers.message(&committed(second_number));
        assert_eq!(second.try_recv().unwrap().size, 42);
        assert!(first.try_recv().is_err(), "the first request still waits");
        answers.message(&committed(77));
    }

    #[test]
    fn when_the_connection_closes_all_who_wait_are_told_why_and_later_ones_too() {
        let owed = Arc::new(Owed::default());
        let (_, mut waiting) = owed.expect().unwrap();
        Answers(owed.clone()).closed(&CloseReason::Peer);
        assert!(matches!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert_eq!(owed.expect().unwrap_err(), Closed("closed by the peer".to_owned()));
        assert_eq!(owed.why_closed(), Closed("closed by the peer".to_owned()));
    }
}
