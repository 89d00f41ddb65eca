//! Findings that somebody has looked at and accepted, in a file.
//!
//! ```json
//! {"version": 1, "accepted": [{"id": "LH-MOUNT-REFLINK", "subject": "/", "reason": "nobody clones there"}]}
//! ```
//!
//! The reason is for people; a baseline that is written anew keeps those that the old one had.

use super::finding::Finding;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;

/// What was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    version: u32,
    accepted: Vec<Accepted>,
}

/// One finding that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// Of the catalogue.
    pub id: String,
    /// What was found to be so.
    pub subject: String,
    /// Why it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A baseline that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// It could not be read.
    #[error("cannot read the baseline {path}: {error}; write one with --write-baseline {path}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not one.
    #[error("{path} is no baseline: {error}; write one with --write-baseline")]
    Garbled {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: serde_json::Error,
    },
    /// It is of another time.
    #[error(
        "{path} is a baseline of version {version}, and this is version {VERSION}; write it anew with --write-baseline"
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl Baseline {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Baseline, BaselineError> {
        let path = path.to_owned();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Err(BaselineError::Unreadable { path, error }),
        };
        let baseline: Baseline = match serde_json::from_slice(&bytes) {
            Ok(baseline) => baseline,
            Err(error) => return Err(BaselineError::Garbled { path, error }),
        };
        match baseline.version {
            VERSION => Ok(baseline),
            version => Err(BaselineError::Version { path, version }),
        }
    }

    /// One that has all of these, with the reasons that an older one gave.
    #[must_use]
    pub fn of(findings: &[Finding], older: Option<&Baseline>) -> Baseline {
        let mut accepted: Vec<Accepted> = Vec::new();
        for finding in findings {
            if accepted.iter().all(|other| !other.is(finding)) {
                let (id, subject) = (finding.entry.id.to_owned(), finding.subject.clone());
                let old = older.and_then(|older| older.accepted.iter().find(|other| other.is(finding)));
                let reason = old.and_then(|old| old.reason.clone());
                accepted.push(Accepted { id, subject, reason });
            }
        }
        Baseline { version: VERSION, accepted }
    }

    /// As it is written.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers") + "\n"
    }

    /// Marks what is accepted; gives back what was accepted, and is not there any more.
    pub(crate) fn apply(&self, findings: &mut [Finding]) -> Vec<Accepted> {
        for finding in findings.iter_mut() {
            finding.accepted = self.accepted.iter().any(|accepted| accepted.is(finding));
        }
        let is_gone = |accepted: &&Accepted| findings.iter().all(|finding| !accepted.is(finding));
        self.accepted.iter().filter(is_gone).cloned().collect()
    }
}

impl Accepted {
    fn is(&self, finding: &Finding) -> bool {
        self.id == finding.entry.id && self.subject == finding.subject
    }
}
