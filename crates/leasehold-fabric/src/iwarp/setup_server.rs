//! A peer that has connected to a listener and has not shown its MPA request yet.

use super::counters::add;
use super::mpa::{Frame, HEADER, Role, private_data_length};
use super::negotiation::Offer;
use super::open::{Established, Open};
use super::setup::{reject, respond};
use super::worker::Mailbox;
use super::{Shared, Stranger};
use crate::Gate;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// A peer that is setting up.
pub(crate) struct Setup {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) until: Instant,
    peer: SocketAddr,
    gate: Arc<dyn Gate>,
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
        socket: Arc<OwnedFd>,
        peer: SocketAddr,
        gate: Arc<dyn Gate>,
        stranger: Arc<Stranger>,
        until: Instant,
    ) -> Setup {
        Setup { socket, until, peer, gate, got: Vec::with_capacity(HEADER + 64), _stranger: stranger }
    }

    pub(crate) fn turn(&mut self, id: u64, shared: &Shared, mailbox: &Arc<Mailbox>) -> SetupTurn {
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
            let result = rustix::net::recv(&self.socket, &mut self.got[have..], RecvFlags::DONTWAIT);
            self.got.truncate(have + result.map_or(0, |(got, _)| got));
            match result {
                Ok((0, _)) => return SetupTurn::Over,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return SetupTurn::Wait,
                Err(_) => return SetupTurn::Over,
            }
        }
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
        let established =
            Established { id, fd: self.socket.clone(), peer: self.peer, agreement, responder: true, place };
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
        let bytes = frame.encode();
        rustix::net::send(&self.socket, &bytes, super::outgoing::flags()) == Ok(bytes.len())
    }
}
