//! The seam between what the store decides and how the kernel is asked: reads, writes, flushes, sizes and names.
//!
//! Everything that must survive a power loss passes here: data, the write-ahead record, sidecars, names; so a disk that
//! records what it is asked, and forgets what was not flushed, can stand in for the real one ([`Disk`]).
//!
//! An operation is done wholly or fails: what the kernel interrupts is asked again, and what it does in part is continued
//! (`Progress`, `ask`). Tests decide what becomes of each call ([`Fates`]).

pub use crate::identity::Identity;

use crate::buffer::{ALIGNMENT, Buffer};
use crate::sync::{Mutex, mpsc};
use std::fmt;
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

impl<'a> NameChange<'a> {
    /// The name that it is about, or the one that is there before.
    fn concerns(&self) -> &'a str {
        match self {
            NameChange::Create(path) | NameChange::MakeDirectory(path) | NameChange::Remove(path) => path,
            NameChange::Rename { from, .. } | NameChange::Link { from, .. } => from,
            NameChange::Exchange { one, .. } => one,
            NameChange::Symlink { at, .. } => at,
        }
    }
}

/// What the kernel is asked for at the end: a system call, or an entry of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// `preadv`, or its like of the ring.
    Read,
    /// `pwritev2`, or its like of the ring.
    Write,
    /// `fsync` of a file.
    Sync,
    /// `ftruncate`.
    Truncate,
    /// `fallocate` that punches.
    Punch,
    /// `fallocate` that zeroes.
    Zero,
    /// `fallocate` that collapses.
    Collapse,
    /// `ioctl_ficlone`.
    Clone,
    /// What makes, renames or removes a name.
    Name,
    /// `fsync` of a directory.
    SyncDirectory,
    /// `io_uring_enter`.
    Enter,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The kernel is asked.
    Asked,
    /// Of a transfer the kernel does only so many bytes, and says so.
    Short(usize),
    /// The kernel is not asked; the answer is this error.
    Fails(i32),
}

/// What becomes of a call of this kind on the file of this name.
type Decide = dyn Fn(Call, &str) -> Fate + Send + Sync;

/// Decides what becomes of each call, to let things go wrong on purpose. It may take its time, which the ring's other calls have
/// to wait for.
#[derive(Clone)]
pub struct Fates(Arc<Decide>);

impl fmt::Debug for Fates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fates")
    }
}

impl Fates {
    /// `decide` is asked for each call: what becomes of one of this kind on the file of this name.
    pub fn new(decide: impl Fn(Call, &str) -> Fate + Send + Sync + 'static) -> Fates {
        Fates(Arc::new(decide))
    }

    /// What becomes of a call, if somebody decides that.
    pub(crate) fn of(fates: Option<&Fates>, call: Call, file: &str) -> Fate {
        fates.map_or(Fate::Asked, |Fates(decide)| decide(call, file))
    }
}

/// Told how many bytes were transferred, and given the memory back. Called from a thread of the disk, which it must not
/// block.
pub type Done = Box<dyn FnOnce(io::Result<usize>, Memory) + Send>;

/// See the module.
pub trait Disk: Send + Sync {
    /// What becomes of a call that is no transfer.
    fn fate(&self, call: Call, file: &str) -> Fate {
        let _ = (call, file);
        Fate::Asked
    }

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
        ask(self, Call::Sync, &file.name, || Ok(rustix::fs::fsync(&file.file)?))
    }

    /// Sets the file's size. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `ftruncate`.
    fn truncate(&self, file: &DiskFile, size: u64) -> io::Result<()> {
        ask(self, Call::Truncate, &file.name, || Ok(rustix::fs::ftruncate(&file.file, size)?))
    }

    /// Makes the bytes read as zeros, and frees their space where the filesystem can. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `fallocate` and `pwrite`.
    fn punch(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match ask(self, Call::Punch, &file.name, || Ok(fallocate(&file.file, flags, offset, length)?)) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                write_zeros(self, file, offset, length)
            }
            other => other,
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
        match ask(self, Call::Zero, &file.name, || Ok(fallocate(&file.file, flags, offset, length)?)) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                write_zeros(self, file, offset, length)
            }
            other => other,
        }
    }

    /// Takes the bytes out: what is behind them moves to the front. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `fallocate`.
    fn collapse(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::COLLAPSE_RANGE;
        ask(self, Call::Collapse, &file.name, || Ok(fallocate(&file.file, flags, offset, length)?))
    }

    /// Makes `to`, which is empty, a copy of `from` that shares its space. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `ioctl_ficlone`; `EOPNOTSUPP`, `EXDEV`, `EINVAL` and `ENOTTY` where the filesystem cannot.
    fn clone_file(&self, from: &DiskFile, to: &DiskFile) -> io::Result<()> {
        ask(self, Call::Clone, &from.name, || Ok(rustix::fs::ioctl_ficlone(&to.file, &from.file)?))
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
        ask(self, Call::Name, change.concerns(), perform)
    }

    /// Makes the names in a directory durable. Blocks.
    ///
    /// # Errors
    ///
    /// Those of `fsync`.
    fn sync_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        ask(self, Call::SyncDirectory, "", || Ok(rustix::fs::fsync(directory)?))
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

/// Asks the kernel until nothing interrupts it.
fn ask(
    disk: &(impl Disk + ?Sized),
    call: Call,
    file: &str,
    mut perform: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let answer = match disk.fate(call, file) {
            Fate::Fails(error) => Err(io::Error::from_raw_os_error(error)),
            Fate::Asked | Fate::Short(_) => perform(),
        };
        match answer {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// So often in a row may the kernel do less than a block of a transfer.
const SHORT_MAX: u8 = 16;

/// How far a transfer has come, whoever asks the kernel for it.
///
/// Invariant: `moved` is a multiple of 4096, since O_DIRECT takes nothing else: what was done of one block more is done again.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    moved: usize,
    /// How often in a row it has come no further.
    stuck: u8,
}

/// What the kernel is asked for: where in the transfer, how much of it, and how much of that it may say that it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) skip: usize,
    pub(crate) length: usize,
    pub(crate) said_max: usize,
}

impl Progress {
    /// What to ask for next; the error is the answer.
    pub(crate) fn next(&self, transfer: &Transfer, fates: Option<&Fates>) -> Result<Part, i32> {
        let (skip, left) = (self.moved, transfer.memory.len() - self.moved);
        let call = match transfer.verb {
            Verb::Read => Call::Read,
            Verb::Write => Call::Write,
        };
        match Fates::of(fates, call, &transfer.file.name) {
            Fate::Asked => Ok(Part { skip, length: left, said_max: left }),
            Fate::Short(said_max) => Ok(Part {
                skip,
                length: said_max.next_multiple_of(ALIGNMENT).clamp(ALIGNMENT, left),
                said_max,
            }),
            Fate::Fails(error) => Err(error),
        }
    }

    /// The kernel has answered: the result of the transfer, or `None` if there is more to ask for.
    pub(crate) fn answered(
        &mut self,
        transfer: &Transfer,
        answer: io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let count = match answer {
            Ok(count) => count,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => return None,
            Err(error) => return Some(Err(error)),
        };
        let moved = self.moved + count;
        if moved >= transfer.memory.len() {
            return Some(Ok(transfer.memory.len()));
        }
        match transfer.verb {
            // A device that takes nothing.
            Verb::Write if count == 0 => return Some(Err(io::ErrorKind::WriteZero.into())),
            Verb::Read if count == 0 => return Some(Ok(moved)),
            // Where the file ends at any byte. Or a signal, or a bad sector behind: what is missing is no end of file.
            Verb::Read if !moved.is_multiple_of(ALIGNMENT) => match transfer.file.file.metadata() {
                Ok(found) if found.len() <= transfer.offset + moved as u64 => return Some(Ok(moved)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            },
            Verb::Read | Verb::Write => {}
        }
        let whole = moved / ALIGNMENT * ALIGNMENT;
        self.stuck = if whole > self.moved { 0 } else { self.stuck + 1 };
        self.moved = whole;
        if self.stuck < SHORT_MAX {
            return None;
        }
        Some(Err(match transfer.verb {
            Verb::Read => io::ErrorKind::UnexpectedEof.into(),
            Verb::Write => io::ErrorKind::WriteZero.into(),
        }))
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
