//! Connecting: TCP, then the MPA request and its reply.

use super::Shared;
use super::mpa::{Frame, HEADER, Role, private_data_length};
use super::negotiation::Offer;
use super::open::{Established, Open};
use super::setup::{Agreement, conclude, request};
use super::worker::{Command, Link};
use crate::{ConnectError, Endpoint, Handler, PRIVATE_DATA_MAX};
use bytes::Bytes;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn connect(
    shared: &Shared,
    address: SocketAddr,
    private_data: &[u8],
    handler: Box<dyn Handler>,
    timeout: Duration,
) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
    if private_data.len() > PRIVATE_DATA_MAX {
        return Err(ConnectError::PrivateDataTooLong { length: private_data.len(), max: PRIVATE_DATA_MAX });
    }
    let unreachable = |source| ConnectError::Unreachable { address, source };
    let deadline = Instant::now() + timeout;
    let place = shared.place().ok_or_else(|| unreachable(io::ErrorKind::QuotaExceeded.into()))?;
    let mut stream = TcpStream::connect_timeout(&address, timeout).map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let (agreement, data) = exchange(shared, &mut stream, private_data, address, deadline)?;
    stream.set_nonblocking(true).map_err(unreachable)?;
    let id = shared.id();
    let established =
        Established { id, fd: Arc::new(stream.into()), peer: address, agreement, responder: false, place };
    let mailbox = shared.mailbox();
    let open = Open::new(established, mailbox.clone(), handler, shared);
    let endpoint = open.endpoint();
    mailbox.post(Command::Adopt(id, Box::new(Link::Open(Box::new(open)))));
    Ok((endpoint, data))
}

/// Sends the request in one piece, and reads the reply and no more.
fn exchange(
    shared: &Shared,
    stream: &mut TcpStream,
    private_data: &[u8],
    address: SocketAddr,
    deadline: Instant,
) -> Result<(Agreement, Bytes), ConnectError> {
    let protocol = |what: String| ConnectError::Protocol { address, what };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof => protocol("it closed the connection without a reply".to_owned()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ConnectError::Unreachable { address, source: io::ErrorKind::TimedOut.into() }
        }
        _ => ConnectError::Unreachable { address, source },
    };
    stream.write_all(&request(&shared.config, private_data).encode()).map_err(failed)?;
    let mut header = [0; HEADER];
    read_until(stream, &mut header, deadline).map_err(failed)?;
    let length = private_data_length(&header, Role::Reply).map_err(|error| protocol(error.to_string()))?;
    let mut data = vec![0; length];
    read_until(stream, &mut data, deadline).map_err(failed)?;
    let reply = Frame::parse(&header, &data, Role::Reply).map_err(|error| protocol(error.to_string()))?;
    if reply.reject {
        let why = String::from_utf8_lossy(Offer::split(&reply.private_data).1).into_owned();
        return Err(ConnectError::Rejected { address, why });
    }
    let agreement = conclude(&shared.config, &reply).map_err(|what| protocol(what.to_owned()))?;
    Ok((agreement, Bytes::copy_from_slice(Offer::split(&reply.private_data).1)))
}

fn read_until(stream: &mut TcpStream, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => bytes = &mut bytes[got..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
