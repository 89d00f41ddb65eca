//! DMA that takes as long as we want: a FUSE file that is read past the cache, and answers when it is told to.
//!
//! An O_DIRECT read from it pins the pages that it goes to before the request is sent to us, and lets them go after our
//! answer. In between is all the time in the world, and nothing depends on how fast the machine is.
//!
//! Source: `fuse_direct_io` in the kernel's fs/fuse/file.c.

use super::pattern::{self, Mark, PAGE_BYTES};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    Request,
};
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

/// The only file.
const NAME: &str = "held";
const NODE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(1);
const FILE_BYTES: u64 = 1 << 30;
/// One request has room for all that a read asks for.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// The file, mounted in a directory of its own until this is dropped.
pub(super) struct Source {
    gate: Arc<Gate>,
    file: Option<File>,
    session: Option<BackgroundSession>,
    /// Dropped last: it can be removed once nothing is mounted there.
    _at: TempDir,
}

/// Why there is none.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NoSource {
    #[error("there is no /dev/fuse; load the module fuse, or give the container that device")]
    NoDevice,
    #[error("to mount takes root, or fusermount3: install fuse3")]
    NotAllowed,
    #[error("cannot mount a FUSE file: {0}")]
    Mount(String),
}

/// Where requests wait.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Option<Held>,
    /// Whoever comes is answered at once.
    open: Option<Mark>,
}

struct Held {
    offset: u64,
    bytes: u32,
    reply: ReplyData,
}

impl Held {
    fn answer(self, mark: Mark) {
        let (first, pages) = (self.offset / PAGE_BYTES as u64, self.bytes as usize / PAGE_BYTES);
        self.reply.data(&pattern::bytes(mark, first as u32, pages));
    }
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// Mounts it; `about_to` hears where, before.
    pub(super) fn mount(about_to: &mut dyn FnMut(&Path)) -> Result<Source, NoSource> {
        if !Path::new("/dev/fuse").exists() {
            return Err(NoSource::NoDevice);
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound
                if !rustix::process::geteuid().is_root() =>
            {
                NoSource::NotAllowed
            }
            _ => NoSource::Mount(error.to_string()),
        };
        let at = tempfile::Builder::new().prefix("leasehold-probe-fuse-").tempdir().map_err(failed)?;
        about_to(at.path());
        let gate = Arc::<Gate>::default();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("leasehold-probe".to_owned()), MountOption::RO];
        let session = fuser::spawn_mount(OneFile(gate.clone()), at.path(), &config).map_err(failed)?;
        let mut source = Source { gate, file: None, session: Some(session), _at: at };
        let direct = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(direct).open(source._at.path().join(NAME));
        source.file = Some(file.map_err(failed)?);
        Ok(source)
    }

    /// Open for reading with O_DIRECT.
    pub(super) fn file(&self) -> &File {
        self.file.as_ref().expect("it is open until this is dropped")
    }

    /// From now on, whoever reads is held.
    pub(super) fn close_gate(&self) {
        *self.gate.state() = State::default();
    }

    /// Waits until a read is held; tells how many bytes it asks for.
    pub(super) fn held(&self, patience: Duration) -> Option<usize> {
        let state = self.gate.state();
        let (state, _) = self
            .gate
            .changed
            .wait_timeout_while(state, patience, |state| state.waiting.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting.as_ref().map(|held| held.bytes as usize)
    }

    /// Answers the read that is held, and all that come until the gate is closed again.
    pub(super) fn land(&self, mark: Mark) {
        let held = {
            let mut state = self.gate.state();
            state.open = Some(mark);
            state.waiting.take()
        };
        if let Some(held) = held {
            held.answer(mark);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.land(Mark(u32::MAX));
        drop(self.file.take());
        if let Some(session) = self.session.take() {
            // If it stays, whoever looks after this process takes it away.
            let _ = session.umount_and_join();
        }
    }
}

struct OneFile(Arc<Gate>);

fn attributes(node: INodeNo) -> FileAttr {
    let is_file = node == NODE;
    FileAttr {
        ino: node,
        size: if is_file { FILE_BYTES } else { 0 },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_file { FileType::RegularFile } else { FileType::Directory },
        perm: if is_file { 0o400 } else { 0o500 },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: PAGE_BYTES as u32,
        flags: 0,
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // It also says how many pages a request may have; if the kernel takes less, the flight says that it was split.
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &attributes(NODE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(node));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // A killed process that has the file open asks itself to flush it, and never ends.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let held = Held { offset, bytes, reply };
        let mut state = self.0.state();
        match state.open {
            Some(mark) => {
                drop(state);
                held.answer(mark);
            }
            None => {
                state.waiting = Some(held);
                self.0.changed.notify_all();
            }
        }
    }
}
