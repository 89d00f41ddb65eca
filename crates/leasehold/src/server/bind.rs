//! Ports and sockets, and what to say when they cannot be had.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// The owner and the group of the socket may connect: they can do what they like to the store anyway.
const SOCKET_MODE: u32 = 0o660;

/// Why a port or socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody has it.
    #[error(
        "cannot listen on {address} for the {what}: the port is in use; stop who has it, or choose another with {flag}"
    )]
    PortInUse {
        /// What for.
        what: &'static str,
        /// Which flag sets it.
        flag: &'static str,
        /// Where.
        address: SocketAddr,
    },
    /// Another reason.
    #[error("cannot listen on {address} for the {what}: {source}; choose another address with {flag}")]
    Port {
        /// What for.
        what: &'static str,
        /// Which flag sets it.
        flag: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A server answers there.
    #[error(
        "the socket {path:?} belongs to a server that runs; stop it, or choose another path with --socket"
    )]
    SocketInUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{path:?} exists and is not a socket; remove it, or choose another path with --socket")]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// The kernel takes no more than 107 bytes.
    #[error(
        "the socket's path {path:?} has {length} bytes, and the system allows 107; choose a shorter one with --socket"
    )]
    SocketPathTooLong {
        /// Where.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Another reason.
    #[error(
        "cannot make the socket {path:?}: {source}; check that its directory exists and can be written, or use --socket"
    )]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A port that listens.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
}

pub(crate) async fn tcp(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<Port, BindError> {
    let failed = |source: io::Error| match source.kind() {
        ErrorKind::AddrInUse => BindError::PortInUse { what, flag, address },
        _ => BindError::Port { what, flag, address, source },
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Port { listener, address })
}

/// A socket's name, removed when the server ends.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // If it is gone already, all is well.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens at `path`. A socket that nobody serves any more is replaced.
pub(crate) async fn unix(path: PathBuf) -> Result<(Socket, UnixListener), BindError> {
    const PATH_BYTES_MAX: usize = 107;
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        return Err(BindError::SocketPathTooLong { path, length });
    }
    match UnixStream::connect(&path).await {
        Ok(_) => return Err(BindError::SocketInUse { path }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            let is_socket = std::fs::symlink_metadata(&path)
                .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()));
            if !is_socket {
                return Err(BindError::NotASocket { path });
            }
            // If it cannot be removed, binding says so.
            let _ = std::fs::remove_file(&path);
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(&path)
        .and_then(|listener| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(SOCKET_MODE)).map(|()| listener)
        })
        .map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => BindError::NotASocket { path: path.clone() },
            _ => BindError::Socket { path: path.clone(), source },
        })?;
    Ok((Socket { path }, listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_flag_that_chooses_another() {
        let first = tcp("control plane", "--listen", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = tcp("control plane", "--listen", first.address).await.unwrap_err().to_string();
        let expected = format!(
            "cannot listen on {} for the control plane: the port is in use; stop who has it, or choose another with --listen",
            first.address
        );
        assert_eq!(error, expected);
    }

    #[tokio::test]
    async fn a_socket_left_over_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a crash leaves the socket's name");
        let (socket, listener) = unix(path.clone()).await.unwrap();
        assert!(matches!(unix(path.clone()).await, Err(BindError::SocketInUse { .. })));
        drop((socket, listener));
        assert!(!path.exists(), "a server removes the name of its socket");
    }

    #[tokio::test]
    async fn an_ordinary_file_is_not_replaced_and_a_long_path_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(unix(path.clone()).await, Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let long = directory.path().join("x".repeat(120));
        assert!(matches!(unix(long).await, Err(BindError::SocketPathTooLong { .. })));
        let nowhere = directory.path().join("missing/control.sock");
        assert!(matches!(unix(nowhere).await, Err(BindError::Socket { .. })));
    }
}
