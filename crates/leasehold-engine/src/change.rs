//! `Perform` and `Flush`: truncates, punches, zeros and removals, and what an fsync owes beyond data. (`collapse.rs`,
//! `clone.rs` and `adopt.rs` have the others.)
//!
//! A change is recorded durably before it touches the file, with its boundary blocks as they will be, so that recovery can
//! do it again: record, change, flush, sums, answer.
//!
//! A removal may have waited long for its leases: what its name stands for is looked at again before anything is touched.

use crate::checksum::crc32c;
use crate::collapse::CollapseRefused;
use crate::disk::{self, DiskFile};
use crate::file::{JudgeError, StoreFile};
use crate::log::Entry;
use crate::path::StorePath;
use crate::record::{Body, ChangeBody, SIZE_STAYS};
use crate::sidecar::{BlockState, PAGE};
use crate::staging::Staged;
use crate::storage::{Detail, Inner};
use crate::sums::Sums;
use crate::sync::mpsc;
use crate::writeback::fault_of;
use leasehold_core::ids::{FileId, RequestId};
use leasehold_core::input::{Change, Fault, Input};
use leasehold_core::range::{BLOCK_BYTES, BlockRange, ByteRange};
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A boundary block as it will be: block, CRC, bytes.
type Image = (u64, u32, Box<[u8; PAGE]>);

/// Removals that nobody waits for are made durable together with those that come within this time.
const GATHER: Duration = Duration::from_millis(20);

/// Who takes the name of a file that is removed.
#[derive(Clone, Copy)]
enum Heir<'a> {
    /// The file of this name.
    Named(&'a StorePath),
    /// A file that has no name yet.
    Staged(Staged),
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeFailed {
    #[error(transparent)]
    Collapse(#[from] CollapseRefused),

    #[error("cannot write the write-ahead record: {0}")]
    Record(Arc<io::Error>),
    #[error(transparent)]
    Block(#[from] JudgeError),
    #[error(transparent)]
    System(#[from] io::Error),
    #[error(
        "{length} bytes are on disk of {size} that were committed, so that more would be taken out than was asked for; adopt \
         what is there (scrub --adopt), then retry"
    )]
    Short { length: u64, size: u64 },
    #[error("the name {path} {what}; look at it again, then retry")]
    Moved { path: StorePath, what: &'static str },
}

impl ChangeFailed {
    fn fault(&self) -> Fault {
        match self {
            ChangeFailed::Record(error) => fault_of(error),
            ChangeFailed::System(error) => fault_of(error),
            ChangeFailed::Block(error) => error.fault(),
            ChangeFailed::Collapse(_) => Fault::Io,
            ChangeFailed::Short { .. } => Fault::Checksum,
            ChangeFailed::Moved { .. } => Fault::Moved,
        }
    }
}

impl Inner {
    pub(crate) fn change(
        self: &Arc<Inner>,
        request: RequestId,
        file: FileId,
        change: Change,
        detail: &Detail,
    ) {
        let file = self.file(file);
        let result = match (change, detail) {
            (Change::Adopt { range }, Detail::None) => self.adopt(&file, range),
            (change, detail) => self.try_change(&file, change, detail).map(|()| None),
        };
        let result = result.map_err(|error| {
            tracing::error!(path = %file.path(), ?change, %error, "cannot change the file");
            error.fault()
        });
        self.answer(Input::Performed { request, result });
    }

    fn try_change(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        change: Change,
        detail: &Detail,
    ) -> Result<(), ChangeFailed> {
        match (change, detail) {
            (Change::Truncate { size }, Detail::None) => self.truncate(file, size),
            (Change::Punch { range }, Detail::None) => self.clear(file, range, false),
            (Change::Zero { range }, Detail::None) => self.clear(file, range, true),
            (Change::Remove, Detail::Unlink { path, durable: true }) => self.remove(file, path, None),
            (Change::Remove, Detail::Unlink { path, durable: false }) => {
                self.take_last_name(file, path, None)?;
                self.remove_soon(file);
                Ok(())
            }
            (Change::Collapse { range }, Detail::None) => self.collapse(file, range),
            (Change::Clone, Detail::Clone { staged }) => self.clone_file(file, *staged),
            (Change::Remove, Detail::RenameOver { from, to }) => {
                self.remove(file, to, Some(Heir::Named(from)))
            }
            (Change::Remove, Detail::PlaceOver { staged, to }) => {
                self.remove(file, to, Some(Heir::Staged(*staged)))
            }
            (change, detail) => panic!("{detail:?} makes no sense for {change:?}"),
        }
    }

    fn truncate(self: &Arc<Inner>, file: &Arc<StoreFile>, size: u64) -> Result<(), ChangeFailed> {
        let old = file.sums().header.size;
        let (hole, mut images) = (BlockRange::new(size.div_ceil(BLOCK_BYTES), u64::MAX), Vec::new());
        let shrinks = size < old.max(file.sums().recorded_size);
        if shrinks && !size.is_multiple_of(BLOCK_BYTES) {
            let block = size / BLOCK_BYTES;
            images.extend(self.zeroed_part(file, block, (size % BLOCK_BYTES) as usize..PAGE)?);
        }
        let body = ChangeBody { size, hole: hole.filter(|_| shrinks), images, allocated: false };
        self.recorded(file, Body::Change(body.clone()), |_| {
            self.disk.truncate(&file.disk, size)?;
            self.disk.sync(&file.disk)?;
            let mut sums = file.sums();
            sums.disk_size = size;
            // First, since it may fail: the core goes on with the old size then, and so do the checksums.
            self.apply(&mut sums, &body)?;
            sums.recorded_size = size;
            sums.set_size(size);
            Ok(())
        })?;
        if let Some(hole) = hole {
            self.drop_writes(file, hole);
        }
        Ok(())
    }

    /// A punch, or a zero, which is one that keeps the space `allocated`.
    fn clear(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        range: ByteRange,
        allocated: bool,
    ) -> Result<(), ChangeFailed> {
        // What is recorded counts: a write that failed, which the core has given up, may have left some of its bytes there.
        let size = file.sums().recorded_size;
        let Some(range) = ByteRange::new(range.start(), range.end().min(size)) else { return Ok(()) };
        // The file's last block is whole if all that it holds goes.
        let end = if range.end() == size { size.div_ceil(BLOCK_BYTES) } else { range.end() / BLOCK_BYTES };
        let hole = BlockRange::new(range.start().div_ceil(BLOCK_BYTES), end);
        let mut images: Vec<Image> = Vec::new();
        let blocks = range.blocks();
        for block in [blocks.start(), blocks.end() - 1] {
            let whole = hole.is_some_and(|hole| (hole.start()..hole.end()).contains(&block));
            if whole || images.iter().any(|(seen, ..)| *seen == block) {
                continue;
            }
            let start = block * BLOCK_BYTES;
            let (from, to) = (range.start().max(start) - start, range.end().min(start + BLOCK_BYTES) - start);
            images.extend(self.zeroed_part(file, block, from as usize..to as usize)?);
        }
        let body = ChangeBody { size: SIZE_STAYS, hole, images, allocated };
        self.recorded(file, Body::Change(body.clone()), |_| {
            if let Some(hole) = body.hole {
                self.clear_on_disk(&file.disk, hole, allocated)?;
            }
            for (block, _, image) in &body.images {
                let image = crate::buffer::Buffer::of(&image[..]);
                disk::write(&*self.disk, &file.disk, block * BLOCK_BYTES, image)?;
            }
            self.disk.sync(&file.disk)?;
            let mut sums = file.sums();
            // Images are whole blocks; so are zeros, where the filesystem has no such operation.
            sums.disk_size = sums.disk_size.max(range.blocks().end() * BLOCK_BYTES);
            self.apply(&mut sums, &body)
        })?;
        if let Some(hole) = hole {
            self.drop_writes(file, hole);
        }
        Ok(())
    }

    /// The block with some bytes zeroed; `None` if it holds nothing.
    fn zeroed_part(
        &self,
        file: &StoreFile,
        block: u64,
        part: std::ops::Range<usize>,
    ) -> Result<Option<Image>, JudgeError> {
        if file.sums().get(&*self.disk, block)? == BlockState::Hole {
            return Ok(None);
        }
        let mut bytes = self.committed_block(file, block, u64::MAX)?;
        bytes[part].fill(0);
        Ok(Some((block, crc32c(&bytes[..]), bytes)))
    }

    pub(crate) fn apply(&self, sums: &mut Sums, body: &ChangeBody) -> Result<(), ChangeFailed> {
        if let Some(hole) = body.hole {
            sums.clear(&*self.disk, hole).map_err(JudgeError::from)?;
        }
        for (block, crc, _) in &body.images {
            sums.set(&*self.disk, *block, BlockState::Known(*crc)).map_err(JudgeError::from)?;
        }
        Ok(())
    }

    /// Makes the blocks hold nothing on disk.
    pub(crate) fn clear_on_disk(
        &self,
        file: &DiskFile,
        blocks: BlockRange,
        allocated: bool,
    ) -> io::Result<()> {
        let (offset, length) = (blocks.start() * BLOCK_BYTES, blocks.len() * BLOCK_BYTES);
        if allocated { self.disk.zero(file, offset, length) } else { self.disk.punch(file, offset, length) }
    }

    /// Makes the record durable, then changes. `change` is given the record's sequence.
    pub(crate) fn recorded(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        body: Body,
        change: impl FnOnce(u64) -> Result<(), ChangeFailed>,
    ) -> Result<(), ChangeFailed> {
        let entry = {
            let mut sums = file.sums();
            self.mark_dirty(file);
            sums.writes += 1;
            // Whatever is recorded later may not be on disk before its record: this size may already be, and admit it.
            if let Body::Change(ChangeBody { size, .. }) = &body
                && *size != SIZE_STAYS
            {
                sums.recorded_size = sums.recorded_size.max(*size);
            }
            let (identity, marked) = (file.identity, sums.marked);
            Entry { identity, mark: file.mark(&sums), marked, body }
        };
        let (told, durable) = mpsc::channel();
        let appended = self.log.append(
            entry,
            Box::new(move |result| {
                // The receiver waits right below.
                let _ = told.send(result);
            }),
        );
        let result = match durable.recv().expect("the log answers every record") {
            Err(error) => Err(ChangeFailed::Record(error)),
            Ok(()) => {
                let mut sums = file.sums();
                sums.marked = sums.marked.max(appended.epoch);
                drop(sums);
                let changed = change(appended.sequence);
                // Again: a checkpoint may have taken the file for clean before the change.
                self.mark_dirty(file);
                changed
            }
        };
        match &result {
            Ok(()) => self.log.close(appended.sequence),
            Err(_) => self.log.cancel(file.identity, appended.sequence),
        }
        file.sums().write_over();
        result
    }

    /// The last name goes, to nobody or to the heir.
    fn remove(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        name: &StorePath,
        heir: Option<Heir<'_>>,
    ) -> Result<(), ChangeFailed> {
        self.take_last_name(file, name, heir)?;
        self.names.sync()?;
        Ok(self.removed(file)?)
    }

    fn take_last_name(
        &self,
        file: &StoreFile,
        name: &StorePath,
        heir: Option<Heir<'_>>,
    ) -> Result<(), ChangeFailed> {
        let _names = self.names.hold();
        let (directory, last) = match self.names.parent(&self.store, name) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(stands_for_nothing(name)),
            found => found.map_err(io::Error::from)?,
        };
        check_last_name(file, name, (&directory, last))?;
        match heir {
            None => {
                let flags = AtFlags::empty();
                self.names.unlink_from(directory, last, name, flags).map_err(io::Error::from)?;
            }
            Some(Heir::Named(heir)) => {
                self.check_heir(file, heir)?;
                self.names.rename(&self.store, heir, name, true).map_err(io::Error::from)?;
                self.moved(heir, name);
            }
            Some(Heir::Staged(staged)) => {
                self.names.place(&self.store, staged, name, true).map_err(io::Error::from)?;
            }
        }
        Ok(())
    }

    /// Makes the removal durable beside, with others that have come meanwhile. Until then the file is as any other: if the power
    /// goes, it may be there again.
    fn remove_soon(self: &Arc<Inner>, file: &Arc<StoreFile>) {
        let mut removals = self.removals();
        removals.push(file.clone());
        if removals.len() == 1 {
            self.work_beside(Inner::finish_removals);
        }
    }

    fn finish_removals(self: &Arc<Inner>) {
        let (_open, nothing) = mpsc::channel::<()>();
        let _ = nothing.recv_timeout(GATHER);
        let files = std::mem::take(&mut *self.removals());
        let synced = self.names.sync();
        for file in files {
            let removed = synced.as_ref().map_err(|error| error.to_string());
            let removed = removed.and_then(|()| self.removed(&file).map_err(|error| error.to_string()));
            if let Err(error) = removed {
                // They cost space, and do no harm: a scrub removes them.
                tracing::warn!(path = %file.path(), %error, "cannot remove the checksums of a file that is gone");
            }
            self.release(&file);
        }
    }

    /// That the last name is gone is durable: so goes what is known of the file.
    fn removed(self: &Arc<Inner>, file: &Arc<StoreFile>) -> io::Result<()> {
        if rustix::fs::fstat(&file.disk.file)?.st_nlink > 0 {
            return Ok(());
        }
        // Not before: until the removal is durable, recovery must search for the file, under whatever name is left of it.
        self.log.note(file.identity, Body::Remove, Box::new(|_| {}));
        if let Some(all) = BlockRange::new(0, u64::MAX) {
            self.drop_writes(file, all);
        }
        file.sums().removed = true;
        self.unmark_dirty(file);
        self.store.remove_sidecar(file.identity)
    }

    /// That what is to take the name is no directory, and another file.
    fn check_heir(&self, file: &StoreFile, heir: &StorePath) -> Result<(), ChangeFailed> {
        let moved = |what| ChangeFailed::Moved { path: heir.clone(), what };
        let found = match self.names.open(&self.store, heir, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(moved("stands for nothing any more")),
            other => other.map_err(io::Error::from)?,
        };
        let mode = rustix::fs::fstat(&found).map_err(io::Error::from)?.st_mode;
        if FileType::from_raw_mode(mode) == FileType::Directory {
            return Err(moved("is that of a directory"));
        }
        if self.disk.identify(found.as_fd())? == file.identity {
            return Err(moved("stands for the file that is to be removed"));
        }
        Ok(())
    }

    pub(crate) fn flush(self: &Arc<Inner>, request: RequestId, file: FileId) {
        let file = self.file(file);
        let result = self.try_flush(&file).map_err(|error| {
            tracing::error!(path = %file.path(), %error, "cannot flush the file's names");
            fault_of(&error)
        });
        self.answer(Input::Flushed { request, result });
    }

    /// Data, sums and size are durable already, by the record; names are not.
    fn try_flush(&self, file: &StoreFile) -> io::Result<()> {
        self.trim(file)?;
        self.sync_inode(file)?;
        self.names.sync()
    }

    /// Makes the inode durable if it is new, or got other attributes.
    pub(crate) fn sync_inode(&self, file: &StoreFile) -> io::Result<()> {
        let _one = file.syncing.lock().expect("no panic while held");
        if file.unsynced.swap(false, Ordering::AcqRel)
            && let Err(error) = self.disk.sync(&file.disk)
        {
            file.unsynced.store(true, Ordering::Release);
            return Err(error);
        }
        Ok(())
    }

    /// Sets the file's length on disk to the committed size, if no write is under way.
    pub(crate) fn trim(&self, file: &StoreFile) -> io::Result<()> {
        let mut sums = file.sums();
        if sums.writes == 0 && sums.disk_size > sums.header.size && !sums.removed {
            self.disk.truncate(&file.disk, sums.header.size)?;
            sums.disk_size = sums.header.size;
        }
        Ok(())
    }
}

/// That the name is the file's, and its only one: else the wrong file would go, or the core would take for gone what another name
/// still stands for. As long as the file is open, nothing else has its inode.
fn check_last_name(
    file: &StoreFile,
    name: &StorePath,
    (directory, last): (&OwnedFd, &str),
) -> Result<(), ChangeFailed> {
    let moved = |what| ChangeFailed::Moved { path: name.clone(), what };
    let found = match rustix::fs::statat(directory, last, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Err(stands_for_nothing(name)),
        found => found.map_err(io::Error::from)?,
    };
    let open = rustix::fs::fstat(&file.disk.file).map_err(io::Error::from)?;
    if (found.st_dev, found.st_ino) != (open.st_dev, open.st_ino) {
        return Err(moved("stands for something else by now"));
    }
    if found.st_nlink > 1 {
        return Err(moved("is not the last one of its file any more"));
    }
    Ok(())
}

fn stands_for_nothing(name: &StorePath) -> ChangeFailed {
    ChangeFailed::Moved { path: name.clone(), what: "stands for nothing any more" }
}
