//! What we use of libibverbs and librdmacm. They are looked for at run time, and only if there is a device: few hosts have
//! one.
//!
//! The types are those of `infiniband/verbs.h` and `rdma/rdma_cma.h`, with their names, as far as we touch them; what only the
//! libraries touch is a [`Handle`]. These interfaces have been stable since 2006; the tests have the sizes that their headers
//! give.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{self, NonNull};

/// A pointer to what the library alone looks into.
pub type Handle = *mut c_void;

/// `struct ibv_context`, from its start to the last operation that we call.
#[repr(C)]
pub struct Context {
    pub device: Handle,
    before_poll: [Handle; 11],
    pub poll_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut WorkCompletion) -> c_int,
    pub req_notify_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int) -> c_int,
    before_post: [Handle; 12],
    pub post_send: unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
    pub post_recv:
        unsafe extern "C" fn(*mut QueuePair, *mut ReceiveRequest, *mut *mut ReceiveRequest) -> c_int,
}

/// `struct ibv_comp_channel`, its start.
#[repr(C)]
pub struct CompletionChannel {
    context: *mut Context,
    pub fd: c_int,
}

/// `struct ibv_cq`, its start.
#[repr(C)]
pub struct CompletionQueue {
    context: *mut Context,
}

/// `struct ibv_qp`, its start.
#[repr(C)]
pub struct QueuePair {
    pub context: *mut Context,
    before_number: [Handle; 5],
    handle: u32,
    pub number: u32,
}

/// `struct ibv_mr`
#[repr(C)]
pub struct MemoryRegion {
    context: *mut Context,
    domain: Handle,
    pub address: *mut c_void,
    pub bytes: usize,
    handle: u32,
    pub local_key: u32,
    pub remote_key: u32,
}

/// `struct ibv_port_attr`
#[repr(C)]
#[derive(Default)]
pub struct PortAttributes {
    pub state: c_uint,
    max_mtu: c_uint,
    pub active_mtu: c_uint,
    pub gids: c_int,
    rest: [u32; 10],
}

/// `union ibv_gid`
pub type Gid = [u8; 16];

/// `struct ibv_qp_cap`
#[repr(C)]
#[derive(Default)]
pub struct Capacity {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`
#[repr(C)]
pub struct QueuePairInit {
    context: Handle,
    pub send: *mut CompletionQueue,
    pub receive: *mut CompletionQueue,
    shared_receive: Handle,
    pub capacity: Capacity,
    pub kind: c_uint,
    signal_all: c_int,
}

impl QueuePairInit {
    pub fn new(completions: *mut CompletionQueue, capacity: Capacity, kind: c_uint) -> QueuePairInit {
        QueuePairInit {
            context: ptr::null_mut(),
            send: completions,
            receive: completions,
            shared_receive: ptr::null_mut(),
            capacity,
            kind,
            signal_all: 0,
        }
    }
}

/// `struct ibv_ah_attr`, with the `struct ibv_global_route` that it begins with.
#[repr(C)]
#[derive(Default)]
pub struct Address {
    pub gid: [u64; 2],
    pub flow_label: u32,
    pub gid_index: u8,
    pub hops_max: u8,
    pub traffic_class: u8,
    pub lid: u16,
    pub service_level: u8,
    pub path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port: u8,
}

/// `struct ibv_qp_attr`
#[repr(C)]
#[derive(Default)]
pub struct QueuePairAttributes {
    pub state: c_uint,
    pub current_state: c_uint,
    pub path_mtu: c_uint,
    pub migration: c_uint,
    pub key: u32,
    pub receive_psn: u32,
    pub send_psn: u32,
    pub peer: u32,
    pub access: c_uint,
    pub capacity: Capacity,
    pub address: Address,
    pub alternative: Address,
    pub partition_index: u16,
    pub alternative_partition_index: u16,
    pub notify: u8,
    pub draining: u8,
    pub reads_max: u8,
    pub peer_reads_max: u8,
    pub receiver_not_ready_timer: u8,
    pub port: u8,
    pub timeout: u8,
    pub retries: u8,
    pub receiver_not_ready_retries: u8,
    pub alternative_port: u8,
    pub alternative_timeout: u8,
    pub rate_limit: u32,
}

/// `struct ibv_sge`
#[repr(C)]
pub struct Piece {
    pub address: u64,
    pub bytes: u32,
    pub local_key: u32,
}

/// `struct ibv_send_wr`, of the kinds that have a remote address.
#[repr(C)]
pub struct SendRequest {
    pub id: u64,
    next: *mut SendRequest,
    pub pieces: *mut Piece,
    pub count: c_int,
    pub opcode: c_uint,
    pub flags: c_uint,
    /// In network byte order.
    pub immediate: u32,
    pub remote_address: u64,
    pub remote_key: u32,
    rest: [u64; 9],
}

impl SendRequest {
    pub fn new(
        id: u64,
        opcode: c_uint,
        piece: &mut Piece,
        remote_address: u64,
        remote_key: u32,
    ) -> SendRequest {
        SendRequest {
            id,
            next: ptr::null_mut(),
            pieces: piece,
            count: 1,
            opcode,
            flags: SEND_SIGNALED,
            immediate: 0,
            remote_address,
            remote_key,
            rest: [0; 9],
        }
    }
}

/// `struct ibv_recv_wr`
#[repr(C)]
pub struct ReceiveRequest {
    pub id: u64,
    next: *mut ReceiveRequest,
    pub pieces: *mut Piece,
    pub count: c_int,
}

impl ReceiveRequest {
    pub fn new(id: u64, piece: &mut Piece) -> ReceiveRequest {
        ReceiveRequest { id, next: ptr::null_mut(), pieces: piece, count: 1 }
    }
}

/// `struct ibv_wc`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct WorkCompletion {
    pub id: u64,
    pub status: c_uint,
    opcode: c_uint,
    vendor_error: u32,
    pub bytes: u32,
    /// In network byte order.
    pub immediate: u32,
    pair: u32,
    source_pair: u32,
    pub flags: c_uint,
    rest: [u32; 2],
}

/// `struct ibv_device_attr`, to what we look at, and room for the rest.
#[repr(C)]
pub struct DeviceAttributes {
    firmware: [u8; 64],
    before_vendor: [u64; 4],
    pub vendor: u32,
    part: u32,
    hardware: u32,
    pairs_max: c_int,
    pub requests_max: c_int,
    flags: c_uint,
    pieces_max: [c_int; 2],
    queues_max: c_int,
    pub completions_max: c_int,
    pub regions_max: c_int,
    rest: [u32; 32],
}

/// `struct rdma_event_channel`
#[repr(C)]
pub struct EventChannel {
    pub fd: c_int,
}

/// `struct rdma_cm_id`, from its start to the addresses of its ends.
#[repr(C)]
pub struct Identifier {
    pub device: *mut Context,
    channel: *mut EventChannel,
    context: Handle,
    pub pair: *mut QueuePair,
    pub source: libc::sockaddr_storage,
    pub destination: libc::sockaddr_storage,
}

/// `struct rdma_conn_param`
#[repr(C)]
pub struct ConnectionParameters {
    pub private_data: *const c_void,
    pub private_data_bytes: u8,
    pub peer_reads_max: u8,
    pub reads_max: u8,
    pub flow_control: u8,
    pub retries: u8,
    pub receiver_not_ready_retries: u8,
    shared_receive: u8,
    pair: u32,
}

impl ConnectionParameters {
    /// As many reads at once as the devices can do; a receiver that is not ready is waited for.
    pub fn new(private_data: &[u8]) -> ConnectionParameters {
        ConnectionParameters {
            private_data: private_data.as_ptr().cast(),
            private_data_bytes: u8::try_from(private_data.len()).expect("private data are short"),
            peer_reads_max: u8::MAX,
            reads_max: u8::MAX,
            flow_control: 1,
            retries: 7,
            receiver_not_ready_retries: 7,
            shared_receive: 0,
            pair: 0,
        }
    }
}

/// `struct rdma_cm_event`, as the events of connections have it.
#[repr(C)]
pub struct Event {
    pub id: *mut Identifier,
    listener: *mut Identifier,
    pub kind: c_uint,
    pub status: c_int,
    pub parameters: ConnectionParameters,
}

/// `RDMA_PS_TCP`
pub const RELIABLE_PORTS: c_uint = 0x106;

/// `enum rdma_cm_event_type`
pub mod event {
    use std::ffi::c_uint;
    pub const ADDRESS_RESOLVED: c_uint = 0;
    pub const ROUTE_RESOLVED: c_uint = 2;
    pub const CONNECT_REQUEST: c_uint = 4;
    pub const REJECTED: c_uint = 8;
    pub const ESTABLISHED: c_uint = 9;
    pub const DISCONNECTED: c_uint = 10;
    pub const DEVICE_REMOVAL: c_uint = 11;
    pub const TIME_WAIT_EXIT: c_uint = 15;
}

/// `enum ibv_wc_status`
pub mod status {
    use std::ffi::c_uint;
    pub const SUCCESS: c_uint = 0;
    pub const FLUSHED: c_uint = 5;
    pub const REMOTE_INVALID: c_uint = 9;
    pub const REMOTE_ACCESS: c_uint = 10;
    pub const REMOTE_OPERATION: c_uint = 11;
}

/// `IBV_ACCESS_LOCAL_WRITE`
pub const LOCAL_WRITE: c_int = 1;
/// `IBV_ACCESS_REMOTE_WRITE`
pub const REMOTE_WRITE: c_int = 1 << 1;
/// `IBV_ACCESS_REMOTE_READ`
pub const REMOTE_READ: c_int = 1 << 2;
/// `IBV_PORT_ACTIVE`
pub const PORT_ACTIVE: c_uint = 4;
/// `IBV_MTU_1024`
pub const MTU_1024: c_uint = 3;
/// `IBV_QPT_RC`
pub const RELIABLE: c_uint = 2;
/// `IBV_SEND_SIGNALED`
const SEND_SIGNALED: c_uint = 1 << 1;
/// `IBV_WR_RDMA_WRITE`
pub const RDMA_WRITE: c_uint = 0;
/// `IBV_WR_SEND`
pub const SEND: c_uint = 2;
/// `IBV_WR_SEND_WITH_IMM`
pub const SEND_WITH_IMMEDIATE: c_uint = 3;
/// 0.64 ms, as `min_rnr_timer` has it.
pub const MIN_RNR_TIMER_640_US: u8 = 12;
/// `IBV_WC_WITH_IMM`
pub const WITH_IMMEDIATE: c_uint = 1 << 1;
/// `IBV_WR_RDMA_READ`
pub const RDMA_READ: c_uint = 4;

/// `enum ibv_qp_state`
pub mod state {
    use std::ffi::c_uint;
    pub const INIT: c_uint = 1;
    pub const READY_TO_RECEIVE: c_uint = 2;
    pub const READY_TO_SEND: c_uint = 3;
}

/// `enum ibv_qp_attr_mask`
pub mod mask {
    use std::ffi::c_int;
    const STATE: c_int = 1;
    /// What a queue pair is told on its way from one state to the next.
    pub const INIT: c_int = STATE | 1 << 3 | 1 << 4 | 1 << 5;
    pub const READY_TO_RECEIVE: c_int = STATE | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 20;
    pub const READY_TO_SEND: c_int = STATE | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 16;
    /// `IBV_QP_MIN_RNR_TIMER`
    pub const RECEIVER_NOT_READY_TIMER: c_int = 1 << 15;
}

/// A library that cannot be used here: which, why, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It is not installed.
    #[error("there is an RDMA device, but no {file}; install {package}")]
    Missing {
        /// Its file.
        file: &'static str,
        /// As Debian has it.
        package: &'static str,
    },
    /// It is another than we know.
    #[error("{file} has no {call}; it is older than rdma-core 28")]
    Unknown {
        /// Its file.
        file: &'static str,
        /// The call.
        call: &'static str,
    },
}

/// Declares the calls of a library with their types, and finds them in it.
macro_rules! library {
    ($(#[$doc:meta])* $library:ident, $file:literal, $package:literal, $prefix:literal:
     $($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        $(#[$doc])*
        pub struct $library {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $library {
            /// Looks for it and its calls.
            ///
            /// # Errors
            /// [`LoadError`]
            pub fn load() -> Result<$library, LoadError> {
                let file = concat!($file, "\0");
                // SAFETY: a name; a library of the system, whose initialisers we trust as every user of it does. It is never
                // unloaded.
                let library = unsafe { libc::dlopen(file.as_ptr().cast(), libc::RTLD_NOW) };
                if library.is_null() {
                    return Err(LoadError::Missing { file: $file, package: $package });
                }
                let find = |name: &'static CStr| {
                    // SAFETY: an open library and a name.
                    NonNull::new(unsafe { libc::dlsym(library, name.as_ptr()) }).ok_or(LoadError::Unknown {
                        file: $file,
                        call: name.to_str().expect("calls have names in ASCII"),
                    })
                };
                Ok($library {
                    // SAFETY: the type is that which the library's header declares for the call of this name.
                    $($name: unsafe {
                        let name = concat!($prefix, stringify!($name), "\0");
                        let name = CStr::from_bytes_with_nul(name.as_bytes()).expect("it ends with a nul");
                        std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($($argument),*) -> $result>(find(name)?)
                    },)*
                })
            }
        }
    };
}

library! {
    /// libibverbs' calls, without the `ibv_` that each begins with.
    Library, "libibverbs.so.1", "libibverbs1", "ibv_":
    get_device_list: fn(*mut c_int) -> *mut Handle;
    free_device_list: fn(*mut Handle) -> ();
    get_device_name: fn(Handle) -> *const c_char;
    open_device: fn(Handle) -> *mut Context;
    close_device: fn(*mut Context) -> c_int;
    query_device: fn(*mut Context, *mut DeviceAttributes) -> c_int;
    query_port: fn(*mut Context, u8, *mut PortAttributes) -> c_int;
    query_gid: fn(*mut Context, u8, c_int, *mut Gid) -> c_int;
    alloc_pd: fn(*mut Context) -> Handle;
    dealloc_pd: fn(Handle) -> c_int;
    reg_mr: fn(Handle, *mut c_void, usize, c_int) -> *mut MemoryRegion;
    reg_mr_iova: fn(Handle, *mut c_void, usize, u64, c_int) -> *mut MemoryRegion;
    dereg_mr: fn(*mut MemoryRegion) -> c_int;
    create_comp_channel: fn(*mut Context) -> *mut CompletionChannel;
    destroy_comp_channel: fn(*mut CompletionChannel) -> c_int;
    get_cq_event: fn(*mut CompletionChannel, *mut *mut CompletionQueue, *mut Handle) -> c_int;
    ack_cq_events: fn(*mut CompletionQueue, c_uint) -> ();
    create_cq: fn(*mut Context, c_int, Handle, *mut CompletionChannel, c_int) -> *mut CompletionQueue;
    destroy_cq: fn(*mut CompletionQueue) -> c_int;
    create_qp: fn(Handle, *mut QueuePairInit) -> *mut QueuePair;
    modify_qp: fn(*mut QueuePair, *mut QueuePairAttributes, c_int) -> c_int;
    destroy_qp: fn(*mut QueuePair) -> c_int;
    wc_status_str: fn(c_uint) -> *const c_char;
}

library! {
    /// librdmacm's calls, without the `rdma_` that each begins with.
    ConnectionManager, "librdmacm.so.1", "librdmacm1", "rdma_":
    create_event_channel: fn() -> *mut EventChannel;
    destroy_event_channel: fn(*mut EventChannel) -> ();
    get_cm_event: fn(*mut EventChannel, *mut *mut Event) -> c_int;
    ack_cm_event: fn(*mut Event) -> c_int;
    create_id: fn(*mut EventChannel, *mut *mut Identifier, Handle, c_uint) -> c_int;
    destroy_id: fn(*mut Identifier) -> c_int;
    migrate_id: fn(*mut Identifier, *mut EventChannel) -> c_int;
    bind_addr: fn(*mut Identifier, *mut libc::sockaddr) -> c_int;
    resolve_addr: fn(*mut Identifier, *mut libc::sockaddr, *mut libc::sockaddr, c_int) -> c_int;
    resolve_route: fn(*mut Identifier, c_int) -> c_int;
    listen: fn(*mut Identifier, c_int) -> c_int;
    create_qp: fn(*mut Identifier, Handle, *mut QueuePairInit) -> c_int;
    destroy_qp: fn(*mut Identifier) -> ();
    connect: fn(*mut Identifier, *mut ConnectionParameters) -> c_int;
    accept: fn(*mut Identifier, *mut ConnectionParameters) -> c_int;
    reject: fn(*mut Identifier, *const c_void, u8) -> c_int;
    disconnect: fn(*mut Identifier) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn the_libraries_have_every_call_that_we_make_of_them() {
        for loaded in [Library::load().err(), ConnectionManager::load().err()] {
            match loaded {
                None => {}
                Some(LoadError::Missing { file, .. }) => eprintln!("SKIPPED: {file} is not here"),
                Some(error) => panic!("{error}"),
            }
        }
    }

    /// By a C program with the header of rdma-core 44, on x86-64.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn what_the_library_reads_and_writes_is_laid_out_as_its_header_has_it() {
        assert_eq!(offset_of!(Context, poll_cq), 8 + 88);
        assert_eq!(offset_of!(Context, post_send), 8 + 200);
        assert_eq!(offset_of!(QueuePair, number), 52);
        assert_eq!((size_of::<MemoryRegion>(), offset_of!(MemoryRegion, remote_key)), (48, 40));
        assert_eq!((size_of::<PortAttributes>(), offset_of!(PortAttributes, gids)), (56, 12));
        assert_eq!((size_of::<QueuePairInit>(), offset_of!(QueuePairInit, kind)), (64, 52));
        assert_eq!((size_of::<Address>(), offset_of!(Address, port)), (32, 30));
        assert_eq!((offset_of!(Address, lid), offset_of!(Address, is_global)), (24, 29));
        assert_eq!(size_of::<QueuePairAttributes>(), 144);
        assert_eq!(offset_of!(QueuePairAttributes, access), 32);
        assert_eq!(offset_of!(QueuePairAttributes, address), 56);
        assert_eq!(offset_of!(QueuePairAttributes, partition_index), 120);
        assert_eq!(offset_of!(QueuePairAttributes, reads_max), 126);
        assert_eq!(offset_of!(QueuePairAttributes, port), 129);
        assert_eq!((size_of::<SendRequest>(), offset_of!(SendRequest, remote_address)), (128, 40));
        assert_eq!((size_of::<WorkCompletion>(), offset_of!(WorkCompletion, status)), (48, 8));
        assert_eq!((offset_of!(WorkCompletion, immediate), offset_of!(WorkCompletion, flags)), (24, 36));
        assert_eq!(size_of::<Piece>(), 16);
        assert_eq!((offset_of!(Context, req_notify_cq), offset_of!(Context, post_recv)), (8 + 96, 8 + 208));
        assert_eq!((offset_of!(CompletionChannel, fd), size_of::<ReceiveRequest>()), (8, 32));
        assert_eq!(
            (offset_of!(DeviceAttributes, vendor), offset_of!(DeviceAttributes, requests_max)),
            (96, 112)
        );
        assert_eq!(
            (offset_of!(DeviceAttributes, completions_max), offset_of!(DeviceAttributes, regions_max)),
            (132, 136)
        );
        assert!(size_of::<DeviceAttributes>() >= 232);
        assert_eq!((offset_of!(Identifier, pair), offset_of!(Identifier, source)), (24, 32));
        assert_eq!(offset_of!(Identifier, destination), 160);
        assert_eq!((size_of::<ConnectionParameters>(), offset_of!(Event, parameters)), (24, 24));
    }
}
