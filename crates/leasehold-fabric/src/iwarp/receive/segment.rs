//! A frame on its way in, and where its payload goes. The only place where received bytes enter exposed memory.

use super::super::counters::{Counters, add};
use super::super::exposure::{Exposure, Exposures};
use super::super::rdmap::Opcode;
use super::super::staging::Staging;
use super::super::stream::Stream;
use super::Parts;
use super::summer::Summer;
use crate::crc::Crc;
use std::io;
use std::sync::Arc;

/// A frame that is being received.
pub(super) struct Segment {
    pub(super) length: usize,
    pub(super) opcode: Opcode,
    pub(super) last: bool,
    pub(super) invalidate: u32,
    pub(super) to: Destination,
    /// Payload that has not come yet.
    pub(super) left: usize,
    pub(super) placed: usize,
    /// Nothing may be placed before the whole frame has come and was found right.
    pub(super) check_first: bool,
    pub(super) crc: Crc,
}

/// Where its payload goes.
pub(super) enum Destination {
    Memory { exposure: Arc<Exposure>, at: u64 },
    Sink,
    Message,
    Control,
}

impl Segment {
    /// Reads payload straight into memory, and what follows it into `room`: what the read said, and how much of it is
    /// payload. `None`: the memory may not be touched.
    pub(super) fn place(
        &mut self,
        exposures: &Exposures,
        stream: &mut impl Stream,
        room: &mut [u8],
        crc: bool,
        summer: &mut Summer,
    ) -> Option<(io::Result<usize>, usize)> {
        let Destination::Memory { exposure, at } = &self.to else { return None };
        let held = exposures.hold_to_place(exposure)?;
        let address = held.to_place(*at, self.left);
        // SAFETY: the tag is held, so the region's owner lives; the address and length were just checked against the
        // region; and this thread alone writes there until it lets go.
        let got = unsafe { stream.read((address, self.left), room) };
        let landed = got.as_ref().map_or(0, |&got| got.min(self.left));
        // SAFETY: as above; the bytes were initialized by the read, and nobody changes them while the tag is held:
        // the single writer of the region is this thread.
        let bytes = unsafe { std::slice::from_raw_parts(address, landed) };
        summer.placed(&held, address.addr(), bytes, crc.then_some(&mut self.crc));
        Some((got, landed))
    }

    /// Reads payload of a revoked tag, to be dropped.
    pub(super) fn drop_from(
        &mut self,
        stream: &mut impl Stream,
        sink: &mut [u8],
        room: &mut [u8],
        crc: bool,
    ) -> (io::Result<usize>, usize) {
        let length = self.left.min(sink.len());
        let room = if length == self.left { room } else { &mut [] };
        // SAFETY: the sink is this worker's own.
        let got = unsafe { stream.read((sink.as_mut_ptr(), length), room) };
        let landed = got.as_ref().map_or(0, |&got| got.min(length));
        if crc {
            self.crc.update(&sink[..landed]);
        }
        (got, landed)
    }

    /// Takes payload from the staging buffer.
    pub(super) fn take(
        &mut self,
        parts: &Parts<'_>,
        staging: &mut Staging,
        crc: bool,
        summer: &mut Summer,
        message: &mut Vec<u8>,
        control: &mut Vec<u8>,
    ) {
        let ready = staging.ready();
        let bytes = &ready[..ready.len().min(self.left)];
        let mut crc = crc.then_some(&mut self.crc);
        let is_over = match &self.to {
            Destination::Message => {
                message.extend_from_slice(bytes);
                false
            }
            Destination::Control => {
                control.extend_from_slice(bytes);
                false
            }
            Destination::Sink => false,
            Destination::Memory { exposure, at } => {
                let held = parts.exposures.hold_to_place(exposure);
                if let Some(held) = &held {
                    let address = held.to_place(*at, bytes.len());
                    // SAFETY: the tag is held, so the region's owner lives; address and length were just checked
                    // against the region; this thread alone writes there until it lets go; and a staging buffer of
                    // the worker's is no part of what anybody exposes.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address, bytes.len()) };
                    summer.placed(held, address.addr(), bytes, crc.take());
                }
                held.is_none()
            }
        };
        if let Some(crc) = crc {
            crc.update(bytes);
        }
        if is_over {
            self.to = Destination::Sink;
        }
        let taken = bytes.len();
        staging.consume(taken);
        self.advance(taken, parts.counters);
    }

    /// So much payload came, and is where it belongs.
    pub(super) fn advance(&mut self, length: usize, counters: &Counters) {
        self.left -= length;
        match &mut self.to {
            Destination::Memory { at, .. } => {
                *at += length as u64;
                self.placed += length;
                add(&counters.bytes_placed, length as u64);
            }
            Destination::Sink => add(&counters.bytes_discarded, length as u64),
            Destination::Message | Destination::Control => {}
        }
    }
}
