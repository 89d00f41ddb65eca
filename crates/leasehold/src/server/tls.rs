//! The server's certificate, and whose clients may come in.

use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// How long a peer may take until it has shown who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What the directory of the setting `tls` has.
pub(crate) const CA: &str = "ca.pem";
pub(crate) const CERTIFICATE: &str = "server.pem";
pub(crate) const KEY: &str = "server.key";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path:?}: {source}; `leasehold cert` makes what the setting `tls` needs")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The files are there, and make no sense.
    #[error("the certificates in {directory:?} cannot be used: {why}")]
    Unusable {
        /// Where.
        directory: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// TLS by the files in `directory`. A client shows a certificate that `ca.pem` signed, or none: then a token with each call.
pub(crate) fn load(directory: &Path) -> Result<ServerTlsConfig, TlsError> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
    };
    let (ca, certificate, key) = (read(CA)?, read(CERTIFICATE)?, read(KEY)?);
    Ok(ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(ca))
        .client_auth_optional(true)
        .timeout(HANDSHAKE))
}
