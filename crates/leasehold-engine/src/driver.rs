//! Takes what happened, steps the core, does what it says.
//!
//! The core has a thread, which takes [`Work`] from a queue. Everybody else puts it there; data outputs go to [`Storage`], key
//! outputs to the session's endpoint, replies to whoever asked. A caller that may block ([`sync::may_block`]) takes the
//! core's place, if nobody is in it, and does what is in the queue until there is nothing left: so a call that has to wait for
//! nothing but a short look at the disk changes no threads.

mod keys;
mod news;
mod replies;

use crate::arena::Arena;
use crate::break_log::BreakLogger;
use crate::event::Event;
use crate::metrics::Counters;
use crate::operation::Operations;
use crate::pages::{Keeper, Renewed, WriteBack, renewed};
use crate::session::{InFlight, Session, Sessions};
use crate::storage::{Detail, Storage};
use crate::sync::{self, Condvar, Mutex, MutexGuard, mpsc};
use crate::workers::or_abort;
use bytes::Bytes;
use leasehold_core::Core;
use leasehold_core::ids::{FileId, LeaseId, RequestId, SessionId, Tick};
use leasehold_core::input::Input;
use leasehold_core::output::{Output, Reply};
use leasehold_core::range::Run;
use leasehold_fabric::Endpoint;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{broadcast, oneshot};

/// How often silent sessions are looked for.
const REAP_EVERY: Duration = Duration::from_millis(500);

/// How often a caller looks into the queue at most, before it leaves what comes to the core's thread.
const HELP_ROUNDS: usize = 64;

/// Work for the core's thread.
pub(crate) enum Work {
    /// Something that the core should hear.
    Input(Input),
    /// A request, with where its reply goes.
    Request { id: RequestId, input: Input, asker: Asker, detail: Detail, by: Handle },
    /// An answer that arrived at a caller that has gone.
    Undo(RequestId, Answer),
    /// Whoever asked has gone.
    Cancel(RequestId),
    /// No old page is left of what this request has renewed.
    Forgotten(RequestId),
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
    Write { call: oneshot::Sender<Answer>, session: SessionId, data: Bytes, page: Option<WriteBack> },
    /// A peer that asked on its data stream, under this number of its own.
    Peer { endpoint: Arc<dyn Endpoint>, request: u64, _in_flight: InFlight },
}

/// By which handle on the engine somebody asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handle {
    /// Everybody's.
    Common,
    /// That of the keeper of pages: it knows what it does itself.
    Keepers,
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

/// The core's time, and its relation to the world's. All that is decided is decided by the core's, which goes on evenly; the
/// world's may jump, and is only told to people.
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { started: sync::now() }
    }

    pub(crate) fn now(&self) -> Tick {
        Tick(
            u64::try_from(sync::now().duration_since(self.started).as_micros())
                .expect("no machine runs for 584,000 years"),
        )
    }

    /// What the clock on the wall shows at that time, as it is set now: it may have been set since the start.
    pub(crate) fn system(&self, tick: Tick) -> SystemTime {
        let (now, wall) = (self.now(), sync::wall());
        match tick.0.checked_sub(now.0) {
            Some(ahead) => wall + Duration::from_micros(ahead),
            None => wall - Duration::from_micros(now.0 - tick.0),
        }
    }
}

/// The way to the core.
#[derive(Clone)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    next_request: Arc<AtomicU64>,
    pub(crate) clock: Arc<Clock>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// `None` before the core's thread has started, and once it has ended. Locked before the queue.
    state: Mutex<Option<State>>,
}

struct Queue {
    works: VecDeque<Work>,
    /// When the core's thread has something to do though nothing comes.
    wake_at: Instant,
    is_asleep: bool,
    has_ended: bool,
}

impl Driver {
    pub(crate) fn new() -> Driver {
        let queue =
            Queue { works: VecDeque::new(), wake_at: sync::now(), is_asleep: false, has_ended: false };
        let shared = Shared { queue: Mutex::new(queue), filled: Condvar::new(), state: Mutex::new(None) };
        Driver {
            shared: Arc::new(shared),
            next_request: Arc::new(AtomicU64::new(1)),
            clock: Arc::new(Clock::start()),
        }
    }

    /// Puts work in the queue. Once the thread has ended, work is dropped: its callers see their reply's channel close.
    pub(crate) fn send(&self, work: Work) {
        self.put(self.lock(), work);
    }

    /// [`Driver::send`] of what nobody waits for: it is done before what comes after it.
    pub(crate) fn send_for_later(&self, work: Work) {
        let mut queue = self.lock();
        if !queue.has_ended {
            queue.works.push_back(work);
        }
    }

    /// Has work put in the queue, and does it here if this thread may block.
    pub(crate) fn helping<T>(&self, put: impl FnOnce(&Driver) -> T) -> T {
        if !sync::is_allowed_to_block() {
            return put(self);
        }
        sync::helping(|| {
            let done = put(self);
            self.help();
            done
        })
    }

    /// Puts a request in the queue: `input` makes it from the id that it gets. Ids grow in the queue's order. `detail`:
    /// what storage needs to know, and the core does not, when the request is performed.
    pub(crate) fn request(
        &self,
        input: impl FnOnce(RequestId) -> Input,
        asker: Asker,
        detail: Detail,
        by: Handle,
    ) -> RequestId {
        let queue = self.lock();
        let id = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        self.put(queue, Work::Request { id, input: input(id), asker, detail, by });
        id
    }

    fn put(&self, mut queue: MutexGuard<'_, Queue>, work: Work) {
        if queue.has_ended {
            drop(queue); // the work is dropped after it: somebody may hear of that
            return;
        }
        queue.works.push_back(work);
        // Who helps looks into the queue before it goes away.
        if !sync::is_helping() {
            self.wake(queue);
        }
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        if std::mem::take(&mut queue.is_asleep) {
            drop(queue);
            self.shared.filled.notify_one();
        }
    }

    /// Does what is in the queue, unless somebody else is at it: who leaves the core looks into the queue once more, so nothing is
    /// left lying there. And what there is to do for the disk meanwhile, as far as it is short.
    fn help(&self) {
        for _ in 0..HELP_ROUNDS {
            let Ok(mut state) = self.shared.state.try_lock() else { return };
            let Some(at_work) = state.as_mut() else { return };
            or_abort(|| at_work.do_all());
            drop(state);
            let is_done = sync::jobs_here().map(or_abort).count() == 0;
            if is_done && self.lock().works.is_empty() {
                return;
            }
        }
        self.wake(self.lock());
    }

    /// An id for a request of the core's thread's own: there, whatever is in the queue arrives later.
    fn next_request(&self) -> RequestId {
        RequestId(self.next_request.fetch_add(1, Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().expect("no code panics while it holds the queue")
    }

    /// The core's thread: until [`Work::Stop`] is done, or [`Work::Quit`].
    fn run(&self) {
        let mut reap_at = sync::now() + REAP_EVERY;
        loop {
            let is_late = self.sleep();
            let mut state = self.shared.state.lock().expect("who panics at the core ends the process");
            let at_work = state.as_mut().expect("only this thread takes it");
            if is_late {
                at_work.step(Input::Tick);
            }
            if sync::now() >= reap_at {
                reap_at = sync::now() + REAP_EVERY;
                at_work.reap();
            }
            at_work.reap_at = reap_at;
            at_work.do_all();
            if at_work.is_over {
                let ended = state.take();
                drop(state);
                let left = {
                    let mut queue = self.lock();
                    queue.has_ended = true;
                    std::mem::take(&mut queue.works)
                };
                return drop((left, ended));
            }
        }
    }

    /// Until there is work, or it is late enough for what has to be done then: whether it is.
    fn sleep(&self) -> bool {
        let mut queue = self.lock();
        loop {
            if !queue.works.is_empty() {
                return false;
            }
            let left = queue.wake_at.saturating_duration_since(sync::now());
            if left.is_zero() {
                return true;
            }
            queue.is_asleep = true;
            queue = self.shared.filled.wait_timeout(queue, left).expect("no panic while held").0;
            queue.is_asleep = false;
        }
    }
}

/// Everything that the core's thread works with.
pub(crate) struct Parts {
    pub(crate) core: Core,
    pub(crate) arena: Arc<Arena>,
    pub(crate) storage: Arc<Storage>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) break_log: BreakLogger,
    pub(crate) counters: Arc<Counters>,
    pub(crate) watch: broadcast::Sender<Event>,
    pub(crate) fence: Duration,
    pub(crate) keeper: Arc<OnceLock<Arc<dyn Keeper>>>,
}

/// Starts the core's thread.
pub(crate) fn run(parts: Parts, driver: Driver) -> std::io::Result<()> {
    let state = State {
        parts,
        clock: driver.clock.clone(),
        driver: driver.clone(),
        outputs: Vec::new(),
        inputs: VecDeque::new(),
        replies: HashMap::new(),
        exposed: HashMap::new(),
        crcs: HashMap::new(),
        operations: Operations::default(),
        departing: HashMap::new(),
        forgetting: BTreeMap::new(),
        stopping: None,
        reap_at: sync::now(),
        is_over: false,
    };
    *driver.shared.state.lock().expect("nobody is at work yet") = Some(state);
    sync::spawn("leasehold-core", move || or_abort(|| driver.run()))?;
    Ok(())
}

/// A request that is owed a reply.
struct Pending {
    asker: Asker,
    detail: Detail,
    since: Instant,
    /// The lease whose CRC this commit brought.
    summed: Option<LeaseId>,
    by: Handle,
    /// It goes on, whoever asked.
    begun: bool,
    /// What it makes new, if it succeeds.
    renews: Option<Renewed>,
}

/// A request that has succeeded, and is answered once no page is left that it has made old.
struct Forgetting {
    renewed: Renewed,
    asker: Asker,
    reply: Reply,
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
    forgetting: BTreeMap<RequestId, Forgetting>,
    stopping: Option<oneshot::Sender<()>>,
    /// When the core's thread looks for silent sessions.
    reap_at: Instant,
    /// The core's thread is to end.
    is_over: bool,
}

impl State {
    /// Does what is in the queue until nothing is left, and says when there will be something to do without.
    fn do_all(&mut self) {
        let mut works = VecDeque::new();
        while !self.is_over {
            let shared = Arc::clone(&self.driver.shared);
            let mut queue = shared.queue.lock().expect("no code panics while it holds the queue");
            if queue.works.is_empty() {
                let wake_at = self.wake_at();
                let is_sooner = wake_at < queue.wake_at;
                queue.wake_at = wake_at;
                if is_sooner {
                    self.driver.wake(queue);
                }
                return;
            }
            std::mem::swap(&mut works, &mut queue.works);
            drop(queue);
            for work in works.drain(..) {
                self.work(work);
            }
            if self.stopping.is_some() && self.is_idle() {
                let _gone = self.stopping.take().expect("just seen").send(());
                self.is_over = true;
            }
        }
        let shared = Arc::clone(&self.driver.shared);
        let mut queue = shared.queue.lock().expect("no code panics while it holds the queue");
        queue.wake_at = sync::now();
        self.driver.wake(queue);
    }

    fn wake_at(&self) -> Instant {
        let now = self.clock.now();
        let deadline = self.parts.core.next_deadline();
        let until = deadline.map(|deadline| Duration::from_micros(deadline.0.saturating_sub(now.0)));
        until.map_or(self.reap_at, |until| self.reap_at.min(sync::now() + until))
    }

    fn reap(&mut self) {
        for session in self.parts.sessions.silent() {
            self.end_session(session, "it was silent for longer than its time to live");
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
                if self.replies.get(&request).is_some_and(|pending| pending.begun && pending.renews.is_some())
                {
                    return; // it goes on, and old pages are to be forgotten when it is done
                }
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
            Work::Request { id, input, asker, detail, by } => {
                if let Input::Commit { session, lease, .. } | Input::Release { session, lease, .. } = &input
                    && let (Asker::Call(_), Some(session)) = (&asker, self.session(*session))
                {
                    session.key_lingers(*lease);
                }
                self.operations.note(&input, &detail);
                let summed = self.keep_crc(&input, &detail);
                let renews = renewed(&self.parts.core, &input);
                let begun = matches!(input, Input::Commit { .. });
                let mut pending = Pending { asker, detail, since: sync::now(), summed, by, begun, renews };
                if let Asker::Write { page: Some(page), .. } = &mut pending.asker {
                    self.forgetting
                        .values()
                        .for_each(|newer| page.overtake(newer.renewed.file, newer.renewed.range));
                }
                self.replies.insert(id, pending);
                self.step(input);
            }
            Work::Forgotten(request) => {
                if let Some(Forgetting { asker, reply, .. }) = self.forgetting.remove(&request) {
                    self.answer(request, asker, reply, Vec::new());
                    self.settle();
                }
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
            Work::Quit => self.is_over = true,
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
        self.forgetting.is_empty() && stats.leases == 0 && stats.requests == 0 && stats.writebacks == 0
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
                let detail = pending.map_or(Detail::None, |pending| {
                    pending.begun = true;
                    std::mem::replace(&mut pending.detail, Detail::None)
                });
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

    fn path(&self, file: FileId) -> String {
        self.parts.storage.path_of(file).map(|path| path.to_string()).unwrap_or_else(|| format!("<{file}>"))
    }
}

/// Milliseconds since 1970; 0 for a clock set before that.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
