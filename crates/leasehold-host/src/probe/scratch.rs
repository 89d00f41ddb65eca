//! The directory in which everything is tried, and which is removed.

use std::io;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A fresh directory under another. Removed when dropped; [`Scratch::remove`] says whether that worked.
#[derive(Debug)]
pub struct Scratch(TempDir);

/// The scratch directory is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove the scratch directory {path:?}: {source}; remove it yourself")]
#[expect(missing_docs, reason = "the message names every field")]
pub struct NotRemoved {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl Scratch {
    /// With a name that nobody else has.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn make(parent: &Path) -> io::Result<Scratch> {
        tempfile::Builder::new().prefix("leasehold-probe-").tempdir_in(parent).map(Scratch)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Removes it and all that is in it.
    ///
    /// # Errors
    /// [`NotRemoved`], with its path.
    pub fn remove(self) -> Result<(), NotRemoved> {
        let path = self.path().to_owned();
        self.0.close().map_err(|source| NotRemoved { path, source })
    }
}
