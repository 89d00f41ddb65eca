//! A fabric in memory, which delays, loses and breaks what it carries.
//!
//! ```text
//!   write, send, read --> outgoing --(sender)--> the peer's incoming --(receiver)--> placed, or heard
//! ```
//! Each end has two tasks. The stream stays in order, as a reliable transport's; a write goes in parts, and each part is let
//! in under its tag first and placed some time later. A fence waits for what has been let in and is not placed.

mod end;

use super::dawdle;
use crate::sync::{Mutex, MutexGuard};
use bytes::Bytes;
use end::End;
use leasehold_fabric::{
    Admitted, CloseReason, ConnectError, Endpoint, Fabric, Gate, Handler, Kind, ListenError, Listener,
    PRIVATE_DATA_MAX,
};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

const MESSAGE_MAX: usize = 4096;
const PART_MAX: u64 = 6000;

/// What goes wrong, each once in so many parts of writes; 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// A part takes longer to be placed than anybody waits for its fence.
    pub(crate) stall: u64,
    /// A part comes with other bytes, which is noticed after it was placed.
    pub(crate) poison: u64,
    /// The connection is lost, with all that is on its way.
    pub(crate) cut: u64,
}

/// What a fabric that is broken on purpose leaves out, to show that it is missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Skip {
    #[default]
    Nothing,
    /// A fence does not wait for what has been let in.
    Proof,
    /// A fence does not revoke.
    Fence,
    /// Nobody looks at the checksum of a frame.
    Checksum,
}

/// See the module.
pub(crate) struct FakeFabric(Arc<Network>);

struct Network {
    weather: Weather,
    skip: Skip,
    listeners: Mutex<BTreeMap<SocketAddr, Arc<dyn Gate>>>,
    ends: Mutex<Vec<Weak<End>>>,
    next_port: AtomicU32,
    tags: AtomicU32,
    /// Parts that came under a tag that was revoked by then.
    late: AtomicU64,
}

impl FakeFabric {
    pub(crate) fn new(weather: Weather, skip: Skip) -> FakeFabric {
        FakeFabric(Arc::new(Network {
            weather,
            skip,
            listeners: Mutex::default(),
            ends: Mutex::default(),
            next_port: AtomicU32::new(1),
            tags: AtomicU32::new(1),
            late: AtomicU64::new(0),
        }))
    }

    /// How many parts of writes came too late, and were dropped.
    pub(crate) fn late(&self) -> u64 {
        self.0.late.load(Ordering::Relaxed)
    }

    /// All connections are lost, with what is on its way.
    pub(crate) fn cut(&self) {
        let ends: Vec<_> = self.0.ends().iter().filter_map(Weak::upgrade).collect();
        for end in ends {
            end.shut(CloseReason::Transport("the network is gone".to_owned()));
        }
    }
}

impl Drop for FakeFabric {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Network {
    fn ends(&self) -> MutexGuard<'_, Vec<Weak<End>>> {
        self.ends.lock().expect("no panic while held")
    }

    fn listeners(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<dyn Gate>>> {
        self.listeners.lock().expect("no panic while held")
    }
}

impl Fabric for FakeFabric {
    fn listen(&self, mut address: SocketAddr, gate: Arc<dyn Gate>) -> Result<Box<dyn Listener>, ListenError> {
        if address.port() == 0 {
            address.set_port(self.0.next_port.fetch_add(1, Ordering::Relaxed) as u16);
        }
        if self.0.listeners().insert(address, gate).is_some() {
            return Err(ListenError::Bind { address, source: io::ErrorKind::AddrInUse.into() });
        }
        Ok(Box::new(Listening { address, network: self.0.clone() }))
    }

    fn connect(
        &self,
        address: SocketAddr,
        private_data: &[u8],
        mut handler: Box<dyn Handler>,
        _timeout: Duration,
    ) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
        let length = private_data.len();
        if length > PRIVATE_DATA_MAX {
            return Err(ConnectError::PrivateDataTooLong { length, max: PRIVATE_DATA_MAX });
        }
        dawdle();
        let unreachable =
            || ConnectError::Unreachable { address, source: io::ErrorKind::ConnectionRefused.into() };
        let gate = self.0.listeners().get(&address).cloned().ok_or_else(unreachable)?;
        let here = SocketAddr::new(address.ip(), self.0.next_port.fetch_add(1, Ordering::Relaxed) as u16);
        let rejected =
            |why: Bytes| ConnectError::Rejected { address, why: String::from_utf8_lossy(&why).into_owned() };
        let Admitted { handler: mut theirs, private_data } =
            gate.admit(private_data, here).map_err(rejected)?;
        let (near, far) = (End::new(&self.0, address), End::new(&self.0, here));
        near.other.set(Arc::downgrade(&far)).expect("new");
        far.other.set(Arc::downgrade(&near)).expect("new");
        self.0.ends().extend([Arc::downgrade(&near), Arc::downgrade(&far)]);
        theirs.connected(far.clone());
        far.start(theirs);
        handler.connected(near.clone());
        near.start(handler);
        Ok((near, private_data))
    }
}

struct Listening {
    address: SocketAddr,
    network: Arc<Network>,
}

impl Listener for Listening {
    fn local_address(&self) -> SocketAddr {
        self.address
    }

    fn kinds(&self) -> Vec<Kind> {
        vec![Kind::Iwarp]
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.network.listeners().remove(&self.address);
    }
}

/// What the traits ask of every fabric, with real threads.
mod conformance {
    use super::{FakeFabric, Skip, Weather};

    leasehold_fabric::conformance_suite!(FakeFabric::new(Weather::default(), Skip::Nothing));
}
