//! `Verify`, `Record` and `Write`: how committed frames reach the disk.
//!
//! ```text
//! Record --> record appended --+--> Recorded  (once durable; at once for blocks past all that is recorded)
//!                              |
//! Write  --> data written -----+--> both durable --> sums changed --> Written
//! ```
//! A block may be written before its record is durable only if recovery would remove it anyway: it lies past the size
//! that the durable records admit, in a file that is marked. All others wait, which costs one flush that all chunks in
//! flight share. So do all of a file of whose collapse the sidecar does not know: recovery tells by the file's length
//! whether that was over, and so nothing may make it longer that the record does not name.
//!
//! Blocks past the file's length on disk: a write that grows a file takes its lock and a journal commit, so the length is
//! set ahead, in steps, and set back by the next flush, checkpoint or stop. (Measured: see the decision record
//! `2026-11-21-write-ahead-record`.)

use crate::checksum::{crc32c, sum_range};
use crate::disk::{self, Verb};
use crate::file::{JudgeError, StoreFile};
use crate::log::{Entry, Log};
use crate::record::{BlockWrite, Body, Old, WriteBody};
use crate::sidecar::{BlockState, PAGE};
use crate::storage::{Detail, Inner};
use crate::sums::Sums;
use crate::sync::{Mutex, MutexGuard};
use leasehold_core::ids::{FileId, LeaseId, WriteId};
use leasehold_core::input::{Fault, Input};
use leasehold_core::range::{BLOCK_BYTES, BlockRange, ByteRange, Run};
use std::io;
use std::sync::Arc;

const AHEAD_STEP_BYTES: u64 = 64 << 20;
const AHEAD_STEP_BYTES_MAX: u64 = 1 << 30;

/// A writeback between `Record` and `Written`.
pub(crate) struct PendingWrite {
    id: WriteId,
    file: Arc<StoreFile>,
    body: WriteBody,
    progress: Mutex<Progress>,
}

/// Invariant: `sequence` names an open record unless `record` is `Failed`.
struct Progress {
    sequence: u64,
    epoch: u64,
    record: RecordState,
    /// `Recorded` has not been answered.
    owes_recorded: bool,
    /// What the last `Write` wrote, once it is durable.
    landed: Option<BlockRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordState {
    Underway,
    Durable,
    Failed(Fault),
}

impl PendingWrite {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no panic while held")
    }

    pub(crate) fn id(&self) -> WriteId {
        self.id
    }

    pub(crate) fn file(&self) -> FileId {
        self.file.id
    }

    pub(crate) fn blocks(&self) -> BlockRange {
        let first = self.body.first_block;
        BlockRange::new(first, first + self.body.blocks.len() as u64).expect("a write has blocks")
    }
}

/// The fault that the core shall see.
pub(crate) fn fault_of(error: &io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Fault::NoSpace,
        _ => Fault::Io,
    }
}

/// So many known sums are combined, and unknown ones computed, within some ten microseconds: sooner than another thread wakes.
const SOON_KNOWN: u32 = 4096;
const SOON_UNKNOWN: usize = 16;

impl Inner {
    /// Whether a verify of the run is so quick that the core's thread may do it.
    pub(crate) fn is_soon_verified(&self, run: Run) -> bool {
        let sums = self.arena.sums();
        let frames = run.first.0 as usize..(run.first.0 + run.frames) as usize;
        let unknown = frames.filter(|frame| sums.get(*frame).is_none());
        run.frames <= SOON_KNOWN && unknown.take(SOON_UNKNOWN + 1).count() <= SOON_UNKNOWN
    }

    pub(crate) fn verify(&self, lease: LeaseId, range: ByteRange, run: Run, detail: &Detail) {
        let expected = match detail {
            Detail::Crc(expected) => *expected,
            Detail::None => None,
            other => panic!("{other:?} makes no sense for a verify"),
        };
        // SAFETY: the core verifies fenced frames only, and they are the lease's alone until it hears of it.
        let whole = sum_range(range, run.first, unsafe { self.arena.bytes(run) }, self.arena.sums());
        let agrees = expected.is_none_or(|crc| crc == whole);
        self.answer(Input::Verified { lease, agrees });
    }

    pub(crate) fn record(
        self: &Arc<Inner>,
        id: WriteId,
        file: FileId,
        range: ByteRange,
        size: u64,
        run: Run,
    ) {
        let file = self.file(file);
        let recorded = self.try_record(id, &file, range, size, run);
        let result = match recorded {
            Ok(Some(pending)) => return self.record_appended(&pending),
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::error!(path = %file.path(), %range, %error, "cannot record a write");
                Err(Fault::Io)
            }
        };
        self.answer(Input::Recorded { write: id, result });
    }

    /// The pending write if `Recorded` must wait for its record.
    fn try_record(
        self: &Arc<Inner>,
        id: WriteId,
        file: &Arc<StoreFile>,
        range: ByteRange,
        size: u64,
        run: Run,
    ) -> Result<Option<Arc<PendingWrite>>, JudgeError> {
        let crcs = self.block_sums(run);
        let mut sums = file.sums();
        // Under the lock, so that a checkpoint does not take the file for clean in between.
        self.mark_dirty(file);
        let body = self.write_body(file, &mut sums, range, size, run, crcs)?;
        // Recovery would see nothing of what it has no record of past the size.
        let unseen = sums.marked == self.log.epoch() && sums.shifted.is_none();
        let beyond = body.first_block * BLOCK_BYTES >= sums.recorded_size;
        let free = unseen && beyond && body.blocks.iter().all(|block| block.old == Old::Nothing);
        sums.recorded_size = sums.recorded_size.max(body.size);
        sums.writes += 1;
        if unseen {
            self.extend_ahead(file, &mut sums, body.first_block + body.blocks.len() as u64);
        }
        let progress = Progress {
            sequence: 0,
            epoch: 0,
            record: RecordState::Underway,
            owes_recorded: true,
            landed: None,
        };
        let pending =
            Arc::new(PendingWrite { id, file: Arc::clone(file), body, progress: Mutex::new(progress) });
        let superseded = self.take_overlapping(file, pending.blocks());
        self.writes().insert(Arc::clone(&pending));
        let epoch = self.append_record(&pending, &sums);
        // Only now, when the new record is in line: no moment may be without one.
        for previous in superseded {
            self.log.cancel(file.identity, previous.progress().sequence);
            sums.writes -= 1;
        }
        // The record went to a new segment, where the file has no mark yet.
        if !free || epoch != sums.marked {
            return Ok(Some(pending));
        }
        // Unless it was answered meanwhile. If the record fails, the write will try it again.
        let owed = std::mem::take(&mut pending.progress().owes_recorded);
        Ok((!owed).then_some(pending))
    }

    /// The CRC of each frame.
    fn block_sums(&self, run: Run) -> Vec<u32> {
        // SAFETY: the frames are the writeback's, fenced, and only read until it is over.
        let blocks = unsafe { self.arena.bytes(run) }.as_chunks::<PAGE>().0;
        let known = |frame| self.arena.sums().get(frame);
        (run.first.0 as usize..)
            .zip(blocks)
            .map(|(frame, block)| known(frame).unwrap_or_else(|| crc32c(block)))
            .collect()
    }

    fn write_body(
        &self,
        file: &StoreFile,
        sums: &mut Sums,
        range: ByteRange,
        size: u64,
        run: Run,
        crcs: Vec<u32>,
    ) -> Result<WriteBody, JudgeError> {
        let first_block = range.blocks().start();
        // SAFETY: as in `block_sums`.
        let frames = unsafe { self.arena.bytes(run) }.as_chunks::<PAGE>().0;
        let mut body =
            WriteBody { first_block, size: 0, blocks: Vec::with_capacity(crcs.len()), images: Vec::new() };
        let states = sums.states(&*self.disk, range.blocks())?;
        for (index, (new_crc, state)) in crcs.into_iter().zip(states).enumerate() {
            let block = first_block + index as u64;
            let old = match state {
                BlockState::Hole => Old::Nothing,
                BlockState::Known(crc) => Old::Known(crc),
                BlockState::Torn => Old::Torn,
                BlockState::Unknown => {
                    let old = disk::read(&*self.disk, &file.disk, block * BLOCK_BYTES, PAGE);
                    let crc = crc32c(&old.map_err(crate::sums::SumsError::from)?);
                    file.judge(sums, &*self.disk, block, crc)?;
                    Old::Known(crc)
                }
            };
            // Committed bytes of the block that the commit does not bring.
            let (from, to) = (block * BLOCK_BYTES, ((block + 1) * BLOCK_BYTES).min(sums.recorded_size));
            if old != Old::Nothing && (from < range.start() || to > range.end()) {
                body.images.push((index as u32, Box::new(frames[index])));
            }
            body.blocks.push(BlockWrite { old, new_crc });
        }
        // What lies past the last block was brought by others, who record it.
        body.size = size.min(range.blocks().end() * BLOCK_BYTES);
        Ok(body)
    }

    /// Makes the file longer than is needed yet, and never shorter than a write under way may have made it by now. It may fail:
    /// then the write itself makes it so.
    fn extend_ahead(&self, file: &StoreFile, sums: &mut Sums, end_block: u64) {
        let needed = end_block * BLOCK_BYTES;
        if needed <= sums.disk_size {
            return;
        }
        let needed = needed.max(sums.recorded_size.next_multiple_of(BLOCK_BYTES));
        if needed > self.store.file_bytes_max {
            return;
        }
        let step = needed.min(AHEAD_STEP_BYTES_MAX).next_power_of_two().max(AHEAD_STEP_BYTES);
        // Past the longest file there may be a signal that ends the process (a limit of its own, SIGXFSZ).
        let ahead = needed.next_multiple_of(step).min(self.store.file_bytes_max);
        match self.disk.truncate(&file.disk, ahead) {
            Ok(()) => sums.disk_size = ahead,
            Err(error) => tracing::debug!(path = %file.path(), %error, "cannot extend the file ahead"),
        }
    }

    /// Returns the epoch that the record went to.
    fn append_record(self: &Arc<Inner>, pending: &Arc<PendingWrite>, sums: &Sums) -> u64 {
        let entry = Entry {
            identity: pending.file.identity,
            mark: pending.file.mark(sums),
            marked: sums.marked,
            body: Body::Write(pending.body.clone()),
        };
        let mut progress = pending.progress();
        progress.record = RecordState::Underway;
        let (inner, told) = (Arc::clone(self), Arc::clone(pending));
        let appended = self.log.append(
            entry,
            Box::new(move |durable| {
                told.progress().record = match durable {
                    Ok(()) => RecordState::Durable,
                    Err(error) => RecordState::Failed(fault_of(&error)),
                };
                inner.work_for(told.file(), move |inner| inner.record_appended(&told));
            }),
        );
        progress.sequence = appended.sequence;
        progress.epoch = appended.epoch;
        drop(progress);
        self.checkpoint_if_long();
        appended.epoch
    }

    /// Goes on wherever the record, or the data, has got to.
    fn record_appended(self: &Arc<Inner>, pending: &Arc<PendingWrite>) {
        let mut progress = pending.progress();
        match progress.record {
            RecordState::Underway => {}
            RecordState::Durable => {
                let epoch = progress.epoch;
                let (owes, landed) = (std::mem::take(&mut progress.owes_recorded), progress.landed.take());
                drop(progress);
                {
                    let mut sums = pending.file.sums();
                    sums.marked = sums.marked.max(epoch);
                }
                if owes {
                    self.answer(Input::Recorded { write: pending.id, result: Ok(()) });
                }
                if let Some(blocks) = landed {
                    self.written(pending, blocks);
                }
            }
            RecordState::Failed(fault) => {
                let (owes, landed) = (std::mem::take(&mut progress.owes_recorded), progress.landed.take());
                drop(progress);
                if owes {
                    self.drop_write(pending.id, |log, sequence| log.cancel(pending.file.identity, sequence));
                    self.answer(Input::Recorded { write: pending.id, result: Err(fault) });
                } else if landed.is_some() {
                    self.answer(Input::Written { write: pending.id, result: Err(fault) });
                }
            }
        }
    }

    pub(crate) fn write(self: &Arc<Inner>, id: WriteId, blocks: BlockRange, run: Run) {
        let pending = self.writes().get(id);
        let pending = pending.unwrap_or_else(|| panic!("{id} was never recorded"));
        if matches!(pending.progress().record, RecordState::Failed(_)) {
            let again = Arc::clone(&pending);
            self.work_for(pending.file(), move |inner| {
                let sums = again.file.sums();
                inner.log.cancel(again.file.identity, again.progress().sequence);
                inner.append_record(&again, &sums);
            });
        }
        let inner = Arc::clone(self);
        let frames = (self.arena.disk(run), run.bytes() as usize);
        let file = Arc::clone(&pending.file.disk);
        let done = move |result: io::Result<()>| {
            // The sums may have to be read from disk, which this thread must be free for.
            inner.work_for(pending.file(), move |inner| inner.data_landed(&pending, blocks, result));
        };
        let offset = blocks.start() * BLOCK_BYTES;
        disk::transfer_frames(&*self.disk, Verb::Write, &file, offset, frames, run.arena_offset(), done);
    }

    fn data_landed(
        self: &Arc<Inner>,
        pending: &Arc<PendingWrite>,
        blocks: BlockRange,
        result: io::Result<()>,
    ) {
        if let Err(error) = result {
            let range =
                ByteRange::new(blocks.start() * BLOCK_BYTES, blocks.end() * BLOCK_BYTES).expect("not empty");
            tracing::error!(path = %pending.file.path(), %range, %error, "cannot write back");
            return self.answer(Input::Written { write: pending.id, result: Err(fault_of(&error)) });
        }
        let mut progress = pending.progress();
        match progress.record {
            RecordState::Underway => progress.landed = Some(blocks),
            RecordState::Durable => {
                drop(progress);
                self.written(pending, blocks);
            }
            RecordState::Failed(fault) => {
                drop(progress);
                self.answer(Input::Written { write: pending.id, result: Err(fault) });
            }
        }
    }

    /// Data and record are durable.
    fn written(self: &Arc<Inner>, pending: &Arc<PendingWrite>, blocks: BlockRange) {
        let mut sums = pending.file.sums();
        let skip = (blocks.start() - pending.body.first_block) as usize;
        let written = pending.body.blocks.iter().skip(skip).take(blocks.len() as usize);
        let states = written.map(|block| BlockState::Known(block.new_crc));
        let applied = sums.set_all(&*self.disk, blocks.start(), states);
        sums.disk_size = sums.disk_size.max(blocks.end() * BLOCK_BYTES);
        if let Err(error) = applied {
            drop(sums);
            // The write stays, with its record: it will be tried again.
            tracing::error!(path = %pending.file.path(), %error, "cannot note the checksums of a write");
            return self.answer(Input::Written { write: pending.id, result: Err(Fault::Io) });
        }
        let size = sums.header.size.max(pending.body.size.min(blocks.end() * BLOCK_BYTES));
        sums.set_size(size);
        drop(sums);
        self.drop_write(pending.id, |log, sequence| log.close(sequence));
        self.answer(Input::Written { write: pending.id, result: Ok(()) });
    }

    /// Writes of the file that failed, and are tried again, whole or in parts, under this or another id.
    fn take_overlapping(&self, file: &StoreFile, blocks: BlockRange) -> Vec<Arc<PendingWrite>> {
        let mut writes = self.writes();
        let overlapping = writes.overlapping(file.id, blocks);
        overlapping.iter().for_each(|pending| drop(writes.remove(pending.id)));
        overlapping
    }

    /// Nothing will be written under this id any more.
    fn drop_write(&self, id: WriteId, close: impl FnOnce(&Arc<Log>, u64)) {
        let Some(pending) = self.writes().remove(id) else { return };
        close(&self.log, pending.progress().sequence);
        let mut sums = pending.file.sums();
        sums.write_over();
    }

    /// Drops the file's writes that lie wholly within the blocks: they were removed.
    pub(crate) fn drop_writes(&self, file: &StoreFile, within: BlockRange) {
        let overlapping = self.writes().overlapping(file.id, within);
        for pending in overlapping {
            let blocks = pending.blocks();
            if within.start() <= blocks.start() && blocks.end() <= within.end() {
                self.drop_write(pending.id, |log, sequence| log.cancel(file.identity, sequence));
            }
        }
    }
}
