//! Memory that the kernel is told to write into, of whatever kind.

use super::pattern::PAGE_BYTES;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

/// A mapping. It can be read and written, but only the kernel does: nothing here makes a reference into it, since it
/// changes under our hands, and a truncated file takes its pages away.
pub(super) struct Mapping {
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: it is an address and a length; memory is only ever reached through system calls, which any thread may make.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method but Drop changes anything here.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Of a file, shared with everybody: what is written there is the file's content.
    pub(super) fn shared(file: &File, bytes: usize) -> io::Result<Mapping> {
        Mapping::of(file, bytes, MapFlags::SHARED)
    }

    /// Of a file, where the first write to a page makes a copy of it.
    pub(super) fn private(file: &File, bytes: usize) -> io::Result<Mapping> {
        Mapping::of(file, bytes, MapFlags::PRIVATE)
    }

    /// Of memory that has a file descriptor.
    pub(super) fn memfd(bytes: usize) -> io::Result<Mapping> {
        let file: File = memfd_create("leasehold-probe", MemfdFlags::CLOEXEC)?.into();
        ftruncate(&file, bytes as u64)?;
        Mapping::shared(&file, bytes)
    }

    /// Of no file.
    pub(super) fn anonymous(bytes: usize) -> io::Result<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: at an address that the kernel chooses, so nothing else is there.
        let address = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) }?;
        Ok(Mapping { address, bytes })
    }

    /// Of a file, shared, where only reading is allowed.
    pub(super) fn read_only(file: &File, bytes: usize) -> io::Result<Mapping> {
        Mapping::protected(file, bytes, MapFlags::SHARED, ProtFlags::READ)
    }

    fn of(file: &File, bytes: usize, flags: MapFlags) -> io::Result<Mapping> {
        Mapping::protected(file, bytes, flags, ProtFlags::READ | ProtFlags::WRITE)
    }

    fn protected(file: &File, bytes: usize, flags: MapFlags, protection: ProtFlags) -> io::Result<Mapping> {
        // SAFETY: at an address that the kernel chooses, so nothing else is there.
        let address = unsafe { mmap(ptr::null_mut(), bytes, protection, flags, file, 0) }?;
        Ok(Mapping { address, bytes })
    }

    /// For a system call that pins the memory.
    pub(super) fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.address, iov_len: self.bytes }
    }

    /// Reads from a file into a part of the mapping: the pages are pinned until the bytes are there.
    pub(super) fn fill(&self, at: usize, bytes: usize, file: &File, offset: u64) -> io::Result<usize> {
        assert!(at + bytes <= self.bytes, "a DMA past the end of the mapping");
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: within the mapping, which lives as long as `self`, and to which there are no references.
        let read = unsafe { libc::pread(file.as_raw_fd(), self.address.byte_add(at), bytes, offset) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Writes a part of the mapping to a file.
    pub(super) fn write_to(&self, at: usize, bytes: usize, file: &File, offset: u64) -> io::Result<usize> {
        assert!(at + bytes <= self.bytes, "a write past the end of the mapping");
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: as in `fill`.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), self.address.byte_add(at), bytes, offset) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Writes a word at the start of each sector, as somebody does who does not care what else uses the memory. Only for
    /// memory of no file: a truncated file's would be a SIGBUS.
    pub(super) fn scribble(&self, word: u32) {
        for at in (0..self.bytes).step_by(512) {
            // SAFETY: within the mapping, aligned; volatile, as a device or the kernel may read it meanwhile.
            unsafe { self.address.byte_add(at).cast::<u32>().write_volatile(word) };
        }
    }

    /// Writes bytes, as a program's own code does. The memory must be of no file, or of one that nobody cuts meanwhile.
    pub(super) fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.bytes, "a store past the end of the mapping");
        // SAFETY: within the mapping, to which there are no references.
        unsafe {
            self.address.byte_add(at).cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }

    /// Reads bytes, on the same condition.
    pub(super) fn load(&self, at: usize, bytes: usize) -> Vec<u8> {
        assert!(at + bytes <= self.bytes, "a load past the end of the mapping");
        let mut copy = vec![0; bytes];
        // SAFETY: as above.
        unsafe { self.address.byte_add(at).cast::<u8>().copy_to_nonoverlapping(copy.as_mut_ptr(), bytes) };
        copy
    }

    /// Makes every page dirty without a change of its content: a byte of each is replaced by itself, atomically, on the
    /// same condition. An addition of nothing would not do: compilers make a fence and a load of it, and write nothing.
    pub(super) fn touch(&self) {
        for at in (0..self.bytes).step_by(PAGE_BYTES) {
            // SAFETY: within the mapping; atomic, as a device may write there meanwhile.
            let byte = unsafe { AtomicU8::from_ptr(self.address.byte_add(at).cast()) };
            let mut now = byte.load(Ordering::Relaxed);
            while let Err(other) = byte.compare_exchange(now, now, Ordering::SeqCst, Ordering::Relaxed) {
                now = other;
            }
        }
    }

    /// Makes every page present, and writable as if it had just been written: `MADV_POPULATE_WRITE`.
    pub(super) fn populate(&self) -> io::Result<()> {
        // SAFETY: the mapping, of which no content changes.
        unsafe { rustix::mm::madvise(self.address, self.bytes, rustix::mm::Advice::LinuxPopulateWrite) }?;
        Ok(())
    }

    /// Waits until what was written through the mapping is in the file: msync(2).
    pub(super) fn sync(&self) -> io::Result<()> {
        // SAFETY: the mapping, which lives as long as `self`.
        unsafe { rustix::mm::msync(self.address, self.bytes, rustix::mm::MsyncFlags::SYNC) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our mapping, and nobody has a reference into it. It fails only for what is no mapping.
        let _ = unsafe { munmap(self.address, self.bytes) };
    }
}
