//! Callers that come at bad moments, go away at bad moments, or ask for what cannot be.

mod harness;

use bytes::Bytes;
use harness::{Store, content, fill, lease, mismatches, or_wait, pattern, range};
use leasehold::server::settings::Settings;
use leasehold_client::{Access, Reason};
use std::time::{Duration, Instant};

/// The core has nothing left to do for anybody.
async fn becomes_idle(store: &Store) {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let stats = store.server.engine().stats().await.unwrap();
        if (stats.requests, stats.leases, stats.frames.reading, stats.frames.leased) == (0, 0, 0, 0) {
            return;
        }
        assert!(Instant::now() < give_up, "left behind: {stats:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_no_file_can_have_are_refused_and_the_server_goes_on() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = session.client();
    fill(&session, "/a", pattern(1, 5000)).await;
    for offset in [1 << 60, u64::MAX - 10, i64::MAX as u64 - 4096] {
        let refused = client.write("/a", offset, Bytes::from_static(b"far away")).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Invalid, "{offset}: {refused}");
        if let Some(range) = leasehold_client::ByteRange::at(offset, 8) {
            let wants = [leasehold_client::Want { path: "/a".into(), range, access: Access::Overwrite }];
            let refused = session.acquire(&wants, or_wait(0)).await.unwrap_err();
            assert_eq!(refused.reason, Reason::Invalid, "{offset}: {refused}");
        }
    }
    assert_eq!(client.truncate("/a", 1 << 62).await.unwrap_err().reason, Reason::Invalid);
    client.punch("/a", range(4096, u64::MAX)).await.unwrap();
    let mut expected = pattern(1, 5000).to_vec();
    expected[4096..].fill(0);
    assert_eq!(content(client, "/a").await, expected);
    assert_eq!(mismatches(client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_callers_asked_for_who_went_away_at_any_moment_is_given_back() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 1 << 20)).await;
    let client = session.client();
    // Each future is dropped a little later than the one before: before its request, within it, and after its answer.
    for us in (0..4000).step_by(40) {
        let patience = Duration::from_micros(us);
        let _ = tokio::time::timeout(patience, client.sync("/a")).await;
        let _ = tokio::time::timeout(patience, client.punch("/a", range(0, 4096))).await;
        let _ = tokio::time::timeout(patience, content(client, "/a")).await;
        let engine = store.server.engine();
        let path = leasehold_engine::path::StorePath::parse("/a").unwrap();
        let _ = tokio::time::timeout(patience, engine.read(&path, range(0, 1 << 20))).await;
    }
    becomes_idle(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_writes_that_break_each_other_at_once_never_mix_their_bytes() {
    let store = Store::start_with(&Settings { grace_ms: 1, ..harness::settings() }).await;
    let client = store.client().await;
    client.create("/a").await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8u8 {
        let client = store.client().await;
        writers.spawn(async move {
            for _ in 0..40 {
                // A write may lose its lease to another; that is an answer.
                let _ = client.write("/a", 0, Bytes::from(vec![writer; 100_000])).await;
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    let bytes = content(&client, "/a").await;
    assert_eq!(bytes.len(), 100_000);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "bytes of several writers");
    assert_eq!(mismatches(&client).await, 0);
    becomes_idle(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_stands_for_another_file_when_its_removal_is_due_is_left_alone() {
    let store = Store::start_with(&Settings { grace_ms: 60_000, ..harness::settings() }).await;
    let session = store.session().await;
    let client = session.client();
    fill(&session, "/a", pattern(1, 5000)).await;
    let held = lease(&session, "/a", 0, 100).await;
    let remover = store.client().await;
    let removal = tokio::spawn(async move { remover.remove("/a").await });
    held.broken().await;
    client.rename("/a", "/b").await.unwrap();
    fill(&session, "/a", pattern(2, 6000)).await;
    held.release().await.unwrap();
    removal.await.unwrap().unwrap_err();
    assert_eq!(content(client, "/a").await, pattern(2, 6000));
    assert_eq!(content(client, "/b").await, pattern(1, 5000));
    assert_eq!(mismatches(client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_still_stops_in_time() {
    let store = Store::start().await;
    let client = store.client().await;
    client.create("/a").await.unwrap();
    client.write("/a", 0, Bytes::from(vec![7; 1 << 20])).await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = store.client().await;
        readers.spawn(async move {
            use tokio_stream::StreamExt as _;
            while let Ok(pieces) = client.read("/a", 0, None).await {
                let mut pieces = Box::pin(pieces);
                while let Some(Ok(_)) = pieces.next().await {}
            }
        });
    }
    store.server.stop().await.expect("drained, though there were always readers");
    readers.shutdown().await;
}
