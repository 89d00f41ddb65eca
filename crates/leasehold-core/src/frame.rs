//! Frames: who owns each, and whose bytes were in it last.
//!
//! A frame has one owner at a time: free, then a lease (or a reader), then, after a commit, a writeback, then free; or
//! the quarantine of a session, in place of free, if a fence could not be proven. Owners own runs. Every hand-over names
//! the owner it takes from, and a mismatch panics: it would mean two owners of one frame, and so corruption.
//!
//! There is no cache: once durable, frames are free.
//!
//! Invariant: free and owned runs are disjoint and cover the arena; no two free runs touch.

use crate::ids::{FrameId, LeaseId, RequestId, SessionId, WriteId};
use crate::range::Run;
use crate::sparse::SparseTable;
use crate::view::FrameStats;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Who owns a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    Lease(LeaseId),
    Write(WriteId),
    Reader(RequestId),
    Quarantine(SessionId),
    /// The page cache, under schemes whose DMA lands there.
    Page,
}

/// Whose bytes a frame holds. Fresh frames hold zeros, which are everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Bytes {
    Fresh,
    Of(SessionId),
    /// Of a file, or of several sessions: nobody may be given them unzeroed.
    Mixed,
}

/// Every frame of the arena.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FrameTable {
    /// Free runs by position: the length.
    free: BTreeMap<u32, u32>,
    /// The same by (length, position), for the best fit.
    free_by_length: BTreeSet<(u32, u32)>,
    /// Owned runs by position.
    owned: SparseTable<u64, (u32, Owner)>,
    /// Positions of the quarantined runs of each session.
    quarantine: BTreeMap<SessionId, Vec<u32>>,
    bytes: Vec<Bytes>,
    stats: FrameStats,
}

impl FrameTable {
    /// `frames` free and zeroed frames.
    pub fn new(frames: u32) -> FrameTable {
        let mut table = FrameTable {
            free: BTreeMap::new(),
            free_by_length: BTreeSet::new(),
            owned: SparseTable::default(),
            quarantine: BTreeMap::new(),
            bytes: alloc::vec![Bytes::Fresh; frames as usize],
            stats: FrameStats::default(),
        };
        if frames > 0 {
            table.insert_free(0, frames);
        }
        table.stats.free = frames;
        table
    }

    pub fn stats(&self) -> FrameStats {
        self.stats
    }

    /// The smallest free run that holds `frames` (at least 1), now `owner`'s; `None` if there is none.
    pub fn allocate(&mut self, frames: u32, owner: Owner) -> Option<Run> {
        if frames == 0 {
            return Some(Run { first: FrameId(0), frames });
        }
        let &(length, first) = self.free_by_length.range((frames, 0)..).next()?;
        self.remove_free(first, length);
        if length > frames {
            self.insert_free(first + frames, length - frames);
        }
        self.owned.insert(first.into(), (frames, owner));
        self.stats.free -= frames;
        *self.count(owner) += frames;
        Some(Run { first: FrameId(first), frames })
    }

    /// Nobody owns the run any more.
    pub fn release(&mut self, run: Run, owner: Owner) {
        if run.frames == 0 {
            return;
        }
        self.disown(run, owner);
        self.stats.free += run.frames;
        let (mut first, mut frames) = (run.first.0, run.frames);
        if let Some((&before, &length)) = self.free.range(..first).next_back()
            && before + length == first
        {
            self.remove_free(before, length);
            first = before;
            frames += length;
        }
        let end = first + frames;
        if let Some(&length) = self.free.get(&end) {
            self.remove_free(end, length);
            frames += length;
        }
        self.insert_free(first, frames);
    }

    /// The run changes hands.
    pub fn hand_over(&mut self, run: Run, from: Owner, to: Owner) {
        if run.frames == 0 {
            return;
        }
        self.disown(run, from);
        self.owned.insert(run.first.0.into(), (run.frames, to));
        *self.count(to) += run.frames;
        if let Owner::Quarantine(session) = to {
            self.quarantine.entry(session).or_default().push(run.first.0);
        }
    }

    /// Cuts an owned run in two after `frames`; both parts are still `owner`'s.
    pub fn split(&mut self, run: Run, owner: Owner, frames: u32) -> (Run, Run) {
        assert!(0 < frames && frames < run.frames, "a run of {} cannot be cut after {frames}", run.frames);
        let rest = Run { first: FrameId(run.first.0 + frames), frames: run.frames - frames };
        let kept = Run { first: run.first, frames };
        self.disown(run, owner);
        for part in [kept, rest] {
            self.owned.insert(part.first.0.into(), (part.frames, owner));
            *self.count(owner) += part.frames;
        }
        (kept, rest)
    }

    /// Frees what was quarantined for the session; whether there was anything.
    pub fn end_quarantine(&mut self, session: SessionId) -> bool {
        let Some(positions) = self.quarantine.remove(&session) else { return false };
        for first in positions {
            let (frames, _) = self.owned[u64::from(first)];
            self.release(Run { first: FrameId(first), frames }, Owner::Quarantine(session));
        }
        true
    }

    /// Whether the run must be zeroed before `session` may have it. From now on its bytes are the session's.
    pub fn take_bytes(&mut self, run: Run, session: SessionId) -> bool {
        let mut foreign = false;
        for bytes in &mut self.bytes[indices(run)] {
            foreign |= match *bytes {
                Bytes::Fresh => false,
                Bytes::Of(other) => other != session,
                Bytes::Mixed => true,
            };
            *bytes = Bytes::Of(session);
        }
        foreign
    }

    /// Bytes of a file are put into the run.
    pub fn mix_bytes(&mut self, run: Run) {
        self.bytes[indices(run)].fill(Bytes::Mixed);
    }

    /// Whether exactly this run is owned by `owner`.
    pub fn owns(&self, owner: Owner, run: Run) -> bool {
        self.owned.get(run.first.0.into()) == Some(&(run.frames, owner))
    }

    /// How many runs are owned, those in quarantine excepted.
    pub fn owned_runs(&self) -> usize {
        self.owned.len() - self.quarantine.values().map(Vec::len).sum::<usize>()
    }

    /// The cheap half of [`FrameTable::check`].
    pub fn is_balanced(&self) -> bool {
        let FrameStats { free, leased, writeback, reading, quarantined } = self.stats;
        let sum: u64 = [free, leased, writeback, reading, quarantined].map(u64::from).iter().sum();
        sum == self.bytes.len() as u64
    }

    /// The module's invariant.
    pub fn check(&self) -> Result<(), String> {
        let mut at = 0;
        let mut last_free = false;
        let (mut free, mut owned) = (self.free.iter().peekable(), self.owned.iter().peekable());
        loop {
            let frames = match (free.peek(), owned.peek()) {
                (Some(&(&first, &frames)), _) if first == at => {
                    if last_free || !self.free_by_length.contains(&(frames, first)) {
                        return Err(format!(
                            "the free run at frame {at} is split or not found by its length"
                        ));
                    }
                    last_free = true;
                    free.next();
                    frames
                }
                (_, Some(&(first, &(frames, _)))) if first == u64::from(at) => {
                    last_free = false;
                    owned.next();
                    frames
                }
                (None, None) => break,
                _ => return Err(format!("frame {at} is nobody's, or belongs to two")),
            };
            at += frames;
        }
        if at as usize != self.bytes.len()
            || self.free.len() != self.free_by_length.len()
            || !self.is_balanced()
        {
            return Err(format!("{at} of {} frames are accounted for", self.bytes.len()));
        }
        Ok(())
    }

    fn disown(&mut self, run: Run, owner: Owner) {
        let found = self.owned.remove(run.first.0.into());
        assert_eq!(found, Some((run.frames, owner)), "{run:?} is not owned by the one who gives it away");
        *self.count(owner) -= run.frames;
    }

    fn insert_free(&mut self, first: u32, frames: u32) {
        self.free.insert(first, frames);
        self.free_by_length.insert((frames, first));
    }

    fn remove_free(&mut self, first: u32, frames: u32) {
        self.free.remove(&first);
        self.free_by_length.remove(&(frames, first));
    }

    fn count(&mut self, owner: Owner) -> &mut u32 {
        match owner {
            Owner::Lease(_) | Owner::Page => &mut self.stats.leased,
            Owner::Write(_) => &mut self.stats.writeback,
            Owner::Reader(_) => &mut self.stats.reading,
            Owner::Quarantine(_) => &mut self.stats.quarantined,
        }
    }
}

fn indices(run: Run) -> core::ops::Range<usize> {
    run.first.0 as usize..(run.first.0 + run.frames) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Owner = Owner::Lease(LeaseId(1));
    const TWO: Owner = Owner::Lease(LeaseId(2));

    #[test]
    fn a_block_of_a_run_of_64_kib_costs_at_most_64_bytes_of_tables() {
        // What a B-tree takes for an entry when its nodes are as empty as they may be.
        let entry = |bytes: usize| bytes * 11 / 5;
        let owned = size_of::<(u32, u32, Owner)>();
        let in_file = size_of::<(u64, u64, LeaseId)>();
        let lease = size_of::<(LeaseId, crate::lease::Lease)>() + in_file + size_of::<LeaseId>();
        let write =
            size_of::<(WriteId, crate::writeback::Writeback)>() + in_file + size_of::<(WriteId, WriteId)>();
        for run in [lease, write].map(|bytes| entry(owned + bytes)) {
            let block = size_of::<Bytes>() + run.div_ceil(16);
            assert!(block <= 64, "{run} bytes for the run, {block} for each of its 16 blocks");
        }
    }

    #[test]
    fn released_neighbours_grow_together_again() {
        let mut table = FrameTable::new(6);
        let runs: Vec<Run> =
            (0..3).map(|_| table.allocate(2, ONE).expect("six frames hold three pairs")).collect();
        assert_eq!(table.allocate(1, ONE), None);
        for at in [0, 2, 1] {
            table.release(runs[at], ONE);
            table.check().expect("sound after every release");
        }
        assert_eq!(table.allocate(6, TWO).map(|run| run.frames), Some(6));
    }

    #[test]
    fn the_smallest_run_that_fits_is_taken() {
        let mut table = FrameTable::new(10);
        let first = table.allocate(2, ONE).expect("free");
        let _second = table.allocate(1, ONE).expect("free");
        table.release(first, ONE);
        assert_eq!(table.allocate(2, TWO), Some(first), "the hole of two, not the rest of seven");
    }

    #[test]
    #[should_panic(expected = "is not owned by the one who gives it away")]
    fn nobody_gives_away_what_is_anothers() {
        let mut table = FrameTable::new(2);
        let run = table.allocate(1, ONE).expect("free");
        table.release(run, TWO);
    }

    #[test]
    fn bytes_of_another_session_or_of_a_file_are_foreign() {
        let (a, b) = (SessionId(1), SessionId(2));
        let mut table = FrameTable::new(1);
        let run = table.allocate(1, ONE).expect("free");
        assert!(!table.take_bytes(run, a), "fresh frames are zeros");
        assert!(!table.take_bytes(run, a), "its own bytes");
        assert!(table.take_bytes(run, b));
        table.mix_bytes(run);
        assert!(table.take_bytes(run, b));
    }

    #[test]
    fn quarantined_frames_come_back_with_the_end_of_their_endpoint_only() {
        let mut table = FrameTable::new(2);
        let run = table.allocate(2, ONE).expect("free");
        table.hand_over(run, ONE, Owner::Quarantine(SessionId(7)));
        assert!(!table.end_quarantine(SessionId(8)));
        assert_eq!(table.allocate(1, TWO), None);
        assert!(table.end_quarantine(SessionId(7)));
        assert_eq!(table.allocate(2, TWO), Some(run));
    }
}
