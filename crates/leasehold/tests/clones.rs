//! Clones: taken at one moment, as they were ever after (P9), whole after any crash.

mod harness;

use harness::{Process, Store, content, fill, lease, mismatches, or_wait, pattern, want};
use leasehold_client::{Access, Client, LeaseState, Reason, Session};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const LENGTH: usize = 300_000;

/// Commits version after version of all of `/source`, each as one lease, until told to stop or the server is gone.
async fn write_versions(
    client: Client,
    begun: Arc<AtomicU64>,
    committed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    let _gone = async {
        let session = Session::open(&client).await.ok()?;
        while !stop.load(Ordering::SeqCst) {
            let version = begun.fetch_add(1, Ordering::SeqCst) + 1;
            let wants = [want("/source", 0, LENGTH as u64, Access::Overwrite)];
            let lease = session.acquire(&wants, or_wait(5000)).await.ok()?.remove(0);
            lease.write(0, pattern(version, LENGTH)).await.ok()?;
            lease.commit().await.ok()?;
            committed.store(version, Ordering::SeqCst);
        }
        Some(())
    }
    .await;
}

/// Which version all of the bytes are of.
fn version_of(bytes: &[u8], versions: std::ops::RangeInclusive<u64>) -> Option<u64> {
    versions.into_iter().find(|version| pattern(*version, LENGTH) == bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_of_one_moment_and_stays_as_it_was_while_the_source_is_written() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/source", pattern(0, LENGTH)).await;
    let (begun, committed, stop) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let client = store.client().await;
    let writer = tokio::spawn(write_versions(client.clone(), begun.clone(), committed.clone(), stop.clone()));
    let mut clones = Vec::new();
    for number in 0..12 {
        let path = format!("/clone{number}");
        let first = committed.load(Ordering::SeqCst);
        client.clone_file("/source", &path, false).await.unwrap();
        let last = begun.load(Ordering::SeqCst);
        let found = content(&client, &path).await;
        let version = version_of(&found, first..=last);
        clones.push((path, version.expect("a clone of one moment during the call")));
        while committed.load(Ordering::SeqCst) < last + 1 {
            assert!(!writer.is_finished(), "the writer goes on");
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    assert!(clones.windows(2).all(|pair| pair[0].1 < pair[1].1), "the writer went on: {clones:?}");
    for (path, version) in &clones {
        assert!(content(&client, path).await == pattern(*version, LENGTH), "{path} has changed");
        assert!(std::fs::read(store.file(path)).unwrap() == pattern(*version, LENGTH), "{path} is durable");
    }
    // And the other way round: what is written to a clone does not get into the source.
    let before = content(&client, "/source").await;
    client.zero("/clone0", harness::range(0, 100_000)).await.unwrap();
    client.truncate("/clone1", 1).await.unwrap();
    assert!(content(&client, "/source").await == before);
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_breaks_the_leases_on_the_file_that_it_replaces_and_none_on_its_source() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = store.client().await;
    fill(&session, "/source", pattern(1, 20_001)).await;
    fill(&session, "/old", pattern(2, 9000)).await;
    let (writing, broken) =
        (lease(&session, "/source", 0, 20_001).await, lease(&session, "/old", 0, 100).await);
    writing.write(0, pattern(3, 20_001)).await.unwrap(); // not committed: not in the clone

    let taken = client.clone_file("/source", "/old", false).await.unwrap_err();
    assert_eq!((taken.reason, broken.state()), (Reason::AlreadyExists, LeaseState::Live));
    let (cloned, notice) = tokio::join!(client.clone_file("/source", "/old", true), broken.broken());
    cloned.unwrap();
    let LeaseState::Breaking(notice) = notice else { panic!("told before it is revoked") };
    assert_eq!(notice.operation, "clone another file over it");
    assert_eq!(writing.state(), LeaseState::Live);
    assert_eq!(content(&client, "/old").await, pattern(1, 20_001));
    writing.commit().await.unwrap();
    assert_eq!(content(&client, "/source").await, pattern(3, 20_001));
    assert_eq!(content(&client, "/old").await, pattern(1, 20_001));
    let log = client.breaks(10).await.unwrap();
    assert_eq!((log.len(), log[0].operation.as_str()), (1, "clone another file over it"));
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_has_what_belongs_to_the_file_and_not_what_only_the_name_says() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = store.client().await;
    for length in [0, 1, 4096, 100_001] {
        fill_or_create(&session, "/source", length).await;
        std::fs::set_permissions(store.file("/source"), PermissionsExt::from_mode(0o640)).unwrap();
        client.clone_file("/source", "/clone", true).await.unwrap();
        assert!(content(&client, "/clone").await == pattern(9, length), "{length} bytes");
        assert_eq!(std::fs::metadata(store.file("/clone")).unwrap().permissions().mode() & 0o7777, 0o640);
        client.remove("/source").await.unwrap();
        assert!(content(&client, "/clone").await == pattern(9, length), "it outlives its source");
    }
    // Of holes, and of a file beside which nothing could be placed.
    client.create("/sparse").await.unwrap();
    client.truncate("/sparse", 1 << 30).await.unwrap();
    client.write("/sparse", 500 << 20, pattern(1, 10_000)).await.unwrap();
    client.clone_file("/sparse", "/sparse2", false).await.unwrap();
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(store.file("/sparse2")).unwrap();
    assert_eq!(metadata.len(), 1 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", metadata.blocks());

    client.make_directory("/directory", false).await.unwrap();
    for (from, to, reason) in [
        ("/missing", "/x", Reason::NotFound),
        ("/clone", "/missing/x", Reason::NotFound),
        ("/directory", "/x", Reason::WrongKind),
        ("/clone", "/directory", Reason::WrongKind),
        ("/clone", "/clone", Reason::Invalid),
    ] {
        let error = client.clone_file(from, to, true).await.unwrap_err();
        assert_eq!(error.reason, reason, "{from} to {to}: {error}");
    }
    assert_eq!(staged(store.directory.path()), 0, "nothing is left of the attempts");
    assert_eq!(mismatches(&client).await, 0);
}

async fn fill_or_create(session: &Session, path: &str, length: usize) {
    if length == 0 {
        session.client().create(path).await.unwrap();
    } else {
        fill(session, path, pattern(9, length)).await;
    }
}

/// How many files wait for a name.
fn staged(directory: &Path) -> usize {
    std::fs::read_dir(directory.join(".leasehold/staging")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_a_clone_is_there_whole_or_not_at_all_and_nothing_is_left_of_it() {
    let directory = harness::directory();
    let (begun, committed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let clones = Arc::new(AtomicU64::new(0));
    for delay_ms in [90, 160, 50, 240, 1] {
        let mut server = Process::start(directory.path()).await;
        let client = server.client().await;
        assert_eq!(staged(directory.path()), 0);
        assert_eq!(mismatches(&client).await, 0);
        match client.stat("/clone").await {
            Ok(_) => {
                let found = content(&client, "/clone").await;
                let last = begun.load(Ordering::SeqCst);
                assert!(version_of(&found, 0..=last).is_some(), "a clone of no version up to {last}");
            }
            Err(error) => assert_eq!((error.reason, clones.load(Ordering::SeqCst)), (Reason::NotFound, 0)),
        }
        // What the crash left of the source is of several versions: begin anew.
        let session = Session::open(&client).await.unwrap();
        let version = begun.fetch_add(1, Ordering::SeqCst) + 1;
        client.create("/source").await.unwrap();
        fill(&session, "/source", pattern(version, LENGTH)).await;
        let stop = Arc::new(AtomicBool::new(false));
        let writer =
            tokio::spawn(write_versions(client.clone(), begun.clone(), committed.clone(), stop.clone()));
        let cloner = {
            let clones = clones.clone();
            tokio::spawn(async move {
                while client.clone_file("/source", "/clone", true).await.is_ok() {
                    clones.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let before = clones.load(Ordering::SeqCst);
        while clones.load(Ordering::SeqCst) == before {
            assert!(!cloner.is_finished(), "nothing was cloned");
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(delay_ms)).await; // when it is killed is arbitrary
        server.kill();
        let (writer, cloner) = tokio::join!(writer, cloner);
        writer.unwrap();
        cloner.unwrap();
    }
}
