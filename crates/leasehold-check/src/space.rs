//! Every combination of the six decisions, judged.
//!
//! A design is judged by host (its kind of memory, and whether the device can fault), and there by what the host can see
//! of it ([`same`]), so that each distinct design is explored once. A few states of every world come first; the first
//! broken promise ends a design, and of who is left every world is explored to its end. A broken P6 does not end it, since no design for the kernel
//! ever kept that: who breaks nothing else is counted.
//!
//! Safe is who breaks no promise on any host on which it gives keys, and gives a key for writing on one.

mod decisions;
pub mod front;
pub mod same;

use crate::explorer::{Bounds, Ending, explore};
use crate::report::Explored;
use crate::report::space::{Answer, Design, Killer, Nearest, OnHost, Space};
use crate::scenario::{self, Scenario};
use crate::world::{Action, Filesystem, Setting};
use crate::{Options, check, costs, narrate};
use decisions::{
    ADMISSIONS, Decision, PATHS, admissions, answers_but_admission, host_in_words, path_in_words,
};
use leasehold_core::promise::Promise;
use leasehold_core::scheme::{Admission, Backing, DataPath, Host, Scheme};
use leasehold_core::schemes;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use same::{Sight, seen};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::time::Instant;

/// The hosts, in the order of the report.
pub const HOSTS: [Host; 4] = [
    Host { backing: Backing::PageCache, device_faults: false },
    Host { backing: Backing::PageCache, device_faults: true },
    Host { backing: Backing::Dax, device_faults: false },
    Host { backing: Backing::Dax, device_faults: true },
];

/// Promises that end a design when they are broken.
const ENOUGH: [&str; 9] = ["P1", "P2", "P3", "P4", "P5", "P7", "P8", "P9", "P10"];

/// So many states of every world are looked at before any is explored to its end: there most designs break something.
const FIRST_STATES: [u64; 2] = [200, 2_000];

/// What became of a design on a host.
#[derive(Clone, Debug, Default)]
struct Fate {
    killed: Option<Kill>,
    /// How it breaks P6.
    untold: Option<Kill>,
}

impl Fate {
    fn is_safe(&self) -> bool {
        self.killed.is_none() && self.untold.is_none()
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
pub(crate) fn space(options: &Options, progress: &dyn Fn(String)) -> Space {
    let scenarios = smallest_first(if options.deep { scenario::deep() } else { scenario::all() });
    let bounds = check::bounds(options);
    let mut walk = Walk::default();
    let (combinations, designs) = walk.combine();
    let begun = Instant::now();
    walk.explore_all(&scenarios, &bounds, options.threads, progress);
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
        nearest: walk.nearest(),
        safe: on_front(&safe),
        explored: walk.explored,
    }
}

/// What is decided by few states comes first.
fn smallest_first(mut scenarios: Vec<Scenario>) -> Vec<Scenario> {
    scenarios.sort_by_key(|scenario| (scenario.blocks, scenario.slots.len(), scenario.acts.len()));
    scenarios
}

impl Walk {
    /// Every combination, and how many there are; of those that no host can tell apart, the first.
    fn combine(&mut self) -> (Vec<Combination>, u64) {
        let named: Vec<Scheme> = schemes::ALL.iter().map(|entry| entry.scheme).collect();
        let pairs: Vec<(Admission, Admission)> =
            ADMISSIONS.iter().flat_map(|&read| ADMISSIONS.map(|write| (read, write))).collect();
        let mut known: HashSet<[u32; 4]> = HashSet::new();
        let mut all = Vec::new();
        for scheme in named {
            let kinds = HOSTS.map(|host| self.kind_of(&scheme, host));
            if known.insert(kinds) {
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
                    if known.insert(kinds) {
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

    fn explore_all(
        &mut self,
        scenarios: &[Scenario],
        bounds: &Bounds,
        threads: NonZeroUsize,
        progress: &dyn Fn(String),
    ) {
        let pool = ThreadPoolBuilder::new().num_threads(threads.get()).build();
        let pool = pool.expect("threads can be started");
        let both = [Filesystem::InPlace, Filesystem::CopyOnWrite].as_slice();
        let passes = FIRST_STATES.map(|states_max| (states_max, &both[..1]));
        for (states_max, filesystems) in passes.into_iter().chain([(bounds.states_max, both)]) {
            let bounds = Bounds { states_max, enough: &ENOUGH, ..bounds.clone() };
            // Only of the last pass is it of interest whether it came to its end.
            self.explored.cut_off = None;
            for &filesystem in filesystems {
                for scenario in scenarios {
                    let left = self.kinds.iter().filter(|kind| kind.fate.killed.is_none()).count();
                    progress(format!("{left} designs, at most {states_max} states each: {}", scenario.name));
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
                let setting = Setting::new(scheme, host, filesystem, scenario.clone());
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
                there.untold = there.untold.take().or_else(|| fate.untold.clone());
                there.killed = fate.killed.clone();
            }
            self.explored = [self.explored, explored].iter().sum();
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
    /// and, if none is, what ends those that would be safe with another answer.
    fn answers(&self, combinations: &[Combination]) -> Vec<Answer> {
        let on: Vec<Vec<&Kind>> =
            (0..HOSTS.len()).map(|host| self.kinds_on(combinations, host, DataPath::FileFrames)).collect();
        let answer = |decision: &Decision, at: usize| {
            let (words, _) = &decision.answers[at];
            let of: Vec<Vec<&Kind>> = on
                .iter()
                .map(|kinds| kinds.iter().copied().filter(|kind| decision.gives(at, &kind.scheme)).collect())
                .collect();
            let count = |keep: fn(&Kind) -> bool| {
                of.iter().map(|kinds| kinds.iter().filter(|kind| keep(kind)).count() as u64).collect()
            };
            let safe: Vec<u64> = count(|kind| kind.fate.is_safe());
            let is_spoilt = |host: Host, kind: &Kind| {
                decision.otherwise(at, &kind.scheme).any(|other| self.is_safe_on(&other, host))
            };
            let spoilt = HOSTS
                .iter()
                .zip(&of)
                .flat_map(|(&host, kinds)| kinds.iter().copied().filter(move |kind| is_spoilt(host, kind)));
            Answer {
                decision: decision.name,
                answer: words,
                designs: count(|_| true),
                killer: safe.iter().all(|&safe| safe == 0).then(|| killer(spoilt)).flatten(),
                safe,
                safe_but_untold: count(|kind| kind.fate.killed.is_none() && kind.fate.untold.is_some()),
            }
        };
        let decisions = decisions::all();
        let answers =
            decisions.iter().flat_map(|decision| (0..decision.answers.len()).map(move |at| (decision, at)));
        answers.map(|(decision, at)| answer(decision, at)).collect()
    }

    /// Of each scheme that is not safe, and whose DMA lands in the file's own frames: the fewest answers that would
    /// have to be others for it to be safe and refuse nothing more, and the first of such designs that no other one beats.
    fn nearest(&self) -> Vec<Nearest> {
        let schemes = schemes::ALL.iter().filter(|entry| !entry.layout_is_fixed).map(|entry| entry.scheme);
        let in_file = schemes.filter(|scheme| scheme.data_path == DataPath::FileFrames);
        let of = |scheme: Scheme| {
            let refused = costs::refuses(&scheme);
            let refuses_no_more =
                |design: &Scheme| costs::refuses(design).iter().all(|refusal| refusal.is_among(&refused));
            let safe = |distance| -> Vec<Scheme> {
                let near = decisions::at_distance(&scheme, distance);
                let safe = near.into_iter().filter(|design| self.is_safe_everywhere(design));
                safe.filter(refuses_no_more).collect()
            };
            let near = (1..=5).map(safe).find(|near| !near.is_empty())?;
            let costs: Vec<_> = near.par_iter().map(costs::of).collect();
            let first = front::front(&costs).into_iter().position(|is_on_front| is_on_front)?;
            let ways = near.len() as u64;
            Some(Nearest { scheme: scheme.name, changes: decisions::changes(&scheme, &near[first]), ways })
        };
        in_file.filter(|scheme| !self.is_safe_everywhere(scheme)).filter_map(of).collect()
    }

    /// Whether the design gives keys for writing on some host, and breaks nothing on any.
    fn is_safe_everywhere(&self, scheme: &Scheme) -> bool {
        let places = HOSTS.map(|host| self.places.get(&seen(scheme, host, Sight::ALL)));
        let kinds = || places.iter().map(|place| place.map(|&place| &self.kinds[place as usize]));
        kinds().all(|kind| kind.is_some_and(|kind| kind.fate.is_safe()))
            && kinds().flatten().any(Kind::gives_keys_for_writing)
    }

    /// Whether the design gives keys for writing on the host, and breaks nothing there.
    fn is_safe_on(&self, scheme: &Scheme, host: Host) -> bool {
        let place = self.places.get(&seen(scheme, host, Sight::ALL));
        let kind = place.map(|&place| &self.kinds[place as usize]);
        kind.is_some_and(|kind| kind.gives_keys_for_writing() && kind.fate.is_safe())
    }
}

/// The promise that ends most of them, and the shortest way to break it.
fn killer<'a>(kinds: impl Iterator<Item = &'a Kind>) -> Option<Killer> {
    let mut kills: BTreeMap<Promise, Vec<&Kill>> = BTreeMap::new();
    let mut of = 0;
    for kill in kinds.filter_map(|kind| kind.fate.killed.as_ref().or(kind.fate.untold.as_ref())) {
        kills.entry(kill.promise).or_default().push(kill);
        of += 1;
    }
    let (promise, kills) =
        kills.into_iter().max_by_key(|(promise, kills)| (kills.len(), std::cmp::Reverse(*promise)))?;
    let shortest = kills.iter().min_by_key(|kill| kill.actions.len()).expect("it has some");
    let trace =
        narrate::trace(&shortest.setting, promise, shortest.actions.clone(), shortest.ending.as_ref());
    Some(Killer { promise, designs: kills.len() as u64, of, trace })
}

fn judge(setting: &Setting, bounds: &Bounds) -> (Fate, Explored) {
    let exploration = explore(setting, bounds);
    let kill = |promise, actions, ending| Kill { promise, setting: setting.clone(), actions, ending };
    let broken = |promise: Promise| {
        let path = exploration.path(promise.name())?;
        Some(kill(promise, path.clone().into_actions(), None))
    };
    // Where the search was cut off, nobody knows how a wait ends.
    let starved = exploration.starved.first().filter(|_| exploration.complete);
    let starved = starved
        .map(|starved| kill(Promise::P5, starved.path.clone().into_actions(), Some(starved.ending.clone())));
    let killed =
        Promise::ALL.into_iter().filter(|&promise| promise != Promise::P6).find_map(broken).or(starved);
    let explored = Explored::from(&exploration);
    let explored = Explored { cut_off: explored.cut_off.filter(|_| killed.is_none()), ..explored };
    (Fate { killed, untold: broken(Promise::P6) }, explored)
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
            let decisions = decisions::in_words(&design.scheme);
            like.push(Design { name, decisions, costs, alike: 0, on_front: false });
            like.len() - 1
        });
        like[place].alike += 1;
    }
    let costs: Vec<_> = like.iter().map(|design| design.costs.clone()).collect();
    for (design, on_front) in like.iter_mut().zip(front::front(&costs)) {
        design.on_front = on_front;
    }
    like.sort_by_key(|design| !design.on_front);
    like
}

#[cfg(test)]
mod tests;
