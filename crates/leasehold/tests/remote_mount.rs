//! A store that is mounted by `leasehold mount`, as on another machine.

mod harness;

use harness::{
    Process, Store, can_mount, content, directory, fill, lease, leasehold, mismatches, pattern, wait_for,
};
use leasehold::server::settings::Settings;
use leasehold_client::{Evidence, LeaseState};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `leasehold mount`, as a process of its own. Killed when dropped, and its mount taken away.
struct Mounted {
    client: Child,
    at: TempDir,
}

impl Mounted {
    /// Returns once it says that it is mounted.
    fn new(source: &str) -> Mounted {
        let at = TempDir::new().unwrap();
        Mounted { client: mount(source, at.path()), at }
    }

    fn of(store: &Store, path: &str) -> Mounted {
        Mounted::new(&format!("leasehold://{}{path}", store.server.control_address().unwrap()))
    }

    /// What a program does, on a thread of its own.
    async fn does<T: Send + 'static>(&self, name: &str, what: impl FnOnce(&Path) -> T + Send + 'static) -> T {
        let path = self.at.path().join(name);
        tokio::task::spawn_blocking(move || what(&path)).await.unwrap()
    }

    /// Its end, and what it said on standard error.
    async fn end(&mut self) -> (ExitStatus, String) {
        let mut stderr = self.client.stderr.take().unwrap();
        let said = tokio::task::spawn_blocking(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            said
        });
        let said = said.await.unwrap();
        (self.client.wait().unwrap(), said)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.client.kill();
        let _ = self.client.wait();
        if is_mounted(self.at.path()) {
            let _ = rustix::mount::unmount(self.at.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn mount(source: &str, at: &Path) -> Child {
    let mut command = leasehold();
    command.arg("mount").arg(source).arg(at).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if !line.starts_with("mounted leasehold://") {
        let mut said = String::new();
        client.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        panic!("{line}{said}");
    }
    client
}

fn is_mounted(at: &Path) -> bool {
    fs::read_to_string("/proc/self/mounts").unwrap().contains(at.to_str().unwrap())
}

fn send(signal: Signal, process: &Child) {
    kill_process(Pid::from_child(process), signal).unwrap();
}

/// A server in a process of its own, and its URL.
fn serve(directory: &Path) -> (Process, String) {
    let mut command = harness::serve(directory);
    let mut child = command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    let url = format!("leasehold://{}/", said["control"].as_str().unwrap());
    (Process { child, socket: directory.join(".leasehold/control.sock") }, url)
}

fn url(store: &Store) -> String {
    format!("leasehold://{}/", store.server.control_address().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_machine_writes_the_other_reads() {
    if !can_mount() {
        return;
    }
    let store = Store::start().await;
    let mounted = Mounted::of(&store, "/");
    let (there, here) = (pattern(1, 300_001), pattern(2, 400_000));
    let bytes = there.clone();
    mounted.does("there", move |path| fs::write(path, bytes).unwrap()).await;
    let local = directory();
    let got = local.path().join("got");
    let get =
        leasehold().arg("--socket").arg(store.server.socket()).args(["get", "/there"]).arg(&got).output();
    let get = get.unwrap();
    assert!(get.status.success(), "{}", String::from_utf8_lossy(&get.stderr));
    assert_eq!(fs::read(&got).unwrap(), there);

    // A descriptor that was open before sees what a peer commits.
    let file = mounted.does("there", |path| File::open(path).unwrap()).await;
    fill(&store.session().await, "/there", here.clone()).await;
    let found = tokio::task::spawn_blocking(move || {
        let mut found = vec![0; 400_000];
        file.read_exact_at(&mut found, 0).unwrap();
        (found, file.metadata().unwrap().len())
    });
    assert_eq!(found.await.unwrap(), (here.to_vec(), 400_000));
    assert_eq!(mismatches(&store.client().await).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_is_told_which_program_of_which_machine_truncates_as_that_machine_claims() {
    if !can_mount() {
        return;
    }
    let patient = Settings { grace_ms: 60_000, ..harness::settings() };
    let store = Store::start_with(&patient).await;
    let mounted = Mounted::of(&store, "/");
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 10_000)).await;
    let held = lease(&session, "/a", 4096, 8192).await;
    let truncate = Command::new("truncate").args(["-s", "5000"]).arg(mounted.at.path().join("a")).spawn();
    let mut truncate = truncate.unwrap();
    let LeaseState::Breaking(notice) = held.broken().await else { panic!("it is broken") };
    let breaker = &notice.breaker;
    assert_eq!((breaker.pid, breaker.program.as_str()), (truncate.id(), "truncate"));
    assert_eq!(breaker.host, rustix::system::uname().nodename().to_string_lossy());
    assert_eq!((breaker.uid, breaker.evidence), (0, Evidence::Claimed));
    held.release().await.unwrap();
    let ended = tokio::task::spawn_blocking(move || truncate.wait().unwrap()).await.unwrap();
    assert!(ended.success());
    assert_eq!(mounted.does("a", |path| fs::metadata(path).unwrap().len()).await, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_there_ends_the_wait_for_a_holder() {
    if !can_mount() {
        return;
    }
    let patient = Settings { grace_ms: 60_000, ..harness::settings() };
    let store = Store::start_with(&patient).await;
    let mounted = Mounted::of(&store, "/");
    let session = store.session().await;
    fill(&session, "/a", pattern(1, 10_000)).await;
    let held = lease(&session, "/a", 0, 10_000).await;
    let truncate = Command::new("truncate").args(["-s", "0"]).arg(mounted.at.path().join("a")).spawn();
    let mut truncate = truncate.unwrap();
    assert!(matches!(held.broken().await, LeaseState::Breaking(_)));
    let began = Instant::now();
    // Not SIGINT, which whoever started the tests in the background has had ignored.
    send(Signal::TERM, &truncate);
    let ended = tokio::task::spawn_blocking(move || truncate.wait().unwrap()).await.unwrap();
    assert!(!ended.success());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(content(session.client(), "/a").await, pattern(1, 10_000));
}

/// Replies block on the server's threads while a socket is full: with few threads, nobody might be left to empty it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_programs_at_once_with_long_reads_and_writes_do_not_block_each_other() {
    if !can_mount() {
        return;
    }
    let store = Store::start().await;
    let mounted = Mounted::of(&store, "/");
    let programs: Vec<_> = (0..8)
        .map(|seed| {
            let path = mounted.at.path().join(format!("{seed}"));
            tokio::task::spawn_blocking(move || {
                let bytes = pattern(seed, 3 << 20);
                fs::write(&path, &bytes).unwrap();
                for _ in 0..3 {
                    assert_eq!(fs::read(&path).unwrap(), bytes);
                }
            })
        })
        .collect();
    for program in programs {
        program.await.unwrap();
    }
    assert_eq!(mismatches(&store.client().await).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_the_store_can_be_mounted_and_a_device_cannot_be_made() {
    if !can_mount() {
        return;
    }
    let store = Store::start().await;
    let client = store.client().await;
    client.make_directory("/d/e", true).await.unwrap();
    let mounted = Mounted::of(&store, "/d/e");
    mounted
        .does("x", |path| {
            use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
            fs::write(path, b"below").unwrap();
            fs::create_dir(path.with_file_name("f")).unwrap();
            fs::rename(path, path.with_file_name("f").join("y")).unwrap();
            let device = mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3));
            assert_eq!(device, Err(Errno::PERM));
            let pipe = mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0);
            assert_eq!(pipe, Ok(()));
        })
        .await;
    assert_eq!(content(&client, "/d/e/f/y").await, b"below");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_or_is_killed_ends_the_mount_and_whoever_waits_in_it() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::TERM, Signal::KILL] {
        let directory = directory();
        let (mut server, url) = serve(directory.path());
        let mut mounted = Mounted::new(&url);
        let file = mounted.does("a", |path| File::create(path).unwrap()).await;
        send(signal, &server.child);
        let (status, said) = mounted.end().await;
        assert_eq!(status.code(), Some(6), "{said}");
        assert!(said.contains("so it is not mounted on") && said.contains("then mount it again"), "{said}");
        assert!(!is_mounted(mounted.at.path()));
        let write = tokio::task::spawn_blocking(move || (&file).write_all(b"lost")).await.unwrap();
        assert_eq!(Errno::from_io_error(&write.unwrap_err()), Some(Errno::NOTCONN));
        server.child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_killed_leaves_nothing_open_and_a_mount_that_the_next_takes_away() {
    if !can_mount() {
        return;
    }
    let directory = directory();
    let (server, url) = serve(directory.path());
    let mut mounted = Mounted::new(&url);
    let file = mounted.does("a", |path| {
        let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(path).unwrap();
        fs::remove_file(path).unwrap();
        file.write_all(b"nameless").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut found = String::new();
        file.read_to_string(&mut found).unwrap();
        (file, found)
    });
    let (_file, found) = file.await;
    assert_eq!(found, "nameless");
    let descriptors = format!("/proc/{}/fd", server.child.id());
    let orphans = || {
        let links =
            fs::read_dir(&descriptors).unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().ends_with("/files/a (deleted)")).count()
    };
    let while_open = orphans();
    assert!(while_open > 0);
    mounted.client.kill().unwrap();
    mounted.client.wait().unwrap();
    let gone = fs::metadata(mounted.at.path()).unwrap_err();
    assert_eq!(Errno::from_io_error(&gone), Some(Errno::NOTCONN));
    wait_for(|| orphans() < while_open);

    mounted.client = mount(&url, mounted.at.path());
    mounted.does("b", |path| fs::write(path, b"again").unwrap()).await;
    send(Signal::TERM, &mounted.client);
    let (status, said) = mounted.end().await;
    assert!(status.success() && said.is_empty(), "{said}");
    assert!(!is_mounted(mounted.at.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_returns_once_it_is_mounted_and_ends_with_the_mount() {
    if !can_mount() {
        return;
    }
    let (store, at) = (Store::start().await, TempDir::new().unwrap());
    let (source, place) = (url(&store), at.path().to_owned());
    // As long as somebody holds its output, this waits.
    let mounted = tokio::task::spawn_blocking(move || {
        leasehold().args(["--json", "mount", "--daemon", &source]).arg(&place).output().unwrap()
    });
    let mounted = mounted.await.unwrap();
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    let said: serde_json::Value = serde_json::from_slice(&mounted.stdout).unwrap();
    let path = at.path().join("a");
    let wrote = tokio::task::spawn_blocking(move || fs::write(path, b"bytes"));
    wrote.await.unwrap().unwrap();
    assert_eq!(content(&store.client().await, "/a").await, b"bytes");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = format!("{} {} fuse.leasehold rw,nosuid,nodev,", url(&store), at.path().display());
    assert!(mounts.contains(&line), "{line} in {mounts}");

    let source = url(&store);
    let twice = leasehold().args(["mount", "--daemon", &source]).arg(at.path()).output().unwrap();
    let why = String::from_utf8(twice.stderr).unwrap();
    assert!(!twice.status.success() && why.contains("a store is mounted on"), "{why}");

    assert!(Command::new("umount").arg(at.path()).status().unwrap().success());
    let process = PathBuf::from(format!("/proc/{}", said["pid"]));
    wait_for(|| !process.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_calls_us_by_another_name_with_the_options_of_fstab() {
    if !can_mount() {
        return;
    }
    let (store, at) = (Store::start().await, TempDir::new().unwrap());
    fill(&store.session().await, "/a", pattern(1, 1000)).await;
    let helper = at.path().with_extension("helper");
    fs::create_dir(&helper).unwrap();
    let program = helper.join("mount.leasehold");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_leasehold"), &program).unwrap();
    let call = |options: &str| {
        let mut command = Command::new(&program);
        command.arg(url(&store)).arg(at.path()).args(["-o", options]);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let refused = call("rw,colour=red").await.unwrap();
    let why = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(why.contains("\"colour=red\" is no mount option of leasehold"), "{why}");

    let mounted = call("ro,_netdev,x-systemd.automount,noatime").await.unwrap();
    assert!(mounted.status.success() && mounted.stdout.is_empty(), "{mounted:?}");
    let path = at.path().join("a");
    let tried = tokio::task::spawn_blocking(move || {
        (fs::read(&path).unwrap(), fs::write(&path, b"no").unwrap_err().raw_os_error())
    });
    assert_eq!(tried.await.unwrap(), (pattern(1, 1000).to_vec(), Some(Errno::ROFS.raw_os_error())));
    assert!(Command::new("umount").arg(at.path()).status().unwrap().success());
    fs::remove_dir_all(&helper).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mounted_is_refused_with_a_remedy() {
    if !can_mount() {
        return;
    }
    let (store, at) = (Store::start().await, TempDir::new().unwrap());
    let file = at.path().join("file");
    fs::write(&file, b"").unwrap();
    fill(&store.session().await, "/a", pattern(1, 1000)).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (nowhere, missing) = (format!("leasehold://{free}/"), at.path().join("missing"));
    let source = url(&store);
    for (source, directory, code, says) in [
        (nowhere, at.path(), 6, "is `leasehold serve` running there?"),
        (source.clone(), &missing, 1, "name an empty directory"),
        (source.clone(), &file, 1, "Not a directory"),
        (format!("{source}a"), at.path(), 1, "/a is not a directory"),
        (format!("{source}b"), at.path(), 3, "/b does not exist"),
    ] {
        let mut command = leasehold();
        command.args(["mount", "--daemon", &source]).arg(directory);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let why = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{source}: {why}");
        assert!(why.starts_with("leasehold: ") && why.contains(says), "{source}: {why}");
    }
    assert!(!is_mounted(at.path()));
}
