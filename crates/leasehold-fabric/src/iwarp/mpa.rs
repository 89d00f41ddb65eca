//! MPA set-up frames: the request of the initiator and the reply of the responder (RFC 5044 section 7.1.1, revision 2
//! by RFC 6581 section 9).
//!
//! ```text
//! key 16 | M C R S and zero | revision 1 | length 2 | private data
//! ```
//! With S, the private data open with 4 bytes: A B and the IRD in 14 bits, C D and the ORD in 14 bits. A asks for
//! peer-to-peer, where the initiator's first frame is a ready-to-receive: B a Send, C a Write, D a Read of zero length.

use bytes::{Buf, BufMut};

const REQUEST_KEY: &[u8; 16] = b"MPA ID Req Frame";
const REPLY_KEY: &[u8; 16] = b"MPA ID Rep Frame";
const MARKERS: u8 = 0x80;
const USE_CRC: u8 = 0x40;
const REJECT: u8 = 0x20;
const ENHANCED: u8 = 0x10;

/// The header, before the private data.
pub(crate) const HEADER: usize = 20;
/// The most private data (RFC 5044 section 7.1.1).
pub(crate) const PRIVATE_DATA_MAX: usize = 512;
/// The most reads at once that 14 bits hold; all ones means that nothing is negotiated (RFC 6581 section 9.1).
pub(crate) const NOT_NEGOTIATED: u16 = 0x3FFF;

/// Which of the two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Request,
    Reply,
}

/// A set-up frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) role: Role,
    /// The sender wants to receive markers.
    pub(crate) markers: bool,
    /// The sender wants CRCs.
    pub(crate) crc: bool,
    /// The responder says no.
    pub(crate) reject: bool,
    pub(crate) revision: u8,
    /// Revision 2's negotiation.
    pub(crate) enhanced: Option<Enhanced>,
    pub(crate) private_data: Vec<u8>,
}

/// The 4 bytes of revision 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Enhanced {
    /// How many reads at once the sender serves.
    pub(crate) ird: u16,
    /// How many reads at once the sender will ask for.
    pub(crate) ord: u16,
    /// The ready-to-receive frames that the sender can use, if it wants peer-to-peer.
    pub(crate) ready: Option<Ready>,
}

/// Kinds of ready-to-receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Ready {
    pub(crate) send: bool,
    pub(crate) write: bool,
    pub(crate) read: bool,
}

/// Why bytes are not the set-up frame that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("it does not open with the key of an MPA frame")]
    Key,
    #[error("{0} bytes of private data; at most 512 are allowed")]
    TooLong(usize),
    #[error("revision 2 without the 4 bytes of its negotiation")]
    Enhanced,
}

/// How much private data follows this header.
pub(crate) fn private_data_length(header: &[u8; HEADER], role: Role) -> Result<usize, FrameError> {
    if header[..16] != role.key()[..] {
        return Err(FrameError::Key);
    }
    let length = usize::from(u16::from_be_bytes([header[18], header[19]]));
    if length > PRIVATE_DATA_MAX { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

impl Role {
    fn key(self) -> &'static [u8; 16] {
        match self {
            Role::Request => REQUEST_KEY,
            Role::Reply => REPLY_KEY,
        }
    }
}

impl Frame {
    /// Parses a header and the private data behind it, whose length [`private_data_length`] said.
    pub(crate) fn parse(header: &[u8; HEADER], mut data: &[u8], role: Role) -> Result<Frame, FrameError> {
        private_data_length(header, role)?;
        let (flags, revision) = (header[16], header[17]);
        let mut enhanced = None;
        if revision >= 2 && flags & ENHANCED != 0 {
            if data.len() < 4 {
                return Err(FrameError::Enhanced);
            }
            enhanced = Some(Enhanced::parse(data.get_u16(), data.get_u16()));
        }
        Ok(Frame {
            role,
            markers: flags & MARKERS != 0,
            crc: flags & USE_CRC != 0,
            reject: flags & REJECT != 0,
            revision,
            enhanced,
            private_data: data.to_vec(),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + 4 + self.private_data.len());
        out.put_slice(self.role.key());
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        out.put_u8(
            flag(self.markers, MARKERS)
                | flag(self.crc, USE_CRC)
                | flag(self.reject, REJECT)
                | flag(self.enhanced.is_some(), ENHANCED),
        );
        out.put_u8(self.revision);
        let enhanced = if self.enhanced.is_some() { 4 } else { 0 };
        out.put_u16((self.private_data.len() + enhanced) as u16);
        if let Some(enhanced) = &self.enhanced {
            enhanced.put(&mut out);
        }
        out.put_slice(&self.private_data);
        out
    }
}

impl Enhanced {
    const FIRST: u16 = 0x8000;
    const SECOND: u16 = 0x4000;

    fn parse(first: u16, second: u16) -> Enhanced {
        let ready = (first & Self::FIRST != 0).then_some(Ready {
            send: first & Self::SECOND != 0,
            write: second & Self::FIRST != 0,
            read: second & Self::SECOND != 0,
        });
        Enhanced { ird: first & NOT_NEGOTIATED, ord: second & NOT_NEGOTIATED, ready }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let (mut first, mut second) = (self.ird & NOT_NEGOTIATED, self.ord & NOT_NEGOTIATED);
        if let Some(ready) = self.ready {
            first |= Self::FIRST | if ready.send { Self::SECOND } else { 0 };
            second |= if ready.write { Self::FIRST } else { 0 } | if ready.read { Self::SECOND } else { 0 };
        }
        out.put_u16(first);
        out.put_u16(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let ready = any::<Option<[bool; 3]>>()
            .prop_map(|ready| ready.map(|[send, write, read]| Ready { send, write, read }));
        let enhanced =
            (0u16..=0x3FFF, 0u16..=0x3FFF, ready).prop_map(|(ird, ord, ready)| Enhanced { ird, ord, ready });
        (any::<[bool; 4]>(), prop::option::of(enhanced), prop::collection::vec(any::<u8>(), 0..100)).prop_map(
            |([request, markers, crc, reject], enhanced, private_data)| Frame {
                role: if request { Role::Request } else { Role::Reply },
                markers,
                crc,
                reject,
                revision: if enhanced.is_some() { 2 } else { 1 },
                enhanced,
                private_data,
            },
        )
    }

    proptest! {
        #[test]
        fn a_frame_comes_back(frame in frame()) {
            let bytes = frame.encode();
            let header: &[u8; HEADER] = bytes[..HEADER].try_into().expect("20 bytes");
            prop_assert_eq!(private_data_length(header, frame.role), Ok(bytes.len() - HEADER));
            prop_assert_eq!(Frame::parse(header, &bytes[HEADER..], frame.role), Ok(frame));
        }

        #[test]
        fn any_bytes_are_a_frame_or_refused(header: [u8; HEADER], data: [u8; 8]) {
            prop_assert_eq!(Frame::parse(&header, &data, Role::Request), Err(FrameError::Key));
        }
    }
}
