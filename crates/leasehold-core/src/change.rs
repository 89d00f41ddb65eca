//! Changes of a file's layout: truncate, punch, zero, collapse, remove; and what needs blocks to itself in the same way:
//! clone and adopt.
//!
//! ```text
//! waiting --leases broken and gone, earlier changes done--> in phase --drained--> performing --> done
//! ```
//! What takes nothing from anybody has nobody to wait for and begins at its phase: a clone, an adoption, an extending
//! truncate. It sees every commit that came before it on disk, and none in progress.
//!
//! The phase of an extending truncate reaches from the old tail to the end of all files, since a commit beyond it must
//! not be cut off. If such a commit came first, it is a shrinking truncate after all, and begins again as one, once.
//! An adoption that takes the size has all blocks to itself: no commit may be on its way that would make the file longer.
//! Whoever finds in its phase that another change has made the file so short that more blocks are affected gets in line
//! again, for all of them.

use crate::commit::whole_blocks;
use crate::core::Core;
use crate::identity::Identity;
use crate::ids::{FileId, LeaseId, RequestId, SessionId};
use crate::input::{Change, Fault};
use crate::output::{ChangeError, Operation, Output, Reply};
use crate::phase::{PhaseId, PhaseOwner, contains, intersection};
use crate::range::{BLOCK_BYTES, BlockRange, ByteRange};
use crate::request::{Blocker, Kind};
use crate::scheme::LayoutRule;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// A change that is owed an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ChangeRequest {
    pub file: FileId,
    pub change: Change,
    pub breaker: Arc<Identity>,
    /// What it takes away; `None` for an extending truncate.
    pub takes: Option<ByteRange>,
    /// What is in its way.
    pub blocker: Option<Blocker>,
    pub phase: Option<PhaseId>,
    /// `Output::Perform` is out.
    pub performing: bool,
    cancelled: bool,
}

impl Core {
    pub(crate) fn change(
        &mut self,
        id: RequestId,
        file: FileId,
        change: Change,
        breaker: Arc<Identity>,
        out: &mut Vec<Output>,
    ) {
        if self.is_known(id) {
            return;
        }
        let size = match self.admit_change(file, change) {
            Ok(size) => size,
            Err(error) => return self.reply(id, Reply::Change(Err(error)), out),
        };
        self.file_mut(file).requests.insert(id);
        let request = ChangeRequest {
            file,
            change,
            breaker,
            takes: self.takes(change, size),
            blocker: None,
            phase: None,
            performing: false,
            cancelled: false,
        };
        self.insert_request(id, Kind::Change(request));
        self.claim(id, out);
    }

    /// Whether the change may wait for its turn at all; the file's size.
    fn admit_change(&mut self, file: FileId, change: Change) -> Result<u64, ChangeError> {
        let Some(size) = self.named_file(file).map(|file| file.size) else { return Err(ChangeError::NoFile) };
        if let Some((limit, max)) = self.is_full_of_requests() {
            return Err(ChangeError::Limit { limit, max });
        }
        // Before it breaks a lease for nothing.
        collapsible(change, size).map(|()| size)
    }

    fn change_mut(&mut self, id: RequestId) -> &mut ChangeRequest {
        match self.requests.get_mut(&id).map(|request| &mut request.kind) {
            Some(Kind::Change(change)) => change,
            _ => unreachable!("only changes are looked up as changes"),
        }
    }

    /// Claims what the change takes away, breaks the leases in its way, and goes on if there are none.
    fn claim(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let layout = self.config.scheme.layout;
        let request = self.change_mut(id);
        let (file, operation) = (request.file, Operation::Change(request.change));
        let breaker = request.breaker.clone();
        if let Some(takes) = request.takes {
            let leases: Vec<LeaseId> = self.leases_in_the_way(id).collect();
            if layout == LayoutRule::Refuse
                && let Some(&lease) =
                    leases.iter().find(|&&lease| self.leases[lease].session != SessionId::LOCAL)
            {
                let holder = self.leases[lease].identity.clone();
                return self.finish_change(id, Err(ChangeError::Busy { lease, holder }), out);
            }
            self.file_mut(file).changes.insert(takes, id);
            for lease in leases {
                match layout {
                    LayoutRule::Ignore | LayoutRule::Wait | LayoutRule::Refuse => {}
                    LayoutRule::Fence => self.take_key(lease, out),
                    LayoutRule::Break | LayoutRule::BreakThenKill => {
                        self.begin_break(lease, id, &breaker, operation, out);
                    }
                }
            }
        }
        self.advance_change(id);
    }

    pub(crate) fn advance_change(&mut self, id: RequestId) {
        self.unblock(id);
        let request = self.change_mut(id);
        let (file, change, takes) = (request.file, request.change, request.takes);
        if request.phase.is_some() {
            return;
        }
        if let Some(takes) = takes {
            let earlier = self.file(file).changes.overlapping(takes).filter(|&other| other < id).max();
            let lease = || self.leases_in_the_way(id).next().map(Blocker::Lease);
            if let Some(blocker) = earlier.map(Blocker::Request).or_else(lease) {
                return self.block_on(id, blocker);
            }
        }
        let size = self.file(file).size;
        let (blocks, replaces) = (affects(change, size).blocks(), replaces(change, takes, size));
        let phase = self.enter_phase(file, blocks, PhaseOwner::Change(id), replaces);
        self.change_mut(id).phase = Some(phase);
    }

    pub(crate) fn change_phase_held(&mut self, id: RequestId, phase: PhaseId, out: &mut Vec<Output>) {
        let request = self.change_mut(id);
        let (file, change, before) = (request.file, request.change, request.takes);
        // Commits and changes that came first may have changed the size.
        let size = self.file(file).size;
        let takes = self.takes(change, size);
        if before.is_none() && takes.is_some() {
            self.leave_phase(file, phase);
            let request = self.change_mut(id);
            (request.takes, request.phase) = (takes, None);
            return self.claim(id, out);
        }
        if !contains(self.phase_mut(file, phase).blocks, affects(change, size).blocks()) {
            self.leave_phase(file, phase);
            let all = ByteRange::ALL.blocks();
            let phase = self.enter_phase(file, all, PhaseOwner::Change(id), None);
            self.change_mut(id).phase = Some(phase);
            return;
        }
        if let Err(error) = collapsible(change, size) {
            self.leave_phase_undone(file, phase, out);
            return self.finish_change(id, Err(error), out);
        }
        self.change_mut(id).performing = true;
        // Whoever performs it knows only what is durable of the size, so it is told.
        let change = match change {
            Change::Adopt { range } if range.end() > size => {
                Change::Adopt { range: ByteRange::from(range.start()) }
            }
            change => change,
        };
        out.push(Output::Perform { request: id, file, change });
    }

    pub(crate) fn performed(
        &mut self,
        id: RequestId,
        result: Result<Option<u64>, Fault>,
        out: &mut Vec<Output>,
    ) {
        let Some(Kind::Change(request)) = self.requests.get(&id).map(|request| &request.kind) else { return };
        let (file, change, takes) = (request.file, request.change, request.takes);
        let (true, Some(phase)) = (request.performing, request.phase) else { return };
        let found = match result {
            Ok(found) => found,
            Err(fault) => {
                self.leave_phase_undone(file, phase, out);
                return self.finish_change(id, Err(ChangeError::Fault(fault)), out);
            }
        };
        let replaced = self.phase_mut(file, phase).replaces;
        if change != Change::Clone
            && let Some(takes) = takes
        {
            self.take_pages(file, takes);
        }
        if let Some(replaced) = replaced {
            self.cut_failed_writes(file, replaced, out);
            self.advance_syncs(file, out);
        }
        let state = self.file_mut(file);
        match change {
            Change::Truncate { size } => state.size = size,
            Change::Punch { .. } | Change::Zero { .. } | Change::Clone => {}
            Change::Collapse { range } => state.size -= range.len(),
            Change::Adopt { range } if range.end() > state.size => state.size = found.unwrap_or(state.size),
            Change::Adopt { .. } => {}
            Change::Remove => (state.size, state.removed) = (0, true),
        }
        self.leave_phase(file, phase);
        self.finish_change(id, Ok(()), out);
        if change == Change::Remove {
            self.refuse_all(file, out);
        }
    }

    /// Its phase is gone: a failed writeback that it cannot take away is in its blocks.
    pub(crate) fn change_failed(&mut self, id: RequestId, fault: Fault, out: &mut Vec<Output>) {
        self.finish_change(id, Err(ChangeError::Fault(fault)), out);
    }

    /// Takes the change out of all tables, its phase excepted.
    fn forget_change(&mut self, id: RequestId) -> Option<ChangeRequest> {
        let Kind::Change(request) = self.remove_request(id).kind else { return None };
        let state = self.file_mut(request.file);
        state.requests.remove(&id);
        if let Some(takes) = request.takes {
            state.changes.remove(takes, id);
        }
        Some(request)
    }

    /// The change is not made, unless it is being made already.
    pub(crate) fn refuse_change(&mut self, id: RequestId, error: ChangeError, out: &mut Vec<Output>) {
        if let Some(Kind::Change(request)) = self.requests.get(&id).map(|request| &request.kind)
            && request.phase.is_none()
        {
            self.finish_change(id, Err(error), out);
        }
    }

    fn finish_change(&mut self, id: RequestId, result: Result<(), ChangeError>, out: &mut Vec<Output>) {
        if self.forget_change(id).is_some_and(|request| !request.cancelled) {
            self.reply(id, Reply::Change(result), out);
        }
    }

    /// What is being performed goes on, and is not answered.
    pub(crate) fn cancel_change(&mut self, id: RequestId) {
        let request = self.change_mut(id);
        request.cancelled = true;
        if !request.performing {
            let (file, phase) = (request.file, request.phase);
            if let Some(phase) = phase {
                self.leave_phase(file, phase);
            }
            self.forget_change(id);
        }
    }

    /// The leases that the change has to see go.
    pub(crate) fn leases_in_the_way(&self, id: RequestId) -> impl Iterator<Item = LeaseId> + '_ {
        let (file, takes, all) = match &self.requests[&id].kind {
            // Who only reads a file does not mind its being cloned.
            Kind::Change(request) => (request.file, request.takes, request.change != Change::Clone),
            _ => unreachable!("only changes are looked up as changes"),
        };
        let leases = takes.map(|takes| self.file(file).leases.conflicting(takes, all));
        leases.into_iter().flatten().filter(|&lease| self.keeps_changes_out(lease))
    }

    /// The bytes that the change takes away from leases. Where DMA lands in the file's own frames, a clone has, or
    /// shares, what lands there during it: it takes everything from writers.
    fn takes(&self, change: Change, size: u64) -> Option<ByteRange> {
        match change {
            Change::Clone if self.lands_in_file() => Some(ByteRange::ALL),
            change => takes(change, size),
        }
    }

    /// The file is gone: so is what was wanted of it.
    fn refuse_all(&mut self, file: FileId, out: &mut Vec<Output>) {
        for id in self.file(file).requests.clone() {
            match self.requests.get(&id).map(|request| &request.kind) {
                Some(Kind::Acquire(_)) => self.acquire_lost_its_file(id, out),
                Some(Kind::Read(_)) => self.read_lost_its_file(id, out),
                Some(Kind::Sync(_)) => self.sync_lost_its_file(id, out),
                Some(Kind::Change(request)) if !request.performing => {
                    if let Some(phase) = request.phase {
                        self.leave_phase(file, phase);
                    }
                    self.finish_change(id, Err(ChangeError::NoFile), out);
                }
                // A capture goes with its lease.
                Some(Kind::Change(_) | Kind::Capture(_)) | None => {}
            }
        }
    }
}

/// The bytes that the change takes away from a file of `size` bytes, and so from leases; past its end too.
fn takes(change: Change, size: u64) -> Option<ByteRange> {
    match change {
        Change::Truncate { size: new } if new >= size => None,
        Change::Truncate { size: new } => Some(ByteRange::from(new)),
        Change::Punch { range } | Change::Zero { range } => Some(range),
        Change::Collapse { range } => Some(ByteRange::from(range.start())),
        Change::Remove => Some(ByteRange::ALL),
        Change::Clone | Change::Adopt { .. } => None,
    }
}

/// The bytes whose blocks must be quiet while the change is performed.
fn affects(change: Change, size: u64) -> ByteRange {
    match change {
        Change::Truncate { size: new } => ByteRange::from(new.min(size)),
        Change::Punch { range } | Change::Zero { range } => range,
        Change::Collapse { range } => ByteRange::from(range.start()),
        Change::Adopt { range } if range.end() <= size => range,
        Change::Adopt { .. } | Change::Remove | Change::Clone => ByteRange::ALL,
    }
}

/// The blocks of which nothing is left that a failed writeback could still bring to the disk.
fn replaces(change: Change, takes: Option<ByteRange>, size: u64) -> Option<BlockRange> {
    match change {
        Change::Truncate { .. } | Change::Remove => takes.and_then(whole_blocks),
        Change::Punch { range } | Change::Zero { range } => {
            // The size stays, and the writeback of the tail may be what brings it to the disk.
            let tail = BlockRange::new(0, size.saturating_sub(1) / BLOCK_BYTES);
            whole_blocks(range).zip(tail).and_then(|(whole, before)| intersection(whole, before))
        }
        // What is behind the range moves, so it must be on disk.
        Change::Collapse { range } => whole_blocks(range),
        Change::Clone | Change::Adopt { .. } => None,
    }
}

/// Whether a collapse can be made, as far as the file's size goes.
fn collapsible(change: Change, size: u64) -> Result<(), ChangeError> {
    match change {
        Change::Collapse { range }
            if range.start() % BLOCK_BYTES != 0 || range.end() % BLOCK_BYTES != 0 || range.end() >= size =>
        {
            Err(ChangeError::CannotCollapse { range, size })
        }
        _ => Ok(()),
    }
}
