//! The server and the command.
//!
//! ```text
//! command   what people type: arguments, output, exit codes
//! server    what `leasehold serve` runs: gRPC in front of the engine, metrics, signals
//! ```
#![forbid(unsafe_code)]

#[allow(rustdoc::broken_intra_doc_links, reason = "its doc comments are help texts for a terminal")]
pub mod command;
pub mod server;
pub mod size;
