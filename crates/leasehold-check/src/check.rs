//! Checks schemes: each in every world that can make a difference to it, and what all of them together say.

use crate::explorer::{Bounds, Exploration, explore};
use crate::scenario::{self, Act, Scenario};
use crate::world::{Action, Filesystem, Setting, State};
use leasehold_core::promise::Promise;
use leasehold_core::scheme::{Admission, Backing, DataPath, FsyncRule, Host, Scheme, Writeback};
use leasehold_core::schemes::Entry;

/// The worlds in which the scheme of an entry is checked.
#[must_use]
pub fn settings(entry: &Entry, scenarios: &[Scenario]) -> Vec<Setting> {
    let mut all = Vec::new();
    for (host, filesystem) in hosts(&entry.scheme) {
        for scenario in scenarios {
            let mut scenario = scenario.clone();
            // Where the server does nothing on a commit, it is the peer's own word that its writes are complete.
            scenario.commit_overtakes &= entry.scheme.data_path != DataPath::FileFrames;
            if entry.layout_is_fixed {
                scenario.acts.retain(|act| !matches!(act, Act::Change(_)));
            }
            all.push(Setting { scheme: entry.scheme, host, filesystem, scenario, thorough: false, mutation: None });
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
        || [(Backing::PageCache, true), (Backing::PageCache, false), (Backing::Dax, true), (Backing::Dax, false)]
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

/// What one world says of a promise.
#[must_use]
pub fn is_broken(exploration: &Exploration<State, Action>, promise: Promise) -> bool {
    exploration.path(promise.name()).is_some() || promise == Promise::P5 && !exploration.starved.is_empty()
}

/// The default bounds of one world.
#[must_use]
pub fn bounds(threads: usize) -> Bounds {
    Bounds { states_max: 400_000, threads, ..Bounds::default() }
}

/// Explores one world.
#[must_use]
pub fn run(setting: &Setting, bounds: &Bounds) -> Exploration<State, Action> {
    explore(setting, bounds)
}

/// All the small worlds.
#[must_use]
pub fn scenarios() -> Vec<Scenario> {
    scenario::all()
}
