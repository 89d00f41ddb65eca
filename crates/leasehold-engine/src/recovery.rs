//! Recovery: what the write-ahead record says, done to files and sums after a server ended without [`stop`].
//!
//! [`stop`]: crate::storage::Storage::stop
//!
//! The record is gathered per file here, and replayed (`replay.rs`) on top of the newest copy of each sidecar page: in the
//! record, else in place. Doing that twice comes to the same, so a crash meanwhile does no harm.

use crate::identity::Identity;
use crate::log::Scan;
use crate::namespace::{adopted, read_header};
use crate::path::StorePath;
use crate::record::Body;
use crate::replay::{Judge, Step, What};
use crate::sidecar::{BLOCKS_PER_PAGE, Header, PAGE, Page};
use crate::storage::Inner;
use crate::sums::Sums;
use leasehold_core::range::BlockRange;
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
    base: Images,
    /// Pages recorded after a collapse: they count once all of them are there.
    shifted: Option<Images>,
    steps: Vec<Step>,
    removed: bool,
}

/// The newest copies of a sidecar's pages.
#[derive(Default)]
struct Images {
    header: Option<Box<[u8; PAGE]>>,
    pages: BTreeMap<u32, Box<[u8; PAGE]>>,
}

impl Replay {
    fn page(&mut self, number: Option<u32>, bytes: Box<[u8; PAGE]>) {
        let images = self.shifted.as_mut().unwrap_or(&mut self.base);
        match number {
            None => images.header = Some(bytes),
            Some(number) => {
                images.pages.insert(number, bytes);
            }
        }
    }

    /// The pages that came since are what the sidecar is to be, or is already.
    fn shifted(&mut self, through: u64) {
        let Some(images) = self.shifted.take() else { return };
        for step in &mut self.steps {
            if let What::Collapse { sequence, body, in_base } = &mut step.what
                && *sequence <= through
            {
                *in_base = true;
                // What they do not have of the pages that a collapse touches is right in the sidecar.
                let first = (body.blocks.start() / BLOCKS_PER_PAGE) as u32;
                self.base.pages.retain(|number, _| *number < first);
            }
        }
        self.base.header = images.header.or(self.base.header.take());
        self.base.pages.extend(images.pages);
    }
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
        let mut seen = BTreeSet::new();
        for record in scans.into_iter().flat_map(|scan| scan.records) {
            // A segment begins with what was open then, and so may be in the one before, too. Notes have no sequence.
            if record.sequence > 0 && !seen.insert(record.sequence) {
                continue;
            }
            let replay = replays.entry(record.identity).or_default();
            // A cancelled write may be on disk in part.
            let cancelled = cancelled.contains(&record.sequence);
            let durable = record.sequence <= durable_through && !cancelled;
            let step = |what| Step { durable, cancelled, what };
            match record.body {
                Body::Mark { size, adopted_blocks, path } => {
                    replay.marked_header.get_or_insert((size, adopted_blocks));
                    replay.path = Some(path);
                }
                Body::Page { number, bytes } => replay.page(number, bytes),
                Body::Write(write) => replay.steps.push(step(What::Write(write))),
                Body::Change(_) | Body::Collapse(_) if cancelled => {}
                Body::Change(change) => replay.steps.push(step(What::Change(change))),
                Body::Collapse(body) => {
                    replay.shifted.get_or_insert_default();
                    let what = What::Collapse { sequence: record.sequence, body, in_base: false };
                    replay.steps.push(step(what));
                }
                Body::Shifted { sequence } => replay.shifted(sequence),
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
        let from_image = replay.base.header.as_ref().and_then(|bytes| Header::decode(bytes, identity).ok());
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
        for (number, bytes) in &replay.base.pages {
            if let Ok(page) = Page::decode(bytes, *number, &header) {
                sums.install(*number, page);
            }
        }
        let file = self.files().insert(file, identity, path, sums);
        self.mark_dirty(&file);
        let replayed = Judge::new(self, &file, damage).replay(&replay.steps);
        replayed.map_err(|error| io::Error::other(format!("cannot recover {path}: {error}")))
    }
}
