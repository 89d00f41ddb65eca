//! What a person who runs a check gets to read: the table first, then the costs, then what is broken and how.

use super::{PromiseReport, Report, SchemeReport, diagram, explored, table, word};
use leasehold_core::promise::Promise;
use textwrap::{Options, fill};

/// What to tell about each promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A sentence for each one that is broken.
    Sentences,
    /// The diagram of each one that is broken.
    Diagrams,
    /// Of these promises only: the diagram, or why there is none.
    Of(Vec<Promise>),
}

/// All of it, in at most 80 columns.
#[must_use]
pub fn text(report: &Report, detail: &Detail, colour: bool) -> String {
    let parts = [
        table::promises(report, colour),
        table::legend(),
        undeclared(report),
        table::costs(report, colour),
        table::costs_legend().to_owned(),
        details(report, detail),
        explored::text(report),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn undeclared(report: &Report) -> String {
    let line = |(scheme, promise): (&SchemeReport, &PromiseReport)| {
        let PromiseReport { promise, found, declared, reason, .. } = promise;
        let (name, found, declared) = (&scheme.name, word(*found), word(*declared));
        hanging(&format!("NOT AS DECLARED: {name} {promise} is {found}; its entry says {declared}: {reason}"))
    };
    report.undeclared().map(line).collect()
}

fn details(report: &Report, detail: &Detail) -> String {
    let broken = || report.promises().filter_map(|(scheme, promise)| diagram::broken(scheme, promise));
    match detail {
        Detail::Sentences => sentences(report),
        Detail::Diagrams => broken().collect::<Vec<_>>().join("\n"),
        Detail::Of(promises) => {
            let wanted = report.promises().filter(|(_, promise)| promises.contains(&promise.promise));
            let shown = wanted.map(|(scheme, promise)| {
                diagram::broken(scheme, promise).unwrap_or_else(|| without_diagram(scheme, promise))
            });
            shown.collect::<Vec<_>>().join("\n")
        }
    }
}

fn without_diagram(scheme: &SchemeReport, promise: &PromiseReport) -> String {
    let because = match promise.is_as_declared() {
        true => promise.reason.to_owned(),
        false => format!("but its entry says {}: {}", word(promise.declared), promise.reason),
    };
    let (promise, found) = (promise.promise, word(promise.found));
    hanging(&format!("{} {promise}, {}: {found}; {because}", scheme.name, promise.title()))
}

fn sentences(report: &Report) -> String {
    let mut text = String::new();
    let mut example = None;
    for (scheme, promise) in report.promises() {
        let Some(trace) = &promise.trace else { continue };
        let (name, promise, steps) = (&scheme.name, promise.promise, trace.steps.len());
        let s = if steps == 1 { "" } else { "s" };
        text += &hanging(&format!("{name} {promise}, in {steps} step{s}: {}", trace.broken));
        example.get_or_insert_with(|| format!("leasehold check {name} --promise {promise}"));
    }
    if let Some(example) = example {
        text += &hanging(&format!("To see how: {example}; all of them: leasehold check --traces"));
    }
    text
}

/// In lines of at most 80 columns, those after the first indented.
fn hanging(text: &str) -> String {
    fill(text, Options::new(80).subsequent_indent("  ")) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn of(detail: &Detail) -> String {
        text(&sample::report(), detail, false)
    }

    #[test]
    fn the_table_of_13_schemes_and_its_legend_are_the_first_screen() {
        let mut report = sample::report();
        report.schemes = (0..13).map(|_| report.schemes[0].clone()).collect();
        let text = text(&report, &Detail::Sentences, false);
        assert!(text.starts_with("SCHEME"), "{text}");
        // A terminal has 24 lines, and the prompt is in the last.
        let last = text.lines().nth(22).unwrap();
        assert!(last.starts_with("P5 ") && last.contains("P10 "), "{text}");
    }

    #[test]
    fn every_broken_promise_has_a_sentence_and_one_learns_how_to_see_more() {
        let text = of(&Detail::Sentences);
        assert_eq!(text.lines().filter(|line| line.contains(" steps: ")).count(), 8, "{text}");
        assert!(text.contains("break_layouts P5, in 4 steps: the truncate waits for ever\n"), "{text}");
        assert!(text.contains("leasehold check naive --promise P1; "), "{text}");
        assert!(!text.contains("---->"), "{text}");
    }

    #[test]
    fn diagrams_are_shown_of_what_was_asked_for_and_the_rest_is_explained() {
        assert_eq!(of(&Detail::Diagrams).matches("\nWorld: ").count(), 8);
        let text = of(&Detail::Of(vec![Promise::P5]));
        assert_eq!(text.matches("\nWorld: ").count(), 1, "{text}");
        assert!(text.contains("naive P5, bounded breaks: kept; made up: a live key"), "{text}");
    }

    #[test]
    fn what_is_not_as_declared_is_said_in_words() {
        let text = of(&Detail::Sentences);
        assert!(
            text.contains("NOT AS DECLARED: break_layouts P5 is broken; its entry says kept: "),
            "{text}"
        );
        assert_eq!(text.matches("NOT AS DECLARED").count(), 1, "{text}");
    }

    #[test]
    fn no_line_is_longer_than_80_columns_whatever_is_in_it() {
        let mut report = sample::report();
        for (index, scheme) in report.schemes.iter_mut().enumerate() {
            scheme.name = "long_name".repeat(3 + 4 * index);
            scheme.costs.copies = 1e9;
            scheme.explored.states *= 1_000_000;
            for promise in &mut scheme.promises {
                promise.reason =
                    "a_word_that_is_longer_than_the_line_that_it_is_in_and_has_no_spaces_at_all_in_it";
            }
        }
        report.bounds = "bound".repeat(40);
        for detail in [Detail::Sentences, Detail::Diagrams, Detail::Of(Promise::ALL.to_vec())] {
            let text = text(&report, &detail, false);
            let longest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
            assert!(longest.chars().count() <= 80, "{longest}");
        }
    }

    #[test]
    fn there_is_colour_only_where_it_is_wanted() {
        let report = sample::report();
        assert!(!of(&Detail::Sentences).contains('\u{1b}'));
        assert!(text(&report, &Detail::Sentences, true).contains("\u{1b}["));
    }
}
