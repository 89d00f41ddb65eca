//! The server and the command.
//!
//! ```text
//! command   what people type: arguments, output, exit codes
//! server    what `leasehold serve` runs: gRPC in front of the engine, metrics, signals
//! ```
#![forbid(unsafe_code)]

pub mod command;
pub mod server;
pub mod size;
