//! The state machine itself.

use crate::breaks::Break;
use crate::config::Config;
use crate::ids::{FileId, LeaseId, Tick};
use crate::input::Input;
use crate::output::Output;
use crate::view::{LeaseView, Stats, Wait};
use crate::violation::Violation;
use alloc::vec::Vec;

/// Everything Leasehold knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    config: Config,
}

impl Core {
    /// A core without sessions and files, all of its frames free.
    #[must_use]
    pub fn new(config: Config) -> Core {
        Core { config }
    }

    /// The configuration it was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes one input, and appends what must be done to `out`, in order.
    pub fn step(&mut self, _now: Tick, _input: Input, _out: &mut Vec<Output>) {
        unimplemented!()
    }

    /// When `step` must be called next even if nothing happens (with `Input::Tick`).
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        unimplemented!()
    }

    /// Every lease.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView> + '_ {
        core::iter::empty()
    }

    /// One lease.
    #[must_use]
    pub fn lease(&self, _lease: LeaseId) -> Option<LeaseView> {
        unimplemented!()
    }

    /// The file's committed size; `None` if it is not open, or removed.
    #[must_use]
    pub fn file_size(&self, _file: FileId) -> Option<u64> {
        unimplemented!()
    }

    /// Every break that goes on.
    pub fn breaks(&self) -> impl Iterator<Item = &Break> + '_ {
        core::iter::empty()
    }

    /// Every request that waits, and whom for.
    pub fn waits(&self) -> impl Iterator<Item = Wait> + '_ {
        core::iter::empty()
    }

    /// How full the tables are.
    #[must_use]
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }

    /// Walks everything: the first promise or invariant that does not hold.
    ///
    /// # Errors
    /// The violation, which names the promise.
    pub fn check(&self) -> Result<(), Violation> {
        unimplemented!()
    }
}
