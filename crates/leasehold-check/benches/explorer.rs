//! How many unique states a second the explorer walks. `cargo bench -p leasehold-check`
//!
//! The model is as cheap as can be (six bytes, copied), so what is measured is the explorer: about five steps lead to each
//! state, each a hash and a look-up in a table that is larger than the caches. Stateright's own search is beside it.

use criterion::{Criterion, Throughput};
use leasehold_check::explorer::{Bounds, Explored, explore};
use stateright::{Checker, Model, Property};
use std::{hint::black_box, time::Duration};

/// Digits that count up, one at a time: 10^6 states.
struct Counters;

impl Model for Counters {
    type State = [u8; 6];
    type Action = u8;

    fn init_states(&self) -> Vec<[u8; 6]> {
        vec![[0; 6]]
    }

    fn actions(&self, state: &[u8; 6], actions: &mut Vec<u8>) {
        actions.extend((0..6).filter(|&digit| state[usize::from(digit)] < 9));
    }

    fn next_state(&self, state: &[u8; 6], digit: u8) -> Option<[u8; 6]> {
        let mut state = *state;
        state[usize::from(digit)] += 1;
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("digits are digits", |_, state: &[u8; 6]| {
            state.iter().all(|&digit| digit < 10)
        })]
    }
}

impl Explored for Counters {}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("a million states");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(8))
        .throughput(Throughput::Elements(1_000_000));
    for threads in [1, 2] {
        group.bench_function(format!("{threads} threads"), |bencher| {
            let bounds = Bounds { threads, ..Bounds::default() };
            bencher.iter(|| black_box(explore(&Counters, &bounds)));
        });
    }
    group.bench_function("stateright, 1 thread", |bencher| {
        bencher.iter(|| black_box(Counters.checker().spawn_bfs().join().unique_state_count()));
    });
    group.finish();
    criterion.final_summary();
}
