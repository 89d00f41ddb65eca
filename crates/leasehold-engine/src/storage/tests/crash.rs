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
}

impl Stopping {
    fn stop(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EIO))
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
}

/// The store with a disk that stops after `count` operations; `None` if it does not even open.
fn stopping(directory: &Path, count: i64, torn: bool) -> (Option<Driver>, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(count));
    let shared = Arc::clone(&left);
    let wrap: WrapDisk = Arc::new(move |disk| Arc::new(Stopping { disk, left: Arc::clone(&shared), torn }));
    let config =
        StorageConfig { wrap_disk: Some(wrap), checkpoint_bytes: 1 << 30, ..StorageConfig::new(directory) };
    (Driver::try_open_with(config).ok(), left)
}

enum Step {
    Write(u64, u64),
    Change(Change),
    Checkpoint,
}

fn script() -> Vec<Step> {
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

/// What the file is after the step.
fn applied(step: usize, what: &Step, before: &[u8]) -> Vec<u8> {
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
        Step::Change(Change::Remove | Change::Clone | Change::Adopt { .. }) | Step::Checkpoint => {}
    }
    after
}

/// Runs the script until the disk stops. The file before and after the step that failed.
fn run(driver: &Driver, file: FileId) -> (Vec<u8>, Vec<u8>) {
    let mut content = Vec::new();
    for (index, step) in script().iter().enumerate() {
        let after = applied(index, step, &content);
        let result = match step {
            Step::Write(offset, length) => {
                driver.try_write(file, *offset, &pattern(index as u8, *length as usize))
            }
            Step::Change(change) => driver.change_with(file, *change, Detail::None),
            Step::Checkpoint => driver.storage().checkpoint(),
        };
        if result.is_err() {
            return (content, after);
        }
        content = after;
    }
    (content.clone(), content)
}

#[test]
fn wherever_the_disk_stops_what_was_answered_is_there_and_the_rest_is_old_or_new() {
    for (place, directory) in places() {
        for torn in [false, true] {
            let mut stopped = 0;
            // Flushes cost most on a real disk: there, some of the places will do.
            for count in (0..).step_by(if place == "disk" { 7 } else { 1 }) {
                let root = directory.path().join(format!("{torn}-{count}"));
                Driver::open(&root).stop();
                let (driver, left) = stopping(&root, count, torn);
                let (before, after) = match driver {
                    None => continue,
                    Some(driver) => {
                        let file = driver.create("a");
                        let outcome = run(&driver, file);
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
                check(&driver, &before, &after, torn, &at);
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

fn check(driver: &Driver, before: &[u8], after: &[u8], torn: bool, at: &str) {
    let file = driver.open_file("a");
    let size = driver.size(file) as usize;
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
                assert!(torn && changed, "bytes {start}..{end} of {size} answer {fault:?}, {seen:?}: {at}");
            }
        }
    }
}
