//! File operations: what the control plane offers beside leases. Whatever changes bytes or layout under a live lease is
//! a breaker, and says who it is.

use crate::disk::DiskFile;
use crate::driver;
use crate::engine::{Ended, Engine, Inner};
use crate::open_files::{Opening, Pinned};
use crate::pages::{WriteBack, WriteBackError};
use crate::path::StorePath;
use crate::storage::{self, CollapseRefused, Detail, Kind, NamespaceError, Storage};
use crate::sync::blocking;
use bytes::Bytes;
use leasehold_core::identity::Identity;
use leasehold_core::ids::{FileId, LeaseId, SessionId};
use leasehold_core::input::{Access, Change, Fault, Input, OnConflict, Want};
use leasehold_core::output::{self, NoSuchLease, Reply};
use leasehold_core::range::{BLOCK_BYTES, ByteRange};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::SystemTime;

/// The most bytes of one [`Engine::read`] or [`Engine::write`].
pub const CALL_BYTES_MAX: u64 = 1 << 20;

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name.
    pub path: StorePath,
    /// What it stands for.
    pub kind: Kind,
    /// The file's size, committed bytes that are not durable yet included.
    pub size: u64,
    /// How many names it has.
    pub links: u64,
    /// Equal for all names of one file, and for no other while it exists.
    pub inode: u64,
    /// When it was last modified on disk.
    pub modified: SystemTime,
    /// What a symbolic link says.
    pub target: Option<String>,
}

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The server stops.
    #[error("the server is stopping; connect to it again once it is back")]
    Stopping,
    /// The name.
    #[error(transparent)]
    Path(#[from] NamespaceError),
    /// The lease.
    #[error(transparent)]
    NoLease(#[from] NoSuchLease),
    /// More than one call may carry.
    #[error("{length} bytes in one call are more than {CALL_BYTES_MAX}; use several calls, or a lease")]
    TooLong {
        /// How many.
        length: u64,
    },
    /// The range is empty, or ends past the longest file.
    #[error(
        "the range at {offset} with {length} bytes is empty, or ends past {max}, the longest file that this store can \
         hold; check the offset and the length"
    )]
    BadRange {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
        /// The longest file.
        max: u64,
    },
    /// Source and destination are the same file.
    #[error("{from} and {to} are the same file; choose another name")]
    SameFile {
        /// The source.
        from: StorePath,
        /// The destination.
        to: StorePath,
    },
    /// A copy within a file onto itself.
    #[error(
        "bytes {from} and {to} of {path} overlap; copy to a place of its own, or in two steps by another file"
    )]
    Overlap {
        /// The file.
        path: StorePath,
        /// What was to be copied.
        from: ByteRange,
        /// Where to.
        to: ByteRange,
    },
    /// No file of this store can lose these bytes.
    #[error("{path}: {source}")]
    Collapse {
        /// The file.
        path: StorePath,
        /// Why.
        source: CollapseRefused,
    },
    /// A file could not be evicted.
    #[error("{path}: {source}")]
    Evict {
        /// The file.
        path: StorePath,
        /// Why.
        source: Fault,
    },
    /// A change was refused or failed.
    #[error("{path}: {source}")]
    Change {
        /// The file.
        path: StorePath,
        /// Why.
        source: output::ChangeError,
    },
    /// A read was refused or failed.
    #[error("{path}: {}{source}", trouble.as_ref().map_or(String::new(), |what| format!("{what}: ")))]
    Read {
        /// The file.
        path: StorePath,
        /// What is wrong with its blocks, if that is the matter.
        trouble: Option<String>,
        /// Why.
        source: output::ReadError,
    },
    /// A write found no frames, or no turn.
    #[error("{path}: {source}")]
    Acquire {
        /// The file.
        path: StorePath,
        /// Why.
        source: output::AcquireError,
    },
    /// A write could not be committed.
    #[error("{path}: {source}")]
    Commit {
        /// The file.
        path: StorePath,
        /// Why.
        source: output::CommitError,
    },
    /// An fsync could not be acknowledged.
    #[error("{path}: {source}")]
    Sync {
        /// The file.
        path: StorePath,
        /// Why.
        source: output::SyncError,
    },
}

/// A file that stays open, whatever becomes of its names, as long as this lives. Its descriptor is for what is beside the
/// bytes: these are the engine's.
pub struct OpenFile {
    pub(crate) pinned: Pinned,
    /// Its name when it was opened.
    pub(crate) path: StorePath,
    descriptor: Arc<DiskFile>,
    inode: u64,
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.file.as_fd()
    }
}

impl OpenFile {
    /// Its inode on the store's filesystem.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }
}

impl Inner {
    /// The file that goes with this name. `None`: it has others, or the name is no file's; so nothing is broken. Blocks.
    fn last_name(&self, path: &StorePath) -> Result<Option<Pinned>, NamespaceError> {
        match self.files.pin(path, Opening::Existing) {
            Ok(pinned) => Ok((pinned.opened().links == 1).then_some(pinned)),
            Err(error) => match self.storage.stat(path)?.kind {
                Kind::Link | Kind::Other => Ok(None),
                Kind::File | Kind::Directory => Err(error),
            },
        }
    }
}

impl From<Ended> for FileError {
    fn from(_: Ended) -> FileError {
        FileError::Stopping
    }
}

impl Engine {
    /// Creates the file unless it exists.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn create(&self, path: &StorePath) -> Result<Stat, FileError> {
        let (inner, path) = (self.0.clone(), path.clone());
        let create = move || {
            let _pinned = inner.files.pin(&path, Opening::Create)?;
            on_disk(&inner.storage, path)
        };
        Ok(blocking(create).await?.0)
    }

    /// Opens the file, for several reads and writes.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn open(&self, path: &StorePath) -> Result<OpenFile, FileError> {
        Ok(self.opened(path, Opening::Existing).await?.0)
    }

    /// Opens the file, which is created unless it exists. Whether it was.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn open_or_create(&self, path: &StorePath) -> Result<(OpenFile, bool), FileError> {
        self.opened(path, Opening::Create).await
    }

    async fn opened(&self, path: &StorePath, how: Opening) -> Result<(OpenFile, bool), FileError> {
        let (inner, path) = (self.0.clone(), path.clone());
        let open = move || {
            let pinned = inner.files.pin(&path, how)?;
            let descriptor = inner.storage.descriptor_of(pinned.file()).expect("a pinned file is open");
            let inode = inner.storage.inode_of(pinned.file()).expect("a pinned file is open");
            let created = pinned.opened().created;
            Ok((OpenFile { pinned, path, descriptor, inode }, created))
        };
        blocking(open).await.map_err(FileError::Path)
    }

    /// What is known about a name.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn stat(&self, path: &StorePath) -> Result<Stat, FileError> {
        let (inner, path) = (self.0.clone(), path.clone());
        let look = move || {
            let (mut stat, is_open) = on_disk(&inner.storage, path)?;
            if stat.kind == Kind::File && !is_open {
                // Its checksums say what was committed; where they cannot be used, its length must do.
                let pinned = inner.files.pin(&stat.path, Opening::Existing);
                stat.size = pinned.map_or(stat.size, |pinned| pinned.opened().size);
            }
            Ok(stat)
        };
        blocking(look).await.map_err(FileError::Path)
    }

    /// The size of the file with this inode, committed bytes that are not durable yet included: `None` if it is not open here,
    /// so that its length on disk says it. Does not wait.
    #[must_use]
    pub fn size_if_open(&self, inode: u64) -> Option<u64> {
        self.0.storage.size_if_open(inode)
    }

    /// What is known about every name in a directory, sorted by name. A file's own name gives the file. The size of a file
    /// that is not open is its length on disk, which differs from what was committed if another tool has changed it.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn list(&self, path: &StorePath) -> Result<Vec<Stat>, FileError> {
        let (storage, path) = (self.0.storage.clone(), path.clone());
        let list = move || {
            if storage.stat(&path)?.kind != Kind::Directory {
                return Ok(vec![on_disk(&storage, path)?.0]);
            }
            let entries = storage.list(&path)?;
            let mut found = Vec::with_capacity(entries.len());
            for entry in entries {
                let Ok(name) = path.join(&entry.name) else { continue };
                match on_disk(&storage, name) {
                    Ok((stat, _)) => found.push(stat),
                    Err(NamespaceError::NotFound { .. }) => {} // removed in the meantime
                    Err(error) => return Err(error),
                }
            }
            Ok(found)
        };
        blocking(list).await.map_err(FileError::Path)
    }

    /// Makes a directory; its parent must exist.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn make_directory(&self, path: &StorePath) -> Result<(), FileError> {
        let path = path.clone();
        self.names(move |storage| storage.make_directory(&path)).await
    }

    /// Gives a name to something else: over a file, whose leases are broken then. Leases on what is renamed go on.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn rename(&self, from: &StorePath, to: &StorePath, breaker: Identity) -> Result<(), FileError> {
        let (inner, a, b) = (self.0.clone(), from.clone(), to.clone());
        let renamed = blocking(move || inner.files.rename(|storage| storage.rename(&a, &b))).await;
        match renamed {
            Err(NamespaceError::Exists { .. }) if from == to => return Ok(()), // as rename(2) has it
            Err(NamespaceError::Exists { .. }) => {}
            other => return Ok(other?),
        }
        // Before any lease on the target is broken for nothing.
        if self.stat(from).await?.kind == Kind::Directory {
            return Err(NamespaceError::NotAFile { path: from.clone() }.into());
        }
        match self.last_name(to).await? {
            Some(target) => {
                let detail = Detail::RenameOver { from: from.clone(), to: to.clone() };
                self.remove(to, target, detail, breaker).await
            }
            None => {
                let (from, to) = (from.clone(), to.clone());
                self.names(move |storage| storage.rename_over_extra(&from, &to)).await
            }
        }
    }

    /// Gives each of two names what the other stood for, at one moment. It breaks nothing: leases are on the files.
    ///
    /// # Errors
    /// [`FileError`]; where the filesystem cannot do it, that of `renameat2`.
    pub async fn exchange(&self, one: &StorePath, other: &StorePath) -> Result<(), FileError> {
        let (one, other) = (one.clone(), other.clone());
        self.names(move |storage| storage.exchange(&one, &other)).await
    }

    pub(crate) async fn last_name(&self, path: &StorePath) -> Result<Option<Pinned>, FileError> {
        let (inner, path) = (self.0.clone(), path.clone());
        blocking(move || inner.last_name(&path)).await.map_err(FileError::Path)
    }

    /// Gives a file one more name. It breaks nothing: leases are on the file.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn link(&self, from: &StorePath, to: &StorePath) -> Result<(), FileError> {
        let (from, to) = (from.clone(), to.clone());
        self.names(move |storage| storage.link(&from, &to)).await
    }

    /// Makes a symbolic link, which the store keeps and never follows.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn symlink(&self, target: &str, at: &StorePath) -> Result<(), FileError> {
        let (target, at) = (target.to_owned(), at.clone());
        self.names(move |storage| storage.symlink(&target, &at)).await
    }

    /// What a symbolic link says.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn read_link(&self, path: &StorePath) -> Result<String, FileError> {
        let (storage, path) = (self.0.storage.clone(), path.clone());
        Ok(blocking(move || storage.read_link(&path)).await?)
    }

    /// Changes names while no file is being opened or closed.
    pub(crate) async fn names(
        &self,
        change: impl FnOnce(&Storage) -> Result<(), NamespaceError> + Send + 'static,
    ) -> Result<(), FileError> {
        let inner = self.0.clone();
        Ok(blocking(move || inner.files.rename(change)).await?)
    }

    /// Removes a name: a file's last one breaks all of its leases. A directory must be empty.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn unlink(&self, path: &StorePath, breaker: Identity) -> Result<(), FileError> {
        self.unlink_and(path, breaker, true).await
    }

    /// [`Engine::unlink`], but that a file is gone is durable with the next flush of any, as other changes of names are.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn unlink_soon(&self, path: &StorePath, breaker: Identity) -> Result<(), FileError> {
        self.unlink_and(path, breaker, false).await
    }

    async fn unlink_and(&self, path: &StorePath, breaker: Identity, durable: bool) -> Result<(), FileError> {
        let (inner, name) = (self.0.clone(), path.clone());
        let unlink = move || match inner.last_name(&name) {
            Ok(Some(pinned)) => Ok(Some(pinned)),
            Ok(None) => inner.files.rename(|storage| storage.unlink_extra(&name)).map(|()| None),
            Err(NamespaceError::NotAFile { .. }) => {
                inner.files.rename(|storage| storage.remove_directory(&name)).map(|()| None)
            }
            Err(error) => Err(error),
        };
        match blocking(unlink).await? {
            Some(last) => {
                let detail = Detail::Unlink { path: path.clone(), durable };
                self.remove(path, last, detail, breaker).await
            }
            None => Ok(()),
        }
    }

    pub(crate) async fn remove(
        &self,
        path: &StorePath,
        pinned: Pinned,
        detail: Detail,
        breaker: Identity,
    ) -> Result<(), FileError> {
        self.0.files.leaving(pinned.file());
        let removed = self.change(path, &pinned, Change::Remove, detail, breaker).await;
        drop(pinned);
        let inner = self.0.clone();
        blocking(move || inner.files.close_leaving()).await;
        removed
    }

    /// Sets the file's size. Shrinking breaks every lease beyond the new size, past the old end of file too.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn truncate(&self, path: &StorePath, size: u64, breaker: Identity) -> Result<(), FileError> {
        self.truncate_open(&self.open(path).await?, size, breaker).await
    }

    /// [`Engine::truncate`] of a file that is open.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn truncate_open(
        &self,
        file: &OpenFile,
        size: u64,
        breaker: Identity,
    ) -> Result<(), FileError> {
        let max = self.0.storage.file_bytes_max();
        if size > max {
            return Err(FileError::BadRange { offset: 0, length: size, max });
        }
        self.change(&file.path, &file.pinned, Change::Truncate { size }, Detail::None, breaker).await
    }

    /// Frees the range; it reads as zeros, and the size stays. Breaks every lease on it.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn punch(
        &self,
        path: &StorePath,
        range: ByteRange,
        breaker: Identity,
    ) -> Result<(), FileError> {
        self.punch_open(&self.open(path).await?, range, breaker).await
    }

    /// [`Engine::punch`] of a file that is open.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn punch_open(
        &self,
        file: &OpenFile,
        range: ByteRange,
        breaker: Identity,
    ) -> Result<(), FileError> {
        let range = self.within_files(range)?;
        self.change(&file.path, &file.pinned, Change::Punch { range }, Detail::None, breaker).await
    }

    /// Zeroes the range, up to the end of file; its space stays allocated, and the size as it is. Breaks every lease on it.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn zero(&self, path: &StorePath, range: ByteRange, breaker: Identity) -> Result<(), FileError> {
        self.zero_open(&self.open(path).await?, range, breaker).await
    }

    /// [`Engine::zero`] of a file that is open.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn zero_open(
        &self,
        file: &OpenFile,
        range: ByteRange,
        breaker: Identity,
    ) -> Result<(), FileError> {
        let range = self.within_files(range)?;
        self.change(&file.path, &file.pinned, Change::Zero { range }, Detail::None, breaker).await
    }

    /// Takes the range out; what is behind it moves to the front, so every lease from its start on is broken. It is of
    /// whole blocks, and ends before the end of file.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn collapse(
        &self,
        path: &StorePath,
        range: ByteRange,
        breaker: Identity,
    ) -> Result<(), FileError> {
        let refused = |source| FileError::Collapse { path: path.clone(), source };
        let pinned = self.pin(path).await?;
        self.0.storage.check_collapse(range).map_err(refused)?;
        self.change(path, &pinned, Change::Collapse { range }, Detail::None, breaker).await
    }

    /// Writes back what is committed of the file, and forgets what is held in memory of it. Returns how many bytes that
    /// were.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn evict(&self, path: &StorePath) -> Result<u64, FileError> {
        let pinned = self.pin(path).await?;
        self.sync_file(pinned.file(), path).await?;
        let inner = self.0.clone();
        let (evicted, _) = blocking(move || (inner.storage.evict(pinned.file()), pinned)).await;
        let evicted = evicted.map_err(|source| FileError::Evict { path: path.clone(), source })?;
        Ok(evicted.bytes)
    }

    /// "All bytes from here on" is a fair thing to say; what no file can have needs no change.
    fn within_files(&self, range: ByteRange) -> Result<ByteRange, FileError> {
        let max = self.0.storage.file_bytes_max();
        let (offset, length) = (range.start(), range.len());
        ByteRange::new(offset, range.end().min(max)).ok_or(FileError::BadRange { offset, length, max })
    }

    pub(crate) async fn change(
        &self,
        path: &StorePath,
        pinned: &Pinned,
        change: Change,
        detail: Detail,
        breaker: Identity,
    ) -> Result<(), FileError> {
        let (file, breaker) = (pinned.file(), Arc::new(breaker));
        let input = |request| Input::Change { request, file, change, breaker };
        let Reply::Change(result) = self.begin(input, detail).await?.reply else {
            unreachable!("a change's reply is one")
        };
        result.map_err(|source| FileError::Change { path: path.clone(), source })
    }

    /// fsync: returns once every commit acknowledged before the call is durable. Of a directory: all changes of names.
    ///
    /// # Errors
    /// [`FileError`]; the committed bytes are kept, and tried again.
    pub async fn sync(&self, path: &StorePath) -> Result<(), FileError> {
        let pinned = match self.pin(path).await {
            Err(NamespaceError::NotAFile { .. }) => return self.sync_directory(path).await,
            pinned => pinned?,
        };
        self.sync_file(pinned.file(), path).await
    }

    /// [`Engine::sync`] of the file of a lease, whatever it is called by now: for captures.
    ///
    /// # Errors
    /// [`FileError`]; if the lease is over, what it captured may be durable or not.
    pub async fn sync_lease(&self, session: SessionId, lease: LeaseId) -> Result<(), FileError> {
        let held = move |view: &driver::View<'_>| {
            let found = view.core.lease(lease).filter(|found| found.session == session)?;
            Some((found.file, view.storage.path_of(found.file)))
        };
        let found = self.look(held).await.ok_or(FileError::Stopping)?;
        let (file, path) = found.ok_or(FileError::NoLease(NoSuchLease(lease)))?;
        // The lease keeps the file open. If it ends now, so that the file is closed, the core knows no such file.
        self.sync_file(file, &path.unwrap_or(StorePath::ROOT)).await
    }

    /// [`Engine::sync`] of a file that is open.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn sync_open(&self, file: &OpenFile) -> Result<(), FileError> {
        self.sync_file(file.pinned.file(), &file.path).await
    }

    pub(crate) async fn sync_file(&self, file: FileId, path: &StorePath) -> Result<(), FileError> {
        let Reply::Sync(result) =
            self.begin(|request| Input::Sync { request, file }, Detail::None).await?.reply
        else {
            unreachable!("a sync's reply is one")
        };
        result.map_err(|source| FileError::Sync { path: path.clone(), source })
    }

    /// [`Engine::sync`] of many files. New ones are flushed all at once first, for the filesystem to commit them together:
    /// one after the other, that would take a commit each.
    ///
    /// # Errors
    /// [`FileError`] of one of them.
    pub async fn sync_all(&self, paths: &[StorePath]) -> Result<(), FileError> {
        if paths.len() > 1 {
            let flushes = paths.iter().map(async |path| {
                // Whatever goes wrong, the sync below says so.
                let Ok(pinned) = self.pin(path).await else { return };
                let storage = self.0.storage.clone();
                if let Err(error) = blocking(move || storage.sync_created(pinned.file())).await {
                    tracing::debug!(%path, %error, "cannot flush a new file");
                }
            });
            futures_util::future::join_all(flushes).await;
        }
        let syncs = paths.iter().map(|path| self.sync(path));
        futures_util::future::join_all(syncs).await.into_iter().collect()
    }

    async fn sync_directory(&self, path: &StorePath) -> Result<(), FileError> {
        let (storage, path) = (self.0.storage.clone(), path.clone());
        let synced = blocking(move || {
            if storage.stat(&path)?.kind != Kind::Directory {
                return Err(NamespaceError::NotAFile { path });
            }
            let failed = |source| NamespaceError::System { operation: "sync", path, source };
            storage.sync_names().map_err(failed)
        });
        synced.await.map_err(FileError::Path)
    }

    /// The committed bytes of the range (at most [`CALL_BYTES_MAX`]), verified; shorter at the end of file, empty past
    /// it. Needs no lease, and waits for none.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn read(&self, path: &StorePath, range: ByteRange) -> Result<Bytes, FileError> {
        self.read_open(&self.open(path).await?, range).await
    }

    /// [`Engine::read`] of a file that is open.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn read_open(&self, file: &OpenFile, range: ByteRange) -> Result<Bytes, FileError> {
        if range.len() > CALL_BYTES_MAX {
            return Err(FileError::TooLong { length: range.len() });
        }
        self.read_file(&file.pinned, &file.path, range).await
    }

    /// [`Engine::read`] of a file that is open; `path` is for errors.
    pub(crate) async fn read_file(
        &self,
        pinned: &Pinned,
        path: &StorePath,
        range: ByteRange,
    ) -> Result<Bytes, FileError> {
        let file = pinned.file();
        let deadline = self.0.driver.clock.now().after_ms(self.0.config.drain_ms);
        let mut id = None;
        let input = |request| {
            id = Some(request);
            Input::Read { request, file, range, deadline }
        };
        let Reply::Read(result) = self.begin(input, Detail::None).await?.reply else {
            unreachable!("a read's reply is one")
        };
        let ready = match result {
            Ok(Some(ready)) => ready,
            Ok(None) => return Ok(Bytes::new()),
            Err(source) => {
                let trouble = (source == output::ReadError::Fault(Fault::Checksum))
                    .then(|| self.0.storage.trouble_in(file, range.blocks()))
                    .flatten();
                return Err(FileError::Read { path: path.clone(), trouble, source });
            }
        };
        let skip = (ready.range.start() % BLOCK_BYTES) as usize;
        // SAFETY: the core lends the frames to this read until `ReadFinished`; no key was ever made for them.
        let bytes = unsafe { self.0.arena.bytes(ready.run) };
        let bytes = Bytes::copy_from_slice(&bytes[skip..skip + ready.range.len() as usize]);
        let request = id.expect("the input was made");
        self.0.driver.helping(|core| core.send(driver::Work::Input(Input::ReadFinished { request })));
        Ok(bytes)
    }

    /// Writes at most [`CALL_BYTES_MAX`] bytes, breaking what leases are in the way; visible on return, durable after a
    /// [`Engine::sync`]. Returns the file's size.
    ///
    /// It is an acquire, a copy into the frames, and a commit, by a session of the server's own: so there is one way
    /// by which bytes get into a file.
    ///
    /// # Errors
    /// [`FileError`]; the file is as it was.
    pub async fn write(
        &self,
        path: &StorePath,
        offset: u64,
        data: Bytes,
        breaker: Identity,
    ) -> Result<u64, FileError> {
        self.write_open(&self.open(path).await?, offset, data, breaker).await
    }

    /// [`Engine::write`] to a file that is open.
    ///
    /// # Errors
    /// [`FileError`]; the file is as it was.
    pub async fn write_open(
        &self,
        file: &OpenFile,
        offset: u64,
        data: Bytes,
        breaker: Identity,
    ) -> Result<u64, FileError> {
        if data.len() as u64 > CALL_BYTES_MAX {
            return Err(FileError::TooLong { length: data.len() as u64 });
        }
        let range = self.writable(offset, data.len() as u64)?;
        self.write_file(&file.pinned, &file.path, range, data, breaker, None).await
    }

    /// Writes pages back that were read before, and changed: as [`Engine::write`], but not over what is newer than they are.
    /// For the keeper of pages, which answers the kernel as if an overtaken page had been written just before it was overtaken.
    ///
    /// # Errors
    /// [`WriteBackError`]; the file is as it was.
    pub async fn write_back(
        &self,
        file: &OpenFile,
        offset: u64,
        data: Bytes,
        breaker: Identity,
    ) -> Result<(), WriteBackError> {
        let range = self.writable(offset, data.len() as u64)?;
        let OpenFile { pinned, path, .. } = file;
        let (page, mut overtaken) = WriteBack::new(pinned.file(), range);
        let written = tokio::select! {
            biased;
            Ok(range) = &mut overtaken => return Err(WriteBackError::Overtaken(range)),
            written = self.write_file(pinned, path, range, data, breaker, Some(page)) => written,
        };
        match (written, overtaken.try_recv()) {
            (Ok(_), _) => Ok(()),
            // Both came at once.
            (Err(_), Ok(range)) => Err(WriteBackError::Overtaken(range)),
            (Err(error), Err(_)) => Err(error.into()),
        }
    }

    /// The bytes at `offset`, if a file can have them.
    pub(crate) fn writable(&self, offset: u64, length: u64) -> Result<ByteRange, FileError> {
        let max = self.0.storage.file_bytes_max();
        ByteRange::at(offset, length).filter(|range| range.end() <= max).ok_or(FileError::BadRange {
            offset,
            length,
            max,
        })
    }

    /// [`Engine::write`] to a file that is open, of a page maybe; `path` is for errors.
    pub(crate) async fn write_file(
        &self,
        pinned: &Pinned,
        path: &StorePath,
        range: ByteRange,
        data: Bytes,
        breaker: Identity,
        page: Option<WriteBack>,
    ) -> Result<u64, FileError> {
        let session = OwnSession::open(self, breaker);
        let wants = vec![Want { file: pinned.file(), range, access: Access::Overwrite }];
        let wait_ms = self.0.config.grace_ms + self.0.config.fence_ms + self.0.config.drain_ms;
        let deadline = self.0.driver.clock.now().after_ms(wait_ms);
        let id = session.id;
        let input = |request| Input::Acquire {
            request,
            session: id,
            wants,
            on_conflict: OnConflict::Break,
            deadline,
        };
        match self.fill(id, input, data, page).await?.reply {
            Reply::Commit(Ok(done)) => Ok(done.size),
            Reply::Commit(Err(source)) => Err(FileError::Commit { path: path.clone(), source }),
            Reply::Acquire(Err(source)) => Err(FileError::Acquire { path: path.clone(), source }),
            other => unreachable!("a write is answered by its commit, or its refused acquire: {other:?}"),
        }
    }
}

/// A session of the server's own, for one write; it ends with the call, however that ends.
struct OwnSession<'a> {
    engine: &'a Engine,
    id: SessionId,
}

impl<'a> OwnSession<'a> {
    fn open(engine: &'a Engine, identity: Identity) -> OwnSession<'a> {
        let id = engine.0.sessions.own();
        let identity = Arc::new(identity);
        engine.0.driver.send(driver::Work::Input(Input::SessionOpened { session: id, identity }));
        OwnSession { engine, id }
    }
}

impl Drop for OwnSession<'_> {
    fn drop(&mut self) {
        self.engine.0.driver.send(driver::Work::Input(Input::SessionEnded { session: self.id }));
    }
}

/// What the storage knows about a name, and whether that is an open file. Blocks.
fn on_disk(storage: &Storage, path: StorePath) -> Result<(Stat, bool), NamespaceError> {
    let storage::Stat { kind, size, links, inode, modified, is_open, .. } = storage.stat(&path)?;
    let target = (kind == Kind::Link).then(|| storage.read_link(&path)).transpose();
    let target = target.unwrap_or_default(); // one that is not UTF-8, or has just gone
    Ok((Stat { path, kind, size, links, inode, modified, target }, is_open))
}
