//! The report of all kernels: on the terminal, and as the page `docs/rdma-into-files.md`, with its HTML beside it.
//!
//! Most of the page is written by hand. Between marks stands what was measured, and what the checker shows of the same
//! failures; both are written anew.

use super::super::crash::Crash;
use super::super::output;
use super::{FILESYSTEMS, Found};
use anyhow::{Context as _, Result, ensure};
use pulldown_cmark::{Options, Parser, html};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/rdma-into-files.md");

/// How the HTML looks; nothing is loaded from anywhere.
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}\
    pre{background:#f5f5f5;padding:.8rem;overflow-x:auto;font-size:13px;line-height:1.3}\
    code{background:#f5f5f5}table{border-collapse:collapse;margin:1rem 0;font-size:14px;display:block;overflow-x:auto}\
    td,th{border:1px solid #ccc;padding:.25rem .6rem;text-align:left}th{background:#f5f5f5}\
    td strong{color:#b00020}h2{margin-top:2.5rem}";

/// A table of the page: its mark, the group of its rows, and which of them.
struct Table {
    mark: &'static str,
    group: &'static str,
    takes: fn(&str) -> bool,
}

const TABLES: [Table; 6] = [
    Table {
        mark: "writes",
        group: "regions",
        takes: |id| !id.starts_with("then-") && !id.starts_with("read-"),
    },
    Table { mark: "reads", group: "regions", takes: |id| id.starts_with("read-") },
    Table { mark: "durable", group: "regions", takes: |id| id.starts_with("then-") },
    Table { mark: "accepted", group: "pins", takes: |_| true },
    Table { mark: "held", group: "held", takes: |_| true },
    Table { mark: "races", group: "races", takes: |_| true },
];

/// The promises whose shortest failing run the page shows.
const PROMISES: [&str; 5] = ["P1", "P2", "P3", "P8", "P9"];

/// All of it in 80 columns: what was seen of how many, in plain files and in the store.
pub fn print(found: &[Found]) {
    println!("{:<20}{:<12}{:<26}LEASEHOLD'S STORE", "KERNEL", "FILESYSTEM", "FILES WITH LIVE DMA");
    for found in found {
        let count = |of_store: bool, seen: bool| {
            let tried = |row: &&Value| match row["verdict"].as_str() {
                Some("seen") => true,
                Some("not-seen") => !seen,
                _ => false,
            };
            found.rows.iter().filter(|row| (row["group"] == "store") == of_store).filter(tried).count()
        };
        let plain = format!("{} of {} hazards seen", count(false, true), count(false, false));
        let store = format!("{} of {}", count(true, true), count(true, false));
        println!("{:<20}{:<12}{plain:<26}{store}", found.kernel.trim_end_matches("-amd64"), found.filesystem);
    }
}

/// Writes the page anew.
pub fn write(found: &[Found], crashes: &[Crash], leasehold: &Path) -> Result<()> {
    let mut blocks = Vec::new();
    let mut kernels: Vec<&str> = found.iter().map(|found| &*found.kernel).collect();
    kernels.dedup();
    let date = output(Command::new("date").args(["-u", "+%F"]))?;
    let when = format!(
        "Measured on {} by `cargo xtask lab --only hazards`: {}, each in QEMU, with soft-RoCE (rdma_rxe).",
        date.trim(),
        kernels.iter().map(|kernel| format!("Linux {kernel}")).collect::<Vec<_>>().join(" and ")
    );
    blocks.push(("when", when));
    for table in &TABLES {
        let tables: Vec<String> = kernels.iter().map(|kernel| table.markdown(found, kernel)).collect();
        blocks.push((table.mark, tables.join("\n\n")));
    }
    let mut lines = vec![
        "| kernel | filesystem | the second fsync | of the file lost | the store, with a commit that was synced |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    lines.extend(crashes.iter().map(|crash| {
        let Crash { kernel, filesystem, told, lost, store } = crash;
        match told.as_str() {
            "refused" => format!("| {kernel} | {filesystem} | the region is refused | | {store} |"),
            _ => format!("| {kernel} | {filesystem} | {told} | **{lost}** | {store} |"),
        }
    }));
    blocks.push(("crash", lines.join("\n")));
    let traces = output(Command::new(leasehold).args(["check", "naive"]))?;
    for promise in PROMISES {
        blocks.push((promise, format!("```text\n{}\n```", trace(&traces, promise)?)));
    }
    put(&blocks)
}

/// Writes these blocks of the page anew, each by its mark, and the HTML.
pub fn put(blocks: &[(&str, String)]) -> Result<()> {
    let mut page = std::fs::read_to_string(PAGE).with_context(|| format!("cannot read {PAGE}"))?;
    for (mark, text) in blocks {
        replace(&mut page, mark, text)?;
    }
    std::fs::write(PAGE, &page).with_context(|| format!("cannot write {PAGE}"))?;
    let mut body = String::new();
    html::push_html(&mut body, Parser::new_ext(&page, Options::ENABLE_TABLES));
    let title = page.lines().next().unwrap_or_default().trim_start_matches("# ");
    let document = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n{body}</html>\n"
    );
    let file = Path::new(PAGE).with_extension("html");
    std::fs::write(&file, document).with_context(|| format!("cannot write {}", file.display()))
}

impl Table {
    fn markdown(&self, found: &[Found], kernel: &str) -> String {
        let of_kernel: Vec<&Found> = found.iter().filter(|found| found.kernel == kernel).collect();
        let mut lines = vec![
            format!("| Linux {kernel} | {} |", FILESYSTEMS.join(" | ")),
            "|---".repeat(1 + FILESYSTEMS.len()) + "|",
        ];
        let rows = of_kernel.first().map_or(&[][..], |found| &found.rows);
        for row in rows.iter().filter(|row| row["group"] == self.group) {
            let id = row["id"].as_str().unwrap_or_default();
            if !(self.takes)(id) {
                continue;
            }
            let cells = FILESYSTEMS.map(|filesystem| {
                let here = of_kernel.iter().find(|found| found.filesystem == filesystem);
                here.map_or_else(String::new, |found| both(found, self.group, id))
            });
            let what = row["what"].as_str().unwrap_or_default();
            lines.push(format!("| {what} (`{id}`) | {} |", cells.join(" | ")));
        }
        lines.join("\n")
    }
}

/// A cell: what was seen with a plain file, and in the store under the same operation.
fn both(found: &Found, group: &str, id: &str) -> String {
    let row = |group: &str, id: &str| {
        found.rows.iter().find(|row| row["group"] == group && row["id"] == id).map(cell).unwrap_or_default()
    };
    // Half-written blocks do not match their checksums.
    let in_store = row("store", if id == "torn" { "checksums" } else { id });
    match in_store.is_empty() || group == "races" {
        true => row(group, id),
        false => format!("{} / {in_store}", row(group, id)),
    }
}

fn cell(row: &Value) -> String {
    match row["verdict"].as_str() {
        Some("seen") => format!("**{} of {}**", row["times"], row["tries"]),
        Some("not-seen") => format!("0 of {}", row["tries"]),
        Some("control") => (if row["accepted"] == true { "yes" } else { "no" }).to_owned(),
        Some("not-applicable") if row["why"].as_str().is_some_and(|why| why.contains("refused as RDMA")) => {
            "refused".to_owned()
        }
        Some("not-applicable") => "n/a".to_owned(),
        _ if row["why"].as_str().is_some_and(|why| why.contains("fsync fails")) => "fsync fails".to_owned(),
        _ => "error".to_owned(),
    }
}

/// The shortest run that breaks a promise, as `leasehold check` shows it.
fn trace(text: &str, promise: &str) -> Result<String> {
    let head = format!("naive breaks {promise},");
    let end = format!("{promise} is broken:");
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with(&head)).collect();
    let last = lines.iter().position(|line| line.starts_with(&end));
    let last = last.with_context(|| format!("`leasehold check naive` shows no run that breaks {promise}"))?;
    let rest = lines[last..].iter().take_while(|line| !line.is_empty()).count();
    Ok(lines[..last + rest].join("\n"))
}

/// Puts something between the marks of this name.
fn replace(page: &mut String, name: &str, text: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- begin {name}: written by `cargo xtask lab`; do not edit -->\n"), {
        format!("<!-- end {name} -->")
    });
    let start = page.find(&begin).with_context(|| format!("{PAGE} lacks the mark {begin:?}"))? + begin.len();
    let stop = page.find(&end).with_context(|| format!("{PAGE} lacks the mark {end:?}"))?;
    ensure!(start <= stop, "{PAGE}: the marks of {name} are in the wrong order");
    page.replace_range(start..stop, &format!("\n{text}\n\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_two_marks_is_replaced_and_nothing_else() {
        let mut page =
            "a\n<!-- begin x: written by `cargo xtask lab`; do not edit -->\nold\n<!-- end x -->\nb"
                .to_owned();
        replace(&mut page, "x", "new").unwrap();
        replace(&mut page, "x", "newer").unwrap();
        assert!(
            page.contains("newer")
                && !page.contains("old")
                && page.starts_with("a\n")
                && page.ends_with("\nb")
        );
        assert!(replace(&mut page, "y", "").is_err());
    }

    #[test]
    fn a_trace_goes_from_its_title_to_what_is_broken() {
        let text =
            "naive breaks P1, x\n1\n\nP1 is broken: it\n  is\n\nnaive breaks P2, y\n2\nP2 is broken: too";
        assert_eq!(trace(text, "P1").unwrap(), "naive breaks P1, x\n1\n\nP1 is broken: it\n  is");
        assert_eq!(trace(text, "P2").unwrap(), "naive breaks P2, y\n2\nP2 is broken: too");
        assert!(trace(text, "P3").is_err());
    }
}
