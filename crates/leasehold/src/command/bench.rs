//! `leasehold bench`: this machine's figures, each against the best that one could do otherwise.
//!
//! Every figure is a ratio of two things measured in turn, in one run, so that a machine whose speed drifts changes both.
//! Servers and peers are processes of their own on a throw-away store; none of them outlives the bench.

mod clients;
mod core;
mod figure;
mod get;
mod growth;
mod guard;
mod latency;
mod machine;
mod mount;
mod namespaces;
pub(crate) mod peer;
mod plain;
mod plot;
mod process;
mod put;
mod tcp;
mod tools;

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::show;
use crate::size::Size;
use figure::Row;
use futures_util::future::BoxFuture;
use growth::Series;
use leasehold_client::{AcquireOptions, OnConflict};
use machine::Machine;
use serde_json::json;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// Of every transfer, ours and the baselines'.
const CHUNK: usize = 8 << 20;
/// Chunks under way at once.
const DEPTH: usize = 4;
const GIB: f64 = (1u64 << 30) as f64;
/// A row that takes longer is broken.
const ROW_PATIENCE: Duration = Duration::from_secs(900);

/// Measure this machine: Leasehold against the best one could do without it
///
/// On a throw-away store, by processes of its own. Each figure is a ratio of two that were taken in turn.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// The rows to measure, or the series with --growth [default: all]
    #[arg(value_name = "ROW", value_parser = row_names())]
    rows: Vec<String>,
    /// How many pairs of each
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// How much to transfer
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    size: Size,
    /// Where the throw-away store is made; on the disk to be measured [default: the working directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Instead of the rows: time and memory as files, leases and clients grow
    #[arg(long)]
    growth: bool,
    /// Write a plot of each series into this directory
    #[arg(long, value_name = "DIR", requires = "growth")]
    plots: Option<PathBuf>,
    /// A network filesystem to compare with: a directory where it is mounted
    #[arg(long, value_name = "DIR")]
    mounted: Option<PathBuf>,
    /// One small pair of each: whether it runs, not how fast
    #[arg(long, conflicts_with_all = ["pairs", "size"])]
    quick: bool,
}

/// What every row needs to know.
struct Context {
    /// A directory that goes with the bench.
    scratch: PathBuf,
    /// Whether that is in memory.
    in_memory: bool,
    bytes: u64,
    pairs: u16,
    mounted: Option<PathBuf>,
    quick: bool,
}

/// One pair of measurements.
struct Round {
    /// The first is to warm up.
    counts: bool,
}

impl Context {
    /// A new store's directory.
    fn store(&self) -> anyhow::Result<TempDir> {
        Ok(TempDir::with_prefix_in("store-", &self.scratch)?)
    }

    fn rounds(&self) -> impl Iterator<Item = Round> + use<> {
        (0..=self.pairs).map(|round| Round { counts: round > 0 })
    }

    /// # Errors
    /// If what is written reaches no disk.
    fn needs_a_disk(&self) -> Outcome {
        if self.in_memory {
            let text = format!(
                "{} is in memory (tmpfs), where nothing becomes durable; name a directory on a disk with --directory",
                self.scratch.display()
            );
            return Err(Failure::new(Exit::Usage, text).into());
        }
        Ok(())
    }
}

type Measure = for<'a> fn(&'a Context) -> BoxFuture<'a, anyhow::Result<Vec<Row>>>;

/// What can be measured, in the order of the table. One measurement may give several rows.
const MEASURES: &[(&str, Measure)] = &[
    ("put", |context| Box::pin(put::against_the_bounds(context))),
    ("put-pwrite", |context| Box::pin(put::against_pwrite(context))),
    ("put-direct", |context| Box::pin(put::against_direct(context))),
    ("put-frames", |context| Box::pin(put::against_frames(context))),
    ("rsync", |context| Box::pin(tools::rsync(context))),
    ("nc", |context| Box::pin(tools::netcat(context))),
    ("mounted", |context| Box::pin(tools::mounted(context))),
    ("get", |context| Box::pin(get::against_sendfile(context))),
    ("tls", |context| Box::pin(put::over_tls(context))),
    ("clients", |context| Box::pin(clients::sixteen_against_one(context))),
    ("acquire-commit", |context| Box::pin(latency::acquire_commit(context))),
    ("fence", |context| Box::pin(latency::fence(context))),
    ("truncate", |context| Box::pin(latency::truncate(context))),
    ("leases", |context| Box::pin(latency::among_many_leases(context))),
    ("step", |context| Box::pin(core::step(context))),
    ("metadata", |context| Box::pin(core::metadata(context))),
    ("mtu-1500", |context| Box::pin(namespaces::mtu_1500(context))),
    ("mount", |context| Box::pin(mount::against_plain_fuse(context))),
    ("guard", |context| Box::pin(guard::opens(context))),
];

type Grow = for<'a> fn(&'a Context) -> BoxFuture<'a, anyhow::Result<Series>>;

/// What can be measured with `--growth`.
const SERIES: &[(&str, Grow)] = &[
    ("file", |context| Box::pin(growth::file_size(context))),
    ("files", |context| Box::pin(growth::files(context))),
    ("live-leases", |context| Box::pin(growth::leases(context))),
    ("many-clients", |context| Box::pin(growth::clients(context))),
    ("arena", |context| Box::pin(growth::arena(context))),
];

fn row_names() -> impl clap::builder::TypedValueParser<Value = String> {
    use clap::builder::TypedValueParser as _;
    let names = MEASURES.iter().map(|(name, _)| *name).chain(SERIES.iter().map(|(name, _)| *name));
    clap::builder::PossibleValuesParser::new(names).map(|name| name)
}

/// Waits for what is in the way as long as it takes; the bench as a whole is bounded.
fn patient() -> AcquireOptions {
    AcquireOptions { on_conflict: OnConflict::Wait, wait: Duration::from_secs(60) }
}

/// The bytes that are written: different in each chunk, the same every time.
fn source() -> &'static [Vec<u8>] {
    static SOURCE: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut chunk = || {
            let mut bytes = Vec::with_capacity(CHUNK);
            while bytes.len() < CHUNK {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend_from_slice(&state.to_le_bytes());
            }
            bytes
        };
        (0..DEPTH).map(|_| chunk()).collect()
    });
    &SOURCE
}

/// Measures one thing; a child that hangs must not hang the bench.
async fn in_time<T>(name: &str, measure: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    eprintln!("measuring {name} (load average {})", machine::load());
    let measured = tokio::time::timeout(ROW_PATIENCE, measure).await.map_err(|_| {
        let text = format!("{name} did not end within {} s", ROW_PATIENCE.as_secs());
        Failure::new(Exit::Failed, text)
    })?;
    measured.map_err(|error| error.context(format!("cannot measure {name}")))
}

impl Bench {
    /// On a signal, too, the store is thrown away and the children are stopped: they go with what is dropped.
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let mut terminate = signal(SignalKind::terminate())?;
        let stopped = || Err(Failure::new(Exit::Failed, "stopped; the store is thrown away").into());
        tokio::select! {
            measured = self.measure(common) => measured,
            _ = tokio::signal::ctrl_c() => stopped(),
            _ = terminate.recv() => stopped(),
        }
    }

    async fn measure(&self, common: &Common) -> Outcome {
        let parent = self.directory.clone().unwrap_or_else(|| PathBuf::from("."));
        let scratch = tempfile::Builder::new().prefix("leasehold-bench-").tempdir_in(&parent);
        let scratch = scratch.map_err(|error| {
            let parent = parent.display();
            let text = format!("cannot make a directory in {parent}: {error}; name another with --directory");
            Failure::new(Exit::Failed, text)
        })?;
        let machine = Machine::look(&parent)?;
        let context = Context {
            scratch: std::fs::canonicalize(scratch.path())?,
            in_memory: machine::is_memory(scratch.path())?,
            bytes: if self.quick { 16 << 20 } else { self.size.0.max(1).next_multiple_of(4096) },
            pairs: if self.quick { 1 } else { self.pairs },
            mounted: self.mounted.clone(),
            quick: self.quick,
        };
        if !common.json {
            for line in machine.lines() {
                show::line(line)?;
            }
        }
        if self.growth {
            return self.grow(common, &machine, &context).await;
        }
        let mut rows = Vec::new();
        for (name, measure) in MEASURES {
            if self.wants(name) {
                rows.extend(in_time(name, measure(&context)).await?);
            }
        }
        self.print(common, &machine, &context, &rows)
    }

    fn wants(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| row == name)
    }

    async fn grow(&self, common: &Common, machine: &Machine, context: &Context) -> Outcome {
        let mut found = Vec::new();
        for (name, grow) in SERIES {
            if self.wants(name) {
                let series = in_time(name, grow(context)).await?;
                if let Some(directory) = &self.plots {
                    std::fs::create_dir_all(directory)?;
                    std::fs::write(directory.join(format!("{name}.svg")), series.svg())?;
                }
                found.push(series);
            }
        }
        if common.json {
            let series: Vec<_> = found.iter().map(Series::json).collect();
            return Ok(show::json_document(&json!({ "machine": machine, "series": series }))?);
        }
        let mut table = show::table(&["SERIES", "WHAT", "FIRST", "LAST", "STEEPEST"]);
        for line in found.iter().flat_map(Series::lines) {
            table.add_row(line);
        }
        show::line(show::text(&table))?;
        Ok(show::line(
            "\nSteepest: the power of x by which a cost grows, between points a hundred times apart.",
        )?)
    }

    fn print(&self, common: &Common, machine: &Machine, context: &Context, rows: &[Row]) -> Outcome {
        if common.json {
            let rows: Vec<_> = rows.iter().map(Row::json).collect();
            let value = json!({
                "version": env!("CARGO_PKG_VERSION"),
                "machine": machine,
                "load_after": machine::load(),
                "bytes": context.bytes,
                "pairs": context.pairs,
                "chunk": CHUNK,
                "depth": DEPTH,
                "rows": rows,
            });
            return Ok(show::json_document(&value)?);
        }
        let mut table = show::table(&["MEASURE", "OURS", "BASELINE", "RATIO", "BAR", ""]);
        for row in rows {
            table.add_row(row.cells());
        }
        show::line(show::text(&table))?;
        show::line("\nMedians; ratios pair by pair, with the least and the greatest.")?;
        for row in rows {
            if let Some(note) = &row.note {
                show::line(format_args!("{}: {note}", row.name))?;
            }
        }
        Ok(())
    }
}
