//! Where the receiver's bytes come from, and the sender's go: a socket that is never waited for, with TLS on it or without; or
//! a test's.

use super::outgoing::{self, OutFrame};
use super::tls::Tls;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::RecvFlags;
use std::io::{self, IoSlice, Read};
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

/// A TCP socket, with TLS on it or without: what both halves of a connection share.
pub(crate) struct Wire {
    pub(crate) fd: Arc<OwnedFd>,
    tls: Option<Tls>,
}

impl Wire {
    pub(crate) fn plain(fd: Arc<OwnedFd>) -> Wire {
        Wire { fd, tls: None }
    }

    /// TLS, begun or about to.
    pub(crate) fn encrypted(fd: Arc<OwnedFd>, connection: rustls::Connection) -> Wire {
        Wire { tls: Some(Tls::new(connection, fd.clone())), fd }
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
        match &self.tls {
            None => outgoing::send_parts(&self.fd, parts),
            Some(tls) => tls.send(&self.fd, parts),
        }
    }

    /// Sends what was taken and is not gone yet. `WouldBlock`: the socket takes no more now.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.flush(&self.fd))
    }

    /// Says that nothing more will be sent, where that is said in bytes.
    pub(crate) fn close(&self) {
        if let Some(tls) = &self.tls {
            tls.close(&self.fd);
        }
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
    pub(crate) fn new(wire: Arc<Wire>) -> Socket {
        Socket { wire, drained: false, ending: false }
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
        let mut parts = [
            libc::iovec { iov_base: memory.0.cast(), iov_len: memory.1 },
            libc::iovec { iov_base: staging.as_mut_ptr().cast(), iov_len: staging.len() },
        ];
        let used = if memory.1 == 0 { &mut parts[1..] } else { &mut parts[..] };
        // SAFETY: all zeroes is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = used.as_mut_ptr();
        message.msg_iovlen = used.len() as _;
        // SAFETY: the first part is valid for writes by this function's contract, the second is a slice of ours; the
        // call does not wait, and keeps no reference once it has returned.
        let got = unsafe { libc::recvmsg(self.wire.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        self.drained = got < memory.1 + staging.len();
        Ok(got)
    }
}

/// A socket, as one that has bytes or says `WouldBlock`.
pub(crate) struct Incoming(pub(crate) Arc<OwnedFd>);

impl Read for Incoming {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.0, bytes, RecvFlags::DONTWAIT)?.0)
    }
}
