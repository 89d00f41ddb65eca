//! Every design of the threads, judged.
//!
//! The explorer walks every interleaving of a small world around the core that the engine runs, under each
//! scheme, and finds the shortest one that breaks each promise. A [`report::Report`] says what it found.
#![forbid(unsafe_code)]

pub mod report;

use leasehold_core::schemes;
use report::Report;
use report::space::Space;
use std::net::SocketAddr;
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
    schemes::ALL.iter().map(|scheme| scheme.name)
}

// TO BE REPLACED WHEN THE EXPLORER IS MERGED: the three functions below stand for it.

/// Checks schemes; blocks until all is explored.
#[must_use]
pub fn check(_options: &Options) -> Report {
    todo!("the explorer is merged separately")
}

/// Walks through every combination of the six decisions; of the options, the schemes do not matter.
#[must_use]
pub fn space(_options: &Options) -> Space {
    todo!("the explorer is merged separately")
}

/// Lets a browser walk through the states of the first of the schemes, at this address; does not return.
///
/// # Errors
/// If the address cannot be used.
pub fn explore(_options: &Options, _address: SocketAddr) -> std::io::Result<()> {
    todo!("the explorer is merged separately")
}
