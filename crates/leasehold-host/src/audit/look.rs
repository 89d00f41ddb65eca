//! Touching what may never answer.
//!
//! A path on a filesystem that hangs (an NFS server that is gone, a FUSE daemon that is stopped) holds whoever touches it,
//! and a process cannot end while one of its threads is held by a request that cannot be interrupted. So a process of its
//! own does the touching, a thread for each path; it writes what it learns to a pipe, and is left behind if it does not
//! come to an end in [`LIMIT`].

use rustix::fs::{Mode, OFlags};
use rustix::ioctl;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a path may take to answer.
pub const LIMIT: Duration = Duration::from_secs(2);

/// The program that touches, and the arguments before the paths: it calls [`touch`].
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// What a path answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is there.
    There {
        /// The path without symbolic links.
        path: PathBuf,
        /// Whether the filesystem can share blocks between files, where it says so (XFS).
        reflink: Option<bool>,
    },
    /// It could not be opened, and why.
    Failed(String),
    /// Nothing came in the time that it had.
    None,
}

impl Answer {
    pub(crate) fn there(path: &Path) -> Answer {
        Answer::There { path: path.to_owned(), reflink: None }
    }
}

/// What a path answered, in a copy of a host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Recorded {
    hangs: bool,
    reflink: Option<bool>,
}

impl Recorded {
    pub(crate) fn answer(&self, path: &Path) -> Answer {
        match self.hangs {
            true => Answer::None,
            false => Answer::There { path: path.to_owned(), reflink: self.reflink },
        }
    }
}

/// A line from the helper to us.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    index: usize,
    path: Option<Vec<u8>>,
    reflink: Option<bool>,
    error: Option<String>,
}

impl Helper {
    /// The program and its first arguments.
    #[must_use]
    pub fn new(program: PathBuf, arguments: impl IntoIterator<Item = OsString>) -> Helper {
        Helper { program, arguments: arguments.into_iter().collect() }
    }

    pub(crate) fn look(&self, paths: &[PathBuf]) -> Vec<Answer> {
        if paths.is_empty() {
            return Vec::new();
        }
        self.try_look(paths).unwrap_or_else(|error| {
            let failed = format!("cannot start {}: {error}", self.program.display());
            paths.iter().map(|_| Answer::Failed(failed.clone())).collect()
        })
    }

    fn try_look(&self, paths: &[PathBuf]) -> io::Result<Vec<Answer>> {
        // Nothing of ours is left with it that somebody may wait for, such as standard output in a pipe.
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg("--")
            .args(paths)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = lines(child.stdout.take().expect("it was piped"))?;
        let mut answers = vec![Answer::None; paths.len()];
        let end = Instant::now() + LIMIT;
        let mut left = paths.len();
        while left > 0 {
            let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) else { break };
            if let Some(answer) = answers.get_mut(line.index) {
                *answer = line.answer();
                left -= 1;
            }
        }
        leave(child, left == 0);
        Ok(answers)
    }
}

/// Ends the helper; one that is held by the kernel is not waited for.
fn leave(mut child: Child, is_done: bool) {
    // Whether it can be killed or not, there is nothing more to be done about it.
    let _ = child.kill();
    if is_done {
        let _ = child.wait();
    } else {
        let _ = child.try_wait();
    }
}

/// What comes from the pipe, without waiting for it longer than one wants to.
fn lines(pipe: ChildStdout) -> io::Result<mpsc::Receiver<Line>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("audit-look".to_owned()).spawn(move || {
        for text in BufReader::new(pipe).lines() {
            let Ok(Ok(line)) = text.map(|text| serde_json::from_str(&text)) else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}

impl Line {
    fn answer(self) -> Answer {
        match (self.path, self.error) {
            (Some(path), _) => {
                Answer::There { path: PathBuf::from(OsString::from_vec(path)), reflink: self.reflink }
            }
            (None, Some(error)) => Answer::Failed(error),
            (None, None) => Answer::Failed("it could not be opened".to_owned()),
        }
    }
}

/// What the helper process does: touches each path on a thread of its own, and prints a line about each to standard
/// output as soon as it answers.
///
/// # Errors
/// If nobody reads the lines any more.
pub fn touch(paths: Vec<PathBuf>) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    for (index, path) in paths.into_iter().enumerate() {
        let sender = sender.clone();
        thread::Builder::new().spawn(move || {
            // If nobody listens any more, nobody misses it.
            let _ = sender.send(touch_one(index, &path));
        })?;
    }
    drop(sender);
    let mut out = io::stdout().lock();
    for line in receiver {
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
        out.flush()?;
    }
    Ok(())
}

fn touch_one(index: usize, path: &Path) -> Line {
    let failed = |error: io::Error| Line { index, path: None, reflink: None, error: Some(error.to_string()) };
    let there = match path.canonicalize() {
        Ok(there) => there,
        Err(error) => return failed(error),
    };
    // Whoever may not read it may still ask what it is on.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let reflink = match there.is_dir() || there.is_file() {
        true => rustix::fs::open(&there, flags, Mode::empty()).ok().and_then(|file| xfs_reflink(&file)),
        false => None,
    };
    Line { index, path: Some(there.as_os_str().as_bytes().to_vec()), reflink, error: None }
}

/// `struct xfs_fsop_geom`, of which `flags` is the part behind the first 92 bytes.
#[repr(C)]
struct XfsGeometry {
    before: [u32; 23],
    flags: u32,
    behind: [u32; 40],
}

const XFS_IOC_FSGEOMETRY: ioctl::Opcode = ioctl::opcode::read::<XfsGeometry>(b'X', 126);
const XFS_FSOP_GEOM_FLAGS_REFLINK: u32 = 1 << 20;

/// What XFS says about sharing blocks; other filesystems do not know the question.
fn xfs_reflink(file: &OwnedFd) -> Option<bool> {
    // SAFETY: the kernel writes a `struct xfs_fsop_geom`, which is 256 bytes of integers, as `XfsGeometry` is (asserted
    // below), and nothing else; for other filesystems it writes nothing, and the call fails.
    let getter = unsafe { ioctl::Getter::<XFS_IOC_FSGEOMETRY, XfsGeometry>::new() };
    // SAFETY: as above; the descriptor is open.
    let geometry = unsafe { ioctl::ioctl(file, getter) }.ok()?;
    Some(geometry.flags & XFS_FSOP_GEOM_FLAGS_REFLINK != 0)
}

const _: () = assert!(size_of::<XfsGeometry>() == 256);
const _: () = assert!(std::mem::offset_of!(XfsGeometry, flags) == 92);
