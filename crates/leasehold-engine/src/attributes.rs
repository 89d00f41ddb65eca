//! What a file has beside its bytes and is to keep: permissions, times, and extended attributes of the user (`user.*`).

use crate::namespace::{NamespaceError, refused};
use crate::path::StorePath;
use crate::storage::Inner;
use rustix::fs::{FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// Extended attributes by name, which begins with `user.`.
pub type Xattrs = BTreeMap<String, Vec<u8>>;

/// What to set; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The permission bits (`0o777`), of directories setgid and sticky, too. What makes a file run as somebody else is
    /// nobody's to give from afar, and left out. Symbolic links have none.
    pub mode: Option<u32>,
    /// When it was last modified. Writes that are not durable yet set it anew, so flush the file first.
    pub modified: Option<SystemTime>,
    /// All of its `user.*` attributes: those that it has and that are not among these are removed. Only files and
    /// directories can have any.
    pub xattrs: Option<Xattrs>,
}

impl Inner {
    pub(crate) fn set_attributes(
        &self,
        path: &StorePath,
        attributes: &Attributes,
    ) -> Result<(), NamespaceError> {
        let failed = || refused("set the attributes of", path);
        let (found, kind) = self.look_at(path).map_err(failed())?;
        if kind == FileType::Symlink {
            if attributes.mode.is_some() || attributes.xattrs.as_ref().is_some_and(|set| !set.is_empty()) {
                return Err(NamespaceError::NotAFile { path: path.clone() });
            }
            return set_modified_at(&found, attributes.modified).map_err(failed());
        }
        if kind != FileType::RegularFile && kind != FileType::Directory {
            return Err(NamespaceError::NotAFile { path: path.clone() });
        }
        let opened =
            self.names.open(&self.store, path, OFlags::RDONLY | OFlags::NOFOLLOW).map_err(failed())?;
        if let Some(xattrs) = &attributes.xattrs {
            set_xattrs(&opened, xattrs).map_err(failed())?;
        }
        if let Some(mode) = attributes.mode {
            let may = if kind == FileType::Directory { 0o3777 } else { 0o777 };
            rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode & may)).map_err(failed())?;
        }
        if let Some(modified) = attributes.modified {
            rustix::fs::futimens(&opened, &modified_at(modified)).map_err(failed())?;
        }
        self.flush_later(opened, kind).map_err(failed())
    }

    /// The attributes are durable after the next flush of the file if it is open, of any file if this is a directory, and
    /// else at once.
    fn flush_later(&self, opened: OwnedFd, kind: FileType) -> rustix::io::Result<()> {
        if kind == FileType::Directory {
            return self.names.changed(opened);
        }
        let identity = self.disk.identify(opened.as_fd()).ok();
        {
            let files = self.files();
            if let Some(file) = identity.and_then(|identity| files.by_identity.get(&identity)) {
                file.unsynced.store(true, Ordering::Release);
                // If it is closed before its flush, it is known until a checkpoint has flushed it.
                self.mark_dirty(file);
                return Ok(());
            }
        }
        rustix::io::retry_on_intr(|| rustix::fs::fsync(&opened))
    }

    pub(crate) fn xattrs(&self, path: &StorePath) -> Result<Xattrs, NamespaceError> {
        let failed = || refused("read the attributes of", path);
        let (_, kind) = self.look_at(path).map_err(failed())?;
        if kind != FileType::RegularFile && kind != FileType::Directory {
            return Ok(Xattrs::new());
        }
        let opened =
            self.names.open(&self.store, path, OFlags::RDONLY | OFlags::NOFOLLOW).map_err(failed())?;
        let raw = raw_xattrs(&opened).map_err(failed())?;
        // Names that are not UTF-8 cannot be asked for either.
        Ok(raw.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect())
    }

    /// What a name stands for, without opening it: that could wait (a pipe) or do something (a device).
    fn look_at(&self, path: &StorePath) -> rustix::io::Result<(OwnedFd, FileType)> {
        let found = self.names.open(&self.store, path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        Ok((found, kind))
    }
}

fn modified_at(modified: SystemTime) -> Timestamps {
    let since = match modified.duration_since(UNIX_EPOCH) {
        Ok(since) => Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() },
        Err(before) => {
            let before = before.duration();
            let nanos = before.subsec_nanos();
            let seconds = -before.as_secs().cast_signed() - i64::from(nanos > 0);
            Timespec { tv_sec: seconds, tv_nsec: i64::from((1_000_000_000 - nanos) % 1_000_000_000) }
        }
    };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: since }
}

/// By a descriptor that was only looked at (`O_PATH`).
fn set_modified_at(found: &impl AsFd, modified: Option<SystemTime>) -> rustix::io::Result<()> {
    let Some(modified) = modified else { return Ok(()) };
    rustix::fs::utimensat(found, "", &modified_at(modified), rustix::fs::AtFlags::EMPTY_PATH)
}

/// The `user.*` attributes, as the filesystem has them.
pub(crate) fn raw_xattrs(file: &impl AsFd) -> rustix::io::Result<BTreeMap<CString, Vec<u8>>> {
    let names = match grown(|buffer| rustix::fs::flistxattr(file, buffer)) {
        // A filesystem without any.
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        names => names?,
    };
    let mut found = BTreeMap::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !name.to_bytes().starts_with(b"user.") {
            continue;
        }
        match grown(|buffer| rustix::fs::fgetxattr(file, name, buffer)) {
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            value => {
                found.insert(name.to_owned(), value?);
            }
        }
    }
    Ok(found)
}

/// Makes these the file's only `user.*` attributes.
fn set_xattrs(file: &impl AsFd, wanted: &Xattrs) -> rustix::io::Result<()> {
    let have = raw_xattrs(file)?;
    for (name, value) in wanted {
        if !name.starts_with("user.") {
            return Err(Errno::NOTSUP);
        }
        let name = CString::new(name.as_str()).map_err(|_| Errno::INVAL)?;
        if have.get(&name) != Some(value) {
            rustix::fs::fsetxattr(file, &*name, value, XattrFlags::empty())?;
        }
    }
    for name in have.keys().filter(|name| !name.to_str().is_ok_and(|name| wanted.contains_key(name))) {
        rustix::fs::fremovexattr(file, &**name)?;
    }
    Ok(())
}

/// Calls until the buffer is large enough.
fn grown(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            // xattr(7): names and values end at 64 KiB.
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            count => {
                buffer.truncate(count?);
                return Ok(buffer);
            }
        }
    }
}
