//! What is going on, for people: who holds what, who waits for whom, how full the tables are.
//!
//! Views are computed when asked for and cost nothing otherwise. They are the other half of promise P6: a breaker can
//! always learn whom it waits for.

use crate::acquire::Acquire;
use crate::breaks::Break;
use crate::change::ChangeRequest;
use crate::core::Core;
use crate::identity::Identity;
use crate::ids::{BreakId, FileId, FrameId, LeaseId, RequestId, SessionId, Tick, WriteId};
use crate::input::Access;
use crate::lease::{Ending, Lease, State};
use crate::output::Operation;
use crate::phase::{PhaseId, PhaseOwner, Progress};
use crate::range::{ByteRange, Run};
use crate::read::{Read, ReadStage};
use crate::request::{Kind, Request};
use crate::sync::{Sync, SyncStage};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One lease, as `leasehold leases` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseView {
    /// The lease.
    pub id: LeaseId,
    /// Whose it is.
    pub session: SessionId,
    /// Who that is.
    pub identity: Arc<Identity>,
    /// On which file.
    pub file: FileId,
    /// On which bytes.
    pub range: ByteRange,
    /// What its key may do.
    pub access: Access,
    /// How far it has come.
    pub state: LeaseState,
    /// Since when it holds its frames.
    pub since: Tick,
    /// The frames of `range.blocks()`, for a server that fills them itself (`SessionId::LOCAL`).
    pub run: Run,
    /// When it falls if its holder does not answer; `None` unless it is under break.
    pub deadline: Option<Tick>,
    /// The breaks against it that go on; see `Core::breaks`.
    pub breaks: Vec<BreakId>,
}

/// How far a lease has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseState {
    /// Its frames are being filled, or its key made. The holder does not know it yet.
    Preparing,
    /// Its key is live and its holder may use it.
    Live,
    /// Its key was taken back, and comes again when the device needs it: only under schemes that do such a thing.
    Parked,
    /// Its key is being fenced, be it for a commit, a release or a break.
    Fencing,
    /// Fenced; its bytes are on their way into the file.
    Committing,
    /// It ended before it was granted; an answer for its frames or its key is still to come.
    Abandoned,
}

/// One request that waits, as `leasehold why` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wait {
    /// The request.
    pub request: RequestId,
    /// The file that it waits for (of several, the first that is in its way).
    pub file: FileId,
    /// What it wants.
    pub what: WaitKind,
    /// Who asked, if that is known.
    pub who: Option<Arc<Identity>>,
    /// Since when.
    pub since: Tick,
    /// When it gives up.
    pub until: Option<Tick>,
    /// Whom or what it waits for.
    pub on: Vec<WaitOn>,
}

/// What a request that waits wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitKind {
    /// A change or an acquire.
    Operation(Operation),
    /// A read without a lease.
    Read(ByteRange),
    /// An fsync.
    Sync,
    /// A commit of this lease.
    Commit(LeaseId),
    /// A release of this lease.
    Release(LeaseId),
    /// A capture of some bytes of this lease.
    Capture(LeaseId, ByteRange),
}

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WaitOn {
    /// A lease in conflict, until its holder answers or the deadline (`None`: for ever, if need be).
    Lease { id: LeaseId, holder: Arc<Identity>, deadline: Option<Tick> },
    /// The fence of this lease.
    Fence(LeaseId),
    /// A request whose turn comes first.
    Request(RequestId),
    /// A writeback of the same blocks.
    Writeback(WriteId),
    /// Free frames.
    Frames,
    /// The disk, which is at work for this very request, or for one before it in the same blocks.
    Disk,
}

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stats {
    /// Sessions, not counting `LOCAL`.
    pub sessions: usize,
    /// Files the core knows.
    pub files: usize,
    /// Leases in any state.
    pub leases: usize,
    /// Requests that are owed an answer, and reads that are not finished.
    pub requests: usize,
    /// Breaks that go on.
    pub breaks: usize,
    /// Writebacks that are not durable, failed ones among them.
    pub writebacks: usize,
    /// Writebacks that failed and wait to be tried again.
    pub writebacks_failed: usize,
    /// Frames, by owner.
    pub frames: FrameStats,
}

/// Frames by owner; their sum is the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FrameStats {
    /// Nobody's.
    pub free: u32,
    /// Of leases.
    pub leased: u32,
    /// On their way to the disk.
    pub writeback: u32,
    /// Lent to readers.
    pub reading: u32,
    /// Not to be touched until their endpoint is gone.
    pub quarantined: u32,
}

impl Core {
    /// Every lease, in order of its id.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView> + '_ {
        self.leases.iter().map(|(id, lease)| lease.view(id))
    }

    /// One lease.
    #[must_use]
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView> {
        self.leases.get(id).map(|lease| lease.view(id))
    }

    /// The file's committed size, durable or not; `None` if it is not open, or removed.
    #[must_use]
    pub fn file_size(&self, file: FileId) -> Option<u64> {
        self.files.get(&file).filter(|file| !file.removed).map(|file| file.size)
    }

    /// The frame that stands for a block of the file, and whether nobody but those who have a key to it finds it; `None`:
    /// what is on disk is all there is. Only under schemes whose DMA lands in the file's own frames.
    #[must_use]
    pub fn page(&self, file: FileId, block: u64) -> Option<(FrameId, bool)> {
        let &frame = self.files.get(&file)?.pages.get(&block)?;
        let page = self.pages.get(&frame).filter(|page| page.loaded)?;
        Some((frame, page.held && self.config.scheme.dirty.under_io))
    }

    /// Every break that goes on, in order of its id.
    pub fn breaks(&self) -> impl Iterator<Item = &Break> + '_ {
        self.breaks.values()
    }

    /// Every request that waits, and whom or what for. A read that was answered waits for nothing.
    pub fn waits(&self) -> impl Iterator<Item = Wait> + '_ {
        let requests = self.requests.iter().filter_map(|(&id, request)| self.wait(id, request));
        let endings = self.answers.iter().map(|(&id, &lease)| self.ending(id, lease));
        requests.chain(endings)
    }

    /// How full the tables are. Cheap, but for the failed writebacks, which are counted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            sessions: self.sessions.len() - 1,
            files: self.files.len(),
            leases: self.leases.len(),
            requests: self.requests.len() + self.answers.len(),
            breaks: self.breaks.len(),
            writebacks: self.writes.len(),
            writebacks_failed: self.writes.values().filter(|write| !write.is_in_flight()).count(),
            frames: self.frames.stats(),
        }
    }

    fn wait(&self, id: RequestId, request: &Request) -> Option<Wait> {
        let wait = |file, what, who, until, on| {
            Some(Wait { request: id, file, what, who, since: request.since, until, on })
        };
        match &request.kind {
            Kind::Acquire(acquire) => {
                let session = self.sessions.get(&acquire.session);
                let (file, operation, on) = self.acquire_waits_on(id, acquire)?;
                let until = acquire.group.is_none().then_some(acquire.deadline);
                let who = session.map(|session| session.identity.clone());
                wait(file, WaitKind::Operation(operation), who, until, on)
            }
            Kind::Change(change) => {
                let what = WaitKind::Operation(Operation::Change(change.change));
                let on = self.change_waits_on(id, change);
                wait(change.file, what, Some(change.breaker.clone()), None, on)
            }
            Kind::Read(Read { file, range, deadline, stage }) => {
                let on = match *stage {
                    ReadStage::Frames => alloc::vec![WaitOn::Frames],
                    ReadStage::Queued { phase, .. } => alloc::vec![self.phase_waits_on(*file, phase)],
                    ReadStage::Loading { .. } => alloc::vec![WaitOn::Disk],
                    ReadStage::Lent { .. } => return None,
                };
                wait(*file, WaitKind::Read(*range), None, Some(*deadline), on)
            }
            Kind::Sync(Sync { file, stage }) => {
                let on = match *stage {
                    SyncStage::Holder(lease) => alloc::vec![self.lease_in_the_way(lease)],
                    SyncStage::Waiting { last, .. } => {
                        let owed = self.file(*file).writes.iter().take_while(|&&(order, _)| order <= last);
                        owed.map(|&(_, write)| WaitOn::Writeback(write)).collect()
                    }
                    SyncStage::Flushing { .. } => alloc::vec![WaitOn::Disk],
                };
                wait(*file, WaitKind::Sync, None, None, on)
            }
            Kind::Capture(capture) => {
                let lease = self.leases.get(capture.of)?;
                let what = WaitKind::Capture(capture.of, capture.range);
                let (who, until) = (lease.identity.clone(), capture.deadline);
                wait(lease.file, what, Some(who), Some(until), alloc::vec![WaitOn::Frames])
            }
        }
    }

    fn acquire_waits_on(&self, id: RequestId, acquire: &Acquire) -> Option<(FileId, Operation, Vec<WaitOn>)> {
        let mut first = acquire.wants.first()?;
        let mut on = Vec::new();
        if let Some(group) = &acquire.group {
            on.extend(group.leases.iter().filter_map(|&lease| self.preparation_waits_on(lease)));
        } else {
            for want in &acquire.wants {
                let (file, writes) = (self.file(want.file), want.access.writes());
                let before = on.len();
                on.extend(file.changes.overlapping(want.range).map(WaitOn::Request));
                let acquires = file.acquires.conflicting(want.range, writes);
                on.extend(acquires.filter(|&other| other < id).map(WaitOn::Request));
                on.extend(
                    file.leases.conflicting(want.range, writes).map(|lease| self.lease_in_the_way(lease)),
                );
                if before == 0 && !on.is_empty() {
                    first = want;
                }
            }
            if on.is_empty() {
                on.push(WaitOn::Frames);
            }
        }
        let operation = Operation::Acquire { range: first.range, access: first.access };
        Some((first.file, operation, on))
    }

    fn preparation_waits_on(&self, id: LeaseId) -> Option<WaitOn> {
        let lease = &self.leases[id];
        match lease.state {
            State::Loading { phase, asked: false } => Some(self.phase_waits_on(lease.file, phase)),
            State::Loading { .. } | State::Zeroing | State::Exposing => Some(WaitOn::Disk),
            _ => None,
        }
    }

    fn change_waits_on(&self, id: RequestId, change: &ChangeRequest) -> Vec<WaitOn> {
        match (change.performing, change.phase, change.takes) {
            (true, ..) => alloc::vec![WaitOn::Disk],
            (_, Some(phase), _) => alloc::vec![self.phase_waits_on(change.file, phase)],
            (_, None, Some(takes)) => {
                let file = self.file(change.file);
                let earlier = file.changes.overlapping(takes).filter(|&other| other < id);
                let leases = self.leases_in_the_way(id);
                earlier.map(WaitOn::Request).chain(leases.map(|lease| self.lease_in_the_way(lease))).collect()
            }
            _ => Vec::new(),
        }
    }

    fn lease_in_the_way(&self, id: LeaseId) -> WaitOn {
        let lease = &self.leases[id];
        match lease.state {
            State::Fencing(_) => WaitOn::Fence(id),
            State::Fenced { .. } => match self.captures.get(&id).and_then(VecDeque::front) {
                Some(&capture) => self.lease_in_the_way(capture),
                None => WaitOn::Disk,
            },
            State::Queued { .. } | State::Verifying { .. } => WaitOn::Disk,
            State::Merging { phase, .. } => self.phase_waits_on(lease.file, phase),
            _ => WaitOn::Lease { id, holder: lease.identity.clone(), deadline: lease.deadline },
        }
    }

    /// Whatever the first phase in line waits for.
    fn phase_waits_on(&self, file: FileId, phase: PhaseId) -> WaitOn {
        let phase = &self.file(file).phases[&phase];
        match phase.progress {
            Progress::Draining(write) => WaitOn::Writeback(write),
            Progress::Queued(other) => match self.file(file).phases[&other].owner {
                PhaseOwner::Change(request) | PhaseOwner::Read(request) => WaitOn::Request(request),
                PhaseOwner::Commit(_) | PhaseOwner::Load(_) => WaitOn::Disk,
            },
            Progress::New | Progress::Held => WaitOn::Disk,
        }
    }

    /// A commit or release that goes on.
    fn ending(&self, request: RequestId, id: LeaseId) -> Wait {
        let lease = &self.leases[id];
        let what = match (lease.of, lease.state) {
            (Some(of), _) => WaitKind::Capture(of, lease.range),
            (_, State::Fencing(Ending::Release(_)) | State::Fenced { ending: Ending::Release(_), .. }) => {
                WaitKind::Release(id)
            }
            _ => WaitKind::Commit(id),
        };
        let on = alloc::vec![self.lease_in_the_way(id)];
        let who = Some(lease.identity.clone());
        Wait { request, file: lease.file, what, who, since: lease.since, until: None, on }
    }
}

impl Lease {
    fn view(&self, id: LeaseId) -> LeaseView {
        let state = match self.state {
            _ if self.abandoned.is_some() => LeaseState::Abandoned,
            State::Loading { .. } | State::Zeroing | State::Exposing => LeaseState::Preparing,
            State::Live if self.request.is_some() => LeaseState::Preparing,
            State::Live => LeaseState::Live,
            State::Parked => LeaseState::Parked,
            State::Fencing(_) => LeaseState::Fencing,
            State::Fenced { .. } | State::Verifying { .. } | State::Queued { .. } | State::Merging { .. } => {
                LeaseState::Committing
            }
        };
        LeaseView {
            id,
            session: self.session,
            identity: self.identity.clone(),
            file: self.file,
            range: self.range,
            access: self.access,
            state,
            since: self.since,
            run: self.run,
            deadline: self.deadline,
            breaks: self.breaks.clone(),
        }
    }
}
