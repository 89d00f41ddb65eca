//! What the store knows of a file's blocks: which are holes, and the checksums of the others.
//!
//! Nothing is read for it, here or there. So a range can be compared with bytes on this side for a thousandth of their
//! length: see [`BlockMap::crc32c`] and [`crc32c_of_blocks`].

use crate::convert::Malformed;
use crate::proto;
pub use leasehold_core::range::BLOCK_BYTES;
use leasehold_core::range::ByteRange;
pub use leasehold_fabric::crc::crc32c;
use leasehold_fabric::crc::{append, append_block};
use proto::block_run::State;

const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// The blocks of a range of a file, as they were at one moment; parts of a long range at one moment each.
///
/// Invariant: the runs follow each other without gaps from `start` to `end`.
#[derive(Clone, Debug, Default)]
pub struct BlockMap {
    size: u64,
    start: u64,
    end: u64,
    runs: Vec<Run>,
}

#[derive(Clone, Debug)]
struct Run {
    range: ByteRange,
    state: State,
    /// Of known blocks: 4 bytes each.
    crc32c: bytes::Bytes,
}

impl BlockMap {
    pub(crate) fn starting_at(offset: u64) -> BlockMap {
        let start = offset / BLOCK_BYTES * BLOCK_BYTES;
        BlockMap { start, end: start, ..BlockMap::default() }
    }

    /// Whether there is more to ask for.
    pub(crate) fn append(&mut self, part: proto::BlockMapResponse) -> Result<bool, Malformed> {
        self.size = part.size;
        let before = self.end;
        for run in part.runs {
            let state = run.state();
            let range =
                run.blocks.checked_mul(BLOCK_BYTES).and_then(|length| ByteRange::at(self.end, length));
            let range = range.ok_or(Malformed::Missing("blocks"))?;
            if state == State::Known && run.crc32c.len() as u64 != run.blocks.saturating_mul(4) {
                return Err(Malformed::Missing("crc32c"));
            }
            self.end = range.end();
            self.runs.push(Run { range, state, crc32c: run.crc32c });
        }
        Ok(self.end > before && self.end < self.size)
    }

    /// Where it ends: the end of the range that was asked for, or of the file, in whole blocks.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The file's size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The parts that are not holes, in order.
    pub fn data(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let data = self.runs.iter().filter(|run| run.state != State::Hole);
        let mut runs = data.map(|run| run.range).peekable();
        std::iter::from_fn(move || {
            let first = runs.next()?;
            let mut end = first.end();
            while let Some(next) = runs.next_if(|next| next.start() == end) {
                end = next.end();
            }
            ByteRange::new(first.start(), end)
        })
    }

    /// The CRC32C of all blocks of `range`, which begins and ends with a block; of the file's last block with zeros to the
    /// block's end. `None` if the checksum of some block is not known, or the file ends before.
    #[must_use]
    pub fn crc32c(&self, range: ByteRange) -> Option<u32> {
        if !range.start().is_multiple_of(BLOCK_BYTES) || range.start() < self.start || range.end() > self.end
        {
            return None;
        }
        let mut crc = 0;
        let from = self.runs.partition_point(|run| run.range.end() <= range.start());
        for run in self.runs[from..].iter().take_while(|run| run.range.start() < range.end()) {
            let (start, end) = (range.start().max(run.range.start()), range.end().min(run.range.end()));
            match run.state {
                State::Hole => {
                    let length = end - start;
                    crc = append(crc, crc_of_zeros(length), length);
                }
                State::Known => {
                    let skip = ((start - run.range.start()) / BLOCK_BYTES * 4) as usize;
                    let count = (end - start).div_ceil(BLOCK_BYTES) as usize;
                    for block in run.crc32c[skip..].chunks_exact(4).take(count) {
                        crc = append_block(crc, u32::from_le_bytes(block.try_into().expect("4 bytes")));
                    }
                }
                State::Unspecified | State::Unknown | State::Torn => return None,
            }
        }
        Some(crc)
    }
}

/// The CRC32C of bytes that begin with a block, with zeros to the end of their last block: comparable with
/// [`BlockMap::crc32c`]. `crc32c` is that of the `length` bytes alone.
#[must_use]
pub fn crc32c_of_blocks(crc32c: u32, length: u64) -> u32 {
    let padding = length.next_multiple_of(BLOCK_BYTES) - length;
    append(crc32c, crc_of_zeros(padding), padding)
}

/// By doubling: a hole may be long.
fn crc_of_zeros(length: u64) -> u32 {
    if length <= BLOCK_BYTES {
        return crc32c(&ZEROS[..length as usize]);
    }
    let half = crc_of_zeros(length / 2);
    let both = append(half, half, length / 2);
    if length.is_multiple_of(2) { both } else { append(both, crc_of_zeros(1), 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = BLOCK_BYTES as usize;

    fn range(start: usize, end: usize) -> ByteRange {
        ByteRange::new(start as u64, end as u64).unwrap()
    }

    fn run(state: State, blocks: &[&[u8]]) -> proto::BlockRun {
        let sums = blocks.iter().flat_map(|block| crc32c(block).to_le_bytes());
        let crc32c =
            if state == State::Known { sums.collect::<Vec<u8>>().into() } else { bytes::Bytes::new() };
        proto::BlockRun { state: state.into(), blocks: blocks.len() as u64, crc32c }
    }

    /// Two blocks, five of a hole, one block, a block that nobody knows.
    fn map() -> BlockMap {
        let mut map = BlockMap::starting_at(100);
        let zeros: &[u8] = &ZEROS;
        let runs = vec![
            run(State::Known, &[&[1; BLOCK], &[2; BLOCK]]),
            run(State::Hole, &[zeros; 5]),
            run(State::Known, &[&[3; BLOCK]]),
            run(State::Unknown, &[zeros]),
        ];
        let size = 9 * BLOCK_BYTES - 10;
        assert!(!map.append(proto::BlockMapResponse { size, runs }).unwrap());
        map
    }

    #[test]
    fn the_crc_of_a_range_is_that_of_its_bytes_holes_included() {
        let bytes: Vec<u8> = [1, 2, 0, 0, 0, 0, 0, 3].iter().flat_map(|byte| [*byte; BLOCK]).collect();
        for (first, end) in [(0, 1), (0, 2), (1, 3), (3, 6), (0, 8), (6, 8)] {
            let (start, end) = (first * BLOCK, end * BLOCK);
            assert_eq!(map().crc32c(range(start, end)), Some(crc32c(&bytes[start..end])), "{start}..{end}");
        }
    }

    #[test]
    fn what_is_not_known_or_not_there_has_no_crc() {
        for (start, end) in [(7 * BLOCK, 9 * BLOCK), (8 * BLOCK, 10 * BLOCK), (1, BLOCK)] {
            assert_eq!(map().crc32c(range(start, end)), None, "{start}..{end}");
        }
    }

    #[test]
    fn data_are_the_parts_that_are_no_holes() {
        let data: Vec<ByteRange> = map().data().collect();
        assert_eq!(data, [range(0, 2 * BLOCK), range(7 * BLOCK, 9 * BLOCK)]);
    }

    #[test]
    fn the_last_block_is_compared_with_zeros_to_its_end() {
        let mut block = [7; BLOCK];
        block[100..].fill(0);
        assert_eq!(crc32c_of_blocks(crc32c(&block[..100]), 100), crc32c(&block));
        assert_eq!(crc32c_of_blocks(5, BLOCK_BYTES), 5, "whole blocks need no zeros");
    }

    #[test]
    fn a_part_that_does_not_add_up_is_refused() {
        let short = proto::BlockRun { state: State::Known.into(), blocks: 2, crc32c: vec![0; 4].into() };
        let empty = proto::BlockRun { state: State::Hole.into(), blocks: 0, crc32c: bytes::Bytes::new() };
        for run in [short, empty] {
            let part = proto::BlockMapResponse { size: 9000, runs: vec![run] };
            assert!(BlockMap::starting_at(0).append(part).is_err());
        }
    }
}
