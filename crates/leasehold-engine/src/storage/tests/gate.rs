//! Who waits for a slow disk, and who must not.

use super::*;
use crate::disk::{DiskFile, Done, Memory, Transfer, Verb};
use crate::sync::Condvar;
use crate::sync::mpsc::Sender;
use std::io;
use std::thread;

/// What is done to files whose names begin with `closed` waits until it opens.
struct Gate {
    disk: Arc<dyn Disk>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    closed: Option<(What, &'static str)>,
    held: Vec<(Transfer, Done)>,
    landed: Vec<(Done, io::Result<usize>, Memory)>,
    /// Told of each that is held.
    arrived: Option<Sender<()>>,
    opened: Arc<Condvar>,
    /// Files that were flushed.
    synced: Vec<String>,
    disk: Option<Arc<dyn Disk>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Read,
    Write,
    /// A write is on the disk, and nobody hears of it.
    Landed,
    Truncate,
}

impl State {
    /// Whether this is held.
    fn holds(&self, what: What, file: &DiskFile) -> bool {
        let holds = self.closed.is_some_and(|(closed, name)| closed == what && file.name.starts_with(name));
        if holds {
            // The test may have seen enough.
            let _ = self.arrived.as_ref().expect("set with `closed`").send(());
        }
        holds
    }
}

impl Disk for Gate {
    fn submit(&self, transfer: Transfer, done: Done) {
        let mut state = self.state.lock().unwrap();
        let what = if transfer.verb == Verb::Read { What::Read } else { What::Write };
        if state.holds(what, &transfer.file) {
            return state.held.push((transfer, done));
        }
        drop(state);
        let (state, file) = (Arc::clone(&self.state), Arc::clone(&transfer.file));
        let landed: Done = Box::new(move |result, memory| {
            let mut state = state.lock().unwrap();
            if what == What::Write && state.holds(What::Landed, &file) {
                return state.landed.push((done, result, memory));
            }
            drop(state);
            done(result, memory);
        });
        self.disk.submit(transfer, landed);
    }

    fn finish(&self) {
        self.disk.finish();
    }

    fn sync(&self, file: &DiskFile) -> io::Result<()> {
        self.state.lock().unwrap().synced.push(file.name.clone());
        self.disk.sync(file)
    }

    fn truncate(&self, file: &DiskFile, size: u64) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        if state.holds(What::Truncate, file) {
            let opened = Arc::clone(&state.opened);
            drop(opened.wait_while(state, |state| state.closed.is_some()).unwrap());
        } else {
            drop(state);
        }
        self.disk.truncate(file, size)
    }

    fn punch(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        self.disk.punch(file, offset, length)
    }
}

/// A store with a gate, and how to open it.
fn gated(directory: &Path, workers: usize) -> (Driver, Arc<Mutex<State>>, impl FnOnce()) {
    let state = Arc::<Mutex<State>>::default();
    let shared = Arc::clone(&state);
    let wrap: WrapDisk = Arc::new(move |disk| {
        shared.lock().unwrap().disk = Some(Arc::clone(&disk));
        Arc::new(Gate { disk, state: Arc::clone(&shared) })
    });
    let workers_for_a_file = workers;
    let config =
        StorageConfig { wrap_disk: Some(wrap), workers, workers_for_a_file, ..StorageConfig::new(directory) };
    let driver = Driver::open_with(config);
    let opens = Arc::clone(&state);
    let open = move || {
        let mut state = opens.lock().unwrap();
        state.closed = None;
        state.opened.notify_all();
        let (held, disk) = (std::mem::take(&mut state.held), state.disk.clone().expect("the store is open"));
        let landed = std::mem::take(&mut state.landed);
        drop(state);
        landed.into_iter().for_each(|(done, result, memory)| done(result, memory));
        held.into_iter().for_each(|(transfer, done)| disk.submit(transfer, done));
    };
    (driver, state, open)
}

fn close(state: &Mutex<State>, what: What, name: &'static str) -> Receiver<()> {
    let (arrived, arrives) = channel();
    let mut state = state.lock().unwrap();
    (state.closed, state.arrived) = (Some((what, name)), Some(arrived));
    arrives
}

/// What the core's thread asks; `None` if it has to wait.
fn path_soon<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    driver: &'scope Driver,
    file: FileId,
) -> Option<StorePath> {
    let (found, finds) = channel();
    let storage = driver.storage();
    scope.spawn(move || found.send(storage.path_of(file)));
    finds.recv_timeout(Duration::from_secs(5)).ok().flatten()
}

#[test]
fn looking_up_a_path_does_not_wait_for_a_sidecar_that_is_being_read() {
    let (_, directory) = places().remove(0);
    let driver = Driver::open(directory.path());
    let file = driver.create("b");
    driver.write(file, 0, &pattern(1, 9000));
    driver.stop();
    let (driver, gate, open) = gated(directory.path(), 2);
    let a = driver.create("a");
    let arrives = close(&gate, What::Read, ".leasehold/sums");
    thread::scope(|scope| {
        let storage = driver.storage();
        let opening = scope.spawn(|| storage.open_file(&path("b")).unwrap());
        arrives.recv().unwrap();
        let found = path_soon(scope, &driver, a);
        open();
        assert_eq!(found, Some(path("a")));
        assert_eq!(opening.join().unwrap().size, 9000);
    });
}

#[test]
fn looking_up_a_path_does_not_wait_for_a_rename_that_waits_for_a_file() {
    let (_, directory) = places().remove(0);
    let (driver, gate, open) = gated(directory.path(), 2);
    let file = driver.create("a");
    let other = driver.create("b");
    driver.write(file, 0, &pattern(1, 9000));
    let arrives = close(&gate, What::Read, "files/a");
    let (lease, range) = (LeaseId(driver.number()), ByteRange::new(100, 200).unwrap());
    let run = driver.fill(0, range, &pattern(2, 100));
    let merge = Output::Merge { lease, file, range, size: 9000, run };
    // It reads the block with the file's sums locked.
    driver.storage().perform(merge, Detail::None);
    arrives.recv().unwrap();
    thread::scope(|scope| {
        let storage = driver.storage();
        let renaming = scope.spawn(|| storage.rename(&path("a"), &path("c")).unwrap());
        while !directory.path().join("files/c").exists() {
            thread::yield_now();
        }
        let found = path_soon(scope, &driver, other);
        open();
        assert_eq!(found, Some(path("b")));
        renaming.join().unwrap();
    });
    assert_eq!(driver.answers.recv().unwrap(), Input::Merged { lease, result: Ok(()) });
    assert_eq!(driver.storage().path_of(file), Some(path("c")));
}

/// Asks for `Record` of whole new blocks at `offset`, and then for something else of the only worker that is left. Whether
/// the record was waited for: if not, it was answered first.
fn waits_for_its_record(driver: &Driver, file: FileId, offset: u64) -> bool {
    let bytes = pattern(7, 8192);
    let range = ByteRange::at(offset, 8192).unwrap();
    let run = driver.fill(8, range, &bytes);
    let write = WriteId(driver.number());
    let record = Output::Record { write, file, range, size: range.end(), run };
    driver.storage().perform(record, Detail::None);
    let lease = LeaseId(driver.number());
    let into = Run { first: FrameId(0), frames: 1 };
    match driver.ask(Output::Zero { lease, into }, Detail::None) {
        Input::LeaseLoaded { .. } => true,
        Input::Recorded { .. } => false,
        other => panic!("{other:?}"),
    }
}

/// A write past the recorded size went to the disk at once, although a truncate was in line with a size that covers it: had
/// the power failed when the truncate was recorded and the write was not, its bytes would have been in the file.
#[test]
fn a_write_waits_for_its_record_if_a_truncate_in_line_before_it_admits_its_blocks() {
    for (_, directory) in places() {
        let (driver, gate, open) = gated(directory.path(), 2);
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 8192));
        let arrives = close(&gate, What::Write, ".leasehold/log");
        let request = RequestId(driver.number());
        let truncate = Output::Perform { request, file, change: Change::Truncate { size: 1 << 20 } };
        // It keeps one of two workers busy.
        driver.storage().perform(truncate, Detail::None);
        arrives.recv().unwrap();
        let waits = waits_for_its_record(&driver, file, 8192);
        open();
        assert!(waits);
        let answers = [driver.answers.recv().unwrap(), driver.answers.recv().unwrap()];
        assert!(answers.contains(&Input::Performed { request, result: Ok(None) }), "{answers:?}");
    }
}

/// It went to the disk at once, and made the file longer: had the power failed then, recovery would have taken the collapse
/// before it for one that was not over, by the file's length, and made it again.
#[test]
fn a_write_past_the_end_waits_for_its_record_if_the_sidecar_does_not_show_a_collapse_before_it() {
    for (place, directory) in places() {
        let (driver, gate, open) = gated(directory.path(), 1);
        if !driver.collapses(place) {
            continue;
        }
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 8 * 4096));
        driver.collapse(file, 4096, 8192);
        let arrives = close(&gate, What::Write, ".leasehold/log");
        let waits = waits_for_its_record(&driver, file, 7 * 4096);
        arrives.recv().unwrap();
        let length = std::fs::metadata(directory.path().join("files/a")).unwrap().len();
        open();
        assert!(waits);
        assert_eq!(length, 7 * 4096);
        assert!(matches!(driver.answers.recv().unwrap(), Input::Recorded { result: Ok(()), .. }));
        driver.storage().checkpoint().unwrap();
        assert!(!waits_for_its_record(&driver, file, 9 * 4096), "the sidecar shows it by now");
    }
}

/// A write far out had made the file long by itself, which nobody had heard of yet; one before it set the length ahead of its
/// own end, and so cut the far one off.
#[test]
fn the_length_that_is_set_ahead_cuts_nothing_off_that_has_just_landed() {
    for (_, directory) in places() {
        let (driver, gate, open) = gated(directory.path(), 2);
        let file = driver.create("a");
        let arrives = close(&gate, What::Landed, "files/a");
        let size = (2 << 30) + 8192;
        let (write, run, far) = driver.record(file, 8, 2 << 30, &pattern(1, 8192), size);
        driver
            .storage()
            .perform(Output::Write { write, file, blocks: far.blocks(), size, run }, Detail::None);
        arrives.recv().unwrap();
        driver.record(file, 0, 0, &pattern(2, 8192), size);
        let length = std::fs::metadata(directory.path().join("files/a")).unwrap().len();
        open();
        assert!(length >= far.end(), "{length}");
        assert!(matches!(driver.answers.recv().unwrap(), Input::Written { result: Ok(()), .. }));
        assert!(driver.read(file, far.start(), 8192) == pattern(1, 8192));
    }
}

/// A checkpoint was setting the file back to its size, from the length that it had ahead: that was taken for one that others
/// had given it.
#[test]
fn an_adoption_takes_no_length_for_the_size_that_is_being_set_back() {
    for (_, directory) in places() {
        let (driver, gate, open) = gated(directory.path(), 1);
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 5000));
        let arrives = close(&gate, What::Truncate, "files/a");
        thread::scope(|scope| {
            let storage = driver.storage();
            let checkpoint = scope.spawn(|| storage.checkpoint().unwrap());
            arrives.recv().unwrap();
            let request = RequestId(driver.number());
            let change = Change::Adopt { range: ByteRange::ALL };
            storage.perform(Output::Perform { request, file, change }, Detail::None);
            // The adoption gets as far as it can; the outcome does not depend on it.
            (0..1000).for_each(|_| thread::yield_now());
            open();
            checkpoint.join().unwrap();
            let answer = driver.answers.recv().unwrap();
            assert_eq!(answer, Input::Performed { request, result: Ok(Some(5000)) });
        });
    }
}

/// The states of blocks were read from the sidecar again, where they were older, and a good block failed to read.
#[test]
fn what_a_checkpoint_is_writing_back_is_not_forgotten_meanwhile() {
    let (_, directory) = places().remove(0);
    let (driver, gate, open) = gated(directory.path(), 2);
    let file = driver.create("a");
    driver.write(file, 0, &pattern(1, 4096));
    driver.storage().checkpoint().unwrap();
    driver.write(file, 0, &pattern(2, 4096));
    let arrives = close(&gate, What::Write, ".leasehold/sums");
    thread::scope(|scope| {
        let storage = driver.storage();
        let checkpoint = scope.spawn(|| storage.checkpoint());
        arrives.recv().unwrap();
        storage.inner.file(file).sums().evict_clean();
        let read = driver.try_read(file, 0, 4096);
        open();
        checkpoint.join().unwrap().unwrap();
        assert!(read == Ok(pattern(2, 4096)), "{:?}", read.err());
    });
}

/// Found by the simulator (seed 3595): the write was forgotten although it was answered with a fault, and when the core tried it
/// again, its thread panicked.
#[test]
fn a_write_whose_checksums_could_not_be_noted_can_be_tried_again() {
    let (_, directory) = places().remove(0);
    let (driver, gate, open) = gated(directory.path(), 2);
    let file = driver.create("a");
    driver.write(file, 0, &pattern(1, 4096));
    driver.storage().checkpoint().unwrap();
    let (write, run, range) = driver.record(file, 8, 0, &pattern(2, 4096), 4096);
    driver.storage().inner.file(file).sums().evict_clean();
    let arrives = close(&gate, What::Read, ".leasehold/sums");
    let output = Output::Write { write, file, blocks: range.blocks(), size: 4096, run };
    driver.storage().perform(output.clone(), Detail::None);
    arrives.recv().unwrap();
    let (transfer, done) = gate.lock().unwrap().held.remove(0);
    open();
    done(Err(io::Error::from_raw_os_error(libc::EIO)), transfer.memory);
    assert_eq!(driver.answers.recv().unwrap(), Input::Written { write, result: Err(Fault::Io) });
    assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
    assert!(driver.content(file) == pattern(2, 4096));
    driver.stop();
}

/// A copy of a large file took a worker for as long as it lasted; two of them, and no commit of any file went on.
#[test]
fn clones_that_are_copies_keep_nobody_waiting_but_their_sources() {
    let Some((_, directory)) = places().into_iter().find(|(name, _)| *name == "tmpfs") else {
        return eprintln!("SKIPPED: a clone that is a copy needs tmpfs");
    };
    let (driver, gate, open) = gated(directory.path(), 2);
    let quick = driver.create("quick");
    let slow: Vec<FileId> = (0..4).map(|number| driver.create(&format!("slow{number}"))).collect();
    for file in &slow {
        driver.write(*file, 0, &pattern(1, 4096));
    }
    let arrives = close(&gate, What::Read, "files/slow");
    for file in &slow {
        let (request, staged) = (RequestId(driver.number()), driver.storage().stage());
        let output = Output::Perform { request, file: *file, change: Change::Clone };
        driver.storage().perform(output, Detail::Clone { staged });
    }
    arrives.recv().unwrap();
    arrives.recv().unwrap();
    let (lease, range) = (LeaseId(driver.number()), ByteRange::new(0, 4096).unwrap());
    let run = driver.fill(0, range, &pattern(2, 4096));
    driver.storage().perform(Output::Verify { lease, file: quick, range, run }, Detail::Crc(None));
    let answer = driver.answers.recv_timeout(Duration::from_secs(5));
    open();
    assert_eq!(answer, Ok(Input::Verified { lease, agrees: true }));
    for _ in slow {
        let answer = driver.answers.recv().unwrap();
        assert!(matches!(answer, Input::Performed { result: Ok(None), .. }), "{answer:?}");
    }
}

/// A read of several pieces met a file that another write made longer between two of them: what the first had not brought
/// was taken for brought, and a hole failed to read.
#[test]
fn a_file_that_grows_while_it_is_read_has_zeros_where_it_had_nothing() {
    for (_, directory) in places() {
        let (driver, gate, open) = gated(directory.path(), 2);
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 4096));
        driver.flush(file);
        let arrives = close(&gate, What::Read, "files/a");
        let size = (6 << 20) + 4096;
        let (blocks, into) = (BlockRange::new(0, 1024).unwrap(), Run { first: FrameId(0), frames: 1024 });
        // SAFETY: no operation is under way on these frames.
        unsafe { driver.arena.bytes_mut(into) }.fill(0xDD);
        let by = Loader::Read(RequestId(driver.number()));
        driver.storage().perform(Output::Load { by, file, blocks, size, into }, Detail::None);
        arrives.recv().unwrap();
        arrives.recv().unwrap();
        let (first, disk) = {
            let mut state = gate.lock().unwrap();
            (state.held.remove(0), state.disk.clone().unwrap())
        };
        let (landed, lands) = channel();
        let (transfer, done) = first;
        let tell: Done = Box::new(move |result, memory| {
            done(result, memory);
            landed.send(()).unwrap();
        });
        disk.submit(transfer, tell);
        lands.recv().unwrap();
        // A commit far behind, which is visible and makes the file longer ahead.
        let bytes = pattern(2, 4096);
        let range = ByteRange::at(6 << 20, 4096).unwrap();
        let run = driver.fill(1100, range, &bytes);
        let write = WriteId(driver.number());
        let answer = driver.ask(Output::Record { write, file, range, size, run }, Detail::None);
        assert_eq!(answer, Input::Recorded { write, result: Ok(()) });
        let long = std::fs::metadata(directory.path().join("files/a")).unwrap().len();
        assert!(long >= 4 << 20, "{long}");
        open();
        let answer = driver.answers.recv().unwrap();
        assert!(matches!(answer, Input::ReadLoaded { result: Ok(()), .. }), "{answer:?}");
        // SAFETY: the load is over.
        let frames = unsafe { driver.arena.bytes(into) };
        assert!(frames[..4096] == pattern(1, 4096) && frames[4096..].iter().all(|byte| *byte == 0));
        let output = Output::Write { write, file, blocks: range.blocks(), size, run };
        assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
    }
}

/// The server forgot, with the file, that its attributes were to be flushed.
#[test]
fn attributes_of_a_file_that_is_closed_before_its_flush_are_flushed_all_the_same() {
    let (_, directory) = places().remove(0);
    let (driver, gate, _) = gated(directory.path(), 2);
    let file = driver.create("a");
    driver.write(file, 0, &pattern(1, 4096));
    driver.flush(file);
    driver.storage().checkpoint().unwrap();
    gate.lock().unwrap().synced.clear();
    let attributes = Attributes { mode: Some(0o640), ..Attributes::default() };
    driver.storage().set_attributes(&path("a"), &attributes).unwrap();
    driver.storage().forget(file);
    let file = driver.open_file("a");
    driver.flush(file);
    assert!(gate.lock().unwrap().synced.contains(&"files/a".to_owned()));
}
