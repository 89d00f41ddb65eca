//! The disk by pread and pwrite on a few threads, where io_uring is forbidden.

use crate::disk::{self, Call, Disk, Done, Fate, Fates, Memory, Part, Progress, Transfer, Verb};
use crate::sync::{self, Condvar, JoinHandle, Mutex};
use crate::workers::or_abort;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// See the module.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    fates: Option<Fates>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Transfer, Done)>,
    closed: bool,
}

impl Threads {
    pub(crate) fn start(count: usize, fates: Option<Fates>) -> io::Result<Threads> {
        let shared = Arc::new(Shared { fates, ..Shared::default() });
        let threads = (0..count)
            .map(|_| {
                let shared = Arc::clone(&shared);
                sync::spawn("storage-disk", move || or_abort(|| shared.run()))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Threads { shared, threads: Mutex::new(threads) })
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut queue = self.queue.lock().expect("no panic while held");
            let (transfer, done) = loop {
                if let Some(next) = queue.waiting.pop_front() {
                    break next;
                }
                if queue.closed {
                    return;
                }
                queue = self.filled.wait(queue).expect("no panic while held");
            };
            drop(queue);
            let result = perform(&transfer, self.fates.as_ref());
            done(result, transfer.memory);
        }
    }
}

impl Disk for Threads {
    fn fate(&self, call: Call, file: &str) -> Fate {
        Fates::of(self.shared.fates.as_ref(), call, file)
    }

    fn submit(&self, transfer: Transfer, done: Done) {
        let mut queue = self.shared.queue.lock().expect("no panic while held");
        if queue.closed {
            drop(queue);
            return disk::refuse(transfer, done);
        }
        queue.waiting.push_back((transfer, done));
        drop(queue);
        self.shared.filled.notify_one();
    }

    fn read_here(&self, transfer: Transfer) -> (io::Result<usize>, Memory) {
        (perform(&transfer, self.shared.fates.as_ref()), transfer.memory)
    }

    fn finish(&self) {
        self.shared.queue.lock().expect("no panic while held").closed = true;
        self.shared.filled.notify_all();
        for thread in self.threads.lock().expect("no panic while held").drain(..) {
            sync::join(thread);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Does it on this thread.
pub(crate) fn perform(transfer: &Transfer, fates: Option<&Fates>) -> io::Result<usize> {
    let mut progress = Progress::default();
    loop {
        let answer = match progress.next(transfer, fates) {
            Ok(part) => perform_part(transfer, part),
            Err(error) => Err(io::Error::from_raw_os_error(error)),
        };
        if let Some(outcome) = progress.answered(transfer, answer) {
            return outcome;
        }
    }
}

fn perform_part(transfer: &Transfer, Part { skip, length, said_max }: Part) -> io::Result<usize> {
    // SAFETY: the part lies within the memory.
    let base = unsafe { transfer.memory.address().add(skip) }.as_ptr().cast();
    let part = libc::iovec { iov_base: base, iov_len: length };
    let (fd, offset) = (transfer.file.file.as_raw_fd(), (transfer.offset + skip as u64).cast_signed());
    let result = match transfer.verb {
        // SAFETY: the memory is the transfer's, valid and unshared until `done`.
        Verb::Read => unsafe { libc::preadv(fd, &raw const part, 1, offset) },
        // SAFETY: as above.
        Verb::Write => unsafe { libc::pwritev2(fd, &raw const part, 1, offset, libc::RWF_DSYNC) },
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(said_max.min(result as usize)) }
}
