//! Leases over file ranges, as one state machine.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod acquire;
pub mod breaks;
mod change;
mod commit;
pub mod config;
mod core;
mod file;
mod file_frames;
mod frame;
pub mod identity;
pub mod ids;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod input;
mod intervals;
mod lease;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod output;
mod phase;
pub mod range;
mod read;
mod request;
pub mod scheme;
pub mod schemes;
mod session;
mod sync;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod view;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod violation;
mod writeback;

pub use crate::config::{Config, Limits, OnExpiry};
pub use crate::core::Core;
