//! The memory that the network fills and the disk is fed from.
//!
//! One memfd, mapped twice: the fabric places bytes through the network's view, the disk reads and fills the disk's
//! view. Both show the same frames; two mappings, so that what the fabric does to its own (register, protect, replace)
//! never disturbs the buffers that io_uring has pinned.
//!
//! Invariant: the two mappings cover `frames * 4096` bytes each and live as long as the arena, at fixed addresses.
//!
//! What the frames sum up to is kept beside them ([`Arena::sums`]): whoever writes to a frame through the arena makes it forget.
//!
//! Huge pages gave +25 % and cheaper fences when measured; they are taken where the host has them, or lets us reserve
//! them. The arena never falls back silently: [`Arena::notes`] says what it got.

use leasehold_core::range::{BLOCK_BYTES, Run};
use leasehold_fabric::sums::BlockSums;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::{fs, io};

const HUGE_BYTES: u64 = 2 << 20;
const HUGE_PAGES_WANTED: &str = "/proc/sys/vm/nr_hugepages";

/// Which pages to build an arena of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Huge ones where the host has enough free, else normal ones. The host's settings are left alone.
    #[default]
    Auto,
    /// 4 KiB pages.
    Normal,
    /// 2 MiB pages, or fail. What the host has not free is added to its pool while the arena lives, if we may: a server
    /// that is killed leaves them there, for the next one to use.
    Huge,
}

/// See the module.
#[derive(Debug)]
pub struct Arena {
    network: Mapping,
    disk: Mapping,
    sums: Arc<BlockSums>,
    frames: u32,
    huge: bool,
    notes: Vec<String>,
    /// Given back after the mappings are gone: fields drop in order.
    _reserved: Option<Reservation>,
}

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum ArenaError {
    /// Less than one frame, or more than frame numbers count.
    #[error("an arena of {bytes} bytes is not possible; ask for at least 4096 bytes and at most 16 TiB")]
    Size { bytes: u64 },
    /// Huge pages were demanded.
    #[error(
        "no {pages} huge pages of 2 MiB for an arena of {bytes} bytes; reserve them (sysctl vm.nr_hugepages={pages}), \
         or do not insist on huge pages"
    )]
    NoHugePages {
        bytes: u64,
        pages: u64,
        #[source]
        source: io::Error,
    },
    /// Out of memory or address space.
    #[error("cannot map an arena of {bytes} bytes; serve with a smaller arena, or raise the memory limit")]
    Memory {
        bytes: u64,
        #[source]
        source: io::Error,
    },
}

impl Arena {
    /// An arena of `bytes` bytes, rounded up to whole pages of the kind taken.
    ///
    /// # Errors
    ///
    /// [`ArenaError`], which names the remedy.
    pub fn new(bytes: u64, pages: Pages) -> Result<Arc<Arena>, ArenaError> {
        if bytes < BLOCK_BYTES
            || bytes.div_ceil(HUGE_BYTES) * (HUGE_BYTES / BLOCK_BYTES) > u64::from(u32::MAX)
        {
            return Err(ArenaError::Size { bytes });
        }
        let mut notes = Vec::new();
        if pages != Pages::Normal {
            let wanted = bytes.div_ceil(HUGE_BYTES);
            match Arena::huge(wanted, pages == Pages::Huge) {
                Ok(arena) => return Ok(Arc::new(arena)),
                Err(source) if pages == Pages::Huge => {
                    return Err(ArenaError::NoHugePages { bytes, pages: wanted, source });
                }
                Err(source) => notes.push(format!(
                    "the arena has 4 KiB pages, since {wanted} huge pages are not free ({source}); \
                     sysctl vm.nr_hugepages={wanted}, or --pages huge, makes it faster"
                )),
            }
        }
        let length = bytes.next_multiple_of(BLOCK_BYTES);
        let flags = MemfdFlags::CLOEXEC;
        let arena =
            Arena::map(length, flags, notes).map_err(|source| ArenaError::Memory { bytes, source })?;
        Ok(Arc::new(arena))
    }

    fn huge(wanted: u64, may_reserve: bool) -> io::Result<Arena> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let length = wanted * HUGE_BYTES;
        match Arena::map(length, flags, Vec::new()) {
            Err(_) if may_reserve => {}
            mapped => return mapped,
        }
        let reserved = Reservation::new(wanted)?;
        let notes = vec![format!("reserved {wanted} huge pages of 2 MiB for the arena")];
        let arena = Arena::map(length, flags, notes)?;
        Ok(Arena { _reserved: Some(reserved), ..arena })
    }

    fn map(length: u64, flags: MemfdFlags, notes: Vec<String>) -> io::Result<Arena> {
        let huge = flags.contains(MemfdFlags::HUGETLB);
        let memory = memfd_create("leasehold-arena", flags)?;
        ftruncate(&memory, length)?;
        let length = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let network = Mapping::new(memory.as_fd(), length)?;
        let disk = Mapping::new(memory.as_fd(), length)?;
        let frames = u32::try_from(length as u64 / BLOCK_BYTES).expect("the caller bounds the size");
        let sums = Arc::new(BlockSums::new(network.address, frames as usize));
        Ok(Arena { network, disk, sums, frames, huge, notes, _reserved: None })
    }

    /// How many frames there are.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Whether the frames lie in huge pages.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// What people should know about the memory that was got.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The run as the fabric sees it: `run.bytes()` bytes that a peer may be writing, so never a slice.
    ///
    /// # Panics
    ///
    /// If the run is not within the arena.
    #[must_use]
    pub fn network(&self, run: Run) -> NonNull<u8> {
        self.network.at(run)
    }

    /// The same bytes as the disk sees them.
    ///
    /// # Panics
    ///
    /// If the run is not within the arena.
    #[must_use]
    pub fn disk(&self, run: Run) -> NonNull<u8> {
        self.disk.at(run)
    }

    /// What the frames sum up to, by their numbers.
    #[must_use]
    pub fn sums(&self) -> &Arc<BlockSums> {
        &self.sums
    }

    /// The frames are about to change.
    pub(crate) fn forget_sums(&self, run: Run) {
        let first = run.first.0 as usize;
        self.sums.forget(first..first + run.frames as usize);
    }

    /// The whole of the disk's view, for registering it.
    #[must_use]
    pub fn disk_view(&self) -> (NonNull<u8>, usize) {
        (self.disk.address, self.disk.length)
    }

    /// The bytes of a run that no key can reach, for reading.
    ///
    /// # Safety
    ///
    /// Nothing writes the run while the slice lives: no key is live on it (it is fenced, or was never exposed), and
    /// no load into it is under way. The core's frames have one owner at a time; it upholds this by the order of its
    /// outputs.
    #[must_use]
    pub unsafe fn bytes(&self, run: Run) -> &[u8] {
        // SAFETY: in bounds by `disk`, mapped readable while `self` lives; that nothing writes it is the caller's.
        unsafe { std::slice::from_raw_parts(self.disk(run).as_ptr(), run.bytes() as usize) }
    }

    /// The bytes of a run that nobody else can reach, for writing.
    ///
    /// # Safety
    ///
    /// As for [`Arena::bytes`], and nothing else reads the run either.
    #[must_use]
    #[expect(clippy::mut_from_ref, reason = "frames have one owner at a time, which the caller upholds")]
    pub unsafe fn bytes_mut(&self, run: Run) -> &mut [u8] {
        self.forget_sums(run);
        // SAFETY: in bounds by `disk`, mapped writable while `self` lives; that the run is ours alone is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.disk(run).as_ptr(), run.bytes() as usize) }
    }

    /// Copies frames that a peer may be writing: each eight bytes of the copy stood there at some moment. Through the
    /// disk's view, which a fence of the key leaves alone.
    ///
    /// # Safety
    ///
    /// `into` is as for [`Arena::bytes_mut`]; of `from` nothing is asked.
    ///
    /// # Panics
    ///
    /// If the runs differ in length, or overlap.
    pub unsafe fn copy_live(&self, from: Run, into: Run) {
        let apart = from.first.0 + from.frames <= into.first.0 || into.first.0 + into.frames <= from.first.0;
        assert!(from.frames == into.frames && apart, "cannot copy {from:?} to {into:?}");
        self.forget_sums(into);
        let (source, target) = (self.disk(from).cast::<u64>(), self.disk(into).cast::<u64>());
        for index in 0..from.bytes() as usize / 8 {
            // SAFETY: both are in bounds by `disk`, and aligned to 4096. The source may change under us, so it is read by
            // volatile loads, never as a slice; the target is ours by the caller's word.
            unsafe { target.add(index).write(source.add(index).read_volatile()) };
        }
    }
}

/// Huge pages that were added to the host's pool for this arena, until drop.
#[derive(Debug)]
struct Reservation {
    pages: u64,
}

impl Reservation {
    fn new(pages: u64) -> io::Result<Reservation> {
        let before = Reservation::pool()?;
        fs::write(HUGE_PAGES_WANTED, (before + pages).to_string())?;
        // The kernel adds what it can find and says nothing about the rest.
        let reservation = Reservation { pages: Reservation::pool()?.saturating_sub(before) };
        if reservation.pages < pages { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(reservation) }
    }

    fn pool() -> io::Result<u64> {
        let text = fs::read_to_string(HUGE_PAGES_WANTED)?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // The memory is better used elsewhere, but nothing depends on it.
        if let Ok(pool) = Reservation::pool() {
            let _ = fs::write(HUGE_PAGES_WANTED, pool.saturating_sub(self.pages).to_string());
        }
    }
}

/// One shared, writable mapping.
#[derive(Debug)]
struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is an address range that lives until drop; it may be used from any thread. Access to the bytes is
// governed where a pointer into them is used.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` only gives out addresses.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(memory: BorrowedFd<'_>, length: usize) -> io::Result<Mapping> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory that exists.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                0,
            )?
        };
        let address = NonNull::new(address.cast()).expect("mmap never answers with null");
        Ok(Mapping { address, length })
    }

    fn at(&self, run: Run) -> NonNull<u8> {
        let end = run.arena_offset() + run.bytes();
        assert!(end <= self.length as u64, "{run:?} is past the arena's {} bytes", self.length);
        // SAFETY: the offset is within the mapping, as asserted.
        unsafe { self.address.add(run.arena_offset() as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever uses addresses of it holds the arena.
        if let Err(error) = unsafe { munmap(self.address.as_ptr().cast(), self.length) } {
            tracing::error!(%error, length = self.length, "cannot unmap the arena");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leasehold_core::ids::FrameId;

    #[test]
    fn both_views_show_the_same_frames() {
        let arena = Arena::new(1 << 20, Pages::Normal).unwrap();
        assert_eq!(arena.frames(), 256);
        let run = Run { first: FrameId(3), frames: 2 };
        // SAFETY: both pointers are valid for the run's 8192 bytes, and this thread alone uses them.
        unsafe {
            arena.network(run).as_ptr().add(5000).write(7);
            assert_eq!(arena.disk(run).as_ptr().add(5000).read(), 7);
            assert_eq!(arena.bytes(run)[5000], 7);
        }
        assert_ne!(arena.network(run), arena.disk(run));
    }

    #[test]
    #[should_panic(expected = "past the arena")]
    fn a_run_past_the_arena_is_a_bug_of_ours() {
        let arena = Arena::new(8192, Pages::Normal).unwrap();
        let _ = arena.disk(Run { first: FrameId(1), frames: 2 });
    }

    #[test]
    fn an_impossible_size_is_refused() {
        assert!(matches!(Arena::new(0, Pages::Auto), Err(ArenaError::Size { .. })));
        assert!(matches!(Arena::new(u64::MAX / 4, Pages::Auto), Err(ArenaError::Size { .. })));
    }

    #[test]
    fn without_huge_pages_auto_says_so_or_has_them() {
        let arena = Arena::new(2 << 20, Pages::Auto).unwrap();
        assert!(arena.is_huge() || arena.notes().iter().any(|note| note.contains("nr_hugepages")));
    }
}
