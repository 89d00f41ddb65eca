//! Which file it is, whatever its name: what sidecars and records are kept under.
//!
//! The kernel's file handle (`name_to_handle_at`) names an inode and its generation, so that a new file in the place of
//! a removed one is told apart. Where a filesystem has no handles, or long ones: the inode number and the time of birth.

use rustix::fs::{AtFlags, StatxFlags, statx};
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const HANDLE_MAX: usize = 28;
const KIND_HANDLE: u8 = 1;
const KIND_INODE: u8 = 2;

/// 32 bytes: kind (1: handle, 2: inode and birth), length of what follows the fourth byte, handle type (16 bits, little
/// endian), then the handle, or inode number, birth seconds and nanoseconds (64, 64, 32 bits), then zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub(crate) [u8; 32]);

impl Identity {
    /// The identity of an open file.
    pub(crate) fn of(file: &impl AsFd) -> io::Result<Identity> {
        match handle(file) {
            Some(identity) => Ok(identity),
            None => inode_and_birth(file),
        }
    }

    /// A hash that sidecar pages carry, so that a page of another file is told apart.
    pub(crate) fn hash(&self) -> u64 {
        crc_fast::crc64_nvme(&self.0)
    }
}

/// Whether there is a file of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exists {
    Yes,
    No,
    /// The kernel does not say.
    Unsure,
}

impl Identity {
    /// The identity that is displayed so.
    pub(crate) fn parse(text: &str) -> Option<Identity> {
        let mut identity = [0; 32];
        if text.len() > 2 * identity.len() || !text.is_ascii() {
            return None;
        }
        for (byte, digits) in identity.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let identity = Identity(identity);
        (identity.to_string() == text).then_some(identity)
    }

    /// Whether there is such a file on the filesystem of `near`.
    pub(crate) fn exists(&self, near: &impl AsFd) -> io::Result<Exists> {
        if self.0[0] != KIND_HANDLE {
            return Ok(Exists::Unsure);
        }
        let mut handle = FileHandle {
            bytes: u32::from(self.0[1]).min(HANDLE_MAX as u32),
            kind: u16::from_le_bytes([self.0[2], self.0[3]]).into(),
            handle: [0; HANDLE_MAX],
        };
        handle.handle.copy_from_slice(&self.0[4..]);
        let (near, flags) = (near.as_fd().as_raw_fd(), libc::O_PATH | libc::O_CLOEXEC);
        // SAFETY: the handle has the bytes that it says.
        let found = unsafe { libc::syscall(libc::SYS_open_by_handle_at, near, &raw mut handle, flags) };
        if found >= 0 {
            // SAFETY: the descriptor was just made, and is ours alone.
            drop(unsafe { OwnedFd::from_raw_fd(found as i32) });
            return Ok(Exists::Yes);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESTALE) => Ok(Exists::No),
            error if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)) => {
                Ok(Exists::Unsure)
            }
            error => Err(error),
        }
    }
}

impl fmt::Display for Identity {
    /// Hexadecimal, without the trailing zeros: the name of the sidecar.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = 4 + usize::from(self.0[1]).min(HANDLE_MAX);
        self.0[..used].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

fn assemble(kind: u8, number: u16, bytes: &[u8]) -> Identity {
    let mut identity = [0; 32];
    identity[0] = kind;
    identity[1] = bytes.len() as u8;
    identity[2..4].copy_from_slice(&number.to_le_bytes());
    identity[4..4 + bytes.len()].copy_from_slice(bytes);
    Identity(identity)
}

/// `struct file_handle` with room for the longest that we keep.
#[repr(C)]
struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; HANDLE_MAX],
}

fn handle(file: &impl AsFd) -> Option<Identity> {
    let mut found = FileHandle { bytes: HANDLE_MAX as u32, kind: 0, handle: [0; HANDLE_MAX] };
    let mut mount = 0;
    let empty: &CStr = c"";
    // SAFETY: the path is a C string, the handle has the room that it says, the mount id is an int.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_fd().as_raw_fd(),
            empty.as_ptr(),
            &raw mut found,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    let kind = u16::try_from(found.kind).ok()?;
    (result == 0).then(|| assemble(KIND_HANDLE, kind, &found.handle[..found.bytes as usize]))
}

fn inode_and_birth(file: &impl AsFd) -> io::Result<Identity> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::BTIME)?;
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&stat.stx_ino.to_le_bytes());
    bytes[8..16].copy_from_slice(&stat.stx_btime.tv_sec.to_le_bytes());
    bytes[16..].copy_from_slice(&stat.stx_btime.tv_nsec.to_le_bytes());
    Ok(assemble(KIND_INODE, 0, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_file_keeps_its_identity_and_a_new_one_in_its_place_has_another() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        let first = Identity::of(&std::fs::File::create(&a).unwrap()).unwrap();
        std::fs::rename(&a, &b).unwrap();
        assert_eq!(Identity::of(&std::fs::File::open(&b).unwrap()).unwrap(), first);
        std::fs::remove_file(&b).unwrap();
        let second = Identity::of(&std::fs::File::create(&a).unwrap()).unwrap();
        assert_ne!(first, second);
        assert_eq!(Identity::parse(&first.to_string()), Some(first));
        for text in ["", "01", "xy", "0102", &"00".repeat(40)] {
            assert_eq!(Identity::parse(text), None, "{text}");
        }
        let file = std::fs::File::open(&a).unwrap();
        assert_eq!(inode_and_birth(&file).unwrap(), inode_and_birth(&file).unwrap());
    }
}
