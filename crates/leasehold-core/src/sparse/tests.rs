use super::*;
use alloc::collections::BTreeMap;
use proptest::prelude::*;

/// Keys that are dense, sparse, and at both ends.
fn key() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..200, any::<u64>(), (u64::MAX - 100)..=u64::MAX, (0_u32..64).prop_map(|bit| 1 << bit)]
}

proptest! {
    #[test]
    fn it_answers_as_a_balanced_tree_does(
        steps in prop::collection::vec((any::<bool>(), key(), 0_u32..1000), 0..300),
        ranges in prop::collection::vec((key(), key()), 1..20),
    ) {
        let mut table = SparseTable::default();
        let mut model = BTreeMap::new();
        for (inserts, key, value) in steps {
            if inserts {
                prop_assert_eq!(table.insert(key, value), model.insert(key, value));
            } else {
                // Of a key that is there, if any is behind.
                let key = model.range(key..).next().map_or(key, |(&key, _)| key);
                prop_assert_eq!(table.remove(key), model.remove(&key));
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(table.get(key), model.get(&key));
            prop_assert_eq!(table.get_mut(key), model.get_mut(&key));
        }
        for (one, other) in ranges {
            let (first, last) = (one.min(other), one.max(other));
            let found: Vec<(u64, u32)> = table.range(first, last).map(|(key, &value)| (key, value)).collect();
            let expected: Vec<(u64, u32)> = model.range(first..=last).map(|(&key, &value)| (key, value)).collect();
            prop_assert_eq!(found, expected);
        }
        let mut again = SparseTable::default();
        for (&key, &value) in model.iter().rev() {
            again.insert(key, value);
        }
        prop_assert_eq!(&again, &table, "the same values in the same nodes, however they came there");
        for key in model.into_keys() {
            table.remove(key);
        }
        prop_assert_eq!(table, SparseTable::default());
    }
}
