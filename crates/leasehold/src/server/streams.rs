//! The answers that come in many pieces.

use crate::server::peer::Caller;
use crate::server::refusal::refuse;
use crate::server::rows;
use leasehold_client::proto;
use leasehold_core::ids::SessionId;
use leasehold_core::range::ByteRange;
use leasehold_engine::engine::Engine;
use leasehold_engine::event::Event;
use leasehold_engine::files::CALL_BYTES_MAX;
use leasehold_engine::path::StorePath;
use leasehold_engine::scrubber::Scrubbed;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// How many pieces wait for a slow reader.
const PIECES_MAX: usize = 4;

/// The events of one session. A client that stops listening could not hear of a break, so its session ends.
pub(crate) struct Events {
    engine: Engine,
    session: SessionId,
    events: mpsc::Receiver<Event>,
    ended: bool,
}

impl Events {
    pub(crate) fn new(engine: Engine, session: SessionId, events: mpsc::Receiver<Event>) -> Events {
        Events { engine, session, events, ended: false }
    }
}

impl Stream for Events {
    type Item = Result<proto::Event, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.events.poll_recv(context).map(|event| {
            self.ended = matches!(event, None | Some(Event::SessionEnded { .. }));
            event.map(|event| Ok(rows::event(event)))
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if !self.ended {
            self.engine.close_session(self.session, "its holder went away: the stream of events closed");
        }
    }
}

/// Everything that happens where the caller can see it, until the server stops.
pub(crate) fn watch(
    caller: Caller,
    mut events: broadcast::Receiver<Event>,
    mut stopping: watch::Receiver<bool>,
) -> ReceiverStream<Result<proto::Event, Status>> {
    let (send, receive) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.recv() => match event {
                    Ok(event) if caller.hears(&event) => rows::event(event),
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Lagged(missed)) => rows::missed(missed),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = send.closed() => return,
            };
            if send.send(Ok(event)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receive)
}

/// The bytes from `offset` on, `length` of them or all.
pub(crate) fn read(
    engine: Engine,
    path: StorePath,
    offset: u64,
    length: Option<u64>,
) -> ReceiverStream<Result<proto::ReadResponse, Status>> {
    let (send, receive) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        let end = offset.saturating_add(length.unwrap_or(u64::MAX));
        let mut next = offset;
        while let Some(range) = ByteRange::new(next, end.min(next.saturating_add(CALL_BYTES_MAX))) {
            let piece = match engine.read(&path, range).await {
                Ok(data) if data.is_empty() => return,
                Ok(data) => {
                    next += data.len() as u64;
                    Ok(proto::ReadResponse { data })
                }
                Err(error) => Err(refuse(&error)),
            };
            let last = piece.is_err();
            if send.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    ReceiverStream::new(receive)
}

/// What scrub finds, file by file, then the totals.
pub(crate) fn scrub(
    mut found: mpsc::Receiver<Scrubbed>,
) -> ReceiverStream<Result<proto::ScrubResponse, Status>> {
    let (send, receive) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        let mut totals = proto::ScrubTotals::default();
        while let Some(file) = found.recv().await {
            if send.send(Ok(rows::scrubbed(file, &mut totals))).await.is_err() {
                return;
            }
        }
        // If the reader has gone there is nobody to tell.
        let _ = send.send(Ok(rows::scrub_item(proto::scrub_response::Item::Totals(totals)))).await;
    });
    ReceiverStream::new(receive)
}
