//! What happens, in words, when somebody wants to know: an interleaving is told by replaying it.

use super::{FIRST, MAIN, Setting, State, file_of};
use crate::report::Step;
use crate::scenario::Act;
use leasehold_core::ids::{LeaseId, SessionId};
use leasehold_core::input::Change;
use leasehold_core::output::{Notice, Output, Reply};

/// Who takes part, from left to right.
pub const LANES: [&str; 7] = ["other tenant", "peer", "memory", "filesystem", "disk", "breaker", "program"];

/// Index of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The second tenant's peer.
    Other,
    /// The first tenant's peer, and its device.
    Peer,
    /// The memory under the keys.
    Memory,
    /// The filesystem, or the server: whoever decides.
    Filesystem,
    /// The disk.
    Disk,
    /// Who changes a layout.
    Breaker,
    /// A program on the host.
    Program,
}

impl Lane {
    /// The lane of a session.
    #[must_use]
    pub fn peer(session: SessionId) -> Lane {
        match session {
            FIRST => Lane::Peer,
            SessionId::LOCAL => Lane::Program,
            _ => Lane::Other,
        }
    }
}

/// Nothing, while states are explored; else what has happened so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Option<Vec<Step>>);

impl State {
    /// From now on what happens is noted.
    pub(crate) fn take_notes(&mut self) {
        self.past.notes.0 = Some(Vec::new());
    }

    /// What has happened since.
    pub(crate) fn notes(&self) -> &[Step] {
        self.past.notes.0.as_deref().unwrap_or_default()
    }

    pub(super) fn note(&mut self, from: Lane, to: Lane, what: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.past.notes.0 {
            notes.push(Step { from: from as usize, to: to as usize, what: what() });
        }
    }
}

fn change_name(change: Change) -> String {
    match change {
        Change::Truncate { size } => format!("truncate to {size}"),
        Change::Punch { .. } => "punch a hole".into(),
        Change::Zero { .. } => "zero a range".into(),
        Change::Collapse { .. } => "collapse a range".into(),
        Change::Clone => "clone the file".into(),
        Change::Adopt { .. } => "adopt".into(),
        Change::Remove => "unlink".into(),
    }
}

impl Setting {
    fn lane_of(&self, state: &State, lease: LeaseId) -> Lane {
        let slot = state.slots.iter().position(|slot| slot.lease == Some(lease));
        let session = match slot {
            Some(slot) => self.scenario.slots[slot].session,
            None => state.core.lease(lease).map_or(FIRST, |lease| lease.session),
        };
        Lane::peer(session)
    }

    pub(super) fn note_act(&self, state: &mut State, number: u8) {
        let session = |slot: usize| Lane::peer(self.scenario.slots[slot].session);
        let (from, to, what): (Lane, Lane, String) = match &self.scenario.acts[usize::from(number)] {
            Act::Acquire(slot) => {
                let wanted = &self.scenario.slots[*slot];
                let file = if wanted.file == MAIN { "" } else { " of another file" };
                let what = format!("wants a key, {:?}{file}", wanted.access).to_lowercase();
                (session(*slot), Lane::Filesystem, what)
            }
            Act::Commit(slot) => {
                let value = super::value_of(*slot, state.slots[*slot].committed.saturating_sub(1));
                (session(*slot), Lane::Filesystem, format!("commit of write {value}"))
            }
            Act::Release(slot) => (session(*slot), Lane::Filesystem, "release".into()),
            Act::Change(change) => (Lane::Breaker, Lane::Filesystem, change_name(*change)),
            Act::Sync => (Lane::Program, Lane::Filesystem, "fsync".into()),
            Act::Read => (Lane::Program, Lane::Filesystem, "read".into()),
            Act::RemoteRead(slot) => (session(*slot), Lane::Memory, "RDMA read".into()),
            Act::LocalWrite(_) => (Lane::Program, Lane::Filesystem, format!("write {}", super::LOCAL_VALUE)),
            Act::Reclaim => (Lane::Memory, Lane::Memory, "memory is short: reclaim".into()),
        };
        state.note(from, to, || what);
    }

    pub(super) fn note_output(&self, state: &mut State, output: &Output) {
        if state.past.notes.0.is_none() {
            return;
        }
        let (from, to, what): (Lane, Lane, String) = match output {
            Output::Reply { request, reply } => {
                let act = &self.scenario.acts[request.0 as usize - 1];
                let to = match act {
                    Act::Acquire(slot) | Act::Commit(slot) | Act::Release(slot) => {
                        Lane::peer(self.scenario.slots[*slot].session)
                    }
                    Act::Change(_) => Lane::Breaker,
                    _ => Lane::Program,
                };
                let what = match reply {
                    Reply::Acquire(Ok(_)) if to == Lane::Program => return,
                    Reply::Acquire(Ok(_)) => "the key".into(),
                    Reply::Acquire(Err(error)) => format!("refused: {error}"),
                    Reply::Commit(Ok(_)) => "committed".into(),
                    Reply::Commit(Err(error)) => format!("not committed: {error}"),
                    Reply::Change(Ok(())) => "done".into(),
                    Reply::Change(Err(error)) => format!("refused: {error}"),
                    Reply::Sync(Ok(())) => "synced".into(),
                    Reply::Release(Ok(())) => "released".into(),
                    _ => return,
                };
                (Lane::Filesystem, to, what)
            }
            Output::Notify { session, notice } => {
                let what = match notice {
                    Notice::Break { breaker, .. } => format!("notice: {} needs the range", breaker.program),
                    Notice::Revoked { .. } => "notice: revoked".into(),
                };
                (Lane::Filesystem, Lane::peer(*session), what)
            }
            Output::Write { run, .. } => {
                let values: Vec<String> = (0..run.frames as usize)
                    .flat_map(|at| state.frames[super::frame_at(*run, at)])
                    .map(|value| value.to_string())
                    .collect();
                (Lane::Memory, Lane::Disk, format!("writeback begins, checksum of {}", values.join(" ")))
            }
            Output::Fence { lease, .. } => {
                let to = self.lane_of(state, *lease);
                (Lane::Filesystem, to, "takes the key back".into())
            }
            _ => return,
        };
        state.note(from, to, || what);
    }

    pub(super) fn note_performed(&self, state: &mut State, output: &Output) {
        if state.past.notes.0.is_none() {
            return;
        }
        let (from, to, what): (Lane, Lane, String) = match output {
            Output::Fence { lease, .. } => (self.lane_of(state, *lease), Lane::Filesystem, "fenced".into()),
            Output::Load { file, .. } => {
                let file = if file_of(*file) == MAIN { "" } else { ", another file's" };
                (Lane::Disk, Lane::Memory, format!("blocks are loaded{file}"))
            }
            Output::Capture { .. } => (Lane::Memory, Lane::Memory, "the CPU copies the block".into()),
            Output::Write { run, .. } => {
                let values: Vec<String> = (0..run.frames as usize)
                    .flat_map(|at| state.frames[super::frame_at(*run, at)])
                    .map(|value| value.to_string())
                    .collect();
                (Lane::Memory, Lane::Disk, format!("on disk: {}", values.join(" ")))
            }
            Output::Record { .. } if !self.lands_in_file() => {
                (Lane::Filesystem, Lane::Disk, "record is durable".into())
            }
            Output::Perform { change, .. } => {
                (Lane::Filesystem, Lane::Disk, format!("performs: {}", change_name(*change)))
            }
            Output::Disconnect { session } => (Lane::Filesystem, Lane::peer(*session), "disconnected".into()),
            _ => return,
        };
        state.note(from, to, || what);
    }
}
