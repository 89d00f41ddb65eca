//! A peer made of a plain socket that sends what no honest peer sends. The file stays as it was, all others go on, and a
//! metric counts it.

mod harness;
#[path = "../../leasehold-fabric/tests/raw/mod.rs"]
mod raw;

use bytes::Bytes;
use harness::{Control, Store, content, fill, mismatches, pattern};
use raw::Raw;

struct Hostile {
    control: Control,
    stream: Raw,
}

impl Hostile {
    async fn connect(store: &Store) -> Hostile {
        let control = Control::open(store).await;
        let stream = Raw::connect(store.server.data_address(), &control.token);
        Hostile { control, stream }
    }
}

async fn metric(store: &Store, name: &str) -> u64 {
    let page = store.metrics().await;
    let line =
        page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {page}"));
    line.split(' ').next_back().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_crc_poisons_the_stream_so_nothing_of_it_is_committed_and_others_go_on() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 8192)).await;
    session.client().create("/b").await.unwrap();
    let other = harness::lease(&session, "/b", 0, 4096).await;

    let mut hostile = Hostile::connect(&store).await;
    let (lease, tag) = hostile.control.acquire("/a", 0, 8192).await;
    let bytes = pattern(2, 4096);
    hostile.stream.put(&raw::write(tag, 0, &bytes));
    let mut bad = raw::write(tag, 4096, &bytes);
    *bad.last_mut().unwrap() ^= 1;
    hostile.stream.put(&bad);
    assert_eq!(hostile.stream.terminate().0, (2, 0, 2), "MPA: CRC error");
    hostile.stream.end();

    // All of its bytes are in the frames, and a commit with their true CRC comes by another path: too late.
    let crc32c = raw::crc32c(&[bytes.clone(), bytes].concat());
    hostile.control.commit(lease, crc32c).await.unwrap_err();
    assert_eq!(content(session.client(), "/a").await, pattern(1, 8192));

    other.write(0, pattern(3, 4096)).await.unwrap();
    other.commit().await.unwrap();
    assert_eq!(content(session.client(), "/b").await, pattern(3, 4096));
    assert_eq!(metric(&store, "leasehold_poisoned_total").await, 1);
    assert_eq!(metric(&store, "leasehold_fabric_bad_crcs_total").await, 1);
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_in_the_middle_of_a_message_holds_up_no_truncate_and_lands_nothing_after_it() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 40_960)).await;
    let mut hostile = Hostile::connect(&store).await;
    let (_lease, tag) = hostile.control.acquire("/a", 0, 40_960).await;
    let message = raw::write(tag, 0, &pattern(2, 40_960));
    hostile.stream.put(&message[..20_000]);
    session.client().truncate("/a", 100).await.unwrap(); // the grace, and the fence
    // The very frames go to somebody else at once; the rest of the message comes now.
    let lease = harness::lease(&session, "/a", 0, 40_960).await;
    lease.write(0, pattern(3, 40_960)).await.unwrap();
    hostile.stream.put(&message[20_000..]);
    // A second message proves that the first was read to its end, and that its stream lives.
    hostile.stream.put(&raw::send(1, &commit_of_no_lease()));
    hostile.stream.segment();
    lease.commit().await.unwrap();
    assert_eq!(content(session.client(), "/a").await, pattern(3, 40_960));
    assert_eq!(mismatches(session.client()).await, 0);
}

fn commit_of_no_lease() -> Bytes {
    use leasehold_fabric::message::{Commit, Message};
    Message::Commit(Commit { request: 1, lease: u64::MAX, crc32c: None }).encode()
}
