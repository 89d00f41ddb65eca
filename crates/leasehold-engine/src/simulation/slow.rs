//! One call of the kernel takes long: who waits for it, and who does not.

use super::fabric::{FakeFabric, Skip, Weather};
use super::simulate;
use super::sync::block_on;
use super::world::{FENCE, GRACE, PATIENCE, SLACK, path, who};
use crate::arena::Pages;
use crate::disk::{Call, Fate, Fates};
use crate::engine::{Config, Engine, Wanted};
use crate::event::Event;
use crate::files::{FileError, OpenFile};
use crate::storage::tests::power::workshop;
use crate::storage::{Backend, StorageConfig};
use crate::sync;
use leasehold_core::ids::LeaseId;
use leasehold_core::input::{Access, OnConflict};
use leasehold_core::range::ByteRange;
use leasehold_fabric::message::Message;
use leasehold_fabric::{CloseReason, Endpoint, Fabric, Handler};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Nobody who need not wait for it may take so long.
const LONG: Duration = Duration::from_secs(20);

/// Which call takes long.
#[derive(Clone, Copy, Debug)]
struct Slow {
    call: Call,
    number: usize,
    /// Of files whose names begin so.
    name: &'static str,
}

#[derive(Default)]
struct State {
    armed: bool,
    calls: BTreeMap<Call, usize>,
    has_begun: bool,
    is_over: bool,
    /// All that the file is used for is done.
    is_used: bool,
}

fn fates(slow: Slow, state: &Arc<Mutex<State>>) -> Fates {
    let state = Arc::clone(state);
    Fates::new(move |call, name| {
        {
            let mut state = state.lock().unwrap();
            if !state.armed || !name.starts_with(slow.name) {
                return Fate::Asked;
            }
            let number = state.calls.entry(call).or_default();
            *number += 1;
            if (call, *number - 1) != (slow.call, slow.number) {
                return Fate::Asked;
            }
            state.has_begun = true;
        }
        sync::sleep(LONG);
        state.lock().unwrap().is_over = true;
        Fate::Asked
    })
}

fn start(place: &Path, fabric: &Arc<FakeFabric>, fates: Fates) -> Engine {
    let storage =
        StorageConfig { backend: Backend::Threads, fates: Some(fates), ..StorageConfig::new(place) };
    let config = Config {
        arena_bytes: 4 << 20,
        pages: Pages::Normal,
        grace_ms: GRACE.as_millis() as u64,
        fence_ms: FENCE.as_millis() as u64,
        ..Config::new(place)
    };
    Engine::start_on(config, storage, fabric.clone(), Arc::default()).unwrap()
}

/// Everything that is done to one file, on the disk too. `told` hears what took how long.
async fn use_file(
    engine: &Engine,
    name: &str,
    told: &mut Vec<(&'static str, Duration)>,
) -> Result<(), FileError> {
    let (path, copy) = (path(name), path(&format!("{name} copy")));
    let range = |start, end| ByteRange::new(start, end).unwrap();
    let write = |offset, length| engine.write(&path, offset, vec![7; length].into(), who("user"));
    let mut began = sync::now();
    let mut step = |what| {
        let ends = sync::now();
        told.push((what, ends.duration_since(began)));
        began = ends;
    };
    write(0, 40_000).await?;
    step("write");
    engine.sync(&path).await?;
    step("sync");
    write(5000, 9000).await?;
    step("write of parts");
    engine.punch(&path, range(4096, 12_000), who("user")).await?;
    step("punch");
    engine.zero(&path, range(100, 9000), who("user")).await?;
    step("zero");
    engine.truncate(&path, 30_001, who("user")).await?;
    step("truncate");
    engine.clone_file(&path, &copy, true, who("user")).await?;
    step("clone");
    assert_eq!(engine.read(&path, range(0, 30_001)).await?.len(), 30_001);
    step("read");
    engine.sync(&path).await?;
    step("second sync");
    engine.rename(&copy, &path, who("user")).await?;
    step("rename");
    Ok(())
}

struct Ear;

impl Handler for Ear {
    fn connected(&mut self, _: Arc<dyn Endpoint>) {}

    fn message(&mut self, message: &[u8]) {
        Message::parse(message).expect("the server speaks our language");
    }

    fn poisoned(&mut self) {}

    fn closed(&mut self, _: &CloseReason) {}
}

/// A holder that does not let go of its lease, until drop.
struct Deaf {
    file: OpenFile,
    lease: LeaseId,
    events: tokio::sync::mpsc::Receiver<Event>,
    _endpoint: Arc<dyn Endpoint>,
}

impl Deaf {
    fn hold(engine: &Engine, fabric: &FakeFabric, name: &str) -> Deaf {
        let file = block_on(engine.open(&path(name))).unwrap();
        let (send, events) = tokio::sync::mpsc::channel(64);
        let opened = block_on(engine.open_session(who("holder"), None, [127, 0, 0, 1].into(), send));
        let opened = opened.unwrap_or_else(|_| panic!("a session"));
        let address = engine.started().data_address;
        let (endpoint, _) = fabric.connect(address, &opened.token, Box::new(Ear), PATIENCE).unwrap();
        let range = ByteRange::new(0, 8192).unwrap();
        let wanted = Wanted { path: path(name), range, access: Access::Overwrite, create: false };
        let acquire = engine.acquire(opened.session, vec![wanted], OnConflict::Break, PATIENCE);
        let lease = block_on(acquire).unwrap_or_else(|_| panic!("a lease"))[0].lease;
        Deaf { file, lease, events, _endpoint: endpoint }
    }

    /// The truncate that breaks the lease.
    fn is_broken(&self, engine: &Engine) {
        block_on(engine.truncate_open(&self.file, 100, who("breaker"))).unwrap();
    }

    /// That it was told of the break, and then of the revoke.
    fn was_told(&mut self) -> bool {
        let heard: Vec<Event> = std::iter::from_fn(|| self.events.try_recv().ok()).collect();
        let of = |event: &Event| match event {
            Event::Break { lease, .. } if *lease == self.lease => Some("break"),
            Event::Revoked { lease, .. } if *lease == self.lease => Some("revoked"),
            _ => None,
        };
        heard.iter().filter_map(of).eq(["break", "revoked"])
    }
}

/// The engine is at work on one file, a call of which takes long; then `meanwhile` happens, and must be over before that.
/// How many calls of each kind there were, and whether the slow one was one of them.
fn run(slow: Slow, meanwhile: fn(&Engine, Deaf)) -> (BTreeMap<Call, usize>, bool) {
    let place = workshop();
    let at = place.path().to_owned();
    let outcome = simulate(slow.number as u64, move || {
        let state = Arc::<Mutex<State>>::default();
        let fabric = Arc::new(FakeFabric::new(Weather::default(), Skip::Nothing));
        let engine = start(&at, &fabric, fates(slow, &state));
        for name in ["slow", "quick", "leased"] {
            block_on(engine.create(&path(name))).unwrap();
            block_on(engine.write(&path(name), 0, vec![1; 20_000].into(), who("user"))).unwrap();
            block_on(engine.sync(&path(name))).unwrap();
        }
        let deaf = Deaf::hold(&engine, &fabric, "leased");
        state.lock().unwrap().armed = true;
        let (user, used) = (engine.clone(), Arc::clone(&state));
        let at_work = sync::spawn("user", move || {
            block_on(use_file(&user, "slow", &mut Vec::new()))
                .unwrap_or_else(|error| panic!("{slow:?}: {error}"));
            used.lock().unwrap().is_used = true;
        });
        while {
            let state = state.lock().unwrap();
            !state.has_begun && !state.is_used
        } {
            sync::sleep(Duration::from_millis(1));
        }
        let came = state.lock().unwrap().has_begun;
        if came {
            meanwhile(&engine, deaf);
            assert!(!state.lock().unwrap().is_over, "{slow:?}: somebody waited for it");
        }
        sync::join(at_work.unwrap()).expect("it ends");
        sync::sleep(LONG);
        block_on(engine.stop()).unwrap_or_else(|error| panic!("{slow:?}: {error}"));
        (std::mem::take(&mut state.lock().unwrap().calls), came)
    });
    outcome.value
}

/// Runs with each call that there is for these files, if `is_meant` says so. How many these were.
fn with_each_call(name: &'static str, is_meant: fn(&Call) -> bool, meanwhile: fn(&Engine, Deaf)) -> usize {
    let (calls, _) = run(Slow { call: Call::Enter, number: 0, name }, meanwhile);
    eprintln!("calls for {name}: {calls:?}");
    let mut came = 0;
    for (call, times) in calls.into_iter().filter(|(call, _)| is_meant(call)) {
        for number in 0..times {
            came += usize::from(run(Slow { call, number, name }, meanwhile).1);
        }
    }
    came
}

/// The lease of one who does not let go is broken, and who breaks it goes on.
fn break_a_lease(engine: &Engine, mut deaf: Deaf) {
    let began = sync::now();
    deaf.is_broken(engine);
    let took = sync::now().duration_since(began);
    assert!(took >= GRACE && took < GRACE + FENCE + SLACK, "the truncate took {took:?}");
    assert!(deaf.was_told());
}

/// What is done with another file meanwhile.
fn use_another_file(engine: &Engine, deaf: Deaf) {
    let mut took = Vec::new();
    block_on(use_file(engine, "quick", &mut took)).unwrap();
    assert!(took.iter().all(|(_, took)| *took < SLACK), "to use another file took {took:?}");
    break_a_lease(engine, deaf);
}

/// To open a file waited for whoever was at the disk with the checksums of another, for as long as that took.
#[test]
fn whichever_call_for_a_file_takes_long_another_file_is_used_and_its_leases_broken_meanwhile() {
    assert!(with_each_call("files/slow", |call| *call != Call::Name, use_another_file) > 15);
}

/// Names are changed while no file is opened; files that are open are used all the same.
#[test]
fn whichever_change_of_a_name_takes_long_leases_on_open_files_are_broken_meanwhile() {
    assert!(with_each_call("files/slow", |call| *call == Call::Name, break_a_lease) > 0);
}

/// The truncate itself waits for its record.
fn fence_a_lease(engine: &Engine, mut deaf: Deaf) {
    let (breaker, file) = (engine.clone(), block_on(engine.open(&path("leased"))).unwrap());
    let truncate = move || block_on(breaker.truncate_open(&file, 100, who("breaker"))).unwrap();
    let breaks = sync::spawn("breaker", truncate).unwrap();
    sync::sleep(GRACE + FENCE + SLACK);
    assert!(deaf.was_told(), "the lease was not fenced in time");
    drop(breaks);
}

#[test]
fn whichever_call_for_the_record_takes_long_a_lease_is_fenced_meanwhile() {
    assert!(with_each_call(".leasehold/log", |_| true, fence_a_lease) > 5);
}
