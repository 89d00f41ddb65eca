//! `Output::Reply`: who asked hears, by a call or on the data stream.

use super::{Answer, Asker, Forgetting, Granted, Handle, Pending, State, Work};
use crate::pages::{Renewed, WriteBack, renewed, succeeded};
use crate::session::{send_captured, send_committed};
use crate::storage::Detail;
use crate::sync;
use leasehold_core::ids::{RequestId, SessionId};
use leasehold_core::input::{Fault, Input};
use leasehold_core::output::{CommitError, Committed as Done, NoSuchLease, Reply};
use leasehold_core::range::ByteRange;
use leasehold_fabric::message::{Captured, Committed, Status};
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::oneshot;

impl State {
    pub(super) fn reply(&mut self, request: RequestId, reply: Reply) {
        let Some(pending) = self.replies.remove(&request) else { return };
        if let Some(lease) = pending.summed {
            self.crcs.remove(&lease);
        }
        let granted = self.note(&reply, pending.since);
        if let Asker::Write { call, session, data, page } = pending.asker {
            return match granted.first() {
                Some(lease) => self.fill_and_commit(call, session, lease, &data, (page, pending.by)),
                None => drop(call.send(Answer { reply, granted })),
            };
        }
        let Some(renewed) = pending.renews.filter(|_| succeeded(&reply)) else {
            return self.answer(request, pending.asker, reply, granted);
        };
        if let Some(size) = self.parts.core.file_size(renewed.file) {
            self.parts.storage.acknowledge(renewed.file, size);
        }
        match pending.by {
            Handle::Common => self.forget(request, Forgetting { renewed, asker: pending.asker, reply }),
            Handle::Keepers => self.answer(request, pending.asker, reply, granted),
        }
    }

    /// Answers once no page is left of what is new now. Until then none is written back over it.
    fn forget(&mut self, request: RequestId, forgetting: Forgetting) {
        let Renewed { file, range, is_removed } = forgetting.renewed;
        let Some((keeper, inode)) = self.parts.keeper.get().zip(self.parts.storage.inode_of(file)) else {
            return self.answer(request, forgetting.asker, forgetting.reply, Vec::new());
        };
        if keeper.keeps(inode) {
            for pending in self.replies.values_mut() {
                if let Asker::Write { page: Some(page), .. } = &mut pending.asker {
                    page.overtake(file, range);
                }
            }
            self.forgetting.insert(request, forgetting);
            let driver = self.driver.clone();
            keeper.forget(inode, range, Box::new(move || driver.send(Work::Forgotten(request))));
        } else {
            self.answer(request, forgetting.asker, forgetting.reply, Vec::new());
        }
        if is_removed {
            self.parts.keeper.get().inspect(|keeper| keeper.removed(inode));
        }
    }

    pub(super) fn answer(&mut self, request: RequestId, asker: Asker, reply: Reply, granted: Vec<Granted>) {
        match asker {
            Asker::Call(call) => {
                if let Err(answer) = call.send(Answer { reply, granted }) {
                    self.undo(request, answer);
                }
            }
            Asker::Write { .. } => unreachable!("a write is answered by its commit"),
            Asker::Peer { endpoint, request, .. } => {
                let (Reply::Commit(result) | Reply::Capture(result)) = &reply else {
                    unreachable!("peers ask for commits and captures: {reply:?}")
                };
                let (status, size, text) = outcome(result);
                if matches!(reply, Reply::Commit(_)) {
                    send_committed(&endpoint, Committed { request, status, size, text });
                } else {
                    send_captured(&endpoint, Captured { request, status, size, text });
                }
            }
        }
    }

    /// The lease of a local write was granted in this very step, and nothing else has happened since.
    fn fill_and_commit(
        &mut self,
        call: oneshot::Sender<Answer>,
        session: SessionId,
        granted: &Granted,
        data: &[u8],
        (page, by): (Option<WriteBack>, Handle),
    ) {
        if let Some(mut page) = page {
            // What a page shows past the end of file is not the file's.
            let size = self.parts.core.file_size(page.file).unwrap_or(0);
            page.overtake(page.file, ByteRange::from(size));
            if page.is_overtaken() {
                return; // the writer ends its session, and so the lease
            }
        }
        // SAFETY: the frames are leased to the call's own session, for which no key was made; they can be taken away
        // only by a later output.
        let frames = unsafe { self.parts.arena.bytes_mut(granted.run) };
        frames[usize::from(granted.skip)..][..data.len()].copy_from_slice(data);
        let (request, lease) = (self.driver.next_request(), granted.lease);
        let asker = Asker::Call(call);
        let input = Input::Commit { request, session, lease };
        let renews = renewed(&self.parts.core, &input);
        let pending = Pending {
            asker,
            detail: Detail::None,
            since: sync::now(),
            summed: None,
            by,
            begun: true,
            renews,
        };
        self.replies.insert(request, pending);
        self.inputs.push_back(input);
    }

    /// Gives back what was granted to a caller that has gone.
    pub(super) fn undo(&mut self, request: RequestId, answer: Answer) {
        match answer.reply {
            Reply::Acquire(Ok(leases)) => {
                for lease in leases {
                    if let Some(session) = self.parts.core.lease(lease).map(|lease| lease.session) {
                        let request = self.driver.next_request();
                        self.inputs.push_back(Input::Release { request, session, lease });
                    }
                }
            }
            Reply::Read(Ok(Some(_))) => self.inputs.push_back(Input::ReadFinished { request }),
            _ => {}
        }
    }

    /// Counts and announces what a reply means. Returns the leases of a granted acquire.
    fn note(&mut self, reply: &Reply, since: Instant) -> Vec<Granted> {
        let counters = &self.parts.counters;
        let took = sync::now().duration_since(since);
        match reply {
            Reply::Acquire(Ok(leases)) => {
                counters.granted.fetch_add(leases.len() as u64, Ordering::Relaxed);
                counters.acquire(took);
                let granted: Vec<Granted> = leases.iter().filter_map(|id| self.exposed.remove(id)).collect();
                for lease in &granted {
                    self.announce_granted(lease);
                }
                granted
            }
            Reply::Acquire(Err(_)) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                Vec::new()
            }
            Reply::Commit(Ok(_)) => {
                counters.committed.fetch_add(1, Ordering::Relaxed);
                counters.commit(took);
                Vec::new()
            }
            Reply::Commit(Err(error)) => {
                counters.commits_failed.fetch_add(1, Ordering::Relaxed);
                if matches!(error, CommitError::Mismatch(_)) {
                    counters.mismatched.fetch_add(1, Ordering::Relaxed);
                }
                Vec::new()
            }
            Reply::Change(_) => {
                counters.change(took);
                Vec::new()
            }
            Reply::Sync(_) => {
                counters.sync(took);
                Vec::new()
            }
            Reply::Capture(result) => {
                let counter = if result.is_ok() { &counters.captured } else { &counters.captures_failed };
                counter.fetch_add(1, Ordering::Relaxed);
                counters.capture(took);
                Vec::new()
            }
            Reply::Release(_) | Reply::Read(_) => Vec::new(),
        }
    }
}

/// How a commit or a capture went, for the peer.
fn outcome(result: &Result<Done, CommitError>) -> (Status, u64, String) {
    let error = match result {
        Ok(done) => return (Status::Ok, done.size, String::new()),
        Err(error) => error,
    };
    let status = match error {
        CommitError::NoLease(NoSuchLease(_)) => Status::NoLease,
        CommitError::ReadOnly(_) | CommitError::NotPreloaded(_) => Status::WrongAccess,
        CommitError::Revoked { .. } => Status::Revoked,
        CommitError::Mismatch(_) => Status::Mismatch,
        CommitError::Poisoned(_) => Status::Poisoned,
        CommitError::Unproven(_) => Status::Unproven,
        CommitError::Removed(_) => Status::Removed,
        CommitError::OutOfLease { .. } => Status::OutOfBounds,
        CommitError::ArenaFull(_) | CommitError::Limit { .. } => Status::Full,
        CommitError::Fault(Fault::NoSpace) => Status::NoSpace,
        CommitError::Fault(_) => Status::Io,
    };
    (status, 0, error.to_string())
}
