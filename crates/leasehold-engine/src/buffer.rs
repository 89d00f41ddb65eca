//! Memory of our own that O_DIRECT accepts.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What O_DIRECT wants of addresses, offsets and lengths, on every device that we know.
pub(crate) const ALIGNMENT: usize = 4096;

/// Bytes at an address that O_DIRECT accepts; their number is a multiple of 4096.
#[derive(Debug)]
pub struct Buffer {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer owns its memory, as a boxed slice does.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// At least `length` zero bytes, rounded up.
    pub(crate) fn zeroed(length: usize) -> Buffer {
        let length = length.max(1).next_multiple_of(ALIGNMENT);
        let layout = Buffer::layout(length);
        // SAFETY: the layout is not empty.
        let address = unsafe { alloc_zeroed(layout) };
        Buffer { address: NonNull::new(address).unwrap_or_else(|| handle_alloc_error(layout)), length }
    }

    /// A copy of `bytes`, with zeros up to the next multiple of 4096.
    pub(crate) fn of(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address
    }

    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length, ALIGNMENT).expect("lengths are far below the address space")
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated with this length, initialised, and ours.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout, and not used any more.
        unsafe { dealloc(self.address.as_ptr(), Buffer::layout(self.length)) }
    }
}
