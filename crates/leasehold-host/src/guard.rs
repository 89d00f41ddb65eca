//! Leases for programs that exist already: a guard holds the files that a program does DMA into.
//!
//! ```text
//! breaker --open, truncate, punch, ..--> held by fanotify --Input::Change--> core --Notice::Break--> the program
//!    ^                                                                         |
//!    '---- goes on, or EBUSY <---- Output::Perform, or a refusal <--- it lets go, dies, or its grace is over
//! ```
//! The rules are the core's ([`schemes::GUARD`]): the program is a session, its files are under leases, and the only fence
//! is that it lets go or dies. To the core each operation is a range that is taken; what it was stands beside it here.
//!
//! Nobody hangs for long: the loop waits for nothing but its descriptors, a watchdog ends the process if the loop stands
//! still, and the kernel lets everybody pass once the process is gone.

mod fanotify;
mod operation;
mod process;
mod program;
mod registry;

pub use fanotify::Sight;
pub use program::BREAK_FD;
pub use registry::{Entry, GuardedFile, RegistryError, guards};

use fanotify::{Group, Held};
use leasehold_core::breaks::{Break, Outcome};
use leasehold_core::identity::Identity;
use leasehold_core::ids::{BreakId, FileId, LeaseId, RequestId, SessionId, Tick};
use leasehold_core::input::{Access, Change, Fault, Input, OnConflict, Want};
use leasehold_core::output::{Notice, Output, Reply};
use leasehold_core::range::ByteRange;
use leasehold_core::{Config, Core, Limits, OnExpiry, schemes};
use operation::Seen;
use program::Program;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const SESSION: SessionId = SessionId(1);
/// Where guards are entered, unless they are told otherwise.
pub const REGISTRY: &str = "/run/leasehold/guard";
/// How often is looked at what nobody tells of: killed processes, breakers that are gone.
const LOOK: Duration = Duration::from_millis(50);
/// How long a killed program may take to be gone. One that hangs in the kernel may still be written to by a device.
const DEATH: Duration = Duration::from_secs(10);
/// How long the loop may stand still before the watchdog ends the process, in seconds.
const STILL_SECONDS_MAX: u32 = 10;

/// What to guard.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files, and which bytes of them.
    pub files: Vec<(PathBuf, ByteRange)>,
    /// How long the program has to let go.
    pub grace: Duration,
    /// Kill the program if it does not; else the breaker is refused.
    pub kill: bool,
    /// Also tell the program by this signal.
    pub signal: Option<i32>,
    /// Keep each name from being unlinked or renamed, by a bind mount of the file on itself.
    pub keep_names: bool,
    /// Whom to guard.
    pub whom: Whom,
    /// Where guards are entered.
    pub registry: PathBuf,
}

/// Whom to guard.
#[derive(Clone, Debug)]
pub enum Whom {
    /// A program to be started.
    Command(Vec<OsString>),
    /// A process that runs, and all that descends from it.
    Pid(u32),
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// It begins. The holes of a file are what nobody can see there.
    Guarding {
        /// The file.
        path: PathBuf,
        /// How much is seen.
        sight: Sight,
        /// What is not, on this file and kernel.
        holes: Vec<String>,
    },
    /// An earlier guard was killed: since then everybody passed.
    Killed(Entry),
    /// A break has begun.
    Began(Broken),
    /// A break has ended.
    Ended(Broken),
    /// Something that the reader of the log should know.
    Note(String),
}

/// A break.
#[derive(Clone, Debug)]
pub struct Broken {
    /// As the core has it, without an end while it goes on.
    pub id: BreakId,
    /// The lease.
    pub lease: LeaseId,
    /// The file.
    pub path: PathBuf,
    /// Under lease.
    pub range: ByteRange,
    /// Who held it.
    pub holder: Arc<Identity>,
    /// Who broke it.
    pub breaker: Arc<Identity>,
    /// What for, in the words after "wanted to".
    pub operation: String,
    /// When the holder was told.
    pub started: SystemTime,
    /// How long the holder had.
    pub grace: Duration,
    /// How it ended, and how long that took.
    pub ended: Option<(&'static str, Duration)>,
}

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// fanotify(7) takes CAP_SYS_ADMIN.
    #[error(
        "cannot watch files: {0}; run it as root, on Linux 5.15 or later with fanotify permission events"
    )]
    Fanotify(io::Error),
    /// One of the files.
    #[error("cannot guard {path:?}: {source}; give an existing regular file that this process may open")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another guard, or no place to say that this is one.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The program.
    #[error("cannot start or find the program: {0}")]
    Program(io::Error),
    /// While it guards. What is held passes.
    #[error("cannot read who opens the files: {0}; everybody passes from now on")]
    Events(io::Error),
    /// A limit of the core.
    #[error("cannot hold the files: {0}")]
    Acquire(String),
}

/// Guards until the program is over, and says how it ended, as a shell has it. The number of a signal in `signalled` is passed
/// on to a program that was started; one that ran already is left alone, and the guard ends.
///
/// # Errors
/// [`GuardError`]; the program goes on without a guard if it was started.
pub fn run(options: &Options, signalled: &AtomicI32, tell: &mut dyn FnMut(Event)) -> Result<i32, GuardError> {
    let group = Group::new().map_err(GuardError::Fanotify)?;
    let mut names = KeptNames::default();
    let mut files: Vec<(GuardedFile, ByteRange)> = Vec::new();
    for (path, range) in &options.files {
        let failed = |source| GuardError::File { path: path.clone(), source };
        let path = fs::canonicalize(path).map_err(failed)?;
        let about = fs::metadata(&path).map_err(failed)?;
        if !about.is_file() {
            return Err(failed(io::Error::other("it is no file; give the files, not a directory")));
        }
        let file = GuardedFile { path, device: about.dev(), inode: about.ino() };
        let is_same =
            |(other, _): &(GuardedFile, _)| (other.device, other.inode) == (file.device, file.inode);
        if files.iter().any(is_same) {
            return Err(failed(io::Error::other("it is named twice; name each file once")));
        }
        files.push((file, *range));
    }
    let command = match &options.whom {
        Whom::Command(words) => {
            words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default()
        }
        Whom::Pid(pid) => format!("process {pid}"),
    };
    let entries = files.iter().map(|(entry, ..)| entry.clone()).collect();
    let entry = Entry { guard: std::process::id(), command, files: entries };
    let (_registration, killed) = registry::enter(&options.registry, &entry)?;
    killed.into_iter().for_each(|entry| tell(Event::Killed(entry)));
    // Before anybody is held: it takes a while, and nobody would be answered meanwhile.
    let open = open_already(&entry.files, &options.whom);
    let mut seen = Vec::new();
    for (entry, range) in files {
        let failed = |source| GuardError::File { path: entry.path.clone(), source };
        let sight = File::open(&entry.path).and_then(|file| group.mark(&file)).map_err(failed)?;
        if options.keep_names {
            names.keep(&entry.path).map_err(failed)?;
        }
        seen.push((entry, range, sight));
    }
    let program = match &options.whom {
        Whom::Command(command) => Program::start(command),
        Whom::Pid(pid) => Program::running(*pid),
    };
    let program = program.map_err(GuardError::Program)?;
    for (entry, _, sight) in &seen {
        let holes = holes(*sight, options.keep_names, open.get(&entry.path).map_or(&[], Vec::as_slice));
        tell(Event::Guarding { path: entry.path.clone(), sight: *sight, holes });
    }
    Guard::new(options, group, seen, program, tell).run(signalled)
}

/// What cannot be seen, on this file and kernel.
fn holes(sight: Sight, kept: bool, open: &[(u32, String)]) -> Vec<String> {
    let mut holes = vec!["stores through mappings that exist already".to_owned()];
    if !kept {
        holes.push("unlink, rename and link (--keep-names refuses the first two)".to_owned());
    }
    if sight == Sight::Opens {
        holes.push(
            "truncate by path, and all that is done after an open: this kernel or filesystem tells of opens only"
                .to_owned(),
        );
    }
    for (pid, name) in open {
        holes.push(format!(
            "what {name} (pid {pid}) does but truncate: it had the file open for writing before"
        ));
    }
    holes
}

/// Other processes that have the files open for writing.
fn open_already(files: &[GuardedFile], whom: &Whom) -> HashMap<PathBuf, Vec<(u32, String)>> {
    let inodes: HashSet<String> = files.iter().map(|file| file.inode.to_string()).collect();
    let mut found: HashMap<PathBuf, Vec<(u32, String)>> =
        files.iter().map(|file| (file.path.clone(), Vec::new())).collect();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if matches!(whom, Whom::Pid(root) if process::descends(pid, *root)) {
            continue;
        }
        for info in fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
            let Ok(text) = fs::read_to_string(info.path()) else { continue };
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let flags = field("flags:").and_then(|flags| u32::from_str_radix(flags, 8).ok()).unwrap_or(0);
            let writes = flags & libc::O_ACCMODE.cast_unsigned() != 0;
            if !writes || !field("ino:").is_some_and(|inode| inodes.contains(inode)) {
                continue;
            }
            // The same number may be another file on another filesystem.
            let link = PathBuf::from(format!("/proc/{pid}/fd")).join(info.file_name());
            let Some(of) = fs::read_link(link).ok().and_then(|path| found.get_mut(&path)) else { continue };
            if of.last().is_none_or(|(last, _)| *last != pid) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                of.push((pid, name.trim_end().to_owned()));
            }
        }
    }
    found
}

/// Files that are mounted on themselves, until this is dropped.
#[derive(Default)]
struct KeptNames(Vec<PathBuf>);

impl KeptNames {
    fn keep(&mut self, path: &PathBuf) -> io::Result<()> {
        rustix::mount::mount_bind(path, path)?;
        self.0.push(path.clone());
        Ok(())
    }
}

impl Drop for KeptNames {
    fn drop(&mut self) {
        for path in &self.0 {
            // If it stays, `findmnt` shows it, and umount takes it away.
            let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Somebody who is held.
struct Breaker {
    held: Held,
    who: Arc<Identity>,
    operation: String,
}

struct Guard<'a> {
    options: &'a Options,
    group: Group,
    core: Core,
    began: Instant,
    host: String,
    files: Vec<(GuardedFile, ByteRange, Sight)>,
    by_inode: HashMap<(u64, u64), FileId>,
    leases: BTreeMap<LeaseId, FileId>,
    wanted: BTreeMap<RequestId, FileId>,
    breakers: BTreeMap<RequestId, Breaker>,
    /// Breaks that go on, and their leases: what `release ID` names.
    breaks: BTreeMap<BreakId, LeaseId>,
    /// Whose input the core is taking.
    asking: Option<RequestId>,
    last_request: u64,
    program: Program,
    /// Leases that are fenced once the program is gone.
    fences: Vec<LeaseId>,
    /// Since when it must go.
    dying: Option<Instant>,
    /// It could not be killed: nothing of it is let go.
    unproven: bool,
    over: bool,
    beats: Arc<AtomicU64>,
    tell: &'a mut dyn FnMut(Event),
}

impl<'a> Guard<'a> {
    fn new(
        options: &'a Options,
        group: Group,
        files: Vec<(GuardedFile, ByteRange, Sight)>,
        program: Program,
        tell: &'a mut dyn FnMut(Event),
    ) -> Guard<'a> {
        let defaults = Limits::default();
        let limits =
            Limits { lease_bytes_max: u64::MAX, breaks_per_lease_max: defaults.requests_max, ..defaults };
        let config = Config {
            scheme: schemes::GUARD,
            grace_ms: options.grace.as_millis() as u64,
            on_expiry: if options.kill { OnExpiry::EndSession } else { OnExpiry::RefuseBreaker },
            frames: 1,
            limits,
            ..Config::default()
        };
        let by_inode = files
            .iter()
            .zip(1..)
            .map(|((file, ..), number)| ((file.device, file.inode), FileId(number)))
            .collect();
        Guard {
            options,
            group,
            core: Core::new(config),
            began: Instant::now(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            files,
            by_inode,
            leases: BTreeMap::new(),
            wanted: BTreeMap::new(),
            breakers: BTreeMap::new(),
            breaks: BTreeMap::new(),
            asking: None,
            last_request: 0,
            program,
            fences: Vec::new(),
            dying: None,
            unproven: false,
            over: false,
            beats: Arc::default(),
            tell,
        }
    }

    fn run(mut self, signalled: &AtomicI32) -> Result<i32, GuardError> {
        watch(self.beats.clone());
        let who = process::identity(&self.host, self.program.pid, Some(self.program.pidfd()));
        self.step(Input::SessionOpened { session: SESSION, identity: Arc::new(who) });
        for number in 1..=self.files.len() as u64 {
            // Longer than any file: where it ends does not matter to who holds the bytes.
            self.step(Input::FileOpened { file: FileId(number), size: u64::MAX });
            self.hold(FileId(number));
        }
        if !self.wanted.is_empty() {
            return Err(GuardError::Acquire(
                "they could not all be had at once; name each file once".to_owned(),
            ));
        }
        while !self.over {
            self.beats.fetch_add(1, Ordering::Relaxed);
            self.wait();
            match (signalled.swap(0, Ordering::Relaxed), &self.options.whom) {
                (0, _) => {}
                (number, Whom::Command(_)) => {
                    if let Some(signal) = Signal::from_named_raw(number) {
                        self.program.signal(signal);
                    }
                }
                (_, Whom::Pid(_)) => break,
            }
            self.step(Input::Tick);
            self.hear_program();
            for held in self.group.read().map_err(GuardError::Events)? {
                self.beats.fetch_add(1, Ordering::Relaxed);
                self.take(held);
            }
            self.forget_the_dead();
            self.see_the_program_go();
        }
        Ok(self.program.code())
    }

    /// Until something happens, or something is due.
    fn wait(&self) {
        let due =
            self.core.next_deadline().map(|at| Duration::from_micros(at.0.saturating_sub(self.now().0)));
        let busy = !self.breakers.is_empty() || self.dying.is_some();
        let longest = if busy { LOOK } else { Duration::from_millis(250) };
        let wait = due.map_or(longest, |due| due.min(longest));
        let mut polled = vec![
            PollFd::from_borrowed_fd(self.group.fd(), PollFlags::IN),
            PollFd::new(self.program.pidfd(), PollFlags::IN),
        ];
        if let Some(socket) = self.program.socket() {
            polled.push(PollFd::new(socket, PollFlags::IN));
        }
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        // An interruption is as good as a timeout.
        let _ = poll(&mut polled, Some(&timeout));
        if polled[1].revents().contains(PollFlags::IN) && polled[0].revents().is_empty() {
            // It is over and what it started is not: its descriptor is ready from now on.
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn now(&self) -> Tick {
        Tick(self.began.elapsed().as_micros() as u64)
    }

    fn next_request(&mut self) -> RequestId {
        self.last_request += 1;
        RequestId(self.last_request)
    }

    fn hold(&mut self, file: FileId) {
        let request = self.next_request();
        self.wanted.insert(request, file);
        let range = self.files[file.0 as usize - 1].1;
        let wants = vec![Want { file, range, access: Access::Overwrite }];
        let deadline = self.now().after_ms(u64::from(u32::MAX));
        self.step(Input::Acquire {
            request,
            session: SESSION,
            wants,
            on_conflict: OnConflict::Wait,
            deadline,
        });
    }

    /// Somebody is held: it goes on at once, or waits for the core's word.
    fn take(&mut self, held: Held) {
        let Some((file, inode)) = self.file_of(&held) else { return self.allow(&held) };
        if held.pid != 0 && (held.pid == std::process::id() || self.program.includes(held.pid)) {
            return self.allow(&held);
        }
        let seen = Seen { is_open: held.is_open, range: held.range, inode };
        let operation = operation::of(held.pid, seen);
        let Some(range) = operation.takes else { return self.allow(&held) };
        let (_, held_range, sight) = &self.files[file.0 as usize - 1];
        if operation.only_opens && *sight == Sight::Ranges && *held_range != ByteRange::ALL {
            // Somebody else may use the rest of the file.
            return self.allow(&held);
        }
        let who = Arc::new(process::identity(&self.host, held.pid, held.pidfd.as_ref()));
        let request = self.next_request();
        self.breakers.insert(request, Breaker { held, who: who.clone(), operation: operation.what });
        self.asking = Some(request);
        self.step(Input::Change { request, file, change: Change::Zero { range }, breaker: who });
        self.asking = None;
    }

    fn file_of(&self, held: &Held) -> Option<(FileId, u64)> {
        let about = rustix::fs::fstat(&held.file).ok()?;
        self.by_inode.get(&(about.st_dev, about.st_ino)).map(|&file| (file, about.st_ino))
    }

    fn allow(&mut self, held: &Held) {
        if let Err(error) = self.group.allow(held) {
            (self.tell)(Event::Note(format!("cannot let process {} go on: {error}", held.pid)));
        }
    }

    fn refuse(&mut self, held: &Held) {
        if let Err(error) = self.group.refuse(held) {
            (self.tell)(Event::Note(format!("cannot refuse process {}: {error}", held.pid)));
        }
    }

    /// Has the core take the input, and everything that follows from it.
    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            self.core.step(self.now(), input, &mut out);
            inputs.extend(out.into_iter().filter_map(|output| self.perform(output)));
        }
    }

    /// Does what the core says; its answer, if there is one at once.
    fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Expose { lease, .. } => Some(Input::Exposed { lease, result: Ok(()) }),
            Output::Fence { lease, .. } if self.dying.is_some() => {
                self.fences.push(lease);
                None
            }
            // It says that it has let go.
            Output::Fence { lease, .. } => Some(Input::Fenced { lease }),
            Output::Disconnect { .. } => {
                self.dying.get_or_insert_with(Instant::now);
                None
            }
            Output::Perform { request, .. } => {
                let breaker = self.breakers.remove(&request)?;
                if self.unproven {
                    self.refuse(&breaker.held);
                    return Some(Input::Performed { request, result: Err(Fault::Io) });
                }
                self.allow(&breaker.held);
                Some(Input::Performed { request, result: Ok(None) })
            }
            Output::Reply { request, reply: Reply::Change(Err(_)) } => {
                let breaker = self.breakers.remove(&request)?;
                self.refuse(&breaker.held);
                None
            }
            Output::Reply { request, reply: Reply::Acquire(granted) } => {
                let file = self.wanted.remove(&request)?;
                match granted {
                    Ok(leases) => {
                        self.leases.extend(leases.into_iter().map(|lease| (lease, file)));
                        self.tell_program(&json!({ "event": "held", "file": self.path(file) }));
                    }
                    Err(error) => {
                        let note = format!("cannot hold {:?}: {error}", self.path(file));
                        self.tell_program(&json!({ "event": "not held", "file": self.path(file) }));
                        (self.tell)(Event::Note(note));
                    }
                }
                None
            }
            Output::Notify { notice: Notice::Break { id, lease, file, range, deadline, .. }, .. } => {
                self.begin(id, lease, file, range, deadline);
                None
            }
            Output::BreakEnded { record } => {
                self.end(record);
                None
            }
            _ => None,
        }
    }

    fn path(&self, file: FileId) -> PathBuf {
        self.files[file.0 as usize - 1].0.path.clone()
    }

    /// What the clock on the wall shows at that time, as it is set now.
    fn time(&self, at: Tick) -> SystemTime {
        let (now, wall) = (self.now(), SystemTime::now());
        match at.0.checked_sub(now.0) {
            Some(ahead) => wall + Duration::from_micros(ahead),
            None => wall - Duration::from_micros(now.0 - at.0),
        }
    }

    fn begin(&mut self, id: BreakId, lease: LeaseId, file: FileId, range: ByteRange, deadline: Tick) {
        self.breaks.insert(id, lease);
        let Some(breaker) = self.asking.and_then(|request| self.breakers.get(&request)) else { return };
        let (who, operation) = (breaker.who.clone(), breaker.operation.clone());
        let verified = who.evidence == leasehold_core::identity::Evidence::Verified;
        let holder = process::identity(&self.host, self.program.pid, Some(self.program.pidfd()));
        let path = self.path(file);
        let unix = self.time(deadline).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let told = self.tell_program(&json!({
            "event": "break",
            "id": id.0,
            "file": path,
            "start": range.start(),
            "end": (range.end() != u64::MAX).then_some(range.end()),
            "operation": operation,
            "breaker": { "pid": who.pid, "uid": who.uid, "program": who.program, "verified": verified },
            "grace_ms": self.options.grace.as_millis() as u64,
            "deadline_ms": unix.as_millis() as u64,
        }));
        if !told {
            (self.tell)(Event::Note("the program does not read its notices; this one is lost".to_owned()));
        }
        if let Some(signal) = self.options.signal.and_then(Signal::from_named_raw) {
            self.program.signal(signal);
        }
        (self.tell)(Event::Began(Broken {
            id,
            lease,
            path,
            range,
            holder: Arc::new(holder),
            breaker: who,
            operation,
            started: SystemTime::now(),
            grace: self.options.grace,
            ended: None,
        }));
    }

    fn end(&mut self, record: Break) {
        self.breaks.remove(&record.id);
        self.leases.retain(|&lease, _| lease != record.lease || keeps(record.ended));
        let operation = self.breakers.get(&record.request).map(|breaker| breaker.operation.clone());
        let Some((at, outcome)) = record.ended else { return };
        let outcome = match outcome {
            Outcome::Refused => "breaker refused",
            Outcome::Withdrawn => "breaker gone",
            Outcome::Quarantined => "not killed, breaker refused",
            Outcome::SessionEnded if self.options.kill && self.was_killed() => "killed",
            Outcome::SessionEnded => "ended by itself",
            _ => "released",
        };
        let (path, started) = (self.path(record.file), self.time(record.started));
        self.tell_program(&json!({ "event": "ended", "id": record.id.0, "file": path, "outcome": outcome }));
        (self.tell)(Event::Ended(Broken {
            id: record.id,
            lease: record.lease,
            path,
            range: record.range,
            holder: record.holder,
            breaker: record.breaker,
            operation: operation.unwrap_or_else(|| "use it".to_owned()),
            started,
            grace: self.options.grace,
            ended: Some((outcome, Duration::from_micros(at.0.saturating_sub(record.started.0)))),
        }));
    }

    fn was_killed(&self) -> bool {
        self.dying.is_some()
    }

    fn tell_program(&mut self, notice: &serde_json::Value) -> bool {
        self.program.tell(&notice.to_string())
    }

    fn hear_program(&mut self) {
        self.program.send();
        for answer in self.program.answers() {
            if let Some(id) = answer.strip_prefix("release ").and_then(|id| id.trim().parse().ok()) {
                if let Some(&lease) = self.breaks.get(&BreakId(id)) {
                    let request = self.next_request();
                    self.leases.remove(&lease);
                    self.step(Input::Release { request, session: SESSION, lease });
                }
            } else if let Some(path) = answer.strip_prefix("hold ") {
                let known = self.files.iter().position(|(file, ..)| file.path.as_os_str() == path);
                let file = known.map(|at| FileId(at as u64 + 1));
                let is_held =
                    |file| self.leases.values().chain(self.wanted.values()).any(|held| *held == file);
                if let Some(file) = file.filter(|&file| !is_held(file)) {
                    self.hold(file);
                }
            } else {
                (self.tell)(Event::Note(format!("the program said {answer:?}, which is no answer")));
            }
        }
    }

    /// Breakers that were killed while they were held want nothing any more.
    fn forget_the_dead(&mut self) {
        let gone = |breaker: &Breaker| breaker.held.pidfd.as_ref().is_some_and(process::has_ended);
        let dead: Vec<RequestId> =
            self.breakers.iter().filter(|(_, breaker)| gone(breaker)).map(|(&request, _)| request).collect();
        for request in dead {
            self.step(Input::Withdraw { request });
            if let Some(breaker) = self.breakers.remove(&request) {
                self.allow(&breaker.held);
            }
        }
    }

    /// The fence: nothing of the program lives any more.
    fn see_the_program_go(&mut self) {
        if self.dying.is_some() {
            self.program.kill();
        }
        if self.program.is_over() {
            self.over = true;
            // All of it went by itself; if it was told to die, this changes nothing.
            let told = self.dying.take();
            self.step(Input::SessionEnded { session: SESSION });
            self.dying = told;
            for lease in std::mem::take(&mut self.fences) {
                self.step(Input::Fenced { lease });
            }
            self.step(Input::EndpointGone { session: SESSION });
        } else if self.dying.is_some_and(|since| since.elapsed() > DEATH) && !self.fences.is_empty() {
            self.unproven = true;
            (self.tell)(Event::Note(
                "the program was killed and is not gone: it hangs in the kernel, so that DMA may go on; whoever \
                 wants its files is refused"
                    .to_owned(),
            ));
            for lease in std::mem::take(&mut self.fences) {
                self.step(Input::FenceUnproven { lease });
            }
        }
    }
}

/// Whether the lease goes on after a break with this end.
fn keeps(ended: Option<(Tick, Outcome)>) -> bool {
    matches!(ended, Some((_, Outcome::Refused | Outcome::Withdrawn)))
}

/// Ends the process if the loop stands still, so that whoever is held goes on.
fn watch(beats: Arc<AtomicU64>) {
    thread::spawn(move || {
        let (mut last, mut still) = (0, 0);
        // The loop has ended once nobody else counts.
        while Arc::strong_count(&beats) > 1 {
            thread::sleep(Duration::from_secs(1));
            let now = beats.load(Ordering::Relaxed);
            still = if now == last { still + 1 } else { 0 };
            last = now;
            if still >= STILL_SECONDS_MAX {
                eprintln!(
                    "leasehold guard: it stood still for {STILL_SECONDS_MAX} s and ends; the program goes on, and whoever \
                     wants its files passes"
                );
                std::process::abort();
            }
        }
    });
}
