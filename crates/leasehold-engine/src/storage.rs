//! A store: real files, their checksums and their write-ahead record, behind the core's data outputs.
//!
//! [`Storage::perform`] never blocks: transfers go to the disk's thread, everything else to the workers. Answers come from
//! these threads.

mod inner;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use inner::Inner;

pub use crate::attributes::{Attributes, Xattrs};
pub use crate::block_map::{MapRun, MapState};
pub use crate::collapse::CollapseRefused;
pub use crate::evict::Evicted;
pub use crate::namespace::{Entry, Kind, NamespaceError, OpenedFile, Stat};
pub use crate::orphans::Orphans;
pub use crate::recovery::Damage;
pub use crate::scrub::Survey;
pub use crate::staging::Staged;
pub use crate::store::OpenError;

use crate::arena::Arena;
use crate::disk::{Disk, DiskFile, Fates};
use crate::file::JudgeError;
use crate::namespace::Damaged;
use crate::path::StorePath;
use leasehold_core::ids::FileId;
use leasehold_core::input::{Change, Fault, Input};
use leasehold_core::output::Output;
use leasehold_core::range::{BlockRange, ByteRange};
use std::path::PathBuf;
use std::sync::Arc;

/// Where answers go. Called from storage threads; must not block.
pub type Answers = Arc<dyn Fn(Input) + Send + Sync>;

/// Hears of every block that a load or merge found to differ from its checksum. Called from storage threads, before the
/// answer with [`Fault::Io`]; must not block.
pub type MismatchObserver = Arc<dyn Fn(Mismatch) + Send + Sync>;

/// Puts something in front of a disk.
pub type WrapDisk = Arc<dyn Fn(Arc<dyn Disk>) -> Arc<dyn Disk> + Send + Sync>;

/// How to open a store.
#[derive(Clone)]
pub struct StorageConfig {
    /// The store's directory; it is created if it is empty or not there.
    pub directory: PathBuf,
    /// How to reach the disk.
    pub backend: Backend,
    /// Threads for checksums and for system calls that io_uring does not take.
    pub workers: usize,
    /// So many of them at most are at work for one file at a time, so that others need not wait for what it waits for.
    pub workers_for_a_file: usize,
    /// Write the checksums back and begin a new record once it is this long.
    pub checkpoint_bytes: u64,
    /// How long each of the record's two segments is made at first. A longer record costs more a batch, no more.
    pub segment_bytes: u64,
    /// Memory for sidecar pages that need not be written back.
    pub sidecar_bytes_max: u64,
    /// See [`MismatchObserver`].
    pub mismatches: Option<MismatchObserver>,
    /// Stands between the store and its disk: for recording what reaches the disk, and for disks that fail on purpose.
    pub wrap_disk: Option<WrapDisk>,
    /// Decides what becomes of each call of the kernel: for calls that are interrupted, cut short or refused on purpose.
    pub fates: Option<Fates>,
}

impl StorageConfig {
    /// The usual configuration for the store in `directory`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> StorageConfig {
        StorageConfig {
            directory: directory.into(),
            backend: Backend::Auto,
            workers: 3,
            workers_for_a_file: 2,
            checkpoint_bytes: 4 << 20,
            segment_bytes: 8 << 20,
            sidecar_bytes_max: 64 << 20,
            mismatches: None,
            wrap_disk: None,
            fates: None,
        }
    }
}

/// How to reach the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where the kernel lets us, else threads.
    #[default]
    Auto,
    /// pread and pwrite on threads.
    Threads,
}

/// What was found on opening.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// What people should know: which fallbacks are in use and why.
    pub notes: Vec<String>,
    /// Whether data goes from the frames to the disk without a copy (`O_DIRECT`).
    pub zero_copy: bool,
    /// Whether the store's last server ended without [`Storage::stop`].
    pub recovered: bool,
    /// What recovery could not make whole: blocks that are neither old nor new, a record damaged in the middle.
    pub damage: Vec<Damage>,
}

/// A block whose bytes are not those that were committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The file.
    pub file: FileId,
    /// Its last known path.
    pub path: StorePath,
    /// The block.
    pub block: u64,
    /// The CRC32C that was committed; `None` if recovery found the block torn.
    pub committed: Option<u32>,
    /// The CRC32C of what is there.
    pub found: u32,
}

/// What an output needs to be performed and the core does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    None,
    /// To `Output::Verify`: the CRC32C of the range's bytes, if the holder gave one.
    Crc(Option<u32>),
    /// To `Output::Perform` of `Change::Remove`: by unlinking this name. That is durable when answered, or else with the next flush
    /// of any file, as other changes of names are.
    Unlink {
        /// The file's last name.
        path: StorePath,
        /// Whether it waits until that is durable.
        durable: bool,
    },
    /// To `Output::Perform` of `Change::Remove`: by renaming `from` over the file's name `to`.
    RenameOver {
        /// The file that takes the name.
        from: StorePath,
        /// The last name of the file that is removed.
        to: StorePath,
    },
    /// To `Output::Perform` of `Change::Clone`: the copy becomes this staged file, whole and durable, with the source's
    /// checksums, permission bits and `user.*` attributes. After a fault nothing is staged. [`Storage::place`] or
    /// [`Detail::PlaceOver`] give it a name.
    Clone {
        /// Where to; a number from [`Storage::stage`].
        staged: Staged,
    },
    /// To `Output::Perform` of `Change::Remove`: by giving its last name to a staged file. Durable when answered.
    PlaceOver {
        /// The file that takes the name. After a fault it is staged still.
        staged: Staged,
        /// The last name of the file that is removed.
        to: StorePath,
    },
}

/// A clean shutdown that was not: the next open recovers from the write-ahead record.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not write the checksums back ({source}); the write-ahead record stays, and the next start recovers from it"
)]
pub struct StopError {
    /// What failed.
    #[source]
    pub source: std::io::Error,
}

/// See the module.
pub struct Storage {
    inner: Arc<Inner>,
}

impl Storage {
    /// Opens the store, or creates it in an empty directory, takes its lock and recovers. Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; nothing was changed then, but for what recovery had already put right.
    pub fn open(
        config: StorageConfig,
        arena: Arc<Arena>,
        answers: Answers,
    ) -> Result<(Storage, Opened), OpenError> {
        let (inner, opened) = Inner::open(config, arena, answers)?;
        Ok((Storage { inner }, opened))
    }

    /// Performs one of `Load`, `Zero`, `Verify`, `Merge`, `Capture`, `Record`, `Write`, `Perform`, `Flush`; never blocks. The
    /// answer comes later, from a storage thread, or before this returns if there is next to nothing to do; exactly one for
    /// each.
    ///
    /// # Panics
    ///
    /// On any other output. A file that is not open, and a detail that does not fit, panic on a storage thread. All are
    /// bugs of the caller.
    pub fn perform(&self, output: Output, detail: Detail) {
        let inner = &self.inner;
        inner.asked();
        match output {
            Output::Load { by, file, blocks, size, into } => inner.load(by, file, blocks, size, into),
            Output::Zero { lease, into } => inner.work(move |inner| inner.zero(lease, into)),
            Output::Verify { lease, range, run, .. } if inner.is_soon_verified(run) => {
                inner.verify(lease, range, run, &detail);
            }
            Output::Verify { lease, range, run, .. } => {
                inner.work(move |inner| inner.verify(lease, range, run, &detail));
            }
            Output::Merge { lease, file, range, size, run } => {
                inner.work_for(file, move |inner| inner.merge(lease, file, range, size, run));
            }
            Output::Capture { lease, range, from, into, .. } => {
                inner.work(move |inner| inner.capture(lease, range, from, into));
            }
            Output::Record { write, file, range, size, run } => {
                inner.work_for(file, move |inner| inner.record(write, file, range, size, run));
            }
            Output::Write { write, file: _, blocks, size: _, run } => inner.write(write, blocks, run),
            Output::Perform { request, file, change: change @ Change::Clone } => {
                inner.work_on_clone(move |inner| inner.change(request, file, change, &detail));
            }
            Output::Perform { request, file, change: change @ Change::Remove }
                if matches!(detail, Detail::Unlink { durable: false, .. }) =>
            {
                inner.work_here(file, move |inner| inner.change(request, file, change, &detail));
            }
            Output::Perform { request, file, change } => {
                inner.work_for(file, move |inner| inner.change(request, file, change, &detail));
            }
            Output::Flush { request, file } => {
                inner.work_for(file, move |inner| inner.flush(request, file));
            }
            other => panic!("{other:?} is not for the storage"),
        }
    }

    /// Opens the file at `path`. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn open_file(&self, path: &StorePath) -> Result<OpenedFile, NamespaceError> {
        self.inner.open_file(path, false, Damaged::Refuse)
    }

    /// Opens the file at `path` in order to adopt it: where [`Storage::open_file`] answers [`NamespaceError::Sidecar`], the
    /// header of its checksums is made anew, its length is its size, and all blocks of which nothing else is known are
    /// unknown. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn open_to_adopt(&self, path: &StorePath) -> Result<OpenedFile, NamespaceError> {
        self.inner.open_file(path, false, Damaged::Anew)
    }

    /// Opens the file at `path`, and creates it if it is not there. Blocks. The name is durable after the next flush
    /// of any file.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn create(&self, path: &StorePath) -> Result<OpenedFile, NamespaceError> {
        self.inner.open_file(path, true, Damaged::Refuse)
    }

    /// What is known about a name. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn stat(&self, path: &StorePath) -> Result<Stat, NamespaceError> {
        self.inner.stat(path)
    }

    /// Makes durable all names that were changed. Blocks.
    ///
    /// # Errors
    ///
    /// What the filesystem says; the names are kept in mind, for the next time.
    pub fn sync_names(&self) -> std::io::Result<()> {
        self.inner.names.sync()
    }

    /// Makes the inode of an open file durable that was just created, so that its next flush need not. Many threads at once
    /// may do it: the filesystem commits their files together. Blocks.
    ///
    /// # Errors
    ///
    /// What the filesystem says; the next flush tries again.
    pub fn sync_created(&self, file: FileId) -> std::io::Result<()> {
        let found = self.inner.files().by_id.get(&file).cloned();
        found.map_or(Ok(()), |file| self.inner.sync_inode(&file))
    }

    /// The names in a directory, sorted. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn list(&self, path: &StorePath) -> Result<Vec<Entry>, NamespaceError> {
        self.inner.list(path)
    }

    /// Makes a directory; its parent must exist. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn make_directory(&self, path: &StorePath) -> Result<(), NamespaceError> {
        self.inner.make_directory(path)
    }

    /// Gives a file or directory another name, which must be free: a rename over a file is `Output::Perform` of
    /// `Change::Remove`, since leases on the target must be broken. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn rename(&self, from: &StorePath, to: &StorePath) -> Result<(), NamespaceError> {
        self.inner.rename(from, to)
    }

    /// Gives each of two names what the other stood for, files, directories or whatever they are, at one moment: after a power
    /// loss, too, both have it or neither. No lease is broken. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`]; that of `renameat2` where the filesystem cannot do it.
    pub fn exchange(&self, one: &StorePath, other: &StorePath) -> Result<(), NamespaceError> {
        self.inner.exchange(one, other)
    }

    /// Gives a file the name of another file that has more names, and so loses none of its leases, or of something that the
    /// store does not serve. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn rename_over_extra(&self, from: &StorePath, to: &StorePath) -> Result<(), NamespaceError> {
        self.inner.rename_over_extra(from, to)
    }

    /// Gives a file one more name, which must be free. The store knows a file by what it is, so all of its names share
    /// its leases. Durable after the next flush of any file. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`]; directories have one name only.
    pub fn link(&self, from: &StorePath, to: &StorePath) -> Result<(), NamespaceError> {
        self.inner.link(from, to)
    }

    /// Makes the symbolic link `at`, whose name must be free. The store keeps it and never follows it, so `target` may say
    /// anything. Durable after the next flush of any file. It goes by [`Storage::unlink_extra`], since nobody has a lease
    /// on it. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn symlink(&self, target: &str, at: &StorePath) -> Result<(), NamespaceError> {
        self.inner.symlink(target, at)
    }

    /// What a symbolic link says. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::NotALink`] and others.
    pub fn read_link(&self, path: &StorePath) -> Result<String, NamespaceError> {
        self.inner.read_link(path)
    }

    /// Sets what a file, directory or symbolic link has beside its bytes. Durable after the next flush of the file if it is
    /// open, of any file if this is a directory or a link, else at once. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`]; some of it may have been set then.
    pub fn set_attributes(&self, path: &StorePath, attributes: &Attributes) -> Result<(), NamespaceError> {
        self.inner.set_attributes(path, attributes)
    }

    /// The `user.*` attributes of a file or directory; none of a symbolic link. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn xattrs(&self, path: &StorePath) -> Result<Xattrs, NamespaceError> {
        self.inner.xattrs(path)
    }

    /// A number for [`Detail::Clone`].
    #[must_use]
    pub fn stage(&self) -> Staged {
        self.inner.stage()
    }

    /// Whether a clone that has just been made had to be a copy, as its filesystem cannot share blocks. To be asked once.
    #[must_use]
    pub fn is_copy(&self, staged: Staged) -> bool {
        self.inner.copies().remove(&staged)
    }

    /// Gives a staged file a name, which must be free; durable when it returns. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::Exists`] and others; the file is staged still. Where somebody has the name:
    /// [`Detail::PlaceOver`], or [`Storage::place_over_extra`] if that file has more names, or is a symbolic link.
    pub fn place(&self, staged: Staged, to: &StorePath) -> Result<(), NamespaceError> {
        self.inner.place(staged, to)
    }

    /// Gives a staged file the name of another file that has more names, and so loses none of its leases, or of a
    /// symbolic link; durable when it returns. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`]; the file is staged still.
    pub fn place_over_extra(&self, staged: Staged, to: &StorePath) -> Result<(), NamespaceError> {
        self.inner.place_over_extra(staged, to)
    }

    /// Removes a staged file that is not wanted after all. It need not be there. Blocks.
    pub fn discard(&self, staged: Staged) {
        self.inner.discard(staged);
    }

    /// Whether the store's filesystem can take out this range: ask before `Input::Change` breaks anybody's lease.
    ///
    /// # Errors
    ///
    /// [`CollapseRefused`] says why not, and what to do instead.
    pub fn check_collapse(&self, range: ByteRange) -> Result<(), CollapseRefused> {
        self.inner.check_collapse(range)
    }

    /// What is committed in the blocks of an open file, up to its committed and durable size; its data is not read, and
    /// nothing is kept in memory. Known blocks take 4 bytes each, so ask for some of a large file at a time. Blocks.
    ///
    /// # Errors
    ///
    /// [`Fault`] if the sidecar cannot be read; the log has the cause.
    pub fn block_map(&self, file: FileId, blocks: BlockRange) -> Result<Vec<MapRun>, Fault> {
        let file = self.inner.file(file);
        self.inner.block_map(&file, blocks).map_err(|error| {
            tracing::error!(path = %file.path(), %error, "cannot read the checksums of the file");
            Fault::Io
        })
    }

    /// Forgets what is in memory of an open file: its checksums, once they are in the sidecar, and the kernel's page cache
    /// of it. It stays open ([`Storage::forget`] closes it). Blocks.
    ///
    /// # Errors
    ///
    /// [`Fault`] if the checksums cannot be written back; the log has the cause, and nothing was forgotten.
    pub fn evict(&self, file: FileId) -> Result<Evicted, Fault> {
        self.inner.evict_file(file).map_err(|error| {
            tracing::error!(path = ?self.path_of(file), %error, "cannot write the checksums back");
            crate::writeback::fault_of(&error)
        })
    }

    /// Removes an empty directory. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn remove_directory(&self, path: &StorePath) -> Result<(), NamespaceError> {
        self.inner.remove_directory(path)
    }

    /// Removes one name of a file that has others, or a symbolic link; a file's last name goes by `Output::Perform` of
    /// `Change::Remove`. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn unlink_extra(&self, path: &StorePath) -> Result<(), NamespaceError> {
        self.inner.unlink_extra(path)
    }

    /// The longest that a file of this store can be, a multiple of the block size: what the filesystem holds, or what a
    /// sidecar describes if that is less. A range that ends later is to be refused before anything is acknowledged of it:
    /// its `Record` fails.
    #[must_use]
    pub fn file_bytes_max(&self) -> u64 {
        self.inner.store.file_bytes_max
    }

    /// The last known path of an open file.
    #[must_use]
    pub fn path_of(&self, file: FileId) -> Option<StorePath> {
        self.inner.files().by_id.get(&file).map(|file| file.path())
    }

    /// The inode of an open file.
    #[must_use]
    pub fn inode_of(&self, file: FileId) -> Option<u64> {
        self.inner.files().by_id.get(&file).map(|file| file.inode)
    }

    /// The committed and durable size of an open file; see [`Storage::acknowledge`].
    #[must_use]
    pub fn size_of(&self, file: FileId) -> Option<u64> {
        let file = self.inner.files().by_id.get(&file).cloned()?;
        let size = file.sums().header.size;
        Some(size)
    }

    /// The core has acknowledged this size of an open file, which may not be durable yet: from now on, it is what
    /// [`Storage::stat`] says. The core's own thread says so before it replies.
    pub fn acknowledge(&self, file: FileId, size: u64) {
        let found = self.inner.files().by_id.get(&file).cloned();
        if let Some(file) = found {
            file.acknowledge(size);
        }
    }

    /// The committed size, durable or not, of the file with this inode: `None` if it is not open here, so that its length
    /// says it.
    #[must_use]
    pub fn size_if_open(&self, inode: u64) -> Option<u64> {
        let open = self.inner.files().by_inode.get(&inode).cloned();
        open.map(|file| file.size())
    }

    /// How many files were closed and keep their descriptors until the next checkpoint has written their checksums back.
    #[must_use]
    pub fn closing(&self) -> usize {
        let files = self.inner.files();
        files.by_identity.len().saturating_sub(files.by_id.len())
    }

    /// What an open file is on its disk.
    pub(crate) fn descriptor_of(&self, file: FileId) -> Option<Arc<DiskFile>> {
        self.inner.files().by_id.get(&file).map(|file| Arc::clone(&file.disk))
    }

    /// Closes an open file. The core must have forgotten it, with nothing under way. Its checksums are written back at
    /// the next checkpoint. Blocks.
    pub fn forget(&self, file: FileId) {
        self.inner.forget(file);
    }

    /// Calls `visit` with every ordinary file below `from`, in order, until it answers `false`. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn walk(
        &self,
        from: &StorePath,
        visit: &mut dyn FnMut(&StorePath) -> bool,
    ) -> Result<(), NamespaceError> {
        self.inner.walk(from, visit).map(drop)
    }

    /// What a read, or whoever else needed these blocks of an open file, last found wrong with the first of them that
    /// has anything: for people.
    #[must_use]
    pub fn trouble_in(&self, file: FileId, blocks: BlockRange) -> Option<String> {
        let file = self.inner.files().by_id.get(&file).cloned()?;
        file.trouble_in(blocks)
    }

    /// How many blocks of an open file are in which state. Blocks.
    ///
    /// # Errors
    ///
    /// [`Fault`] if the sidecar cannot be read; the log has the cause.
    pub fn survey(&self, file: FileId, blocks: BlockRange) -> Result<Survey, Fault> {
        let file = self.inner.file(file);
        self.inner.survey(&file, blocks).map_err(|error| {
            tracing::error!(path = %file.path(), %error, "cannot survey the file");
            JudgeError::Sums(error).fault()
        })
    }

    /// Removes the sidecars of files that are gone: others removed them. Takes a system call for each sidecar, and walks no
    /// files; a scrub of the whole store is the time for it. Blocks.
    ///
    /// # Errors
    ///
    /// [`Fault`] if the sidecars cannot be listed or removed; the log has the cause.
    pub fn collect_orphans(&self) -> Result<Orphans, Fault> {
        self.inner.collect_orphans().map_err(|error| {
            tracing::error!(%error, "cannot remove the sidecars of files that are gone");
            Fault::Io
        })
    }

    /// Writes all checksums back and begins a new write-ahead record. Blocks. Runs by itself when the record is long.
    ///
    /// # Errors
    ///
    /// [`Fault`]; the old record stays, so nothing is lost.
    pub fn checkpoint(&self) -> Result<(), Fault> {
        self.inner.checkpoint().map_err(|error| {
            tracing::error!(%error, "cannot write the checksums back");
            crate::writeback::fault_of(&error)
        })
    }

    /// Ends cleanly: what was asked for is answered, all checksums are durable, the record is retired. Blocks.
    ///
    /// # Errors
    ///
    /// [`StopError`].
    pub fn stop(&self) -> Result<(), StopError> {
        self.inner.stop().map_err(|source| StopError { source })
    }
}

impl Drop for Storage {
    /// As after a kill: nothing more is written back, and the next open recovers.
    fn drop(&mut self) {
        self.inner.abandon();
    }
}
