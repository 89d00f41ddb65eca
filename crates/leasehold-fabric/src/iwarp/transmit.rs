//! The sender: operations become frames, as many at a time as the socket takes.
//!
//! Bytes of exposed memory are sent by copying system calls only, and what the socket takes of a frame only in part is
//! completed from a copy: so between two calls nothing refers to exposed memory, and a fence need not wait for a peer
//! that does not read. A write whose source is revoked stops between two frames.

use super::ddp::{self, Header, Tagged, Untagged};
use super::exposure::{Exposure, Exposures, HeldExposure};
use super::frame;
use super::outgoing::{OutFrame, send};
use super::rdmap::{Opcode, ReadRequest};
use super::terminate::Offender;
use crate::{Done, OperationError, Remote, Tag};
use bytes::Bytes;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Frames in one system call.
const FRAMES_MAX: usize = 16;
/// Bytes in one system call, once the socket has shown that it takes so many.
const BATCH_MAX: usize = 1 << 20;
const BATCH_MIN: usize = 128 << 10;
/// System calls before others have their turn.
const CALLS_MAX: usize = 4;

/// Something to send.
pub(crate) struct Operation {
    kind: Kind,
    /// Payload in frames that were handed to the socket.
    sent: u64,
    done: Option<Done>,
}

enum Kind {
    /// A Write, or the answer to a read.
    Tagged {
        payload: Payload,
        length: u64,
        sink: Remote,
        answers: Option<Offender>,
    },
    /// The empty last segment of a Write that was revoked half-way, so that the peer sees a whole message.
    Cut {
        sink: Remote,
        source: Tag,
    },
    Send {
        bytes: Bytes,
        invalidate: Option<Tag>,
        number: Option<u32>,
    },
    Read {
        request: ReadRequest,
        number: Option<u32>,
    },
}

enum Payload {
    Bytes(Bytes),
    Exposed { exposure: Arc<Exposure>, offset: u64 },
}

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
    socket: Option<Arc<OwnedFd>>,
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

impl Operation {
    pub(crate) fn write(bytes: Bytes, sink: Remote, done: Option<Done>) -> Operation {
        let length = bytes.len() as u64;
        let kind = Kind::Tagged { payload: Payload::Bytes(bytes), length, sink, answers: None };
        Operation { kind, sent: 0, done }
    }

    /// A write from exposed memory, within bounds; or the answer to the read that `answers` names.
    pub(crate) fn write_exposed(
        exposure: Arc<Exposure>,
        offset: u64,
        length: u64,
        sink: Remote,
        answers: Option<Offender>,
        done: Option<Done>,
    ) -> Operation {
        exposure.users.fetch_add(1, Ordering::AcqRel);
        let kind = Kind::Tagged { payload: Payload::Exposed { exposure, offset }, length, sink, answers };
        Operation { kind, sent: 0, done }
    }

    /// The answer to a read of nothing.
    pub(crate) fn empty_answer(sink: Remote, answers: Offender) -> Operation {
        let payload = Payload::Bytes(Bytes::new());
        Operation {
            kind: Kind::Tagged { payload, length: 0, sink, answers: Some(answers) },
            sent: 0,
            done: None,
        }
    }

    pub(crate) fn send(bytes: Bytes, invalidate: Option<Tag>, done: Option<Done>) -> Operation {
        Operation { kind: Kind::Send { bytes, invalidate, number: None }, sent: 0, done }
    }

    pub(crate) fn read(request: ReadRequest) -> Operation {
        Operation { kind: Kind::Read { request, number: None }, sent: 0, done: None }
    }

    fn exposure(&self) -> Option<&Arc<Exposure>> {
        match &self.kind {
            Kind::Tagged { payload: Payload::Exposed { exposure, .. }, .. } => Some(exposure),
            _ => None,
        }
    }

    /// Gives it up.
    pub(crate) fn abandon(self, why: OperationError) {
        if let Some(exposure) = self.exposure() {
            exposure.users.fetch_sub(1, Ordering::AcqRel);
        }
        if let Some(done) = self.done {
            done(Err(why));
        }
    }
}

impl Sender {
    /// `silent`: until [`Sender::heard`]. `payload_max`: of a tagged segment.
    pub(crate) fn new(socket: Arc<OwnedFd>, tagged_max: usize, crc: bool, silent: bool) -> Sender {
        Sender {
            socket: Some(socket),
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
        while self.partial_sent < self.partial.len() {
            let Some(socket) = &self.socket else { return true };
            match rustix::net::send(socket, &self.partial[self.partial_sent..], super::outgoing::flags()) {
                Ok(sent) => self.partial_sent += sent,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    self.blocked = true;
                    return error != rustix::io::Errno::AGAIN;
                }
            }
        }
        self.partial.clear();
        self.partial_sent = 0;
        true
    }

    /// Lets the socket go.
    pub(crate) fn close(&mut self) {
        self.socket = None;
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
        let limit = if self.crc { self.batch } else { BATCH_MAX };
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
        let Some(socket) = &self.socket else {
            self.blocked = true;
            return;
        };
        let mut taken = match send(socket, &self.frames) {
            Ok(taken) => taken,
            Err(error) => {
                // A dead socket shows on the receiving side; here it is merely one that takes nothing.
                self.blocked = error.kind() != std::io::ErrorKind::Interrupted;
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

impl Operation {
    /// The answer to a read.
    fn answers(&self) -> bool {
        matches!(self.kind, Kind::Tagged { answers: Some(_), .. })
    }

    /// Gives an untagged message its number, once.
    fn assign(&mut self, sends: &mut u32, reads: &mut u32) {
        let (number, next) = match &mut self.kind {
            Kind::Send { number, .. } => (number, sends),
            Kind::Read { number, .. } => (number, reads),
            _ => return,
        };
        if number.is_none() {
            *number = Some(*next);
            *next = next.wrapping_add(1);
        }
    }

    /// The frame that comes after `sent` bytes of payload.
    fn frame(
        &self,
        sent: u64,
        tagged_max: usize,
        untagged_max: usize,
        held: Option<&HeldExposure<'_>>,
    ) -> OutFrame {
        match &self.kind {
            Kind::Tagged { payload, length, sink, answers } => {
                let opcode = if answers.is_some() { Opcode::ReadResponse } else { Opcode::Write };
                let part = (*length - sent).min(tagged_max as u64);
                let last = sent + part == *length;
                let address = match payload {
                    Payload::Bytes(bytes) => bytes[sent as usize..].as_ptr(),
                    Payload::Exposed { offset, .. } => {
                        let held = held.expect("only held sources are built");
                        held.address(offset + sent, part as usize).cast_const()
                    }
                };
                let mut frame = tagged(opcode, last, *sink, sent);
                frame.payload = (address, part as usize);
                frame.progress = part;
                frame
            }
            Kind::Cut { sink, .. } => tagged(Opcode::Write, true, *sink, 0),
            Kind::Send { bytes, invalidate, number } => {
                let part = &bytes[sent as usize..];
                let part = &part[..part.len().min(untagged_max)];
                let last = sent as usize + part.len() == bytes.len();
                let opcode = if invalidate.is_some() { Opcode::SendInvalidate } else { Opcode::Send };
                let mut frame = OutFrame::new(Header::Untagged(Untagged {
                    last,
                    rdmap: opcode.control(),
                    invalidate: invalidate.map_or(0, |tag| tag.0),
                    queue: ddp::SEND_QUEUE,
                    number: number.expect("assigned when it came up"),
                    offset: sent as u32,
                }));
                frame.last = last;
                frame.payload = (part.as_ptr(), part.len());
                frame.progress = part.len() as u64;
                frame
            }
            Kind::Read { request, number } => {
                let mut frame = OutFrame::new(Header::Untagged(Untagged {
                    last: true,
                    rdmap: Opcode::ReadRequest.control(),
                    invalidate: 0,
                    queue: ddp::READ_QUEUE,
                    number: number.expect("assigned when it came up"),
                    offset: 0,
                }));
                frame.put(|out| request.put(out));
                frame
            }
        }
    }
}

fn tagged(opcode: Opcode, last: bool, sink: Remote, sent: u64) -> OutFrame {
    let offset = sink.offset.wrapping_add(sent);
    let mut frame =
        OutFrame::new(Header::Tagged(Tagged { last, rdmap: opcode.control(), tag: sink.tag.0, offset }));
    frame.last = last;
    frame
}

/// The payload that fits in a tagged segment of a frame for this peer.
pub(crate) fn payload_max(offer: Option<u16>, ours: u16, tcp_segment: usize) -> usize {
    match offer {
        Some(offer) => usize::from(offer.min(ours)).max(128),
        None => frame::segment_max(tcp_segment) - ddp::UNTAGGED_LENGTH,
    }
}
