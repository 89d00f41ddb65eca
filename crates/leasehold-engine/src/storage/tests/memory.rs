//! Memory that runs out: at the start, and while a store is at work. Each test has a process of its own, whose address space is
//! limited.

use super::*;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

const LIMITED: &str = "LEASEHOLD_TEST_LIMITED_MEMORY";

/// How much address space this process has.
fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

/// From now on this process gets so many bytes more, and no more.
fn limit(more: u64) {
    let current = Some(address_space() + more);
    setrlimit(Resource::As, Rlimit { current, maximum: None }).unwrap();
}

/// The test of this name, in a process of its own, as `what`.
fn again(name: &str, what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("storage::tests::memory::{name}");
    command.args(["--exact", &name, "--nocapture"]).env(LIMITED, what).env("RUST_BACKTRACE", "0");
    command
}

#[test]
fn an_arena_for_which_there_is_no_memory_is_refused_with_what_to_do() {
    let name = "an_arena_for_which_there_is_no_memory_is_refused_with_what_to_do";
    if std::env::var_os(LIMITED).is_some() {
        limit(64 << 20);
        for pages in [Pages::Normal, Pages::Auto] {
            let error = Arena::new(256 << 20, pages).expect_err("there is no room");
            println!("refused: {error}");
        }
        // What fits is had all the same.
        return drop(Arena::new(4 << 20, Pages::Normal).unwrap());
    }
    let output = again(name, "1").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let remedy =
        "cannot map an arena of 268435456 bytes; serve with a smaller arena, or raise the memory limit";
    assert_eq!(text.matches(remedy).count(), 2, "{text}");
}

/// Writes blocks of a file, each with the number of its round, syncs each round, and says so, with ever less memory. It never
/// ends by itself, unless with an error of its own.
fn use_up(root: &Path, backend: Backend) {
    let driver = Driver::open_with(StorageConfig { backend, ..StorageConfig::new(root) });
    let file = driver.create("a");
    limit(6 << 20);
    let (mut held, mut told) = (Vec::new(), std::io::stdout());
    for round in 1..=u64::MAX {
        for block in 0..BLOCKS {
            // Another place each round, so that more and more checksums are in memory, too.
            let offset = (block + round * 40 * BLOCKS) * 4096;
            driver.write(file, offset, &[round as u8; 4096]);
            driver.write(file, block * 4096, &[round as u8; 4096]);
        }
        driver.flush(file);
        told.write_all(format!("synced {round}\n").as_bytes()).unwrap();
        told.flush().unwrap();
        held.push(vec![1u8; 2 << 20]);
    }
}

const BLOCKS: u64 = 8;

/// The last round that the process said was durable.
fn last_round(child: &mut Child) -> u64 {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let rounds = lines.filter_map(|line| line.strip_prefix("synced ")?.parse().ok());
    rounds.last().unwrap_or(0)
}

#[test]
fn a_store_that_runs_out_of_memory_loses_nothing_that_it_acknowledged() {
    let name = "a_store_that_runs_out_of_memory_loses_nothing_that_it_acknowledged";
    if let Some(what) = std::env::var_os(LIMITED) {
        let what = what.into_string().unwrap();
        let (backend, root) = what.split_once(':').unwrap();
        let backend = if backend == "threads" { Backend::Threads } else { Backend::Auto };
        return use_up(Path::new(root), backend);
    }
    for (place, directory) in places() {
        for backend in ["ring", "threads"] {
            let root = directory.path().join(backend);
            let mut command = again(name, &format!("{backend}:{}", root.display()));
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let round = last_round(&mut child);
            let status = child.wait().unwrap();
            eprintln!("{backend}, on {place}: {round} rounds, then {status}");
            assert!(!status.success() && round > 3, "{backend}, on {place}: {round} rounds, then {status}");
            let driver = Driver::open(&root);
            let file = driver.open_file("a");
            assert_eq!(driver.survey(file).torn, 0, "{backend}, on {place}");
            for block in 0..BLOCKS {
                let found = driver.read(file, block * 4096, 4096);
                let whole = found.iter().all(|byte| *byte == found[0]);
                let is_new = [round as u8, (round + 1) as u8].contains(&found[0]);
                assert!(whole && is_new, "{backend}, on {place}: block {block} is of round {}", found[0]);
                let far = driver.read(file, (block + round * 40 * BLOCKS) * 4096, 4096);
                assert!(far == [round as u8; 4096], "{backend}, on {place}: far block {block}");
            }
            driver.stop();
        }
    }
}
