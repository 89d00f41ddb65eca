//! What the write-ahead record says, byte by byte.
//!
//! ```text
//! batch:   | magic 4 | crc 4 | epoch 8 | number 8 | durable through 8 | length 4 | records 4 | records .. | zeros to 4096 |
//! record:  | length 4 | kind 1 | zeros 3 | sequence 8 | identity 32 | body |
//! bodies:  1 mark     | size 8 | adopted blocks 8 | path |
//!          2 write    | first block 8 | size 8 | blocks 4 | images 4 |
//!                     | old state 1 x blocks | old CRC 4 x blocks | new CRC 4 x blocks | (index 4, 4096 bytes) x images |
//!          3 change   | size 8 | hole: first block 8, end block 8 | images 4 | (block 8, CRC 4, 4096 bytes) x images |
//!          4 page     | page number 4 (all ones: the header) | 4096 bytes |
//!          5 remove   | nothing |
//!          6 cancel   | sequence 8 |
//!          7 zero     | as change |
//!          8 collapse | size before 8 | taken out: first block 8, end block 8 |
//!          9 shifted  | sequence 8 |
//! ```
//! All integers are little endian; lengths include their own head. The crc covers what follows it, up to `length`.
//! A change's size is all ones if it stays as it is.
//! `durable through`: every write and change up to this sequence has its data on disk.

use crate::checksum::crc32c;
use crate::identity::Identity;
use crate::sidecar::PAGE;
use leasehold_core::range::{BLOCK_BYTES, BlockRange};

pub(crate) const BATCH_ALIGNMENT: usize = 4096;
const BATCH_HEAD: usize = 40;
const RECORD_HEAD: usize = 48;
const MAGIC: [u8; 4] = *b"LHB1";
/// The size of a change that leaves the size alone, whatever it is: a write beside it may be making the file longer.
pub(crate) const SIZE_STAYS: u64 = u64::MAX;
/// No batch is longer, so that a damaged length is seen as such.
pub(crate) const BATCH_BYTES_MAX: usize = 64 << 20;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) sequence: u64,
    pub(crate) identity: Identity,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// The file is about to be written: its size on disk may be anything until the next checkpoint.
    Mark { size: u64, adopted_blocks: u64, path: String },
    /// Blocks are about to be written.
    Write(WriteBody),
    /// A truncate, punch or zero is about to happen.
    Change(ChangeBody),
    /// A collapse is about to happen.
    Collapse(CollapseBody),
    /// The pages recorded since the collapse with this sequence have its file's sums as they are after it, so its sidecar
    /// may be overwritten with them.
    Shifted { sequence: u64 },
    /// A sidecar page (`None`: the header) is about to be overwritten with this.
    Page { number: Option<u32>, bytes: Box<[u8; PAGE]> },
    /// The last name of the file is gone, durably: nobody needs to search for it.
    Remove,
    /// The change with this sequence failed and was answered so: it is not to be done. Or: the data of the write with
    /// this sequence never came, so its blocks are to be judged.
    Cancel { sequence: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteBody {
    pub(crate) first_block: u64,
    /// The file is at least this long once the blocks are written.
    pub(crate) size: u64,
    pub(crate) blocks: Vec<BlockWrite>,
    /// Full contents of blocks that also hold committed bytes which this commit did not bring: index, bytes.
    pub(crate) images: Vec<(u32, Box<[u8; PAGE]>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockWrite {
    pub(crate) old: Old,
    pub(crate) new_crc: u32,
}

/// What a block held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Old {
    Nothing,
    Known(u32),
    Torn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangeBody {
    /// The file's size afterwards, or [`SIZE_STAYS`].
    pub(crate) size: u64,
    /// These blocks hold nothing afterwards (of a truncate: all from the first on).
    pub(crate) hole: Option<BlockRange>,
    /// Boundary blocks as they are afterwards: block, CRC, bytes.
    pub(crate) images: Vec<(u64, u32, Box<[u8; PAGE]>)>,
    /// The hole's space stays the file's.
    pub(crate) allocated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CollapseBody {
    /// The file's size, and its length on disk, before.
    pub(crate) size_before: u64,
    /// What is taken out. It ends before the end of file.
    pub(crate) blocks: BlockRange,
}

impl CollapseBody {
    /// The file's size afterwards.
    pub(crate) fn size_after(&self) -> u64 {
        self.size_before - self.blocks.len() * BLOCK_BYTES
    }
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        let kind = match &self.body {
            Body::Mark { .. } => 1,
            Body::Write(_) => 2,
            Body::Change(change) if change.allocated => 7,
            Body::Change(_) => 3,
            Body::Page { .. } => 4,
            Body::Remove => 5,
            Body::Cancel { .. } => 6,
            Body::Collapse(_) => 8,
            Body::Shifted { .. } => 9,
        };
        bytes.extend([kind, 0, 0, 0]);
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.identity.0);
        match &self.body {
            Body::Mark { size, adopted_blocks, path } => {
                bytes.extend(size.to_le_bytes());
                bytes.extend(adopted_blocks.to_le_bytes());
                bytes.extend(path.as_bytes());
            }
            Body::Write(write) => write.encode(&mut bytes),
            Body::Change(change) => change.encode(&mut bytes),
            Body::Page { number, bytes: page } => {
                bytes.extend(number.unwrap_or(u32::MAX).to_le_bytes());
                bytes.extend(page.iter());
            }
            Body::Remove => {}
            Body::Cancel { sequence } | Body::Shifted { sequence } => bytes.extend(sequence.to_le_bytes()),
            Body::Collapse(CollapseBody { size_before, blocks }) => {
                bytes.extend(size_before.to_le_bytes());
                bytes.extend(blocks.start().to_le_bytes());
                bytes.extend(blocks.end().to_le_bytes());
            }
        }
        let length = u32::try_from(bytes.len()).expect("a record is far below 4 GiB");
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    /// The record at the start of `bytes`, and how long it is. `None` if it makes no sense.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
        let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
        if length < RECORD_HEAD {
            return None;
        }
        let mut rest = Reader(bytes.get(4..length)?);
        let kind = rest.array::<4>()?[0];
        let sequence = rest.u64()?;
        let identity = Identity(rest.array()?);
        let body = match kind {
            1 => {
                let (size, adopted_blocks) = (rest.u64()?, rest.u64()?);
                Body::Mark { size, adopted_blocks, path: String::from_utf8(rest.0.to_vec()).ok()? }
            }
            2 => Body::Write(WriteBody::decode(&mut rest)?),
            3 | 7 => Body::Change(ChangeBody::decode(&mut rest, kind == 7)?),
            4 => {
                let number = rest.u32()?;
                Body::Page { number: (number != u32::MAX).then_some(number), bytes: Box::new(rest.array()?) }
            }
            5 => Body::Remove,
            6 => Body::Cancel { sequence: rest.u64()? },
            8 => Body::Collapse(CollapseBody::decode(&mut rest)?),
            9 => Body::Shifted { sequence: rest.u64()? },
            _ => return None,
        };
        Some((Record { sequence, identity, body }, length))
    }
}

impl WriteBody {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.first_block.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend((self.blocks.len() as u32).to_le_bytes());
        bytes.extend((self.images.len() as u32).to_le_bytes());
        bytes.extend(self.blocks.iter().map(|block| match block.old {
            Old::Nothing => 0u8,
            Old::Known(_) => 1,
            Old::Torn => 3,
        }));
        for block in &self.blocks {
            let old = if let Old::Known(crc) = block.old { crc } else { 0 };
            bytes.extend(old.to_le_bytes());
        }
        self.blocks.iter().for_each(|block| bytes.extend(block.new_crc.to_le_bytes()));
        for (index, image) in &self.images {
            bytes.extend(index.to_le_bytes());
            bytes.extend(image.iter());
        }
    }

    fn decode(rest: &mut Reader<'_>) -> Option<WriteBody> {
        let (first_block, size) = (rest.u64()?, rest.u64()?);
        let (blocks, images) = (rest.u32()? as usize, rest.u32()?);
        first_block.checked_add(blocks as u64)?.checked_mul(BLOCK_BYTES)?;
        let states = rest.take(blocks)?;
        let old = rest.take(blocks.checked_mul(4)?)?.as_chunks::<4>().0;
        let new = rest.take(blocks.checked_mul(4)?)?.as_chunks::<4>().0;
        let blocks = states.iter().zip(old).zip(new).map(|((state, old), new)| {
            let old = match state {
                0 => Old::Nothing,
                1 => Old::Known(u32::from_le_bytes(*old)),
                3 => Old::Torn,
                _ => return None,
            };
            Some(BlockWrite { old, new_crc: u32::from_le_bytes(*new) })
        });
        let blocks = blocks.collect::<Option<Vec<_>>>()?;
        let image = |_| {
            let index = rest.u32()?;
            ((index as usize) < blocks.len()).then_some(())?;
            Some((index, Box::new(rest.array()?)))
        };
        let images = (0..images).map(image).collect::<Option<_>>()?;
        Some(WriteBody { first_block, size, blocks, images })
    }
}

impl ChangeBody {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let (first, end) = self.hole.map_or((0, 0), |hole| (hole.start(), hole.end()));
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(first.to_le_bytes());
        bytes.extend(end.to_le_bytes());
        bytes.extend((self.images.len() as u32).to_le_bytes());
        for (block, crc, image) in &self.images {
            bytes.extend(block.to_le_bytes());
            bytes.extend(crc.to_le_bytes());
            bytes.extend(image.iter());
        }
    }

    fn decode(rest: &mut Reader<'_>, allocated: bool) -> Option<ChangeBody> {
        let (size, first, end) = (rest.u64()?, rest.u64()?, rest.u64()?);
        let images = rest.u32()?;
        let image = |_| Some((rest.u64()?, rest.u32()?, Box::new(rest.array()?)));
        let images = (0..images).map(image).collect::<Option<_>>()?;
        Some(ChangeBody { size, hole: BlockRange::new(first, end), images, allocated })
    }
}

impl CollapseBody {
    fn decode(rest: &mut Reader<'_>) -> Option<CollapseBody> {
        let (size_before, first, end) = (rest.u64()?, rest.u64()?, rest.u64()?);
        let blocks = BlockRange::new(first, end)?;
        (end.checked_mul(BLOCK_BYTES)? < size_before).then_some(CollapseBody { size_before, blocks })
    }
}

/// Takes fields from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// What stands at the start of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    pub(crate) durable_through: u64,
}

impl BatchHead {
    /// The batch with these records, padded.
    pub(crate) fn encode(&self, records: &[u8], count: u32) -> Vec<u8> {
        let length = BATCH_HEAD + records.len();
        let mut bytes = Vec::with_capacity(length.next_multiple_of(BATCH_ALIGNMENT));
        bytes.extend(MAGIC);
        bytes.extend([0; 4]);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.durable_through.to_le_bytes());
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(records);
        let crc = crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(length.next_multiple_of(BATCH_ALIGNMENT), 0);
        bytes
    }

    /// The batch at the start of `bytes`: its head, its records, and its padded length. `None` if none is there whole.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(BatchHead, Vec<Record>, usize)> {
        let mut rest = Reader(bytes);
        if rest.array()? != MAGIC {
            return None;
        }
        let crc = rest.u32()?;
        let head = BatchHead { epoch: rest.u64()?, number: rest.u64()?, durable_through: rest.u64()? };
        let (length, count) = (rest.u32()? as usize, rest.u32()?);
        if !(BATCH_HEAD..=BATCH_BYTES_MAX).contains(&length) || crc32c(bytes.get(8..length)?) != crc {
            return None;
        }
        let mut records = Vec::new();
        let mut rest = &bytes[BATCH_HEAD..length];
        for _ in 0..count {
            let (record, length) = Record::decode(rest)?;
            records.push(record);
            rest = &rest[length..];
        }
        Some((head, records, length.next_multiple_of(BATCH_ALIGNMENT)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<Record> {
        let image = || Box::new([0xab; PAGE]);
        let bodies = [
            Body::Mark { size: 5, adopted_blocks: 6, path: "a/é".into() },
            Body::Write(WriteBody {
                first_block: 3,
                size: 9000,
                blocks: vec![
                    BlockWrite { old: Old::Nothing, new_crc: 1 },
                    BlockWrite { old: Old::Known(77), new_crc: 2 },
                    BlockWrite { old: Old::Torn, new_crc: 3 },
                ],
                images: vec![(1, image())],
            }),
            Body::Change(ChangeBody {
                size: 7,
                hole: BlockRange::new(3, u64::MAX),
                images: vec![(2, 8, image())],
                allocated: false,
            }),
            Body::Change(ChangeBody { size: 7, hole: None, images: vec![], allocated: false }),
            Body::Change(ChangeBody {
                size: 7,
                hole: BlockRange::new(3, 4),
                images: vec![],
                allocated: true,
            }),
            Body::Collapse(CollapseBody { size_before: 40_000, blocks: BlockRange::new(2, 5).unwrap() }),
            Body::Shifted { sequence: 8 },
            Body::Page { number: Some(4), bytes: image() },
            Body::Page { number: None, bytes: image() },
            Body::Remove,
            Body::Cancel { sequence: 3 },
        ];
        let number =
            |(sequence, body)| Record { sequence: sequence as u64, identity: Identity([9; 32]), body };
        bodies.into_iter().enumerate().map(number).collect()
    }

    #[test]
    fn a_batch_comes_back_as_it_was() {
        let records: Vec<u8> = samples().iter().flat_map(Record::encode).collect();
        let head = BatchHead { epoch: 2, number: 3, durable_through: 4 };
        let bytes = head.encode(&records, samples().len() as u32);
        assert_eq!(BatchHead::decode(&bytes), Some((head, samples(), bytes.len())));
    }

    proptest! {
        #[test]
        fn a_batch_with_any_byte_changed_or_its_end_missing_is_no_batch(at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index) {
            let records: Vec<u8> = samples().iter().flat_map(Record::encode).collect();
            let whole = BatchHead { epoch: 2, number: 3, durable_through: 4 }.encode(&records, samples().len() as u32);
            let used = BATCH_HEAD + records.len();
            let mut bytes = whole.clone();
            bytes[at.index(used)] ^= 1 << bit;
            prop_assert_eq!(BatchHead::decode(&bytes), None);
            prop_assert_eq!(BatchHead::decode(&whole[..cut.index(used)]), None);
        }

        #[test]
        fn records_of_garbage_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..11) {
            let mut bytes = bytes;
            if bytes.len() > RECORD_HEAD {
                let length = bytes.len() as u32;
                bytes[..4].copy_from_slice(&length.to_le_bytes());
                bytes[4] = kind;
            }
            let _ = Record::decode(&bytes);
        }
    }
}
