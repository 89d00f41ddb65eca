//! Copies of files: on filesystems that share blocks, and on those that cannot.

use super::*;
use crate::sidecar::BlockState::Torn;

#[test]
fn a_clone_has_the_bytes_and_checksums_of_its_moment_and_stays_so() {
    for (place, directory) in all_places() {
        let driver = Driver::open(&directory.path().join("store"));
        let file = driver.create("a");
        let bytes = pattern(1, 3 << 20);
        driver.write(file, 0, &bytes);
        driver.write(file, (8 << 20) + 5, &[9; 5000]);
        let survey = driver.survey(file);
        for name in ["one", "two"] {
            let clone = driver.clone_to(file, name);
            assert_ne!(clone, file);
            assert_eq!(driver.survey(clone), survey, "{place}");
        }
        let clone = driver.open_file("one");
        driver.write(file, 4096, &[3; 8192]);
        driver.truncate(file, 10_000);
        let (size, end) = ((8 << 20) + 5005, (8 << 20) + 5);
        assert_eq!(driver.size(clone), size);
        assert!(driver.read(clone, 0, 3 << 20) == bytes, "{place}");
        assert!(driver.read(clone, 3 << 20, end - (3 << 20)).iter().all(|byte| *byte == 0), "{place}");
        driver.write(clone, 0, b"changed");
        let two = driver.open_file("two");
        assert!(driver.read(two, 0, 3 << 20) == bytes, "{place}");
        driver.kill();
        let driver = Driver::open(&directory.path().join("store"));
        assert_eq!(driver.opened.damage, []);
        let two = driver.open_file("two");
        assert_eq!(driver.survey(two), survey, "{place}: after a kill");
        assert!(driver.read(two, 0, 3 << 20) == bytes, "{place}");
        assert!(driver.read(two, end, 5000) == [9; 5000], "{place}");
        assert_eq!(driver.read(driver.open_file("one"), 0, 7), b"changed");
        assert!(driver.read(driver.open_file("a"), 4096, 5904) == [3; 5904]);
        let name = directory.path().join("store/files/two");
        let allocated = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(name).unwrap()) * 512;
        assert!(allocated < 4 << 20, "{place}: holes are kept, {allocated} bytes are allocated");
    }
}

#[test]
fn what_is_unknown_or_torn_is_so_in_the_clone_and_a_wrong_byte_is_not_taken_along() {
    for (place, directory) in all_places() {
        let root = directory.path().join("store");
        Driver::open(&root).stop();
        let name = root.join("files/a");
        std::fs::write(&name, vec![7; 2000 * 4096]).unwrap();
        std::fs::File::open(&name).unwrap().sync_all().unwrap();
        let driver = Driver::open(&root);
        let file = driver.open_file("a");
        driver.write(file, 0, &pattern(1, 8192));
        driver.storage().inner.file(file).sums().set(&*driver.storage().inner.disk, 5, Torn).unwrap();
        let clone = driver.clone_to(file, "b");
        let counts = Survey { known: 2, unknown: 1997, torn: 1, holes: 0 };
        assert_eq!(driver.survey(clone), counts, "{place}");
        assert!(driver.read(clone, 6 * 4096, 1 << 20).iter().all(|byte| *byte == 7));
        assert_eq!(driver.try_read(clone, 5 * 4096, 1), Err(Fault::Checksum));
        poke(&name, 4096, b"wrong");
        let staged = driver.storage().stage();
        match driver.change_with(file, Change::Clone, Detail::Clone { staged }) {
            // Shared blocks: the wrong byte is in both, and both name it.
            Ok(()) => {
                driver.storage().place(staged, &path("c")).unwrap();
                let clone = driver.open_file("c");
                assert_eq!(driver.try_read(clone, 4096, 1), Err(Fault::Checksum), "{place}");
            }
            Err(fault) => {
                assert_eq!(fault, Fault::Checksum, "{place}");
                assert_eq!(count_files(&root.join(".leasehold/staging")), 0, "nothing is left of it");
                assert_eq!(driver.mismatches.lock().unwrap().last().map(|seen| seen.block), Some(1));
            }
        }
    }
}

#[test]
fn a_clone_keeps_the_mode_and_the_attributes() {
    for (place, directory) in all_places() {
        let driver = Driver::open(&directory.path().join("store"));
        let file = driver.create("a");
        driver.write(file, 0, b"bytes");
        let xattrs = Xattrs::from([("user.colour".to_owned(), b"green\0".to_vec())]);
        let wanted = Attributes { mode: Some(0o640), xattrs: Some(xattrs.clone()), modified: None };
        match driver.storage().set_attributes(&path("a"), &wanted) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("SKIPPED on {place}: no user attributes: {error}");
                continue;
            }
        }
        driver.clone_to(file, "b");
        assert_eq!(driver.storage().stat(&path("b")).unwrap().mode, 0o640, "{place}");
        assert_eq!(driver.storage().xattrs(&path("b")).unwrap(), xattrs, "{place}");
    }
}

#[test]
fn a_clone_without_a_name_is_gone_after_a_start_and_one_that_is_discarded_at_once() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        driver.write(file, 0, b"bytes");
        driver.storage().checkpoint().unwrap();
        let stage = || {
            let staged = driver.storage().stage();
            driver.change_with(file, Change::Clone, Detail::Clone { staged }).unwrap();
            staged
        };
        let (staging, sums) =
            (directory.path().join(".leasehold/staging"), directory.path().join(".leasehold/sums"));
        let (first, second) = (stage(), stage());
        assert_eq!((count_files(&staging), count_files(&sums)), (2, 3));
        driver.storage().discard(first);
        driver.storage().discard(first);
        assert_eq!((count_files(&staging), count_files(&sums)), (1, 2));
        assert_ne!(first, second);
        driver.kill();
        Driver::open(directory.path()).stop();
        assert_eq!((count_files(&staging), count_files(&sums)), (0, 1));
    }
}

#[test]
fn a_clone_is_placed_under_a_free_name_or_over_a_file_that_is_removed_so() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let storage = driver.storage();
        let (a, b) = (driver.create("a"), driver.create("b"));
        driver.write(a, 0, b"from a");
        driver.write(b, 0, b"from b, longer");
        let staged = storage.stage();
        driver.change_with(a, Change::Clone, Detail::Clone { staged }).unwrap();
        assert!(matches!(storage.place(staged, &path("b")), Err(NamespaceError::Exists { .. })));
        assert!(matches!(storage.place(staged, &path("no/b")), Err(NamespaceError::NotFound { .. })));
        assert!(matches!(storage.place_over_extra(staged, &path("b")), Err(NamespaceError::LastName { .. })));
        storage.link(&path("b"), &path("extra")).unwrap();
        let over = |name| Detail::PlaceOver { staged, to: path(name) };
        assert_eq!(
            driver.change_with(b, Change::Remove, over("b")),
            Err(Fault::Moved),
            "it has another name"
        );
        storage.unlink_extra(&path("extra")).unwrap();
        driver.change_with(b, Change::Remove, over("b")).unwrap();
        storage.forget(b);
        let placed = driver.open_file("b");
        assert_ne!(placed, b);
        assert_eq!(driver.content(placed), b"from a");
        storage.symlink("elsewhere", &path("link")).unwrap();
        let staged = storage.stage();
        driver.change_with(a, Change::Clone, Detail::Clone { staged }).unwrap();
        storage.place_over_extra(staged, &path("link")).unwrap();
        driver.kill();
        let driver = Driver::open(directory.path());
        for name in ["a", "b", "link"] {
            assert_eq!(driver.content(driver.open_file(name)), b"from a", "{name}");
        }
        driver.stop();
        assert_eq!(count_files(&directory.path().join(".leasehold/sums")), 3);
    }
}
