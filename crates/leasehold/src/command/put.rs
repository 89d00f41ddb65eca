//! `leasehold put`: a local file into the store, chunk by chunk, many at once.
//!
//! Each chunk is a lease of its own, so a break costs one chunk. The answer to a break is the best that is possible: a
//! chunk that is all written is committed, one that is not is released at once, and then the put stops and says who.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::pace::Pace;
use crate::command::place;
use crate::command::progress::Progress;
use crate::command::show;
use crate::size::{Size, rough};
use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use leasehold_client::{
    Access, AcquireOptions, BreakNotice, ByteRange, CommitError, Lease, LeaseState, OnConflict, RevokeNotice,
    Session, Want, WriteError,
};
use serde_json::json;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// How much is written at once when the rate is limited.
const PACED_BYTES: usize = 64 << 10;

/// Write a local file into the store, by RDMA
///
/// The file is created, made as long as what is put, and durable on return. If somebody breaks a lease of the put
/// (say, by truncating the file), the put stops and says who.
#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    /// The local file; `-` for standard input
    file: PathBuf,
    /// Where to: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    to: String,
    #[command(flatten)]
    pipeline: Pipeline,
    /// Return once the bytes are visible, without waiting for the disk
    #[arg(long)]
    no_sync: bool,
    /// Lease a chunk again when its lease was broken, and go on
    #[arg(long)]
    retry: bool,
    /// Write at most so many bytes a second
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,
    #[command(flatten)]
    conflict: Conflict,
}

/// How much goes at once.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Pipeline {
    /// The size of one lease
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = chunk_size)]
    pub(crate) chunk: Size,
    /// How many leases at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) depth: u16,
}

fn chunk_size(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: crate::size::SizeError| error.to_string())?;
    if (1..=1 << 30).contains(&size.0) { Ok(size) } else { Err("a chunk has 1 byte to 1 GiB".to_owned()) }
}

/// What to do when a live lease is in the way.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Conflict {
    /// How long to wait for leases in the way to end
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = wait_time)]
    wait: Duration,
    /// Break the leases in the way, instead of waiting for their holders
    #[arg(long = "break")]
    break_them: bool,
}

impl Conflict {
    pub(crate) fn options(&self) -> AcquireOptions {
        let on_conflict = if self.break_them { OnConflict::Break } else { OnConflict::Wait };
        AcquireOptions { on_conflict, wait: self.wait }
    }
}

/// `30s`, `500ms`, `1m 30s`.
pub(crate) fn wait_time(text: &str) -> Result<Duration, String> {
    let parsed: Result<jiff::SignedDuration, _> = text.parse();
    parsed
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| format!("{text:?} is not a time; write 500ms, 30s, 2m"))
}

/// What the chunks have in common.
struct Transfer<'a> {
    session: &'a Session,
    path: &'a str,
    options: AcquireOptions,
    retry: bool,
    pace: Option<Pace>,
    progress: Progress,
    /// No new chunk is begun.
    stop: AtomicBool,
    /// The first break of all.
    first_break: Mutex<Option<Broken>>,
}

/// Somebody broke the lease of a chunk.
#[derive(Debug)]
struct Broken {
    range: ByteRange,
    by: String,
    fate: &'static str,
}

impl Put {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        if self.rate.is_some_and(|rate| rate.0 == 0) {
            return Err(
                Failure::new(Exit::Usage, "--rate 0 would never end; leave it out for no limit").into()
            );
        }
        let (source, length) = open_source(&self.file)?;
        let (client, path) = place::open(common, &self.to).await?;
        place::must_name_a_file(&path)?;
        let existing = client.create(&path).await?;
        if length.is_some_and(|length| length < existing.size) {
            client.truncate(&path, length.unwrap_or_default()).await?;
        }
        let session = Session::open(&client).await?;
        let started = Instant::now();
        let transfer = Transfer {
            session: &session,
            path: &path,
            options: self.conflict.options(),
            retry: self.retry,
            pace: self.rate.map(Pace::new),
            progress: Progress::new(length, "put"),
            stop: AtomicBool::new(false),
            first_break: Mutex::new(None),
        };
        let total = transfer.all(source, self.pipeline.chunk, usize::from(self.pipeline.depth)).await;
        let total = total.with_context(|| format!("{path} is incomplete"))?;
        if let Some(broken) = transfer.first_break.lock().expect("nobody panics with it").take() {
            return Err(stopped(&path, &broken, total).into());
        }
        if length.is_none() && client.stat(&path).await?.size > total {
            client.truncate(&path, total).await?;
        }
        if !self.no_sync {
            session.sync(&path).await?;
        }
        drop(transfer);
        let size = client.stat(&path).await?.size;
        session.close().await;
        if size != total {
            let text =
                format!("{path} has {size} bytes and {total} were put: somebody changed it in the meantime");
            return Err(Failure::new(Exit::Lease, text).into());
        }
        self.print(common, &path, total, started.elapsed())
    }

    fn print(&self, common: &Common, path: &str, bytes: u64, took: Duration) -> Outcome {
        let durable = !self.no_sync;
        let seconds = took.as_secs_f64();
        if common.json {
            let value = json!({ "path": path, "bytes": bytes, "seconds": seconds, "durable": durable });
            return Ok(show::json_document(&value)?);
        }
        let rate = rough((bytes as f64 / seconds.max(1e-9)) as u64);
        let state = if durable { "durable" } else { "not yet durable" };
        let took = show::duration(took);
        Ok(show::line(format_args!("put {} into {path} in {took} ({rate}/s), {state}", rough(bytes)))?)
    }
}

fn stopped(path: &str, broken: &Broken, committed: u64) -> Failure {
    let Broken { range, by, fate } = broken;
    let (range, committed) = (show::range(*range), rough(committed));
    let text = format!(
        "stopped: the lease on {range} of {path} was broken, and {fate}\n  \
         by {by}\n  \
         {committed} had been committed; put it again, or use --retry to go on"
    );
    Failure::new(Exit::Lease, text)
}

/// The file or standard input, and how long it is if that is known.
fn open_source(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let failed = |error: io::Error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("cannot read {}: {error}", path.display()))
    };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if found.is_dir() {
        let text = format!("{} is a directory; put its files one by one", path.display());
        return Err(Failure::new(Exit::Failed, text).into());
    }
    Ok((Box::new(file), found.is_file().then_some(found.len())))
}

/// Reads the source ahead, on a thread of its own.
fn chunks(mut source: Box<dyn Read + Send>, chunk: Size) -> mpsc::Receiver<io::Result<(u64, Bytes)>> {
    let (send, receive) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut offset = 0;
        loop {
            let mut bytes = Vec::with_capacity(usize::try_from(chunk.0).expect("a chunk is at most 1 GiB"));
            let read = source.by_ref().take(chunk.0).read_to_end(&mut bytes);
            let last = read.as_ref().is_ok_and(|read| *read as u64 != chunk.0) || read.is_err();
            let length = bytes.len() as u64;
            let next = read.map(|_| (offset, Bytes::from(bytes)));
            if (next.is_ok() && length == 0) || send.blocking_send(next).is_err() || last {
                return;
            }
            offset += length;
        }
    });
    receive
}

impl Transfer<'_> {
    /// Returns how many bytes were committed: all, unless a break stopped it.
    async fn all(&self, source: Box<dyn Read + Send>, chunk: Size, depth: usize) -> anyhow::Result<u64> {
        let mut running = ReceiverStream::new(chunks(source, chunk))
            .take_while(|_| std::future::ready(!self.stop.load(Ordering::Relaxed)))
            .map(|next| async move {
                let (offset, bytes) = next.context("cannot read the source")?;
                self.chunk(offset, bytes).await
            })
            .buffer_unordered(depth);
        let mut committed = 0;
        let mut failed = None;
        // Chunks that are under way are finished even when another has failed: their leases are ours.
        while let Some(done) = running.next().await {
            match done {
                Ok(bytes) => committed += bytes,
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(committed), Err)
    }

    /// Writes one chunk, again and again if that is wanted. Returns how many bytes were committed.
    async fn chunk(&self, offset: u64, bytes: Bytes) -> anyhow::Result<u64> {
        let range =
            ByteRange::at(offset, bytes.len() as u64).context("the source is longer than any file")?;
        loop {
            let want = Want { path: self.path.to_owned(), range, access: Access::Overwrite };
            let mut leases = self.session.acquire(&[want], self.options).await?;
            let lease = leases.pop().expect("one range is one lease");
            let (committed, broken) = self.under(lease, bytes.clone()).await?;
            let Some(broken) = broken else { return Ok(committed) };
            if !self.retry {
                self.stop.store(true, Ordering::Relaxed);
                self.first_break.lock().expect("nobody panics with it").get_or_insert(broken);
                return Ok(committed);
            }
        }
    }

    /// Writes and commits under one lease.
    async fn under(&self, lease: Lease, bytes: Bytes) -> anyhow::Result<(u64, Option<Broken>)> {
        let range = lease.range();
        let state = lease.watch();
        let length = bytes.len();
        let piece = if self.pace.is_some() { PACED_BYTES } else { length };
        for start in (0..length).step_by(piece) {
            let piece = bytes.slice(start..length.min(start + piece));
            tokio::select! {
                biased;
                broken = lease.broken() => return self.let_go(lease, broken, start).await,
                () = self.turn(piece.len()) => {}
            }
            let written = piece.len() as u64;
            match lease.write(range.start() + start as u64, piece).await {
                Ok(()) => self.progress.add(written),
                Err(WriteError::Revoked(notice)) => {
                    return self.let_go(lease, LeaseState::Revoked(*notice), start).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        match lease.commit().await {
            Ok(_) => {
                let LeaseState::Breaking(notice) = state.borrow().clone() else {
                    return Ok((length as u64, None));
                };
                self.say_notice(&notice);
                self.say(&format!("lease {}: all written, so committed in time", notice.lease));
                let by = show::who(&notice.breaker);
                Ok((length as u64, Some(Broken { range, by, fate: "committed in time" })))
            }
            Err(CommitError::Revoked(notice)) => Ok((0, Some(self.say_revoke(&notice, range)))),
            Err(error) => Err(error.into()),
        }
    }

    /// The answer to a break of a chunk that is not all written.
    async fn let_go(
        &self,
        lease: Lease,
        state: LeaseState,
        written: usize,
    ) -> anyhow::Result<(u64, Option<Broken>)> {
        let (id, range) = (lease.id(), lease.range());
        let broken = match state {
            LeaseState::Revoked(notice) => self.say_revoke(&notice, range),
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
        Ok((0, Some(broken)))
    }

    fn say_notice(&self, notice: &BreakNotice) {
        let BreakNotice { lease, path, range, breaker, operation, grace, .. } = notice;
        let (who, range, grace) = (show::who(breaker), show::range(*range), show::duration(*grace));
        self.say(&format!("break of lease {lease}: {range} of {path}"));
        self.say(&format!("  {operation}, {grace} to answer"));
        self.say(&format!("  by {who}"));
    }

    fn say_revoke(&self, notice: &RevokeNotice, range: ByteRange) -> Broken {
        self.say(&format!("lease {} is revoked: {}", notice.lease, notice.why));
        let by = notice.by.as_ref().map_or_else(|| "the server".to_owned(), show::who);
        Broken { range, by, fate: "revoked" }
    }

    fn say(&self, text: &str) {
        self.progress.say(&format!("{} {text}", show::time_of_day(SystemTime::now())));
    }

    async fn turn(&self, bytes: usize) {
        if let Some(pace) = &self.pace {
            pace.turn(bytes as u64).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn cut(source: &'static [u8], chunk: u64) -> Vec<(u64, Vec<u8>)> {
        let mut chunks = chunks(Box::new(source), Size(chunk));
        let mut all = Vec::new();
        while let Some(next) = chunks.recv().await {
            let (offset, bytes) = next.unwrap();
            all.push((offset, bytes.to_vec()));
        }
        all
    }

    #[tokio::test]
    async fn a_source_is_cut_into_chunks_and_an_empty_one_into_none() {
        assert_eq!(cut(b"", 4).await, []);
        assert_eq!(cut(b"abcd", 4).await, [(0, b"abcd".to_vec())]);
        assert_eq!(cut(b"abcdef", 4).await, [(0, b"abcd".to_vec()), (4, b"ef".to_vec())]);
    }

    #[test]
    fn times_to_wait_are_read_with_their_unit() {
        assert_eq!(wait_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(wait_time("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(wait_time("30").is_err() && wait_time("-1s").is_err());
    }
}
