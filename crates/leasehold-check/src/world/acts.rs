//! What peers, programs and breakers do.

use super::{
    Block, IDENTITY, Key, Lane, MAIN, Mutation, PART_BYTES, PATIENCE_MS, Setting, Sometimes, State, Value,
    blocks_of, file_id, frame_at, range_of, value_of,
};
use crate::scenario::Act;
use leasehold_core::ids::{LeaseId, RequestId, SessionId};
use leasehold_core::input::{Access, Input, OnConflict, Want};
use leasehold_core::output::Output;
use leasehold_core::promise::Promise;
use leasehold_core::range::ByteRange;
use leasehold_core::scheme::DataPath;

impl Setting {
    /// Does what the act says, if it makes sense now.
    pub(super) fn act(&self, state: &mut State, number: u8) -> bool {
        let request = RequestId(1 + u64::from(number));
        let deadline = state.now.after_ms(PATIENCE_MS);
        let input = match self.scenario.acts[usize::from(number)] {
            Act::Acquire(slot) => {
                let wanted = &self.scenario.slots[slot];
                let (file, range) = (file_id(wanted.file), range_of(&wanted.parts));
                let wants = vec![Want { file, range, access: wanted.access }];
                let (session, on_conflict) = (wanted.session, OnConflict::Wait);
                Input::Acquire { request, session, wants, on_conflict, deadline }
            }
            Act::Commit(slot) => {
                let held = &mut state.slots[slot];
                let (Some(lease), false) = (held.lease, held.over) else { return false };
                let complete = held.sent >= 2 * (held.committed + 1);
                if !complete && !self.scenario.commit_overtakes {
                    return false;
                }
                held.committed += 1;
                held.over |= self.commit_ends();
                let wanted = &self.scenario.slots[slot];
                if wanted.file == MAIN && self.lands_in_file() {
                    state
                        .history
                        .write(wanted.writes.clone(), value_of(slot, state.slots[slot].committed - 1));
                }
                Input::Commit { request, session: wanted.session, lease }
            }
            Act::Release(slot) => {
                let held = &mut state.slots[slot];
                let (Some(lease), false) = (held.lease, held.over) else { return false };
                held.over = true;
                Input::Release { request, session: self.scenario.slots[slot].session, lease }
            }
            Act::Change(change) => {
                if state.removed {
                    return false;
                }
                state.since.insert(request, state.now);
                self.change_comes(state, request, change);
                if self.mutated(Mutation::NoDrain) {
                    self.change_early(state, request, change);
                }
                if self.mutated(Mutation::NoBreak) {
                    // As if nobody held anything: performed without asking the core.
                    state.left &= !(1 << number);
                    state.pending.push(Output::Perform { request, file: file_id(MAIN), change });
                    self.before_perform(state, request, change);
                    return true;
                }
                Input::Change { request, file: file_id(MAIN), change, breaker: IDENTITY[1].clone() }
            }
            Act::Sync if self.mutated(Mutation::NoSyncWait) => {
                let floors = state.history.visible();
                state.history.synced(&floors);
                state.see(Sometimes::Synced);
                state.left &= !(1 << number);
                return true;
            }
            Act::Sync => {
                state.floors.insert(request, state.history.visible());
                Input::Sync { request, file: file_id(MAIN) }
            }
            Act::Read => return self.read(state, number, request),
            Act::RemoteRead(slot) => return self.remote_read(state, number, slot),
            Act::LocalWrite(ref parts) => {
                if state.removed {
                    return false;
                }
                let want = Want { file: file_id(MAIN), range: range_of(parts), access: Access::Overwrite };
                let (session, wants, on_conflict) = (SessionId::LOCAL, vec![want], OnConflict::Break);
                Input::Acquire { request, session, wants, on_conflict, deadline }
            }
            Act::Reclaim => {
                if state.slots.iter().any(|slot| slot.lease.is_some() && !slot.over) {
                    state.test(Promise::P4);
                }
                Input::Reclaim { file: file_id(MAIN) }
            }
        };
        state.left &= !(1 << number);
        self.note_act(state, number);
        self.step(state, input);
        true
    }

    /// The next part of a peer's writes lands, or is lost. A round's first half is every block's first part.
    pub(super) fn dma(&self, state: &mut State, slot: u8) -> bool {
        let at = usize::from(slot);
        let Some(lease) = state.slots[at].lease else { return false };
        let wanted = &self.scenario.slots[at];
        let (round, half) = (state.slots[at].sent / 2, usize::from(state.slots[at].sent % 2));
        let Some(key) = state.keys.get(&lease).cloned() else { return false };
        state.slots[at].sent += 1;
        let value = value_of(at, round);
        let pieces = if half == 0 { "first halves" } else { "second halves" };
        state.note(Lane::peer(wanted.session), Lane::Memory, || format!("write {value} lands: {pieces}"));
        let alone = wanted.writes.len() == 1;
        for part in wanted.writes.clone().filter(|part| part % 2 == half || alone) {
            if alone && half == 1 {
                continue;
            }
            self.land(state, lease, &key, part, value);
        }
        self.judge(state);
        true
    }

    fn land(&self, state: &mut State, lease: LeaseId, key: &Key, part: usize, value: Value) {
        let wanted = &self.scenario.slots[usize::from(key.slot)];
        let block = part / 2 - wanted.parts.start / 2;
        let stray = key.stray & (1 << block) != 0;
        if stray {
            state.break_(Promise::P3);
        }
        if self.lands_on_disk() {
            let extent = key.extents[block];
            if state.disk.owner(extent).is_some_and(|owner| owner != wanted.file) {
                state.break_(Promise::P3);
                state.break_(Promise::P10);
            }
            state.disk.store(extent, part % 2, value);
        } else {
            let frame = frame_at(key.run, block);
            for (_, other) in state.others_of(lease, frame) {
                let theirs = &self.scenario.slots[usize::from(other.slot)];
                if !self.lands_in_file() || theirs.file != wanted.file {
                    state.break_(Promise::P3);
                }
                if theirs.session != wanted.session {
                    state.break_unless(theirs.file == wanted.file && self.lands_in_file(), Promise::P10);
                }
            }
            state.frames[frame][part % 2] = value;
        }
        if self.lands_in_file() && wanted.file == MAIN && !stray && !state.removed {
            state.history.write(part..part + 1, value);
        }
    }

    /// A read by a program on the host.
    fn read(&self, state: &mut State, number: u8, request: RequestId) -> bool {
        if state.removed {
            return false;
        }
        let floors = state.history.visible();
        if !self.lands_in_file() && !self.mutated(Mutation::NoReadWait) {
            state.left &= !(1 << number);
            self.note_act(state, number);
            state.floors.insert(request, floors);
            let size = state.core.file_size(file_id(MAIN)).unwrap_or(0).max(PART_BYTES);
            let range = ByteRange::new(0, size).expect("not empty");
            let (file, deadline) = (file_id(MAIN), state.now.after_ms(PATIENCE_MS));
            self.step(state, Input::Read { request, file, range, deadline });
            return true;
        }
        let mut found = Vec::new();
        for block in 0..self.blocks() {
            match state.core.page(file_id(MAIN), block as u64) {
                // It waits until the entry is gone.
                Some((_, true)) => return false,
                Some((frame, false)) if !self.lands_on_disk() => found.push(state.frames[frame.0 as usize]),
                _ => found.push(state.disk.block(MAIN, block)),
            }
        }
        state.left &= !(1 << number);
        state.past.answered |= 1 << number;
        self.note_act(state, number);
        self.judge_read(state, &found, &floors);
        true
    }

    /// A peer reads what is under its key.
    fn remote_read(&self, state: &mut State, number: u8, slot: usize) -> bool {
        let Some(key) = state.slots[slot].lease.and_then(|lease| state.keys.get(&lease)).cloned() else {
            return false;
        };
        if self.scheme.data_path == DataPath::Copied {
            // What is there is the peer's own copy.
            return false;
        }
        let wanted = &self.scenario.slots[slot];
        let floors = state.history.visible();
        let mut found: Vec<Option<Block>> = vec![None; self.blocks()];
        for (at, block) in blocks_of(&wanted.parts).enumerate() {
            found[block] = Some(if self.lands_on_disk() {
                let extent = key.extents[at];
                if state.disk.owner(extent).is_some_and(|owner| owner != wanted.file) {
                    state.break_(Promise::P10);
                }
                state.disk.extent(extent)
            } else {
                state.frames[frame_at(key.run, at)]
            });
        }
        state.left &= !(1 << number);
        self.note_act(state, number);
        // A holder who was told that the lease is over, and whose frames are kept from everybody else, finds what was once
        // the lease's. Nobody promised it the file's bytes any more.
        let is_told = key.quarantined && state.slots[slot].over;
        if is_told {
            return true;
        }
        if !state.removed {
            self.judge_found(state, &found, &floors);
        } else {
            // There is no file any more whose bytes these could be.
            state.break_(Promise::P8);
        }
        true
    }

    pub(super) fn is_act_possible(&self, state: &State, act: &Act) -> bool {
        match act {
            Act::Commit(slot) | Act::Release(slot) | Act::RemoteRead(slot) => {
                state.slots[*slot].lease.is_some()
            }
            Act::Acquire(_) | Act::Change(_) | Act::Sync | Act::Read | Act::LocalWrite(_) | Act::Reclaim => {
                true
            }
        }
    }
}
