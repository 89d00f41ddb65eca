//! The kinds of fabric that a server accepts data by: RDMA over TCP, the host's RDMA devices, or both at the same address.

use crate::engine::{Config, StartError, fabric_config};
use bytes::Bytes;
use leasehold_fabric::iwarp::{self, Iwarp, ServerTls};
use leasehold_fabric::verbs::{self, Verbs};
use leasehold_fabric::{ConnectError, Endpoint, Fabric, Gate, Handler, Kind, ListenError, Listener};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// At least one of them is there.
pub(crate) struct Fabrics {
    iwarp: Option<Iwarp>,
    verbs: Option<Verbs>,
}

impl Fabrics {
    /// Those that the settings name; if none, iWARP, and the devices if there are any.
    pub(crate) fn open(config: &Config) -> Result<Fabrics, StartError> {
        let tls = (config.fabric == Some(Kind::IwarpTls)).then(ServerTls::generate).transpose();
        let tls = tls.map_err(StartError::Tls)?;
        let iwarp = match config.fabric {
            Some(Kind::Verbs) => None,
            _ => {
                let config = iwarp::Config { tls, ..fabric_config(config) };
                Some(Iwarp::new(config).map_err(StartError::Thread)?)
            }
        };
        // Nobody connects to the loopback by a device.
        let verbs = match config.fabric {
            Some(Kind::Iwarp | Kind::IwarpTls) => None,
            None if config.data_address.ip().is_loopback() => None,
            wanted => match (Verbs::open(verbs_config(config)), wanted) {
                (Ok(verbs), _) => Some(verbs),
                (Err(error), Some(_)) => return Err(StartError::Verbs(error)),
                (Err(verbs::OpenError::NoDevice), None) => None,
                (Err(error), None) => {
                    tracing::warn!(%error, "data by TCP only");
                    None
                }
            },
        };
        Ok(Fabrics { iwarp, verbs })
    }

    /// What iWARP counts.
    pub(crate) fn counters(&self) -> Arc<iwarp::Counters> {
        self.iwarp.as_ref().map(Iwarp::counters).unwrap_or_default()
    }
}

fn verbs_config(config: &Config) -> verbs::Config {
    let iwarp::Config { tags_max, connections_max, .. } = fabric_config(config);
    verbs::Config { tags_max, connections_max, ..verbs::Config::default() }
}

impl Fabric for Fabrics {
    fn listen(&self, address: SocketAddr, gate: Arc<dyn Gate>) -> Result<Box<dyn Listener>, ListenError> {
        let iwarp = match &self.iwarp {
            Some(iwarp) => Some(iwarp.listen(address, gate.clone())?),
            None => None,
        };
        // Their ports are not TCP's, so both can have the same.
        let address = iwarp.as_ref().map_or(address, |iwarp| iwarp.local_address());
        let verbs = match (&self.verbs, &iwarp) {
            (None, _) => None,
            (Some(verbs), None) => Some(verbs.listen(address, gate)?),
            (Some(verbs), Some(_)) => match verbs.listen(address, gate) {
                Ok(listener) => Some(listener),
                Err(error) => {
                    tracing::warn!(%error, "data by TCP only: is it the address of an RDMA device?");
                    None
                }
            },
        };
        Ok(Box::new(Listeners(iwarp.into_iter().chain(verbs).collect())))
    }

    fn connect(
        &self,
        address: SocketAddr,
        private_data: &[u8],
        handler: Box<dyn Handler>,
        timeout: Duration,
    ) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
        let one: &dyn Fabric = match (&self.iwarp, &self.verbs) {
            (Some(iwarp), _) => iwarp,
            (None, Some(verbs)) => verbs,
            (None, None) => unreachable!("at least one is there"),
        };
        one.connect(address, private_data, handler, timeout)
    }
}

/// At the same address, one of each kind.
struct Listeners(Vec<Box<dyn Listener>>);

impl Listener for Listeners {
    fn local_address(&self) -> SocketAddr {
        self.0[0].local_address()
    }

    fn kinds(&self) -> Vec<Kind> {
        self.0.iter().flat_map(|listener| listener.kinds()).collect()
    }

    fn tls_key(&self) -> Option<Bytes> {
        self.0.iter().find_map(|listener| listener.tls_key())
    }
}
