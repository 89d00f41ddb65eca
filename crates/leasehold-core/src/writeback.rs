//! Writeback: the frames of one commit on their way to the disk.
//!
//! ```text
//! Recording --> Writing --> gone (durable)
//!      \-----------\--> Failed --retry, or a sync, or a phase that needs the blocks--> the step that failed
//!                         \--a phase that replaces its blocks--> suspended --> cut out, or tried again
//! ```
//! Begins at once on commit. The frames stay until they are durable, or until newer bytes have taken their place.
//!
//! Invariant: the writebacks of one file do not overlap, by blocks (under schemes with private frames).

use crate::core::{Core, Timer};
use crate::frame::Owner;
use crate::ids::{FileId, FrameId, LeaseId, Tick, WriteId};
use crate::input::Fault;
use crate::output::Output;
use crate::phase::{PhaseId, intersection};
use crate::range::{BLOCK_BYTES, BlockRange, ByteRange, Run};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// One writeback.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Writeback {
    pub file: FileId,
    /// What was committed.
    pub range: ByteRange,
    pub blocks: BlockRange,
    pub run: Run,
    /// Its place among the commits of the file, for syncs: its own id, or that of the writeback that it is a part of or
    /// that it replaced.
    pub order: WriteId,
    pub state: WriteState,
    /// Phases that wait for it.
    pub watchers: BTreeSet<PhaseId>,
    /// The page that it writes, under schemes that have such; its frame is the page's, or of a copy.
    pub page: Option<FrameId>,
}

/// How far a writeback has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WriteState {
    /// Of a page: it waits for the keys that reach it to be taken back.
    Fencing,
    /// Of a page: a copy of it is made.
    Copying,
    Recording,
    Writing,
    Failed {
        /// Whether the record is durable: what to try again.
        recorded: bool,
        fault: Fault,
        /// When it is tried again; `None`: a phase is about to take its place.
        retry: Option<Tick>,
    },
}

impl Writeback {
    /// A writeback that begins, in its own place among the commits.
    pub fn new(id: WriteId, file: FileId, range: ByteRange, run: Run, page: Option<FrameId>) -> Writeback {
        let (blocks, state, watchers) = (range.blocks(), WriteState::Recording, BTreeSet::new());
        Writeback { file, range, blocks, run, order: id, state, watchers, page }
    }

    /// Whether the disk is at work on it.
    pub fn is_in_flight(&self) -> bool {
        !matches!(self.state, WriteState::Failed { .. })
    }

    /// Why it failed; asked of failed ones.
    pub fn fault(&self) -> Fault {
        match self.state {
            WriteState::Failed { fault, .. } => fault,
            _ => Fault::Io,
        }
    }
}

impl Core {
    /// Takes the frames from the lease and begins to write them. If they replace what an earlier writeback could not
    /// bring to the disk, they have its place among the commits (`order`): who syncs that must wait for this.
    pub(crate) fn begin_write(
        &mut self,
        file: FileId,
        range: ByteRange,
        run: Run,
        from: LeaseId,
        order: Option<WriteId>,
        out: &mut Vec<Output>,
    ) {
        let id = WriteId(self.next_id());
        self.frames.hand_over(run, Owner::Lease(from), Owner::Write(id));
        let mut write = Writeback::new(id, file, range, run, None);
        write.order = order.unwrap_or(id);
        self.insert_write(id, write, out);
    }

    /// Begins to write frames that are in place already.
    pub(crate) fn insert_write(&mut self, id: WriteId, write: Writeback, out: &mut Vec<Output>) {
        let (blocks, order, in_flight) = (write.blocks, write.order, write.is_in_flight());
        let state = self.file_mut(write.file);
        state.writes.insert((order, id));
        if in_flight { &mut state.in_flight } else { &mut state.failed }.insert(blocks, id);
        self.writes.insert(id, write);
        self.issue_write(id, out);
    }

    /// Hands the step that the writeback is at to the disk.
    fn issue_write(&mut self, id: WriteId, out: &mut Vec<Output>) {
        let &Writeback { file, range, blocks, run, state, .. } = &self.writes[&id];
        let size = self.file(file).size_through(blocks);
        match state {
            WriteState::Recording => out.push(Output::Record { write: id, file, range, size, run }),
            WriteState::Writing => out.push(Output::Write { write: id, file, blocks, size, run }),
            WriteState::Fencing | WriteState::Copying | WriteState::Failed { .. } => {}
        }
    }

    /// A writeback that has waited gets to its next step.
    pub(crate) fn go_on_writing(&mut self, id: WriteId, state: WriteState, out: &mut Vec<Output>) {
        self.writes.get_mut(&id).expect("it waits").state = state;
        self.issue_write(id, out);
    }

    pub(crate) fn recorded(&mut self, id: WriteId, result: Result<(), Fault>, out: &mut Vec<Output>) {
        let Some(write) = self.writes.get_mut(&id).filter(|write| write.state == WriteState::Recording)
        else {
            return;
        };
        match result {
            Ok(()) => {
                write.state = WriteState::Writing;
                self.issue_write(id, out);
            }
            Err(fault) => self.write_failed(id, false, fault, out),
        }
    }

    pub(crate) fn written(&mut self, id: WriteId, result: Result<(), Fault>, out: &mut Vec<Output>) {
        let Some(write) = self.writes.get_mut(&id).filter(|write| write.state == WriteState::Writing) else {
            return;
        };
        match result {
            Ok(()) => {
                let file = write.file;
                self.forget_write(id, true);
                self.advance_syncs(file, out);
            }
            Err(fault) => self.write_failed(id, true, fault, out),
        }
    }

    fn write_failed(&mut self, id: WriteId, recorded: bool, fault: Fault, out: &mut Vec<Output>) {
        let retry = self.now.after_ms(self.config.retry_ms);
        let write = self.writes.get_mut(&id).expect("it has just failed");
        write.state = WriteState::Failed { recorded, fault, retry: Some(retry) };
        let (file, blocks, order) = (write.file, write.blocks, write.order);
        let watchers = core::mem::take(&mut write.watchers);
        self.work.phases.extend(watchers.into_iter().map(|phase| (file, phase)));
        self.timers.insert((retry, Timer::Retry(id)));
        let state = self.file_mut(file);
        state.in_flight.remove(blocks, id);
        state.failed.insert(blocks, id);
        self.fail_syncs(file, order, fault, out);
    }

    /// Tries a failed writeback again, unless a phase is about to take its place.
    pub(crate) fn retry_write(&mut self, id: WriteId, out: &mut Vec<Output>) {
        let Some(write) = self.writes.get_mut(&id) else { return };
        let WriteState::Failed { recorded, retry: Some(retry), .. } = write.state else { return };
        write.state = if recorded { WriteState::Writing } else { WriteState::Recording };
        let (file, blocks) = (write.file, write.blocks);
        self.stop_timer(retry, Timer::Retry(id));
        let state = self.file_mut(file);
        state.failed.remove(blocks, id);
        state.in_flight.insert(blocks, id);
        self.issue_write(id, out);
    }

    pub(crate) fn retry_failed_writes(&mut self, file: FileId, out: &mut Vec<Output>) {
        let failed: Vec<WriteId> = self.file(file).failed.overlapping(ByteRange::ALL.blocks()).collect();
        for id in failed {
            self.retry_write(id, out);
        }
    }

    /// A phase is about to take the place of a failed writeback: it must not get to the disk behind it.
    pub(crate) fn suspend_write(&mut self, id: WriteId) {
        let Some(write) = self.writes.get_mut(&id) else { return };
        if let WriteState::Failed { retry, .. } = &mut write.state
            && let Some(retry) = retry.take()
        {
            self.stop_timer(retry, Timer::Retry(id));
        }
    }

    /// Nobody takes the place of failed writebacks in these blocks after all: they are tried again, except those that
    /// another phase is about to take the place of.
    pub(crate) fn resume_writes(&mut self, file: FileId, blocks: BlockRange, out: &mut Vec<Output>) {
        let failed: Vec<WriteId> = self.file(file).failed.overlapping(blocks).collect();
        for id in failed {
            if self.is_changing(file, self.writes[&id].blocks) {
                continue;
            }
            let now = self.now;
            let Some(write) = self.writes.get_mut(&id) else { continue };
            if let WriteState::Failed { retry, .. } = &mut write.state {
                retry.get_or_insert(now);
            }
            self.retry_write(id, out);
        }
    }

    /// Newer bytes, or none, have taken the place of `replaced`: failed writebacks lose these blocks, and what is left
    /// of them is tried again. Returns the earliest place in the order of commits that lost something.
    pub(crate) fn cut_failed_writes(
        &mut self,
        file: FileId,
        replaced: BlockRange,
        out: &mut Vec<Output>,
    ) -> Option<WriteId> {
        let failed: Vec<WriteId> = self.file(file).failed.overlapping(replaced).collect();
        let mut earliest: Option<WriteId> = None;
        for id in failed {
            let write = self.forget_write(id, false);
            earliest = Some(earliest.map_or(write.order, |order| order.min(write.order)));
            if write.page.is_some() {
                continue;
            }
            let parts = [
                BlockRange::new(write.blocks.start(), replaced.start()),
                intersection(write.blocks, replaced),
                BlockRange::new(replaced.end(), write.blocks.end()),
            ];
            let mut rest = Some(write.run);
            for (at, part) in parts.into_iter().enumerate() {
                let (Some(part), Some(run)) = (part, rest) else { continue };
                let frames = u32::try_from(part.len()).expect("a part of a run");
                let (run, after) = if frames == run.frames {
                    (run, None)
                } else {
                    let (run, after) = self.frames.split(run, Owner::Write(id), frames);
                    (run, Some(after))
                };
                rest = after;
                if at == 1 {
                    self.free_frames(run, Owner::Write(id));
                } else {
                    self.write_part(id, &write, part, run, out);
                }
            }
        }
        earliest
    }

    fn write_part(
        &mut self,
        from: WriteId,
        write: &Writeback,
        part: BlockRange,
        run: Run,
        out: &mut Vec<Output>,
    ) {
        let start = write.range.start().max(part.start() * BLOCK_BYTES);
        let end = write.range.end().min(part.end().saturating_mul(BLOCK_BYTES));
        let range = ByteRange::new(start, end).expect("every block of a commit holds a byte of it");
        let id = WriteId(self.next_id());
        self.frames.hand_over(run, Owner::Write(from), Owner::Write(id));
        // Another phase may be about to take the place of this part.
        let state = if self.is_changing(write.file, part) {
            WriteState::Failed { recorded: false, fault: write.fault(), retry: None }
        } else {
            WriteState::Recording
        };
        let part = Writeback { range, blocks: part, run, state, watchers: BTreeSet::new(), ..*write };
        self.insert_write(id, part, out);
    }

    /// Takes the writeback out of all tables; its frames are freed if `free`, unless a lease holds them.
    pub(crate) fn forget_write(&mut self, id: WriteId, free: bool) -> Writeback {
        let write = self.writes.remove(&id).expect("a writeback ends once");
        if let WriteState::Failed { retry: Some(retry), .. } = write.state {
            self.stop_timer(retry, Timer::Retry(id));
        }
        let (file, run) = (write.file, write.run);
        let in_flight = write.is_in_flight();
        let state = self.file_mut(file);
        state.writes.remove(&(write.order, id));
        if in_flight { &mut state.in_flight } else { &mut state.failed }.remove(write.blocks, id);
        self.work.phases.extend(write.watchers.iter().map(|&phase| (file, phase)));
        match write.page {
            Some(frame) => self.page_written(id, frame, run, free),
            None if free => self.free_frames(run, Owner::Write(id)),
            None => {}
        }
        write
    }
}
