//! The checks of a header, all of them, before a byte of its payload is placed.

use super::super::ddp::{self, Header, Tagged, Untagged};
use super::super::rdmap::{ControlError, Opcode, READ_REQUEST_LENGTH};
use super::super::terminate::Violation;
use super::segment::{Destination, Segment};
use super::{Parts, Receiver, Stop, violation};
use crate::RemoteAccess;
use crate::crc::Crc;

impl Receiver {
    /// Checks a header: all that can be wrong with it is found here, before a byte of its payload is placed.
    pub(super) fn admit(
        &mut self,
        parts: &Parts<'_>,
        length: usize,
        payload: usize,
        crc: Crc,
    ) -> Result<Segment, Stop> {
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
            check_first: false,
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
        if let Destination::Memory { exposure, .. } = &segment.to {
            segment.check_first = self.crc && !self.strict && exposure.access() == RemoteAccess::WriteChecked;
        }
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
        if !exposure.access().writes() {
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
}
