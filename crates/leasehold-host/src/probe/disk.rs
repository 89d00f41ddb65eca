//! What is on the disk, past the page cache.

use super::pattern::{Content, PAGE_BYTES, Page};
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::Errno;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Pages that are read or written at once.
const PAGES_AT_ONCE: usize = 16;

/// Opens a file so that reads come from the disk.
pub(super) fn open_direct(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// The same, only for reading.
pub(super) fn open_direct_read(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The first pages of a file, as they are on the disk. Where the filesystem has no O_DIRECT, clean pages are dropped from
/// the cache first. A page of which the checksum does not match is [`Content::Unreadable`].
///
/// # Errors
/// Those of open(2) and read(2), but for such pages.
pub fn contents(path: &Path, pages: usize) -> io::Result<Vec<Content>> {
    let file = match open_direct(path) {
        Ok(file) => file,
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            let file = File::open(path)?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
            file
        }
        Err(error) => return Err(error),
    };
    contents_of(&file, 0, pages)
}

/// The same, as a read through the page cache has it.
pub(super) fn contents_cached(path: &Path, pages: usize) -> io::Result<Vec<Content>> {
    contents_of(&File::open(path)?, 0, pages)
}

/// Of any open file, from an offset on.
pub(super) fn contents_of(file: &File, offset: u64, pages: usize) -> io::Result<Vec<Content>> {
    let mut contents = Vec::with_capacity(pages);
    let mut buffer = vec![Page::ZEROS; PAGES_AT_ONCE.min(pages)];
    while contents.len() < pages {
        let now = buffer.len().min(pages - contents.len());
        let at = offset + (contents.len() * PAGE_BYTES) as u64;
        let mut slices: Vec<IoSliceMut<'_>> =
            buffer[..now].iter_mut().map(|page| IoSliceMut::new(&mut page.0)).collect();
        match rustix::io::preadv(file, &mut slices, at) {
            Ok(read) if read == now * PAGE_BYTES => contents.extend(buffer[..now].iter().map(Page::content)),
            _ => {
                // One by one: which of them is it?
                for number in 0..now {
                    contents.push(content_of(file, at + (number * PAGE_BYTES) as u64)?);
                }
            }
        }
    }
    Ok(contents)
}

fn content_of(file: &File, at: u64) -> io::Result<Content> {
    let mut page = Page::ZEROS;
    match file.read_at(&mut page.0, at) {
        Ok(PAGE_BYTES) => Ok(page.content()),
        Ok(0) => Ok(Content::Absent),
        Ok(_) => Ok(Content::Mixed),
        Err(error) if is_checksum(&error) => Ok(Content::Unreadable),
        Err(error) => Err(error),
    }
}

/// How a filesystem says that a checksum does not match.
pub(super) fn is_checksum(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::ILSEQ | Errno::UCLEAN))
}

/// Writes pages past the cache.
pub(super) fn write_direct(path: &Path, pages: &[Page]) -> io::Result<()> {
    let file = open_direct(path)?;
    for (number, part) in pages.chunks(PAGES_AT_ONCE).enumerate() {
        let slices: Vec<IoSlice<'_>> = part.iter().map(|page| IoSlice::new(&page.0)).collect();
        let written = rustix::io::pwritev(&file, &slices, (number * PAGES_AT_ONCE * PAGE_BYTES) as u64)?;
        if written != part.len() * PAGE_BYTES {
            return Err(io::Error::other("a short write"));
        }
    }
    Ok(())
}

/// How many pages were found to be what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    expected: u64,
    zeros: u64,
    older: u64,
    mixed: u64,
    unreadable: u64,
    absent: u64,
}

impl Tally {
    /// Counts, by what should be there.
    pub fn count(&mut self, found: Content, expected: Content) {
        let counter = match found {
            _ if found == expected => &mut self.expected,
            Content::Zeros => &mut self.zeros,
            Content::Marked(..) => &mut self.older,
            Content::Mixed => &mut self.mixed,
            Content::Unreadable => &mut self.unreadable,
            Content::Absent => &mut self.absent,
        };
        *counter += 1;
    }

    /// Those that were not as expected.
    #[must_use]
    pub fn wrong(&self) -> u64 {
        self.zeros + self.older + self.mixed + self.unreadable + self.absent
    }

    /// All that were counted.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.expected + self.wrong()
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Tally) {
        self.expected += other.expected;
        self.zeros += other.zeros;
        self.older += other.older;
        self.mixed += other.mixed;
        self.unreadable += other.unreadable;
        self.absent += other.absent;
    }
}

/// `all 640 pages: 320 zeros, 320 other bytes`
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.wrong(), self.all()) {
            (wrong, all) if wrong == all => write!(f, "all {all} pages")?,
            (wrong, all) => write!(f, "{wrong} of {all} pages")?,
        }
        let kinds = [
            (self.zeros, "zeros"),
            (self.older, "other bytes"),
            (self.mixed, "torn"),
            (self.unreadable, "I/O error"),
            (self.absent, "past the end"),
        ];
        let there: Vec<_> = kinds.into_iter().filter(|(count, _)| *count > 0).collect();
        match there[..] {
            [] => Ok(()),
            [(_, kind)] => write!(f, ": {kind}"),
            _ => {
                let parts: Vec<String> =
                    there.iter().map(|(count, kind)| format!("{count} {kind}")).collect();
                write!(f, ": {}", parts.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Mark;
    use super::*;

    #[test]
    fn what_is_on_disk_is_told_page_by_page_and_the_end_is_no_error() {
        let directory = tempfile::TempDir::new_in(".").unwrap();
        let path = directory.path().join("file");
        let pages: Vec<Page> = (0..18).map(|number| Page::of(Mark(5), number)).collect();
        File::create(&path).unwrap();
        write_direct(&path, &pages).unwrap();
        let found = contents(&path, 20).unwrap();
        assert_eq!(found.len(), 20);
        assert!(found[..18].iter().zip(0..).all(|(found, at)| *found == Content::Marked(Mark(5), at)));
        assert_eq!(found[18..], [Content::Absent; 2]);
    }

    #[test]
    fn a_tally_says_which_kinds_there_are() {
        let mut tally = Tally::default();
        tally.count(Content::Zeros, Content::Zeros);
        assert_eq!(tally.to_string(), "0 of 1 pages");
        tally.count(Content::Zeros, Content::Mixed);
        assert_eq!(tally.to_string(), "1 of 2 pages: zeros");
        tally.count(Content::Unreadable, Content::Zeros);
        assert_eq!(tally.to_string(), "2 of 3 pages: 1 zeros, 1 I/O error");
        let mut all = Tally::default();
        all.count(Content::Mixed, Content::Zeros);
        assert_eq!(all.to_string(), "all 1 pages: torn");
    }
}
