//! Syncs: wait until what was committed before is durable.
//!
//! A sync owes every commit that was acknowledged before it arrived, by anybody; a commit in progress is not among them.
//! It has failed writebacks tried again, and is told the fault if one fails once more; the bytes stay in their frames.
//!
//! What a scheme counts as dirty is a writeback, so that this is the answer of all schemes to fsync: acknowledge once
//! the writebacks are durable. They differ in whether those hold what the peers have written.

use crate::core::Core;
use crate::ids::{FileId, RequestId, WriteId};
use crate::input::Fault;
use crate::output::{Output, Reply, SyncError};
use crate::request::Kind;
use alloc::vec::Vec;

/// A sync that is owed an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sync {
    pub file: FileId,
    pub stage: SyncStage,
}

/// How far a sync has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SyncStage {
    /// For all writebacks up to this one.
    Waiting(WriteId),
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
                let last = state.writes.last().map(|&(order, _)| order);
                let stage = last.map_or(SyncStage::Flushing { cancelled: false }, SyncStage::Waiting);
                self.insert_request(id, Kind::Sync(Sync { file, stage }));
                match last {
                    None => out.push(Output::Flush { request: id, file }),
                    Some(last) => {
                        self.file_mut(file).syncs.insert((last, id));
                        self.retry_failed_writes(file, out);
                    }
                }
                return;
            }
        };
        self.reply(id, Reply::Sync(Err(error)), out);
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
            if let Some(Kind::Sync(sync)) = self.requests.get_mut(&id).map(|request| &mut request.kind) {
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
            SyncStage::Waiting(_) => {}
            SyncStage::Flushing { cancelled: true } => self.forget_sync(id),
            SyncStage::Flushing { cancelled: false } => {
                self.finish_sync(id, result.map_err(SyncError::Fault), out);
            }
        }
    }

    pub(crate) fn sync_lost_its_file(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let Kind::Sync(sync) = &self.requests[&id].kind else { return };
        if matches!(sync.stage, SyncStage::Waiting(_)) {
            self.finish_sync(id, Err(SyncError::NoFile), out);
        }
    }

    pub(crate) fn cancel_sync(&mut self, id: RequestId) {
        let Some(Kind::Sync(sync)) = self.requests.get_mut(&id).map(|request| &mut request.kind) else {
            return;
        };
        match &mut sync.stage {
            SyncStage::Waiting(_) => self.forget_sync(id),
            SyncStage::Flushing { cancelled } => *cancelled = true,
        }
    }

    fn finish_sync(&mut self, id: RequestId, result: Result<(), SyncError>, out: &mut Vec<Output>) {
        self.forget_sync(id);
        self.reply(id, Reply::Sync(result), out);
    }

    fn forget_sync(&mut self, id: RequestId) {
        let Kind::Sync(Sync { file, stage }) = self.remove_request(id).kind else { return };
        let state = self.file_mut(file);
        state.requests.remove(&id);
        if let SyncStage::Waiting(last) = stage {
            state.syncs.remove(&(last, id));
        }
    }
}
