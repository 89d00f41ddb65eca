//! Setting up: both MPA revisions, with and without CRCs, peers that do not get in, and who speaks first.

mod raw;

use leasehold_fabric::conformance::{Memory, PATIENCE, Server, recorder, send, writable};
use leasehold_fabric::iwarp::{Config, Iwarp};
use leasehold_fabric::{CloseReason, ConnectError, Fabric};
use raw::{REPLY, REQUEST, Raw, USE_CRC, setup};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const REJECT: u8 = 0x20;

fn fabric(config: Config) -> (Iwarp, Server) {
    let fabric = Iwarp::new(config).expect("threads");
    let server = Server::new(&fabric, b"token");
    (fabric, server)
}

#[test]
fn revision_1_is_answered_by_revision_1_and_the_users_private_data() {
    let (_fabric, server) = fabric(Config::default());
    let mut raw = Raw::silent(server.address());
    raw.put(&setup(REQUEST, 0, 1, b"token"));
    let reply = raw.reply();
    assert_eq!((reply.flags, reply.revision), (USE_CRC, 1), "CRCs are asked for");
    assert_eq!(reply.data, b"welcome", "a third party sees no negotiation of ours");
}

#[test]
fn revision_2_is_answered_with_reads_granted_and_a_ready_to_receive() {
    let (_fabric, server) = fabric(Config { reads_max: 16, ..Config::default() });
    let mut raw = Raw::silent(server.address());
    // As siw asks: IRD 8, ORD 12, peer-to-peer, ready-to-receive by Write or Read.
    let mut data = vec![0x80, 8, 0xC0, 12];
    data.extend_from_slice(b"token");
    raw.put(&setup(REQUEST, 0x50, 2, &data));
    let reply = raw.reply();
    assert_eq!((reply.flags, reply.revision), (0x50, 2));
    assert_eq!(reply.data[..4], [0x80, 12, 0x80, 8], "IRD at least its ORD, ORD within its IRD, by Write");
    assert_eq!(reply.data[4..], b"welcome"[..]);
}

#[test]
fn crcs_are_used_if_either_side_asks_and_else_not() {
    for (ours, theirs) in [(false, false), (false, true), (true, false)] {
        let (_fabric, server) = fabric(Config { crc: ours, ..Config::default() });
        let mut raw = Raw::silent(server.address());
        raw.put(&setup(REQUEST, if theirs { USE_CRC } else { 0 }, 1, b"token"));
        assert_eq!(raw.reply().flags & USE_CRC != 0, ours || theirs);
        let record = server.record();
        let mut bytes = raw::send(1, b"hello");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        raw.put(&bytes);
        if ours || theirs {
            assert!(matches!(record.closed(), CloseReason::Violation(_)));
        } else {
            assert_eq!(record.message(), b"hello", "without CRCs the field is not looked at");
        }
    }
}

#[test]
fn a_wrong_token_is_rejected_with_the_gates_words() {
    let (fabric, server) = fabric(Config::default());
    let mut raw = Raw::silent(server.address());
    raw.put(&setup(REQUEST, USE_CRC, 1, b"guess"));
    let reply = raw.reply();
    assert_eq!(reply.flags & 0x20, 0x20);
    assert_eq!(reply.data, b"unknown token");
    raw.end();
    assert_eq!(fabric.counters().rejected.load(Ordering::Relaxed), 1);
    assert_eq!(fabric.counters().connections.load(Ordering::Relaxed), 0);
}

#[test]
fn markers_and_unknown_revisions_are_rejected() {
    for (flags, revision) in [(0x80, 1), (0x80, 2), (0, 3), (0, 0)] {
        let (_fabric, server) = fabric(Config::default());
        let mut raw = Raw::silent(server.address());
        raw.put(&setup(REQUEST, flags, revision, b"token"));
        let reply = raw.reply();
        assert_eq!(reply.flags & 0xA0, 0x20, "rejected, and without markers");
        raw.end();
    }
}

#[test]
fn what_is_no_request_is_not_answered() {
    let (fabric, server) = fabric(Config::default());
    for bytes in [&b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"[..], &setup(REPLY, 0, 1, b"token")] {
        let mut raw = Raw::silent(server.address());
        raw.put(bytes);
        let mut rest = Vec::new();
        // With bytes unread the system may reset the connection; either way nothing is said.
        let _ = raw.stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    let mut raw = Raw::silent(server.address());
    let mut long = setup(REQUEST, 0, 1, b"");
    long[18] = 2;
    long[19] = 1;
    raw.put(&long);
    raw.end();
    assert_eq!(fabric.counters().rejected.load(Ordering::Relaxed), 3);
}

#[test]
fn a_silent_peer_is_dropped_after_the_timeout_and_others_get_in_meanwhile() {
    let (fabric, server) =
        fabric(Config { setup_timeout: Duration::from_millis(300), workers: 1, ..Config::default() });
    let began = Instant::now();
    let mut silent = Raw::silent(server.address());
    let mut halfway = Raw::silent(server.address());
    halfway.put(&REQUEST[..7]);
    let pair = server.connect(&fabric, b"token");
    send(&*pair.near, b"in").expect("sent");
    assert_eq!(pair.server.message(), b"in");
    silent.end();
    halfway.end();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(fabric.counters().setup_timeouts.load(Ordering::Relaxed), 2);
}

#[test]
fn a_request_that_comes_in_pieces_is_answered_once_it_is_whole() {
    let (_fabric, server) = fabric(Config::default());
    let mut raw = Raw::silent(server.address());
    for byte in setup(REQUEST, USE_CRC, 1, b"token") {
        raw.put(&[byte]);
    }
    assert_eq!(raw.reply().data, b"welcome");
}

#[test]
fn the_responder_is_silent_until_the_first_frame_has_come() {
    let (_fabric, server) = fabric(Config::default());
    let mut raw = Raw::connect(server.address(), b"token");
    let record = server.record();
    let endpoint = record.endpoint();
    endpoint.send(bytes::Bytes::from_static(b"eager"), None, Box::new(|_| ()));
    raw.hears_nothing_for(Duration::from_millis(200));
    raw.put(&raw::send(1, b"first"));
    assert_eq!(record.message(), b"first");
    let segment = raw.segment();
    assert_eq!(segment[18..], b"eager"[..]);
}

#[test]
fn a_ready_to_receive_lets_the_responder_speak() {
    let (_fabric, server) = fabric(Config::default());
    for (kind, ready) in [
        ([0x80, 1, 0x80, 1], raw::write(leasehold_fabric::Tag(0), 0, &[])),
        ([0xC0, 1, 0, 1], raw::send(1, &[])),
        (
            [0x80, 1, 0x40, 1],
            raw::read_request(1, leasehold_fabric::Tag(0), 0, 0, leasehold_fabric::Tag(0), 0),
        ),
    ] {
        let mut raw = Raw::silent(server.address());
        let mut data = kind.to_vec();
        data.extend_from_slice(b"token");
        raw.put(&setup(REQUEST, 0x50, 2, &data));
        assert_eq!(raw.reply().data[..4], kind, "the one that was offered");
        let record = server.record();
        let endpoint = record.endpoint();
        raw.put(&ready);
        if kind[2] == 0x40 {
            assert_eq!(raw.segment()[1], 0x42, "the read of nothing is answered");
        }
        send(&*endpoint, b"hello").expect("sent");
        assert_eq!(raw.segment()[18..], b"hello"[..]);
        assert_eq!(record.next_if_any(), None, "the ready-to-receive is no message");
    }
}

#[test]
fn a_third_party_gets_segments_that_fit_in_one_of_tcps() {
    let (_fabric, server) = fabric(Config::default());
    let mut raw = Raw::connect(server.address(), b"token");
    let record = server.record();
    let endpoint = record.endpoint();
    raw.put(&raw::send(1, b"go"));
    assert_eq!(record.message(), b"go");
    let sink = leasehold_fabric::Remote { tag: leasehold_fabric::Tag(5), offset: 0 };
    endpoint.write(leasehold_fabric::Source::Bytes(vec![1; 300_000].into()), sink, Box::new(|_| ()));
    let mut got = 0;
    while got < 300_000 {
        let segment = raw.segment();
        // On the loopback a TCP segment holds 65,483 bytes, which is more than the standard's longest.
        assert!(segment.len() <= 64_768, "{} bytes", segment.len());
        assert_eq!(segment[6..14], (got as u64).to_be_bytes());
        got += segment.len() - 14;
    }
}

/// A responder made of a plain socket, for one connection.
fn responder(reply: Vec<u8>) -> (std::net::SocketAddr, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a peer");
        let mut request = vec![0; 1024];
        let length = stream.read(&mut request).expect("a request");
        request.truncate(length);
        stream.write_all(&reply).expect("to be read");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        request
    });
    (address, thread)
}

#[test]
fn the_request_comes_in_one_piece_and_opens_the_private_data_with_our_negotiation() {
    let (address, thread) = responder(setup(REPLY, 0x50, 2, &[0, 4, 0, 4]));
    let fabric = Iwarp::new(Config::default()).expect("threads");
    let (recorder, _record) = recorder();
    let (endpoint, data) = fabric.connect(address, b"token", Box::new(recorder), PATIENCE).expect("let in");
    assert!(data.is_empty());
    endpoint.close();
    drop(fabric);
    let request = thread.join().expect("a request");
    assert_eq!(request[16..20], [0x50, 2, 0, 4 + 8 + 5]);
    assert_eq!(request[20..24], [0xC0, 128, 0x80, 128], "peer-to-peer by Send or Write, 128 reads at once");
    assert_eq!(request[24..], *b"LSH1\x01\x00\xF0\x00token");
}

#[test]
fn replies_that_cannot_be_accepted_fail_the_connect() {
    let cases = [
        (setup(REPLY, 0x80, 1, b""), "markers"),
        (setup(REPLY, 0, 3, b""), "revision"),
        (setup(REQUEST, 0, 1, b""), "key"),
        (setup(REPLY, 0x10, 2, b"ab"), "4 bytes"),
        (setup(REPLY, 0x10, 2, &[0, 1, 0x3F, 0]), "more reads"),
        (Vec::new(), "without a reply"),
    ];
    for (reply, what) in cases {
        let fabric = Iwarp::new(Config::default()).expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a peer");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(&reply);
        });
        let (recorder, _record) = recorder();
        match fabric.connect(address, b"token", Box::new(recorder), PATIENCE) {
            Err(ConnectError::Protocol { what: said, .. }) => assert!(said.contains(what), "{said}"),
            Err(other) => panic!("{other} in place of {what}"),
            Ok(_) => panic!("connected in spite of {what}"),
        }
    }
}

#[test]
fn a_responder_that_never_answers_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let fabric = Iwarp::new(Config::default()).expect("threads");
    let (recorder, _record) = recorder();
    let address = listener.local_addr().expect("an address");
    let result = fabric.connect(address, b"token", Box::new(recorder), Duration::from_millis(200));
    assert!(matches!(result, Err(ConnectError::Unreachable { .. })));
}

#[test]
fn no_more_connections_than_there_may_be() {
    let (fabric, server) = fabric(Config { connections_max: 4, ..Config::default() });
    let first = server.connect(&fabric, b"token");
    let second = server.connect(&fabric, b"token");
    let (recorder, _record) = recorder();
    assert!(fabric.connect(server.address(), b"token", Box::new(recorder), PATIENCE).is_err());
    let mut raw = Raw::silent(server.address());
    raw.put(&setup(REQUEST, USE_CRC, 1, b"token"));
    let reply = raw.reply();
    assert_eq!(
        (reply.flags & REJECT, reply.data),
        (REJECT, b"there are as many connections as there may be".to_vec())
    );
    send(&*first.near, b"on").expect("sent");
    assert_eq!(first.server.message(), b"on");
    drop(second);
}

/// However many connect and say nothing, the oldest of them goes, and whoever says who it is gets in.
#[test]
fn those_who_say_nothing_keep_nobody_out() {
    let never = Duration::from_secs(3600);
    let (fabric, server) = fabric(Config { strangers_max: 8, setup_timeout: never, ..Config::default() });
    let mut silent: Vec<Raw> = (0..200).map(|_| Raw::silent(server.address())).collect();
    let pair = server.connect(&fabric, b"token");
    send(&*pair.near, b"in").expect("sent");
    assert_eq!(pair.server.message(), b"in");
    for raw in &mut silent[..190] {
        raw.end();
    }
    assert_eq!(fabric.counters().setup_timeouts.load(Ordering::Relaxed), 0);
}

/// A fabric was dropped right after a close, while the connection still waited for its peer to have read all. The
/// endpoint that the user kept then kept the socket, and the peer waited for ever.
#[test]
fn a_socket_is_closed_although_its_endpoint_is_kept() {
    for close_first in [false, true] {
        let (_fabric, server) = fabric(Config::default());
        let other = Iwarp::new(Config::default()).expect("threads");
        let pair = server.connect(&other, b"token");
        if close_first {
            pair.near.close();
        }
        drop(other);
        assert_eq!(pair.client.closed(), CloseReason::Here);
        assert_eq!(pair.server.closed(), CloseReason::Peer);
    }
}

#[test]
fn dropping_the_fabric_closes_its_connections() {
    let (fabric, server) = fabric(Config::default());
    let pair = server.connect(&fabric, b"token");
    let memory = Memory::new(4096, 0);
    let _tag = writable(&*pair.far, &memory, 0, 4096);
    drop(fabric);
    // Both ends are the fabric's: the one that it closes second may hear of the first before.
    for end in [&pair.client, &pair.server] {
        assert!(matches!(end.closed(), CloseReason::Here | CloseReason::Peer));
    }
    assert_eq!(memory.users(), 1);
}
