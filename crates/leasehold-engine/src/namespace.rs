//! The store's names: what opening, creating, listing and renaming mean for files with committed sizes.

use crate::disk::{self, Disk, DiskFile};
use crate::file::StoreFile;
use crate::identity::Identity;
use crate::path::StorePath;
use crate::sidecar::{FormatError, Header, PAGE};
use crate::storage::Inner;
use crate::sums::{Sums, page_offset};
use leasehold_core::ids::FileId;
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A file that was opened or created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedFile {
    /// Its id until it is forgotten. Every name of the file gives the same.
    pub file: FileId,
    /// Its committed and durable size in bytes.
    pub size: u64,
    /// How many names it has.
    pub links: u64,
    /// Whether this call created it.
    pub created: bool,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An ordinary file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link. It is kept, and never followed.
    Link,
    /// Something that the store does not serve (a device, a pipe ..).
    Other,
}

impl Kind {
    fn of(kind: FileType) -> Kind {
        match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        }
    }
}

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it stands for.
    pub kind: Kind,
    /// The file's committed size, durable or not. Of a symbolic link, the length of its text.
    pub size: u64,
    /// How many names it has.
    pub links: u64,
    /// Equal for all names of one file, and for no other while it exists.
    pub inode: u64,
    /// The permission bits (`0o7777`).
    pub mode: u32,
    /// When it was last modified on disk.
    pub modified: SystemTime,
    /// Whether it is an open file.
    pub is_open: bool,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name, without the directory.
    pub name: String,
    /// What it stands for.
    pub kind: Kind,
}

/// Why a name could not be looked up or changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum NamespaceError {
    /// Nothing is there.
    #[error("{path} does not exist, or a directory on the way to it; check the name, or make it first")]
    NotFound { path: StorePath },
    /// Something is there already.
    #[error("{path} exists already; remove it first, or choose another name")]
    Exists { path: StorePath },
    /// It is not an ordinary file.
    #[error("{path} is not an ordinary file; name one")]
    NotAFile { path: StorePath },
    /// It is not a symbolic link.
    #[error("{path} is not a symbolic link; read it as a file")]
    NotALink { path: StorePath },
    /// Its text cannot be given to anybody.
    #[error("the symbolic link {path} leads to a name that is not UTF-8; make it anew")]
    NotText { path: StorePath },
    /// It, or a part of its path, is not a directory.
    #[error("{path} is not a directory, or a part of it is not; name one")]
    NotADirectory { path: StorePath },
    /// It holds names.
    #[error("the directory {path} is not empty; remove what is in it first")]
    NotEmpty { path: StorePath },
    /// A symbolic link, or an escape from the store.
    #[error("{path} leads through a symbolic link, which the store does not follow; name the file itself")]
    Link { path: StorePath },
    /// The root cannot be changed.
    #[error("the root of the store cannot be created, renamed or removed; name something in it")]
    Root,
    /// The only name of a file goes by `Output::Perform`, after its leases.
    #[error("{path} is the last name of its file; remove the file")]
    LastName { path: StorePath },
    /// Its sidecar cannot be used.
    #[error(
        "the checksums of {path} cannot be used: {what}; `leasehold scrub --adopt` takes its bytes as they are"
    )]
    Sidecar { path: StorePath, what: String },
    /// The filesystem said no.
    #[error("cannot {operation} {path}: {source}")]
    System {
        operation: &'static str,
        path: StorePath,
        #[source]
        source: io::Error,
    },
}

pub(crate) fn refused(operation: &'static str, path: &StorePath) -> impl FnOnce(Errno) -> NamespaceError {
    let path = path.clone();
    move |error| match error {
        Errno::NOENT => NamespaceError::NotFound { path },
        Errno::EXIST => NamespaceError::Exists { path },
        Errno::NOTDIR => NamespaceError::NotADirectory { path },
        Errno::ISDIR => NamespaceError::NotAFile { path },
        Errno::NOTEMPTY => NamespaceError::NotEmpty { path },
        Errno::LOOP | Errno::XDEV => NamespaceError::Link { path },
        error => NamespaceError::System { operation, path, source: error.into() },
    }
}

/// How many names an ordinary file has.
fn links_of_file(found: &OwnedFd, path: &StorePath) -> Result<u64, NamespaceError> {
    let stat = rustix::fs::fstat(found).map_err(refused("open", path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(NamespaceError::NotAFile { path: path.clone() });
    }
    Ok(stat.st_nlink as u64)
}

/// What to do about a sidecar whose header is damaged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damaged {
    Refuse,
    /// Begin anew: all that no page describes is unknown.
    Anew,
}

/// The files that are known: open, or still to be written back.
#[derive(Default)]
pub(crate) struct Files {
    next: u64,
    pub(crate) by_id: BTreeMap<FileId, Arc<StoreFile>>,
    pub(crate) by_identity: BTreeMap<Identity, Arc<StoreFile>>,
    /// The same: as long as a file is open, nothing else has its inode.
    pub(crate) by_inode: HashMap<u64, Arc<StoreFile>>,
}

impl Files {
    pub(crate) fn insert(
        &mut self,
        file: File,
        identity: Identity,
        path: &StorePath,
        sums: Sums,
    ) -> Arc<StoreFile> {
        self.next += 1;
        let id = FileId(self.next);
        let inode = rustix::fs::fstat(&file).expect("an open file has an inode").st_ino;
        let disk_file = Arc::new(DiskFile { file, name: format!("files/{}", path.as_str()) });
        let file = Arc::new(StoreFile::new(id, (identity, inode), disk_file, path.clone(), sums));
        self.by_id.insert(id, Arc::clone(&file));
        self.by_identity.insert(identity, Arc::clone(&file));
        self.by_inode.insert(inode, Arc::clone(&file));
        file
    }
}

/// The header of a file that somebody else put there.
pub(crate) fn adopted(identity: Identity, length: u64) -> Header {
    Header { identity, size: length, adopted_blocks: length.div_ceil(4096) }
}

/// The header of a sidecar; `None` if none was written yet.
pub(crate) fn read_header(
    disk: &dyn Disk,
    sidecar: &Arc<DiskFile>,
    identity: Identity,
) -> io::Result<Result<Option<Header>, FormatError>> {
    let bytes = disk::read(disk, sidecar, page_offset(None), PAGE)?;
    let bytes = bytes.first_chunk().expect("a page was asked for");
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Ok(None));
    }
    Ok(Header::decode(bytes, identity).map(Some))
}

impl Inner {
    pub(crate) fn open_file(
        self: &Arc<Inner>,
        path: &StorePath,
        create: bool,
        damaged: Damaged,
    ) -> Result<OpenedFile, NamespaceError> {
        if path.is_root() {
            return Err(if create {
                NamespaceError::Root
            } else {
                NamespaceError::NotAFile { path: path.clone() }
            });
        }
        let failed = || refused(if create { "create" } else { "open" }, path);
        let opened = |file: &StoreFile, links, created| {
            // Whoever is at the disk with the sums keeps nobody from opening this file, or others behind it.
            let size = file.durable_size();
            OpenedFile { file: file.id, size, links, created }
        };
        let (descriptor, created) = if create {
            let _names = self.names.hold();
            self.names.create(&self.store, path).map_err(failed())?
        } else {
            // O_NONBLOCK would not hang on a pipe, but O_DIRECT on one means something else: look first.
            let seen = self.names.open(&self.store, path, OFlags::PATH).map_err(failed())?;
            let links = links_of_file(&seen, path)?;
            let identity = self.identify(&seen, path)?;
            let one = self.admitting.lock().expect("no panic while held");
            if let Some(file) = self.admitted(identity, path) {
                drop(one);
                return Ok(opened(&file, links, false));
            }
            drop(one);
            (self.names.open(&self.store, path, self.store.data_flags()).map_err(failed())?, false)
        };
        let links = links_of_file(&descriptor, path)?;
        let file = self.admit(descriptor, path, created, damaged)?;
        Ok(opened(&file, links, created))
    }

    fn identify(&self, found: &OwnedFd, path: &StorePath) -> Result<Identity, NamespaceError> {
        self.disk.identify(found.as_fd()).map_err(|source| NamespaceError::System {
            operation: "identify",
            path: path.clone(),
            source,
        })
    }

    /// The file, if it is open already. To be called by one at a time, as [`Inner::admit`].
    fn admitted(&self, identity: Identity, path: &StorePath) -> Option<Arc<StoreFile>> {
        let mut files = self.files();
        let file = Arc::clone(files.by_identity.get(&identity)?);
        file.set_path(path.clone());
        files.by_id.insert(file.id, Arc::clone(&file));
        Some(file)
    }

    /// The open file behind a descriptor: the one that is open already, or a new one.
    ///
    /// The core's thread looks up files, so nothing is read while they are locked. That one file is admitted at a time
    /// means that nobody opens, changes and closes it between the reading and the insertion.
    fn admit(
        self: &Arc<Inner>,
        descriptor: OwnedFd,
        path: &StorePath,
        created: bool,
        damaged: Damaged,
    ) -> Result<Arc<StoreFile>, NamespaceError> {
        let system = |operation| {
            let path = path.clone();
            move |source| NamespaceError::System { operation, path, source }
        };
        let identity = self.identify(&descriptor, path)?;
        let _one = self.admitting.lock().expect("no panic while held");
        if let Some(file) = self.admitted(identity, path) {
            return Ok(file);
        }
        // Only now: as long as it was open, it may have been longer than what is committed.
        let length = rustix::fs::fstat(&descriptor).map_err(refused("open", path))?.st_size.cast_unsigned();
        let sidecar = self.store.sidecar(identity).map_err(system("open the sidecar of"))?;
        let found = match &sidecar {
            None => Ok(None),
            Some(sidecar) => {
                read_header(&*self.disk, sidecar, identity).map_err(system("read the sidecar of"))?
            }
        };
        let found = match found {
            // What a newer version wrote is not ours to judge.
            Err(error) if damaged == Damaged::Refuse || matches!(error, FormatError::Version(_)) => {
                let what = format!("its header: {error}");
                return Err(NamespaceError::Sidecar { path: path.clone(), what });
            }
            found => found.unwrap_or(None),
        };
        let header = found.unwrap_or_else(|| adopted(identity, length));
        let mut sums = Sums::new(header, sidecar, length);
        sums.header_dirty = found.is_none();
        if length != header.size {
            tracing::error!(
                %path,
                committed = header.size,
                found = length,
                "the file's size was changed by somebody else; the blocks concerned fail to read"
            );
            // What grew is shown, and fails to read unless it is zeros; what is missing is missed.
            if length > header.size {
                sums.set_size(length);
                sums.recorded_size = length;
            }
        }
        let file = self.files().insert(File::from(descriptor), identity, path, sums);
        file.unsynced.store(created, Ordering::Relaxed);
        // A file that is only read may be adopted block by block; one that was just created is to be remembered as empty.
        if created {
            self.mark_dirty(&file);
        }
        Ok(file)
    }

    pub(crate) fn stat(&self, path: &StorePath) -> Result<Stat, NamespaceError> {
        let failed = || refused("stat", path);
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let descriptor = self.names.open(&self.store, path, flags).map_err(failed())?;
        let stat = rustix::fs::fstat(&descriptor).map_err(failed())?;
        let kind = Kind::of(FileType::from_raw_mode(stat.st_mode));
        let mut size = stat.st_size.cast_unsigned();
        let mut is_open = false;
        if kind == Kind::File {
            let identity = self.identify(&descriptor, path)?;
            let open = self.files().by_identity.get(&identity).cloned();
            if let Some(open) = open {
                size = open.size();
                is_open = true;
            }
        }
        let since = Duration::new(stat.st_mtime.max(0).cast_unsigned(), stat.st_mtime_nsec as u32);
        Ok(Stat {
            kind,
            size,
            links: stat.st_nlink as u64,
            inode: stat.st_ino as u64,
            mode: stat.st_mode & 0o7777,
            modified: UNIX_EPOCH + since,
            is_open,
        })
    }

    pub(crate) fn list(&self, path: &StorePath) -> Result<Vec<Entry>, NamespaceError> {
        let failed = || refused("list", path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.names.open(&self.store, path, flags).map_err(failed())?;
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            // Names that are not UTF-8 cannot be asked for either.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                let stat =
                    rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed())?;
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            entries.push(Entry { name: name.to_owned(), kind: Kind::of(kind) });
        }
        entries.sort();
        Ok(entries)
    }

    pub(crate) fn make_directory(&self, path: &StorePath) -> Result<(), NamespaceError> {
        if path.is_root() {
            return Err(NamespaceError::Root);
        }
        let _names = self.names.hold();
        self.names.make_directory(&self.store, path).map_err(refused("make", path))
    }

    pub(crate) fn rename(&self, from: &StorePath, to: &StorePath) -> Result<(), NamespaceError> {
        if from.is_root() || to.is_root() {
            return Err(NamespaceError::Root);
        }
        let _names = self.names.hold();
        self.names.rename(&self.store, from, to, false).map_err(|error| match error {
            Errno::EXIST | Errno::NOTEMPTY => NamespaceError::Exists { path: to.clone() },
            Errno::NOENT if self.stat(from).is_ok() => NamespaceError::NotFound { path: to.clone() },
            error => refused("rename", from)(error),
        })?;
        self.moved(from, to);
        Ok(())
    }

    pub(crate) fn rename_over_extra(&self, from: &StorePath, to: &StorePath) -> Result<(), NamespaceError> {
        let _names = self.names.hold();
        // Nobody has leases on what the store does not serve.
        if self.stat(to)?.kind != Kind::Other {
            self.check_extra_name(to)?;
        }
        if self.stat(from)?.kind == Kind::Directory {
            return Err(NamespaceError::NotAFile { path: from.clone() });
        }
        self.names.rename(&self.store, from, to, true).map_err(refused("rename", from))?;
        self.moved(from, to);
        Ok(())
    }

    /// The paths of open files that `from` led to now begin with `to`.
    pub(crate) fn moved(&self, from: &StorePath, to: &StorePath) {
        let anew = |path: &StorePath| path.renamed(from, to);
        match self.only_file(to) {
            Ok(file) => file.iter().for_each(|file| file.call_anew(anew)),
            Err(_) => self.called_anew(anew),
        }
    }

    /// The open file of this name, if it is one.
    ///
    /// # Errors
    /// It is a directory, so that any may be below; or it cannot be told.
    fn only_file(&self, path: &StorePath) -> io::Result<Option<Arc<StoreFile>>> {
        let found = self.names.open(&self.store, path, OFlags::PATH | OFlags::NOFOLLOW)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Directory {
            return Err(Errno::ISDIR.into());
        }
        let identity = self.disk.identify(found.as_fd())?;
        Ok(self.files().by_identity.get(&identity).cloned())
    }

    /// The paths of open files are what `anew` says, where it says something.
    pub(crate) fn called_anew(&self, anew: impl Fn(&StorePath) -> Option<StorePath>) {
        // Not while the files are locked: sums may be locked for as long as a read takes.
        let files: Vec<Arc<StoreFile>> = self.files().by_identity.values().cloned().collect();
        files.iter().for_each(|file| file.call_anew(&anew));
    }

    pub(crate) fn remove_directory(&self, path: &StorePath) -> Result<(), NamespaceError> {
        if path.is_root() {
            return Err(NamespaceError::Root);
        }
        let _names = self.names.hold();
        self.names.unlink(&self.store, path, AtFlags::REMOVEDIR).map_err(refused("remove", path))
    }

    pub(crate) fn unlink_extra(&self, path: &StorePath) -> Result<(), NamespaceError> {
        let _names = self.names.hold();
        let stat = self.stat(path)?;
        match (stat.kind, stat.links) {
            (Kind::File, 1) => Err(NamespaceError::LastName { path: path.clone() }),
            (Kind::Directory, _) => Err(NamespaceError::NotAFile { path: path.clone() }),
            _ => self.names.unlink(&self.store, path, AtFlags::empty()).map_err(refused("unlink", path)),
        }
    }

    /// Closes the file, once a checkpoint has written its checksums back.
    pub(crate) fn forget(&self, id: FileId) {
        let removed = self.files().by_id.remove(&id);
        if let Some(file) = removed {
            if let Err(error) = self.trim(&file) {
                tracing::warn!(path = %file.path(), %error, "cannot set the file back to its committed size");
            }
            self.release(&file);
        }
    }

    /// Closes the file if nobody has it open and nothing of it is to be written back.
    pub(crate) fn release(&self, file: &Arc<StoreFile>) {
        let mut files = self.files();
        if !files.by_id.contains_key(&file.id) && !self.dirty().contains_key(&file.identity) {
            files.by_identity.remove(&file.identity);
            files.by_inode.remove(&file.inode);
        }
    }
}
