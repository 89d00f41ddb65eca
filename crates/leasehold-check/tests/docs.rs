//! The tables in the docs are what a check finds.

use leasehold_check::report::{Report, markdown};
use leasehold_check::{Options, check};
use std::fs;
use std::path::Path;

#[test]
fn the_tables_in_the_docs_are_what_a_check_finds() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schemes.md");
    fresh(&page, &check(&Options::default())).unwrap();
}

#[test]
fn a_page_whose_tables_are_not_what_was_found_is_named_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("schemes.md");
    assert!(fresh(&page, &report("small")).unwrap_err().contains("schemes.md: No such file"));
    fs::write(&page, "# Schemes\n").unwrap();
    assert!(fresh(&page, &report("small")).unwrap_err().contains("schemes.md: no place for the tables"));
    let empty = format!("{}\n{}\n", markdown::BEGIN, markdown::END);
    fs::write(&page, markdown::replaced(&empty, &report("small")).unwrap()).unwrap();
    fresh(&page, &report("small")).unwrap();
    let stale = fresh(&page, &report("large")).unwrap_err();
    assert!(stale.contains("schemes.md is stale; run: leasehold check --update-docs "), "{stale}");
}

/// Made up: a check of nothing.
fn report(bounds: &str) -> Report {
    Report { bounds: bounds.to_owned(), schemes: Vec::new() }
}

fn fresh(page: &Path, report: &Report) -> Result<(), String> {
    let name = page.display();
    let text = fs::read_to_string(page).map_err(|error| format!("{name}: {error}"))?;
    match markdown::is_stale(&text, report) {
        Ok(false) => Ok(()),
        Ok(true) => Err(format!("{name} is stale; run: leasehold check --update-docs {name}")),
        Err(error) => Err(format!("{name}: {error}")),
    }
}
