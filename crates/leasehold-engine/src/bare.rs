//! The disk with no store on top: O_DIRECT writes through io_uring, from the frames of an arena or from the heap. What benches
//! compare a store with: as much memory, the same system calls, and nothing else.

use crate::arena::Arena;
use crate::buffer::{ALIGNMENT, Buffer};
use io_uring::{IoUring, opcode, types};
use leasehold_core::ids::FrameId;
use leasehold_core::range::{BLOCK_BYTES, Run};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// What makes the bytes durable.
    pub flush: Flush,
    /// Whether the file's blocks are allocated (`fallocate`) before the first write.
    pub allocate: bool,
    /// The most bytes in one write.
    pub piece: usize,
}

/// What makes the bytes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Each write by itself (`RWF_DSYNC`).
    Each,
    /// One `fdatasync` at the end.
    AtTheEnd,
}

/// A new file that is written in chunks, many at once. One thread does it all.
pub struct BareFile {
    /// Before the memory, whose pages it has pinned: fields drop in order.
    ring: IoUring,
    file: File,
    how: How,
    chunk: usize,
    chunks: Vec<Chunk>,
    memory: BareMemory,
}

/// What the chunks lie in.
pub enum BareMemory {
    /// The frames of an arena, registered with the ring.
    Arena(Arc<Arena>),
    /// Buffers of one chunk each, which the kernel pins for each write.
    Heap(Vec<Buffer>),
}

impl BareMemory {
    /// `count` buffers of `chunk` bytes.
    #[must_use]
    pub fn heap(count: usize, chunk: usize) -> BareMemory {
        BareMemory::Heap((0..count).map(|_| Buffer::zeroed(chunk)).collect())
    }

    fn count(&self, chunk: usize) -> usize {
        match self {
            BareMemory::Arena(arena) => arena.disk_view().1 / chunk,
            BareMemory::Heap(buffers) => buffers.len(),
        }
    }

    fn bytes_mut(&mut self, slot: usize, chunk: usize) -> &mut [u8] {
        match self {
            BareMemory::Arena(arena) => {
                let frames = u32::try_from(chunk as u64 / BLOCK_BYTES).expect("a chunk fits the arena");
                let first = FrameId(u32::try_from(slot).expect("few") * frames);
                // SAFETY: the arena is ours by the caller's word, and the borrow of `self` keeps a second reference from
                // being made; that no write of the chunk is under way is asserted by whoever calls this.
                unsafe { arena.bytes_mut(Run { first, frames }) }
            }
            BareMemory::Heap(buffers) => &mut buffers[slot][..chunk],
        }
    }
}

/// Who has a chunk of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Free,
    /// The caller fills it.
    Taken,
    /// So many writes of it are under way.
    Writing(u32),
}

impl BareFile {
    /// A file of `bytes` bytes at `path`, written from `memory` in chunks of `chunk` bytes.
    ///
    /// # Errors
    /// Those of the system calls.
    ///
    /// # Panics
    /// If the sizes are no multiples of the block size.
    pub fn create(
        path: &Path,
        bytes: u64,
        chunk: usize,
        how: How,
        memory: BareMemory,
    ) -> io::Result<BareFile> {
        assert!(chunk.is_multiple_of(ALIGNMENT) && how.piece.is_multiple_of(ALIGNMENT) && how.piece > 0);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(path)?;
        if how.allocate {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        } else {
            file.set_len(bytes)?;
        }
        let count = memory.count(chunk);
        let pieces = chunk.div_ceil(how.piece);
        let entries = u32::try_from(count * pieces).expect("few").next_power_of_two();
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(entries)?;
        if let BareMemory::Arena(arena) = &memory {
            let (address, length) = arena.disk_view();
            let view = [libc::iovec { iov_base: address.as_ptr().cast(), iov_len: length }];
            // SAFETY: the arena outlives the ring: this struct drops the ring first.
            unsafe { ring.submitter().register_buffers(&view)? };
        }
        Ok(BareFile { ring, file, how, chunk, chunks: vec![Chunk::Free; count], memory })
    }

    /// Gives a chunk of memory to fill and [`BareFile::write`]; waits until one is free.
    ///
    /// # Errors
    /// Of a write that was under way.
    pub fn take(&mut self) -> io::Result<usize> {
        loop {
            if let Some(slot) = self.chunks.iter().position(|chunk| *chunk == Chunk::Free) {
                self.chunks[slot] = Chunk::Taken;
                return Ok(slot);
            }
            self.wait()?;
        }
    }

    /// The memory of a chunk that was taken.
    ///
    /// # Panics
    /// If it was not.
    #[must_use]
    pub fn memory(&mut self, slot: usize) -> &mut [u8] {
        assert_eq!(self.chunks[slot], Chunk::Taken, "only a chunk that was taken may be filled");
        self.memory.bytes_mut(slot, self.chunk)
    }

    /// Begins to write the first `length` bytes of a chunk that was taken.
    ///
    /// # Errors
    /// Those of submitting.
    ///
    /// # Panics
    /// If it was not taken, or `length` is no multiple of 4096.
    pub fn write(&mut self, slot: usize, offset: u64, length: usize) -> io::Result<()> {
        let memory = self.memory(slot);
        assert!(length.is_multiple_of(ALIGNMENT) && length <= memory.len());
        let base = memory.as_ptr();
        let flags = if self.how.flush == Flush::Each { libc::RWF_DSYNC } else { 0 };
        let mut pieces = 0;
        for start in (0..length).step_by(self.how.piece) {
            let piece = self.how.piece.min(length - start);
            // SAFETY: `start` is within the chunk.
            let from = unsafe { base.add(start) };
            let (fd, offset) = (types::Fd(self.file.as_raw_fd()), offset + start as u64);
            let entry = match self.memory {
                BareMemory::Arena(_) => {
                    opcode::WriteFixed::new(fd, from, piece as u32, 0).offset(offset).rw_flags(flags).build()
                }
                BareMemory::Heap(_) => {
                    opcode::Write::new(fd, from, piece as u32).offset(offset).rw_flags(flags).build()
                }
            };
            let entry = entry.user_data((slot as u64) << 32 | piece as u64);
            // SAFETY: the chunk is not touched until its writes are over; the file lives as long as the ring.
            unsafe { self.ring.submission().push(&entry) }.expect("the queue has room for every piece");
            pieces += 1;
        }
        self.chunks[slot] = Chunk::Writing(pieces);
        self.ring.submit()?;
        Ok(())
    }

    /// Waits for some writes to end.
    fn wait(&mut self) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        let mut outcome = Ok(());
        for completion in self.ring.completion() {
            let (slot, piece) = ((completion.user_data() >> 32) as usize, completion.user_data() as u32);
            self.chunks[slot] = match self.chunks[slot] {
                Chunk::Writing(1) => Chunk::Free,
                Chunk::Writing(more) => Chunk::Writing(more - 1),
                Chunk::Free | Chunk::Taken => unreachable!("a write ends once"),
            };
            match u32::try_from(completion.result()) {
                Err(_) => outcome = Err(io::Error::from_raw_os_error(-completion.result())),
                Ok(moved) if moved != piece => outcome = Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
            }
        }
        outcome
    }

    fn busy(&self) -> bool {
        self.chunks.iter().any(|chunk| matches!(chunk, Chunk::Writing(_)))
    }

    /// Returns once everything is durable, and gives the memory back.
    ///
    /// # Errors
    /// Of a write, or of the flush.
    pub fn finish(mut self) -> io::Result<BareMemory> {
        while self.busy() {
            self.wait()?;
        }
        self.file.sync_data()?;
        Ok(std::mem::replace(&mut self.memory, BareMemory::Heap(Vec::new())))
    }
}

impl Drop for BareFile {
    /// After an error, too, the kernel must be done with the arena before somebody else uses it.
    fn drop(&mut self) {
        while self.busy() {
            // What failed was told to whoever asked; here only the end matters.
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Pages;

    #[test]
    fn what_is_written_in_chunks_is_in_the_file_whatever_way_it_is_flushed() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let chunk = 16 << 10;
        for (flush, allocate, heap) in [(Flush::Each, false, false), (Flush::AtTheEnd, true, true)] {
            let how = How { flush, allocate, piece: 8 << 10 };
            let arena = || Arena::new(2 * chunk as u64, Pages::Normal).unwrap();
            let memory = if heap { BareMemory::heap(2, chunk) } else { BareMemory::Arena(arena()) };
            let path = directory.path().join("file");
            let mut file = BareFile::create(&path, 5 * chunk as u64, chunk, how, memory).unwrap();
            for index in 0..5u8 {
                let slot = file.take().unwrap();
                file.memory(slot).fill(index + 1);
                file.write(slot, u64::from(index) * chunk as u64, chunk).unwrap();
            }
            file.finish().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 5 * chunk);
            assert!(bytes.iter().enumerate().all(|(at, byte)| *byte as usize == at / chunk + 1));
        }
    }
}
