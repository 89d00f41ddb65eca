//! Blocks taken out of files, and ranges zeroed.

use super::*;
use crate::disk::{DiskFile, Done, Transfer};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;

#[test]
fn a_zeroed_range_reads_as_zeros_and_keeps_its_space() {
    for (place, directory) in all_places() {
        let driver = Driver::open(&directory.path().join("store"));
        let file = driver.create("a");
        let bytes = pattern(5, 200_000);
        for (start, end) in
            [(0, 4096), (1, 2), (100, 5000), (4096, 122_880), (5000, 200_000), (163_840, 1 << 40)]
        {
            driver.write(file, 0, &bytes);
            driver.zero(file, start, end);
            let mut expected = bytes.clone();
            expected[start as usize..(end as usize).min(200_000)].fill(0);
            assert_eq!(driver.size(file), 200_000);
            assert!(driver.content(file) == expected, "zeroed {start}..{end}");
            driver.flush(file);
            let name = directory.path().join("store/files/a");
            assert!(std::fs::read(&name).unwrap() == expected);
            let allocated = std::fs::metadata(&name).unwrap().blocks() * 512;
            assert!(allocated >= 200_000, "{place}: {allocated} bytes are allocated");
        }
        driver.kill();
        let driver = Driver::open(&directory.path().join("store"));
        let mut expected = bytes;
        expected[163_840..].fill(0);
        assert!(driver.content(driver.open_file("a")) == expected);
    }
}

#[test]
fn a_collapse_takes_its_blocks_out_and_keeps_all_others() {
    for (place, directory) in all_places() {
        let driver = Driver::open(&directory.path().join("store"));
        if !driver.collapses(place) {
            continue;
        }
        let file = driver.create("a");
        let bytes = pattern(5, 5 << 20);
        for (start, end) in
            [(0, 4096), (4096, 8192), (4096 * 959, 4096 * 961), (8192, 5 << 20), (40_960, 4096 * 1279)]
        {
            for checkpoint in [false, true] {
                driver.truncate(file, 0);
                driver.write(file, 0, &bytes);
                driver.write(file, 5 << 20, b"tail");
                if checkpoint {
                    driver.storage().checkpoint().unwrap();
                }
                driver.collapse(file, start, end);
                let mut expected = bytes.clone();
                expected.extend(b"tail");
                expected.drain(start as usize..end as usize);
                assert_eq!(driver.size(file), expected.len() as u64);
                assert!(driver.content(file) == expected, "collapsed {start}..{end}");
                assert!(std::fs::read(directory.path().join("store/files/a")).unwrap() == expected);
                let known = expected.len().div_ceil(4096) as u64;
                assert_eq!(driver.survey(file), Survey { known, ..Survey::default() });
            }
        }
        driver.stop();
        let driver = Driver::open(&directory.path().join("store"));
        let mut expected = bytes;
        expected.extend(b"tail");
        expected.drain(40_960..4096 * 1279);
        assert!(driver.content(driver.open_file("a")) == expected);
    }
}

#[test]
fn holes_and_unknown_blocks_move_as_well() {
    for (place, directory) in all_places() {
        Driver::open(&directory.path().join("store")).stop();
        let mut expected = pattern(7, 3000 * 4096);
        std::fs::write(directory.path().join("store/files/a"), &expected).unwrap();
        let driver = Driver::open(&directory.path().join("store"));
        if !driver.collapses(place) {
            continue;
        }
        let file = driver.open_file("a");
        driver.truncate(file, 6000 * 4096);
        driver.write(file, 5000 * 4096, &[9; 4096]);
        driver.punch(file, 10 * 4096, 1500 * 4096);
        expected.resize(6000 * 4096, 0);
        expected[5000 * 4096..][..4096].fill(9);
        expected[10 * 4096..1500 * 4096].fill(0);
        let counts = Survey { known: 1, holes: 1490 + 2999, unknown: 1510, torn: 0 };
        assert_eq!(driver.survey(file), counts);
        driver.collapse(file, 1400 * 4096, 1600 * 4096);
        expected.drain(1400 * 4096..1600 * 4096);
        let counts = Survey { known: 1, holes: 1390 + 2999, unknown: 1410, torn: 0 };
        assert_eq!(driver.survey(file), counts);
        driver.collapse(file, 2000 * 4096, 4000 * 4096);
        expected.drain(2000 * 4096..4000 * 4096);
        let check = |driver: &Driver, file| {
            for start in (0..expected.len()).step_by(1 << 20) {
                let length = (expected.len() - start).min(1 << 20);
                let found = driver.read(file, start as u64, length as u64);
                assert!(found == expected[start..start + length], "{start}");
            }
        };
        check(&driver, file);
        driver.kill();
        let driver = Driver::open(&directory.path().join("store"));
        assert_eq!(driver.opened.damage, []);
        check(&driver, driver.open_file("a"));
    }
}

#[test]
fn a_collapse_that_cannot_be_is_refused_with_a_remedy_before_anything_happens() {
    for (place, directory) in all_places() {
        let driver = Driver::open(&directory.path().join("store"));
        let file = driver.create("a");
        let bytes = pattern(1, 20_000);
        driver.write(file, 0, &bytes);
        let refused = |start, end| {
            let range = ByteRange::new(start, end).unwrap();
            driver.storage().check_collapse(range).err().map(|error| error.to_string())
        };
        if driver.collapses(place) {
            let unaligned = refused(4096, 8000).unwrap();
            assert!(unaligned.contains("align both ends"), "{unaligned}");
            assert_eq!(refused(4096, 8192), None);
            assert_eq!(
                driver.try_collapse(file, 8192, 20_480),
                Err(Fault::Io),
                "it ends past the end of file"
            );
        } else {
            let unsupported = refused(4096, 8192).unwrap();
            assert!(unsupported.contains("copy what is to stay"), "{unsupported}");
            assert_eq!(driver.try_collapse(file, 4096, 8192), Err(Fault::Io));
        }
        assert!(driver.content(file) == bytes);
    }
}

/// Works up to the first collapse, then nothing works any more.
struct EndsAtCollapse {
    disk: Arc<dyn Disk>,
    over: AtomicBool,
}

impl EndsAtCollapse {
    fn check(&self) -> io::Result<()> {
        if self.over.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

impl Disk for EndsAtCollapse {
    fn submit(&self, mut transfer: Transfer, done: Done) {
        if self.check().is_err() {
            // No such descriptor: the disk's thread answers, as it must.
            let file = std::fs::File::open("/dev/null").unwrap();
            transfer.file = Arc::new(DiskFile { file, name: "nothing".to_owned() });
        }
        self.disk.submit(transfer, done);
    }

    fn finish(&self) {
        self.disk.finish();
    }

    fn sync(&self, file: &DiskFile) -> io::Result<()> {
        self.check()?;
        self.disk.sync(file)
    }

    fn collapse(&self, _: &DiskFile, _: u64, _: u64) -> io::Result<()> {
        self.over.store(true, Ordering::SeqCst);
        self.check()
    }
}

/// ext4 and XFS move extents one by one: what a power loss leaves is made by hand.
#[test]
fn a_collapse_that_a_power_loss_cut_short_is_finished_from_wherever_it_got_to() {
    for (place, directory) in all_places() {
        for (moved, garbled) in
            [(0, false), (0, true), (1, false), (7, false), (7, true), (20, false), (23, false)]
        {
            let root = directory.path().join(format!("{moved}-{garbled}"));
            let wrap: WrapDisk =
                Arc::new(|disk| Arc::new(EndsAtCollapse { disk, over: AtomicBool::new(false) }));
            let driver =
                Driver::open_with(StorageConfig { wrap_disk: Some(wrap), ..StorageConfig::new(&root) });
            if !driver.collapses(place) {
                break;
            }
            let file = driver.create("a");
            let before = pattern(3, 40 * 4096 + 100);
            driver.write(file, 0, &before);
            driver.punch(file, 33 * 4096, 35 * 4096);
            driver.storage().checkpoint().unwrap();
            // Known to the record only.
            driver.write(file, 20 * 4096, &pattern(8, 4096));
            driver.write(file, 2 * 4096, &pattern(9, 4096));
            let mut before = before;
            before[33 * 4096..35 * 4096].fill(0);
            before[20 * 4096..][..4096].copy_from_slice(&pattern(8, 4096));
            before[2 * 4096..][..4096].copy_from_slice(&pattern(9, 4096));
            // Blocks 10 to 15, of which 23 and a part move to the front.
            assert_eq!(driver.try_collapse(file, 10 * 4096, 16 * 4096), Err(Fault::Io));
            driver.kill();
            let mut after = before.clone();
            after.drain(10 * 4096..16 * 4096);
            let mut half = before.clone();
            half[10 * 4096..][..moved * 4096].copy_from_slice(&after[10 * 4096..][..moved * 4096]);
            half[(10 + moved) * 4096..][..6 * 4096].fill(0);
            if garbled {
                half[30 * 4096..][..4096].fill(0xAA);
            }
            std::fs::write(root.join("files/a"), &half).unwrap();
            let driver = Driver::open(&root);
            let file = driver.open_file("a");
            assert_eq!(driver.size(file), after.len() as u64);
            let damage: Vec<_> = driver.opened.damage.iter().map(|damage| damage.blocks).collect();
            let bad = if garbled { vec![BlockRange::new(24, 25)] } else { vec![] };
            assert_eq!(damage, bad, "{moved} moved");
            for (block, expected) in after.chunks(4096).enumerate() {
                let found = driver.try_read(file, block as u64 * 4096, expected.len() as u64);
                let expected =
                    if garbled && block == 24 { Err(Fault::Checksum) } else { Ok(expected.to_vec()) };
                assert!(found == expected, "block {block} of {moved} moved, garbled {garbled}");
            }
            driver.stop();
            assert!(!Driver::open(&root).opened.recovered);
        }
    }
}

/// A sidecar page that a punch cleared in place would have been shifted once more by the recovery after it.
#[test]
fn what_is_punched_after_a_collapse_and_before_a_checkpoint_is_what_is_missing_after_a_kill() {
    for (place, directory) in all_places() {
        let driver = Driver::open(&directory.path().join("store"));
        if !driver.collapses(place) {
            continue;
        }
        let file = driver.create("a");
        let mut expected = pattern(3, 4 << 20);
        expected.extend(pattern(4, 4 << 20));
        driver.write(file, 0, &expected[..4 << 20]);
        driver.write(file, 4 << 20, &expected[4 << 20..]);
        driver.storage().checkpoint().unwrap();
        driver.collapse(file, 10 * 4096, 20 * 4096);
        expected.drain(10 * 4096..20 * 4096);
        driver.punch(file, 5 * 4096, 1930 * 4096);
        expected[5 * 4096..1930 * 4096].fill(0);
        driver.write(file, 100 * 4096, &[7; 4096]);
        expected[100 * 4096..101 * 4096].fill(7);
        driver.kill();
        let driver = Driver::open(&directory.path().join("store"));
        assert_eq!(driver.opened.damage, []);
        let file = driver.open_file("a");
        let (first, second) = expected.split_at(4 << 20);
        assert!(driver.read(file, 0, 4 << 20) == first);
        assert!(driver.read(file, 4 << 20, second.len() as u64) == second);
        let known = 5 + 1 + (2048 - 10 - 1930);
        assert_eq!(driver.survey(file), Survey { known, holes: 2038 - known, ..Survey::default() });
    }
}
