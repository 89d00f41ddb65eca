//! The core's thread: takes what happened, steps the core, does what it says.
//!
//! The core is touched by this one thread only. Everybody else puts [`Work`] in its queue; data outputs go to
//! [`Storage`], key outputs to the session's endpoint, replies to whoever asked.
//!
//! A fence is nearly always proven at once, since the receiver holds a tag only while it is inside one `readv`. One
//! that is not, because the receiver was preempted there, is waited for by a thread of its own, so that a late proof
//! delays nobody else.

use crate::arena::Arena;
use crate::break_log::{BreakLog, BreakRow};
use crate::event::Event;
use crate::metrics::Counters;
use crate::operation::Operations;
use crate::session::{InFlight, Key, Session, Sessions, send_captured, send_committed};
use crate::storage::{Detail, Storage};
use bytes::Bytes;
use leasehold_core::Core;
use leasehold_core::breaks::{Break, Outcome};
use leasehold_core::ids::{FileId, LeaseId, RequestId, SessionId, Tick};
use leasehold_core::input::{Access, Fault, Input};
use leasehold_core::output::Committed as Done;
use leasehold_core::output::{CommitError, NoSuchLease, Notice, Output, Reply, RevokeReason};
use leasehold_core::range::Run;
use leasehold_fabric::message::{Captured, Committed, Status};
use leasehold_fabric::{Endpoint, Region, RemoteAccess};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{broadcast, oneshot};

/// How long the core's thread itself waits for the proof of a fence.
const FENCE_SPIN: Duration = Duration::from_micros(100);

/// How often silent sessions are looked for.
const REAP_EVERY: Duration = Duration::from_millis(500);

/// Work for the core's thread.
pub(crate) enum Work {
    /// Something that the core should hear.
    Input(Input),
    /// A request, with where its reply goes.
    Request { id: RequestId, input: Input, asker: Asker, detail: Detail },
    /// An answer that arrived at a caller that has gone.
    Undo(RequestId, Answer),
    /// Whoever asked has gone.
    Cancel(RequestId),
    /// Forget the file if nobody needs it, and say whether that was done.
    CloseFile { file: FileId, closed: mpsc::Sender<bool> },
    /// A session's data stream cannot be trusted.
    Poisoned(SessionId),
    /// A session's connection is gone, and nothing of it is left.
    ConnectionClosed { session: SessionId, why: String },
    /// End the session.
    EndSession { session: SessionId, why: String },
    /// Look at the core.
    Look(Box<dyn FnOnce(&View<'_>) + Send>),
    /// Say when there is nothing left to do, then end the thread.
    Stop(oneshot::Sender<()>),
    /// Nobody has the engine any more: end the thread.
    Quit,
}

/// Who is owed the reply to a request.
pub(crate) enum Asker {
    /// A call that awaits it.
    Call(oneshot::Sender<Answer>),
    /// A write by a session of the server's own: once it has its lease, these bytes are copied and committed, here, where
    /// no break can come in between. The call awaits the reply to the commit.
    Write { call: oneshot::Sender<Answer>, session: SessionId, data: Bytes },
    /// A peer that asked on its data stream, under this number of its own.
    Peer { endpoint: Arc<dyn Endpoint>, request: u64, _in_flight: InFlight },
}

/// A reply, with what the core does not know.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    /// For a granted acquire: the leases' tags and frames.
    pub(crate) granted: Vec<Granted>,
}

/// One lease of a granted acquire.
#[derive(Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) lease: LeaseId,
    /// `None` for a lease of the server's own.
    pub(crate) tag: Option<u32>,
    pub(crate) run: Run,
    /// Where in the run the range begins, in bytes.
    pub(crate) skip: u16,
}

/// What can be looked at on the core's thread.
pub(crate) struct View<'a> {
    pub(crate) core: &'a Core,
    pub(crate) clock: &'a Clock,
    pub(crate) storage: &'a Storage,
    pub(crate) operations: &'a Operations,
}

/// The core's time, and its relation to the world's.
pub(crate) struct Clock {
    started: Instant,
    started_at: SystemTime,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { started: Instant::now(), started_at: SystemTime::now() }
    }

    pub(crate) fn now(&self) -> Tick {
        Tick(u64::try_from(self.started.elapsed().as_micros()).expect("no machine runs for 584,000 years"))
    }

    pub(crate) fn system(&self, tick: Tick) -> SystemTime {
        self.started_at + Duration::from_micros(tick.0)
    }
}

/// The queue of the core's thread.
#[derive(Clone)]
pub(crate) struct Driver {
    queue: Arc<Mutex<mpsc::Sender<Work>>>,
    next_request: Arc<AtomicU64>,
    pub(crate) clock: Arc<Clock>,
}

impl Driver {
    /// Puts work in the queue. Once the thread has ended, work is dropped: its callers see their reply's channel close.
    pub(crate) fn send(&self, work: Work) {
        let _ended = self.lock().send(work);
    }

    /// Puts a request in the queue: `input` makes it from the id that it gets. Ids grow in the queue's order. `detail`:
    /// what storage needs to know, and the core does not, when the request is performed.
    pub(crate) fn request(
        &self,
        input: impl FnOnce(RequestId) -> Input,
        asker: Asker,
        detail: Detail,
    ) -> RequestId {
        let queue = self.lock();
        let id = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        let _ended = queue.send(Work::Request { id, input: input(id), asker, detail });
        id
    }

    /// An id for a request of the core's thread's own: there, whatever is in the queue arrives later.
    fn next_request(&self) -> RequestId {
        RequestId(self.next_request.fetch_add(1, Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, mpsc::Sender<Work>> {
        self.queue.lock().expect("no code panics while it holds the queue")
    }
}

/// Everything that the core's thread works with.
pub(crate) struct Parts {
    pub(crate) core: Core,
    pub(crate) arena: Arc<Arena>,
    pub(crate) storage: Arc<Storage>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) break_log: BreakLog,
    pub(crate) counters: Arc<Counters>,
    pub(crate) watch: broadcast::Sender<Event>,
    pub(crate) fence: Duration,
}

/// A queue, and its end for the thread that [`run`] starts.
pub(crate) fn queue() -> (Driver, mpsc::Receiver<Work>) {
    let (send, receive) = mpsc::channel();
    let driver = Driver {
        queue: Arc::new(Mutex::new(send)),
        next_request: Arc::new(AtomicU64::new(1)),
        clock: Arc::new(Clock::start()),
    };
    (driver, receive)
}

/// Starts the core's thread.
pub(crate) fn run(parts: Parts, driver: Driver, work: mpsc::Receiver<Work>) -> std::io::Result<()> {
    let clock = driver.clock.clone();
    let state = State {
        parts,
        clock,
        driver,
        outputs: Vec::new(),
        inputs: VecDeque::new(),
        replies: HashMap::new(),
        exposed: HashMap::new(),
        crcs: HashMap::new(),
        operations: Operations::default(),
        departing: HashMap::new(),
        stopping: None,
    };
    std::thread::Builder::new().name("leasehold-core".into()).spawn(move || state.run(&work))?;
    Ok(())
}

/// A request that is owed a reply.
struct Pending {
    asker: Asker,
    detail: Detail,
    since: Instant,
    /// The lease whose CRC this commit brought.
    summed: Option<LeaseId>,
}

struct State {
    parts: Parts,
    clock: Arc<Clock>,
    driver: Driver,
    outputs: Vec<Output>,
    /// Answers to outputs that were done at once.
    inputs: VecDeque<Input>,
    replies: HashMap<RequestId, Pending>,
    /// Leases that are exposed and not granted yet: a request's leases are granted together.
    exposed: HashMap<LeaseId, Granted>,
    /// The CRCs that holders sent with their commits, until they are verified.
    crcs: HashMap<LeaseId, u32>,
    operations: Operations,
    /// Sessions that have ended and whose connection may still exist.
    departing: HashMap<SessionId, Arc<Session>>,
    stopping: Option<oneshot::Sender<()>>,
}

impl State {
    /// Runs until [`Work::Stop`] is done, or [`Work::Quit`].
    fn run(mut self, work: &mpsc::Receiver<Work>) {
        let mut reap_at = Instant::now() + REAP_EVERY;
        loop {
            let now = self.clock.now();
            let until_reap = reap_at.saturating_duration_since(Instant::now());
            let wait = match self.parts.core.next_deadline() {
                Some(deadline) => until_reap.min(Duration::from_micros(deadline.0.saturating_sub(now.0))),
                None => until_reap,
            };
            match work.recv_timeout(wait) {
                Ok(Work::Quit) => return,
                Ok(work) => self.work(work),
                Err(RecvTimeoutError::Timeout) => self.step(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= reap_at {
                reap_at = Instant::now() + REAP_EVERY;
                for session in self.parts.sessions.silent() {
                    self.end_session(session, "it was silent for longer than its time to live");
                }
            }
            if self.stopping.is_some() && self.is_idle() {
                let _gone = self.stopping.take().expect("just seen").send(());
                return;
            }
        }
    }

    fn work(&mut self, work: Work) {
        match work {
            Work::Input(input) => {
                if let Input::FenceUnproven { lease } = &input {
                    self.crcs.remove(lease); // it will not be verified
                }
                self.step(input);
            }
            Work::Cancel(request) => {
                self.step(Input::Cancel { request });
                // What has taken effect already goes on, and is replied to nobody.
                let summed = self.replies.remove(&request).and_then(|pending| pending.summed);
                if let Some(lease) = summed.filter(|lease| self.parts.core.lease(*lease).is_none()) {
                    self.crcs.remove(&lease);
                }
            }
            Work::Undo(request, answer) => {
                self.undo(request, answer);
                self.settle();
            }
            Work::CloseFile { file, closed } => {
                self.step(Input::FileClosed { file });
                let _gone = closed.send(!self.parts.core.knows_file(file));
            }
            Work::Request { id, input, asker, detail } => {
                if let Input::Commit { session, lease, .. } | Input::Release { session, lease, .. } = &input
                    && let (Asker::Call(_), Some(session)) = (&asker, self.session(*session))
                {
                    session.key_lingers(*lease);
                }
                self.operations.note(&input, &detail);
                let summed = self.keep_crc(&input, &detail);
                self.replies.insert(id, Pending { asker, detail, since: Instant::now(), summed });
                self.step(input);
            }
            Work::Poisoned(session) => {
                self.parts.counters.poisoned.fetch_add(1, Ordering::Relaxed);
                self.step(Input::Poisoned { session });
            }
            Work::ConnectionClosed { session, why } => {
                self.end_session(session, &format!("its data connection is gone: {why}"));
                self.departing.remove(&session);
                self.step(Input::EndpointGone { session });
            }
            Work::EndSession { session, why } => self.end_session(session, &why),
            Work::Look(look) => {
                let Parts { core, storage, .. } = &self.parts;
                look(&View { core, clock: &self.clock, storage, operations: &self.operations });
            }
            Work::Stop(done) => {
                for session in self.parts.sessions.all() {
                    self.end_session(session.id, "the server stops");
                }
                self.stopping = Some(done);
            }
            Work::Quit => {} // seen by `run`
        }
    }

    /// Keeps the CRC that came with a commit until the lease is verified. Only its holder's first one counts.
    fn keep_crc(&mut self, input: &Input, detail: &Detail) -> Option<LeaseId> {
        let (Input::Commit { session, lease, .. }, Detail::Crc(Some(crc32c))) = (input, detail) else {
            return None;
        };
        let holder = self.parts.core.lease(*lease)?.session;
        if holder != *session || self.crcs.contains_key(lease) {
            return None;
        }
        self.crcs.insert(*lease, *crc32c);
        Some(*lease)
    }

    fn is_idle(&self) -> bool {
        let stats = self.parts.core.stats();
        stats.leases == 0 && stats.requests == 0 && stats.writebacks == 0
    }

    /// Ends the session. The core says to disconnect it, and hears `EndpointGone` once nothing of it is left.
    fn end_session(&mut self, session: SessionId, why: &str) {
        let Some(ended) = self.parts.sessions.remove(session) else { return };
        tracing::info!(%session, why, "session ended");
        let event = Event::SessionEnded { session, why: why.to_owned() };
        ended.tell(event.clone());
        self.announce(event);
        self.departing.insert(session, ended);
        self.step(Input::SessionEnded { session });
    }

    /// The session, also if it has ended and its connection may still exist.
    fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.parts.sessions.get(id).or_else(|| self.departing.get(&id).cloned())
    }

    /// Steps the core, and again with the answers to what could be done at once.
    fn step(&mut self, input: Input) {
        self.inputs.push_back(input);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            let mut outputs = std::mem::take(&mut self.outputs);
            self.parts.core.step(self.clock.now(), input, &mut outputs);
            for output in outputs.drain(..) {
                self.perform(output);
            }
            self.outputs = outputs;
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Reply { request, reply } => self.reply(request, reply),
            Output::Notify { session, notice } => {
                let session = self.session(session);
                self.notify(session, notice);
            }
            Output::BreakEnded { record } => self.break_ended(&record),
            Output::Expose { lease, session, run, skip, length, access } => {
                let result = match self.session(session) {
                    Some(session) => self.expose(&session, lease, run, skip, length, access),
                    // A session without an entry is the server's own: it fills the frames itself.
                    None => {
                        self.exposed.insert(lease, Granted { lease, tag: None, run, skip });
                        Ok(())
                    }
                };
                self.inputs.push_back(Input::Exposed { lease, result });
            }
            Output::Fence { lease, session } => {
                let session = self.session(session);
                self.fence(session, lease);
            }
            Output::Forget { lease, session } => {
                self.crcs.remove(&lease);
                if let Some(session) = self.session(session)
                    && let (Some(endpoint), Some(tag)) = (session.endpoint(), session.forget_key(lease))
                {
                    endpoint.forget(tag);
                }
            }
            Output::Disconnect { session } => {
                match self.session(session).and_then(|found| found.endpoint()) {
                    Some(endpoint) => endpoint.close(), // and `ConnectionClosed` follows
                    None => {
                        self.departing.remove(&session);
                        self.inputs.push_back(Input::EndpointGone { session });
                    }
                }
            }
            Output::Verify { lease, .. } => {
                let crc32c = self.crcs.remove(&lease);
                self.parts.storage.perform(output, Detail::Crc(crc32c));
            }
            Output::Perform { request, .. } => {
                let pending = self.replies.get_mut(&request);
                let detail = pending
                    .map_or(Detail::None, |pending| std::mem::replace(&mut pending.detail, Detail::None));
                self.parts.storage.perform(output, detail);
            }
            Output::Load { .. }
            | Output::Zero { .. }
            | Output::Capture { .. }
            | Output::Merge { .. }
            | Output::Record { .. }
            | Output::Write { .. }
            | Output::Flush { .. } => self.parts.storage.perform(output, Detail::None),
        }
    }

    fn expose(
        &mut self,
        session: &Arc<Session>,
        lease: LeaseId,
        run: Run,
        skip: u16,
        length: u64,
        access: Access,
    ) -> Result<(), Fault> {
        let endpoint = session.endpoint().ok_or(Fault::NoKey)?;
        let range = self.parts.core.lease(lease).ok_or(Fault::NoKey)?.range;
        let region = region(&self.parts.arena, run, skip, length);
        let remote = match access {
            Access::Read => RemoteAccess::Read,
            Access::Overwrite => RemoteAccess::Write,
            // It may be captured while the peer goes on writing.
            Access::Update => RemoteAccess::WriteChecked,
        };
        let tag = endpoint.expose(region, remote).map_err(|error| {
            tracing::warn!(session = %session.id, %lease, %error, "no key");
            Fault::NoKey
        })?;
        session.insert_key(lease, Key { tag, range, access, revoked: false, lingers: false });
        self.exposed.insert(lease, Granted { lease, tag: Some(tag.0), run, skip });
        Ok(())
    }

    fn fence(&mut self, session: Option<Arc<Session>>, lease: LeaseId) {
        self.exposed.remove(&lease);
        let key = session.as_ref().and_then(|session| session.revoke_key(lease));
        let (Some(key), Some(endpoint)) = (key, session.and_then(|session| session.endpoint())) else {
            // No key was made, or its connection never stood: nothing can land.
            self.inputs.push_back(Input::Fenced { lease });
            return;
        };
        let started = Instant::now();
        if endpoint.fence(key.tag, FENCE_SPIN).is_ok() {
            self.parts.counters.fence(started.elapsed());
            self.inputs.push_back(Input::Fenced { lease });
            return;
        }
        let (driver, counters) = (self.driver.clone(), self.parts.counters.clone());
        let patience = self.parts.fence.saturating_sub(FENCE_SPIN);
        let wait = move || {
            let result = endpoint.fence(key.tag, patience);
            counters.fence(started.elapsed());
            driver.send(Work::Input(match result {
                Ok(()) => Input::Fenced { lease },
                Err(error) => {
                    tracing::error!(%lease, %error, "fence not proven: its frames go into quarantine");
                    counters.unproven.fetch_add(1, Ordering::Relaxed);
                    Input::FenceUnproven { lease }
                }
            }));
        };
        if let Err(error) = std::thread::Builder::new().name("leasehold-fence".into()).spawn(wait) {
            tracing::error!(%lease, %error, "no thread to wait for a fence: its frames go into quarantine");
            self.inputs.push_back(Input::FenceUnproven { lease });
        }
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        let Some(pending) = self.replies.remove(&request) else { return };
        if let Some(lease) = pending.summed {
            self.crcs.remove(&lease);
        }
        let granted = self.note(&reply, pending.since);
        match pending.asker {
            Asker::Call(call) => {
                if let Err(answer) = call.send(Answer { reply, granted }) {
                    self.undo(request, answer);
                }
            }
            Asker::Write { call, session, data } => match granted.first() {
                Some(lease) => self.fill_and_commit(call, session, lease, &data),
                None => drop(call.send(Answer { reply, granted })),
            },
            Asker::Peer { endpoint, request, .. } => {
                let (Reply::Commit(result) | Reply::Capture(result)) = &reply else {
                    unreachable!("peers ask for commits and captures: {reply:?}")
                };
                let (status, size, text) = outcome(result);
                if matches!(reply, Reply::Commit(_)) {
                    send_committed(&endpoint, Committed { request, status, size, text });
                } else {
                    send_captured(&endpoint, Captured { request, status, size, text });
                }
            }
        }
    }

    /// The lease of a local write was granted in this very step, and nothing else has happened since.
    fn fill_and_commit(
        &mut self,
        call: oneshot::Sender<Answer>,
        session: SessionId,
        granted: &Granted,
        data: &[u8],
    ) {
        // SAFETY: the frames are leased to the call's own session, for which no key was made; they can be taken away
        // only by a later output.
        let frames = unsafe { self.parts.arena.bytes_mut(granted.run) };
        frames[usize::from(granted.skip)..][..data.len()].copy_from_slice(data);
        let (request, lease) = (self.driver.next_request(), granted.lease);
        let asker = Asker::Call(call);
        let pending = Pending { asker, detail: Detail::None, since: Instant::now(), summed: None };
        self.replies.insert(request, pending);
        self.inputs.push_back(Input::Commit { request, session, lease });
    }

    /// Gives back what was granted to a caller that has gone.
    fn undo(&mut self, request: RequestId, answer: Answer) {
        match answer.reply {
            Reply::Acquire(Ok(leases)) => {
                for lease in leases {
                    if let Some(session) = self.parts.core.lease(lease).map(|lease| lease.session) {
                        let request = self.driver.next_request();
                        self.inputs.push_back(Input::Release { request, session, lease });
                    }
                }
            }
            Reply::Read(Ok(Some(_))) => self.inputs.push_back(Input::ReadFinished { request }),
            _ => {}
        }
    }

    /// Counts and announces what a reply means. Returns the leases of a granted acquire.
    fn note(&mut self, reply: &Reply, since: Instant) -> Vec<Granted> {
        let counters = &self.parts.counters;
        match reply {
            Reply::Acquire(Ok(leases)) => {
                counters.granted.fetch_add(leases.len() as u64, Ordering::Relaxed);
                counters.acquire(since.elapsed());
                let granted: Vec<Granted> = leases.iter().filter_map(|id| self.exposed.remove(id)).collect();
                for lease in &granted {
                    self.announce_granted(lease);
                }
                granted
            }
            Reply::Acquire(Err(_)) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                Vec::new()
            }
            Reply::Commit(Ok(_)) => {
                counters.committed.fetch_add(1, Ordering::Relaxed);
                counters.commit(since.elapsed());
                Vec::new()
            }
            Reply::Commit(Err(error)) => {
                counters.commits_failed.fetch_add(1, Ordering::Relaxed);
                if matches!(error, CommitError::Mismatch(_)) {
                    counters.mismatched.fetch_add(1, Ordering::Relaxed);
                }
                Vec::new()
            }
            Reply::Change(_) => {
                counters.change(since.elapsed());
                Vec::new()
            }
            Reply::Sync(_) => {
                counters.sync(since.elapsed());
                Vec::new()
            }
            Reply::Capture(result) => {
                let counter = if result.is_ok() { &counters.captured } else { &counters.captures_failed };
                counter.fetch_add(1, Ordering::Relaxed);
                counters.capture(since.elapsed());
                Vec::new()
            }
            Reply::Release(_) | Reply::Read(_) => Vec::new(),
        }
    }

    fn announce_granted(&self, granted: &Granted) {
        let Some(lease) = self.parts.core.lease(granted.lease) else { return };
        let Some(session) = self.parts.sessions.get(lease.session) else { return };
        let event = Event::Granted {
            session: lease.session,
            lease: lease.id,
            path: self.path(lease.file),
            range: lease.range,
            writes: lease.access.writes(),
        };
        session.tell_if_there_is_room(event.clone());
        self.announce(event);
    }

    fn notify(&mut self, session: Option<Arc<Session>>, notice: Notice) {
        let Some(session) = session else { return };
        let event = match notice {
            Notice::Break { id, lease, file, range, breaker, operation, deadline } => {
                self.parts.counters.breaks.fetch_add(1, Ordering::Relaxed);
                let grace = Duration::from_micros(deadline.0.saturating_sub(self.clock.now().0));
                Event::Break {
                    session: session.id,
                    id,
                    lease,
                    path: self.path(file),
                    range,
                    breaker: (*breaker).clone(),
                    operation: self.operations.describe(operation, Some(&breaker)),
                    deadline: self.clock.system(deadline),
                    grace,
                }
            }
            Notice::Revoked { lease, file, range, why, by } => {
                self.parts.counters.revoked.fetch_add(1, Ordering::Relaxed);
                Event::Revoked {
                    session: session.id,
                    lease,
                    path: self.path(file),
                    range,
                    why: revoke_reason(why),
                    by: by.map(|by| (*by).clone()),
                }
            }
        };
        if !session.tell(event.clone()) {
            // A holder that cannot be told cannot be given a grace period in good faith: it must reconnect.
            let why = "it does not read its events".to_owned();
            self.driver.send(Work::EndSession { session: session.id, why });
        }
        self.announce(event);
    }

    fn break_ended(&mut self, record: &Break) {
        let Some((ended, outcome)) = record.ended else { return };
        let row = BreakRow {
            id: record.id.0,
            lease: record.lease.0,
            holder: (&*record.holder).into(),
            breaker: (&*record.breaker).into(),
            path: self.path(record.file),
            start: record.range.start(),
            end: record.range.end(),
            operation: self.operations.describe(record.operation, Some(&record.breaker)),
            started_ms: unix_ms(self.clock.system(record.started)),
            took_us: ended.0.saturating_sub(record.started.0),
            grace_ms: record.deadline.0.saturating_sub(record.started.0) / 1000,
            outcome: outcome_name(outcome).to_owned(),
        };
        self.parts.counters.broke(Duration::from_micros(row.took_us));
        if let Err(error) = self.parts.break_log.append(&row) {
            tracing::error!(%error, ?row, "cannot append to the break log");
        }
        self.announce(Event::BreakEnded(row));
    }

    fn announce(&self, event: Event) {
        let _nobody_watches = self.parts.watch.send(event);
    }

    fn path(&self, file: FileId) -> String {
        self.parts.storage.path_of(file).map(|path| path.to_string()).unwrap_or_else(|| format!("<{file}>"))
    }
}

/// The memory of a lease, as the fabric may use it.
fn region(arena: &Arc<Arena>, run: Run, skip: u16, length: u64) -> Region {
    let length = usize::try_from(length).expect("a lease fits in the arena");
    assert!(usize::from(skip) + length <= run.bytes() as usize, "a lease lies within its frames");
    // SAFETY: the run lies in the arena (asserted by `network`), which `owner` keeps mapped, and `skip + length` lies
    // within the run. The core gives a run to one owner at a time: until `Fenced` it touches the frames by no other
    // output, and the disk's view is another mapping, used for these frames only after `Fenced`.
    unsafe {
        let base = arena.network(run).add(usize::from(skip));
        Region::new(base, length, arena.clone()).summed(arena.sums().clone())
    }
}

/// How a commit or a capture went, for the peer.
fn outcome(result: &Result<Done, CommitError>) -> (Status, u64, String) {
    let error = match result {
        Ok(done) => return (Status::Ok, done.size, String::new()),
        Err(error) => error,
    };
    let status = match error {
        CommitError::NoLease(NoSuchLease(_)) => Status::NoLease,
        CommitError::ReadOnly(_) | CommitError::NotPreloaded(_) => Status::WrongAccess,
        CommitError::Revoked { .. } => Status::Revoked,
        CommitError::Mismatch(_) => Status::Mismatch,
        CommitError::Poisoned(_) => Status::Poisoned,
        CommitError::Unproven(_) => Status::Unproven,
        CommitError::Removed(_) => Status::Removed,
        CommitError::OutOfLease { .. } => Status::OutOfBounds,
        CommitError::ArenaFull(_) | CommitError::Limit { .. } => Status::Full,
        CommitError::Fault(Fault::NoSpace) => Status::NoSpace,
        CommitError::Fault(_) => Status::Io,
    };
    (status, 0, error.to_string())
}

fn revoke_reason(why: RevokeReason) -> &'static str {
    match why {
        RevokeReason::GraceOver => "it was broken, and the grace period ran out",
        RevokeReason::Poisoned => "the data connection failed a checksum",
        RevokeReason::SessionEnded => "the session ended",
        RevokeReason::Unproven => "its fence could not be proven in time",
        RevokeReason::Removed => "the file was removed",
    }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::Released => "released",
        Outcome::Fenced => "fenced",
        Outcome::Quarantined => "quarantined",
        Outcome::SessionEnded => "session ended",
    }
}

/// Milliseconds since 1970; 0 for a clock set before that.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
