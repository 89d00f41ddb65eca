//! What one connection sends: requests in order, as many under way as the device's queue has room for.

use super::Shared;
use super::control::Control;
use super::keys::Keys;
use super::library::{
    Handle, Piece, QueuePair, RDMA_READ, RDMA_WRITE, SEND, SEND_WITH_IMMEDIATE, SendRequest,
};
use super::resources::{Registered, Resources, SENDING, SLOT};
use crate::{CloseReason, Done, OperationError, Remote, Tag};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most bytes of one request.
const PIECE_MAX: u64 = 256 << 10;
/// The most bytes under way: so much is still placed after the peer has revoked a key, and a fence of this end's waits for.
const UNDER_WAY_MAX: u64 = 1 << 20;
/// How long a tag may be unknown that the peer has given by another way: the fabric's own word of it is behind.
const UNKNOWN_FOR: Duration = Duration::from_millis(100);
/// The most of the peer's tags that are remembered.
const THERE_MAX: usize = 1 << 20;
/// The most that waits to be said: a peer that makes us talk and does not listen gets no more.
const CONTROLS_MAX: usize = 1 << 18;

/// Where the bytes of a write are.
pub(crate) enum From {
    Bytes { bytes: Bytes, registered: Option<Arc<Registered>> },
    Exposed { tag: Tag, offset: u64 },
}

/// What waits to be sent.
pub(crate) enum Operation {
    Write { from: From, length: u64, sink: Remote, at: u64, done: Option<Done> },
    Read { source: Remote, length: u64, sink: Tag, sink_offset: u64, at: u64, done: Option<Done> },
    Send { message: Bytes, invalidate: Option<Tag>, done: Option<Done> },
}

/// A request that the device has.
struct Flight {
    bytes: u64,
    keeps: Keeps,
    done: Option<Done>,
}

/// What a request uses until it is done.
enum Keeps {
    Slot(usize),
    Bytes { _bytes: Bytes, _registered: Arc<Registered> },
    Exposed(Tag),
}

/// A tag that the peer exposes.
struct There {
    first: u16,
    revoked: bool,
}

/// Who is to be told what, once no lock is held.
pub(crate) type Finished = Vec<(Done, Result<(), OperationError>)>;

pub(crate) struct Sender {
    /// `None` once the queue pair is gone.
    pair: Option<NonNull<QueuePair>>,
    domain: Handle,
    ring: NonNull<u8>,
    ring_key: u32,
    shared: Arc<Shared>,
    /// The peer takes messages.
    open: bool,
    speaks_control: bool,
    controls: VecDeque<(Tag, Vec<u8>)>,
    queue: VecDeque<Operation>,
    flights: VecDeque<Flight>,
    /// Of all of them.
    under_way: u64,
    depth: usize,
    slots: Vec<usize>,
    there: HashMap<u32, There>,
    unknown_since: Option<Instant>,
    queue_max: usize,
    /// The device takes nothing any more.
    broken: Option<CloseReason>,
    pub(crate) closed: Option<CloseReason>,
    /// This end wants it closed.
    pub(crate) closing: bool,
}

// SAFETY: the queue pair is used under the lock that this is in, until it is destroyed; the ring lives longer.
unsafe impl Send for Sender {}

impl Sender {
    pub(crate) fn new(shared: &Arc<Shared>, resources: &Resources, speaks_control: bool) -> Sender {
        Sender {
            pair: NonNull::new(resources.id.pair()),
            domain: resources.domain(),
            ring: resources.slot(super::resources::RECEIVING),
            ring_key: resources.ring_key(),
            shared: shared.clone(),
            open: false,
            speaks_control,
            controls: VecDeque::new(),
            queue: VecDeque::new(),
            flights: VecDeque::new(),
            under_way: 0,
            depth: resources.depth,
            slots: (0..SENDING).collect(),
            there: HashMap::new(),
            unknown_since: None,
            queue_max: shared.config.queue_max,
            broken: None,
            closed: None,
            closing: false,
        }
    }

    /// The peer takes messages from now on, and may speak control messages.
    pub(crate) fn open(&mut self, speaks_control: bool) {
        (self.open, self.speaks_control) = (true, speaks_control);
    }

    pub(crate) fn speaks_control(&self) -> bool {
        self.speaks_control
    }

    /// Why no more operations are taken, if so.
    pub(crate) fn refusal(&self) -> Option<OperationError> {
        if let Some(why) = &self.closed {
            return Some(OperationError::Closed(why.clone()));
        }
        if self.closing {
            return Some(OperationError::Closed(CloseReason::Here));
        }
        let is_full = self.queue.len() + self.flights.len() >= self.queue_max;
        is_full.then_some(OperationError::QueueFull { max: self.queue_max })
    }

    pub(crate) fn push(&mut self, operation: Operation) {
        self.queue.push_back(operation);
    }

    /// Says something about a tag, before all that waits.
    pub(crate) fn say(&mut self, tag: Tag, control: Control<'_>) {
        if !self.speaks_control || self.closed.is_some() {
            return;
        }
        if self.controls.len() >= CONTROLS_MAX {
            self.broken = Some(CloseReason::Violation("the peer does not listen".to_owned()));
            return;
        }
        self.controls.push_back((tag, control.encode()));
    }

    /// The peer exposes something. `Err`: more than can be.
    pub(crate) fn exposed(&mut self, tag: Tag, first: u16) -> Result<(), ()> {
        if self.there.len() >= THERE_MAX {
            return Err(());
        }
        self.there.insert(tag.0, There { first, revoked: false });
        self.unknown_since = None;
        Ok(())
    }

    /// The peer revokes something: what is not under way is dropped.
    pub(crate) fn revoked(&mut self, tag: Tag) {
        if let Some(there) = self.there.get_mut(&tag.0) {
            there.revoked = true;
        }
        self.say(tag, Control::Drained);
    }

    pub(crate) fn forgotten(&mut self, tag: Tag) {
        self.there.remove(&tag.0);
    }

    /// When to try again although nothing happens.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.unknown_since.map(|since| since + UNKNOWN_FOR)
    }

    /// The device has something to send.
    pub(crate) fn is_sending(&self) -> bool {
        !self.flights.is_empty()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.controls.is_empty() && self.flights.is_empty()
    }

    /// Hands to the device what it has room for. `Err`: it takes nothing any more.
    pub(crate) fn pump(&mut self, keys: &Keys, finished: &mut Finished) -> Result<(), CloseReason> {
        while self.open && self.broken.is_none() && self.has_room() {
            if let Some((tag, bytes)) = self.controls.pop_front() {
                self.post_copied(&bytes, Some(tag), None);
                continue;
            }
            if self.under_way >= UNDER_WAY_MAX {
                break;
            }
            let Some(operation) = self.queue.pop_front() else { break };
            match self.begin(operation, keys, finished) {
                None => {}
                Some(rest) if self.unknown_since.is_some() => {
                    self.queue.push_front(rest);
                    break;
                }
                Some(rest) => self.queue.push_front(rest),
            }
        }
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// For a send, which may need two requests.
    fn has_room(&self) -> bool {
        self.pair.is_some() && self.flights.len() + 2 <= self.depth && self.slots.len() >= 2
    }

    /// Hands one request of the operation to the device. `Some`: what is left of it.
    fn begin(&mut self, operation: Operation, keys: &Keys, finished: &mut Finished) -> Option<Operation> {
        match operation {
            Operation::Send { message, invalidate, done } => {
                if let Some(tag) = invalidate {
                    self.post_copied(&Control::Invalidated.encode(), Some(tag), None);
                    if let Some(there) = self.there.get_mut(&tag.0) {
                        there.revoked = true;
                    }
                }
                self.post_copied(&message, None, done);
            }
            Operation::Write { mut from, length, sink, at, mut done } => {
                let Some(there) = (if length == 0 { Some(None) } else { self.address(sink, at) }) else {
                    return Some(Operation::Write { from, length, sink, at, done });
                };
                let Some(there) = there else {
                    // Empty, or revoked by the peer.
                    finished.extend(done.map(|done| (done, Ok(()))));
                    return None;
                };
                let (piece, keeps) = match &mut from {
                    From::Exposed { tag, offset } => {
                        let Some(used) = keys.use_at(*tag, *offset + at) else {
                            finished.extend(done.map(|done| (done, Err(OperationError::Revoked(*tag)))));
                            return None;
                        };
                        let bytes = (length - at).min(PIECE_MAX) as u32;
                        let piece = Piece { address: used.address, bytes, local_key: used.local_key };
                        (piece, Keeps::Exposed(*tag))
                    }
                    From::Bytes { bytes, registered } => self.piece_of(bytes, registered, at),
                };
                let at = at + u64::from(piece.bytes);
                let is_last = at == length;
                let told = if is_last { done.take() } else { None };
                self.post(RDMA_WRITE, piece, there, sink.tag, (keeps, told));
                return (!is_last).then_some(Operation::Write { from, length, sink, at, done });
            }
            Operation::Read { source, length, sink, sink_offset, at, mut done } => {
                if length == 0 {
                    finished.extend(done.map(|done| (done, Ok(()))));
                    return None;
                }
                let Some(there) = self.address(source, at) else {
                    return Some(Operation::Read { source, length, sink, sink_offset, at, done });
                };
                // What the peer has revoked cannot be read: its device's answer ends the connection, as the standard has it.
                let there = there.unwrap_or(source.offset.wrapping_add(at));
                let Some(used) = keys.use_at(sink, sink_offset + at) else {
                    finished.extend(done.map(|done| (done, Err(OperationError::Revoked(sink)))));
                    return None;
                };
                let bytes = (length - at).min(PIECE_MAX) as u32;
                let piece = Piece { address: used.address, bytes, local_key: used.local_key };
                let at = at + u64::from(bytes);
                let is_last = at == length;
                let told = if is_last { done.take() } else { None };
                self.post(RDMA_READ, piece, there, source.tag, (Keeps::Exposed(sink), told));
                let rest = Operation::Read { source, length, sink, sink_offset, at, done };
                return (!is_last).then_some(rest);
            }
        }
        None
    }

    /// The address that the peer's device knows. `None`: not known yet. `Some(None)`: revoked.
    fn address(&mut self, remote: Remote, at: u64) -> Option<Option<u64>> {
        let address = |first: u16| remote.offset.wrapping_add(at).wrapping_add(first.into());
        match self.there.get(&remote.tag.0) {
            Some(there) if there.revoked => Some(None),
            Some(there) => Some(Some(address(there.first))),
            None if !self.speaks_control => Some(Some(address(0))),
            None => {
                let since = *self.unknown_since.get_or_insert_with(Instant::now);
                if since.elapsed() < UNKNOWN_FOR {
                    return None;
                }
                // The device shall judge.
                self.unknown_since = None;
                Some(Some(address(0)))
            }
        }
    }

    /// The next piece of a caller's bytes: from where they are, if the device takes them; else copied.
    fn piece_of(
        &mut self,
        bytes: &Bytes,
        registered: &mut Option<Arc<Registered>>,
        at: u64,
    ) -> (Piece, Keeps) {
        if registered.is_none() && bytes.len() > SLOT {
            let base = NonNull::new(bytes.as_ptr().cast_mut()).expect("bytes have an address");
            // SAFETY: the domain lives as long as the queue pair; the bytes live in what keeps the registration, and are
            // registered for nothing but being read by this end.
            let made = unsafe {
                let first = base.addr().get() as u64;
                Registered::new(&self.shared, self.domain, base, bytes.len(), first, 0)
            };
            *registered = made.ok().map(Arc::new);
        }
        let at = at as usize;
        let left = bytes.len() - at;
        match registered {
            Some(registered) => {
                let piece = Piece {
                    address: bytes.as_ptr().addr() as u64 + at as u64,
                    bytes: left.min(PIECE_MAX as usize) as u32,
                    local_key: registered.local_key(),
                };
                (piece, Keeps::Bytes { _bytes: bytes.clone(), _registered: registered.clone() })
            }
            None => {
                let (piece, slot) = self.copied(&bytes[at..at + left.min(SLOT)]);
                (piece, Keeps::Slot(slot))
            }
        }
    }

    /// A free slot with these bytes.
    fn copied(&mut self, bytes: &[u8]) -> (Piece, usize) {
        let slot = self.slots.pop().expect("looked for before");
        assert!(bytes.len() <= SLOT, "{} bytes do not fit in a slot", bytes.len());
        // SAFETY: a free slot of the ring, which lives longer than this; the device reads it once it is posted.
        let at = unsafe {
            let at = self.ring.add(slot * SLOT);
            ptr::copy_nonoverlapping(bytes.as_ptr(), at.as_ptr(), bytes.len());
            at
        };
        let piece =
            Piece { address: at.addr().get() as u64, bytes: bytes.len() as u32, local_key: self.ring_key };
        (piece, slot)
    }

    /// Sends a message, or, with a tag, a control message.
    fn post_copied(&mut self, bytes: &[u8], tag: Option<Tag>, done: Option<Done>) {
        let (piece, slot) = self.copied(bytes);
        let (opcode, tag) = match tag {
            Some(tag) => (SEND_WITH_IMMEDIATE, tag),
            None => (SEND, Tag(0)),
        };
        self.post(opcode, piece, 0, tag, (Keeps::Slot(slot), done));
    }

    fn post(
        &mut self,
        opcode: u32,
        mut piece: Piece,
        address: u64,
        tag: Tag,
        (keeps, done): (Keeps, Option<Done>),
    ) {
        let pair = self.pair.expect("looked for before").as_ptr();
        let is_empty = piece.bytes == 0;
        let mut request = SendRequest::new(0, opcode, &mut piece, address, tag.0);
        if is_empty {
            request.count = 0;
        }
        request.immediate = tag.0.to_be();
        let mut bad = ptr::null_mut();
        // SAFETY: a queue pair that lives, and a request whose piece is of memory that the flight keeps.
        let failed = unsafe { ((*(*pair).context).post_send)(pair, &mut request, &mut bad) };
        // Also if it failed: it is told with the others that are under way.
        let bytes = piece.bytes.into();
        self.flights.push_back(Flight { bytes, keeps, done });
        self.under_way += bytes;
        if failed != 0 {
            let error = std::io::Error::from_raw_os_error(failed);
            self.broken = Some(CloseReason::Transport(format!("the device takes no request: {error}")));
        }
    }

    /// The oldest request is done.
    pub(crate) fn completed(&mut self, keys: &Keys, finished: &mut Finished) {
        let Some(flight) = self.flights.pop_front() else { return };
        self.under_way -= flight.bytes;
        match flight.keeps {
            Keeps::Slot(slot) => self.slots.push(slot),
            Keeps::Exposed(tag) => keys.unuse(tag),
            Keeps::Bytes { .. } => {}
        }
        finished.extend(flight.done.map(|done| (done, Ok(()))));
    }

    /// Nothing is sent any more. The queue pair may be destroyed; what is given up is to be kept until it is.
    pub(crate) fn end(&mut self, why: &CloseReason) -> GivenUp {
        self.closed = Some(why.clone());
        self.pair = None;
        self.controls.clear();
        GivenUp(std::mem::take(&mut self.flights), std::mem::take(&mut self.queue))
    }
}

/// What was not done when the connection ended, and what it keeps.
pub(crate) struct GivenUp(VecDeque<Flight>, VecDeque<Operation>);

impl GivenUp {
    /// Once the queue pair is destroyed: lets go of it all, and says who is to be told.
    pub(crate) fn tell(self, why: &CloseReason) -> Finished {
        let under_way = self.0.into_iter().filter_map(|flight| flight.done);
        let waiting = self.1.into_iter().filter_map(Operation::done);
        under_way.chain(waiting).map(|done| (done, Err(OperationError::Closed(why.clone())))).collect()
    }
}

impl Operation {
    pub(crate) fn done(self) -> Option<Done> {
        match self {
            Operation::Write { done, .. } | Operation::Read { done, .. } | Operation::Send { done, .. } => {
                done
            }
        }
    }
}
