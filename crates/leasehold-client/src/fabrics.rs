//! Which kind of fabric a session's data go by.

use crate::error::OpenError;
use bytes::Bytes;
use leasehold_fabric::iwarp::{self, Iwarp, OverTls};
use leasehold_fabric::verbs::{self, Verbs};
use leasehold_fabric::{ConnectError, Endpoint, Fabric, Handler, Kind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long connecting over TCP may take, or by a device that was asked for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a device that nobody asked for may take: then TCP is tried.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a server can be reached.
pub(crate) struct Offered {
    pub(crate) address: SocketAddr,
    /// By these kinds; empty: by iWARP, says a server from before there was a choice.
    pub(crate) by: Vec<String>,
    /// What it shows over TLS.
    pub(crate) tls_key: Bytes,
}

impl Offered {
    fn has(&self, kind: Kind) -> bool {
        match &self.by[..] {
            [] => kind == Kind::Iwarp,
            by => by.iter().any(|name| name == kind.name()),
        }
    }
}

/// Connects by the kind that is asked for; if none, by an RDMA device where both ends have one that reaches the other, else
/// over TCP, as the server has it.
pub(crate) fn connect<H: Handler>(
    asked: Option<Kind>,
    offered: &Offered,
    token: &[u8],
    handler: impl Fn() -> Box<H>,
) -> Result<(Arc<dyn Endpoint>, Bytes), OpenError> {
    let address = offered.address;
    let kind = match asked {
        Some(asked) if !offered.has(asked) => {
            return Err(OpenError::NotOffered { asked: asked.name(), offered: offered.by.join(" and ") });
        }
        Some(asked) => asked,
        None if offered.has(Kind::IwarpTls) => Kind::IwarpTls,
        None if offered.has(Kind::Iwarp) => Kind::Iwarp,
        None => Kind::Verbs,
    };
    if asked.is_none()
        && kind == Kind::Iwarp
        && offered.has(Kind::Verbs)
        && !address.ip().is_loopback()
        && let Ok(verbs) = verbs()
    {
        match verbs.connect(address, token, handler(), DEVICE_TIMEOUT) {
            // No device leads there: the token has not been seen by anybody.
            Err(error @ ConnectError::Unreachable { .. }) => {
                tracing::debug!(%error, "data over TCP");
            }
            connected => return Ok(connected?),
        }
    }
    let iwarp = || iwarp().map_err(OpenError::Fabric);
    Ok(match kind {
        Kind::Verbs => {
            let verbs = verbs().map_err(|error| OpenError::Verbs(error.to_string()))?;
            verbs.connect(address, token, handler(), CONNECT_TIMEOUT)?
        }
        Kind::Iwarp => iwarp()?.connect(address, token, handler(), CONNECT_TIMEOUT)?,
        Kind::IwarpTls => {
            let fabric = OverTls::new(iwarp()?, offered.tls_key.clone());
            fabric.connect(address, token, handler(), CONNECT_TIMEOUT)?
        }
    })
}

/// One for the whole process: its threads serve every session.
fn iwarp() -> std::io::Result<Arc<Iwarp>> {
    static IWARP: Mutex<Option<Arc<Iwarp>>> = Mutex::new(None);
    let mut iwarp = IWARP.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(iwarp) = &*iwarp {
        return Ok(iwarp.clone());
    }
    Ok(iwarp.insert(Arc::new(Iwarp::new(iwarp::Config::default())?)).clone())
}

/// Looked for once.
fn verbs() -> Result<&'static Verbs, &'static verbs::OpenError> {
    static VERBS: OnceLock<Result<Verbs, verbs::OpenError>> = OnceLock::new();
    VERBS.get_or_init(|| Verbs::open(verbs::Config::default())).as_ref()
}
