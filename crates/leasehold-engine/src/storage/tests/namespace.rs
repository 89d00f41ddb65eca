//! Names, adoption, formats and locks.

use super::*;

#[test]
fn names_do_what_they_do_everywhere() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let storage = driver.storage();
        storage.make_directory(&path("d")).unwrap();
        storage.make_directory(&path("d/e")).unwrap();
        let file = driver.create("d/e/f");
        assert!(!storage.create(&path("d/e/f")).unwrap().created);
        driver.write(file, 0, b"hello");
        driver.flush(file);
        let stat = storage.stat(&path("d/e/f")).unwrap();
        assert_eq!((stat.kind, stat.size, stat.links, stat.is_open), (Kind::File, 5, 1, true));
        storage.rename(&path("d/e"), &path("g")).unwrap();
        assert_eq!(storage.path_of(file), Some(path("g/f")));
        assert_eq!(
            storage.list(&StorePath::ROOT).unwrap().iter().map(|e| &e.name[..]).collect::<Vec<_>>(),
            ["d", "g"]
        );
        assert!(matches!(storage.rename(&path("g"), &path("d")), Err(NamespaceError::Exists { .. })));
        assert!(matches!(storage.remove_directory(&path("g")), Err(NamespaceError::NotEmpty { .. })));
        storage.remove_directory(&path("d")).unwrap();
        assert!(matches!(storage.open_file(&path("g")), Err(NamespaceError::NotAFile { .. })));
        assert!(matches!(storage.open_file(&path("g/f/x")), Err(NamespaceError::NotADirectory { .. })));
        assert!(matches!(storage.unlink_extra(&path("g/f")), Err(NamespaceError::LastName { .. })));
        assert!(matches!(storage.create(&StorePath::ROOT), Err(NamespaceError::Root)));
        std::fs::hard_link(directory.path().join("files/g/f"), directory.path().join("files/h")).unwrap();
        let opened = storage.open_file(&path("h")).unwrap();
        assert_eq!((opened.file, opened.links, opened.size), (file, 2, 5), "hard links share one id");
        storage.unlink_extra(&path("h")).unwrap();
        let mut seen = Vec::new();
        storage
            .walk(&StorePath::ROOT, &mut |path| {
                seen.push(path.clone());
                true
            })
            .unwrap();
        assert_eq!(seen, [path("g/f")]);
    }
}

#[test]
fn no_link_leads_out_of_the_store() {
    let (_, directory) = places().remove(0);
    let driver = Driver::open(directory.path());
    std::os::unix::fs::symlink("/etc", directory.path().join("files/etc")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join("files/passwd")).unwrap();
    for name in ["etc/passwd", "passwd"] {
        let error = driver.storage().open_file(&path(name)).unwrap_err();
        assert!(
            matches!(error, NamespaceError::Link { .. } | NamespaceError::NotAFile { .. }),
            "{name}: {error}"
        );
        assert!(driver.storage().create(&path(name)).is_err(), "{name}");
    }
}

#[test]
fn an_exchange_leaves_each_file_its_bytes_and_its_checksums() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let storage = driver.storage();
        let (a, b) = (driver.create("a"), driver.create("b"));
        driver.write(a, 0, b"from a");
        driver.write(b, 0, b"from b");
        storage.make_directory(&path("d")).unwrap();
        storage.exchange(&path("a"), &path("b")).unwrap();
        storage.exchange(&path("b"), &path("d")).unwrap();
        assert_eq!((storage.path_of(a), storage.path_of(b)), (Some(path("d")), Some(path("a"))));
        let refused = storage.exchange(&path("a"), &path("nothing"));
        assert!(matches!(refused, Err(NamespaceError::NotFound { path }) if path.as_str() == "nothing"));
        // The record knows the files by what they are.
        driver.kill();
        let driver = Driver::open(directory.path());
        assert_eq!(driver.opened.damage, []);
        assert_eq!(driver.content(driver.open_file("d")), b"from a");
        assert_eq!(driver.content(driver.open_file("a")), b"from b");
    }
}

#[test]
fn a_rename_over_a_file_removes_it_and_keeps_the_other() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let (a, b) = (driver.create("a"), driver.create("b"));
        driver.write(a, 0, b"from a");
        driver.write(b, 0, b"from b");
        let detail = Detail::RenameOver { from: path("a"), to: path("b") };
        driver.change_with(b, Change::Remove, detail).unwrap();
        driver.storage().forget(b);
        assert_eq!(driver.storage().path_of(a), Some(path("b")));
        assert_eq!(driver.open_file("b"), a);
        driver.stop();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("b");
        assert_eq!(driver.content(file), b"from a");
        let sidecars = count_files(&directory.path().join(".leasehold/sums"));
        assert_eq!(sidecars, 1, "the removed file's sidecar is gone");
    }
}

#[test]
fn files_put_there_by_others_are_adopted_as_they_are_read() {
    for (_, directory) in places() {
        Driver::open(directory.path()).stop();
        let bytes = pattern(8, 50_001);
        std::fs::write(directory.path().join("files/a"), &bytes).unwrap();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert_eq!(driver.size(file), 50_001);
        let all = BlockRange::new(0, 100).unwrap();
        assert_eq!(driver.storage().survey(file, all).unwrap().unknown, 13);
        assert!(driver.read(file, 0, 8192) == bytes[..8192]);
        let survey = driver.storage().survey(file, all).unwrap();
        assert_eq!((survey.known, survey.unknown), (2, 11));
        // An overwrite of a block of which nothing is known.
        driver.write(file, 20_000, &[1; 10_000]);
        let mut expected = bytes;
        expected[20_000..30_000].fill(1);
        assert!(driver.content(file) == expected);
        driver.stop();
        let driver = Driver::open(directory.path());
        let file = driver.open_file("a");
        assert_eq!(driver.storage().survey(file, all).unwrap().known, 13);
        assert!(driver.content(file) == expected);
    }
}

#[test]
fn a_forgotten_file_is_found_again_with_its_checksums() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let file = driver.create("a");
        driver.write(file, 0, &pattern(1, 9000));
        driver.storage().forget(file);
        let length = || std::fs::metadata(directory.path().join("files/a")).unwrap().len();
        assert_eq!(length(), 9000, "no padding is left behind");
        let again = driver.open_file("a");
        assert!(driver.content(again) == pattern(1, 9000));
        driver.storage().forget(again);
        driver.storage().checkpoint().unwrap();
        let again = driver.open_file("a");
        let survey = driver.storage().survey(again, BlockRange::new(0, 10).unwrap()).unwrap();
        assert_eq!(survey, Survey { known: 3, ..Survey::default() });
        assert!(driver.content(again) == pattern(1, 9000));
    }
}

#[test]
fn a_second_server_is_refused_and_told_who_holds_the_store() {
    let (_, directory) = places().remove(0);
    let driver = Driver::open(directory.path());
    let Err(error) = Driver::try_open_with(StorageConfig::new(directory.path())) else {
        panic!("opened twice")
    };
    assert!(
        matches!(&error, OpenError::InUse { holder, .. } if *holder == format!("pid {}", std::process::id())),
        "{error}"
    );
    driver.stop();
    Driver::open(directory.path()).stop();
}

#[test]
fn a_newer_format_and_a_directory_of_other_things_are_refused() {
    let (_, directory) = places().remove(0);
    let root = directory.path().join("store");
    Driver::open(&root).stop();
    std::fs::write(root.join(".leasehold/format"), "leasehold store 3\n").unwrap();
    let error = Driver::try_open_with(StorageConfig::new(&root)).err().unwrap();
    assert!(matches!(error, OpenError::NewerFormat { found: 3, known: 2, .. }), "{error}");
    std::fs::write(root.join(".leasehold/format"), "soup").unwrap();
    assert!(matches!(
        Driver::try_open_with(StorageConfig::new(&root)).err(),
        Some(OpenError::Damaged { .. })
    ));
    let other = directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("thesis.tex"), "x").unwrap();
    assert!(matches!(
        Driver::try_open_with(StorageConfig::new(&other)).err(),
        Some(OpenError::NotAStore { .. })
    ));
    let missing = StorageConfig::new("/proc/leasehold");
    assert!(matches!(Driver::try_open_with(missing).err(), Some(OpenError::System { .. })));
}

#[test]
fn sidecars_of_files_that_others_removed_are_collected_and_no_others() {
    for (place, directory) in places() {
        let driver = Driver::open(directory.path());
        for name in ["kept", "gone", "open"] {
            let file = driver.create(name);
            driver.write(file, 0, &pattern(1, 9000));
            driver.storage().checkpoint().unwrap();
            if name != "open" {
                driver.flush(file);
                driver.storage().checkpoint().unwrap();
                driver.storage().forget(file);
            }
        }
        let clone = driver.storage().stage();
        let open = driver.open_file("open");
        driver.change_with(open, Change::Clone, Detail::Clone { staged: clone }).unwrap();
        std::fs::remove_file(directory.path().join("files/gone")).unwrap();
        let orphans = driver.storage().collect_orphans().unwrap();
        if orphans.unsure > 0 {
            eprintln!("SKIPPED on {place}: the kernel does not say whether an identity exists");
            continue;
        }
        assert_eq!(orphans, Orphans { removed: 1, unsure: 0 });
        assert_eq!(count_files(&directory.path().join(".leasehold/sums")), 3);
        driver.storage().place(clone, &path("clone")).unwrap();
        for name in ["kept", "open", "clone"] {
            let file = driver.open_file(name);
            assert_eq!(driver.survey(file), Survey { known: 3, ..Survey::default() }, "{name}");
        }
    }
}

/// A removal waits for its leases to be broken. What it then unlinked was whatever had the name by that time.
#[test]
fn a_removal_spares_what_took_the_name_meanwhile() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let (storage, remove) =
            (driver.storage(), |file, detail| driver.change_with(file, Change::Remove, detail));
        let (a, b, over) = (driver.create("a"), driver.create("b"), driver.create("over"));
        for (file, bytes) in [(a, b"from a"), (b, b"from b"), (over, b"overed")] {
            driver.write(file, 0, bytes);
        }
        storage.rename(&path("a"), &path("c")).unwrap();
        let unlink = |name| Detail::Unlink { path: path(name), durable: true };
        assert!(remove(a, unlink("a")).is_err(), "nothing has the name");
        storage.rename(&path("b"), &path("a")).unwrap();
        assert!(remove(a, unlink("a")).is_err(), "b has the name");
        assert!(
            remove(a, Detail::RenameOver { from: path("over"), to: path("a") }).is_err(),
            "b has the name"
        );
        std::fs::hard_link(directory.path().join("files/c"), directory.path().join("files/d")).unwrap();
        assert!(remove(a, unlink("c")).is_err(), "it has another name");
        storage.unlink_extra(&path("d")).unwrap();
        // Who takes the name is looked at too.
        storage.make_directory(&path("e")).unwrap();
        for from in ["e", "nothing", "c"] {
            let detail = Detail::RenameOver { from: path(from), to: path("c") };
            assert!(remove(a, detail).is_err(), "{from}");
        }
        // Nothing was noted either: the record is replayed for all of them.
        driver.kill();
        let driver = Driver::open(directory.path());
        assert_eq!(driver.opened.damage, []);
        for (name, bytes) in [("c", b"from a"), ("a", b"from b"), ("over", b"overed")] {
            assert_eq!(driver.content(driver.open_file(name)), bytes);
        }
        driver.change_with(driver.open_file("c"), Change::Remove, unlink("c")).unwrap();
        assert!(!directory.path().join("files/c").exists());
    }
}
