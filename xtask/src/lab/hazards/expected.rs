//! What is known of a kernel: a line for each row of the probe, a word for each filesystem.
//!
//! | word | the row has to be |
//! |---|---|
//! | `all` | seen in every try |
//! | `some` | seen; how often varies |
//! | `never` | tried, and not seen |
//! | `may` | tried; it takes luck to see it |
//! | `yes`, `no` | a control: accepted, refused |
//! | `n/a` | not applicable |
//! | `fails` | an error: the kernel does not lose the bytes in silence |
//!
//! Of Leasehold's store nothing is written down: there, nothing may be seen anywhere.

use super::{FILESYSTEMS, Found};
use serde_json::Value;

/// What the releases of each line begin with, and what is known of them.
const KNOWN: [(&str, &str); 2] =
    [("6.1.", include_str!("expected/6.1.txt")), ("6.12.", include_str!("expected/6.12.txt"))];

/// How what was found is not as known, in words; nothing is known of other kernels.
pub fn differences(found: &Found) -> Vec<String> {
    let known = KNOWN.iter().find(|(line, _)| found.kernel.starts_with(line)).map(|(_, text)| lines(text));
    let place = format!("{}, {}", found.kernel, found.filesystem);
    let column = FILESYSTEMS.iter().position(|name| *name == found.filesystem);
    let mut wrong = Vec::new();
    for row in &found.rows {
        let (group, id) = (&row["group"], &row["id"]);
        let expected = match (&known, column) {
            _ if group == "store" && is(row, "n/a") => continue,
            _ if group == "store" => "never",
            (Some(lines), Some(column)) => lines
                .iter()
                .find(|words| *group == words[0] && *id == words[1])
                .map_or("not in the table", |words| words[2 + column]),
            _ => continue,
        };
        if !is(row, expected) {
            let name = format!("{} {}", group.as_str().unwrap_or("?"), id.as_str().unwrap_or("?"));
            wrong.push(format!("{place}: {name} is to be {expected:?}: {row}"));
        }
    }
    for words in known.iter().flatten() {
        if !found.rows.iter().any(|row| row["group"] == words[0] && row["id"] == words[1]) {
            wrong.push(format!("{place}: the probe has no row {} {}", words[0], words[1]));
        }
    }
    wrong
}

/// The words of each line.
fn lines(text: &'static str) -> Vec<Vec<&'static str>> {
    let words = |line: &'static str| line.split_whitespace().collect::<Vec<_>>();
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.map(words).filter(|words| words.len() == 2 + FILESYSTEMS.len()).collect()
}

fn is(row: &Value, expected: &str) -> bool {
    let verdict = row["verdict"].as_str().unwrap_or_default();
    match expected {
        "all" => verdict == "seen" && row["times"] == row["tries"],
        "some" => verdict == "seen",
        "never" => verdict == "not-seen",
        "may" => matches!(verdict, "seen" | "not-seen"),
        "yes" => verdict == "control" && row["accepted"] == true,
        "no" => verdict == "control" && row["accepted"] == false,
        "n/a" => verdict == "not-applicable",
        "fails" => verdict == "could-not",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(rows: Vec<Value>) -> Found {
        Found { kernel: "6.1.0-1-amd64".to_owned(), filesystem: "ext4".to_owned(), rows }
    }

    /// A row as the table has it.
    fn as_known(group: &str, id: &str, word: &str) -> Value {
        let mut row = match word {
            "all" | "some" => json!({ "verdict": "seen", "times": 10, "tries": 10 }),
            "never" | "may" => json!({ "verdict": "not-seen", "tries": 10 }),
            "yes" | "no" => json!({ "verdict": "control", "accepted": word == "yes" }),
            _ => json!({ "verdict": "not-applicable" }),
        };
        (row["group"], row["id"]) = (group.into(), id.into());
        row
    }

    #[test]
    fn every_row_has_to_be_there_and_as_known_and_the_store_loses_nothing() {
        let mut rows: Vec<Value> =
            lines(KNOWN[0].1).iter().map(|words| as_known(words[0], words[1], words[2])).collect();
        rows.push(as_known("store", "punch", "never"));
        assert_eq!(differences(&found(rows.clone())), Vec::<String>::new());
        let last = rows.len() - 1;
        rows[last]["verdict"] = "seen".into();
        assert_eq!(differences(&found(rows.clone())).len(), 1, "the store has lost something");
        rows.remove(0);
        assert_eq!(differences(&found(rows.clone())).len(), 2, "a row is missing");
        rows.push(as_known("pins", "pin-new", "yes"));
        assert_eq!(differences(&found(rows)).len(), 3, "a row is in no table");
    }

    #[test]
    fn every_line_of_a_table_has_a_known_word_for_each_filesystem() {
        for (kernel, text) in KNOWN {
            for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let words: Vec<&str> = line.split_whitespace().collect();
                assert_eq!(words.len(), 2 + FILESYSTEMS.len(), "{kernel}: {line}");
                for word in &words[2..] {
                    let known = ["all", "some", "never", "may", "yes", "no", "n/a", "fails"].contains(word);
                    assert!(known, "{kernel}: {line}: {word}");
                }
            }
        }
    }
}
