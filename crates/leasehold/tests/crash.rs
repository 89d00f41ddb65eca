//! kill -9 of the server under load: what an fsync acknowledged is there, and no hand is needed.
//!
//! `LEASEHOLD_CRASH_ROUNDS` sets how many times (10 if not set).

mod harness;

use harness::{Process, content, mismatches, or_refuse, pattern, want};
use leasehold_client::{Access, Client, Session};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const WRITERS: u64 = 3;
const CHUNK: u64 = 200_000;
const CHUNKS: u64 = 8;

/// What one writer knows of its file: each chunk holds one generation of bytes entirely.
struct Oracle {
    path: String,
    /// The generation that an fsync acknowledged, a chunk.
    durable: Vec<AtomicU64>,
    /// The latest one whose commit was sent.
    sent: Vec<AtomicU64>,
}

impl Oracle {
    fn new(writer: u64) -> Oracle {
        let zeros = || (0..CHUNKS).map(|_| AtomicU64::new(0)).collect();
        Oracle { path: format!("/file{writer}"), durable: zeros(), sent: zeros() }
    }

    fn bytes(&self, chunk: u64, generation: u64) -> Vec<u8> {
        if generation == 0 {
            return vec![0; CHUNK as usize];
        }
        pattern(generation * 1000 + chunk, CHUNK as usize).to_vec()
    }

    /// Every chunk is some generation from the acknowledged one on, up to the last that was sent; block by block, since a
    /// chunk that was not acknowledged may be there in part.
    fn check(&self, content: &[u8]) {
        for chunk in 0..CHUNKS {
            let (first, last) = self.generations(chunk);
            let choices: Vec<Vec<u8>> =
                (first..=last).map(|generation| self.bytes(chunk, generation)).collect();
            let start = chunk * CHUNK;
            let mut at = start;
            while at < start + CHUNK {
                let end = (at / 4096 * 4096 + 4096).min(start + CHUNK);
                let part = (at - start) as usize..(end - start) as usize;
                let mut found = vec![0; part.len()];
                let there = content.get(at as usize..(end as usize).min(content.len())).unwrap_or_default();
                found[..there.len()].copy_from_slice(there);
                assert!(
                    choices.iter().any(|choice| choice[part.clone()] == found),
                    "{} bytes {at}..{end} are of no generation from {first} (acknowledged) to {last}",
                    self.path
                );
                at = end;
            }
        }
    }

    fn generations(&self, chunk: u64) -> (u64, u64) {
        let of = |table: &[AtomicU64]| table[chunk as usize].load(Ordering::SeqCst);
        (of(&self.durable), of(&self.sent).max(of(&self.durable)))
    }
}

/// Overwrites chunk after chunk until the server is gone. `generation` grows across rounds.
async fn write_until_it_is_gone(client: Client, oracle: Arc<Oracle>, generation: Arc<AtomicU64>) {
    let _gone = async {
        client.create(&oracle.path).await.ok()?;
        let session = Session::open(&client).await.ok()?;
        loop {
            let mut unsynced = Vec::new();
            for chunk in 0..CHUNKS {
                let generation = generation.fetch_add(1, Ordering::SeqCst);
                let start = chunk * CHUNK;
                let wants = [want(&oracle.path, start, start + CHUNK, Access::Overwrite)];
                let lease = session.acquire(&wants, or_refuse()).await.ok()?.remove(0);
                let bytes = oracle.bytes(chunk, generation).into();
                lease.write(start, bytes).await.ok()?;
                oracle.sent[chunk as usize].store(generation, Ordering::SeqCst);
                lease.commit().await.ok()?;
                unsynced.push((chunk, generation));
                if chunk % 3 == 2 || chunk == CHUNKS - 1 {
                    session.sync(&oracle.path).await.ok()?;
                    for (chunk, generation) in unsynced.drain(..) {
                        oracle.durable[chunk as usize].store(generation, Ordering::SeqCst);
                    }
                }
            }
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        Some(())
    }
    .await;
}

async fn round(directory: &Path, oracles: &[Arc<Oracle>], generation: &Arc<AtomicU64>, run_for: Duration) {
    let mut server = Process::start(directory).await;
    let client = server.client().await;
    for oracle in oracles {
        if client.stat(&oracle.path).await.is_ok() {
            oracle.check(&content(&client, &oracle.path).await);
        } else {
            assert!((0..CHUNKS).all(|chunk| oracle.generations(chunk).0 == 0), "{} is gone", oracle.path);
        }
    }
    assert_eq!(
        mismatches(&client).await,
        0,
        "after a kill nothing is torn: the page cache and the disk survive"
    );
    // From here on a chunk's old generations do not come back.
    let writers: Vec<_> = oracles
        .iter()
        .map(|oracle| {
            tokio::spawn(write_until_it_is_gone(client.clone(), oracle.clone(), generation.clone()))
        })
        .collect();
    tokio::time::sleep(run_for).await; // the time at which it is killed is arbitrary, and nothing waits for it
    server.kill();
    for writer in writers {
        writer.await.expect("a writer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_fsync_acknowledged_survives_kill_9_of_the_server_under_load() {
    let rounds =
        std::env::var("LEASEHOLD_CRASH_ROUNDS").map_or(10, |rounds| rounds.parse().expect("a number"));
    let directory = harness::directory();
    let oracles: Vec<_> = (0..WRITERS).map(|writer| Arc::new(Oracle::new(writer))).collect();
    let generation = Arc::new(AtomicU64::new(1));
    for number in 0..rounds {
        round(directory.path(), &oracles, &generation, Duration::from_millis(200 + number * 137 % 700)).await;
    }
    let acknowledged = |oracle: &Arc<Oracle>| (0..CHUNKS).all(|chunk| oracle.generations(chunk).0 > 0);
    assert!(
        oracles.iter().all(acknowledged),
        "every chunk was acknowledged at least once, else nothing was tested"
    );
    round(directory.path(), &oracles, &generation, Duration::from_millis(1)).await;
}
