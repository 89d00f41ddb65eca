//! RDMA devices: RoCE and InfiniBand, by libibverbs and librdmacm, which are looked for at run time.
//!
//! The device places the bytes and checks the keys. Each connection has a protection domain of its own, so that one's keys
//! are of no use to another. A key is a registration of the memory that it opens, and its fence is the end of that
//! registration; a device for which that is no proof is not used (`docs/wire.md`).
//!
//! Between our own ends a holder whose lease is revoked keeps its others: the ends agree on it (`verbs/control.rs`). To another
//! peer a key that was revoked is unknown, and the device ends a connection that uses it.
//!
//! A tag's first byte has the address that it has within its page of 4 KiB, since devices map pages: for a lease that begins
//! on a block, 0.

mod connect;
mod connection;
pub(crate) mod control;
mod keys;
#[doc(hidden)]
pub mod library;
mod resources;
mod sender;

use crate::{ConnectError, Endpoint, Fabric, Gate, Handler, ListenError, Listener};
use bytes::Bytes;
use library::{ConnectionManager, Library, LoadError};
use resources::Device;
use std::ffi::CStr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Where the kernel has its RDMA devices.
const DEVICES: &str = "/sys/class/infiniband";

/// Settings of a [`Verbs`] fabric. The defaults are what Leasehold runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tags on a connection, live and revoked; fewer if the device has less.
    pub tags_max: usize,
    /// Operations that wait on a connection.
    pub queue_max: usize,
    /// Connections.
    pub connections_max: usize,
    /// How long a peer may take to set up a connection.
    pub setup_timeout: Duration,
    /// How long a closed connection waits for what it was given last to have been sent.
    pub linger: Duration,
    /// How long a peer of our own may take to write its last under a revoked tag, before the device cuts it off.
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            tags_max: 65_536,
            queue_max: 65_536,
            connections_max: 4096,
            setup_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(1),
            drain: Duration::from_millis(500),
        }
    }
}

/// Why RDMA devices cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// None.
    #[error("this host has no RDMA device; `rdma link` shows those it has")]
    NoDevice,
    /// No library.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// No device that we can trust with memory, or can open.
    #[error("no RDMA device here can be used: {0}")]
    Unfit(String),
}

/// The RDMA devices of this host.
pub struct Verbs {
    shared: Arc<Shared>,
}

/// What all connections use.
pub(crate) struct Shared {
    verbs: Library,
    manager: ConnectionManager,
    config: Config,
    places: AtomicUsize,
}

impl Verbs {
    /// Finds the libraries, and a device that can be used.
    ///
    /// # Errors
    /// [`OpenError`], with the remedy.
    pub fn open(config: Config) -> Result<Verbs, OpenError> {
        if std::fs::read_dir(DEVICES).map_or(0, Iterator::count) == 0 {
            return Err(OpenError::NoDevice);
        }
        let (verbs, manager) = (Library::load()?, ConnectionManager::load()?);
        let shared = Arc::new(Shared { verbs, manager, config, places: AtomicUsize::new(0) });
        shared.find_a_device()?;
        Ok(Verbs { shared })
    }
}

impl Shared {
    fn find_a_device(&self) -> Result<(), OpenError> {
        let mut count = 0;
        // SAFETY: as ibv_get_device_list(3) has it; the list is freed below, after its last use.
        let list = unsafe { (self.verbs.get_device_list)(&mut count) };
        if list.is_null() {
            return Err(OpenError::NoDevice);
        }
        // SAFETY: the list has `count` devices.
        let devices = unsafe { std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0)) };
        let mut unfit = Vec::new();
        for device in devices {
            // SAFETY: a device of the list; its name lives as long as the list.
            let (context, name) = unsafe {
                ((self.verbs.open_device)(*device), CStr::from_ptr((self.verbs.get_device_name)(*device)))
            };
            let name = name.to_string_lossy();
            if context.is_null() {
                unfit.push(format!("{name} cannot be opened (is /dev/infiniband there?)"));
                continue;
            }
            let found = Device::query(self, context);
            // SAFETY: open, and not used any more.
            unsafe { (self.verbs.close_device)(context) };
            match found {
                Ok(device) if device.can_fence() => {
                    unfit.clear();
                    break;
                }
                Ok(_) => unfit.push(format!(
                    "{name} is siw, whose deregistration is no fence; --fabric iwarp speaks with it over TCP"
                )),
                Err(error) => unfit.push(format!("{name}: {error}")),
            }
        }
        let found = !devices.is_empty() && unfit.is_empty();
        // SAFETY: no device of the list is used any more.
        unsafe { (self.verbs.free_device_list)(list) };
        if found { Ok(()) } else { Err(OpenError::Unfit(unfit.join("; "))) }
    }
}

impl Fabric for Verbs {
    fn listen(&self, address: SocketAddr, gate: Arc<dyn Gate>) -> Result<Box<dyn Listener>, ListenError> {
        connect::listen(&self.shared, address, gate)
    }

    fn connect(
        &self,
        address: SocketAddr,
        private_data: &[u8],
        handler: Box<dyn Handler>,
        timeout: Duration,
    ) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
        connect::connect(&self.shared, address, private_data, handler, timeout)
    }
}

/// Room for one connection.
pub(crate) struct Place(Arc<Shared>);

impl Place {
    /// If there is.
    fn take(shared: &Arc<Shared>) -> Option<Place> {
        let place = Place(shared.clone());
        (shared.places.fetch_add(1, Ordering::AcqRel) < shared.config.connections_max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_sub(1, Ordering::AcqRel);
    }
}
