//! A mount of this machine's kernel, whose requests are for whoever reads them from `/dev/fuse`.

use super::message::MESSAGE_BYTES_MAX;
use super::options::Options;
use super::{MountError, clear};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// What `mount` shows as the type.
const TYPE: &str = "fuse.leasehold";

/// A mounted `/dev/fuse`. When the process ends, so does what it answers.
pub(crate) struct Device {
    fuse: OwnedFd,
    at: PathBuf,
}

impl Device {
    /// Mounts it; `source` is what `mount` shows as the device. Blocks.
    ///
    /// # Errors
    /// [`MountError`], with the remedy.
    pub fn mount(source: &str, at: &Path, options: Options) -> Result<Device, MountError> {
        let place = |source| MountError::Place { at: at.to_owned(), source };
        let fuse = |source: Errno| match source {
            Errno::PERM | Errno::ACCESS => MountError::NotRoot { at: at.to_owned() },
            source => MountError::Fuse { at: at.to_owned(), source: source.into() },
        };
        clear(at).map_err(place)?;
        let real = at.canonicalize().map_err(place)?;
        if !real.is_dir() {
            return Err(place(Errno::NOTDIR.into()));
        }
        if is_mounted(&real).map_err(place)? {
            return Err(MountError::Twice { at: at.to_owned() });
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::openat(CWD, "/dev/fuse", flags, Mode::empty()).map_err(fuse)?;
        // The kernel there checks permissions, and everybody may use it, as on any other filesystem.
        let data = format!(
            "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
            device.as_raw_fd(),
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let data = CString::new(data).expect("no zero is in it");
        rustix::mount::mount(source, &real, TYPE, options.flags(), Some(data.as_c_str())).map_err(fuse)?;
        Ok(Device { fuse: device, at: real })
    }

    /// Where it is.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// The next request; `None` once nothing is mounted any more. Blocks.
    pub(super) fn request<'a>(
        &self,
        buffer: &'a mut [u8; MESSAGE_BYTES_MAX],
    ) -> io::Result<Option<&'a [u8]>> {
        loop {
            match rustix::io::read(&self.fuse, &mut *buffer) {
                Ok(length) => return Ok(Some(&buffer[..length])),
                // The request was taken back, or we were interrupted.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::NODEV) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the kernel a reply.
    pub(super) fn reply(&self, reply: &[u8]) -> io::Result<()> {
        match rustix::io::write(&self.fuse, reply) {
            // Nobody waits for it any more, or nothing is mounted.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the mount away: at once, if nobody uses it; else it is out of sight, and what is open there fails when we end.
    pub fn detach(&self) -> io::Result<()> {
        match rustix::mount::unmount(&self.at, UnmountFlags::DETACH) {
            // Somebody was faster.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a mount of ours is on top there.
fn is_mounted(at: &Path) -> io::Result<bool> {
    // What fstab(5) separates by has other names there.
    let at = at.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut fields = mounts.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
    let top = fields.find(|fields| fields.get(1) == Some(&at.as_str()));
    Ok(top.is_some_and(|fields| fields[2] == TYPE))
}
