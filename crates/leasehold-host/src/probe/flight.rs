//! DMA under way into a mapping, while something else is done.

use super::mapping::Mapping;
use super::pattern::Mark;
use super::source::Source;
use super::victim::BYTES;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How long the kernel may take to ask for bytes. Not a delay: a bound.
const ASK: Duration = Duration::from_secs(5);
/// How long an operation may take before we take it to be waiting for the DMA. Not a delay: a bound.
const OPERATION: Duration = Duration::from_secs(3);

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Landed {
    /// The operation did not end before the bytes landed: it is the safe way, if a slow one.
    pub(super) waited: bool,
}

/// Why it did not take off, or what went wrong on the way.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlightError {
    #[error("the read into the mapping failed: {0}")]
    Refused(io::Error),
    #[error("{0}")]
    Operation(io::Error),
    #[error("the kernel asked for {0} bytes at once, not {BYTES}")]
    Split(usize),
    #[error("the kernel did not ask for the bytes within {} s", ASK.as_secs())]
    NotAsked,
}

/// Does `operation` after the pages of the mapping were pinned and before the bytes of `mark` land in them.
pub(super) fn during(
    source: &Source,
    mapping: &Mapping,
    mark: Mark,
    operation: impl FnOnce() -> io::Result<()> + Send,
) -> Result<Landed, FlightError> {
    source.close_gate();
    thread::scope(|scope| {
        let read = scope.spawn(|| mapping.fill(0, BYTES, source.file(), 0));
        let join = |read: thread::ScopedJoinHandle<'_, io::Result<usize>>| {
            read.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
        };
        match source.held(ASK) {
            Some(BYTES) => {}
            held => {
                source.land(mark);
                join(read).map_err(FlightError::Refused)?;
                return Err(held.map_or(FlightError::NotAsked, FlightError::Split));
            }
        }
        let (done, ended) = mpsc::channel();
        scope.spawn(move || done.send(operation()));
        let in_time = ended.recv_timeout(OPERATION);
        source.land(mark);
        match join(read) {
            Ok(BYTES) => {}
            Ok(bytes) => return Err(FlightError::Split(bytes)),
            Err(error) => return Err(FlightError::Refused(error)),
        }
        let (waited, result) = match in_time {
            Ok(result) => (false, result),
            Err(RecvTimeoutError::Timeout) => {
                (true, ended.recv().unwrap_or_else(|_| Err(io::Error::other("it panicked"))))
            }
            Err(RecvTimeoutError::Disconnected) => (false, Err(io::Error::other("it panicked"))),
        };
        result.map_err(FlightError::Operation)?;
        Ok(Landed { waited })
    })
}

/// The same, but the operation ends when it likes, and lands the bytes by that.
pub(super) fn beside(
    source: &Source,
    mapping: &Mapping,
    mark: Mark,
    operation: impl FnOnce() -> io::Result<()>,
) -> Result<(), FlightError> {
    source.close_gate();
    thread::scope(|scope| {
        let read = scope.spawn(|| mapping.fill(0, BYTES, source.file(), 0));
        let held = source.held(ASK);
        let result = if held == Some(BYTES) { operation() } else { Ok(()) };
        source.land(mark);
        let read = read.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        match (held, read) {
            (_, Err(error)) => Err(FlightError::Refused(error)),
            (Some(BYTES), Ok(BYTES)) => result.map_err(FlightError::Operation),
            (None, Ok(_)) => Err(FlightError::NotAsked),
            (Some(bytes), Ok(_)) => Err(FlightError::Split(bytes)),
        }
    })
}
