//! The row about fairness: sixteen clients at once against one.

use super::figure::{Bar, Found, Row, Spread, Unit};
use super::process::{Served, Serving};
use super::put::put_from;
use super::{Context, GIB};
use leasehold_client::{Client, Session};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use tokio::task::JoinSet;

const CLIENTS: u64 = 16;
/// How many times more than in other rows is put, so that the share of each can be told.
const LONGER: u64 = 2;

pub(super) async fn sixteen_against_one(context: &Context) -> anyhow::Result<Vec<Row>> {
    context.needs_a_disk()?;
    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    let bytes = context.bytes * LONGER;
    let (mut pairs, mut shares) = (Vec::new(), Vec::new());
    for round in context.rounds() {
        let (many, share) = put_at_once(&served, CLIENTS, bytes).await?;
        let (one, _) = put_at_once(&served, 1, bytes).await?;
        if round.counts {
            let rate = |took: f64| bytes as f64 / GIB / took;
            pairs.push((rate(many), rate(one)));
            shares.push(share);
        }
    }
    served.stop().await?;
    let total = Row {
        name: "clients",
        what: "16 clients at once, in total, against one",
        unit: Unit::GibPerSecond,
        found: Found::pairs("one", &pairs),
        bar: Some(Bar::RatioAtLeast(0.9)),
        note: None,
    };
    let share = Row {
        name: "clients-share",
        what: "of 16 clients at once, the slowest, in parts of its fair share",
        unit: Unit::Plain,
        found: Found::Ours(Spread::new(shares)),
        bar: Some(Bar::AtLeast(0.5)),
        note: Some("each takes the next chunk of a common total when it has finished one".to_owned()),
    };
    Ok(vec![total, share])
}

/// Clients with a connection and a file of their own put `bytes` bytes together, durably. Returns the seconds, and what
/// the slowest put in parts of what is fair.
pub(super) async fn put_at_once(served: &Served, clients: u64, bytes: u64) -> anyhow::Result<(f64, f64)> {
    let next = Arc::new(AtomicU64::new(0));
    let mut ready: Vec<(Client, Arc<Session>, String)> = Vec::new();
    for number in 0..clients {
        let client = served.client().await?;
        let path = format!("/client-{number}");
        client.create(&path).await?;
        let session = Arc::new(Session::open(&client).await?);
        ready.push((client, session, path));
    }
    let began = Instant::now();
    let mut putting = JoinSet::new();
    for (_, session, path) in &ready {
        let (session, path, next) = (session.clone(), path.clone(), next.clone());
        putting.spawn(async move {
            // Where a chunk of the common total lands in the own file is of no matter.
            let put = put_from(&session, &path, &next, bytes).await?;
            session.sync(&path).await?;
            anyhow::Ok(put)
        });
    }
    let mut least = u64::MAX;
    while let Some(put) = putting.join_next().await {
        least = least.min(put??);
    }
    let took = began.elapsed().as_secs_f64();
    for (client, _, path) in ready {
        client.remove(&path).await?;
    }
    Ok((took, least as f64 * clients as f64 / bytes as f64))
}
