//! Tries what DMA into files does here: on this kernel, on this filesystem, in a scratch directory that is removed.
//!
//! ```text
//!   a file's pages, mapped shared  <==== DMA under way ====  a FUSE file that answers when it is told to
//!            ^                                                or a real device (an O_DIRECT read)
//!            |
//!   meanwhile: fsync, truncate, punch, clone, ..             afterwards: is each byte where it was promised to be?
//! ```
//!
//! Nothing here depends on time. A read from the FUSE file pins the pages that it goes to until we answer it, so the
//! operation in question is done while the pin is certain, and the bytes land after it. Only the races against a real
//! device are left to chance; they say how often they were tried.
//!
//! [`run`] stops between two tries once it is told to ([`Stop`]), and waits for nothing without a bound, but the kernel
//! itself may hang. So whoever calls it does so in a process that can be killed, and cleans up after it by what
//! [`Event::Made`] named.
//!
//! The facts to expect are those of the project's measurements; `docs/probe.md` explains each row.

mod disk;
mod flight;
pub mod flyer;
mod freeze;
mod hazards;
mod mapping;
mod pattern;
mod pins;
mod place;
mod races;
mod regions;
mod report;
mod scratch;
mod source;
mod stop;
mod verbs;
mod victim;

pub use disk::{Tally, contents};
pub use pattern::{Content, Mark, PAGE_BYTES, bytes};
pub use place::{Place, PlaceError};
pub use report::{Event, Group, Row, Verdict};
pub use scratch::{NotRemoved, Scratch};
pub use stop::Stop;

use source::Source;
use std::path::Path;
use std::time::Duration;

/// How much to try.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often each operation is done while DMA is under way.
    pub tries: u32,
    /// How long each race against a real device lasts.
    pub race: Duration,
    /// Freeze the whole filesystem for a moment, too.
    pub freeze: bool,
}

impl Options {
    /// Some seconds.
    #[must_use]
    pub fn short() -> Options {
        Options { tries: 10, race: Duration::from_secs(12), freeze: false }
    }

    /// Some minutes, for what happens seldom.
    #[must_use]
    pub fn long() -> Options {
        Options { tries: 100, race: Duration::from_secs(90), freeze: false }
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing can be tried there.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It was told to stop.
    #[error("stopped; what was found so far stands above")]
    Stopped,
}

/// Looks at a directory, and whether something can be tried in it. May hang where the filesystem does.
///
/// # Errors
/// [`PlaceError`], with the remedy.
pub fn look(directory: &Path) -> Result<Place, PlaceError> {
    Place::look(directory)
}

/// Tries everything in the scratch directory, and tells what it finds as it goes. The scratch directory stays, empty.
///
/// # Errors
/// [`ProbeError::Stopped`]; what cannot be tried is a row of its own.
pub fn run(
    place: &Place,
    scratch: &Scratch,
    options: &Options,
    stop: &Stop,
    tell: &mut dyn FnMut(Event),
) -> Result<(), ProbeError> {
    let directory = scratch.path();
    tell(Event::Trying { what: "long-term pins".to_owned() });
    for row in pins::rows(directory) {
        tell(Event::Row(row));
    }
    stop.check()?;
    regions::run(place, directory, options, stop, tell)?;
    let source = Source::mount(&mut |path| tell(Event::Made { path: path.to_owned(), mount: true }));
    hazards::run(place, directory, source.as_ref(), options.tries, stop, tell)?;
    if options.freeze {
        tell(Event::Trying { what: "a frozen filesystem".to_owned() });
        tell(Event::Row(freeze::row(place, directory, source.as_ref())));
        stop.check()?;
    } else {
        tell(Event::Row(freeze::not_asked_for()));
    }
    drop(source);
    races::run(place, directory, options.race, stop, tell)
}
