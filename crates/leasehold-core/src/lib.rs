//! Leases over file ranges, as one state machine.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod breaks;
pub mod config;
mod core;
pub mod identity;
pub mod ids;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod input;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod output;
pub mod range;
pub mod scheme;
pub mod schemes;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod view;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod violation;

pub use crate::config::{Config, Limits, OnExpiry};
pub use crate::core::Core;
