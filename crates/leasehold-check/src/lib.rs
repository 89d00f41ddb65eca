//! Every design of the threads, judged.
//!
//! The explorer ([`explorer`]) walks every interleaving of a small world around the core that the engine runs, under each
//! scheme, and finds the shortest one that breaks each promise. A [`report::Report`] says what it found.
#![forbid(unsafe_code)]

pub mod check;
pub mod explorer;
pub mod report;
pub mod scenario;
pub mod world;
