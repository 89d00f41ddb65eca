//! What a walk through all designs found: those that keep every promise, and of those the ones worth having.

use super::explored::{bounds, completeness, figures, plural};
use super::table::number;
use super::{Costs, Explored, json};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use textwrap::{Options, fill};

/// What the six decisions are about, in the order of [`Design::decisions`].
pub const DECISIONS: [&str; 6] =
    ["admission", "writeback", "layout change", "data path", "dirty tracking", "fsync"];

/// Every combination of the six decisions, judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Space {
    /// The bounds of the worlds that were explored, in words.
    pub bounds: String,
    /// How many combinations there are.
    pub designs: u64,
    /// Those that break no promise.
    pub safe: Vec<Design>,
    /// How much was explored for it.
    pub explored: Explored,
}

/// One combination that breaks no promise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Design {
    /// Its name, if it is a scheme.
    pub name: Option<&'static str>,
    /// Its answers, a phrase each.
    pub decisions: [String; 6],
    /// What it costs.
    pub costs: Costs,
    /// Whether no other safe design is better in one cost and no worse in any.
    pub on_front: bool,
}

/// The designs that no other one beats, each with its decisions, in at most 80 columns.
#[must_use]
pub fn text(space: &Space) -> String {
    let front: Vec<&Design> = space.safe.iter().filter(|design| design.on_front).collect();
    let mut text = fill(
        &format!(
            "Of {}, {} break no promise. Of those, no other one beats {} on all costs:",
            plural(space.designs, "design"),
            space.safe.len(),
            front.len()
        ),
        80,
    );
    text.push('\n');
    for (index, design) in front.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{}. {}", index + 1, design.name.unwrap_or("(has no name)"));
        for (what, answer) in DECISIONS.iter().zip(&design.decisions) {
            text += &entry(what, answer);
        }
        text += &entry("costs", &costs(&design.costs));
    }
    let names: Vec<&str> =
        space.safe.iter().filter(|design| !design.on_front).filter_map(|design| design.name).collect();
    if !names.is_empty() {
        let _ = writeln!(text, "\n{}", fill(&format!("Safe, but beaten: {}.", names.join(", ")), 80));
    }
    let designs = plural(space.designs, "design");
    let explored = figures(&space.explored, &designs) + " " + &completeness(space.explored.cut_off);
    text + "\n" + &fill(&explored, 80) + "\n" + &bounds(&space.bounds)
}

/// All of it, for programs; documented with the report's schema.
///
/// # Panics
/// Never: nothing in it cannot be written as JSON.
#[must_use]
pub fn document(space: &Space) -> Value {
    let mut value = serde_json::to_value(space).expect("it can be written as JSON");
    value["schema"] = json::SCHEMA.into();
    value
}

fn entry(what: &str, text: &str) -> String {
    let first = format!("   {what:<14}  ");
    let next = " ".repeat(first.len());
    fill(text, Options::new(80).initial_indent(&first).subsequent_indent(&next)) + "\n"
}

fn costs(costs: &Costs) -> String {
    let copies = format!("copies {}, refaults {}", number(costs.copies), number(costs.refaults));
    let kills = costs.kills.then(|| "kills a holder".to_owned());
    let waits = costs.waits.iter().map(|what| format!("waits: {what}"));
    let refuses = costs.refuses.iter().map(|what| format!("refuses: {what}"));
    [copies].into_iter().chain(kills).chain(waits).chain(refuses).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::space;

    #[test]
    fn the_front_is_shown_with_decisions_and_costs_and_the_beaten_by_name() {
        let text = text(&space());
        assert!(
            text.starts_with("Of 2304 designs, 3 break no promise. Of those, no other one beats 2 on all"),
            "{text}"
        );
        assert!(text.contains("\n1. leasehold\n   admission       admission admission"), "{text}");
        assert!(text.contains("\n2. (has no name)\n"), "{text}");
        assert!(
            text.contains("   costs           copies 1, refaults 0; kills a holder; waits: somebody for"),
            "{text}"
        );
        assert!(text.contains("\nSafe, but beaten: bounce.\n"), "{text}");
        assert!(text.contains("Explored 9000 worlds of 2304 designs"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn its_json_has_the_beaten_too() {
        let value = document(&space());
        assert_eq!(value["schema"], json::SCHEMA);
        assert_eq!(value["safe"].as_array().unwrap().len(), 3);
        assert_eq!(value["safe"][2]["on_front"], false);
        assert_eq!(value["safe"][1]["name"], Value::Null);
    }
}
