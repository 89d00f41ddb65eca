//! Syncs: wait until what was committed before is durable.
//!
//! A sync owes every commit that was acknowledged before it arrived, by anybody; a commit in progress is not among them.
//! It has failed writebacks tried again, and is told the fault if one fails once more; the bytes stay in their frames.
//!
//! Where DMA lands in the file's own frames, a sync first has the dirty ones written, as the scheme says; what it does
//! not find dirty it does not owe.

use crate::core::Core;
use crate::ids::{FileId, LeaseId, RequestId, WriteId};
use crate::input::Fault;
use crate::output::{Output, Reply, SyncError};
use crate::range::ByteRange;
use crate::request::Kind;
use crate::scheme::{FsyncRule, Writeback as Rule};
use alloc::vec::Vec;

/// A sync that is owed an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sync {
    pub file: FileId,
    pub stage: SyncStage,
}

/// How far a sync has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SyncStage {
    /// For the holder of this lease, under schemes that do such a thing.
    Holder(LeaseId),
    /// For all writebacks up to the last; there are pages to be written again after that.
    Waiting {
        last: WriteId,
        again: bool,
    },
    Flushing {
        cancelled: bool,
    },
}

impl Core {
    pub(crate) fn sync(&mut self, id: RequestId, file: FileId, out: &mut Vec<Output>) {
        if self.is_known(id) {
            return;
        }
        let full = self.is_full_of_requests();
        let error = match (self.named_file(file), full) {
            (None, _) => SyncError::NoFile,
            (_, Some((limit, max))) => SyncError::Limit { limit, max },
            (Some(state), None) => {
                state.requests.insert(id);
                let stage = SyncStage::Flushing { cancelled: false };
                self.insert_request(id, Kind::Sync(Sync { file, stage }));
                return self.begin_sync(id, file, out);
            }
        };
        self.reply(id, Reply::Sync(Err(error)), out);
    }

    /// Finds out what the sync owes, unless it has to wait for a holder before. A page that was dirtied again while it is
    /// being written is written once more.
    fn begin_sync(&mut self, id: RequestId, file: FileId, out: &mut Vec<Output>) {
        let rule = match self.config.scheme.fsync {
            FsyncRule::Acknowledge | FsyncRule::Wait | FsyncRule::CommittedBytes => None,
            FsyncRule::FenceAndWrite => Some(Rule::Refault),
            FsyncRule::Snapshot => Some(Rule::Snapshot),
        };
        let again = self.dirtied_again(file);
        self.write_pages(file, ByteRange::ALL.blocks(), rule, out);
        let holder = match self.config.scheme.fsync {
            FsyncRule::Wait => self.file(file).leases.conflicting(ByteRange::ALL, false).next(),
            FsyncRule::CommittedBytes => self.dirty_under_key(file),
            _ => None,
        };
        let last = self.file(file).writes.last().map(|&(order, _)| order);
        let stage = match (holder, last) {
            (Some(lease), _) => SyncStage::Holder(lease),
            (None, Some(last)) => SyncStage::Waiting { last, again },
            (None, None) => SyncStage::Flushing { cancelled: false },
        };
        if let Some(Kind::Sync(sync)) = self.requests.get_mut(&id).map(|request| &mut request.kind) {
            sync.stage = stage;
        }
        match stage {
            SyncStage::Holder(lease) => _ = self.lease_mut(lease).watchers.insert(id),
            SyncStage::Waiting { last, .. } => {
                self.file_mut(file).syncs.insert((last, id));
                self.retry_failed_writes(file, out);
            }
            SyncStage::Flushing { .. } => out.push(Output::Flush { request: id, file }),
        }
    }

    /// The holder that the sync waits for has gone, or its key was taken back.
    pub(crate) fn advance_sync(&mut self, id: RequestId, out: &mut Vec<Output>) {
        if let Some(&sync @ Sync { file, stage: SyncStage::Holder(_) }) = self.sync_of(id) {
            // Of a lease whose key was taken back, and comes again, nobody would wake it another time.
            self.leave_sync_line(id, sync);
            self.begin_sync(id, file, out);
        }
    }

    fn sync_of(&self, id: RequestId) -> Option<&Sync> {
        match self.requests.get(&id).map(|request| &request.kind) {
            Some(Kind::Sync(sync)) => Some(sync),
            _ => None,
        }
    }

    /// Takes the sync out of the line that it waits in.
    fn leave_sync_line(&mut self, id: RequestId, Sync { file, stage }: Sync) {
        match stage {
            SyncStage::Holder(lease) => {
                if let Some(lease) = self.leases.get_mut(lease) {
                    lease.watchers.remove(&id);
                }
            }
            SyncStage::Waiting { last, .. } => _ = self.file_mut(file).syncs.remove(&(last, id)),
            SyncStage::Flushing { .. } => {}
        }
    }

    /// A writeback of the file is durable, or needs to be no more.
    pub(crate) fn advance_syncs(&mut self, file: FileId, out: &mut Vec<Output>) {
        loop {
            let state = self.file_mut(file);
            let Some(&(last, id)) = state.syncs.first() else { return };
            if state.writes.first().is_some_and(|&(order, _)| order <= last) {
                return;
            }
            state.syncs.pop_first();
            let Some(Kind::Sync(sync)) = self.requests.get_mut(&id).map(|request| &mut request.kind) else {
                continue;
            };
            if matches!(sync.stage, SyncStage::Waiting { again: true, .. }) {
                self.begin_sync(id, file, out);
            } else {
                sync.stage = SyncStage::Flushing { cancelled: false };
                out.push(Output::Flush { request: id, file });
            }
        }
    }

    /// A writeback has failed: whoever waits for it is told.
    pub(crate) fn fail_syncs(&mut self, file: FileId, order: WriteId, fault: Fault, out: &mut Vec<Output>) {
        let waiting = self.file_mut(file).syncs.split_off(&(order, RequestId(0)));
        for (_, id) in waiting {
            self.finish_sync(id, Err(fault.into()), out);
        }
    }

    pub(crate) fn flushed(&mut self, id: RequestId, result: Result<(), Fault>, out: &mut Vec<Output>) {
        let Some(Kind::Sync(sync)) = self.requests.get(&id).map(|request| &request.kind) else { return };
        match sync.stage {
            SyncStage::Holder(_) | SyncStage::Waiting { .. } => {}
            SyncStage::Flushing { cancelled: true } => self.forget_sync(id),
            SyncStage::Flushing { cancelled: false } => {
                self.finish_sync(id, result.map_err(SyncError::Fault), out);
            }
        }
    }

    pub(crate) fn sync_lost_its_file(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let Kind::Sync(sync) = &self.requests[&id].kind else { return };
        if matches!(sync.stage, SyncStage::Holder(_) | SyncStage::Waiting { .. }) {
            self.finish_sync(id, Err(SyncError::NoFile), out);
        }
    }

    pub(crate) fn cancel_sync(&mut self, id: RequestId) {
        let Some(Kind::Sync(sync)) = self.requests.get_mut(&id).map(|request| &mut request.kind) else {
            return;
        };
        match &mut sync.stage {
            SyncStage::Holder(_) | SyncStage::Waiting { .. } => self.forget_sync(id),
            SyncStage::Flushing { cancelled } => *cancelled = true,
        }
    }

    fn finish_sync(&mut self, id: RequestId, result: Result<(), SyncError>, out: &mut Vec<Output>) {
        self.forget_sync(id);
        self.reply(id, Reply::Sync(result), out);
    }

    fn forget_sync(&mut self, id: RequestId) {
        let Kind::Sync(sync) = self.remove_request(id).kind else { return };
        self.file_mut(sync.file).requests.remove(&id);
        self.leave_sync_line(id, sync);
    }
}
