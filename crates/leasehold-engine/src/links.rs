//! Hard links and symbolic links. The store keeps symbolic links and never follows one.

use crate::disk::NameChange;
use crate::names::{Names, below};
use crate::namespace::{NamespaceError, refused};
use crate::path::StorePath;
use crate::storage::Inner;
use crate::store::Store;
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

impl Names {
    fn link(&self, store: &Store, from: &StorePath, to: &StorePath) -> rustix::io::Result<()> {
        let (from_directory, from_name) = self.parent(store, from)?;
        let (directory, name) = self.parent(store, to)?;
        self.change(NameChange::Link { from: &below(from), to: &below(to) }, &mut || {
            rustix::fs::linkat(&from_directory, from_name, &directory, name, AtFlags::empty())
        })?;
        self.changed(directory)
    }

    fn symlink(&self, store: &Store, target: &str, at: &StorePath) -> rustix::io::Result<()> {
        let (directory, name) = self.parent(store, at)?;
        self.change(NameChange::Symlink { target, at: &below(at) }, &mut || {
            rustix::fs::symlinkat(target, &directory, name)
        })?;
        self.changed(directory)
    }
}

impl Inner {
    pub(crate) fn link(&self, from: &StorePath, to: &StorePath) -> Result<(), NamespaceError> {
        if from.is_root() || to.is_root() {
            return Err(NamespaceError::Root);
        }
        let _names = self.names.hold();
        self.names.link(&self.store, from, to).map_err(|error| match error {
            Errno::EXIST => NamespaceError::Exists { path: to.clone() },
            // linkat(2): a directory.
            Errno::PERM => NamespaceError::NotAFile { path: from.clone() },
            Errno::NOENT if self.stat(from).is_ok() => NamespaceError::NotFound { path: to.clone() },
            error => refused("link", from)(error),
        })
    }

    pub(crate) fn symlink(&self, target: &str, at: &StorePath) -> Result<(), NamespaceError> {
        if at.is_root() {
            return Err(NamespaceError::Root);
        }
        let _names = self.names.hold();
        self.names.symlink(&self.store, target, at).map_err(refused("make the symbolic link", at))
    }

    pub(crate) fn read_link(&self, path: &StorePath) -> Result<String, NamespaceError> {
        let failed = || refused("read the symbolic link", path);
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let link = self.names.open(&self.store, path, flags).map_err(failed())?;
        let mode = rustix::fs::fstat(&link).map_err(failed())?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::Symlink {
            return Err(NamespaceError::NotALink { path: path.clone() });
        }
        let text = rustix::fs::readlinkat(&link, "", Vec::new()).map_err(failed())?;
        text.into_string().map_err(|_| NamespaceError::NotText { path: path.clone() })
    }
}
