//! The catalogue as the table in `docs/audit.md`, between two comments.

use super::catalogue::CATALOGUE;
use super::kernel;
use std::fmt::Write as _;

/// Where the table begins.
pub const BEGIN: &str = "<!-- begin: written by `leasehold audit --update-docs`; do not edit -->";
/// Where it ends.
pub const END: &str = "<!-- end -->";

/// A page without a place for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no place for the findings: the page needs the line\n{BEGIN}\nand behind it the line\n{END}\nonce each"
)]
pub struct NoPlace;

/// The page with the catalogue of today.
///
/// # Errors
/// If it has no place for it, or more than one.
pub fn replaced(page: &str) -> Result<String, NoPlace> {
    let (before, rest) = page.split_once(BEGIN).ok_or(NoPlace)?;
    let (_, after) = rest.split_once(END).ok_or(NoPlace)?;
    if before.contains(END) || rest.contains(BEGIN) || after.contains(END) {
        return Err(NoPlace);
    }
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", tables()))
}

fn tables() -> String {
    let mut text =
        String::from("| mapping or memory | from | the kernel | known from |\n|---|---|---|---|\n");
    for [what, from, does, basis] in kernel::rows() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {what} | {from} | {does} | {basis} |");
    }
    text.push_str(
        "\n| id | severity | what is looked at | why it matters | remedy |\n|---|---|---|---|---|\n",
    );
    for entry in CATALOGUE {
        let star = if entry.needs_dma { "*" } else { "" };
        let commands: Vec<String> =
            entry.commands.iter().map(|command| format!("`{}`", placeholders(command))).collect();
        let cells = [
            format!("`{}`", entry.id),
            format!("{}{star}", entry.severity.name()),
            entry.evidence.to_owned(),
            format!("{}: {} [{}]", entry.title, entry.why, entry.source),
            format!("{} {}", entry.remedy, commands.join("; ")),
        ];
        let cells = cells.map(|cell| cell.replace('|', "\\|").replace('<', "&lt;"));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// `{mount}` as `MOUNT`.
pub(crate) fn placeholders(command: &str) -> String {
    let names = ["mount", "unit", "file", "loop", "pid", "device", "inode"];
    names
        .iter()
        .fold(command.to_owned(), |text, name| text.replace(&format!("{{{name}}}"), &name.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_comments_is_replaced() {
        let page = format!("# Audit\n\n{BEGIN}\nold\n{END}\n\nAfter.\n");
        let page = replaced(&page).unwrap();
        assert!(
            page.starts_with("# Audit\n\n<!-- begin") && page.ends_with("<!-- end -->\n\nAfter.\n"),
            "{page}"
        );
        assert!(!page.contains("\nold\n"), "{page}");
        for page in ["", BEGIN, END, &format!("{END}{BEGIN}"), &format!("{BEGIN}{BEGIN}{END}")] {
            assert_eq!(replaced(page), Err(NoPlace));
        }
    }

    #[test]
    fn no_placeholder_is_left_in_a_command() {
        for command in CATALOGUE.iter().flat_map(|entry| entry.commands) {
            let text = placeholders(command).replace("{print", "");
            assert!(!text.contains('{') || text.contains("awk"), "{text}");
        }
    }
}
