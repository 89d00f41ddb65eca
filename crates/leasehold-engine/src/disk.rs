//! The seam between what the store decides and how the kernel is asked: reads, writes, flushes, sizes and names.
//!
//! Everything that must survive a power loss passes here: data, the write-ahead record, sidecars, names; so a disk that
//! records what it is asked, and forgets what was not flushed, can stand in for the real one ([`Disk`]).
//!
//! An operation is done wholly or fails: implementations continue after a short write and after EINTR or EAGAIN.

pub use crate::identity::Identity;

use crate::buffer::Buffer;
use crate::sync::{Mutex, mpsc};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// Larger operations go to the kernel in pieces of this size, many at once. Pieces of frames are cut at multiples of
/// it in the arena, so none straddles two registered buffers.
pub const PIECE_BYTES: usize = 2 << 20;

/// An open file, and what to call it in logs.
#[derive(Debug)]
pub struct DiskFile {
    /// The descriptor.
    pub file: File,
    /// A path, for people and for recordings.
    pub name: String,
}

/// Memory that an operation uses until it is done.
#[derive(Debug)]
pub enum Memory {
    /// Frames of the arena, which the core keeps aside until the operation is answered.
    Frames {
        /// In the arena's disk view.
        address: NonNull<u8>,
        /// In bytes.
        length: usize,
    },
    /// Memory of our own.
    Own(Buffer),
}

// SAFETY: frames are valid as long as the arena (the storage holds it until all operations are done), and have one
// owner at a time, which is the operation.
unsafe impl Send for Memory {}

impl Memory {
    pub(crate) fn address(&self) -> NonNull<u8> {
        match self {
            Memory::Frames { address, .. } => *address,
            Memory::Own(buffer) => buffer.address(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Memory::Frames { length, .. } => *length,
            Memory::Own(buffer) => buffer.len(),
        }
    }

    /// Zeroes what a read has not filled. Where a file ends within a block, the disk may have brought the whole block all the
    /// same.
    fn zero_from(&self, count: usize) {
        let rest = self.len().checked_sub(count).expect("no more is read than there is room for");
        // SAFETY: the rest lies within the memory, which is the operation's alone until it is given back.
        unsafe { self.address().add(count).write_bytes(0, rest) };
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Fill the memory; what is there for bytes past the end of file is worth nothing.
    Read,
    /// Write the memory. Durable when done (`RWF_DSYNC`).
    Write,
}

/// One transfer.
#[derive(Debug)]
pub struct Transfer {
    /// What to do.
    pub verb: Verb,
    /// Where.
    pub file: Arc<DiskFile>,
    /// From which byte of it.
    pub offset: u64,
    /// From or into what.
    pub memory: Memory,
}

/// A change of names. Paths are relative to the store's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameChange<'a> {
    /// A new, empty file.
    Create(&'a str),
    /// A new, empty directory.
    MakeDirectory(&'a str),
    /// Whatever has the name `to` loses it.
    Rename {
        /// What it is called.
        from: &'a str,
        /// What it will be called.
        to: &'a str,
    },
    /// Two names, each of which stands for what the other stood for.
    Exchange {
        /// One of them.
        one: &'a str,
        /// The other.
        other: &'a str,
    },
    /// One more name of a file.
    Link {
        /// One that it has.
        from: &'a str,
        /// The new one.
        to: &'a str,
    },
    /// A new symbolic link.
    Symlink {
        /// What it says.
        target: &'a str,
        /// Its name.
        at: &'a str,
    },
    /// One name of a file goes, or an empty directory.
    Remove(&'a str),
}

/// Told how many bytes were transferred, and given the memory back. Called from a thread of the disk, which it must not
/// block.
pub type Done = Box<dyn FnOnce(io::Result<usize>, Memory) + Send>;

/// See the module.
pub trait Disk: Send + Sync {
    /// Begins a transfer of at most [`PIECE_BYTES`].
    fn submit(&self, transfer: Transfer, done: Done);

    /// A read of at most [`PIECE_BYTES`], on this thread if that can be. Blocks. Not to be called from a thread of the disk.
    fn read_here(&self, transfer: Transfer) -> (io::Result<usize>, Memory) {
        wait(self, transfer)
    }

    /// Waits until every transfer is done, and fails those that come later. Not to be called from a thread of the disk.
    fn finish(&self);

    /// Makes size and contents of the file durable. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `fsync`.
    fn sync(&self, file: &DiskFile) -> io::Result<()> {
        Ok(rustix::fs::fsync(&file.file)?)
    }

    /// Sets the file's size. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `ftruncate`.
    fn truncate(&self, file: &DiskFile, size: u64) -> io::Result<()> {
        Ok(retry(|| rustix::fs::ftruncate(&file.file, size))?)
    }

    /// Makes the bytes read as zeros, and frees their space where the filesystem can. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `fallocate` and `pwrite`.
    fn punch(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry(|| fallocate(&file.file, flags, offset, length)) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(self, file, offset, length),
            other => Ok(other?),
        }
    }

    /// Makes the bytes read as zeros, and keeps their space, or takes it. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `fallocate` and `pwrite`.
    fn zero(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match retry(|| fallocate(&file.file, flags, offset, length)) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(self, file, offset, length),
            other => Ok(other?),
        }
    }

    /// Takes the bytes out: what is behind them moves to the front. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `fallocate`.
    fn collapse(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        Ok(retry(|| fallocate(&file.file, FallocateFlags::COLLAPSE_RANGE, offset, length))?)
    }

    /// Makes `to`, which is empty, a copy of `from` that shares its space. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `ioctl_ficlone`; `EOPNOTSUPP`, `EXDEV`, `EINVAL` and `ENOTTY` where the filesystem cannot.
    fn clone_file(&self, from: &DiskFile, to: &DiskFile) -> io::Result<()> {
        Ok(retry(|| rustix::fs::ioctl_ficlone(&to.file, &from.file))?)
    }

    /// Changes names, which `perform` does. Durable once the directories concerned are. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `perform`.
    fn change_name(
        &self,
        change: NameChange<'_>,
        perform: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let _ = change;
        perform()
    }

    /// Makes the names in a directory durable. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `fsync`.
    fn sync_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::fsync(directory)?)
    }

    /// Which file it is: what its sidecar and its records are kept under.
    ///
    /// # Errors
    ///
    /// Those of `statx`.
    fn identify(&self, file: BorrowedFd<'_>) -> io::Result<Identity> {
        Identity::of(&file)
    }
}

/// What happens to transfers that come after the end.
pub(crate) fn refuse(transfer: Transfer, done: Done) {
    done(Err(io::Error::other("the storage has stopped")), transfer.memory);
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

/// For filesystems without holes. Offset and length are multiples of 4096.
fn write_zeros(disk: &(impl Disk + ?Sized), file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
    let file = Arc::new(DiskFile { file: file.file.try_clone()?, name: file.name.clone() });
    let mut at = offset;
    while at < offset + length {
        let step = (offset + length - at).min(PIECE_BYTES as u64);
        let memory = Memory::Own(Buffer::zeroed(step as usize));
        wait(disk, Transfer { verb: Verb::Write, file: Arc::clone(&file), offset: at, memory }).0?;
        at += step;
    }
    Ok(())
}

/// Transfers, and waits for it. Not to be called from a thread of the disk.
pub(crate) fn wait(disk: &(impl Disk + ?Sized), transfer: Transfer) -> (io::Result<usize>, Memory) {
    let (send, receive) = mpsc::channel();
    disk.submit(
        transfer,
        Box::new(move |result, memory| {
            // The receiver waits right below.
            let _ = send.send((result, memory));
        }),
    );
    receive.recv().expect("a disk answers every transfer")
}

/// Reads `length` bytes (a multiple of 4096), with zeros past the end of file. Blocks.
pub(crate) fn read(disk: &dyn Disk, file: &Arc<DiskFile>, offset: u64, length: usize) -> io::Result<Buffer> {
    let memory = Memory::Own(Buffer::zeroed(length));
    match disk.read_here(Transfer { verb: Verb::Read, file: Arc::clone(file), offset, memory }) {
        (Ok(count), memory) => {
            memory.zero_from(count);
            let Memory::Own(buffer) = memory else { unreachable!("the memory comes back as it went") };
            Ok(buffer)
        }
        (Err(error), _) => Err(error),
    }
}

/// Writes the buffer, durably. Blocks.
pub(crate) fn write(disk: &dyn Disk, file: &Arc<DiskFile>, offset: u64, buffer: Buffer) -> io::Result<()> {
    let memory = Memory::Own(buffer);
    wait(disk, Transfer { verb: Verb::Write, file: Arc::clone(file), offset, memory }).0.map(drop)
}

/// Transfers frames in pieces; what lies past the end of file is read as zeros. `done` hears once: all is well, or the first
/// error.
pub(crate) fn transfer_frames(
    disk: &dyn Disk,
    verb: Verb,
    file: &Arc<DiskFile>,
    offset: u64,
    frames: (NonNull<u8>, usize),
    arena_offset: u64,
    done: impl FnOnce(io::Result<()>) + Send + 'static,
) {
    let length = frames.1;
    let first = (PIECE_BYTES - (arena_offset as usize % PIECE_BYTES)).min(length);
    let mut cuts = vec![0, first];
    while *cuts.last().expect("not empty") < length {
        cuts.push((cuts.last().expect("not empty") + PIECE_BYTES).min(length));
    }
    let gathered =
        Arc::new(Mutex::new(Gathered { left: cuts.len() - 1, error: None, done: Some(Box::new(done)) }));
    for cut in cuts.windows(2) {
        let gathered = Arc::clone(&gathered);
        disk.submit(
            piece(verb, file, offset, frames, cut[0]..cut[1]),
            Box::new(move |result, memory| {
                // Here, and not once all are there: the file may end elsewhere by the time of the next piece.
                if let (Verb::Read, Ok(count)) = (verb, &result) {
                    memory.zero_from(*count);
                }
                Gathered::piece(&gathered, result);
            }),
        );
    }
}

/// Does a [`piece`] that is a read, with zeros past the end of file. Blocks. Not to be called from a thread of the disk.
pub(crate) fn read_piece(disk: &dyn Disk, piece: Transfer) -> io::Result<()> {
    let (read, memory) = disk.read_here(piece);
    memory.zero_from(read?);
    Ok(())
}

/// The transfer of a part of frames, at most [`PIECE_BYTES`]; the first frame is at `offset` of the file.
pub(crate) fn piece(
    verb: Verb,
    file: &Arc<DiskFile>,
    offset: u64,
    (address, length): (NonNull<u8>, usize),
    part: Range<usize>,
) -> Transfer {
    assert!(part.end <= length, "the part lies within the frames");
    // SAFETY: it does.
    let address = unsafe { address.add(part.start) };
    let memory = Memory::Frames { address, length: part.len() };
    Transfer { verb, file: Arc::clone(file), offset: offset + part.start as u64, memory }
}

type DoneFrames = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Gathered {
    left: usize,
    error: Option<io::Error>,
    done: Option<DoneFrames>,
}

impl Gathered {
    fn piece(gathered: &Mutex<Gathered>, result: io::Result<usize>) {
        let mut all = gathered.lock().expect("no panic while held");
        if let Err(error) = result {
            all.error.get_or_insert(error);
        }
        all.left -= 1;
        if all.left > 0 {
            return;
        }
        let result = all.error.take().map_or(Ok(()), Err);
        let done = all.done.take().expect("the last piece comes once");
        drop(all);
        done(result);
    }
}

#[cfg(test)]
mod conformance;
