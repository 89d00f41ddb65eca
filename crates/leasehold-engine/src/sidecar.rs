//! The format of sidecars: for one file, its committed size and the state and CRC32C of each block.
//!
//! ```text
//! sidecar:  | header 4096 | page 0 4096 | page 1 4096 | ...        page n: blocks 960 n .. 960 (n + 1)
//! header:   | crc 4 | version 4 | magic 8 | identity 32 | size 8 | adopted blocks 8 | zeros |
//! page:     | crc 4 | page number 4 | hash of the identity 8 | states 2 bits x 960 | CRC32C 4 x 960 |
//! ```
//! All integers are little endian. The crc at the start covers the rest of the 4096 bytes. State i sits in byte i / 4, at
//! bits 2 (i mod 4). A page of zeros was never written: its blocks below `adopted blocks` are unknown, all others hold
//! nothing. `docs/store-format.md` says the same to people without the source.

use crate::checksum::crc32c;
use crate::identity::Identity;
use leasehold_core::range::BlockRange;

pub(crate) const PAGE: usize = 4096;
pub(crate) const BLOCKS_PER_PAGE: u64 = 960;
/// A page's number has 32 bits.
pub(crate) const PAGES_MAX: u64 = 1 << 32;
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"LHSUMS\0\0";
const STATES: usize = 16;
const SUMS: usize = STATES + 240;

/// The blocks that the page with this block describes.
pub(crate) fn blocks_of_page(block: u64) -> BlockRange {
    let first = block / BLOCKS_PER_PAGE * BLOCKS_PER_PAGE;
    BlockRange::new(first, first + BLOCKS_PER_PAGE).expect("a page describes blocks")
}

/// What is committed in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockState {
    /// Nothing: it reads as zeros.
    Hole,
    /// Bytes with this CRC32C, zeros past the size included.
    Known(u32),
    /// Bytes that came from elsewhere: the first read sums them up.
    Unknown,
    /// Bytes that are neither the old nor the new ones: reads fail.
    Torn,
}

/// The first page of a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) identity: Identity,
    /// The committed size.
    pub(crate) size: u64,
    /// In pages never written, blocks below this one are unknown: the file was there before the sidecar.
    pub(crate) adopted_blocks: u64,
}

/// 960 blocks.
#[derive(Clone)]
pub(crate) struct Page {
    bytes: Box<[u8; PAGE]>,
}

/// Why 4096 bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("its checksum does not match")]
    Checksum,
    #[error("it belongs to another file or place")]
    Misplaced,
    #[error("it has format version {0}, which this version does not know")]
    Version(u32),
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&MAGIC);
        bytes[16..48].copy_from_slice(&self.identity.0);
        bytes[48..56].copy_from_slice(&self.size.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.adopted_blocks.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// Of the file with this identity.
    pub(crate) fn decode(bytes: &[u8; PAGE], identity: Identity) -> Result<Header, FormatError> {
        check_seal(bytes)?;
        let version = u32::from_le_bytes(field(bytes, 4));
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        if bytes[8..16] != MAGIC || bytes[16..48] != identity.0 {
            return Err(FormatError::Misplaced);
        }
        let (size, adopted_blocks) =
            (u64::from_le_bytes(field(bytes, 48)), u64::from_le_bytes(field(bytes, 56)));
        Ok(Header { identity, size, adopted_blocks })
    }
}

impl Page {
    /// A page whose blocks hold nothing.
    pub(crate) fn holes(number: u32, header: &Header) -> Page {
        let mut page = Page { bytes: Box::new([0; PAGE]) };
        page.bytes[4..8].copy_from_slice(&number.to_le_bytes());
        page.bytes[8..16].copy_from_slice(&header.identity.hash().to_le_bytes());
        page
    }

    /// A page whose blocks are torn.
    pub(crate) fn torn(number: u32, header: &Header) -> Page {
        let mut page = Page::holes(number, header);
        page.bytes[STATES..SUMS].fill(0xff);
        page
    }

    /// The same of another file.
    pub(crate) fn of(mut self, header: &Header) -> Page {
        self.bytes[8..16].copy_from_slice(&header.identity.hash().to_le_bytes());
        self
    }

    /// A page never written.
    pub(crate) fn fresh(number: u32, header: &Header) -> Page {
        let mut page = Page::holes(number, header);
        let first = u64::from(number) * BLOCKS_PER_PAGE;
        for index in 0..header.adopted_blocks.saturating_sub(first).min(BLOCKS_PER_PAGE) {
            page.set(index as usize, BlockState::Unknown);
        }
        page
    }

    /// Page `number` of the file with this header.
    pub(crate) fn decode(bytes: &[u8; PAGE], number: u32, header: &Header) -> Result<Page, FormatError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Page::fresh(number, header));
        }
        check_seal(bytes)?;
        let (found, hash) = (u32::from_le_bytes(field(bytes, 4)), u64::from_le_bytes(field(bytes, 8)));
        if found != number || hash != header.identity.hash() {
            return Err(FormatError::Misplaced);
        }
        Ok(Page { bytes: Box::new(*bytes) })
    }

    pub(crate) fn encode(&self) -> [u8; PAGE] {
        let mut bytes = *self.bytes;
        seal(&mut bytes);
        bytes
    }

    pub(crate) fn get(&self, index: usize) -> BlockState {
        match self.bytes[STATES + index / 4] >> (2 * (index % 4)) & 3 {
            0 => BlockState::Hole,
            1 => BlockState::Known(u32::from_le_bytes(field(&self.bytes, SUMS + 4 * index))),
            2 => BlockState::Unknown,
            _ => BlockState::Torn,
        }
    }

    pub(crate) fn set(&mut self, index: usize, state: BlockState) {
        let (bits, crc) = match state {
            BlockState::Hole => (0, 0),
            BlockState::Known(crc) => (1, crc),
            BlockState::Unknown => (2, 0),
            BlockState::Torn => (3, 0),
        };
        let byte = &mut self.bytes[STATES + index / 4];
        *byte = *byte & !(3 << (2 * (index % 4))) | bits << (2 * (index % 4));
        self.bytes[SUMS + 4 * index..][..4].copy_from_slice(&crc.to_le_bytes());
    }
}

fn field<const N: usize>(bytes: &[u8; PAGE], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

pub(crate) fn seal(bytes: &mut [u8; PAGE]) {
    let crc = crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

fn check_seal(bytes: &[u8; PAGE]) -> Result<(), FormatError> {
    if u32::from_le_bytes(field(bytes, 0)) == crc32c(&bytes[4..]) {
        Ok(())
    } else {
        Err(FormatError::Checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { identity: Identity([7; 32]), size: 5000, adopted_blocks: 0 }
    }

    #[test]
    fn a_page_keeps_960_states_and_sums_in_4096_bytes() {
        assert_eq!(SUMS + 4 * BLOCKS_PER_PAGE as usize, PAGE);
        let mut page = Page::fresh(3, &header());
        let state = |index: usize| match index % 4 {
            0 => BlockState::Hole,
            1 => BlockState::Known(index as u32 * 77),
            2 => BlockState::Unknown,
            _ => BlockState::Torn,
        };
        (0..960).for_each(|index| page.set(index, state(index)));
        let again = Page::decode(&page.encode(), 3, &header()).unwrap();
        assert!((0..960).all(|index| again.get(index) == state(index)));
        let torn = Page::torn(3, &header());
        assert!((0..960).all(|index| torn.get(index) == BlockState::Torn));
    }

    #[test]
    fn a_damaged_page_and_one_of_another_file_or_place_are_told_apart_from_good_ones() {
        let mut page = Page::fresh(3, &header());
        page.set(5, BlockState::Known(9));
        let mut bytes = page.encode();
        assert_eq!(Page::decode(&bytes, 4, &header()).err(), Some(FormatError::Misplaced));
        let other = Header { identity: Identity([8; 32]), ..header() };
        assert_eq!(Page::decode(&bytes, 3, &other).err(), Some(FormatError::Misplaced));
        bytes[4000] ^= 1;
        assert_eq!(Page::decode(&bytes, 3, &header()).err(), Some(FormatError::Checksum));
    }

    #[test]
    fn a_page_never_written_holds_nothing_but_what_was_adopted() {
        let adopted = Header { adopted_blocks: 961, ..header() };
        let page = Page::decode(&[0; PAGE], 1, &adopted).unwrap();
        assert_eq!((page.get(0), page.get(1)), (BlockState::Unknown, BlockState::Hole));
    }

    #[test]
    fn a_header_comes_back_and_a_damaged_or_newer_one_does_not() {
        let mut bytes = header().encode();
        assert_eq!(Header::decode(&bytes, header().identity), Ok(header()));
        bytes[50] ^= 1;
        assert_eq!(Header::decode(&bytes, header().identity), Err(FormatError::Checksum));
        bytes[4] = 2;
        seal(&mut bytes);
        assert_eq!(Header::decode(&bytes, header().identity), Err(FormatError::Version(2)));
    }
}
