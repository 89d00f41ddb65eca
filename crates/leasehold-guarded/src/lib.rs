//! For programs that run under `leasehold guard`: hear who wants a file, let it go, and take it again.
//!
//! ```no_run
//! use leasehold_guarded::{Guarded, Notice};
//!
//! let Some(mut guard) = Guarded::from_env()? else { return Ok(()) }; // nobody guards us
//! while let Some(notice) = guard.next()? {
//!     if let Notice::Break { id, file, .. } = notice {
//!         // .. wait for DMA under way, deregister the memory of `file`, and only then:
//!         guard.release(id)?;
//!         // .. once it is to be registered again:
//!         guard.hold(&file)?;
//!     }
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//! `include/leasehold_guarded.h` is the same for C. The lines are documented in `docs/guard.md`.

use serde::Deserialize;
use std::ffi::c_void;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{FromRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the descriptor's number is.
const BREAK_FD: &str = "LEASEHOLD_BREAK_FD";

/// The guard, from the side of the guarded program.
#[derive(Debug)]
pub struct Guarded {
    socket: BufReader<UnixStream>,
}

/// What the guard says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Notice {
    /// The file is under a lease of this program.
    Held {
        /// Which.
        file: PathBuf,
    },
    /// It is not, after `hold`: the guard's log says why.
    #[serde(rename = "not held")]
    NotHeld {
        /// Which.
        file: PathBuf,
    },
    /// Somebody waits for the program to let go.
    Break {
        /// What [`Guarded::release`] takes.
        id: u64,
        /// Which file.
        file: PathBuf,
        /// The first byte under lease.
        start: u64,
        /// One past the last; none: to the end.
        end: Option<u64>,
        /// What for, in the words after "wanted to".
        operation: String,
        /// Who.
        breaker: Breaker,
        /// How long there is, in milliseconds.
        grace_ms: u64,
        /// Until when, in milliseconds since 1970.
        deadline_ms: u64,
    },
    /// A break is over, be it answered or not.
    Ended {
        /// Which break.
        id: u64,
        /// Which file.
        file: PathBuf,
        /// `released`, `breaker refused`, `breaker gone`.
        outcome: String,
    },
}

/// Who breaks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Breaker {
    /// The process.
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// The program's name.
    pub program: String,
    /// Whether the kernel vouches for the above.
    pub verified: bool,
}

impl Guarded {
    /// The guard of this program; `None`, if it has none, or if it was asked for before: there is one socket.
    ///
    /// # Errors
    /// If the environment names something that is no descriptor.
    pub fn from_env() -> io::Result<Option<Guarded>> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let Ok(number) = std::env::var(BREAK_FD) else { return Ok(None) };
        let number: RawFd = number.parse().map_err(io::Error::other)?;
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        // SAFETY: the guard gave the descriptor to this program for this, and it is taken once.
        Ok(Some(Guarded::on(unsafe { UnixStream::from_raw_fd(number) })))
    }

    fn on(socket: UnixStream) -> Guarded {
        Guarded { socket: BufReader::new(socket) }
    }

    /// The next notice; waits for it. `None` once the guard is gone: from then on everybody passes.
    ///
    /// # Errors
    /// Those of reading, and of a line that is no notice.
    #[expect(clippy::should_implement_trait, reason = "an error is no end")]
    pub fn next(&mut self) -> io::Result<Option<Notice>> {
        let mut line = String::new();
        if self.socket.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }

    /// Lets go: nothing reaches the file's memory any more, and nothing under way will. The breaker goes on at once.
    ///
    /// # Errors
    /// Those of writing.
    pub fn release(&mut self, id: u64) -> io::Result<()> {
        self.say(&format!("release {id}\n"))
    }

    /// Takes the file again, by the name that notices have. [`Notice::Held`] is the answer; before it comes, nothing holds
    /// anybody.
    ///
    /// # Errors
    /// Those of writing.
    pub fn hold(&mut self, file: &Path) -> io::Result<()> {
        self.say(&format!("hold {}\n", file.display()))
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.socket.get_mut().write_all(line.as_bytes())
    }
}

/// Makes what DMA has written into a mapping durable, while the memory stays registered. fsync alone does not: writeback
/// cleans a page, and DMA that comes later does not make it dirty again, so that fsync finds nothing to write.
///
/// It makes the pages dirty by `MADV_POPULATE_WRITE`, then calls fsync. DMA that lands meanwhile may be durable or not, and a
/// page may be written while it changes: call it while nothing is written to the range.
///
/// # Errors
/// EINVAL before Linux 5.14; EFAULT, if the pages cannot be written to; else those of fsync(2).
///
/// # Safety
/// `address`, a multiple of the page size, begins a writable shared mapping of `file` that is at least `length` bytes long and
/// stays mapped during the call.
pub unsafe fn make_durable(file: &File, address: *mut c_void, length: usize) -> io::Result<()> {
    // SAFETY: the caller upholds it; the call changes no byte.
    unsafe { rustix::mm::madvise(address, length, rustix::mm::Advice::LinuxPopulateWrite) }?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_understood_and_answered() {
        let (guard, program) = UnixStream::pair().unwrap();
        let mut program = Guarded::on(program);
        let line = r#"{"event":"break","id":7,"file":"/a","start":0,"end":null,"operation":"punch 0..4096",
            "breaker":{"pid":9,"uid":0,"program":"fallocate","verified":true},"grace_ms":30,"deadline_ms":5}"#;
        writeln!(&guard, "{}", line.replace('\n', "")).unwrap();
        writeln!(&guard, r#"{{"event":"not held","file":"/a"}}"#).unwrap();
        let Some(Notice::Break { id: 7, breaker, .. }) = program.next().unwrap() else { panic!("a break") };
        assert_eq!(breaker.program, "fallocate");
        assert_eq!(program.next().unwrap(), Some(Notice::NotHeld { file: "/a".into() }));
        program.release(7).unwrap();
        program.hold(Path::new("/a b")).unwrap();
        let mut heard = BufReader::new(&guard).lines();
        assert_eq!(heard.next().unwrap().unwrap(), "release 7");
        assert_eq!(heard.next().unwrap().unwrap(), "hold /a b");
        drop(heard);
        drop(guard);
        assert_eq!(program.next().unwrap(), None);
    }

    #[test]
    fn pages_of_a_shared_mapping_are_made_durable_and_other_memory_is_refused() {
        use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
        let file = tempfile::tempfile_in(".").unwrap();
        file.set_len(8192).unwrap();
        let map = |protection| {
            // SAFETY: at an address that the kernel chooses.
            unsafe { mmap(std::ptr::null_mut(), 8192, protection, MapFlags::SHARED, &file, 0) }.unwrap()
        };
        let (written, read) = (map(ProtFlags::READ | ProtFlags::WRITE), map(ProtFlags::READ));
        // SAFETY: mapped above, and unmapped below.
        unsafe {
            make_durable(&file, written, 8192).unwrap();
            assert!(make_durable(&file, read, 8192).is_err());
            munmap(written, 8192).unwrap();
            munmap(read, 8192).unwrap();
        }
    }
}
