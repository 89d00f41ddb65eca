//! The state machine itself: its tables, and how an input becomes outputs.

use crate::breaks::Break;
use crate::config::Config;
use crate::file::File;
use crate::frame::FrameTable;
use crate::holder::Ask;
use crate::ids::{BreakId, FileId, FrameId, LeaseId, RequestId, SessionId, TenantId, Tick, WriteId};
use crate::input::Input;
use crate::lease::Lease;
use crate::output::Output;
use crate::page::Page;
use crate::phase::PhaseId;
use crate::range::ByteRange;
use crate::request::Request;
use crate::schemes;
use crate::session::Session;
use crate::sparse::SparseTable;
use crate::tenant::Tenant;
use crate::writeback::Writeback;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

/// Everything Leasehold knows, and the one function that changes it.
///
/// The caller waits for inputs (or for [`Core::next_deadline`]), calls [`Core::step`], and performs the outputs in
/// order. Outputs that say so are answered by inputs, in any order among each other. Inputs that refer to something
/// that is over, or never was, change nothing.
///
/// ```
/// use leasehold_core::{Config, Core};
/// use leasehold_core::ids::{FileId, RequestId, SessionId, Tick};
/// use leasehold_core::input::{Access, Input, OnConflict, Want};
/// use leasehold_core::output::Output;
/// use leasehold_core::range::ByteRange;
///
/// let mut core = Core::new(Config { frames: 16, ..Config::default() });
/// let mut out = Vec::new();
/// core.step(Tick(0), Input::FileOpened { file: FileId(1), size: 0 }, &mut out);
/// let want = Want { file: FileId(1), range: ByteRange::new(0, 10_000).unwrap(), access: Access::Overwrite };
/// let acquire = Input::Acquire {
///     request: RequestId(1),
///     session: SessionId::LOCAL,
///     wants: vec![want],
///     on_conflict: OnConflict::Wait,
///     deadline: Tick(1_000_000),
/// };
/// core.step(Tick(1), acquire, &mut out);
/// // The frames are fresh, so the first thing to do is to make the key; the answer to that grants the lease.
/// assert!(matches!(out[..], [Output::Expose { length: 10_000, .. }]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    pub(crate) config: Config,
    /// The latest moment that an input came with.
    pub(crate) now: Tick,
    /// Leases are numbered apart: their numbers last, and so do not depend on what came and went meanwhile.
    pub(crate) last_lease: Last,
    /// Of everything else.
    pub(crate) last_id: Last,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) tenants: BTreeMap<TenantId, Tenant>,
    pub(crate) files: BTreeMap<FileId, File>,
    pub(crate) leases: SparseTable<LeaseId, Box<Lease>>,
    /// Captures that are leases by now, by the lease that they capture, as they came.
    pub(crate) captures: BTreeMap<LeaseId, VecDeque<LeaseId>>,
    pub(crate) requests: BTreeMap<RequestId, Request>,
    /// Commits, captures and releases that are owed an answer, by the lease that carries them.
    pub(crate) answers: BTreeMap<RequestId, LeaseId>,
    pub(crate) breaks: BTreeMap<BreakId, Break>,
    pub(crate) writes: BTreeMap<WriteId, Writeback>,
    pub(crate) frames: FrameTable,
    /// Requests that have all they need but frames: first come, first served, so that a large one is not starved.
    pub(crate) frame_queue: BTreeSet<RequestId>,
    pub(crate) timers: BTreeSet<(Tick, Timer)>,
    /// Leases that acquires in waiting will need.
    pub(crate) leases_wanted: usize,
    /// The file's own frames in memory, under schemes whose DMA lands there; by frame.
    pub(crate) pages: BTreeMap<FrameId, Page>,
    /// A lease that marked a page dirty that its file had given up: only older schemes get here.
    pub(crate) disowned: Option<LeaseId>,
    pub(crate) work: Work,
}

/// The number that was given out last. It tells no two states apart: only how numbers compare matters, and the next one is
/// greater than all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last(u64);

impl Last {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

impl PartialEq for Last {
    fn eq(&self, _: &Last) -> bool {
        true
    }
}

impl Eq for Last {}

impl core::hash::Hash for Last {
    fn hash<H: core::hash::Hasher>(&self, _: &mut H) {}
}

/// What is due at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    /// The grace period of a lease under break is over.
    Grace(LeaseId),
    /// A request gives up.
    Request(RequestId),
    /// A failed writeback is tried again.
    Retry(WriteId),
}

/// What must be looked at again before the step is over. Empty between steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Work {
    pub phases: VecDeque<(FileId, PhaseId)>,
    pub requests: BTreeSet<RequestId>,
    /// Frames were freed, or the line for them has changed.
    pub frames: bool,
}

impl Work {
    pub fn is_empty(&self) -> bool {
        self.phases.is_empty() && self.requests.is_empty() && !self.frames
    }
}

impl Core {
    /// A core without files, all of its frames free. [`SessionId::LOCAL`] is there from the start.
    #[must_use]
    pub fn new(config: Config) -> Core {
        Core {
            config,
            now: Tick(0),
            last_lease: Last(0),
            last_id: Last(0),
            sessions: BTreeMap::from([(SessionId::LOCAL, Session::local())]),
            tenants: BTreeMap::new(),
            files: BTreeMap::new(),
            leases: SparseTable::default(),
            captures: BTreeMap::new(),
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            breaks: BTreeMap::new(),
            writes: BTreeMap::new(),
            frames: FrameTable::new(config.frames),
            frame_queue: BTreeSet::new(),
            timers: BTreeSet::new(),
            leases_wanted: 0,
            pages: BTreeMap::new(),
            disowned: None,
            work: Work::default(),
        }
    }

    /// The configuration it was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes one input, and appends what must be done to `out`, in order.
    ///
    /// What is due at `now` takes effect before the input does. Time does not go back: an earlier `now` counts as the
    /// latest so far.
    pub fn step(&mut self, now: Tick, input: Input, out: &mut Vec<Output>) {
        self.now = self.now.max(now);
        self.fire_due(out);
        self.take(input, out);
        self.settle(out);
        self.assert_sound();
    }

    /// A cheap check after every step, and in debug builds all of [`Core::check`] while the tables are short.
    fn assert_sound(&self) {
        debug_assert!(self.work.is_empty() && self.frames.is_balanced());
        let short = self.leases.len() + self.writes.len() + self.requests.len() < 16;
        if cfg!(debug_assertions) && short && self.config.scheme == schemes::LEASEHOLD {
            self.check().unwrap_or_else(|violation| panic!("{violation}"));
        }
    }

    /// When `step` must be called next even if nothing happens (with `Input::Tick`).
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Whether the core still knows the file: open, or removed and still in use.
    #[must_use]
    pub fn knows_file(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    fn take(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Tick => {}
            Input::SessionOpened { session, identity } => self.open_session(session, identity, out),
            Input::SessionShares { session, tenant, share } => self.session_shares(session, tenant, share),
            Input::SessionEnded { session } => self.end_session(session, None, out),
            Input::Poisoned { session } => self.poison_session(session, out),
            Input::EndpointGone { session } => self.work.frames |= self.frames.end_quarantine(session),
            Input::FileOpened { file, size } => self.open_file(file, size),
            Input::FileClosed { file } => self.close_file(file),
            Input::Acquire { request, session, wants, on_conflict, deadline } => {
                self.acquire(request, session, wants, on_conflict, deadline, out);
            }
            Input::Commit { request, session, lease } => {
                self.holder_asks(request, session, lease, Ask::Commit, out);
            }
            Input::Release { request, session, lease } => {
                self.holder_asks(request, session, lease, Ask::Release, out);
            }
            Input::Capture { request, session, lease, range, deadline } => {
                self.holder_asks(request, session, lease, Ask::Capture { range, deadline }, out);
            }
            Input::Read { request, file, range, deadline } => self.read(request, file, range, deadline, out),
            Input::ReadFinished { request } => self.read_finished(request),
            Input::Change { request, file, change, breaker } => {
                self.change(request, file, change, breaker, out)
            }
            Input::Sync { request, file } => self.sync(request, file, out),
            Input::Writeback { file } => self.write_pages(file, ByteRange::ALL.blocks(), None, out),
            Input::Reclaim { file } => self.reclaim(file),
            Input::DeviceFault { lease } => self.device_fault(lease, out),
            Input::Withdraw { request } => self.withdraw(request, out),
            Input::Cancel { request } => self.cancel(request, out),
            Input::LeaseLoaded { lease, result } => self.lease_loaded(lease, result, out),
            Input::ReadLoaded { request, result } => self.read_loaded(request, result, out),
            Input::Exposed { lease, result } => self.exposed(lease, result, out),
            Input::Fenced { lease } => self.fence_answered(lease, true, out),
            Input::FenceUnproven { lease } => self.fence_answered(lease, false, out),
            Input::Verified { lease, agrees } => self.verified(lease, agrees, out),
            Input::Merged { lease, result } => self.merged(lease, result, out),
            Input::Captured { lease } => self.captured(lease, out),
            Input::Recorded { write, result } => self.recorded(write, result, out),
            Input::Written { write, result } => self.written(write, result, out),
            Input::Performed { request, result } => self.performed(request, result, out),
            Input::Flushed { request, result } => self.flushed(request, result, out),
        }
    }

    fn fire_due(&mut self, out: &mut Vec<Output>) {
        while let Some(&(at, timer)) = self.timers.first()
            && at <= self.now
        {
            self.timers.pop_first();
            match timer {
                Timer::Grace(lease) => self.grace_over(lease, out),
                Timer::Request(request) => self.request_timed_out(request, out),
                Timer::Retry(write) => self.retry_write(write, out),
            }
            self.settle(out);
        }
    }

    /// Looks at whatever may be able to go on now, until nothing is.
    fn settle(&mut self, out: &mut Vec<Output>) {
        loop {
            if let Some((file, phase)) = self.work.phases.pop_front() {
                self.advance_phase(file, phase, out);
            } else if let Some(request) = self.work.requests.pop_first() {
                self.advance_request(request, out);
            } else if core::mem::take(&mut self.work.frames) {
                self.serve_frames(out);
            } else {
                return;
            }
        }
    }

    /// A number that was not given out before.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id.next()
    }

    /// See [`Core::next_id`].
    pub(crate) fn next_lease(&mut self) -> LeaseId {
        LeaseId(self.last_lease.next())
    }
}
