//! What scrub says about files that other tools put there, or changed.

mod harness;

use harness::{Store, content, fill, pattern};
use leasehold_client::{Client, Reason, ScrubOptions, proto};
use std::os::unix::fs::FileExt;
use tokio_stream::StreamExt as _;

async fn scrub(client: &Client) -> (Vec<proto::ScrubFile>, proto::ScrubTotals) {
    let mut items = Box::pin(client.scrub(None, ScrubOptions::default()).await.unwrap());
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
