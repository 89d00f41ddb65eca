//! What a peer can send that it must not: each time nothing is placed outside what is exposed, the Terminate says what
//! was wrong, the right counter counts, and another connection goes on.

mod raw;

use leasehold_fabric::conformance::{
    Memory, PATIENCE, Pair, Record, Server, readable, send, writable, write,
};
use leasehold_fabric::iwarp::{Config, Iwarp, Violation};
use leasehold_fabric::{CloseReason, Endpoint, Tag};
use raw::{
    READ_RESPONSE, Raw, SEND, SEND_INVALIDATE, SEND_SE, WRITE, frame, frame_of_length, read_request, tagged,
    untagged,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const ARENA: usize = 256 << 10;
const START: usize = 64 << 10;
const LENGTH: usize = 64 << 10;
const UNTOUCHED: u8 = 0xA5;

/// An arena of which one range is exposed to a peer that can say anything, and another connection beside it.
struct Scene {
    fabric: Iwarp,
    arena: Memory,
    raw: Raw,
    record: Record,
    endpoint: Arc<dyn Endpoint>,
    tag: Tag,
    witness: Pair,
    witness_memory: Memory,
    witness_tag: Tag,
    _server: Server,
}

fn scene(config: Config) -> Scene {
    let fabric = Iwarp::new(config).expect("threads");
    let server = Server::new(&fabric, b"token");
    let witness = server.connect(&fabric, b"token");
    let witness_memory = Memory::new(4096, 0);
    let witness_tag = writable(&*witness.far, &witness_memory, 0, 4096);
    let raw = Raw::connect(server.address(), b"token");
    let record = server.record();
    let endpoint = record.endpoint();
    let arena = Memory::new(ARENA, UNTOUCHED);
    let tag = writable(&*endpoint, &arena, START, LENGTH);
    Scene { fabric, arena, raw, record, endpoint, tag, witness, witness_memory, witness_tag, _server: server }
}

impl Scene {
    /// The bytes end the connection in this way, and harm nothing.
    fn assert_terminated(mut self, bytes: &[u8], violation: Violation, code: (u8, u8, u8)) -> Vec<u8> {
        self.raw.put(bytes);
        let (sent, quoted) = self.raw.terminate();
        assert_eq!(sent, code, "{violation:?}");
        self.raw.end();
        assert_eq!(self.record.closed(), CloseReason::Violation(violation.to_string()));
        let counters = self.fabric.counters();
        assert_eq!(counters.violations(violation), 1);
        assert_eq!(counters.terminates_sent.load(Ordering::Relaxed), 1);
        self.assert_unharmed();
        quoted
    }

    /// Nothing outside the exposed range has changed, and the other connection goes on.
    fn assert_unharmed(&self) {
        let arena = self.arena.snapshot(0, ARENA);
        let outside = arena[..START].iter().chain(&arena[START + LENGTH..]);
        assert!(outside.copied().all(|byte| byte == UNTOUCHED), "bytes outside the exposed range changed");
        write(&*self.witness.near, vec![7; 100], self.witness_tag, 9).expect("written");
        send(&*self.witness.near, b"on").expect("sent");
        assert_eq!(self.witness.server.message(), b"on");
        assert_eq!(self.witness_memory.snapshot(9, 100), [7; 100]);
    }

    /// Nothing at all was placed.
    fn assert_nothing_placed(&self) {
        assert!(self.arena.snapshot(0, ARENA).iter().all(|&byte| byte == UNTOUCHED));
    }

    /// The connection goes on: a message is heard.
    fn assert_goes_on(&mut self, number: u32) {
        self.raw.put(&raw::send(number, b"alive"));
        assert_eq!(self.record.message(), b"alive");
        self.assert_unharmed();
    }
}

/// Both ways of receiving have to hold.
fn each_way(test: impl Fn(Scene)) {
    test(scene(Config::default()));
    test(scene(Config { strict: true, workers: 1, ..Config::default() }));
}

#[test]
fn an_unknown_tag_is_refused_and_the_terminate_quotes_the_header() {
    each_way(|scene| {
        let unknown = Tag(scene.tag.0 ^ 0x8000_0000);
        let segment = tagged(WRITE, true, unknown, 0, &[1; 100]);
        let quoted = scene.assert_terminated(&frame(&segment), Violation::UnknownTag, (1, 1, 0));
        assert_eq!(quoted[..4], [0xC0, 0, 0, 114], "M and D, and the length of the segment");
        assert_eq!(quoted[4..], segment[..14]);
    });
}

#[test]
fn another_connections_tag_is_unknown() {
    each_way(|scene| {
        let bytes = raw::write(scene.witness_tag, 0, &[1; 100]);
        scene.assert_terminated(&bytes, Violation::UnknownTag, (1, 1, 0));
    });
}

#[test]
fn an_offset_that_wraps_at_64_bits_is_refused() {
    each_way(|scene| {
        let bytes = raw::write(scene.tag, u64::MAX - 50, &[1; 100]);
        scene.assert_terminated(&bytes, Violation::Wrap, (1, 1, 3));
    });
}

#[test]
fn one_byte_past_the_end_is_refused() {
    each_way(|scene| {
        let bytes = raw::write(scene.tag, LENGTH as u64 - 99, &[1; 100]);
        scene.assert_terminated(&bytes, Violation::Bounds, (1, 1, 1));
    });
    each_way(|scene| {
        let bytes = raw::write(scene.tag, LENGTH as u64, &[1]);
        scene.assert_terminated(&bytes, Violation::Bounds, (1, 1, 1));
    });
}

#[test]
fn the_last_byte_is_not_past_the_end() {
    each_way(|mut scene| {
        scene.raw.put(&raw::write(scene.tag, LENGTH as u64 - 100, &[1; 100]));
        scene.assert_goes_on(1);
        assert_eq!(scene.arena.snapshot(START + LENGTH - 100, 100), [1; 100]);
    });
}

#[test]
fn a_write_to_what_is_only_readable_is_refused() {
    each_way(|scene| {
        let tag = readable(&*scene.endpoint, &scene.arena, 0, 4096);
        scene.assert_terminated(&raw::write(tag, 0, &[1; 100]), Violation::Access, (0, 1, 2));
    });
}

#[test]
fn an_empty_write_succeeds_whatever_its_tag_and_offset() {
    each_way(|mut scene| {
        scene.raw.put(&raw::write(Tag(1), u64::MAX, &[]));
        scene.assert_goes_on(1);
        scene.assert_nothing_placed();
    });
}

#[test]
fn a_bad_crc_poisons_the_connection() {
    let mut scene = scene(Config::default());
    let mut bytes = raw::write(scene.tag, 0, &[1; 20_000]);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    scene.raw.put(&bytes);
    assert_eq!(scene.raw.terminate().0, (2, 0, 2));
    assert_eq!(scene.record.next(), leasehold_fabric::conformance::Heard::Poisoned);
    assert_eq!(scene.record.closed(), CloseReason::Violation(Violation::Crc.to_string()));
    assert_eq!(scene.fabric.counters().bad_crcs.load(Ordering::Relaxed), 1);
    scene.assert_unharmed();
}

#[test]
fn strictly_a_frame_with_a_bad_crc_is_not_placed_at_all() {
    let mut scene = scene(Config { strict: true, ..Config::default() });
    let mut bytes = raw::write(scene.tag, 0, &[1; 20_000]);
    bytes[5000] ^= 1;
    scene.raw.put(&bytes);
    assert_eq!(scene.raw.terminate().0, (2, 0, 2));
    assert_eq!(
        scene.record.next(),
        leasehold_fabric::conformance::Heard::Closed(CloseReason::Violation(Violation::Crc.to_string()))
    );
    scene.assert_nothing_placed();
    scene.assert_unharmed();
}

#[test]
fn a_message_with_a_bad_crc_is_not_heard() {
    each_way(|scene| {
        let mut bytes = raw::send(1, b"forged");
        bytes[22] ^= 1;
        scene.assert_terminated(&bytes, Violation::Crc, (2, 0, 2));
    });
}

#[test]
fn a_length_that_lies_is_noticed() {
    // Too short for a header.
    each_way(|scene| {
        let bytes = frame_of_length(13, &tagged(WRITE, true, scene.tag, 0, &[]));
        scene.assert_terminated(&bytes, Violation::FrameLength, (2, 0, 3));
    });
    each_way(|scene| {
        let bytes = frame_of_length(17, &untagged(SEND, true, 0, [0, 1, 0], b"x"));
        scene.assert_terminated(&bytes, Violation::FrameLength, (2, 0, 3));
    });
    // Shorter than the content: the CRC does not stand where it should.
    each_way(|scene| {
        let bytes = frame_of_length(14 + 60, &tagged(WRITE, true, scene.tag, 0, &[1; 100]));
        scene.assert_terminated(&bytes, Violation::Crc, (2, 0, 2));
    });
    // Longer than the content: it takes in the next frame, and the CRC does not stand where it should.
    each_way(|scene| {
        let mut bytes = frame_of_length(14 + 200, &tagged(WRITE, true, scene.tag, 0, &[1; 100]));
        bytes.extend(raw::write(scene.tag, 0, &[2; 100]));
        scene.assert_terminated(&bytes, Violation::Crc, (2, 0, 2));
    });
}

#[test]
fn garbage_ends_the_connection() {
    each_way(|mut scene| {
        scene.raw.put(&[0xFF; 80_000]);
        let _ = scene.record.closed();
        scene.assert_unharmed();
        scene.assert_nothing_placed();
    });
}

#[test]
fn half_a_header_and_silence_harm_nobody() {
    each_way(|mut scene| {
        let bytes = raw::write(scene.tag, 0, &[1; 100]);
        for byte in &bytes[..9] {
            scene.raw.put(&[*byte]);
        }
        scene.assert_unharmed();
        scene.endpoint.fence(scene.tag, PATIENCE).expect("a silent peer holds nothing");
        scene.raw.put(&bytes[9..]);
        scene.assert_goes_on(1);
        scene.assert_nothing_placed();
    });
}

#[test]
fn a_frame_that_comes_byte_by_byte_is_placed() {
    each_way(|mut scene| {
        for byte in raw::write(scene.tag, 5, &[1; 30]) {
            scene.raw.put(&[byte]);
        }
        scene.assert_goes_on(1);
        assert_eq!(scene.arena.snapshot(START + 5, 30), [1; 30]);
    });
}

#[test]
fn opcodes_that_do_not_exist_or_do_not_belong_are_refused() {
    for opcode in [8, 15] {
        each_way(|scene| {
            let bytes = frame(&tagged(opcode, true, scene.tag, 0, &[1; 100]));
            scene.assert_terminated(&bytes, Violation::Opcode, (0, 2, 6));
        });
    }
    each_way(|scene| {
        let bytes = frame(&tagged(SEND, true, scene.tag, 0, &[1; 100]));
        scene.assert_terminated(&bytes, Violation::Opcode, (0, 2, 6));
    });
    each_way(|scene| {
        scene.assert_terminated(
            &frame(&untagged(WRITE, true, 0, [0, 1, 0], b"x")),
            Violation::Opcode,
            (0, 2, 6),
        );
    });
    each_way(|scene| {
        scene.assert_terminated(
            &frame(&untagged(SEND, true, 0, [2, 1, 0], b"x")),
            Violation::Opcode,
            (0, 2, 6),
        );
    });
    each_way(|scene| {
        let bytes = frame(&tagged(READ_RESPONSE, true, scene.tag, 0, &[1; 100]));
        scene.assert_terminated(&bytes, Violation::Opcode, (0, 2, 6));
    });
}

#[test]
fn other_versions_are_refused() {
    each_way(|scene| {
        let mut segment = tagged(WRITE, true, scene.tag, 0, &[1; 100]);
        segment[0] = segment[0] & !3 | 2;
        scene.assert_terminated(&frame(&segment), Violation::TaggedVersion, (1, 1, 4));
    });
    each_way(|scene| {
        let mut segment = untagged(SEND, true, 0, [0, 1, 0], b"x");
        segment[0] &= !3;
        scene.assert_terminated(&frame(&segment), Violation::UntaggedVersion, (1, 2, 6));
    });
    each_way(|scene| {
        let mut segment = tagged(WRITE, true, scene.tag, 0, &[1; 100]);
        segment[1] = 0x80;
        scene.assert_terminated(&frame(&segment), Violation::RdmapVersion, (0, 2, 5));
    });
}

#[test]
fn queues_numbers_and_offsets_out_of_order_are_refused() {
    let cases = [
        ([3, 1, 0], Violation::Queue, (1, 2, 1)),
        ([0, 2, 0], Violation::MessageNumber, (1, 2, 3)),
        ([0, 0, 0], Violation::MessageNumber, (1, 2, 3)),
        ([0, 1, 4], Violation::MessageOffset, (1, 2, 4)),
    ];
    for (place, violation, code) in cases {
        each_way(|scene| {
            scene.assert_terminated(&frame(&untagged(SEND, true, 0, place, b"x")), violation, code);
        });
    }
    each_way(|scene| {
        let mut bytes = frame(&untagged(SEND, false, 0, [0, 1, 0], b"first"));
        bytes.extend(frame(&untagged(SEND, true, 0, [0, 1, 6], b"second")));
        scene.assert_terminated(&bytes, Violation::MessageOffset, (1, 2, 4));
    });
    each_way(|scene| {
        let mut bytes = raw::send(1, b"x");
        bytes.extend(raw::send(1, b"x"));
        scene.assert_terminated(&bytes, Violation::MessageNumber, (1, 2, 3));
    });
}

#[test]
fn a_message_in_segments_is_put_together() {
    each_way(|mut scene| {
        scene.raw.put(&frame(&untagged(SEND_SE, false, 0, [0, 1, 0], b"first ")));
        scene.raw.put(&raw::write(scene.tag, 0, &[3; 10]));
        scene.raw.put(&frame(&untagged(SEND_SE, false, 0, [0, 1, 6], b"second ")));
        scene.raw.put(&frame(&untagged(SEND_SE, true, 0, [0, 1, 13], b"third")));
        assert_eq!(scene.record.message(), b"first second third");
        scene.assert_goes_on(2);
    });
}

#[test]
fn a_message_that_is_too_long_is_refused() {
    each_way(|scene| {
        let bytes = raw::send(1, &[1; 4097]);
        scene.assert_terminated(&bytes, Violation::MessageTooLong, (1, 2, 5));
    });
    each_way(|scene| {
        let mut bytes = frame(&untagged(SEND, false, 0, [0, 1, 0], &[1; 4000]));
        bytes.extend(frame(&untagged(SEND, true, 0, [0, 1, 4000], &[1; 97])));
        scene.assert_terminated(&bytes, Violation::MessageTooLong, (1, 2, 5));
    });
}

#[test]
fn a_tag_that_does_not_exist_cannot_be_invalidated() {
    each_way(|scene| {
        let bytes = frame(&untagged(SEND_INVALIDATE, true, 99, [0, 1, 0], b"x"));
        scene.assert_terminated(&bytes, Violation::CannotInvalidate, (0, 1, 9));
    });
}

#[test]
fn reads_are_served_within_bounds_and_access_and_no_others() {
    let sink = Tag(0xDEAD);
    each_way(|mut scene| {
        let tag = readable(&*scene.endpoint, &scene.arena, 0, 4096);
        scene.raw.put(&read_request(1, sink, 7, 4096, tag, 0));
        let mut got = 0u64;
        while got < 4096 {
            let segment = scene.raw.segment();
            assert_eq!(segment[1], 0x42, "a Read Response");
            assert_eq!(segment[2..6], sink.0.to_be_bytes());
            assert_eq!(segment[6..14], (7 + got).to_be_bytes());
            assert!(segment[14..].iter().all(|&byte| byte == UNTOUCHED));
            got += segment.len() as u64 - 14;
            assert_eq!(segment[0] & 0x40 != 0, got == 4096, "the last segment says so");
        }
        scene.raw.put(&read_request(2, sink, 7, 0, Tag(1), u64::MAX));
        assert_eq!(scene.raw.segment().len(), 14, "a read of nothing is answered, whatever its tag");
        scene.assert_goes_on(1);
    });
    for (offset, length, violation, code) in
        [(1, 4096, Violation::Bounds, (0, 1, 1)), (u64::MAX, 2, Violation::Wrap, (0, 1, 4))]
    {
        each_way(|scene| {
            let tag = readable(&*scene.endpoint, &scene.arena, 0, 4096);
            let request = read_request(1, sink, 7, length, tag, offset);
            let quoted = scene.assert_terminated(&request, violation, code);
            assert_eq!(quoted[0], 0xE0, "M, D and R");
            assert_eq!(quoted[4..], request[2..2 + 46], "both headers");
        });
    }
    each_way(|scene| {
        let request = read_request(1, sink, 7, 1, scene.tag, 0);
        scene.assert_terminated(&request, Violation::Access, (0, 1, 2));
    });
    each_way(|scene| {
        let request = read_request(1, sink, 7, 1, Tag(scene.tag.0 ^ 1), 0);
        scene.assert_terminated(&request, Violation::UnknownTag, (0, 1, 0));
    });
    each_way(|scene| {
        let tag = readable(&*scene.endpoint, &scene.arena, 0, 4096);
        scene.endpoint.fence(tag, PATIENCE).expect("fenced");
        let request = read_request(1, sink, 7, 1, tag, 0);
        scene.assert_terminated(&request, Violation::RevokedRead, (0, 1, 0));
    });
}

#[test]
fn writes_under_a_revoked_tag_keep_to_its_bounds() {
    each_way(|mut scene| {
        scene.endpoint.fence(scene.tag, PATIENCE).expect("fenced");
        for _ in 0..3 {
            scene.raw.put(&raw::write(scene.tag, 0, &[1; 60_000]));
        }
        scene.assert_goes_on(1);
        scene.assert_nothing_placed();
        assert_eq!(scene.fabric.counters().bytes_discarded.load(Ordering::Relaxed), 180_000);
        let bytes = raw::write(scene.tag, 1, &[1; 60_000]);
        scene.raw.put(&bytes);
        let bytes = raw::write(scene.tag, LENGTH as u64, &[1]);
        scene.assert_terminated(&bytes, Violation::Bounds, (1, 1, 1));
    });
}

#[test]
fn a_terminate_of_the_peers_closes_the_connection_and_is_understood() {
    for (first, text) in [(0x11, "out of bounds"), (0x21, "message too long")] {
        each_way(|mut scene| {
            let code = if first == 0x21 { 5 } else { 1 };
            scene.raw.put(&frame(&untagged(raw::TERMINATE, true, 0, [2, 1, 0], &[first, code, 0, 0])));
            match scene.record.closed() {
                CloseReason::Terminated(why) => assert!(why.contains(text), "{why}"),
                other => panic!("{other}"),
            }
            assert_eq!(scene.fabric.counters().terminates_received.load(Ordering::Relaxed), 1);
            scene.assert_unharmed();
        });
    }
}
