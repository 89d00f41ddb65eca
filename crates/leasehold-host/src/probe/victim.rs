//! The file that DMA goes into.

use super::disk::{self, Tally};
use super::mapping::Mapping;
use super::pattern::{self, Content, Mark, PAGE_BYTES};
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// How many pages one flight of DMA goes to.
pub(super) const PAGES: usize = 64;
/// The same in bytes.
pub(super) const BYTES: usize = PAGES * PAGE_BYTES;

/// A file with known content, durable, and mapped shared. Removed when dropped.
pub(super) struct Victim {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) mapping: Mapping,
}

impl Victim {
    /// A new one, in which `mark` wrote.
    pub(super) fn make(directory: &Path, mark: Mark) -> io::Result<Victim> {
        let path = directory.join("victim");
        let file = write(&path, mark)?;
        let mapping = Mapping::shared(&file, BYTES)?;
        Ok(Victim { file, path, mapping })
    }

    /// What a read through the page cache has to show for a DMA of `mark`, and what is on disk after an fsync.
    ///
    /// # Errors
    /// Also of the fsync, which says so: a filesystem may refuse to write back pages that DMA has made dirty.
    pub(super) fn landed(&self, mark: Mark) -> io::Result<(Tally, Tally)> {
        let cached = tally(&disk::contents_cached(&self.path, PAGES)?, mark);
        let failed = |error| io::Error::other(format!("after the DMA, fsync fails: {error}"));
        self.file.sync_all().map_err(failed)?;
        fadvise(&self.file, 0, None, Advice::DontNeed)?;
        Ok((cached, tally(&disk::contents(&self.path, PAGES)?, mark)))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // With the scratch directory, at the latest.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes a file of [`PAGES`] pages that `mark` wrote, durably.
pub(super) fn write(path: &Path, mark: Mark) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.write_all(&pattern::bytes(mark, 0, PAGES))?;
    file.sync_all()?;
    Ok(file)
}

/// Counts pages against what `mark` writes there.
pub(super) fn tally(contents: &[Content], mark: Mark) -> Tally {
    let mut tally = Tally::default();
    for (found, number) in contents.iter().zip(0..) {
        tally.count(*found, Content::Marked(mark, number));
    }
    tally
}
