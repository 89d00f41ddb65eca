//! Servers that are not as most are: another address family, another answer to silence, fewer rights.

mod harness;

use harness::{
    Nobody, Process, Store, connect, content, fill, lease, leasehold, mismatches, pattern, serve, settings,
};
use leasehold::server::settings::{Expiry, FabricChoice, Settings};
use leasehold_client::{Client, Session};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_ipv6_is_reached_by_its_address_in_brackets() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return eprintln!(
            "SKIPPED a_server_on_ipv6_is_reached_by_its_address_in_brackets: there is no [::1]"
        );
    }
    let any = "[::1]:0".parse().unwrap();
    let store = Store::start_with(&Settings { listen: any, data: any, metrics: any, ..settings() }).await;
    let local = store.directory.path().join("local");
    let bytes = pattern(1, 1_000_000);
    std::fs::write(&local, &bytes).unwrap();
    let place = format!("leasehold://{}/a", store.server.control_address().unwrap());
    assert!(place.starts_with("leasehold://[::1]:"), "{place}");
    for arguments in [["put", local.to_str().unwrap(), &place], ["get", &place, local.to_str().unwrap()]] {
        let status = leasehold().args(arguments).stderr(Stdio::inherit()).status().unwrap();
        assert!(status.success(), "{arguments:?}: {status}");
    }
    assert_eq!(std::fs::read(&local).unwrap(), bytes);
    assert_eq!(std::fs::read(store.file("/a")).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_leases_are_what_they_are_without_and_who_asks_for_another_kind_is_told() {
    let store = Store::start_with(&Settings { fabric: FabricChoice::IwarpTls, ..settings() }).await;
    let (holder, other) = (store.session().await, store.session().await);
    fill(&holder, "/a", pattern(1, 3_000_000)).await;
    assert_eq!(content(other.client(), "/a").await, pattern(1, 3_000_000));
    let held = lease(&holder, "/a", 0, 1 << 20).await;
    held.write(0, pattern(2, 1 << 20)).await.unwrap();
    other.client().truncate("/a", 5000).await.unwrap();
    assert_eq!(held.revoked().await.by.unwrap().pid, std::process::id());
    assert_eq!(content(other.client(), "/a").await, pattern(1, 3_000_000)[..5000]);
    assert_eq!(mismatches(other.client()).await, 0);

    let plain = Store::start().await;
    let local = store.directory.path().join("local");
    std::fs::write(&local, pattern(3, 100_000)).unwrap();
    for (at, kind, says) in [
        (&store, "auto", None),
        (&store, "iwarp-tls", None),
        (&store, "iwarp", Some("does not accept data by iwarp, but by iwarp-tls")),
        (&plain, "iwarp", None),
        (&plain, "iwarp-tls", Some("does not accept data by iwarp-tls, but by iwarp")),
    ] {
        let put = leasehold()
            .args(["put", "--fabric", kind, "--socket"])
            .arg(at.server.socket())
            .arg(&local)
            .arg(format!("/{kind}"))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&put.stderr);
        assert_eq!(put.status.success(), says.is_none(), "{kind}: {stderr}");
        assert!(stderr.contains(says.unwrap_or_default()), "{kind}: {stderr}");
    }
    let status = leasehold().arg("status").arg("--socket").arg(store.server.socket()).output().unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(", by iwarp-tls\n"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_does_not_answer_loses_its_whole_session_where_the_operator_wants_that() {
    let store = Store::start_with(&Settings { on_expiry: Expiry::EndSession, ..settings() }).await;
    let (silent, other) = (store.session().await, store.session().await);
    fill(&other, "/a", pattern(1, 8192)).await;
    let elsewhere = lease(&silent, "/a", 0, 4096).await;
    let wanted = lease(&silent, "/a", 4096, 8192).await;

    other.client().truncate("/a", 5000).await.unwrap();
    let (wanted, elsewhere) = tokio::join!(wanted.revoked(), elsewhere.revoked());
    for lost in [wanted, elsewhere] {
        assert!(lost.why.contains("session"), "{}", lost.why);
        assert_eq!(lost.by.unwrap().pid, std::process::id(), "who is to blame is told, of each");
    }
    assert_eq!(content(other.client(), "/a").await, pattern(1, 8192)[..5000]);
    let again = store.session().await;
    drop(lease(&again, "/a", 0, 100).await);
    assert_eq!(mismatches(other.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_not_lock_memory_serves_all_the_same_and_says_so() {
    let name = "a_server_that_may_not_lock_memory_serves_all_the_same_and_says_so";
    let Some(nobody) = Nobody::for_test(name) else { return };
    let store = nobody.store();
    std::os::unix::fs::chown(&store, Some(Nobody::ID), Some(Nobody::ID)).unwrap();
    let mut command = std::process::Command::new("prlimit");
    command.arg("--memlock=65536").arg(nobody.binary()).args(serve(&store).get_args());
    command.uid(Nobody::ID).gid(Nobody::ID).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("prlimit of util-linux");
    let mut server = Process { child, socket: store.join(".leasehold/control.sock") };
    server.wait_until_it_serves().await;
    let client: Client = connect(&server.socket).await;
    let status = client.status().await.unwrap();
    assert!(
        status.notes.iter().any(|note| note.contains("memlock") || note.contains("registered")),
        "{:?}",
        status.notes
    );
    let session = Session::open(&client).await.unwrap();
    fill(&session, "/a", pattern(1, 3 << 20)).await;
    assert_eq!(content(&client, "/a").await, pattern(1, 3 << 20));
}
