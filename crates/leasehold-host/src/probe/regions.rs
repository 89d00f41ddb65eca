//! What becomes of a file while a mapping of it is memory of an RDMA device.
//!
//! Registering pins the pages for as long as the region lives: for hours, not for the time of one read. The device writes
//! to them without a word to the filesystem, and says that the bytes are there. The rows with the ids of those of
//! [`super::hazards`] do the same operations; here the bytes land after them, by a write of the device.

use super::disk::{self, Tally};
use super::hazards::{self, HAZARDS, Hazard, Promise, Scene};
use super::mapping::Mapping;
use super::pattern::{self, Content, Mark, PAGE_BYTES, Page};
use super::place::Place;
use super::races;
use super::report::{Event, Group, Row, Verdict};
use super::stop::Stop;
use super::verbs::{Access, Device, Loopback, Region};
use super::victim::{self, BYTES, PAGES, Victim};
use super::{Options, ProbeError};
use rustix::fs::{FallocateFlags, fsync, ftruncate, ioctl_ficlone};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

/// Tries all that there is a device for.
pub(super) fn run(
    place: &Place,
    directory: &Path,
    options: &Options,
    stop: &Stop,
    tell: &mut dyn FnMut(Event),
) -> Result<(), ProbeError> {
    let device = match Device::open() {
        Ok(device) => device,
        Err(verdict) => {
            let Kind { id, what, .. } = KINDS[0];
            tell(Event::Row(Row::new(Group::Pins, id, what, verdict)));
            return Ok(());
        }
    };
    tell(Event::Trying { what: "memory regions".to_owned() });
    for row in registrations(&device, directory) {
        tell(Event::Row(row));
    }
    let bench = Bench { place, directory, device: &device, options, stop };
    for hazard in &HAZARDS {
        bench.row(hazard.id, hazard.what, tell, |link, number| bench.change(link, hazard, number))?;
    }
    for mend in &MENDS {
        bench.row(mend.id, mend.what, tell, |link, number| bench.mend(link, mend, number))?;
    }
    for reading in &READINGS {
        bench.row(reading.id, reading.what, tell, |link, number| bench.read(link, reading, number))?;
    }
    tell(Event::Trying { what: TORN.1.to_owned() });
    tell(Event::Row(bench.torn()));
    stop.check()
}

/// A kind of memory that a device may be given.
struct Kind {
    id: &'static str,
    what: &'static str,
    map: fn(&File) -> io::Result<Mapping>,
    access: Access,
}

/// The first is the hazard. The others say what else the kernel takes.
const KINDS: [Kind; 6] = [
    Kind {
        id: "pin-rdma",
        what: "the same, as RDMA memory",
        map: |file| Mapping::shared(file, BYTES),
        access: Access::Write,
    },
    Kind {
        id: "rdma-read",
        what: "the same, for RDMA reads only",
        map: |file| Mapping::shared(file, BYTES),
        access: Access::Read,
    },
    Kind {
        id: "rdma-read-only",
        what: "read-only mapping, RDMA reads",
        map: |file| Mapping::read_only(file, BYTES),
        access: Access::Read,
    },
    Kind {
        id: "rdma-private",
        what: "private mapping, as RDMA memory",
        map: |file| Mapping::private(file, BYTES),
        access: Access::Write,
    },
    Kind {
        id: "rdma-memfd",
        what: "memfd (tmpfs), as RDMA memory",
        map: |_| Mapping::memfd(BYTES),
        access: Access::Write,
    },
    Kind {
        id: "rdma-anonymous",
        what: "anonymous, as RDMA memory",
        map: |_| Mapping::anonymous(BYTES),
        access: Access::Write,
    },
];

/// What the kernel lets be registered.
fn registrations(device: &Device, directory: &Path) -> Vec<Row> {
    let path = directory.join("region");
    let file = victim::write(&path, Mark(1));
    let row = |kind: &Kind| {
        let named = |verdict| Row::new(Group::Pins, kind.id, kind.what, verdict);
        let mapped = match &file {
            Ok(file) => (kind.map)(file),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        let mapping = match mapped {
            Ok(mapping) => mapping,
            Err(error) => return named(Verdict::CouldNot { why: format!("cannot map a file: {error}") }),
        };
        let taken = device.register(&mapping, kind.access).map(drop);
        let note = match &taken {
            Ok(()) => format!("{} accepts it", device.name),
            Err(error) => format!("refused: {}", hazards::name(error)),
        };
        if kind.id == KINDS[0].id {
            return named(Verdict::counted(u64::from(taken.is_ok()), 1, "tries")).with(note);
        }
        named(Verdict::Control { accepted: taken.is_ok() }).with(note)
    };
    let rows = KINDS.iter().map(row).collect();
    // With the scratch directory, at the latest.
    let _ = fs::remove_file(&path);
    rows
}

/// What is done after the device has written to clean pages, and before an fsync.
struct Mend {
    id: &'static str,
    what: &'static str,
    act: fn(&Victim) -> io::Result<()>,
    /// The region is registered anew, too.
    again: bool,
}

const MENDS: [Mend; 6] = [
    Mend {
        id: "then-msync",
        what: "clean, DMA, msync: lost",
        act: |victim| victim.mapping.sync(),
        again: false,
    },
    Mend {
        id: "then-sync-range",
        what: "clean, DMA, sync_file_range: lost",
        act: |victim| {
            // All of the file: wait, write, wait.
            // SAFETY: an open file.
            let failed = unsafe { libc::sync_file_range(victim.file.as_raw_fd(), 0, 0, 7) } != 0;
            if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
        },
        again: false,
    },
    Mend {
        id: "then-populate",
        what: "clean, DMA, MADV_POPULATE_WRITE",
        act: |victim| victim.mapping.populate(),
        again: false,
    },
    Mend {
        id: "then-touch",
        what: "clean, DMA, a store of what is there",
        act: |victim| {
            victim.mapping.touch();
            Ok(())
        },
        again: false,
    },
    Mend {
        id: "then-write",
        what: "clean, DMA, pwrite onto itself",
        act: |victim| match victim.mapping.write_to(0, BYTES, &victim.file, 0)? {
            BYTES => Ok(()),
            _ => Err(io::Error::other("a short write")),
        },
        again: false,
    },
    Mend { id: "then-register", what: "clean, DMA, registered anew", act: |_| Ok(()), again: true },
];

/// What somebody does to a file while a device may read it: afterwards, it has the bytes of [`Scene::other`].
struct Reading {
    id: &'static str,
    what: &'static str,
    act: fn(&Scene) -> io::Result<()>,
}

const READINGS: [Reading; 7] = [
    Reading {
        id: "read-store",
        what: "stored: RDMA reads old bytes",
        act: |scene| {
            scene.victim.mapping.store(0, &pattern::bytes(scene.other, 0, PAGES));
            Ok(())
        },
    },
    Reading { id: "read-write", what: "written: RDMA reads old bytes", act: Scene::write },
    Reading {
        id: "read-direct-write",
        what: "O_DIRECT write: reads old bytes",
        act: |scene| {
            let pages: Vec<Page> = (0..PAGES as u32).map(|number| Page::of(scene.other, number)).collect();
            disk::write_direct(&scene.victim.path, &pages)
        },
    },
    Reading {
        id: "read-punch",
        what: "punched, written: old bytes",
        act: |scene| {
            scene.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, BYTES)?;
            scene.write()
        },
    },
    Reading {
        id: "read-truncate",
        what: "truncated, written: old bytes",
        act: |scene| {
            ftruncate(&scene.victim.file, 0)?;
            scene.write()
        },
    },
    Reading {
        id: "read-clone-onto",
        what: "reflink onto: RDMA reads old bytes",
        act: |scene| Ok(ioctl_ficlone(&scene.victim.file, &scene.donor)?),
    },
    Reading {
        id: "read-unlink",
        what: "replaced by name: old bytes",
        act: |scene| {
            fs::remove_file(&scene.victim.path)?;
            victim::write(&scene.victim.path, scene.other).map(drop)
        },
    },
];

impl Scene {
    fn write(&self) -> io::Result<()> {
        self.victim.file.write_all_at(&pattern::bytes(self.other, 0, PAGES), 0)
    }
}

/// Why a try came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The kernel, or the device, does not take the mapping.
    #[error("the mapping is refused as RDMA memory ({})", hazards::name(.0))]
    Region(io::Error),
    #[error("{0}")]
    Operation(#[from] io::Error),
    #[error("the device failed: {0}")]
    Link(io::Error),
}

/// What one try showed.
struct Try {
    tally: Tally,
    /// What was lost while the region lived is there once it is deregistered.
    mended: bool,
}

const TORN: (&str, &str) = ("torn", "writeback: torn pages on disk");

/// Where all of it is tried.
struct Bench<'a> {
    place: &'a Place,
    directory: &'a Path,
    device: &'a Device,
    options: &'a Options,
    stop: &'a Stop,
}

impl Bench<'_> {
    fn region<'r>(&'r self, mapping: &'r Mapping, access: Access) -> Result<Region<'r>, Failure> {
        self.device.register(mapping, access).map_err(Failure::Region)
    }

    /// Tries one of them as often as was asked for.
    fn row(
        &self,
        id: &str,
        what: &str,
        tell: &mut dyn FnMut(Event),
        attempt: impl Fn(&mut Loopback<'_>, u32) -> Result<Try, Failure>,
    ) -> Result<(), ProbeError> {
        tell(Event::Trying { what: format!("{what} (RDMA)") });
        let named = |verdict| Row::new(Group::Regions, id, what, verdict);
        let row = self.linked(|link| {
            let (mut tally, mut seen, mut tried, mut mended) = (Tally::default(), 0, 0, true);
            while tried < self.options.tries && !self.stop.is_told() {
                let one = attempt(link, tried)?;
                tried += 1;
                let lost = one.tally.wrong() > 0;
                seen += u64::from(lost);
                mended &= one.mended || !lost;
                tally.add(&one.tally);
            }
            let note = match seen {
                0 => String::new(),
                _ if mended => format!("{tally}, until deregistered"),
                _ => tally.to_string(),
            };
            Ok(named(Verdict::counted(seen, u64::from(tried), "tries")).with(note))
        });
        tell(Event::Row(row.unwrap_or_else(named)));
        self.stop.check()
    }

    /// Does something with the device connected to itself: anew each time, since a failure ends a connection. One failure of
    /// the device is forgiven: soft-RoCE stalls now and then, and that says nothing about the file.
    fn linked<T>(&self, act: impl Fn(&mut Loopback<'_>) -> Result<T, Failure>) -> Result<T, Verdict> {
        let staging =
            Mapping::anonymous(BYTES).map_err(|error| Verdict::CouldNot { why: error.to_string() })?;
        let attempt = || Ok(act(&mut self.device.connect(&staging)?));
        let mut result = attempt()?;
        if let Err(Failure::Link(_)) = result {
            result = attempt()?;
        }
        result.map_err(|failure| match failure {
            Failure::Region(_) => Verdict::not_applicable(failure.to_string()),
            Failure::Operation(error) => hazards::refused(&error, self.place),
            Failure::Link(_) => Verdict::CouldNot { why: failure.to_string() },
        })
    }

    /// The operation, then a write of the device to all of the file.
    fn change(&self, link: &mut Loopback<'_>, hazard: &Hazard, number: u32) -> Result<Try, Failure> {
        let scene = Scene::set(self.directory, number)?;
        let region = self.region(&scene.victim.mapping, Access::Write)?;
        (hazard.operation)(&scene)?;
        let copied = hazard.promise == Promise::CopyStays;
        let before = if copied { disk::contents(&scene.copy, PAGES)? } else { Vec::new() };
        let bytes = pattern::bytes(scene.dma, 0, PAGES);
        link.write(&region, 0, &bytes).map_err(Failure::Link)?;
        let (_, live) = scene.victim.landed(scene.dma)?;
        // Now the kernel says itself that the pages are dirty.
        drop(region);
        let (_, after) = scene.victim.landed(scene.dma)?;
        if !copied {
            return Ok(Try { tally: live, mended: after.wrong() == 0 });
        }
        let mut tally = Tally::default();
        for (after, before) in disk::contents(&scene.copy, PAGES)?.into_iter().zip(before) {
            tally.count(after, before);
        }
        Ok(Try { tally, mended: false })
    }

    /// A write of the device to pages that are clean, and what may make them dirty again.
    fn mend(&self, link: &mut Loopback<'_>, mend: &Mend, number: u32) -> Result<Try, Failure> {
        let scene = Scene::set(self.directory, number)?;
        let mut region = self.region(&scene.victim.mapping, Access::Write)?;
        scene.victim.file.sync_all()?;
        let bytes = pattern::bytes(scene.dma, 0, PAGES);
        link.write(&region, 0, &bytes).map_err(Failure::Link)?;
        (mend.act)(&scene.victim)?;
        if mend.again {
            drop(region);
            region = self.region(&scene.victim.mapping, Access::Write)?;
        }
        let (_, on_disk) = scene.victim.landed(scene.dma)?;
        drop(region);
        Ok(Try { tally: on_disk, mended: false })
    }

    /// A change of the file, then a read of the device.
    fn read(&self, link: &mut Loopback<'_>, reading: &Reading, number: u32) -> Result<Try, Failure> {
        let scene = Scene::set(self.directory, number)?;
        let region = self.region(&scene.victim.mapping, Access::Read)?;
        (reading.act)(&scene)?;
        let bytes = link.read(&region, 0, BYTES).map_err(Failure::Link)?;
        let mut tally = Tally::default();
        for (found, number) in pattern::contents(&bytes).into_iter().zip(0..) {
            tally.count(found, Content::Marked(scene.other, number));
        }
        Ok(Try { tally, mended: false })
    }

    /// Writes of the device while the file is written back, over and over: what do the disk's pages look like?
    fn torn(&self) -> Row {
        let named = |verdict| Row::new(Group::Regions, TORN.0, TORN.1, verdict);
        if let Err(verdict) = races::needs_device(self.place) {
            return named(verdict);
        }
        let tried = self.linked(|link| {
            let over = AtomicBool::new(false);
            let victim = Victim::make(self.directory, Mark(1))?;
            let region = self.region(&victim.mapping, Access::Write)?;
            thread::scope(|scope| {
                let writer = scope.spawn(|| write_until(&over, link, &region));
                let tally = self.write_back(&victim, || writer.is_finished());
                over.store(true, Ordering::Relaxed);
                let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
                let written = written.map_err(Failure::Link)?;
                Ok((tally?, written))
            })
        });
        match tried {
            Ok((tally, written)) => {
                let note = if tally.wrong() > 0 { format!("{tally}; ") } else { String::new() };
                named(Verdict::counted(tally.wrong(), tally.all(), "pages"))
                    .with(format!("{note}{written} RDMA writes"))
            }
            Err(verdict) => named(verdict),
        }
    }

    /// Writes the file back and looks at the disk, for as long as a race lasts; counts pages of no one writer.
    fn write_back(&self, victim: &Victim, failed: impl Fn() -> bool) -> io::Result<Tally> {
        let deadline = Instant::now() + self.options.race;
        let mut tally = Tally::default();
        while Instant::now() < deadline && !self.stop.is_told() && !failed() {
            victim.mapping.populate()?;
            fsync(&victim.file)?;
            for found in disk::contents(&victim.path, PAGES)? {
                let whole = matches!(found, Content::Marked(..));
                tally.count(found, if whole { found } else { Content::Absent });
            }
        }
        Ok(tally)
    }
}

/// Page after page, each time by another mark; how many.
fn write_until(over: &AtomicBool, link: &mut Loopback<'_>, region: &Region<'_>) -> io::Result<u32> {
    let mut written = 0;
    while !over.load(Ordering::Relaxed) {
        let page = written % PAGES as u32;
        link.write(region, page as usize * PAGE_BYTES, &Page::of(Mark(written + 2), page).0)?;
        written += 1;
    }
    Ok(written)
}
