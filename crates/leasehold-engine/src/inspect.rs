//! What administrators look at: who holds what, who waits for whom, and whether every block is as it was committed.

use crate::break_log::Who;
use crate::driver::{View, describe, unix_ms};
use crate::engine::{Engine, blocking};
use crate::files::{CALL_BYTES_MAX, FileError};
use crate::path::StorePath;
use crate::storage::{Kind, Mismatch, NamespaceError};
use leasehold_core::input::{Access, Fault};
use leasehold_core::output::ReadError;
use leasehold_core::range::{BLOCK_BYTES, BlockRange, ByteRange};
use leasehold_core::view::{LeaseState, WaitKind, WaitOn};
use serde::Serialize;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, mpsc};

/// One lease.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseRow {
    /// Its id.
    pub lease: u64,
    /// Whose.
    pub session: u64,
    /// Who that is.
    pub holder: Who,
    /// On which file.
    pub path: String,
    /// The first byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// `read`, `overwrite` or `update`.
    pub access: &'static str,
    /// `preparing`, `live`, `fencing`, `committing` or `abandoned`.
    pub state: &'static str,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it falls if its holder does not answer a break, in milliseconds since 1970.
    pub deadline_ms: Option<u64>,
}

/// One request that waits.
#[derive(Clone, Debug, Serialize)]
pub struct WaitRow {
    /// Its id.
    pub request: u64,
    /// Who asked, if that is known.
    pub who: Option<Who>,
    /// What it wants, for people.
    pub wants: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it gives up, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// What it waits for, for people, one line each.
    pub waits_for: Vec<String>,
}

/// What scrub found in one file.
#[derive(Clone, Debug, Serialize)]
pub struct Scrubbed {
    /// The file.
    pub path: String,
    /// Blocks that were read.
    pub blocks: u64,
    /// Of these, blocks that had no checksum, since other tools had put them there: they have one from now on.
    pub adopted: u64,
    /// Blocks that are not what was committed.
    pub mismatches: Vec<BadBlock>,
    /// Why the file could not be read to its end, if so.
    pub error: Option<String>,
}

/// A block that is not what was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BadBlock {
    /// Its number: its first byte is at 4096 times that.
    pub block: u64,
    /// The CRC32C that was committed; `None` if recovery found it torn.
    pub committed: Option<u32>,
    /// The CRC32C of what is there.
    pub found: u32,
}

/// How many blocks are surveyed at a time: a file's writers wait meanwhile.
const SURVEY_BLOCKS: usize = 1 << 16;

impl Scrubbed {
    fn of(path: &StorePath) -> Scrubbed {
        Scrubbed { path: path.to_string(), blocks: 0, adopted: 0, mismatches: Vec::new(), error: None }
    }
}

impl Engine {
    /// Every lease, of one file or of all, ordered by id. Empty once the engine has stopped.
    pub async fn leases(&self, path: Option<&StorePath>) -> Vec<LeaseRow> {
        let wanted = path.cloned();
        self.look(move |view| {
            let row = |lease: leasehold_core::view::LeaseView| {
                let path = view.storage.path_of(lease.file);
                if wanted.is_some() && wanted != path {
                    return None;
                }
                Some(LeaseRow {
                    lease: lease.id.0,
                    session: lease.session.0,
                    holder: (&*lease.identity).into(),
                    path: path.map_or_else(|| lease.file.to_string(), |path| path.to_string()),
                    start: lease.range.start(),
                    end: lease.range.end(),
                    access: match lease.access {
                        Access::Read => "read",
                        Access::Overwrite => "overwrite",
                        Access::Update => "update",
                    },
                    state: match lease.state {
                        LeaseState::Preparing => "preparing",
                        LeaseState::Live => "live",
                        LeaseState::Fencing => "fencing",
                        LeaseState::Committing => "committing",
                        LeaseState::Abandoned => "abandoned",
                    },
                    since_ms: unix_ms(view.clock.system(lease.since)),
                    deadline_ms: lease.deadline.map(|tick| unix_ms(view.clock.system(tick))),
                })
            };
            let mut rows: Vec<LeaseRow> = view.core.leases().filter_map(row).collect();
            rows.sort_by_key(|row| row.lease);
            rows
        })
        .await
        .unwrap_or_default()
    }

    /// Who waits for whom on the file, until when.
    ///
    /// # Errors
    /// The file does not exist.
    pub async fn why(&self, path: &StorePath) -> Result<Vec<WaitRow>, NamespaceError> {
        let pinned = self.pin(path).await?;
        let file = pinned.file();
        let rows = self
            .look(move |view| {
                let here = view.core.waits().filter(|wait| wait.file == file);
                here.map(|wait| WaitRow {
                    request: wait.request.0,
                    who: wait.who.as_deref().map(Who::from),
                    wants: match wait.what {
                        WaitKind::Operation(operation) => describe(operation),
                        WaitKind::Read(range) => format!("read {range}"),
                        WaitKind::Sync => "fsync".to_owned(),
                        WaitKind::Commit(lease) => format!("commit lease {lease}"),
                        WaitKind::Release(lease) => format!("release lease {lease}"),
                        WaitKind::Capture(lease, range) => format!("capture {range} of lease {lease}"),
                    },
                    since_ms: unix_ms(view.clock.system(wait.since)),
                    until_ms: wait.until.map(|tick| unix_ms(view.clock.system(tick))),
                    waits_for: wait.on.iter().map(|on| wait_text(view, on)).collect(),
                })
                .collect()
            })
            .await;
        Ok(rows.unwrap_or_default())
    }

    /// Reads every block of one file, or of all below `path`, and tells the receiver of each file what it found. Runs
    /// beside everything else: every read takes its turn like any other.
    ///
    /// # Errors
    /// `path` does not exist.
    pub async fn scrub(&self, path: &StorePath) -> Result<mpsc::Receiver<Scrubbed>, FileError> {
        let kind = self.stat(path).await?.kind;
        let (send, receive) = mpsc::channel(64);
        let (engine, path) = (self.clone(), path.clone());
        tokio::spawn(async move {
            if kind == Kind::Directory {
                engine.scrub_below(path, send).await;
            } else {
                let _gone = send.send(engine.scrub_file(&path).await).await;
            }
        });
        Ok(receive)
    }

    async fn scrub_below(self, path: StorePath, found: mpsc::Sender<Scrubbed>) {
        let (send, mut files) = mpsc::channel::<StorePath>(64);
        let (storage, from) = (self.0.storage.clone(), path.clone());
        let walk = tokio::task::spawn_blocking(move || {
            storage.walk(&from, &mut |file| send.blocking_send(file.clone()).is_ok())
        });
        while let Some(file) = files.recv().await {
            if found.send(self.scrub_file(&file).await).await.is_err() {
                return; // nobody listens any more
            }
        }
        if let Err(error) = walk.await.expect("a walk neither panics nor is aborted") {
            let failed = Scrubbed { error: Some(error.to_string()), ..Scrubbed::of(&path) };
            let _gone = found.send(failed).await;
        }
    }

    /// Blocks of the file that have no checksum yet.
    async fn unknown_blocks(&self, path: &StorePath) -> Result<u64, FileError> {
        let pinned = self.pin(path).await?;
        let (storage, file) = (self.0.storage.clone(), pinned.file());
        let end = pinned.opened().size.div_ceil(BLOCK_BYTES);
        let count = move || {
            let mut unknown = 0;
            for start in (0..end).step_by(SURVEY_BLOCKS) {
                let blocks =
                    BlockRange::new(start, end.min(start + SURVEY_BLOCKS as u64)).expect("not empty");
                unknown += storage.survey(file, blocks)?.unknown;
            }
            Ok(unknown)
        };
        let failed = |source| FileError::Read { path: path.clone(), source: ReadError::Fault(source) };
        blocking(count).await.map_err(failed)
    }

    async fn scrub_file(&self, path: &StorePath) -> Scrubbed {
        let mut mismatches = self.0.mismatches.subscribe();
        let mut scrubbed = Scrubbed::of(path);
        let before = match self.unknown_blocks(path).await {
            Ok(unknown) => unknown,
            Err(error) => return Scrubbed { error: Some(error.to_string()), ..scrubbed },
        };
        let mut offset = 0;
        while let Some(range) = ByteRange::at(offset, CALL_BYTES_MAX) {
            match self.read(path, range).await {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => scrubbed.blocks += (bytes.len() as u64).div_ceil(BLOCK_BYTES),
                Err(FileError::Read { .. }) => {
                    // Look at its blocks one by one, so that the good ones count, and the bad ones are named.
                    scrubbed.blocks += self.scrub_blocks(path, range, &mut scrubbed.error).await;
                }
                Err(error) => {
                    scrubbed.error = Some(error.to_string());
                    break;
                }
            }
            // At once, since the channel holds only so many.
            found_bad(path, &mut mismatches, &mut scrubbed);
            offset += CALL_BYTES_MAX;
        }
        let after = self.unknown_blocks(path).await.unwrap_or(before);
        scrubbed.adopted = before.saturating_sub(after);
        // Each was announced by the read of many blocks, and again by that of the one.
        scrubbed.mismatches.sort_unstable();
        scrubbed.mismatches.dedup();
        scrubbed
    }

    async fn scrub_blocks(&self, path: &StorePath, range: ByteRange, error: &mut Option<String>) -> u64 {
        let mut read = 0;
        for block in range.blocks().start()..range.blocks().end() {
            let range = ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).expect("a block within a range");
            match self.read(path, range).await {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(_) => read += 1,
                // The block itself is announced.
                Err(FileError::Read { source: ReadError::Fault(Fault::Checksum), .. }) => read += 1,
                Err(why) => {
                    read += 1;
                    error.get_or_insert_with(|| why.to_string());
                }
            }
        }
        read
    }
}

/// Takes what loads have announced about this file.
fn found_bad(path: &StorePath, announced: &mut broadcast::Receiver<Mismatch>, scrubbed: &mut Scrubbed) {
    loop {
        match announced.try_recv() {
            Ok(Mismatch { path: of, block, committed, found, .. }) => {
                if of == *path {
                    scrubbed.mismatches.push(BadBlock { block, committed, found });
                }
            }
            Err(TryRecvError::Lagged(missed)) => {
                scrubbed.error = Some(format!("{missed} bad blocks were found too fast to be listed"));
            }
            Err(TryRecvError::Empty | TryRecvError::Closed) => return,
        }
    }
}

fn wait_text(view: &View<'_>, on: &WaitOn) -> String {
    match on {
        WaitOn::Lease { id, holder, deadline } => {
            let who = format!("lease {id} of {} (pid {} on {})", holder.program, holder.pid, holder.host);
            match deadline {
                Some(deadline) => {
                    let left_us = deadline.0.saturating_sub(view.clock.now().0);
                    format!("{who}, for {:.1} s at most", left_us as f64 / 1e6)
                }
                None => format!("{who}, which nobody breaks"),
            }
        }
        WaitOn::Fence(lease) => format!("the fence of lease {lease}"),
        WaitOn::Request(request) => format!("request {request}, which came first"),
        WaitOn::Writeback(write) => format!("writeback {write} of the same blocks"),
        WaitOn::Frames => "free frames in the arena".to_owned(),
        WaitOn::Disk => "the disk".to_owned(),
    }
}
