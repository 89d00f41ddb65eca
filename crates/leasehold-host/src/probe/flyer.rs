//! A program that does DMA into a file for as long as it is told to: what a guard guards in tests, and what a machine
//! crashes under in the lab.
//!
//! One word a line on standard input, one answer a line on standard output:
//! ```text
//! fly      DMA is under way; "flying"; from here on, until
//! land     it lands; "lost N" pages of those that the file should have
//! release  it lands at the next break, and then the break is answered; "released N"
//! ```

use super::disk;
use super::flight::{self, FlightError};
use super::mapping::Mapping;
use super::pattern::{self, Mark};
use super::report::Verdict;
use super::source::Source;
use super::verbs::{Access, Device};
use super::victim::{self, BYTES, PAGES, Victim};
use crate::guard::BREAK_FD;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd as _, RawFd};
use std::path::{Path, PathBuf};

/// Who writes by [`remote`].
const REMOTE: Mark = Mark(2);

/// Makes the file, durably.
///
/// # Errors
/// Those of writing it.
pub fn make(path: &Path) -> io::Result<()> {
    victim::write(path, Mark(1)).map(drop)
}

/// Does what standard input says, until it ends.
///
/// # Errors
/// Those of mapping the file, and of the FUSE file that the DMA comes from.
pub fn run(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mapping = Mapping::shared(&file, BYTES)?;
    // The file stays when this ends.
    let victim = ManuallyDrop::new(Victim { file, path: PathBuf::from(path), mapping });
    let source = Source::mount(&mut |_| {}).map_err(|error| io::Error::other(error.to_string()))?;
    let mut words = io::stdin().lock().lines();
    let mut notices = notices()?;
    let mut mark = Mark(1);
    while let Some(word) = words.next().transpose()? {
        if word != "fly" {
            return Err(io::Error::other(format!("{word:?} before it flies")));
        }
        mark = Mark(mark.0 + 1);
        let mut id = None;
        let operation = || {
            say("flying")?;
            if words.next().transpose()?.as_deref() == Some("release") {
                id = Some(next_break(&mut notices)?);
            }
            Ok(())
        };
        // Its input is of this thread.
        flight::beside(&source, &victim.mapping, mark, operation).map_err(other)?;
        let (cached, on_disk) = victim.landed(mark)?;
        let lost = cached.wrong().max(on_disk.wrong());
        if let (Some(id), Some(notices)) = (id, &mut notices) {
            writeln!(notices.get_mut(), "release {id}")?;
            say(&format!("released {lost}"))?;
        } else {
            say(&format!("lost {lost}"))?;
        }
    }
    Ok(())
}

/// Makes the file, and RDMA memory of it; after an fsync the device writes to all of it, and another fsync follows. Says
/// "acknowledged", and holds the memory until standard input ends. Or says "refused", if the kernel refuses the memory.
///
/// # Errors
/// Of the file; a device that is not there or fails.
pub fn remote(path: &Path) -> io::Result<()> {
    let no_device = |verdict: Verdict| io::Error::other(format!("{verdict:?}"));
    let file = victim::write(path, Mark(1))?;
    let mapping = Mapping::shared(&file, BYTES)?;
    let staging = Mapping::anonymous(BYTES)?;
    let device = Device::open().map_err(no_device)?;
    let mut link = device.connect(&staging).map_err(no_device)?;
    let Ok(region) = device.register(&mapping, Access::Write) else { return say("refused") };
    file.sync_all()?;
    link.write(&region, 0, &pattern::bytes(REMOTE, 0, PAGES))?;
    file.sync_all()?;
    say("acknowledged")?;
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

/// How many pages of [`remote`]'s write are not on the disk, and of how many.
///
/// # Errors
/// Of reading the file.
pub fn lost(path: &Path) -> io::Result<()> {
    let tally = victim::tally(&disk::contents(path, PAGES)?, REMOTE);
    say(&format!("{} of {}", tally.wrong(), tally.all()))
}

fn other(error: FlightError) -> io::Error {
    io::Error::other(error.to_string())
}

fn say(what: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{what}")?;
    out.flush()
}

/// The guard's socket, if there is a guard.
fn notices() -> io::Result<Option<BufReader<File>>> {
    let Some(fd) = std::env::var(BREAK_FD).ok().and_then(|fd| fd.parse::<RawFd>().ok()) else {
        return Ok(None);
    };
    // SAFETY: the guard gave it to this process, and nobody else here uses it.
    Ok(Some(BufReader::new(unsafe { File::from_raw_fd(fd) })))
}

fn next_break(notices: &mut Option<BufReader<File>>) -> io::Result<u64> {
    let notices = notices.as_mut().ok_or_else(|| io::Error::other("there is no guard"))?;
    let mut line = String::new();
    while notices.read_line(&mut line)? > 0 {
        let notice: serde_json::Value = serde_json::from_str(&line)?;
        if notice["event"] == "break" {
            return notice["id"].as_u64().ok_or_else(|| io::Error::other("a break without an id"));
        }
        line.clear();
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
