//! A disk that stops at the k-th write, flush, truncate or punch, for every k of a script; the last write may land in part.
//! Whatever was answered before must be there afterwards, and what was under way is old or new, block by block.

use super::*;
use crate::buffer::Buffer;
use crate::disk::{Disk, DiskFile, Done, Memory, Transfer, Verb};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicI64;

struct Stopping {
    disk: Arc<dyn Disk>,
    left: Arc<AtomicI64>,
    torn: bool,
    how: How,
}

/// What a disk does at its k-th operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Stops,
    /// It fails that one with this error, and goes on.
    Fails(i32),
}

impl Stopping {
    fn stop(&self) -> io::Result<()> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        match self.how {
            _ if left > 0 => Ok(()),
            How::Stops => Err(io::Error::from_raw_os_error(libc::EIO)),
            How::Fails(error) if left == 0 => Err(io::Error::from_raw_os_error(error)),
            How::Fails(_) => Ok(()),
        }
    }

    /// Writes the first sectors of the transfer.
    fn tear(transfer: &Transfer) -> io::Result<()> {
        let length = transfer.memory.len();
        let mut bytes = Buffer::zeroed(length);
        // The file may end before.
        let _ = transfer.file.file.read_at(&mut bytes, transfer.offset)?;
        let new = length / 2 / 512 * 512;
        let from = transfer.memory.address();
        // SAFETY: the transfer's memory has `length` bytes and is not written meanwhile.
        let from = unsafe { std::slice::from_raw_parts(from.as_ptr(), length) };
        bytes[..new].copy_from_slice(&from[..new]);
        transfer.file.file.write_all_at(&bytes, transfer.offset)
    }
}

impl Disk for Stopping {
    fn submit(&self, transfer: Transfer, done: Done) {
        if transfer.verb == Verb::Read {
            return self.disk.submit(transfer, done);
        }
        match self.stop() {
            Ok(()) => self.disk.submit(transfer, done),
            Err(error) => {
                if self.torn && self.left.load(Ordering::SeqCst) == -1 {
                    Stopping::tear(&transfer).expect("the test's own disk works");
                }
                // Not on this thread, which may hold what `done` needs.
                let memory = Memory::Own(Buffer::zeroed(4096));
                let probe =
                    Transfer { verb: Verb::Read, file: Arc::clone(&transfer.file), offset: 0, memory };
                self.disk.submit(probe, Box::new(move |_, _| done(Err(error), transfer.memory)));
            }
        }
    }

    fn finish(&self) {
        self.disk.finish();
    }

    fn sync(&self, file: &DiskFile) -> io::Result<()> {
        self.stop()?;
        self.disk.sync(file)
    }

    fn truncate(&self, file: &DiskFile, size: u64) -> io::Result<()> {
        self.stop()?;
        self.disk.truncate(file, size)
    }

    fn punch(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        self.stop()?;
        self.disk.punch(file, offset, length)
    }

    fn zero(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        self.stop()?;
        self.disk.zero(file, offset, length)
    }

    fn collapse(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        self.stop()?;
        self.disk.collapse(file, offset, length)
    }

    fn clone_file(&self, from: &DiskFile, to: &DiskFile) -> io::Result<()> {
        self.stop()?;
        self.disk.clone_file(from, to)
    }
}

/// The store with a disk that stops after `count` operations; `None` if it does not even open.
pub(super) fn stopping(directory: &Path, count: i64, torn: bool) -> (Option<Driver>, Arc<AtomicI64>) {
    troubled(directory, count, torn, How::Stops)
}

fn troubled(directory: &Path, count: i64, torn: bool, how: How) -> (Option<Driver>, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(count));
    let shared = Arc::clone(&left);
    let wrap: WrapDisk =
        Arc::new(move |disk| Arc::new(Stopping { disk, left: Arc::clone(&shared), torn, how }));
    let config =
        StorageConfig { wrap_disk: Some(wrap), checkpoint_bytes: 1 << 30, ..StorageConfig::new(directory) };
    (Driver::try_open_with(config).ok(), left)
}

#[derive(Clone)]
pub(super) enum Step {
    Write(u64, u64),
    Change(Change),
    Checkpoint,
    /// Bytes of others, adopted at once.
    Adopt(u64, u64),
    /// Copied, and placed over the copy before.
    Clone,
}

pub(super) fn script() -> Vec<Step> {
    let punch = |start, end| Step::Change(Change::Punch { range: ByteRange::new(start, end).unwrap() });
    let truncate = |size| Step::Change(Change::Truncate { size });
    vec![
        Step::Write(0, 40_000),
        Step::Write(40_000, 30_000),
        Step::Checkpoint,
        Step::Write(8192, 8192),
        Step::Write(10_000, 100),
        punch(5000, 14_000),
        truncate(30_001),
        Step::Write(29_000, 20_000),
        Step::Checkpoint,
        truncate(80_000),
        Step::Write(60_000, 4096),
        punch(0, 4096),
        Step::Checkpoint,
        Step::Write(4096, 12_288),
    ]
}

/// The operations that came with format 2.
pub(super) fn script_2(collapses: bool) -> Vec<Step> {
    let zero = |start, end| Step::Change(Change::Zero { range: ByteRange::new(start, end).unwrap() });
    let punch = |start, end| Step::Change(Change::Punch { range: ByteRange::new(start, end).unwrap() });
    let collapse = |start: u64, end: u64| {
        let range = ByteRange::new(start * 4096, end * 4096).unwrap();
        Step::Change(Change::Collapse { range })
    };
    let steps = vec![
        Step::Write(0, 80_000),
        collapse(2, 5),
        Step::Write(4096, 20_000),
        zero(5000, 14_000),
        collapse(0, 1),
        punch(8192, 20_000),
        Step::Checkpoint,
        Step::Write(30_000, 40_000),
        Step::Adopt(9000, 5000),
        collapse(3, 6),
        Step::Clone,
        Step::Checkpoint,
        zero(0, 8192),
        Step::Write(100, 9000),
        Step::Adopt(10_000, 60_000),
        Step::Clone,
    ];
    steps
        .into_iter()
        .filter(|step| collapses || !matches!(step, Step::Change(Change::Collapse { .. })))
        .collect()
}

/// What the file is after the step.
pub(super) fn applied(step: usize, what: &Step, before: &[u8]) -> Vec<u8> {
    let mut after = before.to_vec();
    match what {
        Step::Write(offset, length) => {
            after.resize(after.len().max((offset + length) as usize), 0);
            after[*offset as usize..][..*length as usize]
                .copy_from_slice(&pattern(step as u8, *length as usize));
        }
        Step::Change(Change::Truncate { size }) => after.resize(*size as usize, 0),
        Step::Change(Change::Punch { range }) => {
            let end = (range.end() as usize).min(after.len());
            after[range.start() as usize..end].fill(0);
        }
        Step::Change(Change::Zero { range }) => {
            let end = (range.end() as usize).min(after.len());
            after[range.start() as usize..end].fill(0);
        }
        Step::Change(Change::Collapse { range }) => {
            after.drain(range.start() as usize..range.end() as usize);
        }
        Step::Adopt(offset, length) => {
            after.resize(after.len().max((offset + length) as usize), 0);
            after[*offset as usize..][..*length as usize].fill(step as u8);
        }
        Step::Change(Change::Remove | Change::Clone | Change::Adopt { .. })
        | Step::Checkpoint
        | Step::Clone => {}
    }
    after
}

/// The file before and after the step that failed, and that step.
type Outcome = (Vec<u8>, Vec<u8>, Option<Step>);

/// Runs the script until the disk stops.
fn run(driver: &Driver, script: &[Step], file: FileId, root: &Path) -> Outcome {
    let mut content = Vec::new();
    for (index, step) in script.iter().enumerate() {
        let after = applied(index, step, &content);
        if do_step(driver, index, step, file, root).is_err() {
            return (content, after, Some(step.clone()));
        }
        content = after;
    }
    (content.clone(), content, None)
}

pub(super) fn do_step(
    driver: &Driver,
    index: usize,
    step: &Step,
    file: FileId,
    root: &Path,
) -> Result<(), Fault> {
    match step {
        Step::Write(offset, length) => {
            driver.try_write(file, *offset, &pattern(index as u8, *length as usize))
        }
        Step::Change(change) => driver.change_with(file, *change, Detail::None),
        Step::Checkpoint => driver.storage().checkpoint(),
        Step::Adopt(offset, length) => {
            poke(&root.join("files/a"), *offset, &vec![index as u8; *length as usize]);
            let range = ByteRange::at(*offset, u64::MAX - offset).unwrap();
            driver.change_with(file, Change::Adopt { range }, Detail::None)
        }
        Step::Clone => place_clone(driver, file),
    }
}

/// A step, again if it has failed before. A write whose record is durable is not recorded again: it is written, as the core does.
pub(super) fn do_step_again(
    driver: &Driver,
    index: usize,
    step: &Step,
    file: FileId,
    root: &Path,
    before: Result<(), Fault>,
) -> Result<(), Fault> {
    let Step::Write(offset, length) = step else { return do_step(driver, index, step, file, root) };
    let bytes = pattern(index as u8, *length as usize);
    let size = driver.size(file).max(offset + length);
    let (write, run, range) = driver.try_record(file, 0, *offset, &bytes, size)?;
    let ask = || Output::Write { write, file, blocks: range.blocks(), size, run };
    match driver.ask(ask(), Detail::None) {
        Input::Written { result: Err(_), .. } if before.is_ok() => match driver.ask(ask(), Detail::None) {
            Input::Written { result, .. } => result,
            other => panic!("{other:?}"),
        },
        Input::Written { result, .. } => result,
        other => panic!("{other:?}"),
    }
}

fn place_clone(driver: &Driver, file: FileId) -> Result<(), Fault> {
    let staged = driver.storage().stage();
    driver.change_with(file, Change::Clone, Detail::Clone { staged })?;
    match driver.storage().open_file(&path("clone")) {
        Ok(old) => {
            let detail = Detail::PlaceOver { staged, to: path("clone") };
            driver.change_with(old.file, Change::Remove, detail)?;
            driver.storage().forget(old.file);
            Ok(())
        }
        Err(_) => driver.storage().place(staged, &path("clone")).map_err(|_| Fault::Io),
    }
}

#[test]
fn wherever_the_disk_stops_what_was_answered_is_there_and_the_rest_is_old_or_new() {
    // Flushes cost most on a real disk: there, some of the places will do.
    everywhere(7, |_| script());
}

#[test]
fn wherever_the_disk_stops_a_collapse_clone_or_adoption_is_whole_or_has_not_been() {
    everywhere(7, |driver| script_2(driver.collapses("this place")));
}

/// The sidecar must be shifted once, be it before or after the crash.
#[test]
fn wherever_the_disk_stops_in_the_checkpoint_after_a_collapse_the_checksums_fit() {
    let collapse = |start: u64, end: u64| {
        let range = ByteRange::new(start * 4096, end * 4096).unwrap();
        Step::Change(Change::Collapse { range })
    };
    everywhere(1, |driver| match driver.collapses("this place") {
        true => vec![
            Step::Write(0, 7 << 20),
            // Twice: after the second the record has no copies of the pages any more.
            Step::Checkpoint,
            Step::Checkpoint,
            collapse(950, 1000),
            Step::Write(4096, 4096),
            Step::Checkpoint,
            collapse(3, 700),
            collapse(0, 100),
            Step::Write(2 << 20, 8192),
            Step::Checkpoint,
            Step::Checkpoint,
        ],
        false => script(),
    });
}

#[test]
fn whichever_operation_fails_once_who_asked_is_told_and_the_next_try_works() {
    for (place, directory) in places() {
        for error in [libc::EIO, libc::ENOSPC] {
            let mut failed = 0;
            for count in (0..).step_by(if place == "disk" { 5 } else { 1 }) {
                let at = format!("{place}, error {error} of operation {count}");
                let root = directory.path().join(format!("{error}-{count}"));
                Driver::open(&root).stop();
                let (driver, left) = troubled(&root, count, false, How::Fails(error));
                let driver = driver.unwrap_or_else(|| Driver::open(&root));
                let file = driver.create("a");
                let (mut content, mut told) = (Vec::new(), 0);
                for (index, step) in script().iter().enumerate() {
                    let before = content;
                    content = applied(index, step, &before);
                    let mut again = Ok(());
                    while let Err(fault) = do_step_again(&driver, index, step, file, &root, again) {
                        told += 1;
                        assert!(told <= 2, "{at}: step {index} says {fault:?} again");
                        // Nobody asks for a checkpoint, or is told why it failed.
                        let right = matches!(step, Step::Checkpoint)
                            || (fault == Fault::NoSpace) == (error == libc::ENOSPC);
                        if fault == Fault::Checksum && matches!(step, Step::Change(_)) {
                            // A change that the disk failed half way leaves blocks that cannot be read until they are
                            // written anew.
                            let mut whole = before.clone();
                            whole.resize(before.len().next_multiple_of(4096), 0);
                            driver.write(file, 0, &whole);
                            let truncate = Change::Truncate { size: before.len() as u64 };
                            driver.change_with(file, truncate, Detail::None).unwrap();
                        } else {
                            assert!(right && told == 1, "{at}: step {index} says {fault:?}");
                        }
                        again = Err(fault);
                    }
                    assert!(driver.content(file) == content, "{at}: after step {index}");
                }
                let over = left.load(Ordering::SeqCst) >= 0;
                driver.kill();
                let driver = Driver::open(&root);
                let file = driver.open_file("a");
                assert!(driver.content(file) == content, "{at}: after a kill");
                assert_eq!(driver.survey(file).torn, 0, "{at}");
                driver.stop();
                std::fs::remove_dir_all(&root).unwrap();
                if over {
                    break;
                }
                failed += told.min(1);
            }
            assert!(failed > 4, "somebody was told only {failed} times");
        }
    }
}

/// `step`: on a real disk, how many operations lie between two places.
fn everywhere(step: usize, script: impl Fn(&Driver) -> Vec<Step>) {
    for (place, directory) in places() {
        for torn in [false, true] {
            let mut stopped = 0;
            for count in (0..).step_by(if place == "disk" { step } else { 1 }) {
                let root = directory.path().join(format!("{torn}-{count}"));
                Driver::open(&root).stop();
                let (driver, left) = stopping(&root, count, torn);
                let outcome = match driver {
                    None => continue,
                    Some(driver) => {
                        let file = driver.create("a");
                        let outcome = run(&driver, &script(&driver), file, &root);
                        driver.kill();
                        outcome
                    }
                };
                let over = left.load(Ordering::SeqCst) >= 0;
                // Recovery, too, may be cut short.
                if let (Some(driver), _) = stopping(&root, count % 17, torn) {
                    driver.kill();
                }
                let driver = Driver::open(&root);
                let at =
                    format!("{place}, torn {torn}, after {count} operations: {:?}", driver.opened.damage);
                check(&driver, &outcome, torn, &at);
                driver.stop();
                std::fs::remove_dir_all(&root).unwrap();
                if over {
                    break;
                }
                stopped += 1;
            }
            assert!(stopped > 4, "the disk stopped only {stopped} times");
        }
    }
}

fn check(driver: &Driver, outcome: &Outcome, torn: bool, at: &str) {
    let (before, after, failed) = outcome;
    let file = driver.open_file("a");
    let size = driver.size(file) as usize;
    if matches!(failed, Some(Step::Change(Change::Collapse { .. }))) {
        // All at once, or not at all.
        let whole = if size == before.len() { before } else { after };
        assert!(driver.content(file) == *whole, "{at}");
    }
    if let Ok(clone) = driver.storage().open_file(&path("clone")) {
        let survey = driver.survey(clone.file);
        assert_eq!((survey.unknown, survey.torn), (0, 0), "{at}");
        driver.content(clone.file);
    }
    let old_bytes_are_gone = matches!(failed, Some(Step::Adopt(..)));
    assert!(
        size >= before.len().min(after.len()) && size <= before.len().max(after.len()),
        "size {size}: {at}"
    );
    for start in (0..size).step_by(4096) {
        let end = (start + 4096).min(size);
        let part = |whole: &[u8]| {
            let mut part = whole.get(start..end.min(whole.len())).unwrap_or_default().to_vec();
            part.resize(end - start, 0);
            part
        };
        match driver.try_read(file, start as u64, (end - start) as u64) {
            Ok(bytes) => assert!(bytes == part(before) || bytes == part(after), "bytes {start}..{end}: {at}"),
            Err(fault) => {
                let changed = part(before) != part(after);
                let seen = driver.mismatches.lock().unwrap().clone();
                assert!(
                    (torn || old_bytes_are_gone) && changed,
                    "bytes {start}..{end} of {size} answer {fault:?}, {seen:?}: {at}"
                );
            }
        }
    }
}
