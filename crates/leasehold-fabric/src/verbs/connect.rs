//! Connecting, and being connected to.

use super::connection::{Connection, hasten, wait};
use super::control::{hello, split};
use super::library::{ConnectionParameters, event};
use super::resources::{Channel, Happened, Id, Resources, raw_address};
use super::{Place, Shared};
use crate::{Admitted, ConnectError, Endpoint, Gate, Handler, Kind, ListenError, Listener, PRIVATE_DATA_MAX};
use bytes::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::net::SocketAddr;
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// `IB_CM_REJ_CONSUMER_DEFINED`: the peer's user said no, and why.
const CONSUMER_DEFINED: i32 = 28;
/// The most bytes of a refusal that a device carries with ours in front.
const REFUSAL_MAX: usize = 128;
const BACKLOG: i32 = 128;

pub(crate) fn connect(
    shared: &Arc<Shared>,
    address: SocketAddr,
    private_data: &[u8],
    mut handler: Box<dyn Handler>,
    timeout: Duration,
) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
    if private_data.len() > PRIVATE_DATA_MAX {
        return Err(ConnectError::PrivateDataTooLong { length: private_data.len(), max: PRIVATE_DATA_MAX });
    }
    let unreachable = |source| ConnectError::Unreachable { address, source };
    let place = Place::take(shared).ok_or_else(|| unreachable(io::ErrorKind::QuotaExceeded.into()))?;
    let deadline = Instant::now() + timeout;
    let (resources, connection) = reach(shared, address, deadline).map_err(unreachable)?;
    let shown = hello(private_data);
    let mut parameters = ConnectionParameters::new(&shown);
    // SAFETY: an identifier with a route and a queue pair; the private data are copied.
    let asked = Id::check(unsafe { (shared.manager.connect)(resources.id.raw, &mut parameters) });
    asked.map_err(unreachable)?;
    let answer = next(&resources.channel, deadline).map_err(unreachable)?;
    let (speaks_control, data) = split(&answer.private_data);
    match answer.kind {
        event::ESTABLISHED => {}
        event::REJECTED if answer.status == CONSUMER_DEFINED => {
            let why = String::from_utf8_lossy(data).into_owned();
            return Err(ConnectError::Rejected { address, why });
        }
        event::REJECTED => return Err(unreachable(io::ErrorKind::ConnectionRefused.into())),
        kind => {
            let what = format!("event {kind}, status {}, in place of a connection", answer.status);
            return Err(unreachable(io::Error::other(what)));
        }
    }
    hasten(shared, &resources.id);
    let data = Bytes::copy_from_slice(data);
    handler.connected(connection.clone());
    connection.open(speaks_control);
    let running = connection.clone();
    spawn(move || running.run(resources, handler, None, place)).map_err(unreachable)?;
    Ok((connection, data))
}

/// Finds the device and the way to an address.
fn reach(
    shared: &Arc<Shared>,
    address: SocketAddr,
    deadline: Instant,
) -> io::Result<(Resources, Arc<Connection>)> {
    let channel = Channel::new(shared)?;
    let id = channel.identifier()?;
    let milliseconds = || {
        let left = deadline.saturating_duration_since(Instant::now());
        left.as_millis().clamp(1, 60_000) as i32
    };
    let expect = |wanted: u32, what: &str| {
        let happened = next(&channel, deadline)?;
        if happened.kind == wanted {
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(happened.status.abs());
        Err(io::Error::new(error.kind(), format!("no RDMA device {what}: {error}")))
    };
    let mut raw = raw_address(address);
    // SAFETY: an identifier, and an address.
    Id::check(unsafe {
        (shared.manager.resolve_addr)(id.raw, ptr::null_mut(), (&raw mut raw).cast(), milliseconds())
    })?;
    expect(event::ADDRESS_RESOLVED, "reaches this address")?;
    // SAFETY: an identifier whose address is resolved.
    Id::check(unsafe { (shared.manager.resolve_route)(id.raw, milliseconds()) })?;
    expect(event::ROUTE_RESOLVED, "has a route to this address")?;
    let resources = Resources::new(shared, id, channel)?;
    let peer = resources.id.destination().unwrap_or(address);
    let connection = Connection::new(shared, &resources, peer, false)?;
    Ok((resources, connection))
}

/// What happens next, until the deadline.
fn next(channel: &Channel, deadline: Instant) -> io::Result<Happened> {
    loop {
        if let Some(happened) = channel.next()? {
            return Ok(happened);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wait(&mut [PollFd::new(channel, PollFlags::IN)], left)?;
    }
}

pub(crate) fn listen(
    shared: &Arc<Shared>,
    address: SocketAddr,
    gate: Arc<dyn Gate>,
) -> Result<Box<dyn Listener>, ListenError> {
    let bind = || {
        let channel = Channel::new(shared)?;
        let id = channel.identifier()?;
        let mut raw = raw_address(address);
        // SAFETY: an identifier, and an address.
        Id::check(unsafe { (shared.manager.bind_addr)(id.raw, (&raw mut raw).cast()) })?;
        // SAFETY: an identifier that is bound.
        Id::check(unsafe { (shared.manager.listen)(id.raw, BACKLOG) })?;
        let local = id.source().ok_or_else(|| io::Error::other("the device tells no address"))?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let listening = Listening { _id: id, channel, gate: gate.clone(), shared: shared.clone() };
        let stopped = stop.clone();
        let thread = spawn(move || listening.run(&stopped))?;
        Ok(Handle { local, stop, thread: Some(thread) })
    };
    let handle = bind().map_err(|source| ListenError::Bind { address, source })?;
    Ok(Box::new(handle))
}

/// A listener, as its user sees it.
struct Handle {
    local: SocketAddr,
    stop: Arc<OwnedFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Listener for Handle {
    fn local_address(&self) -> SocketAddr {
        self.local
    }

    fn kinds(&self) -> Vec<Kind> {
        vec![Kind::Verbs]
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A listener, as its thread sees it. Its identifier goes before the channel that it is on.
struct Listening {
    _id: Id,
    channel: Channel,
    gate: Arc<dyn Gate>,
    shared: Arc<Shared>,
}

impl Listening {
    fn run(self, stop: &OwnedFd) {
        loop {
            let mut polled = [PollFd::new(&self.channel, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            if wait(&mut polled, Duration::MAX).is_err() || !polled[1].revents().is_empty() {
                return;
            }
            while let Ok(Some(happened)) = self.channel.next() {
                if happened.kind == event::CONNECT_REQUEST {
                    self.asked(&happened);
                }
            }
        }
    }

    /// A peer wants to connect.
    fn asked(&self, happened: &Happened) {
        let id = Id::of_request(&self.shared, happened.id);
        let (speaks_control, data) = split(&happened.private_data);
        let Some(place) = Place::take(&self.shared) else {
            return self.refuse(&id, b"this server has as many connections as it takes");
        };
        let Some(peer) = id.destination() else {
            return self.refuse(&id, b"a peer has to have an address");
        };
        match self.gate.admit(data, peer) {
            Err(why) => self.refuse(&id, &why),
            Ok(admitted) => {
                let shared = self.shared.clone();
                let accept = move || accept(&shared, id, peer, speaks_control, admitted, place);
                // Without a thread, the identifier goes, and the peer hears that nobody answers.
                let _ = spawn(accept);
            }
        }
    }

    fn refuse(&self, id: &Id, why: &[u8]) {
        let shown = hello(&why[..why.len().min(REFUSAL_MAX)]);
        let length = u8::try_from(shown.len()).expect("cut above");
        // SAFETY: an identifier of a request; the bytes are copied.
        unsafe { (self.shared.manager.reject)(id.raw, shown.as_ptr().cast(), length) };
    }
}

/// Accepts a peer, and serves it until it goes.
fn accept(
    shared: &Arc<Shared>,
    id: Id,
    peer: SocketAddr,
    speaks_control: bool,
    admitted: Admitted,
    place: Place,
) {
    let Admitted { mut handler, private_data } = admitted;
    let made = || {
        let channel = Channel::new(shared)?;
        // SAFETY: an identifier whose events are acknowledged, and a channel.
        Id::check(unsafe { (shared.manager.migrate_id)(id.raw, channel.raw) })?;
        let resources = Resources::new(shared, id, channel)?;
        let connection = Connection::new(shared, &resources, peer, speaks_control)?;
        Ok((resources, connection))
    };
    let made: io::Result<_> = made();
    let (resources, connection) = match made {
        Ok(made) => made,
        Err(error) => return handler.closed(&crate::CloseReason::Transport(error.to_string())),
    };
    handler.connected(connection.clone());
    let shown = hello(&private_data);
    let mut parameters = ConnectionParameters::new(&shown);
    // SAFETY: an identifier of a request, with a queue pair; the private data are copied.
    let accepted = Id::check(unsafe { (shared.manager.accept)(resources.id.raw, &mut parameters) });
    let by = match accepted {
        Ok(()) => Instant::now() + shared.config.setup_timeout,
        // The thread finds out at once.
        Err(_) => Instant::now(),
    };
    hasten(shared, &resources.id);
    connection.run(resources, handler, Some(by), place);
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("leasehold-verbs".to_owned()).spawn(work)
}
