//! What a check found: plain data, for tables, diagrams, pages and programs.
//!
//! The data are here; each way to show them is a module.

pub mod costs;
pub mod diagram;
pub mod explored;
pub mod html;
pub mod json;
pub mod markdown;
pub mod overview;
pub mod space;
pub mod table;

mod layout;
#[cfg(test)]
mod sample;

pub use costs::Costs;
use leasehold_core::promise::Promise;
pub use leasehold_core::schemes::{Source, Verdict};
use serde::Serialize;
use std::time::Duration;

/// All schemes that were checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The bounds of the worlds that were explored, in words.
    pub bounds: String,
    /// One for each scheme, in the order of the design's table.
    pub schemes: Vec<SchemeReport>,
}

/// One scheme.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SchemeReport {
    /// Its name.
    pub name: String,
    /// What it proposes, in a sentence.
    pub idea: &'static str,
    /// The messages that propose it.
    #[serde(serialize_with = "json::sources")]
    pub sources: &'static [Source],
    /// One for each promise, in order.
    pub promises: Vec<PromiseReport>,
    /// What it costs.
    pub costs: Costs,
    /// How much was explored.
    pub explored: Explored,
}

/// What became of one promise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromiseReport {
    /// Which.
    #[serde(serialize_with = "json::name_of")]
    pub promise: Promise,
    /// What was found.
    #[serde(serialize_with = "json::word_of")]
    pub found: Verdict,
    /// What the scheme's entry says.
    #[serde(serialize_with = "json::word_of")]
    pub declared: Verdict,
    /// Why the entry says so.
    pub reason: &'static str,
    /// The shortest interleaving that breaks it, if it is broken.
    pub trace: Option<Trace>,
}

/// One interleaving, as messages between lanes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Index into the lanes.
    pub from: usize,
    /// Index into the lanes.
    pub to: usize,
    /// What it is, in a few words.
    pub what: String,
}

/// How much was explored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Explored {
    /// Worlds (a scheme is checked in several).
    pub worlds: usize,
    /// Unique states, of all worlds.
    pub states: u64,
    /// Steps taken between them, those to known states included.
    pub transitions: u64,
    /// The longest of the shortest ways to a state.
    pub depth: u32,
    /// The bound that ended it before all states were reached, in words; `None`: all were.
    pub cut_off: Option<&'static str>,
    /// Memory of the table of visited states at its largest, in bytes: of each world, added up.
    pub visited_bytes: u64,
    /// Memory of the states that were still to be looked at, at its largest, in bytes; an estimate.
    pub frontier_bytes: u64,
    /// The probability that two states had the same fingerprint, so that one was not explored.
    pub collision: f64,
    /// How long it took.
    #[serde(rename = "elapsed_ms", serialize_with = "json::milliseconds")]
    pub elapsed: Duration,
}

impl Report {
    /// Whether every scheme does what its entry declares.
    #[must_use]
    pub fn is_as_declared(&self) -> bool {
        self.undeclared().next().is_none()
    }

    /// What came out otherwise than the scheme's entry says.
    pub fn undeclared(&self) -> impl Iterator<Item = (&SchemeReport, &PromiseReport)> {
        self.promises().filter(|(_, promise)| !promise.is_as_declared())
    }

    /// Every promise of every scheme, in the order of the table.
    pub fn promises(&self) -> impl Iterator<Item = (&SchemeReport, &PromiseReport)> {
        self.schemes.iter().flat_map(|scheme| scheme.promises.iter().map(move |promise| (scheme, promise)))
    }
}

impl Trace {
    /// A step in words, with its number.
    fn sentence(&self, index: usize, step: &Step) -> String {
        let (from, to) = (self.lanes[step.from], self.lanes[step.to]);
        let lanes = if step.from == step.to { from.to_owned() } else { format!("{from} to {to}") };
        format!("{}. {lanes}: {}.", index + 1, step.what.trim_end_matches('.'))
    }
}

impl PromiseReport {
    /// Whether it is what the scheme's entry says.
    #[must_use]
    pub fn is_as_declared(&self) -> bool {
        self.found == self.declared
    }
}

/// A verdict as a word.
#[must_use]
pub fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Kept => "kept",
        Verdict::Broken => "broken",
        Verdict::Vacuous => "vacuous",
    }
}

/// A verdict as it stands in a table: the answer to whether the promise is kept.
fn short(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Kept => "yes",
        Verdict::Broken => "NO",
        Verdict::Vacuous => "-",
    }
}
