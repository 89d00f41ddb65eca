//! One segment of the write-ahead record on disk.
//!
//! ```text
//! | crc 4 | version 4 | magic 8 | epoch 8 | number of the first batch 8 | retired 8 | zeros to 4096 | batch | batch | ...
//! ```
//! The crc covers the 36 bytes after it. Retired: 1 if nothing in the segment is needed any more, else 0; a head of zeros was
//! never used. Batches with another epoch are left over from an earlier use.

use crate::checksum::crc32c;
use crate::disk::{self, Disk, DiskFile};
use crate::record::{BATCH_ALIGNMENT, BatchHead, Record};
use std::io;
use std::sync::Arc;

const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"LHLOG\0\0\0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHead {
    pub(crate) epoch: u64,
    pub(crate) first_batch: u64,
    pub(crate) retired: bool,
}

const HEAD: usize = 40;

impl SegmentHead {
    pub(crate) fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&MAGIC);
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_batch.to_le_bytes());
        bytes[32] = u8::from(self.retired);
        let crc = crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEAD]) -> Option<SegmentHead> {
        let good = bytes[8..16] == MAGIC
            && bytes[4..8] == VERSION.to_le_bytes()
            && bytes[..4] == crc32c(&bytes[4..]).to_le_bytes();
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        good.then(|| SegmentHead { epoch: number(16), first_batch: number(24), retired: bytes[32] != 0 })
    }
}

/// What a segment holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// `None`: never used, or its head is damaged.
    pub(crate) head: Option<SegmentHead>,
    pub(crate) records: Vec<Record>,
    pub(crate) durable_through: u64,
    /// Where the next batch goes, and its number.
    pub(crate) end: u64,
    pub(crate) next_batch: u64,
    /// Batches that were durable once and cannot be read; a torn last batch is not damage.
    pub(crate) damage: Option<String>,
}

/// Reads a segment. Blocks.
pub(crate) fn scan(disk: &dyn Disk, segment: &Arc<DiskFile>) -> io::Result<Scan> {
    let length = segment.file.metadata()?.len() as usize;
    Ok(scan_bytes(&disk::read(disk, segment, 0, length)?))
}

pub(crate) fn scan_bytes(bytes: &[u8]) -> Scan {
    let Some(head) = bytes.first_chunk().and_then(SegmentHead::decode) else {
        let unused = bytes.iter().take(HEAD).all(|byte| *byte == 0);
        let damage = (!unused).then(|| "its head is damaged, so none of its batches can be used".to_owned());
        return Scan { damage, ..Scan::default() };
    };
    let mut scan = Scan {
        head: Some(head),
        end: BATCH_ALIGNMENT as u64,
        next_batch: head.first_batch,
        ..Scan::default()
    };
    if head.retired {
        return scan;
    }
    let mut at = BATCH_ALIGNMENT;
    let mut skipped_from = None;
    while at < bytes.len() {
        match BatchHead::decode(&bytes[at..]) {
            Some((batch, records, length))
                if batch.epoch == head.epoch && batch.number >= scan.next_batch =>
            {
                if let Some(from) = skipped_from.take() {
                    let what = format!("bytes {from}..{at} are damaged, and batches after them are whole");
                    scan.damage.get_or_insert(what);
                }
                scan.durable_through = scan.durable_through.max(batch.durable_through);
                scan.records.extend(records);
                scan.next_batch = batch.number + 1;
                at += length;
                scan.end = at as u64;
            }
            // The torn end, or damage: only a later batch of this epoch tells.
            _ => {
                skipped_from.get_or_insert(at);
                at += BATCH_ALIGNMENT;
            }
        }
    }
    scan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::record::Body;

    fn batch(epoch: u64, number: u64) -> Vec<u8> {
        let record = Record { sequence: number, identity: Identity([1; 32]), body: Body::Remove };
        BatchHead { epoch, number, durable_through: number }.encode(&record.encode(), 1)
    }

    fn segment(batches: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = SegmentHead { epoch: 5, first_batch: 10, retired: false }.encode().to_vec();
        bytes.resize(BATCH_ALIGNMENT, 0);
        batches.iter().for_each(|batch| bytes.extend(batch));
        bytes.resize(bytes.len() + 2 * BATCH_ALIGNMENT, 0);
        bytes
    }

    fn sequences(scan: &Scan) -> Vec<u64> {
        scan.records.iter().map(|record| record.sequence).collect()
    }

    #[test]
    fn a_torn_last_batch_is_dropped_and_is_no_damage() {
        let mut bytes = segment(&[batch(5, 10), batch(5, 11), batch(5, 12)]);
        bytes[3 * BATCH_ALIGNMENT + 60] ^= 1;
        let scan = scan_bytes(&bytes);
        assert_eq!((sequences(&scan), scan.damage.clone(), scan.next_batch), (vec![10, 11], None, 12));
        assert_eq!(scan.end, 3 * BATCH_ALIGNMENT as u64);
    }

    #[test]
    fn a_damaged_batch_in_the_middle_is_reported_and_those_after_it_are_used() {
        let mut bytes = segment(&[batch(5, 10), batch(5, 11), batch(5, 12)]);
        bytes[2 * BATCH_ALIGNMENT + 60] ^= 1;
        let scan = scan_bytes(&bytes);
        assert_eq!((sequences(&scan), scan.next_batch), (vec![10, 12], 13));
        assert!(scan.damage.unwrap().contains("8192..12288"));
    }

    #[test]
    fn batches_left_over_from_an_earlier_use_are_not_taken_for_new_ones() {
        let scan = scan_bytes(&segment(&[batch(5, 10), batch(3, 6), batch(3, 7)]));
        assert_eq!((sequences(&scan), scan.damage.clone(), scan.next_batch), (vec![10], None, 11));
    }

    #[test]
    fn an_unused_or_retired_segment_is_empty_and_a_damaged_head_is_reported() {
        assert_eq!(scan_bytes(&[0; 8192]), Scan::default());
        let mut bytes = segment(&[batch(5, 10)]);
        bytes[..HEAD].copy_from_slice(&SegmentHead { epoch: 5, first_batch: 10, retired: true }.encode());
        assert!(sequences(&scan_bytes(&bytes)).is_empty());
        bytes[20] ^= 1;
        assert!(scan_bytes(&bytes).damage.is_some());
    }
}
