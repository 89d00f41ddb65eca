//! The revocation storm: a writer hammers a region while its tag is fenced, and the region is reused the moment that
//! the fence returns. No byte of the revoked tag may appear then, and what the next user puts there must stay.
//!
//! `LEASEHOLD_STORM_ROUNDS` sets the number of rounds in all (2,000; 100,000 for the slow tier).

use leasehold_fabric::conformance::{Memory, PATIENCE, Pair, Server, send, writable};
use leasehold_fabric::iwarp::{Config, Iwarp};
use leasehold_fabric::{Remote, Source, Tag};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Operations that the writer keeps in flight.
const DEPTH: usize = 16;
/// What the writer under the revoked tag writes, and what its successors write.
const REVOKED: u8 = 0xEE;

fn rounds() -> usize {
    std::env::var("LEASEHOLD_STORM_ROUNDS").map_or(2_000, |rounds| rounds.parse().expect("a number"))
}

/// A writer that has so many writes in flight under the tag that it was last given, until told to stop.
struct Hammer {
    tags: Sender<Option<Tag>>,
    written: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

fn hammer(pair: &Pair, size: usize) -> Hammer {
    let (tags, tags_there) = channel::<Option<Tag>>();
    let written = Arc::new(AtomicU64::new(0));
    let (endpoint, count) = (pair.near.clone(), written.clone());
    let thread = std::thread::spawn(move || {
        let bytes = bytes::Bytes::from(vec![REVOKED; size]);
        let (free, freed) = channel();
        for _ in 0..DEPTH {
            free.send(()).expect("room");
        }
        let mut tag = None;
        loop {
            match if tag.is_none() { tags_there.recv().ok() } else { tags_there.try_recv().ok() } {
                Some(Some(new)) => tag = Some(new),
                Some(None) => return,
                None => {}
            }
            let Some(tag) = tag else { return };
            freed.recv_timeout(PATIENCE).expect("a write to be done");
            let (free, count) = (free.clone(), count.clone());
            endpoint.write(
                Source::Bytes(bytes.clone()),
                Remote { tag, offset: 0 },
                Box::new(move |result| {
                    if result.is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    let _ = free.send(());
                }),
            );
        }
    });
    Hammer { tags, written, thread }
}

/// Rounds at one size. Returns the times that fences took.
fn storm(size: usize, rounds: usize) -> Vec<Duration> {
    let fabric = Iwarp::new(Config::default()).expect("threads");
    let server = Server::new(&fabric, b"token");
    let pair = server.connect(&fabric, b"token");
    let successor = server.connect(&fabric, b"token");
    let memory = Memory::new(size, 0);
    let hammer = hammer(&pair, size);
    let mut fences = Vec::with_capacity(rounds);
    let mut before = None;
    for round in 0..rounds {
        memory.fill(0, size, 0);
        let tag = writable(&*pair.far, &memory, 0, size);
        hammer.tags.send(Some(tag)).expect("the writer lives");
        let written = hammer.written.load(Ordering::Relaxed);
        let began = Instant::now();
        // In the thick of it: bytes of this tag have landed, and more are on their way.
        while memory.snapshot(0, 1) != [REVOKED] || hammer.written.load(Ordering::Relaxed) == written {
            assert!(began.elapsed() < PATIENCE, "the writer does not get through");
            std::hint::spin_loop();
        }
        // The stream has left the tag before: its holder knows, and it can be forgotten.
        if let Some(before) = before.replace(tag) {
            pair.far.forget(before);
        }
        let began = Instant::now();
        pair.far.fence(tag, PATIENCE).expect("fenced");
        fences.push(began.elapsed());
        let mine = (round % 200) as u8;
        if round % 2 == 0 {
            // Reused at once by this end.
            memory.fill(0, size, mine);
        } else {
            // Reused at once by another connection.
            let next = writable(&*successor.far, &memory, 0, size);
            let bytes = bytes::Bytes::from(vec![mine; size]);
            successor.near.write(Source::Bytes(bytes), Remote { tag: next, offset: 0 }, Box::new(|_| ()));
            send(&*successor.near, b"").expect("sent");
            assert_eq!(successor.server.message(), b"");
            successor.far.fence(next, PATIENCE).expect("fenced");
            successor.far.forget(next);
        }
        // The writer still hammers under the revoked tag: what it sends is taken and dropped.
        let behind = hammer.written.load(Ordering::Relaxed);
        let began = Instant::now();
        while hammer.written.load(Ordering::Relaxed) < behind + 2 {
            assert!(began.elapsed() < PATIENCE, "the writer was harmed by the revocation");
            std::hint::spin_loop();
        }
        let late = memory.snapshot(0, size).iter().filter(|&&byte| byte != mine).count();
        assert_eq!(late, 0, "{late} of {size} bytes changed behind the fence, in round {round}");
    }
    hammer.tags.send(None).expect("the writer lives");
    hammer.thread.join().expect("the writer ends well");
    assert!(
        fabric.counters().bytes_discarded.load(Ordering::Relaxed) > 0,
        "nothing was on its way: no storm"
    );
    fences
}

fn run(size: usize, rounds: usize) {
    let began = Instant::now();
    let mut fences = storm(size, rounds);
    fences.sort_unstable();
    println!(
        "{size} bytes: {rounds} rounds in {:.1?}; fence median {:.1?}, 99th percentile {:.1?}, longest {:.1?}",
        began.elapsed(),
        fences[fences.len() / 2],
        fences[fences.len() * 99 / 100],
        fences[fences.len() - 1],
    );
}

#[test]
fn no_byte_of_a_4_kib_write_lands_behind_its_fence() {
    run(4 << 10, rounds() / 2);
}

#[test]
fn no_byte_of_a_64_kib_write_lands_behind_its_fence() {
    run(64 << 10, rounds() * 3 / 10);
}

#[test]
fn no_byte_of_a_1_mib_write_lands_behind_its_fence() {
    run(1 << 20, rounds() / 5);
}
