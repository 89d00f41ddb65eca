//! `Load`, `Zero` and `Merge`: how the file's committed bytes get into frames. Every block read is verified.

use crate::checksum::crc32c;
use crate::disk::{self, Verb};
use crate::file::{JudgeError, StoreFile};
use crate::sidecar::{BlockState, PAGE};
use crate::storage::Inner;
use crate::sums::{Sums, SumsError};
use leasehold_core::ids::{FileId, FrameId, LeaseId};
use leasehold_core::input::{Fault, Input};
use leasehold_core::output::Loader;
use leasehold_core::range::{BLOCK_BYTES, BlockRange, ByteRange, Run};
use std::io;
use std::sync::Arc;

impl Inner {
    pub(crate) fn zero(&self, lease: LeaseId, into: Run) {
        // SAFETY: the frames are the lease's, not exposed yet, and nothing else uses them.
        unsafe { self.arena.bytes_mut(into) }.fill(0);
        self.answer(Input::LeaseLoaded { lease, result: Ok(()) });
    }

    pub(crate) fn load(
        self: &Arc<Inner>,
        by: Loader,
        file: FileId,
        blocks: BlockRange,
        size: u64,
        into: Run,
    ) {
        let (id, file) = (file, self.file(file));
        self.arena.forget_sums(into);
        let (inner, disk_file) = (Arc::clone(self), Arc::clone(&file.disk));
        let frames = (self.arena.disk(into), into.bytes() as usize);
        let offset = blocks.start() * BLOCK_BYTES;
        let loaded = move |inner: &Arc<Inner>, result| {
            let result = inner.loaded(&file, blocks, size, into, result);
            inner.answer(match by {
                Loader::Lease(lease) => Input::LeaseLoaded { lease, result },
                Loader::Read(request) => Input::ReadLoaded { request, result },
            });
        };
        if into.bytes() <= disk::PIECE_BYTES as u64
            && let Some(place) = self.place_here()
        {
            let piece = disk::piece(Verb::Read, &disk_file, offset, frames, 0..frames.1);
            return place.work(move |inner| loaded(inner, disk::read_piece(&*inner.disk, piece)));
        }
        // Checksums, and sidecar pages that may have to be read: not for the disk's thread.
        let done = move |result: io::Result<()>| inner.work_for(id, move |inner| loaded(inner, result));
        disk::transfer_frames(&*self.disk, Verb::Read, &disk_file, offset, frames, into.arena_offset(), done);
    }

    fn loaded(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        blocks: BlockRange,
        size: u64,
        into: Run,
        result: io::Result<()>,
    ) -> Result<(), Fault> {
        let start = blocks.start() * BLOCK_BYTES;
        result.map_err(|error| {
            let range = format_args!("{start}..{}", blocks.end() * BLOCK_BYTES);
            tracing::error!(path = %file.path(), range = %range, %error, "cannot read");
            Fault::Io
        })?;
        // SAFETY: as in `zero`; the read into the frames is over.
        let frames = unsafe { self.arena.bytes_mut(into) };
        let within = size.saturating_sub(start).min(frames.len() as u64) as usize;
        let sums: Vec<u32> = frames[..within.next_multiple_of(PAGE)]
            .as_chunks::<PAGE>()
            .0
            .iter()
            .map(|block| crc32c(block))
            .collect();
        let result = self.judge_all(file, blocks.start(), &sums);
        frames[within..].fill(0);
        // Of an update lease, most blocks are committed as they were loaded.
        for (frame, sum) in (into.first.0 as usize..).zip(&sums[..within / PAGE]) {
            self.arena.sums().set(frame, *sum);
        }
        result
    }

    /// Compares blocks from `first` on with what was committed. Each that differs is told to the observer.
    pub(crate) fn judge_all(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        first: u64,
        found: &[u32],
    ) -> Result<(), Fault> {
        let (mut result, mut judged) = (Ok(()), false);
        let mut sums = file.sums();
        let pages = sums.pages_in_memory();
        // What is right is nothing to tell of, unless it was wrong before. A damaged page is told of block by block.
        let states = BlockRange::new(first, first + found.len() as u64)
            .filter(|_| !file.has_troubles())
            .and_then(|blocks| sums.states(&*self.disk, blocks).ok())
            .unwrap_or_default();
        for (index, (block, crc)) in (first..).zip(found).enumerate() {
            if states.get(index) == Some(&BlockState::Known(*crc)) {
                continue;
            }
            judged = true;
            match self.judge(file, &mut sums, block, *crc) {
                Ok(()) => {}
                Err(JudgeError::Mismatch(_)) => result = Err(Fault::Checksum),
                Err(JudgeError::Sums(error)) => {
                    tracing::error!(path = %file.path(), block, %error, "cannot verify a block");
                    return Err(JudgeError::Sums(error).fault());
                }
            }
        }
        let adopted = judged && sums.is_dirty();
        // Where there is nothing to write back, no checkpoint comes to forget what reads have brought in.
        if sums.pages_in_memory() > pages
            && sums.pages_in_memory() as u64 * PAGE as u64 > self.config.sidecar_bytes_max
        {
            sums.evict_clean();
        }
        drop(sums);
        if adopted {
            self.mark_dirty(file);
        }
        result
    }

    pub(crate) fn merge(
        self: &Arc<Inner>,
        lease: LeaseId,
        file: FileId,
        range: ByteRange,
        size: u64,
        run: Run,
    ) {
        let file = self.file(file);
        let result = self.try_merge(&file, range, size, run).map_err(|error| {
            tracing::error!(path = %file.path(), %range, %error, "cannot merge the boundary blocks of a commit");
            error.fault()
        });
        self.answer(Input::Merged { lease, result });
    }

    fn try_merge(
        &self,
        file: &Arc<StoreFile>,
        range: ByteRange,
        size: u64,
        run: Run,
    ) -> Result<(), JudgeError> {
        let blocks = range.blocks();
        let head = (range.start() % BLOCK_BYTES) as usize;
        let tail = (range.end() - (blocks.end() - 1) * BLOCK_BYTES) as usize;
        let frame = |index: u32| {
            let run = Run { first: FrameId(run.first.0 + index), frames: 1 };
            // SAFETY: the frames are the commit's: fenced, and not handed to the disk yet.
            unsafe { self.arena.bytes_mut(run) }
        };
        if head > 0 {
            let committed = self.committed_block(file, blocks.start(), size)?;
            frame(0)[..head].copy_from_slice(&committed[..head]);
        }
        if tail < PAGE {
            let committed = self.committed_block(file, blocks.end() - 1, size)?;
            frame(run.frames - 1)[tail..].copy_from_slice(&committed[tail..]);
        }
        Ok(())
    }

    /// Compares a block with what was committed; tells the observer if it differs.
    pub(crate) fn judge(
        &self,
        file: &StoreFile,
        sums: &mut Sums,
        block: u64,
        found: u32,
    ) -> Result<(), JudgeError> {
        let judged = file.judge(sums, &*self.disk, block, found);
        if let (Err(JudgeError::Mismatch(mismatch)), Some(observer)) = (&judged, &self.config.mismatches) {
            observer(mismatch.clone());
        }
        judged
    }

    /// What was committed of a block, zeros past `size`.
    pub(crate) fn committed_block(
        &self,
        file: &StoreFile,
        block: u64,
        size: u64,
    ) -> Result<Box<[u8; PAGE]>, JudgeError> {
        let mut bytes = Box::new([0; PAGE]);
        let within = size.saturating_sub(block * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
        let mut sums = file.sums();
        if within == 0 || sums.get(&*self.disk, block)? == BlockState::Hole {
            return Ok(bytes);
        }
        let read = disk::read(&*self.disk, &file.disk, block * BLOCK_BYTES, PAGE).map_err(SumsError::from)?;
        self.judge(file, &mut sums, block, crc32c(&read))?;
        bytes[..within].copy_from_slice(&read[..within]);
        Ok(bytes)
    }
}
