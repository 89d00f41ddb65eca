//! Hard links and symbolic links.

use super::*;

#[test]
fn hard_links_are_one_file_with_one_number_and_all_of_its_names() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let storage = driver.storage();
        let file = driver.create("a");
        driver.write(file, 0, b"bytes");
        storage.make_directory(&path("d")).unwrap();
        storage.link(&path("a"), &path("d/b")).unwrap();
        driver.flush(file);
        let (a, b) = (storage.stat(&path("a")).unwrap(), storage.stat(&path("d/b")).unwrap());
        assert_eq!((a.inode, a.links, b.links), (b.inode, 2, 2));
        assert_ne!(storage.stat(&path("d")).unwrap().inode, a.inode);
        assert_eq!(driver.open_file("d/b"), file);
        for (from, to, what) in
            [("a", "d/b", "exists"), ("d", "e", "ordinary file"), ("x", "y", "exist"), ("a", "x/y", "exist")]
        {
            let error = storage.link(&path(from), &path(to)).unwrap_err().to_string();
            assert!(error.contains(what), "{from} to {to}: {error}");
        }
        storage.unlink_extra(&path("a")).unwrap();
        assert_eq!(driver.content(driver.open_file("d/b")), b"bytes");
    }
}

#[test]
fn symbolic_links_are_kept_listed_renamed_and_removed_and_never_followed() {
    for (_, directory) in places() {
        let driver = Driver::open(directory.path());
        let storage = driver.storage();
        let file = driver.create("a");
        driver.write(file, 0, b"bytes");
        storage.symlink("../../etc/passwd", &path("link")).unwrap();
        storage.symlink("a", &path("inner")).unwrap();
        let stat = storage.stat(&path("link")).unwrap();
        assert_eq!((stat.kind, stat.size, stat.links, stat.is_open), (Kind::Link, 16, 1, false));
        assert_eq!(storage.read_link(&path("link")).unwrap(), "../../etc/passwd");
        assert!(matches!(storage.read_link(&path("a")), Err(NamespaceError::NotALink { .. })));
        let kinds: Vec<_> =
            storage.list(&StorePath::ROOT).unwrap().into_iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [Kind::File, Kind::Link, Kind::Link]);
        assert!(storage.open_file(&path("inner")).is_err() && storage.create(&path("inner")).is_err());
        assert!(matches!(storage.symlink("b", &path("link")), Err(NamespaceError::Exists { .. })));
        storage.rename(&path("link"), &path("moved")).unwrap();
        storage.link(&path("moved"), &path("twice")).unwrap();
        // Over a link: nobody has a lease on one.
        let other = driver.create("other");
        driver.write(other, 0, b"other");
        storage.rename_over_extra(&path("other"), &path("twice")).unwrap();
        assert_eq!(driver.content(driver.open_file("twice")), b"other");
        // A link over a file's last name, which takes its leases.
        let detail = Detail::RenameOver { from: path("inner"), to: path("a") };
        driver.change_with(file, Change::Remove, detail).unwrap();
        storage.forget(file);
        assert_eq!(storage.read_link(&path("a")).unwrap(), "a");
        storage.unlink_extra(&path("a")).unwrap();
        let mut seen = Vec::new();
        let visit = &mut |path: &StorePath| {
            seen.push(path.clone());
            true
        };
        storage.walk(&StorePath::ROOT, visit).unwrap();
        assert_eq!(seen, [path("twice")], "links are not walked through");
        driver.stop();
        let driver = Driver::open(directory.path());
        assert_eq!(driver.storage().read_link(&path("moved")).unwrap(), "../../etc/passwd");
    }
}
