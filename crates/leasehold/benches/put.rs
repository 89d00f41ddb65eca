//! Durable `put` of 1 GiB against what bounds it: plain TCP, and the disk's O_DIRECT. Ratios in one run.
//!
//! Each round measures the three in turn, so that a machine whose speed drifts slows all of them. Client and server are
//! processes of their own. `--json` for programs; `--rounds N` (7), `--mebibytes N` (1024).

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use leasehold::server::Server;
use leasehold::server::settings::Settings;
use leasehold_client::{Access, AcquireOptions, ByteRange, Client, Session, Want};
use rustix::fs::OFlags;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const CHUNK: usize = 4 << 20;
/// Chunks under way at once: the put's leases, and the disk's writes.
const DEPTH: usize = 8;
const GIB: f64 = (1u64 << 30) as f64;
const ROLE: &str = "LEASEHOLD_BENCH_ROLE";

fn main() -> Result<()> {
    match std::env::var(ROLE).as_deref() {
        Ok("server") => return server(),
        Ok("sink") => return sink(),
        _ => {}
    }
    let arguments: Vec<String> = std::env::args().collect();
    let number = |flag: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == flag);
        at.and_then(|at| arguments.get(at + 1)).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (rounds, bytes) = (number("--rounds", 7), number("--mebibytes", 1024) << 20);
    let json = arguments.iter().any(|argument| argument == "--json");
    let scratch = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let chunk = Bytes::from((0..CHUNK).map(|at| (at * 31 % 251) as u8).collect::<Vec<u8>>());

    let mut found: [Vec<f64>; 4] = Default::default();
    measure(scratch.path(), &chunk, CHUNK * 16)?; // warm up
    for _ in 0..rounds {
        let [put, tcp, disk] = measure(scratch.path(), &chunk, bytes)?;
        for (column, value) in found.iter_mut().zip([put, tcp, disk, put / tcp.min(disk)]) {
            column.push(value);
        }
    }
    report(&mut found, bytes, json);
    Ok(())
}

/// GiB/s of a durable put, of plain TCP, and of O_DIRECT writes made durable.
fn measure(scratch: &Path, chunk: &Bytes, bytes: usize) -> Result<[f64; 3]> {
    let rate = |took: f64| bytes as f64 / GIB / took;
    Ok([rate(put(scratch, chunk, bytes)?), rate(tcp(chunk, bytes)?), rate(disk(scratch, bytes)?)])
}

fn report(found: &mut [Vec<f64>; 4], bytes: usize, json: bool) {
    let names =
        ["durable put, GiB/s", "plain TCP, GiB/s", "O_DIRECT, durable, GiB/s", "put / min(TCP, O_DIRECT)"];
    let spread = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        (values[0], values[values.len() / 2], values[values.len() - 1])
    };
    if json {
        let rows: Vec<_> = names
            .iter()
            .zip(found)
            .map(|(name, values)| {
                let (min, median, max) = spread(values);
                serde_json::json!({ "measure": name, "min": min, "median": median, "max": max })
            })
            .collect();
        return println!(
            "{}",
            serde_json::json!({ "bytes": bytes, "chunk": CHUNK, "depth": DEPTH, "rows": rows })
        );
    }
    let rounds = found[0].len();
    println!("durable put of {} MiB, chunks of {} MiB, {DEPTH} at once", bytes >> 20, CHUNK >> 20);
    println!("{:26} {:>8} {:>8} {:>8}   ({rounds} rounds)", "", "min", "median", "max");
    for (name, values) in names.iter().zip(found) {
        let (min, median, max) = spread(values);
        println!("{name:26} {min:8.2} {median:8.2} {max:8.2}");
    }
}

fn child(role: &str, argument: &Path) -> Result<(Child, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(ROLE, role)
        .arg(argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
    Ok((child, line.trim().to_owned()))
}

/// Ends a child that ends when its standard input does.
fn end(mut child: Child) -> Result<()> {
    drop(child.stdin.take());
    ensure!(child.wait()?.success(), "a child failed");
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// A server on a new store, until standard input ends.
fn server() -> Result<()> {
    let directory = PathBuf::from(std::env::args().nth(1).context("a directory")?);
    runtime()?.block_on(async {
        let any = "127.0.0.1:0".parse()?;
        let settings = Settings { listen: any, data: any, metrics: any, ..Settings::default() };
        let server = Server::start(&directory, &settings).await?;
        println!("{}", server.socket().display());
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        server.stop().await?;
        Ok(())
    })
}

fn put(scratch: &Path, chunk: &Bytes, bytes: usize) -> Result<f64> {
    let store = tempfile::TempDir::new_in(scratch)?;
    let (child, socket) = child("server", store.path())?;
    let took = runtime()?.block_on(async {
        let client = Client::connect(&leasehold_client::Server::Unix(socket.into())).await?;
        client.create("/put").await?;
        let session = Arc::new(Session::open(&client).await?);
        let next = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let mut lanes = tokio::task::JoinSet::new();
        for _ in 0..DEPTH {
            let (session, next, chunk) = (session.clone(), next.clone(), chunk.clone());
            lanes.spawn(async move {
                loop {
                    let start = next.fetch_add(CHUNK as u64, Ordering::Relaxed);
                    let Some(range) = ByteRange::new(start, (start + CHUNK as u64).min(bytes as u64)) else {
                        return anyhow::Ok(());
                    };
                    let want = Want { path: "/put".into(), range, access: Access::Overwrite };
                    let lease = session.acquire(&[want], AcquireOptions::default()).await?.remove(0);
                    lease.write(start, chunk.slice(..range.len() as usize)).await?;
                    lease.commit().await?;
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        session.sync("/put").await?;
        anyhow::Ok(started.elapsed().as_secs_f64())
    })?;
    end(child)?;
    Ok(took)
}

/// Takes one connection's bytes into buffers of the put's size, and says when it has them all.
fn sink() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let mut left = usize::try_from(u64::from_le_bytes(length))?;
    let mut frames = vec![0; CHUNK * DEPTH];
    let mut slot = 0;
    while left > 0 {
        let part = left.min(CHUNK);
        stream.read_exact(&mut frames[slot * CHUNK..][..part])?;
        slot = (slot + 1) % DEPTH;
        left -= part;
    }
    stream.write_all(&[1])?;
    Ok(())
}

fn tcp(chunk: &Bytes, bytes: usize) -> Result<f64> {
    let (child, address) = child("sink", Path::new("-"))?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let started = Instant::now();
    stream.write_all(&(bytes as u64).to_le_bytes())?;
    let mut left = bytes;
    while left > 0 {
        let part = left.min(CHUNK);
        stream.write_all(&chunk[..part])?;
        left -= part;
    }
    stream.read_exact(&mut [0])?;
    let took = started.elapsed().as_secs_f64();
    end(child)?;
    Ok(took)
}

/// The same bytes into a new file, by as many threads as the put has leases, durable at the end: by a flush at the end,
/// or by flushing each write, whichever is faster here.
fn disk(scratch: &Path, bytes: usize) -> Result<f64> {
    let flushed_at_the_end = disk_with(scratch, bytes, OFlags::DIRECT)?;
    Ok(flushed_at_the_end.min(disk_with(scratch, bytes, OFlags::DIRECT | OFlags::DSYNC)?))
}

fn disk_with(scratch: &Path, bytes: usize, flags: OFlags) -> Result<f64> {
    let file = tempfile::NamedTempFile::new_in(scratch)?;
    let flags = flags.bits().cast_signed();
    let direct = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(file.path())?;
    direct.set_len(bytes as u64)?;
    let next = AtomicU64::new(0);
    let lane = || -> std::io::Result<()> {
        let memory = leasehold_client::Buffer::new(CHUNK); // aligned for O_DIRECT
        loop {
            let start = next.fetch_add(CHUNK as u64, Ordering::Relaxed);
            if start >= bytes as u64 {
                return Ok(());
            }
            let part = (bytes as u64 - start).min(CHUNK as u64) as usize;
            direct.write_all_at(&memory.as_slice()[..part], start)?;
        }
    };
    let started = Instant::now();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..DEPTH).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().expect("a lane does not panic"))
    })?;
    direct.sync_data()?;
    Ok(started.elapsed().as_secs_f64())
}
