//! Replays what the write-ahead record says of one file.
//!
//! Changes of one block never overlap in time (the core holds phases), so only the last record of a block can be unfinished;
//! it is judged by what the block holds: the new bytes, the old ones, or neither (then an image puts it right; a block that
//! held nothing becomes a hole; any other is torn, and reported). A truncate, punch, zero or collapse is done again unless a
//! later record proves that it was over.

use crate::checksum::{ZERO_BLOCK, crc32c};
use crate::disk;
use crate::file::StoreFile;
use crate::record::{ChangeBody, CollapseBody, Old, SIZE_STAYS, WriteBody};
use crate::recovery::Damage;
use crate::sidecar::{BlockState, PAGE};
use crate::storage::Inner;
use crate::sums::SumsError;
use leasehold_core::range::{BLOCK_BYTES, BlockRange};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Blocks that are read together.
const READ_BLOCKS: usize = 512;

/// One write or change.
pub(crate) struct Step {
    /// Its data is known to be on disk.
    pub(crate) durable: bool,
    /// Its data never came, or not all of it.
    pub(crate) cancelled: bool,
    pub(crate) what: What,
}

pub(crate) enum What {
    Write(WriteBody),
    Change(ChangeBody),
    Collapse {
        sequence: u64,
        body: CollapseBody,
        /// The sidecar pages that the replay begins with are from after it.
        in_base: bool,
    },
}

/// The last that is known of a block.
struct Candidate {
    step: usize,
    old: Old,
    new_crc: u32,
    image: Option<Box<[u8; PAGE]>>,
    durable: bool,
    cancelled: bool,
}

/// Replays one file.
pub(crate) struct Judge<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) file: &'a Arc<StoreFile>,
    candidates: BTreeMap<u64, Candidate>,
    /// For each write: the end of the last block that is, or was, on disk as it wrote it.
    on_disk: BTreeMap<usize, u64>,
    damage: &'a mut Vec<Damage>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(inner: &'a Inner, file: &'a Arc<StoreFile>, damage: &'a mut Vec<Damage>) -> Judge<'a> {
        Judge { inner, file, candidates: BTreeMap::new(), on_disk: BTreeMap::new(), damage }
    }

    pub(crate) fn replay(mut self, steps: &[Step]) -> Result<(), SumsError> {
        for ((index, step), moved) in steps.iter().enumerate().zip(moved_later(steps)) {
            let later = &steps[index + 1..];
            match &step.what {
                What::Write(write) => self.replay_write(index, write, step, moved),
                What::Change(change) => {
                    let again = !step.durable && !proven_over(&change.touches(), change.truncates(), later);
                    self.replay_change(index, &change.before(moved), again)?;
                }
                What::Collapse { in_base: true, .. } => {}
                What::Collapse { sequence, body, .. } => {
                    self.settle_from(body.blocks)?;
                    let behind = BlockRange::new(body.blocks.start(), u64::MAX);
                    let proven = step.durable || proven_over(behind.as_slice(), true, later);
                    self.replay_collapse(*sequence, *body, proven)?;
                }
            }
        }
        self.judge()?;
        self.set_size(steps)
    }

    fn replay_write(&mut self, index: usize, write: &WriteBody, step: &Step, moved: u64) {
        for (offset, block) in write.blocks.iter().enumerate() {
            let image = write.images.iter().find(|(at, _)| *at as usize == offset);
            let candidate = Candidate {
                step: index,
                old: block.old,
                new_crc: block.new_crc,
                image: image.map(|(_, bytes)| bytes.clone()),
                durable: step.durable,
                cancelled: step.cancelled,
            };
            let block = write.first_block + offset as u64;
            if block < moved {
                self.insert(block, candidate);
            }
        }
    }

    fn insert(&mut self, block: u64, candidate: Candidate) {
        if let Some(before) = self.candidates.insert(block, candidate) {
            self.superseded(block, &before);
        }
    }

    /// Something later overwrote or removed the block: it was on disk by then, unless its write had failed.
    fn superseded(&mut self, block: u64, before: &Candidate) {
        if !before.cancelled {
            self.found_on_disk(block, before.step);
        }
    }

    fn found_on_disk(&mut self, block: u64, step: usize) {
        let end = self.on_disk.entry(step).or_insert(0);
        *end = (*end).max((block + 1) * BLOCK_BYTES);
    }

    fn replay_change(&mut self, index: usize, change: &ChangeBody, again: bool) -> Result<(), SumsError> {
        let disk = &*self.inner.disk;
        if let Some(hole) = change.hole {
            let gone = self.candidates.extract_if(hole.start()..hole.end(), |_, _| true);
            let gone: Vec<(u64, Candidate)> = gone.collect();
            gone.iter().for_each(|(block, before)| self.superseded(*block, before));
            self.mend(hole.start())?;
            let length = self.file.disk.file.metadata()?.len();
            let end = hole.end().min(length.div_ceil(BLOCK_BYTES));
            self.mend(end)?;
            self.file.sums().clear(disk, hole)?;
            if again && let Some(there) = BlockRange::new(hole.start(), end) {
                self.inner.clear_on_disk(&self.file.disk, there, change.allocated)?;
            }
        }
        for (block, crc, image) in &change.images {
            let image = again.then(|| image.clone());
            let candidate = Candidate {
                step: index,
                old: Old::Torn,
                new_crc: *crc,
                image,
                durable: !again,
                cancelled: false,
            };
            self.insert(*block, candidate);
        }
        Ok(())
    }

    /// A collapse takes these blocks out: what was written to them and behind them before was on disk, or was known to have
    /// failed.
    fn settle_from(&mut self, out: BlockRange) -> Result<(), SumsError> {
        let behind = self.candidates.split_off(&out.start());
        let mut torn = Vec::new();
        for (block, candidate) in behind.into_iter().filter(|(block, _)| *block >= out.end()) {
            let known = !candidate.cancelled;
            let state = if known { BlockState::Known(candidate.new_crc) } else { BlockState::Torn };
            self.mend(block)?;
            self.file.sums().set(&*self.inner.disk, block, state)?;
            if !known {
                torn.push(block - out.len());
            }
        }
        self.report_torn(&torn, "a write that failed");
        Ok(())
    }

    fn judge(&mut self) -> Result<(), SumsError> {
        let disk = &*self.inner.disk;
        let (mut torn, mut doubtful) = (Vec::new(), Vec::new());
        for (block, candidate) in std::mem::take(&mut self.candidates) {
            self.mend(block)?;
            if candidate.durable {
                self.found_on_disk(block, candidate.step);
                self.file.sums().set(disk, block, BlockState::Known(candidate.new_crc))?;
            } else {
                doubtful.push((block, candidate));
            }
        }
        let mut rest = &doubtful[..];
        while let Some((first, _)) = rest.first() {
            let count = rest.iter().zip(*first..).take_while(|((block, _), next)| block == next).count();
            let (together, others) = rest.split_at(count.min(READ_BLOCKS));
            let bytes = disk::read(disk, &self.file.disk, first * BLOCK_BYTES, together.len() * PAGE)?;
            for ((block, candidate), bytes) in together.iter().zip(bytes.as_chunks::<PAGE>().0) {
                let state = self.judge_block(*block, candidate, crc32c(bytes))?;
                if state == BlockState::Torn {
                    torn.push(*block);
                }
                self.file.sums().set(disk, *block, state)?;
            }
            rest = others;
        }
        self.report_torn(&torn, "a write");
        Ok(())
    }

    /// What the block is from now on; it is put right on disk if it can be.
    fn judge_block(&mut self, block: u64, candidate: &Candidate, found: u32) -> io::Result<BlockState> {
        let (disk, new) = (&*self.inner.disk, candidate.new_crc);
        let state = if found == new {
            BlockState::Known(found)
        } else if let Some(image) = &candidate.image {
            let image = crate::buffer::Buffer::of(&image[..]);
            disk::write(disk, &self.file.disk, block * BLOCK_BYTES, image)?;
            BlockState::Known(new)
        } else {
            match candidate.old {
                Old::Known(crc) if crc == found => BlockState::Known(crc),
                Old::Nothing => {
                    if found != *ZERO_BLOCK {
                        disk.punch(&self.file.disk, block * BLOCK_BYTES, BLOCK_BYTES)?;
                    }
                    BlockState::Hole
                }
                Old::Known(_) | Old::Torn => BlockState::Torn,
            }
        };
        if state == BlockState::Known(new) {
            self.found_on_disk(block, candidate.step);
        }
        Ok(state)
    }

    /// If the page of checksums that describes the block is damaged, its blocks are torn: the record has newer ones of some.
    fn mend(&mut self, block: u64) -> Result<(), SumsError> {
        let path = self.file.path();
        if self.file.sums().mend(&*self.inner.disk, block)? {
            let what = "its checksums were damaged; `leasehold scrub --adopt` takes the bytes as they are"
                .to_owned();
            let page = crate::sidecar::blocks_of_page(block);
            self.damage.push(Damage { path: Some(path), blocks: Some(page), what });
        }
        Ok(())
    }

    /// `blocks` is sorted. `tore`: what did it.
    pub(crate) fn report_torn(&mut self, blocks: &[u64], tore: &str) {
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            let path = self.file.path();
            let (first, end) = (run[0], run[run.len() - 1] + 1);
            let range = format_args!("{}..{}", first * BLOCK_BYTES, end * BLOCK_BYTES);
            tracing::error!(%path, %range, "{tore} was torn: the blocks hold neither the old nor the new bytes");
            let what = format!(
                "{tore} was torn: neither the old nor the new bytes are there; write the range again"
            );
            self.damage.push(Damage { path: Some(path), blocks: BlockRange::new(first, end), what });
        }
    }

    fn set_size(&mut self, steps: &[Step]) -> Result<(), SumsError> {
        let mut sums = self.file.sums();
        let mut size = sums.header.size;
        for (index, step) in steps.iter().enumerate() {
            match &step.what {
                What::Change(change) if change.size == SIZE_STAYS => {}
                What::Change(change) => size = change.size,
                What::Collapse { body, .. } => size = body.size_after(),
                What::Write(write) => {
                    // The file is as long as the last block that came makes it.
                    let on_disk = self.on_disk.get(&index).copied().unwrap_or(0);
                    size = size.max(write.size.min(on_disk));
                }
            }
        }
        sums.set_size(size);
        let length = self.file.disk.file.metadata()?.len();
        if length != size {
            self.inner.disk.truncate(&self.file.disk, size)?;
        }
        self.inner.disk.sync(&self.file.disk)?;
        sums.disk_size = size;
        sums.recorded_size = size;
        Ok(())
    }
}

impl Step {
    /// From which block on the sums at the start of the replay are those after this step.
    fn moved_from(&self) -> Option<u64> {
        match &self.what {
            What::Collapse { body, in_base: true, .. } => Some(body.blocks.start()),
            _ => None,
        }
    }
}

impl ChangeBody {
    fn truncates(&self) -> bool {
        // The second half is for what format 1 says of a punch.
        self.size != SIZE_STAYS && self.hole.is_none_or(|hole| hole.end() == u64::MAX)
    }

    fn touches(&self) -> Vec<BlockRange> {
        let images = self.images.iter().filter_map(|(block, ..)| BlockRange::new(*block, block + 1));
        self.hole.into_iter().chain(images).collect()
    }

    /// What it does to blocks before `end`.
    fn before(&self, end: u64) -> ChangeBody {
        let hole = self.hole.and_then(|hole| BlockRange::new(hole.start(), hole.end().min(end)));
        let images = self.images.iter().filter(|(block, ..)| *block < end).cloned().collect();
        ChangeBody { hole, images, ..*self }
    }
}

/// From which block on a collapse after each step, one that the sums show already, has moved or taken out what was there.
fn moved_later(steps: &[Step]) -> Vec<u64> {
    let mut from = u64::MAX;
    let before = |step: &Step| {
        let later = from;
        from = from.min(step.moved_from().unwrap_or(u64::MAX));
        later
    };
    let mut moved: Vec<u64> = steps.iter().rev().map(before).collect();
    moved.reverse();
    moved
}

/// Whether a later step touches what a change touches: it began after the change was durable.
fn proven_over(touched: &[BlockRange], truncates: bool, later: &[Step]) -> bool {
    let touches = |blocks: BlockRange| touched.iter().any(|range| range.overlaps(blocks));
    later.iter().any(|step| match &step.what {
        What::Write(write) => {
            let end = write.first_block + write.blocks.len() as u64;
            BlockRange::new(write.first_block, end).is_some_and(touches)
        }
        What::Change(other) => (truncates && other.truncates()) || other.touches().into_iter().any(touches),
        What::Collapse { body, .. } => {
            truncates || BlockRange::new(body.blocks.start(), u64::MAX).is_some_and(touches)
        }
    })
}
