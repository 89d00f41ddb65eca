//! A worker: one thread that waits for its sockets and serves their connections. A connection has one worker all its
//! life, and nobody else places bytes for it.

use super::Shared;
use super::connection::Connection;
use super::listener::Listening;
use super::open::{Broken, How, Open, Turn};
use super::setup_server::{Setup, SetupTurn};
use super::staging::Staging;
use super::terminate::{Offender, Violation};
use crate::CloseReason;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MAILBOX: u64 = 0;

/// What a worker is asked to do.
pub(crate) enum Command {
    /// Look after a socket.
    Adopt(u64, Box<Link>),
    /// Send more on a connection.
    Send(u64),
    /// Close a connection.
    Close(u64),
    /// End a connection whose peer asked for what cannot be given.
    Violation(u64, Violation, Box<Offender>),
    /// Forget a listener.
    Remove(u64),
    /// End everything.
    Stop,
}

/// Where others leave commands for a worker.
pub(crate) struct Mailbox {
    commands: Mutex<Vec<Command>>,
    wake: OwnedFd,
}

/// What a worker looks after.
pub(crate) enum Link {
    Listener(Listening),
    Setup(Setup),
    Open(Box<Open>),
    Draining(Draining),
}

/// A connection that is over, until the peer has read what it was sent last: closing a socket with bytes unread would
/// make the system reset the connection, and the peer lose the Terminate.
pub(crate) struct Draining {
    pub(crate) connection: Arc<Connection>,
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) until: Instant,
    pub(crate) flushed: bool,
    pub(crate) _place: super::Place,
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    epoll: OwnedFd,
    links: HashMap<u64, Box<Link>>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Links that have more to do without being told by the poll.
    again: BTreeSet<u64>,
    staging: Staging,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Mailbox> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mailbox { commands: Mutex::new(Vec::new()), wake })
    }

    pub(crate) fn post(&self, command: Command) {
        let mut commands = self.commands.lock().expect("no code panics while it holds a mailbox");
        commands.push(command);
        if commands.len() == 1 {
            // A full counter wakes as well as one more would.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    fn take(&self) -> Vec<Command> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
        std::mem::take(&mut *self.commands.lock().expect("no code panics while it holds a mailbox"))
    }
}

impl Link {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Link::Listener(listening) => listening.socket.as_fd(),
            Link::Setup(setup) => setup.socket.wire.tcp.fd.as_fd(),
            Link::Open(open) => open.socket.wire.tcp.fd.as_fd(),
            Link::Draining(draining) => draining.socket.as_fd(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Link::Listener(listening) => listening.retry,
            Link::Setup(setup) => Some(setup.until),
            Link::Open(_) => None,
            Link::Draining(draining) => Some(draining.until),
        }
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, mailbox: Arc<Mailbox>) -> io::Result<Worker> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &mailbox.wake, EventData::new_u64(MAILBOX), EventFlags::IN)?;
        Ok(Worker {
            shared,
            mailbox,
            epoll,
            links: HashMap::new(),
            deadlines: BTreeSet::new(),
            again: BTreeSet::new(),
            staging: Staging::new(),
        })
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("waiting for sockets cannot fail: {error}"),
            }
            let mut mail = false;
            let turns = std::mem::take(&mut self.again);
            for event in &events {
                match event.data.u64() {
                    MAILBOX => mail = true,
                    id => self.serve(id, event.flags),
                }
            }
            for id in turns {
                self.serve(id, EventFlags::empty());
            }
            if mail {
                for command in self.mailbox.take() {
                    if matches!(command, Command::Stop) {
                        return self.stop();
                    }
                    self.obey(command);
                }
            }
            self.expire();
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        if !self.again.is_empty() {
            return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
        let (first, _) = self.deadlines.first()?;
        let left = first.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() })
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Adopt(id, link) => self.adopt(id, link),
            Command::Send(id) => {
                if let Some(Link::Open(open)) = self.links.get(&id).map(Box::as_ref) {
                    open.connection.clone().drive();
                }
            }
            Command::Close(id) => self.with_open(id, |open, _| open.end(CloseReason::Here, None)),
            Command::Violation(id, violation, offender) => self.with_open(id, |open, shared| {
                let opcode = Some(super::rdmap::Opcode::ReadRequest);
                open.violated(&Broken { violation, opcode, offender: Some(*offender), placed: false }, shared)
            }),
            Command::Remove(id) => {
                if let Some(link) = self.links.remove(&id) {
                    self.forget_deadline(id, link.deadline());
                }
            }
            Command::Stop => {}
        }
    }

    fn with_open(&mut self, id: u64, end: impl FnOnce(Box<Open>, &Shared) -> Draining) {
        match self.links.remove(&id).map(|link| *link) {
            Some(Link::Open(open)) => {
                let draining = end(open, &self.shared);
                self.keep(id, Box::new(Link::Draining(draining)), None);
                self.again.insert(id);
            }
            Some(other) => {
                self.links.insert(id, Box::new(other));
            }
            None => {}
        }
    }

    /// Takes a socket on. What came before it was watched is served at once.
    fn adopt(&mut self, id: u64, link: Box<Link>) {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if let Err(error) = epoll::add(&self.epoll, link.fd(), EventData::new_u64(id), flags) {
            if let Link::Open(open) = *link {
                drop(open.end(CloseReason::Transport(error.to_string()), None));
            }
            return;
        }
        if let Some(deadline) = link.deadline() {
            self.deadlines.insert((deadline, id));
        }
        self.links.insert(id, link);
        self.serve(id, EventFlags::IN);
    }

    /// Puts a link back, perhaps with another deadline than it `had`.
    fn keep(&mut self, id: u64, link: Box<Link>, had: Option<Instant>) {
        let deadline = link.deadline();
        if deadline != had {
            self.forget_deadline(id, had);
            self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
        }
        self.links.insert(id, link);
    }

    fn forget_deadline(&mut self, id: u64, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }

    fn serve(&mut self, id: u64, flags: EventFlags) {
        let Some(mut link) = self.links.remove(&id) else { return };
        let had = link.deadline();
        match self.turn(id, &mut link, flags) {
            Next::Keep => self.keep(id, link, had),
            Next::Again => {
                self.keep(id, link, had);
                self.again.insert(id);
            }
            Next::End(how) => {
                let Link::Open(open) = *link else { unreachable!("only open connections end") };
                let draining = open.end_as(how, &self.shared);
                self.keep(id, Box::new(Link::Draining(draining)), had);
                self.again.insert(id);
            }
            Next::Drop => self.forget_deadline(id, had),
        }
    }

    fn turn(&mut self, id: u64, link: &mut Link, flags: EventFlags) -> Next {
        let ending = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        match link {
            Link::Listener(listening) => {
                listening.accept(&self.shared);
                Next::Keep
            }
            Link::Setup(setup) => {
                setup.socket.readable(flags.intersects(ending));
                match setup.turn(id, &self.shared, &self.mailbox) {
                    SetupTurn::Wait => Next::Keep,
                    SetupTurn::Open(open) => {
                        *link = Link::Open(open);
                        Next::Again
                    }
                    SetupTurn::Over => Next::Drop,
                }
            }
            Link::Open(open) => {
                if flags.intersects(EventFlags::IN | ending) {
                    open.socket.readable(flags.intersects(ending));
                }
                if flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                    open.connection.writable();
                }
                match open.turn(&self.shared, &mut self.staging) {
                    Turn::Wait => Next::Keep,
                    Turn::Again => Next::Again,
                    Turn::End(how) => Next::End(how),
                }
            }
            Link::Draining(draining) => draining.turn(&mut self.staging.sink),
        }
    }

    /// Drops what took too long.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let Some(mut link) = self.links.remove(&id) else { continue };
            match link.as_mut() {
                Link::Listener(listening) => {
                    listening.retry = None;
                    listening.accept(&self.shared);
                    self.keep(id, link, None);
                }
                Link::Setup(_) => super::counters::add(&self.shared.counters.setup_timeouts, 1),
                Link::Open(_) => self.keep(id, link, None),
                Link::Draining(_) => {}
            }
        }
    }

    fn stop(mut self) {
        for (_, link) in self.links.drain() {
            match *link {
                Link::Open(open) => drop(open.end(CloseReason::Here, None).turn(&mut self.staging.sink)),
                Link::Draining(mut draining) => drop(draining.turn(&mut self.staging.sink)),
                Link::Listener(_) | Link::Setup(_) => {}
            }
        }
        // Those that were handed over and not taken on yet.
        for command in self.mailbox.take() {
            if let Command::Adopt(_, link) = command
                && let Link::Open(open) = *link
            {
                drop(open.end(CloseReason::Here, None));
            }
        }
    }
}

enum Next {
    Keep,
    Again,
    End(How),
    Drop,
}

impl Draining {
    fn turn(&mut self, sink: &mut [u8]) -> Next {
        if !self.flushed && self.connection.flush() {
            self.flushed = true;
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
        }
        for _ in 0..16 {
            match rustix::net::recv(&self.socket, &mut *sink, rustix::net::RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Next::Drop,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Next::Keep,
                Err(_) => return Next::Drop,
            }
        }
        // A peer that sends on and on is heard until the deadline.
        Next::Again
    }
}

impl Drop for Draining {
    /// Users may keep the endpoint of a connection that is over; the socket closes all the same.
    fn drop(&mut self) {
        self.connection.let_go();
    }
}

/// A deadline from now.
pub(crate) fn until(duration: Duration) -> Instant {
    Instant::now() + duration
}
