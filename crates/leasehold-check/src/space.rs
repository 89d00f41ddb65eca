//! Every combination of the six decisions, judged.
//!
//! A design is judged by host (its kind of memory, and whether the device can fault), and there by what the host can see
//! of it ([`same`]), so that each distinct design is explored once. A few states of every world come first; the first
//! broken promise ends a design, and of who is left every world is explored to its end. A broken P6 does not end it, since no design for the kernel
//! ever kept that: who breaks nothing else is counted.
//!
//! Safe is who breaks no promise on any host on which it gives keys, and gives a key for writing on one.

pub mod front;
pub mod same;

use crate::explorer::{Bounds, Ending, explore};
use crate::report::Explored;
use crate::report::space::{Answer, Design, Killer, OnHost, Space};
use crate::scenario::{self, Scenario};
use crate::world::{Action, Filesystem, Setting};
use crate::{Options, check, costs, narrate};
use leasehold_core::promise::Promise;
use leasehold_core::scheme::{
    Admission, AdmissionRules, Backing, DataPath, DirtyWhen, FsyncRule, Host, LayoutRule, Scheme, Writeback,
};
use leasehold_core::schemes;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use same::{Sight, seen};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

/// The hosts, in the order of the report.
pub const HOSTS: [Host; 4] = [
    Host { backing: Backing::PageCache, device_faults: false },
    Host { backing: Backing::PageCache, device_faults: true },
    Host { backing: Backing::Dax, device_faults: false },
    Host { backing: Backing::Dax, device_faults: true },
];

const ADMISSIONS: [Admission; 4] =
    [Admission::Allow, Admission::Refuse, Admission::IfFaults, Admission::Lease];
const WRITEBACKS: [Writeback; 6] = [
    Writeback::AsIs,
    Writeback::ProtectCpu,
    Writeback::Skip,
    Writeback::Refault,
    Writeback::Snapshot,
    Writeback::FencedAtCommit,
];
const LAYOUTS: [LayoutRule; 6] = [
    LayoutRule::Ignore,
    LayoutRule::Wait,
    LayoutRule::Refuse,
    LayoutRule::Fence,
    LayoutRule::Break,
    LayoutRule::BreakThenKill,
];
const PATHS: [DataPath; 3] = [DataPath::FileFrames, DataPath::Copied, DataPath::PrivateFrames];
const FSYNCS: [FsyncRule; 5] = [
    FsyncRule::Acknowledge,
    FsyncRule::Wait,
    FsyncRule::FenceAndWrite,
    FsyncRule::Snapshot,
    FsyncRule::CommittedBytes,
];

/// Promises that end a design when they are broken.
const ENOUGH: [&str; 9] = ["P1", "P2", "P3", "P4", "P5", "P7", "P8", "P9", "P10"];

/// Of every world, this many states are looked at before any is explored to its end: most designs break something there.
const FIRST_STATES: u64 = 2_000;

/// What became of a design on a host.
#[derive(Clone, Debug, Default)]
struct Fate {
    killed: Option<Kill>,
    /// It breaks P6.
    untold: bool,
}

impl Fate {
    fn is_safe(&self) -> bool {
        self.killed.is_none() && !self.untold
    }
}

/// How a design ends.
#[derive(Clone, Debug)]
struct Kill {
    promise: Promise,
    setting: Setting,
    actions: Vec<Action>,
    ending: Option<Ending<Action>>,
}

/// A design, as a host sees it.
#[derive(Debug)]
struct Kind {
    scheme: Scheme,
    host: Host,
    fate: Fate,
}

impl Kind {
    fn gives_keys_for_writing(&self) -> bool {
        self.scheme.admission.cache_write != Admission::Refuse
    }
}

#[derive(Default)]
struct Walk {
    kinds: Vec<Kind>,
    places: HashMap<(Scheme, Host), u32>,
    /// Worlds that were explored to their ends.
    done: HashSet<World>,
    explored: Explored,
}

/// What is looked at once: a design, a host and a filesystem as a scenario, by its name, sees them.
type World = (Scheme, Host, Filesystem, &'static str);

/// Where a design goes: its kind on each host, and how many combinations of answers are like it.
struct Combination {
    scheme: Scheme,
    kinds: [u32; 4],
}

/// Judges every combination.
pub(crate) fn space(options: &Options) -> Space {
    let scenarios = smallest_first(if options.deep { scenario::deep() } else { scenario::all() });
    let bounds = check::bounds(options);
    let mut walk = Walk::default();
    let (combinations, designs) = walk.combine();
    let begun = Instant::now();
    walk.explore_all(&scenarios, &bounds);
    walk.explored.elapsed = begun.elapsed();
    let live = combinations.iter().filter(|design| walk.gives_keys_for_writing(design));
    let alive = live.clone().filter(|design| walk.fates(design).all(|fate| fate.killed.is_none()));
    let safe: Vec<&Combination> = alive.clone().filter(|design| walk.is_safe(design)).collect();
    Space {
        bounds: check::bounds_in_words(&scenarios, &bounds),
        designs,
        distinct: combinations.len() as u64,
        idle: (combinations.len() - live.count()) as u64,
        safe_distinct: safe.len() as u64,
        safe_but_untold: (alive.count() - safe.len()) as u64,
        hosts: walk.hosts(&combinations),
        answers: walk.answers(&combinations),
        safe: on_front(&safe),
        explored: walk.explored,
    }
}

/// What is decided by few states comes first.
fn smallest_first(mut scenarios: Vec<Scenario>) -> Vec<Scenario> {
    scenarios.sort_by_key(|scenario| (scenario.blocks, scenario.slots.len(), scenario.acts.len()));
    scenarios
}

/// Every answer to the decisions other than admission.
fn answers_but_admission() -> impl Iterator<Item = Scheme> {
    let dirty = |bits: u8| {
        let bit = |at: u8| bits >> at & 1 == 1;
        DirtyWhen {
            registered: bit(0),
            faulted: bit(1),
            released: bit(2),
            committed: bit(3),
            under_io: bit(4),
        }
    };
    let combinations = PATHS.into_iter().flat_map(|path| {
        WRITEBACKS.into_iter().flat_map(move |writeback| {
            LAYOUTS.into_iter().flat_map(move |layout| FSYNCS.map(|fsync| (path, writeback, layout, fsync)))
        })
    });
    combinations.flat_map(move |(data_path, writeback, layout, fsync)| {
        (0..32).map(move |bits| Scheme {
            name: "",
            admission: AdmissionRules::all(Admission::Refuse),
            writeback,
            layout,
            data_path,
            dirty: dirty(bits),
            fsync,
        })
    })
}

impl Walk {
    /// Every combination, and how many there are; of those that no host can tell apart, the first.
    fn combine(&mut self) -> (Vec<Combination>, u64) {
        let named: Vec<Scheme> = schemes::ALL.iter().map(|entry| entry.scheme).collect();
        let pairs: Vec<(Admission, Admission)> =
            ADMISSIONS.iter().flat_map(|&read| ADMISSIONS.map(|write| (read, write))).collect();
        let mut known: HashMap<[u32; 4], ()> = HashMap::new();
        let mut all = Vec::new();
        for scheme in named {
            let kinds = HOSTS.map(|host| self.kind_of(&scheme, host));
            if known.insert(kinds, ()).is_none() {
                all.push(Combination { scheme, kinds });
            }
        }
        let mut designs = 0;
        for scheme in answers_but_admission() {
            let kinds: Vec<[u32; 4]> = pairs
                .iter()
                .map(|&(read, write)| {
                    let admission = admissions((read, write), (read, write));
                    HOSTS.map(|host| self.kind_of(&Scheme { admission, ..scheme }, host))
                })
                .collect();
            for (cache, of_cache) in pairs.iter().zip(&kinds) {
                for (dax, of_dax) in pairs.iter().zip(&kinds) {
                    designs += 1;
                    let kinds = [of_cache[0], of_cache[1], of_dax[2], of_dax[3]];
                    if known.insert(kinds, ()).is_none() {
                        let admission = admissions(*cache, *dax);
                        all.push(Combination { scheme: Scheme { admission, ..scheme }, kinds });
                    }
                }
            }
        }
        (all, designs)
    }

    fn kind_of(&mut self, scheme: &Scheme, host: Host) -> u32 {
        let (scheme, host) = seen(scheme, host, Sight::ALL);
        *self.places.entry((scheme, host)).or_insert_with(|| {
            self.kinds.push(Kind { scheme, host, fate: Fate::default() });
            self.kinds.len() as u32 - 1
        })
    }

    fn fates<'a>(&'a self, design: &'a Combination) -> impl Iterator<Item = &'a Fate> {
        design.kinds.iter().map(|&kind| &self.kinds[kind as usize].fate)
    }

    fn is_safe(&self, design: &Combination) -> bool {
        self.fates(design).all(Fate::is_safe)
    }

    fn gives_keys_for_writing(&self, design: &Combination) -> bool {
        design.kinds.iter().any(|&kind| self.kinds[kind as usize].gives_keys_for_writing())
    }

    fn explore_all(&mut self, scenarios: &[Scenario], bounds: &Bounds) {
        let pool = ThreadPoolBuilder::new().num_threads(bounds.threads).build();
        let pool = pool.expect("threads can be started");
        let bounds = Bounds { threads: 1, enough: &ENOUGH, ..bounds.clone() };
        for states_max in [FIRST_STATES, bounds.states_max] {
            let bounds = Bounds { states_max, ..bounds.clone() };
            for filesystem in [Filesystem::InPlace, Filesystem::CopyOnWrite] {
                for scenario in scenarios {
                    pool.install(|| self.explore_one(scenario, filesystem, &bounds));
                }
            }
        }
    }

    /// Has every kind that is left live through one scenario; those that look the same in it, together.
    fn explore_one(&mut self, scenario: &Scenario, filesystem: Filesystem, bounds: &Bounds) {
        let mut groups: HashMap<(Scheme, Host), Vec<usize>> = HashMap::new();
        for (at, kind) in self.kinds.iter().enumerate().filter(|(_, kind)| kind.fate.killed.is_none()) {
            let (scheme, host) = seen(&kind.scheme, kind.host, Sight::of(scenario));
            let admits = |writes| scheme.admission.of(host.backing, writes) != Admission::Refuse;
            let on_disk = host.backing == Backing::Dax && filesystem == Filesystem::CopyOnWrite;
            let done = self.done.contains(&(scheme, host, filesystem, scenario.name));
            if !done && !on_disk && scenario.slots.iter().any(|slot| admits(slot.access.writes())) {
                groups.entry((scheme, host)).or_default().push(at);
            }
        }
        let found: Vec<_> = groups
            .into_par_iter()
            .map(|((scheme, host), of)| {
                let setting = setting(scheme, host, filesystem, scenario);
                let (fate, explored) = judge(&setting, bounds);
                (of, (scheme, host, filesystem, scenario.name), fate, explored)
            })
            .collect();
        for (of, world, fate, explored) in found {
            if explored.cut_off.is_none() {
                self.done.insert(world);
            }
            for at in of {
                let there = &mut self.kinds[at].fate;
                there.untold |= fate.untold;
                there.killed = fate.killed.clone();
            }
            let cut_off = explored.cut_off.filter(|_| bounds.states_max > FIRST_STATES);
            self.explored = [self.explored, Explored { cut_off, ..explored }].iter().sum();
        }
    }

    /// On each host, by data path: how many designs give keys for writing, and how many of those are safe there.
    fn hosts(&self, combinations: &[Combination]) -> Vec<OnHost> {
        let mut all = Vec::new();
        for (at, host) in HOSTS.into_iter().enumerate() {
            for path in PATHS {
                let kinds = self.kinds_on(combinations, at, path);
                let safe = kinds.iter().filter(|kind| kind.fate.is_safe()).count();
                let alive = kinds.iter().filter(|kind| kind.fate.killed.is_none()).count();
                all.push(OnHost {
                    host: host_in_words(host),
                    data_path: path_in_words(path),
                    designs: kinds.len() as u64,
                    safe: safe as u64,
                    safe_but_untold: (alive - safe) as u64,
                });
            }
        }
        all
    }

    fn kinds_on(&self, combinations: &[Combination], host: usize, path: DataPath) -> Vec<&Kind> {
        let mut places: Vec<u32> = combinations.iter().map(|design| design.kinds[host]).collect();
        places.sort_unstable();
        places.dedup();
        let kinds = places.into_iter().map(|place| &self.kinds[place as usize]);
        kinds.filter(|kind| kind.gives_keys_for_writing() && kind.scheme.data_path == path).collect()
    }

    /// Of each answer, where DMA lands in the file's own frames: how many designs that give it are safe on each host,
    /// and what kills all of them, if none is.
    fn answers(&self, combinations: &[Combination]) -> Vec<Answer> {
        let on: Vec<Vec<&Kind>> =
            (0..HOSTS.len()).map(|host| self.kinds_on(combinations, host, DataPath::FileFrames)).collect();
        let mut all = Vec::new();
        for (decision, answer, gives) in answers() {
            let of: Vec<Vec<&Kind>> = on
                .iter()
                .map(|kinds| kinds.iter().copied().filter(|kind| gives(&kind.scheme)).collect())
                .collect();
            let count = |keep: fn(&Kind) -> bool| {
                of.iter().map(|kinds| kinds.iter().filter(|kind| keep(kind)).count() as u64).collect()
            };
            let safe: Vec<u64> = count(|kind| kind.fate.is_safe());
            let killer = safe.iter().all(|&safe| safe == 0).then(|| killer(of.iter().flatten().copied()));
            all.push(Answer {
                decision,
                answer,
                designs: count(|_| true),
                safe,
                safe_but_untold: count(|kind| kind.fate.killed.is_none() && kind.fate.untold),
                killer: killer.flatten(),
            });
        }
        all
    }
}

/// The promise that ends most of them, and the shortest way to break it.
fn killer<'a>(kinds: impl Iterator<Item = &'a Kind>) -> Option<Killer> {
    let mut kills: BTreeMap<Promise, Vec<&Kill>> = BTreeMap::new();
    for kill in kinds.filter_map(|kind| kind.fate.killed.as_ref()) {
        kills.entry(kill.promise).or_default().push(kill);
    }
    let (promise, kills) =
        kills.into_iter().max_by_key(|(promise, kills)| (kills.len(), std::cmp::Reverse(*promise)))?;
    let shortest = kills.iter().min_by_key(|kill| kill.actions.len()).expect("it has some");
    let trace =
        narrate::trace(&shortest.setting, promise, shortest.actions.clone(), shortest.ending.as_ref());
    Some(Killer { promise, designs: kills.len() as u64, trace })
}

fn admissions(cache: (Admission, Admission), dax: (Admission, Admission)) -> AdmissionRules {
    AdmissionRules { cache_read: cache.0, cache_write: cache.1, dax_read: dax.0, dax_write: dax.1 }
}

fn setting(scheme: Scheme, host: Host, filesystem: Filesystem, scenario: &Scenario) -> Setting {
    let mut scenario = scenario.clone();
    scenario.commit_overtakes &= scheme.data_path != DataPath::FileFrames;
    Setting { scheme, host, filesystem, scenario, thorough: false, mutation: None }
}

fn judge(setting: &Setting, bounds: &Bounds) -> (Fate, Explored) {
    let exploration = explore(setting, bounds);
    let broken = ENOUGH.iter().find_map(|&name| exploration.path(name).map(|path| (name, path)));
    let kill = |promise, actions, ending| Kill { promise, setting: setting.clone(), actions, ending };
    // Where the search was cut off, nobody knows how a wait ends.
    let starved = exploration.starved.first().filter(|_| exploration.complete);
    let killed = match (broken, starved) {
        (Some((name, path)), _) => {
            let promise = Promise::ALL.into_iter().find(|promise| promise.name() == name);
            Some(kill(promise.expect("it has a name"), path.clone().into_actions(), None))
        }
        (None, Some(starved)) => {
            Some(kill(Promise::P5, starved.path.clone().into_actions(), Some(starved.ending.clone())))
        }
        (None, None) => None,
    };
    let untold = exploration.path(Promise::P6.name()).is_some();
    let mut explored = Explored::default();
    check::add(&mut explored, &exploration);
    if killed.is_some() {
        explored.cut_off = None;
    }
    (Fate { killed, untold }, explored)
}

/// One for each set of costs that safe designs have, those that are on the front first; a scheme with a name stands for
/// its like.
fn on_front(safe: &[&Combination]) -> Vec<Design> {
    let costs: Vec<_> = safe.par_iter().map(|design| costs::of(&design.scheme)).collect();
    let mut like: Vec<Design> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (design, costs) in safe.iter().zip(costs) {
        let name = Some(design.scheme.name).filter(|name| !name.is_empty());
        let place = *places.entry(format!("{costs:?}")).or_insert_with(|| {
            let decisions = decisions(&design.scheme);
            like.push(Design { name, decisions, costs, alike: 0, on_front: false });
            like.len() - 1
        });
        like[place].alike += 1;
    }
    let figures: Vec<_> = like.iter().map(|design| front::figures(&design.costs)).collect();
    for (design, on_front) in like.iter_mut().zip(front::front(&figures)) {
        design.on_front = on_front;
    }
    like.sort_by_key(|design| !design.on_front);
    like
}

fn host_in_words(host: Host) -> &'static str {
    match (host.backing, host.device_faults) {
        (Backing::PageCache, false) => "page cache",
        (Backing::PageCache, true) => "page cache, device faults",
        (Backing::Dax, false) => "DAX",
        (Backing::Dax, true) => "DAX, device faults",
    }
}

fn path_in_words(path: DataPath) -> &'static str {
    match path {
        DataPath::FileFrames => "the file's own frames",
        DataPath::Copied => "other frames, copied",
        DataPath::PrivateFrames => "private frames, swapped in",
    }
}

fn admission_in_words(admission: Admission) -> &'static str {
    match admission {
        Admission::Allow => "allow",
        Admission::Refuse => "refuse",
        Admission::IfFaults => "if the device faults",
        Admission::Lease => "lease",
    }
}

fn writeback_in_words(writeback: Writeback) -> &'static str {
    match writeback {
        Writeback::AsIs => "as it is",
        Writeback::ProtectCpu => "protect from the CPU, write",
        Writeback::Skip => "skip until released",
        Writeback::Refault => "fence, write, fault back",
        Writeback::Snapshot => "write a copy",
        Writeback::FencedAtCommit => "fenced at commit",
    }
}

fn layout_in_words(layout: LayoutRule) -> &'static str {
    match layout {
        LayoutRule::Ignore => "ignore the key",
        LayoutRule::Wait => "wait for ever",
        LayoutRule::Refuse => "refuse",
        LayoutRule::Fence => "fence at once",
        LayoutRule::Break => "break, grace, fence",
        LayoutRule::BreakThenKill => "break, grace, kill",
    }
}

fn fsync_in_words(fsync: FsyncRule) -> &'static str {
    match fsync {
        FsyncRule::Acknowledge => "as writeback, acknowledge",
        FsyncRule::Wait => "wait for the holders",
        FsyncRule::FenceAndWrite => "fence and write",
        FsyncRule::Snapshot => "write a copy",
        FsyncRule::CommittedBytes => "committed bytes only",
    }
}

/// When a block is dirty, each with a way to ask for it.
/// Whether a mark of a block is among the answers.
type IsAnswer = fn(&DirtyWhen) -> bool;

const DIRTY: [(&str, IsAnswer); 5] = [
    ("registered", |dirty| dirty.registered),
    ("faulted", |dirty| dirty.faulted),
    ("released", |dirty| dirty.released),
    ("committed", |dirty| dirty.committed),
    ("under I/O", |dirty| dirty.under_io),
];

/// The six answers, in words; what nobody asks for is a dash.
fn decisions(scheme: &Scheme) -> [String; 6] {
    let AdmissionRules { cache_read, cache_write, dax_read, dax_write } = scheme.admission;
    let of =
        |read, write| format!("read: {}, write: {}", admission_in_words(read), admission_in_words(write));
    let (cache, dax) = (of(cache_read, cache_write), of(dax_read, dax_write));
    let admission = if cache == dax { cache } else { format!("page cache: {cache}; DAX: {dax}") };
    let in_file = scheme.data_path == DataPath::FileFrames;
    let dirty: Vec<&str> =
        DIRTY.iter().filter(|(_, is_set)| is_set(&scheme.dirty)).map(|(name, _)| *name).collect();
    let or_dash = |text: &str| if in_file { text.to_owned() } else { "-".to_owned() };
    [
        admission,
        or_dash(writeback_in_words(scheme.writeback)),
        layout_in_words(scheme.layout).to_owned(),
        path_in_words(scheme.data_path).to_owned(),
        or_dash(&if dirty.is_empty() { "never".to_owned() } else { dirty.join(", ") }),
        fsync_in_words(scheme.fsync).to_owned(),
    ]
}

type Gives = Box<dyn Fn(&Scheme) -> bool>;

/// Every answer of every decision, with a way to ask a design for it.
fn answers() -> Vec<(&'static str, &'static str, Gives)> {
    let mut all: Vec<(&'static str, &'static str, Gives)> = Vec::new();
    for admission in ADMISSIONS.into_iter().filter(|&admission| admission != Admission::Refuse) {
        let gives = move |scheme: &Scheme| scheme.admission.cache_write == admission;
        all.push(("admission of writers", admission_in_words(admission), Box::new(gives)));
    }
    for writeback in WRITEBACKS {
        let gives = move |scheme: &Scheme| scheme.writeback == writeback;
        all.push(("writeback", writeback_in_words(writeback), Box::new(gives)));
    }
    for layout in LAYOUTS {
        let gives = move |scheme: &Scheme| scheme.layout == layout;
        all.push(("layout change", layout_in_words(layout), Box::new(gives)));
    }
    for (name, is_set) in DIRTY {
        all.push(("dirty tracking", name, Box::new(move |scheme| is_set(&scheme.dirty))));
    }
    for fsync in FSYNCS {
        all.push(("fsync", fsync_in_words(fsync), Box::new(move |scheme| scheme.fsync == fsync)));
    }
    all
}

#[cfg(test)]
mod tests;
