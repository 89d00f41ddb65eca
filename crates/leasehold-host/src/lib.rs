//! What a host that does DMA into files does, and what is on it.
//!
//! ```text
//! audit   is this host safe? Reads and judges, changes nothing
//! probe   tries it, in a scratch directory
//! guard   holds the files that a program does DMA into
//! ```

pub mod audit;
pub mod guard;
pub mod probe;
