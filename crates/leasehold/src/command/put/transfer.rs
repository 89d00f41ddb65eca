//! Pieces into the store, many at once: acquire, write, commit.
//!
//! Each piece is a lease of its own, so a break costs one piece. The answer to a break is the best that is possible: a
//! piece that is all written is committed, one that is not is released at once, and then its file is given up (unless
//! `--retry`), with the words who it was.

use crate::command::exit::{Failure, code};
use crate::command::line::{Line, Link};
use crate::command::pace::Pace;
use crate::command::progress::Progress;
use crate::command::put::source::Batch;
use crate::command::put::target::{Broken, Found, Piece, Target};
use crate::command::show;
use crate::size::rough;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use leasehold_client::{
    Access, AcquireOptions, BLOCK_BYTES, BreakNotice, ByteRange, CommitError, Lease, LeaseState,
    RevokeNotice, Want, WriteError, crc32c, crc32c_of_blocks,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// How much is written at once when the rate is limited.
const PACED_BYTES: usize = 64 << 10;

/// What all files of a put have in common.
pub(crate) struct Transfer {
    pub(crate) line: Line,
    pub(crate) options: AcquireOptions,
    /// Lease a piece again when its lease was broken.
    pub(crate) retry: bool,
    /// Compare with what is there first.
    pub(crate) resume: bool,
    /// Make each file durable.
    pub(crate) sync: bool,
    /// Give each file its mode, time and attributes.
    pub(crate) preserve: bool,
    pub(crate) pace: Option<Pace>,
    pub(crate) progress: Arc<Progress>,
    /// No new piece is begun.
    pub(crate) stop: Arc<AtomicBool>,
}

impl Transfer {
    /// Puts what comes; `over` hears of each file that is over, whether it failed or not.
    pub(crate) async fn all(&self, batches: mpsc::Receiver<Batch>, depth: usize, over: &dyn Fn(&Target)) {
        let mut running =
            ReceiverStream::new(batches).map(|batch| self.batch(batch, over)).buffer_unordered(depth);
        while running.next().await.is_some() {}
    }

    async fn batch(&self, batch: Batch, over: &dyn Fn(&Target)) {
        let Batch { mut pieces, ends, .. } = batch;
        let files: Vec<Arc<Target>> = pieces.iter().map(|piece| piece.target.clone()).chain(ends).collect();
        if let Err(error) = self.line.hold(async |link| self.put(link, &pieces).await).await {
            // The server does not come back: nothing else will go better.
            self.stop.store(true, Ordering::Relaxed);
            let text = format!("{error:#}");
            for target in &files {
                target.fail(Failure::new(code(&error), text.clone()));
            }
        }
        pieces.clear();
        let files: Vec<Arc<Target>> = files.into_iter().filter(|target| target.to_finish()).collect();
        self.finish(&files).await;
        for target in &files {
            over(target);
        }
    }

    /// Puts what is not done of the pieces. Fails only if the link is lost.
    pub(crate) async fn put(&self, link: &Link, pieces: &[Piece]) -> anyhow::Result<()> {
        self.create(link, pieces).await?;
        if self.resume {
            let found = join_all(
                pieces.iter().filter(|piece| !piece.is_done()).map(|piece| self.compare(link, piece)),
            );
            found.await.into_iter().collect::<anyhow::Result<()>>()?;
        }
        loop {
            let todo: Vec<&Piece> = pieces.iter().filter(|piece| !piece.is_done()).collect();
            if todo.is_empty() {
                return Ok(());
            }
            match self.acquire(link, &todo).await {
                Ok(leases) => {
                    let under =
                        leases.into_iter().zip(&todo).map(|(lease, piece)| self.under(link, lease, piece));
                    for (done, piece) in join_all(under).await.into_iter().zip(&todo) {
                        self.settle(link, piece, done)?;
                    }
                }
                Err(error) if link.is_lost(&error) => return Err(error),
                Err(error) if todo.len() == 1 => todo[0].target.fail(error),
                // Some file is the reason, and the others are not to suffer for it.
                Err(_) => {
                    for piece in todo {
                        let alone = async {
                            let lease = self.acquire(link, &[piece]).await?.remove(0);
                            self.under(link, lease, piece).await
                        };
                        self.settle(link, piece, alone.await)?;
                    }
                }
            }
        }
    }

    /// Files of more than one piece exist before their first.
    async fn create(&self, link: &Link, pieces: &[Piece]) -> anyhow::Result<()> {
        for piece in pieces.iter().filter(|piece| !piece.only && !piece.is_done()) {
            let create = async || {
                let file = link.client().create(&piece.target.path).await?;
                anyhow::Ok(if file.size == 0 { Found::Nothing } else { Found::File })
            };
            if let Err(error) = piece.target.found.get_or_try_init(create).await {
                if link.is_lost(&error) {
                    return Err(error);
                }
                piece.target.fail(error);
            }
        }
        Ok(())
    }

    /// A piece that is in the store already need not be put.
    async fn compare(&self, link: &Link, piece: &Piece) -> anyhow::Result<()> {
        let crc32c = crc32c(&piece.bytes);
        match link.client().block_map(&piece.target.path, piece.range).await {
            Ok(map) => {
                let there = map.size() >= piece.range.end()
                    && blocks(piece.range, map.size()).and_then(|blocks| map.crc32c(blocks))
                        == Some(crc32c_of_blocks(crc32c, piece.range.len()));
                if there {
                    if piece.only {
                        let _another_piece_was_faster = piece.target.found.set(Found::File);
                    }
                    piece.committed(Some(crc32c), link.number, false);
                    self.progress.add(piece.range.len());
                    self.line.step();
                }
                Ok(())
            }
            Err(error) if error.is_lost() => Err(error.into()),
            // Not there, or not comparable: it is put.
            Err(_) => Ok(()),
        }
    }

    async fn acquire(&self, link: &Link, pieces: &[&Piece]) -> anyhow::Result<Vec<Lease>> {
        let want = |piece: &&Piece| Want {
            path: piece.target.path.clone(),
            range: piece.range,
            access: Access::Overwrite,
        };
        let wants: Vec<Want> = pieces.iter().map(want).collect();
        if pieces.iter().all(|piece| piece.only) {
            Ok(link.session.acquire_or_create(&wants, self.options).await?)
        } else {
            Ok(link.session.acquire(&wants, self.options).await?)
        }
    }

    /// What became of a piece. Fails only if the link is lost.
    fn settle(&self, link: &Link, piece: &Piece, done: anyhow::Result<Option<Broken>>) -> anyhow::Result<()> {
        match done {
            Ok(Some(broken)) if !self.retry => piece.target.stopped(&broken),
            Ok(_) => {}
            Err(error) if link.is_lost(&error) => return Err(error),
            Err(error) => piece.target.fail(error),
        }
        Ok(())
    }

    /// Writes and commits under one lease. Returns by whom it was broken, if it was.
    async fn under(&self, link: &Link, lease: Lease, piece: &Piece) -> anyhow::Result<Option<Broken>> {
        let range = lease.range();
        let state = lease.watch();
        if piece.only && lease.created() {
            let _another_piece_was_faster = piece.target.found.set(Found::Nothing);
        }
        let (bytes, length) = (&piece.bytes, piece.bytes.len());
        let step = if self.pace.is_some() { PACED_BYTES } else { length };
        for start in (0..length).step_by(step) {
            let part = bytes.slice(start..length.min(start + step));
            tokio::select! {
                biased;
                broken = lease.broken() => return self.let_go(link, lease, broken, start).await,
                () = self.turn(part.len()) => {}
            }
            let written = part.len() as u64;
            match lease.write(range.start() + start as u64, part).await {
                Ok(()) => self.progress.add(written),
                Err(WriteError::Revoked(notice)) => {
                    return self.let_go(link, lease, LeaseState::Revoked(*notice), start).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let crc32c = lease.crc32c();
        match lease.commit().await {
            Ok(_) => {
                piece.committed(crc32c, link.number, true);
                self.line.step();
                let LeaseState::Breaking(notice) = state.borrow().clone() else { return Ok(None) };
                self.say_notice(&notice);
                self.say(&format!("lease {}: all written, so committed in time", notice.lease));
                let by = show::who(&notice.breaker);
                Ok(Some(Broken { range, by, fate: "committed in time" }))
            }
            Err(CommitError::Revoked(notice)) => Ok(Some(self.say_revoke(link, &notice, range)?)),
            Err(error) => Err(error.into()),
        }
    }

    /// The answer to a break of a piece that is not all written.
    async fn let_go(
        &self,
        link: &Link,
        lease: Lease,
        state: LeaseState,
        written: usize,
    ) -> anyhow::Result<Option<Broken>> {
        let (id, range) = (lease.id(), lease.range());
        let broken = match state {
            LeaseState::Revoked(notice) => self.say_revoke(link, &notice, range)?,
            LeaseState::Breaking(notice) => {
                self.say_notice(&notice);
                let by = show::who(&notice.breaker);
                Broken { range, by, fate: "released" }
            }
            LeaseState::Live => unreachable!("a live lease is not let go"),
        };
        lease.release().await?;
        if broken.fate == "released" {
            let (written, all) = (rough(written as u64), rough(range.len()));
            self.say(&format!("lease {id}: released with {written} of {all} written"));
        }
        Ok(Some(broken))
    }

    fn say_notice(&self, notice: &BreakNotice) {
        let BreakNotice { lease, path, range, breaker, operation, grace, .. } = notice;
        let (who, range, grace) = (show::who(breaker), show::range(*range), show::duration(*grace));
        self.say(&format!("break of lease {lease}: {range} of {path}"));
        self.say(&format!("  {operation}, {grace} to answer"));
        self.say(&format!("  by {who}"));
    }

    /// If nobody broke the lease, it ended with its session: the link is lost.
    fn say_revoke(&self, link: &Link, notice: &RevokeNotice, range: ByteRange) -> Result<Broken, WriteError> {
        let ended = link.session.ended();
        let Some(by) = notice.by.as_ref().filter(|_| ended.is_none()) else {
            return Err(WriteError::Closed(ended.unwrap_or_else(|| notice.why.clone())));
        };
        self.say(&format!("lease {} is revoked: {}", notice.lease, notice.why));
        Ok(Broken { range, by: show::who(by), fate: "revoked" })
    }

    pub(crate) fn say(&self, text: &str) {
        self.progress.say(&format!("{} {text}", show::time_of_day(SystemTime::now())));
    }

    async fn turn(&self, bytes: usize) {
        if let Some(pace) = &self.pace {
            pace.turn(bytes as u64).await;
        }
    }
}

/// The whole blocks of a range that can be compared by their checksums: it begins with a block, and ends with one, or at
/// the end of a file of `size` bytes.
pub(crate) fn blocks(range: ByteRange, size: u64) -> Option<ByteRange> {
    let whole = |at: u64| at.is_multiple_of(BLOCK_BYTES);
    let comparable = whole(range.start()) && (whole(range.end()) || range.end() == size);
    ByteRange::new(range.start(), range.end().next_multiple_of(BLOCK_BYTES)).filter(|_| comparable)
}
