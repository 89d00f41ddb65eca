//! CRC32C (CRC-32/ISCSI) of blocks and of byte ranges, in one pass over the memory.
//!
//! The CRC of a range is combined from those of its blocks: appending a block to a range shifts the CRC so far by 4096
//! zero bytes, which is linear, so four table look-ups a block do it.

use leasehold_core::range::{BLOCK_BYTES, ByteRange};
use std::sync::LazyLock;

const BLOCK: usize = BLOCK_BYTES as usize;

/// The CRC32C of some bytes.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The CRC32C of a block of zeros: what a hole reads as.
pub(crate) static ZERO_BLOCK: LazyLock<u32> = LazyLock::new(|| crc32c(&[0; BLOCK]));

/// Appending a block to what has this CRC: for each byte of the CRC, what it contributes afterwards.
static SHIFT: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
    let shift = |crc: u32| {
        let algorithm = crc_fast::CrcAlgorithm::Crc32Iscsi;
        crc_fast::checksum_combine(algorithm, u64::from(crc), 0, BLOCK_BYTES) as u32
    };
    std::array::from_fn(|byte| std::array::from_fn(|value| shift((value as u32) << (8 * byte))))
});

/// The CRCs of a committed range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeSums {
    /// Of the range's bytes.
    pub(crate) whole: u32,
    /// Of each of its blocks; those of blocks at the edges that hold bytes outside the range are worth nothing before
    /// these are merged in.
    pub(crate) blocks: Vec<u32>,
}

/// Sums up `range`, which lies in `frames` (the frames of `range.blocks()`).
pub(crate) fn sum_range(range: ByteRange, frames: &[u8]) -> RangeSums {
    let skip = (range.start() % BLOCK_BYTES) as usize;
    let bytes = &frames[skip..skip + range.len() as usize];
    let head = bytes.len().min((BLOCK - skip) % BLOCK);
    let (head, rest) = bytes.split_at(head);
    let mut blocks = Vec::with_capacity(frames.len() / BLOCK);
    let mut whole = crc32c(head);
    if !head.is_empty() {
        blocks.push(whole);
    }
    let (full, tail) = rest.as_chunks::<BLOCK>();
    for block in full {
        let crc = crc32c(block);
        whole = append_block(whole, crc);
        blocks.push(crc);
    }
    if !tail.is_empty() {
        let crc = crc32c(tail);
        let algorithm = crc_fast::CrcAlgorithm::Crc32Iscsi;
        whole = crc_fast::checksum_combine(algorithm, whole.into(), crc.into(), tail.len() as u64) as u32;
        blocks.push(crc);
    }
    RangeSums { whole, blocks }
}

fn append_block(crc: u32, block: u32) -> u32 {
    let bytes = crc.to_le_bytes();
    (0..4).fold(block, |sum, byte| sum ^ SHIFT[byte][bytes[byte] as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_value_of_crc32c_comes_out() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    proptest! {
        #[test]
        fn the_combined_crc_is_that_of_the_bytes(start in 0u64..9000, length in 1u64..20_000, seed: u8) {
            let range = ByteRange::at(start, length).unwrap();
            let blocks = range.blocks();
            let frames: Vec<u8> = (0..blocks.len() * BLOCK_BYTES).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect();
            let skip = (start - blocks.start() * BLOCK_BYTES) as usize;
            let sums = sum_range(range, &frames);
            prop_assert_eq!(sums.whole, crc32c(&frames[skip..skip + length as usize]));
            prop_assert_eq!(sums.blocks.len() as u64, blocks.len());
            for (index, block) in frames.chunks(BLOCK).enumerate() {
                let whole = index * BLOCK >= skip && (index + 1) * BLOCK <= skip + length as usize;
                prop_assert!(!whole || sums.blocks[index] == crc32c(block));
            }
        }
    }
}
