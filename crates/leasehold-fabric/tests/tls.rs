//! TLS below the connection: the suite of the traits over it, and what somebody on the way can see, change and pretend.

use leasehold_fabric::conformance::{
    Heard, Memory, PATIENCE, Pair, Record, Server, pair, recorder, send, storm, writable, write,
};
use leasehold_fabric::iwarp::{Config, Iwarp, OverTls, ServerTls};
use leasehold_fabric::{CloseReason, ConnectError, Endpoint, Fabric, Kind, Tag};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn over_tls(config: Config) -> OverTls {
    let tls = ServerTls::generate().expect("random bytes");
    let key = tls.public_key().clone();
    OverTls::new(Arc::new(Iwarp::new(Config { tls: Some(tls), ..config }).expect("threads")), key)
}

fn plain() -> Iwarp {
    Iwarp::new(Config::default()).expect("threads")
}

mod by_default {
    leasehold_fabric::conformance_suite!(super::over_tls(super::Config::default()));
}

mod strict_with_one_thread {
    leasehold_fabric::conformance_suite!(super::over_tls(super::Config {
        strict: true,
        workers: 1,
        ..super::Config::default()
    }));
}

#[test]
fn a_storm_of_writes_and_fences_goes_well() {
    for (size, rounds) in [(4 << 10, 200), (MEBIBYTE, 50)] {
        storm(&over_tls(Config::default()), size, rounds);
    }
}

/// Somebody on the way from the one that connects to the listener.
struct Between {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    plan: Arc<Mutex<Plan>>,
}

/// What they do to the byte that comes so many bytes later.
#[derive(Clone, Copy)]
enum Plan {
    Nothing,
    /// Turn one bit over.
    Change(usize),
    /// End the stream there.
    End(usize),
}

impl Between {
    fn new(server: SocketAddr) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let plan = Arc::new(Mutex::new(Plan::Nothing));
        let (their_seen, their_plan) = (seen.clone(), plan.clone());
        std::thread::spawn(move || {
            let (near, _) = listener.accept().expect("a peer");
            let far = TcpStream::connect(server).expect("the listener");
            let (mut back, mut to) =
                (far.try_clone().expect("a descriptor"), near.try_clone().expect("a descriptor"));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            pass(near, far, &their_seen, &their_plan);
        });
        Between { address, seen, plan }
    }

    fn plan(&self, plan: Plan) {
        *self.plan.lock().expect("not poisoned") = plan;
    }

    fn saw(&self, what: &[u8]) -> bool {
        self.seen.lock().expect("not poisoned").windows(what.len()).any(|bytes| bytes == what)
    }
}

fn pass(mut near: TcpStream, mut far: TcpStream, seen: &Mutex<Vec<u8>>, plan: &Mutex<Plan>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(got @ 1..) = near.read(&mut bytes) {
        let bytes = &mut bytes[..got];
        seen.lock().expect("not poisoned").extend_from_slice(bytes);
        let mut plan = plan.lock().expect("not poisoned");
        *plan = match *plan {
            Plan::Change(at) if at < got => {
                bytes[at] ^= 1;
                Plan::Nothing
            }
            Plan::End(at) if at < got => {
                let _ = far.write_all(&bytes[..at]);
                let _ = far.shutdown(Shutdown::Write);
                return;
            }
            Plan::Change(at) => Plan::Change(at - got),
            Plan::End(at) => Plan::End(at - got),
            Plan::Nothing => Plan::Nothing,
        };
        drop(plan);
        if far.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = far.shutdown(Shutdown::Write);
}

/// Connected through somebody.
fn through(fabric: &dyn Fabric, server: &Server, between: &Between) -> Pair {
    let (recorder, client) = recorder();
    let (near, _) =
        fabric.connect(between.address, b"token", Box::new(recorder), PATIENCE).expect("to be let in");
    let server = server.record();
    let far = server.endpoint();
    Pair { near, client, far, server }
}

const MEBIBYTE: usize = 1 << 20;

/// Writes a mebibyte through somebody who changes a bit of it, and says what is in memory once the connection has ended.
fn with_a_bit_changed(fabric: &dyn Fabric) -> (Vec<u8>, Vec<Heard>) {
    let server = Server::new(fabric, b"token");
    let between = Between::new(server.address());
    let pair = through(fabric, &server, &between);
    let memory = Memory::new(MEBIBYTE, 0);
    let tag = writable(&*pair.far, &memory, 0, MEBIBYTE);
    send(&*pair.near, b"before").expect("sent");
    assert_eq!(pair.server.message(), b"before");
    between.plan(Plan::Change(300_000));
    let _ = write(&*pair.near, vec![0xAA; MEBIBYTE], tag, 0);
    let heard = until_closed(&pair.server);
    (memory.snapshot(0, MEBIBYTE), heard)
}

fn until_closed(record: &Record) -> Vec<Heard> {
    let mut heard = Vec::new();
    while !matches!(heard.last(), Some(Heard::Closed(_))) {
        heard.push(record.next());
    }
    heard
}

fn is_wrong(&byte: &u8) -> bool {
    byte != 0 && byte != 0xAA
}

#[test]
fn not_one_byte_that_was_changed_on_the_way_is_placed() {
    let (memory, heard) = with_a_bit_changed(&over_tls(Config::default()));
    assert!(!memory.iter().any(is_wrong));
    assert_eq!(memory[0], 0xAA, "what came before it is there");
    assert_eq!(memory[MEBIBYTE - 1], 0, "what came after it is not");
    let [Heard::Closed(CloseReason::Transport(why))] = &heard[..] else {
        panic!("{heard:?}: nothing is poisoned, and the end is the transport's")
    };
    assert!(why.contains("decrypt"), "{why}");
    // Without TLS it is placed, and found out afterwards: this test would notice.
    let (memory, heard) = with_a_bit_changed(&plain());
    assert_eq!(memory.into_iter().filter(is_wrong).count(), 1);
    assert_eq!(heard[0], Heard::Poisoned);
}

#[test]
fn nobody_on_the_way_sees_the_token_a_message_or_the_data() {
    let look = |fabric: &dyn Fabric| {
        let server = Server::new(fabric, b"token");
        let between = Between::new(server.address());
        let pair = through(fabric, &server, &between);
        let memory = Memory::new(4096, 0);
        let tag = writable(&*pair.far, &memory, 0, 4096);
        write(&*pair.near, b"the quick brown fox".to_vec(), tag, 0).expect("written");
        send(&*pair.near, b"jumps over").expect("sent");
        assert_eq!(pair.server.message(), b"jumps over");
        [&b"token"[..], b"the quick brown fox", b"jumps over"].map(|what| between.saw(what))
    };
    assert_eq!(look(&over_tls(Config::default())), [false; 3]);
    assert_eq!(look(&plain()), [true; 3]);
}

#[test]
fn a_stream_that_somebody_cut_off_did_not_end_by_the_peers_will() {
    let fabric = over_tls(Config::default());
    let server = Server::new(&fabric, b"token");
    let between = Between::new(server.address());
    let pair = through(&fabric, &server, &between);
    between.plan(Plan::End(0));
    send(&*pair.near, b"lost").expect("sent");
    assert!(matches!(pair.server.closed(), CloseReason::Transport(_)));

    let pair = server.connect(&fabric, b"token");
    pair.near.close();
    assert_eq!(pair.server.closed(), CloseReason::Peer, "and this one did");
}

#[test]
fn one_who_has_another_key_is_not_shown_the_token() {
    let fabric = over_tls(Config::default());
    let server = Server::new(&fabric, b"token");
    let other = ServerTls::generate().expect("random bytes");
    let mistaken = OverTls::new(Arc::new(plain()), other.public_key().clone());
    let (recorder, _record) = recorder();
    match mistaken.connect(server.address(), b"token", Box::new(recorder), PATIENCE) {
        Err(error @ ConnectError::Untrusted { .. }) => {
            assert!(error.to_string().contains(&server.address().to_string()), "{error}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("trusted somebody else"),
    }
    // The gate has not seen anybody: the next to be let in is this one.
    let pair = server.connect(&fabric, b"token");
    send(&*pair.near, b"me").expect("sent");
    assert_eq!(pair.server.message(), b"me");
}

#[test]
fn who_comes_without_tls_is_told_and_nobody_comes_with_it_to_one_that_has_none() {
    let encrypted = over_tls(Config::default());
    let server = Server::new(&encrypted, b"token");
    let (first, _record) = recorder();
    match plain().connect(server.address(), b"token", Box::new(first), PATIENCE) {
        Err(ConnectError::Rejected { why, .. }) => assert!(why.contains("over TLS"), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("let in without TLS"),
    }
    let open = plain();
    let server = Server::new(&open, b"token");
    let (second, _record) = recorder();
    match encrypted.connect(server.address(), b"token", Box::new(second), PATIENCE) {
        // It closes without having read all, so that it may be a reset.
        Err(ConnectError::Protocol { .. } | ConnectError::Unreachable { .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("TLS with one that has none"),
    }
}

#[test]
fn a_listener_says_that_it_is_over_tls() {
    struct Nobody;
    impl leasehold_fabric::Gate for Nobody {
        fn admit(&self, _: &[u8], _: SocketAddr) -> Result<leasehold_fabric::Admitted, bytes::Bytes> {
            unreachable!("nobody connects")
        }
    }
    let anywhere = ([127, 0, 0, 1], 0).into();
    let kinds = |fabric: &dyn Fabric| fabric.listen(anywhere, Arc::new(Nobody)).expect("a port").kinds();
    assert_eq!(kinds(&over_tls(Config::default())), [Kind::IwarpTls]);
    assert_eq!(kinds(&plain()), [Kind::Iwarp]);
}

#[test]
fn a_handshake_that_stops_halfway_is_given_up() {
    let fabric = over_tls(Config { setup_timeout: Duration::from_millis(100), ..Config::default() });
    let server = Server::new(&fabric, b"token");
    // The type of a handshake record, and a version.
    for begun in [&[22][..], &[22, 3, 1], &[22, 3, 1, 0x40, 0, 1, 0, 0, 9]] {
        let mut stream = TcpStream::connect(server.address()).expect("a connection");
        stream.write_all(begun).expect("sent");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        assert_eq!(stream.read(&mut [0; 64]).expect("an end in time"), 0);
    }
}

/// What the socket does not take at once stays encrypted, and neither end waits for the other to read.
#[test]
fn much_goes_both_ways_at_once() {
    const LENGTH: usize = 16 << 20;
    let fabric = over_tls(Config::default());
    let pair = pair(&fabric);
    let (there, back) = (Memory::new(LENGTH, 0), Memory::new(LENGTH, 0));
    let to_far = writable(&*pair.far, &there, 0, LENGTH);
    let to_near = writable(&*pair.near, &back, 0, LENGTH);
    let put = |from: &dyn Endpoint, byte: u8, tag: Tag| {
        for at in (0..LENGTH).step_by(MEBIBYTE) {
            write(from, vec![byte; MEBIBYTE], tag, at as u64).expect("written");
        }
        send(from, b"all").expect("sent");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| put(&*pair.near, 1, to_far));
        scope.spawn(|| put(&*pair.far, 2, to_near));
    });
    assert_eq!(pair.server.message(), b"all");
    assert_eq!(pair.client.message(), b"all");
    assert!(there.snapshot(0, LENGTH).iter().all(|&byte| byte == 1));
    assert!(back.snapshot(0, LENGTH).iter().all(|&byte| byte == 2));
}
