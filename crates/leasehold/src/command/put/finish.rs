//! The end of a file's put: what may have been lost with a connection is compared and put again, what is there and not in
//! the source goes, and the file is made durable.

use crate::command::exit::{Exit, Failure, code};
use crate::command::line::Link;
use crate::command::put::attributes;
use crate::command::put::target::{Chunk, Found, From, Target};
use crate::command::put::transfer::{Transfer, blocks};
use crate::size::rough;
use anyhow::Context as _;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use leasehold_client::{Access, ByteRange, Want, crc32c, crc32c_of_blocks};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// How much is compared at once: the checksums are a thousandth of it.
const COMPARED_BYTES: u64 = 1 << 30;
/// How many pieces are put again at once.
const AGAIN_MAX: usize = 4;

impl Transfer {
    /// Sees to the end of files of which nothing is under way any more.
    pub(crate) async fn finish(&self, files: &[Arc<Target>]) {
        let files: Vec<&Target> =
            files.iter().map(Arc::as_ref).filter(|target| !target.has_failed()).collect();
        if files.is_empty() {
            return;
        }
        let done = self.line.hold(async |link| {
            let finished = join_all(files.iter().map(|target| self.complete(link, target))).await;
            finished.into_iter().collect::<anyhow::Result<()>>()?;
            self.make_durable(link, &files).await
        });
        if let Err(error) = done.await {
            let text = format!("{error:#}");
            for target in files {
                target.fail(Failure::new(code(&error), text.clone()));
            }
        }
    }

    /// Fails only if the link is lost.
    async fn complete(&self, link: &Link, target: &Target) -> anyhow::Result<()> {
        if target.has_failed() {
            return Ok(());
        }
        self.or_fail(link, target, self.try_complete(link, target).await)
    }

    fn or_fail(&self, link: &Link, target: &Target, done: anyhow::Result<()>) -> anyhow::Result<()> {
        match done {
            Err(error) if link.is_lost(&error) => Err(error),
            Err(error) => {
                target.fail(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn try_complete(&self, link: &Link, target: &Target) -> anyhow::Result<()> {
        self.put_again_what_was_lost(link, target).await?;
        let (length, holes, pieces) = {
            let state = target.state();
            (state.length.unwrap_or_default(), state.holes.clone(), state.committed.len())
        };
        // New, and written from the first byte to the last: nothing is left to do.
        if pieces > 0 && holes.is_empty() && target.found.get() == Some(&Found::Nothing) {
            return Ok(());
        }
        let size = match pieces {
            0 => link.client().create(&target.path).await?.size,
            _ => link.client().stat(&target.path).await?.size,
        };
        if size != length {
            link.client().truncate(&target.path, length).await?;
        }
        if target.found.get() == Some(&Found::File) || pieces == 0 {
            self.punch(link, target, &holes, size.min(length)).await?;
        }
        Ok(())
    }

    /// Where the source has holes, the file gets them.
    async fn punch(
        &self,
        link: &Link,
        target: &Target,
        holes: &[ByteRange],
        size: u64,
    ) -> anyhow::Result<()> {
        for hole in holes {
            let Some(hole) = ByteRange::new(hole.start(), hole.end().min(size)) else { continue };
            let mut at = hole.start();
            while let Some(part) = ByteRange::new(at, hole.end().min(at.saturating_add(COMPARED_BYTES * 64)))
            {
                let map = link.client().block_map(&target.path, part).await?;
                for data in map.data() {
                    if let Some(range) =
                        ByteRange::new(data.start().max(hole.start()), data.end().min(hole.end()))
                    {
                        link.client().punch(&target.path, range).await?;
                    }
                }
                at = part.end();
            }
        }
        Ok(())
    }

    /// What went by an earlier link, and may be gone with it, is compared with the store's checksums, and put again where
    /// it differs.
    async fn put_again_what_was_lost(&self, link: &Link, target: &Target) -> anyhow::Result<()> {
        let doubtful: Vec<Chunk> =
            target.state().committed.iter().filter(|chunk| chunk.link != link.number).copied().collect();
        let (Some(first), Some(last)) = (
            doubtful.iter().map(|chunk| chunk.range.start()).min(),
            doubtful.iter().map(|chunk| chunk.range.end()).max(),
        ) else {
            return Ok(());
        };
        // Its name may be gone as well.
        link.client().create(&target.path).await?;
        let mut lost = Vec::new();
        for start in (first..last).step_by(usize::try_from(COMPARED_BYTES).expect("64 bits")) {
            let window = ByteRange::new(start, last.min(start + 2 * COMPARED_BYTES)).expect("not empty");
            let map = link.client().block_map(&target.path, window).await?;
            let within = |chunk: &&Chunk| (start..start + COMPARED_BYTES).contains(&chunk.range.start());
            lost.extend(doubtful.iter().filter(within).filter(|chunk| {
                let there = blocks(chunk.range, map.size()).and_then(|blocks| map.crc32c(blocks));
                let put = chunk.crc32c.map(|crc32c| crc32c_of_blocks(crc32c, chunk.range.len()));
                there.is_none() || there != put
            }));
        }
        if !lost.is_empty() {
            let bytes = rough(lost.iter().map(|chunk: &&Chunk| chunk.range.len()).sum());
            self.say(&format!("{bytes} of {} went with the connection; putting them again", target.path));
        }
        stream::iter(lost)
            .map(|chunk| self.put_again(link, target, *chunk))
            .buffer_unordered(AGAIN_MAX)
            .try_collect::<()>()
            .await?;
        for chunk in &mut target.state().committed {
            chunk.link = link.number;
        }
        self.line.step();
        Ok(())
    }

    async fn put_again(&self, link: &Link, target: &Target, chunk: Chunk) -> anyhow::Result<()> {
        let From::File(path) = &target.from else {
            let text =
                "the server lost what it was given, and standard input cannot be read again; put it again";
            return Err(Failure::new(Exit::Failed, text).into());
        };
        let bytes = read_again(path.clone(), chunk.range).await?;
        if chunk.crc32c.is_some_and(|put| put != crc32c(&bytes)) {
            let text = format!("{} changed while it was put; put it again", path.display());
            return Err(Failure::new(Exit::Failed, text).into());
        }
        let want = Want { path: target.path.clone(), range: chunk.range, access: Access::Overwrite };
        let lease = link.session.acquire(&[want], self.options).await?.remove(0);
        lease.write(chunk.range.start(), bytes).await?;
        lease.commit().await?;
        target.state().sent_bytes += chunk.range.len();
        Ok(())
    }

    /// Fails only if the link is lost.
    async fn make_durable(&self, link: &Link, files: &[&Target]) -> anyhow::Result<()> {
        let put = || files.iter().copied().filter(|target| !target.has_failed());
        if self.sync {
            self.sync(link, put()).await?;
        }
        if self.preserve {
            for (target, set) in
                join_all(put().map(async |target| (target, attributes::copy(link, target).await))).await
            {
                self.or_fail(link, target, set)?;
            }
            if self.sync {
                self.sync(link, put()).await?;
            }
        }
        Ok(())
    }

    async fn sync<'a>(
        &self,
        link: &Link,
        files: impl Iterator<Item = &'a Target> + Clone,
    ) -> anyhow::Result<()> {
        let paths = files.clone().map(|target| target.path.clone());
        match link.session.sync_all(paths).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_lost() => Err(error.into()),
            // Which of them?
            Err(_) => {
                for target in files {
                    self.or_fail(link, target, link.session.sync(&target.path).await.map_err(Into::into))?;
                }
                Ok(())
            }
        }
    }
}

async fn read_again(path: PathBuf, range: ByteRange) -> anyhow::Result<Bytes> {
    let read = move || {
        let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or_default()];
        let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, range.start()));
        read.map(|()| Bytes::from(bytes)).with_context(|| format!("cannot read {} again", path.display()))
    };
    tokio::task::spawn_blocking(read).await.expect("reading does not panic")
}
