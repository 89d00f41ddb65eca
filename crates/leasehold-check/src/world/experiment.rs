//! One run of a world by hand, as an experiment on a real machine goes: somebody does this, then that, and one looks at the
//! page cache, at the disk, and at what a key reaches. It is for holding the model against what was measured.

use super::{Action, Block, CLONE, Disk, Filesystem, MAIN, Setting, State, blocks_of, file_id, frame_at};
use crate::scenario::{Act, Scenario, Slot};
use leasehold_core::input::Input;
use leasehold_core::output::Output;
use leasehold_core::promise::Promise;
use leasehold_core::scheme::{Host, Scheme};
use stateright::Model;
use std::collections::BTreeSet;

/// A machine, with a main file of some blocks that hold 1, and whoever may register memory there.
///
/// The first write of slot `s` leaves `10 + 4 * s` in its parts, each further one a number more.
#[derive(Clone, Debug)]
pub struct Experiment {
    setting: Setting,
    state: State,
    /// Blocks of the main file that were written while their bytes changed, so that their checksum is of others.
    mismatched: BTreeSet<usize>,
}

impl Experiment {
    /// A machine that was just started.
    #[must_use]
    pub fn on(
        scheme: Scheme,
        host: Host,
        filesystem: Filesystem,
        blocks: usize,
        slots: Vec<Slot>,
    ) -> Experiment {
        let scenario = Scenario { blocks, ..Scenario::new("by hand", slots, Vec::new()) };
        let setting = Setting::new(scheme, host, filesystem, scenario);
        let state = setting.start();
        Experiment { setting, state, mismatched: BTreeSet::new() }
    }

    /// Somebody does something, and all that follows; whether it was done, and with success.
    pub fn does(&mut self, act: Act) -> bool {
        let number = self.begins(act);
        self.settles();
        self.is_done(number)
    }

    /// Somebody begins to do something: what the disk, the fabric and the filesystem have to do for it waits for
    /// [`Experiment::settles`]. Its number.
    pub fn begins(&mut self, act: Act) -> usize {
        let number = self.setting.scenario.acts.len();
        self.setting.scenario.acts.push(act);
        self.state.left |= 1 << number;
        self.setting.act(&mut self.state, number as u8);
        number
    }

    /// Whether it was done, and with success.
    #[must_use]
    pub fn is_done(&self, number: usize) -> bool {
        self.state.past.answered & (1 << number) != 0
    }

    /// All that waits is done.
    pub fn settles(&mut self) {
        while !self.state.pending.is_empty() {
            let output = self.state.pending.remove(0);
            let written = self.write_of(&output);
            if let Some(input) = self.setting.perform(&mut self.state, output) {
                self.setting.step(&mut self.state, input);
            }
            for (block, handed) in written {
                if self.disk().block(MAIN, block) == handed {
                    self.mismatched.remove(&block);
                } else {
                    self.mismatched.insert(block);
                }
            }
        }
    }

    /// The blocks of the main file that the output writes, as they were when they were handed to the disk.
    fn write_of(&self, output: &Output) -> Vec<(usize, Block)> {
        let Output::Write { write, file, blocks, .. } = output else { return Vec::new() };
        let handed = self.state.handed.iter().filter(|(other, _)| other == write && *file == file_id(MAIN));
        handed.flat_map(|(_, all)| (blocks.start() as usize..).zip(all.iter().copied())).collect()
    }

    /// Half of the slot's next RDMA write lands: the first half of every block, or the second; whether its key is live.
    pub fn writes_half(&mut self, slot: usize) -> bool {
        self.setting.dma(&mut self.state, slot as u8)
    }

    /// The slot's next RDMA write lands; whether its key is live.
    pub fn writes(&mut self, slot: usize) -> bool {
        self.writes_half(slot) && self.writes_half(slot)
    }

    /// Periodic writeback, msync or sync_file_range.
    pub fn writes_back(&mut self) {
        self.setting.step(&mut self.state, Input::Writeback { file: file_id(MAIN) });
        self.settles();
    }

    /// The grace period of the oldest break ends.
    pub fn grace_ends(&mut self) {
        if let Some(state) = self.setting.next_state(&self.state, Action::GraceEnds) {
            self.state = state;
        }
        self.settles();
    }

    /// Power is lost, and comes again: what memory held is gone.
    pub fn loses_power(&mut self) {
        self.setting.lose_power(&mut self.state, 0);
        self.state.keys.clear();
        self.state.pending.clear();
    }

    /// A block of the main file, read with O_DIRECT; `None`: EIO, on a filesystem that keeps checksums.
    #[must_use]
    pub fn on_disk(&self, block: usize) -> Option<Block> {
        let checks = self.setting.filesystem == Filesystem::CopyOnWrite;
        let good = !checks || !self.mismatched.contains(&block);
        good.then(|| self.disk().block(MAIN, block))
    }

    /// A block of the clone.
    #[must_use]
    pub fn in_clone(&self, block: usize) -> Block {
        self.disk().block(CLONE, block)
    }

    /// A block of a file, as a program on the host reads it.
    #[must_use]
    pub fn found(&self, file: usize, block: usize) -> Block {
        match self.state.core.page(file_id(file), block as u64) {
            Some((frame, _)) if !self.setting.lands_on_disk() => self.state.frames[frame.0 as usize],
            _ => self.disk().block(file, block),
        }
    }

    /// A block as the slot's peer reads it; `None`: its key is not live.
    #[must_use]
    pub fn found_by_peer(&self, slot: usize, block: usize) -> Option<Block> {
        let key = self.state.slots[slot].lease.and_then(|lease| self.state.keys.get(&lease))?;
        let at = block - blocks_of(&self.setting.scenario.slots[slot].parts).start;
        Some(match key.extents.get(at) {
            Some(&extent) => self.disk().extent(extent),
            None => self.state.frames[frame_at(key.run, at)],
        })
    }

    /// Whether the world has seen the promise broken.
    #[must_use]
    pub fn breaks(&self, promise: Promise) -> bool {
        self.state.breaks(promise)
    }

    fn disk(&self) -> &Disk {
        &self.state.disk
    }
}
