//! The sender: operations become frames, as many at a time as the socket takes.
//!
//! Bytes of exposed memory are sent by copying system calls only, and what the socket takes of a frame only in part is
//! completed from a copy: so between two calls nothing refers to exposed memory, and a fence need not wait for a peer
//! that does not read. A write whose source is revoked stops between two frames.

use super::ddp;
use super::exposure::{Exposures, HeldExposure};
use super::frame;
use super::operation::{Kind, Operation};
use super::outgoing::{FRAMES_MAX, OutFrame};
use super::stream::Wire;
use super::terminate::Offender;
use crate::{Done, OperationError, Remote, Tag};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes in one system call, once the socket has shown that it takes so many.
const BATCH_MAX: usize = 1 << 20;
const BATCH_MIN: usize = 128 << 10;
/// System calls before others have their turn.
const CALLS_MAX: usize = 4;

/// How sending went.
pub(crate) enum Pumped {
    /// All is sent.
    Idle,
    /// The socket takes no more now, or nothing may be sent yet.
    Blocked,
    /// There is more, but others have their turn.
    More,
    /// A read cannot be answered to its end: its source was revoked.
    ReadRevoked(Offender),
}

/// The sending half of a connection.
pub(crate) struct Sender {
    wire: Option<Arc<Wire>>,
    operations: VecDeque<Operation>,
    /// A frame that the socket took in part: what is left of it.
    partial: Vec<u8>,
    partial_sent: usize,
    send_number: u32,
    read_number: u32,
    /// Payload in a tagged segment, and in an untagged one.
    tagged_max: usize,
    untagged_max: usize,
    crc: bool,
    /// RFC 5044 section 7.1.2: a responder sends nothing until the first frame has come.
    silent: bool,
    blocked: bool,
    batch: usize,
    frames: Vec<OutFrame>,
    finished: Vec<(Done, Result<(), OperationError>)>,
    /// Answers to reads that are not sent yet.
    answering: usize,
}

impl Sender {
    /// `silent`: until [`Sender::heard`]. `payload_max`: of a tagged segment.
    pub(crate) fn new(wire: Arc<Wire>, tagged_max: usize, crc: bool, silent: bool) -> Sender {
        Sender {
            wire: Some(wire),
            operations: VecDeque::new(),
            partial: Vec::new(),
            partial_sent: 0,
            send_number: 1,
            read_number: 1,
            tagged_max,
            untagged_max: tagged_max - (ddp::UNTAGGED_LENGTH - ddp::TAGGED_LENGTH),
            crc,
            silent,
            blocked: false,
            batch: BATCH_MAX,
            frames: Vec::with_capacity(FRAMES_MAX),
            finished: Vec::new(),
            answering: 0,
        }
    }

    /// The peer's first frame came.
    pub(crate) fn heard(&mut self) {
        self.silent = false;
    }

    /// The socket takes bytes again.
    pub(crate) fn unblock(&mut self) {
        self.blocked = false;
    }

    pub(crate) fn push(&mut self, operations: &mut VecDeque<Operation>) {
        self.answering += operations.iter().filter(|operation| operation.answers()).count();
        self.operations.append(operations);
    }

    /// Operations that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.operations.len()
    }

    /// Answers to reads that wait.
    pub(crate) fn answering(&self) -> usize {
        self.answering
    }

    /// What is done, to be told once the sender's lock is let go.
    pub(crate) fn take_finished(&mut self) -> Vec<(Done, Result<(), OperationError>)> {
        std::mem::take(&mut self.finished)
    }

    /// Sends what the socket takes.
    pub(crate) fn pump(&mut self, exposures: &Exposures) -> Pumped {
        for _ in 0..CALLS_MAX {
            if self.blocked || self.silent {
                return Pumped::Blocked;
            }
            if !self.flush_partial() {
                return Pumped::Blocked;
            }
            let Some(front) = self.operations.front() else { return Pumped::Idle };
            let exposure = self.operations.iter().take(FRAMES_MAX).find_map(Operation::exposure).cloned();
            let held = exposure.as_ref().and_then(|exposure| exposures.hold_to_send(exposure));
            if held.is_none() && front.exposure().is_some() {
                if let Some(offender) = self.drop_revoked(0) {
                    return Pumped::ReadRevoked(offender);
                }
                continue;
            }
            self.build(held.as_ref());
            self.hand_over();
            drop(held);
        }
        if self.operations.is_empty() && self.partial.is_empty() { Pumped::Idle } else { Pumped::More }
    }

    /// Drops what this tag was to be the source of, after its fence.
    pub(crate) fn purge(&mut self, tag: Tag) -> Option<Offender> {
        let mut revoked = None;
        for at in (0..self.operations.len()).rev() {
            if self.operations[at].exposure().is_some_and(|exposure| exposure.tag() == tag) {
                revoked = self.drop_revoked(at).or(revoked);
            }
        }
        revoked
    }

    /// Puts a last frame behind the one that is under way, gives up the rest, and says what that was.
    pub(crate) fn finish(&mut self, last: Option<OutFrame>) -> VecDeque<Operation> {
        if let Some(mut last) = last {
            last.seal(self.crc);
            last.append_to(&mut self.partial);
            self.silent = false;
        }
        std::mem::take(&mut self.operations)
    }

    /// Sends what is left of a last frame. `true`: nothing is left, or nothing can be sent any more.
    pub(crate) fn flush_partial(&mut self) -> bool {
        let Some(wire) = &self.wire else { return true };
        while self.partial_sent < self.partial.len() {
            match wire.send_bytes(&self.partial[self.partial_sent..]) {
                Ok(sent) => self.partial_sent += sent,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.blocked = true;
                    return error.kind() != ErrorKind::WouldBlock;
                }
            }
        }
        self.partial.clear();
        self.partial_sent = 0;
        match wire.flush() {
            Ok(()) => true,
            Err(error) => {
                self.blocked = true;
                error.kind() != ErrorKind::WouldBlock
            }
        }
    }

    /// Nothing more will be sent: says so.
    pub(crate) fn say_end(&self) {
        if let Some(wire) = &self.wire {
            wire.close();
        }
    }

    /// Lets the socket go.
    pub(crate) fn close(&mut self) {
        self.wire = None;
        self.partial.clear();
        self.partial_sent = 0;
    }

    /// The source of the operation at `at` is revoked: it is dropped if none of it was sent, else cut short. `Some`:
    /// it was an answer to a read, which cannot be cut short.
    fn drop_revoked(&mut self, at: usize) -> Option<Offender> {
        let operation = &mut self.operations[at];
        let exposure = operation.exposure().expect("only exposed sources are revoked").clone();
        exposure.users.fetch_sub(1, Ordering::AcqRel);
        let Kind::Tagged { sink, answers, .. } = &operation.kind else { unreachable!("it has a source") };
        let (sink, answers) = (*sink, *answers);
        if answers.is_some() {
            self.answering -= 1;
            self.operations.remove(at);
            return answers;
        }
        let source = exposure.tag();
        if operation.sent == 0 {
            let done = self.operations.remove(at).and_then(|operation| operation.done);
            self.finished.extend(done.map(|done| (done, Err(OperationError::Revoked(source)))));
        } else {
            let offset = sink.offset.wrapping_add(operation.sent);
            operation.kind = Kind::Cut { sink: Remote { offset, ..sink }, source };
        }
        None
    }

    /// Builds frames of the first operations, those with an exposed source only if it is the one that is held.
    fn build(&mut self, held: Option<&HeldExposure<'_>>) {
        self.frames.clear();
        let limit = match &self.wire {
            // Encrypted as it is handed over, and kept until the socket takes it.
            Some(wire) if wire.is_encrypted() => BATCH_MIN,
            _ if self.crc => self.batch,
            _ => BATCH_MAX,
        };
        let mut bytes = 0;
        for operation in &mut self.operations {
            if let Some(exposure) = operation.exposure()
                && !held.is_some_and(|held| held.is_of(exposure))
            {
                return;
            }
            operation.assign(&mut self.send_number, &mut self.read_number);
            let mut sent = operation.sent;
            loop {
                if self.frames.len() == FRAMES_MAX || bytes >= limit {
                    return;
                }
                let mut frame = operation.frame(sent, self.tagged_max, self.untagged_max, held);
                frame.seal(self.crc);
                bytes += frame.length();
                sent += frame.progress;
                let last = frame.last;
                self.frames.push(frame);
                if last {
                    break;
                }
            }
        }
    }

    /// Hands the frames to the socket, and notes what became of them.
    fn hand_over(&mut self) {
        let Some(wire) = &self.wire else {
            self.blocked = true;
            return;
        };
        let mut taken = match wire.send(&self.frames) {
            Ok(taken) => taken,
            Err(error) => {
                // A dead socket shows on the receiving side; here it is merely one that takes nothing.
                self.blocked = error.kind() != ErrorKind::Interrupted;
                self.batch = BATCH_MIN;
                return;
            }
        };
        let all: usize = self.frames.iter().map(OutFrame::length).sum();
        self.batch = if taken < all { taken.max(BATCH_MIN) } else { (self.batch * 2).min(BATCH_MAX) };
        let frames = std::mem::take(&mut self.frames);
        for frame in &frames {
            if taken == 0 {
                break;
            }
            if taken < frame.length() {
                frame.append_to(&mut self.partial);
                self.partial_sent = taken;
                taken = frame.length();
            }
            taken -= frame.length();
            self.advance(frame);
        }
        self.frames = frames;
        self.frames.clear();
    }

    /// The frame of the first operation is on its way.
    fn advance(&mut self, frame: &OutFrame) {
        let operation = self.operations.front_mut().expect("frames are of operations");
        operation.sent += frame.progress;
        if !frame.last {
            return;
        }
        let operation = self.operations.pop_front().expect("just seen");
        if let Some(exposure) = operation.exposure() {
            exposure.users.fetch_sub(1, Ordering::AcqRel);
        }
        self.answering -= usize::from(operation.answers());
        let result = match operation.kind {
            Kind::Cut { source, .. } => Err(OperationError::Revoked(source)),
            _ => Ok(()),
        };
        self.finished.extend(operation.done.map(|done| (done, result)));
    }
}

/// The payload that fits in a tagged segment of a frame for this peer.
pub(crate) fn payload_max(offer: Option<u16>, ours: u16, tcp_segment: usize) -> usize {
    match offer {
        Some(offer) => usize::from(offer.min(ours)).max(128),
        None => frame::segment_max(tcp_segment) - ddp::UNTAGGED_LENGTH,
    }
}
