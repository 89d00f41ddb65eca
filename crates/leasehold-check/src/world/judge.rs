//! What the world sees, judged.

use super::{Block, LOCAL_VALUE, Lane, MAIN, Setting, Sometimes, State, frame_at};
use crate::explorer::Explored;
use crate::world::Action;
use leasehold_core::ids::{RequestId, SessionId};
use leasehold_core::input::Input;
use leasehold_core::output::Operation;
use leasehold_core::output::{ReadError, ReadReady};
use leasehold_core::promise::Promise;
use leasehold_core::view::{WaitKind, WaitOn};
use std::collections::VecDeque;
use std::hash::{Hash as _, Hasher};

impl Setting {
    /// What can be seen of a state at any moment.
    pub(super) fn judge(&self, state: &mut State) {
        if let Err(violation) = state.core.check() {
            match violation.promise() {
                "P4" => state.break_(Promise::P4),
                "P5" => {}
                other => panic!("{other}: {violation}"),
            }
        }
        state.break_unless(state.disk.clone_is_as_it_was(), Promise::P9);
        if !state.since.is_empty() {
            self.judge_waits(state);
        }
    }

    /// Whom a layout change waits for must know of it.
    fn judge_waits(&self, state: &mut State) {
        let told = |state: &State, lease| {
            let slot = state.slots.iter().find(|slot| slot.lease == Some(lease));
            slot.is_none_or(|slot| slot.notified || slot.over)
        };
        let mut untold = false;
        for wait in state.core.waits() {
            if !matches!(wait.what, WaitKind::Operation(Operation::Change(_))) {
                continue;
            }
            for on in wait.on {
                if let WaitOn::Lease { id, .. } = on
                    && state.core.lease(id).is_some_and(|lease| lease.session != SessionId::LOCAL)
                {
                    untold |= !told(state, id);
                }
            }
        }
        state.break_unless(!untold, Promise::P6);
    }

    pub(super) fn hear_read(
        &self,
        state: &mut State,
        request: RequestId,
        result: &Result<Option<ReadReady>, ReadError>,
        inputs: &mut VecDeque<Input>,
    ) {
        let Some(floors) = state.floors.remove(&request) else { return };
        let mut found = vec![[0; 2]; self.blocks()];
        match result {
            Ok(Some(ready)) => {
                for (at, block) in found.iter_mut().enumerate().take(ready.run.frames as usize) {
                    *block = state.frames[frame_at(ready.run, at)];
                }
                inputs.push_back(Input::ReadFinished { request });
            }
            Ok(None) => {}
            Err(_) => return,
        }
        self.judge_read(state, &found, &floors);
    }

    /// A read has found these blocks; it must have seen what was acknowledged before it.
    pub(super) fn judge_read(&self, state: &mut State, found: &[Block], floors: &[u8]) {
        let found: Vec<Option<Block>> = found.iter().copied().map(Some).collect();
        self.judge_found(state, &found, floors);
    }

    pub(super) fn judge_found(&self, state: &mut State, found: &[Option<Block>], floors: &[u8]) {
        let values = || found.iter().flatten().flatten().map(u8::to_string).collect::<Vec<_>>().join(" ");
        state.note(Lane::Program, Lane::Program, || format!("finds {}", values()));
        if state.history.was_acknowledged() {
            state.test(Promise::P8);
        }
        for (block, content) in found.iter().enumerate() {
            let Some(content) = content else { continue };
            for (part, &value) in content.iter().enumerate() {
                let at = 2 * block + part;
                if value > LOCAL_VALUE {
                    state.see(Sometimes::Read);
                }
                let new = state.history.is_new(at, value, floors[at]);
                state.break_unless(new == Some(true), Promise::P8);
            }
        }
    }

    /// A clone was just taken: it is a read, too, of what was acknowledged when it was asked for.
    pub(super) fn judge_clone(&self, state: &mut State) {
        let asked = state.floors.keys().copied().find(|request| {
            matches!(
                self.scenario.acts[request.0 as usize - 1],
                crate::scenario::Act::Change(leasehold_core::input::Change::Clone)
            )
        });
        let Some(floors) = asked.and_then(|request| state.floors.remove(&request)) else { return };
        let found: Vec<Block> =
            (0..self.blocks()).map(|block| state.disk.block(super::CLONE, block)).collect();
        self.judge_read(state, &found, &floors);
    }

    /// What a crash, and the recovery from it, have left; `lost` blocks were reported as torn while this was written.
    pub(super) fn judge_crash(&self, state: &mut State, lost: &[(usize, Block)]) {
        state.break_unless(state.disk.clone_is_as_it_was(), Promise::P9);
        if state.removed || !state.disk.exists(MAIN) {
            return;
        }
        for &(block, written) in lost {
            // What the write was not about was not its to lose.
            let owed =
                [0, 1].into_iter().any(|part| state.history.is_durable(2 * block + part, written[part]));
            state.break_unless(!owed, Promise::P2);
        }
        for block in (0..self.blocks()).filter(|block| lost.iter().all(|(other, _)| other != block)) {
            let content = state.disk.block(MAIN, block);
            for (part, value) in content.into_iter().enumerate() {
                let kept = state.history.may_survive(2 * block + part, value);
                state.break_unless(kept, Promise::P2);
            }
        }
    }
}

impl Explored for Setting {
    /// The breakers that wait, each with the number of its act.
    fn waits(&self, state: &State) -> u32 {
        if state.over {
            return 0;
        }
        state.since.keys().map(|request| 1 << (request.0 - 1)).sum()
    }

    fn fair(&self, _: &State, action: &Action) -> Option<u8> {
        match action {
            Action::Answer(_) => Some(0),
            Action::GraceEnds => Some(1),
            Action::Writeback => Some(2),
            Action::Unproven(_)
            | Action::Act(_)
            | Action::Dma(_)
            | Action::DeviceFault(_)
            | Action::Crash(_) => None,
        }
    }

    /// Counted in bytes that are hashed: `tests/memory.rs` says how many there are to one.
    fn heap_bytes(&self, state: &State) -> usize {
        let mut hashed = Count(0);
        state.hash(&mut hashed);
        hashed.0 * HEAP_BYTES_PER_HASHED
    }
}

/// Maps have nodes with room for more than they hold, and every allocation has its header.
const HEAP_BYTES_PER_HASHED: usize = 6;

/// How many bytes are hashed.
struct Count(usize);

impl Hasher for Count {
    fn write(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn finish(&self) -> u64 {
        self.0 as u64
    }
}
