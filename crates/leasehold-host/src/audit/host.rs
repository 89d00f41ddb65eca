//! The host that is looked at: this one, or a copy of what its files and its system calls say.
//!
//! Everything that the audit reads comes through [`Host`]: files below a root that can be another directory, and the few
//! things that no file has (what a filesystem answers, the RDMA netlink dump) from [`Calls`]. A copy has those in one
//! file, [`RECORDED`].

use super::look::{Answer, Helper, Recorded};
use super::netlink;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// What the system calls said, in a copy of a host; see `docs/audit.md`.
pub const RECORDED: &str = "system-calls.json";

/// More than any file that is read here has: a process with 100,000 mappings has 10 MiB of them.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// A host to be looked at.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    calls: Calls,
}

/// What comes from system calls.
#[derive(Debug)]
enum Calls {
    Live(Helper),
    Recorded(RecordedCalls),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedCalls {
    /// By mount point, or by a path that is asked for.
    #[serde(default)]
    mounts: BTreeMap<PathBuf, Recorded>,
    #[serde(default)]
    rdma: Option<netlink::Recorded>,
}

/// A copy that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No such directory.
    #[error("cannot read the copy of a host in {path}: {error}")]
    Root {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Not as [`RECORDED`] has to be.
    #[error("{path} is not what the system calls of a host say: {error}")]
    Recorded {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: serde_json::Error,
    },
}

impl Host {
    /// This host. The helper is a program of ours that touches what may never answer.
    #[must_use]
    pub fn live(helper: Helper) -> Host {
        Host { root: PathBuf::from("/"), calls: Calls::Live(helper) }
    }

    /// A copy of a host's files below `root`.
    ///
    /// # Errors
    /// If there is no such directory, or what its system calls said cannot be read.
    pub fn copied(root: &Path) -> Result<Host, HostError> {
        fs::read_dir(root).map_err(|error| HostError::Root { path: root.to_owned(), error })?;
        let path = root.join(RECORDED);
        let calls = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| HostError::Recorded { path: path.clone(), error })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => RecordedCalls::default(),
            Err(error) => return Err(HostError::Root { path, error }),
        };
        Ok(Host { root: root.to_owned(), calls: Calls::Recorded(calls) })
    }

    /// Whether it is this host, now.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.calls, Calls::Live(_))
    }

    /// A file as text; what is not UTF-8 in it is replaced.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        self.bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn bytes(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.at(path))?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What is in a directory, sorted; names that are not UTF-8 are none of those that are looked for.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> io::Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(self.at(path))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Where a symbolic link points, without going there.
    pub(crate) fn link(&self, path: impl AsRef<Path>) -> io::Result<String> {
        Ok(fs::read_link(self.at(path))?.to_string_lossy().into_owned())
    }

    /// Whether there is such a file; a link counts wherever it points.
    pub(crate) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.at(path).symlink_metadata().is_ok()
    }

    /// What these paths answer, each in a bounded time.
    pub(crate) fn look(&self, paths: &[PathBuf]) -> Vec<Answer> {
        match &self.calls {
            Calls::Live(helper) => helper.look(paths),
            Calls::Recorded(calls) => paths.iter().map(|path| self.recorded(calls, path)).collect(),
        }
    }

    fn recorded(&self, calls: &RecordedCalls, path: &Path) -> Answer {
        match calls.mounts.get(path) {
            Some(recorded) => recorded.answer(path),
            None if self.at(path).exists() => Answer::there(path),
            None => Answer::Failed(io::Error::from_raw_os_error(2).to_string()),
        }
    }

    /// The RDMA devices' live memory regions.
    pub(crate) fn memory_regions(&self) -> Result<netlink::Regions, netlink::Unseen> {
        match &self.calls {
            Calls::Live(_) => netlink::live(),
            Calls::Recorded(calls) => match &calls.rdma {
                Some(recorded) => recorded.regions(),
                None => Err(netlink::Unseen::NotRecorded),
            },
        }
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}
