//! What leaves this end: writes from memory whose tag is fenced while the peer does not read, answers to reads that are
//! revoked half-way, and queues that are full.

mod raw;

use leasehold_fabric::conformance::{Memory, PATIENCE, Record, Server, done, readable, send, writable};
use leasehold_fabric::iwarp::{Config, Iwarp, Violation};
use leasehold_fabric::{CloseReason, Endpoint, OperationError, Remote, Source, Tag};
use raw::Raw;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

/// More than the sockets of both ends hold.
const LENGTH: usize = 32 << 20;

/// A peer that has said a word, and does not read.
fn stalled(config: Config) -> (Iwarp, Server, Raw, Record, Arc<dyn Endpoint>) {
    let fabric = Iwarp::new(config).expect("threads");
    let server = Server::new(&fabric, b"token");
    let mut raw = Raw::connect(server.address(), b"token");
    let record = server.record();
    let endpoint = record.endpoint();
    raw.put(&raw::send(1, b"go"));
    assert_eq!(record.message(), b"go");
    (fabric, server, raw, record, endpoint)
}

#[test]
fn a_fence_stops_a_write_to_a_peer_that_does_not_read_between_two_frames() {
    let (_fabric, _server, mut raw, _record, endpoint) = stalled(Config::default());
    let memory = Memory::new(LENGTH, 5);
    let tag = readable(&*endpoint, &memory, 0, LENGTH);
    let other = readable(&*endpoint, &memory, 0, 100);
    let sink = Remote { tag: Tag(0xBEEF), offset: 1000 };
    let (callback, result) = done();
    endpoint.write(Source::Exposed { tag, offset: 0, length: LENGTH as u64 }, sink, callback);
    let (second, second_result) = done();
    endpoint.write(Source::Exposed { tag, offset: 0, length: 100 }, sink, second);
    let (third, third_result) = done();
    endpoint.write(Source::Exposed { tag: other, offset: 0, length: 100 }, sink, third);
    let (last, last_result) = done();
    endpoint.send(bytes::Bytes::from_static(b"behind"), None, last);
    assert_eq!(result.try_recv(), Err(TryRecvError::Empty), "the sockets hold more than was thought");

    let began = Instant::now();
    endpoint.fence(tag, PATIENCE).expect("fenced");
    assert!(began.elapsed() < Duration::from_secs(5), "the fence waited for the peer");
    memory.fill(100, LENGTH - 100, 9);
    assert_eq!(second_result.recv_timeout(PATIENCE), Ok(Err(OperationError::Revoked(tag))));

    let mut offset = 1000u64;
    loop {
        let segment = raw.segment();
        assert_eq!(segment[1], 0x40, "a Write");
        assert_eq!(segment[6..14], offset.to_be_bytes(), "contiguous");
        assert!(segment[14..].iter().all(|&byte| byte == 5), "bytes of the next user left this machine");
        offset += segment.len() as u64 - 14;
        if segment[0] & 0x40 != 0 {
            assert_eq!(segment.len(), 14, "the write is cut short by an empty last segment");
            break;
        }
    }
    assert!(offset < LENGTH as u64, "nothing was dropped");
    assert_eq!(result.recv_timeout(PATIENCE), Ok(Err(OperationError::Revoked(tag))));
    let segment = raw.segment();
    assert_eq!((segment[0], segment.len()), (0xC1, 114), "the other tag's write goes on");
    assert_eq!(third_result.recv_timeout(PATIENCE), Ok(Ok(())));
    assert_eq!(raw.segment()[18..], b"behind"[..]);
    assert_eq!(last_result.recv_timeout(PATIENCE), Ok(Ok(())));
}

#[test]
fn a_read_whose_source_is_fenced_half_way_ends_the_connection() {
    let (_fabric, _server, mut raw, record, endpoint) =
        stalled(Config { linger: PATIENCE, ..Config::default() });
    let memory = Memory::new(LENGTH, 5);
    let tag = readable(&*endpoint, &memory, 0, LENGTH);
    raw.put(&raw::read_request(1, Tag(7), 0, LENGTH as u32, tag, 0));
    // Its answer has begun, and the sockets are full.
    raw.put(&raw::send(2, b"asked"));
    assert_eq!(record.message(), b"asked");
    endpoint.fence(tag, PATIENCE).expect("fenced");
    memory.fill(0, LENGTH, 9);
    loop {
        let segment = raw.segment();
        if segment[1] == 0x47 {
            assert_eq!(
                segment[18..22],
                [0x01, 0, 0xE0, 0],
                "RDMAP, remote protection, invalid tag; M, D and R"
            );
            break;
        }
        assert_eq!(segment[1], 0x42, "a Read Response");
        assert!(segment[14..].iter().all(|&byte| byte == 5));
        assert_eq!(segment[0] & 0x40, 0, "no segment says that it is the last");
    }
    assert_eq!(record.closed(), CloseReason::Violation(Violation::RevokedRead.to_string()));
}

#[test]
fn more_reads_at_once_than_were_agreed_are_refused() {
    let (_fabric, _server, mut raw, record, endpoint) =
        stalled(Config { reads_max: 3, linger: PATIENCE, ..Config::default() });
    let memory = Memory::new(LENGTH, 5);
    let tag = readable(&*endpoint, &memory, 0, LENGTH);
    for number in 1..=4 {
        raw.put(&raw::read_request(number, Tag(7), 0, LENGTH as u32, tag, 0));
    }
    assert_eq!(record.closed(), CloseReason::Violation(Violation::NoBuffer.to_string()));
    while raw.segment()[1] != 0x47 {}
}

#[test]
fn a_full_queue_refuses_and_takes_again_once_there_is_room() {
    let (_fabric, _server, mut raw, _record, endpoint) =
        stalled(Config { queue_max: 3, ..Config::default() });
    let memory = Memory::new(LENGTH, 5);
    let tag = readable(&*endpoint, &memory, 0, LENGTH);
    let sink = Remote { tag: Tag(7), offset: 0 };
    let results: Vec<_> = (0..5)
        .map(|_| {
            let (callback, result) = done();
            endpoint.write(Source::Exposed { tag, offset: 0, length: LENGTH as u64 }, sink, callback);
            result
        })
        .collect();
    for (number, result) in results.iter().enumerate() {
        let expected =
            if number < 3 { Err(TryRecvError::Empty) } else { Ok(Err(OperationError::QueueFull { max: 3 })) };
        assert_eq!(result.try_recv(), expected, "write {number}");
    }
    endpoint.fence(tag, PATIENCE).expect("fenced");
    while raw.segment()[0] & 0x40 == 0 {}
    send(&*endpoint, b"room").expect("sent");
    assert_eq!(raw.segment()[18..], b"room"[..]);
}

#[test]
fn closing_gives_up_what_waits() {
    let (_fabric, _server, _raw, record, endpoint) = stalled(Config::default());
    let memory = Memory::new(LENGTH, 5);
    let tag = readable(&*endpoint, &memory, 0, LENGTH);
    let (callback, result) = done();
    let sink = Remote { tag: Tag(7), offset: 0 };
    endpoint.write(Source::Exposed { tag, offset: 0, length: LENGTH as u64 }, sink, callback);
    let (callback, read_result) = done();
    let into = writable(&*endpoint, &Memory::new(4096, 0), 0, 4096);
    endpoint.read(sink, 10, into, 0, callback);
    endpoint.close();
    let closed = Ok(Err(OperationError::Closed(CloseReason::Here)));
    assert_eq!(result.recv_timeout(PATIENCE), closed);
    assert_eq!(read_result.recv_timeout(PATIENCE), closed);
    assert_eq!(record.closed(), CloseReason::Here);
    assert_eq!(memory.users(), 1);
}
