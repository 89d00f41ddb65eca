//! The client's half of [`leasehold_fabric::message`]: encodes what it asks for, parses the answers.

use bytes::{BufMut as _, Bytes, BytesMut};
use leasehold_core::ids::LeaseId;
use leasehold_fabric::Tag;
use leasehold_fabric::message::Status;

const COMMIT: u8 = 0x01;
const FETCH: u8 = 0x02;
const COMMITTED: u8 = 0x81;
const FETCHED: u8 = 0x82;

/// The answer to one request on the data connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    /// The file's size; 0 for a fetch.
    pub(crate) size: u64,
    /// What the server says about a failure.
    pub(crate) text: String,
}

/// The message did not follow the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sent a message of {length} bytes and kind {kind:#04x} that is no answer")]
pub(crate) struct NoAnswer {
    length: usize,
    kind: u8,
}

pub(crate) fn commit(request: u64, lease: LeaseId, crc32c: Option<u32>) -> Bytes {
    let mut message = BytesMut::with_capacity(24);
    message.put_u8(COMMIT);
    message.put_u8(u8::from(crc32c.is_some()));
    message.put_u16(0);
    message.put_u32(crc32c.unwrap_or(0));
    message.put_u64(request);
    message.put_u64(lease.0);
    message.freeze()
}

/// `length` bytes at `offset` of a read lease, please, to the start of what `sink` exposes.
pub(crate) fn fetch(request: u64, lease: LeaseId, offset: u64, length: u64, sink: Tag) -> Bytes {
    let mut message = BytesMut::with_capacity(48);
    message.put_u8(FETCH);
    message.put_bytes(0, 3);
    message.put_u32(sink.0);
    message.put_u64(request);
    message.put_u64(lease.0);
    message.put_u64(offset);
    message.put_u64(length);
    message.put_u64(0);
    message.freeze()
}

/// The request's number, and its answer.
pub(crate) fn answer(message: &[u8]) -> Result<(u64, Answer), NoAnswer> {
    let kind = message.first().copied().unwrap_or(0);
    let no_answer = NoAnswer { length: message.len(), kind };
    let word = |at: usize| -> Option<u64> {
        Some(u64::from_be_bytes(message.get(at..at + 8)?.try_into().ok()?))
    };
    let (size, text_at) = match kind {
        COMMITTED => (word(16).ok_or(no_answer)?, 24),
        FETCHED => (0, 16),
        _ => return Err(no_answer),
    };
    let request = word(8).ok_or(no_answer)?;
    let status = message.get(1).copied().and_then(status).ok_or(no_answer)?;
    let text = String::from_utf8_lossy(&message[text_at..]).into_owned();
    Ok((request, Answer { status, size, text }))
}

fn status(number: u8) -> Option<Status> {
    use Status::*;
    [Ok, NoLease, WrongAccess, Revoked, Mismatch, Poisoned, Unproven, Removed, NoSpace, Io, OutOfBounds, Full]
        .into_iter()
        .find(|status| *status as u8 == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_laid_out_as_documented() {
        let message = commit(0x0102, LeaseId(0x0304), Some(0xAABB_CCDD));
        let layout = [
            0x01, 1, 0, 0, 0xAA, 0xBB, 0xCC, 0xDD, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4,
        ];
        assert_eq!(&message[..], layout);
        assert_eq!(commit(1, LeaseId(1), None)[1], 0, "without a CRC the flag is clear");
    }

    #[test]
    fn a_fetch_is_laid_out_as_documented() {
        let message = fetch(1, LeaseId(2), 3, 4, Tag(5));
        assert_eq!(message.len(), 48);
        let words: Vec<u64> =
            message.chunks(8).map(|word| u64::from_be_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [0x0200_0000_0000_0005, 1, 2, 3, 4, 0]);
    }

    #[test]
    fn answers_are_parsed_with_their_text() {
        let mut message = vec![0x81, 4, 0, 0, 0, 0, 0, 0];
        message.extend(7u64.to_be_bytes());
        message.extend(9u64.to_be_bytes());
        message.extend(b"write it again");
        let expected = Answer { status: Status::Mismatch, size: 9, text: "write it again".to_owned() };
        assert_eq!(answer(&message), Ok((7, expected)));
    }

    #[test]
    fn every_cut_of_an_answer_is_refused_and_none_panics() {
        let mut message = vec![0x81, 0, 0, 0, 0, 0, 0, 0];
        message.extend([0; 16]);
        assert!(answer(&message).is_ok());
        for length in 0..message.len() {
            assert!(answer(&message[..length]).is_err(), "{length} bytes are no answer");
        }
        message[1] = 200;
        assert!(answer(&message).is_err(), "an unknown status is not taken for success");
    }
}
