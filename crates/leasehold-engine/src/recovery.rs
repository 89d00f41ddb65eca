//! Recovery: what the write-ahead record says, done to files and sums after a server ended without [`stop`].
//!
//! [`stop`]: crate::storage::Storage::stop
//!
//! The record is replayed per file, on top of the newest copy of each sidecar page (in the record, else in place). Changes
//! of one block never overlap in time (the core holds phases), so only the last record of a block can be unfinished; it
//! is judged by what the block holds: the new bytes, the old ones, or neither (then an image puts it right; a block that
//! held nothing becomes a hole; any other is torn, and reported). A truncate or punch is done again unless a later record
//! proves that it was over. Doing all of this twice comes to the same, so a crash meanwhile does no harm.

use crate::checksum::{ZERO_BLOCK, crc32c};
use crate::disk;
use crate::file::StoreFile;
use crate::identity::Identity;
use crate::log::Scan;
use crate::namespace::{adopted, read_header};
use crate::path::StorePath;
use crate::record::{Body, ChangeBody, Old, SIZE_STAYS, WriteBody};
use crate::sidecar::{BlockState, Header, PAGE, Page};
use crate::storage::Inner;
use crate::sums::{Sums, SumsError};
use leasehold_core::range::{BLOCK_BYTES, BlockRange};
use rustix::fs::OFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Something that recovery could not make whole. Reads of the blocks answer [`Fault::Io`].
///
/// [`Fault::Io`]: leasehold_core::input::Fault::Io
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, if it is known.
    pub path: Option<StorePath>,
    /// Its blocks, if they are known.
    pub blocks: Option<BlockRange>,
    /// What is the matter.
    pub what: String,
}

/// What the record says of one file.
#[derive(Default)]
struct Replay {
    /// The first mark's: the header of a file that had no sidecar yet.
    marked_header: Option<(u64, u64)>,
    path: Option<String>,
    header: Option<Box<[u8; PAGE]>>,
    pages: BTreeMap<u32, Box<[u8; PAGE]>>,
    steps: Vec<Step>,
    removed: bool,
}

/// One write or change.
struct Step {
    /// Its data is known to be on disk.
    durable: bool,
    what: What,
}

enum What {
    Write(WriteBody),
    Change(ChangeBody),
}

/// The last that is known of a block.
struct Candidate {
    step: usize,
    old: Old,
    new_crc: u32,
    image: Option<Box<[u8; PAGE]>>,
    durable: bool,
}

impl Inner {
    /// Replays the segments, oldest first. The sums are left dirty, for a checkpoint. Blocks.
    pub(crate) fn recover(self: &Arc<Inner>, scans: Vec<Scan>) -> io::Result<Vec<Damage>> {
        let durable_through = scans.iter().map(|scan| scan.durable_through).max().unwrap_or(0);
        let mut replays: BTreeMap<Identity, Replay> = BTreeMap::new();
        let records = || scans.iter().flat_map(|scan| &scan.records);
        let cancelled: BTreeSet<u64> = records()
            .filter_map(
                |record| if let Body::Cancel { sequence } = record.body { Some(sequence) } else { None },
            )
            .collect();
        for record in scans.into_iter().flat_map(|scan| scan.records) {
            let replay = replays.entry(record.identity).or_default();
            // A cancelled write may be on disk in part.
            let durable = record.sequence <= durable_through && !cancelled.contains(&record.sequence);
            match record.body {
                Body::Mark { size, adopted_blocks, path } => {
                    replay.marked_header.get_or_insert((size, adopted_blocks));
                    replay.path = Some(path);
                }
                Body::Page { number: None, bytes } => replay.header = Some(bytes),
                Body::Page { number: Some(number), bytes } => {
                    replay.pages.insert(number, bytes);
                }
                Body::Write(write) => replay.steps.push(Step { durable, what: What::Write(write) }),
                Body::Change(_) if cancelled.contains(&record.sequence) => {}
                Body::Change(change) => replay.steps.push(Step { durable, what: What::Change(change) }),
                Body::Remove => replay.removed = true,
                Body::Cancel { .. } => {}
            }
        }
        let mut damage = Vec::new();
        let found = self.find(&replays)?;
        for (identity, replay) in replays {
            match found.get(&identity) {
                Some(path) => self.replay_file(identity, path, replay, &mut damage)?,
                None if replay.removed => {}
                None => {
                    tracing::warn!(%identity, path = ?replay.path, "a recorded file is gone; its record is dropped")
                }
            }
        }
        Ok(damage)
    }

    /// Where the recorded files are: under the path that the record has, or else anywhere in the store.
    fn find(
        self: &Arc<Inner>,
        replays: &BTreeMap<Identity, Replay>,
    ) -> io::Result<BTreeMap<Identity, StorePath>> {
        let mut found = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for (identity, replay) in replays {
            let hint = replay.path.as_deref().and_then(|path| StorePath::parse(path).ok());
            match hint.filter(|path| self.identity_at(path) == Some(*identity)) {
                Some(path) => {
                    found.insert(*identity, path);
                }
                None if !replay.removed => {
                    missing.insert(*identity);
                }
                None => {}
            }
        }
        if !missing.is_empty() {
            let failed = |error| io::Error::other(format!("cannot walk the store: {error}"));
            self.walk(&StorePath::ROOT, &mut |path| {
                if let Some(identity) = self.identity_at(path)
                    && missing.contains(&identity)
                {
                    found.insert(identity, path.clone());
                }
                true
            })
            .map_err(failed)?;
        }
        Ok(found)
    }

    fn identity_at(&self, path: &StorePath) -> Option<Identity> {
        let file = self.names.open(&self.store, path, OFlags::PATH).ok()?;
        self.disk.identify(file.as_fd()).ok()
    }

    fn replay_file(
        self: &Arc<Inner>,
        identity: Identity,
        path: &StorePath,
        replay: Replay,
        damage: &mut Vec<Damage>,
    ) -> io::Result<()> {
        let file = File::from(self.names.open(&self.store, path, self.store.data_flags())?);
        let length = file.metadata()?.len();
        let sidecar = self.store.sidecar(identity)?;
        let from_image = replay.header.as_ref().and_then(|bytes| Header::decode(bytes, identity).ok());
        let in_place = match &sidecar {
            Some(sidecar) if from_image.is_none() => {
                read_header(&*self.disk, sidecar, identity)?.ok().flatten()
            }
            _ => None,
        };
        let marked =
            replay.marked_header.map(|(size, adopted_blocks)| Header { identity, size, adopted_blocks });
        let header = from_image.or(in_place).or(marked).unwrap_or_else(|| adopted(identity, length));
        let mut sums = Sums::new(header, sidecar, length);
        sums.header_dirty = true;
        for (number, bytes) in &replay.pages {
            if let Ok(page) = Page::decode(bytes, *number, &header) {
                sums.install(*number, page);
            }
        }
        let file = self.files().insert(file, identity, path, sums);
        self.mark_dirty(&file);
        let mut judged = Judge { inner: self, file: &file, unfinished: BTreeMap::new(), damage };
        let replayed = judged.replay(&replay.steps);
        replayed.map_err(|error| io::Error::other(format!("cannot recover {path}: {error}")))
    }
}

/// Replays one file.
struct Judge<'a> {
    inner: &'a Inner,
    file: &'a Arc<StoreFile>,
    /// For each write that is not wholly on disk: the end of the last block that is.
    unfinished: BTreeMap<usize, u64>,
    damage: &'a mut Vec<Damage>,
}

impl Judge<'_> {
    fn replay(&mut self, steps: &[Step]) -> Result<(), SumsError> {
        let mut candidates: BTreeMap<u64, Candidate> = BTreeMap::new();
        for (index, step) in steps.iter().enumerate() {
            match &step.what {
                What::Write(write) => {
                    for (offset, block) in write.blocks.iter().enumerate() {
                        let image = write.images.iter().find(|(at, _)| *at as usize == offset);
                        let candidate = Candidate {
                            step: index,
                            old: block.old,
                            new_crc: block.new_crc,
                            image: image.map(|(_, bytes)| bytes.clone()),
                            durable: step.durable,
                        };
                        candidates.insert(write.first_block + offset as u64, candidate);
                    }
                }
                What::Change(change) => {
                    let again = !step.durable && !proven_over(change, &steps[index + 1..]);
                    self.replay_change(index, change, again, &mut candidates)?;
                }
            }
        }
        self.judge(candidates)?;
        self.set_size(steps)
    }

    fn replay_change(
        &mut self,
        index: usize,
        change: &ChangeBody,
        again: bool,
        candidates: &mut BTreeMap<u64, Candidate>,
    ) -> Result<(), SumsError> {
        let disk = &*self.inner.disk;
        if let Some(hole) = change.hole {
            candidates.retain(|block, _| !(hole.start()..hole.end()).contains(block));
            let mut sums = self.file.sums();
            sums.clear(disk, hole)?;
            let length = self.file.disk.file.metadata()?.len();
            let (start, end) =
                (hole.start() * BLOCK_BYTES, hole.end().min(length.div_ceil(BLOCK_BYTES)) * BLOCK_BYTES);
            if again && start < end {
                disk.punch(&self.file.disk, start, end - start)?;
            }
        }
        for (block, crc, image) in &change.images {
            let image = again.then(|| image.clone());
            let candidate = Candidate { step: index, old: Old::Torn, new_crc: *crc, image, durable: !again };
            candidates.insert(*block, candidate);
        }
        Ok(())
    }

    fn judge(&mut self, candidates: BTreeMap<u64, Candidate>) -> Result<(), SumsError> {
        let disk = &*self.inner.disk;
        let mut torn: Vec<u64> = Vec::new();
        for (block, candidate) in candidates {
            if candidate.durable {
                self.file.sums().set(disk, block, BlockState::Known(candidate.new_crc))?;
                continue;
            }
            let found = crc32c(&disk::read(disk, &self.file.disk, block * BLOCK_BYTES, PAGE)?);
            let state = if found == candidate.new_crc {
                BlockState::Known(found)
            } else if let Some(image) = candidate.image {
                let image = crate::buffer::Buffer::of(&image[..]);
                disk::write(disk, &self.file.disk, block * BLOCK_BYTES, image)?;
                BlockState::Known(candidate.new_crc)
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
            let done = self.unfinished.entry(candidate.step).or_insert(0);
            match state {
                BlockState::Known(crc) if crc == candidate.new_crc => {
                    *done = (*done).max((block + 1) * BLOCK_BYTES)
                }
                BlockState::Torn => torn.push(block),
                _ => {}
            }
            self.file.sums().set(disk, block, state)?;
        }
        for run in torn.chunk_by(|a, b| a + 1 == *b) {
            let path = self.file.path();
            let (first, end) = (run[0], run[run.len() - 1] + 1);
            let range = format_args!("{}..{}", first * BLOCK_BYTES, end * BLOCK_BYTES);
            tracing::error!(%path, %range, "a write was torn: the blocks hold neither the old nor the new bytes");
            let what = "a write was torn: neither the old nor the new bytes are there; write the range again"
                .to_owned();
            self.damage.push(Damage { path: Some(path), blocks: BlockRange::new(first, end), what });
        }
        Ok(())
    }

    fn set_size(&mut self, steps: &[Step]) -> Result<(), SumsError> {
        let mut sums = self.file.sums();
        let mut size = sums.header.size;
        for (index, step) in steps.iter().enumerate() {
            match &step.what {
                What::Change(change) if change.size == SIZE_STAYS => {}
                What::Change(change) => size = change.size,
                What::Write(write) => {
                    // What no candidate was left of was overwritten or removed later, so it had been on disk.
                    let on_disk = self.unfinished.get(&index).copied().unwrap_or(u64::MAX);
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

/// Whether a later step touches what the change touches: it began after the change was durable.
fn proven_over(change: &ChangeBody, later: &[Step]) -> bool {
    let blocks = change
        .hole
        .into_iter()
        .chain(change.images.iter().filter_map(|(block, ..)| BlockRange::new(*block, block + 1)));
    let touched: Vec<BlockRange> = blocks.collect();
    let truncates = |change: &ChangeBody| change.size != SIZE_STAYS;
    later.iter().any(|step| match &step.what {
        What::Write(write) => {
            let blocks = BlockRange::new(write.first_block, write.first_block + write.blocks.len() as u64);
            blocks.is_some_and(|blocks| touched.iter().any(|range| range.overlaps(blocks)))
        }
        What::Change(other) => {
            (truncates(change) && truncates(other))
                || other.hole.is_some_and(|hole| touched.iter().any(|range| range.overlaps(hole)))
                || other.images.iter().any(|(block, ..)| {
                    BlockRange::new(*block, block + 1)
                        .is_some_and(|one| touched.iter().any(|range| range.overlaps(one)))
                })
        }
    })
}
