//! The world around a core, as a model: an arena, a disk, keys, and the truth about every file.
//!
//! It performs outputs when a test says so, in any order and with failures, and judges each output on its own account,
//! without asking the core: no frame is touched while somebody else's key can reach it, nothing is read from or written
//! to blocks that a writeback is under way to, and what is written and read is what was committed.
//!
//! A block is modelled by four sectors of 1 KiB, so tests with content use ranges in whole KiB.
#![allow(dead_code, reason = "each test binary uses a part of the world")]

use leasehold_core::breaks::{Break, Outcome};
use leasehold_core::identity::{Evidence, Identity};
use leasehold_core::ids::{FileId, LeaseId, RequestId, SessionId, TenantId, Tick};
use leasehold_core::input::{Access, Change, Fault, Input, OnConflict, Share, Want};
use leasehold_core::output::{
    AcquireError, ChangeError, CommitError, Committed, Loader, Notice, Output, ReadError, ReadReady, Reply,
    RevokeReason, SyncError,
};
use leasehold_core::range::{BLOCK_BYTES, BlockRange, ByteRange, Run};
use leasehold_core::scheme::DataPath;
use leasehold_core::view::{LeaseState, LeaseView};
use leasehold_core::{Config, Core};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const SECTOR: u64 = 1024;
const SECTORS: u64 = BLOCK_BYTES / SECTOR;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    size: u64,
    /// Sectors that are not zero.
    sectors: BTreeMap<u64, u8>,
}

impl Content {
    fn get(&self, sector: u64) -> u8 {
        self.sectors.get(&sector).copied().unwrap_or(0)
    }
    fn set(&mut self, sector: u64, value: u8) {
        if value == 0 {
            self.sectors.remove(&sector);
        } else {
            self.sectors.insert(sector, value);
        }
    }
    fn change(&mut self, change: Change) {
        match change {
            Change::Truncate { size } => {
                self.size = size;
                self.sectors.retain(|&at, _| at * SECTOR < size);
            }
            Change::Punch { range } | Change::Zero { range } => {
                self.sectors.retain(|&at, _| !(range.start() <= at * SECTOR && at * SECTOR < range.end()));
            }
            Change::Collapse { range } => {
                assert!(range.end() < self.size, "a collapse ends before the end of file");
                self.size -= range.len();
                let moved = std::mem::take(&mut self.sectors).into_iter().filter_map(|(at, value)| {
                    let before = at * SECTOR < range.start();
                    let behind = at * SECTOR >= range.end();
                    let to = if behind { at - range.len() / SECTOR } else { at };
                    (before || behind).then_some((to, value))
                });
                self.sectors = moved.collect();
            }
            Change::Clone | Change::Adopt { .. } => {}
            Change::Remove => *self = Content::default(),
        }
    }
}

#[derive(Clone, Debug)]
struct Key {
    session: SessionId,
    range: ByteRange,
    run: Run,
    access: Access,
    granted: bool,
}

/// A capture that is owed an answer.
#[derive(Clone, Debug)]
struct Capture {
    session: SessionId,
    of: LeaseId,
    file: FileId,
    /// What it may find in each sector: what was there when it was asked for, and what was placed later.
    allowed: BTreeMap<u64, BTreeSet<u8>>,
    poisoned: bool,
}

/// See the module.
#[derive(Clone)]
pub struct World {
    pub core: Core,
    pub now: Tick,
    /// Outputs that are not answered yet.
    pub pending: Vec<Output>,
    pub replies: BTreeMap<RequestId, Reply>,
    pub notices: Vec<(SessionId, Notice)>,
    pub ended: Vec<Break>,
    /// Every output of the last step.
    pub said: Vec<Output>,
    pub asked: BTreeSet<RequestId>,
    pub cancelled: BTreeSet<RequestId>,
    pub lent: BTreeSet<RequestId>,
    wants: BTreeMap<RequestId, Vec<Want>>,
    arena: Vec<u8>,
    disk: BTreeMap<FileId, Content>,
    truth: BTreeMap<FileId, Content>,
    /// Sectors that are committed but not durable, by the number of commits when that began.
    owed: BTreeMap<(FileId, u64), u64>,
    commits: u64,
    /// How many commits there had been when a sync was asked for.
    syncs: BTreeMap<RequestId, (FileId, u64)>,
    /// Keys that may still place bytes.
    keys: BTreeMap<LeaseId, Key>,
    captures: BTreeMap<RequestId, Capture>,
    /// What was under the key when a copy of it began.
    copies: BTreeMap<LeaseId, Vec<u8>>,
    committing: BTreeMap<RequestId, LeaseId>,
    committed: BTreeSet<LeaseId>,
    /// The file as it was when a clone of it began.
    cloning: BTreeMap<RequestId, Content>,
    /// The clones that were taken, sector by sector.
    pub clones: Vec<Vec<u8>>,
    /// What was in each sector before another tool's bytes were taken for committed.
    adopted: BTreeMap<(FileId, u64), BTreeSet<u8>>,
    last_request: u64,
    /// The ids under which `LOCAL` and three clients are known now.
    pub sessions: [u64; 4],
    last_session: u64,
}

pub fn who(name: &str) -> Arc<Identity> {
    Arc::new(Identity {
        host: "node".into(),
        pid: 7,
        uid: 1000,
        program: name.into(),
        evidence: Evidence::Claimed,
    })
}

/// Bytes `start..end` in KiB.
pub fn kib(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start * SECTOR, end * SECTOR).expect("tests use no empty ranges")
}

pub fn want(file: u64, range: ByteRange, access: Access) -> Want {
    Want { file: FileId(file), range, access }
}

fn overlap(a: Run, b: Run) -> bool {
    a.first.0 < b.first.0 + b.frames && b.first.0 < a.first.0 + a.frames
}

/// The blocks of a file of `size` bytes that nobody else may be at work on.
fn affected(change: Change, size: u64) -> BlockRange {
    let bytes = match change {
        Change::Truncate { size: new } => ByteRange::from(new.min(size)),
        Change::Punch { range } | Change::Zero { range } => range,
        Change::Adopt { range } if range.end() <= size => range,
        Change::Collapse { range } => ByteRange::from(range.start()),
        Change::Adopt { .. } | Change::Clone | Change::Remove => ByteRange::ALL,
    };
    bytes.blocks()
}

/// What the change takes from under leases, and from commits that are owed.
fn taken(change: Change, size: u64) -> Option<ByteRange> {
    match change {
        Change::Truncate { size: new } => (new < size).then(|| ByteRange::from(new)),
        Change::Punch { range } | Change::Zero { range } => Some(range),
        Change::Collapse { range } => Some(ByteRange::from(range.start())),
        Change::Clone | Change::Adopt { .. } => None,
        Change::Remove => Some(ByteRange::ALL),
    }
}

impl World {
    /// A world with sessions 1 to 3 and the files 1 and 2, empty.
    pub fn new(config: Config) -> World {
        let mut world = World {
            core: Core::new(config),
            now: Tick(0),
            pending: Vec::new(),
            replies: BTreeMap::new(),
            notices: Vec::new(),
            ended: Vec::new(),
            said: Vec::new(),
            asked: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            lent: BTreeSet::new(),
            wants: BTreeMap::new(),
            arena: vec![0; (u64::from(config.frames) * SECTORS) as usize],
            disk: BTreeMap::new(),
            truth: BTreeMap::new(),
            owed: BTreeMap::new(),
            commits: 0,
            syncs: BTreeMap::new(),
            keys: BTreeMap::new(),
            captures: BTreeMap::new(),
            copies: BTreeMap::new(),
            committing: BTreeMap::new(),
            committed: BTreeSet::new(),
            cloning: BTreeMap::new(),
            clones: Vec::new(),
            adopted: BTreeMap::new(),
            last_request: 0,
            sessions: [0, 1, 2, 3],
            last_session: 3,
        };
        for session in 1..=3 {
            let identity = who(&format!("client{session}"));
            world.step(Input::SessionOpened { session: SessionId(session), identity });
            world.share(session);
        }
        for file in 1..=2 {
            world.open(file, 0);
        }
        world
    }

    /// Another client comes, under an id that was never used before.
    pub fn replace_session(&mut self, at: usize) {
        if at > 0 {
            self.last_session += 1;
            self.sessions[at] = self.last_session;
            let identity = who(&format!("client{}", self.last_session));
            self.step(Input::SessionOpened { session: SessionId(self.last_session), identity });
            self.share(self.last_session);
        }
    }

    /// Two of three are of one tenant, which can have all: so that what it has is counted whatever happens.
    fn share(&mut self, session: u64) {
        if !session.is_multiple_of(3) {
            let share = Share { leases_max: usize::MAX, frames_max: u32::MAX };
            self.step(Input::SessionShares { session: SessionId(session), tenant: TenantId(1), share });
        }
    }

    pub fn open(&mut self, file: u64, size: u64) {
        let file = FileId(file);
        for map in [&mut self.disk, &mut self.truth] {
            map.insert(file, Content { size, ..Content::default() });
        }
        self.step(Input::FileOpened { file, size });
    }

    /// Has the core take the input, and judges what it says.
    pub fn step(&mut self, input: Input) {
        let mut out = Vec::new();
        if let Input::Poisoned { session } = input {
            let captures = self.captures.values_mut().filter(|capture| capture.session == session);
            captures.for_each(|capture| capture.poisoned = true);
        }
        self.core.step(self.now, input, &mut out);
        if self.core.config().scheme.data_path == DataPath::PrivateFrames {
            self.core.check().unwrap_or_else(|violation| panic!("{violation}\nsaid {out:#?}"));
        }
        self.said.clone_from(&out);
        for output in out {
            self.judge(&output);
            self.hear(output);
        }
    }

    fn reaches(&self, run: Run) -> Option<LeaseId> {
        self.keys.iter().find(|(_, key)| overlap(key.run, run)).map(|(&lease, _)| lease)
    }

    fn judge(&self, output: &Output) {
        if self.core.config().scheme.data_path == DataPath::FileFrames {
            return;
        }
        if let Output::Capture { from, .. } = *output {
            assert!(self.is_leased(from), "{output:?} reads frames that are no lease's");
        }
        match *output {
            Output::Load { into: run, .. }
            | Output::Capture { into: run, .. }
            | Output::Zero { into: run, .. }
            | Output::Expose { run, .. }
            | Output::Verify { run, .. }
            | Output::Merge { run, .. }
            | Output::Record { run, .. }
            | Output::Write { run, .. } => {
                assert_eq!(self.reaches(run), None, "a live key reaches the frames of {output:?}");
                for other in &self.pending {
                    if let Output::Capture { from, .. } = *other {
                        assert!(!overlap(run, from), "{other:?} reads the frames of {output:?}");
                    }
                    let (Output::Load { into: busy, .. }
                    | Output::Capture { into: busy, .. }
                    | Output::Zero { into: busy, .. }
                    | Output::Merge { run: busy, .. }
                    | Output::Record { run: busy, .. }
                    | Output::Write { run: busy, .. }) = *other
                    else {
                        continue;
                    };
                    assert!(!overlap(run, busy), "{other:?} is at work on the frames of {output:?}");
                }
            }
            _ => {}
        }
        let (file, blocks, change) = match *output {
            Output::Load { file, blocks, .. } | Output::Write { file, blocks, .. } => (file, blocks, None),
            Output::Record { file, range, .. } | Output::Merge { file, range, .. } => {
                (file, range.blocks(), None)
            }
            Output::Perform { file, change, .. } => {
                (file, affected(change, self.truth[&file].size), Some(change))
            }
            _ => return,
        };
        let reads = matches!(output, Output::Load { .. });
        for other in &self.pending {
            let clash = match *other {
                Output::Load { file: busy, blocks: at, .. } => !reads && busy == file && at.overlaps(blocks),
                Output::Write { file: busy, blocks: at, .. } => busy == file && at.overlaps(blocks),
                Output::Record { file: busy, range, .. } | Output::Merge { file: busy, range, .. } => {
                    busy == file && range.blocks().overlaps(blocks)
                }
                Output::Perform { file: busy, change, .. } => {
                    busy == file && affected(change, self.truth[&busy].size).overlaps(blocks)
                }
                _ => false,
            };
            assert!(!clash, "{output:?} while {other:?} is under way, change {change:?}");
        }
        if let Output::Perform { change, .. } = *output {
            for key in self.keys.iter().filter(|(lease, _)| self.core.lease(**lease).is_some()) {
                let view = self.core.lease(*key.0).expect("filtered");
                let taken = taken(change, self.truth[&file].size);
                let stray = view.file == file && taken.is_some_and(|taken| taken.overlaps(view.range));
                assert!(!stray, "{change:?} takes {} from under the live key of {}", view.range, view.id);
            }
        }
    }

    fn hear(&mut self, output: Output) {
        match output {
            Output::Reply { request, reply } => {
                assert!(self.asked.contains(&request), "nobody asked {request}");
                assert!(!self.cancelled.contains(&request), "{request} was cancelled: {reply:?}");
                match &reply {
                    Reply::Acquire(Ok(leases)) => self.check_granted(request, leases),
                    Reply::Capture(result) => self.check_captured(request, result.is_ok()),
                    Reply::Commit(Ok(_)) => self.committed.extend(self.committing.get(&request)),
                    _ => {}
                }
                if reply == Reply::Sync(Ok(())) {
                    let (file, commits) = self.syncs[&request];
                    let owed = self.owed.iter().find(|&(&(of, _), &since)| of == file && since <= commits);
                    assert_eq!(owed, None, "P2: {request} acknowledges what is not durable");
                }
                if let Reply::Read(Ok(Some(ready))) = &reply {
                    self.check_read(request, *ready);
                }
                let before = self.replies.insert(request, reply);
                assert_eq!(before, None, "{request} is answered twice");
            }
            Output::Notify { session, notice } => self.notices.push((session, notice)),
            Output::BreakEnded { record } => self.ended.push(record),
            Output::Forget { lease, .. } => {
                let live = self.keys.contains_key(&lease) && self.core.lease(lease).is_some();
                assert!(!live, "the key of {lease} is forgotten before it is fenced");
            }
            Output::Record { file, range, run, .. } => {
                self.committed(file, range, run);
                self.pending.push(output);
            }
            Output::Write { file, blocks, run, .. } => {
                self.check_written(file, blocks, run);
                self.pending.push(output);
            }
            Output::Capture { lease, from, .. } => {
                self.copies.insert(lease, self.arena[World::frames(from)].to_vec());
                self.pending.push(output);
            }
            Output::Perform { request, file, change: Change::Clone } => {
                let truth = &self.truth[&file];
                assert_eq!(
                    &self.disk[&file], truth,
                    "P9: the disk, which is cloned, is not what was committed"
                );
                self.cloning.insert(request, truth.clone());
                self.pending.push(output);
            }
            output => self.pending.push(output),
        }
    }

    /// The sectors of a range that starts in the first block of `run`, with their places in the arena.
    fn places(range: ByteRange, run: Run) -> impl Iterator<Item = (u64, usize)> {
        let (first, last) = (range.start() / SECTOR, (range.end() - 1) / SECTOR);
        let base = range.start() / BLOCK_BYTES * SECTORS;
        (first..=last).map(move |at| (at, (u64::from(run.first.0) * SECTORS + at - base) as usize))
    }

    /// The places of all sectors of the run.
    fn frames(run: Run) -> std::ops::Range<usize> {
        let first = run.first.0 as usize * SECTORS as usize;
        first..first + run.frames as usize * SECTORS as usize
    }

    /// Whether all of the run is of one lease.
    fn is_leased(&self, part: Run) -> bool {
        self.core.leases().any(|LeaseView { run, .. }| {
            run.first <= part.first && part.first.0 + part.frames <= run.first.0 + run.frames
        })
    }

    fn blocks_as_bytes(blocks: BlockRange) -> ByteRange {
        ByteRange::new(blocks.start() * BLOCK_BYTES, blocks.end() * BLOCK_BYTES).expect("not empty")
    }

    fn committed(&mut self, file: FileId, range: ByteRange, run: Run) {
        let truth = self.truth.get_mut(&file).expect("open");
        truth.size = truth.size.max(range.end());
        self.commits += 1;
        for (sector, place) in World::places(range, run) {
            truth.set(sector, self.arena[place]);
            // What replaces bytes that are owed is owed in their place.
            self.owed.entry((file, sector)).or_insert(self.commits);
        }
    }

    fn check_written(&self, file: FileId, blocks: BlockRange, run: Run) {
        if self.core.config().scheme.data_path == DataPath::FileFrames {
            return;
        }
        for (sector, place) in World::places(World::blocks_as_bytes(blocks), run) {
            assert_eq!(
                self.arena[place],
                self.truth[&file].get(sector),
                "sector {sector} of {file} is written with bytes that nobody committed"
            );
        }
    }

    fn check_granted(&self, request: RequestId, leases: &[LeaseId]) {
        let wants = &self.wants[&request];
        assert_eq!(wants.len(), leases.len());
        for (want, lease) in wants.iter().zip(leases) {
            let view = self.core.lease(*lease);
            // One that is poisoned already ends in the same step.
            let Some(view) = view.filter(|view| view.state == LeaseState::Live) else { continue };
            assert_eq!((view.file, view.range, view.access), (want.file, want.range, want.access));
            if want.access == Access::Read && self.core.config().scheme.data_path == DataPath::PrivateFrames {
                for (sector, place) in World::places(view.range, view.run) {
                    let (found, truth) = (self.arena[place], self.truth[&view.file].get(sector));
                    // An adoption takes nothing from leases, so one that was loaded before it has the bytes of then.
                    let adopted = self.adopted.get(&(view.file, sector));
                    let earlier = adopted.is_some_and(|before| before.contains(&found));
                    assert!(
                        found == truth || earlier,
                        "sector {sector} of {} is {truth}, not {found}",
                        view.file
                    );
                }
            }
        }
    }

    fn check_read(&mut self, request: RequestId, ready: ReadReady) {
        let view = self.core.waits().find(|wait| wait.request == request);
        assert_eq!(view, None, "an answered read waits for nothing");
        self.lent.insert(request);
        let file = self.wants[&request][0].file;
        if self.core.config().scheme.data_path == DataPath::PrivateFrames {
            self.check_bytes(file, ready.range, ready.run);
        }
    }

    /// A capture is answered: if it took effect, then in its turn, and with bytes that it may have found.
    fn check_captured(&mut self, request: RequestId, well: bool) {
        let Some(capture) = self.captures.remove(&request) else { return };
        if !well {
            return;
        }
        assert!(!capture.poisoned, "{request} captured bytes of a poisoned lease");
        assert!(!self.committed.contains(&capture.of), "{request} takes effect after the commit behind it");
        let earlier = self.captures.range(..request).find(|(_, other)| other.of == capture.of);
        assert_eq!(earlier.map(|(id, _)| id), None, "an earlier capture was overtaken by {request}");
        for (sector, allowed) in capture.allowed {
            let value = self.truth[&capture.file].get(sector);
            assert!(allowed.contains(&value), "{value} was never in sector {sector}, only {allowed:?}");
        }
    }

    fn check_bytes(&self, file: FileId, range: ByteRange, run: Run) {
        for (sector, place) in World::places(range, run) {
            let truth = self.truth[&file].get(sector);
            assert_eq!(self.arena[place], truth, "sector {sector} of {file} is read wrongly");
        }
    }

    /// A remote write of all of the leased range, if a key still lets it through.
    pub fn dma(&mut self, lease: LeaseId, value: u8) {
        if let Some(key) = self.keys.get(&lease) {
            self.dma_into(lease, key.range, value);
        }
    }

    /// A remote write of a part of the leased range.
    pub fn dma_into(&mut self, lease: LeaseId, part: ByteRange, value: u8) {
        let Some(key) = self.keys.get(&lease).filter(|key| key.granted && key.access.writes()) else {
            return;
        };
        for (sector, place) in World::places(key.range, key.run) {
            if part.overlaps(kib(sector, sector + 1)) {
                self.arena[place] = value;
                for capture in self.captures.values_mut().filter(|capture| capture.of == lease) {
                    if let Some(values) = capture.allowed.get_mut(&sector) {
                        values.insert(value);
                    }
                }
            }
        }
    }

    /// Performs the pending output at `at` and answers it, well or ill.
    pub fn answer(&mut self, at: usize, well: bool) {
        let output = self.pending.remove(at);
        let result = if well { Ok(()) } else { Err(Fault::NoSpace) };
        let input = match output {
            Output::Load { by, file, blocks, size, into } => {
                for (sector, place) in World::places(World::blocks_as_bytes(blocks), into) {
                    let value = if sector * SECTOR < size { self.disk[&file].get(sector) } else { 0 };
                    self.arena[place] = if well { value } else { 0xee };
                }
                match by {
                    Loader::Lease(lease) => Input::LeaseLoaded { lease, result },
                    Loader::Read(request) => Input::ReadLoaded { request, result },
                }
            }
            Output::Zero { lease, into } => {
                self.arena[World::frames(into)].fill(0);
                Input::LeaseLoaded { lease, result }
            }
            Output::Expose { lease, session, run, access, .. } => {
                if well {
                    let range = self.core.lease(lease).expect("it waits for its key").range;
                    self.keys.insert(lease, Key { session, range, run, access, granted: true });
                }
                Input::Exposed { lease, result: if well { Ok(()) } else { Err(Fault::NoKey) } }
            }
            Output::Fence { lease, .. } if well => {
                self.keys.remove(&lease);
                Input::Fenced { lease }
            }
            Output::Fence { lease, .. } => Input::FenceUnproven { lease },
            Output::Disconnect { session } => {
                // Keys whose fence is still awaited are gone with the endpoint, too; the fence will say so.
                self.keys.retain(|_, key| key.session != session);
                Input::EndpointGone { session }
            }
            Output::Verify { lease, .. } => Input::Verified { lease, agrees: well },
            Output::Merge { lease, file, range, size, run } => {
                for (sector, place) in World::places(World::blocks_as_bytes(range.blocks()), run) {
                    let outside = sector * SECTOR < range.start() || sector * SECTOR >= range.end();
                    if outside && well {
                        self.arena[place] =
                            if sector * SECTOR < size { self.disk[&file].get(sector) } else { 0 };
                    }
                }
                Input::Merged { lease, result }
            }
            Output::Capture { lease, from, into, .. } => {
                assert!(self.is_leased(from), "the frames were given away while they were copied");
                // The key is live, so some bytes are copied early and some late.
                let early = self.copies.remove(&lease).expect("it has begun");
                for (at, (from, into)) in World::frames(from).zip(World::frames(into)).enumerate() {
                    self.arena[into] = if at % 2 == 0 { early[at] } else { self.arena[from] };
                }
                Input::Captured { lease }
            }
            Output::Record { write, .. } => Input::Recorded { write, result },
            Output::Write { write, file, blocks, size, run } => {
                let disk = self.disk.get_mut(&file).expect("open");
                if well {
                    disk.size = disk.size.max(size);
                    for (sector, place) in World::places(World::blocks_as_bytes(blocks), run) {
                        disk.set(sector, self.arena[place]);
                        self.owed.remove(&(file, sector));
                    }
                }
                Input::Written { write, result }
            }
            Output::Perform { request, file, change } => {
                let found = if well { self.perform(request, file, change) } else { None };
                Input::Performed { request, result: result.map(|()| found) }
            }
            Output::Flush { request, .. } => Input::Flushed { request, result },
            output => panic!("{output:?} needs no answer"),
        };
        self.step(input);
    }

    fn perform(&mut self, request: RequestId, file: FileId, change: Change) -> Option<u64> {
        let size = self.truth[&file].size;
        let taken = taken(change, size);
        let (disk, truth) =
            (self.disk.get_mut(&file).expect("open"), self.truth.get_mut(&file).expect("open"));
        match change {
            Change::Clone => {
                let before = self.cloning.remove(&request).expect("it has begun");
                assert_eq!(
                    (&*disk, &*truth),
                    (&before, &before),
                    "P9: the source changed while it was cloned"
                );
                self.clones.push((0..before.size.div_ceil(SECTOR)).map(|at| before.get(at)).collect());
            }
            Change::Adopt { range } => {
                let past_the_end = range.end() > size;
                let mut owed = self.owed.keys().filter(|&&(of, _)| of == file);
                let lost =
                    owed.find(|&&(_, at)| past_the_end || range.blocks().overlaps(kib(at, at + 1).blocks()));
                assert_eq!(lost, None, "P2: what was committed is not on disk, so its place is taken");
                for at in 0..size.div_ceil(SECTOR).max(32) {
                    self.adopted.entry((file, at)).or_default().insert(truth.get(at));
                }
                // Another tool has been at it.
                for at in range.start() / SECTOR..range.end().min(size + 2 * SECTOR).div_ceil(SECTOR) {
                    if at % 3 == request.0 % 3 {
                        disk.set(at, 200 + (at % 50) as u8);
                    }
                }
                if past_the_end {
                    disk.size = (request.0 * 3 % 20) * SECTOR;
                    disk.sectors.retain(|&at, _| at * SECTOR < disk.size);
                    truth.clone_from(disk);
                    return Some(disk.size);
                }
                for at in range.start() / SECTOR..range.end().div_ceil(SECTOR) {
                    truth.set(at, disk.get(at));
                }
            }
            _ => {
                disk.change(change);
                truth.change(change);
                let is_taken = |at: u64| taken.is_some_and(|taken| taken.overlaps(kib(at, at + 1)));
                // What a collapse moves is durable.
                let lost = self.owed.keys().find(|&&(of, at)| {
                    of == file && matches!(change, Change::Collapse { range } if range.end() <= at * SECTOR)
                });
                assert_eq!(lost, None, "P2: what was committed behind the range is not on disk");
                self.owed.retain(|&(of, at), _| of != file || !is_taken(at));
            }
        }
        None
    }

    /// Answers everything well that `which` picks, until nothing of it is left.
    pub fn answer_all(&mut self, which: impl Fn(&Output) -> bool) {
        while let Some(at) = self.pending.iter().position(&which) {
            self.answer(at, true);
        }
    }

    /// Answers the one pending output that `which` picks.
    pub fn answer_one(&mut self, which: impl Fn(&Output) -> bool, well: bool) {
        let at = self.pending.iter().position(which);
        let at = at.unwrap_or_else(|| panic!("no such output is pending: {:#?}", self.pending));
        self.answer(at, well);
    }

    /// Answers everything well.
    pub fn run(&mut self) {
        self.answer_all(|_| true);
    }

    /// Lets `ms` pass.
    pub fn pass(&mut self, ms: u64) {
        self.now = self.now.after_ms(ms);
        self.step(Input::Tick);
    }

    pub fn next_request(&mut self) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        self.asked.insert(request);
        request
    }

    pub fn ask_acquire(
        &mut self,
        session: u64,
        wants: &[Want],
        on_conflict: OnConflict,
        patience_ms: u64,
    ) -> RequestId {
        let request = self.next_request();
        self.wants.insert(request, wants.to_vec());
        let deadline = self.now.after_ms(patience_ms);
        let (session, wants) = (SessionId(session), wants.to_vec());
        self.step(Input::Acquire { request, session, wants, on_conflict, deadline });
        request
    }

    /// A granted lease; everything pending is answered.
    pub fn lease(&mut self, session: u64, file: u64, range: ByteRange, access: Access) -> LeaseId {
        let request = self.ask_acquire(session, &[want(file, range, access)], OnConflict::Refuse, 1_000_000);
        self.run();
        self.granted(request)[0]
    }

    pub fn ask_commit(&mut self, session: u64, lease: LeaseId) -> RequestId {
        let request = self.next_request();
        self.committing.insert(request, lease);
        self.step(Input::Commit { request, session: SessionId(session), lease });
        request
    }

    pub fn ask_release(&mut self, session: u64, lease: LeaseId) -> RequestId {
        let request = self.next_request();
        self.step(Input::Release { request, session: SessionId(session), lease });
        request
    }

    pub fn ask_capture(
        &mut self,
        session: u64,
        lease: LeaseId,
        range: ByteRange,
        patience_ms: u64,
    ) -> RequestId {
        let request = self.next_request();
        let session = SessionId(session);
        if let Some(view) = self.core.lease(lease) {
            let here = World::places(view.range, view.run);
            let asked = here.filter(|&(sector, _)| range.overlaps(kib(sector, sector + 1)));
            let allowed = asked.map(|(sector, at)| (sector, BTreeSet::from([self.arena[at]]))).collect();
            let capture = Capture { session, of: lease, file: view.file, allowed, poisoned: false };
            self.captures.insert(request, capture);
        }
        let deadline = self.now.after_ms(patience_ms);
        self.step(Input::Capture { request, session, lease, range, deadline });
        request
    }

    pub fn ask_read(&mut self, file: u64, range: ByteRange, patience_ms: u64) -> RequestId {
        let request = self.next_request();
        self.wants.insert(request, vec![want(file, range, Access::Read)]);
        let deadline = self.now.after_ms(patience_ms);
        self.step(Input::Read { request, file: FileId(file), range, deadline });
        request
    }

    pub fn finish_read(&mut self, request: RequestId) {
        self.lent.remove(&request);
        self.step(Input::ReadFinished { request });
    }

    pub fn ask_change(&mut self, file: u64, change: Change) -> RequestId {
        let request = self.next_request();
        self.step(Input::Change { request, file: FileId(file), change, breaker: who("breaker") });
        request
    }

    pub fn ask_sync(&mut self, file: u64) -> RequestId {
        let request = self.next_request();
        self.syncs.insert(request, (FileId(file), self.commits));
        self.step(Input::Sync { request, file: FileId(file) });
        request
    }

    pub fn cancel(&mut self, request: RequestId) {
        // What is due takes effect first, so the step may still answer it.
        self.step(Input::Cancel { request });
        if !self.replies.contains_key(&request) {
            self.cancelled.insert(request);
            self.captures.remove(&request);
        }
    }

    /// The breaker has gone.
    pub fn withdraw(&mut self, request: RequestId) {
        self.step(Input::Withdraw { request });
        if !self.replies.contains_key(&request) {
            self.cancelled.insert(request);
        }
    }

    /// A file of `kib` KiB of `value`, durable.
    pub fn fill(&mut self, file: u64, range: ByteRange, value: u8) {
        let lease = self.lease(1, file, range, Access::Overwrite);
        self.dma(lease, value);
        let commit = self.ask_commit(1, lease);
        self.run();
        assert!(matches!(self.commit_reply(commit), Some(Ok(_))));
    }

    pub fn granted(&self, request: RequestId) -> Vec<LeaseId> {
        match self.replies.get(&request) {
            Some(Reply::Acquire(Ok(leases))) => leases.clone(),
            other => panic!("{request} was not granted: {other:?}"),
        }
    }

    pub fn acquire_error(&self, request: RequestId) -> Option<AcquireError> {
        match self.replies.get(&request) {
            Some(Reply::Acquire(Err(error))) => Some(error.clone()),
            _ => None,
        }
    }

    pub fn commit_reply(&self, request: RequestId) -> Option<Result<Committed, CommitError>> {
        match self.replies.get(&request) {
            Some(Reply::Commit(result)) => Some(result.clone()),
            _ => None,
        }
    }

    pub fn capture_reply(&self, request: RequestId) -> Option<Result<Committed, CommitError>> {
        match self.replies.get(&request) {
            Some(Reply::Capture(result)) => Some(result.clone()),
            _ => None,
        }
    }

    pub fn change_reply(&self, request: RequestId) -> Option<Result<(), ChangeError>> {
        match self.replies.get(&request) {
            Some(Reply::Change(result)) => Some(result.clone()),
            _ => None,
        }
    }

    pub fn sync_reply(&self, request: RequestId) -> Option<Result<(), SyncError>> {
        match self.replies.get(&request) {
            Some(Reply::Sync(result)) => Some(result.clone()),
            _ => None,
        }
    }

    pub fn read_reply(&self, request: RequestId) -> Option<Result<Option<ReadReady>, ReadError>> {
        match self.replies.get(&request) {
            Some(Reply::Read(result)) => Some(result.clone()),
            _ => None,
        }
    }

    /// What a read sees, sector by sector.
    pub fn see(&mut self, file: u64, range: ByteRange) -> Vec<u8> {
        let request = self.ask_read(file, range, 1_000_000);
        self.run();
        let bytes = match self.read_reply(request) {
            Some(Ok(Some(ready))) => {
                World::places(ready.range, ready.run).map(|(_, place)| self.arena[place]).collect()
            }
            Some(Ok(None)) => Vec::new(),
            other => panic!("{range} could not be read: {other:?}"),
        };
        self.finish_read(request);
        bytes
    }

    pub fn is_pending(&self, which: impl Fn(&Output) -> bool) -> bool {
        self.pending.iter().any(which)
    }

    pub fn outcomes(&self) -> Vec<Outcome> {
        self.ended.iter().filter_map(|record| record.ended.map(|(_, outcome)| outcome)).collect()
    }

    pub fn revokes(&self) -> Vec<(LeaseId, RevokeReason)> {
        let revoked = self.notices.iter().filter_map(|(_, notice)| match notice {
            Notice::Revoked { lease, why, .. } => Some((*lease, *why)),
            Notice::Break { .. } => None,
        });
        revoked.collect()
    }

    /// The environment becomes kind and time passes: everything must be answered, and then everything must be free.
    pub fn wind_down(&mut self) {
        for _ in 0..10_000 {
            self.run();
            for request in self.lent.clone() {
                self.finish_read(request);
            }
            match self.core.next_deadline() {
                Some(deadline) => {
                    self.now = self.now.max(deadline);
                    self.step(Input::Tick);
                }
                None if self.pending.is_empty() => break,
                None => {}
            }
        }
        assert_eq!(self.core.next_deadline(), None, "timers go on for ever");
        for request in &self.asked {
            let answered = self.replies.contains_key(request) || self.cancelled.contains(request);
            assert!(answered, "{request} is never answered\n{:#?}", self.core);
        }
        for session in 0..=self.last_session {
            self.step(Input::SessionEnded { session: SessionId(session) });
        }
        self.run();
        let stats = self.core.stats();
        assert_eq!(
            stats.frames.free,
            self.core.config().frames,
            "frames are lost: {stats:?}\n{:#?}",
            self.core
        );
        assert_eq!((stats.leases, stats.requests, stats.breaks, stats.writebacks), (0, 0, 0, 0));
        for (file, truth) in &self.truth {
            assert_eq!(&self.disk[file], truth, "{file} on disk is not what was committed");
            self.core.step(self.now, Input::FileClosed { file: *file }, &mut Vec::new());
        }
        assert_eq!(self.core.stats().files, 0, "a file is in use for ever");
    }
}
