//! One run of a world, in which the environment answers at once and everybody does what he is told: for counting.

use super::{Setting, Sometimes, State};
use leasehold_core::input::Input;
use leasehold_core::output::Output;

/// A run, and what was counted in it.
pub(crate) struct Trial<'a> {
    setting: &'a Setting,
    state: State,
    /// Blocks that the CPU has copied.
    pub copied: u32,
    /// Times that a device had to fault.
    pub faulted: u32,
}

impl<'a> Trial<'a> {
    /// At the beginning.
    pub fn new(setting: &'a Setting) -> Trial<'a> {
        Trial { setting, state: setting.start(), copied: 0, faulted: 0 }
    }

    /// Has the act done, and everything that follows; whether it was answered, and with success.
    pub fn acts(&mut self, number: usize) -> bool {
        let done = self.setting.act(&mut self.state, number as u8);
        self.run();
        done && self.is_answered(number)
    }

    /// Whether it is answered after the grace period.
    pub fn ends_in_time(&mut self, number: usize) -> bool {
        for _ in 0..4 {
            let Some(deadline) = self.state.core.next_deadline() else { break };
            if deadline.0 > self.state.now.after_ms(super::PATIENCE_MS / 2).0 {
                break;
            }
            self.state.now = deadline;
            self.setting.step(&mut self.state, Input::Tick);
            self.run();
        }
        self.is_answered(number)
    }

    fn is_answered(&self, number: usize) -> bool {
        self.state.past.answered & (1 << number) != 0
    }

    /// Whether this has happened.
    pub fn has_seen(&self, sometimes: Sometimes) -> bool {
        self.state.has_seen(sometimes)
    }

    /// The first of the two pieces of the first peer's write lands.
    pub fn writes_half(&mut self) {
        self.setting.dma(&mut self.state, 0);
    }

    /// The first peer writes all that it has, once; the device faults if it must.
    pub fn writes_round(&mut self) -> bool {
        let before = self.state.slots[0].sent;
        for _ in 0..2 {
            if !self.setting.dma(&mut self.state, 0) {
                let Some(lease) = self.state.slots[0].lease else { return false };
                if self.state.slots[0].over {
                    return false;
                }
                self.faulted += 1;
                self.setting.step(&mut self.state, Input::DeviceFault { lease });
                self.run();
                self.setting.dma(&mut self.state, 0);
            }
        }
        self.state.slots[0].sent > before
    }

    fn run(&mut self) {
        while !self.state.pending.is_empty() {
            let output = self.state.pending.remove(0);
            if let Output::Capture { into, .. } = output {
                self.copied += into.frames;
            }
            if let Some(input) = self.setting.perform(&mut self.state, output) {
                self.setting.step(&mut self.state, input);
            }
        }
    }
}
