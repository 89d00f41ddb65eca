//! One file on its way into the store: where from, where to, and how far it is.

use crate::command::exit::{Exit, Failure};
use crate::command::show;
use crate::size::rough;
use bytes::Bytes;
use leasehold_client::ByteRange;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;

/// Where the bytes come from.
#[derive(Clone, Debug)]
pub(crate) enum From {
    /// They can be read once.
    Stdin,
    File(PathBuf),
}

/// See the module.
pub(crate) struct Target {
    pub(crate) from: From,
    /// In the store.
    pub(crate) path: String,
    /// A file of many pieces is created before the first of them: whether that found one, and of which size.
    pub(crate) found: OnceCell<Found>,
    state: Mutex<State>,
}

/// What was there before the put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No file, or one in which nothing is.
    Nothing,
    File,
}

/// How far a file is.
///
/// Invariant: `underway` counts the pieces that were read, and are neither in `committed` nor given up.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) underway: usize,
    /// How long it is, once all of it was read.
    pub(crate) length: Option<u64>,
    /// Where the source has holes.
    pub(crate) holes: Vec<ByteRange>,
    /// What was committed, or found in the store as it should be.
    pub(crate) committed: Vec<Chunk>,
    pub(crate) committed_bytes: u64,
    /// Of these, what went over the line.
    pub(crate) sent_bytes: u64,
    pub(crate) failed: Option<anyhow::Error>,
    /// Whether somebody sees to its end.
    finishing: bool,
}

/// A piece that is in the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) range: ByteRange,
    pub(crate) crc32c: Option<u32>,
    /// The link that it went by: what an earlier one took may be lost with the server, unless it was made durable.
    pub(crate) link: u64,
}

/// Bytes of a file that were read and are to be put.
pub(crate) struct Piece {
    pub(crate) target: Arc<Target>,
    pub(crate) range: ByteRange,
    pub(crate) bytes: Bytes,
    /// The file has no other piece.
    pub(crate) only: bool,
    /// In the store, or given up.
    done: AtomicBool,
}

/// Somebody broke the lease of a piece.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) range: ByteRange,
    pub(crate) by: String,
    pub(crate) fate: &'static str,
}

impl Target {
    pub(crate) fn new(from: From, path: String) -> Arc<Target> {
        Arc::new(Target { from, path, found: OnceCell::new(), state: Mutex::default() })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the file up: no more of it is put. The first reason stays.
    pub(crate) fn fail(&self, why: impl Into<anyhow::Error>) {
        self.state().failed.get_or_insert_with(|| why.into());
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.state().failed.is_some()
    }

    /// Somebody broke a lease, and the put does not go on.
    pub(crate) fn stopped(&self, broken: &Broken) {
        let Broken { range, by, fate } = broken;
        let (range, path) = (show::range(*range), &self.path);
        let mut state = self.state();
        let committed = rough(state.committed_bytes);
        let text = format!(
            "stopped: the lease on {range} of {path} was broken, and {fate}\n  \
             by {by}\n  \
             {committed} had been committed; put it again, or use --retry to go on"
        );
        state.failed.get_or_insert_with(|| Failure::new(Exit::Lease, text).into());
    }

    /// The next piece was read.
    pub(crate) fn piece(self: &Arc<Target>, range: ByteRange, bytes: Bytes, only: bool) -> Piece {
        self.state().underway += 1;
        Piece { target: self.clone(), range, bytes, only, done: AtomicBool::new(false) }
    }

    /// All of it was read.
    pub(crate) fn all_read(&self, length: u64, holes: Vec<ByteRange>) {
        let mut state = self.state();
        state.length = Some(length);
        state.holes = holes;
    }

    /// Whether nothing is under way any more, and its end is still to be seen to: true once.
    pub(crate) fn to_finish(&self) -> bool {
        let mut state = self.state();
        let over = state.underway == 0 && (state.length.is_some() || state.failed.is_some());
        over && !std::mem::replace(&mut state.finishing, true)
    }
}

impl Piece {
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed) || self.target.has_failed()
    }

    /// It is in the store: it was `sent`, or had been there.
    pub(crate) fn committed(&self, crc32c: Option<u32>, link: u64, sent: bool) {
        let mut state = self.target.state();
        state.committed.push(Chunk { range: self.range, crc32c, link });
        state.committed_bytes += self.range.len();
        if sent {
            state.sent_bytes += self.range.len();
        }
        drop(state);
        self.done.store(true, Ordering::Relaxed);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.target.state().underway -= 1;
    }
}
