//! The straight path: create, commit, read, flush, stop, open again.

use super::*;

#[test]
fn what_was_written_is_read_back_by_us_and_by_others_and_after_a_clean_stop() {
    for (place, directory) in places() {
        for backend in [Backend::Auto, Backend::Threads] {
            let root = directory.path().join(format!("{backend:?}"));
            let driver = Driver::open_with(StorageConfig { backend, ..StorageConfig::new(&root) });
            assert_eq!(driver.opened.zero_copy, place == "disk", "{:?}", driver.opened.notes);
            let file = driver.create("a");
            let bytes = pattern(1, 3 << 20);
            driver.write(file, 0, &bytes[..1 << 20]);
            driver.write(file, 1 << 20, &bytes[1 << 20..]);
            driver.flush(file);
            assert_eq!(driver.content(file), bytes);
            assert!(std::fs::read(root.join("files/a")).unwrap() == bytes, "other tools see the bytes");
            driver.stop();
            let driver = Driver::open_with(StorageConfig { backend, ..StorageConfig::new(&root) });
            assert!(!driver.opened.recovered);
            assert_eq!(driver.opened.damage, []);
            let file = driver.open_file("a");
            assert_eq!(driver.content(file), bytes);
            let survey = driver.storage().survey(file, BlockRange::new(0, 768).unwrap()).unwrap();
            assert_eq!(survey, Survey { known: 768, ..Survey::default() });
            driver.stop();
        }
    }
}

#[test]
fn unaligned_writes_keep_the_bytes_around_them() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let mut expected = pattern(1, 10_000);
        driver.write(file, 0, &expected);
        for (offset, length) in
            [(100, 50), (4000, 200), (4096, 4096), (9_990, 10), (9_995, 3000), (20_000, 1)]
        {
            let bytes = pattern(offset as u8, length);
            driver.write(file, offset as u64, &bytes);
            expected.resize(expected.len().max(offset + length), 0);
            expected[offset..offset + length].copy_from_slice(&bytes);
            assert!(driver.content(file) == expected, "after {length} bytes at {offset}");
        }
        driver.flush(file);
        assert!(std::fs::read(directory.path().join("files/a")).unwrap() == expected);
        driver.stop();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert!(driver.content(file) == expected);
    }
}

#[test]
fn a_wrong_crc_does_not_agree() {
    let (_, directory) = places().remove(0);
    let driver = Driver::open(directory.path());
    let file = driver.create("a");
    let range = ByteRange::at(10, 5000).unwrap();
    let bytes = pattern(3, 5000);
    let run = driver.fill(0, range, &bytes);
    for (crc, agrees) in [(Some(crc32c(&bytes)), true), (Some(crc32c(&bytes) ^ 1), false), (None, true)] {
        let lease = LeaseId(driver.number());
        let answer = driver.ask(Output::Verify { lease, file, range, run }, Detail::Crc(crc));
        assert_eq!(answer, Input::Verified { lease, agrees });
    }
}

#[test]
fn zero_clears_the_frames() {
    let (_, directory) = places().remove(0);
    let driver = Driver::open(directory.path());
    let run = driver.fill(5, ByteRange::at(0, 8192).unwrap(), &[]);
    let lease = LeaseId(1);
    let answer = driver.ask(Output::Zero { lease, into: run }, Detail::None);
    assert_eq!(answer, Input::LeaseLoaded { lease, result: Ok(()) });
    // SAFETY: the operation is over.
    assert!(unsafe { driver.arena.bytes(run) }.iter().all(|byte| *byte == 0));
}

#[test]
fn a_sparse_file_reads_as_zeros_where_nothing_was_written() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        driver.write(file, 5 << 20, &[7; 100]);
        assert_eq!(driver.size(file), (5 << 20) + 100);
        assert!(driver.read(file, 0, 5 << 20).iter().all(|byte| *byte == 0));
        driver.write(file, 1 << 20, &[8; 4096]);
        driver.flush(file);
        let (size, blocks) = {
            use std::os::unix::fs::MetadataExt;
            let metadata = std::fs::metadata(directory.path().join("files/a")).unwrap();
            (metadata.size(), metadata.blocks())
        };
        assert_eq!(size, (5 << 20) + 100);
        assert!(blocks * 512 <= 64 << 10, "{blocks} sectors are allocated");
        let survey = driver.storage().survey(file, BlockRange::new(0, u64::MAX).unwrap()).unwrap();
        assert_eq!((survey.known, survey.holes), (2, 1279));
    }
}

#[test]
fn a_truncate_removes_what_is_behind_it_and_a_longer_file_reads_zeros_there() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let bytes = pattern(5, 20_000);
        for cut in [0, 1, 4095, 4096, 4097, 8192, 12_345, 19_999, 20_000] {
            driver.truncate(file, 0);
            driver.write(file, 0, &bytes);
            driver.truncate(file, cut);
            assert_eq!(driver.size(file), cut);
            assert!(driver.content(file) == bytes[..cut as usize], "cut at {cut}");
            assert_eq!(std::fs::metadata(directory.path().join("files/a")).unwrap().len(), cut);
            driver.truncate(file, 30_000);
            let mut expected = bytes[..cut as usize].to_vec();
            expected.resize(30_000, 0);
            assert!(driver.content(file) == expected, "extended after a cut at {cut}");
        }
    }
}

#[test]
fn a_punch_zeroes_its_bytes_and_no_others() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let bytes = pattern(5, 20_000);
        for (start, end) in
            [(0, 4096), (1, 2), (100, 5000), (4096, 12_288), (5000, 20_000), (16_384, 30_000), (0, 1 << 40)]
        {
            driver.write(file, 0, &bytes);
            driver.punch(file, start, end);
            let mut expected = bytes.clone();
            expected[start as usize..(end as usize).min(20_000)].fill(0);
            assert_eq!(driver.size(file), 20_000);
            assert!(driver.content(file) == expected, "punched {start}..{end}");
            driver.flush(file);
            assert!(std::fs::read(directory.path().join("files/a")).unwrap() == expected);
        }
    }
}

#[test]
fn many_writes_in_flight_are_all_answered_and_survive_checkpoints() {
    for (_, directory) in places() {
        let config = StorageConfig { checkpoint_bytes: 64 << 10, ..StorageConfig::new(directory.path()) };
        let driver = Driver::open_with(config);
        let file = driver.create("a");
        let chunk = 16 * 4096;
        let chunks = 128u64;
        let mut recorded = Vec::new();
        for index in 0..chunks {
            let bytes = pattern(index as u8, chunk);
            let size = (index + 1) * chunk as u64;
            let range = ByteRange::at(index * chunk as u64, chunk as u64).unwrap();
            let run = driver.fill(index as u32 * 16, range, &bytes);
            let write = WriteId(index);
            driver.storage().perform(Output::Record { write, file, range, size, run }, Detail::None);
            recorded.push((range, run, size));
        }
        let mut written = 0;
        while written < chunks {
            match driver.answers.recv_timeout(Duration::from_secs(60)).expect("an answer") {
                Input::Recorded { write, result } => {
                    result.unwrap();
                    let (range, run, size) = recorded[write.0 as usize];
                    let output = Output::Write { write, file, blocks: range.blocks(), size, run };
                    driver.storage().perform(output, Detail::None);
                }
                Input::Written { result, .. } => {
                    result.unwrap();
                    written += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        for overwrite in 0..20u8 {
            driver.write(file, u64::from(overwrite) * 8192, &pattern(overwrite ^ 0xff, 8192));
            driver.storage().checkpoint().unwrap();
        }
        driver.kill();
        let driver = Driver::open(directory.path());
        assert!(driver.opened.recovered);
        assert_eq!(driver.opened.damage, []);
        let file = driver.open_file("a");
        for index in 0..chunks {
            let mut expected = pattern(index as u8, chunk);
            for overwrite in 0..20u64 {
                let offset = overwrite * 8192;
                if offset / chunk as u64 == index {
                    let at = (offset % chunk as u64) as usize;
                    expected[at..at + 8192].copy_from_slice(&pattern(overwrite as u8 ^ 0xff, 8192));
                }
            }
            assert!(driver.read(file, index * chunk as u64, chunk as u64) == expected, "chunk {index}");
        }
    }
}

fn pages_in_memory(driver: &Driver, file: FileId) -> usize {
    driver.storage().inner.file(file).sums().pages_in_memory()
}

/// A punch once made a page of checksums of every hole in a huge sparse file, with the file locked.
#[test]
fn a_punch_and_a_survey_of_a_huge_file_take_as_long_as_there_is_data() {
    const GIB: u64 = 1 << 30;
    const END: u64 = 64 * GIB;
    for in_memory in [true, false] {
        for (_, directory) in places() {
            let config = StorageConfig { sidecar_bytes_max: 0, ..StorageConfig::new(directory.path()) };
            let driver = Driver::open_with(config);
            let file = driver.create("a");
            for (seed, offset) in [(1, 0), (2, 5 * GIB), (3, 20 * GIB), (4, END - 8192)] {
                driver.write(file, offset, &pattern(seed, 8192));
            }
            if !in_memory {
                // The pages are on disk, and only there.
                driver.storage().checkpoint().unwrap();
                driver.flush(file);
                driver.storage().checkpoint().unwrap();
                assert_eq!(pages_in_memory(&driver, file), 0);
            }
            driver.punch(file, 4096, END - 4096);
            let all = BlockRange::new(0, u64::MAX).unwrap();
            let counts = Survey { known: 2, holes: END / 4096 - 2, ..Survey::default() };
            assert_eq!(driver.storage().survey(file, all).unwrap(), counts);
            assert!(pages_in_memory(&driver, file) <= 4, "{}", pages_in_memory(&driver, file));
            let check = |driver: &Driver, file| {
                assert_eq!(driver.storage().survey(file, all).unwrap(), counts);
                assert!(driver.read(file, 0, 4096) == pattern(1, 8192)[..4096]);
                assert!(driver.read(file, END - 4096, 4096) == pattern(4, 8192)[4096..]);
                for offset in [4096, 5 * GIB, 20 * GIB, END - 8192] {
                    assert!(driver.read(file, offset, 4096) == [0; 4096], "{offset}");
                }
            };
            check(&driver, file);
            driver.kill();
            let driver = Driver::open(directory.path());
            let file = driver.open_file("a");
            check(&driver, file);
            driver.stop();
            let driver = Driver::open(directory.path());
            check(&driver, driver.open_file("a"));
        }
    }
}

#[test]
fn a_punch_of_an_adopted_file_leaves_the_rest_of_it_to_be_adopted() {
    // Pages of checksums describe 960 blocks.
    const BLOCKS: u64 = 5000;
    for (_, directory) in places() {
        Driver::open(directory.path()).stop();
        let name = directory.path().join("files/a");
        std::fs::write(&name, vec![7; BLOCKS as usize * 4096]).unwrap();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        let survey = || driver.storage().survey(file, BlockRange::new(0, BLOCKS).unwrap()).unwrap();
        assert_eq!(survey(), Survey { unknown: BLOCKS, ..Survey::default() });
        driver.punch(file, 4000 * 4096, BLOCKS * 4096);
        assert_eq!(survey(), Survey { unknown: 4000, holes: 1000, ..Survey::default() });
        driver.punch(file, 500 * 4096, 3000 * 4096);
        assert!(driver.read(file, 499 * 4096, 4096) == [7; 4096]);
        for block in [500, 959, 960, 1500, 2999, 4000, 4999] {
            assert!(driver.read(file, block * 4096, 4096) == [0; 4096], "{block}");
        }
        assert!(driver.read(file, 3000 * 4096, 4096) == [7; 4096]);
        driver.kill();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert!(driver.read(file, 0, 500 * 4096).iter().all(|byte| *byte == 7));
        assert!(driver.read(file, 500 * 4096, 2000 * 4096).iter().all(|byte| *byte == 0));
        assert!(driver.read(file, 3000 * 4096, 1000 * 4096).iter().all(|byte| *byte == 7));
        assert!(driver.read(file, 4000 * 4096, 1000 * 4096).iter().all(|byte| *byte == 0));
    }
}
