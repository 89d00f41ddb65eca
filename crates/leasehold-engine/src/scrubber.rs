//! Reads every block, to see whether it is as it was committed; and, if asked to, takes what is there for committed.
//!
//! A scrub runs beside everything else: it reads one piece at a time, and every read takes its turn like any other. What
//! it adopts, it names.

use crate::engine::Engine;
use crate::files::{CALL_BYTES_MAX, FileError};
use crate::open_files::{Opening, Pinned};
use crate::path::StorePath;
use crate::storage::{Detail, Kind, Mismatch, Orphans};
use crate::sync::blocking;
use leasehold_core::identity::Identity;
use leasehold_core::input::{Change, Fault};
use leasehold_core::output::ReadError;
use leasehold_core::range::{BLOCK_BYTES, BlockRange, ByteRange};
use serde::Serialize;
use std::num::NonZeroU64;
use std::time::Duration;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

/// How many blocks are surveyed at a time: a file's writers wait meanwhile.
const SURVEY_BLOCKS: usize = 1 << 16;

/// How many blocks are adopted at a time: their writers and readers wait meanwhile.
const ADOPT_BLOCKS: u64 = 4096;

/// How a scrub goes about it.
#[derive(Clone, Debug, Default)]
pub struct ScrubOptions {
    /// For whom to take the bytes on disk for committed wherever they are not what was committed.
    pub adopt: Option<Identity>,
    /// At most so many bytes a second.
    pub bytes_per_second: Option<NonZeroU64>,
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
    /// The file's size, if it was not what was committed either and was adopted too.
    pub adopted_size: Option<u64>,
    /// Why the file could not be read to its end, or not be adopted, if so.
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
    /// Whether this scrub took what is there for committed.
    pub adopted: bool,
}

impl Scrubbed {
    fn of(path: &StorePath) -> Scrubbed {
        Scrubbed {
            path: path.to_string(),
            blocks: 0,
            adopted: 0,
            mismatches: Vec::new(),
            adopted_size: None,
            error: None,
        }
    }

    fn failed(path: &StorePath, error: impl std::fmt::Display) -> Scrubbed {
        Scrubbed { error: Some(error.to_string()), ..Scrubbed::of(path) }
    }
}

impl Engine {
    /// Reads every block of one file, or of all below `path`, and tells the receiver of each file what it found.
    ///
    /// # Errors
    /// `path` does not exist.
    pub async fn scrub(
        &self,
        path: &StorePath,
        options: ScrubOptions,
    ) -> Result<mpsc::Receiver<Scrubbed>, FileError> {
        let (storage, wanted) = (self.0.storage.clone(), path.clone());
        let kind = blocking(move || storage.stat(&wanted)).await?.kind;
        let (send, receive) = mpsc::channel(64);
        let pace = options.bytes_per_second.map(Pace::new);
        let sizes = kind != Kind::Directory;
        let mut scrubber = Scrubber { engine: self.clone(), adopt: options.adopt, sizes, pace };
        let path = path.clone();
        tokio::spawn(async move {
            if kind == Kind::Directory {
                scrubber.scrub_below(path, send).await;
            } else {
                let _gone = send.send(scrubber.scrub_file(&path).await).await;
            }
        });
        Ok(receive)
    }
}

struct Scrubber {
    engine: Engine,
    adopt: Option<Identity>,
    /// Look also for bytes that another tool has put behind the committed end of a file while it was open here. A flush
    /// a file, so not for whole directories; what was closed meanwhile shows up as bad blocks anyway.
    sizes: bool,
    pace: Option<Pace>,
}

impl Scrubber {
    async fn scrub_below(&mut self, path: StorePath, found: mpsc::Sender<Scrubbed>) {
        let (send, mut files) = mpsc::channel::<StorePath>(64);
        let (storage, from) = (self.engine.0.storage.clone(), path.clone());
        let walk = tokio::task::spawn_blocking(move || {
            storage.walk(&from, &mut |file| send.blocking_send(file.clone()).is_ok())
        });
        while let Some(file) = files.recv().await {
            if found.send(self.scrub_file(&file).await).await.is_err() {
                return; // nobody listens any more
            }
        }
        if let Err(error) = walk.await.expect("a walk neither panics nor is aborted") {
            let _gone = found.send(Scrubbed::failed(&path, error)).await;
        }
        if path.is_root() {
            self.collect_orphans().await;
        }
    }

    /// Every file has just been looked at, so it is time for the checksums of those that are gone.
    async fn collect_orphans(&self) {
        let storage = self.engine.0.storage.clone();
        // A failure is in the log, and they are tried again with the next scrub.
        if let Ok(orphans) = blocking(move || storage.collect_orphans()).await
            && orphans != Orphans::default()
        {
            let (removed, unsure) = (orphans.removed, orphans.unsure);
            tracing::info!(removed, unsure, "looked for the checksums of files that are gone");
        }
    }

    async fn scrub_file(&mut self, path: &StorePath) -> Scrubbed {
        let (inner, wanted) = (self.engine.0.clone(), path.clone());
        // Damaged checksums are no reason not to adopt.
        let how = if self.adopt.is_some() { Opening::ToAdopt } else { Opening::Existing };
        let pinned = match blocking(move || inner.files.pin(&wanted, how)).await {
            Ok(pinned) => pinned,
            Err(error) => return Scrubbed::failed(path, error),
        };
        let mut announced = self.engine.0.mismatches.subscribe();
        let before = match (self.unknown_blocks(&pinned).await, &self.adopt) {
            (Ok(unknown), _) => unknown,
            (Err(Fault::Checksum), Some(who)) => return self.adopt_anew(who, &pinned, path).await,
            (Err(fault), _) => return Scrubbed::failed(path, self.name(&pinned, fault)),
        };
        let mut scrubbed = Scrubbed::of(path);
        let length = self.pace.as_ref().map_or(CALL_BYTES_MAX, Pace::piece_bytes);
        let mut offset = 0;
        while let Some(range) = ByteRange::at(offset, length) {
            match self.engine.read_file(&pinned, path, range).await {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => scrubbed.blocks += (bytes.len() as u64).div_ceil(BLOCK_BYTES),
                Err(FileError::Read { source: ReadError::Fault(_), .. }) => {
                    // Look at its blocks one by one, so that the good ones count, and the bad ones are named.
                    scrubbed.blocks += self.scrub_blocks(&pinned, path, range, &mut scrubbed.error).await;
                }
                Err(error) => {
                    scrubbed.error = Some(error.to_string());
                    break;
                }
            }
            // At once, since the channel holds only so many.
            found_bad(path, &mut announced, &mut scrubbed);
            offset += length;
            if let Some(pace) = &mut self.pace {
                pace.turn(length).await;
            }
        }
        let after = self.unknown_blocks(&pinned).await.unwrap_or(before);
        scrubbed.adopted = before.saturating_sub(after);
        // Each was announced by the read of many blocks, and again by that of the one.
        scrubbed.mismatches.sort_unstable();
        scrubbed.mismatches.dedup();
        if let Some(who) = &self.adopt {
            let blocks: Vec<u64> = scrubbed.mismatches.iter().map(|bad| bad.block).collect();
            self.adopt(who, &pinned, path, runs(&blocks), &mut scrubbed).await;
        }
        scrubbed
    }

    /// Takes the whole file as it is: its checksums are damaged.
    async fn adopt_anew(&self, who: &Identity, pinned: &Pinned, path: &StorePath) -> Scrubbed {
        let blocks = self.size(pinned).await.div_ceil(BLOCK_BYTES);
        let piece = |start| BlockRange::new(start, blocks.min(start + ADOPT_BLOCKS)).expect("not empty");
        let all = (0..blocks).step_by(ADOPT_BLOCKS as usize).map(piece).collect();
        let mut scrubbed = Scrubbed { blocks, adopted: blocks, ..Scrubbed::of(path) };
        self.adopt(who, pinned, path, all, &mut scrubbed).await;
        scrubbed
    }

    async fn scrub_blocks(
        &self,
        pinned: &Pinned,
        path: &StorePath,
        range: ByteRange,
        error: &mut Option<String>,
    ) -> u64 {
        let mut read = 0;
        for block in range.blocks().start()..range.blocks().end() {
            let range = ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).expect("a block within a range");
            match self.engine.read_file(pinned, path, range).await {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(_) => read += 1,
                // The block itself is announced.
                Err(FileError::Read { source: ReadError::Fault(Fault::Checksum), .. }) => read += 1,
                Err(why @ FileError::Read { source: ReadError::Fault(_), .. }) => {
                    read += 1;
                    error.get_or_insert_with(|| why.to_string());
                }
                // No other block can be read either: the file was removed, say.
                Err(why) => {
                    error.get_or_insert_with(|| why.to_string());
                    break;
                }
            }
        }
        read
    }

    /// Takes these blocks as they are, piece by piece; with the last one of the file, its size too.
    async fn adopt(
        &self,
        who: &Identity,
        pinned: &Pinned,
        path: &StorePath,
        mut runs: Vec<BlockRange>,
        scrubbed: &mut Scrubbed,
    ) {
        let size = self.size(pinned).await;
        let blocks: u64 = runs.iter().map(|run| run.len()).sum();
        let behind = size / BLOCK_BYTES;
        if self.sizes && runs.last().is_none_or(|run| run.end() <= behind) {
            runs.push(BlockRange::new(behind, behind + 1).expect("not empty"));
        }
        for run in runs {
            let range = match run.end() * BLOCK_BYTES {
                end if end >= size => ByteRange::from(run.start() * BLOCK_BYTES),
                end => ByteRange::new(run.start() * BLOCK_BYTES, end).expect("a run is not empty"),
            };
            let change = Change::Adopt { range };
            match self.engine.change(path, pinned, change, Detail::None, who.clone()).await {
                Ok(()) => {
                    let adopted = |bad: &&mut BadBlock| (run.start()..run.end()).contains(&bad.block);
                    scrubbed.mismatches.iter_mut().filter(adopted).for_each(|bad| bad.adopted = true);
                }
                Err(error) => return scrubbed.error = Some(error.to_string()),
            }
        }
        let now = self.size(pinned).await;
        scrubbed.adopted_size = (now != size).then_some(now);
        let (program, pid) = (&who.program, who.pid);
        if blocks > 0 || now != size {
            tracing::warn!(%path, blocks, size = now, program, pid, "adopted: what is there counts as committed");
        }
    }

    async fn size(&self, pinned: &Pinned) -> u64 {
        let file = pinned.file();
        let size = self.engine.look(move |view| view.core.file_size(file)).await.flatten();
        size.unwrap_or(pinned.opened().size)
    }

    /// Why the checksums cannot be looked through, and which.
    fn name(&self, pinned: &Pinned, fault: Fault) -> String {
        let all = BlockRange::new(0, u64::MAX).expect("not empty");
        let trouble = self.engine.0.storage.trouble_in(pinned.file(), all);
        trouble.map_or_else(|| fault.to_string(), |what| format!("{what}: {fault}"))
    }

    /// Blocks of the file that have no checksum yet.
    async fn unknown_blocks(&self, pinned: &Pinned) -> Result<u64, Fault> {
        let (storage, file) = (self.engine.0.storage.clone(), pinned.file());
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
        blocking(count).await
    }
}

/// Blocks that follow each other, in runs of at most [`ADOPT_BLOCKS`]; `blocks` are sorted.
fn runs(blocks: &[u64]) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    for &block in blocks {
        let next = BlockRange::new(block, block + 1).expect("not empty");
        match runs.last_mut() {
            Some(run) if run.end() == block && run.len() < ADOPT_BLOCKS => {
                *run = BlockRange::new(run.start(), block + 1).expect("not empty");
            }
            _ => runs.push(next),
        }
    }
    runs
}

/// Takes what loads have announced about this file.
fn found_bad(path: &StorePath, announced: &mut broadcast::Receiver<Mismatch>, scrubbed: &mut Scrubbed) {
    loop {
        match announced.try_recv() {
            Ok(Mismatch { path: of, block, committed, found, .. }) => {
                if of == *path {
                    scrubbed.mismatches.push(BadBlock { block, committed, found, adopted: false });
                }
            }
            Err(TryRecvError::Lagged(missed)) => {
                scrubbed.error = Some(format!("{missed} bad blocks were found too fast to be listed"));
            }
            Err(TryRecvError::Empty | TryRecvError::Closed) => return,
        }
    }
}

/// Spreads reads over time: as fast as it may on average, and never much faster after a delay, so that whoever the scrub
/// had to wait for is not punished for it.
struct Pace {
    bytes_per_second: u64,
    /// When all bytes so far are paid for.
    due: Instant,
}

impl Pace {
    /// How far behind its rate a scrub may be and still catch up.
    const CREDIT: Duration = Duration::from_millis(100);
    /// Shorter sleeps are saved up: timers are not that exact.
    const SLEEP_MIN: Duration = Duration::from_millis(10);

    fn new(bytes_per_second: NonZeroU64) -> Pace {
        Pace { bytes_per_second: bytes_per_second.get(), due: Instant::now() }
    }

    /// How much to read at once: a tenth of a second's worth, in whole blocks.
    fn piece_bytes(&self) -> u64 {
        (self.bytes_per_second / 10 / BLOCK_BYTES * BLOCK_BYTES).clamp(BLOCK_BYTES, CALL_BYTES_MAX)
    }

    /// `bytes` were read: returns when it is time for more.
    async fn turn(&mut self, bytes: u64) {
        let now = Instant::now();
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.due = self.due.max(now.checked_sub(Pace::CREDIT).unwrap_or(now)) + cost;
        if self.due > now + Pace::SLEEP_MIN {
            tokio::time::sleep_until(self.due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(bytes_per_second: u64) -> Pace {
        Pace::new(NonZeroU64::new(bytes_per_second).expect("not 0"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_paced_scrub_reads_as_fast_as_it_may_on_average_and_does_not_catch_up_for_long() {
        let mut pace = pace(10 << 20);
        assert_eq!(pace.piece_bytes(), 1 << 20);
        let began = Instant::now();
        for _ in 0..50 {
            pace.turn(1 << 20).await;
        }
        let took = began.elapsed();
        assert!((4.9..=5.1).contains(&took.as_secs_f64()), "{took:?}");

        tokio::time::advance(Duration::from_secs(60)).await; // somebody else had the disk
        let began = Instant::now();
        for _ in 0..10 {
            pace.turn(1 << 20).await;
        }
        let took = began.elapsed();
        assert!((0.85..=1.0).contains(&took.as_secs_f64()), "only the credit is caught up: {took:?}");
    }

    #[test]
    fn a_slow_scrub_reads_less_at_once_and_a_block_at_least() {
        assert_eq!(pace(100).piece_bytes(), 4096);
        assert_eq!(pace(1_000_000).piece_bytes(), 98_304);
        assert_eq!(pace(u64::MAX).piece_bytes(), 1 << 20);
    }

    #[test]
    fn bad_blocks_that_follow_each_other_are_adopted_together_up_to_a_limit() {
        let run = |start, end| BlockRange::new(start, end).expect("not empty");
        assert_eq!(runs(&[1, 2, 5]), [run(1, 3), run(5, 6)]);
        let many: Vec<u64> = (0..ADOPT_BLOCKS + 1).collect();
        assert_eq!(runs(&many), [run(0, ADOPT_BLOCKS), run(ADOPT_BLOCKS, ADOPT_BLOCKS + 1)]);
        assert_eq!(runs(&[]), []);
    }
}
