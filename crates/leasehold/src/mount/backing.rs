//! What a file is beside its bytes: owners, permissions, times, attributes. No lease is about these, so they are set on the
//! store's own files.

use fuser::{FileAttr, FileType, INodeNo};
use leasehold_engine::path::StorePath;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, StatVfs, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The directory that holds the store's files.
pub(super) struct Backing(OwnedFd);

/// What was in a directory when it was looked at.
pub(super) struct Listing {
    directory: OwnedFd,
    pub entries: Vec<Listed>,
}

impl Listing {
    /// What is known about an entry by now.
    pub fn attributes(&self, listed: &Listed) -> rustix::io::Result<(u64, FileAttr)> {
        let stat = rustix::fs::statat(&self.directory, &listed.name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((stat.st_ino, attributes_in(&stat)))
    }
}

/// One name in a directory.
pub(super) struct Listed {
    pub name: String,
    pub kind: FileType,
    pub inode: u64,
}

/// What to set; what is `None` stays.
pub(super) struct Change {
    pub mode: Option<u32>,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub accessed: Option<Timespec>,
    pub modified: Option<Timespec>,
}

impl Backing {
    pub fn open(files: &Path) -> io::Result<Backing> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Backing(rustix::fs::openat(CWD, files, flags, Mode::empty())?))
    }

    /// Opens what the name stands for, and nothing that a symbolic link leads to.
    pub fn at(&self, path: &StorePath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let name = if path.is_root() { "." } else { path.as_str() };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let resolve = if flags.contains(OFlags::PATH | OFlags::NOFOLLOW) {
            // The last part may be a link, and is not followed.
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS
        } else {
            resolve
        };
        rustix::fs::openat2(&self.0, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// What the name stands for, to be looked at; a symbolic link, too.
    pub fn look(&self, path: &StorePath) -> rustix::io::Result<OwnedFd> {
        self.at(path, OFlags::PATH | OFlags::NOFOLLOW)
    }

    /// What is known about a name.
    pub fn attributes(&self, path: &StorePath) -> rustix::io::Result<(u64, FileAttr)> {
        attributes(&self.look(path)?)
    }

    /// What is in a directory.
    pub fn list(&self, path: &StorePath) -> rustix::io::Result<Listing> {
        let directory = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            // What is not UTF-8 cannot be asked for either.
            let Ok(name) = entry.file_name().to_str() else { continue };
            let mut kind = entry.file_type();
            if kind == rustix::fs::FileType::Unknown {
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            }
            entries.push(Listed { name: name.to_owned(), kind: kind_of(kind), inode: entry.ino() });
        }
        Ok(Listing { directory, entries })
    }

    /// Makes a pipe, a socket or a device: the store does not serve them, the kernel does.
    pub fn make_node(&self, path: &StorePath, mode: u32, device: u64) -> rustix::io::Result<()> {
        let Some((parent, name)) = path.split() else { return Err(Errno::EXIST) };
        let parent = self.at(&parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let kind = rustix::fs::FileType::from_raw_mode(mode);
        rustix::fs::mknodat(&parent, name, kind, Mode::from_raw_mode(mode), device)
    }

    /// Whether it is one of those.
    pub fn is_node(&self, path: &StorePath) -> bool {
        use FileType::{Directory, RegularFile, Symlink};
        let kind = self.attributes(path).map(|(_, attributes)| attributes.kind);
        kind.is_ok_and(|kind| !matches!(kind, RegularFile | Directory | Symlink))
    }

    /// Gives one another name.
    pub fn link_node(&self, from: &StorePath, to: &StorePath) -> rustix::io::Result<()> {
        let Some((parent, name)) = to.split() else { return Err(Errno::EXIST) };
        let (found, parent) = (self.look(from)?, self.at(&parent, OFlags::PATH | OFlags::DIRECTORY)?);
        rustix::fs::linkat(CWD, by_descriptor(&found), parent, name, AtFlags::SYMLINK_FOLLOW)
    }

    pub fn space(&self) -> rustix::io::Result<StatVfs> {
        rustix::fs::statvfs(by_descriptor(&self.0))
    }
}

/// Opens what this was opened for once more.
pub(super) fn reopen(found: &impl AsFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(by_descriptor(found), flags | OFlags::CLOEXEC, Mode::empty())
}

pub(super) fn set_attribute(
    found: &impl AsFd,
    name: &str,
    value: &[u8],
    flags: i32,
) -> rustix::io::Result<()> {
    let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
    rustix::fs::setxattr(by_descriptor(found), name, value, flags)
}

pub(super) fn attribute(found: &impl AsFd, name: &str) -> rustix::io::Result<Vec<u8>> {
    whole(|buffer| rustix::fs::getxattr(by_descriptor(found), name, buffer))
}

pub(super) fn attribute_names(found: &impl AsFd) -> rustix::io::Result<Vec<u8>> {
    whole(|buffer| rustix::fs::listxattr(by_descriptor(found), buffer))
}

pub(super) fn remove_attribute(found: &impl AsFd, name: &str) -> rustix::io::Result<()> {
    rustix::fs::removexattr(by_descriptor(found), name)
}

/// Space for these bytes; the file stays as long as it is.
pub(super) fn reserve(file: &impl AsFd, offset: u64, length: u64) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, length)
}

/// Where the next data, or the next hole, begins. Of what is durable.
pub(super) fn seek(file: &impl AsFd, to: SeekFrom) -> rustix::io::Result<u64> {
    // Whoever seeks by one descriptor must not be disturbed by others.
    rustix::fs::seek(reopen(file, OFlags::RDONLY)?, to)
}

/// A path by which calls that take no descriptor reach what it was opened for.
fn by_descriptor(found: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", found.as_fd().as_raw_fd())
}

/// An attribute, or all names: Linux has none longer than 64 KiB.
fn whole(read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let length = read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn kind_of(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// Its inode in the store, and what is known about it; the number is still to be filled in.
pub(super) fn attributes(found: &impl AsFd) -> rustix::io::Result<(u64, FileAttr)> {
    let stat = rustix::fs::fstat(found)?;
    Ok((stat.st_ino, attributes_in(&stat)))
}

fn attributes_in(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.st_ino),
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind_of(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: 4096,
        flags: 0,
    }
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let nanoseconds = Duration::from_nanos(nanoseconds);
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanoseconds,
        Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanoseconds,
    }
}

/// Sets what is to be set. Symbolic links have no permissions.
pub(super) fn change(found: &impl AsFd, change: &Change) -> rustix::io::Result<()> {
    if change.owner.is_some() || change.group.is_some() {
        let (owner, group) = (change.owner.map(Uid::from_raw), change.group.map(Gid::from_raw));
        rustix::fs::chownat(found, "", owner, group, AtFlags::EMPTY_PATH)?;
    }
    if let Some(mode) = change.mode {
        rustix::fs::chmod(by_descriptor(found), Mode::from_raw_mode(mode & 0o7777))?;
    }
    if change.accessed.is_some() || change.modified.is_some() {
        let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let times = Timestamps {
            last_access: change.accessed.unwrap_or(omit),
            last_modification: change.modified.unwrap_or(omit),
        };
        rustix::fs::utimensat(found, "", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}
