//! An open file: its descriptor, its names, and how a block of it is judged.

use crate::disk::{Disk, DiskFile};
use crate::identity::Identity;
use crate::path::StorePath;
use crate::record::Body;
use crate::sidecar::{BlockState, Header};
use crate::storage::Mismatch;
use crate::sums::{Sums, SumsError};
use leasehold_core::ids::FileId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// See the module.
pub(crate) struct StoreFile {
    pub(crate) id: FileId,
    pub(crate) identity: Identity,
    pub(crate) disk: Arc<DiskFile>,
    path: Mutex<StorePath>,
    sums: Mutex<Sums>,
    /// Blocks found to differ since the file was opened.
    pub(crate) mismatches: AtomicU64,
    /// Created, and its inode not flushed yet.
    pub(crate) unsynced: AtomicBool,
    /// Held while it is flushed: whoever finds nothing to flush must not be faster than the flush.
    pub(crate) syncing: Mutex<()>,
}

impl StoreFile {
    pub(crate) fn new(
        id: FileId,
        identity: Identity,
        disk: Arc<DiskFile>,
        path: StorePath,
        sums: Sums,
    ) -> StoreFile {
        StoreFile {
            id,
            identity,
            disk,
            path: Mutex::new(path),
            sums: Mutex::new(sums),
            mismatches: AtomicU64::new(0),
            unsynced: AtomicBool::new(false),
            syncing: Mutex::default(),
        }
    }

    pub(crate) fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().expect("no panic while held")
    }

    pub(crate) fn path(&self) -> StorePath {
        self.path.lock().expect("no panic while held").clone()
    }

    pub(crate) fn set_path(&self, path: StorePath) {
        *self.path.lock().expect("no panic while held") = path;
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
        let committed = match sums.get(disk, block)? {
            BlockState::Unknown => {
                sums.set(disk, block, BlockState::Known(found))?;
                return Ok(());
            }
            BlockState::Known(crc) => Some(crc),
            BlockState::Hole => Some(*crate::checksum::ZERO_BLOCK),
            BlockState::Torn => None,
        };
        if committed == Some(found) {
            return Ok(());
        }
        self.mismatches.fetch_add(1, Ordering::Relaxed);
        let mismatch = Mismatch { file: self.id, path: self.path(), block, committed, found };
        tracing::error!(
            path = %mismatch.path,
            range = %format_args!("{}..{}", block * 4096, (block + 1) * 4096),
            committed = %committed.map_or("torn".to_owned(), |crc| format!("{crc:08x}")),
            found = %format_args!("{found:08x}"),
            "a block does not hold what was committed"
        );
        Err(JudgeError::Mismatch(mismatch))
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
