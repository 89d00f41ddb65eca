//! Files changed behind its back: whatever another tool, or the disk, does to a file or to its checksums, reads fail rather
//! than give wrong bytes, and both reads and scrubs say where, until the file is adopted.

mod harness;

use harness::{Process, fill, leasehold, pattern};
use leasehold_client::{Reason, Session};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

const BLOCKS: usize = 20;
const BYTES: usize = BLOCKS * 4096 - 1000;

/// A server, and the file `/a` with known bytes in its store.
struct Scene {
    directory: TempDir,
    server: Process,
}

impl Scene {
    async fn new() -> Scene {
        let directory = harness::directory();
        let server = Process::start(directory.path()).await;
        let session = Session::open(&server.client().await).await.unwrap();
        fill(&session, "/a", pattern(1, BYTES)).await;
        fill(&session, "/b", pattern(2, BYTES)).await;
        Scene { directory, server }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("files").join(name)
    }

    fn command(&self, arguments: &[&str]) -> Output {
        leasehold().arg("--socket").arg(&self.server.socket).args(arguments).output().expect("a process")
    }

    /// A clean end, after which all checksums are in the sidecars only.
    async fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.server.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.server.child.wait().expect("a child of ours");
    }

    async fn start(&mut self) {
        self.server = Process::start(self.directory.path()).await;
    }

    /// The sidecar of a file: there is one for each, and its header has the file's handle, so the newest content tells.
    fn sidecars(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in fs::read_dir(self.directory.path().join(".leasehold/sums")).unwrap() {
            for file in fs::read_dir(directory.unwrap().path()).unwrap() {
                found.push(file.unwrap().path());
            }
        }
        found.sort();
        found
    }

    /// Every way to the bytes of `/a` fails by code 5, and names the file; every block that can be read is as it was.
    async fn refuses(&self, what: &str, blocks: &[u64]) {
        let into = self.directory.path().join("got");
        let got = self.command(&["get", "/a", into.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&got.stderr);
        assert_eq!(got.status.code(), Some(5), "{what}: {text}");
        assert!(text.contains("a: ") && text.contains("checksum"), "{what}: {text}");
        assert!(!into.exists(), "{what}: nothing is there under the name");

        let client = self.server.client().await;
        let mut pieces = Box::pin(client.read("/a", 0, None).await.unwrap());
        let mut failed = None;
        let mut read = Vec::new();
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => read.extend_from_slice(&piece),
                Err(error) => failed = Some(error),
            }
        }
        let failed = failed.unwrap_or_else(|| panic!("{what}: a read gave {} bytes", read.len()));
        assert_eq!(failed.reason, Reason::Mismatch, "{what}: {failed}");
        assert!(pattern(1, BYTES)[..].starts_with(&read), "{what}: wrong bytes");

        let scrub = self.command(&["scrub", "/a"]);
        let said = String::from_utf8_lossy(&scrub.stdout);
        assert_eq!(scrub.status.code(), Some(5), "{what}: {said}");
        for block in blocks {
            let named = format!("a: bytes {}..{}: committed 0x", block * 4096, (block + 1) * 4096);
            assert!(said.contains(&named) && said.contains("found 0x"), "{what}: {said}");
        }
        for text in [text.as_ref(), &failed.message] {
            assert!(blocks.is_empty() || text.contains("committed 0x"), "{what}: {text}");
        }
        assert!(said.contains("a: "), "{what}: {said}");
        // The neighbour is left alone.
        let other = self.command(&["scrub", "/b"]);
        assert!(other.status.success(), "{what}: {}", String::from_utf8_lossy(&other.stdout));
    }

    /// The bytes on disk count from now on.
    async fn is_adopted(&self, what: &str) {
        let adopt = self.command(&["scrub", "--adopt", "/a"]);
        let said = String::from_utf8_lossy(&adopt.stdout);
        assert!(adopt.status.success(), "{what}: {said}{}", String::from_utf8_lossy(&adopt.stderr));
        let scrub = self.command(&["scrub", "/a"]);
        assert!(scrub.status.success(), "{what}: {}", String::from_utf8_lossy(&scrub.stdout));
        let into = self.directory.path().join("got");
        let got = self.command(&["get", "/a", into.to_str().unwrap()]);
        assert!(got.status.success(), "{what}: {}", String::from_utf8_lossy(&got.stderr));
        assert!(fs::read(&into).unwrap() == fs::read(self.file("a")).unwrap(), "{what}");
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Changes one byte in place, as a bad disk would, whatever it is.
fn rot(path: &Path, offset: u64) {
    let file = open(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
    file.sync_all().unwrap();
}

/// One byte, through a mapping.
fn store_by_mapping(path: &Path, offset: usize) {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    let (file, length) = (open(path), 4096);
    let (at, within) = (offset / length * length, offset % length);
    // SAFETY: a mapping of its own, of a block that the file has, unmapped below.
    unsafe {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        let mapped = mmap(std::ptr::null_mut(), length, flags, MapFlags::SHARED, &file, at as u64).unwrap();
        let byte = mapped.cast::<u8>().add(within);
        byte.write(!byte.read());
        msync(mapped, length, MsyncFlags::SYNC).unwrap();
        munmap(mapped, length).unwrap();
    }
}

/// Puts an older copy's bytes and its times in the place of the newer ones, in the same file.
fn restore(path: &Path, older: &[u8]) {
    let modified = fs::metadata(path).unwrap().modified().unwrap() - std::time::Duration::from_secs(86_400);
    let file = open(path);
    file.set_len(0).unwrap();
    file.write_all_at(older, 0).unwrap();
    file.set_modified(modified).unwrap();
    file.sync_all().unwrap();
}

type Tampering = (&'static str, fn(&Path), &'static [u64]);

const IN_DATA: &[Tampering] = &[
    ("a write", |path| open(path).write_all_at(b"other", 3 * 4096 + 100).unwrap(), &[3]),
    ("a store through a mapping", |path| store_by_mapping(path, 5 * 4096 + 7), &[5]),
    ("bit rot", |path| rot(path, 7 * 4096), &[7]),
    ("an older copy", |path| restore(path, &pattern(9, BYTES)), &[0, 19]),
    ("a truncation", |path| open(path).set_len(9 * 4096).unwrap(), &[9, 19]),
    ("a longer last block", |path| open(path).write_all_at(b"more", BYTES as u64).unwrap(), &[19]),
    (
        "a hole",
        |path| {
            use rustix::fs::{FallocateFlags, fallocate};
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(open(path), flags, 8192, 4096).unwrap();
        },
        &[2],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn bytes_changed_under_a_running_server_are_named_and_never_served_until_adopted() {
    for (what, tamper, blocks) in IN_DATA {
        let mut scene = Scene::new().await;
        tamper(&scene.file("a"));
        scene.refuses(what, blocks).await;
        scene.stop().await;
        scene.start().await;
        scene.refuses(&format!("{what}, and a restart"), blocks).await;
        scene.is_adopted(what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_changed_while_no_server_ran_are_named_and_never_served_until_adopted() {
    for (what, tamper, blocks) in IN_DATA {
        let mut scene = Scene::new().await;
        scene.stop().await;
        tamper(&scene.file("a"));
        scene.start().await;
        scene.refuses(what, blocks).await;
        scene.is_adopted(what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_grew_by_blocks_fails_where_it_grew_after_a_restart() {
    let mut scene = Scene::new().await;
    scene.stop().await;
    open(&scene.file("a")).write_all_at(&[7; 4096], BLOCKS as u64 * 4096).unwrap();
    scene.start().await;
    scene.refuses("growth", &[20]).await;
    scene.is_adopted("growth").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_swapped_checksums_are_named_and_nothing_is_read_by_them() {
    fn swap(sidecars: &[PathBuf]) {
        let bytes: Vec<_> = sidecars.iter().map(|path| fs::read(path).unwrap()).collect();
        fs::write(&sidecars[0], &bytes[1]).unwrap();
        fs::write(&sidecars[1], &bytes[0]).unwrap();
    }
    fn page(sidecars: &[PathBuf]) {
        sidecars.iter().for_each(|path| rot(path, 4096 + 300));
    }
    fn header(sidecars: &[PathBuf]) {
        sidecars.iter().for_each(|path| rot(path, 50));
    }
    type Damage = fn(&[PathBuf]);
    let cases: [(&str, Damage); 3] = [("a swap", swap), ("a page", page), ("a header", header)];
    for (what, tamper) in cases {
        let mut scene = Scene::new().await;
        scene.stop().await;
        tamper(&scene.sidecars());
        scene.start().await;
        for name in ["/a", "/b"] {
            let into = scene.directory.path().join("got");
            let got = scene.command(&["get", name, into.to_str().unwrap()]);
            let text = String::from_utf8_lossy(&got.stderr);
            assert_eq!(got.status.code(), Some(5), "{what}: {text}");
            assert!(text.contains(&name[1..]) && text.contains("sum"), "{what}: {text}");
            let client = scene.server.client().await;
            let read = match client.read(name, 0, None).await {
                Ok(pieces) => Box::pin(pieces).next().await.expect("an answer").map(drop),
                Err(error) => Err(error),
            };
            assert_eq!(read.unwrap_err().reason, Reason::Mismatch, "{what}");
            let scrub = scene.command(&["scrub", name]);
            let said = String::from_utf8_lossy(&scrub.stdout);
            assert_eq!(scrub.status.code(), Some(5), "{what}: {said}");
            assert!(said.contains("sidecar") || said.contains("checksums of"), "{what}: {said}");
        }
        scene.is_adopted(what).await;
    }
}

/// Names are not summed up: another file under the name is another file, and one without checksums is as it is. Both are
/// said by a scrub, and neither is ever judged by sums that are not its own.
#[tokio::test(flavor = "multi_thread")]
async fn another_file_under_the_name_and_a_file_without_checksums_are_told_as_adopted() {
    let mut scene = Scene::new().await;
    let new = scene.directory.path().join("new");
    fs::write(&new, pattern(3, 10_000)).unwrap();
    fs::rename(&new, scene.file("a")).unwrap();
    let scrub = scene.command(&["scrub", "/a"]);
    let said = String::from_utf8_lossy(&scrub.stdout);
    assert!(scrub.status.success() && said.contains("3 blocks had no checksum"), "{said}");
    scene.stop().await;
    scene.sidecars().iter().for_each(|path| fs::remove_file(path).unwrap());
    scene.start().await;
    let scrub = scene.command(&["scrub", "/b"]);
    let said = String::from_utf8_lossy(&scrub.stdout);
    assert!(scrub.status.success() && said.contains("20 blocks had no checksum"), "{said}");
}
