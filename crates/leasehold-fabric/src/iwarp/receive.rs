//! The receiver: bytes of the stream become bytes in exposed memory, and messages.
//!
//! It does no waiting and knows no socket: [`Receiver::poll`] takes what a [`Stream`] has and says what happened. Large
//! segments go from the socket into the memory by one call, with the rest of the frame and the next header behind
//! them; small ones are read many at a time and copied.
//!
//! Invariant: memory is touched only by the connection's worker thread, only while its tag is held
//! (see [`fence`](super::fence)), only within bounds and access that were checked before; the hold ends before this
//! returns or reads again. So nothing that a peer does or fails to do keeps a fence waiting.

use super::counters::{Counters, add};
use super::crc::Crc;
use super::ddp::{self, Header, Tagged, Untagged};
use super::exposure::{Exposure, Exposures, Recent};
use super::frame;
use super::rdmap::{ControlError, Opcode, READ_REQUEST_LENGTH, ReadRequest};
use super::reads::{Reads, Response};
use super::staging::Staging;
use super::stream::Stream;
use super::terminate::{self, Code, Offender, Violation};
use crate::{RemoteAccess, Tag};
use std::io;
use std::sync::Arc;

/// From this payload on, a segment is read straight into memory.
const DIRECT_MIN: usize = 8 << 10;
/// The shortest header: what is read behind a large frame, in the hope for the next.
const NEXT_HEADER: usize = frame::LENGTH + ddp::TAGGED_LENGTH;
/// How much one connection may read before others have their turn.
const TURN_MAX: usize = 1 << 20;

/// What a connection's receiver works with.
pub(crate) struct Parts<'a> {
    pub(crate) exposures: &'a Exposures,
    pub(crate) reads: &'a Reads,
    pub(crate) counters: &'a Counters,
}

/// What happened on the stream.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// The first frame came.
    First,
    /// [`Receiver::message`] is a message.
    Message { invalidate: Option<Tag> },
    /// The peer wants to read.
    Read(ReadRequest),
    /// The oldest read of this end is answered.
    ReadAnswered,
    /// The peer sent a Terminate.
    Terminated(Option<Code>),
}

/// Why there is no event.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Nothing to read now.
    Drained,
    /// Others first; there may be more to read.
    Turn,
    /// The peer closed, between frames or (`torn`) within one.
    End { torn: bool },
    /// The transport failed.
    Failed(io::Error),
    /// The peer broke the protocol. `placed`: bytes of a frame with a wrong CRC are in memory.
    Violation { violation: Violation, opcode: Option<Opcode>, placed: bool },
}

/// One connection's receiver.
pub(crate) struct Receiver {
    crc: bool,
    strict: bool,
    message_max: usize,
    /// What was read beyond the last whole step, between turns.
    left: Vec<u8>,
    segment: Option<Segment>,
    /// The header that is being dealt with, or was last.
    offender: Offender,
    /// The next number in each queue.
    numbers: [u32; 3],
    message: Vec<u8>,
    message_opcode: Opcode,
    /// A Read Request or a Terminate; it may stand between two segments of a message.
    control: Vec<u8>,
    response: Option<Response>,
    recent: Recent,
    /// The peer's messages are large: do not read ahead of the next header.
    large: bool,
    message_bytes: usize,
    /// The message was delivered; the next segment begins another.
    delivered: bool,
    heard: bool,
    first: Option<Event>,
    event: Option<Event>,
    turn: usize,
}

struct Segment {
    length: usize,
    opcode: Opcode,
    last: bool,
    invalidate: u32,
    to: Destination,
    /// Payload that has not come yet.
    left: usize,
    placed: usize,
    crc: Crc,
}

enum Destination {
    Memory { exposure: Arc<Exposure>, at: u64 },
    Sink,
    Message,
    Control,
}

impl Receiver {
    pub(crate) fn new(crc: bool, strict: bool, message_max: usize) -> Receiver {
        Receiver {
            crc,
            strict: strict && crc,
            message_max,
            left: Vec::new(),
            segment: None,
            offender: Offender {
                segment: 0,
                header: [0; ddp::UNTAGGED_LENGTH],
                header_length: 0,
                read: None,
            },
            numbers: [1; 3],
            message: Vec::new(),
            message_opcode: Opcode::Send,
            control: Vec::new(),
            response: None,
            recent: Recent::default(),
            large: false,
            message_bytes: 0,
            delivered: false,
            heard: false,
            first: None,
            event: None,
            turn: 0,
        }
    }

    /// Begins a turn: takes up what the last one left.
    pub(crate) fn begin(&mut self, staging: &mut Staging) {
        self.turn = 0;
        staging.restore(&self.left);
    }

    /// Ends a turn.
    pub(crate) fn end(&mut self, staging: &mut Staging) {
        staging.save(&mut self.left);
    }

    /// The message that [`Event::Message`] told of, until the next poll.
    pub(crate) fn message(&self) -> &[u8] {
        &self.message
    }

    /// The header that the last event or violation is about.
    pub(crate) fn offender(&self) -> Option<&Offender> {
        (self.offender.header_length > 0).then_some(&self.offender)
    }

    /// Goes on until something happens, or nothing can.
    pub(crate) fn poll(
        &mut self,
        parts: &Parts<'_>,
        stream: &mut impl Stream,
        staging: &mut Staging,
    ) -> Result<Event, Stop> {
        loop {
            if let Some(event) = self.first.take().or_else(|| self.event.take()) {
                self.delivered = matches!(event, Event::Message { .. });
                return Ok(event);
            }
            if std::mem::take(&mut self.delivered) {
                self.message.clear();
            }
            let Some(segment) = &self.segment else {
                self.header(parts, stream, staging)?;
                continue;
            };
            if segment.left > 0 {
                self.payload(parts, stream, staging)?;
            } else {
                self.trailer(parts, stream, staging)?;
            }
        }
    }

    /// Reads into the staging buffer: what is `wanted` to go on, or as much as there is room for.
    fn fill(&mut self, stream: &mut impl Stream, staging: &mut Staging, wanted: usize) -> Result<(), Stop> {
        let wanted = if self.large { wanted } else { usize::MAX };
        // SAFETY: no memory is named.
        let got = unsafe { stream.read((std::ptr::null_mut(), 0), staging.room(wanted)) };
        let got = self.got(got, staging)?;
        staging.filled(got);
        Ok(())
    }

    /// What a read came to.
    fn got(&mut self, got: io::Result<usize>, staging: &Staging) -> Result<usize, Stop> {
        match got {
            Ok(0) => Err(Stop::End { torn: self.segment.is_some() || !staging.ready().is_empty() }),
            Ok(got) => {
                self.turn += got;
                Ok(got)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Stop::Drained),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(Stop::Turn),
            Err(error) => Err(Stop::Failed(error)),
        }
    }

    fn header(
        &mut self,
        parts: &Parts<'_>,
        stream: &mut impl Stream,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        if self.turn > TURN_MAX {
            return Err(Stop::Turn);
        }
        let ready = staging.ready();
        if ready.len() <= frame::LENGTH {
            let wanted = NEXT_HEADER - ready.len();
            return self.fill(stream, staging, wanted);
        }
        let length = usize::from(u16::from_be_bytes([ready[0], ready[1]]));
        let header_length = ddp::header_length(ready[frame::LENGTH]);
        let whole = frame::LENGTH + length + frame::trailer(length);
        if length < header_length {
            self.offender.header_length = 0;
            return Err(violation(Violation::FrameLength, None));
        }
        let needed = if self.strict { whole } else { frame::LENGTH + header_length };
        if ready.len() < needed {
            let wanted = if self.strict || header_length == ddp::UNTAGGED_LENGTH { whole } else { needed };
            let wanted = wanted - ready.len() + if wanted == whole { NEXT_HEADER } else { 0 };
            return self.fill(stream, staging, wanted);
        }
        let mut crc = Crc::new();
        if self.strict {
            let (checked, wire) = ready[..whole].split_at(whole - frame::CRC);
            crc.update(checked);
            if crc.wire() != wire {
                self.offender.header_length = 0;
                return Err(violation(Violation::Crc, None));
            }
        } else if self.crc {
            crc.update(&ready[..needed]);
        }
        self.offender.segment = length as u16;
        self.offender.header_length = header_length;
        self.offender.read = None;
        self.offender.header[..header_length]
            .copy_from_slice(&ready[frame::LENGTH..frame::LENGTH + header_length]);
        staging.consume(frame::LENGTH + header_length);
        self.segment = Some(self.admit(parts, length, length - header_length, crc)?);
        Ok(())
    }

    /// Checks a header: all that can be wrong with it is found here, before a byte of its payload is placed.
    fn admit(&mut self, parts: &Parts<'_>, length: usize, payload: usize, crc: Crc) -> Result<Segment, Stop> {
        let header = Header::parse(&self.offender.header).map_err(|wrong| {
            violation(if wrong.tagged { Violation::TaggedVersion } else { Violation::UntaggedVersion }, None)
        })?;
        let control = match header {
            Header::Tagged(Tagged { rdmap, .. }) | Header::Untagged(Untagged { rdmap, .. }) => rdmap,
        };
        let opcode = Opcode::parse(control).map_err(|error| {
            let which = match error {
                ControlError::Version => Violation::RdmapVersion,
                ControlError::Opcode => Violation::Opcode,
            };
            violation(which, None)
        })?;
        let mut segment = Segment {
            length,
            opcode,
            last: false,
            invalidate: 0,
            to: Destination::Sink,
            left: payload,
            placed: 0,
            crc,
        };
        let admitted = match header {
            Header::Tagged(header) => {
                segment.last = header.last;
                self.admit_tagged(parts, &header, opcode, payload)
            }
            Header::Untagged(header) => {
                segment.last = header.last;
                segment.invalidate = header.invalidate;
                self.admit_untagged(&header, opcode, payload)
            }
        };
        segment.to = admitted.map_err(|which| violation(which, Some(opcode)))?;
        Ok(segment)
    }

    fn admit_tagged(
        &mut self,
        parts: &Parts<'_>,
        header: &Tagged,
        opcode: Opcode,
        payload: usize,
    ) -> Result<Destination, Violation> {
        match opcode {
            // RFC 5041 section 5.2: tag and offset of a segment without payload are not checked.
            Opcode::Write if payload == 0 => return Ok(Destination::Sink),
            Opcode::Write => {}
            Opcode::ReadResponse => self.admit_response(parts, header, payload)?,
            _ => return Err(Violation::Opcode),
        }
        if payload == 0 {
            return Ok(Destination::Sink);
        }
        let exposure = match &self.response {
            Some(response) if opcode == Opcode::ReadResponse => response.sink.clone(),
            _ => self.recent.find(header.tag, parts.exposures).ok_or(Violation::UnknownTag)?,
        };
        if exposure.access() != RemoteAccess::Write {
            return Err(Violation::Access);
        }
        if header.offset.checked_add(payload as u64).is_none() {
            return Err(Violation::Wrap);
        }
        if !exposure.contains(header.offset, payload as u64) {
            return Err(Violation::Bounds);
        }
        Ok(if exposure.is_live() {
            Destination::Memory { exposure, at: header.offset }
        } else {
            Destination::Sink
        })
    }

    /// A response must be the one that is due, and continue where it stopped.
    fn admit_response(
        &mut self,
        parts: &Parts<'_>,
        header: &Tagged,
        payload: usize,
    ) -> Result<(), Violation> {
        if self.response.is_none() {
            self.response = parts.reads.due();
        }
        let response = self.response.as_mut().ok_or(Violation::Opcode)?;
        if payload > 0 && header.tag != response.sink.tag().0 {
            return Err(Violation::UnknownTag);
        }
        let payload = payload as u64;
        let misplaced = payload > 0 && header.offset != response.next;
        if misplaced || payload > response.left || header.last != (payload == response.left) {
            return Err(Violation::Bounds);
        }
        response.next += payload;
        response.left -= payload;
        Ok(())
    }

    fn admit_untagged(
        &mut self,
        header: &Untagged,
        opcode: Opcode,
        payload: usize,
    ) -> Result<Destination, Violation> {
        let due = match opcode {
            _ if opcode.is_tagged() => return Err(Violation::Opcode),
            Opcode::ReadRequest => ddp::READ_QUEUE,
            Opcode::Terminate => ddp::TERMINATE_QUEUE,
            _ => ddp::SEND_QUEUE,
        };
        if header.queue > ddp::TERMINATE_QUEUE {
            return Err(Violation::Queue);
        }
        if header.queue != due {
            return Err(Violation::Opcode);
        }
        if header.number != self.numbers[due as usize] {
            return Err(Violation::MessageNumber);
        }
        let (have, longest) = match due {
            ddp::SEND_QUEUE => (self.message.len(), self.message_max),
            ddp::READ_QUEUE => (0, READ_REQUEST_LENGTH),
            _ => (0, self.message_max),
        };
        if header.offset as usize != have {
            return Err(Violation::MessageOffset);
        }
        if have + payload > longest {
            return Err(Violation::MessageTooLong);
        }
        if due != ddp::SEND_QUEUE {
            // Read Requests and Terminates fit in one segment (RFC 5040 section 5.2, 5.4).
            if !header.last || (due == ddp::READ_QUEUE && payload != READ_REQUEST_LENGTH) {
                return Err(Violation::MessageOffset);
            }
            self.control.clear();
            return Ok(Destination::Control);
        }
        if have == 0 {
            self.message_opcode = opcode;
        } else if self.message_opcode != opcode {
            return Err(Violation::Opcode);
        }
        Ok(Destination::Message)
    }

    fn payload(
        &mut self,
        parts: &Parts<'_>,
        stream: &mut impl Stream,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        let segment = self.segment.as_mut().expect("payload belongs to a segment");
        let memory = matches!(segment.to, Destination::Memory { .. } | Destination::Sink);
        if !staging.ready().is_empty() {
            let crc = self.crc && !self.strict;
            segment.take(parts, staging, crc, &mut self.message, &mut self.control);
            return Ok(());
        }
        if memory && (self.large || segment.left >= DIRECT_MIN) {
            return self.direct(parts, stream, staging);
        }
        let wanted = segment.left + frame::trailer(segment.length) + NEXT_HEADER;
        self.fill(stream, staging, wanted)
    }

    /// Reads payload straight to where it belongs, and what follows it into the staging buffer, which is empty.
    fn direct(
        &mut self,
        parts: &Parts<'_>,
        stream: &mut impl Stream,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        let segment = self.segment.as_mut().expect("payload belongs to a segment");
        let behind = frame::trailer(segment.length) + NEXT_HEADER;
        let wanted = if self.large { behind } else { usize::MAX };
        let (room, sink) = staging.room_and_sink(wanted);
        let placed = segment.place(parts.exposures, stream, room, self.crc);
        let (got, landed) = match placed {
            Some(placed) => placed,
            None => {
                // Revoked, perhaps since the header came: the rest goes to the sink.
                segment.to = Destination::Sink;
                segment.drop_from(stream, sink, room, self.crc)
            }
        };
        segment.advance(landed, parts.counters);
        let got = self.got(got, staging)?;
        staging.filled(got - landed);
        Ok(())
    }

    fn trailer(
        &mut self,
        parts: &Parts<'_>,
        stream: &mut impl Stream,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        let segment = self.segment.as_mut().expect("a trailer belongs to a segment");
        let length = frame::trailer(segment.length);
        let ready = staging.ready();
        if ready.len() < length {
            let wanted = length - ready.len() + NEXT_HEADER;
            return self.fill(stream, staging, wanted);
        }
        if self.crc && !self.strict {
            let (padding, wire) = ready[..length].split_at(length - frame::CRC);
            segment.crc.update(padding);
            if segment.crc.wire() != wire {
                let placed = segment.placed > 0;
                return Err(Stop::Violation { violation: Violation::Crc, opcode: None, placed });
            }
        }
        staging.consume(length);
        let segment = self.segment.take().expect("just seen");
        add(&parts.counters.segments, 1);
        if !std::mem::replace(&mut self.heard, true) {
            self.first = Some(Event::First);
        }
        self.finish(&segment)
    }

    /// A frame is whole and right.
    fn finish(&mut self, segment: &Segment) -> Result<(), Stop> {
        if segment.opcode.is_tagged() {
            self.message_bytes += segment.length;
            if segment.last {
                self.large = self.message_bytes >= DIRECT_MIN;
                self.message_bytes = 0;
                if segment.opcode == Opcode::ReadResponse {
                    self.response = None;
                    self.event = Some(Event::ReadAnswered);
                }
            }
        }
        let queue = match segment.opcode {
            Opcode::ReadRequest => ddp::READ_QUEUE,
            Opcode::Terminate => ddp::TERMINATE_QUEUE,
            _ => ddp::SEND_QUEUE,
        };
        if !segment.opcode.is_tagged() && segment.last {
            self.numbers[queue as usize] = self.numbers[queue as usize].wrapping_add(1);
            self.event = Some(match segment.opcode {
                Opcode::ReadRequest => {
                    let read = ReadRequest::parse(&self.control)
                        .ok_or_else(|| violation(Violation::MessageOffset, Some(Opcode::ReadRequest)))?;
                    self.offender.read = Some(read);
                    Event::Read(read)
                }
                Opcode::Terminate => Event::Terminated(terminate::parse(&self.control)),
                opcode => {
                    Event::Message { invalidate: opcode.invalidates().then_some(Tag(segment.invalidate)) }
                }
            });
        }
        Ok(())
    }
}

impl Segment {
    /// Reads payload straight into memory, and what follows it into `room`: what the read said, and how much of it is
    /// payload. `None`: the memory may not be touched.
    fn place(
        &mut self,
        exposures: &Exposures,
        stream: &mut impl Stream,
        room: &mut [u8],
        crc: bool,
    ) -> Option<(io::Result<usize>, usize)> {
        let Destination::Memory { exposure, at } = &self.to else { return None };
        let held = exposures.hold_to_place(exposure)?;
        let address = held.address(*at, self.left);
        // SAFETY: the tag is held, so the region's owner lives; the address and length were just checked against the
        // region; and this thread alone writes there until it lets go.
        let got = unsafe { stream.read((address, self.left), room) };
        let landed = got.as_ref().map_or(0, |&got| got.min(self.left));
        if crc {
            // SAFETY: as above; the bytes were initialized by the read, and nobody changes them while the tag is held:
            // the single writer of the region is this thread.
            self.crc.update(unsafe { std::slice::from_raw_parts(address, landed) });
        }
        Some((got, landed))
    }

    /// Reads payload of a revoked tag, to be dropped.
    fn drop_from(
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
    fn take(
        &mut self,
        parts: &Parts<'_>,
        staging: &mut Staging,
        crc: bool,
        message: &mut Vec<u8>,
        control: &mut Vec<u8>,
    ) {
        let ready = staging.ready();
        let bytes = &ready[..ready.len().min(self.left)];
        if crc {
            self.crc.update(bytes);
        }
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
                    let address = held.address(*at, bytes.len());
                    // SAFETY: the tag is held, so the region's owner lives; address and length were just checked
                    // against the region; this thread alone writes there until it lets go; and a staging buffer of
                    // the worker's is no part of what anybody exposes.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address, bytes.len()) };
                }
                held.is_none()
            }
        };
        if is_over {
            self.to = Destination::Sink;
        }
        let taken = bytes.len();
        staging.consume(taken);
        self.advance(taken, parts.counters);
    }

    /// So much payload came, and is where it belongs.
    fn advance(&mut self, length: usize, counters: &Counters) {
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

fn violation(violation: Violation, opcode: Option<Opcode>) -> Stop {
    Stop::Violation { violation, opcode, placed: false }
}
