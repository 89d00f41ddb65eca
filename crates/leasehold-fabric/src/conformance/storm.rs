//! The revocation storm: a writer hammers a region while its tag is fenced, and the region is reused the moment that
//! the fence returns. No byte of the revoked tag may appear then, and what the next user puts there must stay.

use super::{Memory, PATIENCE, Pair, Server, send, writable};
use crate::{Fabric, Remote, Source, Tag};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Operations that the writer keeps in flight.
const DEPTH: usize = 16;
/// What the writer under the revoked tag writes, and what its successors write.
const REVOKED: u8 = 0xEE;

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

/// So many rounds with writes of this size. Returns the times that fences took.
pub fn storm(fabric: &dyn Fabric, size: usize, rounds: usize) -> Vec<Duration> {
    let server = Server::new(fabric, b"token");
    let pair = server.connect(fabric, b"token");
    let successor = server.connect(fabric, b"token");
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
    fences
}
