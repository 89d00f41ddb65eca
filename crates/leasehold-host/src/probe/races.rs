//! The same against a real device, where only chance decides what meets what: O_DIRECT reads from one file into the
//! mapping of another, again and again, while that one is written back and cloned.
//!
//! That nothing is seen proves nothing; it is a number of tries.

use super::ProbeError;
use super::disk::{self, Tally};
use super::hazards;
use super::mapping::Mapping;
use super::pattern::{self, Content, Mark, PAGE_BYTES};
use super::place::Place;
use super::report::{Event, Group, Row, Verdict};
use super::stop::Stop;
use rustix::fs::{Advice, OFlags, fadvise, ioctl_ficlone};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One DMA.
const CHUNK_PAGES: usize = 16;
const CHUNK_BYTES: usize = CHUNK_PAGES * PAGE_BYTES;
/// Of the file that is read, and of the one that is read into.
const CHUNKS: usize = 64;
const PAGES: usize = CHUNKS * CHUNK_PAGES;
const BYTES: usize = CHUNKS * CHUNK_BYTES;
/// Threads that do DMA, each into chunks of its own.
const DEVICES: usize = 2;
/// How long the pages are stirred before they are looked at.
const ROUND: Duration = Duration::from_millis(300);
/// Who wrote the file that is read.
const SOURCE: Mark = Mark(1);
/// How many clones are kept until the round ends.
const CLONES_MAX: usize = 24;

/// Races for about as long as is said, all in all.
pub(super) fn run(
    place: &Place,
    directory: &Path,
    time: Duration,
    stop: &Stop,
    tell: &mut dyn FnMut(Event),
) -> Result<(), ProbeError> {
    let track = match Track::lay(place, directory) {
        Ok(track) => track,
        Err(verdict) => {
            for (id, what) in [FLUSH, CHECKSUMS, CHANGES, SCRIBBLE] {
                tell(Event::Row(Row::new(Group::Races, id, what, verdict.clone())));
            }
            return Ok(());
        }
    };
    tell(Event::Trying { what: FLUSH.1.to_owned() });
    tell(Event::Row(track.flush(time / 3, stop)));
    stop.check()?;
    tell(Event::Trying { what: CHECKSUMS.1.to_owned() });
    for row in track.clones(time / 3 * 2, stop) {
        tell(Event::Row(row));
    }
    stop.check()?;
    tell(Event::Trying { what: SCRIBBLE.1.to_owned() });
    tell(Event::Row(track.scribble(time / 6, stop)));
    stop.check()
}

type Name = (&'static str, &'static str);
const FLUSH: Name = ("race-flush", "writeback: DMA is lost");
const CHECKSUMS: Name = ("race-checksums", "reflink: its checksums break");
const CHANGES: Name = ("race-clone", "reflink: the copy changes");
const SCRIBBLE: Name = ("write-from-changing", "direct write: bad checksums");

/// The file that is read, and where everything else goes.
struct Track<'p> {
    place: &'p Place,
    directory: PathBuf,
    source: File,
}

/// A file that is read into, mapped, with those who do.
struct Stirred {
    path: PathBuf,
    file: File,
    mapping: Mapping,
    /// What the last DMA into each chunk put there.
    expected: Mutex<Vec<Option<u32>>>,
    /// Reads that the kernel refused.
    failed: Mutex<Option<io::Error>>,
    flights: AtomicU64,
    over: AtomicBool,
}

/// Whether there is anything that the file could be written back to.
pub(super) fn needs_device(place: &Place) -> Result<(), Verdict> {
    let why = || format!("{} has no device below it", place.filesystem);
    if place.has_device() { Ok(()) } else { Err(Verdict::not_applicable(why())) }
}

impl<'p> Track<'p> {
    fn lay(place: &'p Place, directory: &Path) -> Result<Track<'p>, Verdict> {
        needs_device(place)?;
        let path = directory.join("source");
        let make = || {
            File::create(&path)?.write_all(&pattern::bytes(SOURCE, 0, PAGES))?;
            let direct = OFlags::DIRECT.bits().cast_signed();
            let file = OpenOptions::new().read(true).custom_flags(direct).open(&path)?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
            Ok(file)
        };
        let source = make().map_err(|error| hazards::refused(&error, place))?;
        Ok(Track { place, directory: directory.to_owned(), source })
    }

    fn row(&self, (id, what): Name, verdict: Verdict) -> Row {
        Row::new(Group::Races, id, what, verdict)
    }

    fn failed(&self, name: Name, error: io::Error) -> Row {
        self.row(name, hazards::refused(&error, self.place))
    }

    /// DMA against msync, sync_file_range and fdatasync.
    fn flush(&self, time: Duration, stop: &Stop) -> Row {
        let end = Instant::now() + time;
        let (mut tally, mut flights) = (Tally::default(), 0);
        while Instant::now() < end && !stop.is_told() {
            let round = Stirred::make(&self.directory).and_then(|stirred| {
                let until = (Instant::now() + ROUND).min(end);
                stirred.stir(&self.source, || {
                    sleep_until(until);
                    Ok(())
                })?;
                tally.add(&stirred.settle()?);
                flights += stirred.flights.load(Ordering::Relaxed);
                Ok(())
            });
            if let Err(error) = round {
                return self.failed(FLUSH, error);
            }
        }
        let note = match tally.wrong() {
            0 => format!("{flights} DMAs of {CHUNK_PAGES} pages"),
            _ => format!("{flights} DMAs; {tally}"),
        };
        self.row(FLUSH, Verdict::counted(tally.wrong(), tally.all(), "pages")).with(note)
    }

    /// DMA against FICLONE. Each clone is read right away, and again when the DMA has ended.
    fn clones(&self, time: Duration, stop: &Stop) -> [Row; 2] {
        let end = Instant::now() + time;
        let (mut clones, mut broken, mut pages_broken, mut changed, mut pages_changed) = (0, 0, 0, 0, 0);
        while Instant::now() < end && !stop.is_told() {
            let round = Stirred::make(&self.directory).and_then(|stirred| {
                let mut taken: Vec<(PathBuf, Vec<Content>)> = Vec::new();
                stirred.stir(&self.source, || {
                    while taken.len() < CLONES_MAX && Instant::now() < end && !stop.is_told() {
                        let path = self.directory.join(format!("clone-{}", taken.len()));
                        ioctl_ficlone(File::create(&path)?, &stirred.file)?;
                        let contents = disk::contents(&path, PAGES)?;
                        taken.push((path, contents));
                    }
                    Ok(())
                })?;
                stirred.file.sync_all()?;
                for (path, before) in taken {
                    let after = disk::contents(&path, PAGES)?;
                    let unreadable = after.iter().filter(|page| **page == Content::Unreadable).count();
                    let differ = before.iter().zip(&after).filter(|(before, after)| before != after).count();
                    clones += 1;
                    broken += u64::from(unreadable > 0);
                    pages_broken += unreadable;
                    changed += u64::from(differ > 0);
                    pages_changed += differ;
                    fs::remove_file(path)?;
                }
                Ok(())
            });
            if let Err(error) = round {
                let row = self.failed(CHECKSUMS, error);
                let other = Row { id: CHANGES.0.to_owned(), what: CHANGES.1.to_owned(), ..row.clone() };
                return [row, other];
            }
        }
        let checksums = if self.place.has_checksums() {
            Verdict::counted(broken, clones, "clones")
        } else {
            self.without_checksums()
        };
        let note = |pages: usize, what: &str| {
            if pages > 0 { format!("{pages} pages {what}") } else { String::new() }
        };
        [
            self.row(CHECKSUMS, checksums).with(note(pages_broken, "unreadable (EIO)")),
            self.row(CHANGES, Verdict::counted(changed, clones, "clones"))
                .with(note(pages_changed, "changed")),
        ]
    }

    /// O_DIRECT writes of memory that somebody changes meanwhile: what a fixed buffer with a careless owner is.
    fn scribble(&self, time: Duration, stop: &Stop) -> Row {
        if !self.place.has_checksums() {
            return self.row(SCRIBBLE, self.without_checksums());
        }
        let over = AtomicBool::new(false);
        let attempt = || {
            let path = self.directory.join("scribbled");
            File::create(&path)?;
            let file = disk::open_direct(&path)?;
            let memory = Mapping::anonymous(BYTES)?;
            let (mut pages, mut broken) = (0, 0);
            let end = Instant::now() + time;
            thread::scope(|scope| {
                scope.spawn(|| {
                    for word in 1.. {
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        memory.scribble(word);
                    }
                });
                let _over = Over(&over);
                while Instant::now() < end && !stop.is_told() {
                    for at in (0..BYTES).step_by(CHUNK_BYTES) {
                        memory.write_to(at, CHUNK_BYTES, &file, at as u64)?;
                    }
                    file.sync_all()?;
                    fadvise(&file, 0, None, Advice::DontNeed)?;
                    let contents = disk::contents(&path, PAGES)?;
                    pages += contents.len() as u64;
                    broken += contents.iter().filter(|page| **page == Content::Unreadable).count() as u64;
                }
                io::Result::Ok(Verdict::counted(broken, pages, "pages"))
            })
        };
        match attempt() {
            Ok(verdict) => self.row(SCRIBBLE, verdict),
            Err(error) => self.failed(SCRIBBLE, error),
        }
    }

    fn without_checksums(&self) -> Verdict {
        Verdict::not_applicable(format!("{} has no checksums of data", self.place.filesystem))
    }
}

/// The end of what others do, also if we leave early.
struct Over<'f>(&'f AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The time of a round is what is tried, not a wait for something.
fn sleep_until(end: Instant) {
    thread::sleep(end.saturating_duration_since(Instant::now()));
}

impl Stirred {
    fn make(directory: &Path) -> io::Result<Stirred> {
        let path = directory.join("stirred");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.write_all(&vec![0; BYTES])?;
        file.sync_all()?;
        let mapping = Mapping::shared(&file, BYTES)?;
        Ok(Stirred {
            path,
            file,
            mapping,
            expected: Mutex::new(vec![None; CHUNKS]),
            failed: Mutex::new(None),
            flights: AtomicU64::new(0),
            over: AtomicBool::new(false),
        })
    }

    /// Does DMA into all of it, and writes it back, while something else is done.
    fn stir(&self, source: &File, meanwhile: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let done = thread::scope(|scope| {
            for device in 0..DEVICES {
                scope.spawn(move || self.fly(source, device));
            }
            scope.spawn(|| self.write_back());
            let _over = Over(&self.over);
            meanwhile()
        });
        match self.failed.lock().expect("nobody panics with it").take() {
            Some(error) => Err(error),
            None => done,
        }
    }

    /// One device: DMA into the chunks of its own, in no order.
    fn fly(&self, source: &File, device: usize) {
        let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ device as u64);
        while !self.over.load(Ordering::Relaxed) {
            let chunk = random.below(CHUNKS / DEVICES) * DEVICES + device;
            let from = random.below(CHUNKS);
            match self.mapping.fill(chunk * CHUNK_BYTES, CHUNK_BYTES, source, (from * CHUNK_BYTES) as u64) {
                Ok(CHUNK_BYTES) => self.expect(chunk, Some(from as u32)),
                Ok(_) => self.expect(chunk, None),
                Err(error) => {
                    *self.failed.lock().expect("nobody panics with it") = Some(error);
                    return;
                }
            }
            self.flights.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn expect(&self, chunk: usize, from: Option<u32>) {
        self.expected.lock().expect("nobody panics with it")[chunk] = from;
    }

    /// All the ways to write back, in turn.
    fn write_back(&self) {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        for number in 0_u32.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let done = match number % 3 {
                0 => self.mapping.sync(),
                1 => self.file.sync_data(),
                // SAFETY: an open file and numbers.
                _ => match unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, BYTES as i64, flags) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            };
            if let Err(error) = done {
                *self.failed.lock().expect("nobody panics with it") = Some(error);
                return;
            }
        }
    }

    /// Writes back for the last time, and compares what is on disk with the last DMA into each chunk.
    fn settle(&self) -> io::Result<Tally> {
        self.file.sync_all()?;
        fadvise(&self.file, 0, None, Advice::DontNeed)?;
        let contents = disk::contents(&self.path, PAGES)?;
        let expected = self.expected.lock().expect("nobody panics with it");
        let mut tally = Tally::default();
        for (found, from) in contents.chunks(CHUNK_PAGES).zip(expected.iter()) {
            let Some(from) = from else { continue };
            for (found, number) in found.iter().zip(from * CHUNK_PAGES as u32..) {
                tally.count(*found, Content::Marked(SOURCE, number));
            }
        }
        Ok(tally)
    }
}

impl Drop for Stirred {
    fn drop(&mut self) {
        // With the scratch directory, at the latest.
        let _ = fs::remove_file(&self.path);
    }
}

/// A xorshift sequence: where DMA goes need not be hard to guess.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
