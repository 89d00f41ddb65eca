//! What a step costs while many leases are live: it must not grow with them by more than their logarithm.
//!
//! `cargo bench -p leasehold-core`. The bar is an acquire in less than 2 us at a million leases.

use criterion::{BenchmarkId, Criterion};
use leasehold_core::identity::{Evidence, Identity};
use leasehold_core::ids::{FileId, LeaseId, RequestId, SessionId, Tick, WriteId};
use leasehold_core::input::{Access, Input, OnConflict, Want};
use leasehold_core::output::Output;
use leasehold_core::range::{BLOCK_BYTES, ByteRange};
use leasehold_core::{Config, Core, Limits};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::Duration;

const NOW: Tick = Tick(0);
const FILE: FileId = FileId(1);
const SESSIONS: u64 = 16;
/// How many steps are timed together, with the clock read once.
const BATCH: usize = 256;

/// A core in which every other block of one file is under a lease.
struct Busy {
    core: Core,
    live: u64,
    requests: u64,
    dice: u64,
    out: Vec<Output>,
}

impl Busy {
    fn new(live: u64) -> Busy {
        let limits = Limits { leases_max: 1 << 21, leases_per_session_max: 1 << 20, ..Limits::default() };
        let frames = u32::try_from(live + 8 * BATCH as u64).expect("an arena of some GiB");
        let core = Core::new(Config { frames, limits, ..Config::default() });
        let mut busy = Busy { core, live, requests: 0, dice: 1, out: Vec::new() };
        for session in 1..=SESSIONS {
            let identity = Arc::new(Identity {
                host: "node".into(),
                pid: 1,
                uid: 0,
                program: "bench".into(),
                evidence: Evidence::Claimed,
            });
            busy.step(Input::SessionOpened { session: SessionId(session), identity });
        }
        busy.step(Input::FileOpened { file: FILE, size: 0 });
        // In an order that has nothing to do with their places, as leases come and go in a server.
        let places = (0..live).map(|at| 2 * (at.wrapping_mul(0x9e37_79b1) % live.next_power_of_two()));
        for place in places {
            let acquire = busy.acquire(place);
            busy.step(acquire);
            busy.expose();
        }
        busy
    }

    fn step(&mut self, input: Input) {
        self.core.step(NOW, input, &mut self.out);
    }

    /// An acquire of one block.
    fn acquire(&mut self, block: u64) -> Input {
        self.requests += 1;
        let range = ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).expect("far from the end of all files");
        Input::Acquire {
            request: RequestId(self.requests),
            session: SessionId(1 + self.requests % SESSIONS),
            wants: vec![Want { file: FILE, range, access: Access::Overwrite }],
            on_conflict: OnConflict::Wait,
            deadline: Tick(1_000_000),
        }
    }

    /// Acquires of blocks between leases, anywhere.
    fn acquires(&mut self) -> Vec<Input> {
        let acquire = |at: usize| {
            self.dice = self.dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let stripe = self.live.div_ceil(BATCH as u64);
            // One of each stripe, so that no two of a batch want the same.
            self.acquire(1 + 2 * (at as u64 * stripe + (self.dice >> 33) % stripe))
        };
        (0..BATCH).map(acquire).collect()
    }

    /// The keys that were asked for are made; the leases, and whose they are.
    fn expose(&mut self) -> Vec<(SessionId, LeaseId)> {
        let asked = self.out.drain(..).filter_map(|output| match output {
            Output::Expose { lease, session, .. } => Some((session, lease)),
            Output::Zero { .. } => panic!("each session's frames were its own: no step is timed that zeroes"),
            _ => None,
        });
        let leases: Vec<(SessionId, LeaseId)> = asked.collect();
        for &(_, lease) in &leases {
            self.step(Input::Exposed { lease, result: Ok(()) });
        }
        self.out.clear();
        leases
    }

    fn timed(&mut self, inputs: Vec<Input>) -> Duration {
        let started = cpu_time();
        for input in inputs {
            self.step(input);
        }
        cpu_time() - started
    }

    fn commits(&mut self, leases: &[(SessionId, LeaseId)]) -> Vec<Input> {
        let commit = |&(session, lease): &(SessionId, LeaseId)| {
            self.requests += 1;
            Input::Commit { request: RequestId(self.requests), session, lease }
        };
        leases.iter().map(commit).collect()
    }

    /// The writebacks that have begun become durable.
    fn write(&mut self) {
        let writes: Vec<WriteId> = self.out.drain(..).filter_map(recorded).collect();
        for write in writes {
            self.step(Input::Recorded { write, result: Ok(()) });
            self.step(Input::Written { write, result: Ok(()) });
        }
        self.out.clear();
    }

    /// A batch of acquires and their commits: what the acquires took, and what the commits took up to their answers.
    fn round(&mut self) -> (Duration, Duration) {
        let acquires = self.acquires();
        let acquiring = self.timed(acquires);
        let leases = self.expose();
        let mut steps = self.commits(&leases);
        steps.extend(leases.iter().map(|&(_, lease)| Input::Fenced { lease }));
        steps.extend(leases.iter().map(|&(_, lease)| Input::Verified { lease, agrees: true }));
        let committing = self.timed(steps);
        self.write();
        (acquiring, committing)
    }
}

/// What this thread has computed: a step waits for nothing, so that is what it takes on a machine of its own.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn recorded(output: Output) -> Option<WriteId> {
    match output {
        Output::Record { write, .. } => Some(write),
        _ => None,
    }
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    for live in [100, 100_000, 1_000_000] {
        // Made when it is first measured.
        let mut busy = None;
        let mut measure = |name: &str, which: fn((Duration, Duration)) -> Duration| {
            group.bench_function(BenchmarkId::new(name, live), |bencher| {
                let busy = busy.get_or_insert_with(|| Busy::new(live));
                bencher.iter_custom(|times| {
                    let rounds = usize::try_from(times).expect("few").div_ceil(BATCH);
                    let total: Duration = (0..rounds).map(|_| which(busy.round())).sum();
                    total.mul_f64(times as f64 / (rounds * BATCH) as f64)
                });
            });
        };
        measure("acquire", |(acquiring, _)| acquiring);
        measure("commit", |(_, committing)| committing);
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    steps(&mut criterion);
    criterion.final_summary();
}
