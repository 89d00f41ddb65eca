//! Checks schemes: each in every world that can make a difference to it, and what all of them together say.

use crate::explorer::{Bounds, Ending, Exploration, cross_check, explore};
use crate::report::{Explored, PromiseReport, Report, SchemeReport, Verdict};
use crate::scenario::{self, Act, Scenario};
use crate::world::{Action, Filesystem, Setting, State, TESTED};
use crate::{Options, costs, narrate};
use leasehold_core::input::Change;
use leasehold_core::promise::Promise;
use leasehold_core::scheme::{Admission, Backing, DataPath, FsyncRule, Host, Scheme, Writeback};
use leasehold_core::schemes::{self, Entry};
use rayon::prelude::*;
use std::time::Instant;

/// The worlds in which the scheme of an entry is checked.
#[must_use]
pub fn settings(entry: &Entry, scenarios: &[Scenario]) -> Vec<Setting> {
    let mut all = Vec::new();
    for (host, filesystem) in hosts(&entry.scheme) {
        for scenario in scenarios {
            // Only clones, and what is left on the disk, can tell the two filesystems apart.
            let clones = scenario.acts.contains(&Act::Change(Change::Clone));
            if filesystem == Filesystem::CopyOnWrite && !clones && !scenario.crash {
                continue;
            }
            let mut scenario = scenario.clone();
            if entry.layout_is_fixed {
                scenario.acts.retain(|act| !matches!(act, Act::Change(_)));
            }
            // Where no page cache multiplies the states, every answer may take its time.
            let thorough = entry.scheme.data_path != DataPath::FileFrames;
            all.push(Setting { thorough, ..Setting::new(entry.scheme, host, filesystem, scenario) });
        }
    }
    all
}

/// The hosts and filesystems that can make a difference to the scheme.
fn hosts(scheme: &Scheme) -> Vec<(Host, Filesystem)> {
    let mut all = Vec::new();
    let in_file = scheme.data_path == DataPath::FileFrames;
    let faults = scheme.writeback == Writeback::Refault
        || scheme.fsync == FsyncRule::FenceAndWrite
        || [
            (Backing::PageCache, true),
            (Backing::PageCache, false),
            (Backing::Dax, true),
            (Backing::Dax, false),
        ]
        .iter()
        .any(|&(backing, writes)| scheme.admission.of(backing, writes) == Admission::IfFaults);
    for device_faults in [false, true] {
        for (backing, filesystem) in [
            (Backing::PageCache, Filesystem::InPlace),
            (Backing::PageCache, Filesystem::CopyOnWrite),
            (Backing::Dax, Filesystem::InPlace),
        ] {
            if (backing == Backing::PageCache || in_file) && (!device_faults || faults) {
                all.push((Host { backing, device_faults }, filesystem));
            }
        }
    }
    all
}

/// Checks the schemes that the options name.
#[must_use]
pub fn check(options: &Options) -> Report {
    let scenarios = if options.deep { scenario::deep() } else { scenario::all() };
    let bounds = bounds(options);
    // Worlds are many and small: each is one thread's.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads.get())
        .build()
        .expect("threads can be had");
    let of = |entry| pool.install(|| check_entry(entry, &scenarios, options, &bounds));
    let schemes = entries(options).map(of).collect();
    Report { bounds: bounds_in_words(&scenarios, &bounds), schemes }
}

/// The entries of the schemes that the options name, in the order of the table.
pub fn entries(options: &Options) -> impl Iterator<Item = &'static Entry> {
    let named = |entry: &&Entry| {
        options.schemes.is_empty() || options.schemes.iter().any(|name| name == entry.scheme.name)
    };
    schemes::ALL.iter().filter(named)
}

pub(crate) fn bounds(options: &Options) -> Bounds {
    let states_max = if options.deep { 500_000 } else { 2_000_000 };
    Bounds { states_max, frontier_bytes_max: 2 << 30, threads: 1, exact: options.exact, ..Bounds::default() }
}

pub(crate) fn bounds_in_words(scenarios: &[Scenario], bounds: &Bounds) -> String {
    let most = |of: fn(&Scenario) -> usize| scenarios.iter().map(of).max().unwrap_or(0);
    format!(
        "{} scenarios of at most {} blocks, {} keys and {} acts, each act once at any moment; a peer writes each block in \
         two parts, at most twice; at most {} device faults; {} states a world, and {} MiB for those of it still to be looked at",
        scenarios.len(),
        most(|scenario| scenario.blocks),
        most(|scenario| scenario.slots.len()),
        most(|scenario| scenario.acts.len()),
        most(|scenario| scenario.faults_max.into()),
        bounds.states_max,
        bounds.frontier_bytes_max >> 20,
    )
}

/// What was found of one promise in all worlds so far.
#[derive(Clone, Debug, Default)]
struct Found {
    tested: bool,
    /// The shortest interleaving that breaks it, and where.
    shortest: Option<(Setting, Vec<Action>, Option<Ending<Action>>)>,
}

impl Found {
    fn verdict(&self) -> Verdict {
        match (&self.shortest, self.tested) {
            (Some(_), _) => Verdict::Broken,
            (None, true) => Verdict::Kept,
            (None, false) => Verdict::Vacuous,
        }
    }

    fn take_in(&mut self, setting: &Setting, promise: Promise, exploration: &Exploration<State, Action>) {
        self.tested |= exploration.path(TESTED[promise as usize]).is_some();
        let broken = exploration.path(promise.name()).map(|path| (path, None));
        let starved = exploration.starved.iter().filter(|_| promise == Promise::P5);
        let starved = starved.map(|starvation| (&starvation.path, Some(&starvation.ending)));
        for (path, ending) in broken.into_iter().chain(starved) {
            let actions = path.clone().into_actions();
            if self.shortest.as_ref().is_none_or(|(_, shortest, _)| actions.len() < shortest.len()) {
                self.shortest = Some((setting.clone(), actions, ending.cloned()));
            }
        }
    }
}

fn check_entry(
    entry: &'static Entry,
    scenarios: &[Scenario],
    options: &Options,
    bounds: &Bounds,
) -> SchemeReport {
    let mut found = vec![Found::default(); Promise::ALL.len()];
    let mut explored = Vec::new();
    let began = Instant::now();
    let explored_by_world: Vec<_> = settings(entry, scenarios)
        .into_par_iter()
        .map(|setting| {
            let setting = Setting { thorough: setting.thorough || options.deep, ..setting };
            let exploration = explore(&setting, bounds);
            if options.cross_check {
                let check = cross_check(setting.clone(), &exploration, 1);
                check.unwrap_or_else(|error| panic!("stateright's search says otherwise: {error}"));
            }
            (setting, exploration)
        })
        .collect();
    for (setting, exploration) in explored_by_world {
        for promise in Promise::ALL {
            found[promise as usize].take_in(&setting, promise, &exploration);
        }
        explored.push(Explored::from(&exploration));
    }
    let explored = Explored { elapsed: began.elapsed(), ..explored.iter().sum() };
    let promises = Promise::ALL.into_iter().zip(found).map(|(promise, found)| {
        let (declared, reason) = entry.declared(promise);
        let verdict = found.verdict();
        let trace = found
            .shortest
            .map(|(setting, actions, ending)| narrate::trace(&setting, promise, actions, ending.as_ref()));
        PromiseReport { promise, found: verdict, declared, reason, trace }
    });
    SchemeReport {
        name: entry.scheme.name.into(),
        idea: entry.idea,
        sources: entry.sources,
        promises: promises.collect(),
        costs: costs::of(&entry.scheme),
        explored,
    }
}
