//! The receiver: bytes of the stream become bytes in exposed memory, and messages.
//!
//! It does no waiting and knows no socket: [`Receiver::poll`] takes what a [`Stream`] has and says what happened. Large
//! segments go from the socket into the memory by one call, with the rest of the frame and the next header behind
//! them; small ones are read many at a time and copied.
//!
//! Invariant: memory is touched only by the connection's worker thread, only while its tag is held
//! (see [`fence`](super::fence)), only within bounds and access that were checked before; the hold ends before this
//! returns or reads again. So nothing that a peer does or fails to do keeps a fence waiting.

mod admit;
mod segment;
mod summer;

use super::counters::{Counters, add};
use super::ddp;
use super::exposure::{Exposures, Recent};
use super::frame;
use super::rdmap::{Opcode, ReadRequest};
use super::reads::{Reads, Response};
use super::staging::Staging;
use super::stream::Stream;
use super::terminate::{self, Code, Offender, Violation};
use crate::Tag;
use crate::crc::Crc;
use segment::{Destination, Segment};
use std::io;
use summer::Summer;

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
    summer: Summer,
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
            summer: Summer::new(),
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

    fn payload(
        &mut self,
        parts: &Parts<'_>,
        stream: &mut impl Stream,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        let segment = self.segment.as_mut().expect("payload belongs to a segment");
        if segment.check_first {
            let whole = segment.left + frame::trailer(segment.length);
            let ready = staging.ready();
            if ready.len() < whole {
                let wanted = whole - ready.len() + NEXT_HEADER;
                return self.fill(stream, staging, wanted);
            }
            let (checked, wire) = ready[..whole].split_at(whole - frame::CRC);
            let mut crc = segment.crc;
            crc.update(checked);
            if crc.wire() != wire {
                return Err(violation(Violation::Crc, None));
            }
            segment.check_first = false;
        }
        let memory = matches!(segment.to, Destination::Memory { .. } | Destination::Sink);
        if !staging.ready().is_empty() {
            let crc = self.crc && !self.strict;
            segment.take(parts, staging, crc, &mut self.summer, &mut self.message, &mut self.control);
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
        let placed = segment.place(parts.exposures, stream, room, self.crc, &mut self.summer);
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

fn violation(violation: Violation, opcode: Option<Opcode>) -> Stop {
    Stop::Violation { violation, opcode, placed: false }
}

#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(all(any(test, feature = "fuzz"), not(loom)))]
pub(crate) mod trial;
