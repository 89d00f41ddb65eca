//! What the blocks of some memory sum up to, as far as somebody knows.
//!
//! The fabric sums up what it places anyway, while it is in the cache; whoever reads the memory later need not do it again.
//!
//! Invariant: a block's sum is that of the bytes in it. So whoever writes to a block forgets its sum before, and only who may
//! write to it, or a reader while nobody may, notes one. A sum is read only by those to whom the bytes have been handed
//! over (by a fence), and is visible to them as the bytes are.

use crate::crc::BLOCK;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// See the module.
#[derive(Debug)]
pub struct BlockSums {
    /// The address of the first block.
    base: usize,
    /// 0: not known. (A block whose CRC32C is 0 is never known.)
    sums: Box<[AtomicU32]>,
}

impl BlockSums {
    /// For `blocks` blocks of memory from `base` on, none of them known.
    ///
    /// # Panics
    /// If the base is no multiple of the block size.
    #[must_use]
    pub fn new(base: NonNull<u8>, blocks: usize) -> BlockSums {
        let base = base.addr().get();
        assert!(base.is_multiple_of(BLOCK), "blocks begin at multiples of their size");
        BlockSums { base, sums: (0..blocks).map(|_| AtomicU32::new(0)).collect() }
    }

    /// The CRC32C of a block.
    #[must_use]
    pub fn get(&self, block: usize) -> Option<u32> {
        Some(self.sums[block].load(Ordering::Relaxed)).filter(|sum| *sum != 0)
    }

    /// Notes the CRC32C of a block.
    pub fn set(&self, block: usize, crc: u32) {
        self.sums[block].store(crc, Ordering::Relaxed);
    }

    /// The blocks are about to change.
    pub fn forget(&self, blocks: Range<usize>) {
        self.sums[blocks].iter().for_each(|sum| sum.store(0, Ordering::Relaxed));
    }

    /// The bytes at an address are about to change.
    pub fn forget_at(&self, address: usize, length: usize) {
        self.forget(self.block_at(address)..self.block_at((address + length).next_multiple_of(BLOCK)));
    }

    /// The block that an address lies in.
    #[must_use]
    pub fn block_at(&self, address: usize) -> usize {
        (address - self.base) / BLOCK
    }
}
