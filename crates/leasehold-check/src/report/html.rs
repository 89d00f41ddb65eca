//! The report as one page that needs nothing else: no network, no script, no font. The diagrams are SVG, arranged as
//! those in plain text.

use super::layout::{Layout, Part};
use super::table::number;
use super::{PromiseReport, Report, SchemeReport, Trace, diagram, explored, word};
use askama::Template;
use leasehold_core::promise::Promise;

/// A cell of the layout, in pixels.
const CELL: usize = 8;
const ROW: usize = 18;
/// Between two steps.
const SPACE: usize = 8;
/// The length of an arrow's head.
const HEAD: usize = 9;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    report: &'a Report,
    explored: String,
}

#[derive(Template)]
#[template(path = "diagram.svg")]
struct Diagram {
    id: String,
    title: String,
    steps: Vec<String>,
    layout: Layout,
    width: usize,
    height: usize,
}

/// The whole page.
///
/// # Panics
/// Never: a template that takes what it is given cannot fail.
#[must_use]
pub fn page(report: &Report) -> String {
    let page = Page { report, explored: explored::sentences(report) };
    page.render().expect("the page takes any report")
}

/// The name of a scheme's part of the page.
fn anchor(scheme: &SchemeReport) -> String {
    scheme.name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "-")
}

/// The name of the place that tells about one promise.
fn place(scheme: &SchemeReport, promise: &PromiseReport) -> String {
    format!("{}-{}", anchor(scheme), promise.promise)
}

fn svg(scheme: &SchemeReport, promise: &PromiseReport, trace: &Trace) -> String {
    let layout = Layout::of(trace);
    let diagram = Diagram {
        id: place(scheme, promise) + "-diagram",
        title: format!("{} breaks {}, step by step", scheme.name, promise.promise),
        steps: trace.steps.iter().enumerate().map(|(index, step)| trace.sentence(index, step)).collect(),
        width: (layout.columns() + 1) * CELL,
        height: (layout.rows + 1) * ROW + trace.steps.len() * SPACE,
        layout,
    };
    diagram.render().expect("a diagram takes any trace")
}

fn plain(scheme: &SchemeReport, promise: &PromiseReport) -> String {
    diagram::broken(scheme, promise).unwrap_or_default()
}

/// Where the cells of the layout are; templates have references only.
impl Diagram {
    /// The left edge of a cell.
    fn left(&self, column: &usize) -> usize {
        column * CELL
    }

    /// A lifeline.
    fn x(&self, column: &usize) -> usize {
        column * CELL + CELL / 2
    }

    /// The upper edge of a cell, with some space above each step.
    fn top(&self, row: &usize) -> usize {
        let begins = |part: &&Part| matches!(part, Part::Number { row: first, .. } if first <= row);
        row * ROW + self.layout.parts.iter().filter(begins).count() * SPACE
    }

    /// The line that text stands on.
    fn base(&self, row: &usize) -> usize {
        self.top(row) + 13
    }

    fn middle(&self, row: &usize) -> usize {
        self.top(row) + ROW / 2
    }

    /// Where an arrow's line ends and its head begins.
    fn before(&self, from: &usize, to: &usize) -> usize {
        if from < to { self.x(to) - HEAD } else { self.x(to) + HEAD }
    }

    /// From an arrow's point to the back of its head.
    fn back(&self, from: &usize, to: &usize) -> String {
        if from < to { format!("-{HEAD}") } else { HEAD.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use quick_xml::Reader;
    use quick_xml::events::{BytesStart, Event};
    use std::collections::BTreeSet;

    /// Every element, or a panic where the page is not well-formed.
    fn elements(page: &str) -> Vec<BytesStart<'static>> {
        let mut reader = Reader::from_str(page);
        reader.config_mut().check_end_names = true;
        let mut elements = Vec::new();
        let mut open = 0;
        loop {
            match reader.read_event().unwrap_or_else(|error| panic!("{error} at {}", reader.error_position()))
            {
                Event::Start(element) => {
                    open += 1;
                    elements.push(element.into_owned());
                }
                Event::Empty(element) => elements.push(element.into_owned()),
                Event::End(_) => open -= 1,
                Event::Text(text) => drop(text.xml_content().unwrap()),
                Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!(open, 0, "an element is not closed");
        elements
    }

    fn values(elements: &[BytesStart<'_>], name: &str) -> Vec<String> {
        let attributes = elements.iter().flat_map(|element| element.attributes());
        let named =
            attributes.map(Result::unwrap).filter(|attribute| attribute.key.as_ref() == name.as_bytes());
        named.map(|attribute| attribute.unescape_value().unwrap().into_owned()).collect()
    }

    #[test]
    fn the_page_is_well_formed_and_every_link_leads_to_one_place_in_it() {
        let elements = elements(&page(&sample::report()));
        let ids = values(&elements, "id");
        let places: BTreeSet<&String> = ids.iter().collect();
        assert_eq!(places.len(), ids.len(), "a name is given twice: {ids:?}");
        let links = values(&elements, "href");
        assert!(links.len() > 40, "{links:?}");
        for link in links {
            let place = link.strip_prefix('#').unwrap_or_else(|| panic!("{link} leads out of the page"));
            assert!(ids.iter().any(|id| id == place), "{link} leads nowhere");
        }
        for labels in values(&elements, "aria-labelledby") {
            assert!(labels.split(' ').all(|label| ids.iter().any(|id| id == label)), "{labels}");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = page(&sample::report());
        let elements = elements(&page);
        for name in ["script", "link", "img", "iframe", "object", "image", "use", "base"] {
            assert!(elements.iter().all(|element| element.name().as_ref() != name.as_bytes()), "{name}");
        }
        for what in ["http:", "https:", "//", "url(", "@import", "src=", "onclick"] {
            assert!(!page.contains(what), "{what}");
        }
    }

    #[test]
    fn every_broken_promise_has_a_diagram_with_its_steps_as_text() {
        let report = sample::report();
        let page = page(&report);
        assert_eq!(page.matches("<svg ").count(), 8);
        assert_eq!(page.matches("<desc ").count(), 8);
        assert!(
            page.contains("3. peer to key/NIC: RDMA Write: 4096 bytes, in two parts."),
            "no steps in words"
        );
        assert_eq!(page.matches("<circle ").count(), 7 * 2 + 2);
    }

    #[test]
    fn what_schemes_and_traces_say_is_text_and_never_markup() {
        let mut report = sample::report();
        report.schemes[0].name = "<b>&\"'".to_owned();
        report.schemes[0].promises[0].trace.as_mut().unwrap().steps[0].what = "</svg><script>".to_owned();
        let page = page(&report);
        elements(&page);
        assert!(!page.contains("<script") && !page.contains("<b>"), "markup came through");
    }

    #[test]
    fn verdicts_are_words_and_what_is_not_as_declared_is_said_first() {
        let page = page(&sample::report());
        let undeclared = "break_layouts P5</a> is broken; its entry says kept.";
        assert!(page.find(undeclared).unwrap() < page.find("<table").unwrap());
        for word in [">kept<", ">broken<", ">vacuous<"] {
            assert!(page.contains(word), "{word}");
        }
    }
}
