//! The page in the docs is of today's catalogue.

use leasehold_host::audit::catalogue::CATALOGUE;
use leasehold_host::audit::markdown;
use std::fs;
use std::path::Path;

#[test]
fn the_findings_in_the_docs_are_those_of_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/audit.md");
    let page = fs::read_to_string(&path).unwrap();
    let today = markdown::replaced(&page).unwrap();
    let remedy = "run: leasehold audit --update-docs docs/audit.md";
    assert!(page == today, "docs/audit.md is stale; {remedy}");
    for entry in CATALOGUE {
        assert!(page.contains(&format!("| `{}` |", entry.id)), "{}; {remedy}", entry.id);
    }
}
