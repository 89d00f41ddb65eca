//! The control plane's calls: parse, ask the engine, answer.

use crate::mount::remote::Remote;
use crate::server::asks::{Ask, Asks};
use crate::server::mounts;
use crate::server::peer::Caller;
use crate::server::refusal::{Refusal, refuse, status};
use crate::server::rows;
use crate::server::sessions::{Secret, Sessions};
use crate::server::streams::{self, Events};
use crate::server::tenants::Tenants;
use futures_util::stream::FuturesUnordered;
use leasehold_client::convert::{self, Malformed};
use leasehold_client::proto::leasehold_server::Leasehold;
use leasehold_client::proto::mount_request::What;
use leasehold_client::{Reason, proto};
use leasehold_core::ids::{LeaseId, SessionId};
use leasehold_core::range::{BLOCK_BYTES, ByteRange};
use leasehold_engine::engine::{Engine, ReleaseError, Started, Wanted};
use leasehold_engine::files;
use leasehold_engine::path::StorePath;
use leasehold_engine::scrubber::ScrubOptions;
use leasehold_engine::storage::{Kind, NamespaceError};
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// How many events a session may be behind before the engine gives it up.
const EVENTS_MAX: usize = 4096;
/// How many breaks are shown if the caller does not say.
const BREAKS_DEFAULT: usize = 100;

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The control plane.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Inner>);

struct Inner {
    engine: Engine,
    sessions: Sessions,
    tenants: Tenants,
    started: SystemTime,
    /// Becomes true when the server stops: streams that would never end do then.
    stopping: watch::Receiver<bool>,
}

impl Calls {
    pub(crate) fn new(engine: Engine, tenants: Tenants, stopping: watch::Receiver<bool>) -> Calls {
        let sessions = Sessions::new(Duration::from_millis(engine.config().session_ttl_ms));
        Calls(Arc::new(Inner { engine, sessions, tenants, started: SystemTime::now(), stopping }))
    }

    /// Takes a call in: who makes it has shown who it is, and may do what the call asks for. Every call begins here, or, if
    /// its messages come in a stream, with [`Calls::enter_stream`].
    fn enter<M: Asks>(&self, request: Request<M>) -> Result<(Caller, M), Status> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Caller::known(&self.0.tenants, &metadata, extensions)?;
        self.admit(&caller, &message)?;
        Ok((caller, message))
    }

    /// Its first message is to be shown to [`Calls::admit`].
    fn enter_stream<M>(&self, request: Request<Streaming<M>>) -> Result<(Caller, Streaming<M>), Status> {
        let (metadata, extensions, messages) = request.into_parts();
        Ok((Caller::known(&self.0.tenants, &metadata, extensions)?, messages))
    }

    fn admit(&self, caller: &Caller, message: &impl Asks) -> Result<(), Status> {
        for ask in message.asks() {
            match (ask, caller.tenant()) {
                (Ask::Session(secret), tenant) => {
                    let name = tenant.map(|tenant| tenant.name.as_str());
                    // Whose it is, if not the caller's, is not told.
                    if !self.0.sessions.belongs(&parse_secret(secret)?, name) {
                        return Err(no_session());
                    }
                }
                (ask, Some(tenant)) => tenant.may(ask)?,
                (Ask::Read(_) | Ask::Write(_), None) => {}
            }
        }
        Ok(())
    }

    fn engine(&self) -> &Engine {
        &self.0.engine
    }

    fn session(&self, secret: &[u8]) -> Result<SessionId, Status> {
        self.0.sessions.get(&parse_secret(secret)?).ok_or_else(no_session)
    }
}

fn parse_secret(secret: &[u8]) -> Result<Secret, Status> {
    convert::sixteen("session", secret).map_err(|error| refuse(&error))
}

fn no_session() -> Status {
    status(Reason::NoSession, "the session is unknown or has ended; open a new one")
}

fn parse_path(text: &str) -> Result<StorePath, Status> {
    StorePath::parse(text).map_err(|error| refuse(&error))
}

/// `None` if the text is empty.
fn parse_some_path(text: &str) -> Result<Option<StorePath>, Status> {
    if text.is_empty() { Ok(None) } else { parse_path(text).map(Some) }
}

fn parse_range(field: Option<proto::Range>) -> Result<ByteRange, Status> {
    convert::range(field).map_err(|error| refuse(&error))
}

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

/// The engine's answer, or its refusal.
fn or_refuse<T, E: Refusal + 'static>(result: Result<T, E>) -> Result<T, Status> {
    result.map_err(|error| {
        let refused = refuse(&error);
        tracing::debug!(code = ?refused.code(), "refused: {}", refused.message());
        refused
    })
}

/// By which kinds of fabric data come, as the protocol has it.
fn data_by(started: &Started) -> Vec<String> {
    started.data_by.iter().map(|kind| kind.name().to_owned()).collect()
}

#[tonic::async_trait]
impl Leasehold for Calls {
    async fn status(&self, request: Request<proto::StatusRequest>) -> Answer<proto::StatusResponse> {
        let (caller, _) = self.enter(request)?;
        let (config, started) = (self.engine().config(), self.engine().started());
        let stats = self.engine().stats().await.unwrap_or_default();
        let frames = stats.frames;
        let bytes = |frames: u32| u64::from(frames) * BLOCK_BYTES;
        if !caller.sees("/") {
            // How the server is, and what others do there, is not a tenant's business.
            return answer(proto::StatusResponse {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                data_address: started.data_address.to_string(),
                data_by: data_by(started),
                started: Some(self.0.started.into()),
                grace: Some(convert::duration_out(Duration::from_millis(config.grace_ms))),
                ..Default::default()
            });
        }
        answer(proto::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            directory: config.directory.display().to_string(),
            data_address: started.data_address.to_string(),
            data_by: data_by(started),
            notes: started.notes.clone(),
            started: Some(self.0.started.into()),
            grace: Some(convert::duration_out(Duration::from_millis(config.grace_ms))),
            sessions: stats.sessions as u64,
            leases: stats.leases as u64,
            arena_bytes: config.arena_bytes,
            arena_used_bytes: bytes(frames.leased + frames.writeback + frames.reading + frames.quarantined),
            writeback_bytes: bytes(frames.writeback),
            writebacks_failed: stats.writebacks_failed as u64,
            requests: stats.requests as u64,
            breaks_going_on: stats.breaks as u64,
            breaks: self.engine().counters().breaks.load(Ordering::Relaxed),
        })
    }

    async fn open_session(
        &self,
        request: Request<proto::OpenSessionRequest>,
    ) -> Answer<proto::OpenSessionResponse> {
        let (caller, message) = self.enter(request)?;
        let engine = self.engine();
        let data = engine.started().data_address;
        let identity = caller.identity(message.caller);
        let known_as = Some((&identity).into());
        let (send, events) = mpsc::channel(EVENTS_MAX);
        let opened = engine.open_session(identity, caller.shares(), caller.data_peer(data), send).await;
        let opened = or_refuse(opened)?;
        let secret = self.0.sessions.insert(opened.session, caller.name(), events).map_err(|error| {
            engine.close_session(opened.session, "the server has no random numbers");
            status(Reason::Io, format!("no random bytes for the session's secret: {error}"))
        })?;
        answer(proto::OpenSessionResponse {
            session: secret.to_vec().into(),
            number: opened.session.0,
            token: opened.token.to_vec().into(),
            data_address: data.to_string(),
            data_by: data_by(engine.started()),
            data_tls_key: engine.started().data_tls_key.clone().unwrap_or_default(),
            time_to_live: Some(convert::duration_out(Duration::from_millis(engine.config().session_ttl_ms))),
            grace: Some(convert::duration_out(Duration::from_millis(engine.config().grace_ms))),
            known_as,
        })
    }

    async fn keep_alive(
        &self,
        request: Request<proto::KeepAliveRequest>,
    ) -> Answer<proto::KeepAliveResponse> {
        let (_, message) = self.enter(request)?;
        let secret = parse_secret(&message.session)?;
        let session = self.0.sessions.heard(&secret).ok_or_else(no_session)?;
        let heard = self.engine().keep_alive(session);
        if heard.is_err() {
            self.0.sessions.remove(&secret);
        }
        or_refuse(heard)?;
        answer(proto::KeepAliveResponse {})
    }

    async fn close_session(
        &self,
        request: Request<proto::CloseSessionRequest>,
    ) -> Answer<proto::CloseSessionResponse> {
        let (_, message) = self.enter(request)?;
        let secret = parse_secret(&message.session)?;
        let session = self.0.sessions.remove(&secret).ok_or_else(no_session)?;
        self.engine().close_session(session, "closed by its holder");
        answer(proto::CloseSessionResponse {})
    }

    type EventsStream = Events;

    async fn events(&self, request: Request<proto::EventsRequest>) -> Answer<Events> {
        let (_, message) = self.enter(request)?;
        let secret = parse_secret(&message.session)?;
        let (session, events) = self.0.sessions.events(&secret).ok_or_else(no_session)?;
        let events = events
            .ok_or_else(|| status(Reason::Invalid, "the session's events go to another call already"))?;
        answer(Events::new(self.engine().clone(), session, events))
    }

    async fn acquire(&self, request: Request<proto::AcquireRequest>) -> Answer<proto::AcquireResponse> {
        let (_, message) = self.enter(request)?;
        let session = self.session(&message.session)?;
        let wanted = message
            .wants
            .into_iter()
            .map(|want| {
                let access = convert::access(want.access).map_err(|error| refuse(&error))?;
                let (path, range) = (parse_path(&want.path)?, parse_range(want.range)?);
                Ok(Wanted { path, range, access, create: want.create })
            })
            .collect::<Result<Vec<Wanted>, Status>>()?;
        if wanted.is_empty() {
            return Err(refuse(&Malformed::Missing("wants")));
        }
        let on_conflict = convert::on_conflict(message.on_conflict).map_err(|error| refuse(&error))?;
        let wait = convert::duration_in(message.wait);
        let grants = or_refuse(self.engine().acquire(session, wanted, on_conflict, wait).await)?;
        let grants = grants.into_iter().map(|grant| proto::Grant {
            lease: grant.lease.0,
            tag: grant.tag,
            range: Some(grant.range.into()),
            access: convert::access_number(grant.access),
            created: grant.created,
        });
        answer(proto::AcquireResponse { grants: grants.collect() })
    }

    async fn release(&self, request: Request<proto::ReleaseRequest>) -> Answer<proto::ReleaseResponse> {
        let (_, proto::ReleaseRequest { session, lease, leases }) = self.enter(request)?;
        let session = self.session(&session)?;
        let more: FuturesUnordered<_> =
            leases.into_iter().map(|lease| self.engine().release(session, LeaseId(lease))).collect();
        let released: Vec<_> = more.collect().await;
        if lease != 0 || released.is_empty() {
            or_refuse(self.engine().release(session, LeaseId(lease)).await)?;
        }
        for released in released {
            match released {
                Err(ReleaseError::NoLease(_)) => {} // it was revoked, and its holder need not know yet
                other => or_refuse(other)?,
            }
        }
        answer(proto::ReleaseResponse {})
    }

    async fn commit(&self, request: Request<proto::CommitRequest>) -> Answer<proto::CommitResponse> {
        let (_, message) = self.enter(request)?;
        let session = self.session(&message.session)?;
        let size = or_refuse(self.engine().commit(session, LeaseId(message.lease), message.crc32c).await)?;
        answer(proto::CommitResponse { size })
    }

    type ReadStream = Answers<proto::ReadResponse>;

    async fn read(&self, request: Request<proto::ReadRequest>) -> Answer<Self::ReadStream> {
        let (_, proto::ReadRequest { path, offset, length }) = self.enter(request)?;
        let path = parse_path(&path)?;
        // Errors that are there from the start come as the call's status, not in the stream.
        or_refuse(self.engine().stat(&path).await)?;
        answer(Box::pin(streams::read(self.engine().clone(), path, offset, length)))
    }

    async fn write(&self, request: Request<Streaming<proto::WriteRequest>>) -> Answer<proto::WriteResponse> {
        let (caller, mut pieces) = self.enter_stream(request)?;
        let missing = || refuse(&Malformed::Missing("header"));
        let first = pieces.next().await.ok_or_else(missing)??;
        let header = first.header.ok_or_else(missing)?;
        self.admit(&caller, &header)?;
        let path = parse_path(&header.path)?;
        let breaker = caller.identity(header.caller);
        let mut size = or_refuse(self.engine().stat(&path).await)?.size;
        let mut offset = header.offset;
        let mut data = first.data;
        loop {
            if !data.is_empty() {
                let length = data.len() as u64;
                size = or_refuse(self.engine().write(&path, offset, data, breaker.clone()).await)?;
                offset += length;
            }
            match pieces.next().await {
                Some(piece) => data = piece?.data,
                None => break,
            }
        }
        answer(proto::WriteResponse { written: offset - header.offset, size })
    }

    async fn create(&self, request: Request<proto::CreateRequest>) -> Answer<proto::CreateResponse> {
        let (_, message) = self.enter(request)?;
        let path = parse_path(&message.path)?;
        let stat = or_refuse(self.engine().create(&path).await)?;
        answer(proto::CreateResponse { file: Some(rows::file(stat)) })
    }

    async fn stat(&self, request: Request<proto::StatRequest>) -> Answer<proto::StatResponse> {
        let (_, message) = self.enter(request)?;
        let path = parse_path(&message.path)?;
        let stat = or_refuse(self.engine().stat(&path).await)?;
        answer(proto::StatResponse { file: Some(rows::file(stat)) })
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Answer<proto::ListResponse> {
        let (_, message) = self.enter(request)?;
        let path = parse_path(&message.path)?;
        let stats = or_refuse(self.engine().list(&path).await)?;
        answer(proto::ListResponse { files: stats.into_iter().map(rows::file).collect() })
    }

    async fn make_directory(
        &self,
        request: Request<proto::MakeDirectoryRequest>,
    ) -> Answer<proto::MakeDirectoryResponse> {
        let (_, proto::MakeDirectoryRequest { path, parents }) = self.enter(request)?;
        let path = parse_path(&path)?;
        if !parents {
            or_refuse(self.engine().make_directory(&path).await)?;
            return answer(proto::MakeDirectoryResponse {});
        }
        let mut missing: Vec<StorePath> =
            std::iter::successors(Some(path), |path| path.split().map(|(parent, _)| parent))
                .filter(|path| !path.is_root())
                .collect();
        while let Some(path) = missing.pop() {
            match self.engine().make_directory(&path).await {
                Err(files::FileError::Path(NamespaceError::Exists { .. })) => {
                    let stat = or_refuse(self.engine().stat(&path).await)?;
                    if stat.kind != leasehold_engine::storage::Kind::Directory {
                        return Err(refuse(&NamespaceError::NotADirectory { path }));
                    }
                }
                made => or_refuse(made)?,
            }
        }
        answer(proto::MakeDirectoryResponse {})
    }

    async fn rename(&self, request: Request<proto::RenameRequest>) -> Answer<proto::RenameResponse> {
        let (caller, message) = self.enter(request)?;
        let breaker = caller.identity(message.caller);
        let (from, to) = (parse_path(&message.from)?, parse_path(&message.to)?);
        or_refuse(self.engine().rename(&from, &to, breaker).await)?;
        answer(proto::RenameResponse {})
    }

    async fn remove(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::RemoveResponse> {
        let (caller, message) = self.enter(request)?;
        let breaker = caller.identity(message.caller);
        or_refuse(self.engine().unlink(&parse_path(&message.path)?, breaker).await)?;
        answer(proto::RemoveResponse {})
    }

    async fn truncate(&self, request: Request<proto::TruncateRequest>) -> Answer<proto::TruncateResponse> {
        let (caller, message) = self.enter(request)?;
        let breaker = caller.identity(message.caller);
        or_refuse(self.engine().truncate(&parse_path(&message.path)?, message.size, breaker).await)?;
        answer(proto::TruncateResponse {})
    }

    async fn punch(&self, request: Request<proto::PunchRequest>) -> Answer<proto::PunchResponse> {
        let (caller, message) = self.enter(request)?;
        let breaker = caller.identity(message.caller);
        let range = parse_range(message.range)?;
        or_refuse(self.engine().punch(&parse_path(&message.path)?, range, breaker).await)?;
        answer(proto::PunchResponse {})
    }

    async fn zero(&self, request: Request<proto::ZeroRequest>) -> Answer<proto::ZeroResponse> {
        let (caller, message) = self.enter(request)?;
        let breaker = caller.identity(message.caller);
        let range = parse_range(message.range)?;
        or_refuse(self.engine().zero(&parse_path(&message.path)?, range, breaker).await)?;
        answer(proto::ZeroResponse {})
    }

    async fn collapse(&self, request: Request<proto::CollapseRequest>) -> Answer<proto::CollapseResponse> {
        let (caller, message) = self.enter(request)?;
        let breaker = caller.identity(message.caller);
        let range = parse_range(message.range)?;
        or_refuse(self.engine().collapse(&parse_path(&message.path)?, range, breaker).await)?;
        answer(proto::CollapseResponse {})
    }

    async fn clone_file(
        &self,
        request: Request<proto::CloneFileRequest>,
    ) -> Answer<proto::CloneFileResponse> {
        let (caller, message) = self.enter(request)?;
        let breaker = caller.identity(message.caller);
        let (from, to) = (parse_path(&message.from)?, parse_path(&message.to)?);
        let shares_blocks = self.engine().clone_file(&from, &to, message.replace, breaker).await;
        answer(proto::CloneFileResponse { shares_blocks: or_refuse(shares_blocks)? })
    }

    async fn copy_range(
        &self,
        request: Request<proto::CopyRangeRequest>,
    ) -> Answer<proto::CopyRangeResponse> {
        let (caller, message) = self.enter(request)?;
        let breaker = caller.identity(message.caller);
        let range = parse_range(message.range)?;
        let (from, to) = (parse_path(&message.from)?, parse_path(&message.to)?);
        let copied = self.engine().copy_range(&from, range, &to, message.offset, breaker).await;
        answer(proto::CopyRangeResponse { copied: or_refuse(copied)? })
    }

    async fn link(&self, request: Request<proto::LinkRequest>) -> Answer<proto::LinkResponse> {
        let (_, proto::LinkRequest { from, to }) = self.enter(request)?;
        or_refuse(self.engine().link(&parse_path(&from)?, &parse_path(&to)?).await)?;
        answer(proto::LinkResponse {})
    }

    async fn symlink(&self, request: Request<proto::SymlinkRequest>) -> Answer<proto::SymlinkResponse> {
        let (_, proto::SymlinkRequest { target, path }) = self.enter(request)?;
        or_refuse(self.engine().symlink(&target, &parse_path(&path)?).await)?;
        answer(proto::SymlinkResponse {})
    }

    async fn read_link(&self, request: Request<proto::ReadLinkRequest>) -> Answer<proto::ReadLinkResponse> {
        let (_, message) = self.enter(request)?;
        let target = or_refuse(self.engine().read_link(&parse_path(&message.path)?).await)?;
        answer(proto::ReadLinkResponse { target })
    }

    async fn evict(&self, request: Request<proto::EvictRequest>) -> Answer<proto::EvictResponse> {
        let (_, message) = self.enter(request)?;
        let bytes = or_refuse(self.engine().evict(&parse_path(&message.path)?).await)?;
        answer(proto::EvictResponse { bytes })
    }

    async fn sync(&self, request: Request<proto::SyncRequest>) -> Answer<proto::SyncResponse> {
        let (_, proto::SyncRequest { path, lease, session, paths }) = self.enter(request)?;
        if !session.is_empty() {
            self.session(&session)?;
        }
        if let Some(proto::LeaseOfSession { session, lease }) = lease {
            let session = self.session(&session)?;
            or_refuse(self.engine().sync_lease(session, LeaseId(lease)).await)?;
            return answer(proto::SyncResponse {});
        }
        let one = if paths.is_empty() { Some(path) } else { None };
        let paths = one.iter().chain(&paths).map(|path| parse_path(path));
        let paths = paths.collect::<Result<Vec<StorePath>, Status>>()?;
        or_refuse(self.engine().sync_all(&paths).await)?;
        answer(proto::SyncResponse {})
    }

    async fn block_map(&self, request: Request<proto::BlockMapRequest>) -> Answer<proto::BlockMapResponse> {
        let (_, proto::BlockMapRequest { path, range }) = self.enter(request)?;
        let range = range.map_or(Ok(ByteRange::ALL), |range| parse_range(Some(range)))?;
        answer(rows::block_map(or_refuse(self.engine().block_map(&parse_path(&path)?, range).await)?))
    }

    async fn attributes(
        &self,
        request: Request<proto::AttributesRequest>,
    ) -> Answer<proto::AttributesResponse> {
        let (_, message) = self.enter(request)?;
        let path = parse_path(&message.path)?;
        let attributes = rows::attributes(or_refuse(self.engine().attributes(&path).await)?);
        answer(proto::AttributesResponse { attributes: Some(attributes) })
    }

    async fn set_attributes(
        &self,
        request: Request<proto::SetAttributesRequest>,
    ) -> Answer<proto::SetAttributesResponse> {
        let (_, proto::SetAttributesRequest { path, attributes }) = self.enter(request)?;
        let attributes = rows::attributes_in(attributes.unwrap_or_default());
        or_refuse(self.engine().set_attributes(&parse_path(&path)?, attributes).await)?;
        answer(proto::SetAttributesResponse {})
    }

    async fn leases(&self, request: Request<proto::LeasesRequest>) -> Answer<proto::LeasesResponse> {
        let (caller, message) = self.enter(request)?;
        let path = parse_some_path(&message.path)?;
        if let Some(path) = &path {
            or_refuse(self.engine().stat(path).await)?;
        }
        let leases = self.engine().leases(path.as_ref()).await;
        let seen = leases.iter().filter(|lease| caller.sees(&lease.path));
        answer(proto::LeasesResponse { leases: seen.map(rows::lease).collect() })
    }

    async fn breaks(&self, request: Request<proto::BreaksRequest>) -> Answer<proto::BreaksResponse> {
        let (caller, message) = self.enter(request)?;
        let limit = match message.limit {
            0 => BREAKS_DEFAULT,
            limit => limit as usize,
        };
        let breaks = self.engine().breaks(limit).await;
        let breaks = breaks.map_err(|error| {
            status(super::refusal::system(&error), format!("cannot read the break log: {error}"))
        })?;
        let seen = breaks.iter().filter(|row| caller.sees(&row.path));
        answer(proto::BreaksResponse { breaks: seen.map(rows::broken).collect() })
    }

    async fn why(&self, request: Request<proto::WhyRequest>) -> Answer<proto::WhyResponse> {
        let (_, message) = self.enter(request)?;
        let path = parse_path(&message.path)?;
        let waits = or_refuse(self.engine().why(&path).await)?;
        answer(proto::WhyResponse { waits: waits.iter().map(rows::wait).collect() })
    }

    type WatchStream = Answers<proto::Event>;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Answer<Self::WatchStream> {
        let (caller, _) = self.enter(request)?;
        answer(Box::pin(streams::watch(caller, self.engine().watch(), self.0.stopping.clone())))
    }

    type ScrubStream = Answers<proto::ScrubResponse>;

    async fn scrub(&self, request: Request<proto::ScrubRequest>) -> Answer<Self::ScrubStream> {
        let (caller, message) = self.enter(request)?;
        let path = parse_some_path(&message.path)?.unwrap_or(StorePath::ROOT);
        let options = ScrubOptions {
            adopt: message.adopt.then(|| caller.identity(message.caller)),
            bytes_per_second: NonZeroU64::new(message.bytes_per_second),
        };
        let found = or_refuse(self.engine().scrub(&path, options).await)?;
        answer(Box::pin(streams::scrub(found)))
    }

    type MountStream = Answers<proto::MountResponse>;

    async fn mount(&self, request: Request<Streaming<proto::MountRequest>>) -> Answer<Self::MountStream> {
        let (caller, mut requests) = self.enter_stream(request)?;
        let missing = || refuse(&Malformed::Missing("header"));
        let Some(What::Header(header)) = requests.next().await.ok_or_else(missing)??.what else {
            return Err(missing());
        };
        self.admit(&caller, &header)?;
        let root = parse_path(&header.path)?;
        if or_refuse(self.engine().stat(&root).await)?.kind != Kind::Directory {
            return Err(refuse(&NamespaceError::NotADirectory { path: root }));
        }
        let host = caller.host(&header.caller.unwrap_or_default());
        tracing::info!("{host} mounts {root}");
        let (remote, replies) = Remote::start(self.engine().clone(), root, (host, caller.evidence()))
            .map_err(|error| {
                tracing::error!("a mount on another machine was refused: {error}");
                status(super::refusal::system(&error), format!("the server cannot serve a mount: {error}"))
            })?;
        answer(Box::pin(mounts::replies(remote, replies, requests, self.0.stopping.clone())))
    }
}
