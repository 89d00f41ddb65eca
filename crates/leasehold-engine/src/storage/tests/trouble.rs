//! Disks that are full, bytes that others changed, sidecars that are damaged.

use super::*;
use crate::disk::{Disk, DiskFile, Done, Transfer};
use std::fs::OpenOptions;
use std::io;
use std::process::Command;

#[test]
fn a_byte_changed_behind_our_back_fails_the_read_and_names_the_block() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 5 * 4096));
        driver.flush(file);
        poke(&directory.path().join("files/a"), 2 * 4096 + 7, b"x");
        assert_eq!(driver.try_read(file, 0, 5 * 4096), Err(Fault::Checksum));
        let seen = driver.mismatches.lock().unwrap().clone();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].file, &seen[0].path, seen[0].block), (file, &path("a"), 2));
        assert_ne!(seen[0].committed, Some(seen[0].found));
        assert!(driver.read(file, 3 * 4096, 8192) == pattern(1, 5 * 4096)[3 * 4096..]);
        // A hole that is one no more.
        driver.truncate(file, 1 << 20);
        poke(&directory.path().join("files/a"), 512 << 10, b"x");
        assert_eq!(driver.try_read(file, 512 << 10, 1), Err(Fault::Checksum));
    }
}

#[test]
fn a_size_changed_behind_our_back_fails_the_reads_concerned() {
    for (_, directory) in places() {
        let name = directory.path().join("files/a");
        let bytes = pattern(1, 5 * 4096);
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        driver.write(file, 0, &bytes);
        driver.stop();
        OpenOptions::new().write(true).open(&name).unwrap().set_len(8192).unwrap();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert_eq!(driver.size(file), 5 * 4096, "what was committed is missed");
        assert!(driver.read(file, 0, 8192) == bytes[..8192]);
        assert_eq!(driver.try_read(file, 8192, 4096), Err(Fault::Checksum));
        driver.write(file, 8192, &bytes[8192..]);
        assert!(driver.content(file) == bytes);
        driver.stop();
        poke(&name, 5 * 4096, b"more");
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert_eq!(driver.size(file), 5 * 4096 + 4);
        assert!(driver.read(file, 0, 5 * 4096) == bytes);
        assert_eq!(driver.try_read(file, 5 * 4096, 4), Err(Fault::Checksum));
    }
}

#[test]
fn a_damaged_sidecar_page_is_found_out() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 4096));
        driver.write(file, 1000 * 4096, &pattern(2, 4096));
        driver.stop();
        let sidecar = only_file(&directory.path().join(".leasehold/sums"));
        poke(&sidecar, 2 * 4096 + 300, &[0xff; 4]);
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert!(driver.read(file, 0, 4096) == pattern(1, 4096), "the other page is good");
        assert_eq!(driver.try_read(file, 1000 * 4096, 4096), Err(Fault::Checksum));
        driver.stop();
        poke(&sidecar, 60, &[0xff; 4]);
        let driver = Driver::open(directory.path());
        let error = driver.storage().open_file(&path("a")).unwrap_err();
        assert!(matches!(&error, NamespaceError::Sidecar { .. }), "{error}");
    }
}

/// A small tmpfs, until drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "none"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk(directory)),
            other => {
                eprintln!("SKIPPED: a full disk needs a mount, which failed: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_a_fault_of_its_own_and_the_write_works_once_there_is_space() {
    let Some(disk) = SmallDisk::mount() else { return };
    let root = disk.0.path().join("store");
    let driver = Driver::open(&root);
    let file = driver.create("a");
    let ballast = root.join("files/ballast");
    std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let bytes = pattern(1, 4 << 20);
    let size = bytes.len() as u64;
    let (write, run, range) = driver.record(file, 0, 0, &bytes, size);
    let output = Output::Write { write, file, blocks: range.blocks(), size, run };
    assert_eq!(
        driver.ask(output.clone(), Detail::None),
        Input::Written { write, result: Err(Fault::NoSpace) }
    );
    assert_eq!(driver.size(file), 0, "nothing was admitted");
    std::fs::remove_file(ballast).unwrap();
    assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
    assert!(driver.content(file) == bytes);
    driver.kill();
    let driver = Driver::open(&root);
    let file = driver.open_file("a");
    assert!(driver.content(file) == bytes);
}

#[test]
fn without_registered_buffers_and_without_io_uring_the_bytes_are_the_same() {
    for (_, directory) in places() {
        let config = StorageConfig { backend: Backend::Threads, ..StorageConfig::new(directory.path()) };
        let driver = Driver::open_with(config);
        let file = driver.create("a");
        driver.write(file, 100, &pattern(1, 3 << 20));
        driver.kill();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert!(driver.read(file, 100, 3 << 20) == pattern(1, 3 << 20));
    }
}

#[test]
fn a_failed_write_that_is_tried_again_in_parts_leaves_nothing_of_itself_behind() {
    let Some(disk) = SmallDisk::mount() else { return };
    let root = disk.0.path().join("store");
    let driver = Driver::open(&root);
    let file = driver.create("a");
    let ballast = root.join("files/ballast");
    std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let bytes = pattern(1, 4 << 20);
    let (write, run, range) = driver.record(file, 0, 0, &bytes, bytes.len() as u64);
    let output = Output::Write { write, file, blocks: range.blocks(), size: bytes.len() as u64, run };
    assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Err(Fault::NoSpace) });
    std::fs::remove_file(ballast).unwrap();
    // The blocks behind the first MiB are removed; the first quarter of what is left is not written in the end.
    driver.truncate(file, 1 << 20);
    let part = ByteRange::new(256 << 10, 1 << 20).unwrap();
    let run = Run { first: FrameId(64), frames: 192 };
    let write = WriteId(driver.number());
    let size = part.end();
    let answer = driver.ask(Output::Record { write, file, range: part, size, run }, Detail::None);
    assert_eq!(answer, Input::Recorded { write, result: Ok(()) });
    let answer = driver.ask(Output::Write { write, file, blocks: part.blocks(), size, run }, Detail::None);
    assert_eq!(answer, Input::Written { write, result: Ok(()) });
    driver.write(file, 1 << 20, &[1; 4096]);
    driver.kill();
    let driver = Driver::open(&root);
    let file = driver.open_file("a");
    assert_eq!(driver.size(file), (1 << 20) + 4096);
    assert!(driver.read(file, part.start(), part.len()) == bytes[256 << 10..1 << 20]);
    for block in 0..64u64 {
        let found = driver.read(file, block * 4096, 4096);
        let new = &bytes[block as usize * 4096..][..4096];
        assert!(found == new || found.iter().all(|byte| *byte == 0), "block {block} is old or new");
    }
    driver.flush(file);
    driver.stop();
    assert!(!Driver::open(&root).opened.recovered, "no record was left open");
}

/// Such a write once panicked on a worker that held the file's sums, after the commit was acknowledged.
#[test]
fn a_write_too_far_for_a_sidecar_fails_and_the_last_block_that_fits_works() {
    for (name, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 4096));
        let max = driver.storage().file_bytes_max();
        assert!(max.is_multiple_of(4096) && max > 1 << 40, "{name}: {max}");
        assert_eq!(driver.try_write(file, (1 << 32) * 960 * 4096, &pattern(2, 4096)), Err(Fault::Io));
        assert!(driver.try_write(file, max, &pattern(2, 4096)).is_err(), "{name}: {max}");
        driver.write(file, max - 4096, &pattern(3, 4096));
        driver.storage().checkpoint().unwrap();
        assert!(driver.read(file, 0, 4096) == pattern(1, 4096));
        assert!(driver.read(file, max - 4096, 4096) == pattern(3, 4096));
        assert!(!directory.path().join(".leasehold/probe").exists());
        driver.truncate(file, 4096);
        driver.stop();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert!(driver.content(file) == pattern(1, 4096));
    }
}

/// A commit that was verified and then failed left its sums behind; a later write in parts took them for its own.
#[test]
fn sums_of_a_commit_that_failed_are_not_taken_for_those_of_a_later_one() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let verify = |first: u32, offset: u64, bytes: &[u8]| {
            let range = ByteRange::at(offset, bytes.len() as u64).unwrap();
            let run = driver.fill(first, range, bytes);
            let lease = LeaseId(driver.number());
            let answer = driver.ask(Output::Verify { lease, file, range, run }, Detail::Crc(None));
            assert_eq!(answer, Input::Verified { lease, agrees: true });
            (range, run)
        };
        // Never recorded.
        let (part, part_run) = verify(10, 5 * 4096, &pattern(1, 4096));
        let bytes = pattern(2, 10 * 4096);
        let (range, run) = verify(5, 0, &bytes);
        // Written as two parts, as after a failure.
        for (range, run) in [(part, part_run), (range, run)] {
            let (write, size) = (WriteId(driver.number()), range.end());
            let answer = driver.ask(Output::Record { write, file, range, size, run }, Detail::None);
            assert_eq!(answer, Input::Recorded { write, result: Ok(()) });
            let output = Output::Write { write, file, blocks: range.blocks(), size, run };
            assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
            if range == part {
                assert!(driver.read(file, part.start(), 4096) == bytes[5 * 4096..6 * 4096]);
                driver.fill(5, ByteRange::at(0, bytes.len() as u64).unwrap(), &bytes);
            }
        }
        assert!(driver.content(file) == bytes);
    }
}

/// The engine knew only of what was durable, so it kept the record of a write that the core had given up: the file's bytes
/// came back after a crash, and until then failed to read.
#[test]
fn a_failed_write_past_the_durable_size_is_gone_once_its_blocks_are_punched() {
    for zero in [false, true] {
        let Some(disk) = SmallDisk::mount() else { return };
        let root = disk.0.path().join("store");
        let driver = Driver::open(&root);
        let file = driver.create("a");
        let ballast = root.join("files/ballast");
        std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();
        let (failing, behind) = (pattern(1, 4 << 20), pattern(2, 4096));
        let size = (8 << 20) + 4096;
        let (write, run, range) = driver.record(file, 0, 0, &failing, size);
        let output = Output::Write { write, file, blocks: range.blocks(), size: range.end(), run };
        assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Err(Fault::NoSpace) });
        std::fs::remove_file(ballast).unwrap();
        let (write, run, range) = driver.record(file, 1100, 8 << 20, &behind, size);
        if zero {
            driver.zero(file, 0, 4 << 20)
        } else {
            driver.punch(file, 0, 4 << 20)
        }
        let output = Output::Write { write, file, blocks: range.blocks(), size, run };
        assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
        let check = |driver: &Driver, file| {
            assert_eq!(driver.size(file), size);
            assert!(driver.try_read(file, 0, 4 << 20).map(|bytes| bytes == vec![0; 4 << 20]) == Ok(true));
            assert!(driver.read(file, 8 << 20, 4096) == behind);
        };
        check(&driver, file);
        driver.kill();
        let driver = Driver::open(&root);
        let file = driver.open_file("a");
        check(&driver, file);
        driver.stop();
        assert!(!Driver::open(&root).opened.recovered, "no record was left open");
    }
}

const LIMITED: &str = "LEASEHOLD_TEST_LIMITED_STORE";

/// The server sets a file's length ahead of what is needed; past the process's limit, the kernel ends the process.
#[test]
fn a_file_is_not_made_longer_ahead_than_the_process_may_make_files() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    if let Some(directory) = std::env::var_os(LIMITED) {
        let limit = Rlimit { current: Some(100 << 20), maximum: None };
        setrlimit(Resource::Fsize, limit).unwrap();
        let driver = Driver::open(Path::new(&directory));
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 4096));
        driver.write(file, 70 << 20, &pattern(2, 4096));
        return driver.stop();
    }
    let (_, directory) = places().remove(0);
    let name = "storage::tests::trouble::a_file_is_not_made_longer_ahead_than_the_process_may_make_files";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(LIMITED, directory.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
}

/// A disk that cannot cut sidecars.
struct KeepsSidecars(Arc<dyn Disk>);

impl Disk for KeepsSidecars {
    fn submit(&self, transfer: Transfer, done: Done) {
        self.0.submit(transfer, done);
    }

    fn finish(&self) {
        self.0.finish();
    }

    fn truncate(&self, file: &DiskFile, size: u64) -> io::Result<()> {
        if file.name.starts_with(".leasehold/sums") {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.0.truncate(file, size)
    }
}

/// Found by the simulator (seed 15703): a truncate failed after the file was cut and its sums were forgotten, and with the old size,
/// which the core keeps then, the file read as zeros.
#[test]
fn after_a_truncate_that_failed_half_way_what_it_has_changed_fails_to_be_read() {
    for (_, directory) in places() {
        let wrap: WrapDisk = Arc::new(|disk| Arc::new(KeepsSidecars(disk)));
        let config = StorageConfig { wrap_disk: Some(wrap), ..StorageConfig::new(directory.path()) };
        let driver = Driver::open_with(config);
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 8192));
        driver.storage().checkpoint().unwrap();
        let failed = driver.change_with(file, Change::Truncate { size: 0 }, Detail::None);
        assert_eq!(failed, Err(Fault::Io));
        assert_eq!(driver.size(file), 8192);
        assert_eq!(driver.try_read(file, 0, 8192), Err(Fault::Checksum));
        driver.write(file, 0, &pattern(2, 8192));
        assert!(driver.content(file) == pattern(2, 8192));
    }
}
