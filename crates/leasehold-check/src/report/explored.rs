//! How much was explored, in words.

use super::{Explored, Report, SchemeReport};
use crate::explorer::Exploration;
use std::iter::Sum;
use std::time::Duration;
use textwrap::fill;

/// One after the other: counts and times add up, the rest is the greatest.
impl<'a> Sum<&'a Explored> for Explored {
    fn sum<I: Iterator<Item = &'a Explored>>(all: I) -> Explored {
        all.fold(Explored::default(), |sum, one| Explored {
            worlds: sum.worlds + one.worlds,
            states: sum.states + one.states,
            transitions: sum.transitions + one.transitions,
            depth: sum.depth.max(one.depth),
            cut_off: sum.cut_off.or(one.cut_off),
            visited_bytes: sum.visited_bytes + one.visited_bytes,
            frontier_bytes: sum.frontier_bytes.max(one.frontier_bytes),
            collision: 1.0 - (1.0 - sum.collision) * (1.0 - one.collision),
            elapsed: sum.elapsed + one.elapsed,
        })
    }
}

/// What one world took.
impl<State, Action> From<&Exploration<State, Action>> for Explored {
    fn from(exploration: &Exploration<State, Action>) -> Explored {
        Explored {
            worlds: 1,
            states: exploration.states,
            transitions: exploration.transitions,
            depth: exploration.depth,
            cut_off: (!exploration.complete).then_some("the limit of states, or of memory"),
            visited_bytes: exploration.visited_bytes,
            frontier_bytes: exploration.frontier_bytes,
            collision: exploration.collision,
            elapsed: exploration.elapsed,
        }
    }
}

impl Explored {
    /// Unique states a second.
    #[must_use]
    pub fn states_per_second(&self) -> f64 {
        per(self.states as f64, self.elapsed.as_secs_f64())
    }

    /// Memory of a visited state.
    #[must_use]
    pub fn bytes_per_state(&self) -> f64 {
        per(self.visited_bytes as f64, self.states as f64)
    }
}

/// All that was explored, and within what bounds, in lines of at most 80 columns.
#[must_use]
pub fn text(report: &Report) -> String {
    fill(&sentences(report), 80) + "\n" + &bounds(&report.bounds)
}

/// A line, or several.
pub(super) fn bounds(bounds: &str) -> String {
    fill(&format!("Within these bounds: {}.", bounds.trim_end_matches('.')), 80) + "\n"
}

/// The same in one paragraph, without the bounds.
pub(super) fn sentences(report: &Report) -> String {
    let sum: Explored = report.schemes.iter().map(|scheme| &scheme.explored).sum();
    let cut = |scheme: &SchemeReport| Some(format!("{} by {}", scheme.name, scheme.explored.cut_off?));
    let cut: Vec<String> = report.schemes.iter().filter_map(cut).collect();
    let cut = Some(cut.join(", ")).filter(|cut| !cut.is_empty());
    figures(&sum, &plural(report.schemes.len(), "scheme")) + " " + &completeness(cut.as_deref())
}

/// Of so many designs: how much, how fast, at what cost.
pub(super) fn figures(explored: &Explored, of: &str) -> String {
    format!(
        "Explored {} of {of} in {}: {} by {} steps, at most {} deep ({} states a second, {} bytes a state, {} \
         for those still to be looked at). {}",
        plural(explored.worlds, "world"),
        seconds(explored.elapsed),
        plural(explored.states, "state"),
        count(explored.transitions as f64),
        explored.depth,
        count(explored.states_per_second()),
        explored.bytes_per_state().round(),
        mebibytes(explored.frontier_bytes),
        taken_for_one(explored.collision),
    )
}

/// Whether that was all, or by which bound it was cut off.
pub(super) fn completeness(cut_off: Option<&str>) -> String {
    cut_off.map_or_else(
        || "Complete: every state within the bounds was reached.".to_owned(),
        |bound| format!("NOT complete, cut off: {bound}."),
    )
}

fn taken_for_one(probability: f64) -> String {
    if probability == 0.0 {
        "No state can have been taken for another.".to_owned()
    } else {
        format!("Some state was taken for another with a probability of {probability:.1e}.")
    }
}

/// 0 where there is nothing to divide by.
fn per(what: f64, of: f64) -> f64 {
    if of > 0.0 { what / of } else { 0.0 }
}

/// `1 state`, `2 states`.
pub(super) fn plural(number: impl TryInto<u64>, what: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    let s = if number == 1 { "" } else { "s" };
    format!("{} {what}{s}", count(number as f64))
}

/// With three digits, in words from a hundred thousand on.
fn count(number: f64) -> String {
    match number {
        n if n < 1e5 => n.round().to_string(),
        n if n < 1e6 => format!("{:.0} thousand", n / 1e3),
        n if n < 1e9 => format!("{} million", three_digits(n / 1e6)),
        n => format!("{} billion", three_digits(n / 1e9)),
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", three_digits(time.as_secs_f64()))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", three_digits(bytes as f64 / f64::from(1 << 20)))
}

fn three_digits(value: f64) -> String {
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn it_says_how_much_how_fast_and_what_it_cost() {
        let mut report = sample::report();
        report.schemes.truncate(2);
        let text = text(&report).replace('\n', " ");
        for part in [
            "8 worlds of 2 schemes in 2.50 s: 2.47 million states by 15.3 million steps, at most 29 deep",
            "(988 thousand states a second, 24 bytes a state, 40.0 MiB for those still to be looked at)",
            "a probability of 8.2e-8.",
            "Complete:",
            "Within these bounds: 2 blocks, 2 keys,",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn what_was_cut_off_is_named_with_its_bound_and_not_called_complete() {
        let text = text(&sample::report()).replace('\n', " ");
        assert!(
            text.contains("NOT complete, cut off: leasehold by the limit of 10 million states."),
            "{text}"
        );
        assert!(!text.contains("Complete"), "{text}");
    }

    #[test]
    fn nothing_explored_divides_by_nothing() {
        let report = Report { bounds: String::new(), schemes: Vec::new() };
        let text = text(&report).replace('\n', " ");
        assert!(text.contains("(0 states a second, 0 bytes a state"), "{text}");
        assert!(text.contains("No state can have been taken for another"), "{text}");
    }
}
