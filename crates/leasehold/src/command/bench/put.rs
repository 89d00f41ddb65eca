//! Rows about writing: a durable put against what bounds it, and against what one would write by hand.

use super::figure::{Bar, Found, Row, Unit};
use super::get::get_once;
use super::process::{Peer, Served, Serving};
use super::{CHUNK, Context, DEPTH, GIB, patient, source, tcp};
use bytes::Bytes;
use leasehold_client::{Access, ByteRange, Client, Session, Want};
use leasehold_engine::arena::{Arena, Pages};
use leasehold_engine::bare::{BareFile, BareMemory, Flush, How};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::task::JoinSet;

/// Writes `bytes` bytes into a new file, in chunks, many at once; returns how many seconds passed until they were durable.
pub(super) async fn put_once(client: &Client, path: &str, bytes: u64) -> anyhow::Result<f64> {
    client.create(path).await?;
    let session = Arc::new(Session::open(client).await?);
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    put_from(&session, path, &next, bytes).await?;
    session.sync(path).await?;
    Ok(began.elapsed().as_secs_f64())
}

/// Takes chunks from `next` until `bytes` are gone; returns how many bytes it put.
pub(super) async fn put_from(
    session: &Arc<Session>,
    path: &str,
    next: &Arc<AtomicU64>,
    bytes: u64,
) -> anyhow::Result<u64> {
    let mut lanes = JoinSet::new();
    for _ in 0..DEPTH {
        let (session, next, path) = (session.clone(), next.clone(), path.to_owned());
        lanes.spawn(async move {
            let mut put = 0;
            loop {
                let start = next.fetch_add(CHUNK as u64, Ordering::Relaxed);
                let Some(range) = ByteRange::new(start, (start + CHUNK as u64).min(bytes)) else {
                    return anyhow::Ok(put);
                };
                let index = (start / CHUNK as u64) as usize % DEPTH;
                let data = Bytes::from_static(&source()[index]).slice(..range.len() as usize);
                put_chunk(&session, &path, range, data).await?;
                put += range.len();
            }
        });
    }
    let mut put = 0;
    while let Some(lane) = lanes.join_next().await {
        put += lane??;
    }
    Ok(put)
}

pub(super) async fn put_chunk(
    session: &Session,
    path: &str,
    range: ByteRange,
    data: Bytes,
) -> anyhow::Result<()> {
    let want = Want { path: path.to_owned(), range, access: Access::Overwrite };
    let lease = session.acquire(&[want], patient()).await?.remove(0);
    lease.write(range.start(), data).await?;
    lease.commit().await?;
    Ok(())
}

/// One put on a server that runs, and the server's processor time; the file is removed again.
async fn put(served: &Served, client: &Client, bytes: u64) -> anyhow::Result<(f64, f64)> {
    let cpu = served.process.cpu()?;
    let took = put_once(client, "/put", bytes).await?;
    let cpu = served.process.cpu()? - cpu;
    client.remove("/put").await?;
    Ok((took, cpu))
}

/// The same bytes from the same frames into a new file, with nothing between: seconds until durable.
fn disk_once(directory: &Path, bytes: u64, how: How) -> anyhow::Result<f64> {
    let arena = Arena::new((CHUNK * DEPTH) as u64, Pages::Auto)?;
    let path = directory.join("bare");
    let began = Instant::now();
    let mut file = BareFile::create(&path, bytes, CHUNK, how, BareMemory::Arena(arena))?;
    for (start, part) in super::peer::chunks(bytes) {
        let slot = file.take()?;
        file.write(slot, start, part.next_multiple_of(4096))?;
    }
    file.finish()?;
    let took = began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(took)
}

async fn disk(context: &Context, how: How) -> anyhow::Result<f64> {
    let (directory, bytes) = (context.scratch.clone(), context.bytes);
    tokio::task::spawn_blocking(move || disk_once(&directory, bytes, how)).await?
}

/// Every way that may be the fastest here.
fn ways() -> Vec<How> {
    let mut ways = Vec::new();
    for flush in [Flush::Each, Flush::AtTheEnd] {
        for allocate in [false, true] {
            for piece in [1 << 20, 2 << 20, 4 << 20] {
                ways.push(How { flush, allocate, piece });
            }
        }
    }
    ways
}

fn name(how: How) -> String {
    let How { flush, allocate, piece } = how;
    let flush = match flush {
        Flush::Each => "RWF_DSYNC",
        Flush::AtTheEnd => "fdatasync at the end",
    };
    let allocate = if allocate { ", allocated before" } else { "" };
    format!("io_uring writes of {} MiB, {flush}{allocate}", piece >> 20)
}

/// The fastest way for the disk of the directory: each is tried twice.
async fn fastest(context: &Context) -> anyhow::Result<How> {
    let mut best = (f64::MAX, ways()[0]);
    let ways = if context.quick { vec![ways()[0]] } else { ways() };
    for _ in 0..2 {
        for how in &ways {
            best = best.min_by_time((disk(context, *how).await?, *how));
        }
    }
    Ok(best.1)
}

trait MinByTime {
    fn min_by_time(self, other: Self) -> Self;
}

impl MinByTime for (f64, How) {
    fn min_by_time(self, other: Self) -> Self {
        if other.0 < self.0 { other } else { self }
    }
}

/// A durable put against the smaller of plain TCP and the disk alone.
pub(super) async fn against_the_bounds(context: &Context) -> anyhow::Result<Vec<Row>> {
    context.needs_a_disk()?;
    let how = fastest(context).await?;
    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    let client = served.client().await?;
    let peer = Peer::start(&["memory", "127.0.0.1:0"], None).await?;
    let rate = |took: f64| context.bytes as f64 / GIB / took;
    let mut pairs = Vec::new();
    let (mut tcp_rates, mut disk_rates) = (Vec::new(), Vec::new());
    for round in context.rounds() {
        let (ours, _) = put(&served, &client, context.bytes).await?;
        let tcp = tcp::send(&peer.address, context.bytes, false).await?;
        let disk = disk(context, how).await?;
        if round.counts {
            pairs.push((rate(ours), rate(tcp.max(disk))));
            tcp_rates.push(rate(tcp));
            disk_rates.push(rate(disk));
        }
    }
    peer.stop().await?;
    served.stop().await?;
    let median = |rates| super::figure::Spread::new(rates).median();
    let (tcp, disk) = (median(tcp_rates), median(disk_rates));
    let note = format!("plain TCP {tcp:.2} GiB/s; disk {disk:.2} GiB/s, by {}", name(how));
    Ok(vec![Row {
        name: "put",
        what: "durable put, against the smaller of plain TCP and O_DIRECT",
        unit: Unit::GibPerSecond,
        found: Found::pairs("min", &pairs),
        bar: Some(Bar::RatioAtLeast(0.90)),
        note: Some(note),
    }])
}

/// What the two baselines by hand have in common.
struct ByHand {
    names: [&'static str; 2],
    whats: [&'static str; 2],
    against: &'static str,
    cpu_bar: Option<f64>,
    /// The arguments of the peer, each way.
    ways: Vec<Vec<String>>,
}

/// Against a server by hand: heap buffers, CRC, pwrite into the page cache, fdatasync.
pub(super) async fn against_pwrite(context: &Context) -> anyhow::Result<Vec<Row>> {
    let directory = context.scratch.display().to_string();
    let way = |more: &[&str]| {
        ["pwrite", "127.0.0.1:0", directory.as_str()].iter().chain(more).map(|s| (*s).to_owned()).collect()
    };
    let by_hand = ByHand {
        names: ["put-pwrite-cpu", "put-pwrite"],
        whats: [
            "server CPU of a durable put, against heap buffers + pwrite + fdatasync",
            "durable put, against heap buffers + pwrite + fdatasync",
        ],
        against: "pwrite",
        cpu_bar: Some(0.6),
        ways: vec![way(&[]), way(&["--along"])],
    };
    against_hand(context, by_hand).await
}

/// Against a server by hand: heap buffers, CRC, O_DIRECT.
pub(super) async fn against_direct(context: &Context) -> anyhow::Result<Vec<Row>> {
    let by_hand = ByHand {
        names: ["put-direct-cpu", "put-direct"],
        whats: [
            "server CPU of a durable put, against heap buffers + O_DIRECT",
            "durable put, against heap buffers + O_DIRECT",
        ],
        against: "O_DIRECT",
        cpu_bar: Some(0.85),
        ways: direct_ways(context, false),
    };
    against_hand(context, by_hand).await
}

/// Against the same from memory such as ours: what the protocol and the store cost.
pub(super) async fn against_frames(context: &Context) -> anyhow::Result<Vec<Row>> {
    let by_hand = ByHand {
        names: ["put-frames-cpu", "put-frames"],
        whats: [
            "server CPU of a durable put, against registered frames + O_DIRECT",
            "durable put, against registered frames + O_DIRECT",
        ],
        against: "frames",
        cpu_bar: None,
        ways: direct_ways(context, true),
    };
    against_hand(context, by_hand).await
}

/// The arguments of a peer, each way that may be the fastest.
fn direct_ways(context: &Context, frames: bool) -> Vec<Vec<String>> {
    let directory = context.scratch.display().to_string();
    let way = |how: How| {
        let mut way: Vec<String> =
            ["direct", "127.0.0.1:0", &directory].iter().map(|s| (*s).to_owned()).collect();
        way.extend(["--piece".to_owned(), how.piece.to_string()]);
        way.extend(frames.then(|| "--frames".to_owned()));
        way.extend((how.flush == Flush::Each).then(|| "--each".to_owned()));
        way.extend(how.allocate.then(|| "--allocate".to_owned()));
        way
    };
    ways().into_iter().filter(|how| how.piece > 1 << 20).map(way).collect()
}

async fn against_hand(context: &Context, by_hand: ByHand) -> anyhow::Result<Vec<Row>> {
    context.needs_a_disk()?;
    // The fastest way of those that one could choose: each is tried twice.
    let mut peers = Vec::new();
    for way in by_hand.ways.iter().take(if context.quick { 1 } else { usize::MAX }) {
        let arguments: Vec<&str> = way.iter().map(String::as_str).collect();
        peers.push((f64::MAX, way, Peer::start(&arguments, None).await?));
    }
    for _ in 0..2 {
        for (best, _, peer) in &mut peers {
            *best = best.min(tcp::send(&peer.address, context.bytes, true).await?);
        }
    }
    peers.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (_, way, peer) = peers.remove(0);
    for (_, _, slower) in peers {
        slower.stop().await?;
    }

    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    let client = served.client().await?;
    let gib = context.bytes as f64 / GIB;
    let (mut rates, mut cpus) = (Vec::new(), Vec::new());
    for round in context.rounds() {
        let (ours, our_cpu) = put(&served, &client, context.bytes).await?;
        let cpu = peer.process.cpu()?;
        let theirs = tcp::send(&peer.address, context.bytes, true).await?;
        let cpu = peer.process.cpu()? - cpu;
        if round.counts {
            rates.push((gib / ours, gib / theirs));
            // A smoke test is too small for the clock of /proc.
            cpus.push((our_cpu.max(0.001) / gib, cpu.max(0.001) / gib));
        }
    }
    peer.stop().await?;
    served.stop().await?;
    let options: Vec<&str> = way.iter().skip(3).map(String::as_str).collect();
    let note =
        Some(format!("one CRC32C at both ends, there of each block; fastest way: {}", options.join(" ")));
    let [cpu_name, name] = by_hand.names;
    let [cpu_what, what] = by_hand.whats;
    let cpu = Row {
        name: cpu_name,
        what: cpu_what,
        unit: Unit::CpuPerGib,
        found: Found::pairs(by_hand.against, &cpus),
        bar: by_hand.cpu_bar.map(Bar::RatioAtMost),
        note: note.clone(),
    };
    let rate = Row {
        name,
        what,
        unit: Unit::GibPerSecond,
        found: Found::pairs(by_hand.against, &rates),
        bar: by_hand.cpu_bar.map(|_| Bar::RatioAtLeast(1.0)),
        note,
    };
    Ok(vec![cpu, rate])
}

/// Data over TLS against the same without.
pub(super) async fn over_tls(context: &Context) -> anyhow::Result<Vec<Row>> {
    context.needs_a_disk()?;
    let stores = [context.store()?, context.store()?];
    let [encrypted, plain] = [
        Served::start(
            stores[0].path(),
            Serving { arguments: &["--fabric", "iwarp-tls"], ..Serving::default() },
        )
        .await?,
        Served::start(stores[1].path(), Serving { arguments: &["--fabric", "iwarp"], ..Serving::default() })
            .await?,
    ];
    let gib = context.bytes as f64 / GIB;
    let (mut puts, mut cpus, mut gets) = (Vec::new(), Vec::new(), Vec::new());
    let [ours, theirs] = [encrypted.client().await?, plain.client().await?];
    for (client, kept) in [(&ours, "/kept"), (&theirs, "/kept")] {
        put_once(client, kept, context.bytes).await?;
    }
    for round in context.rounds() {
        let put = [put(&encrypted, &ours, context.bytes).await?, put(&plain, &theirs, context.bytes).await?];
        let get = [
            get_once(&ours, "/kept", context.bytes).await?,
            get_once(&theirs, "/kept", context.bytes).await?,
        ];
        if round.counts {
            puts.push((gib / put[0].0, gib / put[1].0));
            cpus.push((put[0].1.max(0.001) / gib, put[1].1.max(0.001) / gib));
            gets.push((gib / get[0], gib / get[1]));
        }
    }
    encrypted.stop().await?;
    plain.stop().await?;
    let row = |name, what, unit, pairs: &[(f64, f64)]| Row {
        name,
        what,
        unit,
        found: Found::pairs("plain", pairs),
        bar: None,
        note: None,
    };
    Ok(vec![
        row("tls-cpu", "server CPU of a durable put with its data over TLS", Unit::CpuPerGib, &cpus),
        row("tls-put", "durable put with its data over TLS", Unit::GibPerSecond, &puts),
        row("tls-get", "get with its data over TLS", Unit::GibPerSecond, &gets),
    ])
}
