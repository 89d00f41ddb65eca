//! Leases over file ranges, as one state machine.
//!
//! [`Core`] is told what happens ([`input::Input`]) and says what to do about it ([`output::Output`]). It never reads a
//! clock, draws a random number, opens a file or starts a thread, so that the server, a model checker and a simulator run
//! the same rules, and each rule exists once.
//!
//! ```text
//! acquire --claims--> request --frames--> lease --fence--> commit --phase--> writeback --> durable
//!                                           |  ^ break: notice, grace, fence
//!                                           '--capture--> the way of a commit, while the lease goes on
//! change ---claims--> breaks the leases in its way --their fences--> phase --> performed
//! read --frames--> phase --> loaded, lent
//! ```
//!
//! What keeps it simple, on purpose:
//! - A frame has one owner at a time, and a lease has one run of frames. There is no cache: once durable, frames are free,
//!   and reads come from the disk, after the writebacks of their blocks.
//! - A block has at most one frame outside the disk. Whoever changes blocks, or loads them, drains their writebacks first,
//!   in line, under a *phase* of those blocks.
//! - What is under a live key gets into the file by a copy in frames of its own, never from the frames that the key reaches.
//! - Nobody holds one thing and waits for another that a client could keep for ever: an acquire gets all of its leases at
//!   once, a read has frames before its phase, a phase waits for the disk only. So nothing deadlocks, and a change waits
//!   for nobody longer than grace, fence and disk take.
//! - Whoever waits watches one thing in its way, and is looked at when that has gone: a step costs the logarithm of what
//!   is live, plus what it ends.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod acquire;
pub mod breaks;
mod capture;
mod change;
mod commit;
pub mod config;
mod core;
mod file;
mod frame;
mod holder;
pub mod identity;
pub mod ids;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod input;
mod intervals;
mod lease;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod output;
mod page;
mod phase;
pub mod promise;
pub mod range;
mod read;
mod request;
pub mod scheme;
pub mod schemes;
mod session;
mod sparse;
mod sync;
mod tenant;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod view;
#[allow(missing_docs, reason = "the fields of a variant are named for their types and for its comment")]
pub mod violation;
mod writeback;

pub use crate::config::{Config, Limits, OnExpiry};
pub use crate::core::Core;
