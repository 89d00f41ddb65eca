//! Something to send, and the frames that it becomes.

use super::ddp::{self, Header, Tagged, Untagged};
use super::exposure::{Exposure, HeldExposure};
use super::outgoing::OutFrame;
use super::rdmap::{Opcode, ReadRequest};
use super::terminate::Offender;
use crate::{Done, OperationError, Remote, Tag};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Something to send.
pub(crate) struct Operation {
    pub(super) kind: Kind,
    /// Payload in frames that were handed to the socket.
    pub(super) sent: u64,
    pub(super) done: Option<Done>,
}

/// What it is.
pub(super) enum Kind {
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

/// Where its bytes are.
pub(super) enum Payload {
    Bytes(Bytes),
    Exposed { exposure: Arc<Exposure>, offset: u64 },
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

    pub(super) fn exposure(&self) -> Option<&Arc<Exposure>> {
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

impl Operation {
    /// The answer to a read.
    pub(super) fn answers(&self) -> bool {
        matches!(self.kind, Kind::Tagged { answers: Some(_), .. })
    }

    /// Gives an untagged message its number, once.
    pub(super) fn assign(&mut self, sends: &mut u32, reads: &mut u32) {
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
    pub(super) fn frame(
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
