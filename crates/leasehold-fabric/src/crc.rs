//! CRC32C, the checksum of MPA frames (RFC 5044 section 4.4), of commits and of blocks on disk.
//!
//! crc-fast computes it, in Rust, with the carry-less multiplication of the processor it runs on (no C library). What it
//! does not have is fast appending: a block behind other bytes shifts their CRC by 4096 zero bytes, which is linear, so four
//! table look-ups do it.

use crc_fast::{CrcAlgorithm, Digest};
use std::sync::LazyLock;

/// The bytes of a block.
pub const BLOCK: usize = 4096;

/// Appending a block to what has this CRC: for each byte of the CRC, what it contributes afterwards.
static SHIFT: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
    let shift = |crc: u32| append(crc, 0, BLOCK as u64);
    std::array::from_fn(|byte| std::array::from_fn(|value| shift((value as u32) << (8 * byte))))
});

/// The CRC32C of some bytes.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The CRC32C of bytes that have the CRC `first` and others behind them, `length` bytes that have the CRC `second`.
#[must_use]
pub fn append(first: u32, second: u32, length: u64) -> u32 {
    crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, first.into(), second.into(), length) as u32
}

/// [`append`], of a block: fast.
#[must_use]
pub fn append_block(first: u32, block: u32) -> u32 {
    let bytes = first.to_le_bytes();
    (0..4).fold(block, |sum, byte| sum ^ SHIFT[byte][bytes[byte] as usize])
}

/// A CRC32C over bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc {
    state: u32,
}

impl Crc {
    pub(crate) fn new() -> Crc {
        Crc { state: !0 }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, self.state.into());
        digest.update(bytes);
        self.state = digest.get_state() as u32;
    }

    /// A block comes, which has this CRC.
    pub(crate) fn update_block(&mut self, block: u32) {
        self.state = !append_block(self.value(), block);
    }

    pub(crate) fn value(self) -> u32 {
        !self.state
    }

    /// As it stands in a frame: the lowest byte first, as in iSCSI (RFC 3720 section 12.1 shows the bit order).
    pub(crate) fn wire(self) -> [u8; 4] {
        self.value().to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc32c_comes_out_however_the_bytes_are_cut() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        for cut in 0..=9 {
            let (head, tail) = b"123456789".split_at(cut);
            let mut crc = Crc::new();
            crc.update(head);
            crc.update(tail);
            assert_eq!(u32::from_le_bytes(crc.wire()), 0xE306_9283, "cut at {cut}");
        }
    }

    #[test]
    fn a_block_is_appended_by_its_crc_alone() {
        let bytes: Vec<u8> = (0..3 * BLOCK + 100).map(|i| (i * 31 + i / 256) as u8).collect();
        for head in [0, 1, 100] {
            let mut crc = Crc::new();
            crc.update(&bytes[..head]);
            let (blocks, tail) = bytes[head..].as_chunks::<BLOCK>();
            blocks.iter().for_each(|block| crc.update_block(crc32c(block)));
            crc.update(tail);
            assert_eq!(crc.value(), crc32c(&bytes), "{head} bytes before");
        }
    }

    /// RFC 3720 section B.4: 32 bytes of zeroes are followed by aa 36 91 8a on the wire.
    #[test]
    fn the_byte_order_is_that_of_the_standard() {
        let mut crc = Crc::new();
        crc.update(&[0; 32]);
        assert_eq!(crc.wire(), [0xaa, 0x36, 0x91, 0x8a]);
    }
}
