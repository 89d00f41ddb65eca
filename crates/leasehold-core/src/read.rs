//! Reads of committed bytes, without a lease.
//!
//! ```text
//! in line for frames --> in phase --drained--> loading --> lent --ReadFinished--> gone
//! ```
//! Frames come first: whoever waited for frames within a phase would keep commits, and so frames, from getting on.
//! A read that waits for the writebacks of its blocks sees every commit before it (P8).

use crate::core::{Core, Timer};
use crate::frame::Owner;
use crate::ids::{FileId, RequestId, Tick};
use crate::input::Fault;
use crate::output::{Loader, Output, ReadError, ReadReady, Reply};
use crate::phase::{PhaseId, PhaseOwner};
use crate::range::{ByteRange, Run};
use crate::request::Kind;
use alloc::vec::Vec;

/// A read that is owed an answer, or whose frames are lent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Read {
    pub file: FileId,
    /// What is read: cut at the end of file, once it has frames.
    pub range: ByteRange,
    pub deadline: Tick,
    pub stage: ReadStage,
}

/// How far a read has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReadStage {
    Frames,
    Queued { run: Run, phase: PhaseId },
    Loading { run: Run, phase: PhaseId, cancelled: bool },
    Lent { run: Run },
}

impl Core {
    pub(crate) fn read(
        &mut self,
        id: RequestId,
        file: FileId,
        range: ByteRange,
        deadline: Tick,
        out: &mut Vec<Output>,
    ) {
        if self.is_known(id) {
            return;
        }
        if let Err(error) = self.admit_read(file, range) {
            return self.reply(id, Reply::Read(Err(error)), out);
        }
        self.file_mut(file).requests.insert(id);
        let read = Read { file, range, deadline, stage: ReadStage::Frames };
        self.insert_request(id, Kind::Read(read));
        self.timers.insert((deadline, Timer::Request(id)));
        self.advance_read(id, out);
    }

    fn admit_read(&mut self, file: FileId, range: ByteRange) -> Result<(), ReadError> {
        let Some(size) = self.named_file(file).map(|file| file.size) else { return Err(ReadError::NoFile) };
        if let Some((limit, max)) = self.is_full_of_requests() {
            return Err(ReadError::Limit { limit, max });
        }
        cut(range, size).map_or(Ok(()), |range| self.admit_cut(range))
    }

    fn admit_cut(&self, range: ByteRange) -> Result<(), ReadError> {
        let max = self.config.limits.lease_bytes_max;
        if range.len() > max {
            return Err(ReadError::Limit { limit: "lease_bytes_max", max });
        }
        let max = u64::from(self.config.frames);
        if range.blocks().len() > max {
            return Err(ReadError::Limit { limit: "frames", max });
        }
        Ok(())
    }

    fn read_mut(&mut self, id: RequestId) -> &mut Read {
        match self.requests.get_mut(&id).map(|request| &mut request.kind) {
            Some(Kind::Read(read)) => read,
            _ => unreachable!("only reads are looked up as reads"),
        }
    }

    /// Takes frames if it is the read's turn, and gets in line for its blocks.
    pub(crate) fn advance_read(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let &mut Read { file, range, stage, .. } = self.read_mut(id);
        if stage != ReadStage::Frames {
            return;
        }
        let Some(range) = cut(range, self.file(file).size) else {
            return self.finish_read(id, Reply::Read(Ok(None)), out);
        };
        // The file may have grown beyond what was admitted.
        if let Err(error) = self.admit_cut(range) {
            return self.finish_read(id, Reply::Read(Err(error)), out);
        }
        let frames = u32::try_from(range.blocks().len()).expect("no larger than the arena");
        let after_others = self.frame_queue.first().is_some_and(|&first| first < id);
        let run = if after_others { None } else { self.frames.allocate(frames, Owner::Reader(id)) };
        let Some(run) = run else {
            self.frame_queue.insert(id);
            return;
        };
        self.leave_frame_queue(id);
        let phase = self.enter_phase(file, range.blocks(), PhaseOwner::Read(id), None);
        let read = self.read_mut(id);
        (read.range, read.stage) = (range, ReadStage::Queued { run, phase });
    }

    pub(crate) fn read_phase_held(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let &mut Read { file, range, stage, deadline } = self.read_mut(id);
        let ReadStage::Queued { run, phase } = stage else { return };
        self.stop_timer(deadline, Timer::Request(id));
        let size = self.file(file).size;
        // The file may have become shorter while the read was in line.
        let Some(range) = cut(range, size) else {
            self.leave_phase(file, phase);
            self.free_frames(run, Owner::Reader(id));
            return self.finish_read(id, Reply::Read(Ok(None)), out);
        };
        let run = self.trim(id, run, range);
        self.frames.mix_bytes(run);
        let read = self.read_mut(id);
        (read.range, read.stage) = (range, ReadStage::Loading { run, phase, cancelled: false });
        out.push(Output::Load { by: Loader::Read(id), file, blocks: range.blocks(), size, into: run });
    }

    /// Gives back the frames past the range's blocks.
    fn trim(&mut self, id: RequestId, run: Run, range: ByteRange) -> Run {
        let frames = u32::try_from(range.blocks().len()).expect("a part of the run");
        if frames == run.frames {
            return run;
        }
        let (kept, rest) = self.frames.split(run, Owner::Reader(id), frames);
        self.free_frames(rest, Owner::Reader(id));
        kept
    }

    pub(crate) fn read_loaded(&mut self, id: RequestId, result: Result<(), Fault>, out: &mut Vec<Output>) {
        let Some(Kind::Read(read)) = self.requests.get_mut(&id).map(|request| &mut request.kind) else {
            return;
        };
        let ReadStage::Loading { run, phase, cancelled } = read.stage else { return };
        let (file, range) = (read.file, read.range);
        read.stage = ReadStage::Lent { run };
        self.leave_phase(file, phase);
        if cancelled {
            self.read_finished(id);
        } else if let Err(fault) = result {
            self.free_frames(run, Owner::Reader(id));
            self.finish_read(id, Reply::Read(Err(fault.into())), out);
        } else {
            self.reply(id, Reply::Read(Ok(Some(ReadReady { range, run }))), out);
        }
    }

    pub(crate) fn read_finished(&mut self, id: RequestId) {
        let Some(Kind::Read(read)) = self.requests.get(&id).map(|request| &request.kind) else { return };
        if let ReadStage::Lent { run } = read.stage {
            self.free_frames(run, Owner::Reader(id));
            self.forget_read(id);
        }
    }

    /// Its phase is gone: a failed writeback holds the newest bytes of its blocks.
    pub(crate) fn read_failed(&mut self, id: RequestId, error: ReadError, out: &mut Vec<Output>) {
        if let ReadStage::Queued { run, .. } = self.read_mut(id).stage {
            self.free_frames(run, Owner::Reader(id));
        }
        self.finish_read(id, Reply::Read(Err(error)), out);
    }

    pub(crate) fn read_timed_out(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let what = match self.read_mut(id).stage {
            ReadStage::Frames => "free frames",
            _ => "writebacks and changes of the same blocks",
        };
        self.withdraw_read(id);
        self.finish_read(id, Reply::Read(Err(ReadError::TimedOut(what))), out);
    }

    pub(crate) fn read_lost_its_file(&mut self, id: RequestId, out: &mut Vec<Output>) {
        if matches!(self.read_mut(id).stage, ReadStage::Frames | ReadStage::Queued { .. }) {
            self.withdraw_read(id);
            self.finish_read(id, Reply::Read(Err(ReadError::NoFile)), out);
        }
    }

    /// A read that has been answered is ended by `ReadFinished` alone: somebody may be looking at its frames.
    pub(crate) fn cancel_read(&mut self, id: RequestId) {
        match &mut self.read_mut(id).stage {
            ReadStage::Frames | ReadStage::Queued { .. } => {
                self.withdraw_read(id);
                self.forget_read(id);
            }
            ReadStage::Loading { cancelled, .. } => *cancelled = true,
            ReadStage::Lent { .. } => {}
        }
    }

    /// Gives back what the read has while nothing is outstanding for it.
    fn withdraw_read(&mut self, id: RequestId) {
        let &mut Read { file, stage, .. } = self.read_mut(id);
        if let ReadStage::Queued { run, phase } = stage {
            self.leave_phase(file, phase);
            self.free_frames(run, Owner::Reader(id));
        }
    }

    fn finish_read(&mut self, id: RequestId, reply: Reply, out: &mut Vec<Output>) {
        self.forget_read(id);
        self.reply(id, reply, out);
    }

    fn forget_read(&mut self, id: RequestId) {
        self.leave_frame_queue(id);
        let Kind::Read(read) = self.remove_request(id).kind else { return };
        self.stop_timer(read.deadline, Timer::Request(id));
        self.file_mut(read.file).requests.remove(&id);
    }
}

/// The part of the range before the end of file.
fn cut(range: ByteRange, size: u64) -> Option<ByteRange> {
    ByteRange::new(range.start(), range.end().min(size))
}
