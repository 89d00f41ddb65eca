//! Mounts on other machines: their kernels' requests come by one stream, and their replies go back by another.

use crate::mount::remote::{Remote, Replies};
use crate::server::refusal::status;
use leasehold_client::Reason;
use leasehold_client::proto::{self, mount_request::What};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// How many replies wait for a slow reader, beside those that have a place in [`Remote`].
const REPLIES_MAX: usize = 4;

type Answer = Result<proto::MountResponse, Status>;

/// The replies, until the other end goes away, the filesystem ends, or the server stops.
pub(super) fn replies(
    remote: Remote,
    replies: Replies,
    requests: Streaming<proto::MountRequest>,
    mut stopping: watch::Receiver<bool>,
) -> ReceiverStream<Answer> {
    let (send, receive) = mpsc::channel(REPLIES_MAX);
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = pass_on(&remote, requests) => ended,
            () = answer(replies, &send) => Err(status(Reason::Io, "the filesystem of this mount has ended; see the server's log")),
            _ = stopping.wait_for(|stopping| *stopping) => Err(status(Reason::Stopping, "the server is stopping")),
        };
        // Interrupts what waits, so that nothing is changed any more for callers that have gone.
        drop(remote);
        if let Err(why) = ended {
            // If the other end has gone, there is nobody to tell.
            let _ = send.send(Err(why)).await;
        }
    });
    ReceiverStream::new(receive)
}

/// Passes requests on until the other end has no more.
async fn pass_on(remote: &Remote, mut requests: Streaming<proto::MountRequest>) -> Result<(), Status> {
    let invalid = |text: String| status(Reason::Invalid, text);
    while let Some(message) = requests.next().await {
        match message?.what {
            Some(What::Request(request)) => {
                let passed = remote.request(request.message, &request.program).await;
                passed.map_err(|error| invalid(error.to_string()))?;
            }
            Some(What::Interrupted(unique)) => remote.interrupt(unique),
            Some(What::Header(_)) | None => {
                return Err(invalid("only the first message of a mount is a header".to_owned()));
            }
        }
    }
    Ok(())
}

async fn answer(mut replies: Replies, send: &mpsc::Sender<Answer>) {
    while let Some(reply) = replies.next().await {
        if send.send(Ok(proto::MountResponse { reply })).await.is_err() {
            return;
        }
    }
}
