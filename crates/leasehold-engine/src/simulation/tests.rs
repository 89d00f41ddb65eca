//! Runs of many seeds.
//!
//! `LEASEHOLD_SIM_SEEDS` sets which: so many, or `FIRST..END`.

use super::fabric::Skip;
use super::world::{Plan, Tally, live};
use super::{Outcome, simulate};
use crate::storage::tests::power::recorder::Lie;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn run(seed: u64, plan: Plan) -> Outcome<Tally> {
    let outcome = simulate(seed, move || live(plan));
    let (tally, places) = outcome.value;
    drop(places);
    Outcome { value: tally, steps: outcome.steps, time: outcome.time, digest: outcome.digest }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("LEASEHOLD_SIM_SEEDS") else { return 0..200 };
    let (first, end) = text.split_once("..").unwrap_or(("0", &text));
    let number = |text: &str| text.parse().expect("LEASEHOLD_SIM_SEEDS is a number, or FIRST..END");
    number(first)..number(end)
}

#[test]
fn whatever_happens_the_engine_keeps_its_promises() {
    let began = std::time::Instant::now();
    let mut all = Tally::default();
    let (mut steps, mut runs) = (0, 0);
    for seed in seeds() {
        let outcome = run(seed, Plan::of(seed));
        eprintln!("seed {seed}: {} steps, {:?}, {:?}", outcome.steps, outcome.time, began.elapsed());
        steps += outcome.steps;
        runs += 1;
        for (what, times) in outcome.value.0 {
            let total = all.0.entry(what).or_default();
            *total = if what.starts_with("slowest") { times.max(*total) } else { *total + times };
        }
    }
    eprintln!("{runs} runs, {steps} steps in {:.1} s: {:?}", began.elapsed().as_secs_f64(), all.0);
}
