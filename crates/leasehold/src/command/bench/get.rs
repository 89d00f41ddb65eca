//! The row about reading: a get from disk against sendfile.

use super::figure::{Bar, Found, Row, Unit};
use super::process::{Peer, Served, Serving};
use super::put::put_once;
use super::{Context, GIB, patient, tcp};
use leasehold_client::{Access, Buffer, ByteRange, Client, Session, Want};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::task::JoinSet;

/// Of our transfers, as the command has them: half of what the others send at a time, twice as often.
const CHUNK: usize = super::CHUNK / 2;
const DEPTH: usize = super::DEPTH * 2;

/// Reads a file into memory, in chunks, many at once; returns how many seconds that took.
pub(super) async fn get_once(client: &Client, path: &str, bytes: u64) -> anyhow::Result<f64> {
    let session = Arc::new(Session::open(client).await?);
    let next = Arc::new(AtomicU64::new(0));
    let buffers: Vec<Buffer> = (0..DEPTH).map(|_| Buffer::new(CHUNK)).collect();
    let began = Instant::now();
    let mut lanes = JoinSet::new();
    for mut buffer in buffers {
        let (session, next, path) = (session.clone(), next.clone(), path.to_owned());
        lanes.spawn(async move {
            loop {
                let start = next.fetch_add(CHUNK as u64, Ordering::Relaxed);
                let Some(range) = ByteRange::new(start, (start + CHUNK as u64).min(bytes)) else {
                    return anyhow::Ok(());
                };
                let want = Want { path: path.clone(), range, access: Access::Read };
                let lease = session.acquire(&[want], patient()).await?.remove(0);
                buffer = lease.read(range, buffer).await?;
                lease.release().await?;
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    Ok(began.elapsed().as_secs_f64())
}

pub(super) async fn against_sendfile(context: &Context) -> anyhow::Result<Vec<Row>> {
    context.needs_a_disk()?;
    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    let client = served.client().await?;
    put_once(&client, "/get", context.bytes).await?;
    // The same file, by its ordinary name.
    let file = store.path().join("files/get").display().to_string();
    let peer = Peer::start(&["sendfile", "127.0.0.1:0", &file], None).await?;
    let rate = |took: f64| context.bytes as f64 / GIB / took;
    let mut pairs = Vec::new();
    for round in context.rounds() {
        let ours = get_once(&client, "/get", context.bytes).await?;
        let theirs = tcp::receive(&peer.address, context.bytes).await?;
        if round.counts {
            pairs.push((rate(ours), rate(theirs)));
        }
    }
    peer.stop().await?;
    served.stop().await?;
    Ok(vec![Row {
        name: "get",
        what: "get from disk, against plain TCP with sendfile from disk",
        unit: Unit::GibPerSecond,
        found: Found::pairs("sendfile", &pairs),
        bar: Some(Bar::RatioAtLeast(0.85)),
        note: Some("ours verifies every block; sendfile does not".to_owned()),
    }])
}
