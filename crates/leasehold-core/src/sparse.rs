//! An ordered map from integers that is read with few cache misses, however many values it has.
//!
//! A tree whose nodes have 64 slots each, taken by the bits of the key in turn, six at a time. Only taken slots take
//! memory, and a bit map says where they are, so that a node is not searched: a look-up touches one line of memory a
//! level, and all levels but the last two stay in the processor's cache. A balanced tree touches several lines a level, one
//! after the other.
//!
//! ```text
//! key 0b000010_000101   root: slots 0..64 --slot 2--> node: slots 0..64 --slot 5--> value
//! ```
//!
//! Invariant: nodes are not empty, but for the root of an empty table, and there are no more levels than the greatest key
//! needs. So tables of the same values have the same nodes.

use crate::ids::LeaseId;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ops::Index;

/// Bits of the key that a node takes.
const BITS: u32 = 6;
/// The greatest slot, and all bits of one.
const SLOT_MAX: u64 = (1 << BITS) - 1;

/// What is an integer in the end.
pub(crate) trait Key: Copy {
    fn number(self) -> u64;
    fn of(number: u64) -> Self;
}

impl Key for u64 {
    fn number(self) -> u64 {
        self
    }

    fn of(number: u64) -> u64 {
        number
    }
}

impl Key for LeaseId {
    fn number(self) -> u64 {
        self.0
    }

    fn of(number: u64) -> LeaseId {
        LeaseId(number)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SparseTable<K, V> {
    root: Node<V>,
    /// Nodes from the root to any value.
    levels: u32,
    len: usize,
    keys: PhantomData<K>,
}

/// The slots that are taken, by their bits, and what is in them, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node<V> {
    taken: u64,
    slots: Slots<V>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Slots<V> {
    Nodes(Vec<Node<V>>),
    Values(Vec<V>),
}

impl<K, V> Default for SparseTable<K, V> {
    fn default() -> SparseTable<K, V> {
        SparseTable { root: Node::new(1), levels: 1, len: 0, keys: PhantomData }
    }
}

impl<K: Key, V> SparseTable<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn contains_key(&self, key: K) -> bool {
        self.get(key).is_some()
    }

    pub fn get(&self, key: K) -> Option<&V> {
        let (mut node, mut level, key) = (&self.root, self.levels, key.number());
        if !self.reaches(key) {
            return None;
        }
        loop {
            level -= 1;
            let at = node.find(slot(key, level))?;
            match &node.slots {
                Slots::Nodes(nodes) => node = &nodes[at],
                Slots::Values(values) => return Some(&values[at]),
            }
        }
    }

    pub fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let key = key.number();
        if !self.reaches(key) {
            return None;
        }
        let (mut node, mut level) = (&mut self.root, self.levels);
        loop {
            level -= 1;
            let at = node.find(slot(key, level))?;
            match &mut node.slots {
                Slots::Nodes(nodes) => node = &mut nodes[at],
                Slots::Values(values) => return Some(&mut values[at]),
            }
        }
    }

    /// Puts `value` in the place of what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let key = key.number();
        while !self.reaches(key) {
            let root = core::mem::replace(&mut self.root, Node::new(self.levels + 1));
            self.levels += 1;
            if let Slots::Nodes(nodes) = &mut self.root.slots
                && root.taken != 0
            {
                nodes.push(root);
                self.root.taken = 1;
            }
        }
        let replaced = self.root.insert(key, self.levels - 1, value);
        self.len += usize::from(replaced.is_none());
        replaced
    }

    pub fn remove(&mut self, key: K) -> Option<V> {
        let key = key.number();
        if !self.reaches(key) {
            return None;
        }
        let removed = self.root.remove(key, self.levels - 1)?;
        self.len -= 1;
        if self.is_empty() {
            *self = SparseTable::default();
        }
        while self.root.taken == 1
            && let Slots::Nodes(nodes) = &mut self.root.slots
            && let Some(only) = nodes.pop()
        {
            self.root = only;
            self.levels -= 1;
        }
        Some(removed)
    }

    /// All from `first` to `last`, both included, in order.
    pub fn range(&self, first: K, last: K) -> impl Iterator<Item = (K, &V)> {
        let mut next = Some(first.number());
        let last = last.number();
        core::iter::from_fn(move || {
            let key = next.filter(|key| self.reaches(*key))?;
            let (key, value) = self.root.first_from(key, self.levels - 1)?;
            next = key.checked_add(1);
            (key <= last).then_some((K::of(key), value))
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.range(K::of(0), K::of(u64::MAX))
    }

    /// Whether there are enough levels for the key.
    fn reaches(&self, key: u64) -> bool {
        key.checked_shr(BITS * self.levels).is_none_or(|rest| rest == 0)
    }
}

impl<K: Key, V> Index<K> for SparseTable<K, V> {
    type Output = V;

    fn index(&self, key: K) -> &V {
        self.get(key).expect("what is referred to is there")
    }
}

impl<V> Node<V> {
    fn new(levels: u32) -> Node<V> {
        let slots = if levels > 1 { Slots::Nodes(Vec::new()) } else { Slots::Values(Vec::new()) };
        Node { taken: 0, slots }
    }

    /// How many slots before this one are taken.
    fn before(&self, slot: u32) -> usize {
        (self.taken & ((1 << slot) - 1)).count_ones() as usize
    }

    /// Where the content of a slot is, if it is taken.
    fn find(&self, slot: u32) -> Option<usize> {
        (self.taken >> slot & 1 == 1).then(|| self.before(slot))
    }

    fn insert(&mut self, key: u64, level: u32, value: V) -> Option<V> {
        let slot = slot(key, level);
        let (at, is_taken) = (self.before(slot), self.find(slot).is_some());
        self.taken |= 1 << slot;
        match &mut self.slots {
            Slots::Nodes(nodes) => {
                if !is_taken {
                    nodes.insert(at, Node::new(level));
                }
                nodes[at].insert(key, level - 1, value)
            }
            Slots::Values(values) if is_taken => Some(core::mem::replace(&mut values[at], value)),
            Slots::Values(values) => {
                values.insert(at, value);
                None
            }
        }
    }

    fn remove(&mut self, key: u64, level: u32) -> Option<V> {
        let slot = slot(key, level);
        let at = self.find(slot)?;
        let (removed, is_free) = match &mut self.slots {
            Slots::Nodes(nodes) => {
                let removed = nodes[at].remove(key, level - 1)?;
                let is_free = nodes[at].taken == 0;
                if is_free {
                    nodes.remove(at);
                }
                (removed, is_free)
            }
            Slots::Values(values) => (values.remove(at), true),
        };
        if is_free {
            self.taken &= !(1 << slot);
        }
        Some(removed)
    }

    fn first_from(&self, key: u64, level: u32) -> Option<(u64, &V)> {
        let own = slot(key, level);
        let mut later = self.taken & (u64::MAX << own);
        // Twice at most: only the key's own slot can have nothing from the key on.
        while later != 0 {
            let slot = later.trailing_zeros();
            later &= later - 1;
            let place = BITS * level;
            let from = if slot == own { key } else { (key >> place & !SLOT_MAX | u64::from(slot)) << place };
            let at = self.before(slot);
            match &self.slots {
                Slots::Values(values) => return Some((from, &values[at])),
                Slots::Nodes(nodes) => {
                    if let Some(found) = nodes[at].first_from(from, level - 1) {
                        return Some(found);
                    }
                }
            }
        }
        None
    }
}

/// Which slot of a node `level` levels above the values leads to the key.
fn slot(key: u64, level: u32) -> u32 {
    (key >> (BITS * level) & SLOT_MAX) as u32
}

#[cfg(test)]
mod tests;
