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

pub mod arena;
pub mod break_log;
mod driver;
pub mod engine;
pub mod event;
pub mod files;
pub mod inspect;
pub mod metrics;
mod open_files;
pub mod path;
pub mod session;
pub mod storage;

pub use engine::{Config, Engine};
