//! What the world does about the core's outputs.

use super::{
    FIRST, Key, LOCAL_VALUE, Lane, MAIN, Mutation, Setting, Sometimes, State, blocks_of, file_of, frame_at,
    overlap, parts_of, value_of,
};
use crate::scenario::Act;
use leasehold_core::ids::{LeaseId, RequestId, SessionId};
use leasehold_core::input::{Access, Change, Input};
use leasehold_core::output::{Loader, Notice, Output, Reply, RevokeReason};
use leasehold_core::promise::Promise;
use leasehold_core::range::{ByteRange, Run};
use leasehold_core::scheme::Backing;
use std::collections::VecDeque;

impl Setting {
    /// The core says something. Answers that make no difference come at once.
    pub(super) fn hear(&self, state: &mut State, output: Output, inputs: &mut VecDeque<Input>) {
        self.note_output(state, &output);
        match output {
            Output::Reply { request, reply } => return self.hear_reply(state, request, reply, inputs),
            Output::Notify { notice, .. } => return self.hear_notice(state, &notice),
            Output::BreakEnded { .. } | Output::Forget { .. } => return,
            Output::Perform { request, change, .. } => self.before_perform(state, request, change),
            Output::Record { file, range, run, .. } if file_of(file) == MAIN && !self.lands_in_file() => {
                // The commit has just taken effect.
                let parts = parts_of(range);
                for part in parts.clone() {
                    let value = state.frames[frame_at(run, part / 2 - parts.start / 2)][part % 2];
                    state.history.take_effect(part, value);
                }
            }
            Output::Fence { lease, .. } => self.before_fence(state, lease),
            Output::Write { write, file, blocks, run, .. } => {
                let handed = (0..run.frames as usize).map(|at| state.frames[frame_at(run, at)]).collect();
                state.handed.push((write, handed));
                if file_of(file) == MAIN && state.slots.iter().any(|slot| slot.sent > 0) {
                    state.test(Promise::P1);
                }
                debug_assert_eq!(blocks.len(), u64::from(run.frames));
            }
            _ => {}
        }
        let at_once = match output {
            Output::Record { .. } => self.lands_in_file() || self.mutated(Mutation::NoRecord),
            Output::Flush { .. } | Output::Zero { .. } | Output::Verify { .. } => !self.thorough,
            Output::Expose { session, .. } | Output::Fence { session, .. } => {
                session == SessionId::LOCAL || !self.thorough && matches!(output, Output::Expose { .. })
            }
            Output::Load { by, .. } => {
                !self.thorough && (self.lands_in_file() || matches!(by, Loader::Read(_)))
            }
            _ => false,
        };
        if at_once {
            inputs.extend(self.perform(state, output));
        } else {
            state.pending.push(output);
        }
    }

    fn before_fence(&self, state: &mut State, lease: LeaseId) {
        let Some(at) = state.slots.iter().position(|slot| slot.lease == Some(lease)) else { return };
        let session = self.scenario.slots[at].session;
        let others = self.scenario.slots.iter().zip(&state.slots).enumerate();
        let mut others = others.filter(|&(other, (slot, _))| other != at && slot.session == session);
        if !state.slots[at].over && others.any(|(_, (_, held))| held.lease.is_some() && !held.over) {
            state.test(Promise::P7);
        }
    }

    fn hear_reply(&self, state: &mut State, request: RequestId, reply: Reply, inputs: &mut VecDeque<Input>) {
        let act = &self.scenario.acts[request.0 as usize - 1];
        let well = match &reply {
            Reply::Acquire(result) => result.is_ok(),
            // A refusal, too, ends the wait.
            Reply::Change(_) => true,
            Reply::Read(result) => result.is_ok(),
            Reply::Sync(_) | Reply::Commit(_) | Reply::Release(_) | Reply::Capture(_) => true,
        };
        let first_half = matches!((&reply, act), (Reply::Acquire(_), Act::LocalWrite(_)));
        if well && !first_half {
            state.past.answered |= 1 << (request.0 - 1);
        }
        match (reply, act) {
            (Reply::Acquire(Ok(leases)), Act::Acquire(slot)) => {
                state.slots[*slot].lease = leases.first().copied();
                state.see(Sometimes::Granted);
            }
            (Reply::Acquire(Ok(leases)), Act::LocalWrite(_)) => {
                let (session, lease) = (SessionId::LOCAL, leases[0]);
                self.store(state, lease);
                inputs.push_back(Input::Commit { request, session, lease });
            }
            (Reply::Commit(Ok(_)), Act::Commit(slot)) => {
                state.see(Sometimes::Committed);
                let wanted = &self.scenario.slots[*slot];
                if wanted.file == MAIN {
                    let value = value_of(*slot, state.slots[*slot].committed - 1);
                    // What is acknowledged must be seen, even if the file has not got it.
                    state.history.write(wanted.writes.clone(), value);
                    state.history.acknowledge(wanted.writes.clone(), value);
                }
            }
            (Reply::Commit(Err(_)), Act::Commit(_)) => state.see(Sometimes::Mismatch),
            (Reply::Commit(Ok(_)), Act::LocalWrite(parts)) => {
                state.history.acknowledge(parts.clone(), LOCAL_VALUE);
            }
            (Reply::Sync(Ok(())), _) => {
                state.see(Sometimes::Synced);
                if let Some(floors) = state.floors.remove(&request) {
                    state.history.synced(&floors);
                }
                // From here on a crash puts it to the test; worlds after crashes are told apart by verdicts only.
                if self.scenario.crash && state.history.was_synced() {
                    state.test(Promise::P2);
                }
            }
            (Reply::Read(result), _) => self.hear_read(state, request, &result, inputs),
            (Reply::Change(result), Act::Change(change)) => {
                let since = state.since.remove(&request).unwrap_or(state.now);
                if state.now > since.after_ms(super::GRACE_MS) {
                    state.break_(Promise::P5);
                }
                if result.is_ok() {
                    state.see(Sometimes::Changed);
                    let takes = self.takes(*change, 2 * self.blocks());
                    if *change == Change::Remove {
                        state.removed = true;
                    } else if *change != Change::Clone {
                        state.history.acknowledge(takes, 0);
                    }
                } else if self.scenario.slots.iter().zip(&state.slots).any(|(_, held)| held.lease.is_some()) {
                    state.test(Promise::P6);
                }
            }
            _ => {}
        }
    }

    fn hear_notice(&self, state: &mut State, notice: &Notice) {
        match notice {
            Notice::Break { lease, .. } => {
                if self.mutated(Mutation::NoNotice) {
                    return;
                }
                if let Some(slot) = state.slots.iter_mut().find(|slot| slot.lease == Some(*lease)) {
                    slot.notified = true;
                }
            }
            Notice::Revoked { lease, why, .. } => {
                state.see(Sometimes::Revoked);
                let Some(at) = state.slots.iter().position(|slot| slot.lease == Some(*lease)) else { return };
                self.judge_revoked(state, at, *why);
                state.slots[at].over = true;
            }
        }
    }

    fn judge_revoked(&self, state: &mut State, at: usize, why: RevokeReason) {
        let asked_for = matches!(why, RevokeReason::GraceOver | RevokeReason::Taken);
        if asked_for && !state.slots[at].notified {
            state.break_(Promise::P6);
        }
        // Behind an unproven fence the connection goes, and all that was on it.
        let quarantine = state.has_seen(Sometimes::Quarantined) || why == RevokeReason::Unproven;
        if !self.is_wanted_by_a_breaker(state, at) && !quarantine {
            state.break_(Promise::P7);
        }
    }

    /// Whether somebody has come for whom the lease has to go.
    fn is_wanted_by_a_breaker(&self, state: &State, at: usize) -> bool {
        let wanted = &self.scenario.slots[at];
        let acts = self.scenario.acts.iter().enumerate();
        let mut came = acts.filter(|(number, _)| state.left & (1 << number) == 0);
        wanted.file == MAIN
            && came.any(|(_, act)| {
                let takes = match act {
                    Act::Change(change) => self.takes(*change, 2 * self.blocks()),
                    Act::LocalWrite(parts) => parts.clone(),
                    _ => 0..0,
                };
                overlap(&takes, &wanted.parts)
            })
    }

    /// A program on the host has its range, and stores into it.
    fn store(&self, state: &mut State, lease: LeaseId) {
        let Some(view) = state.core.lease(lease) else { return };
        let parts = parts_of(view.range);
        for part in parts.clone() {
            let block = part / 2;
            if self.lands_on_disk() {
                let extent = state.disk.place(MAIN, block);
                state.disk.store(extent, part % 2, LOCAL_VALUE);
            } else {
                state.disk.ask(MAIN, block);
                let frame = frame_at(view.run, block - parts.start / 2);
                state.frames[frame][part % 2] = LOCAL_VALUE;
            }
        }
        if self.lands_on_disk() {
            state.disk.grow(MAIN, parts.end);
        }
        if self.lands_in_file() {
            state.history.write(parts, LOCAL_VALUE);
        }
    }

    /// Performs an output, and answers it.
    pub(super) fn perform(&self, state: &mut State, output: Output) -> Option<Input> {
        self.note_performed(state, &output);
        let result = Ok(());
        Some(match output {
            Output::Load { by, file, blocks, size, into } => {
                for at in 0..into.frames as usize {
                    let block = blocks.start() as usize + at;
                    let content = state.disk.block(file_of(file), block);
                    let within = |part: usize| (2 * block + part) < (size / super::PART_BYTES) as usize;
                    state.frames[frame_at(into, at)] =
                        [0, 1].map(|part| if within(part) { content[part] } else { 0 });
                }
                match by {
                    Loader::Lease(lease) => Input::LeaseLoaded { lease, result },
                    Loader::Read(request) => Input::ReadLoaded { request, result },
                }
            }
            Output::Zero { lease, into } => {
                if !self.mutated(Mutation::NoZero) {
                    (0..into.frames as usize).for_each(|at| state.frames[frame_at(into, at)] = [0; 2]);
                }
                Input::LeaseLoaded { lease, result }
            }
            Output::Expose { lease, session, run, access, .. } => {
                self.expose(state, lease, session, run, access);
                Input::Exposed { lease, result }
            }
            Output::Fence { lease, .. } => {
                if !self.mutated(self.fence_of(state, lease)) {
                    state.keys.remove(&lease);
                }
                Input::Fenced { lease }
            }
            Output::Disconnect { session } => {
                let of = |slot: u8| self.scenario.slots[usize::from(slot)].session;
                state.keys.retain(|_, key| of(key.slot) != session);
                Input::EndpointGone { session }
            }
            Output::Verify { lease, run, range, .. } => {
                let agrees = self.mutated(Mutation::NoVerify) || self.crc_agrees(state, lease, run, range);
                Input::Verified { lease, agrees }
            }
            Output::Merge { lease, file, range, size, run } => {
                let within = parts_of(range);
                for (at, block) in blocks_of(&within).enumerate() {
                    let content = state.disk.block(file_of(file), block);
                    for part in [2 * block, 2 * block + 1] {
                        let outside = !within.contains(&part);
                        if outside && !self.mutated(Mutation::NoMerge) {
                            let there = part < (size / super::PART_BYTES) as usize;
                            state.frames[frame_at(run, at)][part % 2] =
                                if there { content[part % 2] } else { 0 };
                        }
                    }
                }
                Input::Merged { lease, result }
            }
            Output::Capture { lease, from, into, .. } => {
                for at in 0..into.frames as usize {
                    state.frames[frame_at(into, at)] = state.frames[frame_at(from, at)];
                }
                Input::Captured { lease }
            }
            Output::Record { write, range, run, .. } => {
                self.record(state, write, range, run);
                Input::Recorded { write, result }
            }
            Output::Write { write, file, blocks, size, run } => {
                self.written(state, write, file_of(file), blocks.start() as usize, run);
                state.disk.grow(file_of(file), (size / super::PART_BYTES) as usize);
                Input::Written { write, result }
            }
            Output::Perform { request, change, .. } => {
                if !self.was_early(state, request) {
                    self.changed(state, change);
                }
                Input::Performed { request, result: Ok(None) }
            }
            Output::Flush { request, .. } => Input::Flushed { request, result },
            Output::Reply { .. }
            | Output::Notify { .. }
            | Output::BreakEnded { .. }
            | Output::Forget { .. } => {
                return None;
            }
        })
    }

    fn expose(&self, state: &mut State, lease: LeaseId, session: SessionId, run: Run, access: Access) {
        let wanted = state.core.lease(lease).map(|view| (file_of(view.file), parts_of(view.range)));
        let (Some((file, parts)), false) = (wanted, session == SessionId::LOCAL) else { return };
        let slot = self.scenario.slots.iter().position(|slot| {
            (slot.session, slot.file, &slot.parts, slot.access) == (session, file, &parts, access)
        });
        let Some(slot) = slot else { return };
        let mut extents = Vec::new();
        for (at, block) in blocks_of(&parts).enumerate() {
            let frame = frame_at(run, at);
            if self.lands_on_disk() {
                let extent = state.disk.place(file, block);
                extents.push(extent);
                self.hand_over(state, session, None, Some(usize::from(extent)));
                continue;
            }
            self.hand_over(state, session, Some(frame), None);
            if self.lands_in_file() {
                if access.writes() {
                    state.disk.ask(file, block);
                }
            } else if access == Access::Overwrite && session != FIRST {
                // What was another's must be zeros by now.
                let own = state.frames[frame].iter().all(|&value| value == 0);
                state.break_unless(own, Promise::P10);
            }
        }
        if self.lands_on_disk() {
            state.disk.grow(file, if access.writes() { parts.end } else { 0 });
        }
        state.keys.insert(lease, Key { slot: slot as u8, run, stray: 0, quarantined: false, extents });
    }

    /// Memory, or a place on the disk, is the session's from now on.
    fn hand_over(&self, state: &mut State, session: SessionId, frame: Option<usize>, extent: Option<usize>) {
        let (frame, extent) = (frame.map_or(0, |at| 1 << at), extent.map_or(0, |at| 1 << at));
        if session == FIRST {
            state.past.used.0 |= frame;
            state.past.used.1 |= extent;
        } else if state.past.used.0 & frame != 0 || state.past.used.1 & extent != 0 {
            state.test(Promise::P10);
        }
    }

    fn crc_agrees(&self, state: &State, lease: LeaseId, run: Run, range: ByteRange) -> bool {
        let Some(at) = state.slots.iter().position(|slot| slot.lease == Some(lease)) else { return true };
        let value = value_of(at, state.slots[at].committed - 1);
        let parts = parts_of(range);
        self.scenario.slots[at]
            .writes
            .clone()
            .all(|part| state.frames[frame_at(run, part / 2 - parts.start / 2)][part % 2] == value)
    }

    fn record(&self, state: &mut State, write: leasehold_core::ids::WriteId, range: ByteRange, run: Run) {
        if self.lands_in_file() || self.mutated(Mutation::NoRecord) {
            return;
        }
        let parts = parts_of(range);
        let blocks = blocks_of(&parts).enumerate().map(|(at, block)| {
            let partial = !parts.contains(&(2 * block)) || !parts.contains(&(2 * block + 1));
            (block, state.frames[frame_at(run, at)], partial && !self.mutated(Mutation::NoImage))
        });
        state.records.insert(write, blocks.collect());
    }

    fn written(
        &self,
        state: &mut State,
        write: leasehold_core::ids::WriteId,
        file: usize,
        first: usize,
        run: Run,
    ) {
        let at = state.handed.iter().position(|(other, _)| *other == write).expect("it was handed over");
        let (_, handed) = state.handed.remove(at);
        for (at, handed) in handed.into_iter().enumerate() {
            let content = state.frames[frame_at(run, at)];
            if content != handed {
                state.break_(Promise::P1);
            }
            if state.disk.has_clone() {
                state.test(Promise::P9);
            }
            state.disk.write(file, first + at, content, !self.lands_in_file());
        }
        state.records.remove(&write);
    }

    /// A change has come.
    pub(super) fn change_comes(&self, state: &mut State, request: RequestId, change: Change) {
        let takes = self.takes(change, 2 * self.blocks());
        for (at, wanted) in self.scenario.slots.iter().enumerate() {
            let overlaps = overlap(&takes, &wanted.parts);
            let held = state.slots[at].lease.is_some() && !state.slots[at].over;
            if held && overlaps && wanted.file == MAIN {
                state.test(Promise::P5);
                if self.scheme.data_path != leasehold_core::scheme::DataPath::Copied {
                    state.test(Promise::P6);
                }
            }
        }
        if change == Change::Clone {
            state.floors.insert(request, state.history.visible());
        }
    }

    /// The mutation that takes out the fence of this lease.
    fn fence_of(&self, state: &State, lease: LeaseId) -> Mutation {
        let by_holder = state.slots.iter().any(|slot| slot.lease == Some(lease) && slot.over);
        if by_holder { Mutation::NoFenceAtCommit } else { Mutation::NoFenceAtBreak }
    }

    /// Performs a change for which no lease has to go, whatever is on its way to the disk. That the core says so, too,
    /// once all is quiet, makes no difference then; floors that say nothing stand for that.
    pub(super) fn change_early(&self, state: &mut State, request: RequestId, change: Change) {
        if state.slots.iter().all(|slot| slot.lease.is_none() || slot.over) {
            self.before_perform(state, request, change);
            self.changed(state, change);
            state.floors.insert(request, Vec::new());
        }
    }

    fn was_early(&self, state: &State, request: RequestId) -> bool {
        self.mutated(Mutation::NoDrain) && state.floors.get(&request).is_some_and(Vec::is_empty)
    }

    /// A change is about to be performed: from now on its zeros may be seen.
    pub(super) fn before_perform(&self, state: &mut State, request: RequestId, change: Change) {
        if self.was_early(state, request) {
            return;
        }
        if !matches!(change, Change::Clone | Change::Remove | Change::Adopt { .. }) {
            state.history.zero(self.takes(change, 2 * self.blocks()));
        }
    }

    /// A change is made.
    fn changed(&self, state: &mut State, change: Change) {
        let takes = self.takes(change, 2 * self.blocks());
        let copied = self.scheme.data_path == leasehold_core::scheme::DataPath::Copied;
        if change != Change::Clone {
            for (at, wanted) in self.scenario.slots.iter().enumerate() {
                let overlaps = overlap(&takes, &wanted.parts);
                let Some(lease) = state.slots[at].lease.filter(|_| overlaps && wanted.file == MAIN) else {
                    continue;
                };
                state.test(Promise::P3);
                if copied {
                    continue;
                }
                let held = state.slots[at].notified || state.slots[at].over;
                state.break_unless(held, Promise::P6);
                let first = wanted.parts.start / 2;
                if let Some(key) = state.keys.get_mut(&lease).filter(|key| !key.quarantined) {
                    let taken = blocks_of(&takes).filter(|block| blocks_of(&wanted.parts).contains(block));
                    taken.for_each(|block| key.stray |= 1 << (block - first));
                }
            }
        }
        match change {
            Change::Truncate { size } => state.disk.truncate(MAIN, (size / super::PART_BYTES) as usize),
            Change::Punch { .. } | Change::Zero { .. } => state.disk.punch(MAIN, takes),
            Change::Remove => state.disk.remove(MAIN),
            Change::Clone => {
                state.disk.clone_main();
                self.judge_clone(state);
            }
            // Only by hand: what reads that are under way must see does not move with the blocks.
            Change::Collapse { range } => state.disk.collapse(MAIN, blocks_of(&parts_of(range))),
            Change::Adopt { .. } => unreachable!("no scenario has it"),
        }
    }

    /// Power is lost; of each write under way these parts are on disk.
    pub(super) fn crash(&self, state: &mut State, landed: u8) {
        self.lose_power(state, landed);
        // What has been is over: only the verdict is left.
        let (broken, past) = (state.broken, std::mem::take(&mut state.past));
        *state = State { broken, past, over: true, ..self.empty() };
    }

    pub(super) fn lose_power(&self, state: &mut State, landed: u8) {
        state.note(Lane::Disk, Lane::Disk, || "power is lost; recovery".into());
        if self.host.backing == Backing::PageCache && self.lands_in_file() {
            return self.judge_crash(state, &[]);
        }
        let mut torn = Vec::new();
        for output in state.pending.clone() {
            let Output::Write { file, blocks, run, .. } = output else { continue };
            for at in 0..run.frames as usize {
                let block = blocks.start() as usize + at;
                let content = state.frames[frame_at(run, at)];
                for part in (0..2).filter(|part| landed & (1 << part) != 0) {
                    state.disk.tear(file_of(file), block, part, content[part]);
                    state.disk.grow(file_of(file), 2 * block + part + 1);
                }
                if file_of(file) == MAIN && (landed == 1 || landed == 2) {
                    torn.push((block, content));
                }
            }
        }
        let lost = self.recover(state, &torn);
        self.judge_crash(state, &lost);
    }

    /// What recovery makes of torn blocks: an image is written again, a block that is neither old nor new is reported.
    fn recover(&self, state: &mut State, torn: &[(usize, super::Block)]) -> Vec<(usize, super::Block)> {
        let mut reported = Vec::new();
        for &(block, content) in torn {
            let records = state.records.values().flatten();
            let record = records.filter(|(at, ..)| *at == block).copied().next_back();
            match record {
                Some((_, image, true)) => state.disk.write(MAIN, block, image, true),
                Some((..)) if state.disk.block(MAIN, block) == content => {}
                Some((..)) => reported.push((block, content)),
                None if state.disk.block(MAIN, block) == content => {}
                // Its checksum is neither the old nor the new one, and nobody knows why.
                None => state.break_(Promise::P1),
            }
        }
        reported
    }
}
