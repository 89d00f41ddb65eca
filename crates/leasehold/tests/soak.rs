//! Everything at once: clients that write by leases and by calls, read both ways, hold on to leases that others want, let go, fall
//! silent; breakers that truncate, punch and zero; the server killed and started again. An oracle knows every block that
//! was acknowledged, and judges every block that is read.
//!
//! `LEASEHOLD_SOAK_SECONDS` sets for how long (20 if not set; `cargo xtask soak --minutes N` is the long way). The last third of the
//! time belongs to one server, whose memory must not grow.

mod harness;

use bytes::Bytes;
use harness::{Process, pattern, serve, want};
use leasehold_client::{Access, AcquireOptions, Buffer, Client, CommitError, OnConflict, Session};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::RwLock;
use tokio_stream::StreamExt as _;

const CLIENTS: u64 = 8;
const FILES: u64 = 4;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 512;
/// The most that one operation touches.
const SPAN: u64 = 48;
const GRACE_MS: &str = "200";
/// One server may grow by so much in its time.
const GROWTH_MAX: u64 = 48 << 20;

/// What a block holds: zeros, or the bytes of a version.
type Version = u64;

/// Bytes that say which file, block and version they are of, and that no others agree with.
fn block(file: u64, block: u64, version: Version) -> Bytes {
    if version == 0 {
        return Bytes::from_static(&[0; BLOCK]);
    }
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.extend(&pattern(version ^ file << 60 ^ block << 40, BLOCK - 8));
    bytes.into()
}

/// One change of one block, as far as it is known. Times are the oracle's.
#[derive(Clone, Copy, Debug)]
struct Happened {
    version: Version,
    /// Not before this.
    from: u64,
    /// Not after this; without an answer, at any time until the server is gone.
    to: u64,
    acknowledged: bool,
    durable: bool,
}

/// What every block may hold, by what was answered to whom and when.
struct Oracle {
    time: AtomicU64,
    versions: AtomicU64,
    /// When the reads began that are going on.
    reading: Mutex<BTreeSet<u64>>,
    files: Vec<Mutex<Vec<Vec<Happened>>>>,
}

/// A read that goes on until this is dropped: what it may show is not forgotten.
struct Reading<'a> {
    oracle: &'a Oracle,
    began: u64,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.oracle.reading.lock().unwrap().remove(&self.began);
    }
}

/// A change that was asked for.
struct Asked {
    file: u64,
    blocks: std::ops::Range<u64>,
    version: Version,
    from: u64,
}

impl Oracle {
    fn new() -> Oracle {
        let empty = Happened { version: 0, from: 0, to: 0, acknowledged: true, durable: true };
        let file = || Mutex::new(vec![vec![empty]; BLOCKS as usize]);
        Oracle {
            time: AtomicU64::new(1),
            versions: AtomicU64::new(1),
            reading: Mutex::default(),
            files: (0..FILES).map(|_| file()).collect(),
        }
    }

    fn now(&self) -> u64 {
        self.time.fetch_add(1, Ordering::SeqCst)
    }

    fn read(&self) -> Reading<'_> {
        // In one step, so that nobody takes this for later than what has been forgotten.
        let mut reading = self.reading.lock().unwrap();
        let began = self.now();
        reading.insert(began);
        Reading { oracle: self, began }
    }

    fn version(&self) -> Version {
        self.versions.fetch_add(1, Ordering::SeqCst)
    }

    fn ask(&self, file: u64, blocks: std::ops::Range<u64>, version: Version) -> Asked {
        let from = self.now();
        let asked = Happened { version, from, to: u64::MAX, acknowledged: false, durable: false };
        let mut all = self.files[file as usize].lock().unwrap();
        blocks.clone().for_each(|block| all[block as usize].push(asked));
        Asked { file, blocks, version, from }
    }

    fn settle(&self, asked: &Asked, what: impl Fn(&mut Vec<Happened>, usize)) {
        let mut all = self.files[asked.file as usize].lock().unwrap();
        for block in asked.blocks.clone() {
            let happened = &mut all[block as usize];
            let same = |other: &Happened| other.version == asked.version && other.from == asked.from;
            // After the server was gone, only whether it may have happened is known.
            if let Some(at) = happened.iter().position(same) {
                what(happened, at);
            }
        }
    }

    fn acknowledged(&self, asked: &Asked) {
        let reading = self.reading.lock().unwrap();
        let to = self.now();
        let oldest = reading.first().copied().unwrap_or(to);
        drop(reading);
        self.settle(asked, |happened, at| {
            happened[at] = Happened { to, acknowledged: true, ..happened[at] };
            // What ended before something durable began is gone for good, and nobody is reading it.
            let gone = happened.iter().filter(|one| one.durable && one.to < oldest).map(|one| one.from).max();
            happened.retain(|one| one.to >= gone.unwrap_or(0));
        });
    }

    /// It leaves no trace.
    fn refused(&self, asked: &Asked) {
        self.settle(asked, |happened, at| {
            happened.remove(at);
        });
    }

    /// An fsync that was asked for then was answered.
    fn synced(&self, file: u64, asked: u64) {
        let mut all = self.files[file as usize].lock().unwrap();
        for happened in all.iter_mut().flatten().filter(|one| one.acknowledged && one.to < asked) {
            happened.durable = true;
        }
    }

    /// What a block may show to a read that began then, and is over.
    fn may_show(&self, file: u64, block: u64, began: u64) -> Vec<Version> {
        let all = self.files[file as usize].lock().unwrap();
        let happened = &all[block as usize];
        // What began last of all that was over before.
        let known = happened.iter().filter(|one| one.acknowledged && one.to < began).map(|one| one.from);
        let known = known.max().unwrap_or(0);
        happened.iter().filter(|one| one.to >= known).map(|one| one.version).collect()
    }

    /// Judges the blocks that a read showed.
    fn judge(&self, file: u64, first: u64, blocks: u64, bytes: &[u8], read: &Reading<'_>, how: &str) {
        for number in first..first + blocks {
            let start = (number - first) as usize * BLOCK;
            let mut found = bytes.get(start..bytes.len().min(start + BLOCK)).unwrap_or_default().to_vec();
            // Past the end of file.
            found.resize(BLOCK, 0);
            let version = u64::from_le_bytes(*found.first_chunk().expect("a block"));
            let may = self.may_show(file, number, read.began);
            let whole = found == block(file, number, version);
            if !may.contains(&version) || !whole {
                let happened = self.files[file as usize].lock().unwrap()[number as usize].clone();
                panic!(
                    "{how} from {} on: block {number} of file {file} shows version {version}{}, and may show {may:?}: \
                     {happened:?}",
                    read.began,
                    if whole { "" } else { " in part" },
                );
            }
        }
    }

    /// The server has gone, and nothing is under way: what was not durable may be there or not.
    fn server_gone(&self) {
        let now = self.now();
        for file in &self.files {
            for happened in file.lock().unwrap().iter_mut() {
                let known = happened.iter().filter(|one| one.durable).map(|one| one.from).max().unwrap_or(0);
                happened.retain(|one| one.to >= known);
                for one in happened.iter_mut() {
                    *one = Happened { from: now, to: now, acknowledged: true, durable: true, ..*one };
                }
            }
        }
    }
}

/// How often each thing was done, and was refused.
#[derive(Default)]
struct Tally(Mutex<BTreeMap<&'static str, [u64; 2]>>, AtomicU64);

impl Tally {
    fn add(&self, what: &'static str, done: bool) {
        self.0.lock().unwrap().entry(what).or_default()[usize::from(!done)] += 1;
    }
}

/// What all share.
struct World {
    oracle: Oracle,
    tally: Tally,
    /// Held by whoever asks the server for something, so that a new server begins with nothing under way.
    under_way: RwLock<()>,
    over: AtomicBool,
}

/// One seed gives one sequence.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

fn path(file: u64) -> String {
    format!("/file{file}")
}

/// One client: with a session until that is lost, then with another.
async fn client(world: Arc<World>, socket: std::path::PathBuf, seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut session: Option<Session> = None;
    while !world.over.load(Ordering::SeqCst) {
        let _asking = world.under_way.read().await;
        let current = match session.take() {
            Some(current) if current.ended().is_none() => current,
            _ => match open(&socket).await {
                Some(opened) => opened,
                None => continue,
            },
        };
        let (what, done) = one_thing(&world, &current, &mut random).await;
        world.tally.add(what, done);
        match random.below(400) {
            // It falls silent: its connection goes, and nobody says so.
            0 => drop(current),
            1 => current.close().await,
            _ => session = Some(current),
        }
    }
}

async fn open(socket: &Path) -> Option<Session> {
    let client = Client::connect(&leasehold_client::Server::Unix(socket.to_owned())).await.ok()?;
    Session::open(&client).await.ok()
}

async fn one_thing(world: &World, session: &Session, random: &mut Random) -> (&'static str, bool) {
    let (oracle, client) = (&world.oracle, session.client());
    let file = random.below(FILES);
    let path = path(file);
    let first = random.below(BLOCKS);
    let blocks = first..(first + 1 + random.below(SPAN)).min(BLOCKS);
    let count = blocks.end - blocks.start;
    let range = harness::range(blocks.start * BLOCK as u64, blocks.end * BLOCK as u64);
    let on_conflict = match random.below(3) {
        0 => OnConflict::Refuse,
        1 => OnConflict::Wait,
        _ => OnConflict::Break,
    };
    let options = AcquireOptions { on_conflict, wait: Duration::from_secs(2) };
    let whole = |version| {
        let all: Vec<Bytes> = blocks.clone().map(|number| block(file, number, version)).collect();
        Bytes::from(all.concat())
    };
    // The server's word, or none: what is not known to have failed may have happened.
    let settle = |asked: &Asked, result: Result<(), leasehold_client::CallError>| {
        let done = result.is_ok();
        match result {
            Ok(()) => oracle.acknowledged(asked),
            Err(error) if error.is_lost() || error.reason == leasehold_client::Reason::Other => {}
            Err(_) => oracle.refused(asked),
        }
        done
    };
    match random.below(20) {
        0..8 => {
            let version = oracle.version();
            let wants = [want(&path, range.start(), range.end(), Access::Overwrite)];
            let Ok(mut leases) = session.acquire(&wants, options).await else { return ("lease", false) };
            let lease = leases.remove(0);
            // Now and then somebody is slow, and may lose the lease meanwhile.
            if random.below(30) == 0 {
                let _ = tokio::time::timeout(Duration::from_millis(600), lease.revoked()).await;
            }
            if lease.write(range.start(), whole(version)).await.is_err() {
                return ("write by a lease", false);
            }
            if random.below(10) == 0 {
                return ("release", lease.release().await.is_ok());
            }
            let asked = oracle.ask(file, blocks.clone(), version);
            match lease.commit().await {
                Ok(_) => {
                    oracle.acknowledged(&asked);
                    world.tally.1.fetch_add(count * BLOCK as u64, Ordering::Relaxed);
                    ("commit", true)
                }
                Err(CommitError::Closed(_)) => ("commit", false),
                Err(_) => {
                    oracle.refused(&asked);
                    ("commit", false)
                }
            }
        }
        8 => {
            let asked = oracle.ask(file, blocks.clone(), oracle.version());
            let written = client.write(&path, range.start(), whole(asked.version)).await;
            // Of a write in pieces, some may be there.
            match written {
                Ok(_) => oracle.acknowledged(&asked),
                Err(_) => return ("write by a call", false),
            }
            ("write by a call", true)
        }
        9 => {
            let asked = oracle.ask(file, blocks.clone(), 0);
            ("punch", settle(&asked, client.punch(&path, range).await))
        }
        10 => {
            let asked = oracle.ask(file, blocks.clone(), 0);
            ("zero", settle(&asked, client.zero(&path, range).await))
        }
        11 if random.below(4) == 0 => {
            let asked = oracle.ask(file, blocks.start..BLOCKS, 0);
            ("truncate", settle(&asked, client.truncate(&path, range.start()).await))
        }
        11..14 => {
            let began = oracle.now();
            let done = session.sync(&path).await.is_ok();
            if done {
                oracle.synced(file, began);
            }
            ("fsync", done)
        }
        14..18 => {
            let read = oracle.read();
            let Ok(pieces) = client.read(&path, range.start(), Some(range.len())).await else {
                return ("read by a call", false);
            };
            let (mut pieces, mut bytes) = (Box::pin(pieces), Vec::new());
            while let Some(piece) = pieces.next().await {
                match piece {
                    Ok(piece) => bytes.extend_from_slice(&piece),
                    Err(error) => {
                        assert_ne!(error.reason, leasehold_client::Reason::Mismatch, "{error}");
                        return ("read by a call", false);
                    }
                }
            }
            oracle.judge(file, blocks.start, count, &bytes, &read, "read by a call");
            ("read by a call", true)
        }
        _ => {
            let reading = oracle.read();
            let wants = [want(&path, range.start(), range.end(), Access::Read)];
            let Ok(mut leases) = session.acquire(&wants, options).await else { return ("lease", false) };
            let lease = leases.remove(0);
            let buffer = Buffer::new(range.len() as usize);
            let read = lease.read(range, buffer).await;
            let done = read.is_ok();
            if let Ok(buffer) = read {
                oracle.judge(file, blocks.start, count, buffer.as_slice(), &reading, "read by a lease");
            }
            ("read by a lease", done & lease.release().await.is_ok())
        }
    }
}

/// A server's memory, in bytes, and how many descriptors it has open.
fn size_of(process: &Process) -> Option<(u64, u64)> {
    let of = Path::new("/proc").join(process.child.id().to_string());
    let pages = std::fs::read_to_string(of.join("statm")).ok()?;
    let resident = pages.split(' ').nth(1)?.parse::<u64>().ok()? * 4096;
    Some((resident, of.join("fd").read_dir().ok()?.count() as u64))
}

async fn start(directory: &Path) -> Process {
    let mut server = serve(directory);
    Process::start_with(directory, server.args(["--grace-ms", GRACE_MS])).await
}

fn seconds() -> u64 {
    std::env::var("LEASEHOLD_SOAK_SECONDS").map_or(20, |seconds| seconds.parse().expect("a number"))
}

/// What the breaks came to.
async fn outcomes(client: &Client) -> BTreeMap<String, u64> {
    let mut outcomes = BTreeMap::new();
    for row in client.breaks(1_000_000).await.expect("the break log") {
        *outcomes.entry(row.outcome).or_default() += 1;
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_many_clients_breakers_and_kills_do_no_acknowledged_byte_is_lost() {
    let directory = harness::directory();
    let mut server = start(directory.path()).await;
    let setup = server.client().await;
    for file in 0..FILES {
        setup.create(&path(file)).await.expect("a file");
        setup.sync(&path(file)).await.expect("durable");
    }
    let world = Arc::new(World {
        oracle: Oracle::new(),
        tally: Tally::default(),
        under_way: RwLock::new(()),
        over: AtomicBool::new(false),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|seed| tokio::spawn(client(world.clone(), server.socket.clone(), seed + 1)))
        .collect();
    let (began, whole) = (Instant::now(), Duration::from_secs(seconds()));
    let mut lives = Random(7);
    let mut kills = [0; 2];
    println!("| at | server | resident MiB | descriptors |\n|---|---|---|---|");
    let tell = |server: &Process, what: &str| {
        let size = size_of(server).expect("it runs");
        println!("| {} s | {what} | {} | {} |", began.elapsed().as_secs(), size.0 >> 20, size.1);
        size
    };
    // Arbitrary times: nothing waits for anything.
    while began.elapsed() < whole * 2 / 3 {
        let life = whole / 60 + Duration::from_millis(1000 + lives.below(2000));
        tokio::time::sleep(life).await;
        assert!(
            clients.iter().all(|client| !client.is_finished()),
            "a client has found something: see above"
        );
        let hard = lives.below(3) > 0;
        tell(&server, if hard { "killed" } else { "stopped" });
        kills[usize::from(hard)] += 1;
        if hard {
            server.kill();
        } else {
            let pid = rustix::process::Pid::from_child(&server.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a child of ours");
            let status = server.child.wait().expect("a child of ours");
            assert!(status.success(), "a stop drains: {status}");
        }
        let nothing_under_way = world.under_way.write().await;
        world.oracle.server_gone();
        server = start(directory.path()).await;
        drop(nothing_under_way);
    }
    tokio::time::sleep(whole / 12).await;
    let before = tell(&server, "the last, warm");
    while began.elapsed() < whole {
        tokio::time::sleep(whole / 12).await;
        tell(&server, "the last");
    }
    let after = tell(&server, "at the end");
    world.over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("a client has found something: see above");
    }
    let client = server.client().await;
    for file in 0..FILES {
        let read = world.oracle.read();
        let bytes = harness::content(&client, &path(file)).await;
        world.oracle.judge(file, 0, BLOCKS, &bytes, &read, "at the end");
    }
    assert_eq!(harness::mismatches(&client).await, 0, "blocks that do not match their checksums");
    harness::wait_for(|| size_of(&server).is_some_and(|size| size.1 <= before.1));
    let status = client.status().await.expect("a status");
    let committed = world.tally.1.load(Ordering::Relaxed);
    println!("\n| what | done | refused or cut off |\n|---|---|---|");
    for (what, [done, not]) in &*world.tally.0.lock().unwrap() {
        println!("| {what} | {done} | {not} |");
    }
    let rate = committed as f64 / 1e6 / began.elapsed().as_secs_f64();
    println!(
        "\n{} s; {} kills and {} stops; {} MB committed by leases ({rate:.1} MB/s); breaks: {:?}; {} leases at the end",
        began.elapsed().as_secs(),
        kills[1],
        kills[0],
        committed / 1_000_000,
        outcomes(&client).await,
        status.leases,
    );
    assert!(kills[0] + kills[1] > 0 && committed > 0, "nothing was tried");
    let grown = after.0.saturating_sub(before.0);
    assert!(grown < GROWTH_MAX, "the server grew by {grown} bytes");
}

/// What the oracle must notice: else the above shows nothing.
#[test]
fn the_oracle_notices_what_is_lost_late_torn_or_elsewhere() {
    let oracle = Oracle::new();
    let write = |version| {
        let asked = oracle.ask(0, 5..6, version);
        oracle.acknowledged(&asked);
        asked
    };
    let shows = |bytes: &[u8], began: u64| {
        let read = Reading { oracle: &oracle, began };
        let judged = std::panic::AssertUnwindSafe(|| oracle.judge(0, 5, 1, bytes, &read, "a read"));
        std::panic::catch_unwind(judged).is_ok()
    };
    write(1);
    let between = oracle.now();
    write(2);
    let after = oracle.now();
    assert!(shows(&block(0, 5, 2), after) && !shows(&block(0, 5, 1), after) && !shows(&[0; BLOCK], after));
    assert!(shows(&block(0, 5, 1), between), "a read that began before may be of before");
    assert!(!shows(&block(0, 6, 2), after) && !shows(&block(1, 5, 2), after), "bytes of elsewhere");
    let torn = [&block(0, 5, 2)[..512], &block(0, 5, 1)[512..]].concat();
    assert!(!shows(&torn, after));
    // Nobody knows what became of it, until it is told that nothing did.
    let lost = oracle.ask(0, 5..6, 3);
    assert!(shows(&block(0, 5, 3), after) && shows(&block(0, 5, 2), after));
    oracle.refused(&lost);
    assert!(!shows(&block(0, 5, 3), after));
    // What was not durable may be gone with the server, what was may not.
    oracle.synced(0, oracle.now());
    write(4);
    oracle.server_gone();
    let again = oracle.now();
    assert!(shows(&block(0, 5, 4), again) && shows(&block(0, 5, 2), again) && !shows(&block(0, 5, 1), again));
}
