//! CRC32C (CRC-32/ISCSI) of blocks and of byte ranges, in one pass over the memory at most.

use leasehold_core::ids::FrameId;
use leasehold_core::range::{BLOCK_BYTES, ByteRange};
pub(crate) use leasehold_fabric::crc::crc32c;
use leasehold_fabric::crc::{BLOCK, append, append_block};
use leasehold_fabric::sums::BlockSums;
use std::sync::LazyLock;

/// The CRC32C of a block of zeros: what a hole reads as.
pub(crate) static ZERO_BLOCK: LazyLock<u32> = LazyLock::new(|| crc32c(&[0; BLOCK]));

/// The CRC of `range`, whose blocks lie in `frames`, from the frame `first` on. What is known of whole blocks is taken, and what
/// is found is noted.
pub(crate) fn sum_range(range: ByteRange, first: FrameId, frames: &[u8], sums: &BlockSums) -> u32 {
    let skip = (range.start() % BLOCK_BYTES) as usize;
    let bytes = &frames[skip..skip + range.len() as usize];
    let (head, rest) = bytes.split_at(bytes.len().min((BLOCK - skip) % BLOCK));
    let (blocks, tail) = rest.as_chunks::<BLOCK>();
    let mut whole = crc32c(head);
    for (block, frame) in blocks.iter().zip(first.0 as usize + usize::from(skip > 0)..) {
        let crc = sums.get(frame).unwrap_or_else(|| {
            let crc = crc32c(block);
            sums.set(frame, crc);
            crc
        });
        whole = append_block(whole, crc);
    }
    append(whole, crc32c(tail), tail.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{Arena, Pages};
    use leasehold_core::range::Run;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_combined_crc_is_that_of_the_bytes_whatever_was_known(
            start in 0u64..9000,
            length in 1u64..20_000,
            seed: u8,
            known: [bool; 8],
        ) {
            let range = ByteRange::at(start, length).unwrap();
            let arena = Arena::new(10 * BLOCK_BYTES, Pages::Normal).unwrap();
            let run = Run { first: FrameId(1), frames: range.blocks().len() as u32 };
            // SAFETY: nobody else has the arena.
            let frames = unsafe { arena.bytes_mut(run) };
            for (i, byte) in frames.iter_mut().enumerate() {
                *byte = (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed;
            }
            let sums = arena.sums();
            for (index, block) in frames.as_chunks::<BLOCK>().0.iter().enumerate().filter(|(index, _)| known[*index]) {
                sums.set(1 + index, crc32c(block));
            }
            let skip = (start % BLOCK_BYTES) as usize;
            let whole = sum_range(range, run.first, frames, sums);
            prop_assert_eq!(whole, crc32c(&frames[skip..skip + length as usize]));
            for (index, block) in frames.as_chunks::<BLOCK>().0.iter().enumerate() {
                let within = index * BLOCK >= skip && (index + 1) * BLOCK <= skip + length as usize;
                let sum = sums.get(1 + index);
                prop_assert_eq!(sum.is_some(), within || known[index]);
                prop_assert!(sum.is_none_or(|sum| sum == crc32c(block)));
            }
        }
    }
}
