//! Sums up blocks as their bytes are placed, in the same pass as the CRC of the frame that brings them.

use super::super::exposure::HeldExposure;
use crate::Tag;
use crate::crc::{BLOCK, Crc, crc32c};
use crate::sums::BlockSums;

/// One connection's summer. A block is summed up if its bytes come in order, with nothing else placed between them; the frames
/// that bring them may end anywhere.
pub(super) struct Summer {
    /// The block under way.
    block: Crc,
    /// Where its next byte belongs, by which tag: by another, what was placed before may be gone.
    next: Option<(Tag, usize)>,
}

impl Summer {
    pub(super) fn new() -> Summer {
        Summer { block: Crc::new(), next: None }
    }

    /// These bytes were placed at this address; the blocks that they are part of were forgotten before.
    pub(super) fn placed(
        &mut self,
        held: &HeldExposure<'_>,
        address: usize,
        bytes: &[u8],
        mut frame: Option<&mut Crc>,
    ) {
        let Some(sums) = held.sums() else {
            if let Some(frame) = frame {
                frame.update(bytes);
            }
            return;
        };
        let head = bytes.len().min(address.wrapping_neg() % BLOCK);
        let (head, rest) = bytes.split_at(head);
        self.part(held.tag(), sums, address, head, frame.as_deref_mut());
        let (blocks, tail) = rest.as_chunks::<BLOCK>();
        let first = address + head.len();
        if !blocks.is_empty() {
            self.next = None;
        }
        for (block, at) in blocks.iter().zip((first..).step_by(BLOCK)) {
            let crc = crc32c(block);
            sums.set(sums.block_at(at), crc);
            if let Some(frame) = &mut frame {
                frame.update_block(crc);
            }
        }
        self.part(held.tag(), sums, first + blocks.len() * BLOCK, tail, frame);
    }

    /// A part of a block.
    fn part(&mut self, tag: Tag, sums: &BlockSums, address: usize, bytes: &[u8], frame: Option<&mut Crc>) {
        if bytes.is_empty() {
            return;
        }
        if let Some(frame) = frame {
            frame.update(bytes);
        }
        if address.is_multiple_of(BLOCK) {
            self.block = Crc::new();
        } else if self.next != Some((tag, address)) {
            self.next = None;
            return;
        }
        self.block.update(bytes);
        let end = address + bytes.len();
        self.next = Some((tag, end));
        if end.is_multiple_of(BLOCK) {
            sums.set(sums.block_at(address), self.block.value());
            self.next = None;
        }
    }
}
