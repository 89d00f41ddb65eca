//! What the kernel's requests come to, on the engine and on the store's own files.

use super::backing::{self, Backing, Change, Listed, Listing};
use super::errno::{errno, refused};
use super::nodes::{Found, Nodes};
use super::times::Times;
use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, INodeNo, OpenAccMode, OpenFlags, RenameFlags,
};
use leasehold_core::identity::Identity;
use leasehold_core::range::ByteRange;
use leasehold_engine::Engine;
use leasehold_engine::files::{FileError, OpenFile};
use leasehold_engine::pages::WriteBackError;
use leasehold_engine::path::{PathError, StorePath};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::RwLock;

/// How long the kernel may believe what it was told of a name, and of what that stands for. Peers change names without telling
/// the kernel; of a change of size it is told.
const TTL: Duration = Duration::from_secs(1);

pub(super) type Answer<T> = Result<T, Errno>;

pub(super) struct Store {
    pub engine: Engine,
    pub backing: Backing,
    nodes: Arc<Mutex<Nodes>>,
    /// Whether the kernel keeps pages and sizes of files, and forgets them when it is told.
    keeps: AtomicBool,
    /// By handle, of directories that are being read.
    listings: Mutex<HashMap<u64, Arc<Listing>>>,
    next_handle: AtomicU64,
    pub times: Times,
    /// Who writes by a name shares it; who takes a name from an open file has it alone.
    pub names_held: RwLock<()>,
}

/// The bytes of a file.
pub(super) enum Content {
    File(Arc<OpenFile>),
    /// It has no name any more.
    Orphan(Arc<File>),
}

/// Something, for what is not about its bytes.
pub(super) enum Descriptor {
    /// It is not open, or has no bytes.
    Path(OwnedFd),
    Content(Content),
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Descriptor::Path(found) => found.as_fd(),
            Descriptor::Content(Content::File(file)) => file.as_fd(),
            Descriptor::Content(Content::Orphan(file)) => file.as_fd(),
        }
    }
}

pub(super) fn text(name: &OsStr) -> Answer<&str> {
    name.to_str().ok_or(Errno::EILSEQ)
}

impl Store {
    pub fn new(engine: Engine, nodes: Arc<Mutex<Nodes>>) -> io::Result<Store> {
        let backing = Backing::open(&engine.config().directory.join("files"))?;
        Ok(Store {
            engine,
            backing,
            nodes,
            keeps: AtomicBool::new(false),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
            times: Times::default(),
            names_held: RwLock::new(()),
        })
    }

    pub fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().expect("no code panics while it holds the nodes")
    }

    pub fn listings(&self) -> MutexGuard<'_, HashMap<u64, Arc<Listing>>> {
        self.listings.lock().expect("no code panics while it holds the listings")
    }

    pub fn handle(&self) -> FileHandle {
        FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }

    /// The kernel keeps pages and sizes, and forgets them when it is told.
    pub fn keep(&self) {
        self.keeps.store(true, Ordering::Relaxed);
    }

    /// How long the kernel may believe what it is told.
    pub fn ttl(&self) -> Duration {
        if self.keeps.load(Ordering::Relaxed) { TTL } else { Duration::ZERO }
    }

    /// A descriptor for reading is served from the kernel's pages. One that may write goes to the engine straight: a page that
    /// waits for a holder to be written would be locked meanwhile, and the holder's own commit waits for it to be forgotten.
    pub fn caching(&self, flags: OpenFlags) -> FopenFlags {
        let reads = flags.acc_mode() == OpenAccMode::O_RDONLY;
        if reads && self.keeps.load(Ordering::Relaxed) {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::FOPEN_DIRECT_IO
        }
    }

    fn found(&self, node: INodeNo) -> Answer<Found> {
        self.nodes().found(node.0).ok_or(Errno::ESTALE)
    }

    /// The name of something that has one.
    pub fn name(&self, node: INodeNo) -> Answer<StorePath> {
        match self.found(node)? {
            Found::Name(name) => Ok(name),
            Found::Orphan(_) => Err(Errno::ENOENT),
        }
    }

    pub fn child(&self, parent: INodeNo, name: &OsStr) -> Answer<StorePath> {
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        // What the store keeps to itself is nobody's.
        self.name(parent)?.join(text(name)?).map_err(|error| match error {
            PathError::TooLong { .. } => Errno::ENAMETOOLONG,
            _ => Errno::EINVAL,
        })
    }

    /// What is open is the file that was opened, whatever its name stands for by now.
    fn open_content(&self, node: INodeNo) -> Answer<Result<Content, StorePath>> {
        let nodes = self.nodes();
        match (nodes.found(node.0), nodes.file(node.0)) {
            (Some(Found::Orphan(file)), _) => Ok(Ok(Content::Orphan(file))),
            (_, Some(file)) => Ok(Ok(Content::File(file))),
            (Some(Found::Name(name)), None) => Ok(Err(name)),
            (None, None) => Err(Errno::ESTALE),
        }
    }

    /// Where its bytes are.
    pub async fn content(&self, node: INodeNo) -> Answer<Content> {
        let name = match self.open_content(node)? {
            Ok(content) => return Ok(content),
            Err(name) => name,
        };
        let file = self.engine.open(&name).await.map_err(refused)?;
        // Another may have its name by now.
        let is_it = self.nodes().is_it(node.0, file.inode());
        if is_it { Ok(Content::File(Arc::new(file))) } else { Err(Errno::ESTALE) }
    }

    /// What the kernel means, or nothing, if another has its name by now.
    pub fn descriptor(&self, node: INodeNo) -> Answer<Descriptor> {
        let name = match self.open_content(node)? {
            Ok(content) => return Ok(Descriptor::Content(content)),
            Err(name) => name,
        };
        let found = self.backing.look(&name).map_err(errno)?;
        let (inode, _) = backing::attributes(&found).map_err(errno)?;
        let is_it = self.nodes().is_it(node.0, inode);
        if is_it { Ok(Descriptor::Path(found)) } else { Err(Errno::ESTALE) }
    }

    /// What the kernel is told of it, under the number that it has for it: its size as the engine has it, durable or not.
    fn attributes(&self, node: u64, found: &impl AsFd) -> Answer<FileAttr> {
        let (inode, attributes) = backing::attributes(found).map_err(errno)?;
        Ok(self.known_as(node, inode, attributes))
    }

    fn known_as(&self, node: u64, inode: u64, attributes: FileAttr) -> FileAttr {
        let is_file = attributes.kind == FileType::RegularFile;
        let open = is_file.then(|| self.engine.size_if_open(inode)).flatten();
        let modified = self.times.modified(node, attributes.mtime);
        FileAttr { ino: INodeNo(node), size: open.unwrap_or(attributes.size), mtime: modified, ..attributes }
    }

    pub fn attributes_of(&self, node: INodeNo) -> Answer<FileAttr> {
        // Before it is looked at: what changes it from now on is told to the kernel.
        self.nodes().told(node.0);
        match self.descriptor(node)? {
            Descriptor::Content(Content::Orphan(file)) => {
                let (_, attributes) = backing::attributes(&*file).map_err(errno)?;
                Ok(FileAttr { ino: node, ..attributes })
            }
            found => self.attributes(node.0, &found),
        }
    }

    /// The kernel learns of a name.
    pub fn entry(&self, name: &StorePath) -> Answer<FileAttr> {
        self.entry_of(name, &self.backing.look(name).map_err(errno)?)
    }

    /// The kernel learns of the name of something.
    pub fn entry_of(&self, name: &StorePath, found: &impl AsFd) -> Answer<FileAttr> {
        let (inode, _) = backing::attributes(found).map_err(errno)?;
        // Before it is looked at again: what changes it from now on is told to the kernel.
        let node = self.nodes().look_up(inode, name);
        self.attributes(node, found).inspect_err(|_| self.forget(node, 1))
    }

    pub fn forget(&self, node: u64, times: u64) {
        self.nodes().forget(node, times);
        self.forget_times(node);
    }

    pub fn closed(&self, node: INodeNo, handle: FileHandle) {
        self.nodes().closed(node.0, handle.0);
        self.forget_times(node.0);
    }

    fn forget_times(&self, node: u64) {
        let is_gone = self.nodes().found(node).is_none();
        if is_gone {
            self.times.forget(node);
        }
    }

    /// Something was just made: it is its maker's.
    pub fn give(
        &self,
        name: &StorePath,
        made: &impl AsFd,
        mode: Option<u32>,
        (owner, group): (u32, u32),
    ) -> Answer<()> {
        let (_, made_as) = backing::attributes(made).map_err(errno)?;
        let (mut wanted_owner, mut wanted_group) = (None, None);
        if rustix::process::geteuid().is_root() && (owner, group) != (made_as.uid, made_as.gid) {
            wanted_owner = Some(owner);
            // In a directory with setgid, everything is of its group, and has been made so.
            let (_, parent) = self.backing.attributes(&parent(name)).map_err(errno)?;
            wanted_group = (parent.perm & 0o2000 == 0).then_some(group);
        }
        let same_mode = wanted_owner.is_none() && mode == Some(made_as.perm.into());
        let change = Change {
            mode: mode.filter(|_| !same_mode),
            owner: wanted_owner,
            group: wanted_group,
            accessed: None,
            modified: None,
        };
        backing::change(made, &change).map_err(errno)
    }

    /// Before a name goes: what has it, if somebody has it open and this is its last one.
    fn last_of_open(&self, name: &StorePath) -> Option<(u64, File)> {
        let node = self.nodes().is_open(name)?;
        let found = self.backing.look(name).ok()?;
        let (_, attributes) = backing::attributes(&found).ok()?;
        let is_last = attributes.kind == FileType::RegularFile && attributes.nlink == 1;
        let file = is_last.then(|| backing::reopen(&found, OFlags::RDWR).ok()).flatten()?;
        Some((node, file.into()))
    }

    pub async fn remove(&self, name: StorePath, breaker: Identity) -> Answer<()> {
        // What is written to an orphan has no checksums: if the power goes, it must not be there again.
        let is_open = self.nodes().is_open(&name).is_some();
        if is_open {
            self.orphan(&name, self.engine.unlink(&name, breaker)).await?;
        } else {
            self.engine.unlink_soon(&name, breaker).await.map_err(refused)?;
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
        let size = self.engine.size_if_open(backing::attributes(&file).map_err(errno)?.0);
        taking.await.map_err(refused)?;
        if let Some(size) = size {
            file.set_len(size)?;
        }
        self.nodes().orphaned(node, file);
        Ok(())
    }

    pub async fn write(&self, node: INodeNo, offset: u64, data: Bytes, breaker: Identity) -> Answer<u32> {
        let length = data.len() as u32;
        let _shared = self.names_held.read().await;
        match self.content(node).await? {
            Content::File(file) => {
                self.engine.write_open(&file, offset, data, breaker).await.map_err(refused)?;
                self.times.written(node.0);
            }
            Content::Orphan(file) => write_orphan(file, offset, data).await?,
        }
        Ok(length)
    }

    /// Writes back what was changed by a mapping. What a peer has committed since the kernel read it, it is not written over.
    pub async fn write_back(
        &self,
        node: INodeNo,
        offset: u64,
        data: Bytes,
        breaker: Identity,
    ) -> Answer<u32> {
        let length = data.len() as u32;
        let _shared = self.names_held.read().await;
        let file = match self.content(node).await? {
            Content::File(file) => file,
            Content::Orphan(file) => return write_orphan(file, offset, data).await.map(|()| length),
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

    pub async fn read(&self, node: INodeNo, offset: u64, length: u32) -> Answer<Bytes> {
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

    pub async fn resize(&self, node: INodeNo, size: u64, breaker: Identity) -> Answer<()> {
        let _shared = self.names_held.read().await;
        match self.content(node).await? {
            Content::File(file) => {
                self.engine.truncate_open(&file, size, breaker).await.map_err(refused)?;
                self.times.written(node.0);
            }
            Content::Orphan(file) => file.set_len(size)?,
        }
        Ok(())
    }

    pub async fn allocate(
        &self,
        node: INodeNo,
        range: ByteRange,
        mode: FallocateFlags,
        breaker: Identity,
    ) -> Answer<()> {
        let _shared = self.names_held.read().await;
        let file = match self.content(node).await? {
            Content::File(file) => file,
            Content::Orphan(file) => {
                return rustix::fs::fallocate(&*file, mode, range.start(), range.len()).map_err(errno);
            }
        };
        let engine = &self.engine;
        let keeps = mode.contains(FallocateFlags::KEEP_SIZE);
        match mode - FallocateFlags::KEEP_SIZE {
            rest if rest.is_empty() => backing::reserve(&*file, range.start(), range.len()).map_err(errno)?,
            FallocateFlags::PUNCH_HOLE if keeps => {
                return engine.punch_open(&file, range, breaker).await.map_err(refused);
            }
            FallocateFlags::ZERO_RANGE => {
                engine.zero_open(&file, range, breaker.clone()).await.map_err(refused)?;
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        if !keeps && engine.size_if_open(file.inode()).is_some_and(|size| size < range.end()) {
            engine.truncate_open(&file, range.end(), breaker).await.map_err(refused)?;
        }
        Ok(())
    }

    pub async fn copy_range(
        &self,
        (from, range): (INodeNo, ByteRange),
        (to, offset): (INodeNo, u64),
        breaker: Identity,
    ) -> Answer<u32> {
        let _shared = self.names_held.read().await;
        let (source, target) = (self.content(from).await?, self.content(to).await?);
        let (Content::File(source), Content::File(target)) = (source, target) else {
            return Err(Errno::ENOENT);
        };
        let copied =
            self.engine.copy_range_open(&source, range, &target, offset, breaker).await.map_err(refused)?;
        self.times.written(to.0);
        Ok(copied as u32)
    }

    /// Where the next data, or the next hole, begins.
    pub async fn seek(&self, node: INodeNo, to: SeekFrom) -> Answer<u64> {
        match self.content(node).await? {
            Content::File(file) => {
                // Holes are where the disk has none, once all is on the disk.
                self.flush(node, &file).await?;
                backing::seek(&*file, to).map_err(errno)
            }
            Content::Orphan(file) => rustix::fs::seek(&*file, to).map_err(errno),
        }
    }

    pub async fn sync(&self, node: INodeNo, data_only: bool) -> Answer<()> {
        match self.content(node).await? {
            Content::File(file) => {
                self.flush(node, &file).await?;
                if data_only { Ok(()) } else { rustix::fs::fsync(&*file).map_err(errno) }
            }
            Content::Orphan(file) => Ok(file.sync_all()?),
        }
    }

    /// Returns once what was written is on disk.
    async fn flush(&self, node: INodeNo, file: &OpenFile) -> Answer<()> {
        let written = self.times.in_memory(node.0);
        self.engine.sync_open(file).await.map_err(refused)?;
        self.times.durable(node.0, written);
        Ok(())
    }

    /// Sets what is beside the bytes.
    pub async fn change(&self, node: INodeNo, change: &Change) -> Answer<()> {
        // Else bytes that come to the disk later would set the time anew.
        if change.modified.is_some()
            && self.times.in_memory(node.0).is_some()
            && let Content::File(file) = self.content(node).await?
        {
            self.flush(node, &file).await?;
        }
        backing::change(&self.descriptor(node)?, change).map_err(errno)
    }

    pub async fn rename(
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

    pub async fn make_directory(&self, name: &StorePath, mode: u32, who: (u32, u32)) -> Answer<FileAttr> {
        self.engine.make_directory(name).await.map_err(refused)?;
        let made = self.backing.look(name).map_err(errno)?;
        // In a directory with setgid, it has that, too.
        let (_, made_as) = backing::attributes(&made).map_err(errno)?;
        self.give(name, &made, Some(mode | u32::from(made_as.perm) & 0o2000), who)?;
        self.entry_of(name, &made)
    }

    /// What is in the directory that this was opened for. Whoever begins again wants to see what is there now.
    pub fn list(&self, node: INodeNo, handle: FileHandle, offset: u64) -> Answer<Arc<Listing>> {
        let listing = self.listings().get(&handle.0).cloned();
        if let Some(listing) = listing.filter(|_| offset > 0) {
            return Ok(listing);
        }
        let listing = Arc::new(self.backing.list(&self.name(node)?).map_err(errno)?);
        self.listings().insert(handle.0, listing.clone());
        Ok(listing)
    }

    /// The kernel learns of a name by a listing. `None` if it stands for nothing any more.
    pub fn entry_in(&self, directory: &StorePath, listing: &Listing, listed: &Listed) -> Option<FileAttr> {
        let name = directory.join(&listed.name).ok()?;
        let node = self.nodes().look_up(listed.inode, &name);
        match listing.attributes(listed) {
            Ok((inode, attributes)) if inode == listed.inode => Some(self.known_as(node, inode, attributes)),
            _ => {
                self.forget(node, 1);
                self.entry(&name).ok()
            }
        }
    }
}

fn parent(name: &StorePath) -> StorePath {
    name.split().map_or(StorePath::ROOT, |(parent, _)| parent)
}

async fn write_orphan(file: Arc<File>, offset: u64, data: Bytes) -> Answer<()> {
    let write = tokio::task::spawn_blocking(move || file.write_all_at(&data, offset));
    Ok(write.await.expect("a write does not panic")?)
}
