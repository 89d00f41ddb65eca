//! Which bytes of a lease were written, and their CRC32C.
//!
//! The CRC is what the holder meant to write; the server compares it with what lies in the frames. Pieces may come in
//! any order; their CRCs are combined at commit.

use leasehold_core::range::ByteRange;
use leasehold_fabric::crc::{append, crc32c};
use std::collections::BTreeMap;

/// The pieces written so far.
///
/// Invariant: the pieces are disjoint; there are none once some overlapped, since they have no CRC then, and a lease that
/// is written for hours must not gather them.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// By their start.
    pieces: BTreeMap<u64, Piece>,
    overlapping: bool,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    crc32c: u32,
}

/// Why there is no CRC of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoCrc {
    Missing(ByteRange),
    Overlapping,
}

impl Written {
    /// `bytes` are about to be written at `start`. The same piece again replaces its first writing.
    pub(crate) fn add(&mut self, start: u64, bytes: &[u8]) {
        if self.overlapping {
            return;
        }
        let end = start + bytes.len() as u64;
        let piece = Piece { end, crc32c: crc32c(bytes) };
        let before = self.pieces.range(..start).next_back();
        let within = self.pieces.range(start..end).next();
        let same = within.is_some_and(|(at, old)| *at == start && old.end == end);
        self.overlapping = before.is_some_and(|(_, old)| old.end > start) || (within.is_some() && !same);
        if self.overlapping {
            self.pieces = BTreeMap::new();
        } else {
            self.pieces.insert(start, piece);
        }
    }

    /// Whether anything was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && !self.overlapping
    }

    /// The CRC32C of all bytes of `range`, if each was written once.
    pub(crate) fn crc32c(&self, range: ByteRange) -> Result<u32, NoCrc> {
        if self.overlapping {
            return Err(NoCrc::Overlapping);
        }
        let mut crc = 0;
        let mut next = range.start();
        for (start, piece) in &self.pieces {
            if let Some(gap) = ByteRange::new(next, *start) {
                return Err(NoCrc::Missing(gap));
            }
            crc = append(crc, piece.crc32c, piece.end - start);
            next = piece.end;
        }
        match ByteRange::new(next, range.end()) {
            Some(gap) => Err(NoCrc::Missing(gap)),
            None => Ok(crc),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    #[test]
    fn pieces_in_any_order_give_the_crc_of_the_whole() {
        let mut written = Written::default();
        written.add(105, b"6789");
        written.add(100, b"12345");
        // The check value of CRC-32C, for "123456789".
        assert_eq!(written.crc32c(range(100, 109)), Ok(0xE306_9283));
    }

    #[test]
    fn a_gap_is_named() {
        let mut written = Written::default();
        assert_eq!(written.crc32c(range(0, 4)), Err(NoCrc::Missing(range(0, 4))));
        written.add(0, b"ab");
        assert_eq!(written.crc32c(range(0, 4)), Err(NoCrc::Missing(range(2, 4))));
        written.add(3, b"d");
        assert_eq!(written.crc32c(range(0, 4)), Err(NoCrc::Missing(range(2, 3))));
    }

    #[test]
    fn writing_a_piece_again_replaces_it_and_overlapping_pieces_have_no_crc() {
        let mut written = Written::default();
        written.add(0, b"xxxxx");
        written.add(0, b"12345");
        written.add(5, b"6789");
        assert_eq!(written.crc32c(range(0, 9)), Ok(0xE306_9283));
        written.add(4, b"56");
        assert_eq!(written.crc32c(range(0, 9)), Err(NoCrc::Overlapping));
        written.add(100, b"x");
        assert!(written.pieces.is_empty() && !written.is_empty(), "it is written, and nothing is gathered");
    }
}
