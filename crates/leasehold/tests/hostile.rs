//! A hostile peer on the data port, made of plain sockets: it has a session and a lease like others, it has learnt the tag of
//! somebody else's, and it says whatever it likes. Nobody else's bytes change, the server goes on and keeps no memory for it.

mod harness;
#[path = "../../leasehold-fabric/tests/raw/mod.rs"]
mod raw;

use harness::{Control, Store, content, fill, lease, mismatches, pattern, settings};
use leasehold::server::settings::Settings;
use leasehold_client::{Session, proto};
use leasehold_fabric::Tag;
use raw::{Raw, frame, frame_of_length, read_request, tagged, untagged};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The attacker's lease, in a file of a megabyte.
const LEASED: (u64, u64) = (256 << 10, 512 << 10);
const BYTES: usize = 1 << 20;

/// Panics on any thread: the server has threads of its own, here.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        told(info);
    }));
}

/// How many streams; more in the slow tier.
fn streams() -> u64 {
    std::env::var("LEASEHOLD_HOSTILE_STREAMS").map_or(1000, |text| text.parse().expect("a number"))
}

/// Memory of this process, the server's included.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

/// One seed gives one stream.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ word >> 31) % end
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Frames that are nearly right.
fn hostile_stream(random: &mut Random, own: Tag, other: Tag) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut number = 1;
    for _ in 0..random.below(12) + 1 {
        let length = random.one_of(&[0, 1, 7, 100, 4096, 9000, 60_000]);
        let payload = vec![0xEE; length];
        let size = LEASED.1 - LEASED.0;
        let offset = match random.below(6) {
            0 => u64::MAX - random.below(10_000),
            1 => size - random.below(1000),
            2 => random.below(u64::MAX),
            _ => random.below(size),
        };
        let tag = match random.below(4) {
            0 => other,
            1 => Tag(random.below(1 << 32) as u32),
            _ => own,
        };
        let segment = match random.below(10) {
            0..5 => tagged(0, random.below(2) == 0, tag, offset, &payload),
            5 => {
                let sink = Tag(random.below(1 << 32) as u32);
                let length = random.one_of(&[0, 1, 4096, 1 << 30]);
                bytes.extend(read_request(random.below(3) as u32, sink, 0, length, tag, offset));
                continue;
            }
            6 => {
                let place = [random.below(4) as u32, random.below(3) as u32, random.below(2) as u32];
                untagged(random.below(16) as u8, random.below(2) == 0, tag.0, place, &payload)
            }
            7 => {
                // A message that makes sense, or nearly: a commit, a fetch, a capture of any lease.
                let mut message = vec![random.one_of(&[1, 2, 3, 0x81, 0xFF]), random.below(3) as u8, 0, 0];
                message.extend((tag.0).to_be_bytes());
                for _ in 0..random.below(6) {
                    let bits = random.below(63);
                    message.extend(random.below(1 << bits).to_be_bytes());
                }
                number += 1;
                untagged(3, true, 0, [0, number - 1, 0], &message)
            }
            8 => (0..length).map(|_| random.below(256) as u8).collect(),
            _ => {
                let mut segment = tagged(0, true, tag, offset, &payload);
                let at = random.below(segment.len() as u64) as usize;
                segment[at] ^= 1 << random.below(8);
                segment
            }
        };
        let mut framed = match random.below(12) {
            0 => frame_of_length(random.below(1 << 16) as u16, &segment),
            _ => frame(&segment),
        };
        match random.below(12) {
            0 => {
                let at = random.below(framed.len() as u64) as usize;
                framed[at] ^= 1;
            }
            1 => framed.truncate(random.below(framed.len() as u64) as usize),
            _ => {}
        }
        bytes.extend(framed);
    }
    bytes
}

/// Says it all, and hangs up: in order, or at once with what is unread thrown away (RST).
fn say(mut peer: Raw, bytes: &[u8], in_order: bool) {
    // The server closes at the first violation.
    let _ = peer.stream.write_all(bytes);
    if in_order {
        let _ = peer.stream.shutdown(std::net::Shutdown::Write);
        let mut end = [0; 4096];
        while peer.stream.read(&mut end).is_ok_and(|got| got > 0) {}
    } else {
        let _ = rustix::net::sockopt::set_socket_linger(&peer.stream, Some(Duration::ZERO));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_peer_sends_nobody_elses_bytes_change_and_no_memory_stays() {
    count_panics();
    let store = Store::start_with(&Settings { session_ttl_ms: 600_000, ..settings() }).await;
    let victim = store.session().await;
    fill(&victim, "/victim", pattern(1, BYTES)).await;
    fill(&victim, "/shared", pattern(2, BYTES)).await;
    victim.close().await;
    let address = store.server.data_address();
    // A lease that is live all the time, whose tag the attacker has learnt.
    let mut holder = Control::open(&store).await;
    let mut peer = Raw::connect(address, &holder.token);
    let (held, other) = holder.acquire("/victim", 0, BYTES as u64).await;
    let mut before = 0;
    for seed in 0..streams() {
        let mut attacker = Control::open(&store).await;
        let attacking = Raw::connect(address, &attacker.token);
        let (_, own) = attacker.acquire("/shared", LEASED.0, LEASED.1).await;
        let said = tokio::task::spawn_blocking(move || {
            let mut random = Random(seed);
            let bytes = hostile_stream(&mut random, own, other);
            say(attacking, &bytes, random.below(2) == 0);
        });
        said.await.expect("a stream is said to its end");
        // The session may be over by now, and its lease with it.
        let close = proto::CloseSessionRequest { session: attacker.session.clone() };
        let _ = attacker.calls.close_session(close).await;
        if seed == streams() / 4 {
            before = resident();
        }
    }
    let grown = resident().saturating_sub(before);
    eprintln!("{} streams; resident after a quarter: {before} bytes, then {grown} more", streams());
    assert!(grown < 32 << 20, "{grown} bytes stayed");
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread panicked");

    let client = store.client().await;
    assert_eq!(content(&client, "/victim").await, pattern(1, BYTES));
    let shared = content(&client, "/shared").await;
    let (start, end) = (LEASED.0 as usize, LEASED.1 as usize);
    assert_eq!(shared[..start], pattern(2, BYTES)[..start]);
    assert_eq!(shared[end..], pattern(2, BYTES)[end..]);
    // The victim's lease is as good as before.
    let bytes = pattern(3, BYTES);
    for (at, piece) in bytes.chunks(60_000).enumerate() {
        peer.put(&raw::write(other, at as u64 * 60_000, piece));
    }
    // A message behind the writes: once it is answered, they are placed.
    let mut message = vec![1, 0, 0, 0, 0, 0, 0, 0];
    message.extend(1u64.to_be_bytes());
    message.extend(held.to_be_bytes());
    peer.put(&raw::send(1, &message));
    assert_eq!(peer.segment()[18..20], [0x81, 0], "committed");
    assert_eq!(content(&client, "/victim").await, bytes);
    assert_eq!(mismatches(&client).await, 0);
    let close = proto::CloseSessionRequest { session: holder.session.clone() };
    holder.calls.close_session(close).await.expect("closed");
    let status = client.status().await.expect("a status");
    assert_eq!((status.sessions, status.leases), (0, 0), "nothing of the attacker's is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_who_connect_and_say_nothing_keep_nobody_out() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).expect("our own");
    let store = Store::start().await;
    let address = store.server.data_address();
    let idle: Vec<TcpStream> = tokio::task::spawn_blocking(move || {
        (0..3000).map_while(|_| TcpStream::connect(address).ok()).collect()
    })
    .await
    .expect("connections");
    assert!(idle.len() > 1000, "only {} connections could be made; see ulimit -n", idle.len());
    let began = Instant::now();
    let session = store.session().await;
    fill(&session, "/a", pattern(1, BYTES)).await;
    assert_eq!(content(&store.client().await, "/a").await, pattern(1, BYTES));
    eprintln!("{} idle connections; a file was put after {:?}", idle.len(), began.elapsed());
}

/// Half the connections close in the midst of a write, the others without any; each with a session of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_reconnects_and_of_writes_that_are_cut_off_leaves_nothing_behind() {
    let store = Store::start().await;
    let victim = store.session().await;
    fill(&victim, "/a", pattern(1, BYTES)).await;
    let address = store.server.data_address();
    for round in 0..200u64 {
        let mut control = Control::open(&store).await;
        let peer = Raw::connect(address, &control.token);
        let (_, tag) = control.acquire("/a", LEASED.0, LEASED.1).await;
        let cut = tokio::task::spawn_blocking(move || {
            let whole = raw::write(tag, 0, &[0xEE; 50_000]);
            say(peer, &whole[..(round as usize * 251) % whole.len()], false);
        });
        cut.await.expect("said");
        let close = proto::CloseSessionRequest { session: control.session.clone() };
        let _ = control.calls.close_session(close).await;
    }
    let client = store.client().await;
    assert_eq!(content(&client, "/a").await, pattern(1, BYTES), "nothing was committed");
    assert_eq!(mismatches(&client).await, 0);
    let (session, count) =
        (Session::open(&client).await.expect("a session"), client.status().await.expect("a status"));
    assert_eq!((count.sessions, count.leases), (2, 0));
    let lease = lease(&session, "/a", LEASED.0, LEASED.1).await;
    lease.release().await.expect("released");
}
