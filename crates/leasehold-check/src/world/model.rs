//! The world as stateright's model: what can happen next, and what must hold.

use super::{Action, Lane, MAIN, Mutation, PATIENCE_MS, Setting, Sometimes, State, file_id};
use leasehold_core::input::Input;
use leasehold_core::output::Output;
use leasehold_core::promise::Promise;
use stateright::{Model, Property};

/// The properties that a promise was put to the test, in the order of the promises.
pub(crate) const TESTED: [&str; 10] = [
    "P1 tested",
    "P2 tested",
    "P3 tested",
    "P4 tested",
    "P5 tested",
    "P6 tested",
    "P7 tested",
    "P8 tested",
    "P9 tested",
    "P10 tested",
];

/// A property for each promise: that it is kept, and that it was put to the test.
fn properties_of<const PROMISE: usize>() -> [Property<Setting>; 2] {
    let promise = Promise::ALL[PROMISE];
    [
        Property::always(promise.name(), |_, state: &State| !state.breaks(Promise::ALL[PROMISE])),
        Property::sometimes(TESTED[PROMISE], |_, state: &State| state.tests(Promise::ALL[PROMISE])),
    ]
}

fn sometimes<const SOMETIMES: u16>(name: &'static str) -> Property<Setting> {
    Property::sometimes(name, |_, state: &State| state.past.seen & (1 << SOMETIMES) != 0)
}

impl Model for Setting {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.over {
            return;
        }
        for (at, output) in state.pending.iter().enumerate() {
            actions.push(Action::Answer(at as u8));
            if matches!(output, Output::Fence { .. }) && self.scenario.unproven && !self.lands_in_file() {
                actions.push(Action::Unproven(at as u8));
            }
        }
        let deadline = state.core.next_deadline().filter(|_| !self.mutated(Mutation::NoGrace));
        if deadline.is_some_and(|at| at.0 < state.now.after_ms(PATIENCE_MS / 2).0) {
            actions.push(Action::GraceEnds);
        }
        for (at, slot) in state.slots.iter().enumerate() {
            let wanted = &self.scenario.slots[at];
            if slot.sent >= 2 * wanted.rounds {
                continue;
            }
            let Some(lease) = slot.lease else { continue };
            if state.keys.contains_key(&lease) {
                actions.push(Action::Dma(at as u8));
            } else if state.faults_left > 0 && self.host.device_faults && !slot.over {
                actions.push(Action::DeviceFault(at as u8));
            }
        }
        if self.lands_in_file() && !self.lands_on_disk() {
            actions.push(Action::Writeback);
        }
        for (at, act) in self.scenario.acts.iter().enumerate() {
            if state.left & (1 << at) != 0 && self.is_act_possible(state, act) {
                actions.push(Action::Act(at as u8));
            }
        }
        if self.scenario.crash {
            let torn = !self.lands_in_file()
                && state.pending.iter().any(|output| matches!(output, Output::Write { .. }));
            actions.extend((0..if torn { 4 } else { 1 }).map(Action::Crash));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let happens = match action {
            Action::Act(number) => self.act(&mut state, number),
            Action::Dma(slot) => self.dma(&mut state, slot),
            Action::DeviceFault(slot) => {
                state.faults_left -= 1;
                let lease = state.slots[usize::from(slot)].lease?;
                let session = self.scenario.slots[usize::from(slot)].session;
                state.note(Lane::peer(session), Lane::Filesystem, || "device fault".into());
                self.step(&mut state, Input::DeviceFault { lease });
                state.core != last.core
            }
            Action::Answer(at) => {
                let output = state.pending.remove(usize::from(at));
                let input = self.perform(&mut state, output);
                if let Some(input) = input {
                    self.step(&mut state, input);
                }
                true
            }
            Action::Unproven(at) => {
                let Output::Fence { lease, .. } = state.pending.remove(usize::from(at)) else { return None };
                state.note(Lane::Memory, Lane::Filesystem, || "the fence is not proven in time".into());
                if self.mutated(Mutation::NoQuarantine) {
                    self.step(&mut state, Input::Fenced { lease });
                } else {
                    state.see(Sometimes::Quarantined);
                    if let Some(key) = state.keys.get_mut(&lease) {
                        key.quarantined = true;
                    }
                    self.step(&mut state, Input::FenceUnproven { lease });
                }
                true
            }
            Action::GraceEnds => {
                state.now = state.core.next_deadline()?;
                state.note(Lane::Filesystem, Lane::Filesystem, || "the grace period is over".into());
                self.step(&mut state, Input::Tick);
                true
            }
            Action::Writeback => {
                state.note(Lane::Filesystem, Lane::Filesystem, || "periodic writeback".into());
                self.step(&mut state, Input::Writeback { file: file_id(MAIN) });
                state != *last
            }
            Action::Crash(landed) => {
                self.crash(&mut state, landed);
                true
            }
        };
        happens.then_some(state)
    }

    fn properties(&self) -> Vec<Property<Setting>> {
        let mut all = Vec::new();
        all.extend(properties_of::<0>());
        all.extend(properties_of::<1>());
        all.extend(properties_of::<2>());
        all.extend(properties_of::<3>());
        all.extend(properties_of::<4>());
        all.extend(properties_of::<5>());
        all.extend(properties_of::<6>());
        all.extend(properties_of::<7>());
        all.extend(properties_of::<8>());
        all.extend(properties_of::<9>());
        all.push(sometimes::<{ Sometimes::Granted as u16 }>("granted"));
        all.push(sometimes::<{ Sometimes::Committed as u16 }>("committed"));
        all.push(sometimes::<{ Sometimes::Changed as u16 }>("changed"));
        all.push(sometimes::<{ Sometimes::Synced as u16 }>("synced"));
        all.push(sometimes::<{ Sometimes::Revoked as u16 }>("revoked"));
        all.push(sometimes::<{ Sometimes::Mismatch as u16 }>("mismatch"));
        all.push(sometimes::<{ Sometimes::Quarantined as u16 }>("quarantined"));
        all.push(sometimes::<{ Sometimes::Read as u16 }>("read"));
        all
    }

    fn format_action(&self, action: &Action) -> String {
        match action {
            Action::Act(number) => format!("{:?}", self.scenario.acts[usize::from(*number)]),
            other => format!("{other:?}"),
        }
    }
}
