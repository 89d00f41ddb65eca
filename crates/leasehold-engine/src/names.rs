//! Names of the store's files, resolved so that no link and no `..` leads out of it.
//!
//! Directories whose entries changed are remembered and made durable by the next flush of any file: one fsync of a
//! directory then covers every name made in it meanwhile.

use crate::disk::{Disk, NameChange};
use crate::path::StorePath;
use crate::store::Store;
use crate::sync::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::{Errno, retry_on_intr};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Directories by device and inode, since they may be renamed meanwhile.
type Unsynced = BTreeMap<(u64, u64), OwnedFd>;

/// See the module.
pub(crate) struct Names {
    disk: Arc<dyn Disk>,
    unsynced: Mutex<Unsynced>,
    /// Held while they are flushed: whoever finds nothing to flush must not be faster than the flush.
    syncing: Mutex<()>,
    no_openat2: AtomicBool,
    changing: Mutex<()>,
}

impl Names {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Names {
        let (unsynced, syncing, no_openat2, changing) = Default::default();
        Names { disk, unsynced, syncing, no_openat2, changing }
    }

    /// Changes names, which `perform` does, by way of the disk.
    pub(crate) fn change<T>(
        &self,
        change: NameChange<'_>,
        perform: &mut dyn FnMut() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        let mut performed = None;
        let changed = self.disk.change_name(change, &mut || {
            performed = Some(perform()?);
            Ok(())
        });
        match (changed, performed) {
            (Ok(()), Some(done)) => Ok(done),
            (Err(error), _) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            (Ok(()), None) => Err(Errno::IO),
        }
    }

    /// Until drop, nobody else changes what a name stands for: to be held from a look at a name to the change that rests on
    /// it.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().expect("no panic while held")
    }

    /// Opens what `path` names.
    pub(crate) fn open(&self, store: &Store, path: &StorePath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let name = if path.is_root() { "." } else { path.as_str() };
        let (flags, mode) = (flags | OFlags::CLOEXEC, Mode::empty());
        if !self.no_openat2.load(Ordering::Relaxed) {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            loop {
                match rustix::fs::openat2(&store.files, name, flags, mode, resolve) {
                    // AGAIN: a rename elsewhere made the kernel unsure.
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(Errno::NOSYS | Errno::PERM) => break self.no_openat2.store(true, Ordering::Relaxed),
                    other => return other,
                }
            }
        }
        self.open_by_steps(store, path, flags)
    }

    /// Without openat2 (kernels before 5.6, some sandboxes): one part at a time, following no link.
    fn open_by_steps(&self, store: &Store, path: &StorePath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Some((parent, name)) = path.split() else {
            return retry_on_intr(|| rustix::fs::openat(&store.files, ".", flags, Mode::empty()));
        };
        let mut directory = retry_on_intr(|| rustix::fs::openat(&store.files, ".", step, Mode::empty()))?;
        for part in parent.as_str().split('/').filter(|part| !part.is_empty()) {
            directory = retry_on_intr(|| rustix::fs::openat(&directory, part, step, Mode::empty()))?;
        }
        retry_on_intr(|| rustix::fs::openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty()))
    }

    /// The directory of `path`, and the name in it.
    pub(crate) fn parent<'a>(
        &self,
        store: &Store,
        path: &'a StorePath,
    ) -> rustix::io::Result<(OwnedFd, &'a str)> {
        let (parent, name) = path.split().ok_or(Errno::INVAL)?;
        Ok((self.open(store, &parent, OFlags::RDONLY | OFlags::DIRECTORY)?, name))
    }

    /// The directory, or whatever else, is to be made durable by the next flush of any file.
    pub(crate) fn changed(&self, directory: OwnedFd) -> rustix::io::Result<()> {
        let stat = rustix::fs::fstat(&directory)?;
        self.unsynced().insert((stat.st_dev, stat.st_ino), directory);
        Ok(())
    }

    /// Opens a file, and creates it if it is not there. Whether it was created.
    pub(crate) fn create(&self, store: &Store, path: &StorePath) -> rustix::io::Result<(OwnedFd, bool)> {
        let (directory, name) = self.parent(store, path)?;
        // What has the name already is opened as any other, in case that it is none of the store's.
        let flags = store.data_flags() | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut create = || rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o666));
        loop {
            match self.change(NameChange::Create(&below(path)), &mut create) {
                Err(Errno::EXIST) => match self.open(store, path, store.data_flags()) {
                    Err(Errno::NOENT) => {} // somebody was faster
                    other => return Ok((other?, false)),
                },
                other => {
                    let file = other?;
                    self.changed(directory)?;
                    return Ok((file, true));
                }
            }
        }
    }

    pub(crate) fn make_directory(&self, store: &Store, path: &StorePath) -> rustix::io::Result<()> {
        let (directory, name) = self.parent(store, path)?;
        self.change(NameChange::MakeDirectory(&below(path)), &mut || {
            rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o777))
        })?;
        self.changed(directory)
    }

    /// Renames; `over`: whatever has the name `to` loses it, else it must be free.
    pub(crate) fn rename(
        &self,
        store: &Store,
        from: &StorePath,
        to: &StorePath,
        over: bool,
    ) -> rustix::io::Result<()> {
        let (from_directory, from_name) = self.parent(store, from)?;
        let (to_directory, to_name) = self.parent(store, to)?;
        let (from_path, to_path) = (below(from), below(to));
        let change = NameChange::Rename { from: &from_path, to: &to_path };
        self.rename_entry(change, (&from_directory, from_name), (&to_directory, to_name), over)?;
        self.changed(from_directory)?;
        self.changed(to_directory)
    }

    /// Renames from one directory to another, and remembers neither.
    pub(crate) fn rename_entry(
        &self,
        change: NameChange<'_>,
        (from_directory, from): (&OwnedFd, &str),
        (to_directory, to): (&OwnedFd, &str),
        over: bool,
    ) -> rustix::io::Result<()> {
        let flags = if over { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let mut rename = || match rustix::fs::renameat_with(from_directory, from, to_directory, to, flags) {
            // Filesystems without NOREPLACE: the store is ours, so nobody takes the name between look and rename.
            Err(Errno::INVAL) if !over => {
                match rustix::fs::statat(to_directory, to, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => rustix::fs::renameat(from_directory, from, to_directory, to),
                    Ok(_) => Err(Errno::EXIST),
                    Err(error) => Err(error),
                }
            }
            other => other,
        };
        self.change(change, &mut rename)
    }

    pub(crate) fn unlink(&self, store: &Store, path: &StorePath, flags: AtFlags) -> rustix::io::Result<()> {
        let (directory, name) = self.parent(store, path)?;
        self.unlink_from(directory, name, path, flags)
    }

    /// [`Names::unlink`] with what [`Names::parent`] has found.
    pub(crate) fn unlink_from(
        &self,
        directory: OwnedFd,
        name: &str,
        path: &StorePath,
        flags: AtFlags,
    ) -> rustix::io::Result<()> {
        self.change(NameChange::Remove(&below(path)), &mut || rustix::fs::unlinkat(&directory, name, flags))?;
        self.changed(directory)
    }

    /// Makes durable all names that changed. Blocks; whoever comes meanwhile waits and finds the work done.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let _one = self.syncing.lock().expect("no panic while held");
        // Names go on changing: what changes from now on is not in these.
        let mut unsynced = std::mem::take(&mut *self.unsynced());
        while let Some(directory) = unsynced.first_entry() {
            if let Err(error) = self.disk.sync_directory(directory.get().as_fd()) {
                self.unsynced().append(&mut unsynced);
                return Err(error);
            }
            directory.remove();
        }
        Ok(())
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        self.unsynced.lock().expect("no panic while held")
    }
}

/// As the disk calls it.
pub(crate) fn below(path: &StorePath) -> String {
    format!("files/{}", path.as_str())
}
