//! Files that are being made beside the store's own: `.leasehold/staging/NUMBER`, until they get a name.
//!
//! A staged file is whole and durable, with a sidecar of its own, before it is placed under a name by one rename. So a
//! crash leaves it without a name, or whole; what has no name is removed on the next opening.

use crate::disk::NameChange;
use crate::names::{Names, below};
use crate::namespace::{Kind, NamespaceError, refused};
use crate::path::StorePath;
use crate::storage::Inner;
use crate::store::Store;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

/// A file that has no name yet; its number, unique until the store is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Staged(pub u64);

impl fmt::Display for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// As the disk calls it.
fn staged_path(name: &str) -> String {
    format!(".leasehold/staging/{name}")
}

impl Store {
    /// Makes a staged file, which nobody else has.
    pub(crate) fn create_staged(&self, staged: Staged) -> io::Result<OwnedFd> {
        let flags = self.data_flags() | OFlags::CREATE | OFlags::EXCL;
        let mut opened = None;
        self.disk.change_name(NameChange::Create(&staged_path(&staged.to_string())), &mut || {
            let mode = Mode::from_raw_mode(0o600);
            opened = Some(rustix::fs::openat(&self.staging, staged.to_string(), flags, mode)?);
            Ok(())
        })?;
        Ok(opened.expect("it was created"))
    }

    /// Removes what is staged under this name, and its sidecar. Nothing there is fine.
    fn remove_staged(&self, name: &str) -> io::Result<()> {
        match rustix::fs::openat(&self.staging, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            found => self.remove_sidecar(self.disk.identify(found?.as_fd())?)?,
        }
        self.disk.change_name(NameChange::Remove(&staged_path(name)), &mut || {
            Ok(rustix::fs::unlinkat(&self.staging, name, AtFlags::empty())?)
        })
    }

    /// Removes what a crash left without a name. Takes as long as there are such files.
    pub(crate) fn empty_staging(&self) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.staging)? {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => self.remove_staged(name)?,
            }
        }
        Ok(())
    }
}

impl Names {
    /// Gives a staged file the name `to`; `over`: whatever has it loses it, else it must be free.
    pub(crate) fn place(
        &self,
        store: &Store,
        staged: Staged,
        to: &StorePath,
        over: bool,
    ) -> rustix::io::Result<()> {
        let (directory, name) = self.parent(store, to)?;
        let (from, to) = (staged_path(&staged.to_string()), below(to));
        let change = NameChange::Rename { from: &from, to: &to };
        self.rename_entry(change, (&store.staging, &staged.to_string()), (&directory, name), over)?;
        self.changed(directory)
    }
}

impl Inner {
    pub(crate) fn stage(&self) -> Staged {
        Staged(self.staged.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) fn place(&self, staged: Staged, to: &StorePath) -> Result<(), NamespaceError> {
        if to.is_root() {
            return Err(NamespaceError::Root);
        }
        {
            let _names = self.names.hold();
            self.names.place(&self.store, staged, to, false).map_err(refused("place", to))?;
        }
        self.placed(to)
    }

    pub(crate) fn place_over_extra(&self, staged: Staged, to: &StorePath) -> Result<(), NamespaceError> {
        {
            let _names = self.names.hold();
            self.check_extra_name(to)?;
            self.names.place(&self.store, staged, to, true).map_err(refused("place", to))?;
        }
        self.placed(to)
    }

    /// That a name can be taken away without anybody losing a lease.
    pub(crate) fn check_extra_name(&self, path: &StorePath) -> Result<(), NamespaceError> {
        let target = self.stat(path)?;
        match (target.kind, target.links) {
            (Kind::File, 1) => Err(NamespaceError::LastName { path: path.clone() }),
            (Kind::File | Kind::Link, _) => Ok(()),
            _ => Err(NamespaceError::NotAFile { path: path.clone() }),
        }
    }

    fn placed(&self, to: &StorePath) -> Result<(), NamespaceError> {
        let failed = |source| NamespaceError::System { operation: "make durable", path: to.clone(), source };
        self.names.sync().map_err(failed)
    }

    pub(crate) fn discard(&self, staged: Staged) {
        if let Err(error) = self.store.remove_staged(&staged.to_string()) {
            tracing::warn!(%staged, %error, "cannot remove a staged file; the next start does");
        }
    }
}
