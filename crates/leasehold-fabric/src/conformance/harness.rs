//! Two connected ends whose events are recorded, and memory to expose.

use crate::{
    Admitted, CloseReason, Done, Endpoint, Fabric, Gate, Handler, Listener, OperationError, Region,
    RemoteAccess, Source, Tag,
};
use bytes::Bytes;
use std::alloc::Layout;
use std::net::SocketAddr;
use std::ptr::NonNull;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longer than anything here takes on a busy machine; whoever waits for so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a handler heard.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A message.
    Message(Vec<u8>),
    /// A frame failed its checksum.
    Poisoned,
    /// The end.
    Closed(CloseReason),
}

/// A handler that passes on what it hears.
pub struct Recorder {
    connected: Sender<Arc<dyn Endpoint>>,
    heard: Sender<Heard>,
}

/// Where a [`Recorder`] passes things on to.
pub struct Record {
    connected: Receiver<Arc<dyn Endpoint>>,
    heard: Receiver<Heard>,
}

/// A new recorder, and its record.
#[must_use]
pub fn recorder() -> (Recorder, Record) {
    let (connected, connected_here) = channel();
    let (heard, heard_here) = channel();
    (Recorder { connected, heard }, Record { connected: connected_here, heard: heard_here })
}

impl Handler for Recorder {
    fn connected(&mut self, endpoint: Arc<dyn Endpoint>) {
        let _ = self.connected.send(endpoint);
    }

    fn message(&mut self, message: &[u8]) {
        let _ = self.heard.send(Heard::Message(message.to_vec()));
    }

    fn poisoned(&mut self) {
        let _ = self.heard.send(Heard::Poisoned);
    }

    fn closed(&mut self, why: &CloseReason) {
        let _ = self.heard.send(Heard::Closed(why.clone()));
    }
}

impl Record {
    /// The endpoint, once it stands.
    #[must_use]
    pub fn endpoint(&self) -> Arc<dyn Endpoint> {
        self.connected.recv_timeout(PATIENCE).expect("a connection")
    }

    /// The next thing that was heard.
    #[must_use]
    pub fn next(&self) -> Heard {
        self.heard.recv_timeout(PATIENCE).expect("something to be heard")
    }

    /// The next thing that was heard, if there is any by now.
    #[must_use]
    pub fn next_if_any(&self) -> Option<Heard> {
        self.heard.try_recv().ok()
    }

    /// The next message.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        match self.next() {
            Heard::Message(message) => message,
            other => panic!("{other:?} in place of a message"),
        }
    }

    /// Why it closed. Whatever is heard before is passed over.
    #[must_use]
    pub fn closed(&self) -> CloseReason {
        loop {
            if let Heard::Closed(why) = self.next() {
                return why;
            }
        }
    }
}

/// A gate that lets in whoever shows these bytes, and records what becomes of it.
pub struct TokenGate {
    token: Vec<u8>,
    records: Mutex<Sender<Record>>,
}

impl Gate for TokenGate {
    fn admit(&self, private_data: &[u8], _peer: SocketAddr) -> Result<Admitted, Bytes> {
        if private_data != self.token {
            return Err(Bytes::from_static(b"unknown token"));
        }
        let (recorder, record) = recorder();
        let _ = self.records.lock().expect("not poisoned").send(record);
        Ok(Admitted { handler: Box::new(recorder), private_data: Bytes::from_static(b"welcome") })
    }
}

/// A listener on this machine that lets in whoever shows a token.
pub struct Server {
    listener: Box<dyn Listener>,
    records: Receiver<Record>,
}

impl Server {
    /// Listens on a port that the system chooses.
    #[must_use]
    pub fn new(fabric: &dyn Fabric, token: &[u8]) -> Server {
        let (records, records_here) = channel();
        let gate = TokenGate { token: token.to_vec(), records: Mutex::new(records) };
        let listener =
            fabric.listen(([127, 0, 0, 1], 0).into(), Arc::new(gate)).expect("a port on the loopback");
        Server { listener, records: records_here }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    /// The record of the next peer that was let in.
    #[must_use]
    pub fn record(&self) -> Record {
        self.records.recv_timeout(PATIENCE).expect("a peer")
    }

    /// Connects to it, and returns this end and the server's.
    #[must_use]
    pub fn connect(&self, fabric: &dyn Fabric, token: &[u8]) -> Pair {
        let (recorder, client) = recorder();
        let (near, data) =
            fabric.connect(self.address(), token, Box::new(recorder), PATIENCE).expect("to be let in");
        assert_eq!(&data[..], b"welcome");
        let server = self.record();
        let far = server.endpoint();
        Pair { near, client, far, server }
    }
}

/// Both ends of one connection.
pub struct Pair {
    /// The end that connected.
    pub near: Arc<dyn Endpoint>,
    /// What it heard.
    pub client: Record,
    /// The end that was connected to.
    pub far: Arc<dyn Endpoint>,
    /// What that heard.
    pub server: Record,
}

/// A connected pair on one fabric.
#[must_use]
pub fn pair(fabric: &dyn Fabric) -> Pair {
    Server::new(fabric, b"token").connect(fabric, b"token")
}

/// Memory that can be exposed, on a page boundary.
pub struct Memory {
    owner: Arc<Pages>,
}

struct Pages {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: an allocation belongs to no thread.
unsafe impl Send for Pages {}
// SAFETY: it is only touched through raw pointers, under the rules of `Region::new`.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}

impl Memory {
    /// So many bytes, all `fill`.
    #[must_use]
    pub fn new(length: usize, fill: u8) -> Memory {
        let layout = Layout::from_size_align(length.max(1), 4096).expect("a small layout");
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { std::alloc::alloc(layout) }).expect("memory");
        let memory = Memory { owner: Arc::new(Pages { base, layout }) };
        memory.fill(0, length, fill);
        memory
    }

    /// A part of it.
    #[must_use]
    pub fn region(&self, offset: usize, length: usize) -> Region {
        assert!(offset + length <= self.owner.layout.size());
        // SAFETY: within the allocation, which the owner keeps; these tests keep the rest of the contract: they read
        // and write what is not exposed, or only look whether bytes have changed, byte by byte.
        unsafe { Region::new(self.owner.base.add(offset), length, self.owner.clone()) }
    }

    /// Sets a part of it.
    pub fn fill(&self, offset: usize, length: usize, byte: u8) {
        assert!(offset + length <= self.owner.layout.size());
        // SAFETY: within the allocation, and not exposed at the moment.
        unsafe { self.owner.base.add(offset).write_bytes(byte, length) };
    }

    /// A copy of a part of it.
    #[must_use]
    pub fn snapshot(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.owner.layout.size());
        let mut copy = vec![0; length];
        for (at, byte) in copy.iter_mut().enumerate() {
            // SAFETY: within the allocation; volatile, since a peer may be writing.
            *byte = unsafe { self.owner.base.add(offset + at).read_volatile() };
        }
        copy
    }

    /// How many users the memory has, this one included.
    #[must_use]
    pub fn users(&self) -> usize {
        Arc::strong_count(&self.owner)
    }
}

/// A callback, and where its result is heard.
#[must_use]
pub fn done() -> (Done, Receiver<Result<(), OperationError>>) {
    let (heard, here) = channel();
    (Box::new(move |result| drop(heard.send(result))), here)
}

/// Writes, and waits until the source is free again.
pub fn write(from: &dyn Endpoint, bytes: Vec<u8>, tag: Tag, offset: u64) -> Result<(), OperationError> {
    let (callback, result) = done();
    from.write(Source::Bytes(bytes.into()), crate::Remote { tag, offset }, callback);
    result.recv_timeout(PATIENCE).expect("the write to be done")
}

/// Sends, and waits until the source is free again.
pub fn send(from: &dyn Endpoint, message: &[u8]) -> Result<(), OperationError> {
    let (callback, result) = done();
    from.send(Bytes::copy_from_slice(message), None, callback);
    result.recv_timeout(PATIENCE).expect("the message to be sent")
}

/// Exposes memory for writing.
#[must_use]
pub fn writable(at: &dyn Endpoint, memory: &Memory, offset: usize, length: usize) -> Tag {
    at.expose(memory.region(offset, length), RemoteAccess::Write).expect("room for a tag")
}

/// Exposes memory for reading.
#[must_use]
pub fn readable(at: &dyn Endpoint, memory: &Memory, offset: usize, length: usize) -> Tag {
    at.expose(memory.region(offset, length), RemoteAccess::Read).expect("room for a tag")
}
