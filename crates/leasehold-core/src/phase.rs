//! Phases: the right to change, or to rely on, some blocks of a file for a short while.
//!
//! A commit and a change hold an exclusive phase on their blocks while they take effect; a load holds a shared one. A
//! phase begins when no earlier phase is in its way (first come, first served, so that nobody starves) and when the
//! writebacks of its blocks have drained: a block has at most one frame outside the disk.
//!
//! A phase never waits for a client, only for the disk and for phases before it, so each one ends. A writeback that
//! failed must not break this: a phase that replaces its blocks entirely takes their place, and suspends it until it is
//! known whether it did; any other phase has it tried once more, and then fails with its fault.
//!
//! ```text
//! queued --no earlier phase in the way--> draining --writebacks durable--> held --owner is done--> gone
//! ```
//! Each phase that waits watches one thing that is in its way, and is looked at again when that has gone.

use crate::core::Core;
use crate::ids::{FileId, LeaseId, RequestId, WriteId};
use crate::input::Fault;
use crate::intervals::Key;
use crate::output::Output;
use crate::range::BlockRange;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// The number of a phase; they grow in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PhaseId(pub u64);

impl Key for PhaseId {
    const MIN: PhaseId = PhaseId(0);
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Phase {
    pub blocks: BlockRange,
    pub exclusive: bool,
    pub owner: PhaseOwner,
    /// The blocks that the owner replaces, or frees, entirely.
    pub replaces: Option<BlockRange>,
    pub progress: Progress,
    /// A failed writeback has been tried again on its behalf.
    retried: bool,
    /// Phases that wait for this one.
    watchers: BTreeSet<PhaseId>,
}

/// Whose a phase is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PhaseOwner {
    Commit(LeaseId),
    Load(LeaseId),
    Read(RequestId),
    Change(RequestId),
}

/// How far a phase has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Progress {
    /// To be looked at.
    New,
    Queued(PhaseId),
    Draining(WriteId),
    Held,
}

enum Drain {
    Done,
    Wait(WriteId),
    Failed(Fault),
}

impl Core {
    /// Puts the owner in line for `blocks`. Its `held` function is called from [`Core::settle`].
    pub(crate) fn enter_phase(
        &mut self,
        file: FileId,
        blocks: BlockRange,
        owner: PhaseOwner,
        replaces: Option<BlockRange>,
    ) -> PhaseId {
        let exclusive = matches!(owner, PhaseOwner::Commit(_) | PhaseOwner::Change(_));
        let id = PhaseId(self.next_id());
        let phase = Phase {
            blocks,
            exclusive,
            owner,
            replaces,
            progress: Progress::New,
            retried: false,
            watchers: BTreeSet::new(),
        };
        let file_state = self.file_mut(file);
        file_state.phases.insert(id, phase);
        file_state.phase_index.insert(blocks, exclusive, id);
        self.work.phases.push_back((file, id));
        id
    }

    /// The owner is done with its phase, or does not want it any more.
    pub(crate) fn leave_phase(&mut self, file: FileId, id: PhaseId) {
        self.unwatch_phase(file, id);
        let state = self.file_mut(file);
        let phase = state.phases.remove(&id).expect("a phase is left once");
        state.phase_index.remove(phase.blocks, phase.exclusive, id);
        self.work.phases.extend(phase.watchers.into_iter().map(|watcher| (file, watcher)));
    }

    /// The owner has failed: failed writebacks whose place it would have taken are tried again.
    pub(crate) fn leave_phase_undone(&mut self, file: FileId, id: PhaseId, out: &mut Vec<Output>) {
        let blocks = self.phase_mut(file, id).blocks;
        self.leave_phase(file, id);
        self.resume_writes(file, blocks, out);
    }

    /// Whether an owner is changing some of the blocks at this moment.
    pub(crate) fn is_changing(&self, file: FileId, blocks: BlockRange) -> bool {
        let state = self.file(file);
        state.phase_index.conflicting(blocks, false).any(|id| state.phases[&id].progress == Progress::Held)
    }

    /// Looks at a phase again after something that was in its way has gone.
    pub(crate) fn advance_phase(&mut self, file: FileId, id: PhaseId, out: &mut Vec<Output>) {
        let Some(phase) = self.files.get(&file).and_then(|file| file.phases.get(&id)) else { return };
        if phase.progress == Progress::Held {
            return;
        }
        self.unwatch_phase(file, id);
        let state = self.file_mut(file);
        let phase = &state.phases[&id];
        let (blocks, exclusive, owner) = (phase.blocks, phase.exclusive, phase.owner);
        // The latest of those in the way: it waits for the earlier ones itself.
        let earlier = state.phase_index.conflicting(blocks, exclusive).filter(|&other| other < id).max();
        if let Some(earlier) = earlier {
            state.phases.get_mut(&earlier).expect("indexed").watchers.insert(id);
            return self.phase_mut(file, id).progress = Progress::Queued(earlier);
        }
        match self.drain(file, id, out) {
            Drain::Wait(write) => {
                self.writes.get_mut(&write).expect("indexed").watchers.insert(id);
                self.phase_mut(file, id).progress = Progress::Draining(write);
            }
            Drain::Failed(fault) => {
                self.leave_phase(file, id);
                match owner {
                    PhaseOwner::Commit(lease) => self.commit_failed(lease, fault.into(), out),
                    PhaseOwner::Load(lease) => self.preparation_failed(lease, fault, out),
                    PhaseOwner::Read(request) => self.read_failed(request, fault.into(), out),
                    PhaseOwner::Change(request) => self.change_failed(request, fault, out),
                }
            }
            Drain::Done => {
                self.phase_mut(file, id).progress = Progress::Held;
                match owner {
                    PhaseOwner::Commit(lease) => self.commit_phase_held(lease, id, out),
                    PhaseOwner::Load(lease) => self.load_phase_held(lease, id, out),
                    PhaseOwner::Read(request) => self.read_phase_held(request, out),
                    PhaseOwner::Change(request) => self.change_phase_held(request, id, out),
                }
            }
        }
    }

    fn drain(&mut self, file: FileId, id: PhaseId, out: &mut Vec<Output>) -> Drain {
        let phase = &self.file(file).phases[&id];
        if let PhaseOwner::Change(_) | PhaseOwner::Read(_) = phase.owner {
            let blocks = phase.blocks;
            self.write_pages(file, blocks, None, out);
        }
        let state = self.file(file);
        let phase = &state.phases[&id];
        if let Some(write) = state.in_flight.overlapping(phase.blocks).next() {
            return Drain::Wait(write);
        }
        let failed: Vec<WriteId> = state.failed.overlapping(phase.blocks).collect();
        let (blocks, replaces, retried) = (phase.blocks, phase.replaces, phase.retried);
        for &write in &failed {
            let shared = intersection(self.writes[&write].blocks, blocks);
            if shared.is_none_or(|shared| replaces.is_some_and(|replaces| contains(replaces, shared))) {
                continue;
            }
            if retried {
                return Drain::Failed(self.writes[&write].fault());
            }
            self.phase_mut(file, id).retried = true;
            self.retry_write(write, out);
            return Drain::Wait(write);
        }
        for write in failed {
            self.suspend_write(write);
        }
        Drain::Done
    }

    pub(crate) fn phase_mut(&mut self, file: FileId, id: PhaseId) -> &mut Phase {
        self.file_mut(file).phases.get_mut(&id).expect("a phase that its owner refers to")
    }

    /// Stops watching what was in the way.
    fn unwatch_phase(&mut self, file: FileId, id: PhaseId) {
        match self.phase_mut(file, id).progress {
            Progress::New | Progress::Held => {}
            Progress::Queued(other) => {
                if let Some(other) = self.file_mut(file).phases.get_mut(&other) {
                    other.watchers.remove(&id);
                }
            }
            Progress::Draining(write) => {
                if let Some(write) = self.writes.get_mut(&write) {
                    write.watchers.remove(&id);
                }
            }
        }
    }
}

/// The blocks of both.
pub(crate) fn intersection(a: BlockRange, b: BlockRange) -> Option<BlockRange> {
    BlockRange::new(a.start().max(b.start()), a.end().min(b.end()))
}

/// Whether all blocks of `inner` are in `outer`.
pub(crate) fn contains(outer: BlockRange, inner: BlockRange) -> bool {
    outer.start() <= inner.start() && inner.end() <= outer.end()
}
