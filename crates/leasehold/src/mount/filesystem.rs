//! The kernel's requests. Each is begun by the thread that took it, and goes on in a task of its own if it has to wait.

use super::THREADS;
use super::backing::{self, Change};
use super::caller::{Callers, mappers};
use super::errno::{errno, refused};
use super::message::REMOTE_CALL_BYTES;
use super::nodes::Nodes;
use super::store::{Answer, Content, Store, text};
use bytes::Bytes;
use fuser::{
    CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, Version, WriteFlags,
};
use leasehold_core::range::ByteRange;
use leasehold_engine::Engine;
use leasehold_engine::files::CALL_BYTES_MAX;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, Timespec, UTIME_NOW};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// How long a thread waits for what it has begun.
const MOMENT: Duration = Duration::from_millis(1);
/// How many requests the kernel makes at once that no program waits for.
const BACKGROUND_MAX: u16 = 512;
const GENERATION: Generation = Generation(0);

/// The filesystem, for the kernel's thread.
pub(super) struct Mounted {
    store: Arc<Store>,
    callers: Callers,
    runtime: Handle,
    /// For threads that wait for what they have begun, while others take requests.
    waiting: Semaphore,
}

impl Mounted {
    /// What has to wait goes on in tasks of the runtime that this is called in.
    pub fn new(engine: Engine, nodes: Arc<Mutex<Nodes>>, callers: Callers) -> io::Result<Mounted> {
        let store = Arc::new(Store::new(engine, nodes)?);
        Ok(Mounted { store, callers, runtime: Handle::current(), waiting: Semaphore::new(THREADS / 2) })
    }

    /// Begins here, and has a task answer if that has to wait for long.
    fn answer<T, F>(&self, work: impl FnOnce(Arc<Store>) -> F, reply: impl FnOnce(Answer<T>) + Send + 'static)
    where
        F: Future<Output = Answer<T>> + Send + 'static,
        T: Send,
    {
        self.answer_unless(std::future::pending(), work, reply);
    }

    /// [`Mounted::answer`]; a signal to the caller ends its wait.
    fn answer_or_interrupt<T, F>(
        &self,
        request: &Request,
        work: impl FnOnce(Arc<Store>) -> F,
        reply: impl FnOnce(Answer<T>) + Send + 'static,
    ) where
        F: Future<Output = Answer<T>> + Send + 'static,
        T: Send,
    {
        self.answer_unless(self.callers.interrupted(request), work, reply);
    }

    fn answer_unless<T, F>(
        &self,
        interrupted: impl Future<Output = ()> + Send + 'static,
        work: impl FnOnce(Arc<Store>) -> F,
        reply: impl FnOnce(Answer<T>) + Send + 'static,
    ) where
        F: Future<Output = Answer<T>> + Send + 'static,
        T: Send,
    {
        let _runtime = self.runtime.enter();
        let mut work = Box::pin(work(self.store.clone()));
        let begun = if self.callers.are_remote() {
            // One thread takes the requests of another machine.
            work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        } else {
            self.begin(work.as_mut())
        };
        if let Poll::Ready(answer) = begun {
            return reply(answer);
        }
        self.runtime.spawn(async move {
            reply(tokio::select! {
                biased;
                answer = work => answer,
                () = interrupted => Err(Errno::EINTR),
            });
        });
    }

    /// Goes on with it as far as it gets in a moment: to change the thread takes longer than most of what is waited for.
    fn begin<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let (began, mut place) = (Instant::now(), None);
        loop {
            let poll = || work.as_mut().poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(answer) = leasehold_engine::may_block(poll) {
                return Poll::Ready(answer);
            }
            place = place.or_else(|| self.waiting.try_acquire().ok());
            let left = MOMENT.saturating_sub(began.elapsed());
            if place.is_none() || left.is_zero() {
                return Poll::Pending;
            }
            thread::park_timeout(left);
        }
    }
}

/// Wakes a thread that waits for what it has begun.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
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

/// Answers with what the kernel may believe for so long.
fn entry(reply: ReplyEntry, ttl: Duration) -> impl FnOnce(Answer<FileAttr>) + Send {
    move |answer| match answer {
        Ok(attributes) => reply.entry(&ttl, &attributes, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn attributes(reply: ReplyAttr, ttl: Duration) -> impl FnOnce(Answer<FileAttr>) + Send {
    move |answer| match answer {
        Ok(attributes) => reply.attr(&ttl, &attributes),
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
            if maps && config.kernel_abi() >= Version(7, 40) {
                self.store.keep();
                // Of use as long as what is listed is believed.
                let plus = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO;
                let _ = config.add_capabilities(plus);
            }
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.store.child(parent, name).and_then(|name| self.store.entry(&name));
        entry(reply, self.store.ttl())(found);
    }

    fn forget(&self, _: &Request, node: INodeNo, times: u64) {
        self.store.forget(node.0, times);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attributes(reply, self.store.ttl())(self.store.attributes_of(node));
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
            store.attributes_of(node)
        };
        // The kernel does not look whether it was told of a change of size since it asked for this one.
        self.answer_or_interrupt(request, work, attributes(reply, Duration::ZERO));
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
                let (_, created) = store.engine.open_or_create(&name).await.map_err(refused)?;
                if !created {
                    return Err(Errno::EEXIST);
                }
            } else {
                store.backing.make_node(&name, mode, device.into()).map_err(errno)?;
            }
            let made = store.backing.look(&name).map_err(errno)?;
            store.give(&name, &made, Some(mode & 0o7777), who)?;
            store.entry_of(&name, &made)
        };
        self.answer(work, entry(reply, self.store.ttl()));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (name, who) = (self.store.child(parent, name), (request.uid(), request.gid()));
        let work =
            move |store: Arc<Store>| async move { store.make_directory(&name?, mode & 0o7777, who).await };
        self.answer(work, entry(reply, self.store.ttl()));
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
            let made = store.backing.look(&name).map_err(errno)?;
            store.give(&name, &made, None, who)?;
            store.entry_of(&name, &made)
        };
        self.answer(work, entry(reply, self.store.ttl()));
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
            store.entry(&name)
        };
        // See `setattr`.
        self.answer(work, entry(reply, Duration::ZERO));
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
        let exclusive = OFlags::from_bits_retain(flags.cast_unsigned()).contains(OFlags::EXCL);
        let work = move |store: Arc<Store>| async move {
            let name = name?;
            let (file, created) = store.engine.open_or_create(&name).await.map_err(refused)?;
            if created {
                store.give(&name, &file, Some(mode & 0o7777), who)?;
            } else if exclusive {
                return Err(Errno::EEXIST);
            }
            let (attributes, handle) = (store.entry_of(&name, &file)?, store.handle());
            store.nodes().opened(attributes.ino.0, handle.0, pid, Some(Arc::new(file)));
            // See `setattr`.
            let ttl = if created { store.ttl() } else { Duration::ZERO };
            Ok((attributes, ttl, handle, store.caching(OpenFlags(flags))))
        };
        self.answer(work, |answer| match answer {
            Ok((attributes, ttl, handle, caching)) => {
                reply.created(&ttl, &attributes, GENERATION, handle, caching);
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
        // The kernel has written back what was changed by mappings, and asks no more.
        reply.error(Errno::ENOSYS);
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
        self.store.closed(node, handle);
        reply.ok();
    }

    fn fsync(&self, request: &Request, node: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let work = move |store: Arc<Store>| async move { store.sync(node, data_only).await };
        self.answer_or_interrupt(request, work, empty(reply));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.store.handle(), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listing = match self.store.list(node, handle, offset) {
            Ok(listing) => listing,
            Err(error) => return reply.error(error),
        };
        for (listed, next) in listing.entries.iter().zip(1..).skip(offset as usize) {
            if reply.add(INodeNo(listed.inode), next, listed.kind, &listed.name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let found = self.store.list(node, handle, offset);
        let (listing, directory) = match found.and_then(|listing| Ok((listing, self.store.name(node)?))) {
            Ok(found) => found,
            Err(error) => return reply.error(error),
        };
        let ttl = self.store.ttl();
        for (listed, next) in listing.entries.iter().zip(1..).skip(offset as usize) {
            let attributes = if listed.name == "." || listed.name == ".." {
                // The kernel looks neither up by this.
                self.store.attributes_of(node).ok()
            } else {
                self.store.entry_in(&directory, &listing, listed)
            };
            let Some(attributes) = attributes else { continue };
            if reply.add(attributes.ino, next, &listed.name, &ttl, &attributes, GENERATION) {
                if attributes.ino != node {
                    self.store.forget(attributes.ino.0, 1);
                }
                break;
            }
        }
        reply.ok();
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
            let found = self.store.descriptor(node)?;
            backing::set_attribute(&found, text(name)?, value, flags).map_err(errno)
        };
        empty(reply)(set());
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let get = || backing::attribute(&self.store.descriptor(node)?, text(name)?).map_err(errno);
        value(reply, size)(get());
    }

    fn listxattr(&self, _: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let list = || backing::attribute_names(&self.store.descriptor(node)?).map_err(errno);
        value(reply, size)(list());
    }

    fn removexattr(&self, _: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || backing::remove_attribute(&self.store.descriptor(node)?, text(name)?).map_err(errno);
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
            store.seek(node, to).await
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
            // The answer has 32 bits.
            let range = ByteRange::at(offset_in, length.min(1 << 30)).ok_or(Errno::EINVAL)?;
            store.copy_range((from, range), (to, offset_out), breaker).await
        };
        self.answer_or_interrupt(request, work, written(reply));
    }
}
