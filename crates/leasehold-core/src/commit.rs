//! Commits: how a lease's bytes get into the file.
//!
//! Fence first, so that no byte can change any more; then compare the CRC; then, alone on the blocks, complete the
//! boundary blocks and swap all of them in. From there on they are a writeback, and the lease is over.
//!
//! A commit that was received in time goes on, whatever happens to its session or its break's deadline.

use crate::breaks::Outcome;
use crate::core::Core;
use crate::frame::Owner;
use crate::ids::{LeaseId, RequestId};
use crate::input::{Access, Fault};
use crate::lease::{State, Step};
use crate::output::{CommitError, Committed, Output, Reply};
use crate::phase::{PhaseId, PhaseOwner};
use crate::range::{BLOCK_BYTES, BlockRange, ByteRange, Run};
use crate::scheme::DataPath;
use alloc::vec::Vec;

impl Core {
    pub(crate) fn commit_fenced(&mut self, id: LeaseId, request: RequestId, out: &mut Vec<Output>) {
        let lease = self.lease_mut(id);
        lease.state = State::Verifying { request };
        if lease.access == Access::Read {
            return self.commit_failed(id, CommitError::ReadOnly(id), out);
        }
        let (file, range, run) = (lease.file, lease.range, lease.run);
        if self.lands_in_file() {
            self.commit_file_frames(id, request, out);
        } else {
            out.push(Output::Verify { lease: id, file, range, run });
        }
    }

    pub(crate) fn verified(&mut self, id: LeaseId, agrees: bool, out: &mut Vec<Output>) {
        let Some(lease) = self.leases.get(id) else { return };
        let State::Verifying { request } = lease.state else { return };
        if lease.poisoned {
            return self.commit_failed(id, CommitError::Poisoned(id), out);
        }
        if !agrees {
            return self.commit_failed(id, CommitError::Mismatch(id), out);
        }
        self.enter_commit_phase(id, request);
    }

    /// Puts the commit, or the capture, in line for its blocks.
    pub(crate) fn enter_commit_phase(&mut self, id: LeaseId, request: RequestId) {
        let lease = &self.leases[id];
        let (file, range) = (lease.file, lease.range);
        let phase = self.enter_phase(file, range.blocks(), PhaseOwner::Commit(id), whole_blocks(range));
        self.lease_mut(id).state = State::Merging { request, phase, step: Step::InLine };
    }

    pub(crate) fn commit_phase_held(&mut self, id: LeaseId, phase: PhaseId, out: &mut Vec<Output>) {
        match self.leases[id].of {
            Some(of) => self.copy_under_key(id, of, phase, out),
            None if self.config.scheme.data_path == DataPath::Copied => self.copy_to_file(id, phase, out),
            None => self.complete_boundary(id, out),
        }
    }

    /// The lease's frames are a buffer of the peer's: what gets into the file is a copy.
    fn copy_to_file(&mut self, id: LeaseId, phase: PhaseId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let State::Merging { request, .. } = lease.state else { return };
        let (file, range, from) = (lease.file, lease.range, lease.run);
        let Some(into) = self.frames.allocate(from.frames, Owner::Lease(id)) else {
            self.leave_phase_undone(file, phase, out);
            return self.commit_failed(id, CommitError::ArenaFull(id), out);
        };
        self.frames.mix_bytes(into);
        self.lease_mut(id).state = State::Merging { request, phase, step: Step::Copying(into) };
        out.push(Output::Capture { lease: id, file, range, from, into });
    }

    /// Fills the boundary blocks, if they are not the lease's own from end to end.
    pub(crate) fn complete_boundary(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = self.lease_mut(id);
        let State::Merging { request, phase, .. } = lease.state else { return };
        let (file, range, run) = (lease.file, lease.range, lease.run);
        if whole_blocks(range) == Some(range.blocks()) {
            return self.swap_in(id, out);
        }
        lease.state = State::Merging { request, phase, step: Step::Merging };
        let last = Run { first: crate::ids::FrameId(run.first.0 + run.frames - 1), frames: 1 };
        self.frames.mix_bytes(Run { frames: 1, ..run });
        self.frames.mix_bytes(last);
        let size = self.file(file).size;
        out.push(Output::Merge { lease: id, file, range, size, run });
    }

    pub(crate) fn merged(&mut self, id: LeaseId, result: Result<(), Fault>, out: &mut Vec<Output>) {
        let Some(lease) = self.leases.get(id) else { return };
        let State::Merging { phase, step: Step::Merging, .. } = lease.state else { return };
        match result {
            Ok(()) => self.swap_in(id, out),
            Err(fault) => {
                self.leave_phase_undone(lease.file, phase, out);
                self.commit_failed(id, fault.into(), out);
            }
        }
    }

    /// The commit takes effect: its frames are the file's newest blocks.
    fn swap_in(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let State::Merging { request, phase, .. } = lease.state else { return };
        let (file, range, run) = (lease.file, lease.range, lease.run);
        if lease.poisoned {
            let error = CommitError::Poisoned(lease.of.unwrap_or(id));
            self.leave_phase_undone(file, phase, out);
            return self.commit_failed(id, error, out);
        }
        let order = whole_blocks(range).and_then(|replaced| self.cut_failed_writes(file, replaced, out));
        let state = self.file_mut(file);
        state.size = state.size.max(range.end());
        let size = state.size;
        self.begin_write(file, range, run, id, order, out);
        self.advance_syncs(file, out);
        self.leave_phase(file, phase);
        self.commit_over(id, request, Ok(Committed { size }), out);
    }

    /// The lease is fenced, and holds no phase: nothing of it gets into the file.
    pub(crate) fn commit_failed(&mut self, id: LeaseId, error: CommitError, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let (State::Verifying { request } | State::Merging { request, .. }) = lease.state else { return };
        let run = lease.run;
        self.free_frames(run, Owner::Lease(id));
        self.commit_over(id, request, Err(error), out);
    }

    /// Tells the holder; the lease is over, or the capture, which has no key.
    fn commit_over(
        &mut self,
        id: LeaseId,
        request: RequestId,
        result: Result<Committed, CommitError>,
        out: &mut Vec<Output>,
    ) {
        let lease = &self.leases[id];
        let (session, captured) = (lease.session, lease.of.is_some());
        let outcome = if result.is_ok() { Outcome::Committed } else { Outcome::Released };
        if captured {
            self.answer(request, Reply::Capture(result), out);
        } else {
            self.answer(request, Reply::Commit(result), out);
            out.push(Output::Forget { lease: id, session });
        }
        self.lease_over(id, outcome, out);
    }
}

/// The blocks that lie wholly within the range.
pub(crate) fn whole_blocks(range: ByteRange) -> Option<BlockRange> {
    // All bytes from somewhere on are all blocks from there on.
    let end = if range.end() == u64::MAX { range.blocks().end() } else { range.end() / BLOCK_BYTES };
    BlockRange::new(range.start().div_ceil(BLOCK_BYTES), end)
}
