//! One run: an engine on a disk and a fabric that are not real, clients and local programs at work, and the power that goes.

use super::fabric::{FakeFabric, Skip, Weather};
use super::holder::hold;
use super::local::work;
use super::machine::Machine;
use super::oracle::{CELL, Content, FoundFile, Oracle};
use super::sync::block_on;
use super::{Random, below, chance, jump_the_clock, jumps};
use crate::engine::Engine;
use crate::files::FileError;
use crate::open_files::Pinned;
use crate::path::StorePath;
use crate::storage::Detail;
use crate::storage::tests::power::recorder::Lie;
use crate::storage::tests::power::volume::{InodeId, Volume};
use crate::storage::tests::power::workshop;
use crate::sync;
use leasehold_core::identity::{Evidence, Identity};
use leasehold_core::ids::FileId;
use leasehold_core::input::{Change, Fault};
use leasehold_core::output::ReadError;
use leasehold_core::range::{BLOCK_BYTES, ByteRange};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub(super) const GRACE: Duration = Duration::from_millis(60);
pub(super) const FENCE: Duration = Duration::from_millis(40);

/// What a change may take beside the grace period and the fence: for the disk, and for others before it.
pub(super) const SLACK: Duration = Duration::from_millis(150);

/// Longer than any request may wait for its answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) weather: Weather,
    pub(super) skip: Skip,
    pub(super) lie: Lie,
    /// Every how many operations of the disk fail; 0 for none.
    pub(super) trouble: u64,
    /// Every how many calls of the kernel are interrupted or done in part; 0 for none.
    pub(super) interrupts: u64,
    /// How often the store is opened. The power goes in between.
    lives: u64,
    holders: u64,
    locals: u64,
    pub(super) frames: u64,
    pub(super) workers: usize,
    pub(super) grace: Duration,
    /// Whether the clock on the wall jumps.
    pub(super) jumps: bool,
}

impl Plan {
    /// Every seed has its own.
    pub(super) fn of(seed: u64) -> Plan {
        let mut random = Random::new(!seed);
        let mut sometimes = |times, once_in| if random.once_in(times) { once_in } else { 0 };
        let weather = Weather { stall: sometimes(5, 60), poison: sometimes(5, 60), cut: sometimes(5, 60) };
        let trouble = sometimes(4, 20);
        let trouble = trouble * (1 + random.below(6));
        Plan {
            weather,
            trouble,
            skip: Skip::Nothing,
            lie: Lie::Nothing,
            lives: 1 + random.below(3),
            holders: 1 + random.below(3),
            locals: 1 + random.below(2),
            frames: 24 + random.below(60),
            workers: 1 + random.below(3) as usize,
            grace: GRACE,
            interrupts: if seed.is_multiple_of(3) { 6 } else { 0 },
            jumps: seed.is_multiple_of(2),
        }
    }
}

/// What happened in a run: a simulation in which nothing happens finds nothing.
#[derive(Default)]
pub(super) struct Tally(pub(super) BTreeMap<&'static str, u64>);

impl Tally {
    pub(super) fn add(&mut self, other: Tally) {
        for (what, times) in other.0 {
            let total = self.0.entry(what).or_default();
            *total = if what.starts_with("slowest") { times.max(*total) } else { *total + times };
        }
    }
}

/// One opening of the store, until the power goes or it is stopped.
pub(super) struct Life {
    pub(super) engine: Engine,
    pub(super) plan: Plan,
    machine: Machine,
    oracle: Arc<Mutex<Oracle>>,
    tally: Arc<Mutex<Tally>>,
    /// Held by who changes names: one at a time.
    pub(super) naming: sync::Mutex<()>,
    /// The longest that a change took, in microseconds.
    slowest_us: AtomicU64,
}

pub(super) fn path(name: &str) -> StorePath {
    StorePath::parse(name).expect("a good name")
}

pub(super) fn who(program: &str) -> Identity {
    let (host, program) = ("here".to_owned(), program.to_owned());
    Identity { host, pid: 1, uid: 2, program, evidence: Evidence::Claimed }
}

/// The bytes of these cells.
pub(super) fn bytes_of(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_le_bytes().repeat(CELL as usize / 4)).collect()
}

/// The cells that these bytes are.
pub(super) fn cells_of(bytes: &[u8]) -> Content {
    let cell = |bytes: &[u8]| {
        let words = bytes.as_chunks::<4>().0;
        assert!(words.iter().all(|word| word == &words[0]), "a cell is of one write: {words:?}");
        u32::from_le_bytes(words[0])
    };
    assert!(bytes.len().is_multiple_of(CELL as usize), "{} bytes are no whole cells", bytes.len());
    bytes.chunks_exact(CELL as usize).map(cell).collect()
}

/// The bytes from one cell on.
pub(super) fn range_of(at: usize, count: usize) -> ByteRange {
    ByteRange::at(at as u64 * CELL, count as u64 * CELL).expect("not empty")
}

/// Does all that the plan says, as a task of a simulation. The places are to be kept until the simulation is over.
pub(super) fn live(plan: Plan) -> (Tally, Vec<tempfile::TempDir>) {
    let (oracle, tally) = (Arc::new(Mutex::new(Oracle::new())), Arc::<Mutex<Tally>>::default());
    let (mut volume, mut places) = (Volume::empty(), Vec::new());
    if plan.jumps {
        jump_the_clock();
    }
    for number in 1..=plan.lives {
        let mut machine = |volume: &Volume| {
            let place = workshop();
            let machine = Machine::new(plan, place.path(), volume);
            places.push(place);
            machine
        };
        if number > 1 && chance(3) {
            volume = machine(&volume).lose_power_at_the_start(plan, &volume);
            *tally.lock().expect("locked for a moment").0.entry("power losses at the start").or_default() +=
                1;
        }
        let life = Arc::new(Life::begin(machine(&volume), plan, &oracle, &tally));
        life.look_at_all(&volume);
        let mut tasks = Vec::new();
        life.machine.trouble.once_in.store(plan.trouble, Ordering::Relaxed);
        for holder in 0..plan.holders {
            let life = life.clone();
            tasks.push(sync::spawn("holder", move || hold(&life, holder)).expect("a task"));
        }
        for _ in 0..plan.locals {
            let life = life.clone();
            tasks.push(sync::spawn("local", move || work(&life)).expect("a task"));
        }
        if number < plan.lives {
            let soon = if chance(2) { 15_000 } else { 300_000 };
            sync::sleep(Duration::from_micros(below(soon)));
            volume = life.lose_power(&volume);
            tasks.into_iter().for_each(|task| sync::join(task).expect("it ends"));
        } else {
            tasks.into_iter().for_each(|task| sync::join(task).expect("it ends"));
            if life.end() {
                // What a clean stop leaves needs no power.
                life.oracle().stopped();
                let volume = life.lose_power(&volume);
                let again = Life::begin(machine(&volume), plan, &oracle, &tally);
                again.look_at_all(&volume);
            }
        }
        let given_up = std::mem::take(&mut life.oracle().given_up);
        life.count("files not judged", given_up);
        life.count("late parts", life.machine.fabric.late());
    }
    let mut tally = std::mem::take(&mut *tally.lock().expect("locked for a moment"));
    tally.0.insert("looks at a clock that jumps", jumps());
    (tally, places)
}

impl Life {
    pub(super) fn fabric(&self) -> &FakeFabric {
        &self.machine.fabric
    }

    fn begin(machine: Machine, plan: Plan, oracle: &Arc<Mutex<Oracle>>, tally: &Arc<Mutex<Tally>>) -> Life {
        let engine = machine.start(plan).unwrap_or_else(|error| panic!("the engine starts: {error}"));
        let (oracle, tally) = (oracle.clone(), tally.clone());
        Life {
            engine,
            machine,
            plan,
            oracle,
            tally,
            naming: sync::Mutex::default(),
            slowest_us: AtomicU64::new(0),
        }
    }

    pub(super) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        // Tasks change places elsewhere.
        self.oracle.try_lock().expect("locked for a moment")
    }

    pub(super) fn is_over(&self) -> bool {
        self.oracle().over
    }

    pub(super) fn count(&self, what: &'static str, times: u64) {
        *self.tally.lock().expect("locked for a moment").0.entry(what).or_default() += times;
    }

    /// What the oracle says must be so.
    pub(super) fn judge(&self, result: Result<(), String>) {
        if let Err(what) = result {
            panic!("{what}\nplan: {:?}", self.plan);
        }
    }

    /// Which file it is, unless it is so new that whoever makes it has not told the oracle.
    pub(super) fn inode(&self, file: FileId) -> Option<InodeId> {
        self.inode_on_disk(file).filter(|inode| self.oracle().knows(*inode))
    }

    fn inode_on_disk(&self, file: FileId) -> Option<InodeId> {
        self.engine.0.storage.descriptor_of(file).map(|file| self.machine.tape.inode_of(&file))
    }

    pub(super) fn inode_at(&self, name: &str) -> InodeId {
        self.machine.tape.inode_at(&format!("files/{name}"))
    }

    /// What the name stands for on the disk.
    pub(super) fn has_name(&self, name: &str) -> Option<InodeId> {
        self.machine.tape.find(&format!("files/{name}"))
    }

    /// Whether a fault is nothing to wonder at.
    pub(super) fn may_fail(&self) -> bool {
        self.plan.trouble > 0 || self.is_over()
    }

    /// A change that began then is answered now.
    pub(super) fn took(&self, began: std::time::Instant) {
        let took = sync::now().duration_since(began);
        self.slowest_us.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
        let bound = if self.may_fail() { PATIENCE } else { GRACE + FENCE + SLACK };
        assert!(took < bound, "a change took {took:?}, and may take {bound:?}");
    }

    fn lose_power(&self, volume: &Volume) -> Volume {
        self.oracle().over = true;
        self.count("power losses", 1);
        self.machine.lose_power(volume)
    }

    /// After a power loss: what is there is what may be there. What is torn is punched out.
    fn look_at_all(&self, volume: &Volume) {
        let names = volume.files();
        self.judge(self.oracle().check_names(&names));
        let mut contents = BTreeMap::new();
        for (name, inode) in &names {
            let (content, torn) = block_on(self.found(name, *inode));
            contents.insert(*inode, content);
            self.count("torn blocks", torn);
        }
        self.oracle().restart(contents, &names);
    }

    async fn found(&self, name: &str, inode: InodeId) -> (Content, u64) {
        let pinned = self.engine.pin(&path(name)).await.expect("it is there");
        assert_eq!(self.inode_on_disk(pinned.file()), Some(inode));
        let size = self.size(&pinned).await;
        let mut blocks = Vec::new();
        let per_block = (BLOCK_BYTES / CELL) as usize;
        for block in 0..size.div_ceil(per_block) {
            let range = range_of(block * per_block, per_block);
            blocks.push(match self.engine.read_file(&pinned, &path(name), range).await {
                Ok(bytes) => Some(cells_of(&bytes)),
                Err(FileError::Read { source: ReadError::Fault(Fault::Checksum), .. }) => None,
                Err(error) => panic!("block {block} of {name} cannot be read: {error}"),
            });
        }
        let found = FoundFile { size, blocks };
        self.judge(self.oracle().check_found(inode, &found));
        let (mut content, mut torn) = (Content::new(), 0);
        for (block, cells) in found.blocks.into_iter().enumerate() {
            let length = (size - block * per_block).min(per_block);
            if cells.is_none() {
                torn += 1;
                let change = Change::Punch { range: range_of(block * per_block, per_block) };
                let done =
                    self.engine.change(&path(name), &pinned, change, Detail::None, who("repair")).await;
                done.expect("what is torn can be punched out");
            }
            content.extend(cells.unwrap_or_else(|| vec![0; length]));
        }
        (content, torn)
    }

    /// In cells.
    pub(super) async fn size(&self, pinned: &Pinned) -> usize {
        let file = pinned.file();
        let size = self.engine.look(move |view| view.core.file_size(file)).await.flatten();
        (size.unwrap_or(pinned.opened().size) / CELL) as usize
    }

    /// A clean end: nothing is owed to anybody, no frame is lost, and the store can be stopped. Not if the disk has failed.
    fn end(&self) -> bool {
        self.machine.trouble.once_in.store(0, Ordering::Relaxed);
        let until = sync::now() + PATIENCE;
        loop {
            let stats = block_on(self.engine.stats()).expect("it runs");
            let idle =
                stats.sessions == 0 && stats.requests == 0 && stats.writebacks == 0 && stats.leases == 0;
            if idle && u64::from(stats.frames.free) == self.plan.frames {
                break;
            }
            assert!(sync::now() < until, "something is left at the end: {stats:?}\nplan: {:?}", self.plan);
            sync::sleep(Duration::from_millis(10));
        }
        let names = self.oracle().names().clone();
        for name in names.keys() {
            block_on(self.check_whole(name));
        }
        self.count("slowest change (us)", self.slowest_us.load(Ordering::Relaxed));
        let stopped = block_on(self.engine.stop());
        if let Err(error) = &stopped {
            assert!(self.plan.trouble > 0, "the engine stops: {error}");
        }
        stopped.is_ok() && self.plan.trouble == 0
    }

    async fn check_whole(&self, name: &str) {
        let pinned = self.engine.pin(&path(name)).await.expect("it is there");
        let inode = self.inode(pinned.file()).expect("it is open");
        let size = self.size(&pinned).await;
        let look = self.oracle().look(inode);
        let mut cells = Content::new();
        for at in (0..size).step_by(32) {
            match self.engine.read_file(&pinned, &path(name), range_of(at, 32)).await {
                Ok(bytes) => cells.extend(cells_of(&bytes)),
                // A change that failed half way leaves blocks that fail to read.
                Err(_) if self.plan.trouble > 0 => return,
                Err(error) => panic!("{name}: {error}\nplan: {:?}", self.plan),
            }
        }
        self.judge(self.oracle().read(inode, look, 0, usize::MAX / 2, &cells));
    }
}
