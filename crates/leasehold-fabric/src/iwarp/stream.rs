//! Where the receiver's bytes come from, and the sender's go: a socket that is never waited for, with TLS on it or without; or
//! a test's.

use super::outgoing::{self, OutFrame};
use super::tcp::Tcp;
use super::tls::Tls;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// A stream of bytes that never blocks.
pub(crate) trait Stream {
    /// Reads into `memory` (an address and a length, which may be 0), and what is more into `staging`. `Ok(0)` is the
    /// end of the stream; `WouldBlock` says that nothing is there.
    ///
    /// # Safety
    /// The caller upholds that `memory` is valid for writes of its length, and that nobody else touches it meanwhile.
    unsafe fn read(&mut self, memory: (*mut u8, usize), staging: &mut [u8]) -> io::Result<usize>;
}

/// A connection's bytes, with TLS or without: what both of its halves share.
pub(crate) struct Wire {
    pub(crate) tcp: Tcp,
    tls: Option<Tls>,
}

impl Wire {
    pub(crate) fn plain(tcp: Tcp) -> Wire {
        Wire { tcp, tls: None }
    }

    /// TLS, begun or about to.
    pub(crate) fn encrypted(tcp: Tcp, connection: rustls::Connection) -> Wire {
        Wire { tls: Some(Tls::new(connection, tcp.clone())), tcp }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Hands frames over, and says how many bytes were taken; [`Wire::flush`] says whether they are gone. They are copied:
    /// nothing refers to them afterwards.
    pub(crate) fn send(&self, frames: &[OutFrame]) -> io::Result<usize> {
        let (parts, used) = outgoing::parts(frames);
        self.send_parts(&parts[..used])
    }

    /// The same with bytes.
    pub(crate) fn send_bytes(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_parts(&[IoSlice::new(bytes)])
    }

    fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.or_end(match &self.tls {
            None => self.tcp.send(parts),
            Some(tls) => tls.send(parts),
        })
    }

    /// Sends what was taken and is not gone yet. `WouldBlock`: the socket takes no more now.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |tls| self.or_end(tls.flush()))
    }

    /// Says that nothing more will be sent, where that is said in bytes.
    pub(crate) fn close(&self) {
        if let Some(tls) = &self.tls {
            tls.close();
        }
    }

    /// A send that failed for good ends the stream: nobody would wait for what is left.
    fn or_end<T>(&self, sent: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &sent
            && !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        {
            self.tcp.fail();
        }
        sent
    }
}

/// The receiving half of a wire.
#[derive(Clone)]
pub(crate) struct Socket {
    pub(crate) wire: Arc<Wire>,
    /// The last read got less than it asked for, so that the next would get nothing. Edge-triggered polling tells of
    /// what comes later (epoll(7), question 9).
    drained: bool,
    /// The peer has closed, or failed: there is an end to be read behind the data.
    ending: bool,
}

impl Socket {
    pub(crate) fn new(wire: Wire) -> Socket {
        Socket { wire: Arc::new(wire), drained: false, ending: false }
    }

    /// There is something to read, says the poll.
    pub(crate) fn readable(&mut self, ending: bool) {
        self.drained = false;
        self.ending |= ending;
    }
}

impl Stream for Socket {
    unsafe fn read(&mut self, memory: (*mut u8, usize), staging: &mut [u8]) -> io::Result<usize> {
        if let Some(tls) = &self.wire.tls {
            // SAFETY: by this function's contract.
            return unsafe { tls.read(memory, staging) };
        }
        if self.drained && !self.ending {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // SAFETY: by this function's contract.
        let got = unsafe { self.wire.tcp.receive(memory, staging) }?;
        self.drained = got < memory.1 + staging.len();
        Ok(got)
    }
}
