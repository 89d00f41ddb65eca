//! Where the receiver's bytes come from: a socket that is never waited for, or a test's.

use rustix::fd::{AsRawFd, OwnedFd};
use std::io;
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

/// A TCP socket.
pub(crate) struct Socket {
    pub(crate) fd: Arc<OwnedFd>,
    /// The last read got less than it asked for, so that the next would get nothing. Edge-triggered polling tells of
    /// what comes later (epoll(7), question 9).
    drained: bool,
    /// The peer has closed, or failed: there is an end to be read behind the data.
    ending: bool,
}

impl Socket {
    pub(crate) fn new(fd: Arc<OwnedFd>) -> Socket {
        Socket { fd, drained: false, ending: false }
    }

    /// There is something to read, says the poll.
    pub(crate) fn readable(&mut self, ending: bool) {
        self.drained = false;
        self.ending |= ending;
    }
}

impl Stream for Socket {
    unsafe fn read(&mut self, memory: (*mut u8, usize), staging: &mut [u8]) -> io::Result<usize> {
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
        let got = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        self.drained = got < memory.1 + staging.len();
        Ok(got)
    }
}
