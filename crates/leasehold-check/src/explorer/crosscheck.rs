//! Stateright's own search over the same model, as a second opinion, and its web page for a model.

use super::{Exploration, Explored};
use stateright::{Checker, Expectation, Model, Property};
use std::{
    collections::HashSet,
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What stateright's search found, where it agrees with us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossCheck {
    /// Unique states.
    pub states: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Why there is no second opinion, or what it says.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CrossCheckError {
    /// Stateright would not stop where we did.
    #[error(
        "cannot cross-check an exploration that was cut; choose smaller bounds of the model, or larger ones of the search"
    )]
    Incomplete,
    /// One of the searches is wrong, or the model is: it is not deterministic, or its `representative` does not commute with actions.
    #[error(
        "stateright's search found {theirs} {what}, ours {ours}; look for a model that is not deterministic"
    )]
    Count {
        /// What was counted.
        what: &'static str,
        /// Our number.
        ours: u64,
        /// Stateright's.
        theirs: u64,
    },
    /// Likewise.
    #[error(
        "only one search found what property {property:?} looks for: ours {ours}, stateright's {theirs}; look for a model that is not deterministic"
    )]
    Property {
        /// The property.
        property: &'static str,
        /// Whether ours did.
        ours: bool,
        /// Whether stateright's did.
        theirs: bool,
    },
}

/// Lets stateright's breadth-first search walk the model too, and compares states, steps and what each property showed.
///
/// It needs far more memory than our own: whole states, and a path for each that is still to be expanded.
///
/// # Errors
/// If the exploration was cut, or anything differs.
pub fn cross_check<M>(
    model: M,
    exploration: &Exploration<M::State, M::Action>,
    threads: usize,
) -> Result<CrossCheck, CrossCheckError>
where
    M: Explored + Send + 'static,
    M::State: 'static,
{
    if !exploration.complete {
        return Err(CrossCheckError::Incomplete);
    }
    let start = Instant::now();
    let shown = Arc::new(AtomicU64::new(0));
    let whole = Whole { properties: model.properties(), model, shown: Arc::clone(&shown) };
    let initial = whole.init_states().iter().filter(|state| whole.within_boundary(state)).count() as u64;
    let checker = whole.checker().threads(threads).spawn_bfs().join();
    let states = checker.unique_state_count() as u64;
    for (what, ours, theirs) in [
        ("states", exploration.states, states),
        ("steps", exploration.transitions, checker.state_count() as u64 - initial),
    ] {
        if ours != theirs {
            return Err(CrossCheckError::Count { what, ours, theirs });
        }
    }
    let shown = shown.load(Ordering::Relaxed);
    for (place, finding) in exploration.findings.iter().enumerate() {
        let (property, ours, theirs) = (finding.property, finding.path.is_some(), shown >> place & 1 == 1);
        if ours != theirs {
            return Err(CrossCheckError::Property { property, ours, theirs });
        }
    }
    Ok(CrossCheck { states, elapsed: start.elapsed() })
}

/// A model without its symmetric states, and with one property that holds always, and notes what those of the model show:
/// stateright would stop once each of those has shown something.
struct Whole<M: Model> {
    model: M,
    properties: Vec<Property<M>>,
    shown: Arc<AtomicU64>,
}

impl<M: Explored> Model for Whole<M> {
    type State = M::State;
    type Action = M::Action;

    fn init_states(&self) -> Vec<M::State> {
        let states = self.model.init_states();
        let mut states: Vec<_> =
            states.iter().map(|state| self.model.representative(state).into_owned()).collect();
        // Stateright would expand each of several equal ones.
        let mut seen = HashSet::new();
        states.retain(|state| seen.insert(state.clone()));
        states
    }

    fn actions(&self, state: &M::State, actions: &mut Vec<M::Action>) {
        self.model.actions(state, actions);
    }

    fn next_state(&self, state: &M::State, action: M::Action) -> Option<M::State> {
        let next = self.model.next_state(state, action)?;
        Some(self.model.representative(&next).into_owned())
    }

    fn within_boundary(&self, state: &M::State) -> bool {
        self.model.within_boundary(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("every state is looked at", |whole: &Self, state| {
            for (place, property) in whole.properties.iter().enumerate() {
                let wanted = property.expectation == Expectation::Sometimes;
                if (property.condition)(&whole.model, state) == wanted {
                    whole.shown.fetch_or(1 << place, Ordering::Relaxed);
                }
            }
            true
        })]
    }
}

/// The page cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the model on {address}; choose another port")]
pub struct ServeError {
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub cause: io::Error,
}

/// Serves stateright's Explorer, a web page on which one walks the model by hand, on a port of this machine only. It needs no
/// network, and serves until the process is killed.
///
/// # Errors
/// If the port cannot be had.
///
/// # Panics
/// If the model panics in a state that somebody looks at.
pub fn serve<M>(model: M, port: u16) -> Result<Infallible, ServeError>
where
    M: Explored + Send + 'static,
    M::State: 'static,
    M::Action: Send + Sync + 'static,
{
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // Stateright panics if it cannot bind.
    drop(TcpListener::bind(address).map_err(|cause| ServeError { address, cause })?);
    model.checker().serve(address);
    unreachable!("it serves for ever, or panics");
}
