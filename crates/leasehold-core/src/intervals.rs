//! Which of many intervals overlap this one? In O(size classes + answers), not O(intervals).
//!
//! Intervals are kept by size class (the power of two at or above their length), and within a class by where they
//! begin. One that overlaps a query begins less than its class's length before it, so each class is one short range
//! scan. There are at most 65 classes, and files in practice use a few.
//!
//! A class is a line of cells half as long as its longest interval. Two intervals that begin in one cell overlap, so a
//! cell has one, unless there is a crowd: readers, or requests that wait for the same bytes.
//!
//! Invariant: no class is empty; a cell has the least of those that begin in it, the crowd the others.

use crate::ids::{LeaseId, RequestId, WriteId};
use crate::range::{BlockRange, ByteRange};
use crate::sparse::SparseTable;
use alloc::collections::{BTreeMap, BTreeSet};

/// What an interval belongs to.
pub(crate) trait Key: Copy + Ord {
    const MIN: Self;
}

impl Key for LeaseId {
    const MIN: LeaseId = LeaseId(0);
}
impl Key for RequestId {
    const MIN: RequestId = RequestId(0);
}
impl Key for WriteId {
    const MIN: WriteId = WriteId(0);
}

/// A half-open interval of bytes or of blocks; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: u64,
    end: u64,
}

impl From<ByteRange> for Span {
    fn from(range: ByteRange) -> Span {
        Span { start: range.start(), end: range.end() }
    }
}

impl From<BlockRange> for Span {
    fn from(range: BlockRange) -> Span {
        Span { start: range.start(), end: range.end() }
    }
}

impl Span {
    /// The power of two at or above the length, as an exponent.
    fn class(self) -> u8 {
        (u64::BITS - (self.end - self.start - 1).leading_zeros()) as u8
    }
}

/// Intervals, each with a key; see the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IntervalIndex<K> {
    classes: BTreeMap<u8, Class<K>>,
}

/// Where an interval begins, what it belongs to, and where it ends.
type Entry<K> = (u64, K, u64);

/// The intervals of one size class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Class<K> {
    cells: SparseTable<u64, Entry<K>>,
    crowd: BTreeSet<Entry<K>>,
}

impl<K> Default for IntervalIndex<K> {
    fn default() -> IntervalIndex<K> {
        IntervalIndex { classes: BTreeMap::new() }
    }
}

impl<K: Key> IntervalIndex<K> {
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    pub fn insert(&mut self, span: impl Into<Span>, key: K) {
        let span = span.into();
        let class = span.class();
        self.classes.entry(class).or_default().insert(class, (span.start, key, span.end));
    }

    /// Removes what was inserted with the same arguments; whether it was there.
    pub fn remove(&mut self, span: impl Into<Span>, key: K) -> bool {
        let span = span.into();
        let class = span.class();
        let Some(intervals) = self.classes.get_mut(&class) else { return false };
        let found = intervals.remove(class, (span.start, key, span.end));
        if intervals.cells.is_empty() {
            self.classes.remove(&class);
        }
        found
    }

    /// The keys of all intervals that share a point with `span`.
    pub fn overlapping(&self, span: impl Into<Span>) -> impl Iterator<Item = K> + '_ {
        let span = span.into();
        self.classes.iter().flat_map(move |(&class, intervals)| {
            let longest = 1_u64.checked_shl(u32::from(class)).unwrap_or(u64::MAX);
            let first = span.start.saturating_sub(longest - 1);
            let cells = intervals.cells.range(cell(first, class), cell(span.end - 1, class));
            let crowd = intervals.crowd.range((first, K::MIN, 0)..(span.end, K::MIN, 0));
            cells
                .map(|(_, &entry)| entry)
                .chain(crowd.copied())
                .filter(move |&(start, _, end)| start < span.end && end > span.start)
                .map(|(_, key, _)| key)
        })
    }
}

impl<K> Default for Class<K> {
    fn default() -> Class<K> {
        Class { cells: SparseTable::default(), crowd: BTreeSet::new() }
    }
}

impl<K: Key> Class<K> {
    fn insert(&mut self, class: u8, entry: Entry<K>) {
        let cell = cell(entry.0, class);
        if let Some(other) = self.cells.insert(cell, entry)
            && other != entry
        {
            self.cells.insert(cell, other.min(entry));
            self.crowd.insert(other.max(entry));
        }
    }

    fn remove(&mut self, class: u8, entry: Entry<K>) -> bool {
        let its_cell = cell(entry.0, class);
        if self.cells.get(its_cell) != Some(&entry) {
            return self.crowd.remove(&entry);
        }
        let next = self.crowd.range(entry..).next().copied();
        match next.filter(|next| cell(next.0, class) == its_cell) {
            Some(next) => {
                self.crowd.remove(&next);
                self.cells.insert(its_cell, next);
            }
            None => {
                self.cells.remove(its_cell);
            }
        }
        true
    }
}

/// The cell in which an interval of a class is that begins at `start`.
fn cell(start: u64, class: u8) -> u64 {
    start >> class.saturating_sub(1)
}

/// Intervals that are held shared or exclusively: the question is which of them conflict with one more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConflictIndex<K> {
    shared: IntervalIndex<K>,
    exclusive: IntervalIndex<K>,
}

impl<K> Default for ConflictIndex<K> {
    fn default() -> ConflictIndex<K> {
        ConflictIndex { shared: IntervalIndex::default(), exclusive: IntervalIndex::default() }
    }
}

impl<K: Key> ConflictIndex<K> {
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.exclusive.is_empty()
    }

    pub fn insert(&mut self, span: impl Into<Span>, exclusive: bool, key: K) {
        if exclusive { &mut self.exclusive } else { &mut self.shared }.insert(span, key);
    }

    /// Removes what was inserted with the same arguments; whether it was there.
    pub fn remove(&mut self, span: impl Into<Span>, exclusive: bool, key: K) -> bool {
        if exclusive { &mut self.exclusive } else { &mut self.shared }.remove(span, key)
    }

    /// The keys of all intervals that overlap `span`, shared with shared excepted.
    pub fn conflicting(&self, span: impl Into<Span>, exclusive: bool) -> impl Iterator<Item = K> + '_ {
        let span = span.into();
        let shared = exclusive.then(|| self.shared.overlapping(span));
        self.exclusive.overlapping(span).chain(shared.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests;
