//! fanotify(7) permission events: whoever opens or changes a marked file is held until it is answered.
//!
//! A group that is closed, as at the death of its process, lets everybody pass.

use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// With the range; Linux 6.14.
const FAN_PRE_ACCESS: u64 = 0x0010_0000;
const INFO_RANGE: u8 = 6;
const METADATA_BYTES: usize = 24;

/// How much of a file's use is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// Opens, and each operation with its range.
    Ranges,
    /// Opens alone.
    Opens,
}

/// Whoever is held in one operation.
pub(super) struct Held {
    /// The file.
    pub(super) file: OwnedFd,
    pub(super) is_open: bool,
    /// The process; 0 if it is outside of our namespace.
    pub(super) pid: u32,
    pub(super) pidfd: Option<OwnedFd>,
    /// Offset and length, where the kernel tells.
    pub(super) range: Option<(u64, u64)>,
}

/// A group of marks.
pub(super) struct Group {
    group: OwnedFd,
}

impl Group {
    pub(super) fn new() -> io::Result<Group> {
        let flags = libc::FAN_CLASS_PRE_CONTENT
            | libc::FAN_REPORT_PIDFD
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_UNLIMITED_MARKS;
        let of_events = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
        // SAFETY: it takes two integers.
        let group = unsafe { libc::fanotify_init(flags, of_events.cast_unsigned()) };
        if group < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and is ours.
        Ok(Group { group: unsafe { OwnedFd::from_raw_fd(group) } })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd as _;
        self.group.as_fd()
    }

    /// Marks a file, as well as the kernel can on its filesystem.
    pub(super) fn mark(&self, file: &File) -> io::Result<Sight> {
        match self.try_mark(file, libc::FAN_OPEN_PERM | FAN_PRE_ACCESS) {
            Ok(()) => Ok(Sight::Ranges),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::OPNOTSUPP)) => {
                self.try_mark(file, libc::FAN_OPEN_PERM).map(|()| Sight::Opens)
            }
            Err(error) => Err(error),
        }
    }

    fn try_mark(&self, file: &File, mask: u64) -> io::Result<()> {
        let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
        // SAFETY: the path ends with a zero, and lives until the call returns.
        let result = unsafe {
            libc::fanotify_mark(
                self.group.as_raw_fd(),
                libc::FAN_MARK_ADD,
                mask,
                libc::AT_FDCWD,
                path.as_ptr().cast(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Those who are held by now, without waiting for more.
    pub(super) fn read(&self) -> io::Result<Vec<Held>> {
        let mut buffer = vec![0_u8; 1 << 16];
        match rustix::io::read(&self.group, &mut buffer) {
            Ok(length) => Ok(parse(&buffer[..length])),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets whoever is held go on.
    pub(super) fn allow(&self, held: &Held) -> io::Result<()> {
        self.answer(held, libc::FAN_ALLOW)
    }

    /// Whoever is held fails: with EBUSY, or with EPERM where the kernel knows no other.
    pub(super) fn refuse(&self, held: &Held) -> io::Result<()> {
        let busy = (Errno::BUSY.raw_os_error() as u32) << 24;
        match self.answer(held, libc::FAN_DENY | busy) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                self.answer(held, libc::FAN_DENY)
            }
            answered => answered,
        }
    }

    fn answer(&self, held: &Held, response: u32) -> io::Result<()> {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&held.file.as_raw_fd().to_ne_bytes());
        bytes[4..].copy_from_slice(&response.to_ne_bytes());
        match rustix::io::write(&self.group, &bytes) {
            // It was killed meanwhile, and waits no more.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The events in a buffer that the kernel filled: their descriptors are ours from here on.
fn parse(mut bytes: &[u8]) -> Vec<Held> {
    let mut all = Vec::new();
    while bytes.len() >= METADATA_BYTES {
        let length = number(bytes, 0) as usize;
        if length < METADATA_BYTES || length > bytes.len() {
            break;
        }
        let (event, rest) = bytes.split_at(length);
        bytes = rest;
        let fd = number(event, 16).cast_signed();
        if fd < 0 {
            continue;
        }
        // SAFETY: the kernel has just opened it for us, and each event is parsed once.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let mask = number64(event, 8);
        let is_open = mask & libc::FAN_OPEN_PERM != 0;
        let mut held = Held { file, is_open, pid: number(event, 20), pidfd: None, range: None };
        let mut info = &event[METADATA_BYTES..];
        while info.len() >= 4 {
            let length = usize::from(u16::from_ne_bytes([info[2], info[3]]));
            if length < 4 || length > info.len() {
                break;
            }
            match info[0] {
                libc::FAN_EVENT_INFO_TYPE_PIDFD if length >= 8 => {
                    let pidfd = number(info, 4).cast_signed();
                    // SAFETY: as above; a negative number stands for none.
                    held.pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
                }
                INFO_RANGE if length >= 24 => held.range = Some((number64(info, 8), number64(info, 16))),
                _ => {}
            }
            info = &info[length..];
        }
        all.push(held);
    }
    all
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
