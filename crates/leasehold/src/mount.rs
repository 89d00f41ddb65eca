//! A store as a filesystem (FUSE): ordinary programs use it, and whatever they do breaks leases as the control plane does,
//! with the caller's pid, uid and program as the breaker.
//!
//! ```text
//! filesystem   the kernel's requests, and the answers
//! store        what the requests come to, on the engine and on the store's own files
//! errno        what a program gets to see of an error
//! nodes        what the kernel calls a file, and which names it has
//! times        when files were written whose bytes are still in memory
//! backing      what is not about bytes: owners, permissions, times, attributes, straight on the store's files
//! pages        what the kernel keeps of files, and is told to forget
//! caller       who asks, and whether he has been interrupted meanwhile
//!
//! remote       on the server: the same filesystem for the kernel of another machine, by a stream of FUSE's messages
//! forward      on that machine: the other end of the stream
//! device       there: the kernel's end, /dev/fuse, mounted
//! options      there: how it is mounted
//! message      what both ends read of the messages
//! ```
//!
//! Bytes go through the engine, so through the same leases, checksums and writeback as everybody's. The kernel keeps pages
//! of what is read or mapped, and has forgotten them before a commit of theirs is acknowledged: see
//! [`leasehold_engine::pages`].

mod backing;
mod caller;
pub(crate) mod device;
mod errno;
mod filesystem;
pub(crate) mod forward;
pub(crate) mod message;
mod nodes;
pub(crate) mod options;
mod pages;
pub(crate) mod remote;
mod store;
mod times;

use caller::Callers;
use filesystem::Mounted;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use leasehold_engine::Engine;
use leasehold_engine::path::StorePath;
use nodes::Nodes;
use pages::Pages;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;

/// How many threads take requests from the kernel. While one looks something up on the disk, the others go on. They share a
/// descriptor: by another one, the kernel's word that a caller was interrupted could not be answered.
const THREADS: usize = 4;

const READ_AHEAD_KIB: u32 = 1024;

/// A mounted store. Dropping it unmounts it.
pub struct Mount {
    session: BackgroundSession,
    at: PathBuf,
}

/// Why a store was not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It is no directory that could be mounted on.
    #[error("cannot mount on {}: {source}; name an empty directory", at.display())]
    Place {
        /// Where.
        at: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store would lie below itself.
    #[error("cannot mount on {}: it is in the store {}; name a directory outside of it", at.display(), store.display())]
    Inside {
        /// Where.
        at: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// The engine knows one keeper of pages.
    #[error("the store is mounted already, or was; start the server again to mount it elsewhere")]
    Again,
    /// The caller may not.
    #[error("cannot mount on {}: that takes root; run it with sudo, or put it into /etc/fstab", at.display())]
    NotRoot {
        /// Where.
        at: PathBuf,
    },
    /// Two mounts, of which only one could be seen.
    #[error("a store is mounted on {} already; `umount {}` first, or name another directory", at.display(), at.display())]
    Twice {
        /// Where.
        at: PathBuf,
    },
    /// The kernel, or fusermount3.
    #[error("cannot mount on {}: {source}; {}", at.display(), remedy(source))]
    Fuse {
        /// Where.
        at: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse: load the module fuse, or give the container the device"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "run as root, or install fusermount3"
    } else {
        "see dmesg, and whether fusermount3 is installed"
    }
}

impl Mount {
    /// Mounts what the engine serves. Requests are answered by tasks of the runtime that this is called in. Blocks.
    ///
    /// # Errors
    /// [`MountError`], with the remedy.
    pub fn new(engine: Engine, at: &Path) -> Result<Mount, MountError> {
        let place = |source| MountError::Place { at: at.to_owned(), source };
        let fuse = |source| MountError::Fuse { at: at.to_owned(), source };
        clear(at).map_err(place)?;
        let (real, store) = (at.canonicalize().map_err(place)?, engine.config().directory.clone());
        let store = store.canonicalize().map_err(place)?;
        if real.starts_with(&store) {
            return Err(MountError::Inside { at: at.to_owned(), store });
        }
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.mount_options = vec![
            MountOption::FSName(store.display().to_string()),
            MountOption::Subtype("leasehold".to_owned()),
            MountOption::DefaultPermissions,
        ];
        if rustix::process::geteuid().is_root() {
            config.acl = SessionACL::All;
        }
        let nodes = Nodes::shared(StorePath::ROOT);
        let pages = Arc::new(Pages::new(nodes.clone(), Handle::current()));
        let engine = engine.keep_pages(pages.clone()).ok_or(MountError::Again)?;
        let mounted = Mounted::new(engine, nodes, Callers::Local).map_err(place)?;
        let session = Session::new(mounted, &real, &config).map_err(fuse)?;
        let _first = pages.kernel.set(Arc::new(session.as_fd().try_clone_to_owned().map_err(fuse)?));
        let session = session.spawn().map_err(fuse)?;
        if let Err(error) = read_ahead(&real) {
            tracing::debug!("the kernel reads as far ahead as it likes: {error}");
        }
        Ok(Mount { session, at: real })
    }

    /// Where it is.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Unmounts it: at once, if nobody uses it; else it is out of sight, and goes with its last user. Blocks.
    ///
    /// # Errors
    /// The kernel's. It is mounted still.
    pub fn unmount(self) -> io::Result<()> {
        let detached = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        drop(self.session);
        match detached {
            // Where we may not, fusermount3 did by now; or somebody was faster.
            Err(Errno::PERM | Errno::INVAL) => Ok(()),
            detached => Ok(detached?),
        }
    }
}

/// Has the kernel read further ahead than the 128 KiB that it begins with: what is not in memory comes from the disk, each time.
fn read_ahead(at: &Path) -> io::Result<()> {
    let device = rustix::fs::stat(at)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD_KIB.to_string())
}

/// Takes away what a server that was killed has left there.
fn clear(at: &Path) -> io::Result<()> {
    // Not `stat`: what that says may be known by the kernel from before the server was killed.
    match rustix::fs::statfs(at) {
        Err(Errno::NOTCONN) => {
            tracing::warn!("{}: taking away a mount whose server has gone", at.display());
            Ok(rustix::mount::unmount(at, UnmountFlags::DETACH)?)
        }
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}
