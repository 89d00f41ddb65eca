//! Promises that a state can break, and does under some schemes.

use crate::acquire::blocks;
use crate::core::{Core, Timer};
use crate::frame::Owner;
use crate::ids::{LeaseId, RequestId, SessionId, TenantId, Tick};
use crate::lease::{Ending, State, Step};
use crate::range::Run;
use crate::read::{Read, ReadStage};
use crate::request::Kind;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

/// A promise of the design (or an invariant of the core itself) that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// P4.
    #[error("P4 no disowned page: {lease} marked frames dirty after the file had given them up")]
    DisownedDirty { lease: LeaseId },
    /// P5.
    #[error("P5 bounded breaks: {request} waits for {lease}, which has no deadline")]
    UnboundedWait { request: RequestId, lease: LeaseId },
    /// The core's own bookkeeping is wrong under every scheme.
    #[error("invariant of the core: {0}")]
    Inconsistent(String),
}

impl Violation {
    /// The promise's name in the design, or `core`.
    #[must_use]
    pub fn promise(&self) -> &'static str {
        match self {
            Violation::DisownedDirty { .. } => "P4",
            Violation::UnboundedWait { .. } => "P5",
            Violation::Inconsistent(_) => "core",
        }
    }
}

impl Core {
    /// Walks everything, and finds the first promise or invariant that does not hold.
    ///
    /// # Errors
    /// The violation, which names the promise. Under [`crate::schemes::LEASEHOLD`] there must be none, ever.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_promises()?;
        self.frames.check().map_err(Violation::Inconsistent)?;
        self.check_owners().and_then(|()| self.check_tables()).map_err(Violation::Inconsistent)
    }

    fn check_promises(&self) -> Result<(), Violation> {
        if let Some(lease) = self.disowned {
            return Err(Violation::DisownedDirty { lease });
        }
        for (&request, state) in &self.requests {
            let Kind::Change(change) = &state.kind else { continue };
            if change.phase.is_none() {
                self.check_bounded(request, state.since)?;
            }
        }
        Ok(())
    }

    /// Every lease that a change waits for ends by the change's own deadline, or is ending.
    fn check_bounded(&self, request: RequestId, since: Tick) -> Result<(), Violation> {
        // A truncate that turned out to shrink began its breaks later than it came.
        let latest = self.now.max(since).after_ms(self.config.grace_ms);
        for lease in self.leases_in_the_way(request) {
            let state = &self.leases[lease];
            let taken = state.state == State::Fencing(Ending::Park);
            if !taken && !state.is_ending() && state.deadline.is_none_or(|deadline| deadline > latest) {
                return Err(Violation::UnboundedWait { request, lease });
            }
        }
        Ok(())
    }

    /// Frames are owned by exactly those who think so.
    fn check_owners(&self) -> Result<(), String> {
        let mut owners = 0;
        let mut owns = |owner, run| {
            owners += 1;
            if self.frames.owns(owner, run) { Ok(()) } else { Err(format!("{owner:?} does not own {run:?}")) }
        };
        for (id, lease) in self.leases.iter() {
            if !self.lands_in_file() {
                owns(Owner::Lease(id), lease.run)?;
            }
            if let State::Merging { step: Step::Copying(into), .. } = lease.state
                && into != lease.run
            {
                owns(Owner::Lease(id), into)?;
            }
        }
        for &frame in self.pages.keys() {
            owns(Owner::Page, Run { first: frame, frames: 1 })?;
        }
        let own = self.writes.iter().filter(|(_, write)| write.page != Some(write.run.first));
        for (&id, write) in own {
            owns(Owner::Write(id), write.run)?;
        }
        for (&id, request) in &self.requests {
            if let Kind::Read(Read { stage, .. }) = &request.kind
                && let ReadStage::Queued { run, .. }
                | ReadStage::Loading { run, .. }
                | ReadStage::Lent { run } = *stage
            {
                owns(Owner::Reader(id), run)?;
            }
        }
        if owners != self.frames.owned_runs() {
            return Err(format!(
                "{} runs are owned by somebody who is gone",
                self.frames.owned_runs() - owners
            ));
        }
        Ok(())
    }

    /// The leases and frames of a tenant, and of its requests that have none yet.
    fn counted(&self, tenant: TenantId) -> (usize, u64) {
        let leases = self.leases.iter().filter(|(_, lease)| lease.tenant == Some(tenant));
        let leases = leases.map(|(_, lease)| (1, lease.range.blocks().len()));
        let is_its =
            |session: &SessionId| self.sessions.get(session).is_some_and(|it| it.tenant == Some(tenant));
        let requests = self.requests.values().filter_map(|request| match &request.kind {
            Kind::Acquire(acquire) if acquire.group.is_none() && is_its(&acquire.session) => {
                Some((acquire.wants.len(), blocks(&acquire.wants)))
            }
            Kind::Capture(capture) if is_its(&capture.session) => Some((1, capture.range.blocks().len())),
            _ => None,
        });
        leases.chain(requests).fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1))
    }

    /// Tables that mirror each other agree.
    fn check_tables(&self) -> Result<(), String> {
        let sound = |sound: bool, what: &str| if sound { Ok(()) } else { Err(String::from(what)) };
        sound(self.work.is_empty(), "work is left between steps")?;
        for (id, lease) in self.leases.iter() {
            let found = self.file(lease.file).leases.conflicting(lease.range, true).any(|other| other == id);
            sound(found, "a lease is not in its file's index")?;
            let session = self.sessions.get(&lease.session);
            sound(
                session.is_none_or(|session| session.leases.contains_key(id)),
                "a lease is not its session's",
            )?;
            if let Some(deadline) = lease.deadline {
                sound(deadline > self.now || self.config.grace_ms == 0, "a grace period is over unnoticed")?;
                sound(self.timers.contains(&(deadline, Timer::Grace(id))), "a deadline has no timer")?;
            }
            sound(lease.breaks.iter().all(|id| self.breaks.contains_key(id)), "a break is not recorded")?;
        }
        let breaks: usize = self.leases.iter().map(|(_, lease)| lease.breaks.len()).sum();
        sound(breaks == self.breaks.len(), "a break has outlived its lease")?;
        let wanted: usize = self.sessions.values().map(|session| session.leases_wanted).sum();
        sound(wanted == self.leases_wanted, "wanted leases are miscounted")?;
        for (id, write) in &self.writes {
            let file = self.file(write.file);
            let index = if write.is_in_flight() { &file.in_flight } else { &file.failed };
            sound(index.overlapping(write.blocks).any(|other| other == *id), "a writeback is not indexed")?;
            if !self.lands_in_file() {
                let all =
                    file.in_flight.overlapping(write.blocks).chain(file.failed.overlapping(write.blocks));
                sound(all.count() == 1, "a block has two frames outside the disk")?;
            }
        }
        let files: usize = self.files.values().map(|file| file.writes.len()).sum();
        sound(files == self.writes.len(), "a file's writebacks are miscounted")?;
        sound(self.answers.values().all(|lease| self.leases.contains_key(*lease)), "an answer is lost")?;
        for (of, captures) in &self.captures {
            let lease = self.leases.get(*of).map(|lease| lease.state);
            let there = matches!(lease, Some(State::Live | State::Fencing(_) | State::Fenced { .. }));
            sound(there && !captures.is_empty(), "captures have outlived their lease")?;
            for (at, id) in captures.iter().enumerate() {
                let queued = matches!(self.leases[*id].state, State::Queued { .. });
                sound(self.leases[*id].of == Some(*of) && queued == (at > 0), "a capture is out of line")?;
            }
        }
        let captures: usize = self.captures.values().map(VecDeque::len).sum();
        let leases = self.leases.iter().filter(|(_, lease)| lease.of.is_some()).count();
        sound(captures == leases, "a capture is in no line")?;
        for (id, tenant) in &self.tenants {
            let (leases, frames) = self.counted(*id);
            sound((leases, frames) == (tenant.leases, tenant.frames), "what a tenant has is miscounted")?;
        }
        for id in &self.frame_queue {
            sound(self.requests.contains_key(id), "a request that is gone is in line for frames")?;
        }
        Ok(())
    }
}
