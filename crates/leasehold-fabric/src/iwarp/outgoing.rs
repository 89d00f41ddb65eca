//! One frame on its way out: a header of ours, payload that stays where it is, padding and a CRC.

use super::ddp::Header;
use super::frame;
use crate::crc::Crc;
use std::io::IoSlice;

/// Frames that are handed over at once.
pub(crate) const FRAMES_MAX: usize = 16;

/// Room for the longest header: a Terminate that quotes a Read Request.
const HEAD_MAX: usize = 80;

/// One frame.
pub(crate) struct OutFrame {
    head: [u8; HEAD_MAX],
    head_length: usize,
    /// Address and length. Whoever builds the frame upholds that it stays readable, and that nobody writes to it, as
    /// long as the frame exists: the operation owns the bytes, or the tag is held.
    pub(crate) payload: (*const u8, usize),
    tail: [u8; frame::TRAILER_MAX],
    tail_length: usize,
    /// Payload of the operation that it carries.
    pub(crate) progress: u64,
    /// The last of its operation.
    pub(crate) last: bool,
}

// SAFETY: the address is only used under the condition that stands beside the field, on whichever thread.
unsafe impl Send for OutFrame {}

impl OutFrame {
    pub(crate) fn new(header: Header) -> OutFrame {
        let mut frame = OutFrame {
            head: [0; HEAD_MAX],
            head_length: frame::LENGTH,
            payload: (std::ptr::null(), 0),
            tail: [0; frame::TRAILER_MAX],
            tail_length: 0,
            progress: 0,
            last: true,
        };
        frame.put(|out| header.put(out));
        frame
    }

    /// Puts more behind the header.
    pub(crate) fn put(&mut self, put: impl FnOnce(&mut &mut [u8])) {
        let mut room = &mut self.head[self.head_length..];
        let before = room.len();
        put(&mut room);
        let after = room.len();
        self.head_length += before - after;
    }

    /// Fills in length, padding and CRC.
    pub(crate) fn seal(&mut self, with_crc: bool) {
        let segment = self.head_length - frame::LENGTH + self.payload.1;
        self.head[..frame::LENGTH].copy_from_slice(&(segment as u16).to_be_bytes());
        let padding = frame::padding(segment);
        self.tail_length = padding + frame::CRC;
        if with_crc {
            let mut crc = Crc::new();
            crc.update(&self.head[..self.head_length]);
            crc.update(self.payload());
            crc.update(&self.tail[..padding]);
            self.tail[padding..self.tail_length].copy_from_slice(&crc.wire());
        }
    }

    pub(crate) fn length(&self) -> usize {
        self.head_length + self.payload.1 + self.tail_length
    }

    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head[..self.head_length]);
        out.extend_from_slice(self.payload());
        out.extend_from_slice(&self.tail[..self.tail_length]);
    }

    fn payload(&self) -> &[u8] {
        if self.payload.1 == 0 {
            return &[];
        }
        // SAFETY: readable and not written to as long as the frame exists, by the condition beside the field.
        unsafe { std::slice::from_raw_parts(self.payload.0, self.payload.1) }
    }
}

/// The parts of frames, in order, and how many there are.
pub(crate) fn parts(frames: &[OutFrame]) -> ([IoSlice<'_>; 3 * FRAMES_MAX], usize) {
    let mut parts = [IoSlice::new(&[]); 3 * FRAMES_MAX];
    let mut used = 0;
    for frame in frames {
        for part in [&frame.head[..frame.head_length], frame.payload(), &frame.tail[..frame.tail_length]] {
            if !part.is_empty() {
                parts[used] = IoSlice::new(part);
                used += 1;
            }
        }
    }
    (parts, used)
}
