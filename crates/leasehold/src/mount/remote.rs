//! The server's end of a mount on another machine: the requests of the kernel there, answered by the same filesystem as those
//! of the kernel here.
//!
//! ```text
//! the stream --> Remote --> requests --> socket --> fuser: Mounted
//! the stream <-- Replies <-------------- socket <-- fuser: a task for each request
//! ```
//!
//! fuser takes any descriptor for `/dev/fuse`; a pair of sockets that keep the bounds of messages (SOCK_SEQPACKET) does. Its
//! replies block while the socket is full, on threads that the streams need: so a thread of its own takes them out, and never
//! waits. What it puts by is bounded: there is a place for each request that has no reply yet, and it is free again when the
//! stream has taken the reply.

use super::caller::Callers as Source;
use super::filesystem::Mounted;
use super::message::{self, Head, MESSAGE_BYTES_MAX, Unique};
use super::nodes::Nodes;
use crate::server::peer;
use bytes::Bytes;
use fuser::{Config, Session, SessionACL};
use leasehold_core::identity::{Evidence, Identity};
use leasehold_engine::Engine;
use leasehold_engine::path::StorePath;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;

/// How many requests of a mount have no reply, or one that waits for a slow reader.
const UNDER_WAY_MAX: usize = 256;
/// How many requests wait for fuser.
const REQUESTS_MAX: usize = 4;
/// What the sockets may hold, if the system lets them; a message must fit.
const SOCKET_BYTES: usize = 4 * MESSAGE_BYTES_MAX;

/// A mount on another machine. Dropping it interrupts what waits, and ends its session; what was open is closed.
pub(crate) struct Remote {
    requests: mpsc::Sender<Bytes>,
    callers: Arc<Callers>,
    places: Arc<Semaphore>,
}

/// Why a message was not passed on: the mount is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// It cannot be from a kernel.
    #[error(
        "a message of {0} bytes is no FUSE request of at most {MESSAGE_BYTES_MAX} bytes in this server's byte order; \
         mount it from a machine of the same byte order, with the same version"
    )]
    Malformed(usize),
    /// fuser has given up.
    #[error("the filesystem of this mount has ended; see the server's log, and mount it again")]
    Ended,
}

impl Remote {
    /// A mount of what is at `root` and below. `host` is what its machine is called, and `evidence` how far that is true.
    ///
    /// # Errors
    /// The system's, about sockets and threads, or about the store's directory.
    pub fn start(
        engine: Engine,
        root: StorePath,
        (host, evidence): (String, Evidence),
    ) -> io::Result<(Remote, Replies)> {
        let callers = Arc::new(Callers { host, evidence, under_way: Mutex::default() });
        let mounted = Mounted::new(engine, Nodes::shared(root), Source::Remote(callers.clone()))?;
        let (ours, fusers) = sockets()?;
        let ours = Arc::new(ours);
        let (send, requests) = mpsc::channel(REQUESTS_MAX);
        let (replied, replies) = mpsc::unbounded_channel();
        thread("mount-session", move || {
            let session = Session::from_fd(mounted, fusers, SessionACL::All, Config::default());
            if let Err(error) = session.and_then(Session::run) {
                tracing::warn!("the filesystem of a mount on another machine has ended: {error}");
            }
        })?;
        let socket = ours.clone();
        thread("mount-requests", move || pass_on(&socket, requests))?;
        let known = callers.clone();
        thread("mount-replies", move || take_out(&ours, &known, &replied))?;
        let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        Ok((Remote { requests: send, callers, places }, Replies(replies)))
    }

    /// Passes a request on. Waits while many have no reply yet.
    pub async fn request(&self, request: Bytes, program: &str) -> Result<(), RequestError> {
        let head = Head::of(&request).filter(|_| request.len() <= MESSAGE_BYTES_MAX);
        let head = head.ok_or(RequestError::Malformed(request.len()))?;
        if head.opcode.has_reply() {
            let place = self.places.clone().acquire_owned().await.map_err(|_| RequestError::Ended)?;
            let program = peer::shown(program);
            let under_way = UnderWay { program, interrupted: Arc::default(), place };
            self.callers.under_way().insert(head.unique, under_way);
        }
        self.requests.send(request).await.map_err(|_| RequestError::Ended)
    }

    /// The caller of a request was interrupted: what waits for a holder ends.
    pub fn interrupt(&self, unique: u64) {
        if let Some(request) = self.callers.under_way().get(&Unique(unique)) {
            request.interrupted.notify_one();
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        for request in self.callers.under_way().values() {
            request.interrupted.notify_one();
        }
    }
}

/// The replies, in whatever order; ends once the last one was given and nothing is open any more.
pub(crate) struct Replies(mpsc::UnboundedReceiver<(Bytes, Option<OwnedSemaphorePermit>)>);

impl Stream for Replies {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.0.poll_recv(context).map(|reply| reply.map(|(reply, _place)| reply))
    }
}

/// Who the callers are, by their own machine's word.
pub(super) struct Callers {
    host: String,
    evidence: Evidence,
    under_way: Mutex<HashMap<Unique, UnderWay>>,
}

/// A request without a reply.
struct UnderWay {
    program: Option<String>,
    interrupted: Arc<Notify>,
    place: OwnedSemaphorePermit,
}

impl Callers {
    fn under_way(&self) -> MutexGuard<'_, HashMap<Unique, UnderWay>> {
        self.under_way.lock().expect("no code panics while it holds the requests")
    }

    pub fn identity(&self, request: Unique, pid: u32, uid: u32) -> Identity {
        let program = self.under_way().get(&request).and_then(|request| request.program.clone());
        let program = program.unwrap_or_else(|| "unknown".to_owned());
        Identity { host: self.host.clone(), pid, uid, program, evidence: self.evidence }
    }

    /// Told when the caller is interrupted.
    pub fn interrupted(&self, request: Unique) -> Arc<Notify> {
        self.under_way().get(&request).map(|request| request.interrupted.clone()).unwrap_or_default()
    }
}

fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let pair = rustix::net::socketpair(kind.0, kind.1, kind.2, None)?;
    for socket in [&pair.0, &pair.1] {
        // More only makes it faster.
        let _ = sockopt::set_socket_send_buffer_size(socket, SOCKET_BYTES);
        let has = sockopt::socket_send_buffer_size(socket)?;
        if has < MESSAGE_BYTES_MAX + 32 {
            return Err(io::Error::other(format!(
                "sockets hold {has} bytes here, and a message may have {MESSAGE_BYTES_MAX}; raise net.core.wmem_max"
            )));
        }
    }
    Ok(pair)
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

/// Until there are no more, or fuser takes none.
fn pass_on(socket: &OwnedFd, mut requests: mpsc::Receiver<Bytes>) {
    while let Some(request) = requests.blocking_recv() {
        if rustix::net::send(socket, &request, SendFlags::NOSIGNAL).is_err() {
            return;
        }
    }
    // If it has ended already, all the better.
    let _ = rustix::net::send(socket, &message::destroy(), SendFlags::NOSIGNAL);
}

/// Until fuser, and every request that it has not answered, is gone. Goes on when nobody wants the replies any more, since
/// who gives one would wait.
fn take_out(
    socket: &OwnedFd,
    callers: &Callers,
    replies: &mpsc::UnboundedSender<(Bytes, Option<OwnedSemaphorePermit>)>,
) {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = match rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok((0, _)) | Err(_) => return,
            Ok((length, _)) => length,
        };
        let reply = Bytes::copy_from_slice(&buffer[..length]);
        let request = message::replied(&reply).and_then(|(unique, _)| callers.under_way().remove(&unique));
        // If nobody listens, the mount ends.
        let _ = replies.send((reply, request.map(|request| request.place)));
    }
}
