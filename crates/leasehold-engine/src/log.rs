//! The write-ahead record: what recovery needs to know, durable before it is needed.
//!
//! Records are gathered while a batch is on its way to the disk, and the next batch takes them all: one batch is in
//! flight at a time, so that a batch that can be read proves all before it durable, and only the last may be torn.
//!
//! Two segment files take turns. A checkpoint [switches](Log::switch) to the other one, which first repeats the records
//! that are still open (their data is not durable yet), writes the sidecars back, and [retires](Log::retire) the old one.
//! Segments are written once at creation, so that a batch changes no metadata and costs one flush.
//!
//! Invariant: a record is in a segment that is not retired until its data is durable *and* the sidecar pages that it
//! touches are. `open` holds those whose data is not.

pub(crate) mod segment;

pub(crate) use segment::{Scan, SegmentHead, scan};

use crate::disk::{Disk, DiskFile, Memory, Transfer, Verb};
use crate::identity::Identity;
use crate::record::{BATCH_ALIGNMENT, BatchHead, Body, Record};
use crate::sync::{self, Condvar, Mutex, MutexGuard};
use crate::{buffer::Buffer, disk};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

/// A batch takes no more records once it is this long.
const BATCH_BYTES: usize = 1 << 20;

/// Told whether the record is durable. Called from a thread of the disk, which it must not block.
pub(crate) type Durable = Box<dyn FnOnce(Result<(), Arc<io::Error>>) + Send>;

/// See the module.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    segments: [Arc<DiskFile>; 2],
    state: Mutex<State>,
    /// Told when a batch has landed, and when a cancellation is over.
    landed: Condvar,
}

struct State {
    active: usize,
    epoch: u64,
    offset: u64,
    next_batch: u64,
    next_sequence: u64,
    waiting: VecDeque<Waiting>,
    in_flight: bool,
    /// Cancellations whose outcome is not known here yet.
    cancelling: usize,
    /// Open records on their way to the segment that was switched to.
    repeating: usize,
    /// One of them did not get there.
    unrepeated: bool,
    /// Begin no batch: the segments are being switched.
    held: bool,
    /// Whether the other segment is still needed.
    unretired: bool,
    /// The first record that recovery has not decided about.
    undecided: Option<u64>,
    open: BTreeMap<u64, Open>,
    /// Those of them whose cancellation failed. Something later has overtaken them, which the next segment need not have: so it
    /// must not have them either.
    uncancelled: BTreeSet<u64>,
    /// Those of these that only the other segment has.
    leaving: BTreeSet<u64>,
}

struct Waiting {
    bytes: Arc<[u8]>,
    /// `None`: a mark, which is in the same batch as the record behind it, and so is there if that is.
    durable: Option<Durable>,
}

/// A record whose data is not durable yet: its file's mark, then the record itself.
type Open = [Arc<[u8]>; 2];

/// What is to be recorded of one file.
pub(crate) struct Entry {
    pub(crate) identity: Identity,
    /// Goes first where the segment has no durable mark of the file yet.
    pub(crate) mark: Body,
    /// The newest epoch in which the file's mark is durable.
    pub(crate) marked: u64,
    pub(crate) body: Body,
}

/// Where a record went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
}

impl Log {
    /// Goes on where recovery stopped reading.
    pub(crate) fn new(disk: Arc<dyn Disk>, segments: [Arc<DiskFile>; 2], start: LogStart) -> Arc<Log> {
        let LogStart { active, epoch, offset, next_batch, next_sequence, unretired, undecided } = start;
        let state = State {
            active,
            epoch,
            offset,
            next_batch,
            next_sequence,
            waiting: VecDeque::new(),
            in_flight: false,
            cancelling: 0,
            repeating: 0,
            unrepeated: false,
            held: false,
            unretired,
            undecided,
            open: BTreeMap::new(),
            uncancelled: BTreeSet::new(),
            leaving: BTreeSet::new(),
        };
        Arc::new(Log { disk, segments, state: Mutex::new(state), landed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Records a write or change, which stays open until [`Log::close`].
    pub(crate) fn append(self: &Arc<Log>, entry: Entry, durable: Durable) -> Appended {
        let mut state = self.state();
        let epoch = state.epoch;
        let mark: Arc<[u8]> =
            Record { sequence: 0, identity: entry.identity, body: entry.mark }.encode().into();
        if entry.marked != epoch {
            state.waiting.push_back(Waiting { bytes: Arc::clone(&mark), durable: None });
        }
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        let bytes: Arc<[u8]> =
            Record { sequence, identity: entry.identity, body: entry.body }.encode().into();
        state.open.insert(sequence, [mark, Arc::clone(&bytes)]);
        state.waiting.push_back(Waiting { bytes, durable: Some(durable) });
        self.begin_batch(state);
        Appended { sequence, epoch }
    }

    /// Records what needs no closing: marks, pages, removals. Returns the epoch it went to.
    pub(crate) fn note(self: &Arc<Log>, identity: Identity, body: Body, durable: Durable) -> u64 {
        let mut state = self.state();
        let bytes = Record { sequence: 0, identity, body }.encode().into();
        state.waiting.push_back(Waiting { bytes, durable: Some(durable) });
        let epoch = state.epoch;
        self.begin_batch(state);
        epoch
    }

    /// The record's data is durable, or will never be wanted.
    pub(crate) fn close(&self, sequence: u64) {
        let mut state = self.state();
        state.open.remove(&sequence);
        state.uncancelled.remove(&sequence);
    }

    /// The record's data never came, or the change failed: recovery must not take it for durable. Closes it once the
    /// cancellation is durable, in the segment that holds the record.
    pub(crate) fn cancel(self: &Arc<Log>, identity: Identity, sequence: u64) {
        let mut state = self.state();
        let epoch = state.epoch;
        state.cancelling += 1;
        let bytes = Record { sequence: 0, identity, body: Body::Cancel { sequence } }.encode().into();
        let log = Arc::clone(self);
        let durable: Durable = Box::new(move |result| {
            let mut state = log.state();
            if result.is_ok() && state.epoch != epoch {
                // The segments were switched, and the record repeated, meanwhile.
                drop(state);
                log.cancel(identity, sequence);
                state = log.state();
            } else if result.is_ok() {
                state.open.remove(&sequence);
            } else if state.open.contains_key(&sequence) {
                // It stays open, so that no batch says that its data is durable, until its segment is not needed any more.
                state.uncancelled.insert(sequence);
            }
            state.cancelling -= 1;
            drop(state);
            log.landed.notify_all();
        });
        state.waiting.push_back(Waiting { bytes, durable: Some(durable) });
        self.begin_batch(state);
    }

    /// Bytes in the active segment.
    pub(crate) fn length(&self) -> u64 {
        self.state().offset
    }

    fn begin_batch(self: &Arc<Log>, mut state: MutexGuard<'_, State>) {
        if state.in_flight || state.held || state.waiting.is_empty() {
            return;
        }
        let (mut records, mut count, mut told, mut whole) = (Vec::new(), 0, Vec::new(), false);
        while let Some(next) = state.waiting.front()
            && (!whole || records.len() + next.bytes.len() <= BATCH_BYTES)
        {
            let Waiting { bytes, durable } = state.waiting.pop_front().expect("seen above");
            records.extend_from_slice(&bytes);
            count += 1;
            whole = durable.is_some();
            told.extend(durable);
        }
        let first_open = state.open.first_key_value().map_or(state.next_sequence, |(first, _)| *first);
        let durable_through = state.undecided.map_or(first_open, |undecided| undecided.min(first_open)) - 1;
        let head = BatchHead { epoch: state.epoch, number: state.next_batch, durable_through };
        let bytes = Buffer::of(&head.encode(&records, count));
        debug_assert!(bytes.len().is_multiple_of(BATCH_ALIGNMENT));
        state.in_flight = true;
        let transfer = Transfer {
            verb: Verb::Write,
            file: Arc::clone(&self.segments[state.active]),
            offset: state.offset,
            memory: Memory::Own(bytes),
        };
        drop(state);
        let log = Arc::clone(self);
        self.disk
            .submit(transfer, Box::new(move |result, memory| log.batch_landed(result, memory.len(), told)));
    }

    fn batch_landed(self: &Arc<Log>, result: io::Result<usize>, length: usize, told: Vec<Durable>) {
        let mut state = self.state();
        state.in_flight = false;
        if result.is_ok() {
            state.offset += length as u64;
            state.next_batch += 1;
        }
        // A failed batch is overwritten by the next one.
        self.landed.notify_all();
        self.begin_batch(state);
        let result = result.map(drop).map_err(|error| {
            let segment = &self.segments[0].name;
            tracing::error!(%error, segment, "cannot write the write-ahead record");
            Arc::new(error)
        });
        for durable in told {
            durable(result.clone());
        }
    }

    /// Goes over to the other segment, which repeats what is open. Blocks. While the other segment is still needed (a checkpoint
    /// failed half way), no more is done than to repeat what did not get there.
    pub(crate) fn switch(self: &Arc<Log>) -> io::Result<()> {
        let mut state = self.state();
        if state.unretired {
            if state.unrepeated {
                self.repeat(&mut state);
                self.begin_batch(state);
            }
            return Ok(());
        }
        let epoch = later_epoch(state.epoch)?;
        state.held = true;
        let state = self.landed.wait_while(state, |state| state.in_flight).expect("no panic while held");
        let head = SegmentHead { epoch, first_batch: state.next_batch, retired: false };
        let other = 1 - state.active;
        drop(state);
        // Nobody else changes the segments meanwhile: batches are held, and checkpoints come one at a time.
        let written = disk::write(&*self.disk, &self.segments[other], 0, Buffer::of(&head.encode()));
        let mut state = self.state();
        state.held = false;
        if written.is_ok() {
            state.active = other;
            state.epoch = head.epoch;
            state.offset = BATCH_ALIGNMENT as u64;
            state.unretired = true;
            state.leaving = state.uncancelled.clone();
            self.repeat(&mut state);
        }
        self.begin_batch(state);
        written
    }

    /// Puts what is open in front. What still waits goes to the new segment by itself; repeating it does no harm.
    fn repeat(self: &Arc<Log>, state: &mut State) {
        state.unrepeated = false;
        let wanted = state.open.iter().filter(|(sequence, _)| !state.uncancelled.contains(sequence));
        let wanted: Vec<Open> = wanted.map(|(_, open)| open.clone()).collect();
        state.repeating += wanted.len();
        let repeated = wanted.iter().flat_map(|[mark, record]| {
            let log = Arc::clone(self);
            let landed: Durable = Box::new(move |result| {
                let mut state = log.state();
                state.repeating -= 1;
                state.unrepeated |= result.is_err();
                drop(state);
                log.landed.notify_all();
            });
            [(mark, None), (record, Some(landed))]
        });
        let repeated = repeated.map(|(bytes, durable)| Waiting { bytes: Arc::clone(bytes), durable });
        let mut all: VecDeque<Waiting> = repeated.collect();
        all.append(&mut state.waiting);
        state.waiting = all;
    }

    /// The other segment is not needed any more. Blocks.
    ///
    /// # Errors
    ///
    /// If the disk fails, and if it failed to repeat what is open: then only the other segment has that.
    pub(crate) fn retire(&self) -> io::Result<()> {
        let (other, epoch, first_batch) = {
            let repeats = |state: &mut State| state.repeating > 0;
            let state = self.landed.wait_while(self.state(), repeats).expect("no panic while held");
            if !state.unretired {
                return Ok(());
            }
            if state.unrepeated {
                return Err(io::Error::other("a record that is still open could not be repeated"));
            }
            (1 - state.active, state.epoch, state.next_batch)
        };
        self.write_retired(other, epoch - 1, first_batch)?;
        let mut state = self.state();
        state.unretired = false;
        for sequence in std::mem::take(&mut state.leaving) {
            state.uncancelled.remove(&sequence);
            state.open.remove(&sequence);
        }
        Ok(())
    }

    /// Nothing in the active segment is needed any more either: a clean end. Blocks.
    ///
    /// # Errors
    ///
    /// If the disk fails, and if a record is still open because its cancellation failed: then it stays for the next open.
    pub(crate) fn retire_all(&self) -> io::Result<()> {
        self.retire()?;
        // A batch has landed a moment before those who wait for it hear so: a cancellation is over only then.
        let busy = |state: &mut State| state.in_flight || state.cancelling > 0 || !state.waiting.is_empty();
        let state = self.landed.wait_while(self.state(), busy).expect("no panic while held");
        if !state.open.is_empty() {
            return Err(io::Error::other("a failed write or change is still recorded"));
        }
        let (active, epoch, first_batch) = (state.active, state.epoch, state.next_batch);
        drop(state);
        self.write_retired(active, epoch, first_batch)
    }

    fn write_retired(&self, segment: usize, epoch: u64, first_batch: u64) -> io::Result<()> {
        let head = SegmentHead { epoch, first_batch, retired: true };
        disk::write(&*self.disk, &self.segments[segment], 0, Buffer::of(&head.encode()))
    }

    /// Recovery is over: what it found is in the sidecars.
    pub(crate) fn decided(&self) {
        self.state().undecided = None;
    }

    /// The epoch that appended records go to.
    pub(crate) fn epoch(&self) -> u64 {
        self.state().epoch
    }
}

/// How much later an epoch is than the one before it, at most.
const EPOCH_STEP_MAX: u64 = 1 << 32;

/// A later epoch that nobody can guess: a client's bytes lie in batches, too, and must not pass for one where a power loss
/// leaves no more of a batch than them.
fn later_epoch(epoch: u64) -> io::Result<u64> {
    Ok(epoch.saturating_add(1 + u64::from(sync::random()?)))
}

/// The epoch of a record that begins anew, in segments whose newest known epoch is this one. That of a segment with a damaged
/// head is not known.
pub(crate) fn new_epoch(newest: u64) -> io::Result<u64> {
    later_epoch(newest.saturating_add(EPOCH_STEP_MAX))
}

/// Where the log begins, or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogStart {
    pub(crate) active: usize,
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) next_batch: u64,
    pub(crate) next_sequence: u64,
    pub(crate) unretired: bool,
    /// The first record that recovery must decide about: until it has, no batch may say that its data is durable.
    pub(crate) undecided: Option<u64>,
}

#[cfg(test)]
mod tests;
