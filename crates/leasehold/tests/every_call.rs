//! Every call of the control plane, by what the protocol's description says there is: none is forgotten.

mod harness;

use bytes::{Buf as _, Bytes};
use harness::{Control, Store, content, fill, lease, mismatches, pattern, settings};
use leasehold::server::settings::{Insecure, Settings};
use leasehold_client::{LeaseState, proto};
use leasehold_fabric::iwarp::{self, Iwarp};
use leasehold_fabric::{CloseReason, Endpoint, Fabric as _, Handler};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status};

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Every method of the service, by its name.
fn methods() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(proto::DESCRIPTORS).expect("our own descriptors");
    let services = set.file.iter().flat_map(|file| &file.service);
    let methods =
        services.filter(|service| service.name() == "Leasehold").flat_map(|service| &service.method);
    methods.map(|method| method.name().to_owned()).collect()
}

/// Calls with one message, however many the method takes, and returns the first that it answers.
async fn call(channel: &Channel, token: &str, method: &str, message: Bytes) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = format!("/leasehold.v1.Leasehold/{method}").parse().expect("a path");
    let mut request = Request::new(tokio_stream::once(message));
    if !token.is_empty() {
        let value: MetadataValue<_> = format!("Bearer {token}").parse().expect("a token");
        request.metadata_mut().insert("authorization", value);
    }
    let mut answers = grpc.streaming(request, path, Raw).await?.into_inner();
    Ok(answers.message().await?.unwrap_or_default())
}

/// Each call once, about this path, and in the name of this session. What it needs beside is not there.
fn calls(path: &str, session: &[u8]) -> Vec<(&'static str, Bytes)> {
    calls_about(path, session, 1)
}

/// The same, about this lease.
fn calls_about(path: &str, session: &[u8], lease: u64) -> Vec<(&'static str, Bytes)> {
    let (path, session) = (path.to_owned(), Bytes::copy_from_slice(session));
    let range = Some(proto::Range { start: 0, end: 4096 });
    let mut calls = Vec::new();
    macro_rules! call {
        ($($method:ident $message:ident { $($field:ident: $value:expr),* })*) => {
            $(calls.push((stringify!($method), {
                #[allow(clippy::needless_update, reason = "some messages have no other fields")]
                let message = proto::$message { $($field: $value,)* ..Default::default() };
                Bytes::from(message.encode_to_vec())
            }));)*
        };
    }
    let want = proto::Want { path: path.clone(), range, access: proto::Access::Read.into(), create: false };
    let write = proto::WriteHeader { path: path.clone(), ..Default::default() };
    let mount = proto::MountHeader { path: path.clone(), ..Default::default() };
    call! {
        Status StatusRequest {}
        OpenSession OpenSessionRequest {}
        KeepAlive KeepAliveRequest { session: session.clone() }
        CloseSession CloseSessionRequest { session: session.clone() }
        Events EventsRequest { session: session.clone() }
        Acquire AcquireRequest { session: session.clone(), wants: vec![want] }
        Release ReleaseRequest { session: session.clone(), lease: lease }
        Commit CommitRequest { session: session.clone(), lease: lease }
        Read ReadRequest { path: path.clone() }
        Write WriteRequest { header: Some(write), data: Bytes::from_static(b"x") }
        Create CreateRequest { path: path.clone() }
        Stat StatRequest { path: path.clone() }
        List ListRequest { path: path.clone() }
        MakeDirectory MakeDirectoryRequest { path: path.clone(), parents: true }
        Link LinkRequest { from: path.clone(), to: path.clone() }
        Symlink SymlinkRequest { target: "x".to_owned(), path: path.clone() }
        ReadLink ReadLinkRequest { path: path.clone() }
        Rename RenameRequest { from: path.clone(), to: path.clone() }
        Remove RemoveRequest { path: path.clone() }
        Truncate TruncateRequest { path: path.clone() }
        Punch PunchRequest { path: path.clone(), range: range }
        Zero ZeroRequest { path: path.clone(), range: range }
        Collapse CollapseRequest { path: path.clone(), range: range }
        CloneFile CloneFileRequest { from: path.clone(), to: path.clone(), replace: true }
        CopyRange CopyRangeRequest { from: path.clone(), range: range, to: path.clone() }
        Evict EvictRequest { path: path.clone() }
        Sync SyncRequest { path: path.clone() }
        BlockMap BlockMapRequest { path: path.clone() }
        Attributes AttributesRequest { path: path.clone() }
        SetAttributes SetAttributesRequest { path: path.clone() }
        Leases LeasesRequest { path: path.clone() }
        Breaks BreaksRequest {}
        Why WhyRequest { path: path.clone() }
        Watch WatchRequest {}
        Scrub ScrubRequest { path: path.clone(), adopt: true }
        Mount MountRequest { what: Some(proto::mount_request::What::Header(mount)) }
    }
    let named: BTreeSet<String> = calls.iter().map(|(method, _)| (*method).to_owned()).collect();
    assert_eq!(named, methods(), "each call is here");
    calls
}

/// A server with certificates of its own, and two tenants that come in by tokens.
struct Guarded {
    store: Store,
    channel: Channel,
    train: String,
    other: String,
}

impl Guarded {
    async fn start() -> Guarded {
        let pki = harness::directory();
        let run = |arguments: &[&str]| {
            let output = harness::leasehold().args(arguments).output().expect("a process");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let at = pki.path().to_str().expect("text");
        run(&["cert", "ca", at]);
        run(&["cert", "server", at, "localhost"]);
        let tls = Some(pki.path().to_owned());
        let store = Store::start_with(&Settings { tls, insecure: Insecure::No, ..settings() }).await;
        let directory = store.directory.path().to_str().expect("text");
        let ca = pki.path().join("ca.pem");
        let token = |name: &str| {
            let file = pki.path().join(name);
            let (file, ca) = (file.to_str().expect("text"), ca.to_str().expect("text"));
            run(&["tenant", "add", directory, name, "--path", &format!("/{name}")]);
            run(&["tenant", "token", directory, name, "--ca", ca, "-o", file]);
            token_in(Path::new(file))
        };
        let (train, other) = (token("train"), token("other"));
        let port = store.server.control_address().expect("it listens").port();
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(&ca).expect("a file")));
        let endpoint = Channel::from_shared(format!("https://localhost:{port}")).expect("an address");
        let channel = endpoint.tls_config(tls).expect("a certificate").connect().await.expect("a connection");
        Guarded { store, channel, train, other }
    }

    async fn call(&self, token: &str, method: &str, message: Bytes) -> Result<Bytes, Status> {
        call(&self.channel, token, method, message).await
    }

    async fn session(&self, token: &str) -> Bytes {
        let opened = self.call(token, "OpenSession", Bytes::new()).await.expect("a session");
        proto::OpenSessionResponse::decode(opened).expect("an answer").session
    }
}

fn token_in(credentials: &Path) -> String {
    let text = std::fs::read_to_string(credentials).expect("a file");
    text.split_once("token = '").expect("a token").1.trim_end().trim_end_matches('\'').to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_taken_from_who_has_not_shown_who_it_is() {
    let guarded = Guarded::start().await;
    let session = guarded.session(&guarded.train).await;
    for (method, message) in calls("/train", &session) {
        for token in ["", "leasehold-0", &guarded.train[1..]] {
            let refused = guarded.call(token, method, message.clone()).await.expect_err(method);
            assert_eq!(refused.code(), Code::Unauthenticated, "{method}: {refused}");
        }
    }
    guarded
        .call(&guarded.train, "KeepAlive", calls("/train", &session)[2].1.clone())
        .await
        .expect("it lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_of_a_tenant_reaches_the_path_or_the_session_of_another() {
    let guarded = Guarded::start().await;
    let root = guarded.store.client().await;
    root.make_directory("/train", false).await.unwrap();
    root.create("/train/a").await.unwrap();
    let session = guarded.session(&guarded.train).await;
    for path in ["/train/a", "/train", "/", "/other/../train/a", "train/a"] {
        for (method, message) in calls(path, &session) {
            if method == "Watch" {
                continue; // It does not end. What it shows is in trust.rs.
            }
            let answer = guarded.call(&guarded.other, method, message).await;
            match method {
                // These name nothing. What they answer is of the caller's own path: see trust.rs.
                "Status" | "Breaks" | "OpenSession" => _ = answer.expect(method),
                "KeepAlive" | "CloseSession" | "Events" | "Acquire" | "Release" | "Commit" => {
                    let refused = answer.expect_err(method);
                    assert_eq!(refused.code(), Code::FailedPrecondition, "{method} {path}: {refused}");
                    assert!(refused.message().contains("unknown"), "{method}: {refused}");
                }
                _ => {
                    let refused = answer.expect_err(method);
                    let expected =
                        [Code::PermissionDenied, Code::InvalidArgument][usize::from(path.contains(".."))];
                    assert_eq!(refused.code(), expected, "{method} {path}: {refused}");
                }
            }
        }
    }
    guarded
        .call(&guarded.train, "KeepAlive", calls("/train", &session)[2].1.clone())
        .await
        .expect("it lives");
    assert!(root.stat("/train/a").await.is_ok());
}

/// A server that asks nobody, and somebody on it who works, and must not notice what others do.
struct Open {
    store: Store,
    channel: Channel,
    bystander: leasehold_client::Session,
    held: leasehold_client::Lease,
}

impl Open {
    async fn start() -> Open {
        let store = Store::start_with(&Settings { grace_ms: 50, ..settings() }).await;
        let address = format!("http://{}", store.server.control_address().expect("it listens"));
        let channel =
            Channel::from_shared(address).expect("an address").connect().await.expect("a connection");
        let bystander = store.session().await;
        bystander.client().make_directory("/safe", false).await.expect("a directory");
        fill(&bystander, "/safe/a", pattern(1, 100_000)).await;
        let held = lease(&bystander, "/safe/a", 0, 4096).await;
        Open { store, channel, bystander, held }
    }

    /// Whatever the answer is, it comes, and it is one of the server's own words.
    async fn provoke(&self, method: &str, message: Bytes) {
        let answer = call(&self.channel, "", method, message);
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
        let Ok(answer) = answer else {
            let engine = self.store.server.engine();
            let mut waits = Vec::new();
            for path in ["/w", "/w/a", "/w/b", "/w/c"] {
                waits.push((path, engine.why(&path.parse().expect("a path")).await));
            }
            panic!("{method} has no answer; who waits for what: {waits:?}; {:?}", engine.stats().await);
        };
        if let Err(refused) = answer {
            let foreign =
                [Code::Unknown, Code::Internal, Code::Unavailable, Code::Cancelled, Code::Unimplemented];
            assert!(!foreign.contains(&refused.code()), "{method}: {refused:?}");
            assert!(!refused.message().is_empty(), "{method}: {refused:?}");
        }
    }

    /// The bystander has noticed nothing, and what it holds is its own.
    async fn ends_well(self) {
        assert_eq!(self.held.state(), LeaseState::Live);
        self.held.write(0, pattern(2, 4096)).await.expect("written");
        self.held.commit().await.expect("committed");
        let mut expected = pattern(1, 100_000).to_vec();
        expected[..4096].copy_from_slice(&pattern(2, 4096));
        let client = self.bystander.client();
        client.sync("/safe/a").await.expect("durable");
        assert_eq!(content(client, "/safe/a").await, expected);
        assert_eq!(mismatches(client).await, 0);
        let give_up = std::time::Instant::now() + Duration::from_secs(20);
        while !client.leases(None).await.expect("a list").is_empty() {
            assert!(std::time::Instant::now() < give_up, "leases of the others are left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.store.server.stop().await.expect("it drains");
    }
}

/// The far end of a data connection that nobody uses.
struct Deaf;

impl Handler for Deaf {
    fn connected(&mut self, _endpoint: std::sync::Arc<dyn Endpoint>) {}
    fn message(&mut self, _message: &[u8]) {}
    fn poisoned(&mut self) {}
    fn closed(&mut self, _why: &CloseReason) {}
}

/// A call that shows nothing of its own, and does not end.
fn is_endless(method: &str) -> bool {
    matches!(method, "Watch" | "Events")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_in_every_wrong_state_has_an_answer_and_harms_nobody() {
    let open = Open::start().await;
    let client = open.bystander.client().clone();
    // What may be in the way of a call: its session, its lease, its file.
    let mut control = Control::open(&open.store).await;
    let fabric = Iwarp::new(iwarp::Config::default()).unwrap();
    let (data, patience) = (open.store.server.data_address(), Duration::from_secs(10));
    let _connected = fabric.connect(data, &control.token, Box::new(Deaf), patience).unwrap();
    client.create("/x").await.unwrap();
    let (released, _) = control.acquire("/x", 0, 4096).await;
    let (revoked, _) = control.acquire("/x", 4096, 8192).await;
    let release = proto::ReleaseRequest { session: control.session.clone(), lease: released, leases: vec![] };
    control.calls.release(release).await.unwrap();
    client.truncate("/x", 0).await.unwrap(); // breaks the other, which is revoked
    let closed = Control::open(&open.store).await;
    let close = proto::CloseSessionRequest { session: closed.session.clone() };
    closed.calls.clone().close_session(close).await.unwrap();

    let mine = control.session.clone();
    let none = [vec![], vec![0; 15], vec![0; 16]].map(Bytes::from);
    for session in none.iter().chain([&closed.session, &mine]) {
        for lease in [0, released, revoked, 4_000_000_000, u64::MAX] {
            for path in [
                "",
                "/",
                "/missing",
                "/missing/x",
                "/x/below",
                "/x",
                "/d",
                "//",
                "/..",
                "/\0",
                "/.leasehold/log",
            ] {
                client.make_directory("/d", true).await.unwrap();
                client.create("/x").await.unwrap();
                let wanted = |method: &&(&str, Bytes)| {
                    // The table is large; each call has each path with one lease, and each lease with one path.
                    let about_lease = matches!(method.0, "Release" | "Commit");
                    !is_endless(method.0) && if about_lease { path == "/x" } else { lease == 0 }
                };
                for (method, message) in calls_about(path, session, lease).iter().filter(wanted) {
                    // All the store: also what the bystander has.
                    let all = matches!(path, "/" | "") && matches!(*method, "Scrub");
                    if !all {
                        open.provoke(method, message.clone()).await;
                    }
                }
            }
        }
    }
    // It is closed by one of the calls, or now.
    let _ = control.calls.close_session(proto::CloseSessionRequest { session: mine }).await;
    open.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_at_all_is_refused() {
    let open = Open::start().await;
    for method in methods().iter().filter(|method| !is_endless(method)) {
        for seed in 0..20 {
            let answer = call(&open.channel, "", method, pattern(seed, 1 + (seed as usize * 37) % 400)).await;
            if let Err(refused) = answer {
                let foreign = [Code::Unknown, Code::Unavailable, Code::Cancelled];
                assert!(!foreign.contains(&refused.code()), "{method}: {refused:?}");
            }
        }
        let too_long =
            call(&open.channel, "", method, Bytes::from(vec![0; 9 << 20])).await.expect_err(method);
        assert_eq!(too_long.code(), Code::OutOfRange, "{method}: {too_long}");
    }
    open.ends_well().await;
}

/// The same few files, sessions and leases, by many at once, in an order that a seed decides; each call once more, as a
/// replay.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_replayed_and_interleaved_harm_nobody() {
    const CALLERS: u64 = 8;
    const CALLS: usize = 150;
    let open = std::sync::Arc::new(Open::start().await);
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(Control::open(&open.store).await.session);
    }
    let callers = (0..CALLERS).map(|seed| {
        let (open, sessions) = (open.clone(), sessions.clone());
        tokio::spawn(async move {
            let dice = pattern(seed + 1, CALLS * 4);
            for four in dice.chunks_exact(4) {
                let path = ["/w", "/w/a", "/w/b", "/w/c"][usize::from(four[0] % 4)];
                let session = &sessions[usize::from(four[1]) % sessions.len()];
                let calls = calls_about(path, session, u64::from(four[2] % 64));
                let (method, message) = &calls[usize::from(four[3]) % calls.len()];
                if !is_endless(method) {
                    open.provoke(method, message.clone()).await;
                    open.provoke(method, message.clone()).await;
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    for session in sessions {
        // Some of them have been closed on the way.
        let message = proto::CloseSessionRequest { session }.encode_to_vec();
        let _ = call(&open.channel, "", "CloseSession", message.into()).await;
    }
    std::sync::Arc::into_inner(open).expect("all callers have ended").ends_well().await;
}
