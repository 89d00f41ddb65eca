//! Names: several of one file, symbolic ones, and files that take the place of others; what each means for leases.

mod harness;

use harness::{Process, Store, content, fill, lease, mismatches, pattern, settings};
use leasehold::server::settings::Settings;
use leasehold_client::{Client, LeaseState, Reason, Session, proto};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn removing_one_of_two_names_breaks_nothing_and_the_last_one_breaks_all() {
    let store = Store::start().await;
    let holder = store.session().await;
    let client = store.client().await;
    fill(&holder, "/a", pattern(1, 9000)).await;
    client.link("/a", "/b").await.unwrap();
    assert_eq!(client.stat("/b").await.unwrap().links, 2);
    let (kept, broken) = (lease(&holder, "/a", 0, 100).await, lease(&holder, "/b", 100, 200).await);
    // Both names are one file: what is leased by one is leased by the other.
    let wants = [harness::want("/b", 50, 60, leasehold_client::Access::Read)];
    assert_eq!(holder.acquire(&wants, harness::or_refuse()).await.unwrap_err().reason, Reason::Conflict);

    client.remove("/a").await.unwrap();
    assert_eq!((kept.state(), broken.state()), (LeaseState::Live, LeaseState::Live));
    kept.write(0, pattern(2, 100)).await.unwrap();
    kept.commit().await.unwrap();
    let mut expected = pattern(1, 9000).to_vec();
    expected[..100].copy_from_slice(&pattern(2, 100));
    assert_eq!(content(&client, "/b").await, expected);

    let (removed, notice) = tokio::join!(client.remove("/b"), broken.broken());
    removed.unwrap();
    let LeaseState::Breaking(notice) = notice else { panic!("told before it is revoked") };
    assert_eq!((notice.operation.as_str(), notice.breaker.pid), ("remove", std::process::id()));
    assert_eq!(client.stat("/b").await.unwrap_err().reason, Reason::NotFound);
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_made_while_the_last_name_waits_to_go_keeps_the_file() {
    let store = Store::start_with(&Settings { grace_ms: 60_000, ..settings() }).await;
    let holder = store.session().await;
    fill(&holder, "/a", pattern(1, 9000)).await;
    let held = lease(&holder, "/a", 0, 100).await;
    let client = store.client().await;
    let removing = {
        let client = client.clone();
        tokio::spawn(async move { client.remove("/a").await })
    };
    held.broken().await;
    client.link("/a", "/b").await.unwrap();
    held.release().await.unwrap();
    // It had asked for the end of the file, which would not be that any more.
    assert_eq!(removing.await.unwrap().unwrap_err().reason, Reason::NotFound);
    assert_eq!(content(&client, "/a").await, pattern(1, 9000));
    assert_eq!(content(&client, "/b").await, pattern(1, 9000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_over_a_file_tells_its_holders_and_breaks_nothing_where_the_name_was_one_of_two() {
    let store = Store::start().await;
    let holder = store.session().await;
    let client = store.client().await;
    for (seed, path) in [(1, "/new"), (2, "/old"), (3, "/newer")] {
        fill(&holder, path, pattern(seed, 9000)).await;
    }
    client.link("/old", "/other").await.unwrap();
    let (mover, held) = (lease(&holder, "/new", 0, 100).await, lease(&holder, "/old", 0, 100).await);
    client.rename("/new", "/old").await.unwrap();
    assert_eq!((mover.state(), held.state()), (LeaseState::Live, LeaseState::Live));
    assert_eq!(content(&client, "/old").await, pattern(1, 9000));
    assert_eq!(content(&client, "/other").await, pattern(2, 9000));

    let (renamed, notice) = tokio::join!(client.rename("/newer", "/old"), mover.broken());
    renamed.unwrap();
    let LeaseState::Breaking(notice) = notice else { panic!("told before it is revoked") };
    assert_eq!(notice.operation, "rename another file over it");
    assert_eq!(held.state(), LeaseState::Live);
    assert_eq!(content(&client, "/old").await, pattern(3, 9000));
    let log = client.breaks(10).await.unwrap();
    assert_eq!(log.last().unwrap().operation, "rename another file over it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symbolic_link_is_kept_shown_renamed_and_removed_and_never_followed() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = store.client().await;
    fill(&session, "/a", pattern(1, 5000)).await;
    client.symlink("../outside; anything", "/link").await.unwrap();
    client.symlink("a", "/to-a").await.unwrap();
    assert_eq!(client.read_link("/link").await.unwrap(), "../outside; anything");
    assert_eq!(std::fs::read_link(store.file("/link")).unwrap().to_str(), Some("../outside; anything"));
    let listed = client.list("/").await.unwrap();
    let links: Vec<_> = listed.iter().filter(|file| file.kind() == proto::file::Kind::Link).collect();
    assert_eq!(links.len(), 2);
    assert_eq!(links[1].target, "a");

    assert_eq!(client.read_link("/a").await.unwrap_err().reason, Reason::WrongKind);
    assert!(client.truncate("/to-a", 0).await.is_err());
    assert!(client.create("/to-a").await.is_err());
    let wants = [harness::want("/to-a", 0, 100, leasehold_client::Access::Overwrite)];
    assert!(session.acquire(&wants, harness::or_refuse()).await.is_err());
    assert_eq!(content(&client, "/a").await, pattern(1, 5000));

    client.rename("/to-a", "/moved").await.unwrap();
    assert_eq!(client.read_link("/moved").await.unwrap(), "a");
    client.rename("/a", "/moved").await.unwrap();
    assert_eq!(content(&client, "/moved").await, pattern(1, 5000));
    client.remove("/link").await.unwrap();
    assert_eq!(client.list("/").await.unwrap().len(), 1);
    assert_eq!(mismatches(&client).await, 0);
}

/// Replaces `/current` by rename, again and again, until the server is gone.
async fn replace(client: Client, started: Arc<AtomicU64>, finished: Arc<AtomicU64>) {
    let _gone = async {
        let session = Session::open(&client).await.ok()?;
        loop {
            let version = started.fetch_add(1, Ordering::SeqCst) + 1;
            client.create("/next").await.ok()?;
            let wants = [harness::want("/next", 0, 100_000, leasehold_client::Access::Overwrite)];
            let lease = session.acquire(&wants, harness::or_wait(5000)).await.ok()?.remove(0);
            lease.write(0, pattern(version, 100_000)).await.ok()?;
            lease.commit().await.ok()?;
            session.sync("/next").await.ok()?;
            client.link("/next", "/also").await.ok()?;
            client.rename("/next", "/current").await.ok()?;
            client.sync("/current").await.ok()?;
            finished.store(version, Ordering::SeqCst);
            client.remove("/also").await.ok()?;
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        Some(())
    }
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_a_file_that_is_replaced_by_rename_is_the_old_one_or_the_new_one_whole() {
    let directory = harness::directory();
    let (started, finished) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for delay_ms in [120, 70, 260, 1] {
        let mut server = Process::start(directory.path()).await;
        let client = server.client().await;
        let (first, last) = (finished.load(Ordering::SeqCst), started.load(Ordering::SeqCst));
        if first > 0 {
            let found = content(&client, "/current").await;
            assert!(
                (first..=last).any(|version| pattern(version, 100_000) == found),
                "/current is of no version from {first} (confirmed) to {last}"
            );
        }
        assert_eq!(mismatches(&client).await, 0);
        for left in ["/also", "/next"] {
            match client.remove(left).await {
                Err(error) if error.reason == Reason::NotFound => {}
                removed => removed.unwrap(),
            }
        }
        let replacing = tokio::spawn(replace(client, started.clone(), finished.clone()));
        let before = finished.load(Ordering::SeqCst);
        while finished.load(Ordering::SeqCst) == before {
            assert!(!replacing.is_finished(), "nothing was replaced");
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(delay_ms)).await; // when it is killed is arbitrary
        server.kill();
        replacing.await.unwrap();
    }
}
