//! Performs what the core decides on real files.
//!
//! The lower half is [`storage::Storage`]: it takes the core's data outputs and answers with the core's inputs.

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
