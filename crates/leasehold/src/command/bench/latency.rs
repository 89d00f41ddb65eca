//! Rows about how long single steps take: acquire and commit, fence, truncate, acquire among many leases.

use super::figure::{Bar, Found, Row, Spread, Unit};
use super::process::{Served, Serving};
use super::{Context, patient, source};
use anyhow::Context as _;
use bytes::Bytes;
use leasehold_client::{
    Access, AcquireOptions, ByteRange, Client, Lease, LeaseState, Server, Session, Want, WriteError, convert,
};
use std::future::Future;
use std::time::Instant;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const BLOCK: u64 = 4096;
/// How many steps make one sample where each takes far less than a millisecond.
const STEPS: u64 = 100;

fn want(path: &str, start: u64, length: u64) -> Want {
    let range = ByteRange::at(start, length).expect("a bench leases at least a byte");
    Want { path: path.to_owned(), range, access: Access::Overwrite }
}

/// Seconds for each of `STEPS` steps.
async fn each<F: Future<Output = anyhow::Result<()>>>(step: impl Fn(u64) -> F) -> anyhow::Result<f64> {
    let began = Instant::now();
    for index in 0..STEPS {
        step(index).await?;
    }
    Ok(began.elapsed().as_secs_f64() / STEPS as f64)
}

/// Acquire, write of a block, commit, one after the other, against two calls that do nothing, on the same server.
pub(super) async fn acquire_commit(context: &Context) -> anyhow::Result<Vec<Row>> {
    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    let (host, port) = served.control.rsplit_once(':').context("an address has a port")?;
    let client = Client::connect(&Server::Tcp { host: host.to_owned(), port: port.parse()? }).await?;
    let channel = Endpoint::from_shared(format!("http://{}", served.control))?.connect().await?;
    let health = HealthClient::new(channel);
    client.create("/small").await?;
    let session = Session::open(&client).await?;
    let block = Bytes::from_static(&source()[0][..BLOCK as usize]);
    let mut pairs = Vec::new();
    for (number, round) in (0..).zip(context.rounds()) {
        let ours = each(async |index| {
            let start = (number * STEPS + index) * BLOCK;
            let lease = session.acquire(&[want("/small", start, BLOCK)], patient()).await?.remove(0);
            lease.write(start, block.clone()).await?;
            lease.commit().await?;
            Ok(())
        });
        let ours = ours.await?;
        // What is still to be written back must not slow the other down.
        session.sync("/small").await?;
        let theirs = each(async |_| {
            for _ in 0..2 {
                health.clone().check(HealthCheckRequest::default()).await?;
            }
            Ok(())
        });
        let theirs = theirs.await?;
        if round.counts {
            pairs.push((ours, theirs));
        }
    }
    served.stop().await?;
    Ok(vec![Row {
        name: "acquire-commit",
        what: "acquire, write 4 KiB, commit at depth 1, against two empty gRPC calls",
        unit: Unit::Seconds,
        found: Found::pairs("2 calls", &pairs),
        bar: Some(Bar::RatioAtMost(3.0)),
        note: Some(format!("each sample is the mean of {STEPS}")),
    }])
}

/// Writes the same mebibyte again and again, several times at once, until the lease is revoked.
async fn write_until_revoked(lease: &Lease) -> anyhow::Result<()> {
    let writer = async || loop {
        match lease.write(lease.range().start(), Bytes::from_static(&source()[0][..1 << 20])).await {
            Ok(()) => {}
            Err(WriteError::Revoked(_)) => return anyhow::Ok(()),
            Err(error) => return Err(error.into()),
        }
    };
    let (a, b, c) = tokio::join!(writer(), writer(), writer());
    a.and(b).and(c)
}

/// The server's own record of breaks without a grace period: from the notice to the proof.
pub(super) async fn fence(context: &Context) -> anyhow::Result<Vec<Row>> {
    let store = context.store()?;
    let serving = Serving { arguments: &["--grace-ms", "0"], ..Serving::default() };
    let served = Served::start(store.path(), serving).await?;
    let (holder, breaker) = (served.client().await?, served.client().await?);
    holder.create("/fence").await?;
    let session = Session::open(&holder).await?;
    let rounds = if context.quick { 3 } else { 300 };
    for _ in 0..rounds {
        holder.truncate("/fence", 2 << 20).await?;
        let lease = session.acquire(&[want("/fence", 1 << 20, 1 << 20)], patient()).await?.remove(0);
        // The first write has come through, so the writer is at work when the break comes.
        lease.write(1 << 20, Bytes::from_static(&source()[0][..1 << 20])).await?;
        let (written, truncated) =
            tokio::join!(write_until_revoked(&lease), breaker.truncate("/fence", 1 << 20));
        written?;
        truncated?;
        lease.release().await?;
    }
    let breaks = holder.breaks(rounds).await?;
    served.stop().await?;
    let fenced = breaks.iter().filter(|broken| broken.outcome == "fenced");
    let took: Vec<f64> = fenced.map(|broken| convert::duration_in(broken.took).as_secs_f64()).collect();
    anyhow::ensure!(!took.is_empty(), "no lease was fenced: the holder answered every break");
    Ok(vec![Row {
        name: "fence",
        what: "fence of 1 MiB under a live writer, from the break's notice to the proof",
        unit: Unit::Seconds,
        found: Found::Ours(Spread::new(took)),
        bar: Some(Bar::Under(100e-6)),
        note: Some(format!("{rounds} breaks without a grace period, as the break log has them")),
    }])
}

/// A truncate that breaks the lease of a holder that answers at once. Beside it, what a durable truncate costs the disk.
pub(super) async fn truncate(context: &Context) -> anyhow::Result<Vec<Row>> {
    context.needs_a_disk()?;
    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    let (holder, breaker) = (served.client().await?, served.client().await?);
    holder.create("/cut").await?;
    let session = Session::open(&holder).await?;
    let by_hand = tempfile::NamedTempFile::new_in(&context.scratch)?;
    let rounds = if context.quick { 3 } else { 300 };
    let mut pairs = Vec::new();
    for _ in 0..rounds {
        holder.truncate("/cut", 8 << 20).await?;
        let lease = session.acquire(&[want("/cut", 4 << 20, 4 << 20)], patient()).await?.remove(0);
        let answer = async {
            let LeaseState::Breaking(_) = lease.broken().await else {
                anyhow::bail!("the lease was revoked before its holder could answer");
            };
            Ok(lease.release().await?)
        };
        let cut = async {
            let began = Instant::now();
            breaker.truncate("/cut", 4 << 20).await?;
            anyhow::Ok(began.elapsed().as_secs_f64())
        };
        let (answered, ours) = tokio::join!(answer, cut);
        answered?;
        let file = by_hand.as_file();
        file.set_len(8 << 20)?;
        file.sync_data()?;
        let began = Instant::now();
        file.set_len(4 << 20)?;
        file.sync_data()?;
        pairs.push((ours?, began.elapsed().as_secs_f64()));
    }
    served.stop().await?;
    Ok(vec![Row {
        name: "truncate",
        what: "truncate, from call to durable return, with a holder that lets go when asked",
        unit: Unit::Seconds,
        found: Found::pairs("ftruncate + fdatasync", &pairs),
        bar: Some(Bar::Under(5e-3)),
        note: None,
    }])
}

/// Leases of one block each, with a free block behind each: of several sessions, since a connection has 65,536 keys.
pub(super) struct Held {
    leases: Vec<Lease>,
    /// They go with their sessions.
    sessions: Vec<Session>,
}

impl Held {
    const PER_SESSION: usize = 50_000;
    /// The limit of one acquire.
    const AT_ONCE: usize = 1024;

    pub(super) fn none() -> Held {
        Held { leases: Vec::new(), sessions: Vec::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.leases.len()
    }

    /// Acquires until there are `count`.
    pub(super) async fn grow(&mut self, served: &Served, path: &str, count: usize) -> anyhow::Result<()> {
        while self.leases.len() < count {
            let index = self.leases.len();
            if index.is_multiple_of(Held::PER_SESSION) {
                self.sessions.push(Session::open(&served.client().await?).await?);
            }
            let more = (count - index).min(Held::AT_ONCE).min(Held::PER_SESSION - index % Held::PER_SESSION);
            let wants: Vec<Want> =
                (index..index + more).map(|n| want(path, 2 * n as u64 * BLOCK, BLOCK)).collect();
            let session = self.sessions.last().expect("opened above");
            self.leases.extend(session.acquire(&wants, patient()).await?);
        }
        Ok(())
    }

    /// Ends the sessions, which is quicker than releasing one by one.
    pub(super) async fn close(self) {
        for session in self.sessions {
            session.close().await;
        }
    }
}

/// Acquires and releases blocks between those that are held, spread over the file; the seconds of each acquire.
pub(super) async fn probe(
    session: &Session,
    path: &str,
    held: usize,
    samples: u64,
) -> anyhow::Result<Vec<f64>> {
    let mut took = Vec::new();
    for sample in 0..samples {
        // Far apart each time: 2654435761 is prime, and near the golden section of 2^32.
        let place = sample.wrapping_mul(2_654_435_761) % held.max(1) as u64;
        let wants = [want(path, (2 * place + 1) * BLOCK, BLOCK)];
        let began = Instant::now();
        let lease = session.acquire(&wants, AcquireOptions::default()).await?.remove(0);
        took.push(began.elapsed().as_secs_f64());
        lease.release().await?;
    }
    Ok(took)
}

pub(super) async fn among_many_leases(context: &Context) -> anyhow::Result<Vec<Row>> {
    let counts = if context.quick { [10, 1_000] } else { [100, 100_000] };
    let mut servers = Vec::new();
    for count in counts {
        let store = context.store()?;
        // Sessions that hold this much must not end because this machine is busy for a moment.
        let serving = Serving {
            arguments: &["--arena", "1GiB", "--pages", "normal", "--session-ttl-ms", "120000"],
            ..Serving::default()
        };
        let served = Served::start(store.path(), serving).await?;
        let client = served.client().await?;
        client.create("/leased").await?;
        let mut held = Held::none();
        held.grow(&served, "/leased", count).await?;
        let session = Session::open(&client).await?;
        servers.push((store, served, held, session));
    }
    let mut pairs = Vec::new();
    for round in context.rounds() {
        let mut means = Vec::new();
        for ((_, _, _, session), count) in servers.iter().zip(counts) {
            let took = probe(session, "/leased", count, STEPS).await?;
            means.push(took.iter().sum::<f64>() / took.len() as f64);
        }
        if round.counts {
            pairs.push((means[1], means[0]));
        }
    }
    for (_, served, held, session) in servers {
        session.close().await;
        held.close().await;
        served.stop().await?;
    }
    Ok(vec![Row {
        name: "leases",
        what: "acquire with 100,000 live leases, against with 100",
        unit: Unit::Seconds,
        found: Found::pairs("with 100", &pairs),
        bar: Some(Bar::RatioAtMost(1.5)),
        note: Some(format!("all on one file; each sample is the mean of {STEPS} calls")),
    }])
}
