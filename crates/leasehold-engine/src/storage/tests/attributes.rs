//! Permission bits, times, and attributes of the user.

use super::*;
use std::time::{Duration, UNIX_EPOCH};

#[test]
fn what_is_set_is_there_and_the_rest_stays() {
    for (place, directory) in places() {
        let driver = Driver::open(directory.path());
        let storage = driver.storage();
        let file = driver.create("open");
        driver.write(file, 0, b"bytes");
        driver.flush(file);
        storage.forget(driver.create("closed"));
        storage.make_directory(&path("directory")).unwrap();
        storage.symlink("anything", &path("link")).unwrap();
        for name in ["open", "closed", "directory", "link"] {
            let set = |attributes| storage.set_attributes(&path(name), &attributes);
            for modified in [UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321), UNIX_EPOCH] {
                set(Attributes { modified: Some(modified), ..Attributes::default() }).unwrap();
                assert_eq!(storage.stat(&path(name)).unwrap().modified, modified, "{name}");
            }
            let mode = set(Attributes { mode: Some(0o106_750), ..Attributes::default() });
            if name == "link" {
                assert!(mode.is_err(), "a symbolic link has no mode");
                continue;
            }
            mode.unwrap();
            let kept = if name == "directory" { 0o2750 } else { 0o750 };
            assert_eq!(storage.stat(&path(name)).unwrap().mode, kept, "{name}: no setuid from afar");
            let some = |pairs: &[(&str, &[u8])]| -> Xattrs {
                pairs.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect()
            };
            let long = vec![b'x'; 1000];
            let wanted = some(&[("user.a", b"1"), ("user.b", b""), ("user.long", &long)]);
            if let Err(error) = set(Attributes { xattrs: Some(wanted.clone()), ..Attributes::default() }) {
                eprintln!("SKIPPED on {place}: no user attributes: {error}");
                continue;
            }
            assert_eq!(storage.xattrs(&path(name)).unwrap(), wanted);
            let fewer = some(&[("user.b", b"2")]);
            set(Attributes { xattrs: Some(fewer.clone()), ..Attributes::default() }).unwrap();
            assert_eq!(storage.xattrs(&path(name)).unwrap(), fewer);
            let system = Xattrs::from([("trusted.a".to_owned(), Vec::new())]);
            assert!(set(Attributes { xattrs: Some(system), ..Attributes::default() }).is_err());
        }
        assert!(driver.content(file) == b"bytes");
    }
}
