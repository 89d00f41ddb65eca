//! What is done with bytes of a peer's, for fuzzing (`cargo xtask soak fuzz`): any bytes at all, and nothing may happen but what each
//! function checks.

use super::config::Config;
use super::ddp::Header;
use super::mpa::{self, Frame, Role};
use super::receive::Receiver;
use super::receive::trial::{Bench, LENGTH, Script, framed};
use super::{setup, terminate};
use crate::RemoteAccess;
use crate::crc::{BLOCK, crc32c};
use crate::message::Message;
use crate::verbs::control;

/// A function that takes any bytes, and its name.
pub type Target = (&'static str, fn(&[u8]));

/// The functions of this crate.
pub const TARGETS: &[Target] = &[("segments", segments), ("setup", setup), ("messages", messages)];

/// No message of a peer's is longer here.
const MESSAGE_MAX: usize = 4096;

/// A connection's stream: nothing is placed outside of what the tag names and allows, what is known of a block's sum is right, no
/// message is longer than agreed.
///
/// The first byte chooses the connection's CRC rule and the tag's access, the next two how the stream is cut. Then come frames: a byte of
/// choices, a header of 18 bytes, the payload's length in 2; or, if chosen so, as many bytes as they are.
pub fn segments(bytes: &[u8]) {
    let mut input = Input(bytes);
    let [choice] = input.take();
    let pieces = vec![usize::from(input.length()), 700];
    let access = match choice >> 2 & 3 {
        0 => RemoteAccess::Read,
        1 => RemoteAccess::WriteChecked,
        _ => RemoteAccess::Write,
    };
    let bench = Bench::new(access);
    let mut stream = Vec::new();
    while !input.0.is_empty() && stream.len() < 4 * LENGTH {
        let [how] = input.take();
        let mut header: [u8; 18] = input.take();
        let length = usize::from(input.length());
        if how & 1 != 0 {
            stream.extend(&header[..length % 18]);
            continue;
        }
        if how & 2 != 0 {
            header[2..6].copy_from_slice(&bench.tag.0.to_be_bytes());
            header[6..11].fill(0);
        }
        // The versions that there are; bytes as they are try others.
        header[0] = header[0] & 0xFC | 1;
        header[1] = header[1] & 0x0F | 0x40;
        let parsed = Header::parse(&header).expect("version 1");
        stream.extend(framed(parsed, &vec![how; length]));
        if how & 4 != 0 {
            *stream.last_mut().expect("a frame has bytes") ^= 1;
        }
    }
    let mut script = Script { bytes: stream, at: 0, pieces, reads: 0 };
    let mut receiver = Receiver::new(choice & 1 != 0, choice & 2 != 0, MESSAGE_MAX);
    let (_, _, messages) = bench.receive(&mut receiver, &mut script);
    assert!(messages.iter().all(|message| message.len() <= MESSAGE_MAX), "a message that is too long");
    let memory = bench.memory.bytes();
    let reached = if access == RemoteAccess::Read { 0 } else { LENGTH };
    assert!(memory[reached..].iter().all(|byte| *byte == 0), "bytes outside of what the tag allows");
    for (block, bytes) in memory.as_chunks::<BLOCK>().0.iter().enumerate() {
        assert!(
            bench.sums.get(block).is_none_or(|sum| sum == crc32c(bytes)),
            "block {block} has another sum"
        );
    }
}

/// The frames that set a connection up, and the Terminate that ends one.
pub fn setup(bytes: &[u8]) {
    terminate::parse(bytes);
    let Some((header, data)) = bytes.split_first_chunk::<{ mpa::HEADER }>() else { return };
    for role in [Role::Request, Role::Reply] {
        let Ok(length) = mpa::private_data_length(header, role) else { continue };
        let Ok(frame) = Frame::parse(header, &data[..length.min(data.len())], role) else { continue };
        let again = frame.encode();
        let (header, data) = again.split_first_chunk().expect("a header");
        assert_eq!(Frame::parse(header, data, role), Ok(frame.clone()), "what was parsed comes back");
        let config = Config::default();
        match role {
            Role::Request => drop(setup::respond(&config, &frame)),
            Role::Reply => drop(setup::conclude(&config, &frame)),
        }
    }
}

/// A message of either end, and what ends say beside messages on a device: what is parsed is what its sender encoded.
pub fn messages(bytes: &[u8]) {
    if let Some(control) = control::Control::parse(bytes) {
        assert_eq!(control.encode(), bytes);
    }
    let (_, data) = control::split(bytes);
    assert!(data.len() == bytes.len() || bytes.starts_with(b"LSHV"));
    if let Ok(message) = Message::parse(bytes) {
        let again = message.encode();
        assert_eq!(Message::parse(&again), Message::parse(&bytes[..again.len()]));
    }
}

/// Takes from the front; zeros once there is no more.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(self.0.len().min(N));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn length(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
}
