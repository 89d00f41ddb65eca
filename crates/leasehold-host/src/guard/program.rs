//! The guarded program: how it is started, told, heard, and killed.
//!
//! It hears and answers on one socket, the descriptor in `LEASEHOLD_BREAK_FD`: a line of JSON for each notice; an answer is
//! `release ID` for a break, or `hold PATH` once a file that was let go is in use again.

use super::process;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Signal, WaitOptions, set_child_subreaper, wait};
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What the descriptor's number is called.
pub const BREAK_FD: &str = "LEASEHOLD_BREAK_FD";
/// A program that does not read hears no more than these.
const UNREAD_BYTES_MAX: usize = 1 << 20;

/// A program under guard, with all that it starts.
pub(super) struct Program {
    pub(super) pid: u32,
    pidfd: OwnedFd,
    /// All of it descends from here.
    root: u32,
    socket: Option<UnixStream>,
    unsent: Vec<u8>,
    unread: Vec<u8>,
    /// How the first process ended: the code for a shell.
    code: Option<i32>,
    killed: Vec<OwnedFd>,
}

impl Program {
    /// Starts a command. What loses its parent becomes a child of ours, so that nothing gets away.
    pub(super) fn start(command: &[OsString]) -> io::Result<Program> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        set_child_subreaper(Some(rustix::process::getpid()))?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new(program);
        command.args(arguments).env(BREAK_FD, std::os::fd::AsRawFd::as_raw_fd(&theirs).to_string());
        let number = std::os::fd::AsRawFd::as_raw_fd(&theirs);
        let inherit = move || {
            // SAFETY: `theirs` is open until after the fork.
            let theirs = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            Ok(fcntl_setfd(theirs, FdFlags::empty())?)
        };
        // SAFETY: between fork and exec it makes one system call, and takes no lock and no memory.
        unsafe { command.pre_exec(inherit) };
        let pid = command.spawn()?.id();
        let pidfd = process::open(pid).ok_or(io::ErrorKind::NotFound)?;
        drop(theirs);
        Ok(Program::of(pid, pidfd, std::process::id(), Some(ours)))
    }

    /// One that runs already, and cannot be told anything but by a signal.
    pub(super) fn running(pid: u32) -> io::Result<Program> {
        let pidfd = process::open(pid).ok_or_else(|| io::Error::from(Errno::SRCH))?;
        Ok(Program::of(pid, pidfd, pid, None))
    }

    fn of(pid: u32, pidfd: OwnedFd, root: u32, socket: Option<UnixStream>) -> Program {
        let (unsent, unread, code, killed) = (Vec::new(), Vec::new(), None, Vec::new());
        Program { pid, pidfd, root, socket, unsent, unread, code, killed }
    }

    pub(super) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    pub(super) fn socket(&self) -> Option<&UnixStream> {
        self.socket.as_ref()
    }

    /// Whether this process belongs to it.
    pub(super) fn includes(&self, pid: u32) -> bool {
        process::descends(pid, self.root)
    }

    fn is_ours(&self) -> bool {
        self.root != self.pid
    }

    /// Whether nothing of it lives any more, so that the kernel holds no memory for it.
    pub(super) fn is_over(&mut self) -> bool {
        if self.is_ours() {
            self.reap();
            return self.code.is_some() && process::descendants(self.root).is_empty();
        }
        process::has_ended(&self.pidfd) && self.killed.iter().all(process::has_ended)
    }

    /// The code that it ended with, as a shell has it.
    pub(super) fn code(&self) -> i32 {
        self.code.unwrap_or(0)
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid.as_raw_pid().cast_unsigned() == self.pid {
                let signalled = || status.terminating_signal().map(|signal| 128 + signal);
                self.code = status.exit_status().or_else(signalled).or(Some(1));
            }
        }
    }

    /// Kills all of it. To be repeated until [`Program::is_over`]: it may just be starting more.
    pub(super) fn kill(&mut self) {
        process::signal(&self.pidfd, Signal::KILL);
        for pid in process::descendants(self.root) {
            if let Some(pidfd) = process::open(pid)
                && self.includes(pid)
            {
                process::signal(&pidfd, Signal::KILL);
                if !self.is_ours() {
                    self.killed.push(pidfd);
                }
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        process::signal(&self.pidfd, signal);
    }

    /// Tells it a line, without ever waiting for it; whether there was room.
    pub(super) fn tell(&mut self, line: &str) -> bool {
        if self.socket.is_none() {
            return true;
        }
        let fits = self.unsent.len() + line.len() < UNREAD_BYTES_MAX;
        if fits {
            self.unsent.extend_from_slice(line.as_bytes());
            self.unsent.push(b'\n');
        }
        self.send();
        fits
    }

    /// Sends what did not fit before.
    pub(super) fn send(&mut self) {
        while let Some(socket) = &mut self.socket
            && !self.unsent.is_empty()
        {
            match socket.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It has closed its end.
                Err(_) => self.socket = None,
            }
        }
    }

    /// What it has answered by now, in whole lines.
    pub(super) fn answers(&mut self) -> Vec<String> {
        let mut bytes = [0; 4096];
        // Whoever talks on and on is heard next time.
        for _ in 0..16 {
            let Some(socket) = &mut self.socket else { break };
            match socket.read(&mut bytes) {
                Ok(0) => self.socket = None,
                Ok(read) if self.unread.len() < UNREAD_BYTES_MAX => {
                    self.unread.extend_from_slice(&bytes[..read]);
                }
                Ok(_) => self.unread.clear(),
                Err(_) => break,
            }
        }
        let Some(end) = self.unread.iter().rposition(|&byte| byte == b'\n') else { return Vec::new() };
        let whole: Vec<u8> = self.unread.drain(..=end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}
