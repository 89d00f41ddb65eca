//! RDMAP (RFC 5040 section 4): what a DDP message means. A control byte within DDP's header, and for Read Requests a
//! header of its own behind it.
//!
//! ```text
//! control       RV=1 (top 2 bits) | 0 0 | opcode 4
//! Read Request  sink tag 4 | sink offset 8 | length 4 | source tag 4 | source offset 8   28 bytes
//! ```

use bytes::{Buf, BufMut};

const VERSION_MASK: u8 = 0xC0;
const VERSION: u8 = 0x40;
const OPCODE_MASK: u8 = 0x0F;

/// The length of a Read Request's header.
pub(crate) const READ_REQUEST_LENGTH: usize = 28;

/// What a message means (RFC 5040 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Opcode {
    Write = 0,
    ReadRequest = 1,
    ReadResponse = 2,
    Send = 3,
    SendInvalidate = 4,
    SendSolicited = 5,
    SendSolicitedInvalidate = 6,
    Terminate = 7,
}

/// Why a control byte is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlError {
    Version,
    Opcode,
}

impl Opcode {
    /// Parses a control byte. Reserved bits are not checked on receipt (RFC 5040 section 4.1).
    pub(crate) fn parse(control: u8) -> Result<Opcode, ControlError> {
        if control & VERSION_MASK != VERSION {
            return Err(ControlError::Version);
        }
        Ok(match control & OPCODE_MASK {
            0 => Opcode::Write,
            1 => Opcode::ReadRequest,
            2 => Opcode::ReadResponse,
            3 => Opcode::Send,
            4 => Opcode::SendInvalidate,
            5 => Opcode::SendSolicited,
            6 => Opcode::SendSolicitedInvalidate,
            7 => Opcode::Terminate,
            _ => return Err(ControlError::Opcode),
        })
    }

    /// The control byte.
    pub(crate) fn control(self) -> u8 {
        VERSION | self as u8
    }

    /// Carried in tagged segments (RFC 5040 section 4.1, figure 4).
    pub(crate) fn is_tagged(self) -> bool {
        matches!(self, Opcode::Write | Opcode::ReadResponse)
    }

    /// Whether it invalidates a tag on arrival.
    pub(crate) fn invalidates(self) -> bool {
        matches!(self, Opcode::SendInvalidate | Opcode::SendSolicitedInvalidate)
    }
}

/// Asks the peer to send bytes of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadRequest {
    pub(crate) sink_tag: u32,
    pub(crate) sink_offset: u64,
    pub(crate) length: u32,
    pub(crate) source_tag: u32,
    pub(crate) source_offset: u64,
}

impl ReadRequest {
    /// Parses a whole header.
    pub(crate) fn parse(mut bytes: &[u8]) -> Option<ReadRequest> {
        (bytes.len() == READ_REQUEST_LENGTH).then(|| ReadRequest {
            sink_tag: bytes.get_u32(),
            sink_offset: bytes.get_u64(),
            length: bytes.get_u32(),
            source_tag: bytes.get_u32(),
            source_offset: bytes.get_u64(),
        })
    }

    pub(crate) fn put(&self, out: &mut impl BufMut) {
        out.put_u32(self.sink_tag);
        out.put_u64(self.sink_offset);
        out.put_u32(self.length);
        out.put_u32(self.source_tag);
        out.put_u64(self.source_offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_read_request_comes_back(tags: [u32; 3], offsets: [u64; 2]) {
            let request = ReadRequest {
                sink_tag: tags[0],
                sink_offset: offsets[0],
                length: tags[1],
                source_tag: tags[2],
                source_offset: offsets[1],
            };
            let mut bytes = Vec::new();
            request.put(&mut bytes);
            prop_assert_eq!(ReadRequest::parse(&bytes), Some(request));
            bytes.pop();
            prop_assert_eq!(ReadRequest::parse(&bytes), None);
        }

        #[test]
        fn a_control_byte_is_an_opcode_or_refused(control: u8) {
            match Opcode::parse(control) {
                Ok(opcode) => prop_assert_eq!(opcode.control(), control & 0xCF),
                Err(ControlError::Version) => prop_assert_ne!(control >> 6, 1),
                Err(ControlError::Opcode) => prop_assert!(control & 0xF > 7),
            }
        }
    }
}
