//! What is in the way is named, with what to do; and nothing acknowledged is lost.

mod harness;

use harness::{Nobody, Process, content, fill, lease, leasehold, pattern, serve};
use leasehold_client::{Reason, Session};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Runs a server that must not start, and returns what it says.
fn refused(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().expect("the server's process");
    let text = String::from_utf8(stderr).expect("UTF-8");
    assert!(!status.success(), "it started: {text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_one_store_is_refused_and_the_first_is_named() {
    let directory = harness::directory();
    let first = Process::start(directory.path()).await;
    let text = refused(&mut serve(directory.path()));
    assert!(text.contains("in use") && text.contains(&first.child.id().to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_store_that_was_killed_has_what_was_durable() {
    let (original, backup) = (harness::directory(), harness::directory());
    let mut process = Process::start(original.path()).await;
    let session = Session::open(&process.client().await).await.expect("a session");
    for name in ["/a", "/b"] {
        fill(&session, name, pattern(1, 100_000)).await;
        session.client().sync(name).await.expect("durable");
    }
    process.kill();
    let copied = Command::new("cp").arg("-a").arg(original.path().join(".")).arg(backup.path()).status();
    assert!(copied.expect("cp").success());
    let process = Process::start(backup.path()).await;
    let client = process.client().await;
    for name in ["/a", "/b"] {
        assert_eq!(content(&client, name).await, pattern(1, 100_000), "{name}");
    }
    // What was read has its checksum from then on.
    assert!(scrub(&process).contains("50 blocks in 2 files: every checksum matches"));
    assert!(scrub(&process).contains("50 blocks in 2 files: every checksum matches"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_of_files_that_never_had_a_checksum_says_that_nothing_was_compared() {
    let directory = harness::directory();
    std::fs::create_dir_all(directory.path().join("files")).expect("a directory");
    std::fs::write(directory.path().join("files/a"), pattern(1, 100_000)).expect("a file");
    let process = Process::start(directory.path()).await;
    let text = scrub(&process);
    assert!(text.contains("25 blocks in 1 file: nothing was compared"), "{text}");
    assert!(text.contains("25 blocks had no checksum and got one"), "{text}");
    assert!(scrub(&process).contains("every checksum matches"));
}

fn scrub(process: &Process) -> String {
    let output = leasehold().arg("scrub").arg("--socket").arg(&process.socket).output().expect("a process");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_the_flag_that_changes_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--data", "--metrics"] {
        let directory = harness::directory();
        let mut command = leasehold();
        command.args(["serve", "--insecure"]).arg(directory.path());
        for port in ["--listen", "--data", "--metrics"] {
            command.args([port, if port == flag { address.as_str() } else { "127.0.0.1:0" }]);
        }
        let text = refused(&mut command);
        assert!(text.contains(&address), "{flag}: {text}");
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused() {
    let directory = harness::directory();
    std::fs::create_dir_all(directory.path().join(".leasehold")).unwrap();
    std::fs::create_dir_all(directory.path().join("files")).unwrap();
    std::fs::write(directory.path().join(".leasehold/format"), "leasehold store 999\n").unwrap();
    let text = refused(&mut serve(directory.path()));
    assert!(text.contains("999") && text.contains("newer"), "{text}");
}

#[test]
fn a_directory_that_is_read_only_or_not_ours_is_refused() {
    let Some(nobody) = Nobody::for_test("a_directory_that_is_read_only_or_not_ours_is_refused") else {
        return;
    };
    let directory = nobody.store();
    for mode in [0o555, 0o700] {
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(mode)).unwrap();
        let mut command = Command::new(nobody.binary());
        command.arg("serve").arg(&directory).uid(Nobody::ID).gid(Nobody::ID);
        for port in ["--listen", "--data", "--metrics"] {
            command.args([port, "127.0.0.1:0"]);
        }
        let text = refused(&mut command);
        assert!(text.contains("store") && text.to_lowercase().contains("permission"), "{mode:o}: {text}");
    }
}

/// A small filesystem of its own, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<SmallDisk> {
        let directory = tempfile::tempdir().ok()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(directory.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_to_who_syncs_and_what_was_acknowledged_stays() {
    let Some(disk) = SmallDisk::mount(24 << 20) else {
        eprintln!(
            "SKIPPED a_full_disk_is_told_to_who_syncs_and_what_was_acknowledged_stays: cannot mount a tmpfs"
        );
        return;
    };
    let mut server = Process::start(disk.path()).await;
    let session = Session::open(&server.client().await).await.unwrap();
    fill(&session, "/kept", pattern(1, 2 << 20)).await;
    session.client().create("/large").await.unwrap();
    let mut refused = None;
    for piece in 0..12 {
        let start = piece * (4 << 20);
        let lease = lease(&session, "/large", start, start + (4 << 20)).await;
        lease.write(start, pattern(2, 4 << 20)).await.unwrap();
        lease.commit().await.unwrap();
        if let Err(error) = session.sync("/large").await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("24 MiB cannot take 48");
    assert_eq!(error.reason, Reason::NoSpace, "{error}");
    assert_eq!(content(session.client(), "/kept").await, pattern(1, 2 << 20));

    // The remedy helps: a truncate is not held up by what could not be written, and makes room.
    let truncated =
        tokio::time::timeout(Duration::from_secs(10), session.client().truncate("/large", 0)).await;
    truncated.expect("bounded").unwrap();
    fill(&session, "/after", pattern(3, 1 << 20)).await;
    drop(session);
    server.kill();
    drop(server);

    let server = Process::start(disk.path()).await;
    let client = server.client().await;
    assert_eq!(content(&client, "/kept").await, pattern(1, 2 << 20));
    assert_eq!(content(&client, "/after").await, pattern(3, 1 << 20));
    assert_eq!(harness::mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_exits_0_and_everything_committed_is_there() {
    let directory = harness::directory();
    let mut server = Process::start(directory.path()).await;
    let session = Session::open(&server.client().await).await.unwrap();
    session.client().create("/a").await.unwrap();
    let lease = lease(&session, "/a", 0, 3 << 20).await;
    lease.write(0, pattern(1, 3 << 20)).await.unwrap();
    lease.commit().await.unwrap(); // and no sync
    let pid = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let give_up = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = server.child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < give_up, "it does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{status}");
    assert_eq!(std::fs::read(directory.path().join("files/a")).unwrap(), pattern(1, 3 << 20));
}
