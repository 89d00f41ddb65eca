//! Where the bytes go: a file beside the one that is wanted, until it is complete.
//!
//! `NAME.leasehold-part` stays when a get fails or is killed, and `get --resume` goes on from it. A lock keeps two gets
//! from writing the same one.

use crate::command::exit::{Exit, Failure};
use anyhow::Context as _;
use leasehold_client::{BLOCK_BYTES, ByteRange, crc32c};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const SUFFIX: &str = ".leasehold-part";

/// What the user named.
pub(crate) enum Local {
    File(Sink),
    /// Standard output, a device, a pipe: in order, and once.
    Stream(Box<dyn Write + Send>),
}

/// See the module.
pub(crate) struct Sink {
    /// What is compared and written: the part; or the complete file, as long as nothing was found to differ from it.
    file: Mutex<Option<Arc<File>>>,
    path: PathBuf,
    resume: bool,
}

impl Local {
    pub(crate) fn open(path: &Path, resume: bool) -> anyhow::Result<Local> {
        if path == Path::new("-") {
            return Ok(Local::Stream(Box::new(io::stdout())));
        }
        let context = || format!("cannot write {}", path.display());
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                let text = format!("{} is a directory; name a file in it", path.display());
                Err(Failure::new(Exit::Usage, text).into())
            }
            Ok(found) if !found.is_file() => {
                Ok(Local::Stream(Box::new(File::options().write(true).open(path).with_context(context)?)))
            }
            _ => Ok(Local::File(Sink::new(path.to_owned(), resume))),
        }
    }
}

impl Sink {
    pub(crate) fn new(path: PathBuf, resume: bool) -> Sink {
        Sink { file: Mutex::default(), path, resume }
    }

    /// Where the part is.
    pub(crate) fn part_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(SUFFIX);
        name.into()
    }

    /// What a resumed get can compare with: what an earlier one left, or else the file that is there.
    pub(crate) fn there(&self) -> Option<File> {
        if !self.resume {
            return None;
        }
        let ordinary = |path: &Path| {
            let found = path.symlink_metadata().ok()?;
            if found.is_file() { File::open(path).ok() } else { None }
        };
        ordinary(&self.part_path()).or_else(|| ordinary(&self.path))
    }

    /// The part, made when it is first needed.
    fn part(&self) -> io::Result<Arc<File>> {
        let mut part = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = &*part {
            return Ok(part.clone());
        }
        Ok(part.insert(Arc::new(self.open_part()?)).clone())
    }

    fn open_part(&self) -> io::Result<File> {
        let path = self.part_path();
        let file = loop {
            // Not through a link that somebody put there.
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
            let file = options.open(&path)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
                Errno::WOULDBLOCK => io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another get is writing it; wait for that one",
                ),
                error => error.into(),
            })?;
            // The other get may just have given it its name.
            let (mine, there) = (file.metadata()?, path.symlink_metadata());
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
                break file;
            }
        };
        if !self.resume {
            file.set_len(0)?;
        } else if file.metadata()?.len() == 0
            && let Ok(mut complete) = File::open(&self.path)
        {
            // What is there already need not come again.
            io::copy(&mut complete, &mut &file)?;
        }
        Ok(file)
    }

    /// Writes at an offset; holes stay where nothing is written.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> anyhow::Result<()> {
        let write = || self.part()?.write_all_at(bytes, offset);
        write().with_context(|| format!("cannot write {}", self.part_path().display()))
    }

    /// The range becomes a hole, if anything is there.
    pub(crate) fn clear(&self, range: ByteRange) -> anyhow::Result<()> {
        let Some(there) = self.there() else { return Ok(()) }; // it is new
        match seek(&there, SeekFrom::Data(range.start())) {
            Err(Errno::NXIO) => return Ok(()),
            Ok(data) if data >= range.end() => return Ok(()),
            Ok(_) | Err(_) => {}
        }
        let clear = || {
            let file = self.part()?;
            let length = file.metadata()?.len();
            let Some(range) = ByteRange::new(range.start(), range.end().min(length)) else { return Ok(()) };
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&*file, flags, range.start(), range.len()) {
                Err(Errno::OPNOTSUPP) => zero(&file, range),
                done => Ok(done?),
            }
        };
        clear().with_context(|| format!("cannot write {}", self.part_path().display()))
    }

    /// Gives the complete file of `size` bytes its name.
    pub(crate) fn finish(&self, size: u64) -> anyhow::Result<()> {
        let untouched = self.file.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        let same = || self.path.symlink_metadata().is_ok_and(|there| there.is_file() && there.len() == size);
        if self.resume && untouched && !self.part_path().exists() && same() {
            return Ok(()); // all that was wanted was there
        }
        let finish = || {
            self.part()?.set_len(size)?;
            std::fs::rename(self.part_path(), &self.path)
        };
        finish().with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// After a failure: says where what came is, if anything came.
    pub(crate) fn give_up(&self) -> Option<String> {
        let part = self.file.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let path = self.part_path();
        if part.metadata().is_ok_and(|found| found.len() == 0) {
            // Nothing to go on from.
            let _ = std::fs::remove_file(&path);
            return None;
        }
        Some(format!("what came is in {}; get --resume goes on from it", path.display()))
    }
}

fn zero(file: &File, range: ByteRange) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    let mut at = range.start();
    while let Some(part) = ByteRange::new(at, range.end().min(at + zeros.len() as u64)) {
        file.write_all_at(&zeros[..part.len() as usize], at)?;
        at = part.end();
    }
    Ok(())
}

/// The CRC32C of a range of a local file and zeros to the end of its last block; `None` if the file ends before.
pub(crate) fn crc32c_here(file: &File, range: ByteRange) -> io::Result<Option<u32>> {
    let mut bytes = vec![0; range.len().next_multiple_of(BLOCK_BYTES) as usize];
    match file.read_exact_at(&mut bytes[..range.len() as usize], range.start()) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some(crc32c(&bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_local_file_appears_only_when_it_is_complete_and_a_part_stays_for_the_next_get() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let sink = Sink::new(path.clone(), false);
        sink.write_at(b"half", 0).unwrap();
        assert_eq!(names(directory.path()), ["file.leasehold-part"]);
        assert!(sink.give_up().unwrap().contains("file.leasehold-part"));
        drop(sink);
        let sink = Sink::new(path.clone(), true);
        let first = ByteRange::new(0, 4).unwrap();
        let mut block = [0; 4096];
        block[..4].copy_from_slice(b"half");
        assert_eq!(crc32c_here(&sink.there().unwrap(), first).unwrap(), Some(crc32c(&block)));
        sink.write_at(b" and half", 4).unwrap();
        sink.finish(13).unwrap();
        assert_eq!(names(directory.path()), ["file"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"half and half");
    }

    #[test]
    fn two_gets_do_not_write_the_same_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let (first, second) = (Sink::new(path.clone(), false), Sink::new(path, false));
        first.write_at(b"1", 0).unwrap();
        let error = format!("{:#}", second.write_at(b"2", 0).unwrap_err());
        assert!(error.contains("another get is writing it"), "{error}");
        first.finish(1).unwrap();
        second.write_at(b"2", 0).unwrap();
        assert_eq!(names(directory.path()), ["file", "file.leasehold-part"]);
    }

    #[test]
    fn a_file_that_is_complete_already_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"all of it").unwrap();
        let before = std::fs::metadata(&path).unwrap().ino();
        Sink::new(path.clone(), true).finish(9).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
        Sink::new(path.clone(), true).finish(3).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"all", "it is cut, beside the old one");
    }
}
