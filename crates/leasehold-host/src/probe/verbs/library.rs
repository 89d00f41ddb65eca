//! What we use of libibverbs. It is looked for at run time, and only if there is a device: few hosts have one.
//!
//! The types are those of `infiniband/verbs.h`, with its names, as far as we touch them; what only the library touches is
//! a [`Handle`]. That interface has been stable since 2006; the tests have the sizes that its header gives.

use super::super::report::Verdict;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{self, NonNull};

const LIBRARY: &CStr = c"libibverbs.so.1";

/// A pointer to what the library alone looks into.
pub(super) type Handle = *mut c_void;

/// `struct ibv_context`, from its start to the last operation that we call.
#[repr(C)]
pub(super) struct Context {
    device: Handle,
    before_poll: [Handle; 11],
    pub(super) poll_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut WorkCompletion) -> c_int,
    before_post: [Handle; 13],
    pub(super) post_send:
        unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
}

/// `struct ibv_cq`, its start.
#[repr(C)]
pub(super) struct CompletionQueue {
    context: *mut Context,
}

/// `struct ibv_qp`, its start.
#[repr(C)]
pub(super) struct QueuePair {
    pub(super) context: *mut Context,
    before_number: [Handle; 5],
    handle: u32,
    pub(super) number: u32,
}

/// `struct ibv_mr`
#[repr(C)]
pub(super) struct MemoryRegion {
    context: *mut Context,
    domain: Handle,
    pub(super) address: *mut c_void,
    pub(super) bytes: usize,
    handle: u32,
    pub(super) local_key: u32,
    pub(super) remote_key: u32,
}

/// `struct ibv_port_attr`
#[repr(C)]
#[derive(Default)]
pub(super) struct PortAttributes {
    pub(super) state: c_uint,
    max_mtu: c_uint,
    pub(super) active_mtu: c_uint,
    pub(super) gids: c_int,
    rest: [u32; 10],
}

/// `union ibv_gid`
pub(super) type Gid = [u8; 16];

/// `struct ibv_qp_cap`
#[repr(C)]
#[derive(Default)]
pub(super) struct Capacity {
    pub(super) max_send_wr: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_send_sge: u32,
    pub(super) max_recv_sge: u32,
    pub(super) max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`
#[repr(C)]
pub(super) struct QueuePairInit {
    context: Handle,
    pub(super) send: *mut CompletionQueue,
    pub(super) receive: *mut CompletionQueue,
    shared_receive: Handle,
    pub(super) capacity: Capacity,
    pub(super) kind: c_uint,
    signal_all: c_int,
}

impl QueuePairInit {
    pub(super) fn new(completions: *mut CompletionQueue, capacity: Capacity, kind: c_uint) -> QueuePairInit {
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
pub(super) struct Address {
    pub(super) gid: [u64; 2],
    pub(super) flow_label: u32,
    pub(super) gid_index: u8,
    pub(super) hops_max: u8,
    pub(super) traffic_class: u8,
    pub(super) lid: u16,
    pub(super) service_level: u8,
    pub(super) path_bits: u8,
    pub(super) static_rate: u8,
    pub(super) is_global: u8,
    pub(super) port: u8,
}

/// `struct ibv_qp_attr`
#[repr(C)]
#[derive(Default)]
pub(super) struct QueuePairAttributes {
    pub(super) state: c_uint,
    pub(super) current_state: c_uint,
    pub(super) path_mtu: c_uint,
    pub(super) migration: c_uint,
    pub(super) key: u32,
    pub(super) receive_psn: u32,
    pub(super) send_psn: u32,
    pub(super) peer: u32,
    pub(super) access: c_uint,
    pub(super) capacity: Capacity,
    pub(super) address: Address,
    pub(super) alternative: Address,
    pub(super) partition_index: u16,
    pub(super) alternative_partition_index: u16,
    pub(super) notify: u8,
    pub(super) draining: u8,
    pub(super) reads_max: u8,
    pub(super) peer_reads_max: u8,
    pub(super) receiver_not_ready_timer: u8,
    pub(super) port: u8,
    pub(super) timeout: u8,
    pub(super) retries: u8,
    pub(super) receiver_not_ready_retries: u8,
    pub(super) alternative_port: u8,
    pub(super) alternative_timeout: u8,
    pub(super) rate_limit: u32,
}

/// `struct ibv_sge`
#[repr(C)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) bytes: u32,
    pub(super) local_key: u32,
}

/// `struct ibv_send_wr`, of the kinds that have a remote address.
#[repr(C)]
pub(super) struct SendRequest {
    pub(super) id: u64,
    next: *mut SendRequest,
    pub(super) pieces: *mut Piece,
    pub(super) count: c_int,
    pub(super) opcode: c_uint,
    pub(super) flags: c_uint,
    immediate: u32,
    pub(super) remote_address: u64,
    pub(super) remote_key: u32,
    rest: [u64; 9],
}

impl SendRequest {
    pub(super) fn new(
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

/// `struct ibv_wc`
#[repr(C)]
#[derive(Default)]
pub(super) struct WorkCompletion {
    pub(super) id: u64,
    pub(super) status: c_uint,
    opcode: c_uint,
    rest: [u32; 8],
}

/// `IBV_ACCESS_LOCAL_WRITE`
pub(super) const LOCAL_WRITE: c_int = 1;
/// `IBV_ACCESS_REMOTE_WRITE`
pub(super) const REMOTE_WRITE: c_int = 1 << 1;
/// `IBV_ACCESS_REMOTE_READ`
pub(super) const REMOTE_READ: c_int = 1 << 2;
/// `IBV_PORT_ACTIVE`
pub(super) const PORT_ACTIVE: c_uint = 4;
/// `IBV_MTU_1024`
pub(super) const MTU_1024: c_uint = 3;
/// `IBV_QPT_RC`
pub(super) const RELIABLE: c_uint = 2;
/// `IBV_SEND_SIGNALED`
const SEND_SIGNALED: c_uint = 1 << 1;
/// `IBV_WR_RDMA_WRITE`
pub(super) const RDMA_WRITE: c_uint = 0;
/// `IBV_WR_RDMA_READ`
pub(super) const RDMA_READ: c_uint = 4;

/// `enum ibv_qp_state`
pub(super) mod state {
    use std::ffi::c_uint;
    pub(in super::super) const INIT: c_uint = 1;
    pub(in super::super) const READY_TO_RECEIVE: c_uint = 2;
    pub(in super::super) const READY_TO_SEND: c_uint = 3;
}

/// `enum ibv_qp_attr_mask`
pub(super) mod mask {
    use std::ffi::c_int;
    const STATE: c_int = 1;
    /// What a queue pair is told on its way from one state to the next.
    pub(in super::super) const INIT: c_int = STATE | 1 << 3 | 1 << 4 | 1 << 5;
    pub(in super::super) const READY_TO_RECEIVE: c_int =
        STATE | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 20;
    pub(in super::super) const READY_TO_SEND: c_int = STATE | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 16;
}

/// Declares the calls with their types, and finds them in the library.
macro_rules! calls {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The library's calls, without the `ibv_` that each begins with.
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Library {
            fn find_all(find: impl Fn(&str) -> Result<NonNull<c_void>, Verdict>) -> Result<Library, Verdict> {
                Ok(Library {
                    // SAFETY: the type is that which infiniband/verbs.h declares for the call of this name.
                    $($name: unsafe {
                        std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($($argument),*) -> $result>(
                            find(concat!("ibv_", stringify!($name), "\0"))?,
                        )
                    },)*
                })
            }
        }
    };
}

calls! {
    get_device_list: fn(*mut c_int) -> *mut Handle;
    free_device_list: fn(*mut Handle) -> ();
    get_device_name: fn(Handle) -> *const c_char;
    open_device: fn(Handle) -> *mut Context;
    close_device: fn(*mut Context) -> c_int;
    query_port: fn(*mut Context, u8, *mut PortAttributes) -> c_int;
    query_gid: fn(*mut Context, u8, c_int, *mut Gid) -> c_int;
    alloc_pd: fn(*mut Context) -> Handle;
    dealloc_pd: fn(Handle) -> c_int;
    reg_mr: fn(Handle, *mut c_void, usize, c_int) -> *mut MemoryRegion;
    dereg_mr: fn(*mut MemoryRegion) -> c_int;
    create_cq: fn(*mut Context, c_int, Handle, Handle, c_int) -> *mut CompletionQueue;
    destroy_cq: fn(*mut CompletionQueue) -> c_int;
    create_qp: fn(Handle, *mut QueuePairInit) -> *mut QueuePair;
    modify_qp: fn(*mut QueuePair, *mut QueuePairAttributes, c_int) -> c_int;
    destroy_qp: fn(*mut QueuePair) -> c_int;
}

impl Library {
    pub(super) fn load() -> Result<Library, Verdict> {
        // SAFETY: a library of the system, whose initialisers we trust as every user of it does. It is never unloaded.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            let why = "there is an RDMA device, but no libibverbs.so.1; install it";
            return Err(Verdict::not_applicable(why));
        }
        Library::find_all(|name| {
            let name = CStr::from_bytes_until_nul(name.as_bytes()).expect("names end with a nul");
            // SAFETY: an open library and a name.
            NonNull::new(unsafe { libc::dlsym(library, name.as_ptr()) }).ok_or_else(|| Verdict::CouldNot {
                why: format!("libibverbs has no {}", name.to_string_lossy()),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn the_library_has_every_call_that_we_make_of_it() {
        match Library::load() {
            Ok(_) => {}
            Err(Verdict::NotApplicable { why }) => eprintln!("SKIPPED: {why}"),
            Err(verdict) => panic!("{verdict:?}"),
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
        assert_eq!(size_of::<Piece>(), 16);
    }
}
