//! A worker's buffers: for headers, trailers and small segments of the connection that it serves at the moment, and
//! for what has to be dropped.

/// Bytes that were read and not yet looked at.
pub(crate) struct Staging {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Where the bytes of revoked tags go.
    pub(crate) sink: Box<[u8]>,
}

impl Staging {
    pub(crate) fn new() -> Staging {
        let zeroes = |length| vec![0; length].into_boxed_slice();
        Staging { bytes: zeroes(256 << 10), start: 0, end: 0, sink: zeroes(64 << 10) }
    }

    pub(crate) fn ready(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, length: usize) {
        self.start += length;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for at most `wanted` bytes behind those that are ready, and for no less than 64 KiB if that is wanted.
    pub(crate) fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.bytes.len() - self.end < wanted.min(128 << 10) {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let end = self.bytes.len().min(self.end.saturating_add(wanted));
        &mut self.bytes[self.end..end]
    }

    /// The room, and the sink beside it.
    pub(crate) fn room_and_sink(&mut self, wanted: usize) -> (&mut [u8], &mut [u8]) {
        let end = self.bytes.len().min(self.end.saturating_add(wanted));
        (&mut self.bytes[self.end..end], &mut self.sink)
    }

    /// So many bytes were put in the room.
    pub(crate) fn filled(&mut self, length: usize) {
        self.end += length;
        debug_assert!(self.end <= self.bytes.len());
    }

    /// Takes up what a connection left over.
    pub(crate) fn restore(&mut self, left: &[u8]) {
        self.bytes[..left.len()].copy_from_slice(left);
        (self.start, self.end) = (0, left.len());
    }

    /// Keeps for a connection what it leaves over.
    pub(crate) fn save(&mut self, left: &mut Vec<u8>) {
        left.clear();
        left.extend_from_slice(self.ready());
        (self.start, self.end) = (0, 0);
    }
}
