//! A TCP socket that is never waited for: the system calls of the data path.

use super::Config;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

/// A TCP socket.
#[derive(Clone)]
pub(crate) struct Tcp {
    pub(crate) fd: Arc<OwnedFd>,
    #[cfg(feature = "mutation")]
    fates: Option<Fates>,
}

impl Tcp {
    #[cfg_attr(
        not(feature = "mutation"),
        expect(unused_variables, reason = "nothing else of it matters here")
    )]
    pub(crate) fn new(fd: impl Into<Arc<OwnedFd>>, config: &Config) -> Tcp {
        Tcp {
            fd: fd.into(),
            #[cfg(feature = "mutation")]
            fates: config.fates.clone(),
        }
    }

    /// Sends, and says how many bytes the socket took. They are copied: it refers to nothing afterwards.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(feature = "mutation")]
        let cut;
        #[cfg(feature = "mutation")]
        let parts = match Fates::fate(self.fates.as_ref(), Call::Send)? {
            None => parts,
            Some(most) => {
                let first = parts.first().map_or(&[][..], |part| part);
                cut = [IoSlice::new(&first[..first.len().min(most)])];
                &cut
            }
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(rustix::net::sendmsg(&self.fd, parts, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Reads into `memory`, and what is more into `staging`.
    ///
    /// # Safety
    /// As for [`Stream::read`](super::stream::Stream::read).
    pub(crate) unsafe fn receive(&self, memory: (*mut u8, usize), staging: &mut [u8]) -> io::Result<usize> {
        #[cfg(feature = "mutation")]
        Fates::fate(self.fates.as_ref(), Call::Receive)?;
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
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// Sending has failed for good: the receiving half finds the end of the stream, and ends the connection.
    pub(crate) fn fail(&self) {
        // If it is not connected any more, that is found as well.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }
}

impl Read for Tcp {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // SAFETY: no memory is named.
        unsafe { self.receive((std::ptr::null_mut(), 0), bytes) }
    }
}

impl Write for &Tcp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A system call on a socket.
#[cfg(feature = "mutation")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// sendmsg.
    Send,
    /// recvmsg.
    Receive,
}

/// What becomes of a call.
#[cfg(feature = "mutation")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// What the kernel does.
    Asked,
    /// It takes at most so many bytes. (Of a send: what a receive gets, the peer can cut as it likes.)
    Short(usize),
    /// It fails with this errno, and does nothing.
    Fails(i32),
}

/// What becomes of each call, for tests.
#[cfg(feature = "mutation")]
#[derive(Clone)]
pub struct Fates(Arc<dyn Fn(Call) -> Fate + Send + Sync>);

#[cfg(feature = "mutation")]
impl Fates {
    /// `decide` is asked before each call, by whichever thread.
    pub fn new(decide: impl Fn(Call) -> Fate + Send + Sync + 'static) -> Fates {
        Fates(Arc::new(decide))
    }

    /// At most so many bytes, if that is so.
    fn fate(fates: Option<&Fates>, call: Call) -> io::Result<Option<usize>> {
        match fates.map_or(Fate::Asked, |fates| (fates.0)(call)) {
            Fate::Asked => Ok(None),
            Fate::Short(most) => Ok(Some(most)),
            Fate::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

#[cfg(feature = "mutation")]
impl std::fmt::Debug for Fates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fates").finish_non_exhaustive()
    }
}
