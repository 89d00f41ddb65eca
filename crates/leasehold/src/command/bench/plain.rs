//! The baseline of the mount: a plain FUSE filesystem that passes through to a directory, as a careful programmer would
//! write it. Each call is answered by the thread that took it from the kernel; the kernel caches names, attributes and
//! bytes as usual, across opens, too; a write goes through to the directory. No passthrough by the kernel.

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the kernel may believe what it was told.
const TTL: Duration = Duration::from_secs(1);
const GENERATION: Generation = Generation(0);
const WRITE_BYTES_MAX: u32 = 1 << 20;
const THREADS: usize = 2;

/// Mounts the directory at another, until the session is dropped.
pub(super) fn mount(directory: &Path, at: &Path) -> io::Result<fuser::BackgroundSession> {
    // One descriptor for each file that the kernel knows.
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("plain".to_owned()), MountOption::DefaultPermissions];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = Node { descriptor: Arc::new(rustix::fs::open(directory, flags, Mode::empty())?), lookups: 1 };
    let nodes = Mutex::new(HashMap::from([(INodeNo::ROOT.0, root)]));
    let plain = Plain { nodes, handles: Mutex::default(), next: AtomicU64::new(1) };
    fuser::spawn_mount(plain, at, &config)
}

struct Plain {
    /// By the inode of the directory's filesystem; the root by FUSE's number for it.
    nodes: Mutex<HashMap<u64, Node>>,
    handles: Mutex<HashMap<u64, Handle>>,
    next: AtomicU64,
}

struct Node {
    descriptor: Arc<OwnedFd>,
    lookups: u64,
}

#[derive(Clone)]
enum Handle {
    File(Arc<File>),
    Directory(Arc<Vec<(u64, FileType, Vec<u8>)>>),
}

type Answer<T> = Result<T, Errno>;

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

impl Plain {
    fn nodes(&self) -> MutexGuard<'_, HashMap<u64, Node>> {
        self.nodes.lock().expect("no code panics while it holds the nodes")
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<u64, Handle>> {
        self.handles.lock().expect("no code panics while it holds the handles")
    }

    fn node(&self, node: INodeNo) -> Answer<Arc<OwnedFd>> {
        Ok(self.nodes().get(&node.0).ok_or(Errno::ESTALE)?.descriptor.clone())
    }

    fn handle(&self, handle: Handle) -> FileHandle {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles().insert(next, handle);
        FileHandle(next)
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<File>> {
        match self.handles().get(&handle.0) {
            Some(Handle::File(file)) => Ok(file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// The kernel learns of a name.
    fn entry(&self, parent: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = self.node(parent)?;
        let found = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(errno)?;
        let attributes = attributes(&found)?;
        match self.nodes().entry(attributes.ino.0) {
            Entry::Occupied(mut known) => known.get_mut().lookups += 1,
            Entry::Vacant(new) => {
                new.insert(Node { descriptor: Arc::new(found), lookups: 1 });
            }
        }
        Ok(attributes)
    }

    fn attributes(&self, node: INodeNo) -> Answer<FileAttr> {
        Ok(FileAttr { ino: node, ..attributes(&*self.node(node)?)? })
    }

    fn open(&self, node: INodeNo, flags: OpenFlags) -> Answer<FileHandle> {
        // The kernel has followed links, and knows where the end is.
        let flags = OFlags::from_bits_retain(flags.0.cast_unsigned()) - OFlags::NOFOLLOW - OFlags::APPEND;
        let file = reopen(&*self.node(node)?, flags)?;
        Ok(self.handle(Handle::File(Arc::new(file.into()))))
    }

    fn create(&self, parent: INodeNo, name: &OsStr, mode: u32) -> Answer<(FileAttr, FileHandle)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.node(parent)?, name, flags, Mode::from_raw_mode(mode));
        let attributes = self.entry(parent, name)?;
        Ok((attributes, self.handle(Handle::File(Arc::new(file.map_err(errno)?.into())))))
    }

    fn list(&self, node: INodeNo) -> Answer<FileHandle> {
        let directory = reopen(&*self.node(node)?, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut listed = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            let kind = match entry.file_type() {
                rustix::fs::FileType::Directory => FileType::Directory,
                _ => FileType::RegularFile,
            };
            listed.push((entry.ino(), kind, entry.file_name().to_bytes().to_owned()));
        }
        Ok(self.handle(Handle::Directory(Arc::new(listed))))
    }

    fn read(&self, handle: FileHandle, offset: u64, size: u32) -> Answer<Vec<u8>> {
        let mut buffer = vec![0; size as usize];
        let read = self.file(handle)?.read_at(&mut buffer, offset)?;
        buffer.truncate(read);
        Ok(buffer)
    }

    fn write(&self, handle: FileHandle, offset: u64, data: &[u8]) -> Answer<u32> {
        self.file(handle)?.write_all_at(data, offset)?;
        Ok(data.len() as u32)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> Answer<()> {
        rustix::fs::unlinkat(self.node(parent)?, name, flags).map_err(errno)
    }
}

fn reopen(node: &OwnedFd, flags: OFlags) -> Answer<OwnedFd> {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
}

fn attributes(found: &OwnedFd) -> Answer<FileAttr> {
    let stat = rustix::fs::fstat(found).map_err(errno)?;
    let kind = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        _ => FileType::RegularFile,
    };
    Ok(FileAttr {
        ino: INodeNo(stat.st_ino),
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind,
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or(0), nanoseconds as u32)
}

fn empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(reply: ReplyEntry, answer: Answer<FileAttr>) {
    match answer {
        Ok(attributes) => reply.entry(&TTL, &attributes, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn opened(reply: ReplyOpen, answer: Answer<FileHandle>, flags: FopenFlags) {
    match answer {
        Ok(handle) => reply.opened(handle, flags),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Plain {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The kernel may take less.
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_readahead(WRITE_BYTES_MAX);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_ATOMIC_O_TRUNC);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.entry(parent, name));
    }

    fn forget(&self, _: &Request, node: INodeNo, times: u64) {
        if let Entry::Occupied(mut known) = self.nodes().entry(node.0) {
            known.get_mut().lookups = known.get().lookups.saturating_sub(times);
            if known.get().lookups == 0 && node != INodeNo::ROOT {
                known.remove();
            }
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(node) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Of what can be set, a bench sets the size.
        let set = || {
            if let Some(size) = size {
                rustix::fs::ftruncate(reopen(&*self.node(node)?, OFlags::RDWR)?, size).map_err(errno)?;
            }
            self.attributes(node)
        };
        match set() {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let make = || {
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::mkdirat(self.node(parent)?, name, mode).map_err(errno)?;
            self.entry(parent, name)
        };
        entry(reply, make());
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name, AtFlags::empty()));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name, AtFlags::REMOVEDIR));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = || {
            let (from, to) = (self.node(parent)?, self.node(new_parent)?);
            rustix::fs::renameat(&from, name, &to, new_name).map_err(errno)
        };
        empty(reply, rename());
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        opened(reply, self.open(node, flags), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.create(parent, name, mode) {
            Ok((attributes, handle)) => {
                reply.created(&TTL, &attributes, GENERATION, handle, FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read(handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write(handle, offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The kernel asks no more.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.handles().remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let sync = || {
            let file = self.file(handle)?;
            Ok(if data_only { file.sync_data() } else { file.sync_all() }?)
        };
        empty(reply, sync());
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        opened(reply, self.list(node), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(Handle::Directory(listed)) = self.handles().get(&handle.0).cloned() else {
            return reply.error(Errno::EBADF);
        };
        for (at, (inode, kind, name)) in listed.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*inode), at as u64 + 1, *kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.handles().remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let sync = || {
            let directory = reopen(&*self.node(node)?, OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::fsync(directory).map_err(errno)
        };
        empty(reply, sync());
    }
}
