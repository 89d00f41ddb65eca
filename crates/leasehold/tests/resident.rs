//! Leases that go on: what is captured from under a live key, and what an update or an overwrite promises.
//!
//! `LEASEHOLD_RESIDENT_ROUNDS` sets how many times a region is updated (300 if not set).

mod harness;

use bytes::Bytes;
use harness::{
    Process, Store, content, fill, lease, mismatches, or_refuse, or_wait, pattern, range, settings, want,
};
use leasehold::server::settings::Settings;
use leasehold::size::Size;
use leasehold_client::{Access, CaptureError, CommitError, Lease, LeaseState, Reason, Session, SyncError};
use leasehold_fabric::message::Status;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// One lease for updating.
async fn update(session: &Session, path: &str, start: u64, end: u64) -> Lease {
    let wants = [want(path, start, end, Access::Update)];
    session.acquire(&wants, or_refuse()).await.expect("a lease").remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_update_leases_that_share_a_block_keep_each_others_bytes_and_their_own_that_nobody_wrote() {
    let store = Store::start().await;
    let (one, two) = (store.session().await, store.session().await);
    let mut expected = pattern(1, 12_288).to_vec();
    fill(&one, "/a", Bytes::from(expected.clone())).await;
    let (left, right) = (update(&one, "/a", 100, 5000).await, update(&two, "/a", 5000, 9000).await);
    left.write(4500, pattern(2, 300)).await.unwrap();
    right.write(5100, pattern(3, 20)).await.unwrap();
    right.write(5110, pattern(4, 20)).await.unwrap(); // over a part of what was just written
    expected[4500..4800].copy_from_slice(&pattern(2, 300));
    expected[5100..5120].copy_from_slice(&pattern(3, 20));
    expected[5110..5130].copy_from_slice(&pattern(4, 20));
    let (left, right) = tokio::join!(left.commit(), right.commit());
    left.unwrap();
    right.unwrap();
    assert_eq!(content(one.client(), "/a").await, expected);
    assert_eq!(mismatches(one.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwrite_lease_with_a_hole_is_not_committed_whoever_computes_the_crc() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 8192)).await;
    let holed = lease(&session, "/a", 0, 8192).await;
    holed.write(0, pattern(2, 4000)).await.unwrap();
    holed.write(4100, pattern(2, 4092)).await.unwrap();
    match holed.commit().await {
        Err(CommitError::Incomplete { missing, .. }) => assert_eq!(missing, range(4000, 4100)),
        other => panic!("100 bytes are missing: {other:?}"),
    }
    // A holder that claims to have written them: what is in the frames is not what it summed up.
    let wants = [want("/a", 0, 8192, Access::Overwrite)];
    let holed = session.acquire(&wants, or_wait(5000)).await.unwrap().remove(0);
    holed.write(0, pattern(2, 4096)).await.unwrap();
    let claimed = u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &pattern(2, 8192)));
    match holed.commit_with(Some(claimed.unwrap())).await {
        Err(CommitError::Refused { status, .. }) => assert_eq!(status, Status::Mismatch),
        other => panic!("a half is missing: {other:?}"),
    }
    assert_eq!(content(session.client(), "/a").await, pattern(1, 8192));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_captured_is_in_the_file_and_the_lease_goes_on() {
    let store = Store::start().await;
    let session = store.session().await;
    let mut expected = pattern(1, 50_000).to_vec();
    fill(&session, "/a", Bytes::from(expected.clone())).await;
    let held = update(&session, "/a", 1000, 60_000).await;
    held.write(5000, pattern(2, 3000)).await.unwrap();
    assert_eq!(content(session.client(), "/a").await, expected, "nothing is visible before it is captured");
    assert_eq!(held.capture(range(6000, 7000)).await.unwrap(), 50_000);
    expected[6000..7000].copy_from_slice(&pattern(2, 3000)[1000..2000]);
    assert_eq!(content(session.client(), "/a").await, expected, "the captured part only");

    held.sync(held.range()).await.unwrap();
    expected[5000..8000].copy_from_slice(&pattern(2, 3000));
    expected.resize(60_000, 0); // all of the lease is in the file now
    assert_eq!(std::fs::read(store.file("/a")).unwrap()[..60_000], expected);
    held.write(5000, pattern(3, 100)).await.unwrap();
    expected[5000..5100].copy_from_slice(&pattern(3, 100));
    held.commit().await.unwrap();
    assert_eq!(content(session.client(), "/a").await, expected);
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_update_leases_are_captured_and_only_within_their_range() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 8192)).await;
    let overwriting = lease(&session, "/a", 0, 4096).await;
    let refused = overwriting.capture(range(0, 4096)).await.unwrap_err();
    assert!(matches!(refused, CaptureError::NotForUpdate(_)), "{refused}");
    let updating = update(&session, "/a", 4096, 8192).await;
    let refused = updating.capture(range(4095, 8192)).await.unwrap_err();
    assert!(matches!(refused, CaptureError::OutOfBounds { .. }), "{refused}");
    updating.capture(range(4096, 8192)).await.unwrap();
}

/// Every 8 bytes of one round's stretch say the round, so that a reader can tell which rounds it sees.
fn stretch(round: u64, words: usize) -> Bytes {
    Bytes::from(round.to_le_bytes().repeat(words))
}

fn rounds_in(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_updated_for_many_rounds_is_read_as_it_was_at_some_sync() {
    const WORDS: usize = 24_000;
    let rounds = std::env::var("LEASEHOLD_RESIDENT_ROUNDS").map_or(300, |n| n.parse().expect("a number"));
    let store = Store::start().await;
    let session = store.session().await;
    let length = WORDS as u64 * 8;
    fill(&session, "/a", stretch(0, WORDS)).await;
    let held = update(&session, "/a", 0, length).await;
    // What was written last, and what a sync has confirmed.
    let (written, synced) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (client, written, synced, over) =
            (store.client().await, written.clone(), synced.clone(), over.clone());
        tokio::spawn(async move {
            let (mut reads, mut seen) = (0_u64, 0);
            while !over.load(Ordering::SeqCst) {
                let first = synced.load(Ordering::SeqCst);
                let bytes = content(&client, "/a").await;
                let last = written.load(Ordering::SeqCst);
                let rounds = rounds_in(&bytes);
                let (min, max) = (*rounds.iter().min().unwrap(), *rounds.iter().max().unwrap());
                assert!(first <= min && max <= last, "{min}..={max} is not within {first}..={last}");
                // One capture is one moment, of which the stretch was written as a whole.
                assert!(min >= seen, "a read went back from round {seen} to {min}");
                seen = min;
                reads += 1;
            }
            reads
        })
    };
    for round in 1..=rounds {
        written.store(round, Ordering::SeqCst);
        held.write(0, stretch(round, WORDS)).await.unwrap();
        held.sync(held.range()).await.unwrap();
        synced.store(round, Ordering::SeqCst);
    }
    over.store(true, Ordering::SeqCst);
    assert!(reader.await.unwrap() > 0, "nothing was read");
    // Written and not captured: nobody sees it, and it goes with the lease.
    held.write(0, stretch(u64::MAX, WORDS)).await.unwrap();
    held.release().await.unwrap();
    assert_eq!(content(session.client(), "/a").await, stretch(rounds, WORDS));
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_breaks_a_resident_lease_between_two_syncs_and_its_holder_is_told() {
    let store = Store::start_with(&Settings { grace_ms: 60_000, ..settings() }).await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 1 << 20)).await;
    let held = update(&session, "/a", 0, 1 << 20).await;
    held.write(0, pattern(2, 1 << 20)).await.unwrap();
    held.sync(range(0, 1 << 20)).await.unwrap();
    let breaker = store.client().await;
    let truncate = tokio::spawn(async move { breaker.truncate("/a", 500_000).await });
    let LeaseState::Breaking(notice) = held.broken().await else { panic!("told before it is revoked") };
    assert_eq!(notice.operation, "truncate to 500000");
    // It has time for a last one.
    held.write(100, pattern(3, 1000)).await.unwrap();
    held.sync(range(0, 4096)).await.unwrap();
    held.release().await.unwrap();
    truncate.await.unwrap().unwrap();
    let mut expected = pattern(2, 1 << 20)[..500_000].to_vec();
    expected[100..1100].copy_from_slice(&pattern(3, 1000));
    assert_eq!(content(session.client(), "/a").await, expected);
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_of_a_lease_that_was_revoked_says_by_whom() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 9000)).await;
    let held = update(&session, "/a", 0, 9000).await;
    let client = store.client().await;
    client.truncate("/a", 0).await.unwrap();
    held.revoked().await;
    let error = held.sync(range(0, 9000)).await.unwrap_err();
    let SyncError::Capture(CaptureError::Revoked(notice)) = &error else { panic!("{error}") };
    assert_eq!(notice.by.as_ref().map(|by| by.pid), Some(std::process::id()));
    assert!(content(&client, "/a").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_makes_the_leased_file_durable_whatever_it_is_called_by_now() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 9000)).await;
    let held = update(&session, "/a", 0, 9000).await;
    session.client().rename("/a", "/b").await.unwrap();
    held.write(0, pattern(2, 9000)).await.unwrap();
    held.sync(range(0, 9000)).await.unwrap();
    assert_eq!(std::fs::read(store.file("/b")).unwrap(), pattern(2, 9000));
    assert_eq!(session.client().stat("/a").await.unwrap_err().reason, Reason::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_larger_than_the_free_part_of_the_arena_is_synced_in_pieces_that_wait_for_frames() {
    let store = Store::start_with(&Settings { arena: Size(32 << 20), ..settings() }).await;
    let session = store.session().await;
    session.client().create("/a").await.unwrap();
    let held = update(&session, "/a", 0, 24 << 20).await;
    let bytes = pattern(7, 24 << 20);
    for start in (0..24 << 20).step_by(1 << 20) {
        held.write(start as u64, bytes.slice(start..start + (1 << 20))).await.unwrap();
    }
    held.sync(held.range()).await.unwrap();
    assert_eq!(std::fs::read(store.file("/a")).unwrap(), bytes);

    // With no frame free at all, a capture says so at its deadline, and the lease goes on.
    let rest = [want("/a", 24 << 20, 32 << 20, Access::Overwrite)];
    let all = session.acquire(&rest, or_wait(5000)).await.unwrap();
    held.write(0, pattern(8, 4096)).await.unwrap();
    let (full, ()) = tokio::join!(held.capture(range(0, 4096)), async {
        let client = store.client().await;
        while client.why("/a").await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(all); // released in the background, and the capture gets its frames
    });
    full.unwrap();
    assert_eq!(&content(session.client(), "/a").await[..4096], pattern(8, 4096));
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sync_confirmed_survives_kill_9_and_what_was_only_written_leaves_no_trace() {
    const WORDS: usize = 50_000;
    let directory = harness::directory();
    let (written, synced) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for delay_ms in [100, 150, 220, 60] {
        let mut server = Process::start(directory.path()).await;
        let client = server.client().await;
        if synced.load(Ordering::SeqCst) == 0 {
            let session = Session::open(&client).await.unwrap();
            fill(&session, "/a", stretch(0, WORDS)).await;
        } else {
            let rounds = rounds_in(&content(&client, "/a").await);
            let (first, last) = (synced.load(Ordering::SeqCst), written.load(Ordering::SeqCst));
            assert!(rounds.iter().all(|round| (first..=last).contains(round)), "not of {first}..={last}");
            assert_eq!(mismatches(&client).await, 0);
        }
        let writer = {
            let (written, synced) = (written.clone(), synced.clone());
            tokio::spawn(async move {
                let session = Session::open(&client).await.ok()?;
                let wants = [want("/a", 0, WORDS as u64 * 8, Access::Update)];
                let held = session.acquire(&wants, or_refuse()).await.ok()?.remove(0);
                loop {
                    let round = written.fetch_add(1, Ordering::SeqCst) + 1;
                    held.write(0, stretch(round, WORDS)).await.ok()?;
                    held.sync(held.range()).await.ok()?;
                    synced.store(round, Ordering::SeqCst);
                }
                #[expect(unreachable_code, reason = "gives the block its type")]
                Some(())
            })
        };
        let before = synced.load(Ordering::SeqCst);
        while synced.load(Ordering::SeqCst) == before {
            assert!(!writer.is_finished(), "the writer has ended before anything was synced");
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(delay_ms)).await; // when it is killed is arbitrary
        server.kill();
        writer.await.unwrap();
    }
    let server = Process::start(directory.path()).await;
    let client = server.client().await;
    let rounds = rounds_in(&content(&client, "/a").await);
    let (first, last) = (synced.load(Ordering::SeqCst), written.load(Ordering::SeqCst));
    assert!(rounds.iter().all(|round| (first..=last).contains(round)), "not of {first}..={last}");
    assert_eq!(mismatches(&client).await, 0);
}
