//! What a check found: plain data, for tables, diagrams, pages and programs.

use leasehold_core::promise::Promise;
use std::time::Duration;

/// All schemes that were checked.
#[derive(Clone, Debug)]
pub struct Report {
    /// The bounds of the worlds that were explored, in words.
    pub bounds: String,
    /// One for each scheme, in the order of the design's table.
    pub schemes: Vec<SchemeReport>,
}

/// One scheme.
#[derive(Clone, Debug)]
pub struct SchemeReport {
    /// Its name.
    pub name: String,
    /// What it proposes, in a sentence.
    pub idea: &'static str,
    /// The messages that propose it.
    pub sources: &'static [Source],
    /// One for each promise, in order.
    pub promises: Vec<PromiseReport>,
    /// What it costs.
    pub costs: Costs,
    /// How much was explored.
    pub explored: Explored,
}

/// Who proposed it, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The author.
    pub author: &'static str,
    /// The day of the message, or where else it is written.
    pub date: &'static str,
}

/// What became of one promise.
#[derive(Clone, Debug)]
pub struct PromiseReport {
    /// Which.
    pub promise: Promise,
    /// What was found.
    pub found: Verdict,
    /// What the scheme's entry says.
    pub declared: Verdict,
    /// Why the entry says so.
    pub reason: &'static str,
    /// The shortest interleaving that breaks it, if it is broken.
    pub trace: Option<Trace>,
}

/// Whether a promise is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// In every interleaving, and there were some that put it to the test.
    Kept,
    /// In some interleaving.
    Broken,
    /// Nothing that could break it ever happens under this scheme.
    Vacuous,
}

/// One interleaving, as messages between lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The world in which it happens, in words: backing, filesystem, who is there.
    pub world: String,
    /// Who takes part, from left to right.
    pub lanes: Vec<&'static str>,
    /// What happens, in order.
    pub steps: Vec<Step>,
    /// What is wrong at the end, in a sentence.
    pub broken: String,
}

/// One message, or, if `from` is `to`, something that happens in one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index into the lanes.
    pub from: usize,
    /// Index into the lanes.
    pub to: usize,
    /// What it is, in a few words.
    pub what: String,
}

/// What a scheme costs, counted in runs of the same world.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// Copies by the CPU of each byte that a peer writes, until it is durable: of a block that is written whole.
    pub copies: f64,
    /// Times that a device must fault for each block that is written back while it is registered.
    pub refaults: f64,
    /// Who waits for what, a phrase each; empty: nobody waits for a holder.
    pub waits: Vec<&'static str>,
    /// Legitimate work that is refused, a phrase each.
    pub refuses: Vec<&'static str>,
    /// Whether a holder can be killed.
    pub kills: bool,
}

/// How much was explored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Explored {
    /// Worlds (a scheme is checked in several).
    pub worlds: usize,
    /// Unique states, of all worlds.
    pub states: u64,
    /// Steps taken between them, those to known states included.
    pub transitions: u64,
    /// The longest of the shortest ways to a state.
    pub depth: u32,
    /// Whether all states within the bounds were reached.
    pub complete: bool,
    /// Memory of the table of visited states at its largest, in bytes.
    pub visited_bytes: u64,
    /// Memory of the states that were still to be looked at, at its largest, in bytes; an estimate.
    pub frontier_bytes: u64,
    /// The probability that two states had the same fingerprint, so that one was not explored.
    pub collision: f64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    /// Whether every scheme does what its entry declares.
    #[must_use]
    pub fn is_as_declared(&self) -> bool {
        let mut promises = self.schemes.iter().flat_map(|scheme| &scheme.promises);
        promises.all(|promise| promise.found == promise.declared)
    }
}
