//! Two names exchange what they stand for.
//!
//! Neither name is free at any moment, and the filesystem does it in one transaction: after a power loss both have been
//! exchanged, or neither. The store knows files by what they are, so that nothing of it need be recorded.
//!
//! Source: rename(2), `RENAME_EXCHANGE`.

use crate::disk::NameChange;
use crate::names::{Names, below};
use crate::namespace::{NamespaceError, refused};
use crate::path::StorePath;
use crate::storage::Inner;
use crate::store::Store;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

impl Names {
    fn exchange(&self, store: &Store, one: &StorePath, other: &StorePath) -> rustix::io::Result<()> {
        let (one_directory, one_name) = self.parent(store, one)?;
        let (other_directory, other_name) = self.parent(store, other)?;
        let change = NameChange::Exchange { one: &below(one), other: &below(other) };
        self.change(change, &mut || {
            let flags = RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(&one_directory, one_name, &other_directory, other_name, flags)
        })?;
        self.changed(one_directory)?;
        self.changed(other_directory)
    }
}

impl Inner {
    pub(crate) fn exchange(&self, one: &StorePath, other: &StorePath) -> Result<(), NamespaceError> {
        if one.is_root() || other.is_root() {
            return Err(NamespaceError::Root);
        }
        let _names = self.names.hold();
        self.names.exchange(&self.store, one, other).map_err(|error| match error {
            Errno::NOENT if self.stat(one).is_ok() => NamespaceError::NotFound { path: other.clone() },
            error => refused("exchange", one)(error),
        })?;
        self.called_anew(|path| path.renamed(one, other).or_else(|| path.renamed(other, one)));
        Ok(())
    }
}
