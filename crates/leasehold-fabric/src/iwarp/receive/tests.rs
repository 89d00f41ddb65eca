use super::super::ddp::{Header, Tagged, Untagged};
use super::trial::{Bench, LENGTH, Script, framed};
use super::*;
use crate::RemoteAccess;
use crate::crc::{BLOCK, crc32c};
use proptest::prelude::*;

fn write(tag: Tag, offset: u64, payload: &[u8], last: bool) -> Vec<u8> {
    framed(Header::Tagged(Tagged { last, rdmap: Opcode::Write.control(), tag: tag.0, offset }), payload)
}

fn message(number: u32, offset: u32, payload: &[u8], last: bool) -> Vec<u8> {
    let rdmap = Opcode::Send.control();
    let queue = ddp::SEND_QUEUE;
    framed(Header::Untagged(Untagged { last, rdmap, invalidate: 0, queue, number, offset }), payload)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However the stream is cut into pieces, the same bytes land and the same messages are heard.
    #[test]
    fn the_cut_of_the_stream_does_not_matter(
        steps in prop::collection::vec((any::<bool>(), 0usize..30_000, 0usize..70_000), 1..12),
        pieces in prop::collection::vec(prop_oneof![1usize..40, 1usize..70_000], 1..20),
        strict: bool,
        checked: bool,
    ) {
        let bench = Bench::new(if checked { RemoteAccess::WriteChecked } else { RemoteAccess::Write });
        let mut expected = vec![0u8; LENGTH];
        let mut bytes = Vec::new();
        let mut number = 0;
        let mut sent = Vec::new();
        for (step, &(is_write, length, offset)) in steps.iter().enumerate() {
            let fill = step as u8 + 1;
            if is_write {
                let payload = vec![fill; length];
                let (head, tail) = payload.split_at(length / 3);
                bytes.extend(write(bench.tag, offset as u64, head, false));
                bytes.extend(write(bench.tag, (offset + head.len()) as u64, tail, true));
                expected[offset..offset + length].fill(fill);
            } else {
                number += 1;
                let payload = vec![fill; length % 4097];
                let (head, tail) = payload.split_at(payload.len() / 2);
                if !head.is_empty() {
                    bytes.extend(message(number, 0, head, false));
                }
                bytes.extend(message(number, head.len() as u32, tail, true));
                sent.push(payload);
            }
        }
        let mut stream = Script { bytes, at: 0, pieces, reads: 0 };
        let mut receiver = Receiver::new(true, strict, 4096);
        let (_events, stop, heard) = bench.receive(&mut receiver, &mut stream);
        prop_assert!(matches!(stop, Stop::Drained), "{stop:?}");
        prop_assert_eq!(heard, sent);
        prop_assert!(bench.memory.bytes()[..LENGTH] == expected);
        for (block, bytes) in bench.memory.bytes().as_chunks::<BLOCK>().0.iter().enumerate() {
            let (start, end) = (block * BLOCK, (block + 1) * BLOCK);
            let touched = |&&(is_write, length, offset): &&(bool, usize, usize)| {
                is_write && length > 0 && offset < end && start < offset + length
            };
            let whole = |&(_, length, offset): &(bool, usize, usize)| offset <= start && end <= offset + length;
            let last = steps.iter().rfind(touched);
            let sum = bench.sums.get(block);
            prop_assert!(sum.is_none_or(|sum| sum == crc32c(bytes)), "block {}", block);
            prop_assert!(sum.is_some() || !last.is_some_and(whole), "block {} is not summed up", block);
        }
    }

    /// Garbage, or frames with a bit flipped, or with headers of any kind: never a panic, never a byte outside.
    #[test]
    fn random_bytes_do_not_disturb_the_receiver(
        bytes in prop::collection::vec(any::<u8>(), 0..5000),
        crc: bool,
        strict: bool,
    ) {
        let bench = Bench::new(RemoteAccess::Write);
        let mut stream = Script { bytes, at: 0, pieces: vec![700, 3], reads: 0 };
        bench.receive(&mut Receiver::new(crc, strict, 4096), &mut stream);
    }

    #[test]
    fn random_headers_do_not_disturb_the_receiver(
        headers in prop::collection::vec((any::<[u8; 18]>(), 0usize..5000, any::<bool>()), 1..30),
        flip: Option<(usize, u8)>,
        crc: bool,
        strict: bool,
    ) {
        let bench = Bench::new(RemoteAccess::Write);
        let mut bytes = Vec::new();
        for (mut header, length, ours) in headers {
            header[0] = header[0] & 0xFC | 1;
            header[1] = header[1] & 0x0F | 0x40;
            if ours {
                header[2..6].copy_from_slice(&bench.tag.0.to_be_bytes());
                header[6..10].fill(0);
            }
            let payload = vec![7; length];
            let parsed = Header::parse(&header).expect("version 1");
            bytes.extend(framed(parsed, &payload));
        }
        if let Some((at, mask)) = flip {
            let at = at % bytes.len();
            bytes[at] ^= mask;
        }
        let mut stream = Script { bytes, at: 0, pieces: vec![100_000], reads: 0 };
        bench.receive(&mut Receiver::new(crc, strict, 4096), &mut stream);
    }
}

#[test]
fn a_wrong_frame_for_memory_that_is_checked_first_leaves_no_trace_however_it_is_cut() {
    for pieces in [vec![100_000], vec![16, 8, 20_000], vec![700]] {
        let bench = Bench::new(RemoteAccess::WriteChecked);
        let mut bytes = write(bench.tag, 0, &[1; 30_000], true);
        let good = bytes.len();
        bytes.extend(write(bench.tag, 20_000, &[2; 30_000], true));
        bytes[good + 25_000] ^= 1;
        let mut stream = Script { bytes, at: 0, pieces, reads: 0 };
        let (_, stop, _) = bench.receive(&mut Receiver::new(true, false, 4096), &mut stream);
        let wrong = matches!(stop, Stop::Violation { violation: Violation::Crc, placed: false, .. });
        assert!(wrong, "{stop:?}");
        assert!(bench.memory.bytes()[..30_000].iter().all(|&byte| byte == 1), "what came before is there");
        assert!(
            bench.memory.bytes()[30_000..].iter().all(|&byte| byte == 0),
            "nothing of the wrong frame is"
        );
    }
}

#[test]
fn a_tag_that_is_revoked_within_a_segment_takes_no_more_of_it() {
    for pieces in [vec![10_016, 100_000], vec![16 + 100, 50]] {
        let bench = Bench::new(RemoteAccess::Write);
        let bytes = write(bench.tag, 0, &[1; 40_000], true);
        let cut = pieces[0];
        let mut receiver = Receiver::new(true, false, 4096);
        let mut stream = Script { bytes: bytes[..cut].to_vec(), at: 0, pieces: pieces.clone(), reads: 0 };
        assert!(matches!(bench.receive(&mut receiver, &mut stream).1, Stop::Drained));
        bench.exposures.fence(bench.tag, std::time::Duration::ZERO).expect("nothing is held between turns");
        let mut stream = Script { bytes: bytes[cut..].to_vec(), at: 0, pieces, reads: 0 };
        let (events, stop, _) = bench.receive(&mut receiver, &mut stream);
        assert_eq!(events, [Event::First], "the frame is taken whole, and its CRC is right");
        assert!(matches!(stop, Stop::Drained));
        assert_eq!(bench.memory.bytes().iter().filter(|&&byte| byte == 1).count(), cut - 16);
    }
}

/// Receives all of the frames, and looks at the first block: is its sum right, if there is one?
fn first_sum(bench: &Bench, receiver: &mut Receiver, frames: Vec<Vec<u8>>) -> Option<bool> {
    let mut stream = Script { bytes: frames.concat(), at: 0, pieces: vec![usize::MAX], reads: 0 };
    let (_, stop, _) = bench.receive(receiver, &mut stream);
    assert!(matches!(stop, Stop::Drained), "{stop:?}");
    bench.sums.get(0).map(|sum| sum == crc32c(&bench.memory.bytes()[..BLOCK]))
}

#[test]
fn a_block_that_was_begun_is_not_finished_by_what_belongs_to_another_writing_of_it() {
    let (bench, mut receiver) = (Bench::new(RemoteAccess::Write), Receiver::new(true, false, 4096));
    let part = |at: usize, end: usize, fill| write(bench.tag, at as u64, &vec![fill; end - at], true);
    // Begun, written whole, and the rest of it again.
    let frames = vec![part(0, 2000, 1), part(0, BLOCK, 2), part(2000, BLOCK, 3)];
    assert_eq!(first_sum(&bench, &mut receiver, frames), None);
    // Begun, its head written again, and the rest.
    let frames = vec![part(0, 2000, 1), part(10, 20, 2), part(2000, BLOCK, 3)];
    assert_eq!(first_sum(&bench, &mut receiver, frames), None);
    let frames = vec![part(0, 2000, 1), part(2000, 3000, 2), part(3000, BLOCK, 3)];
    assert_eq!(first_sum(&bench, &mut receiver, frames), Some(true));
}

#[test]
fn a_block_that_was_begun_under_one_tag_is_not_finished_under_another() {
    let (mut bench, mut receiver) = (Bench::new(RemoteAccess::Write), Receiver::new(true, false, 4096));
    let begun = vec![write(bench.tag, 0, &[1; 2000], true)];
    assert_eq!(first_sum(&bench, &mut receiver, begun), None);
    bench.exposures.fence(bench.tag, std::time::Duration::ZERO).expect("nobody places");
    // SAFETY: fenced, and within the memory.
    unsafe { bench.memory.base().write_bytes(9, 2000) };
    let region = bench.memory.region(&bench.sums);
    bench.tag = bench.exposures.expose(region, RemoteAccess::Write).expect("room");
    let finished = vec![write(bench.tag, 2000, &[2; BLOCK - 2000], true)];
    assert_eq!(first_sum(&bench, &mut receiver, finished), None);
}
