//! The client's end of a mount of a remote store: passes on what this machine's kernel asks, and what the server answers.
//!
//! ```text
//! /dev/fuse --> a thread, which names the program --> the stream
//! /dev/fuse <---------------------------------------- the stream
//! ```

use super::device::Device;
use super::message::{Head, MESSAGE_BYTES_MAX, replied};
use crate::server::peer;
use bytes::Bytes;
use leasehold_client::CallError;
use leasehold_client::proto::FuseRequest;
use leasehold_client::proto::mount_request::What;
use std::io;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt as _};

/// How many requests wait for the connection.
pub(crate) const REQUESTS_MAX: usize = 16;

/// Why a mount ended without having been taken away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The server, or the way to it.
    #[error(transparent)]
    Server(#[from] CallError),
    /// It has nothing more to say.
    #[error("the server has closed the connection")]
    Closed,
    /// The kernel does not understand the server.
    #[error(
        "the server's reply is not one that this kernel takes; are both machines of the same byte order?"
    )]
    Reply(#[source] io::Error),
    /// The kernel.
    #[error("the kernel gives no requests")]
    Device(#[source] io::Error),
}

/// Passes on requests and replies until it is unmounted. `ready` is told once the kernel has its first reply: then programs
/// can use it.
pub(crate) async fn forward(
    device: Arc<Device>,
    requests: mpsc::Sender<What>,
    replies: impl Stream<Item = Result<Bytes, CallError>>,
    ready: oneshot::Sender<()>,
) -> Result<(), Lost> {
    let (ended, end) = oneshot::channel();
    let source = device.clone();
    let thread = std::thread::Builder::new().name("mount-requests".to_owned());
    let reads = move || {
        // If nobody wants to know, we are ending.
        let _ = ended.send(read(&source, &requests));
    };
    thread.spawn(reads).map_err(Lost::Device)?;
    tokio::select! {
        end = end => end.unwrap_or(Ok(())).map_err(Lost::Device),
        lost = answer(&device, replies, ready) => Err(lost),
    }
}

/// Passes on what the kernel asks, until it is unmounted or nobody takes it.
fn read(device: &Device, requests: &mpsc::Sender<What>) -> io::Result<()> {
    let mut buffer = Box::new([0; MESSAGE_BYTES_MAX]);
    while let Some(request) = device.request(&mut buffer)? {
        let Some(head) = Head::of(request) else {
            return Err(io::Error::other("what it gave is no FUSE request"));
        };
        let what = match head.interrupts(request) {
            Some(unique) => What::Interrupted(unique.0),
            None => {
                let program =
                    head.opcode.may_break().then(|| peer::program_of(head.pid)).flatten().unwrap_or_default();
                What::Request(FuseRequest { message: Bytes::copy_from_slice(request), program })
            }
        };
        if requests.blocking_send(what).is_err() {
            // The stream is over, and whoever reads it says why.
            std::thread::park();
        }
    }
    Ok(())
}

/// Gives the kernel the server's replies, until there are no more.
async fn answer(
    device: &Device,
    replies: impl Stream<Item = Result<Bytes, CallError>>,
    ready: oneshot::Sender<()>,
) -> Lost {
    let mut replies = std::pin::pin!(replies);
    let mut ready = Some(ready);
    while let Some(reply) = replies.next().await {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return error.into(),
        };
        if let Err(error) = device.reply(&reply) {
            return Lost::Reply(error);
        }
        if replied(&reply).is_some_and(|(_, worked)| worked)
            && let Some(ready) = ready.take()
        {
            // If nobody waits for it, we are ending.
            let _ = ready.send(());
        }
    }
    Lost::Closed
}
