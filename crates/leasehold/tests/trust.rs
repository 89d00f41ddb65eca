//! Who may come in: certificates, and what a server without any does.

mod harness;

use harness::{Store, directory, leasehold, pattern, settings};
use leasehold::server::settings::{Insecure, Settings};
use leasehold_client::{Client, ConnectError, Credentials, Server};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use tempfile::TempDir;

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

    async fn serve(&self) -> Store {
        let tls = Some(self.0.path().to_owned());
        Store::start_with(&Settings { tls, insecure: Insecure::No, ..settings() }).await
    }
}

fn server(host: &str, store: &Store) -> Server {
    let port = store.server.control_address().expect("it listens").port();
    Server::Tcp { host: host.to_owned(), port }
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
    assert_eq!(connect(&here, &mine).await.unwrap().list("/").await.unwrap(), []);
    connect(&server("localhost", &store), &mine).await.unwrap();

    let without = Client::connect(&here).await.unwrap_err();
    assert!(matches!(without, ConnectError::NoAnswer { .. }), "{without:?}");
    assert!(without.to_string().contains("--credentials"), "{without}");
    // Who trusts another authority does not trust this server.
    let theirs = stranger.client("train");
    let untrusted = connect(&here, &theirs).await.unwrap_err();
    assert!(matches!(untrusted, ConnectError::Untrusted { .. }), "{untrusted:?}");
    // Who trusts the right one, and shows a certificate of another, or none, is not let in.
    let text = std::fs::read_to_string(&theirs).unwrap();
    let (_, identity) = text.split_once("certificate = ").unwrap();
    let forged = authority.path("forged.toml");
    std::fs::write(&forged, format!("ca = 'ca.pem'\ncertificate = {identity}")).unwrap();
    let nobody = authority.path("nobody.toml");
    std::fs::write(&nobody, "ca = 'ca.pem'\n").unwrap();
    for path in [forged, nobody] {
        let refused = connect(&here, &path).await.unwrap_err();
        assert!(matches!(refused, ConnectError::NoAnswer { .. }), "{refused:?}");
    }
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
