//! Leases end to end: real bytes over the fabric into real files, and what breaks them.

mod harness;

use bytes::Bytes;
use harness::{Store, content, fill, lease, mismatches, or_break, or_refuse, or_wait, pattern, range, want};
use leasehold_client::{Access, Evidence, LeaseState, Reason};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_and_committed_is_in_the_ordinary_file_and_can_be_fetched() {
    let store = Store::start().await;
    let session = store.session().await;
    let bytes = pattern(1, (3 << 20) + 777);
    fill(&session, "/a", bytes.clone()).await;
    assert_eq!(std::fs::read(store.file("/a")).unwrap(), bytes);
    assert_eq!(content(session.client(), "/a").await, bytes);

    let wants = [want("/a", 5, 1_000_005, Access::Read)];
    let reading = session.acquire(&wants, or_refuse()).await.unwrap().remove(0);
    let buffer = leasehold_client::Buffer::new(999_000);
    let buffer = reading.read(range(1005, 1_000_005), buffer).await.unwrap();
    assert_eq!(buffer.as_slice(), &bytes[1005..1_000_005]);
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_disjoint_bytes_in_one_block_both_land() {
    let store = Store::start().await;
    let (one, two) = (store.session().await, store.session().await);
    fill(&one, "/a", pattern(1, 8192)).await;
    let (left, right) = (lease(&one, "/a", 100, 2000).await, lease(&two, "/a", 2000, 4100).await);
    left.write(100, pattern(2, 1900)).await.unwrap();
    right.write(2000, pattern(3, 2100)).await.unwrap();
    let (left, right) = tokio::join!(left.commit(), right.commit());
    left.unwrap();
    right.unwrap();

    let mut expected = pattern(1, 8192).to_vec();
    expected[100..2000].copy_from_slice(&pattern(2, 1900));
    expected[2000..4100].copy_from_slice(&pattern(3, 2100));
    assert_eq!(content(one.client(), "/a").await, expected);
    assert_eq!(mismatches(one.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlap_is_refused_or_waits_or_breaks_as_asked() {
    let store = Store::start().await;
    let (one, two) = (store.session().await, store.session().await);
    one.client().create("/a").await.unwrap();
    let held = lease(&one, "/a", 0, 100).await;
    let wants = [want("/a", 99, 200, Access::Overwrite)];

    let refused = two.acquire(&wants, or_refuse()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Conflict, "{refused}");
    let late = two.acquire(&wants, or_wait(50)).await.unwrap_err();
    assert_eq!(late.reason, Reason::TimedOut, "{late}");

    let (waited, released) = tokio::join!(two.acquire(&wants, or_wait(10_000)), held.release());
    released.unwrap();
    drop(waited.unwrap());

    let held = lease(&one, "/a", 0, 99).await;
    let (broke, heard) = tokio::join!(
        async {
            let wants = [want("/a", 0, 10, Access::Overwrite)];
            let started = Instant::now();
            two.acquire(&wants, or_break()).await.map(|leases| (leases, started.elapsed()))
        },
        held.revoked()
    );
    let (_leases, took) = broke.unwrap();
    assert!(took >= Duration::from_millis(300), "the holder had its grace: {took:?}");
    assert_eq!(heard.by.unwrap().pid, std::process::id());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_write_leaves_no_trace() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 10_000)).await;
    let abandoned = lease(&session, "/a", 1000, 20_000).await;
    abandoned.write(1000, pattern(2, 19_000)).await.unwrap();
    abandoned.release().await.unwrap();
    assert_eq!(content(session.client(), "/a").await, pattern(1, 10_000));

    let other = store.session().await;
    let abandoned = lease(&other, "/a", 0, 5000).await;
    abandoned.write(0, pattern(3, 5000)).await.unwrap();
    other.close().await;
    assert_eq!(content(session.client(), "/a").await, pattern(1, 10_000));
    assert_eq!(std::fs::read(store.file("/a")).unwrap(), pattern(1, 10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_breaks_the_lease_tells_the_holder_who_and_returns_after_the_fence() {
    let store = Store::start().await;
    let holder = store.session().await;
    fill(&holder, "/a", pattern(1, 1 << 20)).await;
    let held = lease(&holder, "/a", 0, 1 << 20).await;
    let breaker = store.client().await;
    let truncate = tokio::spawn(async move { breaker.truncate("/a", 4096).await });

    let LeaseState::Breaking(notice) = held.broken().await else { panic!("told before it is revoked") };
    assert_eq!(notice.operation, "truncate to 4096");
    assert_eq!((notice.breaker.pid, notice.breaker.evidence), (std::process::id(), Evidence::Verified));
    assert!(notice.breaker.program.starts_with("leases"), "{notice:?}");
    // A holder that does not care: it goes on writing until long after the deadline.
    while !truncate.is_finished() {
        if held.write(0, pattern(2, 1 << 20)).await.is_err() {
            break;
        }
    }
    truncate.await.unwrap().unwrap();
    held.revoked().await;
    assert_eq!(content(holder.client(), "/a").await, &pattern(1, 1 << 20)[..4096]);

    // The connection has survived, and the session can go on.
    fill(&holder, "/b", pattern(5, 50_000)).await;
    assert_eq!(content(holder.client(), "/b").await, pattern(5, 50_000));
    let log = holder.client().breaks(10).await.unwrap();
    assert_eq!((log.len(), log[0].outcome.as_str()), (1, "fenced"));
    assert_eq!(mismatches(holder.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_answers_in_time_keeps_what_it_committed_and_the_breaker_does_not_wait_longer() {
    let settings = leasehold::server::settings::Settings { grace_ms: 60_000, ..harness::settings() };
    let store = Store::start_with(&settings).await;
    let holder = store.session().await;
    fill(&holder, "/a", pattern(1, 9000)).await;
    let held = lease(&holder, "/a", 0, 8192).await;
    held.write(0, pattern(7, 8192)).await.unwrap();
    let breaker = store.client().await;
    let truncate = tokio::spawn(async move { breaker.truncate("/a", 5000).await });
    held.broken().await;
    held.commit().await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), truncate)
        .await
        .expect("long before the deadline")
        .unwrap()
        .unwrap();
    assert_eq!(content(holder.client(), "/a").await, &pattern(7, 8192)[..5000]);
    assert_eq!(holder.client().breaks(10).await.unwrap()[0].outcome, "committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_why_a_truncate_waits_learns_for_whom_and_until_when() {
    let settings = leasehold::server::settings::Settings { grace_ms: 60_000, ..harness::settings() };
    let store = Store::start_with(&settings).await;
    let holder = store.session().await;
    fill(&holder, "/a", pattern(1, 9000)).await;
    let held = lease(&holder, "/a", 0, 8192).await;
    let breaker = store.client().await;
    let truncate = tokio::spawn(async move { breaker.truncate("/a", 0).await });
    held.broken().await;
    let waits = holder.client().why("/a").await.unwrap();
    assert_eq!(waits.len(), 1);
    assert_eq!(waits[0].wants, "truncate to 0");
    let pid = std::process::id().to_string();
    assert!(waits[0].waits_for[0].contains(&pid), "{:?}", waits[0].waits_for);
    held.release().await.unwrap();
    truncate.await.unwrap().unwrap();
    assert!(holder.client().why("/a").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_leases_one_is_broken_and_the_other_63_transfers_finish_on_the_same_connection() {
    const PIECE: u64 = 256 << 10;
    let store = Store::start().await;
    let holder = store.session().await;
    holder.client().create("/a").await.unwrap();
    fill(&holder, "/victim", pattern(1, 9000)).await;
    let mut wants: Vec<_> =
        (0..63).map(|at| want("/a", at * PIECE, (at + 1) * PIECE, Access::Overwrite)).collect();
    wants.insert(31, want("/victim", 0, PIECE, Access::Overwrite));
    let leases = holder.acquire(&wants, or_refuse()).await.unwrap();

    let breaker = store.client().await;
    let truncate = tokio::spawn(async move { breaker.truncate("/victim", 0).await });
    // Writes into all, round robin, across the break and the fence; the broken one's bytes are dropped.
    let piece = |lease: usize, at: u64| pattern(1000 * lease as u64 + at, 4096);
    for at in 0..PIECE / 4096 {
        for (number, lease) in leases.iter().enumerate() {
            let offset = lease.range().start() + at * 4096;
            let written = lease.write(offset, piece(number, at)).await;
            assert!(written.is_ok() || number == 31, "{written:?}");
        }
        if at == 10 {
            leases[31].broken().await;
        }
        if at == 40 {
            leases[31].revoked().await;
        }
    }
    truncate.await.unwrap().unwrap();
    assert_eq!(holder.ended(), None);
    let mut expected = Vec::new();
    for (number, lease) in leases.into_iter().enumerate() {
        if number == 31 {
            lease.commit().await.unwrap_err();
        } else {
            (0..PIECE / 4096).for_each(|at| expected.extend_from_slice(&piece(number, at)));
            lease.commit().await.unwrap();
        }
    }
    assert_eq!(content(holder.client(), "/a").await, expected);
    assert!(content(holder.client(), "/victim").await.is_empty());
    assert_eq!(mismatches(holder.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_the_control_plane_breaks_leases_and_merges_with_its_neighbours() {
    let store = Store::start().await;
    let holder = store.session().await;
    fill(&holder, "/a", pattern(1, 6000)).await;
    let elsewhere = lease(&holder, "/a", 0, 100).await;
    let held = lease(&holder, "/a", 4000, 5000).await;
    let breaker = store.client().await;
    let write = tokio::spawn(async move { breaker.write("/a", 4500, Bytes::from_static(b"local")).await });
    let LeaseState::Breaking(notice) = held.broken().await else { panic!("told before it is revoked") };
    assert_eq!(notice.operation, "acquire 4500..4505 for writing");
    held.release().await.unwrap();
    write.await.unwrap().unwrap();
    let mut expected = pattern(1, 6000).to_vec();
    expected[4500..4505].copy_from_slice(b"local");
    assert_eq!(content(holder.client(), "/a").await, expected);
    assert_eq!(elsewhere.state(), LeaseState::Live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_breaks_nothing_and_removing_the_last_name_breaks_all() {
    let store = Store::start().await;
    let holder = store.session().await;
    let client = store.client().await;
    fill(&holder, "/a", pattern(1, 6000)).await;
    let (kept, broken) = (lease(&holder, "/a", 0, 100).await, lease(&holder, "/a", 100, 200).await);
    client.rename("/a", "/b").await.unwrap();
    assert_eq!(kept.state(), LeaseState::Live);
    kept.write(0, pattern(2, 100)).await.unwrap();
    kept.commit().await.unwrap();
    assert_eq!(&content(&client, "/b").await[..100], pattern(2, 100));

    let (removed, notice) = tokio::join!(client.remove("/b"), broken.revoked());
    removed.unwrap();
    assert!(notice.by.is_some());
    assert_eq!(client.stat("/b").await.unwrap_err().reason, Reason::NotFound);
    assert!(!store.file("/b").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_renamed_over_another_takes_its_place_and_breaks_its_leases() {
    let store = Store::start().await;
    let holder = store.session().await;
    fill(&holder, "/new", pattern(1, 6000)).await;
    fill(&holder, "/old", pattern(2, 9000)).await;
    let held = lease(&holder, "/old", 0, 100).await;
    let client = store.client().await;
    let (renamed, _notice) = tokio::join!(client.rename("/new", "/old"), held.revoked());
    renamed.unwrap();
    assert_eq!(content(&client, "/old").await, pattern(1, 6000));
    assert_eq!(client.stat("/new").await.unwrap_err().reason, Reason::NotFound);
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn punch_frees_the_range_and_leaves_the_rest_whatever_the_alignment() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 100_000)).await;
    let client = store.client().await;
    client.punch("/a", range(5000, 50_001)).await.unwrap();
    let mut expected = pattern(1, 100_000).to_vec();
    expected[5000..50_001].fill(0);
    assert_eq!(content(&client, "/a").await, expected);
    client.truncate("/a", 120_000).await.unwrap();
    expected.resize(120_000, 0);
    assert_eq!(content(&client, "/a").await, expected);
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_arena_makes_the_next_acquire_wait_and_then_says_what_to_do() {
    let store = Store::start().await;
    let session = store.session().await;
    session.client().create("/a").await.unwrap();
    let held = lease(&session, "/a", 0, 60 << 20).await;
    let wants = [want("/a", 60 << 20, 80 << 20, Access::Overwrite)];
    let full = session.acquire(&wants, or_wait(100)).await.unwrap_err();
    assert_eq!(full.reason, Reason::Limit);
    assert!(full.message.contains("arena"), "{full}");
    let (waited, released) = tokio::join!(session.acquire(&wants, or_wait(10_000)), held.release());
    released.unwrap();
    waited.unwrap();
    let wants = [want("/a", 0, 65 << 20, Access::Overwrite)];
    let never = session.acquire(&wants, or_wait(10_000)).await.unwrap_err();
    assert_eq!(never.reason, Reason::Limit, "{never}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acquire_whose_caller_went_away_holds_nothing() {
    let store = Store::start().await;
    let (one, two) = (store.session().await, store.session().await);
    one.client().create("/a").await.unwrap();
    let held = lease(&one, "/a", 0, 100).await;
    let wants = [want("/a", 0, 100, Access::Overwrite)];
    let gave_up = tokio::time::timeout(Duration::from_millis(50), two.acquire(&wants, or_wait(60_000))).await;
    assert!(gave_up.is_err());
    held.release().await.unwrap();
    let three = store.session().await;
    three.acquire(&wants, or_wait(5_000)).await.unwrap();
}
