//! Walks every state of a model, breadth first, and finds the shortest way to each thing that is wrong.
//!
//! It explores stateright's [`Model`], but is not stateright's search: there the paths are not the shortest once there are
//! several threads, and `eventually` misses a wait that goes round in a cycle. What we add to a model is [`Explored`].
//!
//! Level by level, in blocks of states: all threads expand a block, reading the table of visited states that nobody changes
//! meanwhile; then one thread takes in what is new, in the order of (parent, action). So there is no lock, and states, their
//! numbers and all traces are the same whatever the number of threads. A state's number is its place in that order; the table
//! keeps a fingerprint of it, its parent's number and which action led to it (`visited`), and the state itself is gone once it
//! has been expanded: a trace is rebuilt by replaying the actions.
//!
//! Waiting for ever (`waiting`): a run is taken to be *weakly fair*, that is, an action that stays possible happens at last
//! (Lamport, "The temporal logic of actions", 1994), but for *favours*, which may never come: a holder that answers, a crash. Somebody
//! waits for ever where nothing but favours is possible (a dead end), or where a fair run goes round in states in which he
//! waits throughout (a cycle).
//!
//! ```
//! use leasehold_check::explorer::{Bounds, Ending, Explored, explore};
//! use stateright::{Model, Property};
//!
//! /// A truncate waits for the holder of a lease; with `grace` it waits no longer than that.
//! struct Break { grace: bool }
//! #[derive(Clone, Debug, PartialEq)]
//! enum Action { HolderReleases, GraceEnds }
//!
//! impl Model for Break {
//!     type State = bool; // whether the lease is live
//!     type Action = Action;
//!     fn init_states(&self) -> Vec<bool> { vec![true] }
//!     fn actions(&self, live: &bool, actions: &mut Vec<Action>) {
//!         if *live {
//!             actions.push(Action::HolderReleases);
//!             actions.extend(self.grace.then_some(Action::GraceEnds));
//!         }
//!     }
//!     fn next_state(&self, _: &bool, _: Action) -> Option<bool> { Some(false) }
//!     fn properties(&self) -> Vec<Property<Self>> { vec![Property::sometimes("the truncate ends", |_, live| !live)] }
//! }
//! impl Explored for Break {
//!     fn waits(&self, live: &bool) -> u32 { u32::from(*live) }
//!     fn fair(&self, _: &bool, action: &Action) -> Option<u8> { (*action == Action::GraceEnds).then_some(0) }
//! }
//!
//! let unbounded = explore(&Break { grace: false }, &Bounds::default());
//! assert_eq!(unbounded.states, 2);
//! assert_eq!(unbounded.path("the truncate ends").unwrap().clone().into_actions(), [Action::HolderReleases]);
//! assert!(matches!(unbounded.starved[0].ending, Ending::DeadEnd));
//! assert!(explore(&Break { grace: true }, &Bounds::default()).starved.is_empty());
//! ```

mod crosscheck;
mod search;
mod visited;
mod waiting;

pub use crosscheck::{CrossCheck, CrossCheckError, ServeError, cross_check, serve};

use stateright::{Expectation, Model, Path};
use std::{borrow::Cow, fmt::Debug, hash::Hash, thread, time::Duration};

/// What the explorer asks of a model beyond stateright's [`Model`], whose `properties()` say what holds `always` and what
/// happens `sometimes` (`eventually` is refused: that is what [`waits`](Explored::waits) is for).
///
/// As stateright asks, `actions` must come in the same order each time, and `next_state` returns `None` for an action that changes
/// nothing.
pub trait Explored:
    Model<State: Clone + Debug + Eq + Hash + Send + Sync, Action: Clone + Debug + PartialEq> + Sync
{
    /// The state that stands for all that differ from this one by a symmetry only; it alone decides whether a state is known.
    ///
    /// It must commute with the actions, and states with the same representative must agree on properties, `waits` and the
    /// labels of `fair`. A trace holds states as they were reached, not representatives.
    fn representative<'a>(&self, state: &'a Self::State) -> Cow<'a, Self::State> {
        Cow::Borrowed(state)
    }

    /// Who waits in this state for something that must come in the end: a bit for each.
    fn waits(&self, _state: &Self::State) -> u32 {
        0
    }

    /// The label, below 64, under which an action is bound to happen at last if actions of this label stay possible; `None` for
    /// a favour, which may never come. Asked only where somebody waits.
    ///
    /// Actions that the same clock, thread or device brings about share a label. As it is here, all do: something happens
    /// while anything can, but nothing is known of what.
    fn fair(&self, _state: &Self::State, _action: &Self::Action) -> Option<u8> {
        Some(0)
    }

    /// The memory that a state has on the heap, in bytes: for the report.
    fn heap_bytes(&self, _state: &Self::State) -> usize {
        0
    }
}

/// How far to explore.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// States, at most; never more than 4 billion.
    pub states_max: u64,
    /// Memory of the states still to be looked at, at most, in bytes.
    pub frontier_bytes_max: u64,
    /// Actions after an initial state, at most.
    pub depth_max: Option<u32>,
    /// Time, at most, checked every few thousand states. Where this cuts differs from run to run.
    pub elapsed_max: Option<Duration>,
    /// Threads that expand states; they do not change what is found.
    pub threads: usize,
    /// Properties of which a first violation, or example, is enough: the search ends there.
    pub enough: &'static [&'static str],
    /// Whether to keep whole states instead of fingerprints: slower, larger, and without any chance of a collision.
    pub exact: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Self {
            states_max: u64::MAX,
            frontier_bytes_max: u64::MAX,
            depth_max: None,
            elapsed_max: None,
            threads,
            enough: &[],
            exact: false,
        }
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Exploration<State, Action> {
    /// One for each property of the model, in order.
    pub findings: Vec<Finding<State, Action>>,
    /// For each who can wait for ever: the nearest dead end and the nearest cycle.
    pub starved: Vec<Starvation<State, Action>>,
    /// Unique states.
    pub states: u64,
    /// Steps between them, those to known states included.
    pub transitions: u64,
    /// The longest of the shortest ways to a state.
    pub depth: u32,
    /// Whether every state was reached and expanded.
    pub complete: bool,
    /// Memory of the table of visited states, in bytes (if exact, without what states have on the heap).
    pub visited_bytes: u64,
    /// Memory of the steps among states in which somebody waits, in bytes.
    pub waiting_bytes: u64,
    /// Memory of the whole states of the largest two levels that follow each other, in bytes: an estimate from samples.
    pub frontier_bytes: u64,
    /// The probability that two states had the same fingerprint, so that one was not explored.
    pub collision: f64,
    /// How long it took.
    pub elapsed: Duration,
}

/// What was found of one property.
#[derive(Clone, Debug)]
pub struct Finding<State, Action> {
    /// The property's name.
    pub property: &'static str,
    /// Whether it should hold always or sometimes.
    pub expectation: Expectation,
    /// The shortest path to a state that violates what should hold always, or is an example of what should sometimes; of
    /// several, the first in the order of the actions.
    pub path: Option<Path<State, Action>>,
}

/// Somebody can wait for ever.
#[derive(Clone, Debug)]
pub struct Starvation<State, Action> {
    /// Which bit of [`Explored::waits`].
    pub waiter: u32,
    /// The shortest path there.
    pub path: Path<State, Action>,
    /// What goes on there, for ever.
    pub ending: Ending<Action>,
}

/// What goes on for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending<Action> {
    /// Nothing: all that could happen is favours.
    DeadEnd,
    /// These actions, over and over: they lead back to the state where they began (or one that differs by a symmetry), and what is
    /// bound to happen does.
    Cycle(Vec<Action>),
}

impl<State, Action> Exploration<State, Action> {
    /// The path to the violation or the example of a property.
    ///
    /// # Panics
    /// If the model has no such property.
    #[must_use]
    pub fn path(&self, property: &str) -> Option<&Path<State, Action>> {
        let finding = self.findings.iter().find(|finding| finding.property == property);
        finding.unwrap_or_else(|| panic!("the model has no property {property:?}")).path.as_ref()
    }
}

/// Explores a model within bounds.
///
/// # Panics
/// If the model has an `eventually` property or more than 64 properties, a state has more than 65,536 actions, a label is not
/// below 64, or actions lead elsewhere when they are replayed.
pub fn explore<M: Explored>(model: &M, bounds: &Bounds) -> Exploration<M::State, M::Action> {
    search::Search::new(model, bounds).run()
}

#[cfg(test)]
mod tests;
