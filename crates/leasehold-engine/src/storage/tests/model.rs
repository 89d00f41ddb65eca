//! Random commits, changes, clones, clean stops and kills against a vector of bytes.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[derive(Clone, Debug)]
enum Action {
    Write {
        offset: u64,
        length: u64,
        seed: u8,
    },
    /// Recorded, then never written: as if killed before the data.
    RecordOnly {
        offset: u64,
        length: u64,
    },
    Truncate {
        size: u64,
    },
    Punch {
        start: u64,
        length: u64,
    },
    Zero {
        start: u64,
        length: u64,
    },
    /// In blocks.
    Collapse {
        first: u64,
        count: u64,
    },
    /// Bytes of others, and their adoption.
    Adopt {
        offset: u64,
        length: u64,
        seed: u8,
    },
    /// The file goes on as its clone.
    Clone,
    Evict,
    Flush,
    Checkpoint,
    Stop,
    Kill,
}

const SPAN: u64 = 200_000;

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let byte = prop_oneof![0..SPAN, (0..SPAN / 4096).prop_map(|block| block * 4096)];
    let length = prop_oneof![1..30_000u64, (1..6u64).prop_map(|blocks| blocks * 4096)];
    let action = prop_oneof![
        6 => (byte.clone(), length.clone(), any::<u8>()).prop_map(|(offset, length, seed)| Action::Write { offset, length, seed }),
        1 => (byte.clone(), length.clone()).prop_map(|(offset, length)| Action::RecordOnly { offset, length }),
        2 => byte.clone().prop_map(|size| Action::Truncate { size }),
        2 => (byte.clone(), length.clone()).prop_map(|(start, length)| Action::Punch { start, length }),
        1 => (byte.clone(), length.clone()).prop_map(|(start, length)| Action::Zero { start, length }),
        2 => (0..SPAN / 4096, 1..8u64).prop_map(|(first, count)| Action::Collapse { first, count }),
        1 => (byte, length, any::<u8>()).prop_map(|(offset, length, seed)| Action::Adopt { offset, length, seed }),
        1 => Just(Action::Clone),
        1 => Just(Action::Evict),
        1 => Just(Action::Flush),
        1 => Just(Action::Checkpoint),
        1 => Just(Action::Stop),
        2 => Just(Action::Kill),
    ];
    prop::collection::vec(action, 1..25)
}

fn run(directory: &Path, actions: &[Action]) {
    // Checkpoints come by themselves, beside what is under way.
    let open =
        || Driver::open_with(StorageConfig { checkpoint_bytes: 20_000, ..StorageConfig::new(directory) });
    let mut driver = open();
    let mut file = driver.create("a");
    let mut model: Vec<u8> = Vec::new();
    for (step, action) in actions.iter().enumerate() {
        let mut reopen = false;
        match *action {
            Action::Write { offset, length, seed } => {
                let bytes = pattern(seed, length as usize);
                driver.write(file, offset, &bytes);
                model.resize(model.len().max((offset + length) as usize), 0);
                model[offset as usize..][..length as usize].copy_from_slice(&bytes);
            }
            Action::RecordOnly { offset, length } => {
                // Within what is there and in whole blocks, the old bytes stay; blocks at the edges come from their images.
                let (offset, length) = (offset / 4096 * 4096, length.next_multiple_of(4096));
                if offset + length <= model.len() as u64 {
                    driver.record(file, 1000, offset, &vec![0x77; length as usize], model.len() as u64);
                    reopen = true;
                }
            }
            Action::Truncate { size } => {
                driver.truncate(file, size);
                model.resize(size as usize, 0);
            }
            Action::Punch { start, length } => {
                driver.punch(file, start, start + length);
                let end = ((start + length) as usize).min(model.len());
                if (start as usize) < end {
                    model[start as usize..end].fill(0);
                }
            }
            Action::Zero { start, length } => {
                driver.zero(file, start, start + length);
                let end = ((start + length) as usize).min(model.len());
                if (start as usize) < end {
                    model[start as usize..end].fill(0);
                }
            }
            Action::Collapse { first, count } => {
                let (start, end) = (first * 4096, (first + count) * 4096);
                let possible = driver.storage().check_collapse(ByteRange::new(start, end).unwrap()).is_ok();
                if possible && end < model.len() as u64 {
                    driver.collapse(file, start, end);
                    model.drain(start as usize..end as usize);
                }
            }
            Action::Adopt { offset, length, seed } => {
                // Its length may be ahead of what is needed; others see it after a flush.
                driver.flush(file);
                let bytes = pattern(seed, length as usize);
                poke(&directory.join("files/a"), offset, &bytes);
                model.resize(model.len().max((offset + length) as usize), 0);
                model[offset as usize..][..length as usize].copy_from_slice(&bytes);
                assert_eq!(driver.adopt(file, offset / 4096 * 4096, u64::MAX), Some(model.len() as u64));
                // What lies between the old end and these bytes.
                driver.adopt(file, 0, u64::MAX);
            }
            Action::Clone => {
                let staged = driver.storage().stage();
                driver.change_with(file, Change::Clone, Detail::Clone { staged }).unwrap();
                driver
                    .change_with(file, Change::Remove, Detail::PlaceOver { staged, to: path("a") })
                    .unwrap();
                driver.storage().forget(file);
                file = driver.open_file("a");
            }
            Action::Evict => drop(driver.storage().evict(file).unwrap()),
            Action::Flush => driver.flush(file),
            Action::Checkpoint => driver.storage().checkpoint().unwrap(),
            Action::Stop => {
                driver.stop();
                driver = open();
                assert!(!driver.opened.recovered, "step {step}");
                file = driver.open_file("a");
            }
            Action::Kill => reopen = true,
        }
        if reopen {
            driver.kill();
            driver = open();
            assert_eq!(driver.opened.damage, [], "step {step}");
            file = driver.open_file("a");
        }
        assert_eq!(driver.size(file), model.len() as u64, "size after step {step}: {action:?}");
        let content = driver.content(file);
        let differs = content.iter().zip(&model).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first differing byte after step {step}: {action:?}");
    }
    driver.stop();
    assert!(std::fs::read(directory.join("files/a")).unwrap() == model, "the file as others see it");
}

#[test]
fn bytes_past_an_unaligned_end_are_zeros_to_an_adoption() {
    for (place, directory) in all_places() {
        eprintln!("on {place}");
        let root = tempfile::tempdir_in(directory.path()).unwrap();
        let write = Action::Write { offset: 83893, length: 21858, seed: 0 };
        run(
            root.path(),
            &[write, Action::Truncate { size: 81921 }, Action::Adopt { offset: 0, length: 1, seed: 0 }],
        );
    }
}

#[test]
fn the_file_is_what_a_vector_of_bytes_would_be() {
    let places = all_places();
    let config = ProptestConfig {
        cases: 24,
        max_shrink_iters: 200,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    let ran = TestRunner::new(config).run(&actions(), |actions| {
        for (_, directory) in &places {
            let root = tempfile::tempdir_in(directory.path()).unwrap();
            run(root.path(), &actions);
        }
        Ok(())
    });
    if let Err(failed) = ran {
        panic!("{failed}");
    }
}
