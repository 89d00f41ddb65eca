//! Performs what the core decides on real files.
//!
//! ```text
//!   calls (control plane) --> engine, files, inspect ---+
//!   Sends (data streams)  --> session ------------------+--> driver: the one thread that steps the core
//!                                                               |  Load Zero Verify Merge Record Write Perform Flush
//!                                                               +--> storage: real files, checksums, write-ahead record
//!                                                               |  Expose Fence Forget Disconnect
//!                                                               +--> the session's endpoint in the fabric
//! ```
//!
//! The lower half is [`storage::Storage`]: it takes the core's data outputs and answers with the core's inputs.
//!
//! ```text
//! perform --> load, writeback, change      one output each: what must be durable before what
//!                |         |
//!          file, sums     log               sums of a file's blocks (sidecar) | the write-ahead record (record)
//!                |         |
//!               disk (ring, threads)       the seam to the kernel
//! open    --> store, recovery, replay      checkpoint: sums back to their sidecars, the record anew
//! ```
//! The formats are in `docs/store-format.md`; why the record is as it is, in `docs/decisions/2026-11-21-write-ahead-record.md`.

pub mod about;
mod adopt;
pub mod arena;
mod attributes;
pub mod bare;
mod block_map;
pub mod break_log;
mod buffer;
mod capture;
mod change;
mod checkpoint;
mod checksum;
mod clone;
mod collapse;
mod copies;
pub mod disk;
mod driver;
pub mod engine;
pub mod event;
mod evict;
mod exchange;
mod fabrics;
mod file;
pub mod files;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod identity;
pub mod inspect;
mod links;
mod load;
mod log;
pub mod metrics;
mod names;
mod namespace;
mod open_files;
mod operation;
mod orphans;
pub mod pages;
pub mod path;
mod record;
mod recovery;
mod replay;
mod ring;
mod scrub;
pub mod scrubber;
pub mod session;
mod sidecar;
#[cfg(test)]
mod simulation;
mod sparse;
mod staging;
pub mod storage;
mod store;
mod sums;
mod sync;
mod threads;
pub mod throw_away;
mod workers;
mod writeback;
mod writes;

pub use engine::{Config, Engine};
pub use sync::may_block;
