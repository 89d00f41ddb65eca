use super::{visited::Visited, *};
use proptest::prelude::*;
use stateright::{Checker, Property};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Instant,
};

mod graph;
use graph::graphs;

/// Digits that count up, one at a time, to 9: 10^digits states.
#[derive(Clone, Debug)]
struct Counters<const DIGITS: usize> {
    /// Whether the order of the digits makes no difference.
    symmetric: bool,
}

impl<const DIGITS: usize> Model for Counters<DIGITS> {
    type State = [u8; DIGITS];
    type Action = usize;

    fn init_states(&self) -> Vec<Self::State> {
        vec![[0; DIGITS]]
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<usize>) {
        actions.extend((0..DIGITS).filter(|&digit| state[digit] < 9));
    }

    fn next_state(&self, state: &Self::State, digit: usize) -> Option<Self::State> {
        let mut state = *state;
        state[digit] += 1;
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no two digits are 7", |_, state: &Self::State| {
                state.iter().filter(|&&digit| digit == 7).count() < 2
            }),
            Property::sometimes("all are 9", |_, state: &Self::State| state.iter().all(|&digit| digit == 9)),
            Property::sometimes("one is 10", |_, state: &Self::State| state.contains(&10)),
        ]
    }
}

impl<const DIGITS: usize> Explored for Counters<DIGITS> {
    fn representative<'a>(&self, state: &'a Self::State) -> Cow<'a, Self::State> {
        if !self.symmetric {
            return Cow::Borrowed(state);
        }
        let mut state = *state;
        state.sort_unstable();
        Cow::Owned(state)
    }

    fn waits(&self, state: &Self::State) -> u32 {
        u32::from(state.iter().sum::<u8>() >= 20)
    }
}

fn bounds(threads: usize) -> Bounds {
    Bounds { threads, ..Bounds::default() }
}

/// All that must not depend on how it was explored.
fn outcome<State: Debug + Clone, Action: Debug + Clone>(exploration: &Exploration<State, Action>) -> String {
    let Exploration { findings, starved, states, transitions, depth, complete, .. } = exploration;
    format!("{findings:?} {starved:?} {states} {transitions} {depth} {complete}")
}

#[test]
fn every_state_of_a_known_model_is_reached_once() {
    let found = explore(&Counters::<4> { symmetric: false }, &bounds(2));
    assert_eq!((found.states, found.transitions, found.depth), (10_000, 4 * 9 * 1000, 36));
    assert!(found.complete);
    assert_eq!(found.path("no two digits are 7").unwrap().last_state(), &[7, 7, 0, 0]);
    assert_eq!(found.path("all are 9").unwrap().clone().into_actions().len(), 36);
    assert!(found.path("one is 10").is_none());
}

#[test]
fn states_that_differ_by_a_symmetry_count_once() {
    let found = explore(&Counters::<4> { symmetric: true }, &bounds(2));
    assert_eq!(found.states, 10 * 11 * 12 * 13 / 24, "multisets of 4 of 10 digits");
    assert_eq!(found.path("no two digits are 7").unwrap().clone().into_actions().len(), 14);
    assert_eq!(found.path("all are 9").unwrap().last_state(), &[9; 4]);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let model = Counters::<5> { symmetric: false };
    assert_eq!(outcome(&explore(&model, &bounds(1))), outcome(&explore(&model, &bounds(2))));
    let cut = |threads| Bounds { states_max: 12_345, ..bounds(threads) };
    let (one, two) = (explore(&model, &cut(1)), explore(&model, &cut(2)));
    assert_eq!(outcome(&one), outcome(&two));
    assert_eq!((one.states, one.complete), (12_345, false));
}

#[test]
fn it_ends_before_its_states_take_more_memory_than_they_may() {
    let model = Counters::<5> { symmetric: false };
    let whole = explore(&model, &bounds(1));
    let bounds = Bounds { frontier_bytes_max: whole.frontier_bytes / 2, ..bounds(1) };
    let found = explore(&model, &bounds);
    assert!(!found.complete && found.states < whole.states, "{} of {} states", found.states, whole.states);
    assert!(found.frontier_bytes < whole.frontier_bytes);
}

#[test]
fn whole_states_give_the_same_as_fingerprints() {
    for symmetric in [false, true] {
        let model = Counters::<4> { symmetric };
        let exact = explore(&model, &Bounds { exact: true, ..bounds(2) });
        assert_eq!(outcome(&exact), outcome(&explore(&model, &bounds(2))));
        assert_eq!(exact.collision, 0.0);
    }
}

#[test]
fn a_visited_state_of_a_million_takes_at_most_32_bytes() {
    let found = explore(&Counters::<6> { symmetric: false }, &bounds(2));
    assert_eq!(found.states, 1_000_000);
    assert!(found.visited_bytes <= 32 * found.states, "{} bytes a state", found.visited_bytes / found.states);
    let birthday = 1e12 / 2.0 / 2_f64.powi(64);
    assert!((found.collision / birthday - 1.0).abs() < 1e-5, "{}", found.collision);
}

#[test]
fn a_visited_state_takes_at_most_32_bytes_while_the_table_grows() {
    let mut visited = Visited::new(false);
    for state in 0..300_000_u32 {
        let fingerprint = super::visited::fingerprint(&state);
        assert_eq!(visited.find(&state, fingerprint), None);
        assert_eq!(visited.insert(&state, fingerprint, (state / 2, 0)), state);
        if state > 10_000 {
            assert!(visited.bytes() <= 32 * visited.len(), "{} for {}", visited.bytes(), visited.len());
        }
    }
    for state in 0..300_000_u32 {
        assert_eq!(visited.find(&state, super::visited::fingerprint(&state)), Some(state));
    }
}

#[test]
fn a_fingerprint_of_zero_is_found_again() {
    let mut visited = Visited::new(false);
    assert_eq!(visited.find(&(), 0), None);
    visited.insert(&(), 0, (0, 0));
    assert_eq!(visited.find(&(), 0), Some(0), "although 0 marks an empty slot");
}

#[test]
fn what_was_not_expanded_is_no_dead_end() {
    let found = explore(&Counters::<3> { symmetric: false }, &Bounds { depth_max: Some(22), ..bounds(1) });
    assert!(!found.complete && found.depth == 22);
    assert!(found.starved.is_empty(), "all states in which somebody waits have a step, or were not expanded");
    let found = explore(&Counters::<3> { symmetric: false }, &bounds(1));
    assert!(
        matches!(&found.starved[..], [Starvation { waiter: 0, ending: Ending::DeadEnd, path }] if path.last_state() == &[9; 3])
    );
}

#[test]
fn time_that_is_up_cuts_the_search() {
    let start = Instant::now();
    let found = explore(
        &Counters::<9> { symmetric: false },
        &Bounds { elapsed_max: Some(Duration::from_millis(50)), ..bounds(2) },
    );
    assert!(!found.complete && found.states > 0);
    assert!(start.elapsed() < Duration::from_secs(20));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_trace_is_the_shortest_and_of_several_the_first(graph in graphs()) {
        let found = explore(&graph, &bounds(1));
        for (property, wanted) in [("nothing is bad", 1), ("something is good", 2)] {
            let path = found.path(property).cloned().map(Path::into_states);
            prop_assert_eq!(path, graph.first_path_to(|state| graph.marks[state] & wanted != 0));
        }
        prop_assert_eq!(found.states, graph.reachable().len() as u64);
    }

    #[test]
    fn fingerprints_and_whole_states_of_any_graph_agree(graph in graphs()) {
        let exact = explore(&graph, &Bounds { exact: true, ..bounds(2) });
        prop_assert_eq!(outcome(&exact), outcome(&explore(&graph, &bounds(1))));
    }

    #[test]
    fn stateright_finds_as_many_states_of_any_graph_and_shows_the_same(graph in graphs()) {
        let found = explore(&graph, &bounds(1));
        let checked = cross_check(graph, &found, 1);
        prop_assert_eq!(checked.map(|checked| checked.states), Ok(found.states));
    }

    #[test]
    fn who_can_wait_for_ever_is_found_and_nobody_else(graph in graphs()) {
        let found = explore(&graph, &bounds(1));
        for waiter in 0..2 {
            let of = |dead_end: bool| found.starved.iter().find(|starved| {
                starved.waiter == waiter && (starved.ending == Ending::DeadEnd) == dead_end
            });
            let dead_ends = graph.dead_ends(waiter);
            prop_assert_eq!(
                of(true).map(|starved| starved.path.clone().into_states()),
                graph.first_path_to(|state| dead_ends.contains(&state)),
                "dead end of {}", waiter
            );
            let fair_sets = graph.fair_sets(waiter);
            prop_assert!(of(false).is_none() || !fair_sets.is_empty(), "no fair cycle of {}", waiter);
            if dead_ends.is_empty() {
                prop_assert_eq!(
                    of(false).map(|starved| starved.path.clone().into_states()),
                    graph.first_path_to(|state| fair_sets.iter().any(|set| set.contains(&state))),
                    "cycle of {}", waiter
                );
            }
            if let Some(Starvation { path, ending: Ending::Cycle(actions), .. }) = of(false) {
                prop_assert!(graph.is_fair_cycle(waiter, *path.last_state(), actions), "{:?}", actions);
            }
        }
    }
}

/// A lease that is renewed for ever.
#[derive(Clone, Debug)]
struct Renewed;

impl Model for Renewed {
    type State = u8;
    type Action = &'static str;

    fn init_states(&self) -> Vec<u8> {
        vec![0]
    }

    fn actions(&self, state: &u8, actions: &mut Vec<&'static str>) {
        if *state < 2 {
            actions.extend(["renew", "break"]);
        }
    }

    fn next_state(&self, state: &u8, action: &'static str) -> Option<u8> {
        Some(if action == "renew" { 1 - state } else { 2 })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::sometimes("the lease is broken", |_, state| *state == 2)]
    }
}

impl Explored for Renewed {
    fn waits(&self, state: &u8) -> u32 {
        u32::from(*state < 2)
    }
}

/// The same, asked the way stateright does.
#[derive(Clone)]
struct EventuallyBroken;

impl Model for EventuallyBroken {
    type State = u8;
    type Action = &'static str;

    fn init_states(&self) -> Vec<u8> {
        Renewed.init_states()
    }

    fn actions(&self, state: &u8, actions: &mut Vec<&'static str>) {
        Renewed.actions(state, actions);
    }

    fn next_state(&self, state: &u8, action: &'static str) -> Option<u8> {
        Renewed.next_state(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::eventually("the lease is broken", |_, state| *state == 2)]
    }
}

impl Explored for EventuallyBroken {}

#[test]
fn a_lease_that_is_renewed_for_ever_is_a_cycle_which_stateright_misses() {
    let checker = EventuallyBroken.checker().spawn_bfs().join();
    assert!(checker.discovery("the lease is broken").is_none(), "the flaw that this explorer is for");
    let found = explore(&Renewed, &bounds(1));
    let [starved] = &found.starved[..] else { panic!("{:?}", found.starved) };
    assert_eq!(starved.ending, Ending::Cycle(vec!["renew", "renew"]));
}

#[test]
#[should_panic(expected = "say who waits")]
fn an_eventually_property_is_refused() {
    explore(&EventuallyBroken, &bounds(1));
}

#[test]
fn stateright_agrees_on_a_model_with_symmetry_and_without() {
    for symmetric in [false, true] {
        let model = Counters::<4> { symmetric };
        let found = explore(&model, &bounds(2));
        let checked = cross_check(model, &found, 2).expect("both searches agree");
        assert_eq!(checked.states, found.states);
    }
}

/// A token that goes round among three who are alike, while somebody waits.
#[derive(Clone, Debug)]
struct Passed;

impl Model for Passed {
    type State = [bool; 3];
    type Action = usize;

    fn init_states(&self) -> Vec<[bool; 3]> {
        vec![[true, false, false]]
    }

    fn actions(&self, state: &[bool; 3], actions: &mut Vec<usize>) {
        actions.extend(state.iter().position(|has| *has));
    }

    fn next_state(&self, _: &[bool; 3], from: usize) -> Option<[bool; 3]> {
        Some(std::array::from_fn(|place| place == (from + 1) % 3))
    }
}

impl Explored for Passed {
    fn representative<'a>(&self, state: &'a [bool; 3]) -> Cow<'a, [bool; 3]> {
        let mut state = *state;
        state.sort_unstable();
        Cow::Owned(state)
    }

    fn waits(&self, _: &[bool; 3]) -> u32 {
        1 << 31
    }
}

#[test]
fn a_cycle_may_close_in_a_state_that_differs_by_a_symmetry_only() {
    let found = explore(&Passed, &bounds(1));
    let [Starvation { waiter: 31, ending, .. }] = &found.starved[..] else { panic!("{:?}", found.starved) };
    assert_eq!((found.states, ending), (1, &Ending::Cycle(vec![0])));
}

/// Two counters that are taken for the same although only the first counts.
#[derive(Clone, Debug)]
struct Lopsided;

impl Model for Lopsided {
    type State = [u8; 2];
    type Action = ();

    fn init_states(&self) -> Vec<[u8; 2]> {
        vec![[1, 0], [0, 1]]
    }

    fn actions(&self, state: &[u8; 2], actions: &mut Vec<()>) {
        actions.extend((state[0] < 9 && state[0] > 0).then_some(()));
    }

    fn next_state(&self, state: &[u8; 2], (): ()) -> Option<[u8; 2]> {
        Some([state[0] + 1, state[1]])
    }
}

impl Explored for Lopsided {
    fn representative<'a>(&self, state: &'a [u8; 2]) -> Cow<'a, [u8; 2]> {
        let mut state = *state;
        state.sort_unstable();
        Cow::Owned(state)
    }
}

#[test]
fn stateright_tells_that_a_representative_does_not_commute() {
    let found = explore(&Lopsided, &bounds(1));
    assert_eq!(
        cross_check(Lopsided, &found, 1),
        Err(CrossCheckError::Count { what: "states", ours: 9, theirs: 1 })
    );
}

#[test]
fn a_search_that_was_cut_is_not_cross_checked() {
    let found = explore(&Renewed, &Bounds { depth_max: Some(0), ..bounds(1) });
    assert_eq!(cross_check(Renewed, &found, 1), Err(CrossCheckError::Incomplete));
}

#[test]
fn the_page_is_served_on_this_machine_and_a_port_in_use_is_told() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = serve(Renewed, port).unwrap_err().to_string();
    assert_eq!(refused, format!("cannot serve the model on 127.0.0.1:{port}; choose another port"));

    drop(taken);
    thread::spawn(move || serve(Renewed, port)); // It ends with the process.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let mut answer = String::new();
    stream.write_all(b"GET /.states/0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#""action":"\"renew\"""#), "{answer}");
}
