//! Power loss at every moment: not only what was not written is lost, but whatever was not flushed, in any order, in parts.
//!
//! Random work is recorded at the seam to the disk ([`recorder`]). Then, for every moment of the recording, directories
//! are made as a power loss might have left them ([`replay`]), the store is opened there, and what is found is compared
//! with what had been acknowledged until then ([`expect`]). Images have inodes of their own, so their disk says which
//! recorded file each stands for (`Disk::identify`).
//!
//! The work is done in a simulation, so that threads overtake each other, and a seed gives the same recording each time.
//!
//! `LEASEHOLD_POWER_SEEDS` sets which recordings are tried: so many, or `FIRST..END` (10 if not set).

mod expect;
pub(crate) mod recorder;
pub(crate) mod replay;
pub(crate) mod volume;
mod workload;

use super::*;
use crate::disk::Disk;
use crate::simulation::{Random, simulate};
use expect::{Asked, Expected};
use recorder::{Event, Image, Lie, Tape};
use replay::{Effort, Moment};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use volume::{Placed, Volume};
use workload::Workload;

/// What a store holds after recovery.
struct Found {
    files: BTreeMap<String, FoundFile>,
    /// Symbolic links, and what they say.
    symlinks: BTreeMap<String, String>,
    /// How many files are staged.
    staged: usize,
    damage: Vec<Damage>,
}

struct FoundFile {
    size: u64,
    blocks: Vec<Result<Vec<u8>, Fault>>,
    unknown: u64,
    torn: u64,
}

/// In memory where that is possible: thousands of stores are made.
pub(crate) fn workshop() -> tempfile::TempDir {
    places().pop().expect("at least one").1
}

fn config(directory: &Path) -> StorageConfig {
    StorageConfig {
        // Several turns of the segments within one recording.
        checkpoint_bytes: 48 << 10,
        segment_bytes: 64 << 10,
        backend: Backend::Threads,
        ..StorageConfig::new(directory)
    }
}

fn recorded(config: StorageConfig, tape: &Arc<Tape>) -> Driver {
    let (disk, heard) = (Arc::clone(tape), Arc::clone(tape));
    let wrap: WrapDisk = Arc::new(move |real| disk.wrap(real));
    let config = StorageConfig { wrap_disk: Some(wrap), ..config };
    let answered = move |input: &Input| match input {
        Input::Written { write, result: Ok(()) } => heard.push(Event::Answered(write.0)),
        Input::Performed { request, result: Ok(_) } | Input::Flushed { request, result: Ok(()) } => {
            heard.push(Event::Answered(request.0));
        }
        _ => {}
    };
    Driver::open_observed(config, Box::new(answered)).expect("the store opens")
}

/// Some work, from the making of the store on.
fn record(seed: u64, steps: usize, lie: Lie) -> Vec<Event> {
    let recorded = simulate(seed, move || {
        let place = workshop();
        let tape = Tape::new(place.path(), 1, Volume::empty().place(place.path()), lie);
        let workers = 1 + (seed % 4) as usize;
        let driver = recorded(StorageConfig { workers, ..config(place.path()) }, &tape);
        Workload::new(&driver, &tape, seed).run(steps);
        driver.kill();
        tape.take()
    });
    recorded.value
}

/// Symbolic links below a directory.
fn symlinks(driver: &Driver, below: &StorePath) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in driver.storage().list(below).unwrap() {
        let path = below.join(&entry.name).unwrap();
        match entry.kind {
            Kind::Directory => found.extend(symlinks(driver, &path)),
            Kind::Link => {
                found.insert(path.as_str().to_owned(), driver.storage().read_link(&path).unwrap());
            }
            _ => {}
        }
    }
    found
}

/// Reads all of the store in `place`.
fn look(driver: &Driver, place: &Path) -> Found {
    let mut paths = Vec::new();
    let all = &mut |path: &StorePath| {
        paths.push(path.clone());
        true
    };
    driver.storage().walk(&StorePath::ROOT, all).unwrap();
    let file = |path: &StorePath| {
        let opened = driver.storage().open_file(path).unwrap();
        let (file, size) = (opened.file, opened.size);
        let read = |start: u64| driver.try_read(file, start, 4096.min(size - start));
        let blocks = (0..size.div_ceil(4096)).map(|block| read(block * 4096)).collect();
        let survey = driver.storage().survey(file, BlockRange::new(0, u64::MAX).unwrap()).unwrap();
        (path.as_str().to_owned(), FoundFile { size, blocks, unknown: survey.unknown, torn: survey.torn })
    };
    Found {
        files: paths.iter().map(file).collect(),
        symlinks: symlinks(driver, &StorePath::ROOT),
        staged: std::fs::read_dir(place.join(".leasehold/staging")).unwrap().count(),
        damage: driver.opened.damage.clone(),
    }
}

/// What recovery makes of the image.
fn recover(image: &Volume) -> Result<Found, OpenError> {
    let place = workshop();
    let Placed { identities, .. } = image.place(place.path());
    let wrap: WrapDisk =
        Arc::new(move |disk: Arc<dyn Disk>| Arc::new(Image { disk, identities: identities.clone() }));
    let driver = Driver::try_open_with(StorageConfig { wrap_disk: Some(wrap), ..config(place.path()) })?;
    let found = look(&driver, place.path());
    driver.kill();
    Ok(found)
}

/// What recovery makes of the image, and what it does to the disk for that.
fn recover_recorded(image: &Volume) -> Vec<Event> {
    let place = workshop();
    let tape = Tape::new(place.path(), image.next_inode(), image.place(place.path()), Lie::Nothing);
    recorded(config(place.path()), &tape).kill();
    tape.take()
}

/// How much was tried.
#[derive(Debug, Default)]
struct Tried {
    moments: usize,
    images: usize,
    /// Of these, different ones.
    recoveries: usize,
    second: usize,
    /// Images that held a torn block.
    torn: usize,
}

/// Tries every moment of the recording. The error says where it failed and how.
fn try_all(events: &[Event], seed: u64, effort: Effort) -> Result<Tried, String> {
    let mut random = Random::new(seed);
    let mut moment = Moment::new(Volume::empty(), events);
    let mut expected = Expected::default();
    let mut recovered: HashMap<u64, Rc<Found>> = HashMap::new();
    let mut tried = Tried::default();
    loop {
        tried.moments += 1;
        let place = format!("seed {seed}, after {} of {} events", moment.at, events.len());
        if moment.metas_durable < expected.names_due {
            return Err(format!("{place}: a flush was acknowledged, and names that it owes are not durable"));
        }
        for variant in moment.variants(&mut random, &effort) {
            tried.images += 1;
            let place = format!("{place}, with {variant}");
            let image = moment.image(&variant);
            let fingerprint = image.fingerprint();
            let fresh = !recovered.contains_key(&fingerprint);
            if fresh {
                tried.recoveries += 1;
                let found = recover(&image).map_err(|error| format!("{place}: {error}"))?;
                tried.torn += usize::from(!found.damage.is_empty());
                recovered.insert(fingerprint, Rc::new(found));
            }
            let found = &recovered[&fingerprint];
            expected.check(&image, found, true).map_err(|what| format!("{place}: {what}"))?;
            if fresh && random.below(effort.second) == 0 {
                let again = lose_power_again(&image, &expected, &mut random, &mut tried);
                again.map_err(|what| format!("{place}, then again {what}"))?;
            }
        }
        match moment.advance() {
            Some(event) => expected.see(event, moment.metas()),
            None => return Ok(tried),
        }
    }
}

/// The recording for people.
fn history(events: &[Event]) -> String {
    let line = |(number, event): (usize, &Event)| match event {
        Event::Begun { write, inode, offset, bytes } => {
            format!("{number}: write {write} of {} bytes at {offset} of inode {inode}", bytes.len())
        }
        Event::Asked(ask, Asked::Write { inode, range, size, .. }) => {
            format!("{number}: asked ({ask}) to write {range} of inode {inode}, size {size}")
        }
        Event::Asked(ask, Asked::Adopt { inode, range, foreign }) => {
            let blocks: Vec<&u64> = foreign.keys().collect();
            format!(
                "{number}: asked ({ask}) to adopt {range} of inode {inode}, others wrote blocks {blocks:?}"
            )
        }
        other => format!("{number}: {other:?}"),
    };
    events.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

/// Power fails during the recovery, too.
fn lose_power_again(
    image: &Volume,
    expected: &Expected,
    random: &mut Random,
    tried: &mut Tried,
) -> Result<(), String> {
    let events = recover_recorded(image);
    let mut moment = Moment::new(image.clone(), &events);
    let mut seen = HashSet::from([image.fingerprint()]);
    let effort = Effort { singles: 1, random: 1, second: 0 };
    loop {
        for variant in moment.variants(random, &effort) {
            let place = format!("after {} of {} events, with {variant}", moment.at, events.len());
            let image = moment.image(&variant);
            if seen.insert(image.fingerprint()) {
                tried.second += 1;
                let found = recover(&image).map_err(|error| format!("{place}: {error}"))?;
                expected.check(&image, &found, false).map_err(|what| format!("{place}: {what}"))?;
            }
        }
        if moment.advance().is_none() {
            return Ok(());
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("LEASEHOLD_POWER_SEEDS") else { return 0..10 };
    let (first, end) = text.split_once("..").unwrap_or(("0", &text));
    let number = |text: &str| text.parse().expect("LEASEHOLD_POWER_SEEDS is a number, or FIRST..END");
    number(first)..number(end)
}

#[test]
fn whenever_the_power_fails_what_was_acknowledged_is_there_and_the_rest_is_old_or_new() {
    let mut torn = 0;
    for seed in seeds() {
        let events = record(seed, 60, Lie::Nothing);
        let began = std::time::Instant::now();
        let tried = try_all(&events, seed, Effort { singles: 2, random: 3, second: 200 });
        let tried = tried.unwrap_or_else(|what| panic!("{}\n{what}", history(&events)));
        eprintln!("seed {seed}: {tried:?} in {:.1} s", began.elapsed().as_secs_f64());
        torn += tried.torn;
    }
    assert!(torn > 0, "no block was ever torn, so nothing was tried");
}

#[test]
fn a_seed_gives_the_same_recording_each_time() {
    for seed in 0..20 {
        let recording = || history(&record(seed, 60, Lie::Nothing));
        assert!(recording() == recording(), "seed {seed}");
    }
}

/// The checker must be able to fail: disks that lie about what is durable are found out.
#[test]
fn a_disk_that_lies_about_what_is_durable_is_found_out() {
    let lies = [
        Lie::Directories,
        Lie::Flushes,
        Lie::Writes("files/"),
        Lie::Writes(".leasehold/log"),
        Lie::Writes(".leasehold/sums"),
        Lie::Writes(".leasehold/staging"),
    ];
    for lie in lies {
        let effort = Effort { singles: 1, random: 2, second: u64::MAX };
        let found_out = (0..30).find_map(|seed| try_all(&record(seed, 30, lie), seed, effort).err());
        let what = found_out.unwrap_or_else(|| panic!("{lie:?} was not found out"));
        eprintln!("{lie:?}: {what}");
    }
}
