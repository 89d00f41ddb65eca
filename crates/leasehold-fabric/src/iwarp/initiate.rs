//! Connecting: TCP, TLS if it is wanted, then the MPA request and its reply.

use super::Shared;
use super::mpa::{Frame, HEADER, Role, private_data_length};
use super::negotiation::Offer;
use super::open::{Established, Open};
use super::setup::{Agreement, conclude, request};
use super::stream::{Socket, Wire};
use super::tcp::Tcp;
use super::tls;
use super::worker::{Command, Link};
use crate::{ConnectError, Endpoint, Handler, PRIVATE_DATA_MAX};
use bytes::Bytes;
use rustix::fd::OwnedFd;
use rustls::ClientConnection;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whom to connect to.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Over TLS, to the one that has this.
    pub(crate) public_key: Option<Bytes>,
}

pub(crate) fn connect(
    shared: &Shared,
    to: Peer,
    private_data: &[u8],
    handler: Box<dyn Handler>,
    timeout: Duration,
) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
    if private_data.len() > PRIVATE_DATA_MAX {
        return Err(ConnectError::PrivateDataTooLong { length: private_data.len(), max: PRIVATE_DATA_MAX });
    }
    let address = to.address;
    let unreachable = |source| ConnectError::Unreachable { address, source };
    let deadline = Instant::now() + timeout;
    let place = shared.place().ok_or_else(|| unreachable(io::ErrorKind::QuotaExceeded.into()))?;
    let stream = TcpStream::connect_timeout(&address, timeout).map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let tls = to.public_key.map(|public_key| tls::client(public_key, address)).transpose();
    let tls = tls.map_err(|error| unreachable(io::Error::other(error)))?;
    let mut waiting = Waiting { stream, tls, deadline };
    let (agreement, data) = exchange(shared, &mut waiting, private_data, address)?;
    let Waiting { stream, tls, .. } = waiting;
    stream.set_nonblocking(true).map_err(unreachable)?;
    let tcp = Tcp::new(OwnedFd::from(stream), &shared.config);
    let wire = match tls {
        None => Wire::plain(tcp),
        Some(tls) => Wire::encrypted(tcp, tls.into()),
    };
    let (id, socket) = (shared.id(), Socket::new(wire));
    let established = Established { id, socket, peer: address, agreement, responder: false, place };
    let mailbox = shared.mailbox();
    let open = Open::new(established, mailbox.clone(), handler, shared);
    let endpoint = open.endpoint();
    mailbox.post(Command::Adopt(id, Box::new(Link::Open(Box::new(open)))));
    Ok((endpoint, data))
}

/// Sends the request in one piece, and reads the reply and no more.
fn exchange(
    shared: &Shared,
    stream: &mut Waiting,
    private_data: &[u8],
    address: SocketAddr,
) -> Result<(Agreement, Bytes), ConnectError> {
    let protocol = |what: String| ConnectError::Protocol { address, what };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof => protocol("it closed the connection without a reply".to_owned()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ConnectError::Unreachable { address, source: io::ErrorKind::TimedOut.into() }
        }
        io::ErrorKind::InvalidData => ConnectError::Untrusted { address, why: source.to_string() },
        _ => ConnectError::Unreachable { address, source },
    };
    stream.send(&request(&shared.config, private_data).encode()).map_err(failed)?;
    let mut header = [0; HEADER];
    stream.receive(&mut header).map_err(failed)?;
    let length = private_data_length(&header, Role::Reply).map_err(|error| protocol(error.to_string()))?;
    let mut data = vec![0; length];
    stream.receive(&mut data).map_err(failed)?;
    let reply = Frame::parse(&header, &data, Role::Reply).map_err(|error| protocol(error.to_string()))?;
    if reply.reject {
        let why = String::from_utf8_lossy(Offer::split(&reply.private_data).1).into_owned();
        return Err(ConnectError::Rejected { address, why });
    }
    let agreement = conclude(&shared.config, &reply).map_err(|what| protocol(what.to_owned()))?;
    Ok((agreement, Bytes::copy_from_slice(Offer::split(&reply.private_data).1)))
}

/// A socket that is waited for, until the deadline.
struct Waiting {
    stream: TcpStream,
    tls: Option<ClientConnection>,
    deadline: Instant,
}

impl Waiting {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return self.stream.write_all(bytes) };
        // It is kept until the two have shaken hands.
        tls.writer().write_all(bytes)?;
        while self.flush()? {
            self.pull()?;
        }
        Ok(())
    }

    /// Fills `bytes`.
    fn receive(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.limit()?;
            let got = match &mut self.tls {
                None => self.stream.read(bytes),
                Some(tls) => tls.reader().read(bytes),
            };
            match got {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => bytes = &mut bytes[got..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.tls.is_some() => {
                    self.pull()?
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what TLS has to say. Whether it still shakes hands.
    fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(false) };
        while tls.wants_write() {
            tls.write_tls(&mut self.stream)?;
        }
        Ok(tls.is_handshaking())
    }

    /// Reads what TLS needs.
    fn pull(&mut self) -> io::Result<()> {
        self.limit()?;
        let Some(tls) = &mut self.tls else { return Ok(()) };
        match tls.read_tls(&mut self.stream) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        let processed = tls.process_new_packets();
        // Also the alert that says what is wrong.
        let flushed = self.flush();
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        flushed.map(drop)
    }

    /// No read waits for longer than is left.
    fn limit(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))
    }
}
