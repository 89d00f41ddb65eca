//! Transfers that survive the loss of the server or of the client.

mod harness;

use harness::shell::Shell;
use harness::{Process, Store, pattern};
use leasehold_client::{Client, Session};
use std::fs;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn start(shell: &Shell, arguments: &[&str]) -> Child {
    let mut command = shell.command(&[&["--json"], arguments].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
}

async fn end(child: Child) -> Output {
    let ended = tokio::task::spawn_blocking(|| child.wait_with_output());
    let ended = tokio::time::timeout(Duration::from_secs(120), ended).await.expect("it ends");
    ended.expect("no panic").expect("its output")
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < give_up, "{what} does not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn is_longer_than(client: &Client, path: &str, bytes: u64) -> bool {
    client.stat(path).await.is_ok_and(|file| file.size > bytes)
}

fn said(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn same(a: &Path, b: &Path) {
    assert!(fs::read(a).expect("a file") == fs::read(b).expect("a file"), "{a:?} and {b:?} differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_goes_on_after_the_server_was_killed_and_started_again() {
    let (mut server, store, shell) = Shell::with_a_server().await;
    fs::write(shell.at("source"), pattern(1, 256 * MIB as usize)).unwrap();
    let put = start(&shell, &["put", "source", "/file", "--rate", "100MiB"]);
    let client = server.client().await;
    until("half a put", async || is_longer_than(&client, "/file", 128 * MIB).await).await;
    server.kill();
    let server = Process::start(store.path()).await;
    let output = end(put).await;
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(says.contains("connection lost") && says.contains("connected again"), "{says}");
    assert_eq!(said(&output)["durable"], true);
    same(&store.path().join("files/file"), &shell.at("source"));
    assert_eq!(harness::mismatches(&server.client().await).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_goes_on_after_the_server_was_killed_and_started_again() {
    let (mut server, store, shell) = Shell::with_a_server().await;
    fs::write(shell.at("source"), pattern(2, 256 * MIB as usize)).unwrap();
    shell.json(&["put", "source", "/file"]);
    let get = start(&shell, &["get", "/file", "back", "--chunk", "1MiB", "--depth", "1"]);
    let part = shell.at("back.leasehold-part");
    until("half a get", async || fs::metadata(&part).is_ok_and(|part| part.len() > 32 * MIB)).await;
    server.kill();
    assert!(!shell.at("back").exists(), "it is not complete");
    let _server = Process::start(store.path()).await;
    let output = end(get).await;
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(says.contains("connected again"), "{says}");
    assert_eq!(said(&output)["bytes"], 256 * MIB);
    same(&shell.at("back"), &shell.at("source"));
    assert!(!part.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_on_after_the_server_was_killed_and_started_again() {
    let (mut server, store, shell) = Shell::with_a_server().await;
    fs::create_dir(shell.at("tree")).unwrap();
    for number in 0..400 {
        fs::write(shell.at(&format!("tree/{number}")), pattern(number, 40_000)).unwrap();
    }
    let put = start(&shell, &["put", "-r", "tree", "/tree", "--rate", "8MiB"]);
    let client = server.client().await;
    until("some files", async || client.list("/tree").await.is_ok_and(|files| files.len() > 100)).await;
    server.kill();
    let _server = Process::start(store.path()).await;
    assert_eq!(said(&end(put).await)["files"], 400);
    for number in 0..400 {
        same(&store.path().join(format!("files/tree/{number}")), &shell.at(&format!("tree/{number}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_patience_a_lost_server_is_code_6() {
    let (mut server, _store, shell) = Shell::with_a_server().await;
    fs::write(shell.at("source"), pattern(1, 64 * MIB as usize)).unwrap();
    let put = start(&shell, &["put", "source", "/file", "--rate", "32MiB", "--reconnect", "0s"]);
    let client = server.client().await;
    until("some of a put", async || is_longer_than(&client, "/file", MIB).await).await;
    server.kill();
    let output = end(put).await;
    assert_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_was_killed_is_resumed_with_the_rest_alone() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    fs::write(shell.at("source"), pattern(3, 64 * MIB as usize + 1000)).unwrap();
    let mut put = start(&shell, &["put", "source", "/file", "--chunk", "1MiB", "--rate", "64MiB"]);
    let client = store.client().await;
    until("half a put", async || is_longer_than(&client, "/file", 40 * MIB).await).await;
    put.kill().unwrap();
    put.wait().unwrap();
    until("the end of its session", async || store.server.engine().stats().await.unwrap().leases == 0).await;
    let placed = || store.server.engine().fabric_counters().bytes_placed.load(Ordering::Relaxed);
    let before = placed();
    let said = shell.json(&["put", "--resume", "source", "/file", "--chunk", "1MiB"]);
    let sent = said["sent"].as_u64().unwrap();
    assert_eq!(placed() - before, sent, "what it says is what came");
    assert!((1..=34 * MIB).contains(&sent), "{sent} of 64 MiB");
    same(&store.file("file"), &shell.at("source"));

    // One byte of another, and a hole of a third: two pieces differ.
    client.write("/file", 5 * MIB, pattern(1, 1)).await.unwrap();
    client.punch("/file", harness::range(9 * MIB, 9 * MIB + 4096)).await.unwrap();
    let said = shell.json(&["put", "--resume", "source", "/file", "--chunk", "1MiB"]);
    assert_eq!(said["sent"], 2 * MIB);
    same(&store.file("file"), &shell.at("source"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_was_killed_is_resumed_with_the_rest_alone() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    fs::write(shell.at("source"), pattern(4, 200 * MIB as usize + 1000)).unwrap();
    shell.json(&["put", "source", "/file"]);
    let mut get = start(&shell, &["get", "/file", "back", "--chunk", "1MiB", "--depth", "1"]);
    let part = shell.at("back.leasehold-part");
    until("half a get", async || fs::metadata(&part).is_ok_and(|part| part.len() > 60 * MIB)).await;
    get.kill().unwrap();
    get.wait().unwrap();
    let said = shell.json(&["get", "--resume", "/file", "back", "--chunk", "1MiB"]);
    let fetched = said["fetched"].as_u64().unwrap();
    assert!((1..=141 * MIB).contains(&fetched), "{fetched} of 200 MiB");
    same(&shell.at("back"), &shell.at("source"));
    assert_eq!(shell.json(&["get", "--resume", "/file", "back"])["fetched"], 0, "all of it is here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_gets_no_session_leaves_a_longer_file_as_it_is() {
    let mut settings = harness::settings();
    settings.limits.sessions_max = 1;
    let store = Store::start_with(&settings).await;
    let shell = Shell::on(store.server.socket());
    let holder = Session::open(&store.client().await).await.unwrap();
    harness::fill(&holder, "/file", pattern(1, 10_000)).await;
    fs::write(shell.at("source"), "short").unwrap();
    let (code, _, says) = shell.fails(&["put", "source", "/file"]);
    assert_eq!((code, says.contains("sessions_max")), (1, true), "{says}");
    assert_eq!(fs::read(store.file("file")).unwrap(), pattern(1, 10_000));
}
