//! A server on a throw-away store, in this process or in one of its own, and clients of it.
#![allow(dead_code, reason = "each test program uses a part of this")]

pub mod disk;
pub mod shell;

use bytes::Bytes;
use leasehold::server::Server;
use leasehold::server::settings::{Insecure, Settings};
use leasehold::size::Size;
use leasehold_client::proto;
use leasehold_client::proto::leasehold_client::LeaseholdClient;
use leasehold_client::{Access, AcquireOptions, ByteRange, Client, Lease, OnConflict, Session, Want};
use leasehold_fabric::Tag;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::Channel;

/// On the same filesystem as the build, so that O_DIRECT is what is tested.
pub fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory beside the build")
}

pub fn settings() -> Settings {
    let any = "127.0.0.1:0".parse().expect("an address");
    Settings {
        listen: any,
        data: any,
        metrics: any,
        insecure: Insecure::Loopback,
        arena: Size(64 << 20),
        pages: leasehold::server::settings::PageKind::Normal,
        grace_ms: 300,
        ..Settings::default()
    }
}

/// A server in this process.
pub struct Store {
    pub server: Server,
    pub directory: TempDir,
}

impl Store {
    pub async fn start() -> Store {
        Store::start_with(&settings()).await
    }

    pub async fn start_with(settings: &Settings) -> Store {
        let directory = directory();
        let server = Server::start(directory.path(), settings).await.expect("a server");
        Store { server, directory }
    }

    /// The metrics' page, with what HTTP puts before it.
    pub async fn metrics(&self) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.server.metrics_address()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    }

    /// By the unix socket: verified.
    pub async fn client(&self) -> Client {
        connect(self.server.socket()).await
    }

    pub async fn session(&self) -> Session {
        Session::open(&self.client().await).await.expect("a session")
    }

    /// The file as every other tool sees it.
    pub fn file(&self, path: &str) -> PathBuf {
        self.directory.path().join("files").join(path.trim_start_matches('/'))
    }
}

pub async fn connect(socket: &Path) -> Client {
    Client::connect(&leasehold_client::Server::Unix(socket.to_owned())).await.expect("a client")
}

/// A server in a process of its own, killed when dropped.
pub struct Process {
    pub child: Child,
    pub socket: PathBuf,
}

pub fn leasehold() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.stdin(Stdio::null());
    command
}

/// `leasehold serve DIRECTORY` on free ports.
pub fn serve(directory: &Path) -> Command {
    let mut command = leasehold();
    command.arg("serve").arg(directory);
    for port in ["--listen", "--data", "--metrics"] {
        command.args([port, "127.0.0.1:0"]);
    }
    command.args(["--insecure", "--pages", "normal", "--arena", "64MiB"]);
    command
}

impl Process {
    pub async fn start(directory: &Path) -> Process {
        Process::start_with(directory, &mut serve(directory)).await
    }

    /// By a command that serves the directory.
    pub async fn start_with(directory: &Path, serve: &mut Command) -> Process {
        let child = serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server's process");
        let socket = directory.join(".leasehold/control.sock");
        let mut process = Process { child, socket };
        process.wait_until_it_serves().await;
        process
    }

    pub async fn wait_until_it_serves(&mut self) {
        let give_up = Instant::now() + Duration::from_secs(20);
        let server = leasehold_client::Server::Unix(self.socket.clone());
        loop {
            if let Ok(client) = Client::connect(&server).await
                && client.status().await.is_ok()
            {
                return;
            }
            assert!(self.child.try_wait().expect("its status").is_none(), "the server has ended");
            assert!(Instant::now() < give_up, "the server does not serve");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn client(&self) -> Client {
        connect(&self.socket).await
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.kill();
        }
    }
}

/// Where the user `nobody` finds the command, and may have a store: for what root is never refused.
pub struct Nobody {
    pub directory: TempDir,
}

impl Nobody {
    pub const ID: u32 = 65534;

    /// `None`, and a word to the reader, unless we are root and so may become nobody.
    pub fn for_test(name: &str) -> Option<Nobody> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED {name}: needs root, to become nobody");
            return None;
        }
        let directory = TempDir::new().expect("a directory that everybody reaches");
        let nobody = Nobody { directory };
        std::fs::copy(env!("CARGO_BIN_EXE_leasehold"), nobody.binary()).expect("a copy of the command");
        for path in [nobody.directory.path(), &nobody.binary()] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("our own directory");
        }
        Some(nobody)
    }

    pub fn binary(&self) -> PathBuf {
        self.directory.path().join("leasehold")
    }

    pub fn store(&self) -> PathBuf {
        let store = self.directory.path().join("store");
        std::fs::create_dir_all(&store).expect("our own directory");
        store
    }
}

pub fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("not empty")
}

pub fn want(path: &str, start: u64, end: u64, access: Access) -> Want {
    Want { path: path.to_owned(), range: range(start, end), access }
}

pub fn or_refuse() -> AcquireOptions {
    AcquireOptions::default()
}

pub fn or_wait(wait_ms: u64) -> AcquireOptions {
    AcquireOptions { on_conflict: OnConflict::Wait, wait: Duration::from_millis(wait_ms) }
}

pub fn or_break() -> AcquireOptions {
    AcquireOptions { on_conflict: OnConflict::Break, wait: Duration::from_secs(10) }
}

/// One lease for overwriting.
pub async fn lease(session: &Session, path: &str, start: u64, end: u64) -> Lease {
    let wants = [want(path, start, end, Access::Overwrite)];
    session.acquire(&wants, or_refuse()).await.expect("a lease").remove(0)
}

/// `length` bytes that differ from those of any other seed.
pub fn pattern(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    Bytes::from(bytes)
}

/// Creates the file with these bytes, durably.
pub async fn fill(session: &Session, path: &str, bytes: Bytes) {
    session.client().create(path).await.expect("a file");
    let lease = lease(session, path, 0, bytes.len() as u64).await;
    lease.write(0, bytes).await.expect("written");
    lease.commit().await.expect("committed");
    session.sync(path).await.expect("durable");
}

/// The committed bytes, through the control plane.
pub async fn content(client: &Client, path: &str) -> Vec<u8> {
    use tokio_stream::StreamExt as _;
    let mut pieces = Box::pin(client.read(path, 0, None).await.expect("a read"));
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece.expect("a piece"));
    }
    bytes
}

/// Scrubs everything and returns how many blocks are not what was committed.
pub async fn mismatches(client: &Client) -> u64 {
    use leasehold_client::proto::scrub_response::Item;
    use tokio_stream::StreamExt as _;
    let mut items =
        Box::pin(client.scrub(None, leasehold_client::ScrubOptions::default()).await.expect("a scrub"));
    let mut bad = 0;
    while let Some(item) = items.next().await {
        if let Item::File(file) = item.expect("an item") {
            bad += file.mismatches.len() as u64 + u64::from(!file.error.is_empty());
        }
    }
    bad
}

/// A session on the control plane, by gRPC alone: for peers that are not our client.
pub struct Control {
    pub calls: LeaseholdClient<Channel>,
    pub session: Bytes,
    pub token: Bytes,
}

impl Control {
    pub async fn open(store: &Store) -> Control {
        let address = format!("http://{}", store.server.control_address().expect("it listens"));
        let mut calls = LeaseholdClient::connect(address).await.expect("a control connection");
        let caller = proto::Identity {
            host: "elsewhere".into(),
            pid: 7,
            program: "peer".into(),
            ..Default::default()
        };
        let open = proto::OpenSessionRequest { caller: Some(caller) };
        let opened = calls.open_session(open).await.expect("a session").into_inner();
        Control { calls, session: opened.session, token: opened.token }
    }

    /// A lease for overwriting, and its tag.
    pub async fn acquire(&mut self, path: &str, start: u64, end: u64) -> (u64, Tag) {
        self.acquire_for(proto::Access::Overwrite, path, start, end).await
    }

    /// A lease, and its tag.
    pub async fn acquire_for(
        &mut self,
        access: proto::Access,
        path: &str,
        start: u64,
        end: u64,
    ) -> (u64, Tag) {
        let want = proto::Want {
            path: path.to_owned(),
            range: Some(proto::Range { start, end }),
            access: access.into(),
            ..Default::default()
        };
        let request =
            proto::AcquireRequest { session: self.session.clone(), wants: vec![want], ..Default::default() };
        let grant = self.calls.acquire(request).await.expect("a lease").into_inner().grants.remove(0);
        (grant.lease, Tag(grant.tag))
    }

    /// A commit by the control plane.
    pub async fn commit(&mut self, lease: u64, crc32c: u32) -> Result<u64, tonic::Status> {
        let request = proto::CommitRequest { session: self.session.clone(), lease, crc32c };
        self.calls.commit(request).await.map(|answer| answer.into_inner().size)
    }
}

/// If not, with a word about it.
pub fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("skipped: to mount a store takes /dev/fuse, and root");
    }
    can
}

/// Shared mappings take Linux 6.9.
pub fn can_map() -> bool {
    let kernel = rustix::system::uname();
    let release = kernel.release().to_str().expect("text");
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let can = (numbers.next(), numbers.next()) >= (Some(6), Some(9));
    if !can {
        eprintln!("skipped: to map a file of a mounted store shared takes Linux 6.9; this is {release}");
    }
    can
}

/// For what nobody tells us of.
pub fn wait_for(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(30), "it did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}
