//! A peer that stops in the middle of a frame, and goes on after the fence.
//!
//! With libfabric's software provider such a peer still lands its bytes, in 31 of 40 tries: a receive stays armed into
//! the memory. Here no receive is ever armed, so the fence neither waits for the peer nor lets it land anything. And
//! with the fence taken out the same test sees late bytes every time, so it can see them.

mod raw;

use leasehold_fabric::conformance::{Memory, PATIENCE, Server, writable};
use leasehold_fabric::iwarp::{Config, Iwarp};
use raw::Raw;
use std::time::{Duration, Instant};

const LENGTH: usize = 60_000;
const TRIES: usize = 40;

/// Whether bytes of the stopped frame land after the fence has returned.
fn late_bytes(config: Config, stop_at: usize) -> bool {
    let fabric = Iwarp::new(config).expect("threads");
    let server = Server::new(&fabric, b"token");
    let mut raw = Raw::connect(server.address(), b"token");
    let record = server.record();
    let endpoint = record.endpoint();
    let (stopped, other) = (Memory::new(LENGTH, 0), Memory::new(LENGTH, 0));
    let tag = writable(&*endpoint, &stopped, 0, LENGTH);
    let other_tag = writable(&*endpoint, &other, 0, LENGTH);

    let frame = raw::write(tag, 0, &[1; LENGTH]);
    raw.put(&frame[..stop_at]);
    // Stopped within the payload: wait until what came has been placed.
    let header = 16;
    if !is_strict(stop_at) {
        let placed = Instant::now();
        while stop_at > header && stopped.snapshot(stop_at - header - 1, 1) == [0] {
            assert!(placed.elapsed() < PATIENCE, "the first half of the frame was never placed");
            std::thread::yield_now();
        }
    }
    let began = Instant::now();
    endpoint.fence(tag, PATIENCE).expect("fenced");
    let fenced_in = began.elapsed();
    stopped.fill(0, LENGTH, 9);
    raw.put(&frame[stop_at..]);
    raw.put(&raw::write(other_tag, 0, &[2; LENGTH]));
    raw.put(&raw::send(1, b"behind"));
    assert_eq!(record.message(), b"behind", "the connection lives");
    assert!(other.snapshot(0, LENGTH).iter().all(|&byte| byte == 2), "other tags go on");
    assert!(fenced_in < Duration::from_secs(5), "the fence waited for the peer: {fenced_in:?}");
    stopped.snapshot(0, LENGTH).iter().any(|&byte| byte != 9)
}

/// Where nothing is placed before the stop, so that there is nothing to wait for.
fn is_strict(stop_at: usize) -> bool {
    stop_at <= 16
}

/// Where in the frame the peer stops: within the header, behind it, within the payload, before the CRC.
fn stops() -> impl Iterator<Item = usize> {
    (0..TRIES).map(|number| [9, 16, 17, 5_000, 30_016, 59_000, LENGTH + 9][number % 7] + number / 7)
}

#[test]
fn what_a_stopped_writer_sends_after_the_fence_does_not_land() {
    for stop_at in stops() {
        assert!(
            !late_bytes(Config::default(), stop_at),
            "bytes landed behind the fence, stopped at {stop_at}"
        );
    }
}

#[test]
fn without_the_fence_the_same_writers_bytes_land_late_every_time() {
    for stop_at in stops() {
        let config = Config { unsafe_skip_fence: true, ..Config::default() };
        assert!(
            late_bytes(config, stop_at),
            "the test would not notice a missing fence, stopped at {stop_at}"
        );
    }
}

#[test]
fn a_stopped_writer_keeps_no_other_connection_waiting() {
    let fabric = Iwarp::new(Config { workers: 1, ..Config::default() }).expect("threads");
    let server = Server::new(&fabric, b"token");
    let mut raw = Raw::connect(server.address(), b"token");
    let endpoint = server.record().endpoint();
    let memory = Memory::new(LENGTH, 0);
    let tag = writable(&*endpoint, &memory, 0, LENGTH);
    raw.put(&raw::write(tag, 0, &[1; LENGTH])[..LENGTH / 2]);
    let pair = server.connect(&fabric, b"token");
    leasehold_fabric::conformance::send(&*pair.near, b"on").expect("sent");
    assert_eq!(pair.server.message(), b"on");
}
