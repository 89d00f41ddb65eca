//! An open file: its descriptor, its names, and how a block of it is judged.

use crate::disk::{Disk, DiskFile};
use crate::identity::Identity;
use crate::path::StorePath;
use crate::record::Body;
use crate::sidecar::{BlockState, Header};
use crate::storage::Mismatch;
use crate::sums::{Sums, SumsError};
use crate::sync::{Mutex, MutexGuard};
use leasehold_core::ids::FileId;
use leasehold_core::input::Fault;
use leasehold_core::range::BlockRange;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// So many troubles of a file are remembered; then they are forgotten, since a file that is bad throughout needs no list.
const TROUBLES_MAX: usize = 256;

/// See the module.
pub(crate) struct StoreFile {
    pub(crate) id: FileId,
    pub(crate) identity: Identity,
    pub(crate) inode: u64,
    pub(crate) disk: Arc<DiskFile>,
    path: Mutex<StorePath>,
    sums: Mutex<Sums>,
    /// See [`Sums::size`].
    durable: Arc<AtomicU64>,
    /// The size that the core has acknowledged, durable or not; [`u64::MAX`] as long as it is the durable one.
    acknowledged: AtomicU64,
    /// What was found wrong with blocks when they were last looked at, for people. Not of all: see [`TROUBLES_MAX`].
    troubles: Mutex<BTreeMap<u64, String>>,
    /// Created, and its inode not flushed yet.
    pub(crate) unsynced: AtomicBool,
    /// Held while it is flushed: whoever finds nothing to flush must not be faster than the flush.
    pub(crate) syncing: Mutex<()>,
}

impl StoreFile {
    pub(crate) fn new(
        id: FileId,
        (identity, inode): (Identity, u64),
        disk: Arc<DiskFile>,
        path: StorePath,
        sums: Sums,
    ) -> StoreFile {
        StoreFile {
            id,
            identity,
            inode,
            disk,
            path: Mutex::new(path),
            durable: Arc::clone(&sums.size),
            sums: Mutex::new(sums),
            acknowledged: AtomicU64::new(u64::MAX),
            troubles: Mutex::default(),
            unsynced: AtomicBool::new(false),
            syncing: Mutex::default(),
        }
    }

    pub(crate) fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().expect("no panic while held")
    }

    /// What is committed, durable or not.
    pub(crate) fn size(&self) -> u64 {
        match self.acknowledged.load(Ordering::Acquire) {
            u64::MAX => self.durable_size(),
            acknowledged => acknowledged,
        }
    }

    /// What is committed and durable. Waits for nobody.
    pub(crate) fn durable_size(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn acknowledge(&self, size: u64) {
        self.acknowledged.store(size, Ordering::Release);
    }

    pub(crate) fn path(&self) -> StorePath {
        self.path.lock().expect("no panic while held").clone()
    }

    pub(crate) fn set_path(&self, path: StorePath) {
        *self.path.lock().expect("no panic while held") = path;
    }

    /// Its path is what `anew` says, if that says something.
    pub(crate) fn call_anew(&self, anew: impl Fn(&StorePath) -> Option<StorePath>) {
        if let Some(path) = anew(&self.path()) {
            self.set_path(path);
            // The record's hint at the path is stale: the next record brings a new one.
            self.sums().marked = 0;
        }
    }

    /// What the record must say before the first change of this file.
    pub(crate) fn mark(&self, sums: &Sums) -> Body {
        let Header { size, adopted_blocks, .. } = sums.header;
        Body::Mark { size, adopted_blocks, path: self.path().as_str().to_owned() }
    }

    /// Compares a block with what was committed; adopts it if nothing is known of it.
    pub(crate) fn judge(
        &self,
        sums: &mut Sums,
        disk: &dyn Disk,
        block: u64,
        found: u32,
    ) -> Result<(), JudgeError> {
        let state = sums.get(disk, block).inspect_err(|error| self.note_trouble(block, error.to_string()))?;
        let committed = match state {
            BlockState::Unknown => {
                sums.set(disk, block, BlockState::Known(found))?;
                return Ok(());
            }
            BlockState::Known(crc) => Some(crc),
            BlockState::Hole => Some(*crate::checksum::ZERO_BLOCK),
            BlockState::Torn => None,
        };
        if committed == Some(found) {
            self.troubles.lock().expect("no panic while held").remove(&block);
            return Ok(());
        }
        let mismatch = Mismatch { file: self.id, path: self.path(), block, committed, found };
        let range = format!("{}..{}", block * 4096, (block + 1) * 4096);
        let was = committed.map_or("torn in a crash".to_owned(), |crc| format!("{crc:#010x}"));
        let is = format!("{found:#010x}");
        tracing::error!(path = %mismatch.path, %range, committed = %was, found = %is, "a block does not hold what was committed");
        self.note_trouble(block, format!("bytes {range}: committed {was}, found {is}"));
        Err(JudgeError::Mismatch(mismatch))
    }

    /// Whether something was found wrong, anywhere.
    pub(crate) fn has_troubles(&self) -> bool {
        !self.troubles.lock().expect("no panic while held").is_empty()
    }

    pub(crate) fn note_trouble(&self, block: u64, what: String) {
        let mut troubles = self.troubles.lock().expect("no panic while held");
        if troubles.len() >= TROUBLES_MAX {
            troubles.clear();
        }
        troubles.insert(block, what);
    }

    /// What was found wrong with the first of these blocks that has anything.
    pub(crate) fn trouble_in(&self, blocks: BlockRange) -> Option<String> {
        let troubles = self.troubles.lock().expect("no panic while held");
        troubles.range(blocks.start()..blocks.end()).next().map(|(_, what)| what.clone())
    }
}

/// Why a block cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JudgeError {
    #[error("block {} holds other bytes than were committed", .0.block)]
    Mismatch(Mismatch),
    #[error(transparent)]
    Sums(#[from] SumsError),
}

impl JudgeError {
    /// The fault that the core shall see.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            // A damaged page of checksums is no better than a damaged block.
            JudgeError::Mismatch(_) | JudgeError::Sums(SumsError::Damaged { .. }) => Fault::Checksum,
            JudgeError::Sums(SumsError::System(error)) => crate::writeback::fault_of(error),
            JudgeError::Sums(SumsError::TooFar { .. }) => Fault::Io,
        }
    }
}
