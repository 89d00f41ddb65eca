//! What scrub says about files that other tools put there, or changed.

mod harness;

use harness::{Store, content, fill, pattern};
use leasehold_client::{Client, Reason, ScrubOptions, proto};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tokio_stream::StreamExt as _;

async fn scrub(client: &Client) -> (Vec<proto::ScrubFile>, proto::ScrubTotals) {
    scrub_with(client, None, ScrubOptions::default()).await
}

async fn scrub_with(
    client: &Client,
    path: Option<&str>,
    options: ScrubOptions,
) -> (Vec<proto::ScrubFile>, proto::ScrubTotals) {
    let mut items = Box::pin(client.scrub(path, options).await.unwrap());
    let (mut files, mut totals) = (Vec::new(), None);
    while let Some(item) = items.next().await {
        match item.unwrap() {
            proto::scrub_response::Item::File(file) => files.push(file),
            proto::scrub_response::Item::Totals(found) => totals = Some(found),
        }
    }
    (files, totals.expect("the totals come last"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_tool_put_there_is_served_and_adopted_once() {
    let store = Store::start().await;
    let client = store.client().await;
    std::fs::create_dir(store.file("/sub")).unwrap();
    std::fs::write(store.file("/sub/theirs"), pattern(1, 10_000)).unwrap();
    assert_eq!(scrub(&client).await.1.adopted, 3);
    assert_eq!(scrub(&client).await.1.adopted, 0);
    assert_eq!(content(&client, "/sub/theirs").await, pattern(1, 10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_changed_behind_its_back_is_named_by_block_and_sums_and_never_served() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 40_000)).await;
    fill(&session, "/b", pattern(2, 4096)).await;
    let file = std::fs::OpenOptions::new().write(true).open(store.file("/a")).unwrap();
    file.write_all_at(&[!pattern(1, 40_000)[9000]], 9000).unwrap();
    file.sync_all().unwrap();

    let (files, totals) = scrub(session.client()).await;
    let bad: Vec<_> =
        files.iter().flat_map(|file| file.mismatches.iter().map(|bad| (&*file.path, bad))).collect();
    assert_eq!((bad.len(), bad[0].0.trim_start_matches('/'), bad[0].1.block), (1, "a", 2));
    assert_ne!(bad[0].1.committed_crc32c, Some(bad[0].1.found_crc32c));
    assert_eq!((totals.files, totals.blocks, totals.mismatched), (2, 11, 1));

    let mut pieces = Box::pin(session.client().read("/a", 0, None).await.unwrap());
    assert_eq!(pieces.next().await.unwrap().unwrap_err().reason, Reason::Mismatch);
    assert_eq!(content(session.client(), "/b").await, pattern(2, 4096));
}

/// What another tool does to a file.
fn meddle(store: &Store, path: &str, at: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(store.file(path)).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

const ADOPT: ScrubOptions = ScrubOptions { adopt: true, bytes_per_second: None };

#[tokio::test(flavor = "multi_thread")]
async fn what_another_tool_changed_is_served_again_once_it_is_adopted_and_only_where_asked() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = session.client();
    for (seed, path) in [(1, "/a"), (2, "/b")] {
        fill(&session, path, pattern(seed, 40_000)).await;
        meddle(&store, path, 9000, b"meant");
        meddle(&store, path, 39_998, b"x");
    }
    let (files, totals) = scrub_with(client, Some("/a"), ADOPT).await;
    let bad: Vec<_> = files[0].mismatches.iter().map(|bad| (bad.block, bad.adopted)).collect();
    assert_eq!(bad, [(2, true), (9, true)]);
    assert_eq!((totals.mismatched, totals.mismatched_adopted, files[0].adopted_size), (0, 2, None));

    let mut expected = pattern(1, 40_000).to_vec();
    expected[9000..9005].copy_from_slice(b"meant");
    expected[39_998] = b'x';
    assert_eq!(content(client, "/a").await, expected);
    let (files, totals) = scrub(client).await;
    assert_eq!((totals.mismatched, totals.mismatched_adopted), (2, 0));
    assert!(files.iter().all(|file| file.mismatches.is_empty() || file.path == "/b"), "{files:?}");

    // It counts as committed: another change is found against it.
    meddle(&store, "/a", 9001, b"E");
    let (files, _) = scrub_with(client, Some("/a"), ScrubOptions::default()).await;
    assert_eq!(files[0].mismatches.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_another_tool_changed_is_adopted_with_the_bytes() {
    let store = Store::start().await;
    let session = store.session().await;
    let client = session.client();
    for length in [5000, 8192] {
        fill(&session, "/a", pattern(1, length)).await;
        meddle(&store, "/a", length as u64, &pattern(2, 10_000)); // while it is open here
        if length % 4096 == 0 {
            // Else the last block does not match, and is not served.
            assert_eq!(content(client, "/a").await, pattern(1, length), "what is committed is served");
        }
        let (files, _) = scrub_with(client, Some("/a"), ADOPT).await;
        assert_eq!(files[0].adopted_size, Some(length as u64 + 10_000), "{files:?}");
        let expected = [&pattern(1, length)[..], &pattern(2, 10_000)].concat();
        assert_eq!(content(client, "/a").await, expected);

        let file = std::fs::OpenOptions::new().write(true).open(store.file("/a")).unwrap();
        file.set_len(3000).unwrap();
        let (files, totals) = scrub_with(client, Some("/a"), ADOPT).await;
        assert_eq!((files[0].adopted_size, totals.mismatched), (Some(3000), 0), "{files:?}");
        assert_eq!(content(client, "/a").await, pattern(1, length)[..3000]);
        assert_eq!(scrub(client).await.1.mismatched, 0);
        client.remove("/a").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_with_a_rate_takes_its_time_and_finds_the_same() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 3 << 20)).await;
    meddle(&store, "/a", 2 << 20, b"x");
    let began = std::time::Instant::now();
    let rate = std::num::NonZeroU64::new(4 << 20);
    let options = ScrubOptions { adopt: false, bytes_per_second: rate };
    let (_, totals) = scrub_with(session.client(), None, options).await;
    let took = began.elapsed().as_secs_f64();
    assert_eq!((totals.blocks, totals.mismatched), (768, 1));
    assert!(took >= 0.55, "3 MiB at 4 MiB a second, less 100 ms of credit, took {took} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_of_a_file_that_is_removed_meanwhile_ends_and_says_so() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 1 << 20)).await;
    // Seconds for the whole file, a piece every tenth of one.
    let slowly = ScrubOptions { bytes_per_second: NonZeroU64::new(100 << 10), ..ScrubOptions::default() };
    let scrubbing = scrub_with(session.client(), Some("/a"), slowly);
    let removing = async {
        tokio::time::sleep(Duration::from_millis(300)).await; // arbitrary: any moment before its end will do
        session.client().remove("/a").await.expect("removed");
    };
    let both = async { tokio::join!(scrubbing, removing) };
    let ((files, _), ()) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("it ends");
    assert!(!files[0].error.is_empty(), "{files:?}");
    assert!(files[0].blocks < 256, "{files:?}");
}
