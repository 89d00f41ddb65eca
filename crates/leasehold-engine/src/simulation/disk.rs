//! A disk whose operations fail now and then, and whose power goes.
//!
//! It stands between the recorder, which knows what is durable, and the threads that read and write: under a simulation
//! these are tasks, so that transfers are done in any order. A transfer that fails may have been done all the same.

use super::{chance, trace};
use crate::disk::{Call, Disk, DiskFile, Done, Fate, Transfer, Verb};
use crate::sync;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How a disk fails.
#[derive(Default)]
pub(crate) struct Trouble {
    /// Once in so many operations; 0 for never.
    pub(crate) once_in: AtomicU64,
    /// The power is gone: nothing works.
    pub(crate) dead: AtomicBool,
}

impl Trouble {
    /// The operation's fate.
    fn comes(&self, to: impl FnOnce() -> String) -> io::Result<()> {
        let is_full = chance(2);
        if self.dead.load(Ordering::Relaxed) || chance(self.once_in.load(Ordering::Relaxed)) {
            let error = if is_full { libc::ENOSPC } else { libc::EIO };
            trace(|| format!("the disk fails with {error}: {}", to()));
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(())
    }
}

/// See the module.
pub(crate) struct Troubled {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) trouble: Arc<Trouble>,
}

impl Disk for Troubled {
    fn fate(&self, call: Call, file: &str) -> Fate {
        self.disk.fate(call, file)
    }

    fn submit(&self, transfer: Transfer, done: Done) {
        let Transfer { verb, file, offset, memory } = &transfer;
        let what = || format!("{verb:?} of {} bytes at {offset} of {}", memory.len(), file.name);
        trace(what);
        match self.trouble.comes(what) {
            Ok(()) => self.disk.submit(transfer, done),
            Err(error) if transfer.verb == Verb::Write && chance(2) => {
                self.disk.submit(transfer, Box::new(move |_, memory| done(Err(error), memory)));
            }
            // Not from the caller's thread, which may hold what `done` needs.
            Err(error) => {
                let fail = move || done(Err(error), transfer.memory);
                sync::spawn("disk-fault", fail).expect("a thread");
            }
        }
    }

    fn finish(&self) {
        self.disk.finish();
    }

    fn sync(&self, file: &DiskFile) -> io::Result<()> {
        self.trouble.comes(|| format!("flush of {}", file.name))?;
        self.disk.sync(file)
    }

    fn truncate(&self, file: &DiskFile, size: u64) -> io::Result<()> {
        self.trouble.comes(|| format!("length {size} of {}", file.name))?;
        self.disk.truncate(file, size)
    }

    fn punch(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        self.trouble.comes(|| format!("hole of {length} bytes at {offset} in {}", file.name))?;
        self.disk.punch(file, offset, length)
    }

    fn sync_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.trouble.comes(|| "flush of a directory".to_owned())?;
        self.disk.sync_directory(directory)
    }
}
