//! DDP segments (RFC 5041 section 4): tagged ones name a place in the receiver's memory, untagged ones a message in a
//! queue. The byte of RDMAP's control field stands within the header, behind DDP's own.
//!
//! ```text
//! tagged    T=1 L DV=1 | RDMAP 1 | tag 4 | offset 8                                                  14 bytes
//! untagged  T=0 L DV=1 | RDMAP 1 | invalidated tag, or reserved, 4 | queue 4 | number 4 | offset 4   18 bytes
//! ```

use bytes::{Buf, BufMut};

const TAGGED: u8 = 0x80;
const LAST: u8 = 0x40;
const VERSION_MASK: u8 = 0x03;
const VERSION: u8 = 1;

/// The length of a tagged header.
pub(crate) const TAGGED_LENGTH: usize = 14;
/// The length of an untagged header.
pub(crate) const UNTAGGED_LENGTH: usize = 18;

/// The queue of Sends.
pub(crate) const SEND_QUEUE: u32 = 0;
/// The queue of Read Requests.
pub(crate) const READ_QUEUE: u32 = 1;
/// The queue of Terminates.
pub(crate) const TERMINATE_QUEUE: u32 = 2;

/// The header of a tagged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tagged {
    /// The last segment of its message.
    pub(crate) last: bool,
    /// RDMAP's control byte.
    pub(crate) rdmap: u8,
    pub(crate) tag: u32,
    pub(crate) offset: u64,
}

/// The header of an untagged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Untagged {
    /// The last segment of its message.
    pub(crate) last: bool,
    /// RDMAP's control byte.
    pub(crate) rdmap: u8,
    /// The tag to invalidate, for the opcodes that do.
    pub(crate) invalidate: u32,
    pub(crate) queue: u32,
    /// The message's number in its queue (MSN), from 1.
    pub(crate) number: u32,
    /// Where in the message the segment belongs (MO).
    pub(crate) offset: u32,
}

/// Either header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Tagged(Tagged),
    Untagged(Untagged),
}

/// The version is not 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongVersion {
    pub(crate) tagged: bool,
}

/// How long the header is that starts with this byte.
pub(crate) fn header_length(first: u8) -> usize {
    if first & TAGGED != 0 { TAGGED_LENGTH } else { UNTAGGED_LENGTH }
}

impl Header {
    /// Parses the header at the start of `bytes`, which hold all of it.
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Header, WrongVersion> {
        let control = bytes.get_u8();
        let tagged = control & TAGGED != 0;
        // RFC 5041 section 4.1: the version is checked; reserved bits are not.
        if control & VERSION_MASK != VERSION {
            return Err(WrongVersion { tagged });
        }
        let last = control & LAST != 0;
        let rdmap = bytes.get_u8();
        let tag = bytes.get_u32();
        Ok(if tagged {
            Header::Tagged(Tagged { last, rdmap, tag, offset: bytes.get_u64() })
        } else {
            Header::Untagged(Untagged {
                last,
                rdmap,
                invalidate: tag,
                queue: bytes.get_u32(),
                number: bytes.get_u32(),
                offset: bytes.get_u32(),
            })
        })
    }

    pub(crate) fn put(&self, out: &mut impl BufMut) {
        match *self {
            Header::Tagged(Tagged { last, rdmap, tag, offset }) => {
                out.put_u8(TAGGED | VERSION | if last { LAST } else { 0 });
                out.put_u8(rdmap);
                out.put_u32(tag);
                out.put_u64(offset);
            }
            Header::Untagged(Untagged { last, rdmap, invalidate, queue, number, offset }) => {
                out.put_u8(VERSION | if last { LAST } else { 0 });
                out.put_u8(rdmap);
                out.put_u32(invalidate);
                out.put_u32(queue);
                out.put_u32(number);
                out.put_u32(offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        let tagged = any::<(bool, u8, u32, u64)>()
            .prop_map(|(last, rdmap, tag, offset)| Header::Tagged(Tagged { last, rdmap, tag, offset }));
        let untagged =
            any::<(bool, u8, [u32; 4])>().prop_map(|(last, rdmap, [invalidate, queue, number, offset])| {
                Header::Untagged(Untagged { last, rdmap, invalidate, queue, number, offset })
            });
        prop_oneof![tagged, untagged]
    }

    proptest! {
        #[test]
        fn a_header_comes_back(header in header()) {
            let mut bytes = Vec::new();
            header.put(&mut bytes);
            prop_assert_eq!(bytes.len(), header_length(bytes[0]));
            prop_assert_eq!(Header::parse(&bytes), Ok(header));
        }

        #[test]
        fn any_other_version_is_refused(first: u8, rest: [u8; 17]) {
            let mut bytes = vec![first];
            bytes.extend(rest);
            prop_assert_eq!(Header::parse(&bytes).is_err(), first & 3 != 1);
        }
    }
}
