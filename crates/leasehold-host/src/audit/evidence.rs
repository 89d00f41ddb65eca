//! What `leasehold probe --json` measured on this kernel, which counts for more than a table of versions.

use super::kernel::Does;
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};

/// A probe's result.
#[derive(Clone, Debug)]
pub struct Evidence {
    path: PathBuf,
    document: Document,
}

/// The part of it that is used here.
#[derive(Clone, Debug, Deserialize)]
struct Document {
    /// The release of the kernel that was probed.
    kernel: String,
    /// What it did with each way to pin.
    #[serde(default)]
    pins: Vec<Pin>,
}

#[derive(Clone, Debug, Deserialize)]
struct Pin {
    /// By what: `rdma`, ..
    by: String,
    /// Whether it pinned; `null` if it could not be tried.
    accepted: Option<bool>,
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
    /// It is not one.
    #[error("{path} is not what `leasehold probe --json` prints: {error}")]
    Garbled {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: serde_json::Error,
    },
}

impl Evidence {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Evidence, EvidenceError> {
        let path = path.to_owned();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Err(EvidenceError::Unreadable { path, error }),
        };
        match serde_json::from_slice(&bytes) {
            Ok(document) => Ok(Evidence { path, document }),
            Err(error) => Err(EvidenceError::Garbled { path, error }),
        }
    }

    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// What was measured of a long-term pin for writing of a shared file mapping, by a device that any kernel would let
    /// hold one; or the release that it is of, if that is another.
    pub(crate) fn writable_pin(&self, release: &str) -> Result<Option<Does>, &str> {
        if self.document.kernel != release {
            return Err(&self.document.kernel);
        }
        let rdma = self.document.pins.iter().find(|pin| pin.by == "rdma");
        let does = |accepted| if accepted { Does::Accepts } else { Does::Refuses };
        Ok(rdma.and_then(|pin| pin.accepted).map(does))
    }
}
