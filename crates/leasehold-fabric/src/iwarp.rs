//! RDMA over TCP in user space, by the standard: MPA (RFC 5044, 6581) frames, DDP (RFC 5041) segments, RDMAP (RFC 5040)
//! operations. The peer may be the same code, the Linux kernel's soft-iWARP driver, or an iWARP network card.
//!
//! ```text
//! user threads --> connection: queue --> transmit (whoever finds the sender free) --> outgoing frames --> socket
//! socket --> worker thread --> open connection --> receive --> exposed memory, Handler
//!                                                     |
//!                            exposure: tags, held through fence::Slot
//! ```
//! Two places where it deviates from the standard, on purpose: bytes are placed before the CRC of their frame is known
//! ([`Config::strict`] does not), and our own two ends agree on segments longer than one of TCP's.

mod config;
mod connection;
mod counters;
mod ddp;
mod exposure;
mod fence;
mod frame;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod initiate;
mod listener;
mod mpa;
mod negotiation;
mod open;
mod operation;
mod outgoing;
mod rdmap;
mod reads;
mod receive;
mod setup;
mod setup_server;
mod staging;
mod stream;
mod tag;
mod tcp;
mod terminate;
mod tls;
mod transmit;
mod worker;

pub use config::Config;
pub use counters::Counters;
#[cfg(feature = "mutation")]
pub use tcp::{Call, Fate, Fates};
pub use terminate::{Code, Violation};
pub use tls::ServerTls;

use crate::{ConnectError, Endpoint, Fabric, Gate, Handler, ListenError, Listener};
use bytes::Bytes;
use initiate::Peer;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use worker::{Command, Link, Mailbox, Worker};

/// RDMA over TCP in user space. Dropping it closes all its connections.
pub struct Iwarp {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What all connections share.
pub(crate) struct Shared {
    config: Config,
    counters: Arc<Counters>,
    mailboxes: Vec<Arc<Mailbox>>,
    next_mailbox: AtomicUsize,
    next_id: AtomicU64,
    places: Arc<AtomicUsize>,
    /// Peers that have not shown who they are, oldest first, and some that have, or went.
    strangers: Mutex<VecDeque<Weak<Stranger>>>,
}

/// One of the connections that there may be.
pub(crate) struct Place(Arc<AtomicUsize>);

/// A peer that has connected and not shown who it is.
pub(crate) struct Stranger(Arc<OwnedFd>);

impl Iwarp {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// If the system has no more threads or descriptors.
    pub fn new(config: Config) -> io::Result<Iwarp> {
        let mailboxes = (0..config.workers.max(1))
            .map(|_| Mailbox::new().map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            config,
            counters: Arc::default(),
            mailboxes,
            next_mailbox: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            places: Arc::default(),
            strangers: Mutex::default(),
        });
        let mut fabric = Iwarp { shared: shared.clone(), threads: Vec::new() };
        for (number, mailbox) in shared.mailboxes.iter().enumerate() {
            let worker = Worker::new(shared.clone(), mailbox.clone())?;
            let thread = std::thread::Builder::new().name(format!("fabric-{number}"));
            fabric.threads.push(thread.spawn(move || worker.run())?);
        }
        Ok(fabric)
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }
}

impl Fabric for Iwarp {
    fn listen(&self, address: SocketAddr, gate: Arc<dyn Gate>) -> Result<Box<dyn Listener>, ListenError> {
        let bind = || {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok((socket.local_addr()?, socket))
        };
        let (local, socket) = bind().map_err(|source| ListenError::Bind { address, source })?;
        let socket = Arc::new(socket.into());
        let (id, mailbox) = (self.shared.id(), self.shared.mailbox().clone());
        let listening = listener::Listening { socket: Arc::clone(&socket), gate, retry: None };
        mailbox.post(Command::Adopt(id, Box::new(Link::Listener(listening))));
        let tls_key = self.shared.config.tls.as_ref().map(|tls| tls.public_key().clone());
        Ok(Box::new(listener::Handle { id, address: local, socket, mailbox, tls_key }))
    }

    fn connect(
        &self,
        address: SocketAddr,
        private_data: &[u8],
        handler: Box<dyn Handler>,
        timeout: Duration,
    ) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
        initiate::connect(&self.shared, Peer { address, public_key: None }, private_data, handler, timeout)
    }
}

/// A fabric that connects over TLS to the one that has a public key ([`ServerTls::public_key`]), and to nobody else.
pub struct OverTls {
    iwarp: Arc<Iwarp>,
    public_key: Bytes,
}

impl OverTls {
    /// Over the threads of `iwarp`.
    #[must_use]
    pub fn new(iwarp: Arc<Iwarp>, public_key: Bytes) -> OverTls {
        OverTls { iwarp, public_key }
    }
}

impl Fabric for OverTls {
    /// As the other fabric does: over TLS by [`Config::tls`].
    fn listen(&self, address: SocketAddr, gate: Arc<dyn Gate>) -> Result<Box<dyn Listener>, ListenError> {
        self.iwarp.listen(address, gate)
    }

    fn connect(
        &self,
        address: SocketAddr,
        private_data: &[u8],
        handler: Box<dyn Handler>,
        timeout: Duration,
    ) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
        let peer = Peer { address, public_key: Some(self.public_key.clone()) };
        initiate::connect(&self.iwarp.shared, peer, private_data, handler, timeout)
    }
}

impl Drop for Iwarp {
    fn drop(&mut self) {
        for mailbox in &self.shared.mailboxes {
            mailbox.post(Command::Stop);
        }
        for thread in self.threads.drain(..) {
            // A handler may own the fabric, and drop it on one of its threads.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The worker whose turn it is to get a socket.
    fn mailbox(&self) -> &Arc<Mailbox> {
        let next = self.next_mailbox.fetch_add(1, Ordering::Relaxed);
        &self.mailboxes[next % self.mailboxes.len()]
    }

    /// Room for one more connection, if there is.
    fn place(&self) -> Option<Place> {
        let place = Place(self.places.clone());
        (self.places.fetch_add(1, Ordering::AcqRel) < self.config.connections_max).then_some(place)
    }

    /// A new stranger; the oldest goes if there are too many, so that however many come, one that says at once who it is gets in.
    fn stranger(&self, socket: &Arc<OwnedFd>) -> Arc<Stranger> {
        let mut strangers = self.strangers.lock().expect("no panic while held");
        if strangers.len() >= self.config.strangers_max {
            strangers.retain(|stranger| stranger.strong_count() > 0);
        }
        if strangers.len() >= self.config.strangers_max.max(1)
            && let Some(oldest) = strangers.pop_front().and_then(|oldest| oldest.upgrade())
        {
            counters::add(&self.counters.rejected, 1);
            // Its worker sees that it has ended.
            let _ = rustix::net::shutdown(&oldest.0, rustix::net::Shutdown::Both);
        }
        let stranger = Arc::new(Stranger(socket.clone()));
        strangers.push_back(Arc::downgrade(&stranger));
        stranger
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
