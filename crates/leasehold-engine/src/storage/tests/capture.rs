//! A copy of what lies under a live key.

use super::*;
use std::sync::atomic::AtomicBool;

#[test]
fn a_capture_becomes_a_commit_and_what_is_written_later_does_not_change_it() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let mut expected = pattern(1, 40_000);
        driver.write(file, 0, &expected);
        let bytes = pattern(2, 20_000);
        let range = ByteRange::at(5000, 20_000).unwrap();
        let from = driver.fill(100, range, &bytes);
        let into = Run { first: FrameId(200), ..from };
        let (lease, size) = (LeaseId(driver.number()), 40_000);
        let capture = Output::Capture { lease, file, range, from, into };
        assert_eq!(driver.ask(capture, Detail::None), Input::Captured { lease });
        driver.fill(100, range, &pattern(3, 20_000));
        let merge = Output::Merge { lease, file, range, size, run: into };
        assert_eq!(driver.ask(merge, Detail::None), Input::Merged { lease, result: Ok(()) });
        let write = WriteId(driver.number());
        let record = Output::Record { write, file, range, size, run: into };
        assert_eq!(driver.ask(record, Detail::None), Input::Recorded { write, result: Ok(()) });
        let output = Output::Write { write, file, blocks: range.blocks(), size, run: into };
        assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
        expected[5000..25_000].copy_from_slice(&bytes);
        assert!(driver.content(file) == expected);
    }
}

/// The peer goes on writing: whatever of it is in the copy, the copy fits its own sums.
#[test]
fn a_capture_under_a_writing_peer_fits_its_own_checksums() {
    let (_, directory) = places().remove(0);
    let driver = Driver::open(directory.path());
    let file = driver.create("a");
    let range = ByteRange::at(0, 256 * 4096).unwrap();
    let from = driver.fill(0, range, &vec![0; 256 * 4096]);
    let into = Run { first: FrameId(256), ..from };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let network = driver.arena.network(from).cast::<u64>();
            for value in (1..).take_while(|_| !over.load(Ordering::Relaxed)) {
                for index in 0..from.bytes() as usize / 8 {
                    // SAFETY: within the run; nobody holds a slice of it.
                    unsafe { network.add(index).write_volatile(value) };
                }
            }
        });
        for round in 0..20 {
            let (lease, write) = (LeaseId(driver.number()), WriteId(driver.number()));
            let capture = Output::Capture { lease, file, range, from, into };
            assert_eq!(driver.ask(capture, Detail::None), Input::Captured { lease });
            let size = range.end();
            let record = Output::Record { write, file, range, size, run: into };
            assert_eq!(driver.ask(record, Detail::None), Input::Recorded { write, result: Ok(()) });
            let output = Output::Write { write, file, blocks: range.blocks(), size, run: into };
            assert_eq!(driver.ask(output, Detail::None), Input::Written { write, result: Ok(()) });
            // Into other frames.
            let by = Loader::Lease(lease);
            let run = Run { first: FrameId(1024), ..from };
            let load = Output::Load { by, file, blocks: range.blocks(), size, into: run };
            let loaded = driver.ask(load, Detail::None);
            assert_eq!(loaded, Input::LeaseLoaded { lease, result: Ok(()) }, "round {round}");
        }
        over.store(true, Ordering::Relaxed);
    });
}
