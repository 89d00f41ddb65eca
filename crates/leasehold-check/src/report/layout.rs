//! Where the parts of a sequence diagram go, in cells of characters: one arrangement for plain text and for SVG.
//!
//! Each lane has a lifeline. A message is its label, in as many lines as it needs, and its arrow in the row below; what
//! happens in one lane is a note beside its lifeline. Labels may lie over lifelines, arrows never over labels.

use super::Trace;
use std::borrow::Cow;
use textwrap::wrap;

/// No diagram is wider.
pub(super) const COLUMNS: usize = 80;
/// Lanes further apart than this look lost.
const GAP_MAX: usize = 22;
/// A label may be as wide as this, where its arrow is shorter.
const LABEL: usize = 34;
/// A note that has no more room than this to its right goes to the left.
const NOTE: usize = 24;

/// A diagram, arranged.
pub(super) struct Layout {
    /// Those that take part.
    pub(super) lanes: Vec<Lane>,
    /// Rows of the lanes' names, above the first step.
    pub(super) head: usize,
    pub(super) parts: Vec<Part>,
    /// Rows in all.
    pub(super) rows: usize,
}

pub(super) struct Lane {
    /// Where its lifeline is.
    pub(super) column: usize,
    /// Its name, in lines.
    pub(super) name: Vec<String>,
}

pub(super) enum Part {
    /// The number of a step.
    Number { row: usize, number: usize },
    /// One line of a label or note.
    Text { row: usize, column: usize, text: String },
    /// From one lifeline to another, columns.
    Arrow { row: usize, from: usize, to: usize },
    /// Where on a lifeline a note belongs.
    Mark { row: usize, column: usize },
}

impl Layout {
    /// # Panics
    /// If a step names a lane that there is not.
    pub(super) fn of(trace: &Trace) -> Layout {
        let margin = trace.steps.len().to_string().len() + 2;
        let used = |lane: &usize| trace.steps.iter().any(|step| step.from == *lane || step.to == *lane);
        let used: Vec<usize> = (0..trace.lanes.len()).filter(used).collect();
        let lanes = place(&used.iter().map(|lane| trace.lanes[*lane]).collect::<Vec<_>>(), margin);
        let column = |lane: usize| {
            let place = used.iter().position(|used| *used == lane);
            lanes[place.expect("a step's lane takes part")].column
        };
        let head = lanes.iter().map(|lane| lane.name.len()).max().unwrap_or(0);
        let mut layout = Layout { parts: Vec::new(), rows: head + 1, head, lanes: Vec::new() };
        for (index, step) in trace.steps.iter().enumerate() {
            layout.parts.push(Part::Number { row: layout.rows, number: index + 1 });
            let (from, to) = (column(step.from), column(step.to));
            if from == to {
                layout.note(from, &step.what, margin);
            } else {
                layout.message(from, to, &step.what, margin);
            }
        }
        Layout { lanes, ..layout }
    }

    /// How far to the right it goes.
    pub(super) fn columns(&self) -> usize {
        let texts = self.parts.iter().filter_map(|part| match part {
            Part::Text { column, text, .. } => Some(column + text.chars().count()),
            _ => None,
        });
        let half = |lane: &Lane| lane.name.iter().map(|line| line.chars().count() / 2 + 1).max().unwrap_or(0);
        let lanes = self.lanes.iter().map(|lane| lane.column + half(lane));
        texts.chain(lanes).max().unwrap_or(0)
    }

    /// The label is near the sender, as far as the edges let it.
    fn message(&mut self, from: usize, to: usize, what: &str, margin: usize) {
        let (left, right) = (from.min(to), from.max(to));
        let lines = wrap(what, LABEL.max(right - left - 3));
        let longest = longest(&lines);
        let column = if from < to { left + 2 } else { (right - 1).saturating_sub(longest).max(margin) };
        let column = column.min(COLUMNS - longest);
        for line in lines {
            self.text(column, line.into_owned());
        }
        self.parts.push(Part::Arrow { row: self.rows, from, to });
        self.rows += 1;
    }

    /// To the right of the lifeline, or to the left where there is more room.
    fn note(&mut self, lane: usize, what: &str, margin: usize) {
        self.parts.push(Part::Mark { row: self.rows, column: lane });
        let (left, right) = (lane.saturating_sub(margin + 1), COLUMNS - lane - 2);
        if right >= NOTE || right >= left {
            for line in wrap(what, right.min(LABEL)) {
                self.text(lane + 2, line.into_owned());
            }
        } else {
            let lines = wrap(what, left.min(LABEL));
            let longest = longest(&lines);
            for line in lines {
                self.text(lane - 1 - longest, line.into_owned());
            }
        }
    }

    fn text(&mut self, column: usize, text: String) {
        self.parts.push(Part::Text { row: self.rows, column, text });
        self.rows += 1;
    }
}

fn longest(lines: &[Cow<'_, str>]) -> usize {
    lines.iter().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// Lanes evenly apart; names that are too long for that in several lines.
fn place(names: &[&str], margin: usize) -> Vec<Lane> {
    let half = |name: Option<&&str>| name.map_or(0, |name| name.chars().count() / 2);
    let first = margin + half(names.first()).clamp(1, 6);
    let last = COLUMNS - 1 - half(names.last()).clamp(1, 6);
    let gap = (last - first).checked_div(names.len().saturating_sub(1)).unwrap_or(0).clamp(1, GAP_MAX);
    let lane = |(index, name): (usize, &&str)| {
        let name = wrap(name, (gap - 1).clamp(1, 12)).into_iter().map(|line| line.into_owned()).collect();
        Lane { column: first + index * gap, name }
    };
    names.iter().enumerate().map(lane).collect()
}
