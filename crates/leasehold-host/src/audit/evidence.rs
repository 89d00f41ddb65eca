//! What `leasehold probe --json` measured on this kernel, which counts for more than a table of versions.
//!
//! Of its rows one is used, `pin-shared`: an io_uring fixed buffer in a writable shared mapping of a file. If the kernel took
//! it, it takes any long-term pin. If it failed with EFAULT, the refusal is the one that all long-term pins meet; if it failed
//! otherwise (EOPNOTSUPP on 6.1), it is io_uring's own, and an RDMA registration of the same memory may yet be taken: on 6.1
//! it is (measured).

use super::kernel::Does;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};

const ROW: &str = "pin-shared";

/// A probe's result.
#[derive(Clone, Debug)]
pub struct Evidence {
    path: PathBuf,
    kernel: String,
    pin: Option<Does>,
}

/// A result that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// It could not be read.
    #[error("cannot read {path}: {error}; write it with: leasehold probe DIR --json > {path}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not JSON.
    #[error("{path} is not what `leasehold probe --json` prints: {error}")]
    Garbled {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: serde_json::Error,
    },
    /// It is something else.
    #[error("{path} is not what `leasehold probe --json` prints: it names no kernel")]
    NoKernel {
        /// Which.
        path: PathBuf,
    },
}

impl Evidence {
    /// Reads it: one document, or one a line.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Evidence, EvidenceError> {
        let path = path.to_owned();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Err(EvidenceError::Unreadable { path, error }),
        };
        let parsed =
            serde_json::Deserializer::from_slice(&bytes).into_iter().collect::<Result<Vec<Value>, _>>();
        let document = match parsed {
            Ok(documents) => Value::Array(documents),
            Err(error) => return Err(EvidenceError::Garbled { path, error }),
        };
        let kernel = find(&document, &|object| object.get("kernel")?.as_str().map(str::to_owned));
        let Some(kernel) = kernel else { return Err(EvidenceError::NoKernel { path }) };
        let pin = find(&document, &|object| (object.get("id")?.as_str()? == ROW).then(|| outcome(object)));
        Ok(Evidence { path, kernel, pin: pin.flatten() })
    }

    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// What the kernel of this release does with a long-term pin for writing of a shared file mapping, if the probe settles
    /// it; or the release that it is of, if that is another.
    pub(crate) fn writable_pin(&self, release: &str) -> Result<Option<Does>, &str> {
        if self.kernel == release { Ok(self.pin) } else { Err(&self.kernel) }
    }
}

fn outcome(row: &Value) -> Option<Does> {
    let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
    match text("verdict") {
        "seen" => Some(Does::Accepts),
        "not-seen" if text("note").contains("EFAULT") => Some(Does::Refuses),
        _ => None,
    }
}

/// The first object, however deep, of which something is wanted.
fn find<T>(value: &Value, wanted: &impl Fn(&Value) -> Option<T>) -> Option<T> {
    match value {
        Value::Object(fields) => {
            wanted(value).or_else(|| fields.values().find_map(|value| find(value, wanted)))
        }
        Value::Array(items) => items.iter().find_map(|value| find(value, wanted)),
        _ => None,
    }
}
