//! The memory that the states of a world are said to take is what they take. A process of its own, for its memory to be that.

use leasehold_check::check::settings;
use leasehold_check::explorer::Explored;
use leasehold_check::scenario;
use leasehold_check::world::{Setting, State};
use leasehold_core::schemes;
use stateright::Model;

const STATES: usize = 50_000;

/// The first states of a world, and what comes of them.
fn some_states(setting: &Setting, count: usize) -> Vec<State> {
    let mut states = setting.init_states();
    let mut at = 0;
    while states.len() < count && at < states.len() {
        let mut actions = Vec::new();
        setting.actions(&states[at], &mut actions);
        let next = actions.into_iter().filter_map(|action| setting.next_state(&states[at], action));
        let next: Vec<State> = next.collect();
        states.extend(next);
        at += 1;
    }
    states
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn a_state_takes_about_the_memory_that_it_is_said_to_take() {
    let entry = schemes::named("naive").expect("it is there");
    let mut worlds = settings(entry, &scenario::deep()).into_iter().map(|setting| {
        let states = some_states(&setting, STATES);
        (setting, states)
    });
    let (setting, states) = worlds.find(|(_, states)| states.len() >= STATES).expect("a large one");
    let before = resident_bytes();
    let copies = states.clone();
    let taken = resident_bytes() - before;
    let said: usize = copies.iter().map(|state| size_of::<State>() + setting.heap_bytes(state)).sum();
    println!("{} bytes a state, said {}", taken / copies.len(), said / copies.len());
    assert!((taken / 2..taken * 2).contains(&said), "said {said}, took {taken}");
}
