//! What is known about a file beside its bytes: its blocks' checksums, its attributes.

use crate::engine::Engine;
use crate::files::FileError;
use crate::path::StorePath;
use crate::storage::{Attributes, MapRun};
use crate::sync::blocking;
use leasehold_core::output;
use leasehold_core::range::{BLOCK_BYTES, BlockRange, ByteRange};

/// The most blocks that one [`Engine::block_map`] looks at: a GiB of the file, a MiB of checksums.
const MAP_BLOCKS_MAX: u64 = 1 << 18;
/// The most of them if they are holes: looking at those costs next to nothing.
const MAP_HOLES_MAX: u64 = 1 << 26;

/// A part of a file's block map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    /// The file's committed size.
    pub size: u64,
    /// In order, without gaps, from the first block of the range on; maybe not to its end.
    pub runs: Vec<MapRun>,
}

impl Engine {
    /// Which blocks of the range hold something, and their checksums. Reads no data. What was committed before the call is
    /// durable when it returns.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn block_map(&self, path: &StorePath, range: ByteRange) -> Result<BlockMap, FileError> {
        // What is committed and not yet recorded would be missing.
        self.sync(path).await?;
        let (pinned, inner) = (self.pin(path).await?, self.0.clone());
        let asked = range.blocks();
        let mapped = blocking(move || {
            let file = pinned.file();
            let size = inner.storage.size_of(file).unwrap_or_default();
            let mut runs: Vec<MapRun> = Vec::new();
            let end =
                asked.end().min(size.div_ceil(BLOCK_BYTES)).min(asked.start().saturating_add(MAP_HOLES_MAX));
            let mut next = asked.start();
            while let Some(part) = BlockRange::new(next, end.min(next.saturating_add(MAP_BLOCKS_MAX))) {
                let found = inner.storage.block_map(file, part)?;
                let known = found.iter().any(|run| matches!(run.state, crate::storage::MapState::Known(_)));
                next = found.last().map_or(end, |run| run.blocks.end());
                runs.extend(found);
                if known {
                    break;
                }
            }
            Ok(BlockMap { size, runs })
        });
        mapped.await.map_err(|fault| FileError::Read {
            path: path.clone(),
            trouble: None,
            source: output::ReadError::Fault(fault),
        })
    }

    /// The mode, the time of modification and the extended attributes of a file or directory.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn attributes(&self, path: &StorePath) -> Result<Attributes, FileError> {
        let (storage, path) = (self.0.storage.clone(), path.clone());
        let looked = blocking(move || {
            let (stat, xattrs) = (storage.stat(&path)?, storage.xattrs(&path)?);
            Ok(Attributes { mode: Some(stat.mode), modified: Some(stat.modified), xattrs: Some(xattrs) })
        });
        looked.await.map_err(FileError::Path)
    }

    /// Sets attributes of a file or directory; what is `None` stays. Durable after the next sync of it.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn set_attributes(&self, path: &StorePath, attributes: Attributes) -> Result<(), FileError> {
        let (storage, path) = (self.0.storage.clone(), path.clone());
        blocking(move || storage.set_attributes(&path, &attributes)).await.map_err(FileError::Path)
    }
}
