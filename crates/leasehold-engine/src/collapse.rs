//! `Change::Collapse`: blocks are taken out, and what is behind them moves to the front.
//!
//! ```text
//! record (both sizes) -> collapse -> flush -> sums shifted in memory -> answer
//! next checkpoint: shifted pages into the record -> "shifted" into the record -> pages in place
//! ```
//! To shift is not idempotent, so recovery must know whether it was done: to the sums, by "shifted" (before it the sidecar is
//! as it was before the collapse, after it the record has all that changed); to the file, by its length, since a filesystem
//! sets that last; so until the sidecar shows the collapse, nothing makes the file longer before its own record is durable
//! (`writeback.rs`). No checkpoint runs meanwhile, so each page in the record is from before the collapse or from after it.
//!
//! ext4 and XFS move extents one by one, each in a transaction of its own. So a power loss may leave the old length, the first
//! extents moved, and a hole before the others. Recovery goes on from there: up to where the blocks fit the shifted sums.

use crate::change::ChangeFailed;
use crate::checksum::{ZERO_BLOCK, crc32c};
use crate::disk;
use crate::file::StoreFile;
use crate::record::{Body, CollapseBody};
use crate::replay::Judge;
use crate::sidecar::{BlockState, PAGE};
use crate::storage::Inner;
use crate::sums::SumsError;
use leasehold_core::range::{BLOCK_BYTES, ByteRange};
use std::sync::Arc;

/// Blocks that are read at once.
const READ_BLOCKS: u64 = 256;

/// Why a range cannot be taken out of any file of this store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum CollapseRefused {
    /// The filesystem has no such operation.
    #[error(
        "the store's filesystem cannot take {range} out of a file (ext4 and XFS can); copy what is to stay to a new file, and \
         rename that over this one"
    )]
    Unsupported { range: ByteRange },
    /// It takes out only whole units.
    #[error(
        "{range} cannot be taken out of a file: the store's filesystem takes out multiples of {unit} bytes; align both ends to \
         that, or copy what is to stay to a new file, and rename that over this one"
    )]
    Unaligned { range: ByteRange, unit: u64 },
    /// It would leave nothing behind it.
    #[error("{range} reaches to the end of file, which is at {size}; truncate the file to {} instead", range.start())]
    PastEnd { range: ByteRange, size: u64 },
}

impl Inner {
    pub(crate) fn check_collapse(&self, range: ByteRange) -> Result<(), CollapseRefused> {
        match self.store.collapse_unit {
            None => Err(CollapseRefused::Unsupported { range }),
            Some(unit) if !range.start().is_multiple_of(unit) || !range.end().is_multiple_of(unit) => {
                Err(CollapseRefused::Unaligned { range, unit })
            }
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn collapse(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        range: ByteRange,
    ) -> Result<(), ChangeFailed> {
        self.check_collapse(range)?;
        let _no_checkpoint = self.checkpointing.lock().expect("no panic while held");
        let (body, is_out) = {
            let mut sums = file.sums();
            let size = sums.header.size;
            if range.end() >= size {
                return Err(CollapseRefused::PastEnd { range, size }.into());
            }
            let body = CollapseBody { size_before: size, blocks: range.blocks() };
            let length = file.disk.file.metadata()?.len();
            // As recovery has it: a try before this one took the range out, and failed then.
            let is_out = length == body.size_after();
            if !is_out && length < size {
                return Err(ChangeFailed::Short { length, size });
            }
            if !is_out {
                // It may be longer, ahead of what is needed. Writes that go on meanwhile are before the range.
                self.disk.truncate(&file.disk, size)?;
                sums.disk_size = size;
            }
            (body, is_out)
        };
        if !is_out {
            let last = (body.size_before - 1) / BLOCK_BYTES;
            self.check_in_place(file, &[body.blocks.start(), body.blocks.end(), last])?;
        }
        self.recorded(file, Body::Collapse(body), |sequence| {
            if !is_out {
                self.disk.collapse(&file.disk, range.start(), range.len())?;
            }
            self.disk.sync(&file.disk)?;
            let mut sums = file.sums();
            sums.shift(&*self.disk, body.blocks, sequence).map_err(crate::file::JudgeError::from)?;
            let size = body.size_after();
            (sums.disk_size, sums.recorded_size) = (size, size);
            sums.set_size(size);
            Ok(())
        })?;
        self.drop_writes(file, body.blocks);
        Ok(())
    }
}

impl Inner {
    /// That what was committed of these blocks is there: else a collapse may have failed half way and recovery made the file as
    /// long as it was, and more would be taken out than was asked for.
    fn check_in_place(&self, file: &StoreFile, blocks: &[u64]) -> Result<(), ChangeFailed> {
        for block in blocks {
            let state = file.sums().get(&*self.disk, *block).map_err(crate::file::JudgeError::from)?;
            if matches!(state, BlockState::Known(_)) {
                self.committed_block(file, *block, u64::MAX)?;
            }
        }
        Ok(())
    }
}

/// How a file was found after a crash.
struct Found {
    /// Blocks before this one have moved.
    moved: u64,
    /// More than the first of them were looked at.
    doubtful: bool,
}

impl Judge<'_> {
    /// Makes the collapse whose record is `sequence` again as far as it was not made, and shifts the sums. `proven`: a later
    /// record shows that it was over.
    pub(crate) fn replay_collapse(
        &mut self,
        sequence: u64,
        body: CollapseBody,
        proven: bool,
    ) -> Result<(), SumsError> {
        let disk = &*self.inner.disk;
        let length = self.file.disk.file.metadata()?.len();
        let over = proven || length == body.size_after();
        let mut doubtful = false;
        if !over {
            if length != body.size_before {
                disk.truncate(&self.file.disk, body.size_before)?;
            }
            let found = self.find_moved(body)?;
            let (from, bytes) = (found.moved * BLOCK_BYTES, body.blocks.len() * BLOCK_BYTES);
            if from + bytes < body.size_before {
                disk.collapse(&self.file.disk, from, bytes)?;
            } else {
                disk.truncate(&self.file.disk, body.size_after())?;
            }
            disk.sync(&self.file.disk)?;
            doubtful = found.doubtful;
        }
        self.file.sums().shift(disk, body.blocks, sequence)?;
        if doubtful {
            self.verify_from(body.blocks.start(), body.size_after().div_ceil(BLOCK_BYTES))?;
        }
        Ok(())
    }

    /// How far the blocks behind the range have moved. Ends at the first that certainly has not.
    fn find_moved(&self, body: CollapseBody) -> Result<Found, SumsError> {
        let (start, by) = (body.blocks.start(), body.blocks.len());
        let mut found = Found { moved: start, doubtful: false };
        let end = body.size_before.div_ceil(BLOCK_BYTES);
        for first in (start..end).step_by(READ_BLOCKS as usize) {
            let count = READ_BLOCKS.min(end - first);
            let bytes = self.read_blocks(first, count)?;
            for (block, bytes) in (first..).zip(bytes.as_chunks::<PAGE>().0) {
                let crc = crc32c(bytes);
                let mut sums = self.file.sums();
                let stays = fits(sums.get(&*self.inner.disk, block)?, crc);
                let moved = fits(sums.get(&*self.inner.disk, block + by)?, crc);
                match (stays, moved) {
                    (Some(true), Some(false)) => return Ok(found),
                    // Zeros may be a hole that has moved, or what is left between the moved and the others: to take out some
                    // of them is as good as to take out others.
                    (Some(false), Some(true)) if crc != *ZERO_BLOCK => {
                        found = Found { moved: block + 1, doubtful: true };
                    }
                    (Some(false), Some(_)) => found.doubtful = true,
                    // It fits both, or nothing is known.
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    fn read_blocks(&self, first: u64, count: u64) -> std::io::Result<crate::buffer::Buffer> {
        let length = (count * BLOCK_BYTES) as usize;
        disk::read(&*self.inner.disk, &self.file.disk, first * BLOCK_BYTES, length)
    }

    /// Blocks that do not fit their sums are torn.
    fn verify_from(&mut self, start: u64, end: u64) -> Result<(), SumsError> {
        let mut torn = Vec::new();
        for first in (start..end).step_by(READ_BLOCKS as usize) {
            let bytes = self.read_blocks(first, READ_BLOCKS.min(end - first))?;
            let mut sums = self.file.sums();
            for (block, bytes) in (first..).zip(bytes.as_chunks::<PAGE>().0) {
                if fits(sums.get(&*self.inner.disk, block)?, crc32c(bytes)) == Some(false) {
                    sums.set(&*self.inner.disk, block, BlockState::Torn)?;
                    torn.push(block);
                }
            }
        }
        self.report_torn(&torn, "a collapse");
        Ok(())
    }
}

/// Whether the block may be what was committed; `None` if nothing is known of it.
fn fits(state: BlockState, found: u32) -> Option<bool> {
    match state {
        BlockState::Known(crc) => Some(crc == found),
        BlockState::Hole => Some(found == *ZERO_BLOCK),
        BlockState::Unknown | BlockState::Torn => None,
    }
}
