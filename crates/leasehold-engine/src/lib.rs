//! Performs what the core decides on real files.
//!
//! The lower half is [`storage::Storage`]: it takes the core's data outputs and answers with the core's inputs.

pub mod arena;
pub mod path;
pub mod storage;
