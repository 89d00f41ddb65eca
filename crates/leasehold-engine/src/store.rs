//! A store's directory: its layout, its format, its lock.
//!
//! ```text
//! DIR/files/                 ordinary files
//! DIR/.leasehold/format      "leasehold store 2"
//! DIR/.leasehold/lock        flocked by the server, with its pid
//! DIR/.leasehold/log/0, 1    the write-ahead record
//! DIR/.leasehold/staging/..  files that have no name yet
//! DIR/.leasehold/sums/xx/..  sidecars, by identity; xx: the last two digits of its hash
//! ```

use crate::buffer::Buffer;
use crate::disk::{self, Disk, DiskFile, NameChange};
use crate::identity::Identity;
use crate::sidecar::{BLOCKS_PER_PAGE, PAGE, PAGES_MAX};
use rustix::fs::{FlockOperation, OFlags, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The newest format that this version knows, and the one that it leaves behind.
pub const FORMAT: u32 = 2;
const FORMAT_LINE: &str = "leasehold store ";

/// It accepts O_DIRECT since Linux 6.6, and copies all the same.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;
/// It accepts O_DIRECT, and copies files with checksums since Linux 6.14.
pub(crate) const BTRFS: rustix::fs::FsWord = 0x9123_683E;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum OpenError {
    /// Another server has it open.
    #[error("the store {directory:?} is in use by {holder}; stop that server, or serve another directory")]
    InUse { directory: PathBuf, holder: String },
    /// A newer version made it.
    #[error(
        "the store {directory:?} has format {found}, and this version knows {known}; use a newer leasehold"
    )]
    NewerFormat { directory: PathBuf, found: u32, known: u32 },
    /// It holds files that are not a store's.
    #[error(
        "{directory:?} is neither empty nor a store; name an empty directory, or move its files into files/ of one"
    )]
    NotAStore { directory: PathBuf },
    /// Its own records cannot be understood.
    #[error("{path:?} of the store is damaged ({what}); restore it from a backup")]
    Damaged { path: PathBuf, what: String },
    /// The filesystem said no.
    #[error("cannot {operation} {path:?}: {source}; check that it exists, can be written and has space")]
    System {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Gives an error of the system its place.
pub(crate) fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::System { operation, path, source }
}

/// An open store: its directories, and its lock until drop.
pub(crate) struct Store {
    pub(crate) disk: Arc<dyn Disk>,
    own: PathBuf,
    /// The root of the files.
    pub(crate) files: File,
    /// Whether the filesystem takes O_DIRECT.
    pub(crate) direct: bool,
    /// The longest that a file can be for the filesystem and for its sidecar, in whole blocks.
    pub(crate) file_bytes_max: u64,
    /// Its kind, as `statfs` says.
    pub(crate) kind: rustix::fs::FsWord,
    /// Ranges of whole multiples of this can be taken out of files; `None`: none can.
    pub(crate) collapse_unit: Option<u64>,
    /// Its format, if that is an older one: nothing of a newer one may be written before [`Store::write_format`].
    pub(crate) older: Option<u32>,
    /// Where files are that have no name yet.
    pub(crate) staging: OwnedFd,
    lock: File,
}

impl Store {
    /// Opens the store in `directory`, or makes one there if the directory is empty or missing.
    pub(crate) fn open(disk: Arc<dyn Disk>, directory: &Path) -> Result<Store, OpenError> {
        let own = directory.join(".leasehold");
        let format = own.join("format");
        let found = match fs::read_to_string(&format) {
            Ok(text) => Some(check_format(directory, &format, &text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_empty(directory)?;
                None
            }
            Err(error) => return Err(at("read", &format)(error)),
        };
        make_directory(&*disk, &own, ".leasehold").map_err(at("create", &own))?;
        let lock = take_lock(directory, &own.join("lock"))?;
        let files_path = directory.join("files");
        let staging_path = own.join("staging");
        for name in [".leasehold/log", ".leasehold/sums", ".leasehold/staging", "files"] {
            let path = directory.join(name);
            make_directory(&*disk, &path, name).map_err(at("create", &path))?;
        }
        let files = File::open(&files_path).map_err(at("open", &files_path))?;
        let staging = File::open(&staging_path).map_err(at("open", &staging_path))?.into();
        let kind =
            rustix::fs::fstatfs(&files).map_err(io::Error::from).map_err(at("look at", &files_path))?.f_type;
        let direct = kind != TMPFS && takes_direct(&own.join("probe"))?;
        let file_bytes_max = file_bytes_max(&own.join("probe"))?;
        let collapse_unit = collapse_unit(&*disk, &own.join("probe"))?;
        let older = found.filter(|found| *found < FORMAT);
        let store =
            Store { disk, own, files, direct, file_bytes_max, kind, collapse_unit, staging, older, lock };
        if found.is_none() {
            // The format goes last: a store that has one is complete.
            store.write_format().map_err(at("write", &format))?;
            store.sync_directory(directory).map_err(at("sync", directory))?;
            if let Some(parent) = directory.canonicalize().ok().as_deref().and_then(Path::parent) {
                store.sync_directory(parent).map_err(at("sync", parent))?;
            }
        }
        Ok(store)
    }

    /// How files of the store are opened for their data.
    pub(crate) fn data_flags(&self) -> OFlags {
        let direct = if self.direct { OFlags::DIRECT } else { OFlags::empty() };
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | direct
    }

    /// Says durably that the store has the newest format.
    pub(crate) fn write_format(&self) -> io::Result<()> {
        let line = format!("{FORMAT_LINE}{FORMAT}\n");
        let file = self.create_own("format.new")?;
        let file = Arc::new(DiskFile { file, name: ".leasehold/format.new".to_owned() });
        disk::write(&*self.disk, &file, 0, Buffer::of(line.as_bytes()))?;
        self.disk.truncate(&file, line.len() as u64)?;
        self.disk.sync(&file)?;
        let change = NameChange::Rename { from: ".leasehold/format.new", to: ".leasehold/format" };
        self.disk
            .change_name(change, &mut || fs::rename(self.own.join("format.new"), self.own.join("format")))?;
        self.sync_directory(&self.own)
    }

    fn open_own(&self, path: &Path) -> io::Result<File> {
        let flags = (self.data_flags() - OFlags::RDWR).bits().cast_signed();
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
    }

    /// Opens a file below `.leasehold`, and creates it if it is not there.
    fn create_own(&self, name: &str) -> io::Result<File> {
        let path = self.own.join(name);
        match self.open_own(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let change = format!(".leasehold/{name}");
                self.disk
                    .change_name(NameChange::Create(&change), &mut || File::create_new(&path).map(drop))?;
                self.open_own(&path)
            }
            other => other,
        }
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_directory(File::open(path)?.as_fd())
    }

    /// A segment of the write-ahead record, written once if it is new.
    pub(crate) fn segment(&self, number: usize, bytes: u64) -> Result<Arc<DiskFile>, OpenError> {
        let path = self.own.join("log").join(number.to_string());
        let file = self.create_own(&format!("log/{number}")).map_err(at("open", &path))?;
        let length = file.metadata().map_err(at("open", &path))?.len();
        let segment = Arc::new(DiskFile { file, name: format!(".leasehold/log/{number}") });
        if length < bytes {
            let from = length / 4096 * 4096;
            let zeros = Buffer::zeroed((bytes - from) as usize);
            disk::write(&*self.disk, &segment, from, zeros).map_err(at("write", &path))?;
            self.sync_directory(&self.own.join("log")).map_err(at("sync", &path))?;
        }
        Ok(segment)
    }

    /// Below `.leasehold`: its directory, and itself.
    fn sidecar_path(identity: Identity) -> (String, String) {
        let directory = format!("sums/{:02x}", identity.hash() as u8);
        let file = format!("{directory}/{identity}");
        (directory, file)
    }

    /// The sidecar of a file, if it has one.
    pub(crate) fn sidecar(&self, identity: Identity) -> io::Result<Option<Arc<DiskFile>>> {
        match self.open_own(&self.own.join(Store::sidecar_path(identity).1)) {
            Ok(file) => Ok(Some(Arc::new(DiskFile { file, name: sidecar_name(identity) }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the sidecar of a file; durably there when done.
    pub(crate) fn create_sidecar(&self, identity: Identity) -> io::Result<Arc<DiskFile>> {
        let (directory, file) = Store::sidecar_path(identity);
        if !self.own.join(&directory).exists() {
            make_directory(&*self.disk, &self.own.join(&directory), &format!(".leasehold/{directory}"))?;
            self.sync_directory(&self.own.join("sums"))?;
        }
        let file = self.create_own(&file)?;
        self.sync_directory(&self.own.join(&directory))?;
        Ok(Arc::new(DiskFile { file, name: sidecar_name(identity) }))
    }

    /// Calls `visit` with the identity of every sidecar. What has no name of a sidecar is left alone.
    pub(crate) fn each_sidecar(&self, visit: &mut dyn FnMut(Identity) -> io::Result<()>) -> io::Result<()> {
        for directory in fs::read_dir(self.own.join("sums"))? {
            for sidecar in fs::read_dir(directory?.path())? {
                if let Some(identity) = sidecar?.file_name().to_str().and_then(Identity::parse) {
                    visit(identity)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn remove_sidecar(&self, identity: Identity) -> io::Result<()> {
        let name = Store::sidecar_path(identity).1;
        let change = format!(".leasehold/{name}");
        let removed =
            self.disk.change_name(NameChange::Remove(&change), &mut || fs::remove_file(self.own.join(&name)));
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // By hand: a child that was just forked may still have the descriptor.
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!(%error, "cannot unlock the store");
        }
    }
}

fn sidecar_name(identity: Identity) -> String {
    format!(".leasehold/sums/{identity}")
}

fn check_format(directory: &Path, path: &Path, text: &str) -> Result<u32, OpenError> {
    let number = text.strip_prefix(FORMAT_LINE).and_then(|rest| rest.trim_end().parse::<u32>().ok());
    match number {
        Some(found @ 1..=FORMAT) => Ok(found),
        Some(found) => Err(OpenError::NewerFormat { directory: directory.to_owned(), found, known: FORMAT }),
        None => Err(OpenError::Damaged {
            path: path.to_owned(),
            what: format!("it should say \"{FORMAT_LINE}{FORMAT}\" and says {text:?}"),
        }),
    }
}

fn check_empty(directory: &Path) -> Result<(), OpenError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return fs::create_dir_all(directory).map_err(at("create", directory));
        }
        Err(error) => return Err(at("read", directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(at("read", directory))?;
        // `lost+found` is made by mkfs; `files` and `.leasehold` by somebody who prepares a store, or a start cut short.
        if !["lost+found", "files", ".leasehold"].iter().any(|name| entry.file_name() == *name) {
            return Err(OpenError::NotAStore { directory: directory.to_owned() });
        }
    }
    Ok(())
}

fn take_lock(directory: &Path, path: &Path) -> Result<File, OpenError> {
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(at("open", path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = fs::read_to_string(path).unwrap_or_default();
            let holder =
                if holder.trim().is_empty() { "another process".into() } else { holder.trim().into() };
            return Err(OpenError::InUse { directory: directory.to_owned(), holder });
        }
        Err(error) => return Err(at("lock", path)(error.into())),
    }
    lock.set_len(0).map_err(at("write", path))?;
    writeln!(lock, "pid {}", std::process::id()).map_err(at("write", path))?;
    Ok(lock)
}

/// Whether a file opened with O_DIRECT can be written in blocks.
fn takes_direct(probe: &Path) -> Result<bool, OpenError> {
    use std::os::unix::fs::FileExt;
    let direct = OFlags::DIRECT.bits().cast_signed();
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(direct)
        .open(probe);
    let takes = match opened.and_then(|file| file.write_all_at(&Buffer::zeroed(4096), 0)) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
        Err(error) => return Err(at("write", probe)(error)),
    };
    match fs::remove_file(probe) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", probe)(error)),
        _ => Ok(takes),
    }
}

/// See [`Store`]. The filesystem is asked, since what `ftruncate` takes depends on its kind, its block size and its
/// features (ext4: 16 TiB less a block). A process's own limit comes before: to pass it is a signal (SIGXFSZ).
fn file_bytes_max(probe: &Path) -> Result<u64, OpenError> {
    use rustix::io::Errno;
    use rustix::process::{Resource, getrlimit};
    const BLOCK: u64 = PAGE as u64;
    let file = File::create(probe).map_err(at("create", probe))?;
    fs::remove_file(probe).map_err(at("remove", probe))?;
    let holds = |blocks: u64| match rustix::fs::ftruncate(&file, blocks * BLOCK) {
        Ok(()) => Ok(true),
        Err(Errno::FBIG | Errno::INVAL | Errno::OVERFLOW | Errno::NOSPC) => Ok(false),
        Err(error) => Err(at("find the longest file with", probe)(error.into())),
    };
    let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX).min(i64::MAX.cast_unsigned());
    // `enough` blocks fit, `over` blocks do not.
    let (mut enough, mut over) = (0, limit / BLOCK + 1);
    while over - enough > 1 {
        // From the top: most filesystems take it all.
        let next =
            if enough == 0 && over == limit / BLOCK + 1 { over - 1 } else { enough + (over - enough) / 2 };
        if holds(next)? { enough = next } else { over = next }
    }
    // Its sidecar is such a file too: a header, then pages.
    let pages = enough.saturating_sub(1).min(PAGES_MAX);
    Ok(enough.min(pages * BLOCKS_PER_PAGE) * BLOCK)
}

/// Makes a directory of the store, unless it is there.
fn make_directory(disk: &dyn Disk, path: &Path, name: &str) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    match disk.change_name(NameChange::MakeDirectory(name), &mut || fs::create_dir(path)) {
        // Somebody was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// See [`Store`]. The filesystem is asked: it depends on its kind, its block size and its features.
fn collapse_unit(disk: &dyn Disk, probe: &Path) -> Result<Option<u64>, OpenError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(probe);
    let file = DiskFile { file: file.map_err(at("create", probe))?, name: ".leasehold/probe".to_owned() };
    fs::remove_file(probe).map_err(at("remove", probe))?;
    for unit in (0..=8).map(|doubled| (PAGE as u64) << doubled) {
        file.file.set_len(2 * unit).map_err(at("write", probe))?;
        match disk.collapse(&file, 0, unit) {
            Ok(()) => return Ok(Some(unit)),
            // Blocks that are larger.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::Threads;
    use std::sync::Barrier;
    use std::thread;

    /// A checkpoint writes the checksums of several files at a time. Two that were the first ones of their directory both found
    /// that it was not there, and the second one's checkpoint failed: File exists.
    #[test]
    fn sidecars_are_made_at_the_same_time_in_a_directory_that_is_not_there_yet() {
        const FILES: usize = 4;
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(Threads::start(1, None).unwrap());
        let store = Store::open(disk, &directory.path().join("store")).unwrap();
        // By hash, those of one directory; as many as come together by chance.
        let mut shards: Vec<Vec<Identity>> = vec![Vec::new(); 256];
        for number in 0..FILES * 256 {
            let file = File::create(directory.path().join(format!("store/files/{number}"))).unwrap();
            let identity = Identity::of(&file).unwrap();
            shards[usize::from(identity.hash() as u8)].push(identity);
        }
        for shard in shards {
            let together = Barrier::new(shard.len());
            thread::scope(|scope| {
                for identity in shard {
                    let (store, together) = (&store, &together);
                    scope.spawn(move || {
                        together.wait();
                        store.create_sidecar(identity).unwrap();
                    });
                }
            });
        }
    }
}
