//! Every design of the threads, judged.
//!
//! The explorer walks every interleaving of a small world around the core that the engine runs, under each
//! scheme, and finds the shortest one that breaks each promise. A [`report::Report`] says what it found.
#![forbid(unsafe_code)]

pub mod check;
mod costs;
pub mod explorer;
mod narrate;
pub mod report;
pub mod scenario;
mod space;
pub mod world;

use explorer::ServeError;
use leasehold_core::schemes;
use report::Report;
use report::space::Space;
use std::convert::Infallible;
use std::num::NonZeroUsize;

/// What to check, and how far to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The names of the schemes, of those in [`names`]; empty: all.
    pub schemes: Vec<String>,
    /// Larger bounds.
    pub deep: bool,
    /// Whole states are remembered instead of their fingerprints.
    pub exact: bool,
    /// Stateright's own search looks at the same worlds besides.
    pub cross_check: bool,
    /// Threads that explore.
    pub threads: NonZeroUsize,
}

/// All schemes, small bounds, a thread for each CPU.
impl Default for Options {
    fn default() -> Options {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Options { schemes: Vec::new(), deep: false, exact: false, cross_check: false, threads }
    }
}

/// The names of all schemes, in the order of the table.
pub fn names() -> impl Iterator<Item = &'static str> {
    schemes::ALL.iter().map(|entry| entry.scheme.name)
}

/// Checks schemes; blocks until all is explored.
#[must_use]
pub fn check(options: &Options) -> Report {
    check::check(options)
}

/// Walks through every combination of the six decisions; of the options, the schemes do not matter. It takes minutes, and
/// says meanwhile how far it is.
#[must_use]
pub fn space(options: &Options, progress: &dyn Fn(String)) -> Space {
    space::space(options, progress)
}

/// Serves the states of the first of the schemes to a browser, on a port of this machine only, until it is killed.
///
/// # Errors
/// If the port cannot be had.
pub fn explore(options: &Options, port: u16) -> Result<Infallible, ServeError> {
    let entry = check::entries(options).next().expect("there are schemes");
    let settings = check::settings(entry, &scenario::all());
    explorer::serve(settings.into_iter().next().expect("each is checked in some world"), port)
}
