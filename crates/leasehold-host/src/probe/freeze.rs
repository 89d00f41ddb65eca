//! Does a frozen filesystem change on disk? A snapshot of its device is taken while it is frozen, and had better not.
//!
//! Freezing stops every writer of the whole filesystem. So it is done only if somebody asks for it, not on the root
//! filesystem, and not where another process is at home; and it is bounded: a process of its own thaws, whatever becomes
//! of us, as soon as we are done or gone, and after [`FROZEN_MAX`] in any case.

use super::disk::{self, Tally};
use super::flight::FlightError;
use super::pattern::{Mark, PAGE_BYTES};
use super::place::Place;
use super::report::{Group, Row, Verdict};
use super::source::{NoSource, Source};
use super::victim::{self, BYTES, PAGES, Victim};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long the filesystem stays frozen at most.
const FROZEN_MAX: Duration = Duration::from_millis(1500);
/// How long the frozen filesystem is given to write something back.
const WRITEBACK: Duration = Duration::from_millis(500);
const ASK: Duration = Duration::from_secs(5);

/// `_IOWR('X', 119, int)` and the next: linux/fs.h.
const FIFREEZE: u32 = 0xC004_5877;
const FITHAW: u32 = 0xC004_5878;

fn named(verdict: Verdict) -> Row {
    Row::new(Group::Held, "frozen", "freeze: the disk changes", verdict)
}

/// The row of a probe that was not told to freeze.
pub(super) fn not_asked_for() -> Row {
    named(Verdict::not_applicable("not tried: --freeze stops all writers for 1.5 s"))
}

/// The row.
pub(super) fn row(place: &Place, directory: &Path, source: Result<&Source, &NoSource>) -> Row {
    let source = match source {
        Ok(source) => source,
        Err(why) => return named(Verdict::not_applicable(why.to_string())),
    };
    if let Some(why) = refusal(place) {
        return named(Verdict::not_applicable(why));
    }
    match attempt(place, directory, source) {
        Ok(Ok(changed)) => {
            let note = if changed.wrong() > 0 { changed.to_string() } else { String::new() };
            named(Verdict::counted(u64::from(changed.wrong() > 0), 1, "tries")).with(note)
        }
        Ok(Err(why)) => named(Verdict::not_applicable(why)),
        Err(error) => named(error.verdict(place)),
    }
}

/// Why this filesystem is not to be frozen, or why it would show nothing.
fn refusal(place: &Place) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("to freeze takes root".to_owned());
    }
    if place.mount_point == Path::new("/") {
        return Some("never frozen: it is the root filesystem".to_owned());
    }
    if std::env::temp_dir().canonicalize().is_ok_and(|path| path.starts_with(&place.mount_point)) {
        return Some("not frozen: the temporary directory is on it".to_owned());
    }
    if place.has_checksums() {
        return Some(format!("{} writes to new blocks: the device does not tell", place.filesystem));
    }
    if !place.source.starts_with("/dev/") {
        return Some(format!("{} is no device that can be read", place.source));
    }
    user(&place.mount_point).map(|who| format!("not frozen: {who} uses it"))
}

/// Somebody else who is at home there: a process, or a loop device.
fn user(mount_point: &Path) -> Option<String> {
    let ours = [std::process::id(), std::os::unix::process::parent_id()];
    let within = |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(mount_point));
    let numbers = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    for pid in numbers("/proc").iter().filter_map(|name| name.parse::<u32>().ok()) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let links = ["fd", "map_files"].into_iter().flat_map(|kind| {
            let directory = process.join(kind);
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries.map(|entry| entry.path())
        });
        let homes = ["cwd", "root", "exe"].into_iter().map(|name| process.join(name));
        if !ours.contains(&pid) && homes.chain(links).any(within) {
            let program = fs::read_to_string(process.join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", program.trim()));
        }
    }
    numbers("/sys/block").into_iter().find(|device| {
        let backing = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file"));
        backing.is_ok_and(|path| Path::new(path.trim()).starts_with(mount_point))
    })
}

/// How many pages changed on the device between freeze and thaw; or why the device does not tell.
fn attempt(place: &Place, directory: &Path, source: &Source) -> Result<Result<Tally, String>, FlightError> {
    let [old, dma] = [1, 2].map(Mark);
    let failed = FlightError::Operation;
    let victim = Victim::make(directory, old).map_err(failed)?;
    rustix::fs::syncfs(&victim.file).map_err(|error| failed(error.into()))?;
    let device = match disk::open_direct_read(Path::new(&place.source)) {
        Ok(device) => device,
        Err(error) => return Ok(Err(format!("cannot read {}: {error}", place.source))),
    };
    let Some(at) = physical(&victim.file).map_err(failed)? else {
        return Ok(Err("the file is not in one piece on the device".to_owned()));
    };
    let on_device = || Ok(victim::tally(&disk::contents_of(&device, at, PAGES)?, old));
    if on_device().map_err(failed)?.wrong() > 0 {
        return Ok(Err("the file's blocks are not where the filesystem says".to_owned()));
    }
    source.close_gate();
    thread::scope(|scope| {
        let read = scope.spawn(|| victim.mapping.fill(0, BYTES, source.file(), 0));
        let asked = source.held(ASK);
        let frozen = if asked == Some(BYTES) {
            Frozen::freeze(directory)
        } else {
            Err(io::Error::other("no DMA could be held"))
        };
        source.land(dma);
        let read = read.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        let frozen = frozen.map_err(failed)?;
        read.map_err(FlightError::Refused)?;
        let (written, writeback) = mpsc::channel();
        let file = &victim.file;
        scope.spawn(move || {
            // Whether it ends before the thaw is the filesystem's business.
            let _ = written.send(write_back(file));
        });
        let _ = writeback.recv_timeout(WRITEBACK);
        let changed = on_device();
        frozen.thaw().map_err(failed)?;
        changed.map(Ok).map_err(failed)
    })
}

/// As the kernel does of its own after some time: sync_file_range(2) starts writeback, and no more.
fn write_back(file: &File) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: an open file and numbers.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, BYTES as i64, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A frozen filesystem. Thawed when dropped; by [`watch`] if there is nobody left to drop it.
struct Frozen {
    /// Closed, it is the sign to thaw.
    alive: Option<File>,
    watcher: libc::pid_t,
}

impl Frozen {
    fn freeze(directory: &Path) -> io::Result<Frozen> {
        let root = File::open(directory)?;
        let (ended, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (ended, alive) = (File::from(ended), File::from(alive));
        let descriptors = [root.as_raw_fd(), ended.as_raw_fd(), alive.as_raw_fd()];
        // SAFETY: the child makes only system calls that signal-safety(7) allows after a fork, and ends by _exit.
        let watcher = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => watch(descriptors),
            child => child,
        };
        // From here on, there is somebody who thaws.
        let frozen = Frozen { alive: Some(alive), watcher };
        // SAFETY: an ioctl without an argument, on a directory that is open.
        match unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE as _, 0) } {
            0 => Ok(frozen),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns once it is thawed.
    fn thaw(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(mut alive) = self.alive.take() else { return Ok(()) };
        // One byte tells it from a pipe that closes because we are gone; both mean the same.
        let told = alive.write_all(&[1]);
        drop(alive);
        let mut status = 0;
        // SAFETY: our own child, which nobody else waits for.
        while unsafe { libc::waitpid(self.watcher, &raw mut status, 0) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        told
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // The watcher thaws in any case.
        let _ = self.end();
    }
}

/// The child: waits until its parent says so, is gone, or takes too long; then thaws.
fn watch([root, ended, alive]: [RawFd; 3]) -> ! {
    let milliseconds = FROZEN_MAX.as_millis() as libc::c_int;
    // SAFETY: nothing but system calls on descriptors that the child has from its parent, and memory on the stack.
    unsafe {
        libc::close(alive);
        // The parent's end by the terminal must not be ours.
        libc::setpgid(0, 0);
        let mut waited = libc::pollfd { fd: ended, events: libc::POLLIN, revents: 0 };
        loop {
            let ready = libc::poll(&raw mut waited, 1, milliseconds);
            if ready < 0 {
                continue;
            }
            // If it was not frozen yet, the next round thaws it.
            libc::ioctl(root, FITHAW as _, 0);
            if ready > 0 {
                libc::_exit(0);
            }
        }
    }
}

/// Where the file is on its device, if it is there in one piece: FS_IOC_FIEMAP (linux/fiemap.h).
fn physical(file: &File) -> io::Result<Option<u64>> {
    const FS_IOC_FIEMAP: u32 = 0xC020_660B;
    /// Not known, delayed, encoded, encrypted, inline, packed, unwritten, or not aligned.
    const ELSEWHERE: u32 = 0x0002 | 0x0004 | 0x0008 | 0x0080 | 0x0100 | 0x0200 | 0x0400 | 0x0800;

    #[repr(C)]
    #[derive(Default)]
    struct Request {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        extents: u32,
        reserved: u32,
        logical: u64,
        physical: u64,
        bytes: u64,
        reserved64: [u64; 2],
        extent_flags: u32,
        reserved32: [u32; 3],
    }

    let mut request = Request { length: BYTES as u64, extents: 1, ..Request::default() };
    // SAFETY: the structure is the kernel's, with room for the one extent that it announces.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let whole = request.mapped == 1
        && request.logical == 0
        && request.bytes >= BYTES as u64
        && request.extent_flags & ELSEWHERE == 0
        && request.physical.is_multiple_of(PAGE_BYTES as u64);
    Ok(whole.then_some(request.physical))
}
