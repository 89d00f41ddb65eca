//! What a person gets to read: the worst first, in 80 columns, with or without colour.
//!
//! ```text
//! HIGH    LH-MR-IN-FILE  a live memory region lies in a mapping of a file
//!   seen  trainer: ..
//!   why   ..
//!   from  ..
//!   do    ..
//!         $ a command
//! ```

use super::catalogue::{CATALOGUE, Entry};
use super::finding::{Finding, Severity};
use super::lease_breakers::{Breaker, Effect};
use super::report::Report;
use super::shell::shown;
use super::{dma, markdown};
use anstyle::{AnsiColor, Style};
use textwrap::{Options, WordSplitter, wrap};

const COLUMNS: usize = 80;
/// Where a finding's text begins.
const INDENT: &str = "        ";
/// Of how many findings of one kind all is shown.
const SUBJECTS_MAX: usize = 5;

/// Colours, or none of them.
#[derive(Clone, Copy, Debug)]
struct Paint(bool);

impl Paint {
    fn with(self, style: Style, text: &str) -> String {
        if self.0 { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.with(Style::new().bold(), text)
    }

    fn dim(self, text: &str) -> String {
        self.with(Style::new().dimmed(), text)
    }

    fn severity(self, severity: Severity, text: &str) -> String {
        let colour = match severity {
            Severity::High => AnsiColor::Red,
            Severity::Medium => AnsiColor::Yellow,
            Severity::Low => AnsiColor::Cyan,
        };
        self.with(colour.on_default().bold(), text)
    }

    fn clean(self, text: &str) -> String {
        self.with(AnsiColor::Green.on_default().bold(), text)
    }

    fn command(self, text: &str) -> String {
        self.with(AnsiColor::Green.on_default(), text)
    }
}

/// All of it.
#[must_use]
pub fn text(report: &Report, colour: bool) -> String {
    let paint = Paint(colour);
    let mut parts = vec![headline(report, paint)];
    for severity in Severity::ALL {
        for entry in CATALOGUE {
            let findings: Vec<&Finding> = report
                .open()
                .filter(|finding| finding.severity == severity && finding.entry.id == entry.id)
                .collect();
            if !findings.is_empty() {
                parts.push(finding(entry, severity, &findings, paint));
            }
        }
    }
    parts.push(breakers(&report.lease_breakers, paint));
    parts.extend(list("NOT SEEN", &report.not_seen, paint));
    let gone: Vec<String> = report
        .accepted_and_gone
        .iter()
        .map(|accepted| format!("{} {}", accepted.id, accepted.subject))
        .collect();
    parts.extend(list("ACCEPTED, AND NOT THERE ANY MORE", &gone, paint));
    parts.push(verdict(report, paint));
    parts.join("\n")
}

/// What was looked at, in a few lines.
fn headline(report: &Report, paint: Paint) -> String {
    let host = &report.host;
    let release = paint.bold(&shown(&format!("Linux {}", host.kernel.release)));
    let mut text = format!("{release}: {}\n", counts(report, paint));
    if let Some(pin) = host.kernel.pins.first() {
        let does = match pin.does {
            super::kernel::Does::Accepts => "accepts",
            super::kernel::Does::Refuses => "refuses",
            super::kernel::Does::Unknown => "not known whether it accepts",
        };
        text +=
            &row("pins", &format!("{does} long-term pins of file pages for writing ({})", pin.basis), paint);
    }
    let mounts: Vec<String> = host
        .mounts
        .iter()
        .map(|mount| format!("{} {}{}", mount.point.display(), mount.kind, features(mount)))
        .collect();
    let mounts =
        if mounts.is_empty() { "none that holds files that stay".to_owned() } else { mounts.join(", ") };
    text += &row("mounts", &mounts, paint);
    let devices: Vec<String> = host
        .rdma
        .iter()
        .map(|device| match (device.regions, device.bytes) {
            (Some(regions), Some(bytes)) => {
                let s = if regions == 1 { "" } else { "s" };
                format!("{} ({regions} memory region{s}, {})", device.name, dma::size(bytes))
            }
            _ => format!("{} (memory regions not seen)", device.name),
        })
        .collect();
    let devices = if devices.is_empty() { "no device".to_owned() } else { devices.join(", ") };
    text += &row("RDMA", &devices, paint);
    let names: Vec<String> =
        host.dma_processes.iter().map(|process| format!("{} [{}]", process.name, process.pid)).collect();
    let by_dma = match names.len() {
        0 => "none of them seen to do DMA".to_owned(),
        1..=SUBJECTS_MAX => format!("DMA by {}", names.join(", ")),
        more => format!("DMA by {} and {} more", names[..SUBJECTS_MAX].join(", "), more - SUBJECTS_MAX),
    };
    text += &row("programs", &format!("{} processes; {by_dma}", host.processes), paint);
    let mut for_dma = report.open().filter(|finding| finding.entry.needs_dma).peekable();
    if !host.does_dma && for_dma.peek().is_some() {
        let note = match for_dma.all(|finding| finding.severity == Severity::Low) {
            true => "Nothing was seen here that does DMA: findings that matter to it only count as low.",
            false => "Nothing was seen here that does DMA, but not all processes could be looked at.",
        };
        text += &row("note", note, paint);
    }
    text
}

/// What a mount has that matters, as far as it is known.
fn features(mount: &super::mounts::Mount) -> String {
    let features = [
        (mount.reflink == Some(true), "reflink"),
        (mount.checksums == Some(true), "checksums"),
        (mount.dax, "dax"),
        (mount.read_only, "ro"),
    ];
    let has: Vec<&str> = features.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
    if has.is_empty() { String::new() } else { format!(" ({})", has.join(", ")) }
}

fn row(label: &str, text: &str, paint: Paint) -> String {
    filled(&paint.dim(&format!("  {label:<10}")), "            ", &shown(text))
}

/// Text in lines of 80 columns; the first one begins with a label that is as wide as the indent of the others.
fn filled(label: &str, indent: &str, text: &str) -> String {
    let options = Options::new(COLUMNS).initial_indent(indent).subsequent_indent(indent);
    let options = options.word_splitter(WordSplitter::NoHyphenation);
    let lines = wrap(text, options);
    let mut result = String::new();
    for (index, line) in lines.iter().enumerate() {
        let rest = line.strip_prefix(indent).unwrap_or(line);
        result += if index == 0 { label } else { indent };
        result += rest;
        result.push('\n');
    }
    result
}

/// Findings of one kind and severity.
fn finding(entry: &Entry, severity: Severity, findings: &[&Finding], paint: Paint) -> String {
    let name = format!("{:<8}", severity.name().to_uppercase());
    let mut text = String::new();
    let head = format!("{}  {}", entry.id, entry.title);
    for (index, line) in filled(&name, INDENT, &head).lines().enumerate() {
        let (first, rest) = line.split_at(INDENT.len());
        let first = if index == 0 { paint.severity(severity, first) } else { first.to_owned() };
        text += &format!("{first}{}\n", paint.bold(rest));
    }
    let label = |name: &str| paint.dim(&format!("  {name:<6}"));
    for (index, finding) in findings.iter().take(SUBJECTS_MAX).enumerate() {
        let (first, rest) =
            finding.evidence.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        // What names the subject already is not told it again.
        let first = match first.starts_with(&finding.subject) {
            true => first.to_owned(),
            false => format!("{}: {first}", finding.subject),
        };
        text += &filled(&if index == 0 { label("seen") } else { INDENT.to_owned() }, INDENT, &shown(&first));
        let more = format!("{INDENT}  ");
        for evidence in rest {
            text += &filled(&more, &more, &shown(evidence));
        }
    }
    if findings.len() > SUBJECTS_MAX {
        text +=
            &filled(INDENT, INDENT, &format!("and {} more (--json has all)", findings.len() - SUBJECTS_MAX));
    }
    text += &filled(&label("why"), INDENT, entry.why);
    text += &filled(&label("from"), INDENT, entry.source);
    text += &filled(&label("do"), INDENT, entry.remedy);
    let mut shown_before: Vec<String> = Vec::new();
    for finding in findings.iter().take(SUBJECTS_MAX) {
        for command in finding.commands() {
            if !shown_before.contains(&command) {
                text += &pasted(&command, paint);
                shown_before.push(command);
            }
        }
    }
    text
}

/// A command in lines of 80 columns, each but the last ending with a backslash at a space.
fn pasted(command: &str, paint: Paint) -> String {
    let room = COLUMNS - INDENT.len() - "$ ".len() - " \\".len();
    let mut lines: Vec<String> = Vec::new();
    for word in words(command) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    let count = lines.len();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let begin = if index == 0 { "$ " } else { "    " };
        let end = if index + 1 < count { " \\" } else { "" };
        text += &format!("{INDENT}{}\n", paint.command(&format!("{begin}{line}{end}")));
    }
    text
}

/// The parts between spaces that no quotes hold together.
fn words(command: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut quote) = (0, None);
    for (index, c) in command.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, ' ') => {
                words.push(&command[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    words.push(&command[start..]);
    words
}

fn breakers(breakers: &[Breaker], paint: Paint) -> String {
    let mut text = paint.bold("WHAT CAN BREAK A LEASE HERE, AND WHAT GOES PAST IT") + "\n";
    for effect in [Effect::Breaks, Effect::Bypasses, Effect::Neither] {
        let label = format!("  {:<10}", effect.name());
        let of_effect: Vec<&Breaker> = breakers.iter().filter(|breaker| breaker.effect == effect).collect();
        for (index, line) in alike(&of_effect).iter().enumerate() {
            // What goes on in the next line is indented once more.
            let (indent, more) = ("            ", "              ");
            let options = Options::new(COLUMNS).initial_indent(indent).subsequent_indent(more);
            let options = options.word_splitter(WordSplitter::NoHyphenation);
            for (number, line) in wrap(&shown(line), options).iter().enumerate() {
                let (first, rest) = line.split_at(indent.len());
                text += &if (index, number) == (0, 0) { paint.dim(&label) } else { first.to_owned() };
                text += rest;
                text.push('\n');
            }
        }
    }
    text
}

/// A line each; those that do the same share one.
fn alike(breakers: &[&Breaker]) -> Vec<String> {
    let mut lines: Vec<(Vec<&str>, &Breaker)> = Vec::new();
    for breaker in breakers {
        match lines
            .iter_mut()
            .find(|(_, other)| (&other.how, &other.evidence) == (&breaker.how, &breaker.evidence))
        {
            Some((names, _)) => names.push(&breaker.what),
            None => lines.push((vec![&breaker.what], breaker)),
        }
    }
    let line = |(names, breaker): (Vec<&str>, &Breaker)| {
        let (first, rest) = names.split_at(names.len().min(SUBJECTS_MAX));
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let evidence = match breaker.evidence.as_slice() {
            [] => String::new(),
            evidence => format!(" ({})", evidence.join("; ")),
        };
        format!("{}{more}: {}{evidence}", first.join(", "), breaker.how)
    };
    lines.into_iter().map(line).collect()
}

fn list(title: &str, items: &[String], paint: Paint) -> Option<String> {
    if items.is_empty() {
        return None;
    }
    let mut text = paint.bold(title) + "\n";
    for item in items {
        text += &filled("  - ", "    ", &shown(item));
    }
    Some(text)
}

fn verdict(report: &Report, paint: Paint) -> String {
    match report.is_clean() {
        true => format!("{}.\n", counts(report, paint)),
        false => format!("Findings: {}. `leasehold audit --explain ID` has more.\n", counts(report, paint)),
    }
}

/// `1 high, 2 low; 3 accepted by the baseline`
fn counts(report: &Report, paint: Paint) -> String {
    let accepted = report.findings.len() - report.open().count();
    let accepted =
        if accepted == 0 { String::new() } else { format!("; {accepted} accepted by the baseline") };
    if report.is_clean() {
        return format!("{}{accepted}", paint.clean("No finding"));
    }
    let counts = Severity::ALL.map(|severity| (severity, report.count(severity)));
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(severity, count)| paint.severity(*severity, &format!("{count} {}", severity.name())))
        .collect();
    format!("{}{accepted}", counts.join(", "))
}

/// Every entry of the catalogue, in a line or two.
#[must_use]
pub fn listed(colour: bool) -> String {
    let paint = Paint(colour);
    let line = |entry: &&Entry| {
        let label = format!("{:<24}", entry.id);
        let text = format!("{}: {}", entry.severity.name(), entry.title);
        filled(&paint.bold(&label), &" ".repeat(label.len()), &text)
    };
    CATALOGUE.iter().map(line).collect()
}

/// One entry of the catalogue.
#[must_use]
pub fn explained(entry: &Entry, colour: bool) -> String {
    let paint = Paint(colour);
    let mut text = format!("{}\n", paint.bold(entry.id));
    text += &filled("", "", entry.title);
    text.push('\n');
    let severity = match entry.needs_dma {
        true => format!("{}; low where nothing is seen that does DMA", entry.severity.name()),
        false => entry.severity.name().to_owned(),
    };
    let label = |name: &str| paint.dim(&format!("  {name:<10}"));
    let indent = "            ";
    text += &filled(&label("severity"), indent, &severity);
    text += &filled(&label("looks at"), indent, entry.evidence);
    text += &filled(&label("why"), indent, entry.why);
    text += &filled(&label("from"), indent, entry.source);
    text += &filled(&label("remedy"), indent, entry.remedy);
    for command in entry.commands {
        text += &pasted(&markdown::placeholders(command), paint);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_broken_where_a_shell_goes_on_reading() {
        let command = format!("printf '%s\\n' {} 'two  words'", "word ".repeat(30).trim_end());
        let text = pasted(&command, Paint(false));
        assert!(text.lines().count() > 2, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let script = text.trim_start().strip_prefix("$ ").unwrap();
        let run =
            |script: &str| std::process::Command::new("sh").args(["-c", script]).output().unwrap().stdout;
        assert_eq!(run(script), run(&command));
    }

    #[test]
    fn the_list_has_every_entry_in_80_columns() {
        let text = listed(false);
        assert!(CATALOGUE.iter().all(|entry| text.contains(&format!("{} ", entry.id))), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
    }

    #[test]
    fn every_entry_can_be_explained_in_80_columns() {
        for entry in CATALOGUE {
            let text = explained(entry, false);
            assert!(text.contains(entry.id) && text.contains("$ "), "{text}");
            let longest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
            assert!(longest.chars().count() <= COLUMNS, "{}: {longest}", entry.id);
            assert!(!text.contains('\u{1b}'));
            assert!(explained(entry, true).contains("\u{1b}["));
        }
    }
}
