//! Which of many intervals overlap this one? In O(size classes + answers), not O(intervals).
//!
//! Intervals are kept by size class (the power of two at or above their length), and within a class by where they
//! begin. One that overlaps a query begins less than its class's length before it, so each class is one short range
//! scan. There are at most 65 classes, and files in practice use a few.
//!
//! Invariant: no class is empty.

use crate::ids::{LeaseId, RequestId, WriteId};
use crate::range::{BlockRange, ByteRange};
use alloc::collections::BTreeMap;

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
    /// By class, then by (start, key): the end.
    classes: BTreeMap<u8, BTreeMap<(u64, K), u64>>,
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
        self.classes.entry(span.class()).or_default().insert((span.start, key), span.end);
    }

    /// Removes what was inserted with the same arguments; whether it was there.
    pub fn remove(&mut self, span: impl Into<Span>, key: K) -> bool {
        let span = span.into();
        let class = span.class();
        let Some(spans) = self.classes.get_mut(&class) else { return false };
        let found = spans.remove(&(span.start, key)).is_some();
        if spans.is_empty() {
            self.classes.remove(&class);
        }
        found
    }

    /// The keys of all intervals that share a point with `span`.
    pub fn overlapping(&self, span: impl Into<Span>) -> impl Iterator<Item = K> + '_ {
        let span = span.into();
        self.classes.iter().flat_map(move |(&class, spans)| {
            let longest = 1_u64.checked_shl(u32::from(class)).unwrap_or(u64::MAX);
            let first = span.start.saturating_sub(longest - 1);
            spans
                .range((first, K::MIN)..(span.end, K::MIN))
                .filter(move |&(_, &end)| end > span.start)
                .map(|(&(_, key), _)| key)
        })
    }
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
