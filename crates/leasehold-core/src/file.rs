//! Files: the size, and what is live on which range.
//!
//! A lease is in `leases` from the moment it has frames until it is over. A request's claim is in `acquires` or
//! `changes` from its arrival until it is granted or done, and keeps later requests from overtaking it. Claims and
//! leases conflict by bytes; phases and writebacks by blocks.

use crate::core::Core;
use crate::ids::{FileId, FrameId, LeaseId, RequestId, WriteId};
use crate::intervals::{ConflictIndex, IntervalIndex};
use crate::phase::{Phase, PhaseId};
use crate::range::BlockRange;
use alloc::collections::{BTreeMap, BTreeSet};

/// One open file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct File {
    /// What is committed, durable or not.
    pub size: u64,
    /// Its last name is gone: no request finds it any more.
    pub removed: bool,
    /// Every request that wants something of it.
    pub requests: BTreeSet<RequestId>,
    /// The ranges of leases; reads are shared.
    pub leases: ConflictIndex<LeaseId>,
    /// What acquires wait for; reads are shared.
    pub acquires: ConflictIndex<RequestId>,
    /// The acquires in `acquires`, in line.
    pub acquire_line: BTreeSet<RequestId>,
    /// Those in `acquires` that break what is in their way.
    pub breakers: ConflictIndex<RequestId>,
    /// What changes have claimed.
    pub changes: IntervalIndex<RequestId>,
    pub phases: BTreeMap<PhaseId, Phase>,
    /// The same by blocks.
    pub phase_index: ConflictIndex<PhaseId>,
    /// Writebacks on their way, by blocks.
    pub in_flight: IntervalIndex<WriteId>,
    /// Writebacks that failed, by blocks.
    pub failed: IntervalIndex<WriteId>,
    /// All writebacks, in the order of their commits.
    pub writes: BTreeSet<(WriteId, WriteId)>,
    /// Its own frames in memory, by block, under schemes whose DMA lands there.
    pub pages: BTreeMap<u64, FrameId>,
    /// Syncs by the last commit each of them owes.
    pub syncs: BTreeSet<(WriteId, RequestId)>,
}

impl File {
    fn new(size: u64) -> File {
        File {
            size,
            removed: false,
            requests: BTreeSet::new(),
            leases: ConflictIndex::default(),
            acquires: ConflictIndex::default(),
            acquire_line: BTreeSet::new(),
            breakers: ConflictIndex::default(),
            changes: IntervalIndex::default(),
            phases: BTreeMap::new(),
            phase_index: ConflictIndex::default(),
            in_flight: IntervalIndex::default(),
            failed: IntervalIndex::default(),
            writes: BTreeSet::new(),
            pages: BTreeMap::new(),
            syncs: BTreeSet::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.leases.is_empty()
            && self.phases.is_empty()
            && self.writes.is_empty()
            && self.pages.is_empty()
    }

    /// How long the file is at least, once `blocks` are in it. Never past their end: one writeback must not vouch
    /// for another's blocks, and must not undo a truncate behind them.
    pub fn size_through(&self, blocks: BlockRange) -> u64 {
        self.size.min(blocks.end().saturating_mul(crate::range::BLOCK_BYTES))
    }
}

impl Core {
    pub(crate) fn open_file(&mut self, file: FileId, size: u64) {
        if self.files.len() < self.config.limits.files_max {
            self.files.entry(file).or_insert_with(|| File::new(size));
        }
    }

    pub(crate) fn close_file(&mut self, file: FileId) {
        if self.files.get(&file).is_some_and(File::is_idle) {
            self.files.remove(&file);
        }
    }

    /// The file, unless it is not open or its last name is gone.
    pub(crate) fn named_file(&mut self, file: FileId) -> Option<&mut File> {
        self.files.get_mut(&file).filter(|file| !file.removed)
    }

    /// A file that something still refers to.
    pub(crate) fn file(&self, file: FileId) -> &File {
        self.files.get(&file).expect("a file that is in use is not closed")
    }

    /// See [`Core::file`].
    pub(crate) fn file_mut(&mut self, file: FileId) -> &mut File {
        self.files.get_mut(&file).expect("a file that is in use is not closed")
    }
}
