//! What every disk must do: the ring and the threads, in memory and on a real filesystem, and the simulated one.

use super::*;
use crate::arena::{Arena, Pages};
use crate::ring::{Ring, View};
use crate::simulation::{Troubled, simulate};
use crate::storage::tests::places;
use crate::storage::tests::power::recorder::{Lie, Tape};
use crate::storage::tests::power::volume::Volume;
use crate::storage::tests::power::workshop;
use crate::sync;
use crate::threads::Threads;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// A disk, and the directory that it is for.
struct Bench<'a> {
    disk: Arc<dyn Disk>,
    directory: &'a Path,
}

/// Runs the test on each disk that the machine has, and on the simulated one in several orders.
fn on_every_disk(test: fn(&Bench<'_>)) {
    for (place, directory) in places() {
        eprintln!("by threads, on {place}");
        test(&Bench { disk: Arc::new(Threads::start(4, None).unwrap()), directory: directory.path() });
    }
    for (place, directory) in places() {
        let arena = Arena::new(1 << 20, Pages::Normal).unwrap();
        let (address, length) = arena.disk_view();
        match Ring::start(View(address, length), None) {
            Ok((ring, _)) => {
                eprintln!("by the ring, on {place}");
                test(&Bench { disk: Arc::new(ring), directory: directory.path() });
            }
            Err(error) => eprintln!("SKIPPED by the ring, on {place}: {error}"),
        }
    }
    for seed in 0..10 {
        eprintln!("simulated, with seed {seed}");
        simulate(seed, move || {
            let place = workshop();
            let tape = Tape::new(place.path(), 1, Volume::empty().place(place.path()), Lie::Nothing);
            let real = Arc::new(Threads::start(4, None).unwrap());
            let disk = tape.wrap(Arc::new(Troubled { disk: real, trouble: Arc::default() }));
            test(&Bench { disk: Arc::clone(&disk), directory: place.path() });
            disk.finish();
        });
    }
}

impl Bench<'_> {
    fn create(&self, name: &str) -> Arc<DiskFile> {
        let path = self.directory.join(name);
        let create = &mut || fs::File::create_new(&path).map(drop);
        self.disk.change_name(NameChange::Create(name), create).unwrap();
        self.open(name)
    }

    fn open(&self, name: &str) -> Arc<DiskFile> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.directory.join(name)).unwrap();
        Arc::new(DiskFile { file, name: name.to_owned() })
    }

    fn write(&self, file: &Arc<DiskFile>, offset: u64, bytes: &[u8]) {
        write(&*self.disk, file, offset, Buffer::of(bytes)).unwrap();
    }

    fn read(&self, file: &Arc<DiskFile>, offset: u64, length: usize) -> Vec<u8> {
        read(&*self.disk, file, offset, length).unwrap().to_vec()
    }
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + (at >> 8) * 7 + seed * 101) as u8).collect()
}

#[test]
fn what_is_written_is_read_back_and_makes_the_file_long_enough() {
    on_every_disk(|bench| {
        let file = bench.create("a");
        let mut expected = Vec::new();
        for (round, (offset, length)) in
            [(0, 4096), (4096, 1 << 20), (0, 8192), (PIECE_BYTES, PIECE_BYTES)].into_iter().enumerate()
        {
            let bytes = pattern(round, length);
            bench.write(&file, offset as u64, &bytes);
            expected.resize(expected.len().max(offset + length), 0);
            expected[offset..offset + length].copy_from_slice(&bytes);
            assert_eq!(file.file.metadata().unwrap().len(), expected.len() as u64);
            assert!(bench.read(&file, offset as u64, length) == bytes);
        }
        assert!(fs::read(bench.directory.join("a")).unwrap() == expected, "others see the bytes");
    });
}

#[test]
fn a_read_past_the_end_brings_what_there_is_and_says_how_much() {
    on_every_disk(|bench| {
        let file = bench.create("a");
        bench.write(&file, 0, &pattern(1, 8192));
        bench.disk.truncate(&file, 5000).unwrap();
        let memory = Memory::Own(Buffer::of(&[9; 16384]));
        let transfer = Transfer { verb: Verb::Read, file: Arc::clone(&file), offset: 0, memory };
        let (count, memory) = wait(&*bench.disk, transfer);
        assert_eq!((count.unwrap(), memory.len()), (5000, 16384));
        let memory = Memory::Own(Buffer::zeroed(4096));
        let (count, _) = wait(&*bench.disk, Transfer { verb: Verb::Read, file, offset: 8192, memory });
        assert_eq!(count.unwrap(), 0);
    });
}

#[test]
fn many_transfers_at_once_are_each_answered_once() {
    on_every_disk(|bench| {
        let file = bench.create("a");
        let (told, answers) = mpsc::channel();
        for number in 0..300u64 {
            let told = told.clone();
            let memory = Memory::Own(Buffer::of(&pattern(number as usize, 4096)));
            let transfer =
                Transfer { verb: Verb::Write, file: Arc::clone(&file), offset: number * 4096, memory };
            let done = move |result: io::Result<usize>, memory: Memory| {
                told.send((number, result.unwrap(), memory.len())).unwrap();
            };
            bench.disk.submit(transfer, Box::new(done));
        }
        drop(told);
        let mut heard: Vec<_> = answers.iter().collect();
        heard.sort_unstable();
        assert_eq!(heard, (0..300).map(|number| (number, 4096, 4096)).collect::<Vec<_>>());
        for number in 0..300 {
            assert!(bench.read(&file, number * 4096, 4096) == pattern(number as usize, 4096));
        }
    });
}

/// A simulated disk failed at once, on the thread that asked, which held what the answer needs.
#[test]
fn whoever_submits_may_hold_what_the_answer_needs() {
    on_every_disk(|bench| {
        let file = bench.create("a");
        let held = Arc::new(Mutex::new(0));
        let (told, answered) = mpsc::channel();
        let mut guard = held.lock().unwrap();
        for verb in [Verb::Write, Verb::Read] {
            let (held, told) = (Arc::clone(&held), told.clone());
            let memory = Memory::Own(Buffer::zeroed(4096));
            let transfer = Transfer { verb, file: Arc::clone(&file), offset: 0, memory };
            let done = move |result: io::Result<usize>, _: Memory| {
                *held.lock().unwrap() += 1;
                told.send(result.is_ok()).unwrap();
            };
            bench.disk.submit(transfer, Box::new(done));
        }
        *guard = 10;
        drop(guard);
        for _ in 0..2 {
            assert_eq!(answered.recv_timeout(Duration::from_secs(20)), Ok(true));
        }
        assert_eq!(*held.lock().unwrap(), 12);
    });
}

#[test]
fn a_transfer_that_fails_gives_the_memory_back() {
    on_every_disk(|bench| {
        bench.create("a");
        let file = fs::File::open(bench.directory.join("a")).unwrap();
        let file = Arc::new(DiskFile { file, name: "a".to_owned() });
        let memory = Memory::Own(Buffer::zeroed(8192));
        let (result, memory) = wait(&*bench.disk, Transfer { verb: Verb::Write, file, offset: 0, memory });
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF), "it is open for reading only");
        assert_eq!(memory.len(), 8192);
    });
}

#[test]
fn sizes_and_holes_change_as_the_kernel_has_it() {
    on_every_disk(|bench| {
        let (disk, file) = (&bench.disk, bench.create("a"));
        let mut expected = pattern(3, 8 * 4096);
        bench.write(&file, 0, &expected);
        disk.punch(&file, 4096, 8192).unwrap();
        disk.zero(&file, 5 * 4096, 4096).unwrap();
        expected[4096..3 * 4096].fill(0);
        expected[5 * 4096..6 * 4096].fill(0);
        assert!(bench.read(&file, 0, 8 * 4096) == expected);
        disk.truncate(&file, 7 * 4096 + 10).unwrap();
        disk.truncate(&file, 10 * 4096).unwrap();
        expected[7 * 4096 + 10..].fill(0);
        expected.resize(10 * 4096, 0);
        assert!(bench.read(&file, 0, 10 * 4096) == expected);
        match disk.collapse(&file, 4096, 4096) {
            Ok(()) => {
                expected.drain(4096..8192);
                assert!(fs::read(bench.directory.join("a")).unwrap() == expected);
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}"),
        }
        disk.sync(&file).unwrap();
    });
}

#[test]
fn names_change_as_they_are_told_and_a_failure_is_passed_on() {
    on_every_disk(|bench| {
        let path = |name: &str| bench.directory.join(name);
        bench.create("a");
        let change = NameChange::Rename { from: "a", to: "b" };
        bench.disk.change_name(change, &mut || fs::rename(path("a"), path("b"))).unwrap();
        assert!(!path("a").exists() && path("b").exists());
        let change = NameChange::MakeDirectory("b");
        let made = bench.disk.change_name(change, &mut || fs::create_dir(path("b")));
        assert_eq!(made.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        bench.disk.change_name(NameChange::Remove("b"), &mut || fs::remove_file(path("b"))).unwrap();
        assert!(!path("b").exists());
        bench.disk.sync_directory(fs::File::open(bench.directory).unwrap().as_fd()).unwrap();
    });
}

#[test]
fn a_file_is_the_same_by_whatever_name_and_no_other_is() {
    on_every_disk(|bench| {
        let identity = |file: &DiskFile| bench.disk.identify(file.file.as_fd()).unwrap();
        let (a, b) = (bench.create("a"), bench.create("b"));
        let path = |name: &str| bench.directory.join(name);
        let change = NameChange::Link { from: "a", to: "c" };
        bench.disk.change_name(change, &mut || fs::hard_link(path("a"), path("c"))).unwrap();
        assert_eq!(identity(&a), identity(&bench.open("c")));
        assert_ne!(identity(&a), identity(&b));
    });
}

#[test]
fn the_end_waits_for_what_is_under_way_and_refuses_what_comes_later() {
    on_every_disk(|bench| {
        let file = bench.create("a");
        let answered = Arc::new(Mutex::new(0));
        let write = |offset| {
            let memory = Memory::Own(Buffer::zeroed(4096));
            let answered = Arc::clone(&answered);
            let transfer = Transfer { verb: Verb::Write, file: Arc::clone(&file), offset, memory };
            let done = move |result: io::Result<usize>, _: Memory| {
                *answered.lock().unwrap() += if result.is_ok() { 1 } else { 1000 };
            };
            bench.disk.submit(transfer, Box::new(done));
        };
        (0..50).for_each(|number| write(number * 4096));
        bench.disk.finish();
        assert_eq!(*answered.lock().unwrap(), 50);
        write(0);
        assert_eq!(*answered.lock().unwrap(), 1050);
        sync::join(
            sync::spawn("again", {
                let disk = Arc::clone(&bench.disk);
                move || disk.finish()
            })
            .unwrap(),
        );
    });
}
