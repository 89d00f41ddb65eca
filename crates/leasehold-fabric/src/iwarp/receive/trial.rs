//! A receiver, the memory that it places into, and a stream that is known beforehand: for tests and fuzzing.

use super::super::ddp::Header;
use super::super::outgoing::OutFrame;
use super::{Event, Parts, Receiver, Stop};
use crate::crc::BLOCK;
use crate::iwarp::counters::Counters;
use crate::iwarp::exposure::Exposures;
use crate::iwarp::reads::Reads;
use crate::iwarp::staging::Staging;
use crate::iwarp::stream::Stream;
use crate::sums::BlockSums;
use crate::{Region, RemoteAccess, Tag};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

/// The bytes that the peer may reach. Its last block is not whole.
pub(crate) const LENGTH: usize = 100_000;

/// A stream that gives what it has in pieces.
pub(crate) struct Script {
    pub(crate) bytes: Vec<u8>,
    pub(crate) at: usize,
    pub(crate) pieces: Vec<usize>,
    pub(crate) reads: usize,
}

impl Stream for Script {
    unsafe fn read(&mut self, memory: (*mut u8, usize), staging: &mut [u8]) -> io::Result<usize> {
        if self.at == self.bytes.len() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let piece = self.pieces[self.reads % self.pieces.len()].max(1);
        self.reads += 1;
        let rest = &self.bytes[self.at..];
        let rest = &rest[..rest.len().min(piece).min(memory.1 + staging.len())];
        let (direct, staged) = rest.split_at(rest.len().min(memory.1));
        if !direct.is_empty() {
            // SAFETY: by this function's contract.
            unsafe { std::ptr::copy_nonoverlapping(direct.as_ptr(), memory.0, direct.len()) };
        }
        staging[..staged.len()].copy_from_slice(staged);
        self.at += rest.len();
        Ok(rest.len())
    }
}

/// Memory whose blocks begin where blocks may.
#[repr(align(4096))]
struct Block(#[expect(dead_code, reason = "looked at as bytes")] [u8; BLOCK]);

pub(crate) struct Blocks(Vec<Block>);

impl Blocks {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: blocks are bytes, without gaps between them.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * BLOCK) }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_ptr().cast_mut()).expect("an address").cast()
    }

    /// What a peer may reach of it.
    pub(crate) fn region(self: &Arc<Blocks>, sums: &Arc<BlockSums>) -> Region {
        // SAFETY: the owner keeps it; it is looked at only when the receiver is done.
        unsafe { Region::new(self.base(), LENGTH, self.clone()) }.summed(sums.clone())
    }
}

/// What one connection's receiver works with, and one tag of [`LENGTH`] bytes in it.
pub(crate) struct Bench {
    pub(crate) exposures: Exposures,
    reads: Reads,
    counters: Counters,
    pub(crate) memory: Arc<Blocks>,
    pub(crate) sums: Arc<BlockSums>,
    pub(crate) tag: Tag,
}

impl Bench {
    pub(crate) fn new(access: RemoteAccess) -> Bench {
        let memory = Arc::new(Blocks((0..=LENGTH / BLOCK).map(|_| Block([0; BLOCK])).collect()));
        let sums = Arc::new(BlockSums::new(memory.base(), memory.0.len()));
        let exposures = Exposures::new(8, 8);
        let tag = exposures.expose(memory.region(&sums), access).expect("room");
        Bench { exposures, reads: Reads::new(1), counters: Counters::default(), memory, sums, tag }
    }

    /// Receives all, turn by turn, and returns what happened.
    pub(crate) fn receive(
        &self,
        receiver: &mut Receiver,
        stream: &mut Script,
    ) -> (Vec<Event>, Stop, Vec<Vec<u8>>) {
        let parts = Parts { exposures: &self.exposures, reads: &self.reads, counters: &self.counters };
        let mut staging = Staging::new();
        let (mut events, mut messages) = (Vec::new(), Vec::new());
        loop {
            receiver.begin(&mut staging);
            let stop = loop {
                match receiver.poll(&parts, stream, &mut staging) {
                    Ok(event) => {
                        if matches!(event, Event::Message { .. }) {
                            messages.push(receiver.message().to_vec());
                        }
                        events.push(event);
                    }
                    Err(stop) => break stop,
                }
            };
            receiver.end(&mut staging);
            if !matches!(stop, Stop::Turn) {
                return (events, stop, messages);
            }
        }
    }
}

/// Frames a segment, with a CRC.
pub(crate) fn framed(header: Header, payload: &[u8]) -> Vec<u8> {
    let mut frame = OutFrame::new(header);
    frame.payload = (payload.as_ptr(), payload.len());
    frame.seal(true);
    let mut bytes = Vec::new();
    frame.append_to(&mut bytes);
    bytes
}
