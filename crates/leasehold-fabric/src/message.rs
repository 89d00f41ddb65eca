//! The messages between Leasehold's ends, each carried in one RDMAP Send, in order behind the data.
//!
//! Integers are big-endian, as everywhere on this wire. A third-party peer (a verbs program on siw or an iWARP NIC)
//! speaks these with plain Sends.
//!
//! ```text
//! Commit    01 | flags 1 | zero 2 | crc32c 4 | request 8 | lease 8                                 24 bytes
//!           flags bit 0: crc32c is present (of all bytes of the leased range, in order)
//! Fetch     02 | zero 3  | sink tag 4 | request 8 | lease 8 | offset 8 | length 8 | sink offset 8  48 bytes
//!           asks for `length` bytes at `offset` of a read lease, by RDMA Write into the sender's sink
//! Capture   03 | zero 7  | request 8 | lease 8 | offset 8 | length 8                               40 bytes
//!           commits what was placed before it in `length` bytes at `offset` of a write lease, which goes on
//! Committed 81 | status 1 | zero 6 | request 8 | size 8 | text                                     24 bytes + text
//! Fetched   82 | status 1 | zero 6 | request 8 | text                                              16 bytes + text
//! Captured  83 | status 1 | zero 6 | request 8 | size 8 | text                                     24 bytes + text
//! ```
//! `request` is the sender's own number and comes back in the answer. `text` is UTF-8, for people, and present only if
//! `status` is not [`Status::Ok`].

use crate::Tag;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// It took effect.
    Ok = 0,
    /// No such lease of this session; it was never granted, or it is over.
    NoLease = 1,
    /// A commit or capture of a read lease, or a fetch of a write lease.
    WrongAccess = 2,
    /// The lease was broken, and revoked at its deadline.
    Revoked = 3,
    /// The CRC does not match the bytes.
    Mismatch = 4,
    /// The connection failed a checksum.
    Poisoned = 5,
    /// The fence could not be proven.
    Unproven = 6,
    /// The file was removed.
    Removed = 7,
    /// No space.
    NoSpace = 8,
    /// The disk, or a checksum on it.
    Io = 9,
    /// Outside the leased range.
    OutOfBounds = 10,
    /// A full arena, or a limit of the server.
    Full = 11,
}

/// The longest text that an answer carries; longer ones are cut.
pub const TEXT_MAX: usize = 1024;

/// The holder says that the leased range is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The sender's number.
    pub request: u64,
    /// Which lease.
    pub lease: u64,
    /// The CRC32C of all bytes of the leased range, in order, if the sender knows it.
    pub crc32c: Option<u32>,
}

/// The holder asks for bytes of a read lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The sender's number.
    pub request: u64,
    /// Which lease.
    pub lease: u64,
    /// Bytes from the start of the leased range.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// What the sender exposed for them.
    pub sink_tag: Tag,
    /// Where in it.
    pub sink_offset: u64,
}

/// The holder of a write lease wants what it has placed so far to be committed, and goes on writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The sender's number.
    pub request: u64,
    /// Which lease.
    pub lease: u64,
    /// Bytes from the start of the leased range.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// The answer to [`Commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The number of the request.
    pub request: u64,
    /// How it went.
    pub status: Status,
    /// The file's size after it.
    pub size: u64,
    /// For people; empty if `status` is [`Status::Ok`].
    pub text: String,
}

/// The answer to [`Fetch`], behind the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The number of the request.
    pub request: u64,
    /// How it went.
    pub status: Status,
    /// For people; empty if `status` is [`Status::Ok`].
    pub text: String,
}

/// The answer to [`Capture`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The number of the request.
    pub request: u64,
    /// How it went.
    pub status: Status,
    /// The file's size after it.
    pub size: u64,
    /// For people; empty if `status` is [`Status::Ok`].
    pub text: String,
}

/// Any of the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A range is complete.
    Commit(Commit),
    /// Bytes are wanted.
    Fetch(Fetch),
    /// What was placed so far is to be committed.
    Capture(Capture),
    /// The answer to a commit.
    Committed(Committed),
    /// The answer to a fetch.
    Fetched(Fetched),
    /// The answer to a capture.
    Captured(Captured),
}

/// Why bytes are none of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The first byte names no message.
    #[error("{0:#04x} names no message; does the peer speak a newer version?")]
    Kind(u8),
    /// Too few bytes, or too many for a message of fixed length.
    #[error(
        "message {kind:#04x} of {length} bytes; it has {expected} at least, and no more unless it carries text"
    )]
    Length {
        /// The first byte.
        kind: u8,
        /// How many came.
        length: usize,
        /// How many it has.
        expected: usize,
    },
    /// Bits that must be zero are not.
    #[error("message {0:#04x} sets bits that must be zero")]
    Reserved(u8),
    /// Not a status.
    #[error("{0} is no status")]
    Status(u8),
    /// The text is not UTF-8, or present although the status is Ok.
    #[error("message {0:#04x} carries text that is not UTF-8, or that does not belong to its status")]
    Text(u8),
}

const COMMIT: u8 = 0x01;
const FETCH: u8 = 0x02;
const CAPTURE: u8 = 0x03;
const COMMITTED: u8 = 0x81;
const FETCHED: u8 = 0x82;
const CAPTURED: u8 = 0x83;
const COMMIT_LENGTH: usize = 24;
const FETCH_LENGTH: usize = 48;
const CAPTURE_LENGTH: usize = 40;
const COMMITTED_LENGTH: usize = 24;
const FETCHED_LENGTH: usize = 16;
const CAPTURED_LENGTH: usize = 24;
const HAS_CRC: u8 = 1;

impl Message {
    /// The bytes of one Send.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(FETCH_LENGTH);
        match self {
            Message::Commit(commit) => {
                out.put_u8(COMMIT);
                out.put_u8(if commit.crc32c.is_some() { HAS_CRC } else { 0 });
                out.put_bytes(0, 2);
                out.put_u32(commit.crc32c.unwrap_or(0));
                out.put_u64(commit.request);
                out.put_u64(commit.lease);
            }
            Message::Fetch(fetch) => {
                out.put_u8(FETCH);
                out.put_bytes(0, 3);
                out.put_u32(fetch.sink_tag.0);
                out.put_u64(fetch.request);
                out.put_u64(fetch.lease);
                out.put_u64(fetch.offset);
                out.put_u64(fetch.length);
                out.put_u64(fetch.sink_offset);
            }
            Message::Capture(capture) => {
                out.put_u8(CAPTURE);
                out.put_bytes(0, 7);
                out.put_u64(capture.request);
                out.put_u64(capture.lease);
                out.put_u64(capture.offset);
                out.put_u64(capture.length);
            }
            Message::Committed(answer) => {
                put_answer(&mut out, COMMITTED, answer.status, answer.request);
                out.put_u64(answer.size);
                put_text(&mut out, answer.status, &answer.text);
            }
            Message::Fetched(answer) => {
                put_answer(&mut out, FETCHED, answer.status, answer.request);
                put_text(&mut out, answer.status, &answer.text);
            }
            Message::Captured(answer) => {
                put_answer(&mut out, CAPTURED, answer.status, answer.request);
                out.put_u64(answer.size);
                put_text(&mut out, answer.status, &answer.text);
            }
        }
        out.freeze()
    }

    /// Parses the bytes of one Send.
    ///
    /// # Errors
    /// [`ParseError`] if they are none of the messages.
    pub fn parse(bytes: &[u8]) -> Result<Message, ParseError> {
        let kind = *bytes.first().ok_or(ParseError::Length { kind: 0, length: 0, expected: 1 })?;
        let (fixed, has_text) = match kind {
            COMMIT => (COMMIT_LENGTH, false),
            FETCH => (FETCH_LENGTH, false),
            CAPTURE => (CAPTURE_LENGTH, false),
            COMMITTED => (COMMITTED_LENGTH, true),
            FETCHED => (FETCHED_LENGTH, true),
            CAPTURED => (CAPTURED_LENGTH, true),
            _ => return Err(ParseError::Kind(kind)),
        };
        if bytes.len() < fixed || (bytes.len() > fixed && !has_text) {
            return Err(ParseError::Length { kind, length: bytes.len(), expected: fixed });
        }
        let (mut fields, rest) = bytes.split_at(fixed);
        fields.advance(1);
        let second = fields.get_u8();
        let zero = u64::from(fields.get_u16());
        match kind {
            COMMIT => {
                let crc32c = fields.get_u32();
                let present = second & HAS_CRC != 0;
                if second & !HAS_CRC != 0 || zero != 0 || (!present && crc32c != 0) {
                    return Err(ParseError::Reserved(kind));
                }
                Ok(Message::Commit(Commit {
                    crc32c: present.then_some(crc32c),
                    request: fields.get_u64(),
                    lease: fields.get_u64(),
                }))
            }
            FETCH => {
                if second != 0 || zero != 0 {
                    return Err(ParseError::Reserved(kind));
                }
                Ok(Message::Fetch(Fetch {
                    sink_tag: Tag(fields.get_u32()),
                    request: fields.get_u64(),
                    lease: fields.get_u64(),
                    offset: fields.get_u64(),
                    length: fields.get_u64(),
                    sink_offset: fields.get_u64(),
                }))
            }
            CAPTURE => {
                if second != 0 || zero != 0 || fields.get_u32() != 0 {
                    return Err(ParseError::Reserved(kind));
                }
                Ok(Message::Capture(Capture {
                    request: fields.get_u64(),
                    lease: fields.get_u64(),
                    offset: fields.get_u64(),
                    length: fields.get_u64(),
                }))
            }
            _ => {
                let status = Status::try_from(second)?;
                if zero != 0 || fields.get_u32() != 0 {
                    return Err(ParseError::Reserved(kind));
                }
                let text = std::str::from_utf8(rest).map_err(|_| ParseError::Text(kind))?.to_owned();
                if status == Status::Ok && !text.is_empty() {
                    return Err(ParseError::Text(kind));
                }
                let request = fields.get_u64();
                Ok(match kind {
                    COMMITTED => {
                        Message::Committed(Committed { request, status, size: fields.get_u64(), text })
                    }
                    CAPTURED => Message::Captured(Captured { request, status, size: fields.get_u64(), text }),
                    _ => Message::Fetched(Fetched { request, status, text }),
                })
            }
        }
    }
}

impl TryFrom<u8> for Status {
    type Error = ParseError;

    fn try_from(byte: u8) -> Result<Status, ParseError> {
        Ok(match byte {
            0 => Status::Ok,
            1 => Status::NoLease,
            2 => Status::WrongAccess,
            3 => Status::Revoked,
            4 => Status::Mismatch,
            5 => Status::Poisoned,
            6 => Status::Unproven,
            7 => Status::Removed,
            8 => Status::NoSpace,
            9 => Status::Io,
            10 => Status::OutOfBounds,
            11 => Status::Full,
            _ => return Err(ParseError::Status(byte)),
        })
    }
}

fn put_answer(out: &mut BytesMut, kind: u8, status: Status, request: u64) {
    out.put_u8(kind);
    out.put_u8(status as u8);
    out.put_bytes(0, 6);
    out.put_u64(request);
}

/// No text if all went well; else at most [`TEXT_MAX`] bytes, cut between characters.
fn put_text(out: &mut BytesMut, status: Status, text: &str) {
    if status == Status::Ok {
        return;
    }
    out.put_slice(&text.as_bytes()[..text.floor_char_boundary(TEXT_MAX)]);
}

#[cfg(test)]
mod tests;
