//! The disk by io_uring: one thread, one ring, fed by a queue and an eventfd.
//!
//! The ring is made and used by its thread alone (SINGLE_ISSUER, DEFER_TASKRUN where the kernel has them). The arena's
//! disk view is registered as fixed buffers of at most 1 GiB, where the limit of locked memory allows it.

use crate::disk::{self, Call, Disk, Done, Fate, Fates, Memory, Part, Progress, Transfer, Verb};
use crate::sync::{self, JoinHandle, Mutex, mpsc};
use crate::threads;
use crate::workers::or_abort;
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

const DEPTH: u32 = 128;
const FIXED_BYTES: usize = 1 << 30;
const DOORBELL: u64 = u64::MAX;

/// See the module.
pub(crate) struct Ring {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    doorbell: OwnedFd,
    fates: Option<Fates>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Transfer, Done)>,
    closed: bool,
}

/// A transfer in the ring, which may take several calls.
struct Flight {
    transfer: Transfer,
    done: Done,
    progress: Progress,
    /// What the kernel is said to have answered: this error, or at most so many bytes.
    said: Result<usize, i32>,
}

/// The view to register: its address and length.
#[derive(Clone, Copy)]
pub(crate) struct View(pub(crate) NonNull<u8>, pub(crate) usize);

// SAFETY: only an address; the ring's thread hands it to the kernel, which pins the pages.
unsafe impl Send for View {}

impl Ring {
    /// Starts the thread. `Ok` with a note if the view could not be registered.
    pub(crate) fn start(view: View, fates: Option<Fates>) -> io::Result<(Ring, Option<String>)> {
        let doorbell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { queue: Mutex::default(), doorbell, fates });
        let (report, started) = mpsc::channel();
        let for_thread = Arc::clone(&shared);
        let thread = sync::spawn("storage-ring", move || {
            match Issuer::new(for_thread, view) {
                Ok((issuer, note)) => {
                    // The starter waits right below.
                    let _ = report.send(Ok(note));
                    or_abort(|| issuer.run());
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        })?;
        let note = started.recv().expect("the thread reports before it ends")?;
        Ok((Ring { shared, thread: Mutex::new(Some(thread)) }, note))
    }

    fn ring_doorbell(&self) {
        rustix::io::write(&self.shared.doorbell, &1u64.to_ne_bytes())
            .expect("an eventfd takes 2^64 doorbells");
    }
}

impl Disk for Ring {
    fn fate(&self, call: Call, file: &str) -> Fate {
        Fates::of(self.shared.fates.as_ref(), call, file)
    }

    fn submit(&self, transfer: Transfer, done: Done) {
        let was_empty = {
            let mut queue = self.shared.queue.lock().expect("no panic while held");
            if queue.closed {
                drop(queue);
                return disk::refuse(transfer, done);
            }
            queue.waiting.push_back((transfer, done));
            queue.waiting.len() == 1
        };
        if was_empty {
            self.ring_doorbell();
        }
    }

    fn read_here(&self, transfer: Transfer) -> (io::Result<usize>, Memory) {
        (threads::perform(&transfer, self.shared.fates.as_ref()), transfer.memory)
    }

    fn finish(&self) {
        self.shared.queue.lock().expect("no panic while held").closed = true;
        self.ring_doorbell();
        let thread = self.thread.lock().expect("no panic while held").take();
        // It is this one if the last completion owned the last reference to what owns the ring.
        thread.map(sync::join);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The thread's own state.
struct Issuer {
    ring: IoUring,
    shared: Arc<Shared>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// The registered view; fixed operations are used within it.
    fixed: Option<View>,
    doorbell_count: Box<[u8; 8]>,
}

impl Issuer {
    fn new(shared: Arc<Shared>, view: View) -> io::Result<(Issuer, Option<String>)> {
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_cqsize(DEPTH * 4)
            .build(DEPTH * 2);
        let ring = match modern {
            // Kernels before 6.1 know not all of the flags.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_cqsize(DEPTH * 4).build(DEPTH * 2)?
            }
            other => other?,
        };
        let View(address, length) = view;
        let buffers: Vec<_> = (0..length)
            .step_by(FIXED_BYTES)
            .map(|offset| libc::iovec {
                // SAFETY: the offset is within the view.
                iov_base: unsafe { address.add(offset) }.as_ptr().cast(),
                iov_len: FIXED_BYTES.min(length - offset),
            })
            .collect();
        // SAFETY: the view outlives the ring: whoever holds the storage holds the arena, and the storage ends the ring.
        let registered = unsafe { ring.submitter().register_buffers(&buffers) };
        let (fixed, note) = match registered {
            Ok(()) => (Some(view), None),
            Err(error) => (
                None,
                Some(format!(
                    "the arena could not be registered with io_uring ({error}): writes pin its pages one by one; raise the \
                     limit of locked memory (ulimit -l) to {} KiB",
                    length >> 10
                )),
            ),
        };
        let depth = DEPTH as usize;
        let flights = (0..depth).map(|_| None).collect();
        let free = (0..depth).collect();
        Ok((Issuer { ring, shared, flights, free, fixed, doorbell_count: Box::new([0; 8]) }, note))
    }

    fn run(mut self) {
        self.arm_doorbell();
        loop {
            let closed = self.take_queue();
            if closed && self.free.len() == self.flights.len() {
                return;
            }
            let entered = match Fates::of(self.shared.fates.as_ref(), Call::Enter, "") {
                Fate::Fails(error) => Err(io::Error::from_raw_os_error(error)),
                Fate::Asked | Fate::Short(_) => self.ring.submit_and_wait(1),
            };
            match entered {
                Ok(_) => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(error) => panic!("io_uring_enter failed on a ring that is ours alone: {error}"),
            }
            let completions: Vec<_> = self.ring.completion().map(|c| (c.user_data(), c.result())).collect();
            for (what, result) in completions {
                match what {
                    DOORBELL => self.arm_doorbell(),
                    flight => self.complete(flight as usize, result),
                }
            }
        }
    }

    fn arm_doorbell(&mut self) {
        let into = self.doorbell_count.as_mut_ptr();
        let doorbell = types::Fd(self.shared.doorbell.as_fd().as_raw_fd());
        let entry = opcode::Read::new(doorbell, into, 8).build().user_data(DOORBELL);
        self.push(&entry);
    }

    /// Whether no more will come.
    fn take_queue(&mut self) -> bool {
        while let Some(slot) = self.free.pop() {
            let mut queue = self.shared.queue.lock().expect("no panic while held");
            let Some((transfer, done)) = queue.waiting.pop_front() else {
                self.free.push(slot);
                return queue.closed;
            };
            drop(queue);
            self.flights[slot] = Some(Flight { transfer, done, progress: Progress::default(), said: Ok(0) });
            self.start(slot);
        }
        false
    }

    fn start(&mut self, slot: usize) {
        let flight = self.flights[slot].as_mut().expect("started when filled");
        let part = flight.progress.next(&flight.transfer, self.shared.fates.as_ref());
        flight.said = part.map(|part| part.said_max);
        let Ok(Part { skip, length, .. }) = part else {
            return self.push(&opcode::Nop::new().build().user_data(slot as u64));
        };
        let transfer = &flight.transfer;
        let file = types::Fd(transfer.file.file.as_raw_fd());
        // SAFETY: the part lies within the memory.
        let address = unsafe { transfer.memory.address().add(skip) }.as_ptr();
        let (length, offset) = (length as u32, transfer.offset + skip as u64);
        let fixed = self.fixed.filter(|_| matches!(transfer.memory, Memory::Frames { .. }));
        let entry = match (transfer.verb, fixed) {
            (Verb::Read, Some(view)) => {
                opcode::ReadFixed::new(file, address, length, buffer_of(view, address)).offset(offset).build()
            }
            (Verb::Read, None) => opcode::Read::new(file, address, length).offset(offset).build(),
            (Verb::Write, Some(view)) => {
                opcode::WriteFixed::new(file, address, length, buffer_of(view, address))
                    .offset(offset)
                    .rw_flags(libc::RWF_DSYNC)
                    .build()
            }
            (Verb::Write, None) => {
                opcode::Write::new(file, address, length).offset(offset).rw_flags(libc::RWF_DSYNC).build()
            }
        };
        self.push(&entry.user_data(slot as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the memory of a flight stays put until its completion, since the flight owns it; so do the file and
        // the doorbell's count.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the submission queue has twice as many places as there are flights");
    }

    fn complete(&mut self, slot: usize, result: i32) {
        let flight = self.flights[slot].as_mut().expect("completed once");
        let answer = match flight.said {
            Err(error) => Err(io::Error::from_raw_os_error(error)),
            Ok(_) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            Ok(said_max) => Ok(said_max.min(result as usize)),
        };
        let Some(outcome) = flight.progress.answered(&flight.transfer, answer) else {
            return self.start(slot);
        };
        let Flight { transfer, done, .. } = self.flights[slot].take().expect("checked above");
        self.free.push(slot);
        done(outcome, transfer.memory);
    }
}

fn buffer_of(view: View, address: *mut u8) -> u16 {
    let offset = address as usize - view.0.as_ptr() as usize;
    u16::try_from(offset / FIXED_BYTES).expect("an arena has at most 16 TiB")
}
