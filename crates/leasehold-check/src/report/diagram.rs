//! A trace as a sequence diagram in plain text, to be pasted into mails: ASCII, at most 80 columns.

use super::layout::{COLUMNS, Layout, Part};
use super::{PromiseReport, SchemeReport, Trace};
use std::fmt::Write as _;
use textwrap::{Options, fill};

/// The diagram of a broken promise with all that one must know to read it, or nothing if it is not broken.
#[must_use]
pub fn broken(scheme: &SchemeReport, promise: &PromiseReport) -> Option<String> {
    let trace = promise.trace.as_ref()?;
    let (name, title) = (promise.promise.name(), promise.promise.title());
    let headline = fill(&format!("{} breaks {name}, {title}", scheme.name), COLUMNS);
    let world = fill(&format!("World: {}", trace.world), Options::new(COLUMNS).subsequent_indent("  "));
    let broken =
        fill(&format!("{name} is broken: {}", trace.broken), Options::new(COLUMNS).subsequent_indent("  "));
    Some(format!("{headline}\n{world}\n\n{}\n{broken}\n", lanes(trace)))
}

/// Only the lanes and what passes between them.
#[must_use]
pub fn lanes(trace: &Trace) -> String {
    let layout = Layout::of(trace);
    let mut text = String::new();
    for row in 0..=layout.rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line(&layout, row));
    }
    text
}

fn line(layout: &Layout, row: usize) -> String {
    let mut cells = vec![' '; COLUMNS];
    for lane in &layout.lanes {
        if row >= layout.head {
            cells[lane.column] = '|';
        } else if let Some(name) = lane.name.get(row) {
            write(&mut cells, lane.column.saturating_sub(name.chars().count() / 2), name);
        }
    }
    for part in &layout.parts {
        match part {
            Part::Number { row: at, number } if *at == row => write(&mut cells, 0, &number.to_string()),
            Part::Text { row: at, column, text } if *at == row => {
                write(&mut cells, column.saturating_sub(1), &format!(" {text} "));
            }
            Part::Arrow { row: at, from, to } if *at == row => {
                cells[from.min(to) + 1..*from.max(to)].fill('-');
                if from < to {
                    cells[to - 1] = '>';
                } else {
                    cells[to + 1] = '<';
                }
            }
            Part::Mark { row: at, column } if *at == row => cells[*column] = '*',
            _ => {}
        }
    }
    cells.iter().collect::<String>().trim_end().to_owned()
}

/// What does not fit is cut off: there is nothing but space at the edges.
fn write(cells: &mut [char], column: usize, text: &str) {
    for (cell, c) in cells.iter_mut().skip(column).zip(text.chars()) {
        *cell = c;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Step, sample};

    #[test]
    fn a_trace_is_lanes_with_numbered_arrows_and_notes() {
        let expected = "
   breaker             filesystem              holder
      |                     |                     |
1     |                     |   registers block 0 |
      |                     |<--------------------|
2     | truncate to 0       |                     |
      |-------------------->|                     |
3     |                     * waits until the pin is gone
4     |                     |                     * never lets go
      |                     |                     |
";
        assert_eq!(format!("\n{}", lanes(&sample::for_ever())), expected);
    }

    #[test]
    fn a_broken_promise_is_shown_whole_from_the_world_to_what_is_wrong() {
        let report = sample::report();
        let (scheme, promise) = report.undeclared().next().unwrap();
        let text = broken(scheme, promise).unwrap();
        assert!(
            text.starts_with("break_layouts breaks P5, bounded breaks\nWorld: DAX\n\n   breaker "),
            "{text}"
        );
        assert!(text.ends_with("\n\nP5 is broken: the truncate waits for ever\n"), "{text}");
        assert_eq!(broken(scheme, &scheme.promises[1]), None);
    }

    #[test]
    fn long_labels_are_wrapped_and_every_word_of_them_is_there_in_order() {
        let trace = sample::stray();
        let text = lanes(&trace);
        let mut rest = text.as_str();
        for word in trace.steps.iter().flat_map(|step| step.what.split(' ')) {
            let at = rest.find(word).unwrap_or_else(|| panic!("{word:?} is not in its turn in\n{text}"));
            rest = &rest[at + word.len()..];
        }
    }

    #[test]
    fn an_arrow_goes_from_its_sender_to_its_receiver_and_no_further() {
        let text = lanes(&sample::stray());
        let names = text.lines().next().unwrap();
        let centre = |name: &str| names.find(name).unwrap() + name.len() / 2;
        let arrow = text.lines().nth(3).unwrap();
        assert_eq!(arrow.find('<'), Some(centre("key/NIC") + 1), "{text}");
        assert_eq!(arrow.rfind('-'), Some(centre("holder") - 1), "{text}");
        assert_eq!(arrow.chars().nth(centre("peer")), Some('|'), "{text}");
    }

    #[test]
    fn whatever_is_in_a_trace_is_shown_in_at_most_80_columns() {
        for lanes_many in 1..=12 {
            let mut trace = sample::stray();
            trace.lanes = ["an_unusually_long_name_of_a_lane", "b", "filesystem", "key/NIC"].repeat(3)
                [..lanes_many]
                .to_vec();
            trace.steps = (0..120)
                .map(|step| Step {
                    from: step * 7 % lanes_many,
                    to: step * 5 % lanes_many,
                    what: "x".repeat(step) + " and " + &"words ".repeat(step % 20),
                })
                .collect();
            let text = lanes(&trace);
            for number in 1..=trace.steps.len() {
                assert!(text.lines().any(|line| line.starts_with(&format!("{number} "))), "{number}\n{text}");
            }
            // Two letters that no lane has in its name: nothing is cut off.
            for letter in ['x', 'w'] {
                let there = trace.steps.iter().map(|step| step.what.matches(letter).count()).sum::<usize>();
                assert_eq!(text.matches(letter).count(), there, "{letter} of {lanes_many} lanes\n{text}");
            }
            let longest = text.lines().max_by_key(|line| line.len()).unwrap();
            assert!(longest.len() <= 80, "{longest}");
        }
    }

    #[test]
    fn a_lane_that_takes_no_part_is_left_out() {
        assert!(!lanes(&sample::for_ever()).contains("disk"));
    }
}
