//! Reads local files ahead, on a thread of its own, and cuts them into pieces. Holes are not read.

use crate::command::exit::{Exit, Failure};
use crate::command::put::target::{From, Piece, Target};
use bytes::Bytes;
use leasehold_client::{BLOCK_BYTES, ByteRange};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// The most small files in one batch: each is a lease.
const BATCH_MAX: usize = 64;

/// What is acquired in one call: one piece of a long file, or all of many short ones.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) pieces: Vec<Piece>,
    /// Files that were read to their end.
    pub(crate) ends: Vec<Arc<Target>>,
    bytes: u64,
}

struct Reader {
    chunk: u64,
    batch: Batch,
    batches: mpsc::Sender<Batch>,
    stop: Arc<AtomicBool>,
}

/// Nobody wants more.
struct Stopped;

/// Reads the files in order, two batches ahead, until `stop`.
pub(crate) fn read(files: Vec<Arc<Target>>, chunk: u64, stop: Arc<AtomicBool>) -> mpsc::Receiver<Batch> {
    let (batches, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut reader = Reader { chunk, batch: Batch::default(), batches, stop };
        for target in files {
            if reader.file(&target).is_err() {
                return;
            }
        }
        let _nobody_is_left = reader.flush();
    });
    receiver
}

impl Reader {
    fn file(&mut self, target: &Arc<Target>) -> Result<(), Stopped> {
        let read = match &target.from {
            From::Stdin => self.stream(target, &mut io::stdin()),
            From::File(path) => match self.open_and_read(target, path) {
                Err(error) => {
                    target.fail(cannot_read(path, error));
                    Ok(())
                }
                Ok(read) => read,
            },
        };
        read?;
        self.batch.ends.push(target.clone());
        if self.batch.bytes >= self.chunk || self.batch.ends.len() >= BATCH_MAX {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn open_and_read(&mut self, target: &Arc<Target>, path: &Path) -> io::Result<Result<(), Stopped>> {
        let mut file = File::open(path)?;
        let before = file.metadata()?;
        // What the kernel makes up on reading has no size.
        if !before.is_file() || before.len() == 0 {
            return Ok(self.stream(target, &mut file));
        }
        let Ok(whole) = self.extents(target, &mut file, before.len())? else { return Ok(Err(Stopped)) };
        let after = file.metadata()?;
        if !whole || seen(&before) != seen(&after) {
            let text = format!("{} changed while it was read; put it again", path.display());
            target.fail(Failure::new(Exit::Failed, text));
        }
        Ok(Ok(()))
    }

    /// From here to the end.
    fn stream(&mut self, target: &Arc<Target>, from: &mut dyn Read) -> Result<(), Stopped> {
        let mut offset = 0;
        while !target.has_failed() {
            let mut bytes = Vec::with_capacity(usize::try_from(self.chunk).unwrap_or_default());
            if let Err(error) = Read::take(&mut *from, self.chunk).read_to_end(&mut bytes) {
                target.fail(anyhow::Error::from(error).context("cannot read the source"));
                return Ok(());
            }
            let last = (bytes.len() as u64) < self.chunk;
            offset += bytes.len() as u64;
            if last {
                target.all_read(offset, Vec::new());
            }
            if let Some(range) = ByteRange::new(offset - bytes.len() as u64, offset) {
                self.piece(target.piece(range, Bytes::from(bytes), last && range.start() == 0))?;
            }
            if last {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The parts that are no holes. Whether all bytes were there.
    fn extents(
        &mut self,
        target: &Arc<Target>,
        file: &mut File,
        length: u64,
    ) -> io::Result<Result<bool, Stopped>> {
        let mut holes = Vec::new();
        let (mut at, mut whole) = (0, true);
        while at < length && whole && !target.has_failed() {
            let data = next_data(file, at, length)?;
            let (start, end) = data.map_or((length, length), |data| (data.start(), data.end()));
            holes.extend(ByteRange::new(at, start));
            at = start;
            while let Some(range) = ByteRange::new(at, end.min((at / self.chunk + 1) * self.chunk)) {
                seek(&*file, SeekFrom::Start(at))?;
                let mut bytes = Vec::with_capacity(usize::try_from(range.len()).unwrap_or_default());
                whole = file.take(range.len()).read_to_end(&mut bytes)? as u64 == range.len();
                if !whole || target.has_failed() {
                    break;
                }
                at = range.end();
                if at == length {
                    target.all_read(length, std::mem::take(&mut holes));
                }
                let only = range.len() == length;
                if self.piece(target.piece(range, Bytes::from(bytes), only)).is_err() {
                    return Ok(Err(Stopped));
                }
            }
        }
        if at == length && !holes.is_empty() {
            target.all_read(length, holes);
        }
        Ok(Ok(whole))
    }

    /// Pieces of long files go alone, files of one piece together.
    fn piece(&mut self, piece: Piece) -> Result<(), Stopped> {
        if !piece.only {
            self.flush()?;
        }
        let alone = !piece.only;
        self.batch.bytes += piece.range.len();
        self.batch.pieces.push(piece);
        if alone || self.batch.bytes >= self.chunk { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Stopped> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        let batch = std::mem::take(&mut self.batch);
        if batch.pieces.is_empty() && batch.ends.is_empty() {
            return Ok(());
        }
        self.batches.blocking_send(batch).map_err(|_| Stopped)
    }
}

/// The next part of the file that is no hole, from `at` on, in whole blocks but for the end of file.
fn next_data(file: &File, at: u64, length: u64) -> io::Result<Option<ByteRange>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start / BLOCK_BYTES * BLOCK_BYTES,
        Err(Errno::NXIO) => return Ok(None),
        // A filesystem that knows of no holes.
        Err(Errno::INVAL) => return Ok(ByteRange::new(at, length)),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start.max(at)))?;
    Ok(ByteRange::new(start.max(at), end.next_multiple_of(BLOCK_BYTES).min(length)))
}

/// What a change of the file does not leave as it was.
fn seen(found: &Metadata) -> (u64, i64, i64) {
    (found.len(), found.mtime(), found.mtime_nsec())
}

pub(crate) fn cannot_read(path: &Path, error: io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
    Failure::new(exit, format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    async fn cut(from: From, chunk: u64) -> (Vec<(u64, usize)>, Arc<Target>) {
        let target = Target::new(from, "/x".to_owned());
        let mut batches = read(vec![target.clone()], chunk, Arc::default());
        let mut pieces = Vec::new();
        while let Some(batch) = batches.recv().await {
            pieces.extend(batch.pieces.iter().map(|piece| (piece.range.start(), piece.bytes.len())));
        }
        (pieces, target)
    }

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, From) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let from = From::File(file.path().to_owned());
        (file, from)
    }

    #[tokio::test]
    async fn a_file_is_cut_into_chunks_and_an_empty_one_into_none() {
        for (bytes, chunk, pieces) in
            [(&b""[..], 4, vec![]), (b"abcd", 4, vec![(0, 4)]), (b"abcdef", 4, vec![(0, 4), (4, 2)])]
        {
            let (_file, from) = file(bytes);
            let (found, target) = cut(from, chunk).await;
            assert_eq!(found, pieces);
            assert_eq!(target.state().length, Some(bytes.len() as u64));
            assert!(target.to_finish() && !target.to_finish(), "its end is seen to once");
        }
    }

    #[tokio::test]
    async fn holes_are_not_read_and_remembered() {
        const MIB: u64 = 1 << 20;
        let (file, from) = file(b"");
        file.as_file().set_len(100 * MIB).unwrap();
        rustix::io::pwrite(file.as_file(), &[1; 4096], 50 * MIB).unwrap();
        let (pieces, target) = cut(from, 4 * MIB).await;
        assert_eq!(pieces, [(50 * MIB, 4096)]);
        let holes = [(0, 50 * MIB), (50 * MIB + 4096, 100 * MIB)];
        assert_eq!(target.state().holes, holes.map(|(start, end)| ByteRange::new(start, end).unwrap()));
        assert_eq!(target.state().length, Some(100 * MIB));
    }

    #[tokio::test]
    async fn many_small_files_go_together_and_a_long_one_alone() {
        let files: Vec<_> = [10, 10, 9000, 10].map(|length| file(&vec![1; length])).into();
        let targets = files.iter().map(|(_, from)| Target::new(from.clone(), String::new())).collect();
        let mut batches = read(targets, 4096, Arc::default());
        let mut lengths = Vec::new();
        while let Some(batch) = batches.recv().await {
            lengths.push(batch.pieces.iter().map(|piece| piece.bytes.len()).collect::<Vec<_>>());
        }
        assert_eq!(lengths, [vec![10, 10], vec![4096], vec![4096], vec![808], vec![10]]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_fails_by_its_name() {
        let (_, target) = cut(From::File("/nonexistent/file".into()), 4096).await;
        let error = target.state().failed.take().unwrap().to_string();
        assert!(error.starts_with("cannot read /nonexistent/file: No such file"), "{error}");
    }
}
