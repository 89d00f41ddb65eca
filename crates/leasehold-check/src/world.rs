//! A small world around the core: peers and their DMA, memory, a filesystem and its disk, breakers, crashes.
//!
//! The world performs what the core says, keeps the bytes (a *part* is half a block, and holds one [`Value`]), and judges
//! each promise by what it sees of them, not by what the core believes. Everything that can happen next is an [`Action`], in
//! any order that the core, the fabric and the disk allow.
//!
//! What is taken for granted: an answer that nothing can be told from comes at once (`Setting::thorough` gives these up);
//! writes of one connection land in order; a page reaches the disk whole or not at all in a crash, as journals and
//! copy-on-write see to, while our own direct writes may be torn at every part.

mod acts;
mod disk;
mod experiment;
mod history;
mod judge;
mod model;
mod notes;
mod perform;
mod trial;

pub use disk::Filesystem;
pub use experiment::Experiment;
pub(crate) use model::TESTED;
pub use notes::{LANES, Lane};
pub(crate) use trial::Trial;

use crate::scenario::Scenario;
use disk::{Disk, Extent};
use history::{Floors, History};
use leasehold_core::identity::{Evidence, Identity};
use leasehold_core::ids::{FileId, LeaseId, RequestId, SessionId, Tick, WriteId};
use leasehold_core::input::{Change, Input};
use leasehold_core::output::Output;
use leasehold_core::promise::Promise;
use leasehold_core::range::{BLOCK_BYTES, ByteRange, Run};
use leasehold_core::scheme::{Backing, DataPath, Host, Scheme, Writeback};
use leasehold_core::{Config, Core};
use notes::Notes;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// What a part holds: 0 for zeros, else the number of a write.
pub type Value = u8;
/// The two parts of a block.
pub type Block = [Value; 2];
type Parts = Range<usize>;

/// Bytes of a part.
pub const PART_BYTES: u64 = BLOCK_BYTES / 2;
/// The file that everything is about, another tenant's, and the clone.
pub const MAIN: usize = 0;
/// See [`MAIN`].
pub const OTHER: usize = 1;
/// See [`MAIN`].
pub const CLONE: usize = 2;
const FILES: usize = 3;
/// The session of the first tenant, and of the second.
pub const FIRST: SessionId = SessionId(1);
/// See [`FIRST`].
pub const SECOND: SessionId = SessionId(2);

const GRACE_MS: u64 = 1_000;
/// Nobody gives up.
const PATIENCE_MS: u64 = 1 << 40;
const FRAMES: u32 = 6;
/// What the main file holds in the beginning.
const BEFORE: Value = 1;
const LOCAL_VALUE: Value = 2;

/// A world: a scheme, what it lives on, and what happens there.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The scheme.
    pub scheme: Scheme,
    /// The host.
    pub host: Host,
    /// The filesystem.
    pub filesystem: Filesystem,
    /// Who is there, and what they may do.
    pub scenario: Scenario,
    /// Whether every answer of the environment takes its time.
    pub thorough: bool,
    /// A rule of `leasehold` that is taken out, to see whether that is noticed.
    pub mutation: Option<Mutation>,
}

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// A key that its holder commits, or gives back, is taken for fenced while it is live: its frames are written, and
    /// reused, under it.
    NoFenceAtCommit,
    /// A key that is revoked is taken for fenced while it is live.
    NoFenceAtBreak,
    /// A key whose fence is not proven is taken for fenced: no quarantine.
    NoQuarantine,
    /// A commit does not compare the CRC.
    NoVerify,
    /// The record is not durable before the data is written.
    NoRecord,
    /// A record of a block that holds others' committed bytes has no image of it.
    NoImage,
    /// The blocks at the ends of a commit are not completed.
    NoMerge,
    /// Frames are not zeroed for another tenant.
    NoZero,
    /// A layout change is performed as soon as it comes: no break.
    NoBreak,
    /// Holders hear nothing of breaks.
    NoNotice,
    /// A grace period never ends.
    NoGrace,
    /// A sync is acknowledged at once.
    NoSyncWait,
    /// A read does not wait for the writebacks of its blocks.
    NoReadWait,
    /// A change for which no lease has to go is performed while writebacks of its blocks are under way.
    NoDrain,
}

/// A peer's lease, as its holder knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Slot {
    lease: Option<LeaseId>,
    /// Which parts of writes have landed, or were lost with the key; two make a round.
    sent: u8,
    /// Rounds that it committed.
    committed: u8,
    over: bool,
    notified: bool,
}

/// A key that may place bytes, or fetch some.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    slot: u8,
    run: Run,
    /// Blocks that have stopped being its range.
    stray: u8,
    /// Its fence was not proven. Its frames are nobody else's until its endpoint is gone.
    quarantined: bool,
    /// Where its blocks lie, on DAX.
    extents: Vec<Extent>,
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    core: Core,
    now: Tick,
    pending: Vec<Output>,
    /// Which acts are left, a bit each.
    left: u16,
    slots: Vec<Slot>,
    keys: BTreeMap<LeaseId, Key>,
    frames: [Block; FRAMES as usize],
    disk: Disk,
    /// What was handed to the disk, as it was then.
    handed: Vec<(WriteId, Vec<Block>)>,
    /// Durable records: which blocks, what their checksums will be, and whether their image is in it.
    records: BTreeMap<WriteId, Vec<(usize, Block, bool)>>,
    history: History,
    /// What a request that is under way has to see, or to make durable.
    floors: BTreeMap<RequestId, Floors>,
    since: BTreeMap<RequestId, Tick>,
    faults_left: u8,
    removed: bool,
    over: bool,
    broken: u16,
    past: Past,
}

/// What has happened on the way, and decides nothing: it tells no two states apart. So of two ways to one state only the
/// one that was found first counts for what is to happen `sometimes`; what must happen `always` is not concerned.
#[derive(Clone, Debug, Default)]
struct Past {
    /// Promises that were put to the test.
    tested: u16,
    seen: u16,
    /// Acts that were answered, with success.
    answered: u16,
    /// Frames and extents that held the first tenant's bytes.
    used: (u16, u16),
    notes: Notes,
}

impl PartialEq for Past {
    fn eq(&self, _: &Past) -> bool {
        true
    }
}

impl Eq for Past {}

impl Hash for Past {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// What can happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Somebody does what the scenario lets him, once.
    Act(u8),
    /// The next part of a peer's writes lands.
    Dma(u8),
    /// The device needs its key back.
    DeviceFault(u8),
    /// The environment answers the output at this place.
    Answer(u8),
    /// A fence cannot be proven in time.
    Unproven(u8),
    /// A grace period ends.
    GraceEnds,
    /// Periodic writeback.
    Writeback,
    /// Power is lost; of every write under way, these parts are on disk: none, the first ones, the second ones, all.
    Crash(u8),
}

/// Things that must happen somewhere, or the scheme has kept its promises by doing nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Sometimes {
    /// A lease was granted.
    Granted,
    /// A commit succeeded.
    Committed,
    /// A change was made.
    Changed,
    /// A sync was acknowledged.
    Synced,
    /// A lease was revoked against its holder's will.
    Revoked,
    /// A commit was refused, since its bytes were not all there.
    Mismatch,
    /// Frames were quarantined.
    Quarantined,
    /// A read saw what a peer had written.
    Read,
}

static IDENTITY: LazyLock<[Arc<Identity>; 2]> = LazyLock::new(|| {
    ["peer", "truncate"].map(|program| {
        let (host, pid, uid) = (String::from("node"), 1, 0);
        Arc::new(Identity { host, pid, uid, program: program.into(), evidence: Evidence::Claimed })
    })
});

fn fingerprint(output: &Output) -> u64 {
    foldhash::quality::FixedState::default().hash_one(output)
}

fn file_id(file: usize) -> FileId {
    FileId(1 + file as u64)
}

fn file_of(id: FileId) -> usize {
    id.0 as usize - 1
}

/// The parts of a range, which begins and ends at parts.
fn parts_of(range: ByteRange) -> Parts {
    (range.start() / PART_BYTES) as usize..(range.end() / PART_BYTES) as usize
}

fn overlap(one: &Parts, other: &Parts) -> bool {
    one.start < other.end && other.start < one.end
}

fn blocks_of(parts: &Parts) -> Range<usize> {
    parts.start / 2..parts.end.div_ceil(2)
}

fn range_of(parts: &Parts) -> ByteRange {
    ByteRange::new(parts.start as u64 * PART_BYTES, parts.end as u64 * PART_BYTES).expect("not empty")
}

fn frame_at(run: Run, block: usize) -> usize {
    run.first.0 as usize + block
}

/// The value of a slot's round.
fn value_of(slot: usize, round: u8) -> Value {
    10 + 4 * slot as u8 + round
}

impl Setting {
    /// A world in which answers that nothing can be told from come at once.
    #[must_use]
    pub fn new(scheme: Scheme, host: Host, filesystem: Filesystem, mut scenario: Scenario) -> Setting {
        // Where the server does nothing on a commit, it is the peer's own word that its writes are complete.
        scenario.commit_overtakes &= scheme.data_path != DataPath::FileFrames;
        Setting { scheme, host, filesystem, scenario, thorough: false, mutation: None }
    }

    fn lands_in_file(&self) -> bool {
        self.scheme.data_path == DataPath::FileFrames
    }

    /// DMA goes to the storage itself.
    fn lands_on_disk(&self) -> bool {
        self.lands_in_file() && self.host.backing == Backing::Dax
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn blocks(&self) -> usize {
        self.scenario.blocks
    }

    /// Whether the commit is the last that the holder does with its key.
    fn commit_ends(&self) -> bool {
        !self.lands_in_file() || self.scheme.writeback == Writeback::FencedAtCommit
    }

    /// What the change takes from the file of so many parts.
    fn takes(&self, change: Change, size: usize) -> Parts {
        match change {
            Change::Truncate { size: to } => (to / PART_BYTES) as usize..2 * self.blocks(),
            Change::Punch { range } | Change::Zero { range } => parts_of(range),
            Change::Collapse { range } => parts_of(range).start..2 * self.blocks(),
            Change::Remove => 0..2 * self.blocks(),
            Change::Clone if self.lands_in_file() => 0..size,
            Change::Clone | Change::Adopt { .. } => 0..0,
        }
    }

    /// A world in which nobody is yet.
    fn empty(&self) -> State {
        let core = Core::new(Config {
            scheme: self.scheme,
            host: self.host,
            grace_ms: GRACE_MS,
            frames: FRAMES,
            ..Config::default()
        });
        let slot = Slot { lease: None, sent: 0, committed: 0, over: false, notified: false };
        State {
            core,
            now: Tick(0),
            pending: Vec::new(),
            left: (1 << self.scenario.acts.len()) - 1,
            slots: vec![slot; self.scenario.slots.len()],
            keys: BTreeMap::new(),
            frames: [[0; 2]; FRAMES as usize],
            disk: Disk::new(self.filesystem, self.blocks(), BEFORE),
            handed: Vec::new(),
            records: BTreeMap::new(),
            history: History::new(2 * self.blocks(), BEFORE),
            floors: BTreeMap::new(),
            since: BTreeMap::new(),
            faults_left: self.scenario.faults_max,
            removed: false,
            over: false,
            broken: 0,
            past: Past::default(),
        }
    }

    fn start(&self) -> State {
        let mut state = self.empty();
        for session in [FIRST, SECOND] {
            self.step(&mut state, Input::SessionOpened { session, identity: IDENTITY[0].clone() });
        }
        for (file, blocks) in [(MAIN, self.blocks()), (OTHER, 1)] {
            let size = 2 * blocks as u64 * PART_BYTES;
            self.step(&mut state, Input::FileOpened { file: file_id(file), size });
        }
        state
    }

    /// The core takes an input, and the world looks at what it says, and answers what nothing can be told from.
    fn step(&self, state: &mut State, input: Input) {
        let mut out = Vec::new();
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            state.core.step(state.now, input, &mut out);
            for output in out.drain(..) {
                self.hear(state, output, &mut inputs);
            }
        }
        // Answers come in any order, so it does not matter in which they are asked for.
        state.pending.sort_by_cached_key(fingerprint);
        state.handed.sort_unstable();
        self.judge(state);
    }
}

impl State {
    fn break_(&mut self, promise: Promise) {
        self.broken |= 1 << promise as u16;
    }

    fn break_unless(&mut self, kept: bool, promise: Promise) {
        if !kept {
            self.break_(promise);
        }
    }

    fn test(&mut self, promise: Promise) {
        self.past.tested |= 1 << promise as u16;
    }

    fn see(&mut self, sometimes: Sometimes) {
        self.past.seen |= 1 << sometimes as u16;
    }

    /// Other keys that reach the frame.
    fn others_of(&self, lease: LeaseId, frame: usize) -> Vec<(LeaseId, Key)> {
        let reaches = |run: Run| (run.first.0 as usize..(run.first.0 + run.frames) as usize).contains(&frame);
        let others = self.keys.iter().filter(|(id, key)| **id != lease && reaches(key.run));
        others.map(|(id, key)| (*id, key.clone())).collect()
    }

    /// Whether the promise is broken here, or on the way here.
    #[must_use]
    pub fn breaks(&self, promise: Promise) -> bool {
        self.broken & (1 << promise as u16) != 0
    }

    /// Whether the promise was put to the test on the way here.
    #[must_use]
    pub fn tests(&self, promise: Promise) -> bool {
        self.past.tested & (1 << promise as u16) != 0
    }

    /// Whether this has happened on the way here.
    #[must_use]
    pub fn has_seen(&self, sometimes: Sometimes) -> bool {
        self.past.seen & (1 << sometimes as u16) != 0
    }
}
