//! The revocation storm over iWARP.
//!
//! `LEASEHOLD_STORM_ROUNDS` sets the number of rounds in all (2,000; 100,000 for the slow tier).

use leasehold_fabric::conformance::storm;
use leasehold_fabric::iwarp::{Config, Iwarp};
use std::sync::atomic::Ordering;
use std::time::Instant;

fn rounds() -> usize {
    std::env::var("LEASEHOLD_STORM_ROUNDS").map_or(2_000, |rounds| rounds.parse().expect("a number"))
}

fn run(size: usize, rounds: usize) {
    let began = Instant::now();
    let fabric = Iwarp::new(Config::default()).expect("threads");
    let mut fences = storm(&fabric, size, rounds);
    let discarded = fabric.counters().bytes_discarded.load(Ordering::Relaxed);
    assert!(discarded > 0, "nothing was on its way: no storm");
    fences.sort_unstable();
    println!(
        "{size} bytes: {rounds} rounds in {:.1?}; fence median {:.1?}, 99th percentile {:.1?}, longest {:.1?}",
        began.elapsed(),
        fences[fences.len() / 2],
        fences[fences.len() * 99 / 100],
        fences[fences.len() - 1],
    );
}

#[test]
fn no_byte_of_a_4_kib_write_lands_behind_its_fence() {
    run(4 << 10, rounds() / 2);
}

#[test]
fn no_byte_of_a_64_kib_write_lands_behind_its_fence() {
    run(64 << 10, rounds() * 3 / 10);
}

#[test]
fn no_byte_of_a_1_mib_write_lands_behind_its_fence() {
    run(1 << 20, rounds() / 5);
}
