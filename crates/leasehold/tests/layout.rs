//! Operations that change which bytes a file has: what each breaks, what it leaves, and what a crash in it leaves.

mod harness;

use bytes::Bytes;
use harness::{Process, Store, content, fill, lease, mismatches, pattern, range, settings};
use leasehold::server::settings::Settings;
use leasehold_client::{ByteRange, CallError, Client, LeaseState, Reason, Session};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Truncate(u64),
    Punch(u64, u64),
    Zero(u64, u64),
    Collapse(u64, u64),
    Write(u64, u64),
}

impl Operation {
    async fn make(self, client: &Client) -> Result<(), CallError> {
        match self {
            Operation::Truncate(size) => client.truncate("/a", size).await,
            Operation::Punch(start, end) => client.punch("/a", range(start, end)).await,
            Operation::Zero(start, end) => client.zero("/a", range(start, end)).await,
            Operation::Collapse(start, end) => client.collapse("/a", range(start, end)).await,
            Operation::Write(at, seed) => {
                client.write("/a", at, pattern(seed, 4096)).await?;
                client.sync("/a").await
            }
        }
    }

    /// What it means, on bytes in memory.
    fn apply(self, bytes: &mut Vec<u8>) {
        let within = |end: u64, bytes: &Vec<u8>| (end as usize).min(bytes.len());
        match self {
            Operation::Truncate(size) => bytes.resize(size as usize, 0),
            Operation::Punch(start, end) | Operation::Zero(start, end) => {
                let part = within(start, bytes)..within(end, bytes);
                bytes[part].fill(0);
            }
            Operation::Collapse(start, end) => drop(bytes.drain(start as usize..end as usize)),
            Operation::Write(at, seed) => {
                let (at, end) = (at as usize, at as usize + 4096);
                bytes.resize(bytes.len().max(end), 0);
                bytes[at..end].copy_from_slice(&pattern(seed, 4096));
            }
        }
    }
}

/// Whether the filesystem of the tests can collapse; says so if not.
async fn can_collapse(client: &Client) -> bool {
    client.create("/probe").await.unwrap();
    client.write("/probe", 0, Bytes::from(vec![1; 8193])).await.unwrap();
    let collapsed = client.collapse("/probe", range(0, 4096)).await;
    client.remove("/probe").await.unwrap();
    match collapsed {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.reason, Reason::Invalid, "{error}");
            eprintln!("SKIPPED the part about collapse: {error}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_tells_the_holders_in_its_way_who_and_what_and_leaves_the_others_alone() {
    let store = Store::start_with(&Settings { grace_ms: 60_000, ..settings() }).await;
    let holder = store.session().await;
    let client = store.client().await;
    let collapses = can_collapse(&client).await;
    for (operation, says, broken, kept) in [
        (Operation::Truncate(40_000), "truncate to 40000", range(60_000, 70_000), range(0, 40_000)),
        (Operation::Punch(5000, 9000), "punch 5000..9000", range(8999, 9000), range(9000, 20_000)),
        (Operation::Zero(5000, 9000), "zero 5000..9000", range(0, 5001), range(9000, 20_000)),
        (Operation::Collapse(8192, 16_384), "collapse 8192..16384", range(50_000, 50_001), range(0, 8192)),
    ] {
        if matches!(operation, Operation::Collapse(..)) && !collapses {
            continue;
        }
        let mut expected = pattern(1, 70_000).to_vec();
        fill(&holder, "/a", Bytes::from(expected.clone())).await;
        let broken = lease(&holder, "/a", broken.start(), broken.end()).await;
        let kept = lease(&holder, "/a", kept.start(), kept.end()).await;
        let breaker = client.clone();
        let changing = tokio::spawn(async move { operation.make(&breaker).await });
        let LeaseState::Breaking(notice) = broken.broken().await else { panic!("told before it is revoked") };
        assert_eq!(notice.operation, says);
        assert_eq!((notice.range, notice.breaker.pid), (broken.range(), std::process::id()));
        let waits = client.why("/a").await.unwrap();
        assert_eq!((waits.len(), waits[0].wants.as_str()), (1, says));
        assert!(!changing.is_finished(), "it waits for the holder");
        broken.release().await.unwrap();
        changing.await.unwrap().unwrap();
        operation.apply(&mut expected);
        assert_eq!(content(&client, "/a").await, expected, "{operation:?}");
        assert_eq!(kept.state(), LeaseState::Live, "{operation:?}");
        kept.release().await.unwrap();
        client.remove("/a").await.unwrap();
    }
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_stops_at_the_end_of_file_and_works_at_any_alignment() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = store.client().await;
    let mut expected = pattern(1, 50_000).to_vec();
    fill(&session, "/a", Bytes::from(expected.clone())).await;
    for (start, end) in
        [(1, 2), (4095, 4097), (8192, 16_384), (20_000, 33_333), (49_999, 60_000), (70_000, 80_000)]
    {
        client.zero("/a", range(start, end)).await.unwrap();
        Operation::Zero(start, end).apply(&mut expected);
        assert_eq!(content(&client, "/a").await, expected, "{start}..{end}");
    }
    client.zero("/a", ByteRange::from(0)).await.unwrap();
    assert_eq!(content(&client, "/a").await, vec![0; 50_000]);
    client.sync("/a").await.unwrap();
    use std::os::unix::fs::MetadataExt;
    let allocated = std::fs::metadata(store.file("/a")).unwrap().blocks() * 512;
    assert!(allocated >= 50_000, "{allocated} bytes are allocated");
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collapse_that_cannot_be_is_refused_before_it_breaks_a_lease() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = store.client().await;
    fill(&session, "/a", pattern(1, 50_000)).await;
    let held = lease(&session, "/a", 0, 50_000).await;
    for bad in [range(1, 4096), range(0, 4095), range(4096, 53_248), ByteRange::from(4096)] {
        let error = client.collapse("/a", bad).await.unwrap_err();
        assert_eq!(error.reason, Reason::Invalid, "{bad}: {error}");
    }
    assert_eq!(held.state(), LeaseState::Live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_copied_up_to_the_end_of_its_source_and_breaks_only_what_is_written_over() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = store.client().await;
    let length = (3 << 20) + 777;
    fill(&session, "/from", pattern(1, length)).await;
    fill(&session, "/to", pattern(2, 100_000)).await;
    let reading = lease(&session, "/from", 0, 1 << 20).await; // for writing, even
    let (broken, kept) = (lease(&session, "/to", 6000, 7000).await, lease(&session, "/to", 0, 5000).await);
    let (copied, notice) =
        tokio::join!(client.copy_range("/from", ByteRange::from(1001), "/to", 5000), broken.broken());
    assert_eq!(copied.unwrap(), length as u64 - 1001);
    let LeaseState::Breaking(notice) = notice else { panic!("told before it is revoked") };
    assert_eq!(notice.operation, format!("acquire 5000..{} for writing", 5000 + (1 << 20)));
    assert_eq!((reading.state(), kept.state()), (LeaseState::Live, LeaseState::Live));
    assert!(
        content(&client, "/to").await == [&pattern(2, 100_000)[..5000], &pattern(1, length)[1001..]].concat()
    );
    assert_eq!(client.copy_range("/from", ByteRange::from(length as u64), "/to", 0).await.unwrap(), 0);

    // Within a file, to a place of its own.
    drop(kept);
    fill(&session, "/same", pattern(3, 20_000)).await;
    assert_eq!(client.copy_range("/same", range(0, 10_000), "/same", 10_001).await.unwrap(), 10_000);
    let mut expected = pattern(3, 20_000)[..10_001].to_vec();
    expected.extend_from_slice(&pattern(3, 20_000)[..10_000]);
    assert_eq!(content(&client, "/same").await, expected);
    client.link("/same", "/alias").await.unwrap();
    let overlap = client.copy_range("/same", range(0, 10_000), "/alias", 9_999).await.unwrap_err();
    assert_eq!(overlap.reason, Reason::Invalid, "{overlap}");
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_evicted_is_written_back_first_and_read_again_from_the_disk() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = store.client().await;
    client.create("/a").await.unwrap();
    let held = lease(&session, "/a", 0, 3 << 20).await;
    held.write(0, pattern(1, 3 << 20)).await.unwrap();
    held.commit().await.unwrap(); // and no sync
    client.evict("/a").await.unwrap();
    assert!(std::fs::read(store.file("/a")).unwrap() == pattern(1, 3 << 20));
    assert!(client.evict("/a").await.is_ok(), "what is not in memory is forgotten already");
    assert!(content(&client, "/a").await == pattern(1, 3 << 20));
    assert_eq!(client.evict("/missing").await.unwrap_err().reason, Reason::NotFound);
    assert_eq!(mismatches(&client).await, 0);
}

/// What the file was before and after the operation under way.
struct Oracle {
    before: Vec<u8>,
    after: Vec<u8>,
    operation: Option<Operation>,
    made: u64,
}

/// The `n`th operation, on a file of this length.
fn any_operation(n: u64, length: u64, collapses: bool) -> Operation {
    let random = |what: u64, below: u64| {
        u64::from_le_bytes(pattern(n * 7 + what, 8)[..8].try_into().expect("8 bytes")) % below.max(1)
    };
    let start = random(1, length);
    let end = start + 1 + random(2, 30_000);
    match n % 5 {
        0 => Operation::Zero(start, end),
        1 => Operation::Punch(start, end),
        2 => Operation::Truncate(50_000 + random(3, 100_000)),
        3 if collapses && length > 3 * 4096 => {
            let first = random(4, length / 4096 - 2);
            Operation::Collapse(first * 4096, (first + 1) * 4096)
        }
        _ => Operation::Write(random(5, 20) * 4096, n),
    }
}

async fn change_until_it_is_gone(client: Client, oracle: Arc<Mutex<Oracle>>, collapses: bool, first: u64) {
    for n in first.. {
        let operation = {
            let mut oracle = oracle.lock().unwrap();
            let operation = any_operation(n, oracle.before.len() as u64, collapses);
            let mut after = oracle.before.clone();
            operation.apply(&mut after);
            (oracle.after, oracle.operation) = (after, Some(operation));
            operation
        };
        if operation.make(&client).await.is_err() {
            return;
        }
        let mut oracle = oracle.lock().unwrap();
        oracle.before = oracle.after.clone();
        oracle.made += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_in_any_operation_the_file_is_as_before_or_after_it() {
    let directory = harness::directory();
    let start = || Oracle {
        before: pattern(0, 100_000).to_vec(),
        after: pattern(0, 100_000).to_vec(),
        operation: None,
        made: 0,
    };
    let oracle = Arc::new(Mutex::new(start()));
    let mut collapses = None;
    for (round, delay_ms) in [150, 80, 230, 40, 190, 1].into_iter().enumerate() {
        let mut server = Process::start(directory.path()).await;
        let client = server.client().await;
        match collapses {
            None => {
                collapses = Some(can_collapse(&client).await);
                let session = Session::open(&client).await.unwrap();
                fill(&session, "/a", pattern(0, 100_000)).await;
            }
            Some(_) => {
                let found = content(&client, "/a").await;
                let mut oracle = oracle.lock().unwrap();
                let made = oracle.operation;
                assert!(
                    found == oracle.before || found == oracle.after,
                    "round {round}: {made:?} left {} bytes that are neither the {} before nor the {} after",
                    found.len(),
                    oracle.before.len(),
                    oracle.after.len()
                );
                (oracle.before, oracle.made) = (found, 0);
            }
        }
        assert_eq!(mismatches(&client).await, 0, "round {round}");
        let changing = tokio::spawn(change_until_it_is_gone(
            client,
            oracle.clone(),
            collapses.expect("looked at"),
            round as u64 * 1_000_003,
        ));
        while oracle.lock().unwrap().made < 5 {
            assert!(!changing.is_finished(), "nothing was changed: {:?}", oracle.lock().unwrap().operation);
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(delay_ms)).await; // when it is killed is arbitrary
        server.kill();
        changing.await.unwrap();
    }
}
