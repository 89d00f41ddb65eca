//! The whole engine in one thread, in an order that a seed decides: see `docs/simulation.md`.
//!
//! The engine's threads are tasks here, each with a stack of its own, of which one runs at a time ([`scheduler`]). They
//! change places where real threads may: at locks, channels and transfers ([`sync`]). Time is a number.

mod fabric;
mod random;
mod scheduler;
pub(crate) mod sync;

pub(crate) use random::Random;
pub(crate) use scheduler::{Outcome, below, chance, dawdle, note, simulate};
