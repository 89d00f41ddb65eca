//! The kernel's requests, each answered by a task of its own.

use super::backing::{Backing, Change, attributes_of, change_of};
use super::caller::{Callers, mappers};
use super::message::REMOTE_CALL_BYTES;
use super::nodes::{Found, Nodes};
use super::times::Times;
use crate::server::refusal::chain;
use bytes::Bytes;
use fuser::{
    CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, Version, WriteFlags,
};
use leasehold_core::identity::Identity;
use leasehold_core::input::Fault;
use leasehold_core::output;
use leasehold_core::range::ByteRange;
use leasehold_engine::Engine;
use leasehold_engine::files::{CALL_BYTES_MAX, FileError, OpenFile};
use leasehold_engine::pages::WriteBackError;
use leasehold_engine::path::{PathError, StorePath};
use leasehold_engine::storage::{Kind, NamespaceError};
use rustix::fs::{FallocateFlags, SeekFrom, Timespec, UTIME_NOW};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::sync::RwLock;

/// How long the kernel may believe what it was told. Others than the kernel change the store.
const TTL: Duration = Duration::ZERO;
/// How many requests the kernel makes at once that no program waits for.
const BACKGROUND_MAX: u16 = 512;
const GENERATION: Generation = Generation(0);

/// The filesystem, for the kernel's thread.
pub(super) struct Mounted {
    store: Arc<Store>,
    callers: Callers,
    runtime: Handle,
}

struct Store {
    engine: Engine,
    backing: Backing,
    nodes: Arc<Mutex<Nodes>>,
    /// Whether the kernel keeps pages of files, and forgets them when it is told.
    keeps_pages: AtomicBool,
    listings: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
    next_handle: AtomicU64,
    times: Times,
    /// Who writes by a name shares it; who takes a name from an open file has it alone.
    names_held: RwLock<()>,
}

struct Listed {
    name: String,
    kind: FileType,
    inode: u64,
}

/// The bytes of a file.
enum Content {
    File(Arc<OpenFile>),
    /// It has no name any more.
    Orphan(Arc<std::fs::File>),
}

type Answer<T> = Result<T, Errno>;

impl Mounted {
    /// Requests are answered by tasks of the runtime that this is called in.
    pub fn new(engine: Engine, nodes: Arc<Mutex<Nodes>>, callers: Callers) -> io::Result<Mounted> {
        let backing = Backing::open(&engine.config().directory.join("files"))?;
        let (keeps_pages, listings) = (AtomicBool::new(false), Mutex::default());
        let (next_handle, names_held) = (AtomicU64::new(1), RwLock::new(()));
        let times = Times::default();
        let store = Store { engine, backing, nodes, keeps_pages, listings, next_handle, times, names_held };
        Ok(Mounted { store: Arc::new(store), callers, runtime: Handle::current() })
    }

    /// Has a task answer.
    fn answer<T, F>(&self, work: impl FnOnce(Arc<Store>) -> F, reply: impl FnOnce(Answer<T>) + Send + 'static)
    where
        F: Future<Output = Answer<T>> + Send + 'static,
        T: Send,
    {
        let work = work(self.store.clone());
        self.runtime.spawn(async move { reply(work.await) });
    }

    /// Has a task answer; a signal to the caller ends its wait.
    fn answer_or_interrupt<T, F>(
        &self,
        request: &Request,
        work: impl FnOnce(Arc<Store>) -> F,
        reply: impl FnOnce(Answer<T>) + Send + 'static,
    ) where
        F: Future<Output = Answer<T>> + Send + 'static,
        T: Send,
    {
        let (work, interrupted) = (work(self.store.clone()), self.callers.interrupted(request));
        self.runtime.spawn(async move {
            let answer = tokio::select! {
                biased;
                answer = work => answer,
                () = interrupted => Err(Errno::EINTR),
            };
            reply(answer);
        });
    }
}

fn text(name: &OsStr) -> Answer<&str> {
    name.to_str().ok_or(Errno::EILSEQ)
}

impl Store {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().expect("no code panics while it holds the nodes")
    }

    fn found(&self, node: INodeNo) -> Answer<Found> {
        self.nodes().found(node.0).ok_or(Errno::ESTALE)
    }

    /// The name of something that has one.
    fn name(&self, node: INodeNo) -> Answer<StorePath> {
        match self.found(node)? {
            Found::Name(name) => Ok(name),
            Found::Orphan(_) => Err(Errno::ENOENT),
        }
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Answer<StorePath> {
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        // What the store keeps to itself is nobody's.
        self.name(parent)?.join(text(name)?).map_err(|error| match error {
            PathError::TooLong { .. } => Errno::ENAMETOOLONG,
            _ => Errno::EINVAL,
        })
    }

    /// Where its bytes are. What is open is the file that was opened, whatever its name stands for by now.
    async fn content(&self, node: INodeNo) -> Answer<Content> {
        let (found, open) = {
            let nodes = self.nodes();
            (nodes.found(node.0), nodes.file(node.0))
        };
        match (found, open) {
            (Some(Found::Orphan(file)), _) => Ok(Content::Orphan(file)),
            (_, Some(file)) => Ok(Content::File(file)),
            (Some(Found::Name(name)), None) => Ok(Content::File(Arc::new(self.open(node, &name).await?))),
            (None, None) => Err(Errno::ESTALE),
        }
    }

    /// Opens what the kernel means, or nothing, if another has its name by now.
    async fn open(&self, node: INodeNo, name: &StorePath) -> Answer<OpenFile> {
        let file = self.engine.open(name).await.map_err(refused)?;
        let is_it = self.nodes().inode(node.0) == Some(file.inode());
        if is_it { Ok(file) } else { Err(Errno::ESTALE) }
    }

    /// What is known about a name; its size as the engine has it, durable or not.
    async fn attributes(&self, name: &StorePath) -> Answer<(u64, FileAttr)> {
        let (inode, mut attributes) = self.backing.attributes(name).map_err(errno)?;
        if attributes.kind == FileType::RegularFile {
            attributes.size = self.engine.stat(name).await.map_err(refused)?.size;
        }
        Ok((inode, attributes))
    }

    async fn attributes_of(&self, node: INodeNo) -> Answer<FileAttr> {
        let (_, attributes) = match self.found(node)? {
            Found::Name(name) => self.attributes(&name).await?,
            Found::Orphan(file) => attributes_of(&*file).map_err(errno)?,
        };
        Ok(self.known_as(node.0, attributes))
    }

    /// What the kernel is told of it, under the number that it has for it.
    fn known_as(&self, node: u64, attributes: FileAttr) -> FileAttr {
        FileAttr { ino: INodeNo(node), mtime: self.times.modified(node, attributes.mtime), ..attributes }
    }

    /// The kernel learns of a name.
    async fn entry(&self, name: StorePath) -> Answer<FileAttr> {
        let (inode, attributes) = self.attributes(&name).await?;
        let node = self.nodes().look_up(inode, name);
        Ok(self.known_as(node, attributes))
    }

    /// Something was just made: it is its maker's.
    fn give(&self, name: &StorePath, mode: Option<u32>, (owner, group): (u32, u32)) -> Answer<()> {
        let parent = name.split().map_or(StorePath::ROOT, |(parent, _)| parent);
        let (_, parent) = self.backing.attributes(&parent).map_err(errno)?;
        let is_root = rustix::process::geteuid().is_root();
        // In a directory with setgid, everything is of its group.
        let group = if parent.perm & 0o2000 != 0 { parent.gid } else { group };
        let change = Change {
            mode,
            owner: is_root.then_some(owner),
            group: is_root.then_some(group),
            accessed: None,
            modified: None,
        };
        self.backing.change(name, &change).map_err(errno)
    }

    /// Before a name goes: what has it, if somebody has it open and this is its last one.
    fn last_of_open(&self, name: &StorePath) -> Option<(u64, std::fs::File)> {
        let node = self.nodes().is_open(name)?;
        let (_, attributes) = self.backing.attributes(name).ok()?;
        let is_last = attributes.kind == FileType::RegularFile && attributes.nlink == 1;
        is_last.then(|| self.backing.file(name).ok()).flatten().map(|file| (node, file))
    }

    async fn remove(&self, name: StorePath, breaker: Identity) -> Answer<()> {
        if self.backing.is_node(&name) {
            self.backing.remove_node(&name).map_err(errno)?;
        } else {
            self.orphan(&name, self.engine.unlink(&name, breaker)).await?;
        }
        self.nodes().unlinked(&name);
        Ok(())
    }

    /// Takes a name, by `taking` it, from a file that may be open. What is open lives on, as long as it is by now: on the disk
    /// it may end with a whole block.
    async fn orphan(
        &self,
        name: &StorePath,
        taking: impl Future<Output = Result<(), FileError>>,
    ) -> Answer<()> {
        if self.last_of_open(name).is_none() {
            return taking.await.map_err(refused);
        }
        let _alone = self.names_held.write().await;
        let Some((node, file)) = self.last_of_open(name) else { return taking.await.map_err(refused) };
        let size = self.engine.stat(name).await.map_err(refused)?.size;
        taking.await.map_err(refused)?;
        file.set_len(size)?;
        self.nodes().orphaned(node, file);
        Ok(())
    }

    async fn write(&self, node: INodeNo, offset: u64, data: Bytes, breaker: Identity) -> Answer<u32> {
        let length = data.len() as u32;
        let _shared = self.names_held.read().await;
        match self.content(node).await? {
            Content::File(file) => {
                self.engine.write_open(&file, offset, data, breaker).await.map_err(refused)?;
                self.times.written(node.0);
            }
            Content::Orphan(file) => {
                let write = tokio::task::spawn_blocking(move || file.write_all_at(&data, offset));
                write.await.expect("a write does not panic")?;
            }
        }
        Ok(length)
    }

    /// Writes back what was changed by a mapping. What a peer has committed since the kernel read it, it is not written over.
    async fn write_back(&self, node: INodeNo, offset: u64, data: Bytes, breaker: Identity) -> Answer<u32> {
        let length = data.len() as u32;
        let _shared = self.names_held.read().await;
        let file = match self.content(node).await? {
            Content::File(file) => file,
            Content::Orphan(file) => {
                let write = tokio::task::spawn_blocking(move || file.write_all_at(&data, offset));
                write.await.expect("a write does not panic")?;
                return Ok(length);
            }
        };
        let mut left: Vec<ByteRange> = ByteRange::at(offset, length.into()).into_iter().collect();
        while let Some(piece) = left.pop() {
            let within = (piece.start() - offset) as usize..(piece.end() - offset) as usize;
            let written =
                self.engine.write_back(&file, piece.start(), data.slice(within), breaker.clone()).await;
            match written {
                Ok(()) => self.times.written(node.0),
                Err(WriteBackError::Overtaken(newer)) => {
                    tracing::debug!(node = node.0, range = %newer, "a page was overtaken, and is dropped");
                    let before = ByteRange::new(piece.start(), newer.start().min(piece.end()));
                    let after = ByteRange::new(newer.end().max(piece.start()), piece.end());
                    left.extend(before.into_iter().chain(after));
                }
                Err(WriteBackError::Failed(error)) => return Err(refused(error)),
            }
        }
        Ok(length)
    }

    async fn read(&self, node: INodeNo, offset: u64, length: u32) -> Answer<Bytes> {
        match self.content(node).await? {
            Content::File(file) => {
                let Some(range) = ByteRange::at(offset, length.into()) else { return Ok(Bytes::new()) };
                self.engine.read_open(&file, range).await.map_err(refused)
            }
            Content::Orphan(file) => {
                let read = tokio::task::spawn_blocking(move || {
                    let mut buffer = vec![0; length as usize];
                    let read = file.read_at(&mut buffer, offset)?;
                    buffer.truncate(read);
                    io::Result::Ok(Bytes::from(buffer))
                });
                Ok(read.await.expect("a read does not panic")?)
            }
        }
    }

    async fn resize(&self, node: INodeNo, size: u64, breaker: Identity) -> Answer<()> {
        let _shared = self.names_held.read().await;
        match self.found(node)? {
            Found::Name(name) => {
                self.engine.truncate(&name, size, breaker).await.map_err(refused)?;
                self.times.written(node.0);
            }
            Found::Orphan(file) => file.set_len(size)?,
        }
        Ok(())
    }

    async fn allocate(
        &self,
        node: INodeNo,
        range: ByteRange,
        mode: FallocateFlags,
        breaker: Identity,
    ) -> Answer<()> {
        let _shared = self.names_held.read().await;
        let name = match self.found(node)? {
            Found::Name(name) => name,
            Found::Orphan(file) => {
                return rustix::fs::fallocate(&*file, mode, range.start(), range.len()).map_err(errno);
            }
        };
        let engine = &self.engine;
        let keeps = mode.contains(FallocateFlags::KEEP_SIZE);
        match mode - FallocateFlags::KEEP_SIZE {
            rest if rest.is_empty() => {
                self.backing.reserve(&name, range.start(), range.len()).map_err(errno)?;
            }
            FallocateFlags::PUNCH_HOLE if keeps => {
                return engine.punch(&name, range, breaker).await.map_err(refused);
            }
            FallocateFlags::ZERO_RANGE => {
                engine.zero(&name, range, breaker.clone()).await.map_err(refused)?;
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        if !keeps && engine.stat(&name).await.map_err(refused)?.size < range.end() {
            engine.truncate(&name, range.end(), breaker).await.map_err(refused)?;
        }
        Ok(())
    }

    async fn sync(&self, node: INodeNo, data_only: bool) -> Answer<()> {
        match self.found(node)? {
            Found::Name(name) => {
                self.flush(node, &name).await?;
                if data_only { Ok(()) } else { self.backing.sync(&name).map_err(errno) }
            }
            Found::Orphan(file) => Ok(file.sync_all()?),
        }
    }

    /// Returns once what was written is on disk.
    async fn flush(&self, node: INodeNo, name: &StorePath) -> Answer<()> {
        let written = self.times.in_memory(node.0);
        let open = self.nodes().file(node.0);
        match open {
            Some(file) => self.engine.sync_open(&file).await.map_err(refused)?,
            None => self.engine.sync(name).await.map_err(refused)?,
        }
        self.times.durable(node.0, written);
        Ok(())
    }

    /// Sets what is beside the bytes.
    async fn change(&self, node: INodeNo, change: &Change) -> Answer<()> {
        match self.found(node)? {
            Found::Name(name) => {
                // Else bytes that come to the disk later would set the time anew.
                if change.modified.is_some() && self.times.in_memory(node.0).is_some() {
                    self.flush(node, &name).await?;
                }
                self.backing.change(&name, change).map_err(errno)
            }
            Found::Orphan(file) => change_of(&file.try_clone()?.into(), change).map_err(errno),
        }
    }

    async fn rename(
        &self,
        from: StorePath,
        to: StorePath,
        flags: RenameFlags,
        breaker: Identity,
    ) -> Answer<()> {
        if flags == RenameFlags::RENAME_EXCHANGE {
            self.engine.exchange(&from, &to).await.map_err(refused)?;
            self.nodes().exchanged(&from, &to);
            return Ok(());
        }
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return Err(Errno::EINVAL);
        }
        let there = self.backing.attributes(&to).ok();
        if let Some((inode, there)) = there {
            let (moved, moves) = self.backing.attributes(&from).map_err(errno)?;
            if flags.contains(RenameFlags::RENAME_NOREPLACE) {
                return Err(Errno::EEXIST);
            }
            if inode == moved {
                return Ok(());
            }
            match (moves.kind == FileType::Directory, there.kind == FileType::Directory) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                // An empty one makes room.
                (true, true) => self.engine.unlink(&to, breaker.clone()).await.map_err(refused)?,
                (false, false) => {}
            }
        }
        let rename = self.engine.rename(&from, &to, breaker);
        self.orphan(&to, rename).await?;
        let mut nodes = self.nodes();
        nodes.unlinked(&to);
        nodes.renamed(&from, &to);
        Ok(())
    }

    async fn list(&self, name: &StorePath) -> Answer<Vec<Listed>> {
        let stats = self.engine.list(name).await.map_err(refused)?;
        let listed = stats.into_iter().filter_map(|stat| {
            let kind = match stat.kind {
                Kind::File => FileType::RegularFile,
                Kind::Directory => FileType::Directory,
                Kind::Link => FileType::Symlink,
                Kind::Other => FileType::NamedPipe,
            };
            Some(Listed { name: stat.path.split()?.1.to_owned(), kind, inode: stat.inode })
        });
        let special =
            [".", ".."].map(|name| Listed { name: name.to_owned(), kind: FileType::Directory, inode: 1 });
        Ok(special.into_iter().chain(listed).collect())
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn fault(fault: Fault) -> Errno {
    match fault {
        Fault::NoSpace => Errno::ENOSPC,
        Fault::Moved => Errno::ESTALE,
        Fault::Io | Fault::Checksum => Errno::EIO,
        Fault::NoKey => Errno::EAGAIN,
    }
}

/// What a program gets to see; what was the matter is in the log, if it is the server's.
fn refused(error: FileError) -> Errno {
    let errno = errno_of(&error);
    if i32::from(errno) == i32::from(Errno::EIO) {
        tracing::warn!("EIO through the mount: {}", chain(&error));
    } else {
        tracing::debug!("refused through the mount: {}", chain(&error));
    }
    errno
}

fn errno_of(error: &FileError) -> Errno {
    match error {
        FileError::Path(error) => match error {
            NamespaceError::NotFound { .. } => Errno::ENOENT,
            NamespaceError::Exists { .. } => Errno::EEXIST,
            NamespaceError::NotAFile { .. } | NamespaceError::NotALink { .. } => Errno::EINVAL,
            NamespaceError::NotText { .. } => Errno::EILSEQ,
            NamespaceError::NotADirectory { .. } => Errno::ENOTDIR,
            NamespaceError::NotEmpty { .. } => Errno::ENOTEMPTY,
            NamespaceError::Link { .. } => Errno::ELOOP,
            NamespaceError::Root => Errno::EBUSY,
            NamespaceError::LastName { .. } => Errno::ESTALE,
            NamespaceError::Sidecar { .. } => Errno::EIO,
            NamespaceError::System { source, .. } => {
                source.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
            }
        },
        FileError::TooLong { .. } | FileError::SameFile { .. } | FileError::Overlap { .. } => Errno::EINVAL,
        FileError::BadRange { .. } => Errno::EFBIG,
        FileError::Collapse { .. } => Errno::EINVAL,
        FileError::NoLease(_) => Errno::ESTALE,
        FileError::Stopping => Errno::EIO,
        FileError::Evict { source, .. } => fault(*source),
        FileError::Change { source, .. } => match source {
            output::ChangeError::NoFile => Errno::ESTALE,
            output::ChangeError::Limit { .. } => Errno::EAGAIN,
            output::ChangeError::Busy { .. } => Errno::ETXTBSY,
            output::ChangeError::CannotCollapse { .. } => Errno::EINVAL,
            output::ChangeError::Fault(kind) => fault(*kind),
        },
        FileError::Read { source, .. } => match source {
            output::ReadError::TimedOut(_) => Errno::ETIMEDOUT,
            output::ReadError::Limit { .. } => Errno::EAGAIN,
            output::ReadError::NoFile => Errno::ESTALE,
            output::ReadError::Fault(kind) => fault(*kind),
        },
        FileError::Acquire { source, .. } => match source {
            output::AcquireError::Fault(kind) => fault(*kind),
            output::AcquireError::NoFile => Errno::ESTALE,
            _ => Errno::EAGAIN,
        },
        FileError::Commit { source, .. } => match source {
            output::CommitError::Fault(kind) => fault(*kind),
            output::CommitError::Removed(_) => Errno::ESTALE,
            _ => Errno::EIO,
        },
        FileError::Sync { source, .. } => match source {
            output::SyncError::NoFile => Errno::ESTALE,
            output::SyncError::Limit { .. } => Errno::EAGAIN,
            output::SyncError::Fault(kind) => fault(*kind),
        },
    }
}

fn time(time: TimeOrNow) -> Timespec {
    match time {
        TimeOrNow::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        TimeOrNow::SpecificTime(time) => timespec(time),
    }
}

fn timespec(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() },
        Err(before) => {
            let before = before.duration();
            let nanoseconds = i64::from(before.subsec_nanos());
            let seconds = -before.as_secs().cast_signed() - i64::from(nanoseconds > 0);
            Timespec { tv_sec: seconds, tv_nsec: (1_000_000_000 - nanoseconds) % 1_000_000_000 }
        }
    }
}

/// Answers with nothing, or an error.
fn empty(reply: ReplyEmpty) -> impl FnOnce(Answer<()>) + Send {
    move |answer| match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(reply: ReplyEntry) -> impl FnOnce(Answer<FileAttr>) + Send {
    move |answer| match answer {
        Ok(attributes) => reply.entry(&TTL, &attributes, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn attributes(reply: ReplyAttr) -> impl FnOnce(Answer<FileAttr>) + Send {
    move |answer| match answer {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(error) => reply.error(error),
    }
}

fn written(reply: ReplyWrite) -> impl FnOnce(Answer<u32>) + Send {
    move |answer| match answer {
        Ok(length) => reply.written(length),
        Err(error) => reply.error(error),
    }
}

/// An attribute's value, or first how long it is.
fn value(reply: ReplyXattr, size: u32) -> impl FnOnce(Answer<Vec<u8>>) + Send {
    move |answer| match answer {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mounted {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let bytes = if self.callers.are_remote() { REMOTE_CALL_BYTES } else { CALL_BYTES_MAX as u32 };
        // The kernel may take less.
        let _ = config.set_max_write(bytes);
        let _ = config.set_max_readahead(bytes);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        // Pages that wait to be written back, for a holder, must not keep others from being read.
        let _ = config.set_max_background(BACKGROUND_MAX);
        if !self.callers.are_remote() {
            let maps = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
            // Before Linux 6.9, what is written directly may leave an old page to who reads by another descriptor.
            self.store.keeps_pages.store(maps && config.kernel_abi() >= Version(7, 40), Ordering::Relaxed);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = self.store.child(parent, name);
        self.answer(async |store| store.entry(name?).await, entry(reply));
    }

    fn forget(&self, _: &Request, node: INodeNo, times: u64) {
        self.store.nodes().forget(node.0, times);
        self.store.forget_if_gone(node);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(move |store| async move { store.attributes_of(node).await }, attributes(reply));
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        owner: Option<u32>,
        group: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let breaker = self.callers.identity(request);
        let (accessed, modified) = (accessed.map(time), modified.map(time));
        let change = Change { mode, owner, group, accessed, modified };
        let work = move |store: Arc<Store>| async move {
            if let Some(size) = size {
                store.resize(node, size, breaker).await?;
            }
            store.change(node, &change).await?;
            store.attributes_of(node).await
        };
        self.answer_or_interrupt(request, work, attributes(reply));
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        let work = move |store: Arc<Store>| async move {
            let name = store.name(node)?;
            store.engine.read_link(&name).await.map_err(refused)
        };
        self.answer(work, |answer| match answer {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        use rustix::fs::FileType::{BlockDevice, CharacterDevice, RegularFile};
        let (name, who) = (self.store.child(parent, name), (request.uid(), request.gid()));
        let kind = rustix::fs::FileType::from_raw_mode(mode);
        if self.callers.are_remote() && matches!(kind, BlockDevice | CharacterDevice) {
            // It would be a device of this machine.
            return reply.error(Errno::EPERM);
        }
        let work = move |store: Arc<Store>| async move {
            let name = name?;
            if kind == RegularFile {
                if store.backing.attributes(&name).is_ok() {
                    return Err(Errno::EEXIST);
                }
                store.engine.create(&name).await.map_err(refused)?;
            } else {
                store.backing.make_node(&name, mode, device.into()).map_err(errno)?;
            }
            store.give(&name, Some(mode), who)?;
            store.entry(name).await
        };
        self.answer(work, entry(reply));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (name, who) = (self.store.child(parent, name), (request.uid(), request.gid()));
        let work = move |store: Arc<Store>| async move {
            let name = name?;
            store.engine.make_directory(&name).await.map_err(refused)?;
            let parent = name.split().map_or(StorePath::ROOT, |(parent, _)| parent);
            let (_, parent) = store.backing.attributes(&parent).map_err(errno)?;
            store.give(&name, Some(mode | u32::from(parent.perm) & 0o2000), who)?;
            store.entry(name).await
        };
        self.answer(work, entry(reply));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, breaker) = (self.store.child(parent, name), self.callers.identity(request));
        let work = move |store: Arc<Store>| async move { store.remove(name?, breaker).await };
        self.answer_or_interrupt(request, work, empty(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, breaker) = (self.store.child(parent, name), self.callers.identity(request));
        let work = move |store: Arc<Store>| async move { store.remove(name?, breaker).await };
        self.answer(work, empty(reply));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, who) = (self.store.child(parent, name), (request.uid(), request.gid()));
        let target = text(target.as_os_str()).map(str::to_owned);
        let work = move |store: Arc<Store>| async move {
            let name = name?;
            store.engine.symlink(&target?, &name).await.map_err(refused)?;
            store.give(&name, None, who)?;
            store.entry(name).await
        };
        self.answer(work, entry(reply));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (self.store.child(parent, name), self.store.child(new_parent, new_name));
        let breaker = self.callers.identity(request);
        let work = move |store: Arc<Store>| async move { store.rename(from?, to?, flags, breaker).await };
        self.answer_or_interrupt(request, work, empty(reply));
    }

    fn link(&self, _: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = self.store.child(parent, name);
        let work = move |store: Arc<Store>| async move {
            let name = name?;
            let from = store.name(node)?;
            if store.backing.is_node(&from) {
                store.backing.link_node(&from, &name).map_err(errno)?;
            } else {
                store.engine.link(&from, &name).await.map_err(refused)?;
            }
            store.entry(name).await
        };
        self.answer(work, entry(reply));
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let pid = request.pid();
        let work = move |store: Arc<Store>| async move {
            let file = match store.content(node).await? {
                Content::File(file) => Some(file),
                Content::Orphan(_) => None,
            };
            let handle = store.handle();
            store.nodes().opened(node.0, handle.0, pid, file);
            Ok((handle, store.caching(flags)))
        };
        self.answer(work, |answer| match answer {
            Ok((handle, caching)) => reply.opened(handle, caching),
            Err(error) => reply.error(error),
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, who) = (self.store.child(parent, name), (request.uid(), request.gid()));
        let pid = request.pid();
        let exclusive =
            rustix::fs::OFlags::from_bits_retain(flags.cast_unsigned()).contains(rustix::fs::OFlags::EXCL);
        let work = move |store: Arc<Store>| async move {
            let name = name?;
            if store.backing.attributes(&name).is_err() {
                store.engine.create(&name).await.map_err(refused)?;
                store.give(&name, Some(mode), who)?;
            } else if exclusive {
                return Err(Errno::EEXIST);
            }
            let attributes = store.entry(name).await?;
            let (file, handle) = (store.content(attributes.ino).await?, store.handle());
            let Content::File(file) = file else { return Err(Errno::ESTALE) };
            store.nodes().opened(attributes.ino.0, handle.0, pid, Some(file));
            Ok((attributes, handle, store.caching(OpenFlags(flags))))
        };
        self.answer(work, |answer| match answer {
            Ok((attributes, handle, caching)) => {
                reply.created(&TTL, &attributes, GENERATION, handle, caching);
            }
            Err(error) => reply.error(error),
        });
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let work = move |store: Arc<Store>| async move { store.read(node, offset, size).await };
        self.answer(work, |answer| match answer {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        });
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        if flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            let breaker = mappers(&self.store.nodes().openers(node.0), request.uid());
            let work =
                move |store: Arc<Store>| async move { store.write_back(node, offset, data, breaker).await };
            return self.answer(work, written(reply));
        }
        let breaker = self.callers.identity(request);
        let work = move |store: Arc<Store>| async move { store.write(node, offset, data, breaker).await };
        self.answer_or_interrupt(request, work, written(reply));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        node: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.store.nodes().closed(node.0, handle.0);
        self.store.forget_if_gone(node);
        reply.ok();
    }

    fn fsync(&self, request: &Request, node: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let work = move |store: Arc<Store>| async move { store.sync(node, data_only).await };
        self.answer_or_interrupt(request, work, empty(reply));
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let work = move |store: Arc<Store>| async move {
            let listing = store.list(&store.name(node)?).await?;
            let handle = store.handle();
            store.listings().insert(handle.0, Arc::new(listing));
            Ok(handle)
        };
        self.answer(work, |answer| match answer {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(error),
        });
    }

    fn readdir(
        &self,
        _: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listing = self.store.listings().get(&handle.0).cloned();
        let work = move |store: Arc<Store>| async move {
            // Whoever begins again wants to see what is there now.
            let Some(listing) = listing else { return Err(Errno::EBADF) };
            if offset > 0 {
                return Ok(listing);
            }
            let listing = Arc::new(store.list(&store.name(node)?).await?);
            store.listings().insert(handle.0, listing.clone());
            Ok(listing)
        };
        self.answer(work, move |answer| {
            let listing = match answer {
                Ok(listing) => listing,
                Err(error) => return reply.error(error),
            };
            for (at, listed) in listing.iter().enumerate().skip(offset as usize) {
                if reply.add(INodeNo(listed.inode), at as u64 + 1, listed.kind, &listed.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.store.listings().remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let work = move |store: Arc<Store>| async move {
            let name = store.name(node)?;
            store.engine.sync(&name).await.map_err(refused)
        };
        self.answer(work, empty(reply));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.store.backing.space() {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                space.f_bsize as u32,
                255,
                space.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let set = || {
            let path = self.store.name(node)?;
            self.store.backing.set_attribute(&path, text(name)?, value, flags).map_err(errno)
        };
        empty(reply)(set());
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let get = || self.store.backing.attribute(&self.store.name(node)?, text(name)?).map_err(errno);
        value(reply, size)(get());
    }

    fn listxattr(&self, _: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let list = || self.store.backing.attribute_names(&self.store.name(node)?).map_err(errno);
        value(reply, size)(list());
    }

    fn removexattr(&self, _: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove =
            || self.store.backing.remove_attribute(&self.store.name(node)?, text(name)?).map_err(errno);
        empty(reply)(remove());
    }

    fn fallocate(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let breaker = self.callers.identity(request);
        let work = move |store: Arc<Store>| async move {
            let range = ByteRange::at(offset, length).ok_or(Errno::EFBIG)?;
            let mode = FallocateFlags::from_bits(mode.cast_unsigned()).ok_or(Errno::EOPNOTSUPP)?;
            store.allocate(node, range, mode, breaker).await
        };
        self.answer_or_interrupt(request, work, empty(reply));
    }

    fn lseek(&self, _: &Request, node: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let work = move |store: Arc<Store>| async move {
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            let to = match whence {
                3 => SeekFrom::Data(offset),
                4 => SeekFrom::Hole(offset),
                _ => return Err(Errno::EINVAL),
            };
            match store.found(node)? {
                Found::Name(name) => {
                    // Holes are where the disk has none, once all is on the disk.
                    store.engine.sync(&name).await.map_err(refused)?;
                    store.backing.seek(&name, to).map_err(errno)
                }
                Found::Orphan(file) => rustix::fs::seek(&*file, to).map_err(errno),
            }
        };
        self.answer(work, |answer| match answer {
            Ok(offset) => reply.offset(offset.cast_signed()),
            Err(error) => reply.error(error),
        });
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _: FileHandle,
        offset_in: u64,
        to: INodeNo,
        _: FileHandle,
        offset_out: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let breaker = self.callers.identity(request);
        let work = move |store: Arc<Store>| async move {
            let _shared = store.names_held.read().await;
            // The answer has 32 bits.
            let range = ByteRange::at(offset_in, length.min(1 << 30)).ok_or(Errno::EINVAL)?;
            let (source, target) = (store.name(from)?, store.name(to)?);
            let copied = store
                .engine
                .copy_range(&source, range, &target, offset_out, breaker)
                .await
                .map_err(refused)?;
            store.times.written(to.0);
            Ok(copied as u32)
        };
        self.answer_or_interrupt(request, work, written(reply));
    }
}

impl Store {
    fn forget_if_gone(&self, node: INodeNo) {
        if self.nodes().found(node.0).is_none() {
            self.times.forget(node.0);
        }
    }

    /// A descriptor for reading is served from the kernel's pages. One that may write goes to the engine straight: a page that
    /// waits for a holder to be written would be locked meanwhile, and the holder's own commit waits for it to be forgotten.
    fn caching(&self, flags: OpenFlags) -> FopenFlags {
        let reads = flags.acc_mode() == OpenAccMode::O_RDONLY;
        if reads && self.keeps_pages.load(Ordering::Relaxed) {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::FOPEN_DIRECT_IO
        }
    }

    fn handle(&self) -> FileHandle {
        FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }

    fn listings(&self) -> MutexGuard<'_, HashMap<u64, Arc<Vec<Listed>>>> {
        self.listings.lock().expect("no code panics while it holds the listings")
    }
}
