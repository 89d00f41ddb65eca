//! The tables in Markdown, and the part of a page that they are: between two comments, so that the page around them is
//! written by hand and they are not.

use super::table::number;
use super::{Report, SchemeReport, Verdict, short};
use leasehold_core::promise::Promise;
use std::fmt::Write as _;

/// Where the generated part begins.
pub const BEGIN: &str = "<!-- begin: written by `leasehold check --update-docs`; do not edit -->";
/// Where it ends.
pub const END: &str = "<!-- end -->";

/// A page that has no place for the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no place for the tables: the page needs the line\n{BEGIN}\nand behind it the line\n{END}\nonce each"
)]
pub struct NoPlace;

/// The page with the tables of this report.
///
/// # Errors
/// If the page has no place for them, or more than one.
pub fn replaced(page: &str, report: &Report) -> Result<String, NoPlace> {
    let (before, rest) = page.split_once(BEGIN).ok_or(NoPlace)?;
    let (_, after) = rest.split_once(END).ok_or(NoPlace)?;
    if before.contains(END) || rest.contains(BEGIN) || after.contains(END) {
        return Err(NoPlace);
    }
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", tables(report)))
}

/// Whether the page says something else than this report.
///
/// # Errors
/// If the page has no place for the tables.
pub fn is_stale(page: &str, report: &Report) -> Result<bool, NoPlace> {
    Ok(replaced(page, report)? != page)
}

/// What each scheme keeps, what it costs, and who proposed it. Nothing in it depends on the machine or the time that
/// was taken.
#[must_use]
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    row(
        &mut text,
        ["scheme".to_owned()].into_iter().chain(Promise::ALL.map(|promise| promise.name().to_owned())),
    );
    rule(&mut text, 1 + Promise::ALL.len());
    for scheme in &report.schemes {
        let verdicts = scheme.promises.iter().map(|promise| verdict(promise.found).to_owned());
        row(&mut text, [name(scheme)].into_iter().chain(verdicts));
    }
    let legend = "yes: kept, in whatever order things happen. **NO**: broken, in some order. -: nothing ever happens \
                  that could break it.";
    let _ = writeln!(text, "\n{legend}\n");

    row(
        &mut text,
        ["scheme", "copies", "refaults", "waits", "refuses", "kills", "half writes", "one commit"]
            .map(str::to_owned),
    );
    rule(&mut text, 8);
    for scheme in &report.schemes {
        let costs = &scheme.costs;
        let [kills, half, once] = [costs.kills, costs.half_writes, costs.one_commit]
            .map(|yes| if yes { "yes" } else { "no" }.to_owned());
        let (waits, refuses) = (phrases(&costs.waits), phrases(&costs.refuses));
        let (copies, refaults) = (number(costs.copies), number(costs.refaults));
        row(&mut text, [name(scheme), copies, refaults, waits, refuses, kills, half, once]);
    }

    text.push('\n');
    row(&mut text, ["scheme", "idea", "sources"].map(str::to_owned));
    rule(&mut text, 3);
    for scheme in &report.schemes {
        let sources = scheme.sources.iter().map(|source| format!("{}, {}", source.author, source.date));
        row(&mut text, [name(scheme), scheme.idea.to_owned(), sources.collect::<Vec<_>>().join("; ")]);
    }
    let _ = writeln!(text, "\nBounds of the worlds: {}.", report.bounds.trim_end_matches('.'));
    text
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Broken => "**NO**",
        other => short(other),
    }
}

fn name(scheme: &SchemeReport) -> String {
    format!("`{}`", scheme.name)
}

fn phrases(phrases: &[impl ToString]) -> String {
    let phrases: Vec<String> = phrases.iter().map(ToString::to_string).collect();
    if phrases.is_empty() { "-".to_owned() } else { phrases.join("; ") }
}

/// What would end a cell, or be taken for a tag, is escaped.
fn row(text: &mut String, cells: impl IntoIterator<Item = String>) {
    for cell in cells {
        let _ = write!(text, "| {} ", cell.replace('|', "\\|").replace('<', "&lt;"));
    }
    text.push_str("|\n");
}

fn rule(text: &mut String, columns: usize) {
    text.push_str(&"|---".repeat(columns));
    text.push_str("|\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn page() -> String {
        format!("# Schemes\n\nBefore.\n\n{BEGIN}\nwritten earlier\n{END}\n\nAfter.\n")
    }

    #[test]
    fn only_what_is_between_the_comments_is_replaced() {
        let page = replaced(&page(), &sample::report()).unwrap();
        assert!(page.starts_with("# Schemes\n\nBefore.\n\n<!-- begin"), "{page}");
        assert!(page.ends_with("<!-- end -->\n\nAfter.\n"), "{page}");
        assert!(!page.contains("earlier"), "{page}");
        assert!(page.contains(
            "\n| `break_layouts` | **NO** | yes | yes | yes | **NO** | - | yes | yes | yes | yes |\n"
        ));
        assert!(
            page.contains(
                "| `break_layouts` | 0 | 0 | a truncate for the holder, for ever | - | no | no | no |\n"
            ),
            "{page}"
        );
    }

    #[test]
    fn a_page_is_stale_as_soon_as_a_verdict_a_cost_or_a_source_is_another() {
        let report = sample::report();
        assert_eq!(is_stale(&page(), &report), Ok(true));
        let page = replaced(&page(), &report).unwrap();
        assert_eq!(is_stale(&page, &report), Ok(false));
        let changes: [fn(&mut Report); 5] = [
            |report| report.schemes[0].promises[3].found = Verdict::Kept,
            |report| report.schemes[3].costs.copies = 1.0,
            |report| report.schemes[2].sources = &[],
            |report| report.bounds.push_str(", and more"),
            |report| report.schemes.truncate(3),
        ];
        for change in changes {
            let mut other = report.clone();
            change(&mut other);
            assert_eq!(is_stale(&page, &other), Ok(true));
        }
    }

    #[test]
    fn a_page_is_not_stale_because_another_machine_was_slower() {
        let mut report = sample::report();
        let page = replaced(&page(), &report).unwrap();
        report.schemes[0].explored.elapsed *= 2;
        report.schemes[0].explored.frontier_bytes *= 2;
        assert_eq!(is_stale(&page, &report), Ok(false));
    }

    #[test]
    fn a_page_without_a_place_or_with_two_is_refused() {
        let orders: [&[&str]; 7] = [
            &[],
            &[BEGIN],
            &[END],
            &[END, BEGIN],
            &[END, BEGIN, END],
            &[BEGIN, END, END],
            &[BEGIN, BEGIN, END],
        ];
        for page in orders.map(<[&str]>::concat) {
            assert_eq!(is_stale(&page, &sample::report()), Err(NoPlace), "{page}");
        }
    }

    #[test]
    fn what_is_in_a_cell_stays_in_it() {
        let mut report = sample::report();
        report.schemes[0].idea = "a|b <i>";
        let rows = tables(&report);
        assert!(rows.contains("| a\\|b &lt;i> |"), "{rows}");
    }
}
