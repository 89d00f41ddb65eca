//! `Change::Adopt`: the bytes on disk are taken for what was committed, whoever wrote them.
//!
//! They are flushed first. Where another checksum was committed, the new one is recorded like a write whose data is on disk
//! already, so that recovery finds it there. Where none was, nothing is recorded: after a crash it is unknown again.

use crate::change::ChangeFailed;
use crate::checksum::crc32c;
use crate::disk;
use crate::file::{JudgeError, StoreFile};
use crate::record::{BlockWrite, Body, ChangeBody, Old, SIZE_STAYS, WriteBody};
use crate::sidecar::{BlockState, PAGE};
use crate::sparse::next_data;
use crate::storage::Inner;
use leasehold_core::range::{BLOCK_BYTES, BlockRange, ByteRange};
use std::sync::Arc;

/// Blocks that are read together.
const READ_BLOCKS: u64 = 512;
/// Blocks that one record is for, at most.
const RECORD_BLOCKS: u64 = 1 << 14;

impl Inner {
    /// The size, if the range has no end. Of any other, the core knows that it lies within the file, of which what is durable
    /// may be shorter: writes elsewhere go on.
    pub(crate) fn adopt(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        range: ByteRange,
    ) -> Result<Option<u64>, ChangeFailed> {
        self.disk.sync(&file.disk)?;
        let past_end = range.end() == u64::MAX;
        if past_end {
            self.adopt_size(file)?;
        }
        let size = file.sums().header.size;
        let mut rest =
            BlockRange::new(range.blocks().start(), range.blocks().end().min(size.div_ceil(BLOCK_BYTES)));
        while let Some(blocks) = rest {
            let data = next_data(&file.disk.file, blocks)?;
            let hole_end = data.map_or(blocks.end(), BlockRange::start);
            if let Some(hole) = BlockRange::new(blocks.start(), hole_end) {
                self.adopt_hole(file, hole, if past_end { size } else { SIZE_STAYS })?;
            }
            let done = match data {
                Some(data) => {
                    let end = data.end().min(data.start() + RECORD_BLOCKS);
                    self.adopt_data(file, data.start(), end)?;
                    end
                }
                None => hole_end,
            };
            rest = BlockRange::new(done, blocks.end());
        }
        self.mark_dirty(file);
        Ok(past_end.then_some(size))
    }

    /// Takes the file's length for its size, unless it is one that we gave it ahead of what was needed.
    fn adopt_size(self: &Arc<Inner>, file: &Arc<StoreFile>) -> Result<(), ChangeFailed> {
        let (length, size, ours) = {
            // With the sums locked: a checkpoint may be setting the file back to its size.
            let sums = file.sums();
            let length = file.disk.file.metadata()?.len();
            (length, sums.header.size, length == sums.disk_size)
        };
        if ours && length > size {
            return Ok(());
        }
        // Even if it is the size: that was found when the file was opened, and recorded nowhere.
        let gone = BlockRange::new(length.div_ceil(BLOCK_BYTES), u64::MAX).filter(|_| length < size);
        self.mend_ends(file, gone)?;
        let body = ChangeBody { size: length, hole: gone, images: Vec::new(), allocated: false };
        self.recorded(file, Body::Change(body.clone()), |_| {
            let mut sums = file.sums();
            (sums.disk_size, sums.recorded_size) = (length, length);
            sums.set_size(length);
            self.apply(&mut sums, &body)
        })
    }

    /// With the size if it is adopted, too: on opening it was taken from the file, and is nowhere else yet.
    fn adopt_hole(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        hole: BlockRange,
        size: u64,
    ) -> Result<(), ChangeFailed> {
        self.mend_ends(file, Some(hole))?;
        let body = ChangeBody { size, hole: Some(hole), images: Vec::new(), allocated: false };
        self.recorded(file, Body::Change(body.clone()), |_| self.apply(&mut file.sums(), &body))
    }

    /// Pages of checksums that are damaged and that the range has only a part of.
    fn mend_ends(&self, file: &StoreFile, blocks: Option<BlockRange>) -> Result<(), ChangeFailed> {
        let Some(blocks) = blocks else { return Ok(()) };
        let mut sums = file.sums();
        for block in [blocks.start(), blocks.end().min(sums.header.size.div_ceil(BLOCK_BYTES) + 1) - 1] {
            sums.mend(&*self.disk, block).map_err(JudgeError::from)?;
        }
        Ok(())
    }

    fn adopt_data(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        first: u64,
        end: u64,
    ) -> Result<(), ChangeFailed> {
        let mut found: Vec<u32> = Vec::with_capacity((end - first) as usize);
        for from in (first..end).step_by(READ_BLOCKS as usize) {
            let length = (READ_BLOCKS.min(end - from) * BLOCK_BYTES) as usize;
            let bytes = disk::read(&*self.disk, &file.disk, from * BLOCK_BYTES, length)?;
            found.extend(bytes.as_chunks::<PAGE>().0.iter().map(|block| crc32c(block)));
        }
        let blocks = || (first..).zip(found.iter().copied());
        let (mut differ, mut sums) = (None::<(u64, u64)>, file.sums());
        for (block, crc) in blocks() {
            sums.mend(&*self.disk, block).map_err(JudgeError::from)?;
            match sums.get(&*self.disk, block).map_err(JudgeError::from)? {
                BlockState::Known(committed) if committed == crc => {}
                BlockState::Unknown => {
                    sums.set(&*self.disk, block, BlockState::Known(crc)).map_err(JudgeError::from)?;
                }
                _ => differ = Some((differ.map_or(block, |(first, _)| first), block + 1)),
            }
        }
        let size = sums.header.size;
        drop(sums);
        let Some((from, to)) = differ else { return Ok(()) };
        let differing = || blocks().skip((from - first) as usize).take((to - from) as usize);
        let body = WriteBody {
            first_block: from,
            size: size.min(to * BLOCK_BYTES),
            blocks: differing().map(|(_, new_crc)| BlockWrite { old: Old::Torn, new_crc }).collect(),
            images: Vec::new(),
        };
        self.recorded(file, Body::Write(body), |_| {
            let known = differing().map(|(_, crc)| BlockState::Known(crc));
            Ok(file.sums().set_all(&*self.disk, from, known).map_err(JudgeError::from)?)
        })
    }
}
