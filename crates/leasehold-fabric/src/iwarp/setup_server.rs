//! A peer that has connected to a listener and has not shown its MPA request yet.

use super::counters::add;
use super::mpa::{Frame, HEADER, Role, private_data_length};
use super::negotiation::Offer;
use super::open::{Established, Open};
use super::setup::{reject, respond};
use super::stream::{Socket, Stream, Wire};
use super::tls::{HANDSHAKE as TLS_HANDSHAKE, ServerTls};
use super::worker::Mailbox;
use super::{Shared, Stranger};
use crate::Gate;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::RecvFlags;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// A peer that is setting up.
pub(crate) struct Setup {
    pub(crate) socket: Socket,
    pub(crate) until: Instant,
    peer: SocketAddr,
    gate: Arc<dyn Gate>,
    /// Where TLS is wanted: the peer's first byte, which says whether it begins so, has not come.
    unheard: bool,
    got: Vec<u8>,
    _stranger: Arc<Stranger>,
}

/// What a turn came to.
pub(crate) enum SetupTurn {
    /// More has to come.
    Wait,
    /// The connection stands.
    Open(Box<Open>),
    /// The peer was not let in, or went.
    Over,
}

impl Setup {
    pub(crate) fn new(
        socket: Socket,
        peer: SocketAddr,
        gate: Arc<dyn Gate>,
        stranger: Arc<Stranger>,
        until: Instant,
    ) -> Setup {
        let got = Vec::with_capacity(HEADER + 64);
        Setup { socket, until, peer, gate, unheard: true, got, _stranger: stranger }
    }

    pub(crate) fn turn(&mut self, id: u64, shared: &Shared, mailbox: &Arc<Mailbox>) -> SetupTurn {
        if let Some(tls) = &shared.config.tls
            && self.unheard
            && let Err(turn) = self.begin(tls)
        {
            return turn;
        }
        loop {
            let header: Option<&[u8; HEADER]> = self.got.first_chunk();
            let wanted = match header.map(|header| private_data_length(header, Role::Request)) {
                None => HEADER,
                Some(Ok(length)) => HEADER + length,
                Some(Err(_)) => {
                    add(&shared.counters.rejected, 1);
                    return SetupTurn::Over;
                }
            };
            let have = self.got.len();
            if have == wanted && have >= HEADER {
                return self.answer(id, shared, mailbox);
            }
            // No more than the request: what follows it is for the receiver.
            self.got.resize(wanted, 0);
            // SAFETY: no memory is named.
            let result = unsafe { self.socket.read((std::ptr::null_mut(), 0), &mut self.got[have..]) };
            self.got.truncate(have + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => return SetupTurn::Over,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return SetupTurn::Wait,
                Err(_) => {
                    add(&shared.counters.rejected, 1);
                    return SetupTurn::Over;
                }
            }
        }
    }

    /// TLS, if the peer begins with it. Else it is told what is wrong, in words that it understands.
    fn begin(&mut self, tls: &ServerTls) -> Result<(), SetupTurn> {
        let mut first = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match retry_on_intr(|| rustix::net::recv(&self.socket.wire.tcp.fd, &mut first[..], flags)) {
            Ok((1, _)) => self.unheard = false,
            Err(Errno::AGAIN) => return Err(SetupTurn::Wait),
            _ => return Err(SetupTurn::Over),
        }
        if first == [TLS_HANDSHAKE] {
            let session = tls.accept().map_err(|_| SetupTurn::Over)?;
            self.socket = Socket::new(Wire::encrypted(self.socket.wire.tcp.clone(), session));
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, shared: &Shared, mailbox: &Arc<Mailbox>) -> SetupTurn {
        let (header, data) = self.got.split_first_chunk().expect("a whole request");
        let Ok(request) = Frame::parse(header, data, Role::Request) else {
            add(&shared.counters.rejected, 1);
            return SetupTurn::Over;
        };
        let (agreement, mut reply) = match respond(&shared.config, &request) {
            Ok(agreed) => agreed,
            Err(rejection) => return self.rejected(&rejection, shared),
        };
        if shared.config.tls.is_some() && !self.socket.wire.is_encrypted() {
            return self.rejected(&reject(reply, b"data come over TLS here: --fabric iwarp-tls"), shared);
        }
        let Some(place) = shared.place() else {
            return self.rejected(&reject(reply, b"there are as many connections as there may be"), shared);
        };
        let (offer, token) = Offer::split(&request.private_data);
        let admitted = match self.gate.admit(token, self.peer) {
            Ok(admitted) => admitted,
            Err(why) => return self.rejected(&reject(reply, &why), shared),
        };
        reply.private_data = match offer {
            Some(_) => Offer { segment_max: shared.config.segment_max }.join(&admitted.private_data),
            None => admitted.private_data.to_vec(),
        };
        let socket = self.socket.clone();
        let established = Established { id, socket, peer: self.peer, agreement, responder: true, place };
        // The handler hears of the connection before the peer does, who may at once ask elsewhere for what needs it.
        // Nothing is sent ahead of the reply: a responder is silent until the first frame.
        let open = Open::new(established, mailbox.clone(), admitted.handler, shared);
        if !self.reply(&reply) {
            drop(open.end(crate::CloseReason::Transport("the reply could not be sent".to_owned()), None));
            return SetupTurn::Over;
        }
        SetupTurn::Open(Box::new(open))
    }

    fn rejected(&self, rejection: &Frame, shared: &Shared) -> SetupTurn {
        add(&shared.counters.rejected, 1);
        self.reply(rejection);
        SetupTurn::Over
    }

    /// In one send: some peers want each MPA frame in one piece. An empty socket takes so little at once.
    fn reply(&self, frame: &Frame) -> bool {
        let (wire, bytes) = (&self.socket.wire, frame.encode());
        loop {
            match wire.send_bytes(&bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                sent => return sent.is_ok_and(|sent| sent == bytes.len()) && wire.flush().is_ok(),
            }
        }
    }
}
