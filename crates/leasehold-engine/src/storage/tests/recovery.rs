//! What is there after a kill, at each step of a write or change. What a power loss would have undone or torn is done to
//! the files by hand.

use super::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

/// Writes past the storage, as the disk would have left it.
fn put(directory: &Path, name: &str, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(directory.join("files").join(name)).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

fn set_length(directory: &Path, name: &str, length: u64) {
    OpenOptions::new().write(true).open(directory.join("files").join(name)).unwrap().set_len(length).unwrap();
}

/// A store with the file `a` of 16 blocks, which are in the sidecar, and a driver of it.
fn with_a_file(directory: &Path) -> (Driver, FileId, Vec<u8>) {
    let driver = Driver::open(directory);
    let file = driver.create("a");
    let old = pattern(1, 16 * 4096);
    driver.write(file, 0, &old);
    driver.flush(file);
    driver.storage().checkpoint().unwrap();
    (driver, file, old)
}

fn reopened(directory: &Path) -> (Driver, FileId) {
    let driver = Driver::open(directory);
    let file = driver.open_file("a");
    (driver, file)
}

#[test]
fn what_was_flushed_is_there_after_a_kill_before_any_checkpoint() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let bytes = pattern(3, 100_001);
        driver.write(file, 0, &bytes);
        driver.flush(file);
        driver.kill();
        let (driver, file) = reopened(directory.path());
        assert!(driver.opened.recovered);
        assert_eq!(driver.opened.damage, []);
        assert!(driver.content(file) == bytes);
        let survey = driver.storage().survey(file, BlockRange::new(0, 100).unwrap()).unwrap();
        assert_eq!(survey, Survey { known: 25, ..Survey::default() });
        driver.kill();
        let (driver, file) = reopened(directory.path());
        assert!(driver.content(file) == bytes, "a second kill right after recovery");
    }
}

#[test]
fn a_recorded_overwrite_whose_data_never_came_leaves_the_old_bytes() {
    for (_, directory) in places() {
        let (driver, file, old) = with_a_file(directory.path());
        driver.record(file, 0, 4096, &pattern(9, 3 * 4096), old.len() as u64);
        driver.kill();
        let (driver, file) = reopened(directory.path());
        assert_eq!(driver.opened.damage, []);
        assert!(driver.content(file) == old);
    }
}

#[test]
fn an_overwrite_whose_data_came_in_part_leaves_each_block_old_or_new() {
    for (_, directory) in places() {
        let (driver, file, old) = with_a_file(directory.path());
        let new = pattern(9, 3 * 4096);
        driver.record(file, 0, 4096, &new, old.len() as u64);
        driver.kill();
        put(directory.path(), "a", 2 * 4096, &new[4096..8192]);
        let (driver, file) = reopened(directory.path());
        assert_eq!(driver.opened.damage, []);
        let mut expected = old;
        expected[2 * 4096..3 * 4096].copy_from_slice(&new[4096..8192]);
        assert!(driver.content(file) == expected);
    }
}

#[test]
fn a_torn_overwrite_is_reported_by_path_and_range_and_fails_to_read_until_it_is_written_again() {
    for (_, directory) in places() {
        let (driver, file, old) = with_a_file(directory.path());
        let new = pattern(9, 3 * 4096);
        driver.record(file, 0, 4096, &new, old.len() as u64);
        driver.kill();
        put(directory.path(), "a", 4096, &new[..512]);
        let (driver, file) = reopened(directory.path());
        let [damage] = &driver.opened.damage[..] else { panic!("{:?}", driver.opened.damage) };
        assert_eq!((damage.path.clone(), damage.blocks), (Some(path("a")), BlockRange::new(1, 2)));
        assert_eq!(driver.try_read(file, 0, 8192), Err(Fault::Checksum));
        assert!(driver.read(file, 0, 4096) == old[..4096], "its neighbours can be read");
        driver.stop();
        let (driver, file) = reopened(directory.path());
        assert_eq!(driver.try_read(file, 4096, 1), Err(Fault::Checksum), "still, after a clean stop");
        driver.write(file, 4096, &new);
        assert!(driver.read(file, 4096, new.len() as u64) == new);
    }
}

#[test]
fn a_block_that_also_holds_other_committed_bytes_is_never_torn() {
    for (_, directory) in places() {
        let (driver, file, mut expected) = with_a_file(directory.path());
        driver.record(file, 0, 5000, &[7; 100], expected.len() as u64);
        driver.kill();
        put(directory.path(), "a", 4096, &[0xAB; 700]);
        let (driver, file) = reopened(directory.path());
        assert_eq!(driver.opened.damage, []);
        expected[5000..5100].fill(7);
        assert!(driver.content(file) == expected);
    }
}

#[test]
fn data_without_a_durable_record_past_the_end_is_cut_off() {
    for (_, directory) in places() {
        let (driver, file, old) = with_a_file(directory.path());
        // The file is marked by this write; the next ones need not wait for their records.
        driver.write(file, old.len() as u64, &[5; 4096]);
        driver.kill();
        put(directory.path(), "a", old.len() as u64 + 4096, &pattern(8, 10_000));
        let (driver, file) = reopened(directory.path());
        assert_eq!(driver.size(file), old.len() as u64 + 4096);
        assert_eq!(
            std::fs::metadata(directory.path().join("files/a")).unwrap().len(),
            old.len() as u64 + 4096
        );
        assert!(driver.content(file)[..old.len()] == old[..]);
    }
}

#[test]
fn a_torn_write_to_a_hole_becomes_a_hole_again() {
    for (_, directory) in places() {
        let (driver, file, old) = with_a_file(directory.path());
        driver.truncate(file, 1 << 20);
        driver.record(file, 0, 512 << 10, &pattern(2, 8192), 1 << 20);
        driver.kill();
        put(directory.path(), "a", 512 << 10, &[1; 600]);
        let (driver, file) = reopened(directory.path());
        assert_eq!(driver.opened.damage, []);
        let mut expected = old;
        expected.resize(1 << 20, 0);
        assert!(driver.content(file) == expected);
    }
}

#[test]
fn a_size_that_the_filesystem_lost_or_padded_is_put_right() {
    for (_, directory) in places() {
        for length in [0, 16 * 4096, 20 * 4096, 1 << 24] {
            let root = directory.path().join(length.to_string());
            let (driver, file, old) = with_a_file(&root);
            driver.write(file, old.len() as u64, &pattern(4, 5000));
            driver.kill();
            if length >= 20 * 4096 {
                set_length(&root, "a", length);
            }
            let (driver, file) = reopened(&root);
            assert_eq!(driver.size(file), old.len() as u64 + 5000);
            assert_eq!(std::fs::metadata(root.join("files/a")).unwrap().len(), old.len() as u64 + 5000);
            assert!(driver.content(file)[old.len()..] == pattern(4, 5000)[..]);
        }
    }
}

/// A write that had made the file longer was taken for one whose last block had not come, since that block was not its own
/// any more: what was acknowledged was cut off. The power-loss test found it on disks that are now fast, now slow.
#[test]
fn a_file_stays_as_long_as_a_write_made_it_whose_last_block_is_being_changed() {
    let zero = Change::Zero { range: ByteRange::new(19 * 4096, 20 * 4096).unwrap() };
    let punch = Change::Punch { range: ByteRange::new(19 * 4096 + 10, 20 * 4096).unwrap() };
    for (_, directory) in places() {
        for (number, last) in [None, Some(zero), Some(punch)].into_iter().enumerate() {
            let root = directory.path().join(number.to_string());
            let (driver, file, mut expected) = with_a_file(&root);
            // A record that stays open, so that nothing after it counts as durable by itself.
            let elsewhere = driver.create("b");
            driver.record(elsewhere, 100, 0, &[1; 4096], 4096);
            let new = pattern(3, 3 * 4096 + 1000);
            expected.extend(&new);
            driver.write(file, 16 * 4096, &new);
            match last {
                None => drop(driver.record(file, 0, 19 * 4096, &pattern(5, 4096), 20 * 4096)),
                Some(change) => {
                    driver.change_with(file, change, Detail::None).unwrap();
                    let start = if change == zero { 19 * 4096 } else { 19 * 4096 + 10 };
                    expected[start..].fill(0);
                }
            }
            driver.kill();
            let (driver, file) = reopened(&root);
            assert_eq!(driver.opened.damage, []);
            assert_eq!(driver.size(file), expected.len() as u64, "{last:?}");
            assert!(driver.content(file) == expected, "{last:?}");
        }
    }
}

/// The next segment repeats what is open. A write that was found in both was taken for two, of which the first was over.
#[test]
fn a_write_that_never_came_does_not_make_the_file_longer_wherever_a_checkpoint_was_cut_short() {
    for (_, directory) in places() {
        for count in 0.. {
            let root = directory.path().join(count.to_string());
            let (driver, left) = crash::stopping(&root, i64::MAX, false);
            let driver = driver.expect("the disk works");
            let file = driver.create("a");
            let old = pattern(1, 4096);
            driver.write(file, 0, &old);
            driver.record(file, 0, 4096, &pattern(2, 8192), 3 * 4096);
            left.store(count, Ordering::SeqCst);
            let over = driver.storage().checkpoint().is_ok();
            driver.kill();
            let (driver, file) = reopened(&root);
            assert_eq!(driver.opened.damage, []);
            assert_eq!(driver.size(file), 4096, "cut short after {count}");
            assert!(driver.content(file) == old);
            if over {
                assert!(count > 3, "nothing was tried");
                break;
            }
        }
    }
}

#[test]
fn a_recorded_truncate_or_punch_that_was_not_made_is_made() {
    for (_, directory) in places() {
        for (name, change) in [
            ("truncate", Change::Truncate { size: 10_000 }),
            ("punch", Change::Punch { range: ByteRange::new(5000, 30_000).unwrap() }),
        ] {
            let root = directory.path().join(name);
            let (driver, file, old) = with_a_file(&root);
            driver.change_with(file, change, Detail::None).unwrap();
            driver.kill();
            // As if the record were durable and the change not.
            put(&root, "a", 0, &old);
            let (driver, file) = reopened(&root);
            assert_eq!(driver.opened.damage, []);
            let mut expected = old;
            match change {
                Change::Truncate { .. } => expected.truncate(10_000),
                _ => expected[5000..30_000].fill(0),
            }
            assert!(driver.content(file) == expected, "{name}");
            assert!(std::fs::read(root.join("files/a")).unwrap() == expected, "{name}");
        }
    }
}

#[test]
fn a_change_is_not_made_again_over_what_was_written_after_it() {
    for (_, directory) in places() {
        let (driver, file, old) = with_a_file(directory.path());
        // A record that stays open, so that nothing after it counts as durable by itself.
        let elsewhere = driver.create("b");
        driver.record(elsewhere, 100, 0, &[1; 4096], 4096);
        driver.truncate(file, 6000);
        driver.write(file, 6000, &pattern(3, 30_000));
        driver.punch(file, 0, 4096);
        driver.write(file, 100, &[9; 50]);
        driver.truncate(file, 50_000);
        driver.kill();
        let (driver, file) = reopened(directory.path());
        assert_eq!(driver.opened.damage, []);
        let mut expected = old;
        expected.truncate(6000);
        expected.extend(pattern(3, 30_000));
        expected[..4096].fill(0);
        expected[100..150].fill(9);
        expected.resize(50_000, 0);
        assert!(driver.content(file) == expected);
    }
}

#[test]
fn a_renamed_file_is_found_by_its_identity() {
    for (_, directory) in places() {
        let (driver, file, _) = with_a_file(directory.path());
        let bytes = pattern(6, 8192);
        driver.write(file, 0, &bytes);
        driver.kill();
        let files = directory.path().join("files");
        std::fs::create_dir(files.join("deep")).unwrap();
        std::fs::rename(files.join("a"), files.join("deep/b")).unwrap();
        std::fs::write(files.join("a"), b"another").unwrap();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("deep/b");
        assert!(driver.read(file, 0, 8192) == bytes);
        let survey = driver.storage().survey(file, BlockRange::new(0, 16).unwrap()).unwrap();
        assert_eq!(survey, Survey { known: 16, ..Survey::default() });
    }
}

#[test]
fn a_torn_record_at_the_end_is_normal_and_one_in_the_middle_is_reported() {
    for (_, directory) in places() {
        for (place, at_batch) in [("end", 2), ("middle", 1)] {
            let root = directory.path().join(place);
            let (driver, file, old) = with_a_file(&root);
            // Each waits for its record, so each has a batch of its own.
            for block in 0..3 {
                driver.record(
                    file,
                    block * 10,
                    u64::from(block) * 4096,
                    &[block as u8; 4096],
                    old.len() as u64,
                );
            }
            driver.kill();
            let log = root.join(".leasehold/log");
            let mut damaged = 0;
            for segment in ["0", "1"] {
                let mut bytes = std::fs::read(log.join(segment)).unwrap();
                // Live, and the only batches of its epoch: mark and first write, second, third.
                if bytes[32] == 0 && bytes[..40].iter().any(|byte| *byte != 0) {
                    let batch = live_batches(&bytes)[at_batch];
                    bytes[batch + 100] ^= 0xff;
                    std::fs::write(log.join(segment), bytes).unwrap();
                    damaged += 1;
                }
            }
            assert_eq!(damaged, 1);
            let (driver, file) = reopened(&root);
            assert_eq!(
                driver.opened.damage.len(),
                usize::from(place == "middle"),
                "{:?}",
                driver.opened.damage
            );
            assert!(driver.content(file) == old);
        }
    }
}

/// Offsets of the last three batches of the segment's epoch.
fn live_batches(bytes: &[u8]) -> Vec<usize> {
    let epoch = &bytes[16..24];
    let all = (4096..bytes.len())
        .step_by(4096)
        .filter(|at| &bytes[*at..*at + 4] == b"LHB1" && &bytes[*at + 8..*at + 16] == epoch);
    let all: Vec<usize> = all.collect();
    all[all.len() - 3..].to_vec()
}

#[test]
fn a_removed_file_is_not_missed() {
    for (_, directory) in places() {
        let (driver, file, _) = with_a_file(directory.path());
        driver.write(file, 0, &[1; 4096]);
        driver.change_with(file, Change::Remove, Detail::Unlink { path: path("a"), durable: true }).unwrap();
        driver.storage().forget(file);
        driver.kill();
        let driver = Driver::open(directory.path());
        assert_eq!(driver.opened.damage, []);
        assert!(matches!(driver.storage().open_file(&path("a")), Err(NamespaceError::NotFound { .. })));
    }
}
