//! `leasehold audit` on this host: what it prints, how it ends, and that nothing holds it up.

mod harness;

use fuser::{Errno, FileHandle, Filesystem, INodeNo, ReplyAttr, Request};
use harness::leasehold;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

fn audit(arguments: &[&str]) -> Output {
    leasehold().arg("audit").args(arguments).output().expect("a process")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn this_host_is_judged_within_ten_seconds_in_80_columns_and_without_colour() {
    let start = Instant::now();
    let output = audit(&[]);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let text = stdout(&output);
    let expected = if text.contains("\nFindings: ") { 1 } else { 0 };
    assert_eq!(code(&output), expected, "{text}{}", stderr(&output));
    assert!(text.starts_with("Linux "), "{text}");
    assert!(text.contains("WHAT CAN BREAK A LEASE HERE"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    let longest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
    assert!(longest.chars().count() <= 80, "{longest}");
    assert_eq!(stderr(&output), "");
}

#[test]
fn the_json_document_says_the_same_as_the_exit_code() {
    let output = audit(&["--json"]);
    let document: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let open = document["findings"].as_array().unwrap().iter().any(|finding| finding["accepted"] == false);
    assert_eq!(code(&output), i32::from(open));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(document["host"]["kernel"]["release"], release.trim());
    assert!(document["host"]["processes"].as_u64().unwrap() > 0);
    let sarif: Value = serde_json::from_str(&stdout(&audit(&["--sarif"]))).expect("JSON");
    assert_eq!(sarif["version"], "2.1.0");
}

#[test]
fn what_was_written_as_the_baseline_is_accepted_by_the_next_run() {
    let directory = harness::directory();
    // Something to be found, wherever this runs.
    let root = directory.path().join("host");
    fs::create_dir_all(root.join("proc/self")).unwrap();
    fs::create_dir_all(root.join("proc/sys/fs")).unwrap();
    fs::write(root.join("proc/self/mountinfo"), "1 0 8:1 / / rw - ext4 /dev/sda1 rw,nobarrier\n").unwrap();
    let (root, baseline) = (root.to_str().unwrap(), directory.path().join("baseline.json"));
    let baseline = baseline.to_str().unwrap();
    assert_eq!(code(&audit(&["--root", root])), 1);
    assert_eq!(code(&audit(&["--root", root, "--write-baseline", baseline])), 0);
    let output = audit(&["--root", root, "--baseline", baseline]);
    assert_eq!(code(&output), 0);
    assert!(stdout(&output).contains("No finding; 1 accepted by the baseline."), "{}", stdout(&output));
    fs::write(baseline, "{}").unwrap();
    let output = audit(&["--root", root, "--baseline", baseline]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("is no baseline"), "{}", stderr(&output));
}

#[test]
fn every_finding_can_be_explained() {
    let list = stdout(&audit(&["--explain", "list"]));
    let ids: Vec<&str> =
        list.lines().filter_map(|line| line.split(' ').next()).filter(|id| !id.is_empty()).collect();
    assert!(ids.len() >= 20, "{list}");
    for id in ids {
        let output = audit(&["--explain", id]);
        assert_eq!(code(&output), 0, "{id}");
        assert!(stdout(&output).starts_with(id), "{id}");
    }
}

#[test]
fn there_is_colour_where_it_is_forced() {
    let output = leasehold().arg("audit").env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(stdout(&output).contains("\u{1b}["), "{}", stdout(&output));
}

#[test]
fn without_privileges_it_says_what_it_could_not_see() {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || !Path::new("/usr/bin/setpriv").exists() {
        eprintln!("SKIPPED: without_privileges_it_says_what_it_could_not_see needs root and setpriv");
        return;
    }
    // Where others may not look for the build.
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("leasehold");
    fs::copy(env!("CARGO_BIN_EXE_leasehold"), &program).unwrap();
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(place.path(), open).unwrap();
    let output = Command::new("/usr/bin/setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(&program)
        .arg("audit")
        .output()
        .unwrap();
    assert!([0, 1].contains(&code(&output)), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("NOT SEEN") && text.contains("not permitted; run it as root"), "{text}");
}

/// Answers nothing until the other end of the channel is gone.
struct Silent(Mutex<mpsc::Receiver<()>>);

impl Filesystem for Silent {
    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _ = self.0.lock().unwrap().recv();
        reply.error(Errno::EIO);
    }
}

#[test]
fn a_filesystem_whose_daemon_never_answers_is_a_finding_and_holds_up_nothing() {
    let mount_point = harness::directory();
    let (release, held) = mpsc::channel();
    let session =
        match fuser::spawn_mount(Silent(Mutex::new(held)), mount_point.path(), &fuser::Config::default()) {
            Ok(session) => session,
            Err(error) => {
                eprintln!(
                    "SKIPPED: a_filesystem_whose_daemon_never_answers: FUSE cannot be mounted: {error}"
                );
                return;
            }
        };
    let path = mount_point.path().to_str().unwrap();
    // It ends, and so does its output: whatever is held is not what we wait for.
    let start = Instant::now();
    let asked = audit(&[path]);
    let took_asked = start.elapsed();
    let start = Instant::now();
    let all = audit(&[]);
    let took_all = start.elapsed();
    drop(release);
    // The process that touched it may be on its way out still, and keep it busy.
    rustix::mount::unmount(mount_point.path(), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    drop(session);

    assert_eq!(code(&asked), 1, "{}{}", stdout(&asked), stderr(&asked));
    assert!(stdout(&asked).contains("LH-MOUNT-HUNG"), "{}", stdout(&asked));
    assert!(took_asked < Duration::from_secs(8), "{took_asked:?}");
    // Nobody asked for it, so nobody touches it.
    // Where the line is broken depends on how long the path is.
    let words = stdout(&all).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("not touched, it might not answer"), "{}", stdout(&all));
    assert!(!stdout(&all).contains("LH-MOUNT-HUNG"), "{}", stdout(&all));
    assert!(took_all < Duration::from_secs(8), "{took_all:?}");
}

/// An XFS in a file, mounted; unmounted when dropped.
struct Xfs(tempfile::TempDir);

impl Xfs {
    fn mount(reflink: bool) -> Option<Xfs> {
        let directory = harness::directory();
        let image = directory.path().join("image");
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        let mount_point = directory.path().join("mnt");
        fs::create_dir(&mount_point).unwrap();
        let option = if reflink { "reflink=1" } else { "reflink=0" };
        let made = Command::new("mkfs.xfs").args(["-q", "-m", option]).arg(&image).output();
        let mounted = made.is_ok_and(|made| made.status.success())
            && Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &mount_point])
                .output()
                .is_ok_and(|output| output.status.success());
        mounted.then_some(Xfs(directory))
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path().join("mnt")).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "it stays mounted: {:?}", self.0.path());
    }
}

#[test]
fn xfs_is_asked_whether_it_shares_blocks() {
    for reflink in [true, false] {
        let Some(xfs) = Xfs::mount(reflink) else {
            eprintln!("SKIPPED: xfs_is_asked_whether_it_shares_blocks needs root, mkfs.xfs and loop devices");
            return;
        };
        let mount_point = xfs.0.path().join("mnt");
        let document: Value =
            serde_json::from_str(&stdout(&audit(&["--json", mount_point.to_str().unwrap()]))).unwrap();
        assert_eq!(document["host"]["mounts"][0]["type"], "xfs");
        assert_eq!(document["host"]["mounts"][0]["reflink"], reflink);
        let is_found = document["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|finding| finding["id"] == "LH-MOUNT-REFLINK");
        assert_eq!(is_found, reflink);
    }
}

/// A program that reads one file with O_DIRECT, maps another, and has a write lease on a third that it does not give back.
const DANGEROUS: &str = "\
import fcntl, mmap, os, signal, sys
directory = sys.argv[1]
read, mapped, leased = (os.path.join(directory, name) for name in ('read', 'mapped', 'leased'))
for name in (read, mapped, leased):
    with open(name, 'wb') as file:
        file.write(bytes(4096))
direct = os.open(read, os.O_RDONLY | os.O_DIRECT)
memory = mmap.mmap(os.open(mapped, os.O_RDWR), 4096)
signal.signal(signal.SIGIO, signal.SIG_IGN)
lease = os.open(leased, os.O_RDWR)
fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('ready', flush=True)
sys.stdin.read()
";

#[test]
fn what_goes_on_here_is_found_with_who_does_it() {
    let directory = harness::directory();
    let mut command = Command::new("python3");
    command.args(["-c", DANGEROUS]).arg(directory.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = command.spawn().expect("python3 can be run");
    let mut ready = String::new();
    let is_ready = BufReader::new(program.stdout.take().unwrap()).read_line(&mut ready).is_ok();
    if !is_ready || ready.is_empty() {
        program.wait().unwrap();
        eprintln!("SKIPPED: what_goes_on_here_is_found: this filesystem has no O_DIRECT, or no leases");
        return;
    }
    // Whoever opens it waits for the holder.
    let mut breaker =
        Command::new("cat").arg(directory.path().join("leased")).stdout(Stdio::null()).spawn().unwrap();
    harness::wait_for(|| {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("BREAKING") && line.contains(&format!(" {} ", program.id())))
    });
    let document: Value = serde_json::from_str(&stdout(&audit(&["--json"]))).expect("JSON");
    // At its end it lets go of all.
    drop(program.stdin.take());
    program.wait().unwrap();
    assert!(breaker.wait().unwrap().success());

    let seen = |id: &str, what: &str| {
        let found = document["findings"].as_array().unwrap();
        found.iter().any(|finding| finding["id"] == id && finding["evidence"].to_string().contains(what))
    };
    for name in ["read", "mapped"] {
        let path = directory.path().join(name);
        assert!(seen("LH-DIRECT-FILE", path.to_str().unwrap()), "{name}: {document:#}");
    }
    for pid in [program.id(), breaker.id()] {
        assert!(seen("LH-LEASE-BREAKING", &format!("[{pid}]")), "{pid}: {document:#}");
    }
}
