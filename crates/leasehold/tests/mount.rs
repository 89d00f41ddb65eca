//! A mounted store: what ordinary programs do there, and whose leases that breaks.

mod harness;

use bytes::Bytes;
use harness::{
    Process, Store, can_map, can_mount, content, directory, fill, lease, mismatches, pattern, wait_for,
};
use leasehold::mount::Mount;
use leasehold::server::settings::Settings;
use leasehold_client::{Access, LeaseState};
use leasehold_core::identity::{Evidence, Identity};
use leasehold_engine::path::StorePath;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// A store that is mounted as long as this lives.
struct Mounted {
    mount: Option<Mount>,
    at: TempDir,
    store: Store,
}

impl Mounted {
    /// `None`, and a word about it, where nothing can be mounted.
    async fn start() -> Option<Mounted> {
        Mounted::start_with(&harness::settings()).await
    }

    async fn start_to_map() -> Option<Mounted> {
        if can_map() { Mounted::start().await } else { None }
    }

    async fn start_with(settings: &Settings) -> Option<Mounted> {
        if !can_mount() {
            return None;
        }
        let (store, at) = (Store::start_with(settings).await, TempDir::new().unwrap());
        let mount = Mount::new(store.server.engine().clone(), at.path()).expect("it can be mounted");
        Some(Mounted { mount: Some(mount), at, store })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }

    /// What a program does, on a thread of its own.
    async fn does<T: Send + 'static>(&self, name: &str, what: impl FnOnce(&Path) -> T + Send + 'static) -> T {
        let path = self.path(name);
        tokio::task::spawn_blocking(move || what(&path)).await.unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.unmount().expect("it can be unmounted");
        }
    }
}

/// Somebody who does not go through the mount.
fn peer() -> Identity {
    let (host, program) = ("elsewhere".to_owned(), "test".to_owned());
    Identity { host, pid: 1, uid: 0, program, evidence: Evidence::Claimed }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_and_remote_peers_see_the_same_bytes_at_once() {
    let Some(mounted) = Mounted::start().await else { return };
    let session = mounted.store.session().await;
    let bytes = pattern(1, 300_001);
    let local = bytes.clone();
    mounted.does("a", move |path| fs::write(path, local).unwrap()).await;
    assert_eq!(content(session.client(), "/a").await, bytes);
    assert_eq!(mismatches(session.client()).await, 0);

    // A descriptor that was open before, and read from, sees what a peer commits.
    let file = mounted.does("a", |path| {
        let file = File::open(path).unwrap();
        file.read_exact_at(&mut [0; 300_001], 0).unwrap();
        file
    });
    let file = file.await;
    let remote = pattern(2, 400_000);
    fill(&session, "/a", remote.clone()).await;
    let found = tokio::task::spawn_blocking(move || {
        let mut found = vec![0; 400_000];
        file.read_exact_at(&mut found, 0).unwrap();
        (found, file.metadata().unwrap().len())
    });
    assert_eq!(found.await.unwrap(), (remote.to_vec(), 400_000));
}

/// A program that has a file mapped, and does what it is told.
struct Mapper {
    program: Child,
    answers: BufReader<ChildStdout>,
}

impl Mapper {
    const PROGRAM: &str = "\
import mmap, sys
file = open(sys.argv[1], 'r+b')
mapped = mmap.mmap(file.fileno(), 0)
for line in sys.stdin:
    what, *where = line.split()
    if what == 'store':
        mapped[int(where[0])] = int(where[1])
    if what == 'sync':
        mapped.flush()
    print(mapped[int(where[0])] if where else 'done', flush=True)
";

    fn start(path: &Path) -> Mapper {
        let mut command = Command::new("python3");
        command.arg("-c").arg(Mapper::PROGRAM).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().expect("python3 can be run");
        let answers = BufReader::new(program.stdout.take().unwrap());
        Mapper { program, answers }
    }

    fn does(&mut self, what: &str) -> String {
        tokio::task::block_in_place(|| {
            writeln!(self.program.stdin.as_ref().unwrap(), "{what}").unwrap();
            let mut answer = String::new();
            self.answers.read_line(&mut answer).unwrap();
            answer.trim_end().to_owned()
        })
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        drop(self.program.stdin.take());
        self.program.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_by_a_mapping_is_flushed_before_a_peer_gets_a_lease_and_seen_by_it() {
    let Some(mounted) = Mounted::start_to_map().await else { return };
    let session = mounted.store.session().await;
    let mut bytes = pattern(1, 20_000).to_vec();
    fill(&session, "/a", bytes.clone().into()).await;
    let mut mapper = Mapper::start(&mounted.path("a"));
    assert_eq!(mapper.does("load 5000"), bytes[5000].to_string());
    (bytes[5000], bytes[100]) = (bytes[5000] ^ 1, bytes[100] ^ 1);
    mapper.does(&format!("store 5000 {}", bytes[5000]));
    mapper.does(&format!("store 100 {}", bytes[100]));
    // No msync. The other page stays the program's.
    let held = lease(&session, "/a", 4096, 8192).await;
    let found = content(session.client(), "/a").await;
    assert_eq!(found[5000], bytes[5000]);
    assert_eq!(found[100], bytes[100] ^ 1);
    held.release().await.unwrap();
    mapper.does("sync");
    assert_eq!(content(session.client(), "/a").await, bytes);
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapping_sees_what_a_peer_commits_and_is_never_written_over_it() {
    let Some(mounted) = Mounted::start_to_map().await else { return };
    let session = mounted.store.session().await;
    let (before, after) = (pattern(1, 8192), pattern(2, 4096));
    fill(&session, "/a", before.clone()).await;
    let mut mapper = Mapper::start(&mounted.path("a"));
    let held = lease(&session, "/a", 0, 4096).await;
    // The page is changed while the lease lives, and not written back before the peer commits.
    mapper.does(&format!("store 10 {}", before[10] ^ 1));
    mapper.does(&format!("store 5000 {}", before[5000] ^ 1));
    held.write(0, after.clone()).await.unwrap();
    held.commit().await.unwrap();
    assert_eq!(mapper.does("load 10"), after[10].to_string(), "it was acknowledged, so everybody sees it");
    mapper.does("sync");
    let found = content(session.client(), "/a").await;
    assert_eq!(found[..4096], after[..], "and no old page is written over it");
    assert_eq!(found[5000], before[5000] ^ 1, "what is beside it is written back");
    assert_eq!(mismatches(session.client()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapping_that_is_written_back_breaks_a_lease_and_its_openers_are_named() {
    let Some(mounted) = Mounted::start_to_map().await else { return };
    let session = mounted.store.session().await;
    fill(&session, "/a", pattern(1, 8192)).await;
    let mut mapper = Mapper::start(&mounted.path("a"));
    let held = lease(&session, "/a", 0, 4096).await;
    mapper.does("store 10 77");
    assert!(matches!(held.state(), LeaseState::Live), "{:?}", held.state());
    mapper.does("sync");
    // It is told on its own stream, which may be behind.
    tokio::task::block_in_place(|| wait_for(|| matches!(held.state(), LeaseState::Revoked { .. })));
    let breaks = session.client().breaks(10).await.unwrap();
    let breaker = breaks[0].breaker.as_ref().unwrap();
    assert_eq!(breaker.pid, 0);
    let opener = format!("[{}]", mapper.program.id());
    assert!(breaker.program.contains(&opener), "{} names {opener}", breaker.program);
    assert_eq!(content(session.client(), "/a").await[10], 77);
}

/// Programs read by descriptors and mappings, and store by mappings, as fast as they can, while a peer commits: whoever looks
/// after a commit was acknowledged sees it, and no page of before is ever written over it.
#[tokio::test(flavor = "multi_thread")]
async fn readers_and_mappings_at_work_never_bring_back_what_was_before_a_commit() {
    let Some(mounted) = Mounted::start_to_map().await else { return };
    let session = mounted.store.session().await;
    fill(&session, "/a", Bytes::from_static(&[0; 4096])).await;
    let program = "\
import mmap, os, sys, threading, traceback
def fail(error):
    traceback.print_exception(error.exc_value)
    os._exit(1)
threading.excepthook = fail
file = open(sys.argv[1], 'r+b')
mapped = mmap.mmap(file.fileno(), 0)
def read():
    file = open(sys.argv[1], 'rb', buffering=0)
    while not over.is_set():
        file.seek(0)
        file.read(4096)
def store():
    at = 0
    while not over.is_set():
        at = (at + 1) % 256
        mapped[0] = at
        if at % 16 == 0:
            mapped.flush()
over = threading.Event()
threads = [threading.Thread(target=run) for run in (read, store)]
for thread in threads: thread.start()
sys.stdin.read()
over.set()
for thread in threads: thread.join()
";
    let mut command = Command::new("python3");
    command.arg("-c").arg(program).arg(mounted.path("a")).stdin(Stdio::piped());
    let mut programs = command.spawn().expect("python3 can be run");
    let reader = mounted.does("a", |path| File::open(path).unwrap()).await;
    let (mut committed, mut value) = (0, 0_u8);
    while committed < 200 {
        value = value.wrapping_add(1);
        let want = harness::want("/a", 0, 4096, Access::Overwrite);
        let held = session.acquire(&[want], harness::or_break()).await.expect("a lease").remove(0);
        held.write(0, vec![value; 4096].into()).await.expect("written");
        held.commit().await.expect("within the grace period");
        committed += 1;
        let found = content(session.client(), "/a").await;
        assert!(found[1..].iter().all(|&byte| byte == value), "{value}: {:?}", &found[1..9]);
        let mut found = [0; 4096];
        tokio::task::block_in_place(|| reader.read_exact_at(&mut found, 0).unwrap());
        assert!(
            found[1..].iter().all(|&byte| byte == value),
            "{value}: the program finds {:?}",
            &found[1..9]
        );
    }
    drop(programs.stdin.take());
    assert!(tokio::task::block_in_place(|| programs.wait().unwrap()).success(), "no msync may fail");
    assert_eq!(mismatches(session.client()).await, 0);
}

/// A change that has begun goes on without whoever asked for it, and no old page outlives it either.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_change_took_whose_caller_has_gone_is_not_read_from_an_old_page() {
    let Some(mounted) = Mounted::start().await else { return };
    let session = mounted.store.session().await;
    let engine = mounted.store.server.engine().clone();
    let (name, bytes) = (StorePath::parse("a").unwrap(), pattern(1, 10_000));
    let reader = peer();
    let mut punched = 0;
    for after_us in (0..100).map(|step| step * 20) {
        fill(&session, "/a", bytes.clone()).await;
        assert_eq!(mounted.does("a", |path| fs::read(path).unwrap()).await, bytes);
        let punch = engine.punch(&name, harness::range(0, 8192), reader.clone());
        let gone = tokio::time::timeout(Duration::from_micros(after_us), punch).await.is_err();
        let found = content(session.client(), "/a").await;
        punched += usize::from(gone && found[0..8192] == [0; 8192]);
        let path = mounted.path("a");
        let same = move || wait_for(|| fs::read(&path).unwrap() == found);
        tokio::task::spawn_blocking(same).await.unwrap();
    }
    println!("{punched} callers had gone");
}

/// What is written goes past the kernel's pages.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_program_changes_another_sees_whose_pages_are_kept() {
    let Some(mounted) = Mounted::start().await else { return };
    mounted
        .does("a", |path| {
            use rustix::fs::FallocateFlags as Flags;
            let writer = OpenOptions::new().create_new(true).write(true).open(path).unwrap();
            writer.write_all_at(&[1; 16384], 0).unwrap();
            let reader = File::open(path).unwrap();
            let read = |length| {
                let mut found = vec![9; length];
                let length = reader.read_at(&mut found, 0).unwrap();
                found.truncate(length);
                found
            };
            assert_eq!(read(20000), [1; 16384]);
            writer.write_all_at(&[2; 3000], 3000).unwrap();
            assert_eq!(read(20000)[2999..6001], [&[1][..], &[2; 3000], &[1]].concat());
            rustix::fs::fallocate(&writer, Flags::PUNCH_HOLE | Flags::KEEP_SIZE, 4096, 4096).unwrap();
            assert_eq!(read(8193)[4095..], [&[2][..], &[0; 4096], &[1]].concat());
            writer.set_len(5000).unwrap();
            assert_eq!(read(20000).len(), 5000);
            writer.write_all_at(&[3; 10], 9000).unwrap();
            assert_eq!(read(20000)[5000..], [&[0; 4000][..], &[3; 10]].concat());
            fs::write(path.with_file_name("b"), [4; 8192]).unwrap();
            let source = File::open(path.with_file_name("b")).unwrap();
            let (mut from, mut to) = (0, 4096);
            rustix::fs::copy_file_range(&source, Some(&mut from), &writer, Some(&mut to), 4096).unwrap();
            assert_eq!(read(9000)[4096..8193], [&[4; 4096][..], &[0]].concat());
        })
        .await;
    assert_eq!(mismatches(&mounted.store.client().await).await, 0);
}

/// The kernel believes for a second what it was told of a file's size. What it is told while a peer commits may be on its way
/// still, of a file that it does not know yet, when it is told to forget.
#[tokio::test(flavor = "multi_thread")]
async fn the_size_that_a_peer_commits_shows_at_once_to_programs_that_look_meanwhile() {
    const FILES: usize = 400;
    let Some(mounted) = Mounted::start().await else { return };
    let engine = mounted.store.server.engine().clone();
    let name = |file: usize| format!("file-{file}");
    for file in 0..FILES {
        engine.create(&StorePath::parse(&name(file)).unwrap()).await.unwrap();
    }
    let looked_at = Arc::new(AtomicUsize::new(0));
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let (looked_at, directory) = (looked_at.clone(), mounted.at.path().to_owned());
            std::thread::spawn(move || {
                let mut seen = 0;
                loop {
                    match looked_at.load(Ordering::Acquire) {
                        FILES => return,
                        file if file == seen => std::hint::spin_loop(),
                        file => {
                            seen = file;
                            fs::metadata(directory.join(name(file))).unwrap();
                        }
                    }
                }
            })
        })
        .collect();
    let mut old = Vec::new();
    for file in 1..FILES {
        looked_at.store(file, Ordering::Release);
        let path = StorePath::parse(&name(file)).unwrap();
        for length in [100, 200] {
            engine.write(&path, 0, vec![1; length].into(), peer()).await.unwrap();
            let found = mounted.does(&name(file), |path| fs::metadata(path).unwrap().len()).await;
            if found != length as u64 {
                old.push((file, found));
            }
        }
    }
    looked_at.store(FILES, Ordering::Release);
    lookers.into_iter().for_each(|looker| looker.join().unwrap());
    assert!(old.is_empty(), "old sizes were shown of {} files: {old:?}", old.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_listed_with_what_its_files_are() {
    let Some(mounted) = Mounted::start().await else { return };
    let kinds = |path: &Path| {
        let listed = fs::read_dir(path).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let found = entry.metadata().unwrap();
            assert_eq!(found.file_type(), entry.file_type().unwrap());
            (entry.file_name().into_string().unwrap(), found.is_file(), found.len())
        });
        let mut listed: Vec<_> = listed.collect();
        listed.sort();
        listed
    };
    let expected: Vec<_> = (0..1000).map(|file| (format!("{file:04}"), true, file)).collect();
    let files = expected.clone();
    let make = move |directory: &Path| {
        fs::create_dir(directory).unwrap();
        for (name, _, length) in &files {
            fs::write(directory.join(name), vec![1; *length as usize]).unwrap();
        }
        kinds(directory)
    };
    assert_eq!(mounted.does("d", make).await, expected);
    let grow = |directory: &Path| {
        fs::write(directory.join("0000"), [1; 5000]).unwrap();
        fs::remove_file(directory.join("0999")).unwrap();
        fs::create_dir(directory.join("below")).unwrap();
    };
    mounted.does("d", grow).await;
    let found = mounted.does("d", kinds).await;
    assert_eq!(found.len(), 1000);
    assert_eq!((&found[0], found[999].1), (&("0000".to_owned(), true, 5000), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_cuts_off_does_not_come_back_by_a_mapping() {
    let Some(mounted) = Mounted::start_to_map().await else { return };
    let client = mounted.store.client().await;
    fill(&mounted.store.session().await, "/a", pattern(1, 12_288)).await;
    let mut mapper = Mapper::start(&mounted.path("a"));
    mapper.does("store 9000 77");
    mapper.does("store 5000 78");
    mapper.does("store 4100 79");
    client.truncate("/a", 4500).await.unwrap();
    mapper.does("sync");
    let found = content(&client, "/a").await;
    assert_eq!((found.len(), found[4100]), (4500, 79));
    client.truncate("/a", 12_288).await.unwrap();
    let found = content(&client, "/a").await;
    assert!(found[4500..].iter().all(|&byte| byte == 0));
    assert_eq!(mapper.does("load 5000"), "0");
    assert_eq!(mismatches(&client).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_truncates_breaks_a_lease_and_is_named() {
    let Some(mounted) = Mounted::start().await else { return };
    let session = mounted.store.session().await;
    fill(&session, "/a", pattern(1, 10_000)).await;
    let held = lease(&session, "/a", 4096, 8192).await;
    let program = mounted.does("a", |path| {
        let program = Command::new("truncate").arg("-s").arg("5000").arg(path).spawn().unwrap();
        (program.id(), program.wait_with_output().unwrap().status.success())
    });
    let (pid, succeeded) = program.await;
    assert!(succeeded);
    // It is told on its own stream, which may be behind.
    tokio::task::block_in_place(|| wait_for(|| matches!(held.state(), LeaseState::Revoked { .. })));
    let breaks = session.client().breaks(10).await.unwrap();
    let breaker = breaks[0].breaker.as_ref().unwrap();
    assert_eq!((breaker.pid, breaker.program.as_str(), breaker.verified), (pid, "truncate", true));
    let metrics = mounted.store.metrics().await;
    let counted = r#"leasehold_breaks_ended_total{program="truncate",uid="0",outcome="fenced"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(mounted.does("a", |path| fs::metadata(path).unwrap().len()).await, 5000);
}

/// The kernel's own way to say so stops at fuser.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_waits_is_named_and_a_signal_ends_its_wait() {
    let patient = Settings { grace_ms: 60_000, ..harness::settings() };
    let Some(mounted) = Mounted::start_with(&patient).await else { return };
    let session = mounted.store.session().await;
    fill(&session, "/a", pattern(1, 10_000)).await;
    let _held = lease(&session, "/a", 0, 10_000).await;
    let began = Instant::now();
    let truncate = |path: &Path| Command::new("truncate").arg("-s").arg("0").arg(path).spawn().unwrap();
    let mut program = mounted.does("a", truncate).await;
    // Whoever asks why it hangs is told which program it is, and whom it waits for.
    let why = loop {
        if let [wait] = &session.client().why("/a").await.unwrap()[..] {
            break wait.clone();
        }
    };
    let who = why.who.expect("it is known who asks");
    assert_eq!((who.pid, who.program.as_str(), who.verified), (program.id(), "truncate", true));
    assert!(why.waits_for[0].contains(&format!("{}", std::process::id())), "{:?}", why.waits_for);
    let status = mounted.does("a", move |_| {
        let pid = rustix::process::Pid::from_child(&program);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        program.wait().unwrap()
    });
    assert!(!status.await.success());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(content(session.client(), "/a").await, pattern(1, 10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_while_it_is_open_lives_until_it_is_closed() {
    let Some(mounted) = Mounted::start().await else { return };
    let found = mounted.does("a", |path| {
        let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(path).unwrap();
        file.write_all(b"before").unwrap();
        fs::remove_file(path).unwrap();
        // A new file of that name is another one.
        fs::write(path, b"another").unwrap();
        file.write_all(b" and after").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut found = String::new();
        file.read_to_string(&mut found).unwrap();
        (found, file.metadata().unwrap().nlink(), fs::read(path).unwrap())
    });
    assert_eq!(found.await, ("before and after".to_owned(), 0, b"another".to_vec()));
    assert_eq!(mismatches(&mounted.store.client().await).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_stays_with_its_file_when_a_peer_renames_it_or_puts_another_in_its_place() {
    let Some(mounted) = Mounted::start().await else { return };
    let session = mounted.store.session().await;
    fill(&session, "/a", pattern(1, 5000)).await;
    fill(&session, "/b", pattern(2, 5000)).await;
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).unwrap();
    let file = mounted.does("a", move |path| open(path)).await;
    session.client().rename("/a", "/c").await.unwrap();
    session.client().rename("/b", "/a").await.unwrap();
    let file = mounted.does("a", move |_| {
        let mut found = vec![0; 5000];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, pattern(1, 5000));
        file.write_all_at(b"more", 5000).unwrap();
        file
    });
    let file = file.await;
    assert_eq!(content(session.client(), "/c").await[5000..], *b"more");
    assert_eq!(content(session.client(), "/a").await, pattern(2, 5000));

    session.client().rename("/a", "/c").await.unwrap();
    let refused = mounted.does("c", move |path| {
        assert_eq!(fs::read(path).unwrap(), pattern(2, 5000));
        (file.read_at(&mut [0; 10], 0).unwrap_err(), file.write_at(b"lost", 0).unwrap_err())
    });
    let (read, write) = refused.await;
    assert_eq!([&read, &write].map(Errno::from_io_error), [Some(Errno::STALE); 2], "{read}, {write}");
    assert_eq!(content(session.client(), "/c").await, pattern(2, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_permissions_times_and_attributes_are_kept() {
    let Some(mounted) = Mounted::start().await else { return };
    mounted
        .does("d", |directory| {
            fs::create_dir(directory).unwrap();
            let (a, b) = (directory.join("a"), directory.join("b"));
            fs::write(&a, b"bytes").unwrap();
            fs::set_permissions(&a, fs::Permissions::from_mode(0o640)).unwrap();
            fs::hard_link(&a, &b).unwrap();
            std::os::unix::fs::symlink("a", directory.join("link")).unwrap();
            std::os::unix::fs::chown(&a, Some(12), Some(34)).unwrap();
            rustix::fs::setxattr(&a, "user.what", b"value", rustix::fs::XattrFlags::CREATE).unwrap();
            let time = UNIX_EPOCH + Duration::new(1_000_000_000, 5);
            File::open(&a).unwrap().set_modified(time).unwrap();

            let (one, other) = (fs::metadata(&a).unwrap(), fs::metadata(&b).unwrap());
            assert_eq!((one.ino(), one.nlink(), one.mode() & 0o7777), (other.ino(), 2, 0o640));
            assert_eq!((one.uid(), one.gid(), one.modified().unwrap()), (12, 34, time));
            assert_eq!(fs::read_link(directory.join("link")).unwrap(), Path::new("a"));
            let mut value = [0; 16];
            assert_eq!(rustix::fs::getxattr(&a, "user.what", &mut value), Ok(5));
            let mut names: Vec<_> =
                fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["a", "b", "link"]);

            fs::rename(directory, directory.with_file_name("e")).unwrap();
            assert_eq!(fs::read(directory.with_file_name("e").join("b")).unwrap(), b"bytes");
            let not_empty = fs::remove_dir(directory.with_file_name("e")).unwrap_err();
            assert_eq!(Errno::from_io_error(&not_empty), Some(Errno::NOTEMPTY));
        })
        .await;
}

/// What `cp -p`, `tar` and `rsync -t` set was lost: the bytes came to the disk after it, and with them a new time.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_moves_the_time_at_once_and_a_time_that_was_set_stays() {
    let Some(mounted) = Mounted::start().await else { return };
    mounted
        .does("a", |path| {
            let mut file = File::create(path).unwrap();
            let long_ago = UNIX_EPOCH + Duration::new(1_000_000_000, 5);
            for set_before in [true, false] {
                if set_before {
                    file.set_modified(long_ago).unwrap();
                }
                let before = SystemTime::now();
                file.write_all(&[7; 5000]).unwrap();
                assert!(fs::metadata(path).unwrap().modified().unwrap() >= before, "it was written");
            }
            file.set_modified(long_ago).unwrap();
            assert_eq!(fs::metadata(path).unwrap().modified().unwrap(), long_ago);
            file.sync_all().unwrap();
            assert_eq!(
                fs::metadata(path).unwrap().modified().unwrap(),
                long_ago,
                "nothing was written since"
            );
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_exchanged_and_no_lease_is_broken() {
    let Some(mounted) = Mounted::start().await else { return };
    let session = mounted.store.session().await;
    fill(&session, "/a", pattern(1, 10_000)).await;
    let held = lease(&session, "/a", 0, 4096).await;
    mounted
        .does("", |root| {
            let (a, d, b) = (root.join("a"), root.join("d"), root.join("d/b"));
            fs::create_dir(&d).unwrap();
            fs::write(&b, b"from b").unwrap();
            let open = File::open(&b).unwrap();
            exchange(&a, &b).unwrap();
            assert_eq!(fs::read(&a).unwrap(), b"from b");
            assert_eq!(fs::metadata(&b).unwrap().len(), 10_000);
            // A file and a directory: what is in it goes along.
            exchange(&a, &d).unwrap();
            assert_eq!(fs::metadata(a.join("b")).unwrap().len(), 10_000);
            assert_eq!(fs::read(&d).unwrap(), b"from b");
            assert_eq!(open.metadata().unwrap().ino(), fs::metadata(&d).unwrap().ino());
            assert_eq!(exchange(&a, &root.join("nothing")), Err(Errno::NOENT));
            assert_eq!(exchange(&a, &a.join("b")), Err(Errno::INVAL));
        })
        .await;
    assert!(matches!(held.state(), LeaseState::Live), "{:?}", held.state());
    assert_eq!(content(session.client(), "/a/b").await, pattern(1, 10_000));
    assert_eq!(mismatches(session.client()).await, 0);
}

fn exchange(one: &Path, other: &Path) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, one, CWD, other, rustix::fs::RenameFlags::EXCHANGE)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_over_a_pipe_takes_its_name_and_one_of_a_pipe_breaks_the_leases_of_what_it_is_over() {
    let Some(mounted) = Mounted::start().await else { return };
    let session = mounted.store.session().await;
    fill(&session, "/b", pattern(1, 10_000)).await;
    let held = lease(&session, "/b", 0, 4096).await;
    mounted
        .does("", |root| {
            let (a, b, pipe) = (root.join("a"), root.join("b"), root.join("pipe"));
            fs::write(&a, b"from a").unwrap();
            let make =
                || rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0);
            make().unwrap();
            fs::rename(&a, &pipe).unwrap();
            assert_eq!(fs::read(&pipe).unwrap(), b"from a");
            fs::remove_file(&pipe).unwrap();
            make().unwrap();
            fs::rename(&pipe, &b).unwrap();
            assert!(fs::metadata(&b).unwrap().file_type().is_fifo());
        })
        .await;
    // It is told on its own stream, which may be behind.
    tokio::task::block_in_place(|| wait_for(|| matches!(held.state(), LeaseState::Revoked { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_as_long_as_the_kernel_has_it_and_no_longer() {
    let Some(mounted) = Mounted::start().await else { return };
    mounted
        .does("", |root| {
            // Step by step, since whole it is longer than the kernel takes at once. 15 parts of 255 bytes and a slash, and
            // one of 255: 4095.
            let part = "d".repeat(255);
            let mut directory = rustix::fs::open(root, OFlags::PATH, Mode::empty()).unwrap();
            for _ in 0..15 {
                rustix::fs::mkdirat(&directory, &part, Mode::from_raw_mode(0o700)).unwrap();
                directory = rustix::fs::openat(&directory, &part, OFlags::PATH, Mode::empty()).unwrap();
            }
            let create = OFlags::CREATE | OFlags::RDWR;
            let file = rustix::fs::openat(&directory, &part, create, Mode::from_raw_mode(0o600)).unwrap();
            rustix::io::write(&file, b"far down").unwrap();
            rustix::fs::fsync(&file).unwrap();
            let mut found = [0; 16];
            assert_eq!(rustix::io::pread(&file, &mut found, 0), Ok(8));
            rustix::fs::unlinkat(&directory, &part, AtFlags::empty()).unwrap();
            rustix::fs::mkdirat(&directory, &part, Mode::from_raw_mode(0o700)).unwrap();
            directory = rustix::fs::openat(&directory, &part, OFlags::PATH, Mode::empty()).unwrap();
            let beyond = rustix::fs::mkdirat(&directory, "d", Mode::from_raw_mode(0o700));
            assert_eq!(beyond, Err(Errno::NAMETOOLONG));
        })
        .await;
}

/// Locks are the kernel's own affair: of programs on this machine, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn locks_keep_out_other_processes_of_this_machine() {
    let Some(mounted) = Mounted::start().await else { return };
    mounted
        .does("a", |path| {
            let file = File::create(path).unwrap();
            let is_locked = || {
                let status = Command::new("flock").arg("--nonblock").arg(path).arg("true").status().unwrap();
                !status.success()
            };
            assert!(!is_locked());
            file.lock().unwrap();
            assert!(is_locked(), "flock(2)");
            file.unlock().unwrap();
            assert!(!is_locked());

            // Those of fcntl(2) are of a process, so SQLite's shell is the other one.
            let ask = |order: &str| {
                let answer = Command::new("sqlite3").arg(path).arg(order).output();
                answer.map(|answer| answer.status.success())
            };
            let Ok(made) = ask("CREATE TABLE t (n)") else {
                return eprintln!("SKIPPED: locks of fcntl(2): there is no sqlite3");
            };
            assert!(made);
            let holder = Command::new("sqlite3")
                .args(["-batch", "-bail"])
                .arg(path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let mut holder = holder.unwrap();
            let mut orders = holder.stdin.take().unwrap();
            orders.write_all(b"BEGIN EXCLUSIVE; SELECT 'held';\n\n").unwrap();
            let mut said = [0; 5];
            holder.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
            assert!(!ask("INSERT INTO t VALUES (1)").unwrap(), "it is held");
            drop(orders);
            assert!(holder.wait().unwrap().success());
            assert!(ask("INSERT INTO t VALUES (1)").unwrap());
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_punched_found_and_kept() {
    let Some(mounted) = Mounted::start().await else { return };
    mounted
        .does("a", |path| {
            use rustix::fs::FallocateFlags as Flags;
            let file =
                OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path).unwrap();
            file.write_all_at(&[7; 64 << 10], 0).unwrap();
            rustix::fs::fallocate(&file, Flags::PUNCH_HOLE | Flags::KEEP_SIZE, 16 << 10, 16 << 10).unwrap();
            assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)), Ok(16 << 10));
            assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(16 << 10)), Ok(32 << 10));
            rustix::fs::fallocate(&file, Flags::empty(), 0, 100 << 10).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 100 << 10);
            let refused = rustix::fs::fallocate(&file, Flags::UNSHARE_RANGE, 0, 4096);
            assert_eq!(refused, Err(Errno::OPNOTSUPP));
            let mut found = vec![1; 100 << 10];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found[16 << 10..32 << 10].iter().chain(&found[64 << 10..]).all(|&byte| byte == 0));
        })
        .await;
    assert_eq!(mismatches(&mounted.store.client().await).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_leaves_a_mount_that_the_next_one_takes_away() {
    if !can_mount() {
        return;
    }
    let (store, at) = (directory(), TempDir::new().unwrap());
    let start = || {
        let mut command = harness::serve(store.path());
        command.arg("--mount").arg(at.path()).stdout(Stdio::null()).stderr(Stdio::null());
        Process { child: command.spawn().unwrap(), socket: store.path().join(".leasehold/control.sock") }
    };
    let is_mounted =
        || fs::read_to_string("/proc/self/mounts").unwrap().contains(at.path().to_str().unwrap());
    let mut server = start();
    server.wait_until_it_serves().await;
    wait_for(is_mounted);
    let file = at.path().join("a");
    tokio::task::spawn_blocking(move || {
        let mut file = File::create(file).unwrap();
        file.write_all(b"acknowledged").unwrap();
        file.sync_all().unwrap();
    })
    .await
    .unwrap();
    // What the kernel has just been told it believes for a second, of a server that is gone, too.
    fs::metadata(at.path()).unwrap();
    server.kill();
    let refused = File::open(at.path().join("a")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));

    let mut server = start();
    server.wait_until_it_serves().await;
    let file = at.path().join("a");
    wait_for(|| fs::read(&file).is_ok());
    assert_eq!(fs::read(&file).unwrap(), b"acknowledged");
    let pid = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(server.child.wait().unwrap().success());
    assert!(!is_mounted(), "a server that ends unmounts");
}
