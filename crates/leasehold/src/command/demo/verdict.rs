//! What a scheme's demo says at the top, and in the end: what was seen, against what the scheme's entry declares.

use super::narrate::say;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::show;
use leasehold_core::promise::Promise;
use leasehold_core::schemes::{self, Entry, Verdict};

const RED: &str = "\x1b[1;31m";
const RESET: &str = "\x1b[0m";

/// Who breaks one of these loses what was written, or gives it to others.
const LOSES: [Promise; 5] = [Promise::P1, Promise::P2, Promise::P3, Promise::P9, Promise::P10];

/// What was seen to break, and how.
pub(super) type Seen = Vec<(Promise, String)>;

/// Loud, and not to be missed in a terminal.
pub(super) fn warn(entry: &Entry) {
    let broken = Promise::ALL.into_iter().filter(|promise| entry.declared(*promise).0 == Verdict::Broken);
    let broken: Vec<Promise> = broken.collect();
    let names: Vec<&str> = broken.iter().map(|promise| promise.name()).collect();
    let loses = broken.iter().any(|promise| LOSES.contains(promise));
    let what = match (broken.is_empty(), loses) {
        (true, _) => "declares that it breaks no promise".to_owned(),
        (false, false) => format!("breaks {}", names.join(", ")),
        (false, true) => format!("LOSES DATA: it breaks {}", names.join(", ")),
    };
    let name = entry.scheme.name;
    anstream::eprintln!("{RED}WARNING: the scheme `{name}` {what}.{RESET}");
    anstream::eprintln!(
        "{RED}This runs it on a store that is made for that, and thrown away in the end.{RESET}"
    );
    anstream::eprintln!("{RED}`leasehold serve` serves nothing but `leasehold`.{RESET}");
}

/// The promise is broken, in this way.
pub(super) fn breaks(seen: &mut Seen, promise: Promise, how: String) -> Outcome {
    say(&format!("{promise} is broken."))?;
    seen.push((promise, how));
    Ok(())
}

/// Why a broken promise cannot be shown here; `None`: it can.
fn out_of_reach(entry: &Entry, promise: Promise) -> Option<&'static str> {
    let one_mark = entry.scheme.name == schemes::DIRTY_UNTAGGED.name;
    match promise {
        Promise::P1 | Promise::P4 if one_mark => Some("it takes two keys in one page"),
        Promise::P9 => {
            Some("it takes a filesystem that overwrites shared blocks, which O_DIRECT writes do not")
        }
        Promise::P10 => Some("it takes DAX, where frames are the storage's own blocks"),
        _ => None,
    }
}

/// One line a promise, and whether all is as the entry declares.
pub(super) fn conclude(entry: &Entry, seen: &Seen) -> Outcome {
    let name = entry.scheme.name;
    show::line("")?;
    let mut wrong = Vec::new();
    for promise in Promise::ALL {
        let declared = entry.declared(promise).0 == Verdict::Broken;
        let how = seen.iter().find(|(broken, _)| *broken == promise).map(|(_, how)| how);
        match (how, declared, out_of_reach(entry, promise)) {
            (Some(how), _, _) => show::line(format_args!("{promise} broken: {how}"))?,
            (None, true, Some(why)) => {
                show::line(format_args!("{promise} is broken too, but not here: {why}"))?
            }
            _ => {}
        }
        let expected = declared && out_of_reach(entry, promise).is_none();
        if how.is_some() != expected {
            wrong.push(promise.name());
        }
    }
    if seen.is_empty() {
        show::line("No promise was broken.")?;
    }
    show::line(format_args!("All interleavings, shortest first: leasehold check {name}"))?;
    if wrong.is_empty() {
        return Ok(());
    }
    let text = format!("not as {name} declares: {}", wrong.join(", "));
    Err(Failure::new(Exit::Failed, text).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str, seen: &[Promise]) -> Option<String> {
        let seen: Seen = seen.iter().map(|promise| (*promise, "somehow".to_owned())).collect();
        let entry = schemes::named(name).expect("a scheme");
        conclude(entry, &seen).err().map(|error| error.to_string())
    }

    #[test]
    fn what_was_declared_and_not_seen_or_seen_and_not_declared_is_a_failure() {
        use Promise::{P1, P2, P3, P4, P6, P8};
        assert_eq!(error("naive", &[P1, P2, P3, P4, P6, P8]), None);
        assert_eq!(error("naive", &[P1, P2, P4, P6]).unwrap(), "not as naive declares: P3, P8");
        assert_eq!(error("leasehold", &[]), None);
        assert_eq!(error("leasehold", &[P2]).unwrap(), "not as leasehold declares: P2");
        assert_eq!(error("dirty_untagged", &[P2, P3, P6, P8]), None, "P1 and P4 take two keys in one page");
    }
}
