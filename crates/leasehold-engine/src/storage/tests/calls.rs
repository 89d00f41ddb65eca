//! Calls of the kernel that are interrupted, cut short or refused: the n-th of each kind, for every n of a script, by the ring
//! and by threads.

use super::crash::{Step, applied, do_step, do_step_again, script, script_2};
use super::*;
use crate::disk::{Call, Fate, Fates};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

/// From the n-th call of a kind on, one fate after the other.
#[derive(Clone, Copy, Debug)]
struct Turn {
    call: Call,
    from: usize,
    fates: &'static [Fate],
}

/// How often each was asked for, and how often the turn came.
#[derive(Default)]
struct Count {
    calls: BTreeMap<Call, usize>,
    turned: usize,
}

fn fates(turn: Option<Turn>) -> (Fates, Arc<Mutex<Count>>) {
    let count = Arc::<Mutex<Count>>::default();
    let shared = Arc::clone(&count);
    let decide = move |call, _: &str| {
        let mut count = shared.lock().unwrap();
        let number = count.calls.entry(call).or_default();
        *number += 1;
        let number = *number - 1;
        let Some(turn) = turn.filter(|turn| turn.call == call) else { return Fate::Asked };
        let fate = number.checked_sub(turn.from).and_then(|index| turn.fates.get(index));
        count.turned += usize::from(fate.is_some());
        fate.copied().unwrap_or(Fate::Asked)
    };
    (Fates::new(decide), count)
}

fn open(root: &Path, backend: Backend, fates: Fates) -> Result<Driver, OpenError> {
    // The segments of the record are written when they are made.
    let (checkpoint_bytes, segment_bytes) = (1 << 30, 512 << 10);
    let fates = Some(fates);
    let config =
        StorageConfig { backend, checkpoint_bytes, segment_bytes, fates, ..StorageConfig::new(root) };
    Driver::try_open_with(config)
}

/// The ways to the disk that this machine has.
fn ways() -> Vec<(&'static str, Backend)> {
    let directory = tempfile::tempdir().unwrap();
    let driver = Driver::open(directory.path());
    match driver.opened.notes.iter().find(|note| note.contains("io_uring cannot be used")) {
        None => vec![("ring", Backend::Auto), ("threads", Backend::Threads)],
        Some(note) => {
            eprintln!("SKIPPED by the ring: {note}");
            vec![("threads", Backend::Threads)]
        }
    }
}

const EINTR: Fate = Fate::Fails(libc::EINTR);

/// What nobody may notice.
fn harmless(call: Call) -> &'static [&'static [Fate]] {
    match call {
        Call::Read | Call::Write => &[
            &[Fate::Fails(libc::EAGAIN), EINTR, EINTR],
            &[Fate::Short(1)],
            &[Fate::Short(512), Fate::Short(1), EINTR, Fate::Short(4097)],
            &[Fate::Short(4096)],
        ],
        Call::Enter => &[&[EINTR, Fate::Fails(libc::EBUSY), Fate::Fails(libc::EAGAIN)]],
        _ => &[&[EINTR, EINTR]],
    }
}

/// Both scripts, one after the other, on two files.
fn steps(driver: &Driver) -> Vec<(usize, Vec<Step>)> {
    vec![(0, script()), (1, script_2(driver.collapses("this place")))]
}

/// What the files are in the end. Every step must work, and be seen at once.
fn run(driver: &Driver, root: &Path, at: &str) -> Vec<Vec<u8>> {
    let mut contents = Vec::new();
    for (number, script) in steps(driver) {
        // Adoptions are of `files/a`.
        if number == 1 {
            driver.storage().rename(&path("a"), &path("b")).unwrap_or_else(|error| panic!("{at}: {error}"));
        }
        let file = driver.create("a");
        let mut content = Vec::new();
        for (index, step) in script.iter().enumerate() {
            let done = do_step(driver, index, step, file, root);
            assert_eq!(done, Ok(()), "{at}: script {number}, step {index}");
            content = applied(index, step, &content);
            assert!(driver.content(file) == content, "{at}: script {number}, after step {index}");
        }
        driver.flush(file);
        contents.push(content);
    }
    contents
}

/// That the store has what was acknowledged.
fn check(driver: &Driver, contents: &[Vec<u8>], at: &str) {
    for (name, content) in ["b", "a"].into_iter().zip(contents) {
        let file = driver.open_file(name);
        assert!(driver.content(file) == *content, "{at}: {name}");
        let survey = driver.survey(file);
        assert_eq!((survey.torn, survey.unknown), (0, 0), "{at}: {name}");
    }
}

/// Calls `test` for every call, in memory, or some, on a real disk: how many there are of each kind is what `count` says. What
/// may happen to the kind happens to one after the other in turn, from `shift` on. `test` answers whether the call came: what is
/// done beside may be done a moment later than it was, and after the end.
fn each_turn(
    place: &str,
    shift: usize,
    count: &BTreeMap<Call, usize>,
    fates: impl Fn(Call) -> &'static [&'static [Fate]],
    mut test: impl FnMut(Turn, &str) -> bool,
) {
    let (mut number, mut turns, mut missed) = (0, 0, 0);
    for (call, times) in count {
        let fates = fates(*call);
        for (from, fates) in (0..*times).zip(fates.iter().cycle().skip(shift)) {
            number += 1;
            // Primes, so that it is another call each time. The ring is entered once or twice for each other call, and only a
            // real disk collapses.
            let every = match (place, call) {
                ("disk", Call::Enter) => 101,
                (_, Call::Enter) => 7,
                ("disk", Call::Read | Call::Write | Call::Name | Call::SyncDirectory) => 17,
                _ => 1,
            };
            if number % every == 0 {
                let turn = Turn { call: *call, from, fates };
                turns += 1;
                // How often the ring is entered depends on the threads.
                missed += usize::from(!test(turn, &format!("{place}: {turn:?}")) && turn.call != Call::Enter);
            }
        }
    }
    assert!(missed * 20 <= turns, "{place}: {missed} of {turns} calls never came");
}

#[test]
fn whichever_call_is_interrupted_or_cut_short_is_gone_on_with_and_nobody_notices() {
    for (place, directory) in places() {
        for (shift, (way, backend)) in ways().into_iter().enumerate() {
            let root = directory.path().join(way);
            let go = |turn, at: &str| {
                let (decide, count) = fates(turn);
                let driver = open(&root, backend, decide).unwrap_or_else(|error| panic!("{at}: {error}"));
                let contents = run(&driver, &root, at);
                driver.kill();
                let driver = open(&root, Backend::Auto, fates(None).0).unwrap();
                check(&driver, &contents, at);
                driver.stop();
                std::fs::remove_dir_all(&root).unwrap();
                std::mem::take(&mut *count.lock().unwrap())
            };
            let calls = go(None, "undisturbed").calls;
            eprintln!("{way}, on {place}: {calls:?}");
            each_turn(place, shift, &calls, harmless, |turn, at| {
                go(Some(turn), &format!("{way}, {at}")).turned > 0
            });
        }
    }
}

#[test]
fn whichever_call_of_a_recovery_is_interrupted_or_cut_short_it_recovers_all_the_same() {
    for (place, directory) in places() {
        for (shift, (way, backend)) in ways().into_iter().enumerate() {
            let root = directory.path().join(way);
            let go = |turn, at: &str| {
                let driver = open(&root, backend, fates(None).0).unwrap();
                let contents = run(&driver, &root, at);
                driver.kill();
                let (decide, count) = fates(turn);
                let driver = open(&root, backend, decide).unwrap_or_else(|error| panic!("{at}: {error}"));
                assert!(driver.opened.recovered && driver.opened.damage.is_empty(), "{at}");
                check(&driver, &contents, at);
                driver.stop();
                std::fs::remove_dir_all(&root).unwrap();
                std::mem::take(&mut *count.lock().unwrap())
            };
            let calls = go(None, "undisturbed").calls;
            eprintln!("{way}, on {place}: {calls:?}");
            each_turn(place, shift, &calls, harmless, |turn, at| {
                go(Some(turn), &format!("{way}, {at}")).turned > 0
            });
        }
    }
}

const EIO: Fate = Fate::Fails(libc::EIO);
const ENOSPC: Fate = Fate::Fails(libc::ENOSPC);

/// What somebody is to be told.
fn harmful(call: Call) -> &'static [&'static [Fate]] {
    match call {
        Call::Read => &[&[EIO], &[Fate::Short(512), EIO]],
        Call::Write => &[&[EIO], &[ENOSPC], &[Fate::Short(4096), EIO], &[Fate::Short(1000), ENOSPC]],
        // The ring that refuses to be entered is a bug of ours.
        Call::Enter => &[],
        _ => &[&[EIO], &[ENOSPC]],
    }
}

/// A driver of a store whose turn comes, and how often somebody was told.
struct Told<'a> {
    driver: Driver,
    root: &'a Path,
    at: &'a str,
    times: usize,
}

impl Told<'_> {
    /// Does it, and once more if it fails.
    fn twice<T, E: std::fmt::Debug>(&mut self, mut what: impl FnMut(&Driver) -> Result<T, E>) -> T {
        what(&self.driver).unwrap_or_else(|error| {
            self.times += 1;
            let (at, times) = (self.at, self.times);
            what(&self.driver)
                .unwrap_or_else(|again| panic!("{at}: {error:?}, and {again:?}; told {times} times"))
        })
    }

    /// Does the step until it works, as who is told of a fault would.
    fn step(&mut self, index: usize, step: &Step, file: FileId, before: &[u8]) {
        let mut again = Ok(());
        while let Err(fault) = do_step_again(&self.driver, index, step, file, self.root, again) {
            self.times += 1;
            let at = format!("{}: step {index} says {fault:?}", self.at);
            assert!(self.times <= 2, "{at} again");
            if fault == Fault::Checksum {
                // A change that the disk failed half way leaves blocks that cannot be read until they are written anew.
                assert!(matches!(step, Step::Change(_)), "{at}");
                let mut whole = before.to_vec();
                whole.resize(before.len().next_multiple_of(4096), 0);
                self.driver.write(file, 0, &whole);
                let truncate = Change::Truncate { size: before.len() as u64 };
                self.driver.change_with(file, truncate, Detail::None).unwrap_or_else(|_| panic!("{at}"));
            }
            again = Err(fault);
        }
    }
}

#[test]
fn whichever_call_is_refused_once_who_asked_is_told_and_the_next_try_works() {
    for (place, directory) in places() {
        for (shift, (way, backend)) in ways().into_iter().enumerate() {
            let root = directory.path().join(way);
            let go = |number: usize, turn, at: &str| {
                let (decide, count) = fates(turn);
                let mut times = 0;
                let driver = open(&root, backend, decide.clone()).unwrap_or_else(|error| {
                    times += 1;
                    open(&root, backend, decide).unwrap_or_else(|again| panic!("{at}: {error}, and {again}"))
                });
                let mut told = Told { driver, root: &root, at, times };
                let file = told.twice(|driver| driver.storage().create(&path("a"))).file;
                let mut content = Vec::new();
                let script = steps(&told.driver).swap_remove(number).1;
                for (index, step) in script.iter().enumerate() {
                    told.step(index, step, file, &content);
                    content = applied(index, step, &content);
                    let seen = told.twice(|driver| match driver.size(file) {
                        0 => Ok(Vec::new()),
                        size => driver.try_read(file, 0, size),
                    });
                    assert!(seen == content, "{at}: after step {index}, told {} times", told.times);
                }
                let request = |driver: &Driver| Output::Flush { request: RequestId(driver.number()), file };
                told.twice(|driver| match driver.ask(request(driver), Detail::None) {
                    Input::Flushed { result, .. } => result,
                    other => panic!("{other:?}"),
                });
                told.driver.kill();
                let driver = open(&root, Backend::Auto, fates(None).0).unwrap();
                let file = driver.open_file("a");
                assert!(driver.content(file) == content, "{at}: after a kill");
                assert_eq!(driver.survey(file).torn, 0, "{at}");
                driver.stop();
                std::fs::remove_dir_all(&root).unwrap();
                let count = std::mem::take(&mut *count.lock().unwrap());
                (told.times, count)
            };
            for number in 0..2 {
                let (told, Count { calls, .. }) = go(number, None, "undisturbed");
                assert_eq!(told, 0);
                let (mut turns, mut heard) = (0, 0);
                each_turn(place, shift + number, &calls, harmful, |turn, at| {
                    let (told, count) = go(number, Some(turn), &format!("{way}, script {number}, {at}"));
                    turns += 1;
                    heard += usize::from(told > 0);
                    count.turned > 0
                });
                eprintln!("{way}, on {place}: {calls:?}; of {turns} somebody was told {heard} times");
                assert!(heard * 2 > turns, "of {turns} refusals {heard} were told");
            }
        }
    }
}

/// The range was taken out, and the flush behind that failed. The next try took out as much again, of what nobody had named.
#[test]
fn a_collapse_whose_flush_failed_takes_nothing_more_out_when_it_is_tried_again() {
    for (place, directory) in places() {
        for restart in [false, true] {
            let root = directory.path().join(restart.to_string());
            let armed = Arc::<AtomicBool>::default();
            let fails = Arc::clone(&armed);
            let decide = move |call, name: &str| {
                let comes = call == Call::Sync && name == "files/a" && fails.swap(false, Ordering::SeqCst);
                if comes { EIO } else { Fate::Asked }
            };
            let driver = open(&root, Backend::Auto, Fates::new(decide)).unwrap();
            if !driver.collapses(place) {
                break;
            }
            let file = driver.create("a");
            let mut content = pattern(1, 8 * 4096 + 100);
            driver.write(file, 0, &content);
            armed.store(true, Ordering::SeqCst);
            assert_eq!(driver.try_collapse(file, 4096, 3 * 4096), Err(Fault::Io));
            assert!(!armed.load(Ordering::SeqCst));
            assert_eq!(driver.read(file, 0, 4096), content[..4096]);
            assert_eq!(driver.try_read(file, 4096, 4096), Err(Fault::Checksum), "what is elsewhere by now");
            let whole = content.len();
            content.drain(4096..3 * 4096);
            if !restart {
                driver.collapse(file, 4096, 3 * 4096);
                assert!(driver.content(file) == content, "{place}");
                driver.stop();
                continue;
            }
            driver.kill();
            let driver = Driver::open(&root);
            let file = driver.open_file("a");
            assert_eq!(driver.try_collapse(file, 4096, 3 * 4096), Err(Fault::Checksum));
            driver.adopt(file, 0, u64::MAX);
            content.resize(whole, 0);
            assert!(driver.content(file) == content, "{place}: what was behind the range is there");
            driver.stop();
        }
    }
}

/// It was taken for the end of file, and zeros were adopted for what the disk could not read.
#[test]
fn what_a_read_was_cut_short_of_at_a_bad_sector_is_not_adopted_as_zeros() {
    for (place, directory) in places() {
        for (way, backend) in ways() {
            let root = directory.path().join(way);
            let left = Arc::<Mutex<Vec<Fate>>>::default();
            let next = Arc::clone(&left);
            let decide = move |call, name: &str| {
                let is_meant = call == Call::Read && name == "files/a";
                is_meant.then(|| next.lock().unwrap().pop()).flatten().unwrap_or(Fate::Asked)
            };
            let driver = open(&root, backend, Fates::new(decide)).unwrap();
            let file = driver.create("a");
            let bytes = pattern(1, 3 * 4096);
            poke(&root.join("files/a"), 0, &bytes);
            *left.lock().unwrap() = vec![EIO, Fate::Short(4096 + 512)];
            let adopt = Change::Adopt { range: ByteRange::ALL };
            assert_eq!(driver.perform(file, adopt, Detail::None), Err(Fault::Io), "{way}, on {place}");
            driver.adopt(file, 0, u64::MAX);
            assert!(driver.content(file) == bytes, "{way}, on {place}");
        }
    }
}

/// Its cancellation had failed, so a checkpoint repeated it as open in the new segment, where nothing said that it had been
/// overtaken: recovery put its bytes over newer ones that were durable. Found by the simulator (seed 336).
#[test]
fn a_write_that_was_overtaken_and_could_not_be_cancelled_does_not_come_back() {
    for (place, directory) in places() {
        for again in 0..2 {
            let root = directory.path().join(again.to_string());
            let left = Arc::<Mutex<Vec<Fate>>>::default();
            let next = Arc::clone(&left);
            let decide = move |call, name: &str| {
                let is_meant = call == Call::Write && name.starts_with(".leasehold/log");
                is_meant.then(|| next.lock().unwrap().pop()).flatten().unwrap_or(Fate::Asked)
            };
            let driver = open(&root, Backend::Auto, Fates::new(decide)).unwrap();
            let file = driver.create("a");
            let mut content = pattern(1, 8192);
            driver.write(file, 0, &content);
            driver.storage().checkpoint().unwrap();
            driver.record(file, 0, 100, &pattern(2, 1000), 8192);
            // The record of the next write works, the cancellation behind it does not.
            *left.lock().unwrap() = vec![EIO, Fate::Asked];
            let newer = pattern(3, 2000);
            let (write, run, range) = driver.record(file, 8, 50, &newer, 8192);
            let output = Output::Write { write, file, blocks: range.blocks(), size: 8192, run };
            assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
            content[50..2050].copy_from_slice(&newer);
            driver.flush(file);
            // And once more, so that the segment that it was repeated in is not needed any more either.
            for _ in 0..=again {
                driver.storage().checkpoint().unwrap();
            }
            assert!(left.lock().unwrap().is_empty(), "{place}: the cancellation did not fail");
            assert!(driver.content(file) == content, "{place}");
            driver.kill();
            let driver = Driver::open(&root);
            let file = driver.open_file("a");
            assert!(driver.content(file) == content, "{place}: after a kill and {again} more checkpoints");
            driver.stop();
        }
    }
}
