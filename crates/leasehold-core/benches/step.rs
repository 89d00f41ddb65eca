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
use std::time::{Duration, Instant};

const NOW: Tick = Tick(0);
const FILE: FileId = FileId(1);
const SESSIONS: u64 = 16;
/// How many steps are timed together, with the clock read once.
const BATCH: usize = 256;

/// A core in which half of a file's blocks are under a lease, anywhere, and come and go.
struct Busy {
    core: Core,
    held: Vec<Held>,
    /// Blocks without a lease.
    free: Vec<u64>,
    requests: u64,
    dice: u64,
    out: Vec<Output>,
}

/// A lease of one block.
struct Held {
    session: SessionId,
    lease: LeaseId,
    block: u64,
}

impl Busy {
    fn new(live: usize) -> Busy {
        let limits = Limits { leases_max: 1 << 21, leases_per_session_max: 1 << 20, ..Limits::default() };
        let frames = u32::try_from(live + 8 * BATCH).expect("an arena of some GiB");
        let core = Core::new(Config { frames, limits, ..Config::default() });
        let free = (0..2 * live as u64).collect();
        let mut busy = Busy { core, held: Vec::new(), free, requests: 0, dice: 1, out: Vec::new() };
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
        while busy.held.len() < live {
            let batch = busy.blocks(BATCH.min(live - busy.held.len()));
            for acquire in busy.acquires(&batch) {
                busy.step(acquire);
            }
            busy.grant(&batch);
        }
        busy
    }

    fn step(&mut self, input: Input) {
        self.core.step(NOW, input, &mut self.out);
    }

    /// How many leases end and begin together.
    fn batch(&self) -> usize {
        BATCH.min(self.held.len() / 2)
    }

    fn any(&mut self, of: usize) -> usize {
        self.dice = self.dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (((self.dice >> 32) * of as u64) >> 32) as usize
    }

    /// Some of the blocks without a lease, each for a session.
    fn blocks(&mut self, count: usize) -> Vec<(SessionId, u64)> {
        let block = |at: usize| {
            let block = self.any(self.free.len());
            (SessionId(1 + at as u64 % SESSIONS), self.free.swap_remove(block))
        };
        (0..count).map(block).collect()
    }

    fn acquires(&mut self, blocks: &[(SessionId, u64)]) -> Vec<Input> {
        let acquire = |&(session, block): &(SessionId, u64)| {
            self.requests += 1;
            let range =
                ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).expect("far from the end of all files");
            Input::Acquire {
                request: RequestId(self.requests),
                session,
                wants: vec![Want { file: FILE, range, access: Access::Overwrite }],
                on_conflict: OnConflict::Wait,
                deadline: Tick(1_000_000),
            }
        };
        blocks.iter().map(acquire).collect()
    }

    /// The frames that were another session's are zeroed, and the keys are made.
    fn grant(&mut self, blocks: &[(SessionId, u64)]) {
        let asked = self.out.drain(..).filter_map(|output| match output {
            Output::Expose { lease, .. } => Some((lease, false)),
            Output::Zero { lease, .. } => Some((lease, true)),
            _ => None,
        });
        let leases: Vec<(LeaseId, bool)> = asked.collect();
        assert_eq!(leases.len(), blocks.len(), "free blocks are leased at once");
        for (&(session, block), (lease, zero)) in blocks.iter().zip(leases) {
            if zero {
                self.step(Input::LeaseLoaded { lease, result: Ok(()) });
            }
            self.step(Input::Exposed { lease, result: Ok(()) });
            self.held.push(Held { session, lease, block });
        }
        self.out.clear();
    }

    fn timed(&mut self, inputs: Vec<Input>) -> Duration {
        let started = cpu_time();
        for input in inputs {
            self.step(input);
        }
        cpu_time() - started
    }

    /// Commits of leases, anywhere, up to their answers.
    fn commits(&mut self) -> Vec<Input> {
        let ending: Vec<Held> = (0..self.batch())
            .map(|_| {
                let at = self.any(self.held.len());
                self.held.swap_remove(at)
            })
            .collect();
        let mut steps = Vec::new();
        for &Held { session, lease, block } in &ending {
            self.requests += 1;
            steps.push(Input::Commit { request: RequestId(self.requests), session, lease });
            self.free.push(block);
        }
        steps.extend(ending.iter().map(|&Held { lease, .. }| Input::Fenced { lease }));
        steps.extend(ending.iter().map(|&Held { lease, .. }| Input::Verified { lease, agrees: true }));
        steps
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

    /// A batch of commits, and as many acquires elsewhere: what the acquires took, and what the commits took.
    fn round(&mut self) -> (Duration, Duration) {
        let commits = self.commits();
        let committing = self.timed(commits);
        self.write();
        let blocks = self.blocks(self.batch());
        let acquires = self.acquires(&blocks);
        let acquiring = self.timed(acquires);
        self.grant(&blocks);
        (acquiring, committing)
    }

    /// What each of many acquires took, sorted. By a clock that does not stop while others run: it is the one that can be
    /// read before and after one step.
    fn singles(&mut self, rounds: usize) -> Vec<Duration> {
        let mut took = Vec::new();
        for _ in 0..rounds {
            let commits = self.commits();
            self.timed(commits);
            self.write();
            let blocks = self.blocks(self.batch());
            for acquire in self.acquires(&blocks) {
                let started = Instant::now();
                self.step(acquire);
                took.push(started.elapsed());
            }
            self.grant(&blocks);
        }
        took.sort_unstable();
        took
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
    for live in [100, 10_000, 100_000, 1_000_000] {
        // Made when it is first measured.
        let mut busy = None;
        let mut measure = |name: &str, which: fn((Duration, Duration)) -> Duration| {
            group.bench_function(BenchmarkId::new(name, live), |bencher| {
                let busy = busy.get_or_insert_with(|| Busy::new(live));
                bencher.iter_custom(|times| {
                    let batch = busy.batch();
                    let rounds = usize::try_from(times).expect("few").div_ceil(batch);
                    let total: Duration = (0..rounds).map(|_| which(busy.round())).sum();
                    total.mul_f64(times as f64 / (rounds * batch) as f64)
                });
            });
        };
        measure("acquire", |(acquiring, _)| acquiring);
        measure("commit", |(_, committing)| committing);
        if let Some(mut busy) = busy {
            let took = busy.singles(100_000 / busy.batch());
            let (median, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
            println!("step/acquire/{live}: one by one, median {median:?}, 99th percentile {p99:?}");
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    steps(&mut criterion);
    criterion.final_summary();
}
