//! Who guards what on this host: one file for each guard, locked as long as the guard lives. So a second guard of the
//! same file is refused, and one that was killed is found by its file that nobody locks.

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A guarded file, by what it is and not by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardedFile {
    /// Its name when the guard began.
    pub path: PathBuf,
    /// The filesystem.
    pub device: u64,
    /// The file on it.
    pub inode: u64,
}

/// What a guard says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The guard's process.
    pub guard: u32,
    /// The guarded program.
    pub command: String,
    /// What it guards.
    pub files: Vec<GuardedFile>,
}

/// Why a guard is not entered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Two would have to agree on every break.
    #[error("{path:?} is guarded already, by process {guard} for {command:?}; end that one first")]
    Guarded {
        /// The file.
        path: PathBuf,
        /// The other guard.
        guard: u32,
        /// For whom.
        command: String,
    },
    /// The directory.
    #[error("cannot enter this guard in {directory:?}: {source}; run it as root, or give another --registry")]
    Io {
        /// Where.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The entry of this guard, until it is dropped.
pub(super) struct Registration {
    path: PathBuf,
    _locked: File,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // If it stays, it says that this guard was killed, which harms nobody.
        let _ = fs::remove_file(&self.path);
    }
}

/// Enters a guard. Also returns the guards that were killed, whose entries are taken away.
pub(super) fn enter(directory: &Path, entry: &Entry) -> Result<(Registration, Vec<Entry>), RegistryError> {
    let failed = |source| RegistryError::Io { directory: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    let door = File::create(directory.join("lock")).map_err(failed)?;
    flock(&door, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    let mut killed = Vec::new();
    for (path, other, lives) in entries(directory).map_err(failed)? {
        if !lives {
            fs::remove_file(path).map_err(failed)?;
            killed.push(other);
            continue;
        }
        let is_ours = |file: &&GuardedFile| {
            entry.files.iter().any(|own| (own.device, own.inode) == (file.device, file.inode))
        };
        if let Some(file) = other.files.iter().find(is_ours) {
            let (path, guard, command) = (file.path.clone(), other.guard, other.command.clone());
            return Err(RegistryError::Guarded { path, guard, command });
        }
    }
    let path = directory.join(format!("{}.json", entry.guard));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
    file.write_all(&serde_json::to_vec(entry).map_err(|error| failed(error.into()))?).map_err(failed)?;
    Ok((Registration { path, _locked: file }, killed))
}

/// All guards, and whether each lives.
///
/// # Errors
/// Those of reading the directory; if there is none, there are no guards.
pub fn guards(directory: &Path) -> io::Result<Vec<(Entry, bool)>> {
    Ok(entries(directory)?.into_iter().map(|(_, entry, lives)| (entry, lives)).collect())
}

fn entries(directory: &Path) -> io::Result<Vec<(PathBuf, Entry, bool)>> {
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut entries = Vec::new();
    for path in listed.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        let lives = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        // One that is being written is under the lock of the directory; others are whole, or of no use.
        let Ok(text) = fs::read(&path) else { continue };
        if let Ok(entry) = serde_json::from_slice(&text) {
            entries.push((path, entry, lives));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(guard: u32, inode: u64) -> Entry {
        let file = GuardedFile { path: PathBuf::from("/x"), device: 1, inode };
        Entry { guard, command: "sleep".to_owned(), files: vec![file] }
    }

    #[test]
    fn a_file_has_one_guard_at_a_time_and_one_that_was_killed_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let first = enter(directory.path(), &entry(1, 7)).unwrap();
        let Err(RegistryError::Guarded { guard: 1, .. }) = enter(directory.path(), &entry(2, 7)) else {
            panic!("a second guard of one file")
        };
        let other = enter(directory.path(), &entry(3, 8)).unwrap();
        assert!(guards(directory.path()).unwrap().iter().all(|(_, lives)| *lives));
        drop(first);
        // As when it is killed: the lock goes, the entry stays.
        let Registration { path, .. } = &other.0;
        let kept = fs::read(path).unwrap();
        let path = path.clone();
        drop(other);
        fs::write(path, kept).unwrap();
        assert_eq!(guards(directory.path()).unwrap(), [(entry(3, 8), false)]);
        let (_second, killed) = enter(directory.path(), &entry(2, 7)).unwrap();
        assert_eq!(killed, [entry(3, 8)]);
    }
}
