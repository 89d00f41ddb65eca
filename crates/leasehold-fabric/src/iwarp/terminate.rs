//! Terminate, the last message of a stream that broke the protocol: who noticed what, and the header in question
//! (RFC 5040 section 4.8).
//!
//! ```text
//! layer 4 bits, type 4 | code 8 | M D R, 13 reserved | segment length 2, if M | DDP header, if D | RDMAP header, if R
//! ```

use super::ddp;
use super::rdmap;
use bytes::BufMut;

const HAS_LENGTH: u8 = 0x80;
const HAS_DDP: u8 = 0x40;
const HAS_RDMAP: u8 = 0x20;
/// The three flags as they come from a sender that builds the field in little-endian host order.
const HOST_ORDER_FLAGS: u8 = 0x07;

/// How a peer can break the protocol, or what it can ask in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Violation {
    /// A write, a read response or a read under a tag that this connection does not have.
    #[error("unknown tag")]
    UnknownTag,
    /// Bytes outside what the tag exposes.
    #[error("outside what the tag exposes")]
    Bounds,
    /// Offset and length exceed 64 bits.
    #[error("offset and length wrap")]
    Wrap,
    /// A write to what is only readable, or a read of what is only writable.
    #[error("no such access under this tag")]
    Access,
    /// A read under a tag that was revoked. (Writes under it are taken and dropped.)
    #[error("read under a revoked tag")]
    RevokedRead,
    /// A Send that invalidates a tag that this connection does not have.
    #[error("unknown tag to invalidate")]
    CannotInvalidate,
    /// A DDP version other than 1, in a tagged segment.
    #[error("DDP version of a tagged segment")]
    TaggedVersion,
    /// A DDP version other than 1, in an untagged segment.
    #[error("DDP version of an untagged segment")]
    UntaggedVersion,
    /// An RDMAP version other than 1.
    #[error("RDMAP version")]
    RdmapVersion,
    /// An opcode that does not exist, or does not belong there.
    #[error("unexpected opcode")]
    Opcode,
    /// A queue other than 0, 1 and 2.
    #[error("queue number")]
    Queue,
    /// More Read Requests at once than were agreed.
    #[error("no buffer: more reads at once than agreed")]
    NoBuffer,
    /// A message number out of order.
    #[error("message number")]
    MessageNumber,
    /// A segment that does not continue its message.
    #[error("message offset")]
    MessageOffset,
    /// A message longer than the receiver takes.
    #[error("message too long")]
    MessageTooLong,
    /// A frame with a wrong CRC.
    #[error("frame with a wrong CRC")]
    Crc,
    /// A frame too short for its segment's header.
    #[error("frame length")]
    FrameLength,
}

impl Violation {
    /// How many there are.
    pub(crate) const COUNT: usize = Violation::FrameLength as usize + 1;

    /// What the Terminate says: for tagged segments the error is DDP's to report, for a Read Request's source it is
    /// RDMAP's (RFC 5041 section 7.2, RFC 5040 section 4.8, RFC 5044 section 8).
    pub(crate) fn code(self, opcode: Option<rdmap::Opcode>) -> Code {
        let read = opcode == Some(rdmap::Opcode::ReadRequest);
        let (layer, kind, code) = match self {
            Violation::UnknownTag | Violation::RevokedRead if read => (0, 1, 0),
            Violation::Bounds if read => (0, 1, 1),
            Violation::Wrap if read => (0, 1, 4),
            Violation::UnknownTag | Violation::RevokedRead => (1, 1, 0),
            Violation::Bounds => (1, 1, 1),
            Violation::Wrap => (1, 1, 3),
            Violation::Access => (0, 1, 2),
            Violation::CannotInvalidate => (0, 1, 9),
            Violation::TaggedVersion => (1, 1, 4),
            Violation::UntaggedVersion => (1, 2, 6),
            Violation::RdmapVersion => (0, 2, 5),
            Violation::Opcode => (0, 2, 6),
            Violation::Queue => (1, 2, 1),
            Violation::NoBuffer => (1, 2, 2),
            Violation::MessageNumber => (1, 2, 3),
            Violation::MessageOffset => (1, 2, 4),
            Violation::MessageTooLong => (1, 2, 5),
            Violation::Crc => (2, 0, 2),
            // The standard has no code for it; this one means that length and content disagree.
            Violation::FrameLength => (2, 0, 3),
        };
        Code { layer, kind, code }
    }
}

/// Layer (0 RDMAP, 1 DDP, 2 MPA), type of error, and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Who noticed.
    pub layer: u8,
    /// What kind.
    pub kind: u8,
    /// What.
    pub code: u8,
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match (self.layer, self.kind, self.code) {
            (0, 0, _) => "local catastrophic error",
            (0, 1, 0) | (1, 1, 0) => "invalid tag",
            (0, 1, 1) | (1, 1, 1) => "out of bounds",
            (0, 1, 2) => "access",
            (0, 1, 3) | (1, 1, 2) => "tag of another stream",
            (0, 1, 4) | (1, 1, 3) => "offset wraps",
            (0, 1 | 2, 9) => "tag cannot be invalidated",
            (0, 2, 5) => "RDMAP version",
            (0, 2, 6) => "unexpected opcode",
            (1, 1, 4) | (1, 2, 6) => "DDP version",
            (1, 2, 1) => "queue number",
            (1, 2, 2) => "no buffer",
            (1, 2, 3) => "message number",
            (1, 2, 4) => "message offset",
            (1, 2, 5) => "message too long",
            (2, 0, 1) => "stream lost",
            (2, 0, 2) => "CRC",
            (2, 0, 3) => "frame length or marker",
            (2, 0, 4) => "bad set-up frame",
            (2, 0, 6) => "too many reads at once asked for",
            (2, 0, 7) => "no matching ready-to-receive",
            _ => "unspecified",
        };
        let layer = ["RDMAP", "DDP", "MPA"].get(usize::from(self.layer)).unwrap_or(&"unknown layer");
        write!(f, "{what} ({layer} {}/{}/{:#04x})", self.layer, self.kind, self.code)
    }
}

/// The segment that a Terminate is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offender {
    /// The length of the segment.
    pub(crate) segment: u16,
    /// Its DDP header.
    pub(crate) header: [u8; ddp::UNTAGGED_LENGTH],
    /// How much of it counts.
    pub(crate) header_length: usize,
    /// The Read Request that it carried.
    pub(crate) read: Option<rdmap::ReadRequest>,
}

/// Puts what stands behind the DDP header of a Terminate.
pub(crate) fn put(code: Code, offender: Option<&Offender>, out: &mut impl BufMut) {
    out.put_u8(code.layer << 4 | code.kind);
    out.put_u8(code.code);
    let Some(offender) = offender else { return out.put_u16(0) };
    out.put_u8(HAS_LENGTH | HAS_DDP | if offender.read.is_some() { HAS_RDMAP } else { 0 });
    out.put_u8(0);
    out.put_u16(offender.segment);
    out.put_slice(&offender.header[..offender.header_length]);
    if let Some(read) = &offender.read {
        read.put(out);
    }
}

/// Reads what a peer's Terminate says. Linux' soft-iWARP builds its bit-fields in host order, so that from little-endian
/// machines layer and type come swapped, and M, D and R from the other end of their byte. The flags tell the two orders
/// apart: the bits where the other order has them are reserved, and zero. Without flags, of the two readings the one that
/// the standards define is taken. `None`: it is too short.
pub(crate) fn parse(bytes: &[u8]) -> Option<Code> {
    let &[first, code, ..] = bytes else { return None };
    let as_written = Code { layer: first >> 4, kind: first & 0xF, code };
    let swapped = Code { layer: first & 0xF, kind: first >> 4, code };
    let flags = bytes.get(2).copied().unwrap_or(0);
    let is_swapped = if flags & (HAS_LENGTH | HAS_DDP | HAS_RDMAP) != 0 {
        false
    } else {
        flags & HOST_ORDER_FLAGS != 0 || (!is_defined(as_written) && is_defined(swapped))
    };
    Some(if is_swapped { swapped } else { as_written })
}

fn is_defined(code: Code) -> bool {
    match (code.layer, code.kind) {
        (0 | 1, 0) => true,
        (0, 1) => matches!(code.code, 0..=4 | 9 | 0xFF),
        (0, 2) => matches!(code.code, 5..=9 | 0xFF),
        (1, 1) => code.code <= 4,
        (1, 2) => matches!(code.code, 1..=6),
        (2, 0) => matches!(code.code, 1..=7),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminate_names_the_header_in_question() {
        let read =
            rdmap::ReadRequest { sink_tag: 1, sink_offset: 2, length: 3, source_tag: 4, source_offset: 5 };
        let offender = Offender { segment: 46, header: [9; 18], header_length: 18, read: Some(read) };
        let mut bytes = Vec::new();
        let code = Violation::Bounds.code(Some(rdmap::Opcode::ReadRequest));
        put(code, Some(&offender), &mut bytes);
        assert_eq!(bytes[..6], [0x01, 0x01, 0xE0, 0, 0, 46]);
        assert_eq!(bytes.len(), 6 + 18 + 28);
        assert_eq!(parse(&bytes), Some(code));
    }

    #[test]
    fn a_terminate_without_a_header_is_four_bytes() {
        let mut bytes = Vec::new();
        put(Violation::FrameLength.code(None), None, &mut bytes);
        assert_eq!(bytes, [0x20, 3, 0, 0]);
    }

    /// The first bytes of what siw of Linux 6.1 sent on x86-64. Read as written, the refused reads were local catastrophes
    /// of DDP's.
    #[test]
    fn siws_terminates_are_read_by_the_order_of_their_flags() {
        let ours = |violation: Violation, opcode| violation.code(Some(opcode));
        let (write, read) = (rdmap::Opcode::Write, rdmap::Opcode::ReadRequest);
        for (bytes, code) in [
            ([0x11, 0, 0x03, 0, 0x03, 0xE9], ours(Violation::UnknownTag, write)),
            ([0x11, 1, 0x03, 0, 0x03, 0xE9], ours(Violation::Bounds, write)),
            ([0x10, 0, 0x07, 0, 0, 0], ours(Violation::UnknownTag, read)),
            ([0x10, 1, 0x07, 0, 0, 0], ours(Violation::Bounds, read)),
            ([0x02, 2, 0, 0, 0, 0], Violation::Crc.code(None)),
        ] {
            assert_eq!(parse(&bytes), Some(code), "{bytes:02x?}");
        }
        let catastrophe = Code { layer: 1, kind: 0, code: 0 };
        assert_eq!(parse(&[0x10, 0, 0xC0, 0]), Some(catastrophe), "with the standard's flags it is one");
        assert_eq!(parse(&[0x10, 0, 0, 0]), Some(catastrophe), "and without any");
    }

    #[test]
    fn swapped_nibbles_are_understood_where_only_one_reading_exists() {
        assert_eq!(parse(&[0x02, 2, 0, 0]), Some(Code { layer: 2, kind: 0, code: 2 }), "MPA, CRC, from siw");
        assert_eq!(parse(&[0x20, 2, 0, 0]), Some(Code { layer: 2, kind: 0, code: 2 }), "MPA, CRC");
        assert_eq!(parse(&[0x12, 5, 0, 0]), Some(Code { layer: 1, kind: 2, code: 5 }));
        assert_eq!(
            parse(&[0x21, 5, 0, 0]),
            Some(Code { layer: 1, kind: 2, code: 5 }),
            "DDP, too long, from siw"
        );
        assert_eq!(parse(&[0x12]), None);
    }
}
