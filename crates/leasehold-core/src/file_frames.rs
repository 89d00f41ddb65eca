//! The data path of the older designs: the peer's DMA lands in the file's own frames.
//!
//! The lease's frames stand for the page cache's pages of its range. What is dirty is written from them as they are,
//! whether the key is live or not; whether anything keeps the peer from changing them meanwhile is the scheme's problem.
//! None of this runs under `leasehold`; it is here so that the failures of the others can be shown with the same core.

use crate::breaks::Outcome;
use crate::core::Core;
use crate::frame::Owner;
use crate::ids::{LeaseId, RequestId, WriteId};
use crate::output::{CommitError, Committed, Output, Reply};
use crate::scheme::DataPath;
use crate::writeback::Writeback;
use alloc::vec::Vec;

impl Core {
    /// The key is live: the pages are dirty from now on, since nobody will say when they become so.
    pub(crate) fn dirty_when_registered(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let scheme = self.config.scheme;
        let lease = &self.leases[id];
        if scheme.data_path == DataPath::FileFrames && scheme.dirty.registered && lease.access.writes() {
            let (file, range, run) = (lease.file, lease.range, lease.run);
            let write = WriteId(self.next_id());
            self.lease_mut(id).write = Some(write);
            self.insert_write(write, Writeback::new(write, file, range, run, Some(id)), out);
        }
    }

    /// The lease is fenced and gives its frames up, dirty if the scheme says so.
    pub(crate) fn return_file_frames(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let (file, range, run) = (lease.file, lease.range, lease.run);
        let dirty = self.config.scheme.dirty.released && lease.access.writes();
        if dirty && lease.detached {
            // set_page_dirty on a page without a mapping: the file system finds a dirty page that it never allowed.
            self.disowned = Some(id);
        }
        let in_flight = lease.write;
        let write_again = dirty && !lease.detached;
        if let Some(write) = in_flight {
            self.lease_mut(id).write = None;
            if let Some(write) = self.writes.get_mut(&write) {
                write.holder = None;
                write.again = write_again;
            }
            // The frames go with the writeback that uses them.
            self.frames.hand_over(run, Owner::Lease(id), Owner::Write(write));
        } else if write_again {
            self.begin_write(file, range, run, id, None, out);
        } else {
            self.free_frames(run, Owner::Lease(id));
        }
    }

    /// A commit says no more than that the holder is done.
    pub(crate) fn commit_file_frames(&mut self, id: LeaseId, request: RequestId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let (session, file, range) = (lease.session, lease.file, lease.range);
        let removed = self.file(file).removed;
        if !removed {
            let state = self.file_mut(file);
            state.size = state.size.max(range.end());
        }
        let size = self.file(file).size;
        self.return_file_frames(id, out);
        let result = if removed { Err(CommitError::Removed(id)) } else { Ok(Committed { size }) };
        self.answer(request, Reply::Commit(result), out);
        out.push(Output::Forget { lease: id, session });
        self.lease_over(id, Outcome::Committed, out);
    }

    /// The lease's frames go into quarantine, and nothing may be written from there.
    pub(crate) fn drop_write_under_key(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        if let Some(write) = self.leases[id].write {
            let file = self.forget_write(write, false).file;
            self.advance_syncs(file, out);
        }
    }
}
