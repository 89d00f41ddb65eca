//! What failed of many: said at once, counted, and shown again at the end; the rest goes on.

use crate::command::exit::{Exit, Failure, Outcome, code, text};
use crate::command::show;
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Default)]
pub(crate) struct Failures(Mutex<Vec<Failed>>);

struct Failed {
    name: String,
    text: String,
    exit: Exit,
}

impl Failures {
    fn all(&self) -> MutexGuard<'_, Vec<Failed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a failure and returns what to tell people.
    pub(crate) fn add(&self, name: &str, error: &anyhow::Error) -> String {
        let (text, exit) = (text(error), code(error));
        // Names can hold anything: they must not look like more lines of ours.
        let name_first = if text.starts_with(name) { String::new() } else { format!("{name}: ") };
        let line = show::name(&format!("leasehold: {name_first}{text}")).into_owned();
        self.all().push(Failed { name: name.to_owned(), text, exit });
        line
    }

    pub(crate) fn json(&self) -> Value {
        let row =
            |failed: &Failed| json!({ "path": failed.name, "error": failed.text, "exit": failed.exit as u8 });
        self.all().iter().map(row).collect()
    }

    /// The end of the command: the highest code of all.
    pub(crate) fn outcome(&self, done: &str) -> Outcome {
        let all = self.all();
        let Some(worst) = all.iter().map(|failed| failed.exit).max_by_key(|exit| *exit as u8) else {
            return Ok(());
        };
        let text = match all.len() {
            1 => format!("1 name was not {done}; it is named above"),
            count => format!("{count} names were not {done}; they are named above"),
        };
        Err(Failure::new(worst, text).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_many_failures_is_the_highest_and_names_stay_on_their_line() {
        let failures = Failures::default();
        failures.outcome("put").unwrap();
        for (name, exit) in [("a", Exit::NotFound), ("b\nc", Exit::Checksum), ("d", Exit::Failed)] {
            let line = failures.add(name, &Failure::new(exit, "why").into());
            assert_eq!(line.lines().count(), 1, "{line}");
        }
        let error = failures.outcome("put").unwrap_err();
        assert_eq!(code(&error), Exit::Checksum);
        assert_eq!(error.to_string(), "3 names were not put; they are named above");
    }
}
