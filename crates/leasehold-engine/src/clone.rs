//! `Change::Clone`: a copy of a file, whole and durable with a sidecar of its own, that has no name yet.
//!
//! Nothing that exists is changed, so nothing is recorded: a crash leaves a staged file, which the next start removes.

use crate::attributes::raw_xattrs;
use crate::block_map::{MapRun, MapState};
use crate::buffer::Buffer;
use crate::change::ChangeFailed;
use crate::checksum::crc32c;
use crate::disk::{self, DiskFile};
use crate::file::{JudgeError, StoreFile};
use crate::sidecar::{Header, PAGE};
use crate::sparse::next_data;
use crate::staging::Staged;
use crate::storage::Inner;
use crate::sums::page_offset;
use crate::sync::MutexGuard;
use leasehold_core::range::{BLOCK_BYTES, BlockRange};
use rustix::fs::{Mode, XattrFlags, fchmod, fsetxattr, fstat};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Blocks whose states are looked at together.
const MAP_BLOCKS: u64 = 1 << 16;
/// Blocks that are copied together.
const COPY_BLOCKS: u64 = 512;
/// Sidecar pages that are written together.
const PAGES_TOGETHER: usize = 512;

impl Inner {
    pub(crate) fn clone_file(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        staged: Staged,
    ) -> Result<(), ChangeFailed> {
        self.try_clone(file, staged).inspect_err(|_| {
            self.copies().remove(&staged);
            self.discard(staged);
        })
    }

    /// Clones that share no block with their source, until somebody has asked.
    pub(crate) fn copies(&self) -> MutexGuard<'_, HashSet<Staged>> {
        self.copies.lock().expect("no panic while held")
    }

    fn try_clone(self: &Arc<Inner>, file: &Arc<StoreFile>, staged: Staged) -> Result<(), ChangeFailed> {
        self.trim(file)?;
        let copy = File::from(self.store.create_staged(staged)?);
        let copy = Arc::new(DiskFile { file: copy, name: format!(".leasehold/staging/{staged}") });
        match self.disk.clone_file(&file.disk, &copy) {
            Err(error) if cannot_share(&error) => {
                tracing::info!(path = %file.path(), %error, "the filesystem cannot share blocks: the clone is a copy");
                self.copies().insert(staged);
                self.copy_blocks(file, &copy)?;
            }
            shared => shared?,
        }
        let header = file.sums().header;
        self.disk.truncate(&copy, header.size)?;
        keep_attributes(&file.disk.file, &copy.file).map_err(io::Error::from)?;
        self.clone_sums(file, Header { identity: self.disk.identify(copy.file.as_fd())?, ..header })?;
        Ok(self.disk.sync(&copy)?)
    }

    /// Copies what is not a hole. What was committed must still be there; of what is torn or unknown, the bytes are taken as
    /// they are.
    fn copy_blocks(self: &Arc<Inner>, file: &Arc<StoreFile>, to: &Arc<DiskFile>) -> Result<(), ChangeFailed> {
        let end = file.sums().header.size.div_ceil(BLOCK_BYTES);
        for first in (0..end).step_by(MAP_BLOCKS as usize) {
            let blocks = BlockRange::new(first, end.min(first + MAP_BLOCKS)).expect("not empty");
            for run in self.block_map(file, blocks).map_err(JudgeError::from)? {
                self.copy_run(file, to, &run)?;
            }
        }
        Ok(())
    }

    fn copy_run(
        self: &Arc<Inner>,
        file: &Arc<StoreFile>,
        to: &Arc<DiskFile>,
        run: &MapRun,
    ) -> Result<(), ChangeFailed> {
        let known = match &run.state {
            MapState::Hole => return Ok(()),
            MapState::Known(_) => true,
            MapState::Unknown | MapState::Torn => false,
        };
        let mut next = Some(run.blocks);
        while let Some(rest) = next {
            // Others leave holes too; of what is known, every block counts.
            let data = if known { Some(rest) } else { next_data(&file.disk.file, rest)? };
            let Some(data) = data else { return Ok(()) };
            let (first, end) = (data.start(), data.end().min(data.start() + COPY_BLOCKS));
            let (offset, length) = (first * BLOCK_BYTES, ((end - first) * BLOCK_BYTES) as usize);
            let bytes = disk::read(&*self.disk, &file.disk, offset, length)?;
            if known {
                let mut sums = file.sums();
                for (block, bytes) in (first..).zip(bytes.as_chunks::<PAGE>().0) {
                    self.judge(file, &mut sums, block, crc32c(bytes))?;
                }
            }
            disk::write(&*self.disk, to, offset, bytes)?;
            next = BlockRange::new(end, run.blocks.end());
        }
        Ok(())
    }

    /// Writes the sidecar of the clone, whose header this is.
    fn clone_sums(&self, file: &StoreFile, header: Header) -> Result<(), ChangeFailed> {
        let sidecar = self.store.create_sidecar(header.identity)?;
        // Left over from a file that was this one before, where a filesystem tells them not apart.
        self.disk.truncate(&sidecar, 0)?;
        disk::write(&*self.disk, &sidecar, page_offset(None), Buffer::of(&header.encode()))?;
        let mut next = Some(0);
        while let Some(from) = next {
            let written = file.sums().written_pages(&*self.disk, from, PAGES_TOGETHER);
            let written = written.map_err(JudgeError::from)?;
            for together in written.pages.chunk_by(|a, b| a.0 + 1 == b.0) {
                let bytes = together.iter().flat_map(|(_, page)| page.clone().of(&header).encode());
                let bytes = Buffer::of(&bytes.collect::<Vec<u8>>());
                disk::write(&*self.disk, &sidecar, page_offset(Some(together[0].0)), bytes)?;
            }
            next = written.next;
        }
        Ok(self.disk.sync(&sidecar)?)
    }
}

/// Whether the filesystem has no such operation, or not for these two files. (ioctl_ficlone(2))
fn cannot_share(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EXDEV | libc::EINVAL | libc::ENOTTY | libc::ENOSYS)
    )
}

/// Gives the copy the permission bits and the `user.*` attributes of the file.
fn keep_attributes(from: &File, to: &File) -> rustix::io::Result<()> {
    for (name, value) in raw_xattrs(from)? {
        fsetxattr(to, &*name, &value, XattrFlags::empty())?;
    }
    fchmod(to, Mode::from_raw_mode(fstat(from)?.st_mode & 0o777))
}
