//! Tells an interleaving: replays it, and says what happens at each step.

use crate::explorer::Ending;
use crate::report::{Step, Trace};
use crate::world::{Action, Filesystem, LANES, Lane, Setting};
use leasehold_core::promise::Promise;
use leasehold_core::scheme::Backing;
use stateright::Model;

/// The interleaving as messages between lanes; `for_ever`: what goes on at its end.
pub(crate) fn trace(
    setting: &Setting,
    promise: Promise,
    actions: Vec<Action>,
    for_ever: Option<&Ending<Action>>,
) -> Trace {
    let mut state = setting.init_states().remove(0);
    state.take_notes();
    for action in actions {
        state = setting.next_state(&state, action).expect("the explorer has taken this step");
    }
    let mut steps = state.notes().to_vec();
    if let Some(ending) = for_ever {
        let what = match ending {
            Ending::DeadEnd => "waits, and nothing but the holder can end that".into(),
            Ending::Cycle(actions) => format!("waits, while {} steps go round and round", actions.len()),
        };
        let breaker = Lane::Breaker as usize;
        steps.push(Step { from: breaker, to: breaker, what });
    }
    Trace { world: world(setting), lanes: LANES.to_vec(), steps, broken: sentence(promise).into() }
}

/// The world in words.
fn world(setting: &Setting) -> String {
    let backing = match (setting.host.backing, setting.filesystem) {
        (Backing::Dax, _) => "DAX",
        (Backing::PageCache, Filesystem::InPlace) => "page cache, in-place filesystem",
        (Backing::PageCache, Filesystem::CopyOnWrite) => "page cache, copy-on-write filesystem",
    };
    let device = if setting.host.device_faults { ", a device that can fault" } else { "" };
    format!("{}; {backing}{device}", setting.scenario.name)
}

fn sentence(promise: Promise) -> &'static str {
    match promise {
        Promise::P1 => "A block on disk is not what its checksum was computed of.",
        Promise::P2 => "What an fsync had acknowledged is not on disk.",
        Promise::P3 => "A remote byte has landed in what had stopped being its range.",
        Promise::P4 => "A page was marked dirty after its file had given it up.",
        Promise::P5 => "The breaker can wait for ever.",
        Promise::P6 => "The holder was not told who takes its range, or that somebody waits for it.",
        Promise::P7 => "A lease was revoked that nobody had come for.",
        Promise::P8 => "A read has not seen what was acknowledged before it.",
        Promise::P9 => "The clone is not what it was when it was taken.",
        Promise::P10 => "A key has reached what is another tenant's.",
    }
}
