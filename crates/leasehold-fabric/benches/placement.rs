//! The fabric alone into frames, against plain TCP into the same frames: writes of 1 MiB, 16 in flight, server and client
//! as separate processes over the loopback.
//!
//! Runs are interleaved, and each compares with the plain one beside it, so that what the machine does meanwhile
//! meets both. `cargo bench -p leasehold-fabric --bench placement -- [--json] [--pairs N] [--gib N]`

use leasehold_fabric::conformance::{Memory, Server, recorder, send};
use leasehold_fabric::iwarp::{Config, Iwarp};
use leasehold_fabric::{Fabric, Remote, RemoteAccess, Source, Tag};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const CHUNK: usize = 1 << 20;
const DEPTH: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);
/// The bar: this much of plain TCP's speed with CRCs off.
const BAR: f64 = 0.85;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["server", "plain", chunks] => plain_server(chunks.parse().expect("a number")),
        ["client", "plain", address, chunks] => plain_client(address, chunks.parse().expect("a number")),
        ["server", how, chunks] => server(how == "crc", chunks.parse().expect("a number")),
        ["client", how, address, chunks] => client(how == "crc", address, chunks.parse().expect("a number")),
        _ => compare(&words),
    }
}

/// What one run came to.
#[derive(Clone, Copy)]
struct Run {
    gib_per_second: f64,
    server_cpu_per_gib: f64,
}

fn compare(words: &[&str]) {
    let option = |name: &str, or: usize| {
        let at = words.iter().position(|word| *word == name);
        at.map_or(or, |at| words[at + 1].parse().expect("a number"))
    };
    let (pairs, gib) = (option("--pairs", 7), option("--gib", 4));
    let hows = ["plain", "no-crc", "crc"];
    let mut runs: [Vec<Run>; 3] = Default::default();
    for _ in 0..pairs {
        for (how, runs) in hows.iter().zip(&mut runs) {
            runs.push(run(how, gib));
        }
    }
    let [plain, without, with] = &runs;
    let ratios = |runs: &[Run]| {
        let ratios = runs.iter().zip(plain).map(|(run, plain)| run.gib_per_second / plain.gib_per_second);
        sorted(ratios.collect())
    };
    let (without_ratio, with_ratio) = (ratios(without), ratios(with));
    let rows =
        [("plain TCP", plain, vec![1.0]), ("no CRC", without, without_ratio), ("CRC", with, with_ratio)];
    if words.contains(&"--json") {
        let rows: Vec<String> = rows.iter().map(|(name, runs, ratios)| json(name, runs, ratios)).collect();
        println!("[{}]", rows.join(","));
        return;
    }
    println!("1 MiB writes, {DEPTH} in flight, {gib} GiB a run, {pairs} interleaved runs each");
    println!("{:<10} {:>8} {:>14} {:>24}", "", "GiB/s", "server s/GiB", "of plain TCP (spread)");
    for (name, runs, ratios) in &rows {
        println!(
            "{name:<10} {:>8.2} {:>14.3} {:>10.3} ({:.3}-{:.3})",
            median(speeds(runs)),
            median(cpus(runs)),
            median(ratios.clone()),
            ratios[0],
            ratios[ratios.len() - 1],
        );
    }
    let reached = median(rows[1].2.clone());
    println!("bar: {BAR} of plain TCP without CRC: {}", if reached >= BAR { "reached" } else { "MISSED" });
}

fn json(name: &str, runs: &[Run], ratios: &[f64]) -> String {
    format!(
        r#"{{"name":"{name}","gib_per_second":{:.3},"server_cpu_seconds_per_gib":{:.4},"ratio":{:.4},"ratio_min":{:.4},"ratio_max":{:.4}}}"#,
        median(speeds(runs)),
        median(cpus(runs)),
        median(ratios.to_vec()),
        ratios[0],
        ratios[ratios.len() - 1],
    )
}

fn speeds(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(|run| run.gib_per_second).collect()
}

fn cpus(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(|run| run.server_cpu_per_gib).collect()
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: Vec<f64>) -> f64 {
    let values = sorted(values);
    values[values.len() / 2]
}

/// One run: two processes.
fn run(how: &str, gib: usize) -> Run {
    let chunks = (gib << 10).to_string();
    let mut server = spawn(&["server", how, &chunks]);
    let mut lines = BufReader::new(server.stdout.take().expect("a pipe")).lines();
    let mut line = || lines.next().expect("a line").expect("text");
    let address = line();
    let mut client = spawn(&["client", how, &address, &chunks]);
    let mut seconds = String::new();
    client.stdout.take().expect("a pipe").read_to_string(&mut seconds).expect("text");
    let cpu: f64 = line().parse().expect("a number");
    assert!(client.wait().expect("an end").success() && server.wait().expect("an end").success());
    let seconds: f64 = seconds.trim().parse().expect("a number");
    Run { gib_per_second: gib as f64 / seconds, server_cpu_per_gib: cpu / gib as f64 }
}

fn spawn(arguments: &[&str]) -> Child {
    let program = std::env::current_exe().expect("this program");
    Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().expect("another process")
}

/// Processor time of this process.
fn cpu() -> f64 {
    // SAFETY: all zeroes is a valid rusage, which the call fills in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn plain_server(chunks: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    let (mut stream, _) = listener.accept().expect("a client");
    let mut frames = vec![1u8; DEPTH * CHUNK];
    let before = cpu();
    for chunk in 0..chunks {
        let start = chunk % DEPTH * CHUNK;
        stream.read_exact(&mut frames[start..start + CHUNK]).expect("a chunk");
    }
    stream.write_all(b"x").expect("an answer");
    println!("{}", cpu() - before);
}

fn plain_client(address: &str, chunks: usize) {
    let mut stream = TcpStream::connect(address).expect("the server");
    stream.set_nodelay(true).expect("no delay");
    let source = vec![7u8; DEPTH * CHUNK];
    let began = Instant::now();
    for chunk in 0..chunks {
        let start = chunk % DEPTH * CHUNK;
        stream.write_all(&source[start..start + CHUNK]).expect("to be taken");
    }
    stream.read_exact(&mut [0]).expect("an answer");
    println!("{}", began.elapsed().as_secs_f64());
}

fn config(crc: bool) -> Config {
    Config { crc, workers: 1, ..Config::default() }
}

fn server(crc: bool, chunks: usize) {
    let fabric = Iwarp::new(config(crc)).expect("threads");
    let server = Server::new(&fabric, b"token");
    println!("{}", server.address());
    let record = server.record();
    let endpoint = record.endpoint();
    let frames = Memory::new(DEPTH * CHUNK, 1);
    let tag = endpoint.expose(frames.region(0, DEPTH * CHUNK), RemoteAccess::Write).expect("room");
    assert_eq!(record.message(), b"tag?");
    let before = cpu();
    send(&*endpoint, &tag.0.to_be_bytes()).expect("sent");
    assert_eq!(record.message(), b"done");
    send(&*endpoint, b"x").expect("sent");
    let spent = cpu() - before;
    let placed = fabric.counters().bytes_placed.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(placed, (chunks * CHUNK) as u64);
    let _ = record.closed();
    println!("{spent}");
}

fn client(crc: bool, address: &str, chunks: usize) {
    let fabric = Iwarp::new(config(crc)).expect("threads");
    let (recorder, record) = recorder();
    let address = address.parse().expect("an address");
    let (endpoint, _) = fabric.connect(address, b"token", Box::new(recorder), PATIENCE).expect("let in");
    let source = bytes::Bytes::from(vec![7u8; DEPTH * CHUNK]);
    send(&*endpoint, b"tag?").expect("sent");
    let tag = Tag(u32::from_be_bytes(record.message().try_into().expect("a tag")));
    let (free, freed) = channel();
    for _ in 0..DEPTH {
        free.send(()).expect("room");
    }
    let began = Instant::now();
    for chunk in 0..chunks {
        freed.recv().expect("a write to be done");
        let start = chunk % DEPTH * CHUNK;
        let free = free.clone();
        endpoint.write(
            Source::Bytes(source.slice(start..start + CHUNK)),
            Remote { tag, offset: start as u64 },
            Box::new(move |result| {
                result.expect("the connection to stand");
                let _ = free.send(());
            }),
        );
    }
    send(&*endpoint, b"done").expect("sent");
    assert_eq!(record.message(), b"x");
    println!("{}", began.elapsed().as_secs_f64());
}
