//! What a store is opened on: a disk that is recorded, a fabric, and the power that may go.

use super::disk::{Trouble, Troubled};
use super::fabric::FakeFabric;
use super::world::{FENCE, Plan};
use super::{Random, below, chance, note, trace};
use crate::arena::Pages;
use crate::disk::{Fate, Fates};
use crate::engine::{Config, Engine, StartError};
use crate::storage::tests::power::recorder::Tape;
use crate::storage::tests::power::replay::{Effort, Moment};
use crate::storage::tests::power::volume::Volume;
use crate::storage::{Backend, StorageConfig};
use crate::sync;
use leasehold_core::range::BLOCK_BYTES;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Once in so many calls, the kernel is interrupted, or does a part of what it is asked for.
fn fate(once_in: u64) -> Fate {
    if !chance(once_in) {
        return Fate::Asked;
    }
    match below(3) {
        0 => Fate::Fails(libc::EINTR),
        1 => Fate::Short(1 + below(4096) as usize),
        _ => Fate::Short(4096 * (1 + below(8) as usize)),
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Machine {
    place: PathBuf,
    pub(super) tape: Arc<Tape>,
    pub(super) trouble: Arc<Trouble>,
    pub(super) fabric: Arc<FakeFabric>,
}

impl Machine {
    pub(super) fn new(plan: Plan, place: &Path, volume: &Volume) -> Machine {
        let tape = Tape::new(place, volume.next_inode(), volume.place(place), plan.lie);
        let fabric = Arc::new(FakeFabric::new(plan.weather, plan.skip));
        Machine { place: place.to_owned(), tape, trouble: Arc::default(), fabric }
    }

    pub(super) fn start(&self, plan: Plan) -> Result<Engine, StartError> {
        let (recorder, trouble) = (self.tape.clone(), self.trouble.clone());
        let storage = StorageConfig {
            backend: Backend::Threads,
            workers: plan.workers,
            workers_for_a_file: plan.workers.div_ceil(2),
            fates: Some(Fates::new(move |_, _| fate(plan.interrupts))),
            checkpoint_bytes: 48 << 10,
            segment_bytes: 64 << 10,
            wrap_disk: Some(Arc::new(move |disk| {
                recorder.wrap(Arc::new(Troubled { disk, trouble: trouble.clone() }))
            })),
            ..StorageConfig::new(&self.place)
        };
        let config = Config {
            arena_bytes: plan.frames * BLOCK_BYTES,
            pages: Pages::Normal,
            grace_ms: plan.grace.as_millis() as u64,
            fence_ms: FENCE.as_millis() as u64,
            retry_ms: 50,
            session_ttl_ms: 2_000,
            open_files_max: 2,
            ..Config::new(&self.place)
        };
        Engine::start_on(config, storage, self.fabric.clone(), Arc::default())
    }

    /// The moment that the power goes; what the disk is then. Those at work find out.
    pub(super) fn lose_power(&self, volume: &Volume) -> Volume {
        let events = self.tape.take();
        self.trouble.dead.store(true, Ordering::Relaxed);
        let mut moment = Moment::new(volume.clone(), &events);
        while moment.advance().is_some() {}
        let mut random = Random::new(below(u64::MAX));
        let variants = moment.variants(&mut random, &Effort { singles: 2, random: 4, second: 0 });
        let variant = &variants[random.below(variants.len() as u64) as usize];
        let image = moment.image(variant);
        trace(|| format!("the power goes; what is left: {variant}"));
        note(image.fingerprint());
        self.fabric.cut();
        image
    }

    /// The power goes while the store is opened, or soon after.
    pub(super) fn lose_power_at_the_start(&self, plan: Plan, volume: &Volume) -> Volume {
        let machine = self.clone();
        let opening = sync::spawn("opening", move || machine.start(plan)).expect("a task");
        sync::sleep(Duration::from_micros(below(2_000)));
        let left = self.lose_power(volume);
        drop(sync::join(opening));
        left
    }
}
