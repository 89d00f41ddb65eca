//! The break log: who broke whose lease, how long it took, what the holder did. One JSON object a line, appended to
//! `.leasehold/breaks.jsonl`, so that any tool can read it.
//!
//! It is a log for people, not a promise: a line is not flushed to the disk before the breaker goes on, and a line
//! that a crash cut short is skipped when the log is read. A thread of its own writes it: a disk that takes its time must not
//! hold up whoever breaks or is broken.

use crate::sync::{self, mpsc};
use leasehold_core::identity::{Evidence, Identity};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A log longer than this is renamed to `breaks.jsonl.1` and begun anew.
const BYTES_MAX: u64 = 16 << 20;

/// One break that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakRow {
    /// The break, unique in one run of the server.
    pub id: u64,
    /// The lease.
    pub lease: u64,
    /// Who held it.
    pub holder: Who,
    /// Who broke it.
    pub breaker: Who,
    /// The file's path in the store.
    pub path: String,
    /// The first byte under lease.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What the breaker wanted: `truncate to 4096`.
    pub operation: String,
    /// When the holder was told, in milliseconds since 1970.
    pub started_ms: u64,
    /// From then until the lease was over, in microseconds.
    pub took_us: u64,
    /// How long the holder had, in milliseconds.
    pub grace_ms: u64,
    /// What the holder did: `committed`, `released`, `fenced`, `quarantined`, `session ended`.
    pub outcome: String,
}

/// An [`Identity`] as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// The program.
    pub program: String,
    /// Whether the kernel vouches for it.
    pub verified: bool,
    /// Whether the machine is as which tenant it came in, a slash, and what it calls itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub authenticated: bool,
}

impl From<&Identity> for Who {
    fn from(identity: &Identity) -> Who {
        Who {
            host: identity.host.clone(),
            pid: identity.pid,
            uid: identity.uid,
            program: identity.program.clone(),
            verified: identity.evidence == Evidence::Verified,
            authenticated: identity.evidence == Evidence::Authenticated,
        }
    }
}

impl From<&Who> for Identity {
    fn from(who: &Who) -> Identity {
        Identity {
            host: who.host.clone(),
            pid: who.pid,
            uid: who.uid,
            program: who.program.clone(),
            evidence: match who {
                Who { verified: true, .. } => Evidence::Verified,
                Who { authenticated: true, .. } => Evidence::Authenticated,
                _ => Evidence::Claimed,
            },
        }
    }
}

/// The open log.
pub struct BreakLog {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl BreakLog {
    /// Opens or creates the log.
    ///
    /// # Errors
    /// Those of opening and reading the file.
    pub fn open(path: PathBuf) -> io::Result<BreakLog> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        let mut last = [b'\n'];
        if bytes > 0 {
            file.read_exact_at(&mut last, bytes - 1)?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n")?; // a crash cut the last line short; the next must not grow onto it
        }
        Ok(BreakLog { path, file, bytes })
    }

    /// Appends one row.
    ///
    /// # Errors
    /// Those of writing the file, and of renaming it when it is full.
    pub fn append(&mut self, row: &BreakRow) -> io::Result<()> {
        if self.bytes >= BYTES_MAX {
            std::fs::rename(&self.path, old_name(&self.path))?;
            *self = BreakLog::open(self.path.clone())?;
        }
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// The queue of the thread that writes the log.
#[derive(Clone)]
pub(crate) struct BreakLogger {
    path: PathBuf,
    queue: mpsc::Sender<Job>,
}

enum Job {
    Append(Box<BreakRow>),
    /// Say that all before this is written.
    Written(mpsc::Sender<()>),
}

impl BreakLogger {
    /// Starts the thread. It ends with its last logger.
    pub(crate) fn start(mut log: BreakLog) -> io::Result<BreakLogger> {
        let (queue, jobs) = mpsc::channel();
        let path = log.path.clone();
        sync::spawn("leasehold-breaks", move || {
            for job in jobs.iter() {
                match job {
                    Job::Append(row) => {
                        if let Err(error) = log.append(&row) {
                            tracing::error!(%error, ?row, "cannot append to the break log");
                        }
                    }
                    Job::Written(written) => drop(written),
                }
            }
        })?;
        Ok(BreakLogger { path, queue })
    }

    /// Appends a row, in time; a failure is logged.
    pub(crate) fn append(&self, row: BreakRow) {
        // The thread ends after its last logger.
        let _ = self.queue.send(Job::Append(Box::new(row)));
    }

    /// Waits until all rows are written. Blocks.
    pub(crate) fn wait(&self) {
        let (written, done) = mpsc::channel();
        let _ = self.queue.send(Job::Written(written));
        // Nothing is ever sent: its end is dropped.
        let _ = done.recv();
    }

    /// The last `limit` rows, newest last. Blocks.
    pub(crate) fn read(&self, limit: usize) -> io::Result<Vec<BreakRow>> {
        self.wait();
        read(&self.path, limit)
    }
}

/// The last `limit` rows of the log at `path`, newest last; none, if there is no log.
///
/// # Errors
/// Those of reading the file.
pub fn read(path: &Path, limit: usize) -> io::Result<Vec<BreakRow>> {
    let mut rows = std::collections::VecDeque::new();
    for part in [old_name(path), path.to_owned()] {
        let file = match File::open(part) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            if let Ok(row) = serde_json::from_slice::<BreakRow>(&line?) {
                if rows.len() == limit {
                    rows.pop_front();
                }
                rows.push_back(row);
            }
        }
    }
    Ok(rows.into())
}

fn old_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64) -> BreakRow {
        let who = Who {
            host: "a".into(),
            pid: 1,
            uid: 2,
            program: "p".into(),
            verified: true,
            authenticated: false,
        };
        BreakRow {
            id,
            lease: 1,
            holder: who.clone(),
            breaker: who,
            path: "x".into(),
            start: 0,
            end: 1,
            operation: "punch".into(),
            started_ms: 0,
            took_us: 0,
            grace_ms: 0,
            outcome: "committed".into(),
        }
    }

    #[test]
    fn the_newest_rows_survive_and_a_line_that_a_crash_cut_short_is_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("breaks.jsonl");
        let mut log = BreakLog::open(path.clone()).unwrap();
        for id in 0..5 {
            log.append(&row(id)).unwrap();
        }
        log.file.write_all(b"{\"id\": 7, \"lea").unwrap();
        drop(log);
        BreakLog::open(path.clone()).unwrap().append(&row(5)).unwrap();
        let logger = BreakLogger::start(BreakLog::open(path).unwrap()).unwrap();
        let ids = |limit| logger.read(limit).unwrap().iter().map(|row| row.id).collect::<Vec<_>>();
        assert_eq!(ids(100), [0, 1, 2, 3, 4, 5]);
        logger.append(row(6));
        assert_eq!(ids(2), [5, 6], "what was appended before is read");
    }

    #[test]
    fn a_log_past_its_limit_is_renamed_and_both_parts_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("breaks.jsonl");
        let mut log = BreakLog::open(path.clone()).unwrap();
        log.append(&row(1)).unwrap();
        log.bytes = BYTES_MAX;
        log.append(&row(2)).unwrap();
        assert_eq!(read(&path, 10).unwrap().iter().map(|row| row.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}
