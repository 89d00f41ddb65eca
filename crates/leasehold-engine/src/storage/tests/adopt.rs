//! Bytes of others that are taken for what was committed.

use super::*;
use std::fs::OpenOptions;

#[test]
fn bytes_changed_behind_our_back_are_good_once_they_are_adopted_and_stay_so() {
    for (_, directory) in places() {
        let name = directory.path().join("files/a");
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let mut expected = pattern(1, 3000 * 4096);
        driver.write(file, 0, &expected[..1000 * 4096]);
        driver.write(file, 1000 * 4096, &expected[1000 * 4096..]);
        driver.flush(file);
        poke(&name, 2 * 4096 + 7, b"other bytes");
        poke(&name, 2900 * 4096, &[0; 4096]);
        expected[2 * 4096 + 7..][..11].copy_from_slice(b"other bytes");
        expected[2900 * 4096..][..4096].fill(0);
        assert_eq!(driver.try_read(file, 2 * 4096, 4096), Err(Fault::Checksum));
        assert_eq!(driver.adopt(file, 0, 5 * 4096), None);
        assert_eq!(driver.try_read(file, 2900 * 4096, 4096), Err(Fault::Checksum), "not asked for");
        assert_eq!(driver.adopt(file, 5 * 4096, u64::MAX), Some(3000 * 4096));
        let check = |driver: &Driver, file| {
            for start in [0, 1000, 2000] {
                let bytes = driver.read(file, start * 4096, 1000 * 4096);
                assert!(bytes == expected[start as usize * 4096..][..1000 * 4096], "from block {start}");
            }
        };
        check(&driver, file);
        driver.kill();
        let driver = Driver::open(directory.path());
        assert_eq!(driver.opened.damage, []);
        check(&driver, driver.open_file("a"));
        driver.stop();
        let driver = Driver::open(directory.path());
        check(&driver, driver.open_file("a"));
    }
}

#[test]
fn a_length_changed_behind_our_back_is_adopted_with_the_last_piece() {
    for (_, directory) in places() {
        for opened in [false, true] {
            for length in [0, 1, 5000, 8192, 20_001, 40_000] {
                let root = directory.path().join(format!("{length}-{opened}"));
                let mut driver = Driver::open(&root);
                let mut file = driver.create("a");
                let mut expected = pattern(1, 20_000);
                driver.write(file, 0, &expected);
                if !opened {
                    driver.stop();
                    driver = Driver::open(&root);
                }
                OpenOptions::new().write(true).open(root.join("files/a")).unwrap().set_len(length).unwrap();
                expected.resize(length as usize, 0);
                file = if opened { file } else { driver.open_file("a") };
                assert_eq!(driver.adopt(file, 0, u64::MAX), Some(length), "opened before: {opened}");
                assert_eq!(driver.size(file), length);
                assert!(driver.content(file) == expected, "{length}, {opened}");
                driver.kill();
                let driver = Driver::open(&root);
                assert_eq!(driver.opened.damage, []);
                let file = driver.open_file("a");
                assert_eq!(driver.size(file), length, "opened before: {opened}");
                assert!(driver.content(file) == expected, "{length}, {opened}");
            }
        }
    }
}

#[test]
fn torn_blocks_damaged_pages_and_a_damaged_header_are_mended_by_adoption() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let bytes = pattern(1, 2000 * 4096);
        driver.write(file, 0, &bytes);
        driver.stop();
        let sidecar = only_file(&directory.path().join(".leasehold/sums"));
        poke(&sidecar, 2 * 4096 + 300, &[0xff; 4]);
        poke(&sidecar, 60, &[0xff; 4]);
        let driver = Driver::open(directory.path());
        let error = driver.storage().open_file(&path("a")).unwrap_err();
        assert!(error.to_string().contains("scrub --adopt"), "{error}");
        let file = driver.storage().open_to_adopt(&path("a")).unwrap().file;
        assert!(driver.read(file, 0, 960 * 4096) == bytes[..960 * 4096], "this page is good");
        assert_eq!(driver.try_read(file, 960 * 4096, 4096), Err(Fault::Checksum));
        assert_eq!(driver.adopt(file, 0, 1000 * 4096), None);
        assert!(driver.read(file, 0, 1000 * 4096) == bytes[..1000 * 4096]);
        assert_eq!(driver.try_read(file, 1000 * 4096, 4096), Err(Fault::Checksum), "not adopted yet");
        assert_eq!(driver.adopt(file, 1000 * 4096, u64::MAX), Some(2000 * 4096));
        assert!(driver.content(file) == bytes);
        driver.stop();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert!(driver.content(file) == bytes);
        assert_eq!(driver.survey(file), Survey { known: 2000, ..Survey::default() });
    }
}

#[test]
fn a_recorded_write_to_a_damaged_page_does_not_keep_the_store_from_opening() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let bytes = pattern(1, 100 * 4096);
        driver.write(file, 0, &bytes);
        driver.flush(file);
        // Twice: the record still has copies of the pages after the first.
        driver.storage().checkpoint().unwrap();
        driver.storage().checkpoint().unwrap();
        driver.write(file, 4096, &[7; 4096]);
        driver.kill();
        poke(&only_file(&directory.path().join(".leasehold/sums")), 4096 + 300, &[0xff; 4]);
        let driver = Driver::open(directory.path());
        let [damage] = &driver.opened.damage[..] else { panic!("{:?}", driver.opened.damage) };
        assert_eq!((damage.path.clone(), damage.blocks), (Some(path("a")), BlockRange::new(0, 960)));
        let file = driver.open_file("a");
        assert!(driver.read(file, 4096, 4096) == [7; 4096], "the record has its checksum");
        assert_eq!(driver.try_read(file, 0, 4096), Err(Fault::Checksum));
        assert_eq!(driver.adopt(file, 0, u64::MAX), Some(100 * 4096));
        assert!(driver.read(file, 8192, 98 * 4096) == bytes[8192..]);
    }
}

#[test]
fn a_huge_sparse_file_is_adopted_as_quickly_as_there_is_data() {
    for (_, directory) in places() {
        Driver::open(directory.path()).stop();
        let name = directory.path().join("files/a");
        std::fs::File::create(&name).unwrap().set_len(1 << 40).unwrap();
        poke(&name, 1 << 39, &[5; 10_000]);
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert_eq!(driver.adopt(file, 0, u64::MAX), Some(1 << 40));
        let survey = driver.survey(file);
        assert!((3..=2048).contains(&survey.known) && survey.unknown == 0, "{survey:?}");
        assert!(driver.read(file, 1 << 39, 10_000) == [5; 10_000]);
    }
}

/// A write elsewhere was making the file longer. What is durable of the size was taken for the end of file, and recorded
/// behind that write: after a crash, what it had brought was cut off. The power-loss test found it.
#[test]
fn an_adoption_within_the_file_leaves_the_size_to_the_writes_beside_it() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let mut expected = pattern(1, 6 * 4096);
        expected[8192..16384].fill(0);
        driver.write(file, 0, &expected[..8192]);
        let (write, run, range) = driver.record(file, 0, 4 * 4096, &expected[16384..], 6 * 4096);
        let size = driver.adopt(file, 4096, 3 * 4096);
        let output = Output::Write { write, file, blocks: range.blocks(), size: 6 * 4096, run };
        assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
        driver.kill();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert!(driver.content(file) == expected);
        assert_eq!(size, None);
    }
}
