//! `leasehold put`: local files into the store, piece by piece, many at once.
//!
//! ```text
//! source.rs    reads ahead on a thread, skips holes, cuts into pieces        -> Batch
//! transfer.rs  acquire, write, commit; breaks                                -> Chunk, committed
//! finish.rs    what was lost with a connection; size, holes; durable         -> over
//! tree.rs      which files there are, and what is not a file
//! ```

mod attributes;
mod finish;
mod source;
mod target;
mod transfer;
mod tree;
mod walk;

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::line::{Line, Reconnect};
use crate::command::pace::Pace;
use crate::command::place;
use crate::command::progress::Progress;
use crate::command::put::source::cannot_read;
use crate::command::put::target::{From, Target};
use crate::command::put::transfer::Transfer;
use crate::command::show;
use crate::size::{Size, rough};
use anyhow::Context as _;
use leasehold_client::{AcquireOptions, OnConflict};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Write a local file or directory into the store, by RDMA
///
/// The file is created, made as long as what is put, and durable on return. If somebody breaks a lease of the put
/// (say, by truncating the file), the put stops and says who. Holes of the source are not sent, and become holes.
#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    /// The local file or directory; `-` for standard input
    file: PathBuf,
    /// Where to: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    to: String,
    /// Put a directory and all that is in it: into the destination if that exists, else as the destination
    #[arg(short, long)]
    recursive: bool,
    /// Keep permissions, times of modification, and extended attributes (user.*)
    #[arg(short, long)]
    preserve: bool,
    /// Compare with what is there, by checksums, and send only what differs
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    reconnect: Reconnect,
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
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = chunk_size)]
    pub(crate) chunk: Size,
    /// How many leases at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
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

/// What a put has to do.
enum Source {
    Stdin,
    File(PathBuf, u64),
    Directory(PathBuf),
}

impl Put {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        if self.rate.is_some_and(|rate| rate.0 == 0) {
            return Err(
                Failure::new(Exit::Usage, "--rate 0 would never end; leave it out for no limit").into()
            );
        }
        let source = self.look()?;
        let location = place::find(common, &self.to)?;
        let length = match source {
            Source::File(_, length) => Some(length),
            Source::Stdin | Source::Directory(_) => None,
        };
        if !matches!(source, Source::Directory(_)) {
            place::must_name_a_file(&location.path)?;
        }
        let progress = Arc::new(Progress::new(length, "put"));
        let transfer = Transfer {
            line: Line::open(common, &location.server, self.reconnect, progress.clone()).await?,
            options: self.conflict.options(),
            retry: self.retry,
            resume: self.resume,
            sync: !self.no_sync,
            preserve: self.preserve,
            pace: self.rate.map(Pace::new),
            progress,
            stop: Arc::default(),
        };
        match source {
            Source::Stdin => self.one(common, transfer, From::Stdin, location.path).await,
            Source::File(path, _) => self.one(common, transfer, From::File(path), location.path).await,
            Source::Directory(path) => self.tree(common, transfer, &path, location.path).await,
        }
    }

    fn look(&self) -> anyhow::Result<Source> {
        if self.file == Path::new("-") {
            return Ok(Source::Stdin);
        }
        // Named by the user, so a link is what it leads to; those in a tree are kept as links.
        let found = std::fs::metadata(&self.file).map_err(|error| cannot_read(&self.file, error))?;
        if found.is_dir() && !self.recursive {
            let text = format!("{} is a directory; put it with --recursive", self.file.display());
            return Err(Failure::new(Exit::Usage, text).into());
        }
        let path = self.file.clone();
        Ok(if found.is_dir() { Source::Directory(path) } else { Source::File(path, found.len()) })
    }

    async fn one(&self, common: &Common, transfer: Transfer, from: From, path: String) -> Outcome {
        let started = Instant::now();
        let target = Target::new(from, path);
        let batches = source::read(vec![target.clone()], self.pipeline.chunk.0, transfer.stop.clone());
        transfer.all(batches, usize::from(self.pipeline.depth), &|_| ()).await;
        let path = &target.path;
        let (failed, bytes, sent) = {
            let mut state = target.state();
            (state.failed.take(), state.length.unwrap_or_default(), state.sent_bytes)
        };
        if let Some(error) = failed {
            return Err(error).with_context(|| format!("{path} is incomplete"));
        }
        let size = transfer.line.hold(async |link| Ok(link.client().stat(path).await?.size)).await?;
        let Transfer { line, progress, .. } = transfer;
        line.close().await;
        drop(progress);
        if size != bytes {
            let text =
                format!("{path} has {size} bytes and {bytes} were put: somebody changed it in the meantime");
            return Err(Failure::new(Exit::Lease, text).into());
        }
        let (durable, took) = (!self.no_sync, started.elapsed());
        let seconds = took.as_secs_f64();
        if common.json {
            let value = json!({
                "path": path, "bytes": bytes, "sent": sent, "seconds": seconds, "durable": durable,
            });
            return Ok(show::json_document(&value)?);
        }
        let rate = rough((sent as f64 / seconds.max(1e-9)) as u64);
        let state = if durable { "durable" } else { "not yet durable" };
        let (took, bytes_shown) = (show::duration(took), rough(bytes));
        let sent = if sent == bytes { String::new() } else { format!(" ({} sent)", rough(sent)) };
        Ok(show::line(format_args!("put {bytes_shown}{sent} into {path} in {took} ({rate}/s), {state}"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_are_read_with_their_unit() {
        assert_eq!(wait_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(wait_time("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(wait_time("30").is_err() && wait_time("-1s").is_err());
    }
}
