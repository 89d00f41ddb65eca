//! Names as they can be pasted into a shell, and as they can be printed.

/// One word for a POSIX shell; of control characters, for those that know `$'..'` (bash, zsh, ksh).
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if word.contains(is_hidden) {
        let escape = |c: char| match c {
            '\'' | '\\' => format!("\\{c}"),
            c if is_hidden(c) => c.to_string().bytes().map(|byte| format!("\\x{byte:02x}")).collect(),
            c => c.to_string(),
        };
        return format!("$'{}'", word.chars().map(escape).collect::<String>());
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// For people: what is no text does not reach the terminal, nor does what turns the direction of text.
pub(crate) fn shown(text: &str) -> String {
    let escape = |c: char| if is_hidden(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_a_quoted_word_as_it_was() {
        for word in ["/data", "", "a b", "it's", "$(reboot)", "a\nb", "\x1b[2J", "\u{202e}x", "\\'\n", "-n"] {
            let script = format!("printf '%s' {}", quoted(word));
            let output =
                Command::new("bash").args(["-c", &script]).env("LC_ALL", "C.UTF-8").output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word, "{script}");
        }
    }

    #[test]
    fn a_name_cannot_drive_the_terminal() {
        assert_eq!(shown("/a\x1b[2J\n\u{202e}b"), "/a\\u{1b}[2J\\n\\u{202e}b");
        assert_eq!(shown("/ü b"), "/ü b");
    }
}
