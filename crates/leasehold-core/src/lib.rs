//! Leases over file ranges, as one state machine.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod breaks;
pub mod identity;
pub mod ids;
pub mod input;
pub mod output;
pub mod range;
pub mod scheme;
pub mod schemes;
