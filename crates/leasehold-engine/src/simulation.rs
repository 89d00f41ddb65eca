//! The whole engine in one thread, in an order that a seed decides: see `docs/simulation.md`.
//!
//! The engine's threads are tasks here, each with a stack of its own, of which one runs at a time ([`scheduler`]). They
//! change places where real threads may: at locks, channels and transfers ([`sync`]). Time is a number.

mod disk;
mod fabric;
mod holder;
mod local;
mod machine;
mod oracle;
mod random;
mod scheduler;
mod slow;
pub(crate) mod sync;
mod tests;
mod world;

pub(crate) use disk::Troubled;
pub(crate) use random::Random;
pub(crate) use scheduler::{Outcome, below, chance, dawdle, note, simulate, trace, try_simulate};
use scheduler::{jump_the_clock, jumps};
