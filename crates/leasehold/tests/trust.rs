//! Who may come in, and what each may see and do: certificates, tokens, tenants, and a server without any.

mod harness;

use harness::{Store, directory, leasehold, pattern, settings};
use leasehold::server::settings::{Insecure, Settings};
use leasehold_client::{
    Access, Client, ConnectError, Credentials, Evidence, Happening, Reason, Server, Session,
};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

/// What `leasehold cert` makes, in a directory.
struct Authority(TempDir);

impl Authority {
    fn new() -> Authority {
        let authority = Authority(directory());
        authority.cert(&["ca"], &[]);
        authority
    }

    /// One with a certificate for a server on this machine.
    fn with_a_server() -> Authority {
        let authority = Authority::new();
        authority.cert(&["server"], &["localhost", "127.0.0.1"]);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn cert(&self, before: &[&str], after: &[&str]) {
        let Output { status, stderr, .. } =
            leasehold().arg("cert").args(before).arg(self.0.path()).args(after).output().unwrap();
        assert!(status.success(), "{before:?} {after:?}: {}", String::from_utf8_lossy(&stderr));
    }

    fn client(&self, name: &str) -> PathBuf {
        self.cert(&["client"], &[name]);
        self.path(&format!("{name}.toml"))
    }

    /// `leasehold tenant`, on the store.
    fn tenant(&self, store: &Store, before: &[&str], after: &[&str]) {
        let mut command = leasehold();
        command.arg("tenant").args(before).arg(store.directory.path()).args(after);
        let Output { status, stderr, .. } = command.output().unwrap();
        assert!(status.success(), "{before:?} {after:?}: {}", String::from_utf8_lossy(&stderr));
    }

    /// Credentials with a token.
    fn token(&self, store: &Store, name: &str) -> PathBuf {
        let (ca, output) = (self.path("ca.pem"), self.path(&format!("{name}-token.toml")));
        let after = [name, "--ca", ca.to_str().unwrap(), "-o", output.to_str().unwrap()];
        self.tenant(store, &["token"], &after);
        output
    }

    async fn serve(&self) -> Store {
        let tls = Some(self.0.path().to_owned());
        Store::start_with(&Settings { tls, insecure: Insecure::No, ..settings() }).await
    }
}

fn server(host: &str, store: &Store) -> Server {
    let port = store.server.control_address().expect("it listens").port();
    Server::Tcp { host: host.to_owned(), port }
}

/// Waits for what the server notices by itself.
async fn until(mut what: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !what().await {
        assert!(Instant::now() < give_up, "it did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn connect(server: &Server, credentials: &Path) -> Result<Client, ConnectError> {
    let credentials = Credentials::load(credentials).expect("credentials");
    Client::connect_with(server, Some(Arc::new(credentials))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_certificate_of_the_authority_comes_in_and_nobody_else() {
    let (authority, stranger) = (Authority::with_a_server(), Authority::with_a_server());
    let store = authority.serve().await;
    let here = server("127.0.0.1", &store);
    let mine = authority.client("train");
    authority.tenant(&store, &["add"], &["train"]);
    assert_eq!(connect(&here, &mine).await.unwrap().list("/").await.unwrap(), []);
    connect(&server("localhost", &store), &mine).await.unwrap();

    let without = Client::connect(&here).await.unwrap_err();
    assert!(matches!(without, ConnectError::NoAnswer { .. }), "{without:?}");
    assert!(without.to_string().contains("--credentials"), "{without}");
    // Who trusts another authority does not trust this server.
    let theirs = stranger.client("train");
    let untrusted = connect(&here, &theirs).await.unwrap_err();
    assert!(matches!(untrusted, ConnectError::Untrusted { .. }), "{untrusted:?}");
    // Who trusts the right one, and shows a certificate of another, or none and no token, is not let in.
    let text = std::fs::read_to_string(&theirs).unwrap();
    let (_, identity) = text.split_once("certificate = ").unwrap();
    let forged = authority.path("forged.toml");
    std::fs::write(&forged, format!("ca = 'ca.pem'\ncertificate = {identity}")).unwrap();
    let nobody = authority.path("nobody.toml");
    std::fs::write(&nobody, "ca = 'ca.pem'\n").unwrap();
    let refused = connect(&here, &forged).await.unwrap_err();
    assert!(matches!(refused, ConnectError::NoAnswer { .. }), "{refused:?}");
    let refused = connect(&here, &nobody).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused:?}");
    connect(&here, &mine).await.expect("nobody else is harmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_who_its_certificate_says_and_no_client_can_pose_as_one() {
    let authority = Authority::new();
    authority.cert(&["server"], &["storage.example"]);
    let mine = authority.client("train");
    let store = authority.serve().await;
    let untrusted = connect(&server("127.0.0.1", &store), &mine).await.unwrap_err().to_string();
    assert!(untrusted.contains("cannot trust leasehold://127.0.0.1:"), "{untrusted}");

    // A client's certificate with the name of a host, in a server's place.
    authority.cert(&["client"], &["localhost"]);
    let text = std::fs::read_to_string(authority.path("localhost.toml")).unwrap();
    let stolen: Vec<&str> = text.split("'''\n").collect();
    std::fs::write(authority.path("server.pem"), stolen[3]).unwrap();
    std::fs::write(authority.path("server.key"), stolen[5]).unwrap();
    let store = authority.serve().await;
    let untrusted = connect(&server("localhost", &store), &mine).await.unwrap_err();
    assert!(matches!(untrusted, ConnectError::Untrusted { .. }), "{untrusted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_credentials_the_command_works_over_tls_from_end_to_end() {
    let authority = Authority::with_a_server();
    let store = authority.serve().await;
    authority.tenant(&store, &["add"], &["train"]);
    let (credentials, local) = (authority.client("train"), authority.path("local"));
    let bytes = pattern(1, 3_000_000);
    std::fs::write(&local, &bytes).unwrap();
    let place = format!("leasehold://localhost:{}/a", store.server.control_address().unwrap().port());
    let run = |arguments: &[&str]| {
        let mut command = leasehold();
        command.args(arguments).env("LEASEHOLD_CREDENTIALS", &credentials);
        let Output { status, stdout, stderr } = command.output().unwrap();
        assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    };
    run(&["put", local.to_str().unwrap(), &place]);
    let back = authority.path("back");
    run(&["get", &place, back.to_str().unwrap()]);
    assert_eq!(std::fs::read(&back).unwrap(), bytes);
    assert_eq!(std::fs::read(store.file("/a")).unwrap(), bytes);
    run(&["truncate", "-s", "0", &place]);
    assert_eq!(run(&["leases", &place]), "no leases\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_mounts_its_path_by_a_line_of_fstab_and_holders_hear_its_name() {
    if !harness::can_mount() {
        return;
    }
    let authority = Authority::with_a_server();
    let store = authority.serve().await;
    store.client().await.make_directory("/train", false).await.unwrap();
    authority.tenant(&store, &["add"], &["train", "--path", "/train"]);
    let credentials = authority.client("train");
    let at = directory();
    let url = |path: &str| {
        format!("leasehold://localhost:{}{path}", store.server.control_address().unwrap().port())
    };
    let mount = |path: &str| {
        let options = format!("_netdev,credentials={}", credentials.display());
        leasehold().args(["mount", "--daemon", "-o", &options, &url(path)]).arg(at.path()).output().unwrap()
    };
    let refused = String::from_utf8(mount("/").stderr).unwrap();
    assert!(refused.contains("the tenant train may not change /"), "{refused}");

    let session = store.session().await;
    harness::fill(&session, "/train/a", pattern(1, 10_000)).await;
    let held = harness::lease(&session, "/train/a", 0, 4096).await;
    let mounted = mount("/train");
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    let file = at.path().join("a");
    let truncated =
        tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(file)?.set_len(0));
    let by = held.revoked().await.by.unwrap();
    truncated.await.unwrap().unwrap();
    assert_eq!(by.evidence, Evidence::Authenticated);
    assert!(by.host.starts_with("train/"), "{by:?}");
    let unmounted = std::process::Command::new("umount").arg(at.path()).status().unwrap();
    assert!(unmounted.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_certificates_a_server_is_reached_by_its_socket_only_unless_it_is_told_otherwise() {
    let store = Store::start_with(&Settings { insecure: Insecure::No, ..settings() }).await;
    assert_eq!(store.server.control_address(), None);
    store.client().await.create("/a").await.unwrap();

    let directory = directory();
    let listen = ["serve", "--insecure", "--listen", "0.0.0.0:0"];
    let refused = leasehold().args(listen).arg(directory.path()).output().unwrap();
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{says}");
    assert!(says.contains("--insecure=anywhere") && says.contains("leasehold cert"), "{says}");

    let mut command = leasehold();
    command.args(["serve", "--pages", "normal", "--log", "error"]).arg(directory.path());
    for port in ["--data", "--metrics"] {
        command.args([port, "127.0.0.1:0"]);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<String> = lines.by_ref().take(4).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said[1].contains("--tls") && said[1].contains("--insecure"), "{said:?}");
    assert!(said.iter().all(|line| line.len() <= 80 || line.contains('/')), "{said:?}");
}

#[test]
fn keys_are_for_their_owner_only_and_an_authority_is_never_replaced() {
    let authority = Authority::with_a_server();
    let client = authority.client("train");
    for (path, mode) in [
        (authority.path("ca.key"), 0o600),
        (authority.path("server.key"), 0o600),
        (client, 0o600),
        (authority.path("ca.pem"), 0o644),
    ] {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{path:?}");
    }
    let mut before = String::new();
    std::fs::File::open(authority.path("ca.key")).unwrap().read_to_string(&mut before).unwrap();
    let again = leasehold().args(["cert", "ca"]).arg(authority.0.path()).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(authority.path("ca.key")).unwrap(), before);
    authority.cert(&["server"], &["localhost"]); // a new one in the place of the old, as when it expires
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_see_and_change_what_is_in_their_path_and_nothing_else() {
    let authority = Authority::with_a_server();
    let store = authority.serve().await;
    let here = server("localhost", &store);
    let root = store.client().await;
    for (name, path, access) in
        [("train", "/train", "write"), ("eval", "/train", "read"), ("other", "/other", "write")]
    {
        authority.tenant(&store, &["add"], &[name, "--path", path, "--access", access]);
    }
    root.make_directory("/other", false).await.unwrap();
    let train = connect(&here, &authority.client("train")).await.unwrap();
    let eval = connect(&here, &authority.token(&store, "eval")).await.unwrap();
    let other = connect(&here, &authority.token(&store, "other")).await.unwrap();

    train.make_directory("/train", false).await.unwrap();
    let session = Session::open(&train).await.unwrap();
    harness::fill(&session, "/train/a", pattern(1, 100_000)).await;
    assert_eq!(harness::content(&eval, "/train/a").await, pattern(1, 100_000));
    let reads = Session::open(&eval).await.unwrap();
    let reading = [harness::want("/train/a", 0, 10, Access::Read)];
    drop(reads.acquire(&reading, harness::or_refuse()).await.unwrap());

    let writing = [harness::want("/train/a", 0, 10, Access::Overwrite)];
    let elsewhere = Session::open(&other).await.unwrap();
    for refused in [
        reads.acquire(&writing, harness::or_refuse()).await.unwrap_err(),
        elsewhere.acquire(&writing, harness::or_refuse()).await.unwrap_err(),
        elsewhere.acquire(&reading, harness::or_refuse()).await.unwrap_err(),
        eval.truncate("/train/a", 0).await.unwrap_err(),
        other.stat("/train/a").await.unwrap_err(),
        other.list("/").await.unwrap_err(),
        other.rename("/train/a", "/other/a").await.unwrap_err(),
        other.link("/train/a", "/other/a").await.unwrap_err(),
        other.clone_file("/train/a", "/other/a", false).await.unwrap_err(),
        other.copy_range("/train/a", harness::range(0, 10), "/other/a", 0).await.unwrap_err(),
        eval.link("/train/a", "/train/b").await.unwrap_err(),
    ] {
        assert_eq!(refused.reason, Reason::Denied, "{refused}");
        assert!(refused.message.contains("the tenant "), "{refused}");
    }
    // A link leads nowhere, whoever made it.
    other.symlink("/train", "/other/link").await.unwrap();
    other.symlink("../train/a", "/other/file").await.unwrap();
    other.stat("/other/link/a").await.expect_err("it is no directory");
    let mut pieces = Box::pin(other.read("/other/file", 0, None).await.unwrap());
    pieces.next().await.unwrap().expect_err("what it names is not read");
    assert_eq!(harness::content(&root, "/train/a").await, pattern(1, 100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_hears_of_its_own_path_only_and_others_hear_its_name() {
    let authority = Authority::with_a_server();
    let store = authority.serve().await;
    let here = server("localhost", &store);
    for name in ["train", "other"] {
        authority.tenant(&store, &["add"], &[name, "--path", &format!("/{name}")]);
        store.client().await.make_directory(&format!("/{name}"), false).await.unwrap();
    }
    authority.tenant(&store, &["add"], &["boss", "--access", "admin", "--path", "/nowhere"]);
    let train = connect(&here, &authority.client("train")).await.unwrap();
    let other = connect(&here, &authority.client("other")).await.unwrap();
    let boss = connect(&here, &authority.client("boss")).await.unwrap();
    let mut heard = Box::pin(other.watch().await.unwrap());

    let session = Session::open(&train).await.unwrap();
    harness::fill(&session, "/train/a", pattern(1, 10_000)).await;
    let held = harness::lease(&session, "/train/a", 0, 4096).await;
    let (leases, mine) = (other.leases(None).await.unwrap(), train.leases(None).await.unwrap());
    assert_eq!((leases.len(), mine.len()), (0, 1));
    assert_eq!(boss.leases(None).await.unwrap().len(), 1);

    let (truncated, lost) = tokio::join!(train.truncate("/train/a", 0), held.revoked());
    truncated.unwrap();
    let by = lost.by.unwrap();
    assert_eq!(by.evidence, Evidence::Authenticated);
    assert!(by.host.starts_with("train/"), "{by:?}");
    assert_eq!(other.breaks(10).await.unwrap().len(), 0);
    for sees in [&train, &boss] {
        let breaks = sees.breaks(10).await.unwrap();
        assert!(breaks[0].breaker.as_ref().unwrap().authenticated, "{breaks:?}");
    }
    assert_eq!(other.status().await.unwrap().directory, "");
    assert_ne!(boss.status().await.unwrap().directory, "");

    // What it hears first is of its own path, though all that happened before.
    let session = Session::open(&other).await.unwrap();
    other.create("/other/b").await.unwrap();
    let _held = harness::lease(&session, "/other/b", 0, 4096).await;
    match heard.next().await.unwrap().unwrap().what {
        Happening::Granted { path, .. } => assert_eq!(path, "/other/b"),
        first => panic!("{first:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_tenant_or_not_any_more_is_refused_and_told_why() {
    let authority = Authority::with_a_server();
    let store = authority.serve().await;
    let here = server("localhost", &store);
    let refused = |error: ConnectError| {
        assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
        error.to_string()
    };
    let mine = authority.client("train");
    let says = refused(connect(&here, &mine).await.unwrap_err());
    assert!(says.contains("\"train\"") && says.contains("leasehold tenant add"), "{says}");
    authority.tenant(&store, &["add"], &["train"]);
    until(async || connect(&here, &mine).await.is_ok()).await;

    let (first, second) = (authority.token(&store, "train"), authority.path("second.toml"));
    let client = connect(&here, &first).await.unwrap();
    let ca = authority.path("ca.pem");
    let after = ["train", "--replace", "--ca", ca.to_str().unwrap(), "-o", second.to_str().unwrap()];
    authority.tenant(&store, &["token"], &after);
    until(async || client.list("/").await.is_err_and(|error| error.reason == Reason::Unauthenticated)).await;
    connect(&here, &second).await.unwrap();
    let says = refused(connect(&here, &first).await.unwrap_err());
    assert!(says.contains("the token is unknown"), "{says}");

    let client = connect(&here, &mine).await.unwrap();
    authority.tenant(&store, &["rm"], &["train"]);
    until(async || client.list("/").await.is_err_and(|error| error.reason == Reason::Unauthenticated)).await;
    let hashes = std::fs::read_to_string(store.directory.path().join(".leasehold/tenants.toml")).unwrap();
    assert_eq!(hashes, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_has_its_share_is_told_which_and_nobody_else_notices() {
    let authority = Authority::with_a_server();
    let store = authority.serve().await;
    let here = server("localhost", &store);
    let few = ["train", "--sessions-max", "2", "--leases-max", "3", "--arena-max", "64K"];
    authority.tenant(&store, &["add"], &few);
    authority.tenant(&store, &["add"], &["other"]);
    let train = connect(&here, &authority.client("train")).await.unwrap();
    let other = connect(&here, &authority.client("other")).await.unwrap();
    train.create("/a").await.unwrap();

    let (one, two) = (Session::open(&train).await.unwrap(), Session::open(&train).await.unwrap());
    let says = Session::open(&train).await.unwrap_err().to_string();
    assert!(says.contains("the tenant's sessions_max is 2"), "{says}");
    let theirs = Session::open(&other).await.unwrap();

    let want =
        |start: u64, kib: u64| [harness::want("/a", start << 10, (start + kib) << 10, Access::Overwrite)];
    let held = one.acquire(&want(0, 60), harness::or_refuse()).await.unwrap();
    let full = two.acquire(&want(100, 8), harness::or_wait(10_000)).await.unwrap_err();
    assert_eq!(full.reason, Reason::Limit);
    assert!(full.message.contains("the tenant's arena_max"), "{full}");
    let mut more = two.acquire(&want(100, 4), harness::or_refuse()).await.unwrap();
    drop(held);
    // What is dropped is let go in the background.
    until(async || {
        let next = two.acquire(&want(200 + 10 * more.len() as u64, 4), harness::or_refuse()).await;
        more.extend(next.unwrap_or_default());
        more.len() == 3
    })
    .await;
    let full = two.acquire(&want(300, 4), harness::or_refuse()).await.unwrap_err();
    assert!(full.message.contains("the tenant's leases_max is 3"), "{full}");
    drop(theirs.acquire(&want(1000, 10_000), harness::or_refuse()).await.unwrap());

    one.close().await;
    until(async || Session::open(&train).await.is_ok()).await;
}
