//! Rows about the core and its tables: the time of a step among a million leases, and what a block costs in memory.

use super::Context;
use super::figure::{Bar, Found, Row, Spread, Unit};
use super::process::{Served, Serving};
use super::put::put_once;
use leasehold_core::ids::{FileId, RequestId, SessionId, Tick};
use leasehold_core::input::{Access, Input, OnConflict, Want};
use leasehold_core::output::{Output, Reply};
use leasehold_core::range::ByteRange;
use leasehold_core::{Config, Core, Limits};
use std::time::Instant;

const BLOCK: u64 = 4096;
const FILE: FileId = FileId(1);

/// A core in which one session holds `leases` leases of a block each, with a free block behind each.
struct Loaded {
    core: Core,
    requests: u64,
    out: Vec<Output>,
}

impl Loaded {
    fn new(leases: u64, room: u64) -> Loaded {
        let all = usize::try_from(leases + room).expect("a few millions");
        let limits = Limits { leases_max: all, leases_per_session_max: all, ..Limits::default() };
        let frames = u32::try_from(all).expect("a few millions");
        let mut core = Core::new(Config { frames, limits, ..Config::default() });
        let mut out = Vec::new();
        core.step(Tick(0), Input::FileOpened { file: FILE, size: 0 }, &mut out);
        let mut loaded = Loaded { core, requests: 0, out };
        for index in 0..leases {
            loaded.acquire(2 * index);
        }
        loaded
    }

    /// Leases a block that is free; the seconds that the step took which decides it.
    fn acquire(&mut self, block: u64) -> f64 {
        self.requests += 1;
        let range = ByteRange::at(block * BLOCK, BLOCK).expect("not empty");
        let acquire = Input::Acquire {
            request: RequestId(self.requests),
            session: SessionId::LOCAL,
            wants: vec![Want { file: FILE, range, access: Access::Overwrite }],
            on_conflict: OnConflict::Refuse,
            deadline: Tick(u64::MAX),
        };
        self.out.clear();
        let began = Instant::now();
        self.core.step(Tick(1), acquire, &mut self.out);
        let took = began.elapsed().as_secs_f64();
        let [Output::Expose { lease, .. }] = self.out[..] else {
            panic!("a free block is leased at once: {:?}", self.out);
        };
        self.out.clear();
        self.core.step(Tick(1), Input::Exposed { lease, result: Ok(()) }, &mut self.out);
        assert!(
            matches!(self.out[..], [Output::Reply { reply: Reply::Acquire(Ok(_)), .. }]),
            "{:?}",
            self.out
        );
        took
    }
}

/// Seconds of `samples` acquires among `leases` leases, spread over the file.
pub(super) fn acquires(leases: u64, samples: u64) -> Vec<f64> {
    let mut loaded = Loaded::new(leases, samples);
    // The multiplier is odd and the places are twice as many as the samples need: no place comes twice.
    let places = leases.next_power_of_two();
    let spread = (0..).map(|n: u64| n.wrapping_mul(2_654_435_761) % places).filter(|place| *place < leases);
    spread.take(usize::try_from(samples).expect("few")).map(|place| loaded.acquire(2 * place + 1)).collect()
}

pub(super) async fn step(context: &Context) -> anyhow::Result<Vec<Row>> {
    let (leases, samples) = if context.quick { (10_000, 1_000) } else { (1_000_000, 100_000) };
    let took = tokio::task::spawn_blocking(move || acquires(leases, samples)).await?;
    Ok(vec![Row {
        name: "step",
        what: "the core's step for an acquire, at a million leases",
        unit: Unit::Seconds,
        found: Found::Ours(Spread::new(took)),
        bar: Some(Bar::Under(2e-6)),
        note: Some(format!(
            "{samples} acquires of blocks between those that are leased, spread over the file"
        )),
    }])
}

/// What the server's own memory grows by: for each block of the arena, and for each block of a file it has written.
pub(super) async fn metadata(context: &Context) -> anyhow::Result<Vec<Row>> {
    let empty_with = async |arena: u64| {
        let store = context.store()?;
        let arena = format!("{arena}");
        let serving = Serving { arguments: &["--pages", "normal", "--arena", &arena], ..Serving::default() };
        let served = Served::start(store.path(), serving).await?;
        let memory = served.process.memory();
        served.stop().await?;
        anyhow::Ok(memory)
    };
    let (small, large) = (256 << 20, 2 << 30);
    let frames = (large - small) / BLOCK;
    let of_a_frame = empty_with(large).await?.saturating_sub(empty_with(small).await?) as f64 / frames as f64;

    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    let client = served.client().await?;
    put_once(&client, "/warm", (64 << 20).min(context.bytes)).await?;
    let before = served.process.memory();
    put_once(&client, "/file", context.bytes).await?;
    let grown = served.process.memory().saturating_sub(before);
    served.stop().await?;
    let of_a_block = grown as f64 / (context.bytes / BLOCK) as f64;
    Ok(vec![Row {
        name: "metadata",
        what: "the server's own memory for a cached block",
        unit: Unit::Bytes,
        found: Found::Ours(Spread::new(vec![of_a_frame + of_a_block])),
        bar: Some(Bar::Under(64.0)),
        note: Some(format!(
            "{of_a_frame:.1} bytes for its frame, {of_a_block:.1} for its checksum; resident memory beside the arena"
        )),
    }])
}
