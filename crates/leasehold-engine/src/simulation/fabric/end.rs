//! One end of a connection: what it exposes, what it sends, what comes in.

use super::{MESSAGE_MAX, Network, PART_MAX, Skip};
use crate::simulation::{below, chance, dawdle};
use crate::sync::{self, Condvar, Mutex, MutexGuard};
use bytes::Bytes;
use leasehold_fabric::crc::{BLOCK, crc32c};
use leasehold_fabric::{
    CloseReason, Done, Endpoint, ExposeError, Handler, OperationError, Region, Remote, RemoteAccess, Source,
    Tag, Unproven,
};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// One end of a connection. Its two tasks keep it until it is closed.
pub(super) struct End {
    network: Arc<Network>,
    peer: SocketAddr,
    pub(super) other: OnceLock<Weak<End>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    exposed: BTreeMap<Tag, Exposed>,
    outgoing: VecDeque<Operation>,
    incoming: VecDeque<Packet>,
    /// Reads whose bytes have not all landed.
    reads: BTreeMap<u64, Done>,
    next_read: u64,
    closed: Option<CloseReason>,
}

struct Exposed {
    /// `None` once its fence was proven.
    region: Option<Region>,
    length: u64,
    access: RemoteAccess,
    revoked: bool,
    forgotten: bool,
    /// Parts that were let in and are not placed, or sent, yet.
    used: usize,
}

/// A tag, and bytes of what it exposes.
#[derive(Clone, Copy)]
struct Place {
    tag: Tag,
    offset: u64,
    length: u64,
}

enum Operation {
    Write { source: Source, sink: Remote, done: Done },
    Send { message: Bytes, invalidate: Option<Tag>, done: Done },
    Ask { source: Place, sink: Remote, read: u64 },
    Answer { source: Place, sink: Remote, read: u64 },
}

/// What is on its way.
enum Packet {
    Part { sink: Remote, bytes: Bytes },
    Message { message: Bytes, invalidate: Option<Tag> },
    Ask { source: Place, sink: Remote, read: u64 },
    Answered { read: u64 },
    Close(CloseReason),
}

/// Why a part is not let in.
enum Refused {
    Unknown,
    Revoked,
    WrongAccess,
    OutOfBounds,
}

impl End {
    pub(super) fn new(network: &Arc<Network>, peer: SocketAddr) -> Arc<End> {
        let (other, state, changed) = (OnceLock::new(), Mutex::default(), Condvar::new());
        Arc::new(End { network: network.clone(), peer, other, state, changed })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    pub(super) fn start(self: &Arc<Self>, handler: Box<dyn Handler>) {
        let (sender, receiver) = (self.clone(), self.clone());
        sync::spawn("fabric-send", move || sender.send_all()).expect("a thread");
        sync::spawn("fabric-receive", move || receiver.receive_all(handler)).expect("a thread");
    }

    pub(super) fn shut(&self, why: CloseReason) {
        self.state().closed.get_or_insert(why);
        self.changed.notify_all();
    }

    /// Puts a packet on its way to the peer.
    fn carry(&self, packet: Packet) {
        if let Some(other) = self.other.get().and_then(Weak::upgrade) {
            other.state().incoming.push_back(packet);
            other.changed.notify_all();
        }
    }

    fn begin(&self, operation: Operation) {
        let mut state = self.state();
        if let Some(why) = state.closed.clone() {
            drop(state);
            return operation.fail(&OperationError::Closed(why));
        }
        state.outgoing.push_back(operation);
        drop(state);
        self.changed.notify_all();
    }

    fn send_all(&self) {
        loop {
            let idle = |state: &mut State| state.outgoing.is_empty() && state.closed.is_none();
            let mut state = self.changed.wait_while(self.state(), idle).expect("no panic while held");
            if let Some(why) = state.closed.clone() {
                let left = std::mem::take(&mut state.outgoing);
                drop(state);
                return left.into_iter().for_each(|left| left.fail(&OperationError::Closed(why.clone())));
            }
            let next = state.outgoing.pop_front().expect("not idle");
            drop(state);
            dawdle();
            match next {
                Operation::Write { source, sink, done } => done(self.send_parts(source, sink)),
                Operation::Send { message, invalidate, done } => {
                    self.carry(Packet::Message { message, invalidate });
                    done(Ok(()));
                }
                Operation::Ask { source, sink, read } => self.carry(Packet::Ask { source, sink, read }),
                Operation::Answer { source: Place { tag, offset, length }, sink, read } => {
                    if self.send_parts(Source::Exposed { tag, offset, length }, sink).is_ok() {
                        self.carry(Packet::Answered { read });
                    }
                }
            }
        }
    }

    fn send_parts(&self, source: Source, sink: Remote) -> Result<(), OperationError> {
        let total = match &source {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::Exposed { length, .. } => *length,
        };
        let mut at = 0;
        while at < total {
            let length = (PART_MAX - below(PART_MAX)).min(total - at);
            let bytes = match &source {
                Source::Bytes(bytes) => bytes.slice(at as usize..(at + length) as usize),
                Source::Exposed { tag, offset, .. } => {
                    self.read_out(Place { tag: *tag, offset: offset.wrapping_add(at), length })?
                }
            };
            if let Some(why) = self.state().closed.clone() {
                return Err(OperationError::Closed(why));
            }
            let offset = sink.offset.saturating_add(at);
            self.carry(Packet::Part { sink: Remote { offset, ..sink }, bytes });
            at += length;
            dawdle();
        }
        Ok(())
    }

    /// The bytes that this end exposes for reading.
    fn read_out(&self, place: Place) -> Result<Bytes, OperationError> {
        let region = self.let_in(place, |access| access == RemoteAccess::Read);
        let region = region.map_err(|refused| refused.of_this_end(place))?;
        dawdle();
        // SAFETY: within the region, whose owner `region` keeps; what is exposed for reading is written by nobody.
        let bytes = unsafe {
            let start = region.base().add(place.offset as usize);
            Bytes::copy_from_slice(std::slice::from_raw_parts(start.as_ptr(), place.length as usize))
        };
        self.let_out(place.tag);
        Ok(bytes)
    }

    /// From here until [`End::let_out`], a fence of the tag waits.
    fn let_in(&self, place: Place, may: impl Fn(RemoteAccess) -> bool) -> Result<Region, Refused> {
        let mut state = self.state();
        let exposed = state.exposed.get_mut(&place.tag).filter(|exposed| !exposed.forgotten);
        let exposed = exposed.ok_or(Refused::Unknown)?;
        if !may(exposed.access) {
            return Err(Refused::WrongAccess);
        }
        if place.offset.checked_add(place.length).is_none_or(|end| end > exposed.length) {
            return Err(Refused::OutOfBounds);
        }
        let region = exposed.region.clone().filter(|_| !exposed.revoked).ok_or(Refused::Revoked)?;
        exposed.used += 1;
        Ok(region)
    }

    fn let_out(&self, tag: Tag) {
        let mut state = self.state();
        let exposed = state.exposed.get_mut(&tag).expect("nothing in use is dropped");
        exposed.used -= 1;
        if exposed.forgotten && exposed.used == 0 {
            state.exposed.remove(&tag);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn receive_all(self: &Arc<Self>, mut handler: Box<dyn Handler>) {
        loop {
            let idle = |state: &mut State| state.incoming.is_empty() && state.closed.is_none();
            let mut state = self.changed.wait_while(self.state(), idle).expect("no panic while held");
            if state.closed.is_some() {
                break;
            }
            let packet = state.incoming.pop_front().expect("not idle");
            drop(state);
            dawdle();
            if let Err(what) = self.receive(packet, &mut *handler) {
                self.shut(CloseReason::Violation(what.to_owned()));
                self.carry(Packet::Close(CloseReason::Terminated(what.to_owned())));
            }
        }
        let busy = |state: &mut State| state.exposed.values().any(|exposed| exposed.used > 0);
        let mut state = self.changed.wait_while(self.state(), busy).expect("no panic while held");
        let why = state.closed.clone().expect("seen above");
        let (exposed, reads) = (std::mem::take(&mut state.exposed), std::mem::take(&mut state.reads));
        drop(state);
        drop(exposed);
        reads.into_values().for_each(|done| done(Err(OperationError::Closed(why.clone()))));
        handler.closed(&why);
    }

    /// The error: how the peer broke the protocol.
    fn receive(self: &Arc<Self>, packet: Packet, handler: &mut dyn Handler) -> Result<(), &'static str> {
        match packet {
            Packet::Part { sink, bytes } => self.place(sink, bytes, handler),
            Packet::Message { message, invalidate } => {
                if let Some(tag) = invalidate {
                    let mut state = self.state();
                    let exposed = state.exposed.get_mut(&tag).filter(|exposed| !exposed.forgotten);
                    exposed.ok_or("an unknown tag is to be invalidated")?.revoked = true;
                }
                handler.message(&message);
                Ok(())
            }
            Packet::Ask { source, sink, read } => {
                let held = self.let_in(source, |access| access == RemoteAccess::Read);
                held.map_err(|refused| refused.of_the_peers())?;
                self.let_out(source.tag);
                self.begin(Operation::Answer { source, sink, read });
                Ok(())
            }
            Packet::Answered { read } => {
                let done = self.state().reads.remove(&read);
                done.ok_or("an answer to nothing")?(Ok(()));
                Ok(())
            }
            Packet::Close(why) => {
                self.shut(why);
                Ok(())
            }
        }
    }

    fn place(&self, sink: Remote, bytes: Bytes, handler: &mut dyn Handler) -> Result<(), &'static str> {
        let weather = self.network.weather;
        if chance(weather.cut) {
            let lost = || CloseReason::Transport("the connection is lost".to_owned());
            self.carry(Packet::Close(lost()));
            self.shut(lost());
            return Ok(());
        }
        let place = Place { tag: sink.tag, offset: sink.offset, length: bytes.len() as u64 };
        let poisoned = chance(weather.poison);
        let noticed = poisoned && self.network.skip != Skip::Checksum;
        let checked = |access| access == RemoteAccess::WriteChecked;
        let region = match self.let_in(place, |access| access.writes() && !(noticed && checked(access))) {
            Ok(region) => region,
            Err(Refused::Revoked) => {
                self.network.late.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(refused) => return Err(refused.of_the_peers()),
        };
        let bytes = if poisoned { bytes.iter().map(|byte| !byte).collect() } else { bytes };
        if chance(weather.stall) {
            sync::sleep(Duration::from_millis(200));
        }
        // In two steps, between which others look.
        let middle = below(bytes.len() as u64 + 1) as usize;
        dawdle();
        fill(&region, place.offset as usize, &bytes[..middle]);
        dawdle();
        fill(&region, place.offset as usize + middle, &bytes[middle..]);
        drop(region);
        self.let_out(place.tag);
        if noticed {
            handler.poisoned();
            return Err("a frame failed its checksum");
        }
        Ok(())
    }
}

/// Places the bytes, and sums up whole blocks.
fn fill(region: &Region, offset: usize, bytes: &[u8]) {
    // SAFETY: they were found to be within the region, whose owner it keeps; only the fabric writes there until the fence.
    let start = unsafe { region.base().add(offset) };
    let address = start.addr().get();
    if let Some(sums) = region.sums() {
        sums.forget_at(address, bytes.len());
    }
    // SAFETY: as above; the bytes are elsewhere.
    unsafe { start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    let skip = address.next_multiple_of(BLOCK) - address;
    if let (Some(sums), Some(aligned)) = (region.sums(), bytes.get(skip..)) {
        for (index, block) in aligned.as_chunks::<BLOCK>().0.iter().enumerate() {
            sums.set(sums.block_at(address + skip + index * BLOCK), crc32c(block));
        }
    }
}

impl Refused {
    fn of_this_end(self, Place { tag, offset, length }: Place) -> OperationError {
        match self {
            Refused::Unknown | Refused::Revoked => OperationError::Revoked(tag),
            Refused::WrongAccess => OperationError::WrongAccess(tag),
            Refused::OutOfBounds => OperationError::OutOfBounds { tag, offset, length },
        }
    }

    fn of_the_peers(self) -> &'static str {
        match self {
            Refused::Unknown => "the tag is unknown",
            Refused::Revoked => "the tag is revoked",
            Refused::WrongAccess => "the tag is for other access, or the frame failed its checksum",
            Refused::OutOfBounds => "it is out of bounds",
        }
    }
}

impl Operation {
    fn fail(self, error: &OperationError) {
        match self {
            Operation::Write { done, .. } | Operation::Send { done, .. } => done(Err(error.clone())),
            // What waits for it hears of the end of the connection.
            Operation::Ask { .. } | Operation::Answer { .. } => {}
        }
    }
}

/// The endpoint that users hold.
impl Endpoint for End {
    fn expose(&self, region: Region, access: RemoteAccess) -> Result<Tag, ExposeError> {
        let mut state = self.state();
        if state.closed.is_some() {
            return Err(ExposeError::Closed);
        }
        let number = self.network.tags.fetch_add(1, Ordering::Relaxed);
        // Each number once, for an odd factor.
        let tag = Tag(number.wrapping_mul(0x9E37_79B1));
        let length = region.length() as u64;
        let exposed =
            Exposed { region: Some(region), length, access, revoked: false, forgotten: false, used: 0 };
        state.exposed.insert(tag, exposed);
        Ok(tag)
    }

    fn fence(&self, tag: Tag, patience: Duration) -> Result<(), Unproven> {
        let until = sync::now() + patience;
        let skip = self.network.skip;
        let mut state = self.state();
        match state.exposed.get_mut(&tag) {
            None => return Ok(()),
            Some(_) if skip == Skip::Fence => return Ok(()),
            Some(exposed) => exposed.revoked = true,
        }
        let used = |state: &mut State| state.exposed.get(&tag).is_some_and(|exposed| exposed.used > 0);
        if skip != Skip::Proof {
            let (held, proven) = self.changed.wait_while_until(state, until, used);
            if !proven {
                return Err(Unproven { tag, waited: patience });
            }
            state = held;
        }
        // The connection may have closed meanwhile.
        let region = state.exposed.get_mut(&tag).and_then(|exposed| exposed.region.take());
        drop(state);
        drop(region);
        Ok(())
    }

    fn forget(&self, tag: Tag) {
        let mut state = self.state();
        let Some(exposed) = state.exposed.get_mut(&tag) else { return };
        exposed.forgotten = true;
        if exposed.used == 0 {
            state.exposed.remove(&tag);
        }
    }

    fn write(&self, source: Source, sink: Remote, done: Done) {
        if let Source::Exposed { tag, offset, length } = source {
            let place = Place { tag, offset, length };
            match self.let_in(place, |access| access == RemoteAccess::Read) {
                Ok(_) => self.let_out(tag),
                Err(refused) => return done(Err(refused.of_this_end(place))),
            }
        }
        self.begin(Operation::Write { source, sink, done });
    }

    fn read(&self, source: Remote, length: u64, sink: Tag, sink_offset: u64, done: Done) {
        let place = Place { tag: sink, offset: sink_offset, length };
        let checked = self.let_in(place, RemoteAccess::writes).map(|_| self.let_out(sink));
        let mut state = self.state();
        if let Some(why) = state.closed.clone() {
            drop(state);
            return done(Err(OperationError::Closed(why)));
        }
        if let Err(refused) = checked {
            drop(state);
            return done(Err(refused.of_this_end(place)));
        }
        let read = state.next_read;
        state.next_read += 1;
        state.reads.insert(read, done);
        drop(state);
        let source = Place { tag: source.tag, offset: source.offset, length };
        self.begin(Operation::Ask { source, sink: Remote { tag: sink, offset: sink_offset }, read });
    }

    fn send(&self, message: Bytes, invalidate: Option<Tag>, done: Done) {
        let length = message.len();
        if length > MESSAGE_MAX {
            return done(Err(OperationError::TooLong { length, max: MESSAGE_MAX }));
        }
        self.begin(Operation::Send { message, invalidate, done });
    }

    fn close(&self) {
        self.shut(CloseReason::Here);
        self.carry(Packet::Close(CloseReason::Peer));
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }
}
