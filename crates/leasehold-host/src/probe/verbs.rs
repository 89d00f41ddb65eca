//! An RDMA device that writes to itself: two of its queue pairs are connected to each other, so what one sends is to the
//! other what a remote machine's is, and takes the same way through the kernel and the device.

use super::mapping::Mapping;
use super::report::Verdict;
use leasehold_fabric::verbs::library::{
    Address, Capacity, CompletionQueue, Context, Gid, Handle, LOCAL_WRITE, Library, MTU_1024, MemoryRegion,
    PORT_ACTIVE, Piece, PortAttributes, QueuePair, QueuePairAttributes, QueuePairInit, RDMA_READ, RDMA_WRITE,
    RELIABLE, REMOTE_READ, REMOTE_WRITE, SendRequest, WorkCompletion, mask, state,
};
use std::ffi::{CStr, c_int, c_uint};
use std::fs;
use std::io;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

const DEVICES: &str = "/sys/class/infiniband";
const PORT: u8 = 1;
/// How long the device may take for one operation. Not a delay: a bound.
const ANSWER: Duration = Duration::from_secs(20);

/// What whoever has the key of a region may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Write and read it.
    Write,
    /// Only read it.
    Read,
    /// Nothing: it is for the device's own side.
    Local,
}

impl Access {
    fn flags(self) -> c_int {
        match self {
            Access::Write => LOCAL_WRITE | REMOTE_WRITE | REMOTE_READ,
            Access::Read => REMOTE_READ,
            Access::Local => LOCAL_WRITE,
        }
    }
}

/// One that is open, with a protection domain.
pub(super) struct Device {
    library: Library,
    context: *mut Context,
    domain: Handle,
    pub(super) name: String,
}

impl Device {
    /// The first that can be opened.
    pub(super) fn open() -> Result<Device, Verdict> {
        if fs::read_dir(DEVICES).map_or(0, Iterator::count) == 0 {
            return Err(Verdict::not_applicable("no RDMA device"));
        }
        let library = Library::load().map_err(|error| Verdict::not_applicable(error.to_string()))?;
        let mut count = 0;
        // SAFETY: as ibv_get_device_list(3) has it; the list is freed below, after its last use.
        let list = unsafe { (library.get_device_list)(&mut count) };
        if list.is_null() {
            return Err(Verdict::not_applicable("libibverbs finds no device"));
        }
        // SAFETY: the list has `count` devices.
        let devices = unsafe { std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0)) };
        let opened = devices.iter().find_map(|device| {
            // SAFETY: a device of the list; its name lives as long as the list.
            let (context, name) = unsafe {
                ((library.open_device)(*device), CStr::from_ptr((library.get_device_name)(*device)))
            };
            (!context.is_null()).then(|| (context, name.to_string_lossy().into_owned()))
        });
        // SAFETY: no device of the list is used any more: one that is open does not need it.
        unsafe { (library.free_device_list)(list) };
        let Some((context, name)) = opened else {
            let why = "no RDMA device can be opened; is /dev/infiniband there?";
            return Err(Verdict::not_applicable(why));
        };
        // SAFETY: an open device.
        let domain = unsafe { (library.alloc_pd)(context) };
        if domain.is_null() {
            let why = format!("{name} gives no protection domain: {}", io::Error::last_os_error());
            // SAFETY: open, and not used any more.
            unsafe { (library.close_device)(context) };
            return Err(Verdict::CouldNot { why });
        }
        Ok(Device { library, context, domain, name })
    }

    /// Registers all of a mapping as memory of the device: its pages are pinned for as long as the region lives.
    ///
    /// # Errors
    /// The kernel's: `EFAULT` where it refuses file pages, `EOPNOTSUPP` for DAX.
    pub(super) fn register<'d>(&'d self, mapping: &'d Mapping, access: Access) -> io::Result<Region<'d>> {
        let memory = mapping.iovec();
        // SAFETY: the mapping outlives the region, and nobody has a reference into it.
        let region =
            unsafe { (self.library.reg_mr)(self.domain, memory.iov_base, memory.iov_len, access.flags()) };
        let region = NonNull::new(region).ok_or_else(io::Error::last_os_error)?;
        Ok(Region { device: self, region })
    }

    /// Two queue pairs of the device that are each other's peer. What is sent comes from `staging`, and what is read goes
    /// there.
    pub(super) fn connect<'d>(&'d self, staging: &'d Mapping) -> Result<Loopback<'d>, Verdict> {
        let could_not = |what: &str| {
            let error = io::Error::last_os_error();
            Verdict::CouldNot { why: format!("{}: {what}: {error}", self.name) }
        };
        let region =
            self.register(staging, Access::Local).map_err(|_| could_not("cannot register memory"))?;
        let (path_mtu, gid, gid_index) = self.port()?;
        // SAFETY: an open device; no completion channel.
        let completions =
            unsafe { (self.library.create_cq)(self.context, 4, ptr::null_mut(), ptr::null_mut(), 0) };
        if completions.is_null() {
            return Err(could_not("no completion queue"));
        }
        let mut loopback =
            Loopback { device: self, staging, region, completions, pairs: [ptr::null_mut(); 2], sent: 0 };
        for pair in &mut loopback.pairs {
            let capacity = Capacity {
                max_send_wr: 4,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                ..Capacity::default()
            };
            let mut init = QueuePairInit::new(completions, capacity, RELIABLE);
            // SAFETY: a domain and a completion queue of this device.
            *pair = unsafe { (self.library.create_qp)(self.domain, &mut init) };
            if pair.is_null() {
                return Err(could_not("no queue pair"));
            }
        }
        let [one, other] = loopback.pairs;
        for (pair, peer) in [(one, other), (other, one)] {
            self.ready(pair, peer, path_mtu, gid, gid_index)
                .map_err(|()| could_not("cannot connect it to itself"))?;
        }
        Ok(loopback)
    }

    /// The MTU to use, and where the port can be reached.
    fn port(&self) -> Result<(c_uint, Gid, u8), Verdict> {
        let mut port = PortAttributes::default();
        // SAFETY: an open device, and room for what is told.
        let failed = unsafe { (self.library.query_port)(self.context, PORT, &mut port) } != 0;
        if failed || port.state != PORT_ACTIVE {
            let why = format!("port {PORT} of {} is not active; is its network interface up?", self.name);
            return Err(Verdict::not_applicable(why));
        }
        let mut found = None;
        for index in 0..port.gids.min(i32::from(u8::MAX)) {
            let mut gid: Gid = [0; 16];
            // SAFETY: as above.
            let failed = unsafe { (self.library.query_gid)(self.context, PORT, index, &mut gid) } != 0;
            if failed || gid == [0; 16] {
                continue;
            }
            // An IPv4 address is ready at once; a link-local one may not be yet.
            let is_ipv4 = gid[..10] == [0; 10] && gid[10..12] == [0xff; 2];
            if is_ipv4 || found.is_none() {
                found = Some((gid, index as u8));
            }
            if is_ipv4 {
                break;
            }
        }
        let why = || format!("port {PORT} of {} has no address; give its network interface one", self.name);
        let (gid, index) = found.ok_or_else(|| Verdict::not_applicable(why()))?;
        // A page of four packets can be seen half written.
        Ok((port.active_mtu.min(MTU_1024), gid, index))
    }

    fn ready(
        &self,
        pair: *mut QueuePair,
        peer: *mut QueuePair,
        path_mtu: c_uint,
        gid: Gid,
        gid_index: u8,
    ) -> Result<(), ()> {
        let modify = |mut attributes: QueuePairAttributes, mask| {
            // SAFETY: a queue pair of this device, and the attributes that the mask names.
            let failed = unsafe { (self.library.modify_qp)(pair, &mut attributes, mask) } != 0;
            if failed { Err(()) } else { Ok(()) }
        };
        let access = Access::Write.flags().cast_unsigned();
        modify(
            QueuePairAttributes { state: state::INIT, port: PORT, access, ..Default::default() },
            mask::INIT,
        )?;
        let (words, _) = gid.as_chunks::<8>();
        let address = Address {
            gid: [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])],
            gid_index,
            hops_max: 1,
            is_global: 1,
            port: PORT,
            ..Address::default()
        };
        let to_receive = QueuePairAttributes {
            state: state::READY_TO_RECEIVE,
            path_mtu,
            // SAFETY: a queue pair that lives.
            peer: unsafe { (*peer).number },
            peer_reads_max: 1,
            receiver_not_ready_timer: 12,
            address,
            ..Default::default()
        };
        modify(to_receive, mask::READY_TO_RECEIVE)?;
        let to_send = QueuePairAttributes {
            state: state::READY_TO_SEND,
            timeout: 14,
            retries: 7,
            receiver_not_ready_retries: 7,
            reads_max: 1,
            ..Default::default()
        };
        modify(to_send, mask::READY_TO_SEND)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: both are ours; regions and queue pairs borrow the device, so they are gone.
        unsafe {
            (self.library.dealloc_pd)(self.domain);
            (self.library.close_device)(self.context);
        }
    }
}

/// Memory of the device. Deregistered when dropped.
pub(super) struct Region<'d> {
    device: &'d Device,
    region: NonNull<MemoryRegion>,
}

// SAFETY: who has a reference to it reads what does not change, and hands its keys to the device.
unsafe impl Sync for Region<'_> {}

impl Region<'_> {
    fn get(&self) -> &MemoryRegion {
        // SAFETY: it lives until it is dropped, and nobody writes to it.
        unsafe { self.region.as_ref() }
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        // SAFETY: ours, and never used again.
        unsafe { (self.device.library.dereg_mr)(self.region.as_ptr()) };
    }
}

/// Two queue pairs that are each other's peer, and what is sent between them.
pub(super) struct Loopback<'d> {
    device: &'d Device,
    staging: &'d Mapping,
    region: Region<'d>,
    completions: *mut CompletionQueue,
    pairs: [*mut QueuePair; 2],
    /// Requests so far.
    sent: u64,
}

// SAFETY: the library may be called from any thread, and its device is only read; who sends has `&mut`.
unsafe impl Send for Loopback<'_> {}

impl Loopback<'_> {
    /// Writes bytes to a region, and waits until the device has said that they are there.
    pub(super) fn write(&mut self, region: &Region<'_>, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.staging.store(0, bytes);
        self.transfer(RDMA_WRITE, region, at, bytes.len())
    }

    /// Reads from a region.
    pub(super) fn read(&mut self, region: &Region<'_>, at: usize, bytes: usize) -> io::Result<Vec<u8>> {
        self.transfer(RDMA_READ, region, at, bytes)?;
        Ok(self.staging.load(0, bytes))
    }

    fn transfer(&mut self, opcode: c_uint, region: &Region<'_>, at: usize, bytes: usize) -> io::Result<()> {
        assert!(
            at + bytes <= region.get().bytes && bytes <= self.region.get().bytes,
            "past the end of a region"
        );
        let ours = self.region.get();
        let mut piece = Piece {
            address: ours.address.addr() as u64,
            bytes: u32::try_from(bytes).map_err(io::Error::other)?,
            local_key: ours.local_key,
        };
        self.sent += 1;
        let address = (region.get().address.addr() + at) as u64;
        let mut request = SendRequest::new(self.sent, opcode, &mut piece, address, region.get().remote_key);
        let mut bad = ptr::null_mut();
        let pair = self.pairs[0];
        // SAFETY: a queue pair that is ready to send, and a request whose piece is of a region that lives.
        let failed = unsafe { ((*(*pair).context).post_send)(pair, &mut request, &mut bad) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        self.completed()
    }

    fn completed(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + ANSWER;
        loop {
            let mut completion = WorkCompletion::default();
            // SAFETY: a completion queue of this device, and room for one completion.
            let count = unsafe { ((*self.device.context).poll_cq)(self.completions, 1, &mut completion) };
            match count {
                0 if Instant::now() < deadline => std::thread::yield_now(),
                0 => return Err(io::ErrorKind::TimedOut.into()),
                1 if completion.status == 0 && completion.id == self.sent => return Ok(()),
                1 => return Err(io::Error::other(format!("work completion status {}", completion.status))),
                _ => return Err(io::Error::other("the completion queue cannot be read")),
            }
        }
    }
}

impl Drop for Loopback<'_> {
    fn drop(&mut self) {
        for pair in self.pairs.into_iter().filter(|pair| !pair.is_null()) {
            // SAFETY: ours, and never used again.
            unsafe { (self.device.library.destroy_qp)(pair) };
        }
        // SAFETY: as above; its queue pairs are gone.
        unsafe { (self.device.library.destroy_cq)(self.completions) };
    }
}
