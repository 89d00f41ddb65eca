//! A peer that is not our client: the fabric's trait and gRPC, by hand. What it does wrong harms only itself.

mod harness;

use bytes::Bytes;
use harness::{Control, Store, content, fill, mismatches, pattern};
use leasehold_client::proto;
use leasehold_fabric::iwarp::{self, Iwarp};
use leasehold_fabric::message::{Capture, Captured, Commit, Committed, Message, Status};
use leasehold_fabric::{CloseReason, Endpoint, Fabric, Handler, Remote, Source, Tag};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Heard {
    Message(Message),
    Closed(CloseReason),
}

struct Ears(mpsc::Sender<Heard>);

impl Handler for Ears {
    fn connected(&mut self, _endpoint: Arc<dyn Endpoint>) {}
    fn message(&mut self, message: &[u8]) {
        let _ = self.0.send(Heard::Message(Message::parse(message).expect("one of ours")));
    }
    fn poisoned(&mut self) {}
    fn closed(&mut self, why: &CloseReason) {
        let _ = self.0.send(Heard::Closed(why.clone()));
    }
}

struct Peer {
    control: Control,
    endpoint: Arc<dyn Endpoint>,
    heard: mpsc::Receiver<Heard>,
    _fabric: Iwarp,
}

impl Peer {
    async fn connect(store: &Store) -> Peer {
        let control = Control::open(store).await;
        let (send, heard) = mpsc::channel();
        let fabric = Iwarp::new(iwarp::Config::default()).unwrap();
        let data = store.server.data_address();
        let (endpoint, _) = fabric.connect(data, &control.token, Box::new(Ears(send)), PATIENCE).unwrap();
        Peer { control, endpoint, heard, _fabric: fabric }
    }

    fn write(&self, tag: Tag, offset: u64, bytes: Bytes) {
        self.endpoint.write(Source::Bytes(bytes), Remote { tag, offset }, Box::new(|_| ()));
    }

    fn commit(&self, lease: u64, crc32c: Option<u32>) -> Committed {
        let message = Message::Commit(Commit { request: 1, lease, crc32c }).encode();
        self.endpoint.send(message, None, Box::new(|_| ()));
        match self.heard.recv_timeout(PATIENCE) {
            Ok(Heard::Message(Message::Committed(answer))) => answer,
            other => panic!("no answer to a commit: {other:?}"),
        }
    }
}

impl Peer {
    fn capture(&self, lease: u64, offset: u64, length: u64) -> Captured {
        let message = Message::Capture(Capture { request: 2, lease, offset, length }).encode();
        self.endpoint.send(message, None, Box::new(|_| ()));
        match self.heard.recv_timeout(PATIENCE) {
            Ok(Heard::Message(Message::Captured(answer))) => answer,
            other => panic!("no answer to a capture: {other:?}"),
        }
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_overtakes_its_data_never_commits_unwritten_bytes() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 100_000)).await;
    let mut peer = Peer::connect(&store).await;
    let bytes = pattern(2, 100_000);
    let (lease, tag) = peer.control.acquire("/a", 0, 100_000).await;
    // By the control plane, before the last bytes were sent: the commit is there first.
    peer.write(tag, 0, bytes.slice(..60_000));
    let refused = peer.control.commit(lease, crc32c(&bytes)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::DataLoss, "{refused}");
    peer.write(tag, 60_000, bytes.slice(60_000..));
    assert_eq!(content(session.client(), "/a").await, pattern(1, 100_000));

    // Behind its data, on the same stream, it takes effect; the late bytes above have harmed nobody.
    let (lease, tag) = peer.control.acquire("/a", 0, 100_000).await;
    peer.write(tag, 0, bytes.clone());
    assert_eq!(peer.commit(lease, Some(crc32c(&bytes))).status, Status::Ok);
    assert_eq!(content(session.client(), "/a").await, bytes);
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_with_a_wrong_crc_leaves_the_file_as_it_was() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 5000)).await;
    let mut peer = Peer::connect(&store).await;
    let (lease, tag) = peer.control.acquire("/a", 0, 5000).await;
    peer.write(tag, 0, pattern(2, 5000));
    assert_eq!(peer.commit(lease, Some(7)).status, Status::Mismatch);
    assert_eq!(peer.commit(lease, None).status, Status::NoLease);
    assert_eq!(content(session.client(), "/a").await, pattern(1, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_cannot_be_is_refused_and_the_lease_and_the_stream_go_on() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 20_000)).await;
    let (mut peer, mut thief) = (Peer::connect(&store).await, Peer::connect(&store).await);
    let (lease, tag) = peer.control.acquire_for(proto::Access::Update, "/a", 100, 10_000).await;
    let (overwriting, _) = peer.control.acquire("/a", 10_000, 20_000).await;
    let (stolen, _) = thief.control.acquire_for(proto::Access::Update, "/a", 20_000, 30_000).await;
    peer.write(tag, 0, pattern(2, 9900));
    for (of, offset, length, status) in [
        (lease, 0, 0, Status::OutOfBounds),
        (lease, 1, 9900, Status::OutOfBounds),
        (lease, u64::MAX, 1, Status::OutOfBounds),
        (lease, 1, u64::MAX, Status::OutOfBounds),
        (overwriting, 0, 100, Status::WrongAccess),
        (stolen, 0, 100, Status::NoLease),
        (77_777, 0, 100, Status::NoLease),
    ] {
        let answer = peer.capture(of, offset, length);
        assert_eq!((answer.request, answer.status), (2, status), "{of} {offset} {length}: {}", answer.text);
    }
    assert_eq!(content(session.client(), "/a").await, pattern(1, 20_000));
    assert_eq!(peer.capture(lease, 50, 9850).status, Status::Ok);
    let mut expected = pattern(1, 20_000).to_vec();
    expected[150..10_000].copy_from_slice(&pattern(2, 9900)[50..]);
    assert_eq!(content(session.client(), "/a").await, expected);
    assert_eq!(peer.commit(lease, None).status, Status::Ok);
    assert_eq!(peer.capture(lease, 0, 1).status, Status::NoLease);
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_sessions_tag_and_lease_are_useless_and_its_user_loses_only_its_own_stream() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 5000)).await;
    let (mut victim, thief) = (Peer::connect(&store).await, Peer::connect(&store).await);
    let (lease, tag) = victim.control.acquire("/a", 0, 5000).await;
    assert_eq!(thief.commit(lease, None).status, Status::NoLease);
    thief.write(tag, 0, pattern(9, 5000));
    assert!(matches!(thief.heard.recv_timeout(PATIENCE), Ok(Heard::Closed(CloseReason::Terminated(_)))));

    victim.write(tag, 0, pattern(2, 5000));
    assert_eq!(victim.commit(lease, Some(crc32c(&pattern(2, 5000)))).status, Status::Ok);
    assert_eq!(content(session.client(), "/a").await, pattern(2, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once_and_a_guess_not_at_all() {
    let store = Store::start().await;
    let opened = Control::open(&store).await;
    let fabric = Iwarp::new(iwarp::Config::default()).unwrap();
    let data = store.server.data_address();
    let connect = |token: &[u8]| {
        let (send, heard) = mpsc::channel();
        fabric.connect(data, token, Box::new(Ears(send)), PATIENCE).map(|connected| (connected, heard))
    };
    connect(&[0; 16]).map(|_| ()).unwrap_err();
    let _first = connect(&opened.token).unwrap();
    connect(&opened.token).map(|_| ()).unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_connection_breaks_loses_its_leases_and_others_go_on() {
    let store = Store::start().await;
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 5000)).await;
    let mut peer = Peer::connect(&store).await;
    let (_lease, tag) = peer.control.acquire("/a", 0, 5000).await;
    peer.write(tag, 0, pattern(2, 5000));
    peer.endpoint.close();
    let wants = [harness::want("/a", 0, 5000, leasehold_client::Access::Overwrite)];
    session.acquire(&wants, harness::or_wait(5_000)).await.expect("the dead peer's lease is over");
    assert_eq!(content(session.client(), "/a").await, pattern(1, 5000));
}
