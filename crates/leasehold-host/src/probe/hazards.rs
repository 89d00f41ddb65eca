//! What can be done to a file while DMA into its mapping is certain to be under way, and what must be true afterwards.
//!
//! The read that is the DMA ends after the operation and reports success. So its bytes are promised to be in the file; and
//! a copy that the operation took is promised to stay as it was taken.

use super::ProbeError;
use super::disk::{self, Tally};
use super::flight::{self, FlightError};
use super::pattern::{Mark, Page};
use super::place::Place;
use super::report::{Event, Group, Row, Verdict};
use super::source::{NoSource, Source};
use super::stop::Stop;
use super::victim::{self, BYTES, PAGES, Victim};
use rustix::fs::{FallocateFlags, copy_file_range, fallocate, ftruncate, ioctl_ficlone};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// One of them.
pub(super) struct Hazard {
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    pub(super) operation: fn(&Scene) -> io::Result<()>,
    pub(super) promise: Promise,
}

/// What must be true afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// The bytes of the DMA are in the file.
    Kept,
    /// The copy is as it was right after the operation.
    CopyStays,
}

pub(super) const HAZARDS: [Hazard; 9] = [
    Hazard {
        id: "write-after-clean",
        what: "fsync: later DMA is lost",
        operation: |scene| scene.victim.file.sync_all(),
        promise: Promise::Kept,
    },
    Hazard {
        id: "truncate",
        what: "truncate: DMA is lost",
        operation: |scene| {
            ftruncate(&scene.victim.file, 0)?;
            Ok(ftruncate(&scene.victim.file, BYTES as u64)?)
        },
        promise: Promise::Kept,
    },
    Hazard {
        id: "punch",
        what: "punch: DMA is lost",
        operation: |scene| scene.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, BYTES),
        promise: Promise::Kept,
    },
    Hazard {
        id: "zero",
        what: "zero: DMA is lost",
        operation: |scene| scene.fallocate(FallocateFlags::ZERO_RANGE, BYTES),
        promise: Promise::Kept,
    },
    Hazard {
        id: "collapse",
        what: "collapse: DMA is lost",
        operation: |scene| {
            scene.fallocate(FallocateFlags::COLLAPSE_RANGE, BYTES / 2)?;
            Ok(ftruncate(&scene.victim.file, BYTES as u64)?)
        },
        promise: Promise::Kept,
    },
    Hazard {
        id: "direct-write",
        what: "O_DIRECT write: DMA is lost",
        operation: |scene| {
            let pages: Vec<Page> = (0..PAGES as u32).map(|number| Page::of(scene.other, number)).collect();
            disk::write_direct(&scene.victim.path, &pages)
        },
        promise: Promise::Kept,
    },
    Hazard {
        id: "clone-onto",
        what: "reflink onto: DMA is lost",
        operation: |scene| Ok(ioctl_ficlone(&scene.victim.file, &scene.donor)?),
        promise: Promise::Kept,
    },
    Hazard {
        id: "clone",
        what: "reflink: the copy changes",
        operation: |scene| {
            let copy = File::create(&scene.copy)?;
            ioctl_ficlone(&copy, &scene.victim.file)?;
            copy.sync_all()
        },
        promise: Promise::CopyStays,
    },
    Hazard {
        id: "copy",
        what: "copy: the copy changes",
        operation: |scene| {
            let copy = File::create(&scene.copy)?;
            let (mut from, mut to) = (0, 0);
            while from < BYTES as u64 {
                let left = BYTES - from as usize;
                let file = &scene.victim.file;
                if copy_file_range(file, Some(&mut from), &copy, Some(&mut to), left)? == 0 {
                    return Err(io::Error::other("the copy came to a stop"));
                }
            }
            copy.sync_all()
        },
        promise: Promise::CopyStays,
    },
];

/// The files of one try.
pub(super) struct Scene {
    pub(super) victim: Victim,
    /// Another file, with content of its own.
    pub(super) donor: File,
    donor_path: PathBuf,
    /// Where a copy goes.
    pub(super) copy: PathBuf,
    /// Who writes by DMA, and who else writes.
    pub(super) dma: Mark,
    pub(super) other: Mark,
}

impl Scene {
    pub(super) fn set(directory: &Path, number: u32) -> io::Result<Scene> {
        let [old, dma, other] = [1, 2, 3].map(|who| Mark(number * 4 + who));
        let victim = Victim::make(directory, old)?;
        let (donor_path, copy) = (directory.join("donor"), directory.join("copy"));
        let donor = victim::write(&donor_path, other)?;
        Ok(Scene { victim, donor, donor_path, copy, dma, other })
    }

    pub(super) fn fallocate(&self, flags: FallocateFlags, bytes: usize) -> io::Result<()> {
        Ok(fallocate(&self.victim.file, flags, 0, bytes as u64)?)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // With the scratch directory, at the latest.
        let _ = fs::remove_file(&self.donor_path);
        let _ = fs::remove_file(&self.copy);
    }
}

/// What one try showed.
struct Try {
    /// Pages that are not as promised: on disk, or of the copy.
    tally: Tally,
    /// Lost pages that a read through the cache still has, until they are evicted.
    cached: u64,
    waited: bool,
}

/// Tries them all.
pub(super) fn run(
    place: &Place,
    directory: &Path,
    source: Result<&Source, &NoSource>,
    tries: u32,
    stop: &Stop,
    tell: &mut dyn FnMut(Event),
) -> Result<(), ProbeError> {
    for hazard in &HAZARDS {
        tell(Event::Trying { what: hazard.what.to_owned() });
        let row = match source {
            Ok(source) => hazard.row(place, directory, source, tries, stop),
            Err(why) => hazard.named(Verdict::not_applicable(why.to_string())),
        };
        tell(Event::Row(row));
        stop.check()?;
    }
    Ok(())
}

impl Hazard {
    fn named(&self, verdict: Verdict) -> Row {
        Row::new(Group::Held, self.id, self.what, verdict)
    }

    fn row(&self, place: &Place, directory: &Path, source: &Source, tries: u32, stop: &Stop) -> Row {
        let (mut seen, mut tried, mut cached, mut waited) = (0, 0, 0, false);
        let mut tally = Tally::default();
        for number in 0..tries {
            if stop.is_told() {
                break;
            }
            match self.attempt(directory, source, number) {
                // What waits for the DMA comes after it: the file is as the operation left it, and nothing is lost.
                Ok(one) if one.waited => {
                    tried += 1;
                    waited = true;
                }
                Ok(one) => {
                    tried += 1;
                    seen += u64::from(one.tally.wrong() > 0);
                    cached += one.cached;
                    tally.add(&one.tally);
                }
                Err(error) => return self.named(error.verdict(place)),
            }
        }
        let mut note = if seen > 0 { tally.to_string() } else { String::new() };
        if cached > 0 {
            note += "; the cache still has them";
        }
        if waited {
            note += if note.is_empty() { "it waits for the DMA" } else { "; it waits for the DMA" };
        }
        self.named(Verdict::counted(seen, tried, "tries")).with(note)
    }

    fn attempt(&self, directory: &Path, source: &Source, number: u32) -> Result<Try, FlightError> {
        let scene = Scene::set(directory, number).map_err(FlightError::Operation)?;
        let mut before = Vec::new();
        let landed = flight::during(source, &scene.victim.mapping, scene.dma, || {
            (self.operation)(&scene)?;
            if self.promise == Promise::CopyStays {
                before = disk::contents(&scene.copy, PAGES)?;
            }
            Ok(())
        })?;
        let (in_cache, on_disk) = scene.victim.landed(scene.dma).map_err(FlightError::Operation)?;
        let (tally, cached) = match self.promise {
            Promise::Kept => (on_disk, on_disk.wrong().saturating_sub(in_cache.wrong())),
            Promise::CopyStays => {
                let after = disk::contents(&scene.copy, PAGES).map_err(FlightError::Operation)?;
                let mut tally = Tally::default();
                for (after, before) in after.into_iter().zip(before) {
                    tally.count(after, before);
                }
                (tally, 0)
            }
        };
        Ok(Try { tally, cached, waited: landed.waited })
    }
}

impl FlightError {
    pub(super) fn verdict(&self, place: &Place) -> Verdict {
        match self {
            FlightError::Operation(error) => refused(error, place),
            _ => Verdict::CouldNot { why: self.to_string() },
        }
    }
}

/// An operation that the filesystem does not have is no failure of the probe.
pub(super) fn refused(error: &io::Error, place: &Place) -> Verdict {
    match Errno::from_io_error(error) {
        Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL | Errno::XDEV) => {
            Verdict::not_applicable(format!("{} does not do that ({})", place.filesystem, name(error)))
        }
        _ => Verdict::CouldNot { why: error.to_string() },
    }
}

/// `EOPNOTSUPP`, for people who know it by that name; else what the system says.
pub(super) fn name(error: &io::Error) -> String {
    let known = [
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::NOTTY, "ENOTTY"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::INVAL, "EINVAL"),
        (Errno::XDEV, "EXDEV"),
        (Errno::FAULT, "EFAULT"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::PERM, "EPERM"),
        (Errno::ACCESS, "EACCES"),
    ];
    let number = Errno::from_io_error(error);
    let found = known.iter().find(|(known, _)| Some(*known) == number);
    found.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
}
