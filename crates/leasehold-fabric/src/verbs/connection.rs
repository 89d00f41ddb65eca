//! One connection: what its users call, and the thread that hears the device, the connection manager, and its users.

use super::control::Control;
use super::keys::{Keys, first_address};
use super::library::{
    LOCAL_WRITE, MIN_RNR_TIMER_640_US, Piece, QueuePairAttributes, REMOTE_READ, REMOTE_WRITE, ReceiveRequest,
    WITH_IMMEDIATE, WorkCompletion, event, mask, status,
};
use super::resources::{Id, RECEIVING, Registered, Resources, SLOT};
use super::sender::{Finished, From, Operation, Sender};
use super::{Place, Shared};
use crate::{
    CloseReason, Done, Endpoint, ExposeError, Handler, OperationError, Region, Remote, RemoteAccess, Source,
    Tag, Unproven,
};
use bytes::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use std::ffi::{CStr, c_int};
use std::io;
use std::net::SocketAddr;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

/// What tells a request to receive from one to send.
const TO_RECEIVE: u64 = 1 << 63;

/// One connection to one peer.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    peer: SocketAddr,
    keys: Keys,
    sender: Mutex<Sender>,
    /// The protection domain's address, until it is let go. An address, since a pointer belongs to one thread.
    domain: RwLock<Option<usize>>,
    wake: OwnedFd,
}

impl Connection {
    /// Of resources whose queue pair is not connected yet. Who made it calls [`Connection::run`] on a thread of its own.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        resources: &Resources,
        peer: SocketAddr,
        speaks_control: bool,
    ) -> io::Result<Arc<Connection>> {
        let connection = Connection {
            shared: shared.clone(),
            peer,
            keys: Keys::new(resources.device, shared.config.drain),
            sender: Mutex::new(Sender::new(shared, resources, speaks_control)),
            domain: RwLock::new(Some(resources.domain().expose_provenance())),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        for slot in 0..RECEIVING.min(resources.device.requests_max) {
            receive(resources, slot)?;
        }
        Ok(Arc::new(connection))
    }

    /// The peer takes messages, and may speak control messages.
    pub(crate) fn open(&self, speaks_control: bool) {
        self.lock().open(speaks_control);
        self.pump();
    }

    /// Hears until the connection ends, and then lets everything go.
    pub(crate) fn run(
        self: Arc<Self>,
        resources: Resources,
        mut handler: Box<dyn Handler>,
        established_by: Option<Instant>,
        place: Place,
    ) {
        let _or_abort = OrAbort;
        let fencing = self.clone();
        let fencer = std::thread::Builder::new()
            .name("leasehold-fencer".to_owned())
            .spawn(move || fencing.keys.fencer());
        let why = match &fencer {
            Ok(_) => Hearing { connection: &self, resources: &resources, established_by }.hear(&mut *handler),
            Err(error) => CloseReason::Transport(format!("no thread for fences: {error}")),
        };
        self.end(resources, &why, fencer.ok());
        handler.closed(&why);
        drop(place);
    }

    /// Nothing comes in or goes out any more, and all keys are fenced, when this returns.
    fn end(&self, mut resources: Resources, why: &CloseReason, fencer: Option<std::thread::JoinHandle<()>>) {
        let given_up = self.lock().end(why);
        // SAFETY: an identifier that lives. It also puts the queue pair into its error state.
        unsafe { (self.shared.manager.disconnect)(resources.id.raw) };
        resources.destroy_pair();
        self.keys.end();
        match fencer {
            Some(fencer) => fencer.join().expect("no code panics while it fences"),
            None => self.keys.fencer(),
        }
        tell(given_up.tell(why));
        *self.domain.write().expect("no code panics while it holds the domain") = None;
        if *why == CloseReason::Here {
            self.wait_for_goodbye(&resources);
        }
    }

    /// The peer's answer to the goodbye: who lets go before it might not be heard.
    fn wait_for_goodbye(&self, resources: &Resources) {
        let until = Instant::now() + self.shared.config.linger;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let waited = wait(&mut [PollFd::new(&resources.channel, PollFlags::IN)], left);
            match waited.and_then(|()| resources.channel.next()) {
                Ok(Some(happened)) if happened.kind != event::DISCONNECTED => {}
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return,
            }
        }
    }

    fn submit(&self, operation: Operation) {
        let mut sender = self.lock();
        match sender.refusal() {
            None => {
                sender.push(operation);
                drop(sender);
                self.pump();
            }
            Some(error) => {
                drop(sender);
                if let Some(done) = operation.done() {
                    done(Err(error));
                }
            }
        }
    }

    /// Sends what can be sent, and tells who is done. If the device takes nothing any more, or something has to be tried
    /// again, the thread is told.
    fn pump(&self) {
        let mut finished = Finished::new();
        let mut sender = self.lock();
        let pumped = sender.pump(&self.keys, &mut finished);
        let waits = sender.retry_at().is_some();
        drop(sender);
        tell(finished);
        if pumped.is_err() || waits {
            self.wake();
        }
    }

    fn wake(&self) {
        // It can only be full, and then it is readable.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Sender> {
        self.sender.lock().expect("no code panics while it holds the sender")
    }
}

impl Endpoint for Connection {
    fn expose(&self, region: Region, access: RemoteAccess) -> Result<Tag, ExposeError> {
        let first = first_address(&region);
        let flags = if access.writes() { LOCAL_WRITE | REMOTE_WRITE } else { REMOTE_READ };
        let domain = self.domain.read().expect("no code panics while it holds the domain");
        let domain = ptr::with_exposed_provenance_mut((*domain).ok_or(ExposeError::Closed)?);
        let register = |region: &Region| {
            // SAFETY: the domain lives while its lock is held for reading, and until all keys are deregistered; the key keeps
            // the region until then.
            unsafe { Registered::new(&self.shared, domain, region.base(), region.length(), first, flags) }
                .map_err(|error| ExposeError::Device { errno: error.raw_os_error().unwrap_or(0) })
        };
        let tag = self.keys.expose(region, access, self.shared.config.tags_max, register)?;
        self.lock().say(tag, Control::Exposed { first: first as u16 });
        self.pump();
        Ok(tag)
    }

    fn fence(&self, tag: Tag, patience: Duration) -> Result<(), Unproven> {
        let waits_for_peer = self.lock().speaks_control();
        if self.keys.revoke(tag, waits_for_peer) {
            self.lock().say(tag, Control::Revoked);
            self.pump();
        }
        if self.keys.prove(tag, patience) { Ok(()) } else { Err(Unproven { tag, waited: patience }) }
    }

    fn forget(&self, tag: Tag) {
        if self.keys.forget(tag) {
            self.lock().say(tag, Control::Forgotten);
            self.pump();
        }
    }

    fn write(&self, source: Source, sink: Remote, done: Done) {
        let (from, length) = match source {
            Source::Bytes(bytes) => {
                let length = bytes.len() as u64;
                (From::Bytes { bytes, registered: None }, length)
            }
            Source::Exposed { tag, offset, length } => {
                if let Err(error) = self.keys.check(tag, RemoteAccess::Read, offset, length) {
                    return done(Err(self.closed_or(error)));
                }
                (From::Exposed { tag, offset }, length)
            }
        };
        self.submit(Operation::Write { from, length, sink, at: 0, done: Some(done) });
    }

    fn read(&self, source: Remote, length: u64, sink: Tag, sink_offset: u64, done: Done) {
        if let Err(error) = self.keys.check(sink, RemoteAccess::Write, sink_offset, length) {
            return done(Err(self.closed_or(error)));
        }
        self.submit(Operation::Read { source, length, sink, sink_offset, at: 0, done: Some(done) });
    }

    fn send(&self, message: Bytes, invalidate: Option<Tag>, done: Done) {
        if message.len() > SLOT {
            return done(Err(OperationError::TooLong { length: message.len(), max: SLOT }));
        }
        self.submit(Operation::Send { message, invalidate, done: Some(done) });
    }

    fn close(&self) {
        self.lock().closing = true;
        self.wake();
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Connection {
    /// What is wrong with a tag of this end, unless the connection is over.
    fn closed_or(&self, error: OperationError) -> OperationError {
        self.lock().closed.clone().map_or(error, OperationError::Closed)
    }
}

/// The connection's thread, while the connection lives.
struct Hearing<'a> {
    connection: &'a Connection,
    resources: &'a Resources,
    /// The peer has to be through with setting up by then.
    established_by: Option<Instant>,
}

impl Hearing<'_> {
    /// Until the connection ends: why.
    fn hear(mut self, handler: &mut dyn Handler) -> CloseReason {
        // What came in before the first question is not told of.
        let mut ended = self.completed(handler).err();
        let mut closing_until = None;
        loop {
            if let Some(why) = ended {
                return why;
            }
            let (is_closing, is_idle, retry_at) = {
                let sender = self.connection.lock();
                (sender.closing, sender.is_idle(), sender.retry_at())
            };
            let now = Instant::now();
            if is_closing {
                let until = *closing_until.get_or_insert(now + self.connection.shared.config.linger);
                if is_idle || until <= now {
                    return CloseReason::Here;
                }
            }
            if self.established_by.is_some_and(|by| by <= now) {
                return CloseReason::Transport("the peer did not finish setting up in time".to_owned());
            }
            let deadline = [closing_until, self.established_by, retry_at].into_iter().flatten().min();
            ended = self.happened(deadline, handler).err();
        }
    }

    /// Waits for something to happen, and hears it.
    fn happened(&mut self, deadline: Option<Instant>, handler: &mut dyn Handler) -> Result<(), CloseReason> {
        let failed = |error: io::Error| CloseReason::Transport(error.to_string());
        let (completions, channel) = (&self.resources.completions, &self.resources.channel);
        let mut polled = [
            PollFd::new(completions, PollFlags::IN),
            PollFd::new(channel, PollFlags::IN),
            PollFd::new(&self.connection.wake, PollFlags::IN),
        ];
        let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
        wait(&mut polled, left).map_err(failed)?;
        let [done, managed, woken] = polled.map(|one| !one.revents().is_empty());
        if woken {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.connection.wake, &mut count);
        }
        if done {
            completions.noticed().map_err(failed)?;
        }
        self.completed(handler)?;
        if managed {
            while let Some(happened) = channel.next().map_err(failed)? {
                match happened.kind {
                    event::ESTABLISHED => {
                        self.established_by = None;
                        let speaks_control = self.connection.lock().speaks_control();
                        self.connection.open(speaks_control);
                    }
                    event::DISCONNECTED => {
                        // What it had sent before is here.
                        self.completed(handler)?;
                        return Err(CloseReason::Peer);
                    }
                    event::DEVICE_REMOVAL => {
                        return Err(CloseReason::Transport("the RDMA device was removed".to_owned()));
                    }
                    kind if self.established_by.is_some() => {
                        let status = happened.status;
                        return Err(CloseReason::Transport(format!(
                            "setting up failed (event {kind}, status {status})"
                        )));
                    }
                    _ => {}
                }
            }
        }
        let mut finished = Finished::new();
        let pumped = self.connection.lock().pump(&self.connection.keys, &mut finished);
        tell(finished);
        pumped
    }

    /// Hears all that the device has done.
    fn completed(&mut self, handler: &mut dyn Handler) -> Result<(), CloseReason> {
        let mut room = [WorkCompletion::default(); 16];
        loop {
            let count = self.resources.completions.poll(&mut room);
            let count = count.map_err(|error| CloseReason::Transport(error.to_string()))?;
            let mut finished = Finished::new();
            let result =
                room[..count].iter().try_for_each(|one| self.one_completed(one, handler, &mut finished));
            tell(finished);
            result?;
            if count == 0 {
                return Ok(());
            }
            self.connection.pump();
        }
    }

    fn one_completed(
        &mut self,
        done: &WorkCompletion,
        handler: &mut dyn Handler,
        finished: &mut Finished,
    ) -> Result<(), CloseReason> {
        let connection = self.connection;
        let is_receive = done.id & TO_RECEIVE != 0;
        if done.status != status::SUCCESS {
            return Err(self.failed(done, is_receive));
        }
        if !is_receive {
            connection.lock().completed(&connection.keys, finished);
            return Ok(());
        }
        let slot = (done.id & !TO_RECEIVE) as usize;
        // SAFETY: the device is done with the slot, and gets it again below; it wrote so many bytes of it.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.resources.slot(slot).as_ptr(), (done.bytes as usize).min(SLOT))
        };
        if done.flags & WITH_IMMEDIATE != 0 && connection.lock().speaks_control() {
            self.controlled(Tag(u32::from_be(done.immediate)), bytes)?;
        } else {
            handler.message(bytes);
        }
        receive(self.resources, slot).map_err(|error| CloseReason::Transport(error.to_string()))
    }

    /// Why the connection ends of which a request failed.
    fn failed(&self, done: &WorkCompletion, is_receive: bool) -> CloseReason {
        // SAFETY: it gives a constant for every number.
        let text = unsafe { CStr::from_ptr((self.connection.shared.verbs.wc_status_str)(done.status)) };
        let text = text.to_string_lossy();
        match done.status {
            status::REMOTE_INVALID | status::REMOTE_ACCESS | status::REMOTE_OPERATION if !is_receive => {
                CloseReason::Terminated(format!("the peer's device refused a request: {text}"))
            }
            status::FLUSHED if is_receive => self.flushed(),
            _ if is_receive => CloseReason::Violation(format!("the device refused a message: {text}")),
            _ => CloseReason::Transport(text.into_owned()),
        }
    }

    /// The queue pair is in its error state: for a request of this end that failed, of which the device may tell later than of
    /// those that it never came to; else for one of the peer's.
    fn flushed(&self) -> CloseReason {
        let mut failed = None;
        self.connection.poll_sent(self.resources, |done| {
            failed = Some(*done).filter(|done| done.status != status::SUCCESS);
            failed.is_none()
        });
        match failed {
            // The first that fails is the one that failed; the others are flushed behind it.
            Some(done) if done.status != status::FLUSHED => self.failed(&done, false),
            _ => CloseReason::Violation("the device refused a request of the peer's".to_owned()),
        }
    }

    /// A control message of the peer's.
    fn controlled(&mut self, tag: Tag, bytes: &[u8]) -> Result<(), CloseReason> {
        let connection = self.connection;
        let control = Control::parse(bytes).ok_or_else(|| self.violated("an unknown control message"))?;
        match control {
            Control::Exposed { first } => connection
                .lock()
                .exposed(tag, first)
                .map_err(|()| CloseReason::Violation("the peer exposes too much".to_owned()))?,
            Control::Revoked => connection.lock().revoked(tag),
            Control::Forgotten => connection.lock().forgotten(tag),
            // One that was forgotten meanwhile is no mistake.
            Control::Drained => drop(connection.keys.drained(tag)),
            Control::Invalidated => {
                if !connection.keys.drained(tag) {
                    return Err(self.violated("an unknown tag was to be invalidated"));
                }
            }
            Control::Terminated(why) => return Err(CloseReason::Terminated(why.to_owned())),
        }
        Ok(())
    }

    /// The peer broke the protocol: it is told, if the device still sends.
    fn violated(&self, what: &str) -> CloseReason {
        let mut sender = self.connection.lock();
        sender.say(Tag(0), Control::Terminated(what));
        let mut finished = Finished::new();
        // Whether it is sent or not, this is the end.
        let _ = sender.pump(&self.connection.keys, &mut finished);
        drop(sender);
        tell(finished);
        self.connection.poll_sent(self.resources, |done| done.status == status::SUCCESS);
        CloseReason::Violation(what.to_owned())
    }
}

impl Connection {
    /// Until the device has told of all that it was given to send, or somebody has heard enough, or for so long.
    fn poll_sent(&self, resources: &Resources, mut goes_on: impl FnMut(&WorkCompletion) -> bool) {
        let until = Instant::now() + self.shared.config.linger;
        let mut room = [WorkCompletion::default(); 16];
        while self.lock().is_sending() && Instant::now() < until {
            let Ok(count) = resources.completions.poll(&mut room) else { return };
            let mut finished = Finished::new();
            for done in room[..count].iter().filter(|done| done.id & TO_RECEIVE == 0) {
                if !goes_on(done) {
                    return;
                }
                self.lock().completed(&self.keys, &mut finished);
            }
            tell(finished);
            std::thread::yield_now();
        }
    }
}

/// Gives a slot to the device, for the next message.
fn receive(resources: &Resources, slot: usize) -> io::Result<()> {
    let mut piece = Piece {
        address: resources.slot(slot).addr().get() as u64,
        bytes: SLOT as u32,
        local_key: resources.ring_key(),
    };
    let mut request = ReceiveRequest::new(TO_RECEIVE | slot as u64, &mut piece);
    let mut bad = ptr::null_mut();
    let pair = resources.id.pair();
    // SAFETY: a queue pair that lives, and a slot of the ring that the device does not have.
    let failed = unsafe { ((*(*pair).context).post_recv)(pair, &mut request, &mut bad) };
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

/// So that a sender whose messages find no room tries again soon: the connection manager leaves it at 655 ms. A device that
/// does not take it is slower, and no less right.
pub(crate) fn hasten(shared: &Shared, id: &Id) {
    let mut attributes =
        QueuePairAttributes { receiver_not_ready_timer: MIN_RNR_TIMER_640_US, ..Default::default() };
    let what: c_int = mask::RECEIVER_NOT_READY_TIMER;
    // SAFETY: a queue pair that lives, and the attribute that the mask names.
    let _ = unsafe { (shared.verbs.modify_qp)(id.pair(), &mut attributes, what) };
}

/// Waits until one is ready, or for so long.
pub(crate) fn wait(polled: &mut [PollFd<'_>], left: Duration) -> io::Result<()> {
    let left = Timespec::try_from(left).ok();
    match poll(polled, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A panic of the connection's thread, as in a user's handler, would leave a device behind that nobody hears, and memory open to it.
struct OrAbort;

impl Drop for OrAbort {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Tells who is done. To be called without a lock held.
fn tell(finished: Finished) {
    for (done, result) in finished {
        done(result);
    }
}
