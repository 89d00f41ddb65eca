//! `leasehold demo --scheme`: each design breaks on real files what its entry declares, loudly, and none reaches a store.

mod harness;

use harness::leasehold;
use leasehold_core::promise::Promise;
use leasehold_core::schemes::{self, Verdict};
use std::path::Path;
use std::process::{Output, Stdio};

fn demo(scheme: &str, directory: &Path) -> Output {
    leasehold().args(["demo", "--scheme", scheme, "--directory"]).arg(directory).output().expect("a process")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

/// All at once: most of the time they wait for grace periods.
#[test]
fn every_scheme_shows_on_real_files_what_it_declares_and_leaves_nothing_behind() {
    let directory = harness::directory();
    let start = |entry: &schemes::Entry| {
        let mut command = leasehold();
        command.args(["demo", "--scheme", entry.scheme.name, "--directory"]).arg(directory.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
    };
    let running: Vec<_> = schemes::ALL.iter().map(|entry| (entry, start(entry))).collect();
    for (entry, child) in running {
        let name = entry.scheme.name;
        let Output { status, stdout, stderr } = child.wait_with_output().expect("its output");
        let (out, err) = (text(stdout), text(stderr));
        assert!(status.success(), "{name}:\n{out}\n{err}");
        assert!(err.contains(&format!("WARNING: the scheme `{name}`")), "{name}: {err}");
        let loses = entry.declared(Promise::P2).0 == Verdict::Broken;
        assert_eq!(err.contains("LOSES DATA"), loses, "{name}: {err}");
        assert!(err.contains("serves nothing but `leasehold`"), "{name}: {err}");
        assert!(out.contains(&format!("leasehold check {name}")), "{name}: {out}");
        for promise in Promise::ALL {
            let says = out.contains(&format!("\n{promise} broken: "))
                || out.contains(&format!("\n{promise} is broken too, but not here: "));
            assert_eq!(says, entry.declared(promise).0 == Verdict::Broken, "{name} {promise}:\n{out}");
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0, "something is left");
}

#[test]
fn what_fsync_acknowledged_under_naive_is_not_on_disk_and_under_leasehold_it_is() {
    let directory = harness::directory();
    let naive = text(demo("naive", directory.path()).stdout);
    let lost = "P2 broken: 65536 bytes that fsync acknowledged are not on disk";
    assert!(naive.contains(lost), "{naive}");
    let ours = text(demo("leasehold", directory.path()).stdout);
    assert!(
        ours.contains(
            "cat sees 0 bytes of what was there first, 0 bytes of what the peer wrote first, 65536"
        ),
        "{ours}"
    );
    assert!(ours.contains("No promise was broken."), "{ours}");
}

#[test]
fn a_scheme_never_comes_near_a_store() {
    let store = harness::directory();
    std::fs::create_dir_all(store.path().join(".leasehold")).unwrap();
    let refused = demo("naive", store.path());
    assert_eq!(refused.status.code(), Some(1));
    let why = text(refused.stderr);
    assert!(why.contains("is a store, and schemes that lose data stay away from stores"), "{why}");
    assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 1);
}

#[test]
fn an_unknown_scheme_is_answered_with_the_names_that_there_are() {
    let directory = harness::directory();
    let refused = demo("nave", directory.path());
    assert_eq!(refused.status.code(), Some(2));
    let why = text(refused.stderr);
    for entry in schemes::ALL {
        assert!(why.contains(entry.scheme.name), "{why}");
    }
}

#[test]
fn no_setting_makes_a_server_run_another_scheme() {
    let directory = harness::directory();
    let file = directory.path().join("leasehold.toml");
    std::fs::write(&file, "scheme = \"naive\"\n").unwrap();
    let serve = |arguments: &[&str]| harness::serve(&directory.path().join("store")).args(arguments).output();
    for arguments in [&["--scheme", "naive"][..], &["--config", file.to_str().expect("UTF-8")]] {
        let refused = serve(arguments).expect("a process");
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        assert!(text(refused.stderr).contains("scheme"), "{arguments:?}");
    }
    let settings =
        text(leasehold().args(["serve", "--print-config"]).arg(directory.path()).output().unwrap().stdout);
    assert!(settings.contains("grace_ms") && !settings.contains("scheme"), "{settings}");
}
