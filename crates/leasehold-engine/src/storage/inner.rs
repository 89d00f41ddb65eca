//! What the parts of the storage share, and how it begins and ends.

use crate::arena::Arena;
use crate::buffer::Buffer;
use crate::disk::{self, Disk};
use crate::file::StoreFile;
use crate::identity::Identity;
use crate::log::{Log, LogStart, Scan, SegmentHead, new_epoch, scan};
use crate::names::Names;
use crate::namespace::Files;
use crate::record::BATCH_ALIGNMENT;
use crate::recovery::Damage;
use crate::ring::{Ring, View};
use crate::storage::{Answers, Backend, OpenError, Opened, StorageConfig};
use crate::store::{BTRFS, FORMAT, Store, at};
use crate::sync::{self, Condvar, Mutex, MutexGuard};
use crate::threads::Threads;
use crate::workers::Workers;
use crate::writes::Writes;
use leasehold_core::ids::FileId;
use leasehold_core::input::Input;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

const DISK_THREADS: usize = 8;
const CLONERS: usize = 2;
/// How many threads that help may be at the disk at a time.
const PLACES_HERE: usize = 2;

/// Locks are taken in this order: names, admitting, files, a file's sums, writes, one write's progress, the log; `dirty`
/// last. The core's thread takes `files`: nobody waits for the disk, or for a file's sums, while holding it.
pub(crate) struct Inner {
    pub(crate) config: StorageConfig,
    pub(crate) arena: Arc<Arena>,
    answers: Answers,
    /// Outputs that are not answered yet.
    outstanding: Mutex<usize>,
    answered: Condvar,
    pub(crate) store: Store,
    pub(crate) names: Names,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) log: Arc<Log>,
    workers: Workers,
    /// For clones, which may copy a whole file: nobody else's work waits behind them.
    cloners: Workers,
    files: Mutex<Files>,
    /// A file is being admitted.
    pub(crate) admitting: Mutex<()>,
    writes: Mutex<Writes>,
    /// Files with something to write back at the next checkpoint.
    dirty: Mutex<BTreeMap<Identity, Arc<StoreFile>>>,
    /// Files whose last name is gone, which is not durable yet.
    removals: Mutex<Vec<Arc<StoreFile>>>,
    pub(crate) checkpointing: Mutex<()>,
    /// A checkpoint has been asked for and has not begun.
    checkpoint_due: AtomicBool,
    /// For checkpoints, and what else nobody waits for.
    checkpointer: Workers,
    /// The last number given to a staged file.
    pub(crate) staged: AtomicU64,
    /// See [`Inner::copies`].
    pub(crate) copies: Mutex<HashSet<crate::staging::Staged>>,
    /// See [`Inner::place_here`].
    places_here: AtomicUsize,
}

impl Inner {
    pub(crate) fn open(
        config: StorageConfig,
        arena: Arc<Arena>,
        answers: Answers,
    ) -> Result<(Arc<Inner>, Opened), OpenError> {
        let directory = config.directory.clone();
        let mut opened = Opened::default();
        opened.notes.extend(arena.notes().iter().cloned());
        let disk =
            start_disk(&config, &arena, &mut opened.notes).map_err(at("start threads for", &directory))?;
        let disk = match &config.wrap_disk {
            Some(wrap) => wrap(disk),
            None => disk,
        };
        let store = Store::open(Arc::clone(&disk), &directory)?;
        opened.zero_copy = store.direct;
        if !store.direct {
            opened.notes.push(format!(
                "the filesystem of {directory:?} has no O_DIRECT: data is copied through the page cache (copying, not zero copy); \
                 use ext4 or XFS"
            ));
        } else if store.kind == BTRFS {
            opened.zero_copy = false;
            opened.notes.push(format!(
                "{directory:?} is on btrfs, which may copy what is written with O_DIRECT to files with checksums (copying, not \
                 zero copy); use ext4, XFS, or chattr +C on an empty files/"
            ));
        }
        let segment = |number| store.segment(number, config.segment_bytes);
        let segments = [segment(0)?, segment(1)?];
        let scans = segments.iter().map(|segment| scan(&*disk, segment)).collect::<io::Result<Vec<_>>>();
        let scans: [Scan; 2] =
            scans.map_err(at("read the write-ahead record of", &directory))?.try_into().expect("two");
        for (number, scan) in scans.iter().enumerate() {
            if let Some(what) = &scan.damage {
                tracing::error!(segment = number, what, "the write-ahead record is damaged");
                let what = format!("write-ahead record, segment {number}: {what}");
                opened.damage.push(Damage { path: None, blocks: None, what });
            }
        }
        let (start, live) = log_start(scans).map_err(at("draw a random number for", &directory))?;
        opened.recovered = !live.is_empty() || !opened.damage.is_empty();
        if live.is_empty() {
            let head = SegmentHead { epoch: start.epoch, first_batch: start.next_batch, retired: false };
            disk::write(&*disk, &segments[start.active], 0, Buffer::of(&head.encode()))
                .map_err(at("write the write-ahead record of", &directory))?;
        }
        let log = Log::new(Arc::clone(&disk), segments, start);
        let inner = Arc::new(Inner {
            workers: Workers::start(config.workers, config.workers_for_a_file)
                .map_err(at("start threads for", &directory))?,
            cloners: Workers::start(CLONERS, CLONERS).map_err(at("start threads for", &directory))?,
            checkpointer: Workers::start(1, 1).map_err(at("start threads for", &directory))?,
            config,
            arena,
            answers,
            outstanding: Mutex::new(0),
            answered: Condvar::new(),
            store,
            names: Names::new(Arc::clone(&disk)),
            disk,
            log,
            files: Mutex::default(),
            admitting: Mutex::default(),
            writes: Mutex::default(),
            dirty: Mutex::default(),
            removals: Mutex::default(),
            checkpointing: Mutex::default(),
            checkpoint_due: AtomicBool::new(false),
            staged: AtomicU64::new(0),
            copies: Mutex::default(),
            places_here: AtomicUsize::new(0),
        });
        if !live.is_empty() {
            let recovered = inner.finish_recovery(start, live, &mut opened);
            recovered.inspect_err(|_| inner.abandon()).map_err(at("recover", &directory))?;
        }
        inner.upgrade(&mut opened).inspect_err(|_| inner.abandon())?;
        Ok((inner, opened))
    }

    /// What is left to do before anything of the newest format may be written. An older format's record has been recovered
    /// by now, and what that wrote is of the older format too; so a crash before the end leaves the older store, and a crash
    /// after it the newer one.
    fn upgrade(&self, opened: &mut Opened) -> Result<(), OpenError> {
        self.store.empty_staging().map_err(at("empty the staging directory of", &self.config.directory))?;
        if let Some(older) = self.store.older {
            self.store.write_format().map_err(at("write the format of", &self.config.directory))?;
            opened.notes.push(format!(
                "the store had format {older} and has format {FORMAT} now, which older versions of leasehold refuse to open"
            ));
        }
        Ok(())
    }

    fn finish_recovery(
        self: &Arc<Inner>,
        start: LogStart,
        live: Vec<Scan>,
        opened: &mut Opened,
    ) -> io::Result<()> {
        let files = live.iter().flat_map(|scan| &scan.records).map(|record| record.identity);
        let files = files.collect::<std::collections::BTreeSet<_>>().len();
        opened.damage.extend(self.recover(live)?);
        // The first time may only retire the older of two segments.
        self.checkpoint()?;
        if start.unretired {
            self.checkpoint()?;
        }
        self.log.decided();
        let ids: Vec<FileId> = self.files().by_id.keys().copied().collect();
        ids.into_iter().for_each(|id| self.forget(id));
        if files > 0 {
            let damaged = opened.damage.len();
            opened.notes.push(format!(
                "recovered {files} files from the write-ahead record; {damaged} found damaged"
            ));
        }
        Ok(())
    }

    /// One more output is owed an answer.
    pub(crate) fn asked(&self) {
        *self.outstanding.lock().expect("no panic while held") += 1;
    }

    pub(crate) fn answer(&self, input: Input) {
        (self.answers)(input);
        let mut outstanding = self.outstanding.lock().expect("no panic while held");
        *outstanding = outstanding.checked_sub(1).expect("each output is answered once");
        if *outstanding == 0 {
            self.answered.notify_all();
        }
    }

    /// A place for a job on this very thread, if it helps and not too many do so: a disk may take long all the same.
    pub(crate) fn place_here(self: &Arc<Inner>) -> Option<PlaceHere> {
        if !sync::is_helping() {
            return None;
        }
        let one_more = |places| (places < PLACES_HERE).then_some(places + 1);
        self.places_here.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(PlaceHere(Arc::clone(self)))
    }

    /// Does the short job on this thread if there is a place, else on a worker.
    pub(crate) fn work_here(self: &Arc<Inner>, file: FileId, job: impl FnOnce(&Arc<Inner>) + Send + 'static) {
        match self.place_here() {
            Some(place) => place.work(job),
            None => self.work_for(file, job),
        }
    }

    /// Does the job, which does not wait for the disk, on a worker.
    pub(crate) fn work(self: &Arc<Inner>, job: impl FnOnce(&Arc<Inner>) + Send + 'static) {
        let inner = Arc::clone(self);
        self.workers.run(None, move || job(&inner));
    }

    /// Does the job on a worker. It may wait for the disk, or for others who are at work for the file.
    pub(crate) fn work_for(self: &Arc<Inner>, file: FileId, job: impl FnOnce(&Arc<Inner>) + Send + 'static) {
        let inner = Arc::clone(self);
        self.workers.run(Some(file), move || job(&inner));
    }

    /// Does what nobody waits for, one after the other.
    pub(crate) fn work_beside(self: &Arc<Inner>, job: impl FnOnce(&Arc<Inner>) + Send + 'static) {
        let inner = Arc::clone(self);
        self.checkpointer.run(None, move || job(&inner));
    }

    /// Does the clone on a thread for such.
    pub(crate) fn work_on_clone(self: &Arc<Inner>, job: impl FnOnce(&Arc<Inner>) + Send + 'static) {
        let inner = Arc::clone(self);
        self.cloners.run(None, move || job(&inner));
    }

    pub(crate) fn removals(&self) -> MutexGuard<'_, Vec<Arc<StoreFile>>> {
        self.removals.lock().expect("no panic while held")
    }

    pub(crate) fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("no panic while held")
    }

    /// # Panics
    ///
    /// If the file is not open.
    pub(crate) fn file(&self, id: FileId) -> Arc<StoreFile> {
        let file = self.files().by_id.get(&id).cloned();
        file.unwrap_or_else(|| panic!("{id} is not open"))
    }

    pub(crate) fn writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock().expect("no panic while held")
    }

    pub(crate) fn dirty(&self) -> MutexGuard<'_, BTreeMap<Identity, Arc<StoreFile>>> {
        self.dirty.lock().expect("no panic while held")
    }

    pub(crate) fn mark_dirty(&self, file: &Arc<StoreFile>) {
        self.dirty().entry(file.identity).or_insert_with(|| Arc::clone(file));
    }

    pub(crate) fn unmark_dirty(&self, file: &StoreFile) {
        self.dirty().remove(&file.identity);
    }

    pub(crate) fn checkpoint_if_long(self: &Arc<Inner>) {
        if self.log.length() > self.config.checkpoint_bytes
            && !self.checkpoint_due.swap(true, Ordering::AcqRel)
        {
            self.work_beside(|inner| {
                inner.checkpoint_due.store(false, Ordering::Release);
                // Logged where it failed; the record grows until it works.
                let _ = inner.checkpoint();
            });
        }
    }

    pub(crate) fn stop(self: &Arc<Inner>) -> io::Result<()> {
        let outstanding = self.outstanding.lock().expect("no panic while held");
        drop(self.answered.wait_while(outstanding, |count| *count > 0).expect("no panic while held"));
        self.checkpointer.finish();
        self.names.sync()?;
        self.checkpoint()?;
        // Writes that failed and were not retried keep their records, for the next open.
        if self.dirty().is_empty() && self.writes().is_empty() {
            self.log.retire_all()?;
        }
        Ok(())
    }

    /// Ends all threads; what is under way on the disk is awaited, nothing more is begun.
    pub(crate) fn abandon(&self) {
        self.checkpointer.finish();
        self.workers.finish();
        self.disk.finish();
        // Now, so that nobody waits until all of a large file is copied: it cannot go on.
        self.cloners.finish();
    }
}

fn start_disk(config: &StorageConfig, arena: &Arena, notes: &mut Vec<String>) -> io::Result<Arc<dyn Disk>> {
    if config.backend == Backend::Auto {
        let (address, length) = arena.disk_view();
        match Ring::start(View(address, length), config.fates.clone()) {
            Ok((ring, note)) => {
                notes.extend(note);
                return Ok(Arc::new(ring));
            }
            Err(error) => notes.push(format!(
                "io_uring cannot be used ({error}): pread and pwrite on {DISK_THREADS} threads instead, which costs more CPU; \
                 see sysctl kernel.io_uring_disabled and the seccomp profile"
            )),
        }
    }
    Ok(Arc::new(Threads::start(DISK_THREADS, config.fates.clone())?))
}

/// Where the log goes on, and the segments that are to be replayed, oldest first.
fn log_start(scans: [Scan; 2]) -> io::Result<(LogStart, Vec<Scan>)> {
    let heads: Vec<SegmentHead> = scans.iter().filter_map(|scan| scan.head).collect();
    let epoch = heads.iter().map(|head| head.epoch).max().unwrap_or(0);
    let next_batch = scans.iter().map(|scan| scan.next_batch).max().unwrap_or(0).max(1);
    let next_sequence =
        1 + scans.iter().flat_map(|scan| &scan.records).map(|record| record.sequence).max().unwrap_or(0);
    let mut live: Vec<(usize, Scan)> = scans
        .into_iter()
        .enumerate()
        .filter(|(_, scan)| scan.head.is_some_and(|head| !head.retired))
        .collect();
    let durable_through = live.iter().map(|(_, scan)| scan.durable_through).max().unwrap_or(0);
    live.sort_by_key(|(_, scan)| scan.head.map(|head| head.epoch));
    let start = match live.last() {
        None => LogStart {
            active: 0,
            epoch: new_epoch(epoch)?,
            offset: BATCH_ALIGNMENT as u64,
            next_batch,
            next_sequence,
            unretired: false,
            undecided: None,
        },
        Some((active, scan)) => LogStart {
            active: *active,
            epoch,
            offset: scan.end,
            next_batch: scan.next_batch,
            next_sequence,
            unretired: live.len() == 2,
            undecided: Some(durable_through + 1),
        },
    };
    Ok((start, live.into_iter().map(|(_, scan)| scan).collect()))
}

/// See [`Inner::place_here`].
pub(crate) struct PlaceHere(Arc<Inner>);

impl PlaceHere {
    /// Does the job once this thread has left the core.
    pub(crate) fn work(self, job: impl FnOnce(&Arc<Inner>) + Send + 'static) {
        let done = sync::do_here(move || job(&self.0));
        assert!(done.is_ok(), "there are places on threads that help only");
    }
}

impl Drop for PlaceHere {
    fn drop(&mut self) {
        self.0.places_here.fetch_sub(1, Ordering::AcqRel);
    }
}
