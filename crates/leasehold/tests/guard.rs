//! `leasehold guard`: files of a program that does DMA into them, and what others want of them meanwhile.

mod harness;

use harness::disk::Disk;
use harness::{directory, leasehold, wait_for};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No wait of a test is longer.
const PATIENCE: Duration = Duration::from_secs(30);
const TRIES: usize = 10;

fn can_guard(test: &str) -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("SKIPPED {test}: needs root, fanotify and /dev/fuse");
    }
    can
}

fn ended(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        if began.elapsed() > PATIENCE {
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program, under guard or not, with what it says.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    says: Receiver<String>,
    /// Of the guard.
    files: TempDir,
    reader: Option<std::thread::JoinHandle<String>>,
}

impl Program {
    fn start(mut command: Command, files: TempDir) -> Program {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let (say, says) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        let mut errors = child.stderr.take().expect("piped");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Program { input: child.stdin.take(), child, says, files, reader: Some(reader) }
    }

    fn unguarded(file: &Path) -> Program {
        let mut command = leasehold();
        command.arg("probe-flyer").arg(file);
        Program::start(command, directory())
    }

    /// The flyer under guard.
    fn guarded(file: &Path, options: &[&str]) -> Program {
        let flyer = [env!("CARGO_BIN_EXE_leasehold"), "probe-flyer", file.to_str().expect("text")];
        Program::command(file, options, &flyer)
    }

    fn command(file: &Path, options: &[&str], program: &[&str]) -> Program {
        let files = directory();
        let mut command = guard(&files);
        command.arg("--file").arg(file).args(options).arg("--").args(program);
        Program::start(command, files)
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.input.as_mut().expect("it is open"), "{word}").expect("it listens");
    }

    fn hear(&self) -> String {
        self.says.recv_timeout(PATIENCE).expect("it says something in time")
    }

    /// Begins a DMA.
    fn fly(&mut self) {
        self.tell("fly");
        assert_eq!(self.hear(), "flying");
    }

    /// Ends it: how many pages of it are not in the file.
    fn land(&mut self) -> usize {
        self.tell("land");
        self.hear().strip_prefix("lost ").expect("a number").parse().expect("a number")
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Closes its input and waits for its end.
    fn end(&mut self) -> (ExitStatus, String) {
        self.input = None;
        let status = ended(&mut self.child);
        (status, self.reader.take().expect("once").join().expect("no panic"))
    }

    /// What `breaks --guard` shows.
    fn breaks(&self) -> Vec<Value> {
        let log = format!("--guard={}", self.files.path().join("log").display());
        let output = leasehold().args(["--json", "breaks", "-n", "1000", &log]).output().expect("a process");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.input = None;
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = fs::read_to_string(children).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn guard(files: &TempDir) -> Command {
    let mut command = leasehold();
    command.arg("guard").arg("--log").arg(files.path().join("log"));
    command.arg("--registry").arg(files.path().join("registry"));
    command
}

fn make(file: &Path) {
    let made = leasehold().args(["probe-flyer", "--make"]).arg(file).status().expect("a process");
    assert!(made.success());
}

fn on(filesystem: &str, test: &str) -> Option<(Disk, PathBuf)> {
    let disk = can_guard(test).then(|| Disk::make(test, filesystem)).flatten()?;
    let file = disk.at.join("file");
    make(&file);
    Some((disk, file))
}

/// A breaker, started and not waited for.
fn breaker(program: &str, arguments: &[&str], file: &Path) -> Child {
    let file = file.to_str().expect("text");
    let mut command = Command::new(program);
    command.args(arguments.iter().map(|argument| argument.replace("FILE", file)));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a tool")
}

struct Hazard {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    /// Where it loses the DMA's bytes, or its copy changes, without a guard.
    happens_on: &'static [&'static str],
    copies: bool,
    /// How the log has it.
    wanted: &'static str,
}

const fn hazard(
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    happens_on: &'static [&'static str],
    wanted: &'static str,
) -> Hazard {
    Hazard { name, program, arguments, happens_on, copies: false, wanted }
}

const ALL: &[&str] = &["ext4", "xfs", "btrfs"];

const HAZARDS: [Hazard; 8] = [
    hazard("truncate", "truncate", &["-s", "0", "FILE"], ALL, "open it for writing"),
    hazard("punch", "fallocate", &["-p", "-o", "0", "-l", "262144", "FILE"], ALL, "open it for writing"),
    hazard("zero", "fallocate", &["-z", "-o", "0", "-l", "262144", "FILE"], ALL, "open it for writing"),
    hazard(
        "collapse",
        "fallocate",
        &["-c", "-o", "0", "-l", "131072", "FILE"],
        &["ext4", "xfs"],
        "open it for writing",
    ),
    hazard(
        "reflink onto",
        "cp",
        &["--reflink=always", "FILE.other", "FILE"],
        &["xfs", "btrfs"],
        "open it, and truncate to 0",
    ),
    hazard(
        "write with O_DIRECT",
        "dd",
        &["if=FILE.other", "of=FILE", "bs=262144", "count=1", "conv=notrunc", "oflag=direct"],
        &["ext4", "xfs"],
        "open it for writing",
    ),
    Hazard {
        copies: true,
        ..hazard(
            "reflink from",
            "cp",
            &["--reflink=always", "FILE", "FILE.copy"],
            &["xfs"],
            "reflink from it",
        )
    },
    Hazard { copies: true, ..hazard("plain cp", "cp", &["FILE", "FILE.copy"], &["xfs"], "reflink from it") },
];

/// Does it once while DMA is under way; whether harm was done, and who did it.
fn harm(program: &mut Program, hazard: &Hazard, file: &Path) -> (bool, u32) {
    program.fly();
    let mut breaking = breaker(hazard.program, hazard.arguments, file);
    let pid = breaking.id();
    ended(&mut breaking);
    let copy = PathBuf::from(format!("{}.copy", file.display()));
    let before = hazard.copies.then(|| fs::read(&copy).ok()).flatten();
    let lost = program.land();
    if !hazard.copies {
        return (lost > 0, pid);
    }
    // What is in the cache is not what is on the disk.
    let after = File::open(&copy).ok().map(|file| {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("a file");
        fs::read(&copy).unwrap_or_default()
    });
    let _ = fs::remove_file(copy);
    (before != after, pid)
}

fn hazards_on(filesystem: &'static str) {
    let Some((_disk, file)) = on(filesystem, "hazards_on") else { return };
    make(&PathBuf::from(format!("{}.other", file.display())));
    for hazard in HAZARDS.iter().filter(|hazard| hazard.happens_on.contains(&filesystem)) {
        make(&file);
        let mut without = Program::unguarded(&file);
        let mut happened = 0;
        for _ in 0..TRIES {
            happened += usize::from(harm(&mut without, hazard, &file).0);
            fs::File::options().write(true).open(&file).unwrap().set_len(262_144).unwrap();
        }
        without.end();
        assert_eq!(happened, TRIES, "{} on {filesystem} without a guard", hazard.name);
        make(&file);
        let mut with = Program::guarded(&file, &["--grace", "30ms"]);
        let harmed: Vec<(bool, u32)> = (0..TRIES).map(|_| harm(&mut with, hazard, &file)).collect();
        let (status, says) = with.end();
        assert!(status.success(), "{says}");
        assert_eq!(harmed.iter().filter(|(harmed, _)| *harmed).count(), 0, "{} on {filesystem}", hazard.name);
        let breaks = with.breaks();
        for (_, pid) in harmed {
            let row = breaks.iter().find(|row| row["breaker"]["pid"] == pid).expect("each is in the log");
            assert_eq!(row["breaker"]["program"], hazard.program);
            assert_eq!(row["breaker"]["uid"], 0);
            assert_eq!(row["breaker"]["verified"], true);
            assert_eq!(row["operation"], hazard.wanted, "{}", hazard.name);
            assert_eq!(row["outcome"], "breaker refused");
            assert_eq!(row["path"], file.to_str().unwrap());
        }
    }
}

#[test]
fn no_hazard_is_left_on_ext4() {
    hazards_on("ext4");
}

#[test]
fn no_hazard_is_left_on_xfs() {
    hazards_on("xfs");
}

#[test]
fn no_hazard_is_left_on_btrfs() {
    hazards_on("btrfs");
}

#[test]
fn the_breaker_goes_on_once_the_program_has_let_go() {
    let Some((_disk, file)) = on("xfs", "the_breaker_goes_on") else { return };
    let mut program = Program::guarded(&file, &["--grace", "20s"]);
    program.fly();
    program.tell("release");
    let mut truncate = breaker("truncate", &["-s", "0", "FILE"], &file);
    assert_eq!(program.hear(), "released 0", "the DMA was in the file before the breaker went on");
    assert!(ended(&mut truncate).success());
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    program.end();
    assert_eq!(program.breaks()[0]["outcome"], "released");
}

#[test]
fn a_program_that_does_not_answer_is_killed_before_the_breaker_goes_on() {
    let Some((_disk, file)) = on("ext4", "a_program_that_does_not_answer") else { return };
    // Not the flyer: its DMA comes from a FUSE daemon in the same process, which the kernel cannot end while DMA is under way.
    let script = "exec 3<>\"$0\"; echo ready; read line";
    let options = ["--grace", "200ms", "--on-expiry", "kill"];
    let mut program = Program::command(&file, &options, &["sh", "-c", script, file.to_str().unwrap()]);
    assert_eq!(program.hear(), "ready");
    let began = Instant::now();
    let mut truncate = breaker("truncate", &["-s", "0", "FILE"], &file);
    assert!(ended(&mut truncate).success());
    assert!(began.elapsed() >= Duration::from_millis(200));
    let (status, says) = program.end();
    assert_eq!(status.code(), Some(137), "{says}");
    let breaks = program.breaks();
    assert_eq!(breaks[0]["outcome"], "killed");
    assert_eq!(breaks[0]["breaker"]["program"], "truncate");
}

#[test]
fn what_the_program_and_its_children_do_passes_and_its_exit_code_is_passed_on() {
    let Some((_disk, file)) = on("ext4", "what_the_program_and_its_children_do") else { return };
    let script = format!("(truncate -s 4096 {0} && cat {0} > /dev/null) && exit 7", file.display());
    let mut program = Program::command(&file, &["--grace", "60s"], &["sh", "-c", &script]);
    let (status, says) = program.end();
    assert_eq!(status.code(), Some(7), "{says}");
    assert_eq!(program.breaks(), Vec::<Value>::new());
}

#[test]
fn reading_is_no_break_and_a_breaker_that_is_killed_costs_the_program_nothing() {
    let Some((_disk, file)) = on("ext4", "reading_is_no_break") else { return };
    let mut program = Program::guarded(&file, &["--grace", "60s", "--on-expiry", "kill"]);
    program.fly();
    assert!(ended(&mut breaker("cat", &["FILE"], &file)).success());
    let mut truncate = breaker("truncate", &["-s", "0", "FILE"], &file);
    let stack = format!("/proc/{}/syscall", truncate.id());
    // It is in the call that is held: openat, with the flag for writing.
    wait_for(|| fs::read_to_string(&stack).is_ok_and(|call| call.split(' ').nth(3) == Some("0x841")));
    truncate.kill().unwrap();
    assert_eq!(ended(&mut truncate).signal(), Some(9));
    wait_for(|| !program.breaks().is_empty());
    assert_eq!(program.breaks()[0]["outcome"], "breaker gone");
    assert_eq!(program.land(), 0);
    assert!(program.end().0.success());
}

#[test]
fn a_second_guard_of_a_file_is_refused_and_after_a_crash_everybody_passes() {
    let Some((_disk, file)) = on("ext4", "a_second_guard_of_a_file") else { return };
    let mut program = Program::guarded(&file, &["--grace", "60s"]);
    program.fly();
    let second = guard(&program.files).arg("--file").arg(&file).args(["--", "true"]).output().unwrap();
    let says = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(4), "{says}");
    assert!(says.contains("is guarded already"), "{says}");
    let mut truncate = breaker("truncate", &["-s", "0", "FILE"], &file);
    let stack = format!("/proc/{}/syscall", truncate.id());
    wait_for(|| fs::read_to_string(&stack).is_ok_and(|call| call.split(' ').nth(3) == Some("0x841")));
    program.child.kill().unwrap();
    assert!(ended(&mut truncate).success(), "a guard that is gone holds nobody");
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    let third = guard(&program.files).arg("--file").arg(&file).args(["--", "true"]).output().unwrap();
    let says = String::from_utf8_lossy(&third.stderr).into_owned();
    assert!(third.status.success(), "{says}");
    assert!(says.contains("was killed"), "{says}");
}

#[test]
fn on_tmpfs_opens_are_seen_and_each_event_is_a_line_of_json() {
    if !can_guard("on_tmpfs_opens_are_seen") {
        return;
    }
    let memory = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let file = memory.path().join("victim");
    make(&file);
    let script = "exec 3<>\"$0\"; echo ready; cat";
    let options = ["--json", "--grace", "50ms"];
    let mut program = Program::command(&file, &options, &["sh", "-c", script, file.to_str().unwrap()]);
    assert_eq!(program.hear(), "ready");
    assert!(!ended(&mut breaker("truncate", &["-s", "0", "FILE"], &file)).success());
    assert!(ended(&mut breaker("cat", &["FILE"], &file)).success());
    assert_ne!(fs::metadata(&file).unwrap().len(), 0);
    let (status, says) = program.end();
    assert!(status.success(), "{says}");
    let events: Vec<Value> = says.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let guarding = &events[0];
    assert_eq!((&guarding["event"], &guarding["sees"]), (&"guarding".into(), &"opens".into()), "{says}");
    assert!(
        guarding["not_seen"].to_string().contains("truncate"),
        "it says that a truncate by path passes: {says}"
    );
    assert_eq!(events[1]["event"], "break began", "{says}");
    assert_eq!(events[2]["event"], "break ended", "{says}");
    assert_eq!(events[2]["break"]["outcome"], "breaker refused", "{says}");
}

#[test]
fn an_audit_shows_a_guard_that_lives() {
    let Some((_disk, file)) = on("ext4", "an_audit_shows_a_guard") else { return };
    let files = directory();
    let mut command = leasehold();
    command.arg("guard").arg("--log").arg(files.path().join("log"));
    command.arg("--file").arg(&file).args(["--", "sh", "-c", "echo ready; cat"]);
    let mut program = Program::start(command, files);
    assert_eq!(program.hear(), "ready");
    let seen = || {
        let output = leasehold().args(["audit", "--json"]).output().expect("a process");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["host"]["guards"].to_string().contains(file.to_str().expect("text"))
    };
    assert!(seen());
    assert!(program.end().0.success());
    assert!(!seen());
}

#[test]
fn a_kept_name_stays_until_the_program_is_over() {
    let Some((_disk, file)) = on("ext4", "a_kept_name_stays") else { return };
    let mut program = Program::guarded(&file, &["--keep-names"]);
    program.fly();
    assert_eq!(fs::remove_file(&file).unwrap_err().raw_os_error(), Some(16));
    assert_eq!(program.land(), 0);
    program.end();
    fs::remove_file(&file).unwrap();
}

#[test]
fn a_range_is_held_and_the_rest_of_the_file_is_not() {
    let Some((_disk, file)) = on("ext4", "a_range_is_held") else { return };
    let before = File::options().read(true).write(true).open(&file).unwrap();
    let range = format!("{}:0..64KiB", file.display());
    let files = directory();
    let mut command = guard(&files);
    command.args(["--grace", "30ms", "--file", &range, "--"]);
    command.args([env!("CARGO_BIN_EXE_leasehold"), "probe-flyer"]).arg(&file);
    let mut program = Program::start(command, files);
    program.fly();
    before.set_len(128 << 10).unwrap();
    assert_eq!(
        before.set_len(4096).unwrap_err().raw_os_error(),
        Some(16),
        "by a descriptor from before, too"
    );
    let after = File::options().write(true).open(&file).expect("each use of it is seen by its range");
    rustix::io::pwrite(&after, &[1; 4096], 64 << 10).unwrap();
    assert!(rustix::io::pwrite(&after, &[1; 4096], 0).is_err());
    drop(program.end());
    let wanted: Vec<Value> = program.breaks().iter().map(|row| row["operation"].clone()).collect();
    assert_eq!(wanted, ["truncate to 4096", "write 0..4096"]);
}

fn truncates(size: &str, file: &Path) -> bool {
    ended(&mut breaker("truncate", &["-s", size, "FILE"], file)).success()
}

#[test]
fn thousands_of_files_are_guarded_at_once() {
    let Some((disk, _)) = on("ext4", "thousands_of_files") else { return };
    let all: Vec<PathBuf> = (0..3000).map(|number| disk.at.join(format!("file{number}"))).collect();
    all.iter().for_each(|file| fs::write(file, [7; 100]).unwrap());
    let files = directory();
    let mut command = guard(&files);
    command.args(["--grace", "30ms"]);
    for file in &all {
        command.arg("--file").arg(file);
    }
    command.args(["--", "sh", "-c", "echo ready; read line || true"]);
    let mut program = Program::start(command, files);
    assert_eq!(program.hear(), "ready");
    for file in [&all[0], &all[1500], &all[2999]] {
        assert!(!truncates("0", file), "{} is held", file.display());
        assert_eq!(fs::read(file).unwrap(), [7; 100]);
    }
    let (status, says) = program.end();
    assert!(status.success(), "{says}");
    assert_eq!(program.breaks().len(), 3);
    assert!(truncates("0", &all[0]), "a guard that is over holds nobody");
}

#[test]
fn a_process_that_runs_already_is_guarded_and_goes_on_after_the_guard() {
    let Some((_disk, file)) = on("xfs", "a_process_that_runs_already") else { return };
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<>\"$0\"; echo ready; read line || true"]).arg(&file);
    let mut program = Program::start(command, directory());
    assert_eq!(program.hear(), "ready");
    let files = directory();
    let mut command = guard(&files);
    command.args(["--grace", "30ms", "--pid", &program.pid().to_string(), "--file"]).arg(&file);
    let mut guarding = Program::start(command, files);
    let size = fs::metadata(&file).unwrap().len().to_string();
    // Until the guard has begun, it passes, and changes nothing.
    wait_for(|| !truncates(&size, &file));
    assert!(!truncates("0", &file));
    let pid = rustix::process::Pid::from_child(&guarding.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    guarding.end();
    assert!(program.child.try_wait().unwrap().is_none(), "the program goes on");
    assert!(truncates("0", &file));
    assert!(program.end().0.success());
}

#[test]
fn what_was_let_go_is_held_again_once_the_program_asks_for_it() {
    let Some((_disk, file)) = on("ext4", "what_was_let_go") else { return };
    // It answers each break by letting go, and each end of one by asking for the file again, until the second.
    let script = r#"
        while read -r -u "$LEASEHOLD_BREAK_FD" line; do
            case "$line" in
            *'"event":"break"'*)
                echo break
                id=${line#*'"id":'}
                echo "release ${id%%,*}" >&"$LEASEHOLD_BREAK_FD" ;;
            *'"event":"ended"'*)
                echo ended
                [ -n "$again" ] && exit 0
                again=1
                echo "hold $0" >&"$LEASEHOLD_BREAK_FD" ;;
            *'"event":"held"'*) echo held ;;
            *) echo "$line" ;;
            esac
        done"#;
    let name = file.to_str().unwrap();
    let mut program = Program::command(&file, &["--grace", "20s"], &["bash", "-c", script, name]);
    for size in ["100", "0"] {
        assert_eq!(program.hear(), "held");
        let mut truncate = breaker("truncate", &["-s", size, "FILE"], &file);
        assert_eq!(program.hear(), "break");
        assert!(ended(&mut truncate).success());
        assert_eq!(program.hear(), "ended");
        assert_eq!(fs::metadata(&file).unwrap().len().to_string(), size);
    }
    let (status, says) = program.end();
    assert!(status.success(), "{says}");
    let outcomes: Vec<Value> = program.breaks().iter().map(|row| row["outcome"].clone()).collect();
    assert_eq!(outcomes, ["released", "released"]);
}

#[test]
fn a_program_that_asked_for_a_signal_gets_it() {
    let Some((_disk, file)) = on("ext4", "a_program_that_asked_for_a_signal") else { return };
    let script = "trap 'kill $!; echo told; exit 0' USR1; sleep 60 & echo ready; wait";
    let mut program = Program::command(&file, &["--grace", "5s", "--signal", "USR1"], &["sh", "-c", script]);
    assert_eq!(program.hear(), "ready");
    let mut truncate = breaker("truncate", &["-s", "0", "FILE"], &file);
    assert_eq!(program.hear(), "told");
    assert!(ended(&mut truncate).success(), "the program has ended, and holds nothing any more");
    let (status, says) = program.end();
    assert!(status.success(), "{says}");
    assert_eq!(program.breaks()[0]["outcome"], "ended by itself");
}
