//! Keys and fences over a wire: what lets a remote machine place bytes in this one's memory, and what stops it for good.
//!
//! The only crate that knows a wire. One trait family, [`Fabric`] and [`Endpoint`], and two implementations: [`iwarp`], the
//! IETF's RDMA over TCP in user space, and [`verbs`], for RDMA devices. Both ends are alike once connected: either may expose memory,
//! write into what the other exposed, and send messages.
//!
//! Invariant: after [`Endpoint::fence`] has returned `Ok`, no byte sent under that tag lands in the region that it
//! named, whatever the peer does and whatever is on its way.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod crc;
pub mod iwarp;
pub mod message;
pub mod sums;
pub mod verbs;

use bytes::Bytes;
use std::any::Any;
use std::net::SocketAddr;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;
use sums::BlockSums;

/// The most private data that a user can show when connecting. Devices carry 56 bytes (the limit of RoCE), and the
/// fabric puts 8 of its own in front.
pub const PRIVATE_DATA_MAX: usize = 48;

/// A way to connect to peers and be connected to.
pub trait Fabric: Send + Sync + 'static {
    /// Accepts connections at `address` until the listener is dropped. `gate` decides who comes in.
    fn listen(&self, address: SocketAddr, gate: Arc<dyn Gate>) -> Result<Box<dyn Listener>, ListenError>;

    /// Connects, shows `private_data` (at most [`PRIVATE_DATA_MAX`] bytes), and returns the endpoint with the peer's
    /// private data. Blocks for at most `timeout`. [`Handler::connected`] is called on this thread, before it returns.
    fn connect(
        &self,
        address: SocketAddr,
        private_data: &[u8],
        handler: Box<dyn Handler>,
        timeout: Duration,
    ) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError>;
}

/// A place where peers can connect. Dropping it stops accepting; connections that exist go on.
pub trait Listener: Send + Sync {
    /// Where it listens, with the port that the system chose if 0 was asked for.
    fn local_address(&self) -> SocketAddr;

    /// Which kinds of fabric peers can connect by.
    fn kinds(&self) -> Vec<Kind>;

    /// Where peers connect over TLS: the public key that they know this end by.
    fn tls_key(&self) -> Option<Bytes> {
        None
    }
}

/// An implementation of the traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RDMA over TCP in user space: [`iwarp`].
    Iwarp,
    /// The same over TLS, between our own two ends.
    IwarpTls,
    /// An RDMA device: [`verbs`].
    Verbs,
}

impl Kind {
    /// As it is written in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Iwarp => "iwarp",
            Kind::IwarpTls => "iwarp-tls",
            Kind::Verbs => "verbs",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Kind> {
        [Kind::Iwarp, Kind::IwarpTls, Kind::Verbs].into_iter().find(|kind| kind.name() == name)
    }
}

/// Decides who may connect.
pub trait Gate: Send + Sync + 'static {
    /// A peer shows its private data. `Err`: the connection is rejected with these bytes as private data.
    fn admit(&self, private_data: &[u8], peer: SocketAddr) -> Result<Admitted, Bytes>;
}

/// What the gate hands over for a peer that may come in.
pub struct Admitted {
    /// Hears what the peer does.
    pub handler: Box<dyn Handler>,
    /// Shown to the peer.
    pub private_data: Bytes,
}

/// Hears what one peer does, in the order of its stream, on a thread of the fabric: it must not block.
pub trait Handler: Send + 'static {
    /// The connection stands. Called once, before anything else (also on the connecting side), and on the accepting side
    /// before the peer's [`Fabric::connect`] returns.
    fn connected(&mut self, endpoint: Arc<dyn Endpoint>);
    /// A message. Every byte that the peer wrote before it on this stream has been placed (or dropped, if revoked).
    fn message(&mut self, message: &[u8]);
    /// A frame failed its checksum after bytes had been placed: nothing written on this connection and not yet fenced
    /// can be trusted. `closed` follows.
    fn poisoned(&mut self);
    /// The connection is gone, and nothing of it can place a byte any more. Called once, last.
    fn closed(&mut self, why: &CloseReason);
}

/// One connection to one peer.
pub trait Endpoint: Send + Sync + 'static {
    /// Lets the peer use `region`, at offsets 0 to its length, under the tag that is returned: random, and never used
    /// before on this connection.
    fn expose(&self, region: Region, access: RemoteAccess) -> Result<Tag, ExposeError>;

    /// Revokes `tag` and proves that nothing sent under it can still land in its region, or be sent out of it.
    ///
    /// Revoked is not unknown: until [`Endpoint::forget`], what the peer still writes under the tag is taken from the
    /// stream and dropped, so that the peer's other tags are not harmed. Fencing twice, or an unknown tag, is `Ok`.
    ///
    /// # Errors
    /// [`Unproven`] if the proof did not come within `patience`. The tag stays revoked; the region must not be reused
    /// until [`Handler::closed`].
    fn fence(&self, tag: Tag, patience: Duration) -> Result<(), Unproven>;

    /// The peer knows that `tag` is over: forget it. What still comes under it is an error of the peer's.
    fn forget(&self, tag: Tag);

    /// Writes into the peer's memory. `done` is called once the source is free again (not: once the bytes have
    /// landed; a message sent behind them is the way to know), or the write was dropped because the source's tag was
    /// fenced or the connection closed.
    fn write(&self, source: Source, sink: Remote, done: Done);

    /// Reads `length` bytes of the peer's memory into this end's exposed `sink` at `sink_offset`. `done` is called
    /// once they have landed.
    fn read(&self, source: Remote, length: u64, sink: Tag, sink_offset: u64, done: Done);

    /// Sends a message, behind everything written before it. `invalidate`: a tag of the peer's to revoke on arrival.
    fn send(&self, message: Bytes, invalidate: Option<Tag>, done: Done);

    /// Closes the connection. What was handed to the transport still reaches the peer; operations that wait are given
    /// up. [`Handler::closed`] follows, on a thread of the fabric.
    fn close(&self);

    /// The peer's address.
    fn peer(&self) -> SocketAddr;
}

/// A steering tag: names memory that one end of a connection exposed to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u32);

/// A place in the peer's exposed memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The tag that the peer gave.
    pub tag: Tag,
    /// Bytes from the start of what is exposed.
    pub offset: u64,
}

/// What the peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAccess {
    /// Only read.
    Read,
    /// Only write.
    Write,
    /// Only write, and nothing that has not been checked: for memory that is looked at while the peer may still write
    /// there. Where a frame is checked only after it was placed, this costs a copy.
    WriteChecked,
}

impl RemoteAccess {
    /// Whether the peer may write.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, RemoteAccess::Write | RemoteAccess::WriteChecked)
    }
}

/// Bytes to write to the peer.
pub enum Source {
    /// The caller's own.
    Bytes(Bytes),
    /// A part of a region that is exposed on this connection for [`RemoteAccess::Read`]; a fence of the tag stops the
    /// write.
    Exposed {
        /// The tag of this end.
        tag: Tag,
        /// Bytes from the start of the region.
        offset: u64,
        /// How many.
        length: u64,
    },
}

/// Called once an operation no longer needs what it was given. Must not block.
pub type Done = Box<dyn FnOnce(Result<(), OperationError>) + Send>;

/// Memory that a peer can be given access to. Never a `&[u8]`: a peer may change it at any time.
#[derive(Clone)]
pub struct Region {
    base: NonNull<u8>,
    length: usize,
    /// Keeps the memory mapped; nobody asks it anything.
    _owner: Arc<dyn Any + Send + Sync>,
    sums: Option<Arc<BlockSums>>,
}

// SAFETY: a region is an address with the owner that keeps it valid; the fabric accesses it through raw pointers only,
// under the rules of `Region::new`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `length` bytes at `base`, valid for reads and writes as long as `owner` lives.
    ///
    /// # Safety
    /// The caller upholds that: the memory stays valid while `owner` lives; from the moment that the region is
    /// exposed until its fence is proven (or the connection is closed), nobody on this machine but the fabric forms a
    /// reference to it or writes to it; and memory that is exposed for [`RemoteAccess::Write`] is exposed only once at
    /// a time.
    pub unsafe fn new(base: NonNull<u8>, length: usize, owner: Arc<dyn Any + Send + Sync>) -> Region {
        Region { base, length, _owner: owner, sums: None }
    }

    /// What is placed in it shall be summed up; it lies in the memory that `sums` is for.
    #[must_use]
    pub fn summed(self, sums: Arc<BlockSums>) -> Region {
        Region { sums: Some(sums), ..self }
    }

    /// What it sums up to, if somebody wants to know.
    #[must_use]
    pub fn sums(&self) -> Option<&BlockSums> {
        self.sums.as_deref()
    }

    /// The first byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// How many bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

/// The proof of a fence did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the fence of tag {tag:?} was not proven within {waited:?}; close the connection before its memory is reused"
)]
pub struct Unproven {
    /// Which.
    pub tag: Tag,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Why memory was not exposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExposeError {
    /// The connection is closed.
    #[error("the connection is closed; connect again")]
    Closed,
    /// Too many tags on this connection, live ones and revoked ones that the peer has not acknowledged.
    #[error("the connection has {max} tags already; release leases, or acknowledge revoked ones")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The RDMA device, or the kernel, does not register the memory.
    #[error(
        "the RDMA device does not register the memory: {}; raise the limit of locked memory (ulimit -l), or use \
         --fabric iwarp", std::io::Error::from_raw_os_error(*errno)
    )]
    Device {
        /// The kernel's error number.
        errno: i32,
    },
}

/// Why a write, read or send was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// The connection is closed.
    #[error("the connection closed first: {0}")]
    Closed(CloseReason),
    /// The tag of this end was fenced, or never exposed.
    #[error("tag {0:?} of this end is revoked or unknown")]
    Revoked(Tag),
    /// Past the end of the exposed region.
    #[error("{offset}+{length} is past the end of what tag {tag:?} exposes")]
    OutOfBounds {
        /// The tag of this end.
        tag: Tag,
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// The tag is exposed for the other kind of access: a write's source must be readable, a read's sink writable.
    #[error("tag {0:?} of this end is exposed for the other kind of access")]
    WrongAccess(Tag),
    /// The message is longer than peers accept.
    #[error("a message of {length} bytes is longer than {max}")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// Too many operations wait on this connection.
    #[error("{max} operations wait on the connection already; let some finish first")]
    QueueFull {
        /// The limit.
        max: usize,
    },
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This end closed it.
    #[error("closed by this end")]
    Here,
    /// The peer closed it.
    #[error("closed by the peer")]
    Peer,
    /// The peer broke the protocol; it was sent a Terminate.
    #[error("the peer broke the protocol: {0}")]
    Violation(String),
    /// The peer sent a Terminate.
    #[error("the peer terminated the stream: {0}")]
    Terminated(String),
    /// The transport failed.
    #[error("transport: {0}")]
    Transport(String),
}

/// Why listening failed.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address could not be bound.
    #[error("cannot listen for data at {address}: {source}; choose another address or port")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Why connecting failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("cannot reach {address}: {source}; is the server running, and its data port open?")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The peer said no.
    #[error("{address} rejected the connection: {why}")]
    Rejected {
        /// Where.
        address: SocketAddr,
        /// The peer's words.
        why: String,
    },
    /// The peer does not speak our protocol.
    #[error("{address} does not answer as an iWARP peer: {what}; is this the data port?")]
    Protocol {
        /// Where.
        address: SocketAddr,
        /// What it did.
        what: String,
    },
    /// The peer does not have the key that it should have.
    #[error("{address} is not the server that it should be: {why}; does somebody stand in between?")]
    Untrusted {
        /// Where.
        address: SocketAddr,
        /// What it showed.
        why: String,
    },
    /// No private data longer than 56 bytes.
    #[error("private data of {length} bytes is longer than {max}")]
    PrivateDataTooLong {
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
}
