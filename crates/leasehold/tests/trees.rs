//! Directories and all that is in them, into the store and back.

mod harness;

use harness::shell::Shell;
use harness::{Store, pattern};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What is below, by name: what it is, and what is in it. Links are not followed.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below").to_str().expect("UTF-8").to_owned();
            let kind = path.symlink_metadata().expect("it is there").file_type();
            let what = if kind.is_dir() {
                walk(root, &path, found);
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("link to {}", fs::read_link(&path).expect("a link").display())
            } else {
                let bytes = fs::read(&path).expect("a file");
                format!("{} bytes {:08x}", bytes.len(), leasehold_client::crc32c(&bytes))
            };
            found.insert(name, what);
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// Odd names, empty and long files, links of both kinds.
fn make_a_tree(root: &Path) {
    fs::create_dir_all(root.join("empty/er")).unwrap();
    fs::create_dir_all(root.join("with space/new\nline")).unwrap();
    for (name, length) in
        [("nothing", 0), ("one", 1), ("with space/new\nline/ü?#%", 5000), ("long", 3_000_001)]
    {
        fs::write(root.join(name), pattern(length as u64 + 1, length)).unwrap();
    }
    for number in 0..200 {
        fs::write(root.join(format!("empty/small{number}")), pattern(number, 100 + number as usize)).unwrap();
    }
    fs::hard_link(root.join("long"), root.join("empty/long too")).unwrap();
    symlink("../long", root.join("empty/link")).unwrap();
    symlink("/etc", root.join("out of it")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_back_as_it_was_put_with_its_odd_names_and_links() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    make_a_tree(&shell.at("tree"));
    let said = shell.json(&["put", "--recursive", "tree", "/copy", "--chunk", "1MiB"]);
    assert_eq!(
        (&said["files"], &said["directories"], &said["links"]),
        (&204.into(), &5.into(), &4.into()),
        "{said}"
    );
    assert_eq!(said["sent"], said["bytes"]);
    assert_eq!(tree(&store.file("copy")), tree(&shell.at("tree")), "every other tool sees it");
    let long = fs::metadata(store.file("copy/long")).unwrap();
    assert_eq!(
        long.ino(),
        fs::metadata(store.file("copy/empty/long too")).unwrap().ino(),
        "one file, two names"
    );

    let said = shell.json(&["get", "--recursive", "/copy", "back"]);
    assert_eq!(
        (&said["files"], &said["directories"], &said["links"]),
        (&204.into(), &5.into(), &4.into()),
        "{said}"
    );
    assert_eq!(tree(&shell.at("back")), tree(&shell.at("tree")));
    assert_eq!(fs::metadata(shell.at("back/long")).unwrap().nlink(), 2);
    assert_eq!(harness::mismatches(&store.client().await).await, 0);

    let said = shell.json(&["put", "--recursive", "--resume", "tree/", "/copy"]);
    assert_eq!(said["path"], "/copy/tree", "a directory that exists is put into");
    let said = shell.json(&["put", "-r", "--resume", "tree/.", "/copy"]);
    assert_eq!((&said["path"], &said["sent"]), (&"/copy".into(), &0.into()), "all of it is there: {said}");
    let said = shell.json(&["get", "-r", "--resume", "/copy/tree", "back"]);
    assert_eq!(tree(&shell.at("back/tree")), tree(&shell.at("tree")), "{said}");
    let said = shell.json(&["get", "-r", "--resume", "/copy/tree", "back"]);
    assert_eq!(said["fetched"], 0, "all of it is here: {said}");
    let said = shell.json(&["get", "-r", "--resume", "/copy/tree/.", "back/tree"]);
    assert_eq!(said["fetched"], 0, "what is in it goes into the directory itself: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_share_their_acquires() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    fs::create_dir(shell.at("tree")).unwrap();
    for number in 0..640 {
        fs::write(shell.at(&format!("tree/{number}")), pattern(number, 1000)).unwrap();
    }
    shell.json(&["put", "-r", "tree", "/tree"]);
    let acquires = |store: &Store| {
        let counters = store.server.engine().counters();
        counters
            .histograms()
            .into_iter()
            .find(|(name, _)| *name == "acquire_took")
            .unwrap()
            .1
            .buckets()
            .iter()
            .sum::<u64>()
    };
    assert_eq!(acquires(&store), 10);
    shell.json(&["get", "-r", "/tree", "back"]);
    assert_eq!(acquires(&store), 20);
    assert_eq!(tree(&shell.at("back")), tree(&shell.at("tree")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_is_named_and_the_rest_goes_on() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    fs::create_dir(shell.at("tree")).unwrap();
    for name in ["a", "m", "z"] {
        fs::write(shell.at("tree").join(name), pattern(7, 10_000)).unwrap();
    }
    fs::write(shell.at("tree").join(OsStr::from_bytes(b"no\xfftext")), "x").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        shell.at("tree/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let client = store.client().await;
    client.make_directory("/tree/m/in the way", true).await.unwrap();
    let (code, said, says) = shell.fails(&["put", "-r", "tree/.", "/tree"]);
    assert_eq!((code, &said["files"]), (1, &2.into()), "{says}");
    let failed: Vec<&str> =
        said["failures"].as_array().unwrap().iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert_eq!(failed, ["tree/./no\u{fffd}text", "tree/./pipe", "/tree/m"], "{says}");
    assert!(
        says.contains("not UTF-8") && says.contains("a pipe") && says.contains("3 names were not put"),
        "{says}"
    );
    assert_eq!(fs::read(store.file("tree/z")).unwrap(), pattern(7, 10_000));

    let holder = store.session().await;
    let _lease = harness::lease(&holder, "/tree/a", 0, 4096).await;
    fs::create_dir(shell.at("back")).unwrap();
    fs::create_dir(shell.at("back/tree")).unwrap();
    let (code, said, says) = shell.fails(&["get", "-r", "/tree", "back", "--wait", "10ms"]);
    assert_eq!((code, &said["files"]), (4, &1.into()), "{says}");
    assert!(says.contains("/tree/a"), "the leased file is named: {says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_times_and_attributes_are_kept_if_that_is_wanted() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    fs::create_dir_all(shell.at("tree/below")).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::write(shell.at("tree/below/file"), "content").unwrap();
    for (name, mode) in [("tree/below/file", 0o640), ("tree/below", 0o2750), ("tree", 0o711)] {
        let path = shell.at(name);
        rustix::fs::setxattr(&path, "user.kind", name.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
        fs::File::open(&path).unwrap().set_modified(old).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let seen = |root: &Path| {
        let look = |name: &str| {
            let path = root.join(name);
            let found = fs::metadata(&path).unwrap();
            let mut value = vec![0; 100];
            let length = rustix::fs::getxattr(&path, "user.kind", &mut value).unwrap();
            (found.mode() & 0o7777, found.modified().unwrap(), value[..length].to_vec())
        };
        ["", "below", "below/file"].map(look)
    };
    shell.json(&["put", "-r", "--preserve", "tree", "/kept"]);
    assert_eq!(seen(&store.file("kept")), seen(&shell.at("tree")));
    shell.json(&["get", "-r", "--preserve", "/kept", "back"]);
    assert_eq!(seen(&shell.at("back")), seen(&shell.at("tree")));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_through_a_local_link() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    fs::create_dir_all(shell.at("tree/sub")).unwrap();
    fs::write(shell.at("tree/sub/file"), "new").unwrap();
    fs::write(shell.at("tree/file"), "new").unwrap();
    shell.json(&["put", "-r", "tree", "/tree"]);
    fs::create_dir_all(shell.at("elsewhere")).unwrap();
    fs::create_dir_all(shell.at("back/tree")).unwrap();
    fs::write(shell.at("elsewhere/target"), "old").unwrap();
    symlink(shell.at("elsewhere"), shell.at("back/tree/sub")).unwrap();
    symlink(shell.at("elsewhere/target"), shell.at("back/tree/file")).unwrap();
    let (code, _, says) = shell.fails(&["get", "-r", "/tree", "back"]);
    assert_eq!(code, 1, "{says}");
    assert_eq!(fs::read_dir(shell.at("elsewhere")).unwrap().count(), 1, "nothing new there");
    assert_eq!(fs::read_to_string(shell.at("elsewhere/target")).unwrap(), "old");
    assert_eq!(
        fs::read_to_string(shell.at("back/tree/file")).unwrap(),
        "new",
        "the link itself was replaced"
    );
}
