//! Cost as it grows: time and memory against the size of a file, files, leases, clients, and a working set larger than the
//! arena. Each is a series of points and a plot; nothing may grow faster than what it depends on.

use super::clients::put_at_once;
use super::get::get_once;
use super::latency::{Held, probe};
use super::plot::{Curve, Panel, Plot};
use super::process::{Served, Serving};
use super::put::{put_chunk, put_once};
use super::{Context, GIB, source};
use bytes::Bytes;
use leasehold_client::{ByteRange, Client, ScrubOptions, Session};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// What one series found.
pub(super) struct Series {
    pub(super) name: &'static str,
    title: &'static str,
    x: &'static str,
    measures: Vec<Measure>,
}

/// One curve.
struct Measure {
    name: &'static str,
    /// Curves with the same share a panel.
    unit: &'static str,
    points: Vec<(f64, f64)>,
    /// Whether more is worse: a rate must not fall, everything else must not rise faster than `x`.
    is_cost: bool,
}

/// By which power a cost may seem to rise and still be called linear: caches end, and machines are busy.
const SLOPE_MAX: f64 = 1.3;

impl Series {
    fn new(name: &'static str, title: &'static str, x: &'static str) -> Series {
        Series { name, title, x, measures: Vec::new() }
    }

    fn add(&mut self, name: &'static str, unit: &'static str, x: f64, y: f64) {
        let is_cost = unit != RATE;
        match self.measures.iter_mut().find(|measure| measure.name == name) {
            Some(measure) => measure.points.push((x, y)),
            None => self.measures.push(Measure { name, unit, points: vec![(x, y)], is_cost }),
        }
    }

    pub(super) fn svg(&self) -> String {
        let mut panels: Vec<Panel<'_>> = Vec::new();
        for measure in &self.measures {
            let curve = Curve { name: measure.name, points: measure.points.clone() };
            match panels.iter_mut().find(|panel| panel.y == measure.unit) {
                Some(panel) => panel.curves.push(curve),
                None => panels.push(Panel { y: measure.unit, curves: vec![curve] }),
            }
        }
        Plot { title: self.title, x: self.x, panels }.svg()
    }

    pub(super) fn json(&self) -> Value {
        let curves: Vec<Value> = self
            .measures
            .iter()
            .map(|measure| {
                json!({
                    "name": measure.name,
                    "unit": measure.unit,
                    "points": measure.points,
                    "slope": measure.slope(),
                })
            })
            .collect();
        json!({ "series": self.name, "title": self.title, "x": self.x, "curves": curves })
    }

    /// For people: a line a curve.
    pub(super) fn lines(&self) -> Vec<[String; 5]> {
        let number = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
        let line = |measure: &Measure| {
            let (first, last) = (measure.points[0], measure.points[measure.points.len() - 1]);
            [
                self.name.to_owned(),
                format!("{}, {}", measure.name, measure.unit),
                format!("{} at {}", number(first.1), number(first.0)),
                format!("{} at {}", number(last.1), number(last.0)),
                if measure.is_cost { measure.verdict() } else { String::new() },
            ]
        };
        self.measures.iter().map(line).collect()
    }
}

impl Measure {
    /// The steepest rise between points that lie at least a factor of a hundred apart, as the power of x: of two
    /// neighbours, one may have met a busy machine. Where there are none, between the first and the last.
    fn slope(&self) -> f64 {
        let power = |from: (f64, f64), to: (f64, f64)| (to.1 / from.1).log10() / (to.0 / from.0).log10();
        let mut steepest = f64::MIN;
        for (index, from) in self.points.iter().enumerate() {
            if let Some(to) = self.points[index..].iter().find(|to| to.0 >= from.0 * 100.0) {
                steepest = steepest.max(power(*from, *to));
            }
        }
        if steepest == f64::MIN {
            steepest = power(self.points[0], self.points[self.points.len() - 1]);
        }
        (steepest * 100.0).round() / 100.0
    }

    fn verdict(&self) -> String {
        let slope = self.slope();
        let word = if slope <= SLOPE_MAX { "ok" } else { "STEEP" };
        format!("x^{slope:.2} {word}")
    }
}

const SECONDS: &str = "time (s)";
const MEMORY: &str = "server memory beside the arena (bytes)";
const RATE: &str = "rate (GiB/s)";
const MIB: u64 = 1 << 20;

/// Seconds that something takes.
async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(f64, T)> {
    let began = Instant::now();
    let value = work.await?;
    Ok((began.elapsed().as_secs_f64(), value))
}

async fn put_block(client: &Client, path: &str, start: u64) -> anyhow::Result<()> {
    let session = Session::open(client).await?;
    let range = ByteRange::at(start, 4096).expect("a block");
    put_chunk(&session, path, range, Bytes::from_static(&source()[0][..4096])).await?;
    session.sync(path).await?;
    session.close().await;
    Ok(())
}

/// A sparse file: everything about it must depend on what is in it, not on how long it is.
pub(super) async fn file_size(context: &Context) -> anyhow::Result<Series> {
    let mut series = Series::new("file", "A sparse file with three blocks in it", "file size (bytes)");
    let sizes: &[u64] = if context.quick { &[1, 16] } else { &[16, 256, 1024, 4096, 16384, 65536] };
    for mib in sizes {
        let bytes = mib * MIB;
        let store = context.store()?;
        let served = Served::start(store.path(), Serving::default()).await?;
        let client = served.client().await?;
        client.create("/sparse").await?;
        let (took, ()) = timed(async { Ok(client.truncate("/sparse", bytes).await?) }).await?;
        series.add("truncate up", SECONDS, bytes as f64, took);
        let (took, ()) = timed(async {
            for block in [0, bytes / 8192, bytes / 4096 - 1] {
                put_block(&client, "/sparse", block * 4096).await?;
            }
            Ok(())
        })
        .await?;
        series.add("put 3 blocks, durable", SECONDS, bytes as f64, took);
        served.stop().await?;
        let (took, served) = timed(Served::start(store.path(), Serving::default())).await?;
        series.add("start again", SECONDS, bytes as f64, took);
        let client = served.client().await?;
        let (took, ()) = timed(put_block(&client, "/sparse", bytes / 2)).await?;
        series.add("put after start", SECONDS, bytes as f64, took);
        let (took, ()) = timed(async { Ok(client.truncate("/sparse", 0).await?) }).await?;
        series.add("truncate to 0", SECONDS, bytes as f64, took);
        series.add("server", MEMORY, bytes as f64, served.process.memory() as f64);
        served.stop().await?;
    }
    Ok(series)
}

/// Files that another tool has put into the store.
pub(super) async fn files(context: &Context) -> anyhow::Result<Series> {
    let mut series = Series::new("files", "A directory of small files that another tool has made", "files");
    let counts: &[u64] = if context.quick { &[10, 100] } else { &[100, 1_000, 10_000, 100_000, 1_000_000] };
    let store = context.store()?;
    Served::start(store.path(), Serving::default()).await?.stop().await?;
    let directory = store.path().join("files/many");
    std::fs::create_dir(&directory)?;
    let mut made = 0;
    for &count in counts {
        let (from, into) = (made, directory.clone());
        tokio::task::spawn_blocking(move || make_files(&into, from, count)).await??;
        made = count;
        let x = count as f64;
        let (took, served) = timed(Served::start(store.path(), Serving::default())).await?;
        series.add("start", SECONDS, x, took);
        let client = served.client().await?;
        let last = format!("/many/{}", count - 1);
        let (took, _) = timed(get_once(&client, &last, 8)).await?;
        series.add("first get of one", SECONDS, x, took);
        let (took, listed) = timed(async { Ok(client.list("/many").await?) }).await?;
        anyhow::ensure!(listed.len() as u64 == count, "{} of {count} files are listed", listed.len());
        series.add("list", SECONDS, x, took);
        drop(listed);
        let (took, ()) = timed(async {
            client.create("/new").await?;
            put_block(&client, "/new", 0).await?;
            Ok(client.remove("/new").await?)
        })
        .await?;
        series.add("create, put, remove one", SECONDS, x, took);
        let memory = served.process.memory();
        series.add("server, all listed", MEMORY, x, memory as f64);
        // Each is opened, read and adopted: linear by nature, so not to the last point.
        if count <= 10_000 {
            let (took, ()) = timed(scrub(&client)).await?;
            series.add("scrub, adopting all", SECONDS, x, took);
        }
        let (took, ()) = timed(served.stop()).await?;
        series.add("stop", SECONDS, x, took);
    }
    Ok(series)
}

fn make_files(directory: &Path, from: u64, to: u64) -> std::io::Result<()> {
    for number in from..to {
        std::fs::write(directory.join(number.to_string()), b"8 bytes\n")?;
    }
    Ok(())
}

async fn scrub(client: &Client) -> anyhow::Result<()> {
    use tokio_stream::StreamExt as _;
    let mut items = Box::pin(client.scrub(None, ScrubOptions::default()).await?);
    while let Some(item) = items.next().await {
        item?;
    }
    Ok(())
}

/// Live leases, on one file.
pub(super) async fn leases(context: &Context) -> anyhow::Result<Series> {
    let mut series = Series::new("live-leases", "Live leases of a block each, on one file", "live leases");
    let counts: &[usize] = if context.quick { &[10, 100] } else { &[100, 1_000, 10_000, 100_000, 1_000_000] };
    let store = context.store()?;
    let arguments = ["--arena", "5GiB", "--pages", "normal", "--session-ttl-ms", "600000"];
    let settings = [("LIMITS__LEASES_MAX", "2000000")];
    let serving = Serving { arguments: &arguments, settings: &settings, ..Serving::default() };
    let served = Served::start(store.path(), serving).await?;
    let client = served.client().await?;
    client.create("/leased").await?;
    let session = Session::open(&client).await?;
    let mut held = Held::none();
    let before = served.process.memory();
    for &count in counts {
        let x = count as f64;
        let (more, has) = (count - held.count(), held.count());
        let (took, ()) = timed(held.grow(&served, "/leased", count)).await?;
        series.add("all, acquired by the thousand", SECONDS, x, took * x / (x - has as f64));
        anyhow::ensure!(more > 0, "the counts rise");
        let mut took = probe(&session, "/leased", count, 200).await?;
        took.sort_by(f64::total_cmp);
        series.add("acquire one", SECONDS, x, took[took.len() / 2]);
        let (took, ()) = timed(async {
            client.truncate("/leased", 1 << 40).await?;
            Ok(())
        })
        .await?;
        series.add("truncate up", SECONDS, x, took);
        let memory = served.process.memory().saturating_sub(before).max(1);
        series.add("server, of the leases alone", MEMORY, x, memory as f64);
    }
    let (took, listed) = timed(async { Ok(client.leases(Some("/leased")).await?.len()) }).await?;
    anyhow::ensure!(listed == held.count(), "{listed} of {} leases are listed", held.count());
    eprintln!("  listing all of them took {took:.1} s");
    let (took, ()) = timed(async {
        held.close().await;
        Ok(())
    })
    .await?;
    eprintln!("  ending their sessions took {took:.1} s");
    session.close().await;
    served.stop().await?;
    Ok(series)
}

/// Clients at once, each with a session, a data connection and a file of its own.
pub(super) async fn clients(context: &Context) -> anyhow::Result<Series> {
    let mut series =
        Series::new("many-clients", "Clients at once, each putting into a file of its own", "clients");
    let counts: &[u64] = if context.quick { &[1, 4] } else { &[1, 4, 16, 64, 256, 1000] };
    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    for &count in counts {
        let x = count as f64;
        let bytes = context.bytes.max(count * (4 << 20));
        let before = Instant::now();
        let (took, _) = put_at_once(&served, count, bytes).await?;
        series.add("put, durable, in total", RATE, x, bytes as f64 / GIB / took);
        let around = before.elapsed().as_secs_f64() - took;
        series.add("connect all, and remove their files", SECONDS, x, around);
        series.add("server", MEMORY, x, served.process.memory() as f64);
    }
    served.stop().await?;
    Ok(series)
}

/// A working set larger than the arena: frames go round, and the rate must stay.
pub(super) async fn arena(context: &Context) -> anyhow::Result<Series> {
    let mut series =
        Series::new("arena", "One file through an arena of 64 MiB", "file size in parts of the arena");
    let arena = 64 * MIB;
    let parts: &[f64] = if context.quick { &[0.25, 0.5] } else { &[0.25, 1.0, 4.0, 16.0, 64.0] };
    let store = context.store()?;
    let serving = Serving { arguments: &["--arena", "64MiB"], ..Serving::default() };
    let served = Served::start(store.path(), serving).await?;
    let client = served.client().await?;
    for &part in parts {
        let bytes = (arena as f64 * part) as u64;
        let put = put_once(&client, "/file", bytes).await?;
        series.add("put, durable", RATE, part, bytes as f64 / GIB / put);
        let get = get_once(&client, "/file", bytes).await?;
        series.add("get", RATE, part, bytes as f64 / GIB / get);
        series.add("server", MEMORY, part, served.process.memory() as f64);
        client.remove("/file").await?;
    }
    served.stop().await?;
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quadratic_is_called_steep_and_what_is_linear_is_not() {
        let of = |power: i32| Measure {
            name: "x",
            unit: SECONDS,
            points: (0..5).map(|n| (10_f64.powi(n), 10_f64.powi(n * power))).collect(),
            is_cost: true,
        };
        assert_eq!((of(1).verdict().as_str(), of(2).verdict().as_str()), ("x^1.00 ok", "x^2.00 STEEP"));
        assert!((of(0).slope()).abs() < 1e-9);
    }
}
