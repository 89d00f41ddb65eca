//! The storage as the core drives it, on real directories: ext4 with O_DIRECT, and tmpfs without.

mod adopt;
mod attributes;
mod calls;
mod capture;
mod clone;
mod collapse;
mod crash;
mod gate;
mod links;
mod map;
mod memory;
mod model;
mod namespace;
pub(crate) mod power;
mod recovery;
mod straight;
mod trouble;
mod upgrade;

use super::*;
use crate::arena::Pages;
use crate::checksum::crc32c;
use crate::sync::Mutex;
use crate::sync::mpsc::{Receiver, channel};
use leasehold_core::ids::{FrameId, LeaseId, RequestId, WriteId};
use leasehold_core::output::Loader;
use leasehold_core::range::{ByteRange, Run};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Where test stores lie, by name; a place that the machine lacks is skipped, loudly.
pub(crate) fn places() -> Vec<(&'static str, tempfile::TempDir)> {
    let target = std::env::current_exe().expect("a test has a file");
    let target = target.parent().expect("target/debug/deps").to_owned();
    let mut places = Vec::new();
    for (name, directory) in [("disk", target), ("tmpfs", "/dev/shm".into())] {
        match tempfile::Builder::new().prefix("leasehold-test").tempdir_in(&directory) {
            Ok(place) => places.push((name, place)),
            Err(error) => eprintln!("SKIPPED on {name}: cannot make a store in {directory:?}: {error}"),
        }
    }
    assert!(!places.is_empty());
    places
}

/// The usual places, and those made for this: XFS and btrfs share blocks.
fn all_places() -> Vec<(&'static str, Place)> {
    let usual = places().into_iter().map(|(name, directory)| (name, Place::Directory(directory)));
    let made = ["xfs", "btrfs"].into_iter().filter_map(|kind| Some((kind, Place::Mount(Mount::make(kind)?))));
    usual.chain(made).collect()
}

enum Place {
    Directory(tempfile::TempDir),
    Mount(Mount),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Place::Directory(directory) => directory.path(),
            Place::Mount(mount) => mount.0.path(),
        }
    }
}

/// A filesystem in a file, until drop.
struct Mount(tempfile::TempDir, #[expect(dead_code, reason = "holds the image")] tempfile::NamedTempFile);

impl Mount {
    fn make(kind: &str) -> Option<Mount> {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(400 << 20).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mkfs = Command::new(format!("mkfs.{kind}")).arg(image.path()).output();
        let mounted = match mkfs {
            Ok(made) if made.status.success() => {
                let mut mount = Command::new("mount");
                mount.args(["-o", "loop", "-t", kind]).arg(image.path()).arg(directory.path()).output()
            }
            other => other,
        };
        match mounted {
            Ok(output) if output.status.success() => Some(Mount(directory, image)),
            other => {
                eprintln!("SKIPPED on {kind}: cannot make such a filesystem: {other:?}");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn path(text: &str) -> StorePath {
    StorePath::parse(text).unwrap()
}

/// A storage, and somebody who drives it as the core would.
struct Driver {
    storage: Option<Storage>,
    opened: Opened,
    arena: Arc<Arena>,
    answers: Receiver<Input>,
    mismatches: Arc<Mutex<Vec<Mismatch>>>,
    next: AtomicU64,
}

const FRAMES: u32 = 2048;

impl Driver {
    fn open(directory: &Path) -> Driver {
        Driver::open_with(StorageConfig::new(directory))
    }

    fn open_with(config: StorageConfig) -> Driver {
        Driver::try_open_with(config).expect("the store opens")
    }

    fn try_open_with(config: StorageConfig) -> Result<Driver, OpenError> {
        Driver::open_observed(config, Box::new(|_| {}))
    }

    /// `observer` hears of each answer before anybody else.
    fn open_observed(
        mut config: StorageConfig,
        observer: Box<dyn Fn(&Input) + Send + Sync>,
    ) -> Result<Driver, OpenError> {
        let arena = Arena::new(u64::from(FRAMES) * 4096, Pages::Normal).unwrap();
        let (send, answers) = channel();
        let mismatches = Arc::<Mutex<Vec<Mismatch>>>::default();
        let seen = Arc::clone(&mismatches);
        config.mismatches = Some(Arc::new(move |mismatch| seen.lock().unwrap().push(mismatch)));
        let send = Mutex::new(send);
        let answer: Answers = Arc::new(move |input| {
            observer(&input);
            // A driver that is gone wants no answer.
            let _ = send.lock().unwrap().send(input);
        });
        let (storage, opened) = Storage::open(config, Arc::clone(&arena), answer)?;
        let next = AtomicU64::new(1);
        Ok(Driver { storage: Some(storage), opened, arena, answers, mismatches, next })
    }

    fn storage(&self) -> &Storage {
        self.storage.as_ref().unwrap()
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn ask(&self, output: Output, detail: Detail) -> Input {
        self.storage().perform(output, detail);
        self.answers.recv_timeout(Duration::from_secs(60)).expect("an answer")
    }

    /// Frames for the range, filled with garbage around `bytes`.
    fn fill(&self, first: u32, range: ByteRange, bytes: &[u8]) -> Run {
        let run = Run { first: FrameId(first), frames: range.blocks().len() as u32 };
        // SAFETY: no operation is under way on these frames.
        let frames = unsafe { self.arena.bytes_mut(run) };
        frames.fill(0xEE);
        frames[(range.start() % 4096) as usize..][..bytes.len()].copy_from_slice(bytes);
        run
    }

    /// Everything up to `Recorded`.
    fn record(
        &self,
        file: FileId,
        first: u32,
        offset: u64,
        bytes: &[u8],
        size: u64,
    ) -> (WriteId, Run, ByteRange) {
        self.try_record(file, first, offset, bytes, size).expect("the record works")
    }

    /// Everything up to `Recorded`.
    fn try_record(
        &self,
        file: FileId,
        first: u32,
        offset: u64,
        bytes: &[u8],
        size: u64,
    ) -> Result<(WriteId, Run, ByteRange), Fault> {
        let range = ByteRange::at(offset, bytes.len() as u64).unwrap();
        let run = self.fill(first, range, bytes);
        let lease = LeaseId(self.number());
        let answer = self.ask(Output::Verify { lease, file, range, run }, Detail::Crc(Some(crc32c(bytes))));
        assert_eq!(answer, Input::Verified { lease, agrees: true });
        if !range.start().is_multiple_of(4096) || !range.end().is_multiple_of(4096) {
            let answer = self.ask(Output::Merge { lease, file, range, size, run }, Detail::None);
            let Input::Merged { result, .. } = answer else { panic!("{answer:?}") };
            result?;
        }
        let write = WriteId(self.number());
        let answer = self.ask(Output::Record { write, file, range, size, run }, Detail::None);
        let Input::Recorded { result, .. } = answer else { panic!("{answer:?}") };
        result?;
        Ok((write, run, range))
    }

    fn try_write(&self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let size = self.size(file).max(offset + bytes.len() as u64);
        let (write, run, range) = self.try_record(file, 0, offset, bytes, size)?;
        match self.ask(Output::Write { write, file, blocks: range.blocks(), size, run }, Detail::None) {
            Input::Written { write: answered, result } if answered == write => result,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, file: FileId, offset: u64, bytes: &[u8]) {
        self.try_write(file, offset, bytes).expect("the write works");
    }

    fn size(&self, file: FileId) -> u64 {
        self.storage().size_of(file).unwrap()
    }

    fn try_read(&self, file: FileId, offset: u64, length: u64) -> Result<Vec<u8>, Fault> {
        let range = ByteRange::at(offset, length).unwrap();
        let into = Run { first: FrameId(0), frames: range.blocks().len() as u32 };
        // SAFETY: no operation is under way on these frames.
        unsafe { self.arena.bytes_mut(into) }.fill(0xDD);
        let by = Loader::Read(RequestId(self.number()));
        let size = self.size(file);
        match self.ask(Output::Load { by, file, blocks: range.blocks(), size, into }, Detail::None) {
            Input::ReadLoaded { result, .. } => result?,
            other => panic!("{other:?}"),
        }
        // SAFETY: the load is over.
        let frames = unsafe { self.arena.bytes(into) };
        Ok(frames[(offset % 4096) as usize..][..length as usize].to_vec())
    }

    fn read(&self, file: FileId, offset: u64, length: u64) -> Vec<u8> {
        self.try_read(file, offset, length).expect("the read works")
    }

    fn content(&self, file: FileId) -> Vec<u8> {
        match self.size(file) {
            0 => Vec::new(),
            size => self.read(file, 0, size),
        }
    }

    fn change_with(&self, file: FileId, change: Change, detail: Detail) -> Result<(), Fault> {
        self.perform(file, change, detail).map(drop)
    }

    fn perform(&self, file: FileId, change: Change, detail: Detail) -> Result<Option<u64>, Fault> {
        let request = RequestId(self.number());
        match self.ask(Output::Perform { request, file, change }, detail) {
            Input::Performed { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    fn zero(&self, file: FileId, start: u64, end: u64) {
        let range = ByteRange::new(start, end).unwrap();
        self.change_with(file, Change::Zero { range }, Detail::None).expect("the zeroing works");
    }

    fn try_collapse(&self, file: FileId, start: u64, end: u64) -> Result<(), Fault> {
        let range = ByteRange::new(start, end).unwrap();
        self.change_with(file, Change::Collapse { range }, Detail::None)
    }

    fn collapse(&self, file: FileId, start: u64, end: u64) {
        self.try_collapse(file, start, end).expect("the collapse works");
    }

    /// Whether the place can do it; said aloud if not.
    fn collapses(&self, place: &str) -> bool {
        let range = ByteRange::new(0, 4096).unwrap();
        let refused = self.storage().check_collapse(range).err();
        if let Some(refused) = &refused {
            eprintln!("SKIPPED on {place}: {refused}");
        }
        refused.is_none()
    }

    fn adopt(&self, file: FileId, start: u64, end: u64) -> Option<u64> {
        let range = ByteRange::new(start, end).unwrap();
        self.perform(file, Change::Adopt { range }, Detail::None).expect("the adoption works")
    }

    /// A clone under another name.
    fn clone_to(&self, file: FileId, name: &str) -> FileId {
        let staged = self.storage().stage();
        self.change_with(file, Change::Clone, Detail::Clone { staged }).expect("the clone works");
        self.storage().place(staged, &path(name)).unwrap();
        self.open_file(name)
    }

    fn survey(&self, file: FileId) -> Survey {
        self.storage().survey(file, BlockRange::new(0, u64::MAX).unwrap()).unwrap()
    }

    fn truncate(&self, file: FileId, size: u64) {
        self.change_with(file, Change::Truncate { size }, Detail::None).expect("the truncate works");
    }

    fn punch(&self, file: FileId, start: u64, end: u64) {
        let range = ByteRange::new(start, end).unwrap();
        self.change_with(file, Change::Punch { range }, Detail::None).expect("the punch works");
    }

    fn flush(&self, file: FileId) {
        let request = RequestId(self.number());
        assert_eq!(
            self.ask(Output::Flush { request, file }, Detail::None),
            Input::Flushed { request, result: Ok(()) }
        );
    }

    fn create(&self, name: &str) -> FileId {
        self.storage().create(&path(name)).unwrap().file
    }

    fn open_file(&self, name: &str) -> FileId {
        self.storage().open_file(&path(name)).unwrap().file
    }

    fn stop(mut self) {
        self.storage.take().unwrap().stop().expect("a clean stop");
    }

    /// What kill -9 leaves: nothing more is written.
    fn kill(mut self) {
        drop(self.storage.take());
    }
}

/// Writes past the storage.
fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// The only file below the directory.
fn only_file(directory: &Path) -> std::path::PathBuf {
    let entry = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap();
    if entry.file_type().unwrap().is_dir() { only_file(&entry.path()) } else { entry.path() }
}

fn count_files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| if entry.file_type().unwrap().is_dir() { count_files(&entry.path()) } else { 1 })
        .sum()
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(17) ^ (i >> 8) as u8 ^ seed).collect()
}
