//! Ranges of the store's files into local ones, many at once: acquire, read, write, release.

use crate::command::exit::{Exit, Failure, Outcome, code};
use crate::command::get::part::{Sink, crc32c_here};
use crate::command::line::Line;
use crate::command::progress::Progress;
use crate::command::put::Pipeline;
use anyhow::Context as _;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use leasehold_client::{Access, AcquireOptions, Buffer, ByteRange, Want, proto};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much of a file is planned at once.
const PLANNED_BYTES: u64 = 1 << 30;
/// Buffers that are kept for the next range.
const SPARE_MAX: usize = 64;

/// What all files of a get have in common.
pub(crate) struct Fetch {
    pub(crate) line: Line,
    options: AcquireOptions,
    pub(crate) chunk: u64,
    pub(crate) depth: usize,
    /// Compare with what is here first.
    pub(crate) resume: bool,
    pub(crate) progress: Arc<Progress>,
    fetched: AtomicU64,
    spare: Mutex<Vec<Buffer>>,
}

/// One file on its way.
pub(crate) struct Fetching {
    pub(crate) path: String,
    pub(crate) size: u64,
    sink: Arc<Sink>,
    failed: Mutex<Option<anyhow::Error>>,
}

impl Fetching {
    pub(crate) fn new(found: &proto::File, sink: Sink) -> Fetching {
        let (path, size) = (found.path.clone(), found.size);
        Fetching { path, size, sink: Arc::new(sink), failed: Mutex::default() }
    }

    fn failed(&self) -> MutexGuard<'_, Option<anyhow::Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, why: impl Into<anyhow::Error>) {
        self.failed().get_or_insert_with(|| why.into());
    }

    /// The end: the file gets its name, if all of it came and it is `now` as long as it was.
    pub(crate) fn complete(&self, now: u64) -> Outcome {
        let mut failed = self.failed().take();
        if failed.is_none() && now < self.size {
            let (path, was) = (&self.path, self.size);
            let text = format!("{path} shrank from {was} to {now} bytes while it was read; get it again");
            failed = Some(Failure::new(Exit::Lease, text).into());
        }
        if failed.is_none() {
            failed = self.sink.finish(self.size).err();
        }
        let Some(error) = failed else { return Ok(()) };
        Err(match self.sink.give_up() {
            Some(left) => {
                Failure::new(code(&error), format!("{}; {left}", crate::command::exit::text(&error))).into()
            }
            None => error,
        })
    }
}

impl Fetch {
    pub(crate) fn new(
        line: Line,
        options: AcquireOptions,
        pipeline: &Pipeline,
        resume: bool,
        progress: Arc<Progress>,
    ) -> Fetch {
        Fetch {
            line,
            options,
            chunk: pipeline.chunk.0,
            depth: usize::from(pipeline.depth),
            resume,
            progress,
            fetched: AtomicU64::new(0),
            spare: Mutex::default(),
        }
    }

    /// How many bytes came over the line.
    pub(crate) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// All of a file, by parts; what fails is kept in it.
    pub(crate) async fn whole(&self, fetching: &Arc<Fetching>) {
        let windows = cut(0, fetching.size, PLANNED_BYTES.next_multiple_of(self.chunk));
        stream::iter(windows)
            .take_while(|_| std::future::ready(fetching.failed().is_none()))
            .then(|window| self.plan(fetching, window))
            .flat_map(stream::iter)
            .take_while(|_| std::future::ready(fetching.failed().is_none()))
            .for_each_concurrent(self.depth, |range| self.fetch(vec![(fetching.clone(), range)]))
            .await;
    }

    /// What of the window is to be fetched: no holes, and nothing that is here. Holes that are not here are made.
    async fn plan(&self, fetching: &Arc<Fetching>, window: ByteRange) -> Vec<ByteRange> {
        let all = || cut(window.start(), window.end(), self.chunk).collect::<Vec<_>>();
        if fetching.size <= self.chunk && !self.resume {
            return all();
        }
        let map =
            self.line.hold(async |link| Ok(link.client().block_map(&fetching.path, window).await?)).await;
        // A server that cannot tell has to be read.
        let Ok(map) = map else { return all() };
        let mut ranges = Vec::new();
        let mut holes = Vec::new();
        let mut at = window.start();
        for data in map.data() {
            let end = data.end().min(window.end());
            holes.extend(ByteRange::new(at, data.start()));
            ranges.extend(cut(data.start(), end, self.chunk));
            at = end;
        }
        holes.extend(ByteRange::new(at, window.end()));
        let (sink, resume) = (fetching.sink.clone(), self.resume);
        let prepared = tokio::task::spawn_blocking(move || {
            if let Some(there) = sink.there().filter(|_| resume) {
                let mut differing = Vec::new();
                for range in ranges {
                    let blocks = ByteRange::new(range.start(), range.end().next_multiple_of(4096));
                    let stored = blocks.and_then(|blocks| map.crc32c(blocks));
                    if stored.is_none() || crc32c_here(&there, range)? != stored {
                        differing.push(range);
                    }
                }
                ranges = differing;
            }
            holes.into_iter().try_for_each(|hole| sink.clear(hole))?;
            anyhow::Ok(ranges)
        });
        prepared.await.expect("comparing does not panic").unwrap_or_else(|error| {
            fetching.fail(error);
            Vec::new()
        })
    }

    /// Ranges of some files, by one acquire.
    pub(crate) async fn fetch(&self, ranges: Vec<(Arc<Fetching>, ByteRange)>) {
        if let Err(error) = self.try_fetch(&ranges).await {
            if ranges.len() == 1 {
                return ranges[0].0.fail(error);
            }
            // Some file is the reason, and the others are not to suffer for it.
            for (fetching, range) in ranges {
                if let Err(error) = self.try_fetch(&[(fetching.clone(), range)]).await {
                    fetching.fail(error);
                }
            }
        }
    }

    async fn try_fetch(&self, ranges: &[(Arc<Fetching>, ByteRange)]) -> anyhow::Result<()> {
        let want = |(fetching, range): &(Arc<Fetching>, ByteRange)| Want {
            path: fetching.path.clone(),
            range: *range,
            access: Access::Read,
        };
        let wants: Vec<Want> = ranges.iter().map(want).collect();
        let read = self.line.hold(async |link| {
            let leases = link.session.acquire(&wants, self.options).await?;
            let reads = leases.iter().map(async |lease| {
                let length = usize::try_from(lease.range().len()).context("a chunk fits in memory")?;
                anyhow::Ok(lease.read(lease.range(), self.buffer(length)).await?)
            });
            let read = join_all(reads).await.into_iter().collect::<anyhow::Result<Vec<Buffer>>>()?;
            link.session.release_all(leases).await?;
            Ok(read)
        });
        let read = read.await?;
        self.line.step();
        let written = tokio::task::spawn_blocking({
            let ranges = ranges.to_vec();
            move || {
                for ((fetching, range), buffer) in ranges.iter().zip(&read) {
                    let bytes = &buffer.as_slice()[..range.len() as usize];
                    if let Err(error) = fetching.sink.write_at(bytes, range.start()) {
                        fetching.fail(error);
                    }
                }
                read
            }
        });
        let read = written.await.expect("writing does not panic");
        let bytes = ranges.iter().map(|(_, range)| range.len()).sum();
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
        self.progress.add(bytes);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.extend(read);
        spare.truncate(SPARE_MAX);
        Ok(())
    }

    /// All of a file, in order.
    pub(crate) async fn stream(&self, found: &proto::File, mut to: Box<dyn Write + Send>) -> Outcome {
        let mut pieces = stream::iter(cut(0, found.size, self.chunk))
            .map(async |range| {
                let want = Want { path: found.path.clone(), range, access: Access::Read };
                let read = self.line.hold(async |link| {
                    let leases = link.session.acquire(std::slice::from_ref(&want), self.options).await?;
                    let length = usize::try_from(range.len()).context("a chunk fits in memory")?;
                    let buffer = leases[0].read(range, self.buffer(length)).await?;
                    link.session.release_all(leases).await?;
                    Ok((buffer, length))
                });
                read.await
            })
            .buffered(self.depth);
        while let Some(piece) = pieces.next().await {
            let (buffer, length) = piece?;
            self.line.step();
            let (back, buffer) = tokio::task::spawn_blocking(move || {
                let written = to.write_all(&buffer.as_slice()[..length]);
                written.map(|()| (to, buffer))
            })
            .await
            .expect("writing does not panic")?;
            to = back;
            self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
            self.fetched.fetch_add(length as u64, Ordering::Relaxed);
            self.progress.add(length as u64);
        }
        drop(pieces);
        to.flush()?;
        let now = self.line.hold(async |link| Ok(link.client().stat(&found.path).await?.size)).await?;
        if now < found.size {
            let (path, was) = (&found.path, found.size);
            let text = format!("{path} shrank from {was} to {now} bytes while it was read; get it again");
            return Err(Failure::new(Exit::Lease, text).into());
        }
        Ok(())
    }

    fn buffer(&self, length: usize) -> Buffer {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.pop().filter(|buffer| buffer.len() >= length).unwrap_or_else(|| Buffer::new(length))
    }
}

/// The ranges from `start` to `end`, cut where a multiple of `chunk` is.
pub(crate) fn cut(start: u64, end: u64, chunk: u64) -> impl Iterator<Item = ByteRange> {
    let mut at = start;
    std::iter::from_fn(move || {
        let range = ByteRange::new(at, end.min((at / chunk + 1) * chunk))?;
        at = range.end();
        Some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_ranges_that_cover_it_once() {
        let all =
            |start, end, chunk| cut(start, end, chunk).map(|r| (r.start(), r.end())).collect::<Vec<_>>();
        assert_eq!(all(0, 0, 4), []);
        assert_eq!(all(0, 4, 4), [(0, 4)]);
        assert_eq!(all(0, 9, 4), [(0, 4), (4, 8), (8, 9)]);
        assert_eq!(all(3, 9, 4), [(3, 4), (4, 8), (8, 9)]);
    }
}
