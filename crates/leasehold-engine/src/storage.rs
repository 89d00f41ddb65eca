//! A store: real files, their checksums and their write-ahead record, behind the core's data outputs.

use crate::arena::Arena;
use crate::path::StorePath;
use leasehold_core::ids::FileId;
use leasehold_core::input::{Fault, Input};
use leasehold_core::output::Output;
use leasehold_core::range::BlockRange;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// Where answers go. Called from storage threads; must not block.
pub type Answers = Arc<dyn Fn(Input) + Send + Sync>;

/// Hears of every block that a load found to differ from its checksum. Called from storage threads, before the load
/// is answered with [`Fault::Io`]; must not block.
pub type MismatchObserver = Arc<dyn Fn(Mismatch) + Send + Sync>;

/// How to open a store.
#[derive(Clone)]
pub struct StorageConfig {
    /// The store's directory; it is created if it is empty or not there.
    pub directory: PathBuf,
    /// How to reach the disk.
    pub backend: Backend,
    /// Threads for checksums and for system calls that io_uring does not take.
    pub workers: usize,
    /// Write the checksums back and begin a new record once it is this long.
    pub checkpoint_bytes: u64,
    /// Memory for sidecar pages that need not be written back.
    pub sidecar_bytes_max: u64,
    /// See [`MismatchObserver`].
    pub mismatches: Option<MismatchObserver>,
}

impl StorageConfig {
    /// The usual configuration for the store in `directory`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> StorageConfig {
        StorageConfig {
            directory: directory.into(),
            backend: Backend::Auto,
            workers: 2,
            checkpoint_bytes: 4 << 20,
            sidecar_bytes_max: 64 << 20,
            mismatches: None,
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
    /// Whether the store's last server ended without [`Storage::stop`].
    pub recovered: bool,
    /// What recovery could not make whole: blocks that are neither old nor new, a record damaged in the middle.
    pub damage: Vec<Damage>,
}

/// Something that recovery could not make whole. Reads of the blocks answer [`Fault::Io`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, if it is known.
    pub path: Option<StorePath>,
    /// Its blocks, if they are known.
    pub blocks: Option<BlockRange>,
    /// What is the matter.
    pub what: String,
}

/// Blocks whose bytes are not those that were committed.
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
    /// To `Output::Perform` of `Change::Remove`: by unlinking this name.
    Unlink { path: StorePath },
    /// To `Output::Perform` of `Change::Remove`: by renaming `from` over the file's name `to`.
    RenameOver { from: StorePath, to: StorePath },
}

/// A file that was opened or created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedFile {
    /// Its id until it is forgotten. Every name of the file gives the same.
    pub file: FileId,
    /// Its committed size in bytes.
    pub size: u64,
    /// How many names it has.
    pub links: u64,
    /// Whether this call created it.
    pub created: bool,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary file.
    File,
    /// A directory.
    Directory,
    /// Something that the store does not serve (a symbolic link, a device ..).
    Other,
}

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it stands for.
    pub kind: Kind,
    /// The file's committed and durable size; of an open file the core may know a newer one.
    pub size: u64,
    /// How many names it has.
    pub links: u64,
    /// When it was last modified on disk.
    pub modified: SystemTime,
    /// Its id, if it is open.
    pub file: Option<FileId>,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, without the directory.
    pub name: String,
    /// What it stands for.
    pub kind: Kind,
}

/// Why a name could not be looked up or changed.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Nothing is there.
    #[error("{path} does not exist; create it first, or check the name")]
    NotFound { path: StorePath },
    /// Something is there already.
    #[error("{path} exists already; remove it first, or choose another name")]
    Exists { path: StorePath },
    /// It is not an ordinary file.
    #[error("{path} is not an ordinary file; name one")]
    NotAFile { path: StorePath },
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
    #[error("the root of the store cannot be renamed or removed; name something in it")]
    Root,
    /// The filesystem said no.
    #[error("cannot {operation} {path}; see the cause")]
    System {
        operation: &'static str,
        path: StorePath,
        #[source]
        source: std::io::Error,
    },
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has it open.
    #[error("the store {directory:?} is in use by {holder}; stop that server, or serve another directory")]
    InUse { directory: PathBuf, holder: String },
    /// A newer version made it.
    #[error(
        "the store {directory:?} has format {found}, and this version knows {known}; use a newer leasehold"
    )]
    NewerFormat { directory: PathBuf, found: String, known: u32 },
    /// It holds files that are not a store's.
    #[error(
        "{directory:?} is neither empty nor a store; name an empty directory, or move its files into files/ of one"
    )]
    NotAStore { directory: PathBuf },
    /// Its own records cannot be understood.
    #[error(
        "{path:?} of the store is damaged ({what}); restore it from a backup, or move it away and run scrub --adopt"
    )]
    Damaged { path: PathBuf, what: String },
    /// The filesystem said no.
    #[error("cannot {operation} {path:?}; check that the directory exists, can be written and has space")]
    System {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A clean shutdown that was not: the next open recovers from the write-ahead record.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not write the checksums back ({what}); the write-ahead record stays, and the next start recovers from it"
)]
pub struct StopError {
    /// What failed.
    pub what: String,
}

/// See the module.
pub struct Storage {}

impl Storage {
    /// Opens the store, or creates it in an empty directory, takes its lock and recovers.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; nothing was changed then, but for what recovery had already put right.
    pub fn open(
        config: StorageConfig,
        arena: Arc<Arena>,
        answers: Answers,
    ) -> Result<(Storage, Opened), OpenError> {
        let _ = (config, arena, answers);
        unimplemented!()
    }

    /// Performs one of `Load`, `Zero`, `Verify`, `Merge`, `Record`, `Write`, `Perform`, `Flush`; never blocks. The
    /// answer comes later, from a storage thread.
    ///
    /// # Panics
    ///
    /// On any other output, on a file that is not open, and on a detail that does not fit: bugs of the caller.
    pub fn perform(&self, output: Output, detail: Detail) {
        let _ = (output, detail);
        unimplemented!()
    }

    /// Opens the file at `path`. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn open_file(&self, path: &StorePath) -> Result<OpenedFile, NamespaceError> {
        let _ = path;
        unimplemented!()
    }

    /// Opens the file at `path`, and creates it if it is not there. Blocks. The name is durable after the next flush
    /// of any file.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn create(&self, path: &StorePath) -> Result<OpenedFile, NamespaceError> {
        let _ = path;
        unimplemented!()
    }

    /// What is known about a name. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn stat(&self, path: &StorePath) -> Result<Stat, NamespaceError> {
        let _ = path;
        unimplemented!()
    }

    /// The names in a directory, sorted. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn list(&self, path: &StorePath) -> Result<Vec<Entry>, NamespaceError> {
        let _ = path;
        unimplemented!()
    }

    /// Makes a directory; its parent must exist. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn make_directory(&self, path: &StorePath) -> Result<(), NamespaceError> {
        let _ = path;
        unimplemented!()
    }

    /// Gives a file or directory another name, which must be free: a rename over a file is `Output::Perform` of
    /// `Change::Remove`, since leases on the target must be broken. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn rename(&self, from: &StorePath, to: &StorePath) -> Result<(), NamespaceError> {
        let _ = (from, to);
        unimplemented!()
    }

    /// Removes an empty directory. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn remove_directory(&self, path: &StorePath) -> Result<(), NamespaceError> {
        let _ = path;
        unimplemented!()
    }

    /// Removes one name of a file that has others; the last one goes by `Output::Perform` of `Change::Remove`. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`].
    pub fn unlink_extra(&self, path: &StorePath) -> Result<(), NamespaceError> {
        let _ = path;
        unimplemented!()
    }

    /// The last known path of an open file.
    #[must_use]
    pub fn path_of(&self, file: FileId) -> Option<StorePath> {
        let _ = file;
        unimplemented!()
    }

    /// Closes an open file. The core must have forgotten it, with nothing under way. Its checksums are written back at
    /// the next checkpoint.
    pub fn forget(&self, file: FileId) {
        let _ = file;
        unimplemented!()
    }

    /// Writes all checksums back and begins a new write-ahead record. Blocks. Runs by itself when the record is long.
    ///
    /// # Errors
    ///
    /// [`Fault`]; the old record stays, so nothing is lost.
    pub fn checkpoint(&self) -> Result<(), Fault> {
        unimplemented!()
    }

    /// Ends cleanly: what was asked for is answered, all checksums are durable, the record is retired. Blocks.
    ///
    /// # Errors
    ///
    /// [`StopError`].
    pub fn stop(self) -> Result<(), StopError> {
        unimplemented!()
    }
}
