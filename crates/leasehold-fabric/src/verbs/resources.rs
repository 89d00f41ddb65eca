//! What the device and the system hold for one connection, and how it is let go.

use super::Shared;
use super::library::{
    Capacity, CompletionChannel, CompletionQueue, Context, DeviceAttributes, Event, EventChannel, Handle,
    Identifier, LOCAL_WRITE, MemoryRegion, QueuePair, QueuePairInit, RELIABLE, RELIABLE_PORTS,
};
use std::alloc::Layout;
use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The bytes of one slot of the ring: the longest message.
pub(crate) const SLOT: usize = 4096;
/// Slots for messages that come.
pub(crate) const RECEIVING: usize = 128;
/// Slots for what is sent by copying it.
pub(crate) const SENDING: usize = 64;

/// siw's vendor number: its deregistration does not wait for a copy that is in progress (by its source), so it is no fence.
const SIW: u32 = 0x62_6d74;
/// Soft-RoCE's: its deregistration waits for the packet or message in progress, for 50 s at most, and says that all is well
/// even if it gave up (by its source).
const SOFT_ROCE: u32 = 0xff_ffff;
/// So an answer of soft-RoCE's is a proof if it came sooner.
const SOFT_ROCE_PATIENCE: Duration = Duration::from_secs(40);

/// What a device can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    vendor: u32,
    /// Requests in a queue.
    pub(crate) requests_max: usize,
    pub(crate) completions_max: usize,
    /// Registrations, of all its users.
    pub(crate) regions_max: usize,
}

impl Device {
    pub(crate) fn query(shared: &Shared, context: *mut Context) -> io::Result<Device> {
        // SAFETY: the structure is numbers only.
        let mut attributes: DeviceAttributes = unsafe { std::mem::zeroed() };
        // SAFETY: an open device, and room for what is told.
        let failed = unsafe { (shared.verbs.query_device)(context, &mut attributes) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        let count = |number: c_int| usize::try_from(number).unwrap_or(0);
        Ok(Device {
            vendor: attributes.vendor,
            requests_max: count(attributes.requests_max),
            completions_max: count(attributes.completions_max),
            regions_max: count(attributes.regions_max),
        })
    }

    /// Whether deregistration is a fence on it.
    pub(crate) fn can_fence(&self) -> bool {
        self.vendor != SIW
    }

    /// Whether a deregistration that took so long is a proof.
    fn proves(&self, took: Duration) -> bool {
        self.can_fence() && (self.vendor != SOFT_ROCE || took < SOFT_ROCE_PATIENCE)
    }
}

/// Memory that the device knows. Deregistered when dropped.
pub(crate) struct Registered {
    region: NonNull<MemoryRegion>,
    shared: Arc<Shared>,
}

// SAFETY: the library may be called from any thread; who has it reads what does not change.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    /// # Safety
    /// The caller upholds that the domain lives, and that the memory stays mapped until this is deregistered. `first` is what
    /// the device calls its first byte, at the same place within a page.
    pub(crate) unsafe fn new(
        shared: &Arc<Shared>,
        domain: Handle,
        base: NonNull<u8>,
        length: usize,
        first: u64,
        access: c_int,
    ) -> io::Result<Registered> {
        // SAFETY: by this function's contract.
        let region =
            unsafe { (shared.verbs.reg_mr_iova)(domain, base.as_ptr().cast(), length, first, access) };
        let region = NonNull::new(region).ok_or_else(io::Error::last_os_error)?;
        Ok(Registered { region, shared: shared.clone() })
    }

    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: it lives until it is deregistered, and nobody writes to it.
        unsafe { self.region.as_ref().local_key }
    }

    pub(crate) fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.region.as_ref().remote_key }
    }

    /// Deregisters it. `true`: it is proven that the device touches the memory no more.
    pub(crate) fn deregister(self, device: &Device) -> bool {
        let started = Instant::now();
        let done = self.end() == 0;
        std::mem::forget(self);
        done && device.proves(started.elapsed())
    }

    fn end(&self) -> c_int {
        // SAFETY: ours; both callers are the last who use it.
        unsafe { (self.shared.verbs.dereg_mr)(self.region.as_ptr()) }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where the connection manager tells what happens.
pub(crate) struct Channel {
    pub(crate) raw: *mut EventChannel,
    shared: Arc<Shared>,
}

// SAFETY: the library may be called from any thread.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

/// What happened.
pub(crate) struct Happened {
    pub(crate) kind: u32,
    pub(crate) status: i32,
    pub(crate) id: *mut Identifier,
    pub(crate) private_data: Vec<u8>,
}

impl Channel {
    pub(crate) fn new(shared: &Arc<Shared>) -> io::Result<Channel> {
        // SAFETY: no conditions.
        let raw = unsafe { (shared.manager.create_event_channel)() };
        if raw.is_null() {
            return Err(io::Error::last_os_error());
        }
        let channel = Channel { raw, shared: shared.clone() };
        let flags = rustix::fs::fcntl_getfl(&channel)?;
        rustix::fs::fcntl_setfl(&channel, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(channel)
    }

    /// What happened next, if anything has by now.
    pub(crate) fn next(&self) -> io::Result<Option<Happened>> {
        let mut event: *mut Event = ptr::null_mut();
        // SAFETY: a channel, and room for a pointer.
        if unsafe { (self.shared.manager.get_cm_event)(self.raw, &mut event) } != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: an event, valid until it is acknowledged; those that carry data have as many bytes as they say.
        let happened = unsafe {
            let told = &*event;
            let (data, bytes) = (told.parameters.private_data, told.parameters.private_data_bytes);
            let private_data = if data.is_null() {
                Vec::new()
            } else {
                std::slice::from_raw_parts(data.cast::<u8>(), bytes.into()).to_vec()
            };
            Happened { kind: told.kind, status: told.status, id: told.id, private_data }
        };
        // SAFETY: got above, and not used any more.
        unsafe { (self.shared.manager.ack_cm_event)(event) };
        Ok(Some(happened))
    }

    /// A new identifier on it.
    pub(crate) fn identifier(&self) -> io::Result<Id> {
        let mut raw = ptr::null_mut();
        // SAFETY: a channel, and room for a pointer.
        let failed =
            unsafe { (self.shared.manager.create_id)(self.raw, &mut raw, ptr::null_mut(), RELIABLE_PORTS) };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Id { raw, shared: self.shared.clone() })
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel's descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw((*self.raw).fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: ours; identifiers on it are dropped before it.
        unsafe { (self.shared.manager.destroy_event_channel)(self.raw) };
    }
}

/// The connection manager's side of a listener or a connection.
pub(crate) struct Id {
    pub(crate) raw: *mut Identifier,
    shared: Arc<Shared>,
}

// SAFETY: the library may be called from any thread.
unsafe impl Send for Id {}
// SAFETY: as above.
unsafe impl Sync for Id {}

impl Id {
    /// One that came with a request to connect.
    pub(crate) fn of_request(shared: &Arc<Shared>, raw: *mut Identifier) -> Id {
        Id { raw, shared: shared.clone() }
    }

    /// The device that it is bound to, if any.
    pub(crate) fn device(&self) -> *mut Context {
        // SAFETY: it lives as long as this.
        unsafe { (*self.raw).device }
    }

    pub(crate) fn pair(&self) -> *mut QueuePair {
        // SAFETY: as above.
        unsafe { (*self.raw).pair }
    }

    pub(crate) fn source(&self) -> Option<SocketAddr> {
        // SAFETY: as above.
        socket_address(unsafe { &(*self.raw).source })
    }

    pub(crate) fn destination(&self) -> Option<SocketAddr> {
        // SAFETY: as above.
        socket_address(unsafe { &(*self.raw).destination })
    }

    /// The result of a call that says what went wrong by `errno`.
    pub(crate) fn check(failed: c_int) -> io::Result<()> {
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: ours, its events are acknowledged, and its queue pair is destroyed before (`Resources`).
        unsafe { (self.shared.manager.destroy_id)(self.raw) };
    }
}

/// As the library takes it.
pub(crate) fn raw_address(address: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: all zeros are a valid address of no family.
    let mut raw: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let at = &raw mut raw;
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: there is room for every family's address.
            let to = unsafe { &mut *at.cast::<libc::sockaddr_in>() };
            to.sin_family = libc::AF_INET as _;
            to.sin_port = v4.port().to_be();
            to.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let to = unsafe { &mut *at.cast::<libc::sockaddr_in6>() };
            to.sin6_family = libc::AF_INET6 as _;
            to.sin6_port = v6.port().to_be();
            to.sin6_addr.s6_addr = v6.ip().octets();
            to.sin6_scope_id = v6.scope_id();
        }
    }
    raw
}

fn socket_address(raw: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let at = &raw const *raw;
    match c_int::from(raw.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what it is.
            let v4 = unsafe { &*at.cast::<libc::sockaddr_in>() };
            let ip = IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(ip, u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*at.cast::<libc::sockaddr_in6>() };
            Some(SocketAddr::new(IpAddr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

/// Slots for messages, of both directions.
struct Ring {
    base: NonNull<u8>,
}

// SAFETY: an allocation belongs to no thread.
unsafe impl Send for Ring {}

impl Ring {
    const LAYOUT: Layout = match Layout::from_size_align((RECEIVING + SENDING) * SLOT, 4096) {
        Ok(layout) => layout,
        Err(_) => panic!("a small layout"),
    };

    fn new() -> io::Result<Ring> {
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(Ring::LAYOUT) });
        Ok(Ring { base: base.ok_or(io::ErrorKind::OutOfMemory)? })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), Ring::LAYOUT) };
    }
}

/// Of one connection: its queue pair, in a protection domain of its own, so that its keys are of no use to others.
///
/// Dropped from top to bottom, behind the queue pair.
pub(crate) struct Resources {
    pub(crate) device: Device,
    /// How many requests may be under way.
    pub(crate) depth: usize,
    pub(crate) completions: Completions,
    registered_ring: Option<Registered>,
    domain: Domain,
    ring: Ring,
    pub(crate) id: Id,
    pub(crate) channel: Channel,
    shared: Arc<Shared>,
}

impl Resources {
    /// For an identifier that knows its device.
    pub(crate) fn new(shared: &Arc<Shared>, id: Id, channel: Channel) -> io::Result<Resources> {
        let context = id.device();
        let device = Device::query(shared, context)?;
        if !device.can_fence() {
            return Err(io::Error::other(
                "this device's deregistration does not wait for a write in progress, so it is no fence; use --fabric iwarp, \
                 which speaks with it over TCP",
            ));
        }
        let domain = Domain::new(shared, context)?;
        let depth = device.requests_max.min(SENDING);
        let completions = Completions::new(shared, context, (depth + RECEIVING).min(device.completions_max))?;
        let ring = Ring::new()?;
        // SAFETY: the domain lives, and the ring lives longer than its registration (the order of the fields).
        let registered_ring = unsafe {
            let first = ring.base.addr().get() as u64;
            Registered::new(shared, domain.raw, ring.base, Ring::LAYOUT.size(), first, LOCAL_WRITE)?
        };
        let resources = Resources {
            device,
            depth,
            completions,
            registered_ring: Some(registered_ring),
            domain,
            ring,
            id,
            channel,
            shared: shared.clone(),
        };
        resources.create_pair()?;
        Ok(resources)
    }

    fn create_pair(&self) -> io::Result<()> {
        let capacity = Capacity {
            max_send_wr: u32::try_from(self.depth).expect("small"),
            max_recv_wr: RECEIVING.min(self.device.requests_max) as u32,
            max_send_sge: 1,
            max_recv_sge: 1,
            ..Capacity::default()
        };
        let mut init = QueuePairInit::new(self.completions.raw, capacity, RELIABLE);
        // SAFETY: an identifier with a device, and a domain and a completion queue of that.
        Id::check(unsafe { (self.shared.manager.create_qp)(self.id.raw, self.domain.raw, &mut init) })
    }

    /// Destroys the queue pair: nothing comes in or goes out any more. Before it, nobody may be posting.
    pub(crate) fn destroy_pair(&mut self) {
        if !self.id.pair().is_null() {
            // SAFETY: ours; nobody posts to it.
            unsafe { (self.shared.manager.destroy_qp)(self.id.raw) };
        }
    }

    pub(crate) fn domain(&self) -> Handle {
        self.domain.raw
    }

    /// The address of a slot, the receiving ones first.
    pub(crate) fn slot(&self, number: usize) -> NonNull<u8> {
        assert!(number < RECEIVING + SENDING, "there is no slot {number}");
        // SAFETY: just checked to be within the ring.
        unsafe { self.ring.base.add(number * SLOT) }
    }

    pub(crate) fn ring_key(&self) -> u32 {
        self.registered_ring.as_ref().expect("registered as long as this lives").local_key()
    }
}

impl Drop for Resources {
    fn drop(&mut self) {
        self.destroy_pair();
    }
}

/// A protection domain.
struct Domain {
    raw: Handle,
    shared: Arc<Shared>,
}

// SAFETY: the library may be called from any thread.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    fn new(shared: &Arc<Shared>, context: *mut Context) -> io::Result<Domain> {
        // SAFETY: an open device.
        let raw = unsafe { (shared.verbs.alloc_pd)(context) };
        if raw.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(Domain { raw, shared: shared.clone() })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: ours. If a registration in it could not be ended, the kernel keeps it.
        unsafe { (self.shared.verbs.dealloc_pd)(self.raw) };
    }
}

/// Where the device tells what is done.
pub(crate) struct Completions {
    pub(crate) raw: *mut CompletionQueue,
    context: *mut Context,
    channel: *mut CompletionChannel,
    shared: Arc<Shared>,
}

// SAFETY: the library may be called from any thread; one thread polls.
unsafe impl Send for Completions {}
// SAFETY: as above.
unsafe impl Sync for Completions {}

impl Completions {
    fn new(shared: &Arc<Shared>, context: *mut Context, room: usize) -> io::Result<Completions> {
        // SAFETY: an open device.
        let channel = unsafe { (shared.verbs.create_comp_channel)(context) };
        if channel.is_null() {
            return Err(io::Error::last_os_error());
        }
        let room = c_int::try_from(room).expect("small");
        // SAFETY: an open device and its channel.
        let raw = unsafe { (shared.verbs.create_cq)(context, room, ptr::null_mut(), channel, 0) };
        let completions = Completions { raw, context, channel, shared: shared.clone() };
        if raw.is_null() {
            return Err(io::Error::last_os_error());
        }
        completions.ask()?;
        Ok(completions)
    }

    /// Asks to be told of the next.
    fn ask(&self) -> io::Result<()> {
        // SAFETY: a completion queue of this device.
        let failed = unsafe { ((*self.context).req_notify_cq)(self.raw, 0) };
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    /// The descriptor is readable: takes the notice, and asks for the next. What is there must be polled after it.
    pub(crate) fn noticed(&self) -> io::Result<()> {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a channel that has an event, and room for two pointers.
        Id::check(unsafe { (self.shared.verbs.get_cq_event)(self.channel, &mut queue, &mut context) })?;
        // SAFETY: the queue that the event was of.
        unsafe { (self.shared.verbs.ack_cq_events)(queue, 1) };
        self.ask()
    }

    /// What is done by now, as many as there is room for.
    pub(crate) fn poll(&self, room: &mut [super::library::WorkCompletion]) -> io::Result<usize> {
        let length = c_int::try_from(room.len()).expect("small");
        // SAFETY: a completion queue of this device, and room for so many.
        let count = unsafe { ((*self.context).poll_cq)(self.raw, length, room.as_mut_ptr()) };
        usize::try_from(count).map_err(|_| io::Error::other("the completion queue cannot be read"))
    }
}

impl AsFd for Completions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel's descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: ours; its queue pair is destroyed, and its events are acknowledged.
        unsafe {
            if !self.raw.is_null() {
                (self.shared.verbs.destroy_cq)(self.raw);
            }
            (self.shared.verbs.destroy_comp_channel)(self.channel);
        }
    }
}
