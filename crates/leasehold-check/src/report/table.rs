//! The tables in plain text: what each scheme keeps, and what it costs. At most 80 columns.

use super::{Costs, PromiseReport, Report, Verdict, short};
use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use leasehold_core::promise::Promise;
use std::fmt::Write as _;
use textwrap::{Options, fill};

const COLUMNS: u16 = 80;
/// Of one promise: its verdict, a mark if that is not as declared, a space.
const PROMISE: u16 = 5;
/// What is left for phrases beside the other columns.
const PHRASE: usize = 36;

/// Which promises each scheme keeps.
#[must_use]
pub fn promises(report: &Report, colour: bool) -> String {
    let mut table = table(colour, ["SCHEME"].into_iter().chain(Promise::ALL.map(Promise::name)));
    for scheme in &report.schemes {
        let verdicts = scheme.promises.iter().map(verdict);
        table.add_row([Cell::new(&scheme.name)].into_iter().chain(verdicts));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_padding((0, 1)).set_constraint(ColumnConstraint::Absolute(Width::Fixed(PROMISE)));
    }
    text(&table)
}

fn verdict(promise: &PromiseReport) -> Cell {
    let mark = if promise.is_as_declared() { "" } else { "!" };
    let cell = Cell::new(format!("{}{mark}", short(promise.found)));
    let cell = match promise.found {
        Verdict::Kept => cell.fg(Color::Green),
        Verdict::Broken => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Verdict::Vacuous => cell,
    };
    if promise.is_as_declared() { cell } else { cell.add_attribute(Attribute::Reverse) }
}

/// What the signs and numbers of [`promises`] mean.
#[must_use]
pub fn legend() -> String {
    let mut text = String::from(
        "yes  kept, in whatever order things happen      NO  broken, in some order\n\
         -    nothing ever happens that could break it   !   not as the entry declares\n\n",
    );
    let (left, right) = Promise::ALL.split_at(5);
    for (left, right) in left.iter().zip(right) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{left:<3}  {:<28}  {right:<3}  {}", left.title(), right.title());
    }
    text
}

/// What each scheme costs.
#[must_use]
pub fn costs(report: &Report, colour: bool) -> String {
    let mut table = table(colour, ["SCHEME", "COPIES", "REFAULTS", "BESIDES"]);
    for scheme in &report.schemes {
        let Costs { copies, refaults, .. } = scheme.costs;
        table.add_row([scheme.name.clone(), number(copies), number(refaults), phrases(&scheme.costs)]);
    }
    text(&table)
}

/// What the columns of [`costs`] mean.
#[must_use]
pub fn costs_legend() -> &'static str {
    "Copies: by the CPU, of each byte that a peer writes. Refaults: by the device,\n\
     for each block that is written back while it is registered. A half write: one\n\
     that was never committed. Waits: for a holder. Refuses: legitimate work.\n"
}

/// With at most two digits behind the point.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A line each; what goes on in the next line is indented.
fn phrases(costs: &Costs) -> String {
    let wrapped = |text: String| fill(&text, Options::new(PHRASE).subsequent_indent("  "));
    let lines: Vec<String> = costs.phrases().map(wrapped).collect();
    if lines.is_empty() { "-".to_owned() } else { lines.join("\n") }
}

/// Without lines, and with two spaces between columns.
fn table(colour: bool, headers: impl IntoIterator<Item = &'static str>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(COLUMNS);
    table.set_header(headers);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

fn text(table: &Table) -> String {
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn each_scheme_has_its_verdicts_in_order_and_what_is_not_declared_is_marked() {
        let table = promises(&sample::report(), false);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "SCHEME                P1   P2   P3   P4   P5   P6   P7   P8   P9   P10");
        assert_eq!(lines[2], "break_layouts         NO   yes  yes  yes  NO!  -    yes  yes  yes  yes");
        assert_eq!(table.matches('!').count(), 1, "{table}");
    }

    #[test]
    fn a_phrase_that_goes_on_in_the_next_line_is_indented_and_none_is_a_dash() {
        let table = costs(&sample::report(), false);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "naive                 0       0         -");
        assert_eq!(lines[2], "break_layouts         0       0         waits: a truncate for the holder,");
        assert_eq!(lines[3], "                                          for ever");
        assert!(table.contains("leasehold             1.5     0.25      kills a holder"), "{table}");
    }

    #[test]
    fn numbers_have_no_needless_digits() {
        for (value, text) in [(0.0, "0"), (1.0, "1"), (10.0, "10"), (0.25, "0.25"), (1.0 / 3.0, "0.33")] {
            assert_eq!(number(value), text);
        }
    }
}
