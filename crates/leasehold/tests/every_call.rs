//! Every call of the control plane, by what the protocol's description says there is: none is forgotten.

mod harness;

use bytes::{Buf as _, Bytes};
use harness::{Store, settings};
use leasehold::server::settings::{Insecure, Settings};
use leasehold_client::proto;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::collections::BTreeSet;
use std::path::Path;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
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
        Release ReleaseRequest { session: session.clone(), lease: 1 }
        Commit CommitRequest { session: session.clone(), lease: 1 }
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
        let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).expect("an address");
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
