//! The engine as a server embeds it: sessions, leases and files, as async calls.
//!
//! Every call becomes inputs of the core; dropping a call's future cancels what has not taken effect. Calls on names
//! (open, create, rename) block on the filesystem, so they run on tokio's blocking threads, one at a time: the table of
//! open files has one owner.

use crate::arena::{Arena, ArenaError, Pages};
use crate::break_log::{BreakLog, BreakLogger, BreakRow};
use crate::driver::{self, Answer, Asker, Driver, Handle, Parts, View, Work};
use crate::event::Event;
use crate::fabrics::Fabrics;
use crate::metrics::Counters;
use crate::open_files::{OpenFiles, Opening, Pinned};
use crate::pages::{Keeper, WriteBack};
use crate::path::StorePath;
pub use crate::session::Tenant;
use crate::session::{LINGERING_MAX, Sessions, TokenGate};
use crate::storage::{Detail, Mismatch, NamespaceError, OpenError, Opened, Storage, StorageConfig};
use crate::sync::{self, Mutex, blocking};
use bytes::Bytes;
use leasehold_core::identity::Identity;
use leasehold_core::ids::{LeaseId, RequestId, SessionId};
use leasehold_core::input::{Access, Fault, Input, OnConflict, Want};
use leasehold_core::output::{self, NoSuchLease, Reply};
use leasehold_core::range::ByteRange;
use leasehold_core::scheme::{Backing, Host, Scheme};
use leasehold_core::view::Stats;
use leasehold_core::{Core, Limits, OnExpiry, schemes};
use leasehold_fabric::iwarp;
use leasehold_fabric::{Fabric, Kind, ListenError, Listener};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};

/// How a store is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store's directory.
    pub directory: PathBuf,
    /// Memory for frames.
    pub arena_bytes: u64,
    /// Of which pages.
    pub pages: Pages,
    /// Where to listen for data connections; port 0 lets the system choose.
    pub data_address: SocketAddr,
    /// How long the holder of a lease under break has to answer.
    pub grace_ms: u64,
    /// How long a fence may take before its frames go into quarantine.
    pub fence_ms: u64,
    /// What happens to a holder that does not answer in time.
    pub on_expiry: OnExpiry,
    /// How long after a failed writeback it is tried again.
    pub retry_ms: u64,
    /// How long a session may be silent.
    pub session_ttl_ms: u64,
    /// How long a session's token for its data connection is good.
    pub token_ttl_ms: u64,
    /// How long [`Engine::stop`] waits for writeback.
    pub drain_ms: u64,
    /// How many files are kept open; idle ones beyond are closed.
    pub open_files_max: usize,
    /// How much of everything there may be.
    pub limits: Limits,
    /// Check a frame's CRC before its bytes are placed, at the price of a copy.
    pub strict_placement: bool,
    /// By which kind of fabric data come. `None`: over TCP without TLS, and by the host's RDMA devices if there are any at the address.
    pub fabric: Option<Kind>,
}

impl Config {
    /// The defaults, for the store in `directory`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Config {
        Config {
            directory: directory.into(),
            arena_bytes: 256 << 20,
            pages: Pages::Auto,
            data_address: SocketAddr::from(([127, 0, 0, 1], 7118)),
            grace_ms: 5_000,
            fence_ms: 1_000,
            on_expiry: OnExpiry::FenceLease,
            retry_ms: 1_000,
            session_ttl_ms: 15_000,
            token_ttl_ms: 10_000,
            drain_ms: 10_000,
            open_files_max: 4_096,
            limits: Limits {
                lease_bytes_max: 64 << 20,
                // A holder of many leases that is slow to hear that they were all broken must not lose its stream.
                remembered_per_session_max: 4_096,
                ..Limits::default()
            },
            strict_placement: false,
            fabric: None,
        }
    }
}

/// What a start found out.
#[derive(Clone, Debug)]
pub struct Started {
    /// Where data connections are accepted.
    pub data_address: SocketAddr,
    /// By which kinds of fabric.
    pub data_by: Vec<Kind>,
    /// Over TLS: the public key that clients take this end by (SubjectPublicKeyInfo, DER).
    pub data_tls_key: Option<Bytes>,
    /// What people should know: how I/O is done, what recovery did.
    pub notes: Vec<String>,
    /// What opening the store found.
    pub opened: Opened,
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No arena.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// No store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The data port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// RDMA devices were asked for.
    #[error("no data by verbs: {0}; `--fabric iwarp` needs no device")]
    Verbs(leasehold_fabric::verbs::OpenError),
    /// Data were to come over TLS.
    #[error("cannot make a key pair for TLS")]
    Tls(#[source] std::io::Error),
    /// The break log.
    #[error("cannot open the break log {path:?}; check its permissions")]
    BreakLog {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No thread.
    #[error("cannot start a thread; check the limits of processes and memory")]
    Thread(#[source] std::io::Error),
}

/// Why the engine did not stop cleanly. What was acknowledged is durable all the same.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// Committed bytes could not be written back.
    #[error(
        "{writebacks} commits that no fsync acknowledged could not be written back within {drain_ms} ms; \
         see the log for the cause"
    )]
    Undrained {
        /// How many.
        writebacks: usize,
        /// The time that was given.
        drain_ms: u64,
    },
    /// The checksums could not be written back.
    #[error(transparent)]
    Storage(#[from] crate::storage::StopError),
}

/// A running engine; clones share it.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>, Handle);

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) started: Started,
    pub(crate) driver: Driver,
    pub(crate) storage: Arc<Storage>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) files: OpenFiles,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) counters: Arc<Counters>,
    fabric_counters: Arc<iwarp::Counters>,
    _fabric: Arc<dyn Fabric>,
    watch: broadcast::Sender<Event>,
    /// Blocks that loads found to differ from their checksums, for scrubs.
    pub(crate) mismatches: broadcast::Sender<Mismatch>,
    listener: Mutex<Option<Box<dyn Listener>>>,
    stopping: AtomicBool,
    break_log: BreakLogger,
    keeper: Arc<OnceLock<Arc<dyn Keeper>>>,
}

/// A session that was opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenSession {
    /// Its id.
    pub session: SessionId,
    /// What its data connection must show, once, within the token's time to live.
    pub token: crate::session::Token,
}

/// Why no session was opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenSessionError {
    /// The server stops.
    #[error("the server is stopping; connect to it again once it is back")]
    Stopping,
    /// A limit.
    #[error("limit reached: {limit} is {max}; close sessions, or raise it in the server's configuration")]
    Limit {
        /// Which.
        limit: &'static str,
        /// The limit.
        max: usize,
    },
    /// No randomness for a token.
    #[error("the system gave no random bytes for a token")]
    Random(#[source] getrandom::Error),
}

/// The session does not exist (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no session {0}: it has ended; open a new one")]
pub struct NoSuchSession(pub SessionId);

/// One range that an acquire wants.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The file.
    pub path: StorePath,
    /// The bytes.
    pub range: ByteRange,
    /// What the key may do.
    pub access: Access,
    /// Create the file unless it exists.
    pub create: bool,
}

/// One lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The lease.
    pub lease: LeaseId,
    /// Its key: the steering tag on the session's data connection. Offset 0 is the first byte of the range.
    pub tag: u32,
    /// The bytes.
    pub range: ByteRange,
    /// What the key may do.
    pub access: Access,
    /// Whether this acquire created the file.
    pub created: bool,
}

/// Why no lease was granted.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The server stops.
    #[error("the server is stopping; connect to it again once it is back")]
    Stopping,
    /// The file could not be opened.
    #[error(transparent)]
    Path(#[from] NamespaceError),
    /// More ranges than one acquire may have.
    #[error(
        "limit reached: acquire_ranges_max is {max}; ask for less at once, or raise it in the server's configuration"
    )]
    TooManyRanges {
        /// The limit.
        max: usize,
    },
    /// No file on this filesystem can have these bytes.
    #[error(
        "{path}: bytes {range} end past {max}, the longest file that this store can hold; check the range"
    )]
    BadRange {
        /// The file.
        path: StorePath,
        /// The bytes.
        range: ByteRange,
        /// The longest file.
        max: u64,
    },
    /// The core refused.
    #[error("{path}: {}{source}", trouble.as_ref().map_or(String::new(), |what| format!("{what}: ")))]
    Refused {
        /// The file in question, or the first.
        path: StorePath,
        /// What is wrong with its blocks, if that is the matter.
        trouble: Option<String>,
        /// Why.
        source: output::AcquireError,
    },
}

/// Why a lease was not released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The server stops.
    #[error("the server is stopping; its leases end with it")]
    Stopping,
    /// No such lease.
    #[error(transparent)]
    NoLease(#[from] NoSuchLease),
}

/// Why a lease was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The server stops.
    #[error("the server is stopping; the lease ends with it, uncommitted")]
    Stopping,
    /// The core refused.
    #[error(transparent)]
    Refused(#[from] output::CommitError),
}

/// The core's thread has ended, or takes no new work: the engine stops.
pub(crate) struct Ended;

/// No file on the store's filesystem can have these bytes.
pub(crate) struct BadRange;

impl Engine {
    /// Opens or creates the store, recovers it, and listens for data connections. Blocks.
    ///
    /// # Errors
    /// [`StartError`], with the remedy. Nothing is served then.
    pub fn start(config: Config) -> Result<Engine, StartError> {
        let fabric = Fabrics::open(&config)?;
        let (storage, counters) = (StorageConfig::new(&config.directory), fabric.counters());
        Engine::start_on(config, storage, Arc::new(fabric), counters)
    }

    /// [`Engine::start`] with the store's own settings, on any fabric.
    pub(crate) fn start_on(
        config: Config,
        storage_config: StorageConfig,
        fabric: Arc<dyn Fabric>,
        fabric_counters: Arc<iwarp::Counters>,
    ) -> Result<Engine, StartError> {
        Engine::start_under((schemes::LEASEHOLD, false), config, storage_config, fabric, fabric_counters)
    }

    /// [`Engine::start_on`], under any scheme, and with devices that fault or not: only for [`crate::throw_away`].
    pub(crate) fn start_under(
        (scheme, device_faults): (Scheme, bool),
        config: Config,
        mut storage_config: StorageConfig,
        fabric: Arc<dyn Fabric>,
        fabric_counters: Arc<iwarp::Counters>,
    ) -> Result<Engine, StartError> {
        let arena = Arena::new(config.arena_bytes, config.pages)?;
        let driver = Driver::new();
        let counters = Arc::new(Counters::default());
        let answers = driver.clone();
        let (mismatches, _) = broadcast::channel(4096);
        let (counted, found) = (counters.clone(), mismatches.clone());
        storage_config.mismatches = Some(Arc::new(move |mismatch| {
            counted.blocks_mismatched.fetch_add(1, Ordering::Relaxed);
            let _nobody_scrubs = found.send(mismatch);
        }));
        let (storage, opened) = Storage::open(
            storage_config,
            arena.clone(),
            Arc::new(move |input| answers.send(Work::Input(input))),
        )?;
        let storage = Arc::new(storage);
        let path = config.directory.join(".leasehold/breaks.jsonl");
        let break_log = BreakLog::open(path.clone())
            .map_err(|source| StartError::BreakLog { path: path.clone(), source })?;
        let break_log = BreakLogger::start(break_log).map_err(StartError::Thread)?;

        let sessions = Arc::new(Sessions::new(
            Duration::from_millis(config.session_ttl_ms),
            Duration::from_millis(config.token_ttl_ms),
        ));
        let gate = Arc::new(TokenGate {
            sessions: sessions.clone(),
            driver: driver.clone(),
            patience_ms: config.drain_ms,
        });
        let listener = fabric.listen(config.data_address, gate)?;
        let (watch, _) = broadcast::channel(1024);
        let core = Core::new(leasehold_core::Config {
            scheme,
            grace_ms: config.grace_ms,
            on_expiry: config.on_expiry,
            retry_ms: config.retry_ms,
            frames: arena.frames(),
            host: Host { backing: Backing::PageCache, device_faults },
            // A local write is a session too, and not one that the operator counts.
            limits: Limits {
                sessions_max: config.limits.sessions_max + config.limits.requests_max,
                ..config.limits
            },
        });
        let keeper = Arc::default();
        let parts = Parts {
            core,
            arena: arena.clone(),
            storage: storage.clone(),
            sessions: sessions.clone(),
            break_log: break_log.clone(),
            counters: counters.clone(),
            watch: watch.clone(),
            fence: Duration::from_millis(config.fence_ms),
            keeper: Arc::clone(&keeper),
        };
        driver::run(parts, driver.clone()).map_err(StartError::Thread)?;

        let notes = arena.notes().iter().chain(&opened.notes).cloned().collect();
        let (data_address, data_by) = (listener.local_address(), listener.kinds());
        let started = Started { data_address, data_by, data_tls_key: listener.tls_key(), notes, opened };
        let inner = Inner {
            files: OpenFiles::new(storage.clone(), driver.clone(), config.open_files_max),
            config,
            started,
            driver,
            storage,
            arena,
            sessions,
            counters,
            fabric_counters,
            _fabric: fabric,
            watch,
            mismatches,
            listener: Mutex::new(Some(listener)),
            stopping: AtomicBool::new(false),
            break_log,
            keeper,
        };
        Ok(Engine(Arc::new(inner), Handle::Common))
    }

    /// What the start found out.
    #[must_use]
    pub fn started(&self) -> &Started {
        &self.0.started
    }

    /// How the store is served.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// From now on somebody keeps pages of files. The answer is the handle by which the keeper itself is to use the engine.
    /// There can be one; a second finds `None`.
    #[must_use]
    pub fn keep_pages(&self, keeper: Arc<dyn Keeper>) -> Option<Engine> {
        self.0.keeper.set(keeper).ok()?;
        Some(Engine(self.0.clone(), Handle::Keepers))
    }

    /// Takes no new work, ends all sessions, waits for writeback, and makes the checksums durable.
    ///
    /// # Errors
    /// [`StopError`] if something that nobody was promised could not be kept.
    pub async fn stop(&self) -> Result<(), StopError> {
        self.0.stopping.store(true, Ordering::SeqCst);
        self.0.listener.lock().expect("no code panics while it holds the listener").take();
        let (done, drained) = oneshot::channel();
        self.0.driver.send(Work::Stop(done));
        let drain_ms = self.0.config.drain_ms;
        let drained = sync::timeout(Duration::from_millis(drain_ms), drained).await;
        let break_log = self.0.break_log.clone();
        blocking(move || break_log.wait()).await;
        if drained.is_none() {
            let writebacks = self.stats().await.map_or(0, |stats| stats.writebacks);
            return Err(StopError::Undrained { writebacks, drain_ms });
        }
        let storage = self.0.storage.clone();
        Ok(blocking(move || storage.stop()).await?)
    }

    /// Opens a session, of a tenant if it is one's. `peer` is where its data connection will come from; `events` hears of its leases, and of its
    /// end last.
    ///
    /// # Errors
    /// [`OpenSessionError`].
    pub async fn open_session(
        &self,
        identity: Identity,
        tenant: Option<Tenant>,
        peer: IpAddr,
        events: mpsc::Sender<Event>,
    ) -> Result<OpenSession, OpenSessionError> {
        if self.0.stopping.load(Ordering::SeqCst) {
            return Err(OpenSessionError::Stopping);
        }
        let max = self.0.config.limits.sessions_max;
        let session = self.0.sessions.open(events, max, tenant.as_ref());
        let session = session.map_err(|(limit, max)| OpenSessionError::Limit { limit, max })?;
        let token = self.0.sessions.token(session.id, peer).map_err(OpenSessionError::Random)?;
        let identity = Arc::new(identity);
        self.0.driver.send(Work::Input(Input::SessionOpened { session: session.id, identity }));
        if let Some(Tenant { id, share, .. }) = tenant {
            let session = session.id;
            self.0.driver.send(Work::Input(Input::SessionShares { session, tenant: id, share }));
        }
        Ok(OpenSession { session: session.id, token })
    }

    /// Notes a sign of life of the session.
    ///
    /// # Errors
    /// [`NoSuchSession`] if it has ended.
    pub fn keep_alive(&self, session: SessionId) -> Result<(), NoSuchSession> {
        if self.0.sessions.heard(session) { Ok(()) } else { Err(NoSuchSession(session)) }
    }

    /// Ends the session: its keys are fenced, its leases end, its connection is closed.
    pub fn close_session(&self, session: SessionId, why: &str) {
        self.0.driver.send(Work::EndSession { session, why: why.to_owned() });
    }

    /// Asks for leases on all of the ranges, or none; waits for at most `wait`.
    ///
    /// # Errors
    /// [`AcquireError`]; nothing was acquired.
    pub async fn acquire(
        &self,
        session: SessionId,
        wanted: Vec<Wanted>,
        on_conflict: OnConflict,
        wait: Duration,
    ) -> Result<Vec<Grant>, AcquireError> {
        let max = self.0.config.limits.acquire_ranges_max;
        if wanted.len() > max {
            return Err(AcquireError::TooManyRanges { max });
        }
        for Wanted { path, range, .. } in &wanted {
            self.check(*range).map_err(|BadRange| AcquireError::BadRange {
                path: path.clone(),
                range: *range,
                max: self.0.storage.file_bytes_max(),
            })?;
        }
        let (wanted, pins) = self.pin_all(wanted).await?;
        self.flush_pages(&wanted, &pins).await;
        let want = |(pinned, wanted): (&Pinned, &Wanted)| Want {
            file: pinned.file(),
            range: wanted.range,
            access: wanted.access,
        };
        let wants = pins.iter().zip(&wanted).map(want).collect();
        let deadline = self.0.driver.clock.now().after_ms(wait.as_millis().try_into().unwrap_or(u64::MAX));
        let input = |request| Input::Acquire { request, session, wants, on_conflict, deadline };
        let answer = self.begin(input, Detail::None).await.map_err(|Ended| AcquireError::Stopping)?;
        let Reply::Acquire(result) = answer.reply else { unreachable!("an acquire's reply is one") };
        match result {
            Ok(_) => {
                let tag = |granted: &driver::Granted| granted.tag.expect("a session's lease has a key");
                let grant = |((granted, wanted), pinned): ((&driver::Granted, &Wanted), &Pinned)| Grant {
                    lease: granted.lease,
                    tag: tag(granted),
                    range: wanted.range,
                    access: wanted.access,
                    created: pinned.opened().created,
                };
                Ok(answer.granted.iter().zip(&wanted).zip(&pins).map(grant).collect())
            }
            Err(source) => {
                let file = match &source {
                    output::AcquireError::Conflict { file, .. }
                    | output::AcquireError::TimedOut { file, .. } => Some(*file),
                    _ => None,
                };
                let mut index = pins.iter().position(|pinned| Some(pinned.file()) == file).unwrap_or(0);
                let mut trouble = None;
                if source == output::AcquireError::Fault(Fault::Checksum) {
                    let wants = pins.iter().zip(&wanted);
                    let mut found = wants
                        .map(|(pinned, want)| self.0.storage.trouble_in(pinned.file(), want.range.blocks()));
                    if let Some(at) = found.clone().position(|trouble| trouble.is_some()) {
                        (index, trouble) = (at, found.nth(at).flatten());
                    }
                }
                let path = wanted.get(index).map_or(StorePath::ROOT, |wanted| wanted.path.clone());
                Err(AcquireError::Refused { path, trouble, source })
            }
        }
    }

    /// Lets a lease go without committing; also the answer to a break, and the acknowledgement of a revoke.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub async fn release(&self, session: SessionId, lease: LeaseId) -> Result<(), ReleaseError> {
        let input = |request| Input::Release { request, session, lease };
        let answer = self.call(input, Detail::None).await.map_err(|Ended| ReleaseError::Stopping)?;
        let Reply::Release(result) = answer.reply else { unreachable!("a release's reply is one") };
        Ok(result?)
    }

    /// Commits a lease from the control plane. This can overtake the data, so the CRC32C of every byte of the range is
    /// mandatory: it matches only what has arrived. Returns the file's size.
    ///
    /// # Errors
    /// [`CommitError`]; the lease is over, the file as it was.
    pub async fn commit(&self, session: SessionId, lease: LeaseId, crc32c: u32) -> Result<u64, CommitError> {
        let input = |request| Input::Commit { request, session, lease };
        let answer =
            self.call(input, Detail::Crc(Some(crc32c))).await.map_err(|Ended| CommitError::Stopping)?;
        let Reply::Commit(result) = answer.reply else { unreachable!("a commit's reply is one") };
        Ok(result?.size)
    }

    /// Everything that happens, for administrators. Whoever reads too slowly misses some.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.0.watch.subscribe()
    }

    /// The last `limit` breaks, newest last.
    ///
    /// # Errors
    /// The break log could not be read.
    pub async fn breaks(&self, limit: usize) -> std::io::Result<Vec<BreakRow>> {
        let log = self.0.break_log.clone();
        blocking(move || log.read(limit)).await
    }

    /// What the engine has counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// What the fabric has counted.
    #[must_use]
    pub fn fabric_counters(&self) -> Arc<iwarp::Counters> {
        self.0.fabric_counters.clone()
    }

    /// How full the tables are; `None` once the engine has stopped.
    pub async fn stats(&self) -> Option<Stats> {
        self.look(|view| view.core.stats()).await
    }

    /// Whether a file can have these bytes: what is committed must be possible to write back.
    pub(crate) fn check(&self, range: ByteRange) -> Result<(), BadRange> {
        if range.end() <= self.0.storage.file_bytes_max() { Ok(()) } else { Err(BadRange) }
    }

    /// Sends a request to the core and awaits its reply. Dropping the future cancels it.
    pub(crate) async fn call(
        &self,
        input: impl FnOnce(RequestId) -> Input,
        detail: Detail,
    ) -> Result<Answer, Ended> {
        let (reply, answer) = oneshot::channel();
        self.await_answer(input, Asker::Call(reply), detail, answer).await
    }

    /// [`Engine::call`] for what is not begun any more once the engine is stopping.
    pub(crate) async fn begin(
        &self,
        input: impl FnOnce(RequestId) -> Input,
        detail: Detail,
    ) -> Result<Answer, Ended> {
        if self.0.stopping.load(Ordering::SeqCst) { Err(Ended) } else { self.call(input, detail).await }
    }

    /// Has what the keeper of pages has changed of these ranges written back.
    async fn flush_pages(&self, wanted: &[Wanted], pins: &[Pinned]) {
        let Some(keeper) = self.0.keeper.get() else { return };
        for (wanted, pinned) in wanted.iter().zip(pins) {
            let inode = self.0.storage.inode_of(pinned.file());
            let Some(inode) = inode.filter(|inode| keeper.keeps(*inode)) else { continue };
            let (flushed, wait) = oneshot::channel();
            keeper.forget(
                inode,
                wanted.range,
                Box::new(move || {
                    let _gone = flushed.send(());
                }),
            );
            let _gone = wait.await;
        }
    }

    /// Acquires for a session of the server's own, fills the frames, and commits.
    pub(crate) async fn fill(
        &self,
        session: SessionId,
        input: impl FnOnce(RequestId) -> Input,
        data: Bytes,
        page: Option<WriteBack>,
    ) -> Result<Answer, Ended> {
        if self.0.stopping.load(Ordering::SeqCst) {
            return Err(Ended);
        }
        let (call, answer) = oneshot::channel();
        self.await_answer(input, Asker::Write { call, session, data, page }, Detail::None, answer).await
    }

    async fn await_answer(
        &self,
        input: impl FnOnce(RequestId) -> Input,
        asker: Asker,
        detail: Detail,
        answer: oneshot::Receiver<Answer>,
    ) -> Result<Answer, Ended> {
        let request = self.0.driver.helping(|driver| driver.request(input, asker, detail, self.1));
        let mut call = Call { driver: &self.0.driver, request, answer: Some(answer) };
        let answer = call.answer.as_mut().expect("just put there").await.map_err(|_| Ended);
        call.answer = None;
        answer
    }

    /// Computes something from the core's state, on its thread.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Option<T> {
        let (send, receive) = oneshot::channel();
        self.0.driver.send(Work::Look(Box::new(move |view| drop(send.send(look(view))))));
        receive.await.ok()
    }

    /// Opens the file and keeps it open for a call.
    pub(crate) async fn pin(&self, path: &StorePath) -> Result<Pinned, NamespaceError> {
        let (inner, path) = (self.0.clone(), path.clone());
        blocking(move || inner.files.pin(&path, Opening::Existing)).await
    }

    /// Opens the files of an acquire, or creates them where that is wanted, in one go: there may be a thousand.
    async fn pin_all(&self, wanted: Vec<Wanted>) -> Result<(Vec<Wanted>, Vec<Pinned>), NamespaceError> {
        let inner = self.0.clone();
        blocking(move || {
            let how = |create| if create { Opening::Create } else { Opening::Existing };
            let pin = |wanted: &Wanted| inner.files.pin(&wanted.path, how(wanted.create));
            let pins = wanted.iter().map(pin).collect::<Result<Vec<Pinned>, NamespaceError>>()?;
            Ok((wanted, pins))
        })
        .await
    }
}

/// The fabric must never be the first to run out of tags: the core's limits come with better words.
pub(crate) fn fabric_config(config: &Config) -> iwarp::Config {
    let Limits { leases_per_session_max, remembered_per_session_max, sessions_max, .. } = config.limits;
    iwarp::Config {
        strict: config.strict_placement,
        tags_max: leases_per_session_max + remembered_per_session_max + LINGERING_MAX + 1,
        discarding_max: leases_per_session_max + remembered_per_session_max + LINGERING_MAX + 1,
        connections_max: sessions_max + 64, // and some that are setting up
        ..iwarp::Config::default()
    }
}

/// A request that is cancelled if its caller goes away.
struct Call<'a> {
    driver: &'a Driver,
    request: RequestId,
    /// `None` once it has come.
    answer: Option<oneshot::Receiver<Answer>>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let Some(mut answer) = self.answer.take() else { return };
        answer.close();
        self.driver.send(match answer.try_recv() {
            Ok(answer) => Work::Undo(self.request, answer), // it was on its way
            Err(_) => Work::Cancel(self.request),
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.driver.send(Work::Quit);
    }
}
