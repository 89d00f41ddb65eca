//! A disk that does what it is asked, and remembers it: what was begun, what was durable when, who was told what.

use super::expect::Asked;
use super::volume::{InodeId, Meta, Placed};
use crate::disk::{Disk, DiskFile, Done, Identity, NameChange, Transfer, Verb};
use crate::simulation::dawdle;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What happened, in this order.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Sizes, holes and names have changed: of these inodes (the directories, of names).
    Meta(Meta, Vec<InodeId>),
    /// A write is on its way.
    Begun { write: u64, inode: InodeId, offset: u64, bytes: Arc<[u8]> },
    /// It is done, and durable.
    Landed { write: u64 },
    /// A flush is done: what was changed of this inode before that event is durable.
    Flushed { inode: InodeId, before: usize },
    /// The storage was asked.
    Asked(u64, Asked),
    /// It has answered.
    Answered(u64),
    /// The clone of a file is there, whole, and has no name yet.
    Cloned { from: InodeId, to: InodeId },
    /// The clone has a name by now; that and all names that were changed before are durable.
    Placed,
}

/// What a disk says is durable and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    Nothing,
    /// Writes to files whose names begin so.
    Writes(&'static str),
    /// Flushes of files.
    Flushes,
    /// Flushes of directories.
    Directories,
}

/// See the module.
pub(crate) struct Tape {
    root: PathBuf,
    lie: Lie,
    state: Mutex<State>,
}

struct State {
    events: Vec<Event>,
    writes: u64,
    next_inode: InodeId,
    placed: Placed,
    /// Writes past the store that no flush of their file has covered.
    foreign: Vec<(InodeId, u64)>,
}

impl Tape {
    pub(crate) fn new(root: &Path, next_inode: InodeId, placed: Placed, lie: Lie) -> Arc<Tape> {
        let state = State { events: Vec::new(), writes: 0, next_inode, placed, foreign: Vec::new() };
        Arc::new(Tape { root: root.to_owned(), lie, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn push(&self, event: Event) {
        self.state().events.push(event);
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().events)
    }

    /// The inode at a path below the store's directory.
    pub(crate) fn inode_at(&self, path: &str) -> InodeId {
        let number = fs::metadata(self.root.join(path)).unwrap().ino();
        self.state().placed.inodes[&number]
    }

    /// The inode at a path below the store's directory, if there is one.
    pub(crate) fn find(&self, path: &str) -> Option<InodeId> {
        let number = fs::metadata(self.root.join(path)).ok()?.ino();
        self.state().placed.inodes.get(&number).copied()
    }

    /// The inode of an open file.
    pub(crate) fn inode_of(&self, file: &DiskFile) -> InodeId {
        self.state().inode_of(file)
    }

    /// Writes past the storage. Durable once the file is flushed.
    pub(crate) fn write_foreign(&self, path: &str, offset: u64, bytes: &Arc<[u8]>) {
        let file = fs::OpenOptions::new().write(true).open(self.root.join(path)).unwrap();
        let mut state = self.state();
        let inode = state.inode(&file).expect("created before our eyes");
        let write = state.begin(inode, offset, Arc::clone(bytes));
        state.foreign.push((inode, write));
        file.write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn wrap(self: &Arc<Tape>, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(Recorder { disk, tape: Arc::clone(self) })
    }
}

impl State {
    fn inode(&self, file: impl AsFd) -> Option<InodeId> {
        let number = rustix::fs::fstat(file).unwrap().st_ino;
        self.placed.inodes.get(&number).copied()
    }

    fn begin(&mut self, inode: InodeId, offset: u64, bytes: Arc<[u8]>) -> u64 {
        let write = self.writes;
        self.writes += 1;
        self.events.push(Event::Begun { write, inode, offset, bytes });
        write
    }

    fn inode_of(&self, file: &DiskFile) -> InodeId {
        self.inode(&file.file).unwrap_or_else(|| panic!("{} was not created before our eyes", file.name))
    }
}

struct Recorder {
    disk: Arc<dyn Disk>,
    tape: Arc<Tape>,
}

impl Recorder {
    /// Flushes by `flush`. No inode: nothing of the store.
    fn flush(
        &self,
        inode: Option<InodeId>,
        told: bool,
        flush: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let (before, foreign) = {
            let mut state = self.tape.state();
            let foreign: Vec<_> = state.foreign.extract_if(.., |(of, _)| Some(*of) == inode).collect();
            (state.events.len(), foreign)
        };
        dawdle();
        flush()?;
        dawdle();
        if let Some(inode) = inode
            && told
        {
            self.tape.push(Event::Flushed { inode, before });
            foreign.into_iter().for_each(|(_, write)| self.tape.push(Event::Landed { write }));
        }
        Ok(())
    }
}

impl Disk for Recorder {
    fn submit(&self, transfer: Transfer, done: Done) {
        if transfer.verb == Verb::Read {
            return self.disk.submit(transfer, done);
        }
        let (from, length) = (transfer.memory.address(), transfer.memory.len());
        // SAFETY: the memory has `length` bytes, which nobody writes until the transfer is done.
        let bytes = unsafe { std::slice::from_raw_parts(from.as_ptr(), length) };
        let lies = matches!(self.tape.lie, Lie::Writes(name) if transfer.file.name.starts_with(name));
        let mut state = self.tape.state();
        let inode = state.inode_of(&transfer.file);
        let write = state.begin(inode, transfer.offset, bytes.into());
        drop(state);
        dawdle();
        let tape = Arc::clone(&self.tape);
        self.disk.submit(
            transfer,
            Box::new(move |result, memory| {
                dawdle();
                if result.is_ok() && !lies {
                    tape.push(Event::Landed { write });
                }
                dawdle();
                done(result, memory);
            }),
        );
    }

    fn finish(&self) {
        self.disk.finish();
    }

    fn sync(&self, file: &DiskFile) -> io::Result<()> {
        let inode = self.tape.state().inode_of(file);
        self.flush(Some(inode), self.tape.lie != Lie::Flushes, || self.disk.sync(file))
    }

    fn truncate(&self, file: &DiskFile, size: u64) -> io::Result<()> {
        dawdle();
        let mut state = self.tape.state();
        self.disk.truncate(file, size)?;
        let inode = state.inode_of(file);
        state.events.push(Event::Meta(Meta::Size { inode, size }, vec![inode]));
        Ok(())
    }

    fn punch(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        dawdle();
        let mut state = self.tape.state();
        self.disk.punch(file, offset, length)?;
        let inode = state.inode_of(file);
        state.events.push(Event::Meta(Meta::Punch { inode, offset, length }, vec![inode]));
        Ok(())
    }

    fn zero(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        // Where the space stays cannot be seen.
        self.punch(file, offset, length)
    }

    fn collapse(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        dawdle();
        let mut state = self.tape.state();
        collapse(&file.file, offset, length)?;
        if let Some(inode) = state.inode(&file.file) {
            state.events.push(Event::Meta(Meta::Collapse { inode, offset, length }, vec![inode]));
        }
        Ok(())
    }

    fn clone_file(&self, _: &DiskFile, _: &DiskFile) -> io::Result<()> {
        // So that it is copied, by writes that are recorded.
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn change_name(
        &self,
        change: NameChange<'_>,
        perform: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        dawdle();
        let mut state = self.tape.state();
        self.disk.change_name(change, perform)?;
        let root = &self.tape.root;
        let directory = |state: &State, path: &str| {
            let parent = fs::File::open(root.join(path).parent().unwrap()).unwrap();
            state.inode(parent).expect("directories are created before our eyes")
        };
        let created = |state: &mut State, path: &str| {
            let inode = state.next_inode;
            state.next_inode += 1;
            let number = fs::symlink_metadata(root.join(path)).unwrap().ino();
            state.placed.inodes.insert(number, inode);
            inode
        };
        let event = match change {
            NameChange::Create(path) => {
                let concerns = vec![directory(&state, path)];
                let real = Identity::of(&fs::File::open(root.join(path)).unwrap())?;
                let inode = created(&mut state, path);
                // The kernel's is another one each time.
                let identity = numbered(inode);
                state.placed.identities.insert(real, identity);
                Event::Meta(Meta::Create { path: path.to_owned(), inode, identity }, concerns)
            }
            NameChange::MakeDirectory(path) => {
                let concerns = vec![directory(&state, path)];
                let inode = created(&mut state, path);
                Event::Meta(Meta::MakeDirectory { path: path.to_owned(), inode }, concerns)
            }
            NameChange::Rename { from, to } => {
                let concerns = vec![directory(&state, from), directory(&state, to)];
                Event::Meta(Meta::Rename { from: from.to_owned(), to: to.to_owned() }, concerns)
            }
            NameChange::Exchange { one, other } => {
                let concerns = vec![directory(&state, one), directory(&state, other)];
                Event::Meta(Meta::Exchange { one: one.to_owned(), other: other.to_owned() }, concerns)
            }
            NameChange::Link { from, to } => {
                let concerns = vec![directory(&state, to)];
                Event::Meta(Meta::Link { from: from.to_owned(), to: to.to_owned() }, concerns)
            }
            NameChange::Symlink { target, at } => {
                let concerns = vec![directory(&state, at)];
                let inode = created(&mut state, at);
                let (path, target) = (at.to_owned(), target.to_owned());
                Event::Meta(Meta::Symlink { path, inode, target }, concerns)
            }
            NameChange::Remove(path) => {
                let concerns = vec![directory(&state, path)];
                Event::Meta(Meta::Remove { path: path.to_owned() }, concerns)
            }
        };
        state.events.push(event);
        Ok(())
    }

    fn sync_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let inode = self.tape.state().inode(directory);
        self.flush(inode, self.tape.lie != Lie::Directories, || self.disk.sync_directory(directory))
    }

    fn identify(&self, file: BorrowedFd<'_>) -> io::Result<Identity> {
        let found = self.disk.identify(file)?;
        let state = self.tape.state();
        Ok(state.placed.identities.get(&found).copied().unwrap_or(found))
    }
}

/// The identity of a file by a number of its own, as where a filesystem has no handles.
fn numbered(inode: InodeId) -> Identity {
    let mut identity = [0; 32];
    identity[..2].copy_from_slice(&[2, 20]);
    identity[4..12].copy_from_slice(&(inode as u64).to_le_bytes());
    Identity(identity)
}

/// Takes the bytes out, on any filesystem.
fn collapse(file: &fs::File, offset: u64, length: u64) -> io::Result<()> {
    let size = file.metadata()?.len();
    let mut behind = vec![0; (size - offset - length) as usize];
    file.read_exact_at(&mut behind, offset + length)?;
    file.write_all_at(&behind, offset)?;
    file.set_len(size - length)
}

/// A disk on which files are taken for others, as [`Placed`] says.
pub(crate) struct Image {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) identities: HashMap<Identity, Identity>,
}

impl Disk for Image {
    fn submit(&self, transfer: Transfer, done: Done) {
        self.disk.submit(transfer, done);
    }

    fn finish(&self) {
        self.disk.finish();
    }

    fn collapse(&self, file: &DiskFile, offset: u64, length: u64) -> io::Result<()> {
        collapse(&file.file, offset, length)
    }

    fn identify(&self, file: BorrowedFd<'_>) -> io::Result<Identity> {
        let found = self.disk.identify(file)?;
        Ok(self.identities.get(&found).copied().unwrap_or(found))
    }
}
