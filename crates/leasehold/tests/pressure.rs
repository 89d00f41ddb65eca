//! A server whose memory is limited by a cgroup: the kernel takes its page cache away, again and again, while it works.

mod harness;

use harness::{Process, content, mismatches, or_wait, pattern, serve, want};
use leasehold_client::{Access, Session};
use std::error::Error;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{fs, io};

const MIB: u64 = 1 << 20;
/// The arena, and what the server and the kernel need besides for what is done here. The rest is cache.
const LIMIT: u64 = 64 * MIB + 64 * MIB;
const FILE: u64 = 48 * MIB;
const CHUNK: u64 = 4 * MIB;
const FILES: u64 = 4;

/// A cgroup of our own, of either version.
struct Group {
    path: PathBuf,
    limit: &'static str,
    hits: &'static str,
}

impl Group {
    /// `None`, and a word to the reader, where there can be none.
    fn for_test(name: &str) -> Option<Group> {
        let made = || -> io::Result<Group> {
            let own = format!("leasehold-test-{}-{}", std::process::id(), name.len());
            let root = Path::new("/sys/fs/cgroup");
            let group = if root.join("cgroup.controllers").exists() {
                Group { path: root.join(own), limit: "memory.max", hits: "memory.events" }
            } else {
                let path = root.join("memory").join(own);
                Group { path, limit: "memory.limit_in_bytes", hits: "memory.failcnt" }
            };
            fs::create_dir(&group.path)?;
            group.limit(LIMIT)?;
            Ok(group)
        };
        made().inspect_err(|error| eprintln!("SKIPPED {name}: no cgroup for memory: {error}")).ok()
    }

    fn limit(&self, bytes: u64) -> io::Result<()> {
        fs::write(self.path.join(self.limit), bytes.to_string())
    }

    /// `command`, in the group from its first byte of memory on.
    fn run(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.path.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// How often the kernel had to take memory back for the limit's sake.
    fn hits(&self) -> u64 {
        let text = fs::read_to_string(self.path.join(self.hits)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("max ")).unwrap_or(text.trim());
        line.parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is empty once the server was waited for.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Somebody in the group who reads a large file again and again, so that its memory is never enough.
struct Reader(Child);

impl Reader {
    fn start(group: &Group, directory: &Path) -> Reader {
        let path = directory.join("large");
        fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let mut cat = Command::new("cat");
        cat.args(vec![path; 1000]);
        Reader(group.run(&cat).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes a chunk of a file, and makes it durable.
async fn put(session: &Session, path: &str, start: u64, seed: u64) -> Result<(), Box<dyn Error>> {
    let want = want(path, start, start + CHUNK, Access::Overwrite);
    let lease = session.acquire(&[want], or_wait(10_000)).await?.remove(0);
    lease.write(start, pattern(seed, CHUNK as usize)).await?;
    lease.commit().await?;
    session.sync(path).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_hardly_any_memory_for_a_cache_does_its_work() {
    let Some(group) = Group::for_test("a_server_with_hardly_any_memory_for_a_cache_does_its_work") else {
        return;
    };
    let directory = harness::directory();
    let mut inside = group.run(&serve(directory.path()));
    let mut server = Process::start_with(directory.path(), &mut inside).await;
    let scratch = harness::directory();
    let _reader = Reader::start(&group, scratch.path());
    let client = server.client().await;
    let session = Session::open(&client).await.unwrap();
    let names: Vec<String> = (0..FILES).map(|file| format!("/{file}")).collect();
    for (seed, path) in names.iter().enumerate() {
        client.create(path).await.unwrap();
        for start in (0..FILE).step_by(CHUNK as usize) {
            put(&session, path, start, seed as u64 + start).await.unwrap();
        }
    }
    // A clone is copied where the filesystem cannot share blocks.
    client.clone_file("/0", "/clone", false).await.unwrap();
    for (seed, path) in names.iter().map(String::as_str).enumerate().chain([(0, "/clone")]) {
        let found = content(&client, path).await;
        for start in (0..FILE).step_by(CHUNK as usize) {
            let at = start as usize..(start + CHUNK) as usize;
            assert!(found[at] == pattern(seed as u64 + start, CHUNK as usize)[..], "{path} at {start}");
        }
    }
    assert_eq!(mismatches(&client).await, 0);
    let hits = group.hits();
    println!("the limit was hit {hits} times");
    assert!(hits > 0, "there was no pressure");
    assert!(server.child.try_wait().unwrap().is_none(), "it lives");
    server.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_the_kernel_kills_for_its_memory_loses_nothing_that_was_durable() {
    let name = "a_server_that_the_kernel_kills_for_its_memory_loses_nothing_that_was_durable";
    let Some(group) = Group::for_test(name) else { return };
    let directory = harness::directory();
    let mut server = Process::start_with(directory.path(), &mut group.run(&serve(directory.path()))).await;
    let client = server.client().await;
    let session = Session::open(&client).await.unwrap();
    client.create("/a").await.unwrap();
    let (mut durable, mut limit) = (0, LIMIT);
    while put(&session, "/a", durable * CHUNK, durable).await.is_ok() {
        durable += 1;
        assert!(durable < 200, "it lives with {limit} bytes");
        // Where the kernel does not find so much to take away, the limit stays (version 1), and the server is at its brink.
        limit = if group.limit(limit - MIB).is_ok() { limit - MIB } else { limit };
    }
    let status = server.child.wait().unwrap();
    assert_eq!(status.signal(), Some(rustix::process::Signal::KILL.as_raw()), "{status}");
    println!("{durable} chunks were durable; killed with room for {} MiB", limit / MIB);
    assert!(durable > 0);

    let server = Process::start(directory.path()).await;
    let client = server.client().await;
    let found = content(&client, "/a").await;
    for chunk in 0..durable {
        let at = (chunk * CHUNK) as usize..((chunk + 1) * CHUNK) as usize;
        assert!(found[at] == pattern(chunk, CHUNK as usize)[..], "chunk {chunk}");
    }
    assert_eq!(mismatches(&client).await, 0);
}
