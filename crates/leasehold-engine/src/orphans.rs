//! Sidecars of files that are gone: others removed them, or a crash came between a file's end and that of its sidecar.
//!
//! The kernel is asked by each identity (`open_by_handle_at`), so nothing is walked but the sidecars themselves. Where it does
//! not let us, or where the filesystem has no handles, sidecars stay: they cost space and do no harm.

use crate::identity::Exists;
use crate::storage::Inner;
use std::io;

/// What became of sidecars whose files are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Sidecars of files that are gone; they were removed.
    pub removed: u64,
    /// Sidecars of which the kernel did not say whether their files exist: the server may not ask (it takes
    /// `CAP_DAC_READ_SEARCH`), or the filesystem has no file handles.
    pub unsure: u64,
}

impl Inner {
    pub(crate) fn collect_orphans(&self) -> io::Result<Orphans> {
        let mut orphans = Orphans::default();
        self.store.each_sidecar(&mut |identity| {
            match identity.exists(&self.store.files)? {
                Exists::Yes => {}
                Exists::Unsure => orphans.unsure += 1,
                // Open, or still to be written back: whoever removes it removes its sidecar too.
                Exists::No if self.files().by_identity.contains_key(&identity) => {}
                Exists::No => {
                    self.store.remove_sidecar(identity)?;
                    orphans.removed += 1;
                }
            }
            Ok(())
        })?;
        Ok(orphans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::store::Store;
    use crate::threads::Threads;
    use std::fs::File;
    use std::sync::Arc;

    #[test]
    fn a_file_exists_by_its_identity_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(Threads::start(1, None).unwrap());
        let store = Store::open(disk, &directory.path().join("store")).unwrap();
        let name = directory.path().join("store/files/a");
        let identity = Identity::of(&File::create(&name).unwrap()).unwrap();
        store.create_sidecar(identity).unwrap();
        let mut seen = Vec::new();
        let visit = &mut |identity| {
            seen.push(identity);
            Ok(())
        };
        store.each_sidecar(visit).unwrap();
        assert_eq!(seen, [identity]);
        match identity.exists(&store.files).unwrap() {
            Exists::Yes => {}
            Exists::Unsure => {
                return eprintln!("SKIPPED: the kernel does not say whether an identity exists");
            }
            Exists::No => panic!("it is there"),
        }
        std::fs::remove_file(&name).unwrap();
        assert_eq!(identity.exists(&store.files).unwrap(), Exists::No);
    }
}
