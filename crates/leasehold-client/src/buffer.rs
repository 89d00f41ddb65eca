//! Memory that the server may write into while a read is under way: the one unsafe place of this crate.
//!
//! Invariant: while the memory of a buffer is exposed, [`Exposed`] owns the buffer and hands out no reference; the
//! buffer comes back only after the fence of its tag was proven.
#![expect(unsafe_code, reason = "a remote peer places bytes in this memory by address")]

use leasehold_fabric::{Endpoint, ExposeError, Region, RemoteAccess, Tag, Unproven};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// Own memory for reads: give it to [`crate::Lease::read`], get it back filled. Use it again to save the allocation.
pub struct Buffer {
    memory: Arc<Memory>,
}

struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Memory` owns its allocation alone, like a `Box<[u8]>`; access goes through `Buffer`, which follows the
// borrow rules, or through the fabric while no `Buffer` is within reach.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Buffer {
    /// `length` zeros, aligned to 4 KiB so that they can be written with `O_DIRECT`.
    ///
    /// # Panics
    /// If `length` is 0 or more than the address space.
    #[must_use]
    pub fn new(length: usize) -> Buffer {
        assert!(length > 0, "a buffer holds at least one byte");
        let layout = Layout::from_size_align(length, 4096).expect("a buffer fits the address space");
        // SAFETY: the layout's size is not 0, by the assertion above.
        let base =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Buffer { memory: Arc::new(Memory { base, layout }) }
    }

    /// How many bytes it holds; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> usize {
        self.memory.layout.size()
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the allocation is valid and initialised (zeroed) for its whole layout. A `Buffer` within reach is not
        // exposed (the module's invariant), so nobody writes while the reference lives.
        unsafe { std::slice::from_raw_parts(self.memory.base.as_ptr(), self.len()) }
    }

    /// Lets the peer of `endpoint` write the first `length` bytes: for those who speak to the fabric themselves.
    ///
    /// # Errors
    /// [`ExposeError`]; the buffer is dropped.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn expose(self, endpoint: Arc<dyn Endpoint>, length: usize) -> Result<Exposed, ExposeError> {
        assert!(length <= self.len(), "the buffer has {} bytes, {length} were asked for", self.len());
        let owner: Arc<dyn Any + Send + Sync> = self.memory.clone();
        // SAFETY: `owner` keeps the allocation valid. From here until the fence is proven, `Exposed` owns the only
        // `Buffer` of this memory and lends no reference to it.
        let region = unsafe { Region::new(self.memory.base, length, owner) };
        let tag = endpoint.expose(region, RemoteAccess::Write)?;
        Ok(Exposed { buffer: Some(self), endpoint, tag })
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len()).finish()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `Buffer::new`; the last owner is gone.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// A buffer that the peer may write. Dropping it fences as well, and frees the memory only when the fabric, too, has
/// let go of it.
pub struct Exposed {
    buffer: Option<Buffer>,
    endpoint: Arc<dyn Endpoint>,
    tag: Tag,
}

impl Exposed {
    /// What the peer calls the buffer.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// Takes the buffer back. Blocks for at most `patience`. If the fence could not be proven, the memory stays with
    /// the fabric until the connection is gone.
    ///
    /// # Errors
    /// [`Unproven`]; the buffer is not given back.
    pub fn fence(mut self, patience: Duration) -> Result<Buffer, Unproven> {
        let buffer = self.buffer.take().expect("only `fence` and `drop` take the buffer, and both end this");
        self.endpoint.fence(self.tag, patience)?;
        self.endpoint.forget(self.tag);
        Ok(buffer)
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        // A read that was given up: the tag is revoked at once, and stays known to the fabric, so that what the server
        // still sends is dropped instead of ending the connection. The region's owner keeps the memory valid.
        if self.buffer.is_some() {
            let _ = self.endpoint.fence(self.tag, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_buffer_is_zeros_on_a_block_boundary() {
        let buffer = Buffer::new(5000);
        assert_eq!(buffer.as_slice(), [0; 5000]);
        assert_eq!(buffer.as_slice().as_ptr().addr() % 4096, 0);
    }
}
