//! How a probe's report looks to people: in 80 columns, with colours only where they are wanted.

use crate::command::show;
use comfy_table::{Attribute, Cell, Color, ColumnConstraint, Width};
use leasehold_host::probe::{Group, Place, Row, Verdict};

/// How wide the columns are, with the space behind each: 80 in all.
const WIDTHS: [u16; 3] = [30, 16, 34];

pub(super) fn text(place: &Place, rows: &[Row]) -> String {
    let mut parts = vec![heading(place)];
    for group in Group::ALL {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.group == group).collect();
        if !rows.is_empty() {
            parts.push(format!("{}\n{}", wrapped(title(group)), table(&rows)));
        }
    }
    parts.push(meaning(rows));
    parts.join("\n\n")
}

fn heading(place: &Place) -> String {
    let Place { directory, filesystem, source, mount_point, kernel } = place;
    let text = format!(
        "DMA into files in {}: {filesystem} ({source} on {}), Linux {kernel}",
        directory.display(),
        mount_point.display()
    );
    wrapped(&show::name(&text))
}

fn wrapped(text: &str) -> String {
    show::wrapped(text, "").join("\n")
}

fn title(group: Group) -> &'static str {
    match group {
        Group::Pins => "LONG-TERM PINS: what memory can be registered for long (io_uring, RDMA)?",
        Group::Held => {
            "DMA UNDER WAY: an O_DIRECT read into a shared mapping of the file, of 64 pages, \
             held until something was done to the file. The read then reports success."
        }
        Group::Regions => {
            "MEMORY REGIONS: something is done to the file while a mapping of it is memory of an RDMA \
             device; then the device writes or reads all of it, and reports success."
        }
        Group::Races => "RACES: the same reads from a real file, against whatever happens to meet them",
        Group::Store => {
            "LEASEHOLD'S STORE in the same place: a remote writer holds a lease and writes by \
             RDMA, while somebody else does this"
        }
    }
}

fn table(rows: &[&Row]) -> String {
    let mut table = show::table(&["HAZARD", "VERDICT", "NUMBERS"]);
    let colour = show::has_colour();
    for row in rows {
        let verdict = Cell::new(verdict(row));
        let verdict = match row.verdict {
            Verdict::Seen { .. } if colour => verdict.fg(Color::Red).add_attribute(Attribute::Bold),
            Verdict::NotSeen { .. } if colour => verdict.fg(Color::Green),
            _ => verdict,
        };
        table.add_row([Cell::new(&row.what), verdict, Cell::new(details(row))]);
    }
    for (column, width) in table.column_iter_mut().zip(WIDTHS) {
        column.set_padding((0, 2)).set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
    }
    show::text(&table)
}

fn verdict(row: &Row) -> &'static str {
    match row.verdict {
        Verdict::Seen { .. } => "SEEN",
        Verdict::NotSeen { .. } => "not seen",
        Verdict::Control { accepted: true } => "accepted",
        Verdict::Control { accepted: false } => "refused",
        Verdict::NotApplicable { .. } => "not applicable",
        Verdict::CouldNot { .. } => "could not try",
    }
}

fn details(row: &Row) -> String {
    let numbers = match &row.verdict {
        Verdict::Seen { times, tries, unit } => format!("{times} of {tries} {unit}"),
        Verdict::NotSeen { tries, unit } => format!("0 of {tries} {unit}"),
        Verdict::Control { .. } => String::new(),
        Verdict::NotApplicable { why } | Verdict::CouldNot { why } => why.clone(),
    };
    match (numbers.as_str(), row.note.as_str()) {
        (_, "") => numbers,
        ("", note) => note.to_owned(),
        (numbers, note) => format!("{numbers}; {note}"),
    }
}

/// What it comes to, and what to do.
fn meaning(rows: &[Row]) -> String {
    let seen = |groups: &[Group]| {
        rows.iter()
            .filter(|row| groups.contains(&row.group) && row.verdict.is_seen())
            .map(|row| row.id.as_str())
            .collect::<Vec<_>>()
    };
    let mut text = String::from("What this means. ");
    let here = seen(&[Group::Pins, Group::Held, Group::Regions, Group::Races]);
    if here.contains(&"pin-shared") || here.contains(&"pin-rdma") {
        text += "This kernel lets memory of files be registered for long, and forgets what is written there after the \
                 first writeback: do not register mappings of files here. ";
    } else if rows.iter().any(|row| row.id == "pin-shared" && matches!(row.verdict, Verdict::NotSeen { .. }))
    {
        text += "This kernel refuses to register mapped files for long, so RDMA and io_uring cannot do that to them. ";
    }
    let lost = [
        "truncate",
        "punch",
        "zero",
        "collapse",
        "direct-write",
        "clone-onto",
        "write-after-clean",
        "race-flush",
    ];
    if here.iter().any(|id| lost.contains(id)) {
        text += "A short DMA into a mapped file can be lost, though the read reported success, if something else \
                 changes the file meanwhile: keep other writers away, or read into memory of no file and write it. ";
    }
    if here.iter().any(|id| id.starts_with("read-")) {
        text += "Remote reads of a mapped file get its old bytes once somebody else has changed it: register it anew after \
                 each change. ";
    }
    let copies = ["clone", "copy", "race-clone", "frozen"];
    if here.iter().any(|id| copies.contains(id)) {
        text += "Copies and snapshots that are taken while DMA is under way change afterwards, silently: stop DMA \
                 first. ";
    }
    let checksums = ["race-checksums", "write-from-changing"];
    if here.iter().any(|id| checksums.contains(id)) {
        text += "Checksums break, and the blocks cannot be read any more (EIO). ";
    }
    if here.is_empty() {
        text += "No hazard was seen in these tries; for the races, that is no proof. ";
    }
    let store = seen(&[Group::Store]);
    if !store.is_empty() {
        text += "Leasehold's own store failed its promises: that is a bug, please report it with --json. ";
    } else if rows
        .iter()
        .any(|row| row.group == Group::Store && matches!(row.verdict, Verdict::NotSeen { .. }))
    {
        text += "Leasehold's store went through the same without one. ";
    }
    text += "docs/probe.md explains each row; `leasehold audit` finds what on this host does such DMA, or breaks it.";
    wrapped(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            directory: "/mnt/data".into(),
            filesystem: "xfs".to_owned(),
            source: "/dev/vdb".to_owned(),
            mount_point: "/mnt".into(),
            kernel: "6.18.44".to_owned(),
        }
    }

    #[test]
    fn every_line_fits_in_80_columns_and_has_no_escape_sequences_without_a_terminal() {
        let why =
            "even anonymous memory is refused (ENOMEM): no io_uring here, or RLIMIT_MEMLOCK is too small";
        let mut rows = Vec::new();
        for group in Group::ALL {
            for verdict in [
                Verdict::counted(10, 10, "tries"),
                Verdict::counted(0, 123_456, "pages"),
                Verdict::NotApplicable { why: why.to_owned() },
                Verdict::CouldNot { why: why.to_owned() },
                Verdict::Control { accepted: true },
            ] {
                let what = "O_DIRECT write of changing memory: bad checksums";
                rows.push(
                    Row::new(group, "clone", what, verdict).with("640 of 640 pages: 320 zeros, 320 torn"),
                );
            }
        }
        let text = text(&place(), &rows);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn the_meaning_speaks_of_what_was_seen_and_of_nothing_else() {
        let row = |id: &str, times| Row::new(Group::Held, id, "", Verdict::counted(times, 10, "tries"));
        let text = meaning(&[row("punch", 10), row("clone", 0)]).replace('\n', " ");
        assert!(text.contains("can be lost"), "{text}");
        assert!(!text.contains("Copies") && !text.contains("old bytes"), "{text}");
        let read = Row::new(Group::Regions, "read-punch", "", Verdict::counted(10, 10, "tries"));
        let text = meaning(&[read, row("punch", 0)]).replace('\n', " ");
        assert!(text.contains("old bytes") && !text.contains("can be lost"), "{text}");
        let text = meaning(&[row("punch", 0), row("clone", 0)]).replace('\n', " ");
        assert!(text.contains("No hazard was seen"), "{text}");
    }
}
