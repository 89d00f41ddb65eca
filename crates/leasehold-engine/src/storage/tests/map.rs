//! What is committed in which block, and how it is forgotten.

use super::*;

fn blocks(first: u64, end: u64) -> BlockRange {
    BlockRange::new(first, end).unwrap()
}

#[test]
fn the_map_has_each_blocks_state_and_checksum_and_reads_no_data() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let bytes = pattern(1, 3 * 4096 + 100);
        driver.write(file, 2 * 4096, &bytes);
        driver.write(file, 2000 * 4096, &[7; 10]);
        for checkpoint in [false, true] {
            if checkpoint {
                driver.flush(file);
                driver.storage().evict(file).unwrap();
            }
            let mut last = bytes[3 * 4096..].to_vec();
            last.resize(4096, 0);
            let crcs: Vec<u32> = bytes[..3 * 4096].chunks(4096).chain([&last[..]]).map(crc32c).collect();
            let mut tail = vec![7; 10];
            tail.resize(4096, 0);
            let map = driver.storage().block_map(file, blocks(0, u64::MAX)).unwrap();
            let run = |first, end, state| MapRun { blocks: blocks(first, end), state };
            let expected = [
                run(0, 2, MapState::Hole),
                run(2, 6, MapState::Known(crcs)),
                run(6, 2000, MapState::Hole),
                run(2000, 2001, MapState::Known(vec![crc32c(&tail)])),
            ];
            assert_eq!(map, expected);
            let part = driver.storage().block_map(file, blocks(4, 10)).unwrap();
            assert_eq!(part.iter().map(|run| run.blocks).collect::<Vec<_>>(), [blocks(4, 6), blocks(6, 10)]);
        }
        // No data is read: wrong bytes are nobody's concern here.
        poke(&directory.path().join("files/a"), 2 * 4096, b"wrong");
        assert_eq!(driver.storage().block_map(file, blocks(2, 3)).unwrap().len(), 1);
        assert!(driver.mismatches.lock().unwrap().is_empty());
    }
}

#[test]
fn an_evicted_file_leaves_nothing_in_memory_and_is_read_as_before() {
    for (place, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        let bytes = pattern(1, 4 << 20);
        driver.write(file, 0, &bytes);
        // Into the page cache, as another tool would.
        assert!(std::fs::read(directory.path().join("files/a")).unwrap()[..4 << 20] == bytes[..]);
        let evicted = driver.storage().evict(file).unwrap();
        assert!(evicted.bytes >= 8192, "{place}: two pages of checksums");
        if place == "disk" && evicted.bytes < 4 << 20 {
            eprintln!("SKIPPED: the kernel does not say what it has cached (cachestat, Linux 6.5)");
        }
        assert_eq!(driver.storage().inner.file(file).sums().pages_in_memory(), 0);
        assert!(driver.read(file, 0, 4 << 20) == bytes);
        driver.write(file, 0, &[1; 4096]);
        driver.storage().evict(file).unwrap();
        driver.kill();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert!(driver.read(file, 0, 4096) == [1; 4096]);
        assert!(driver.read(file, 4096, 4096) == bytes[4096..8192]);
    }
}

/// Only checkpoints forgot anything, and there is none while nothing is written.
#[test]
fn reads_of_a_large_file_do_not_fill_the_memory_with_its_checksums() {
    let (_, directory) = places().remove(0);
    let pages_max = 4;
    let driver = Driver::open_with(StorageConfig {
        sidecar_bytes_max: pages_max * 4096,
        ..StorageConfig::new(directory.path())
    });
    let file = driver.create("a");
    let firsts: Vec<u64> = (0..20).map(|page| page * 960 * 4096).collect();
    firsts.iter().for_each(|first| driver.write(file, *first, &pattern(1, 4096)));
    driver.flush(file);
    driver.storage().evict(file).unwrap();
    for first in firsts {
        assert!(driver.read(file, first, 4096) == pattern(1, 4096));
        let pages = driver.storage().inner.file(file).sums().pages_in_memory();
        assert!(pages <= pages_max as usize, "{pages} pages");
    }
}
