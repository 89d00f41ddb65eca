//! What is known of a file's blocks: its committed size, and the state and checksum of each.
//!
//! Sidecar pages are read when first needed and kept in memory; they are changed there, and written back by a
//! checkpoint. What a crash loses of them is in the write-ahead record.
//!
//! Invariants of [`Sums`], outside of calls:
//! - a page in memory says what is on the disk, but for blocks with a write under way, of which it says what was there
//!   before (and the record what will be);
//! - `header.size <= recorded_size`, the size that the file has once all that is recorded is written;
//! - the file's length on disk is at least both, or the file was changed behind our back.

use crate::block_map::{self, MapRun};
use crate::buffer::Buffer;
use crate::disk::{self, Disk, DiskFile};
use crate::scrub::Survey;
use crate::sidecar::{BLOCKS_PER_PAGE, BlockState, FormatError, Header, PAGE, PAGES_MAX, Page};
use leasehold_core::range::BlockRange;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages that are written at once.
const PAGES_TOGETHER: usize = 512;

/// What is known of the file's blocks.
pub(crate) struct Sums {
    pub(crate) header: Header,
    /// The header's size, for those who must not wait until somebody is done with the sums, who may be waiting for the disk.
    pub(crate) size: Arc<AtomicU64>,
    pub(crate) header_dirty: bool,
    pages: BTreeMap<u32, Cached>,
    pub(crate) sidecar: Option<Arc<DiskFile>>,
    /// The file's size once all that is recorded is written.
    pub(crate) recorded_size: u64,
    /// The file's length on disk, as far as we set it.
    pub(crate) disk_size: u64,
    /// The newest epoch of the record that has a durable mark of this file.
    pub(crate) marked: u64,
    /// Writes and changes that are recorded and not over.
    pub(crate) writes: usize,
    /// The last name is gone: there is nothing to write back to.
    pub(crate) removed: bool,
    /// The last collapse that the sidecar may not show yet. Until it does, recovery shifts what the sidecar has, so that
    /// must stay as it was before.
    pub(crate) shifted: Option<u64>,
}

struct Cached {
    page: Page,
    dirty: bool,
    /// A checkpoint is writing it back: until that is over, the sidecar has an older one.
    leaving: bool,
}

impl Cached {
    fn clean(page: Page) -> Cached {
        Cached { page, dirty: false, leaving: false }
    }

    fn dirty(page: Page) -> Cached {
        Cached { page, dirty: true, leaving: false }
    }
}

/// Pages that were written, by number.
pub(crate) struct Written {
    pub(crate) pages: Vec<(u32, Page)>,
    /// Where to go on; `None`: there are no more.
    pub(crate) next: Option<u64>,
}

/// A sidecar could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SumsError {
    #[error(transparent)]
    System(#[from] io::Error),
    #[error("page {number} of its sidecar is damaged: {source}")]
    Damaged { number: u32, source: FormatError },
    #[error(
        "block {block} lies past block {}, the last that a sidecar has room for; use a lower offset",
        PAGES_MAX * BLOCKS_PER_PAGE - 1
    )]
    TooFar { block: u64 },
}

impl Sums {
    pub(crate) fn new(header: Header, sidecar: Option<Arc<DiskFile>>, disk_size: u64) -> Sums {
        Sums {
            header,
            size: Arc::new(AtomicU64::new(header.size)),
            header_dirty: sidecar.is_none(),
            pages: BTreeMap::new(),
            sidecar,
            recorded_size: header.size,
            disk_size,
            marked: 0,
            writes: 0,
            removed: false,
            shifted: None,
        }
    }

    fn page(&mut self, disk: &dyn Disk, block: u64) -> Result<&mut Cached, SumsError> {
        let number = u32::try_from(block / BLOCKS_PER_PAGE).map_err(|_| SumsError::TooFar { block })?;
        if !self.pages.contains_key(&number) {
            let page = self.read_page(disk, number)?;
            self.pages.insert(number, Cached::clean(page));
        }
        Ok(self.pages.get_mut(&number).expect("inserted above"))
    }

    fn read_page(&self, disk: &dyn Disk, number: u32) -> Result<Page, SumsError> {
        let Some(sidecar) = &self.sidecar else { return Ok(Page::fresh(number, &self.header)) };
        let bytes = disk::read(disk, sidecar, page_offset(Some(number)), PAGE)?;
        let bytes = bytes.first_chunk().expect("a page was asked for");
        Page::decode(bytes, number, &self.header).map_err(|source| SumsError::Damaged { number, source })
    }

    /// What is committed in a block. Reads its page if that is not in memory.
    pub(crate) fn get(&mut self, disk: &dyn Disk, block: u64) -> Result<BlockState, SumsError> {
        Ok(self.page(disk, block)?.page.get((block % BLOCKS_PER_PAGE) as usize))
    }

    /// The same of many blocks, with one look-up for each of their pages.
    pub(crate) fn states(
        &mut self,
        disk: &dyn Disk,
        blocks: BlockRange,
    ) -> Result<Vec<BlockState>, SumsError> {
        let mut states = Vec::with_capacity(blocks.len() as usize);
        let mut block = blocks.start();
        while block < blocks.end() {
            let page = &self.page(disk, block)?.page;
            let end = blocks.end().min((block / BLOCKS_PER_PAGE + 1) * BLOCKS_PER_PAGE);
            states.extend((block..end).map(|block| page.get((block % BLOCKS_PER_PAGE) as usize)));
            block = end;
        }
        Ok(states)
    }

    pub(crate) fn set(&mut self, disk: &dyn Disk, block: u64, state: BlockState) -> Result<(), SumsError> {
        self.set_all(disk, block, std::iter::once(state))
    }

    /// Sets blocks from `first` on, with one look-up for each of their pages.
    pub(crate) fn set_all(
        &mut self,
        disk: &dyn Disk,
        first: u64,
        states: impl Iterator<Item = BlockState>,
    ) -> Result<(), SumsError> {
        let (mut block, mut states) = (first, states.peekable());
        while states.peek().is_some() {
            let cached = self.page(disk, block)?;
            let start = (block % BLOCKS_PER_PAGE) as usize;
            for (index, state) in (start..BLOCKS_PER_PAGE as usize).zip(&mut states) {
                if cached.page.get(index) != state {
                    cached.page.set(index, state);
                    cached.dirty = true;
                }
            }
            block += (BLOCKS_PER_PAGE as usize - start) as u64;
        }
        Ok(())
    }

    /// The blocks hold nothing any more. Whole pages are forgotten on disk too, so the record must say durably before that
    /// the range is cleared. Takes as long as there are pages, not blocks.
    pub(crate) fn clear(&mut self, disk: &dyn Disk, blocks: BlockRange) -> Result<(), SumsError> {
        let (start, end) = (blocks.start(), blocks.end().min(PAGES_MAX * BLOCKS_PER_PAGE));
        if (start..blocks.end()).contains(&self.header.adopted_blocks)
            || blocks.end() == self.header.adopted_blocks
        {
            self.header_dirty |= self.header.adopted_blocks > start;
            self.header.adopted_blocks = start;
        }
        let (first, last) = (start.div_ceil(BLOCKS_PER_PAGE), end / BLOCKS_PER_PAGE);
        if first < last {
            self.clear_pages(disk, first, last)?;
        }
        let head_end = end.min(first * BLOCKS_PER_PAGE);
        let tail_start = head_end.max(last * BLOCKS_PER_PAGE);
        (start..head_end).chain(tail_start..end).try_for_each(|block| self.set(disk, block, BlockState::Hole))
    }

    /// The pages from `first` to before `last` hold nothing any more.
    fn clear_pages(&mut self, disk: &dyn Disk, first: u64, last: u64) -> Result<(), SumsError> {
        // Below this, a page that was never written stands for blocks that others brought.
        let adopted = self.header.adopted_blocks.div_ceil(BLOCKS_PER_PAGE).clamp(first, last);
        if self.shifted.is_some() || self.sidecar.is_none() {
            let mut next = first;
            while let Some(written) = self.next_written(next)?.filter(|written| *written < last) {
                self.install_holes(written);
                next = written + 1;
            }
            (first..adopted).for_each(|number| self.install_holes(number));
            self.clear_cached(first, last);
            return Ok(());
        }
        let sidecar = self.sidecar.as_ref().expect("looked at above");
        for number in (first..adopted).step_by(PAGES_TOGETHER) {
            let end = adopted.min(number + PAGES_TOGETHER as u64);
            let pages = (number..end).flat_map(|number| Page::holes(number as u32, &self.header).encode());
            let pages = Buffer::of(&pages.collect::<Vec<u8>>());
            disk::write(disk, sidecar, page_offset(Some(number as u32)), pages)?;
        }
        let length = sidecar.file.metadata()?.len();
        let (from, to) = ((adopted + 1) * PAGE as u64, (last + 1) * PAGE as u64);
        if to >= length && from < length {
            disk.truncate(sidecar, from)?;
        } else if from < length && from < to {
            disk.punch(sidecar, from, to - from)?;
        }
        // Last: if the disk fails, what is in memory is as before, and finds the change out.
        self.clear_cached(first, last);
        Ok(())
    }

    fn clear_cached(&mut self, first: u64, last: u64) {
        // Not dropped: a checkpoint may be about to write an older copy in place.
        for (number, cached) in self.pages.range_mut(first as u32..=(last - 1) as u32) {
            *cached = Cached::dirty(Page::holes(*number, &self.header));
        }
    }

    fn install_holes(&mut self, number: u64) {
        let page = Page::holes(number as u32, &self.header);
        self.install(number as u32, page);
    }

    /// The blocks are taken out of the file: what is known of those behind them moves to the front. Takes as long as there
    /// are pages with anything in them; these stay in memory until the next checkpoint. `sequence`: that of the record of it.
    pub(crate) fn shift(
        &mut self,
        disk: &dyn Disk,
        blocks: BlockRange,
        sequence: u64,
    ) -> Result<(), SumsError> {
        let (start, by) = (blocks.start(), blocks.len());
        let first = start / BLOCKS_PER_PAGE;
        // Pages that change: those with anything in them, and those that it goes to.
        let (mut changing, mut next) = (BTreeSet::new(), first);
        while let Some(written) = self.next_written(next)? {
            let ends = [written * BLOCKS_PER_PAGE, (written + 1) * BLOCKS_PER_PAGE - 1];
            changing.extend(ends.map(|block| (block.saturating_sub(by) / BLOCKS_PER_PAGE).max(first)));
            changing.insert(written);
            next = written + 1;
        }
        let (mut before, mut shifted) = (BTreeMap::new(), BTreeMap::new());
        for number in changing {
            before.retain(|old, _| *old >= number);
            let mut page = Page::holes(number as u32, &self.header);
            for block in number * BLOCKS_PER_PAGE..(number + 1) * BLOCKS_PER_PAGE {
                let from = if block < start { block } else { block + by };
                let old = match before.entry(from / BLOCKS_PER_PAGE) {
                    Entry::Occupied(old) => old.into_mut(),
                    Entry::Vacant(place) => place.insert(self.page_or_torn(disk, from / BLOCKS_PER_PAGE)?),
                };
                page.set((block % BLOCKS_PER_PAGE) as usize, old.get((from % BLOCKS_PER_PAGE) as usize));
            }
            shifted.insert(number as u32, Cached::dirty(page));
        }
        self.pages.extend(shifted);
        let adopted = self.header.adopted_blocks;
        let out = adopted.clamp(start, blocks.end()) - start;
        self.header.adopted_blocks = adopted - out;
        self.header_dirty = true;
        self.shifted = Some(sequence);
        Ok(())
    }

    /// A copy of the page; one that is damaged says that its blocks are torn.
    fn page_or_torn(&self, disk: &dyn Disk, number: u64) -> Result<Page, SumsError> {
        let Ok(number) = u32::try_from(number) else { return Ok(Page::holes(0, &self.header)) };
        if let Some(cached) = self.pages.get(&number) {
            return Ok(cached.page.clone());
        }
        match self.read_page(disk, number) {
            Err(error @ SumsError::Damaged { .. }) => {
                tracing::error!(%error, "the blocks that it describes fail to read until they are adopted");
                Ok(Page::torn(number, &self.header))
            }
            page => page,
        }
    }

    /// If the block's page is damaged, its blocks are torn from now on: written again or adopted, they are good again.
    /// Whether it was.
    pub(crate) fn mend(&mut self, disk: &dyn Disk, block: u64) -> Result<bool, SumsError> {
        match self.page(disk, block) {
            Err(SumsError::Damaged { number, .. }) => {
                let page = self.page_or_torn(disk, number.into())?;
                self.install(number, page);
                Ok(true)
            }
            page => page.map(|_| false),
        }
    }

    /// Copies of up to `max` pages that were written, from page `from` on.
    pub(crate) fn written_pages(&self, disk: &dyn Disk, from: u64, max: usize) -> Result<Written, SumsError> {
        let (mut pages, mut next) = (Vec::new(), Some(from));
        while pages.len() < max
            && let Some(number) = next.map(|next| self.next_written(next)).transpose()?.flatten()
        {
            let page = self.pages.get(&(number as u32)).map(|cached| cached.page.clone());
            pages.push((number as u32, page.map_or_else(|| self.read_page(disk, number as u32), Ok)?));
            next = Some(number + 1);
        }
        let over = pages.len() < max;
        Ok(Written { pages, next: next.filter(|_| !over) })
    }

    /// Counts the blocks from `from` on, as far as [`Sums::visit`] goes. Where it stopped.
    pub(crate) fn survey(&self, disk: &dyn Disk, from: u64, end: u64) -> Result<(u64, Survey), SumsError> {
        let mut survey = Survey::default();
        let end = self.visit(disk, from, end, |blocks, state| {
            *match state {
                BlockState::Hole => &mut survey.holes,
                BlockState::Known(_) => &mut survey.known,
                BlockState::Unknown => &mut survey.unknown,
                BlockState::Torn => &mut survey.torn,
            } += blocks.len();
        })?;
        Ok((end, survey))
    }

    /// Appends the blocks from `from` on, as far as [`Sums::visit`] goes, to the map. Where it stopped.
    pub(crate) fn map(
        &self,
        disk: &dyn Disk,
        from: u64,
        end: u64,
        map: &mut Vec<MapRun>,
    ) -> Result<u64, SumsError> {
        self.visit(disk, from, end, |blocks, state| block_map::append(map, blocks, state))
    }

    /// Visits the blocks from `from` on, up to the end of their page, or of the pages that were never written. Where it
    /// stopped. Keeps nothing in memory.
    fn visit(
        &self,
        disk: &dyn Disk,
        from: u64,
        end: u64,
        mut visit: impl FnMut(BlockRange, BlockState),
    ) -> Result<u64, SumsError> {
        let mut visit = |first: u64, end: u64, state| {
            if let Some(blocks) = BlockRange::new(first, end) {
                visit(blocks, state);
            }
        };
        let number = from / BLOCKS_PER_PAGE;
        let written = self.next_written(number)?.unwrap_or(u64::MAX);
        if written > number {
            let end = end.min(written.saturating_mul(BLOCKS_PER_PAGE));
            let adopted = self.header.adopted_blocks.clamp(from, end);
            visit(from, adopted, BlockState::Unknown);
            visit(adopted, end, BlockState::Hole);
            return Ok(end);
        }
        let read;
        let number = u32::try_from(number).map_err(|_| SumsError::TooFar { block: from })?;
        let page = match self.pages.get(&number) {
            Some(cached) => &cached.page,
            None => {
                read = self.read_page(disk, number)?;
                &read
            }
        };
        let end = end.min((u64::from(number) + 1) * BLOCKS_PER_PAGE);
        for block in from..end {
            visit(block, block + 1, page.get((block % BLOCKS_PER_PAGE) as usize));
        }
        Ok(end)
    }

    /// The first page, `from` on, that is in memory or may have been written.
    fn next_written(&self, from: u64) -> io::Result<Option<u64>> {
        let Ok(first) = u32::try_from(from) else { return Ok(None) };
        let in_memory = self.pages.range(first..).next().map(|(number, _)| u64::from(*number));
        let on_disk = match &self.sidecar {
            None => None,
            Some(sidecar) => match seek(&sidecar.file, SeekFrom::Data(page_offset(Some(first)))) {
                Ok(offset) => Some(offset / PAGE as u64 - 1),
                // Past the end, or nothing but holes up to it.
                Err(Errno::NXIO) => None,
                Err(error) => return Err(error.into()),
            },
        };
        Ok(in_memory.into_iter().chain(on_disk).min())
    }

    /// A recorded write or change is over, whatever came of it.
    pub(crate) fn write_over(&mut self) {
        self.writes -= 1;
        if self.writes == 0 {
            self.recorded_size = self.header.size;
        }
    }

    pub(crate) fn set_size(&mut self, size: u64) {
        self.header_dirty |= self.header.size != size;
        self.header.size = size;
        self.size.store(size, Ordering::Release);
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.removed && (self.header_dirty || self.pages.values().any(|cached| cached.dirty))
    }

    /// Copies of what is to be written back, the header as `None`; taken for clean from now on, and kept until
    /// [`Sums::written_back`] or [`Sums::still_dirty`].
    pub(crate) fn take_dirty(&mut self) -> Vec<(Option<u32>, [u8; PAGE])> {
        let mut dirty = Vec::new();
        if std::mem::take(&mut self.header_dirty) {
            dirty.push((None, self.header.encode()));
        }
        for (number, cached) in &mut self.pages {
            if std::mem::take(&mut cached.dirty) {
                cached.leaving = true;
                dirty.push((Some(*number), cached.page.encode()));
            }
        }
        dirty
    }

    /// The copies are in the sidecar.
    pub(crate) fn written_back(&mut self, numbers: impl Iterator<Item = Option<u32>>) {
        for number in numbers.flatten() {
            if let Some(cached) = self.pages.get_mut(&number) {
                cached.leaving = false;
            }
        }
    }

    /// The copies could not be written back after all.
    pub(crate) fn still_dirty(&mut self, numbers: impl Iterator<Item = Option<u32>>) {
        for number in numbers {
            match number {
                None => self.header_dirty = true,
                // A page may have gone with a truncate in the meantime.
                Some(number) => {
                    if let Some(cached) = self.pages.get_mut(&number) {
                        (cached.dirty, cached.leaving) = (true, false);
                    }
                }
            }
        }
    }

    /// Takes a page as the record has it.
    pub(crate) fn install(&mut self, number: u32, page: Page) {
        self.pages.insert(number, Cached::dirty(page));
    }

    /// Drops pages that are as on disk. How many they were.
    pub(crate) fn evict_clean(&mut self) -> usize {
        let before = self.pages.len();
        self.pages.retain(|_, cached| cached.dirty || cached.leaving);
        before - self.pages.len()
    }

    pub(crate) fn pages_in_memory(&self) -> usize {
        self.pages.len()
    }
}

/// Where a page (`None`: the header) lies in its sidecar.
pub(crate) fn page_offset(number: Option<u32>) -> u64 {
    number.map_or(0, |number| (u64::from(number) + 1) * PAGE as u64)
}
