//! How data look: for people in 80 columns, for programs as JSON.

use crate::size::Size;
use anstream::{AutoStream, ColorChoice};
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use leasehold_client::{ByteRange, Evidence, Identity, convert, proto};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

/// The width of output that does not go to a terminal, and the least width of one that does.
const COLUMNS: u16 = 80;

/// Prints a line to standard output; a closed pipe is an error, not a panic.
pub(crate) fn line(text: impl std::fmt::Display) -> io::Result<()> {
    let text = text.to_string();
    let mut lines = text.split('\n');
    let first = lines.next().map(name).unwrap_or_default().into_owned();
    print(lines.fold(first, |text, line| text + "\n" + &name(line)))
}

fn print(text: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints one JSON document on one line.
pub(crate) fn json_line(value: &Value) -> io::Result<()> {
    print(value)
}

/// Prints one JSON document for people to look at, too.
pub(crate) fn json_document(value: &Value) -> io::Result<()> {
    print(format_args!("{value:#}"))
}

/// Whether colours can be used on standard output: on a terminal that has them, unless NO_COLOR or the like says no.
pub(crate) fn has_colour() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// Prints text that holds no names but ours, as it is, with its colours.
pub(crate) fn styled(text: &str) -> io::Result<()> {
    print(text)
}

/// A name as it can be shown: what it holds beside text must not reach the terminal.
pub(crate) fn name(text: &str) -> Cow<'_, str> {
    // Marks that turn the direction of what follows would let a name look like another one.
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if hidden(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// The text in lines of at most 80 columns, broken at spaces; longer words, such as paths, stay whole.
pub(crate) fn wrapped(text: &str, indent: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= COLUMNS.into() => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("{indent}{word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A table without lines, for at least 80 columns.
pub(crate) fn table(headers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let columns = if io::stdout().is_terminal() { table.width().unwrap_or(COLUMNS) } else { COLUMNS };
    table.set_width(columns.max(COLUMNS));
    table.set_header(headers.iter().copied());
    table
}

/// The table as text, without spaces at the ends of lines.
pub(crate) fn text(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// `1 file`, `2 files`, `2 directories`.
pub(crate) fn count(number: u64, what: &str) -> String {
    match what.strip_suffix('y') {
        _ if number == 1 => format!("1 {what}"),
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {what}s"),
    }
}

/// What a tree has.
pub(crate) fn tree(files: u64, directories: u64, links: u64) -> String {
    let [files, directories, links] = [(files, "file"), (directories, "directory"), (links, "link")]
        .map(|(number, what)| count(number, what));
    format!("{files}, {directories} and {links}")
}

/// `0..4MiB`, as short as it can be while exact.
pub(crate) fn range(range: ByteRange) -> String {
    match range.end() {
        u64::MAX => format!("{}..", Size(range.start())),
        end => format!("{}..{}", Size(range.start()), Size(end)),
    }
}

/// A range from the wire.
pub(crate) fn wire_range(field: Option<proto::Range>) -> String {
    convert::range(field).map_or_else(|_| "?".to_owned(), range)
}

/// A range for programs.
pub(crate) fn json_range(field: Option<proto::Range>) -> Value {
    field.map_or(Value::Null, |range| json!({ "start": range.start, "end": range.end }))
}

/// Who somebody is, in a sentence.
pub(crate) fn who(identity: &Identity) -> String {
    let Identity { host, pid, uid, program, evidence } = identity;
    let evidence = match evidence {
        Evidence::Verified => "verified",
        Evidence::Authenticated => "authenticated",
        Evidence::Claimed => "claimed",
    };
    format!("{program} (pid {pid}, uid {uid} on {host}, {evidence})")
}

/// Who somebody is, in a table. The server's host goes without saying, and only what it verified is on it for sure.
pub(crate) fn short(identity: Option<&proto::Identity>) -> String {
    match identity {
        None => "-".to_owned(),
        Some(who) if who.verified => format!("{}[{}]", who.program, who.pid),
        Some(who) if who.authenticated => format!("{}[{}]@{}", who.program, who.pid, who.host),
        Some(who) => format!("{}[{}]@{}?", who.program, who.pid, who.host),
    }
}

/// What the question mark of [`short`] means, if any of them has one.
pub(crate) const CLAIMED_LEGEND: &str = "? as the process says itself; not verified";

/// Somebody, for programs.
pub(crate) fn json_who(identity: Option<&proto::Identity>) -> Value {
    identity.map_or(Value::Null, |who| {
        json!({
            "host": who.host,
            "pid": who.pid,
            "uid": who.uid,
            "program": who.program,
            "verified": who.verified,
            "authenticated": who.authenticated,
        })
    })
}

/// A duration with three digits: `1.50 s`, `12.3 ms`, `450 us`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (value, unit) = match seconds {
        s if s >= 100.0 => return format!("{} s", s.round()),
        s if s >= 0.9995 => (s, "s"),
        s if s >= 0.000_999_5 => (s * 1e3, "ms"),
        s => return format!("{} us", (s * 1e6).round()),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// Milliseconds for programs.
pub(crate) fn json_ms(duration: Duration) -> Value {
    json!(duration.as_micros() as f64 / 1000.0)
}

/// A moment by the local clock: `2026-11-21 21:45:47`.
pub(crate) fn moment(time: SystemTime) -> String {
    zoned(time, "%Y-%m-%d %H:%M:%S")
}

/// The time of day, for events: `21:45:47.123`.
pub(crate) fn time_of_day(time: SystemTime) -> String {
    zoned(time, "%H:%M:%S%.3f")
}

fn zoned(time: SystemTime, format: &str) -> String {
    Timestamp::try_from(time)
        .map(|time| time.to_zoned(TimeZone::system()).strftime(format).to_string())
        .unwrap_or_else(|_| "?".to_owned())
}

/// A moment for programs: RFC 3339, UTC.
pub(crate) fn json_moment(time: SystemTime) -> Value {
    Timestamp::try_from(time).map_or(Value::Null, |time| json!(time.to_string()))
}

/// The same, of a field that may be absent.
pub(crate) fn json_some_moment(time: Option<prost_types::Timestamp>) -> Value {
    time.map_or(Value::Null, |time| json_moment(convert::time_in(Some(time))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        for (us, text) in [
            (0, "0 us"),
            (999, "999 us"),
            (1_000, "1.00 ms"),
            (12_345, "12.3 ms"),
            (999_400, "999 ms"),
            (999_600, "1.00 s"),
            (1_500_000, "1.50 s"),
            (61_000_000, "61.0 s"),
            (600_000_000, "600 s"),
        ] {
            assert_eq!(duration(Duration::from_micros(us)), text);
        }
    }

    #[test]
    fn ranges_are_short_and_exact() {
        assert_eq!(range(ByteRange::new(0, 4 << 20).unwrap()), "0..4MiB");
        assert_eq!(range(ByteRange::new(1, 4097).unwrap()), "1..4097");
        assert_eq!(range(ByteRange::from(8192)), "8KiB..");
    }

    #[test]
    fn what_is_only_claimed_is_marked() {
        let mut who = proto::Identity {
            host: "h".to_owned(),
            pid: 7,
            program: "p".to_owned(),
            verified: true,
            ..Default::default()
        };
        assert_eq!(short(Some(&who)), "p[7]");
        (who.verified, who.authenticated) = (false, true);
        assert_eq!(short(Some(&who)), "p[7]@h");
        who.authenticated = false;
        assert_eq!(short(Some(&who)), "p[7]@h?");
    }

    #[test]
    fn a_table_fits_in_80_columns() {
        let mut table = table(&["ONE", "TWO"]);
        table.add_row(["word ".repeat(30), "x".repeat(100)]);
        assert!(text(&table).lines().all(|line| line.len() <= 80), "{}", text(&table));
    }

    #[test]
    fn a_name_cannot_drive_the_terminal_or_look_like_another() {
        assert_eq!(name("/a b/ü.bin"), "/a b/ü.bin");
        assert_eq!(name("/a\x1b[2J\n\u{9b}\u{202e}b"), "/a\\u{1b}[2J\\n\\u{9b}\\u{202e}b");
    }

    #[test]
    fn a_long_line_is_broken_at_spaces_and_words_stay_whole() {
        assert_eq!(wrapped("a  b", "    "), ["a  b"]);
        let path = format!("/{}", "x".repeat(90));
        let lines = wrapped(&format!("{} of {path} ends", "word ".repeat(14)), "    ");
        assert_eq!(lines[1..], [format!("    {path}"), "    ends".to_owned()]);
        assert!(lines[0].len() <= 80);
    }
}
