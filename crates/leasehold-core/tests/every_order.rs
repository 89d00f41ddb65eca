//! Every order of a small world's inputs, breadth first: two clients, one file of two blocks, a breaker, time.
//!
//! `leasehold` must keep every promise that a state can express in all of them. What the older designs break is judged by
//! `leasehold check`, in a world with memory and disks.

use leasehold_core::breaks::Outcome;
use leasehold_core::identity::{Evidence, Identity};
use leasehold_core::ids::{FileId, LeaseId, RequestId, SessionId, Tick};
use leasehold_core::input::{Access, Change, Input, OnConflict, Want};
use leasehold_core::output::{Loader, Output, Reply};
use leasehold_core::range::{ByteRange, Run};
use leasehold_core::scheme::Scheme;
use leasehold_core::schemes::LEASEHOLD;
use leasehold_core::view::LeaseState;
use leasehold_core::{Config, Core};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

const FILE: FileId = FileId(1);
const GRACE_MS: u64 = 1_000;
/// The clients' patience with an acquire.
const PATIENCE_MS: u64 = 60_000;

/// What somebody may do, once each, at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// A session asks for these bytes, to overwrite them.
    Acquire(u64, u64, u64, OnConflict),
    /// A session waits for these bytes, to update them.
    Update(u64, u64, u64),
    /// A session captures these bytes of the lease it has.
    Capture(u64, u64, u64),
    /// A session commits, or releases, the lease it has.
    Commit(u64),
    Release(u64),
    Change(Change),
    Sync,
    EndSession(u64),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    core: Core,
    now: Tick,
    pending: Vec<Output>,
    /// Which acts are left, a bit each.
    left: u32,
    /// Keys whose fence was not proven.
    keys: BTreeMap<LeaseId, (SessionId, Run)>,
}

/// What was seen anywhere.
#[derive(Default)]
struct Seen {
    states: usize,
    broken: BTreeSet<&'static str>,
    outcomes: BTreeSet<String>,
    committed: bool,
    captured: bool,
    changed: bool,
    stuck: bool,
}

fn config(scheme: Scheme) -> Config {
    Config { scheme, grace_ms: GRACE_MS, frames: 6, ..Config::default() }
}

fn start(scheme: Scheme, acts: &[Act]) -> State {
    let core = Core::new(config(scheme));
    let left = (1 << acts.len()) - 1;
    let mut state = State { core, now: Tick(0), pending: Vec::new(), left, keys: BTreeMap::new() };
    for session in [1, 2] {
        let identity = Arc::new(Identity {
            host: "node".into(),
            pid: session as u32,
            uid: 0,
            program: "client".into(),
            evidence: Evidence::Claimed,
        });
        state.step(Input::SessionOpened { session: SessionId(session), identity }, &mut Seen::default());
    }
    state.step(Input::FileOpened { file: FILE, size: 8192 }, &mut Seen::default());
    state
}

impl State {
    fn step(&mut self, input: Input, seen: &mut Seen) {
        let mut out = Vec::new();
        self.core.step(self.now, input, &mut out);
        for output in out {
            match &output {
                Output::Reply { reply, .. } => {
                    seen.committed |= matches!(reply, Reply::Commit(Ok(_)));
                    seen.captured |= matches!(reply, Reply::Capture(Ok(_)));
                    seen.changed |= matches!(reply, Reply::Change(Ok(())));
                    continue;
                }
                Output::BreakEnded { record } => {
                    seen.outcomes.extend(record.ended.map(|(_, outcome)| format!("{outcome:?}")));
                    continue;
                }
                Output::Notify { .. } | Output::Forget { .. } => continue,
                Output::Load { into: run, .. }
                | Output::Capture { into: run, .. }
                | Output::Zero { into: run, .. }
                | Output::Expose { run, .. }
                | Output::Verify { run, .. }
                | Output::Merge { run, .. }
                | Output::Record { run, .. }
                | Output::Write { run, .. } => {
                    let reached = self.keys.values().any(|(_, other)| overlap(*run, *other));
                    if reached {
                        seen.broken.insert("frames that a key reaches");
                    }
                    let copied = |other: &Output| matches!(other, Output::Capture { from, .. } if overlap(*run, *from));
                    if self.pending.iter().any(copied) {
                        seen.broken.insert("frames that are being copied");
                    }
                }
                _ => {}
            }
            let is_write = |output: &Output| {
                matches!(output, Output::Record { .. } | Output::Write { .. } | Output::Merge { .. })
            };
            let is_clone = |output: &Output| matches!(output, Output::Perform { change: Change::Clone, .. });
            let both = |a: &dyn Fn(&Output) -> bool, b: &dyn Fn(&Output) -> bool| {
                a(&output) && self.pending.iter().any(b)
            };
            if both(&is_write, &is_clone) || both(&is_clone, &is_write) {
                seen.broken.insert("P9");
            }
            self.pending.push(output);
        }
    }

    /// The answer to an output: the good one, or the one that the design must survive.
    fn answer(&mut self, at: usize, well: bool, seen: &mut Seen) -> bool {
        let result = Ok(());
        let input = match self.pending[at].clone() {
            Output::Fence { lease, .. } if !well => Input::FenceUnproven { lease },
            _ if !well => return false,
            Output::Load { by: Loader::Lease(lease), .. } | Output::Zero { lease, .. } => {
                Input::LeaseLoaded { lease, result }
            }
            Output::Load { by: Loader::Read(request), .. } => Input::ReadLoaded { request, result },
            Output::Expose { lease, session, run, .. } => {
                self.keys.insert(lease, (session, run));
                Input::Exposed { lease, result }
            }
            Output::Fence { lease, .. } => {
                self.keys.remove(&lease);
                Input::Fenced { lease }
            }
            Output::Disconnect { session } => {
                self.keys.retain(|_, (of, _)| *of != session);
                Input::EndpointGone { session }
            }
            Output::Verify { lease, .. } => Input::Verified { lease, agrees: true },
            Output::Merge { lease, .. } => Input::Merged { lease, result },
            Output::Capture { lease, .. } => Input::Captured { lease },
            Output::Record { write, .. } => Input::Recorded { write, result },
            Output::Write { write, .. } => Input::Written { write, result },
            Output::Perform { request, .. } => Input::Performed { request, result: Ok(None) },
            Output::Flush { request, .. } => Input::Flushed { request, result },
            Output::Reply { .. }
            | Output::Notify { .. }
            | Output::BreakEnded { .. }
            | Output::Forget { .. } => {
                unreachable!("not kept")
            }
        };
        self.pending.remove(at);
        self.step(input, seen);
        true
    }

    /// Whether the act makes sense now, and then does it.
    fn act(&mut self, number: usize, act: Act, seen: &mut Seen) -> bool {
        let request = RequestId(1 + number as u64);
        let lease_of = |session: u64| {
            let mut leases = self.core.leases();
            leases.find(|view| view.session == SessionId(session) && view.state == LeaseState::Live)
        };
        let deadline = self.now.after_ms(PATIENCE_MS);
        let acquire = |session, start, end, access, on_conflict| {
            let range = ByteRange::new(start, end).expect("not empty");
            let wants = vec![Want { file: FILE, range, access }];
            Input::Acquire { request, session: SessionId(session), wants, on_conflict, deadline }
        };
        let input = match act {
            Act::Acquire(session, start, end, on_conflict) => {
                acquire(session, start, end, Access::Overwrite, on_conflict)
            }
            Act::Update(session, start, end) => {
                acquire(session, start, end, Access::Update, OnConflict::Wait)
            }
            Act::Capture(session, start, end) => {
                let range = ByteRange::new(start, end).expect("not empty");
                match lease_of(session) {
                    Some(view) => {
                        let (session, lease) = (view.session, view.id);
                        Input::Capture { request, session, lease, range, deadline }
                    }
                    None => return false,
                }
            }
            Act::Commit(session) => match lease_of(session) {
                Some(view) => Input::Commit { request, session: view.session, lease: view.id },
                None => return false,
            },
            Act::Release(session) => match lease_of(session) {
                Some(view) => Input::Release { request, session: view.session, lease: view.id },
                None => return false,
            },
            Act::Change(change) => {
                let breaker = self.core.leases().next().map(|view| view.identity);
                let Some(breaker) = breaker else { return false };
                Input::Change { request, file: FILE, change, breaker }
            }
            Act::Sync => Input::Sync { request, file: FILE },
            Act::EndSession(session) => Input::SessionEnded { session: SessionId(session) },
        };
        self.left &= !(1 << number);
        self.step(input, seen);
        true
    }

    fn next(&self, acts: &[Act], seen: &mut Seen) -> Vec<State> {
        let mut next = Vec::new();
        let mut attempt = |change: &mut dyn FnMut(&mut State, &mut Seen) -> bool| {
            let mut state = self.clone();
            if change(&mut state, seen) {
                next.push(state);
            }
        };
        for (number, &act) in acts.iter().enumerate() {
            if self.left & (1 << number) != 0 {
                attempt(&mut |state, seen| state.act(number, act, seen));
            }
        }
        for at in 0..self.pending.len() {
            for well in [true, false] {
                attempt(&mut |state, seen| state.answer(at, well, seen));
            }
        }
        if let Some(deadline) = self.core.next_deadline() {
            attempt(&mut |state, seen| {
                state.now = deadline;
                state.step(Input::Tick, seen);
                true
            });
        }
        next
    }
}

fn overlap(a: Run, b: Run) -> bool {
    a.first.0 < b.first.0 + b.frames && b.first.0 < a.first.0 + a.frames
}

/// States are told apart by 64 bits of hash; a collision would hide a state, and is as unlikely as it sounds.
fn fingerprint(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

fn explore(scheme: Scheme, acts: &[Act]) -> Seen {
    let first = start(scheme, acts);
    let mut seen = Seen::default();
    let mut known = HashSet::from([fingerprint(&first)]);
    let mut queue = VecDeque::from([first]);
    while let Some(state) = queue.pop_front() {
        seen.states += 1;
        if let Err(violation) = state.core.check() {
            seen.broken.insert(violation.promise());
        }
        let next = state.next(acts, &mut seen);
        // Nothing can happen any more unless a client does something: then nobody may still wait.
        let quiet = state.pending.is_empty() && state.core.next_deadline().is_none();
        seen.stuck |= quiet && state.core.waits().next().is_some();
        queue.extend(next.into_iter().filter(|state| known.insert(fingerprint(state))));
    }
    seen
}

const PUNCHED: ByteRange = match ByteRange::new(512, 4096) {
    Some(range) => range,
    None => panic!("not empty"),
};
const TRUNCATE: Act = Act::Change(Change::Truncate { size: 2048 });

/// Two writers in one block, one of them across two; a truncate into the shared block.
const NEIGHBOURS: [Act; 5] = [
    Act::Acquire(1, 0, 1024, OnConflict::Wait),
    Act::Acquire(2, 1024, 8192, OnConflict::Wait),
    Act::Commit(1),
    Act::Commit(2),
    TRUNCATE,
];

/// The same with more going on at once.
const CROWD: [Act; 7] = [
    NEIGHBOURS[0],
    NEIGHBOURS[1],
    NEIGHBOURS[2],
    NEIGHBOURS[3],
    NEIGHBOURS[4],
    Act::Change(Change::Punch { range: PUNCHED }),
    Act::Sync,
];

/// Two clients want the same bytes, one of them breaks the other, and a truncate comes between.
const RIVALS: [Act; 5] = [
    Act::Acquire(1, 0, 4096, OnConflict::Wait),
    Act::Acquire(2, 2048, 8192, OnConflict::Break),
    Act::Commit(1),
    TRUNCATE,
    Act::EndSession(2),
];

/// One client; a sync, a removal, a release.
const ALONE: [Act; 4] =
    [Act::Acquire(1, 0, 8192, OnConflict::Wait), Act::Release(1), Act::Sync, Act::Change(Change::Remove)];

/// A resident lease: two captures that share a block, a truncate into it, a commit, a rival.
const RESIDENT: [Act; 6] = [
    Act::Update(1, 0, 8192),
    Act::Capture(1, 512, 8192),
    Act::Capture(1, 0, 4096),
    TRUNCATE,
    Act::Commit(1),
    Act::Acquire(2, 0, 1024, OnConflict::Break),
];

/// A capture while others come and go, and an arena in which it may have to wait.
const CAPTURED: [Act; 6] = [
    Act::Update(1, 0, 8192),
    Act::Capture(1, 0, 8192),
    Act::Acquire(2, 8192, 20480, OnConflict::Wait),
    Act::EndSession(1),
    Act::Release(1),
    Act::Change(Change::Remove),
];

/// A clone among commits, a capture and a truncate.
const CLONED: [Act; 6] = [
    Act::Update(1, 512, 8192),
    Act::Capture(1, 512, 4096),
    Act::Commit(1),
    TRUNCATE,
    Act::Change(Change::Clone),
    Act::Sync,
];

#[test]
fn leasehold_keeps_every_promise_in_every_order() {
    for acts in [&NEIGHBOURS[..], &CROWD, &RIVALS, &ALONE, &RESIDENT, &CAPTURED, &CLONED] {
        let seen = explore(LEASEHOLD, acts);
        assert_eq!(seen.broken, BTreeSet::new(), "after {} states", seen.states);
        assert!(!seen.stuck, "somebody waits for ever");
        assert!(seen.changed && seen.states > 100, "only {} states", seen.states);
        let commits = acts.contains(&Act::Commit(1));
        assert_eq!(seen.committed, commits);
        assert_eq!(seen.captured, acts.iter().any(|act| matches!(act, Act::Capture(..))));
        let mut outcomes =
            BTreeSet::from([Outcome::Fenced, Outcome::Quarantined].map(|one| format!("{one:?}")));
        outcomes.insert(format!("{:?}", if commits { Outcome::Committed } else { Outcome::Released }));
        assert!(outcomes.is_subset(&seen.outcomes), "breaks end in all these ways: {:?}", seen.outcomes);
        println!("{} states", seen.states);
    }
}
