//! Holes are not sent, and become holes.

mod harness;

use harness::shell::Shell;
use harness::{Store, pattern};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

const MIB: u64 = 1 << 20;

fn on_disk(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").blocks() * 512
}

fn sparse(path: &Path, length: u64, data: &[(u64, usize)]) {
    let file = File::create(path).expect("a file");
    file.set_len(length).expect("room");
    for (offset, length) in data {
        file.write_all_at(&pattern(*offset + 1, *length), *offset).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_sparse_file_of_64_gib_only_the_data_travel_both_ways() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    let length = 64 << 30;
    let data = [(5 * MIB, 4096), (40_000 * MIB + 4096, MIB as usize - 8192), (length - 4096, 4096)];
    sparse(&shell.at("source"), length, &data);
    let said = shell.json(&["put", "source", "/file"]);
    assert_eq!((&said["bytes"], &said["sent"]), (&length.into(), &MIB.into()));
    assert_eq!(fs::metadata(store.file("file")).unwrap().len(), length);
    assert!(on_disk(&store.file("file")) < 4 * MIB, "{}", on_disk(&store.file("file")));

    let said = shell.json(&["get", "/file", "back"]);
    assert_eq!((&said["bytes"], &said["fetched"]), (&length.into(), &MIB.into()));
    assert!(on_disk(&shell.at("back")) < 4 * MIB);
    let back = File::open(shell.at("back")).unwrap();
    assert_eq!(back.metadata().unwrap().len(), length);
    for (offset, length) in data {
        let mut bytes = vec![0; length];
        back.read_exact_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes, pattern(offset + 1, length), "at {offset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_gets_the_holes_of_the_source_and_its_length() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    fs::write(shell.at("dense"), pattern(9, 12 * MIB as usize)).unwrap();
    shell.json(&["put", "dense", "/file"]);
    shell.json(&["get", "/file", "back"]);
    sparse(&shell.at("holes"), 10 * MIB + 1, &[(MIB, 4096), (7 * MIB, 100)]);
    shell.json(&["put", "holes", "/file"]);
    assert!(fs::read(store.file("file")).unwrap() == fs::read(shell.at("holes")).unwrap());
    assert!(on_disk(&store.file("file")) < MIB, "{}", on_disk(&store.file("file")));
    assert_eq!(harness::mismatches(&store.client().await).await, 0);

    let said = shell.json(&["get", "--resume", "/file", "back"]);
    assert!(fs::read(shell.at("back")).unwrap() == fs::read(shell.at("holes")).unwrap());
    assert!(said["fetched"].as_u64().unwrap() < MIB, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_one_hole_is_put_and_got() {
    let store = Store::start().await;
    let shell = Shell::on(store.server.socket());
    sparse(&shell.at("source"), 9 * MIB, &[]);
    assert_eq!(shell.json(&["put", "source", "/file"])["sent"], 0);
    assert_eq!(shell.json(&["get", "/file", "back"])["fetched"], 0);
    assert_eq!((fs::metadata(shell.at("back")).unwrap().len(), on_disk(&shell.at("back"))), (9 * MIB, 0));
}
