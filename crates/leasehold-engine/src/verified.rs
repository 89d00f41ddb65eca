//! What was summed up when a commit was verified, until it is recorded.
//!
//! A commit that is verified may fail before it is recorded, and nobody says so here. What it left behind says nothing of
//! what the frames hold later, so it goes as soon as anything else happens to one of its frames.
//!
//! Invariant: the runs do not overlap.

use leasehold_core::ids::{FileId, FrameId};
use leasehold_core::range::{ByteRange, Run};
use std::collections::BTreeMap;

/// See the module.
#[derive(Default)]
pub(crate) struct Verified {
    by_first: BTreeMap<FrameId, Sums>,
}

struct Sums {
    run: Run,
    file: FileId,
    range: ByteRange,
    blocks: Vec<u32>,
}

impl Verified {
    /// The CRC32C of each block of the range, as it stands in the frames.
    pub(crate) fn insert(&mut self, file: FileId, range: ByteRange, run: Run, blocks: Vec<u32>) {
        self.touch(run);
        self.by_first.insert(run.first, Sums { run, file, range, blocks });
    }

    /// The frames hold, or will hold, something else.
    pub(crate) fn touch(&mut self, run: Run) {
        let end = FrameId(run.first.0 + run.frames);
        while let Some((first, sums)) = self.by_first.range(..end).next_back()
            && sums.run.first.0 + sums.run.frames > run.first.0
        {
            let first = *first;
            self.by_first.remove(&first);
        }
    }

    /// The sums, if it was this range of this file that was verified in these frames.
    pub(crate) fn take(&mut self, file: FileId, range: ByteRange, run: Run) -> Option<Vec<u32>> {
        let same = |sums: &Sums| sums.run == run && sums.file == file && sums.range == range;
        let found = self.by_first.get(&run.first).is_some_and(same);
        let sums = if found { self.by_first.remove(&run.first) } else { None };
        self.touch(run);
        sums.map(|sums| sums.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, frames: u32) -> Run {
        Run { first: FrameId(first), frames }
    }

    fn blocks(first: u64, end: u64) -> ByteRange {
        ByteRange::new(first * 4096, end * 4096).unwrap()
    }

    #[test]
    fn sums_are_given_once_and_only_for_the_same_range_of_the_same_file_in_the_same_frames() {
        let mut verified = Verified::default();
        let mut insert = |file, range, run| {
            verified.insert(FileId(1), blocks(0, 2), self::run(5, 2), vec![1, 2]);
            verified.take(FileId(file), range, run)
        };
        assert_eq!(insert(2, blocks(0, 2), run(5, 2)), None);
        assert_eq!(insert(1, blocks(2, 4), run(5, 2)), None);
        assert_eq!(insert(1, blocks(0, 2), run(6, 2)), None);
        assert_eq!(insert(1, blocks(0, 2), run(5, 2)), Some(vec![1, 2]));
        assert_eq!(verified.take(FileId(1), blocks(0, 2), run(5, 2)), None);
    }

    #[test]
    fn whatever_touches_a_frame_ends_the_sums_of_its_run_and_of_no_other() {
        for touched in [run(4, 2), run(5, 1), run(6, 1), run(6, 4), run(0, 20)] {
            let mut verified = Verified::default();
            verified.insert(FileId(1), blocks(0, 2), run(5, 2), vec![1, 2]);
            verified.touch(touched);
            assert_eq!(verified.take(FileId(1), blocks(0, 2), run(5, 2)), None, "{touched:?}");
        }
        let mut verified = Verified::default();
        verified.insert(FileId(1), blocks(0, 2), run(5, 2), vec![1, 2]);
        verified.touch(run(3, 2));
        verified.touch(run(7, 2));
        assert_eq!(verified.take(FileId(1), blocks(0, 2), run(5, 2)), Some(vec![1, 2]));
    }
}
