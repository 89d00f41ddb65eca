//! A peer made of a plain socket, which can say anything. Its encoding and its CRC are written apart from the crate's,
//! from the standards' figures.

#![allow(dead_code, reason = "each test uses some of it")]

use leasehold_fabric::Tag;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const WRITE: u8 = 0;
pub const READ_REQUEST: u8 = 1;
pub const READ_RESPONSE: u8 = 2;
pub const SEND: u8 = 3;
pub const SEND_INVALIDATE: u8 = 4;
pub const SEND_SE: u8 = 5;
pub const TERMINATE: u8 = 7;

/// CRC32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

/// Wraps a segment in a frame.
pub fn frame(segment: &[u8]) -> Vec<u8> {
    frame_of_length(segment.len() as u16, segment)
}

/// Wraps a segment in a frame that claims another length.
pub fn frame_of_length(length: u16, segment: &[u8]) -> Vec<u8> {
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(segment);
    while !frame.len().is_multiple_of(4) {
        frame.push(0);
    }
    let crc = crc32c(&frame);
    frame.extend_from_slice(&crc.to_le_bytes());
    frame
}

pub fn tagged(opcode: u8, last: bool, tag: Tag, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x81 | if last { 0x40 } else { 0 }, 0x40 | opcode];
    segment.extend_from_slice(&tag.0.to_be_bytes());
    segment.extend_from_slice(&offset.to_be_bytes());
    segment.extend_from_slice(payload);
    segment
}

pub fn untagged(opcode: u8, last: bool, invalidate: u32, place: [u32; 3], payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x01 | if last { 0x40 } else { 0 }, 0x40 | opcode];
    segment.extend_from_slice(&invalidate.to_be_bytes());
    for field in place {
        segment.extend_from_slice(&field.to_be_bytes());
    }
    segment.extend_from_slice(payload);
    segment
}

/// A Write in one frame.
pub fn write(tag: Tag, offset: u64, payload: &[u8]) -> Vec<u8> {
    frame(&tagged(WRITE, true, tag, offset, payload))
}

/// A Send in one frame.
pub fn send(number: u32, payload: &[u8]) -> Vec<u8> {
    frame(&untagged(SEND, true, 0, [0, number, 0], payload))
}

/// A Read Request in one frame.
pub fn read_request(
    number: u32,
    sink: Tag,
    sink_offset: u64,
    length: u32,
    source: Tag,
    offset: u64,
) -> Vec<u8> {
    let mut header = sink.0.to_be_bytes().to_vec();
    header.extend_from_slice(&sink_offset.to_be_bytes());
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&source.0.to_be_bytes());
    header.extend_from_slice(&offset.to_be_bytes());
    frame(&untagged(READ_REQUEST, true, 0, [1, number, 0], &header))
}

/// An MPA set-up frame.
pub fn setup(key: &[u8; 16], flags: u8, revision: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = key.to_vec();
    frame.extend_from_slice(&[flags, revision]);
    frame.extend_from_slice(&(data.len() as u16).to_be_bytes());
    frame.extend_from_slice(data);
    frame
}

pub const REQUEST: &[u8; 16] = b"MPA ID Req Frame";
pub const REPLY: &[u8; 16] = b"MPA ID Rep Frame";
pub const USE_CRC: u8 = 0x40;

/// What a responder's set-up frame says.
#[derive(Debug)]
pub struct Reply {
    pub flags: u8,
    pub revision: u8,
    pub data: Vec<u8>,
}

/// The peer.
pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    /// Connects and says nothing.
    pub fn silent(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        Raw { stream }
    }

    /// Connects by revision 1, with CRCs.
    pub fn connect(address: SocketAddr, token: &[u8]) -> Raw {
        let mut raw = Raw::silent(address);
        raw.put(&setup(REQUEST, USE_CRC, 1, token));
        let reply = raw.reply();
        assert_eq!((reply.flags, reply.revision), (USE_CRC, 1));
        raw
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the socket to take it");
    }

    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).expect("an answer");
        bytes
    }

    pub fn reply(&mut self) -> Reply {
        let header = self.take(20);
        assert_eq!(header[..16], REPLY[..]);
        let data = self.take(usize::from(u16::from_be_bytes([header[18], header[19]])));
        Reply { flags: header[16], revision: header[17], data }
    }

    /// The next segment. Its frame's padding and CRC must be right.
    pub fn segment(&mut self) -> Vec<u8> {
        let mut frame = self.take(2);
        let length = usize::from(u16::from_be_bytes([frame[0], frame[1]]));
        let padding = (4 - (2 + length) % 4) % 4;
        frame.extend(self.take(length + padding));
        let crc = self.take(4);
        assert_eq!(crc, crc32c(&frame).to_le_bytes(), "CRC of the frame");
        assert!(frame[2 + length..].iter().all(|&byte| byte == 0), "padding");
        frame[2..2 + length].to_vec()
    }

    /// The next segment must be a Terminate: its layer, type and code, and what follows.
    pub fn terminate(&mut self) -> ((u8, u8, u8), Vec<u8>) {
        let segment = self.segment();
        assert_eq!(segment[..2], [0x41, 0x47], "an untagged last segment with opcode 7");
        assert_eq!(segment[6..18], [0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0], "queue 2, number 1, offset 0");
        ((segment[18] >> 4, segment[18] & 0xF, segment[19]), segment[20..].to_vec())
    }

    /// The peer has nothing more to say.
    pub fn end(&mut self) {
        let mut byte = [0];
        assert_eq!(self.stream.read(&mut byte).expect("an orderly end"), 0, "an end in place of {byte:?}");
    }

    /// Nothing comes for a while. (A wait that only makes the test sharper: it cannot fail by being too short.)
    pub fn hears_nothing_for(&mut self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).expect("a time-out");
        let mut byte = [0];
        let error = self.stream.read(&mut byte).expect_err("silence");
        assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
        self.stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    }
}
