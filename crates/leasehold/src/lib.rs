//! The server and the command.
//!
//! ```text
//! command   what people type: arguments, output, exit codes
//! mount     the store as a filesystem
//! server    what `leasehold serve` runs: gRPC in front of the engine, metrics, signals
//! ```
#![forbid(unsafe_code)]

pub mod command;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod mount;
pub mod server;
pub mod size;
