//! What a walk through all designs found: those that keep every promise, and of those the ones worth having.

use super::explored::{bounds, completeness, figures, plural};
use super::table::number;
use super::{Costs, Explored, Trace, json};
use leasehold_core::promise::Promise;
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
    /// How many of them differ in anything that a host can see.
    pub distinct: u64,
    /// Distinct ones that give no key for writing, anywhere.
    pub idle: u64,
    /// Distinct ones that break no promise, and are not idle.
    pub safe_distinct: u64,
    /// Distinct ones that break P6, and nothing else.
    pub safe_but_untold: u64,
    /// On each host, by data path.
    pub hosts: Vec<OnHost>,
    /// Every answer, where DMA lands in the file's own frames.
    pub answers: Vec<Answer>,
    /// For each scheme whose DMA lands in the file's own frames, what it lacks.
    pub nearest: Vec<Nearest>,
    /// Those that break no promise, one for each set of costs; the front comes first.
    pub safe: Vec<Design>,
    /// How much was explored for it.
    pub explored: Explored,
}

/// The designs of one data path that give keys for writing on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OnHost {
    /// Backing and device.
    pub host: &'static str,
    /// Where DMA lands.
    pub data_path: &'static str,
    /// Those that this host can tell apart.
    pub designs: u64,
    /// Those that break no promise there.
    pub safe: u64,
    /// Those that break P6 only.
    pub safe_but_untold: u64,
}

/// One answer to one decision; the numbers are by host, in the order of [`Space::hosts`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Which decision.
    pub decision: &'static str,
    /// Which answer.
    pub answer: &'static str,
    /// Distinct designs with it; 0: there it is the same as another.
    pub designs: Vec<u64>,
    /// Those that break no promise.
    pub safe: Vec<u64>,
    /// Those that break P6 only.
    pub safe_but_untold: Vec<u64>,
    /// If no design with it is safe anywhere: what ends most of those that would be safe with another answer.
    pub killer: Option<Killer>,
}

/// A promise that ended designs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Killer {
    /// Which.
    #[serde(serialize_with = "json::name_of")]
    pub promise: Promise,
    /// How many it ends, on all hosts together.
    pub designs: u64,
    /// How many would be safe with another answer.
    pub of: u64,
    /// The shortest way that was found.
    pub trace: Trace,
}

/// What makes a scheme safe, with as few other answers as can be; its data path stays, and nothing more is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nearest {
    /// Its name.
    pub scheme: &'static str,
    /// The answers that are others.
    pub changes: Vec<Change>,
    /// How many safe designs there are with so few other answers.
    pub ways: u64,
}

/// Another answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// To which decision.
    pub decision: &'static str,
    /// Which.
    pub answer: String,
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
    /// Distinct designs with these costs, itself among them.
    pub alike: u64,
    /// Whether no other safe design is better in one cost and no worse in any.
    pub on_front: bool,
}

/// What was found: counts, answers that are never safe, and the designs that no other one beats, in at most 80 columns.
#[must_use]
pub fn text(space: &Space) -> String {
    let front: Vec<&Design> = space.safe.iter().filter(|design| design.on_front).collect();
    let summary = format!(
        "Of {} ({} distinct; {} of those give no key for writing) {} break no promise, and {} break P6 only.",
        plural(space.designs, "design"),
        space.distinct,
        space.idle,
        space.safe_distinct,
        space.safe_but_untold,
    );
    let mut text = fill(&summary, 80) + "\n\n" + &hosts(space) + "\n" + &answers(space);
    text += &("\n".to_owned() + &nearest(space));
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\nSafe, and not beaten on all costs by another safe design:");
    for (index, design) in front.iter().enumerate() {
        let like = if design.alike > 1 { format!(", one of {} alike", design.alike) } else { String::new() };
        let _ = writeln!(text, "\n{}. {}{like}", index + 1, design.name.unwrap_or("(has no name)"));
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
    let designs = plural(space.distinct, "design");
    let explored = figures(&space.explored, &designs) + " " + &completeness(space.explored.cut_off);
    text + "\n" + &fill(&explored, 80) + "\n" + &bounds(&space.bounds)
}

fn hosts(space: &Space) -> String {
    let mut text =
        format!("{:<27}{:<28}{:>8}{:>7}{:>9}\n", "HOST", "DMA LANDS IN", "DESIGNS", "SAFE", "BUT P6");
    for OnHost { host, data_path, designs, safe, safe_but_untold } in &space.hosts {
        let _ = writeln!(text, "{host:<27}{data_path:<28}{designs:>8}{safe:>7}{safe_but_untold:>9}");
    }
    text
}

/// `safe/designs` on each host.
fn answers(space: &Space) -> String {
    let mut text = String::from(
        "Where DMA lands in the file's own frames, by answer: safe (+ P6 broken only) of\nall designs; C page cache, D \
         DAX, f: the device faults; -: as another answer\n\n",
    );
    let _ = writeln!(text, "{:<28}{:>13}{:>13}{:>13}{:>13}", "", "C", "Cf", "D", "Df");
    let mut decision = "";
    for answer in &space.answers {
        if answer.decision != decision {
            decision = answer.decision;
            let _ = writeln!(text, "{decision}");
        }
        let _ = write!(text, "  {:<26}", answer.answer);
        for at in 0..answer.designs.len() {
            let cell = match (answer.safe[at], answer.safe_but_untold[at], answer.designs[at]) {
                (_, _, 0) => "-".to_owned(),
                (safe, 0, designs) => format!("{safe}/{designs}"),
                (safe, untold, designs) => format!("{safe}+{untold}/{designs}"),
            };
            let _ = write!(text, "{cell:>13}");
        }
        text.push('\n');
        if let Some(killer) = &answer.killer {
            let what = format!(
                "never safe: {} ends {} of {} that another answer makes safe, in {} steps: {}",
                killer.promise,
                killer.designs,
                killer.of,
                killer.trace.steps.len(),
                killer.trace.world
            );
            text += &(fill(&what, Options::new(80).initial_indent("    ").subsequent_indent("    ")) + "\n");
        }
    }
    text
}

/// What each scheme lacks.
fn nearest(space: &Space) -> String {
    let mut text = String::from(
        "The fewest answers to change until a scheme is safe; its data path stays, and it\nrefuses no more:\n\n",
    );
    for Nearest { scheme, changes, ways } in &space.nearest {
        let answers: Vec<String> =
            changes.iter().map(|Change { decision, answer }| format!("{decision}: {answer}")).collect();
        let first = format!("{scheme:<22}");
        let options = Options::new(80).initial_indent(&first).subsequent_indent("                      ");
        let ways = if *ways > 1 { format!(" (one of {ways} ways)") } else { String::new() };
        text += &(fill(&format!("{}{ways}", answers.join("; ")), options) + "\n");
    }
    text
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
    let figures = format!("copies {}, refaults {}", number(costs.copies), number(costs.refaults));
    [figures].into_iter().chain(costs.phrases()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::space;

    #[test]
    fn the_front_is_shown_with_decisions_and_costs_and_the_beaten_by_name() {
        let text = text(&space());
        assert!(text.starts_with("Of 2304 designs (900 distinct; 100 of those give no key"), "{text}");
        assert!(
            text.contains(
                "page cache                 the file's own frames             20      2        3\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("  allow                            2+1/20          0/4            -            -"),
            "{text}"
        );
        assert!(
            text.contains("    never safe: P3 ends 7 of 9 that another answer makes safe, in 10"),
            "{text}"
        );
        assert!(
            text.contains("\n1. leasehold, one of 2 alike\n   admission       admission admission"),
            "{text}"
        );
        assert!(text.contains("\n2. (has no name)\n"), "{text}");
        assert!(
            text.contains("   costs           copies 1, refaults 0; kills a holder; waits: a truncate"),
            "{text}"
        );
        assert!(text.contains("\nSafe, but beaten: bounce.\n"), "{text}");
        assert!(text.contains("\nnaive                 fsync: another (one of 2 ways)\n"), "{text}");
        assert!(text.contains("Explored 9000 worlds of 900 designs"), "{text}");
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
