//! Listening sockets.

use super::Shared;
use super::setup_server::Setup;
use super::stream::{Socket, Wire};
use super::tcp::Tcp;
use super::worker::{Command, Link, Mailbox, until};
use crate::{Gate, Kind, Listener};
use bytes::Bytes;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After running out of descriptors, try again then: nothing else tells that some are free.
const RETRY: Duration = Duration::from_millis(100);

/// A listening socket, as its worker sees it.
pub(crate) struct Listening {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) retry: Option<Instant>,
}

/// A listening socket, as its user sees it.
pub(crate) struct Handle {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) tls_key: Option<Bytes>,
}

impl Listening {
    /// Takes in all who wait.
    pub(crate) fn accept(&mut self, shared: &Arc<Shared>) {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (fd, peer) = match rustix::net::acceptfrom_with(&self.socket, flags) {
                Ok(accepted) => accepted,
                Err(Errno::AGAIN | Errno::INVAL) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.retry = Some(until(RETRY));
                    return;
                }
                // What was wrong with one connection is no reason to keep the next waiting (accept(2)).
                Err(_) => continue,
            };
            let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else { continue };
            let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
            let fd = Arc::new(fd);
            let stranger = shared.stranger(&fd);
            let socket = Socket::new(Wire::plain(Tcp::new(fd, &shared.config)));
            let setup =
                Setup::new(socket, peer, self.gate.clone(), stranger, until(shared.config.setup_timeout));
            let id = shared.id();
            shared.mailbox().post(Command::Adopt(id, Box::new(Link::Setup(setup))));
        }
    }
}

impl Listener for Handle {
    fn local_address(&self) -> SocketAddr {
        self.address
    }

    fn kinds(&self) -> Vec<Kind> {
        vec![if self.tls_key.is_some() { Kind::IwarpTls } else { Kind::Iwarp }]
    }

    fn tls_key(&self) -> Option<Bytes> {
        self.tls_key.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // On Linux this stops the listening at once, before the worker has let the socket go.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        self.mailbox.post(Command::Remove(self.id));
    }
}
