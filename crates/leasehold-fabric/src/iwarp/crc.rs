//! CRC32C, the checksum of MPA frames (RFC 5044 section 4.4) and of blocks on disk.
//!
//! The only module that knows which crate computes it: crc-fast, in Rust, with the carry-less multiplication of the
//! processor it runs on (no C library).

use crc_fast::{CrcAlgorithm, Digest};

/// A CRC32C over bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc {
    state: u64,
}

impl Crc {
    pub(crate) fn new() -> Crc {
        Crc { state: 0xFFFF_FFFF }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, self.state);
        digest.update(bytes);
        self.state = digest.get_state();
    }

    /// As it stands in a frame: the lowest byte first, as in iSCSI (RFC 3720 section 12.1 shows the bit order).
    pub(crate) fn wire(self) -> [u8; 4] {
        (!(self.state as u32)).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::Crc;

    #[test]
    fn the_check_value_of_crc32c_comes_out_however_the_bytes_are_cut() {
        for cut in 0..=9 {
            let (head, tail) = b"123456789".split_at(cut);
            let mut crc = Crc::new();
            crc.update(head);
            crc.update(tail);
            assert_eq!(u32::from_le_bytes(crc.wire()), 0xE306_9283, "cut at {cut}");
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
