//! Where a probe is to look, and whether it can.

use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// What the tries need at most, with room to spare: two files of some MiB, their copies, and a small store.
const SPACE_MIN: u64 = 192 << 20;

/// Filesystems whose files are not ours to make.
const WITHOUT_FILES: [&str; 12] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "efivarfs",
];

/// A directory, and the filesystem that it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Without symbolic links.
    pub directory: PathBuf,
    /// As `mount` shows it: `ext4`, `xfs`, `btrfs`.
    pub filesystem: String,
    /// What is mounted: a device, mostly.
    pub source: String,
    /// Where.
    pub mount_point: PathBuf,
    /// The kernel's release.
    pub kernel: String,
}

/// Why nothing can be tried in a directory.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum PlaceError {
    #[error("there is no directory {path:?}; name one on the filesystem to be probed")]
    Missing { path: PathBuf },
    #[error("{path:?} is not a directory; name the one that it is in")]
    NotADirectory { path: PathBuf },
    #[error(
        "{path:?} is on {filesystem}, which holds no files of its own; name a directory on a disk's filesystem"
    )]
    WithoutFiles { path: PathBuf, filesystem: String },
    #[error("{path:?} is on a filesystem that is mounted read-only; remount it, or name another directory")]
    ReadOnly { path: PathBuf },
    #[error(
        "{path:?} has {} MiB free, and a probe needs {} MiB; make room, or name another directory",
        free >> 20, SPACE_MIN >> 20
    )]
    Full { path: PathBuf, free: u64 },
    #[error("no permission to look at {path:?}; probe as its owner, or as root")]
    Forbidden { path: PathBuf },
    #[error("no permission to make a directory in {path:?}; probe as its owner, or as root")]
    NotOurs { path: PathBuf },
    #[error("cannot make a directory in {path:?}: {source}; name another directory")]
    Scratch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot look at {path:?}: {source}; name another directory")]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Place {
    pub(super) fn look(directory: &Path) -> Result<Place, PlaceError> {
        let path = || directory.to_owned();
        let failed = |source: io::Error| match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => PlaceError::Missing { path: path() },
            Some(Errno::NOTDIR) => PlaceError::NotADirectory { path: path() },
            Some(Errno::ACCESS | Errno::PERM) => PlaceError::Forbidden { path: path() },
            _ => PlaceError::Look { path: path(), source },
        };
        let real = directory.canonicalize().map_err(failed)?;
        if !real.metadata().map_err(failed)?.is_dir() {
            return Err(PlaceError::NotADirectory { path: path() });
        }
        let mount = Mount::of(&real).map_err(failed)?;
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let Mount { filesystem, source, mount_point } = mount;
        if WITHOUT_FILES.contains(&filesystem.as_str()) {
            return Err(PlaceError::WithoutFiles { path: path(), filesystem });
        }
        let status = rustix::fs::statvfs(&real).map_err(|error| failed(error.into()))?;
        if status.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(PlaceError::ReadOnly { path: path() });
        }
        let free = status.f_bavail.saturating_mul(status.f_frsize);
        if free < SPACE_MIN {
            return Err(PlaceError::Full { path: path(), free });
        }
        Ok(Place { directory: real, filesystem, source, mount_point, kernel })
    }

    /// Makes the directory to try things in.
    ///
    /// # Errors
    /// [`PlaceError`], with the remedy.
    pub fn scratch(&self) -> Result<super::Scratch, PlaceError> {
        let path = self.directory.clone();
        super::Scratch::make(&self.directory).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => PlaceError::NotOurs { path },
            io::ErrorKind::ReadOnlyFilesystem => PlaceError::ReadOnly { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PlaceError::Full { path, free: 0 },
            _ => PlaceError::Scratch { path, source },
        })
    }

    /// Whether each block of data has a checksum that a read compares.
    pub(super) fn has_checksums(&self) -> bool {
        ["btrfs", "bcachefs", "zfs"].contains(&self.filesystem.as_str())
    }

    /// Whether there is a device below that could do DMA.
    pub(super) fn has_device(&self) -> bool {
        !["tmpfs", "ramfs", "hugetlbfs"].contains(&self.filesystem.as_str())
    }
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    filesystem: String,
    source: String,
    mount_point: PathBuf,
}

impl Mount {
    /// The one that a path is on. By the mount's number: a device has several on btrfs.
    fn of(path: &Path) -> io::Result<Mount> {
        let status = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        let text = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mount = text.lines().find_map(|line| Mount::parse(line, status.stx_mnt_id));
        mount.ok_or_else(|| io::Error::other("it is on no mount that /proc/self/mountinfo lists"))
    }

    fn parse(line: &str, number: u64) -> Option<Mount> {
        let (first, second) = line.split_once(" - ")?;
        let mut fields = first.split(' ');
        if fields.next()?.parse() != Ok(number) {
            return None;
        }
        let mount_point = plain(fields.nth(3)?).into();
        let mut fields = second.split(' ');
        Some(Mount { filesystem: plain(fields.next()?), source: plain(fields.next()?), mount_point })
    }
}

/// What separates fields, and so has another name within one: proc_pid_mountinfo(5).
fn plain(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_where_nothing_can_be_tried_is_refused_with_a_word_why() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, says) in [
            ("/proc/self".as_ref(), "is on proc, which holds no files"),
            ("/sys/kernel".as_ref(), "is on sysfs, which holds no files"),
            (directory.path().join("none").as_path(), "there is no directory"),
            (file.as_path(), "is not a directory"),
            (file.join("below").as_path(), "is not a directory"),
        ] {
            let error = Place::look(path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_line_of_mountinfo_is_found_by_its_number_and_names_can_have_spaces() {
        let line = "36 35 98:0 /m /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = Mount::parse(line, 36).unwrap();
        assert_eq!(mount.filesystem, "ext3");
        assert_eq!(mount.source, "/dev/root");
        assert_eq!(mount.mount_point, PathBuf::from("/mnt/a b"));
        assert!(Mount::parse(line, 3).is_none());
    }
}
