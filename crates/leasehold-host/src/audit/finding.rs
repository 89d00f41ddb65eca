//! A finding: one thing on the host, and the entry of the catalogue that it is a case of.

use super::catalogue::Entry;
use super::shell;
use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It weakens what would help, or matters once something here does DMA.
    Low,
    /// Data are lost or changed if two things that both happen here meet.
    Medium,
    /// Data are lost or changed by what goes on here, or by what the kernel lets any program do.
    High,
}

impl Severity {
    /// The worst first.
    pub const ALL: [Severity; 3] = [Severity::High, Severity::Medium, Severity::Low];

    /// As it is printed and written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::High => "high",
            Severity::Medium => "medium",
            Severity::Low => "low",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it is a case of.
    pub entry: &'static Entry,
    /// The entry's severity, or less where nothing here does DMA.
    pub severity: Severity,
    /// What was found to be so, by a name that is the same in the next run: a mount point, a unit, a program. A baseline
    /// knows a finding by its id and this.
    pub subject: String,
    /// What was seen.
    pub evidence: Vec<String>,
    /// Whether a baseline has it.
    pub accepted: bool,
    names: Vec<(&'static str, String)>,
    instead: Vec<String>,
}

impl Finding {
    pub(crate) fn new(entry: &'static Entry, subject: impl Into<String>) -> Finding {
        let (severity, subject) = (entry.severity, subject.into());
        Finding {
            entry,
            severity,
            subject,
            evidence: Vec::new(),
            accepted: false,
            names: Vec::new(),
            instead: Vec::new(),
        }
    }

    /// With one more thing that was seen.
    pub(crate) fn seen(mut self, evidence: impl Into<String>) -> Finding {
        self.evidence.push(evidence.into());
        self
    }

    /// With what stands for `{name}` in the commands of the remedy.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Finding {
        self.names.push((name, value.into()));
        self
    }

    /// With another command in place of the entry's, which would not do here.
    pub(crate) fn instead(mut self, command: impl Into<String>) -> Finding {
        self.instead.push(command.into());
        self
    }

    /// The remedy's commands, to be pasted.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        if !self.instead.is_empty() {
            return self.instead.clone();
        }
        self.entry.commands.iter().map(|command| self.filled(command)).collect()
    }

    fn filled(&self, command: &str) -> String {
        self.names.iter().fold((*command).to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), &shell::quoted(value))
        })
    }
}
