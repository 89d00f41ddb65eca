//! Writebacks between `Record` and `Written`, by their number and by their place.
//!
//! Invariant: those of one file do not overlap. The core begins none before what is in its way is over; only one that failed
//! stays, and whoever tries again takes it out first.

use crate::writeback::PendingWrite;
use leasehold_core::ids::{FileId, WriteId};
use leasehold_core::range::BlockRange;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// See the module.
#[derive(Default)]
pub(crate) struct Writes {
    by_id: HashMap<WriteId, Arc<PendingWrite>>,
    /// By file and first block.
    by_place: BTreeMap<(FileId, u64), Arc<PendingWrite>>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(crate) fn get(&self, id: WriteId) -> Option<Arc<PendingWrite>> {
        self.by_id.get(&id).cloned()
    }

    pub(crate) fn insert(&mut self, pending: Arc<PendingWrite>) {
        debug_assert!(self.overlapping(pending.file(), pending.blocks()).is_empty());
        self.by_place.insert((pending.file(), pending.blocks().start()), Arc::clone(&pending));
        self.by_id.insert(pending.id(), pending);
    }

    pub(crate) fn remove(&mut self, id: WriteId) -> Option<Arc<PendingWrite>> {
        let pending = self.by_id.remove(&id)?;
        self.by_place.remove(&(pending.file(), pending.blocks().start()));
        Some(pending)
    }

    /// Takes as long as there are such writes, not as all.
    pub(crate) fn overlapping(&self, file: FileId, blocks: BlockRange) -> Vec<Arc<PendingWrite>> {
        let before = self.by_place.range((file, 0)..(file, blocks.end())).rev().map(|(_, pending)| pending);
        before.take_while(|pending| pending.blocks().end() > blocks.start()).cloned().collect()
    }
}
