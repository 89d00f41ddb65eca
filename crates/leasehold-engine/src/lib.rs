//! Performs what the core decides on real files.
//!
//! The lower half is [`storage::Storage`]: it takes the core's data outputs and answers with the core's inputs.
//!
//! ```text
//! perform --> load, writeback, change      one output each: what must be durable before what
//!                |         |
//!              file      log               sums of a file's blocks (sidecar) | the write-ahead record (record)
//!                |         |
//!               disk (ring, threads)       the seam to the kernel
//! open    --> store, recovery              checkpoint: sums back to their sidecars, the record anew
//! ```
//! The formats are in `docs/store-format.md`; why the record is as it is, in `docs/decisions/2026-11-21-write-ahead-record.md`.

pub mod arena;
mod buffer;
mod change;
mod checkpoint;
pub mod checksum;
pub mod disk;
mod file;
mod identity;
mod load;
mod log;
mod names;
mod namespace;
pub mod path;
mod record;
mod recovery;
mod ring;
mod scrub;
mod sidecar;
pub mod storage;
mod store;
mod threads;
mod workers;
mod writeback;
