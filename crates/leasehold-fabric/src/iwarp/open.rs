//! A connection that stands, as its worker sees it.

use super::config::Config;
use super::connection::Connection;
use super::counters::add;
use super::ddp::{self, Header, Untagged};
use super::operation::Operation;
use super::outgoing::OutFrame;
use super::rdmap::Opcode;
use super::receive::{Event, Parts, Receiver, Stop};
use super::setup::{Agreement, FirstFrame};
use super::staging::Staging;
use super::stream::Socket;
use super::terminate::{self, Offender, Violation};
use super::transmit::{Sender, payload_max};
use super::worker::{Draining, Mailbox, until};
use super::{Place, Shared};
use crate::{CloseReason, Endpoint, Handler, Remote, Tag};
use bytes::Bytes;
use rustix::fd::{AsRawFd, OwnedFd};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A connection that stands.
pub(crate) struct Open {
    pub(crate) connection: Arc<Connection>,
    pub(crate) socket: Socket,
    receiver: Receiver,
    handler: Box<dyn Handler>,
    /// The peer's first Send is its ready-to-receive, not a message.
    ignore_send: bool,
    linger: Duration,
    place: Place,
}

/// What a turn came to.
pub(crate) enum Turn {
    /// Nothing to do until the socket says so.
    Wait,
    /// There may be more; others first.
    Again,
    /// It is over.
    End(How),
}

/// How a connection ended.
pub(crate) enum How {
    Closed(CloseReason),
    Broken(Broken),
}

/// How a peer broke the protocol.
pub(crate) struct Broken {
    pub(crate) violation: Violation,
    pub(crate) opcode: Option<Opcode>,
    pub(crate) offender: Option<Offender>,
    /// Bytes of a frame with a wrong CRC are in memory.
    pub(crate) placed: bool,
}

/// Who is who, once the MPA frames are exchanged.
pub(crate) struct Established {
    pub(crate) id: u64,
    pub(crate) socket: Socket,
    pub(crate) peer: SocketAddr,
    pub(crate) agreement: Agreement,
    /// This end answered; it stays silent until the peer has spoken.
    pub(crate) responder: bool,
    pub(crate) place: Place,
}

impl Open {
    /// Sets the connection up, and tells the handler.
    pub(crate) fn new(
        established: Established,
        mailbox: Arc<Mailbox>,
        mut handler: Box<dyn Handler>,
        shared: &Shared,
    ) -> Open {
        let Established { id, socket, peer, agreement, responder, place } = established;
        let config: &Config = &shared.config;
        let offer = agreement.offer.map(|offer| offer.segment_max);
        let payload = payload_max(offer, config.segment_max, tcp_segment(&socket.wire.tcp.fd));
        let sender = Sender::new(socket.wire.clone(), payload, agreement.crc, responder);
        let connection = Connection::new(id, peer, mailbox, sender, agreement.ord, config);
        add(&shared.counters.connections, 1);
        if !responder {
            match agreement.ready {
                Some(FirstFrame::Send) => connection.submit(Operation::send(Bytes::new(), None, None)),
                Some(_) => {
                    let nowhere = Remote { tag: Tag(0), offset: 0 };
                    connection.submit(Operation::write(Bytes::new(), nowhere, None));
                }
                None => {}
            }
        }
        handler.connected(connection.clone());
        Open {
            connection,
            socket,
            receiver: Receiver::new(agreement.crc, config.strict, config.message_max),
            handler,
            ignore_send: responder && agreement.ready == Some(FirstFrame::Send),
            linger: config.linger,
            place,
        }
    }

    pub(crate) fn endpoint(&self) -> Arc<dyn Endpoint> {
        self.connection.clone()
    }

    /// Deals with what has come.
    pub(crate) fn turn(&mut self, shared: &Shared, staging: &mut Staging) -> Turn {
        self.receiver.begin(staging);
        let turn = loop {
            let parts = Parts {
                exposures: &self.connection.exposures,
                reads: &self.connection.reads,
                counters: &shared.counters,
            };
            match self.receiver.poll(&parts, &mut self.socket, staging) {
                Ok(event) => {
                    if let Some(how) = self.event(event, shared) {
                        break Turn::End(how);
                    }
                }
                Err(Stop::Drained) => break Turn::Wait,
                Err(Stop::Turn) => break Turn::Again,
                Err(Stop::End { torn: false }) => break Turn::End(How::Closed(CloseReason::Peer)),
                Err(Stop::End { torn: true }) => {
                    let why = "the stream ended within a frame".to_owned();
                    break Turn::End(How::Closed(CloseReason::Transport(why)));
                }
                Err(Stop::Failed(error)) => {
                    break Turn::End(How::Closed(CloseReason::Transport(error.to_string())));
                }
                Err(Stop::Violation { violation, opcode, placed }) => {
                    break Turn::End(self.broken(violation, opcode, placed));
                }
            }
        };
        self.receiver.end(staging);
        turn
    }

    fn event(&mut self, event: Event, shared: &Shared) -> Option<How> {
        match event {
            Event::First => self.connection.heard(),
            Event::Message { invalidate } => {
                if let Some(tag) = invalidate
                    && self.connection.exposures.revoke(tag).is_none()
                {
                    return Some(self.broken(
                        Violation::CannotInvalidate,
                        Some(Opcode::SendInvalidate),
                        false,
                    ));
                }
                if std::mem::take(&mut self.ignore_send) && self.receiver.message().is_empty() {
                    return None;
                }
                self.handler.message(self.receiver.message());
            }
            Event::Read(request) => {
                let offender = *self.receiver.offender().expect("a read has a header");
                if let Err(violation) = self.connection.answer(&request, offender) {
                    return Some(self.broken(violation, Some(Opcode::ReadRequest), false));
                }
            }
            Event::ReadAnswered => self.connection.read_answered(),
            Event::Terminated(code) => {
                add(&shared.counters.terminates_received, 1);
                let why = code
                    .map_or_else(|| "a Terminate too short to say why".to_owned(), |code| code.to_string());
                return Some(How::Closed(CloseReason::Terminated(why)));
            }
        }
        None
    }

    fn broken(&self, violation: Violation, opcode: Option<Opcode>, placed: bool) -> How {
        How::Broken(Broken { violation, opcode, offender: self.receiver.offender().copied(), placed })
    }

    pub(crate) fn end_as(self, how: How, shared: &Shared) -> Draining {
        match how {
            How::Closed(why) => self.end(why, None),
            How::Broken(broken) => self.violated(&broken, shared),
        }
    }

    /// The peer broke the protocol: it is told so, and the connection ends (RFC 5040 section 7.1).
    pub(crate) fn violated(mut self, broken: &Broken, shared: &Shared) -> Draining {
        shared.counters.count_violation(broken.violation);
        add(&shared.counters.terminates_sent, 1);
        let code = broken.violation.code(broken.opcode);
        let mut last = OutFrame::new(Header::Untagged(Untagged {
            last: true,
            rdmap: Opcode::Terminate.control(),
            invalidate: 0,
            queue: ddp::TERMINATE_QUEUE,
            number: 1,
            offset: 0,
        }));
        last.put(|out| terminate::put(code, broken.offender.as_ref(), out));
        if broken.placed {
            self.handler.poisoned();
        }
        self.end(CloseReason::Violation(broken.violation.to_string()), Some(last))
    }

    /// Ends it, and says so.
    pub(crate) fn end(mut self, why: CloseReason, last: Option<OutFrame>) -> Draining {
        self.connection.end(&why, last);
        self.handler.closed(&why);
        Draining {
            connection: self.connection,
            socket: self.socket.wire.tcp.fd.clone(),
            until: until(self.linger),
            flushed: false,
            _place: self.place,
        }
    }
}

/// The most that TCP puts in one of its segments to this peer.
fn tcp_segment(fd: &OwnedFd) -> usize {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is an int, whose address and length are given.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    // 536: what every TCP takes (RFC 9293 section 3.7.1).
    if result == 0 { usize::try_from(value).unwrap_or(536) } else { 536 }
}
