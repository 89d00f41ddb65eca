use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

fn bytes(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("the tests use no empty ranges")
}

#[test]
fn the_whole_of_a_file_overlaps_everything() {
    let mut index = IntervalIndex::default();
    index.insert(ByteRange::ALL, LeaseId(1));
    index.insert(bytes(7, 8), LeaseId(2));
    assert_eq!(index.overlapping(bytes(7, 8)).count(), 2);
    assert_eq!(index.overlapping(bytes(u64::MAX - 1, u64::MAX)).collect::<Vec<_>>(), [LeaseId(1)]);
    assert_eq!(index.overlapping(ByteRange::ALL).count(), 2);
}

#[test]
fn readers_conflict_with_writers_only() {
    let mut index = ConflictIndex::default();
    index.insert(bytes(0, 10), false, LeaseId(1));
    assert_eq!(index.conflicting(bytes(0, 10), false).count(), 0);
    assert_eq!(index.conflicting(bytes(0, 10), true).count(), 1);
    index.insert(bytes(5, 6), true, LeaseId(2));
    assert_eq!(index.conflicting(bytes(0, 10), false).collect::<Vec<_>>(), [LeaseId(2)]);
    assert!(index.remove(bytes(5, 6), true, LeaseId(2)));
    assert!(!index.remove(bytes(5, 6), true, LeaseId(2)), "it is gone already");
    assert!(index.remove(bytes(0, 10), false, LeaseId(1)));
    assert!(index.is_empty());
}

proptest! {
    #[test]
    fn answers_are_those_of_a_scan_over_everything(
        spans in prop::collection::vec((0_u64..500, 1_u64..200), 0..60),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        queries in prop::collection::vec((0_u64..700, 1_u64..300), 1..20),
    ) {
        let mut index = IntervalIndex::default();
        let mut naive: Vec<(ByteRange, LeaseId)> = Vec::new();
        for (number, (start, length)) in spans.into_iter().enumerate() {
            let entry = (bytes(start, start + length), LeaseId(number as u64));
            index.insert(entry.0, entry.1);
            naive.push(entry);
        }
        for which in removed {
            if !naive.is_empty() {
                let (range, key) = naive.swap_remove(which.index(naive.len()));
                prop_assert!(index.remove(range, key));
            }
        }
        for (start, length) in queries {
            let query = bytes(start, start + length);
            let mut found: Vec<LeaseId> = index.overlapping(query).collect();
            found.sort();
            let mut expected: Vec<LeaseId> =
                naive.iter().filter(|(range, _)| range.overlaps(query)).map(|&(_, key)| key).collect();
            expected.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
