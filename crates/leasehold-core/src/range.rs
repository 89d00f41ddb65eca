//! Ranges of bytes, blocks and frames. All are half-open and never empty.

use crate::ids::FrameId;
use core::fmt;

/// Bytes in a block: the unit of checksums and of stability.
pub const BLOCK_BYTES: u64 = 4096;

/// A range of bytes in a file: half-open, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The whole of any file.
    pub const ALL: ByteRange = ByteRange { start: 0, end: u64::MAX };

    /// The bytes from `start` up to, not including, `end`; `None` if that is empty.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Option<ByteRange> {
        if start < end { Some(ByteRange { start, end }) } else { None }
    }

    /// `length` bytes from `start`; `None` if empty or past the end of 64 bits.
    #[must_use]
    pub fn at(start: u64, length: u64) -> Option<ByteRange> {
        ByteRange::new(start, start.checked_add(length)?)
    }

    /// All bytes from `start` on, past every end of file.
    #[must_use]
    pub fn from(start: u64) -> ByteRange {
        ByteRange { start: start.min(u64::MAX - 1), end: u64::MAX }
    }

    /// The first byte.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// How many bytes; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether the two share a byte.
    #[must_use]
    pub fn overlaps(self, other: ByteRange) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The blocks that hold any byte of the range.
    #[must_use]
    pub fn blocks(self) -> BlockRange {
        BlockRange { start: self.start / BLOCK_BYTES, end: (self.end - 1) / BLOCK_BYTES + 1 }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.end == u64::MAX {
            write!(f, "{}..", self.start)
        } else {
            write!(f, "{}..{}", self.start, self.end)
        }
    }
}

/// A range of a file's blocks: half-open, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    start: u64,
    end: u64,
}

impl BlockRange {
    /// The blocks from `start` up to, not including, `end`; `None` if that is empty.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Option<BlockRange> {
        (start < end).then_some(BlockRange { start, end })
    }

    /// The first block.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last block.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// How many blocks; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether the two share a block.
    #[must_use]
    pub fn overlaps(self, other: BlockRange) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Contiguous frames of the arena. A lease, a read and a writeback own exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The first frame.
    pub first: FrameId,
    /// How many; at least 1, but for leases of memory that is elsewhere.
    pub frames: u32,
}

impl Run {
    /// Where the run begins, in bytes from the start of the arena.
    #[must_use]
    pub fn arena_offset(self) -> u64 {
        u64::from(self.first.0) * BLOCK_BYTES
    }

    /// How many bytes the run holds.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.frames) * BLOCK_BYTES
    }
}
