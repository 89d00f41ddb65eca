//! `leasehold get`: a file of the store, read by RDMA under read leases.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::place;
use crate::command::progress::Progress;
use crate::command::put::{Conflict, Pipeline};
use crate::command::show;
use crate::size::rough;
use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use leasehold_client::{Access, AcquireOptions, Buffer, ByteRange, Session, Want, proto};
use serde_json::json;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;
use tempfile::NamedTempFile;

/// Read a file of the store, by RDMA
///
/// The local file appears under its name once it is complete.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    from: String,
    /// The local file; `-` for standard output
    file: PathBuf,
    #[command(flatten)]
    pipeline: Pipeline,
    #[command(flatten)]
    conflict: Conflict,
}

impl Get {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.from).await?;
        let found = client.stat(&path).await?;
        if found.kind() == proto::file::Kind::Directory {
            let text =
                format!("{path} is a directory; list it with `leasehold ls`, and get its files one by one");
            return Err(Failure::new(Exit::Failed, text).into());
        }
        if found.kind() != proto::file::Kind::File {
            return Err(
                Failure::new(Exit::Failed, format!("{path} is not an ordinary file; name one")).into()
            );
        }
        let mut sink = Sink::open(&self.file)?;
        let session = Session::open(&client).await?;
        let started = Instant::now();
        let progress = Progress::new(Some(found.size), "get");
        let reading = Reading {
            session: &session,
            path: &path,
            options: self.conflict.options(),
            spare: Mutex::new(Vec::new()),
        };
        let mut pieces = stream::iter(cut(found.size, self.pipeline.chunk.0))
            .map(|range| reading.piece(range))
            .buffered(usize::from(self.pipeline.depth));
        while let Some(piece) = pieces.next().await {
            let (buffer, length) = piece?;
            let (back, buffer) = tokio::task::spawn_blocking(move || {
                let written = sink.write(&buffer.as_slice()[..length]);
                written.map(|()| (sink, buffer))
            })
            .await
            .expect("writing does not panic")?;
            sink = back;
            reading.spare.lock().expect("nobody panics with it").push(buffer);
            progress.add(length as u64);
        }
        drop(pieces);
        let now = client.stat(&path).await?.size;
        if now < found.size {
            let text =
                format!("{path} shrank from {} to {now} bytes while it was read; get it again", found.size);
            return Err(Failure::new(Exit::Lease, text).into());
        }
        let to_a_file = sink.finish()?;
        drop(reading);
        session.close().await;
        drop(progress);

        let (bytes, took) = (found.size, started.elapsed());
        if common.json && to_a_file {
            let value = json!({ "path": path, "bytes": bytes, "seconds": took.as_secs_f64() });
            show::json_document(&value)?;
        } else if to_a_file {
            let rate = rough((bytes as f64 / took.as_secs_f64().max(1e-9)) as u64);
            let took = show::duration(took);
            show::line(format_args!("got {} of {path} in {took} ({rate}/s)", rough(bytes)))?;
        }
        Ok(())
    }
}

/// The ranges of `size` bytes in chunks.
fn cut(size: u64, chunk: u64) -> impl Iterator<Item = ByteRange> {
    (0..size.div_ceil(chunk)).filter_map(move |n| ByteRange::new(n * chunk, size.min((n + 1) * chunk)))
}

struct Reading<'a> {
    session: &'a Session,
    path: &'a str,
    options: AcquireOptions,
    /// Buffers to use again.
    spare: Mutex<Vec<Buffer>>,
}

impl Reading<'_> {
    async fn piece(&self, range: ByteRange) -> anyhow::Result<(Buffer, usize)> {
        let length = usize::try_from(range.len()).context("a chunk fits in memory")?;
        let want = Want { path: self.path.to_owned(), range, access: Access::Read };
        let mut leases = self.session.acquire(&[want], self.options).await?;
        let lease = leases.pop().expect("one range is one lease");
        let spare = self.spare.lock().expect("nobody panics with it").pop();
        let buffer = spare.filter(|buffer| buffer.len() >= length).unwrap_or_else(|| Buffer::new(length));
        let buffer = lease.read(range, buffer).await?;
        lease.release().await?;
        Ok((buffer, length))
    }
}

/// Where the bytes go.
enum Sink {
    /// Beside the file, until it is complete.
    New { file: NamedTempFile, path: PathBuf },
    /// Standard output, a device, a pipe.
    Stream(Box<dyn Write + Send>),
}

impl Sink {
    fn open(path: &Path) -> anyhow::Result<Sink> {
        if path == Path::new("-") {
            return Ok(Sink::Stream(Box::new(io::stdout())));
        }
        let context = || format!("cannot write {}", path.display());
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                let text = format!("{} is a directory; name a file in it", path.display());
                Err(Failure::new(Exit::Usage, text).into())
            }
            Ok(found) if !found.is_file() => {
                Ok(Sink::Stream(Box::new(File::options().write(true).open(path).with_context(context)?)))
            }
            _ => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let parent = parent.unwrap_or_else(|| Path::new("."));
                let mut builder = tempfile::Builder::new();
                // What a new file would have; the umask takes its part.
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
                let file = builder.prefix(".leasehold-get-").permissions(mode).tempfile_in(parent);
                Ok(Sink::New { file: file.with_context(context)?, path: path.to_owned() })
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::New { file, .. } => file.write_all(bytes),
            Sink::Stream(stream) => stream.write_all(bytes),
        }
    }

    /// Whether there is a file now.
    fn finish(self) -> anyhow::Result<bool> {
        match self {
            Sink::New { file, path } => {
                file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(true)
            }
            Sink::Stream(mut stream) => {
                stream.flush()?;
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_into_ranges_that_cover_it_once() {
        let all = |size, chunk| cut(size, chunk).map(|r| (r.start(), r.end())).collect::<Vec<_>>();
        assert_eq!(all(0, 4), []);
        assert_eq!(all(4, 4), [(0, 4)]);
        assert_eq!(all(9, 4), [(0, 4), (4, 8), (8, 9)]);
    }

    #[test]
    fn a_local_file_appears_only_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut sink = Sink::open(&path).unwrap();
        sink.write(b"half").unwrap();
        assert!(!path.exists());
        drop(sink);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
        let mut sink = Sink::open(&path).unwrap();
        sink.write(b"whole").unwrap();
        assert!(sink.finish().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }
}
