//! A client with a session and leases: prompt, slow, deaf or gone, as the seed has it.

use super::local::some_cells;
use super::oracle::{Content, Op};
use super::sync::block_on;
use super::world::{GRACE, Life, NAMES, PATIENCE, bytes_of, cells_of, path, range_of, who};
use super::{below, chance};
use crate::engine::{Grant, Wanted};
use crate::event::Event;
use crate::sync::{self, mpsc};
use leasehold_core::ids::{LeaseId, SessionId};
use leasehold_core::input::{Access, OnConflict};
use leasehold_fabric::conformance::Memory;
use leasehold_fabric::crc::crc32c;
use leasehold_fabric::message::{Capture, Commit, Fetch, Message, Status};
use leasehold_fabric::{CloseReason, Endpoint, Fabric, Handler, Remote, RemoteAccess, Source, Tag};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Cells that are written when it is too late carry this; whoever reads one has found a byte behind its fence.
const LATE: u32 = 0x1A7E_1A7E;

pub(super) fn hold(life: &Life, number: u64) {
    for _ in 0..1 + below(3) {
        if life.is_over() {
            return;
        }
        let (send, events) = tokio::sync::mpsc::channel(256);
        let opened = block_on(life.engine.open_session(
            who(&format!("holder {number}")),
            None,
            [127, 0, 0, 1].into(),
            send,
        ));
        let Ok(opened) = opened else { return };
        let (send, heard) = mpsc::channel();
        let ear = Box::new(Ear(send));
        let address = life.engine.started().data_address;
        let connected = life.fabric().connect(address, &opened.token, ear, PATIENCE);
        let Ok((endpoint, _)) = connected else { continue };
        let mut holder = Holder {
            life,
            session: opened.session,
            endpoint,
            heard,
            events,
            told: BTreeSet::new(),
            requests: 0,
            gone: false,
        };
        for _ in 0..1 + below(5) {
            if !holder.gone && !life.is_over() {
                holder.use_lease();
            }
        }
        holder.leave();
    }
}

struct Ear(mpsc::Sender<Heard>);

enum Heard {
    Message(Message),
    Closed,
}

impl Handler for Ear {
    fn connected(&mut self, _endpoint: Arc<dyn Endpoint>) {}

    fn message(&mut self, message: &[u8]) {
        let message = Message::parse(message).expect("the server speaks our language");
        let _gone = self.0.send(Heard::Message(message));
    }

    fn poisoned(&mut self) {}

    fn closed(&mut self, _why: &CloseReason) {
        let _gone = self.0.send(Heard::Closed);
    }
}

struct Holder<'a> {
    life: &'a Life,
    session: SessionId,
    endpoint: Arc<dyn Endpoint>,
    heard: mpsc::Receiver<Heard>,
    events: tokio::sync::mpsc::Receiver<Event>,
    /// Leases whose break was announced.
    told: BTreeSet<LeaseId>,
    requests: u64,
    /// The connection is.
    gone: bool,
}

/// A lease, as its holder sees it.
#[derive(Clone, Copy)]
struct Held {
    lease: LeaseId,
    tag: Tag,
    inode: usize,
    at: usize,
    count: usize,
}

impl Holder<'_> {
    /// Acquires a lease on some cells, and does something with it.
    fn use_lease(&mut self) {
        let life = self.life;
        let name = NAMES[below(NAMES.len() as u64) as usize];
        let Some(before) = life.oracle().inode(name) else { return };
        let (at, count) = some_cells();
        let range = range_of(at, count);
        let access = match below(8) {
            0 => Access::Read,
            1..4 => Access::Update,
            _ => Access::Overwrite,
        };
        let on_conflict = match below(4) {
            0 => OnConflict::Refuse,
            1 => OnConflict::Wait,
            _ => OnConflict::Break,
        };
        let _alive = life.engine.keep_alive(self.session);
        let look = life.oracle().look(before);
        let wanted = vec![Wanted { path: path(name), range, access, create: false }];
        let wait = Duration::from_millis(below(400));
        let began = sync::now();
        let granted = block_on(life.engine.acquire(self.session, wanted, on_conflict, wait));
        assert!(sync::now().duration_since(began) < PATIENCE, "an acquire was not answered in time");
        let contents = life.oracle().look_away(before, look);
        let Ok(granted) = granted else {
            life.count("acquires refused", 1);
            return self.hear_events();
        };
        let Grant { lease, tag, .. } = granted[0];
        let file = block_on(life.engine.look(move |view| view.core.lease(lease).map(|lease| lease.file)));
        let Some(inode) = file.flatten().and_then(|file| life.inode(file)) else { return };
        let held = Held { lease, tag: Tag(tag), inode, at, count };
        life.count("leases", 1);
        match access {
            // Whoever has renamed meanwhile knows what it is.
            Access::Read if inode == before => self.fetch(held, &contents),
            Access::Read => {}
            Access::Overwrite => self.overwrite(held),
            Access::Update => self.update(held),
        }
        self.hear_events();
    }

    fn overwrite(&mut self, held: Held) {
        let stamp = self.life.oracle().stamp();
        self.write(held, 0, &vec![stamp; held.count]);
        self.wait_a_little();
        self.end(held, &vec![Some(stamp); held.count], true);
    }

    /// Writes some of it, captures what is there, and goes on.
    fn update(&mut self, held: Held) {
        let mut cells = vec![None; held.count];
        for _ in 0..1 + below(3) {
            let stamp = self.life.oracle().stamp();
            let from = below(held.count as u64) as usize;
            let count = 1 + below((held.count - from) as u64) as usize;
            self.write(held, from, &vec![stamp; count]);
            cells[from..from + count].fill(Some(stamp));
            if chance(2) && !self.capture(held, &cells) {
                return;
            }
        }
        self.wait_a_little();
        self.end(held, &cells, false);
    }

    fn write(&self, held: Held, from: usize, cells: &[u32]) {
        let sink = Remote { tag: held.tag, offset: range_of(from, 1).start() };
        self.endpoint.write(Source::Bytes(bytes_of(cells).into()), sink, Box::new(|_| {}));
    }

    fn send(&self, message: &Message) {
        self.endpoint.send(message.encode(), None, Box::new(|_| {}));
    }

    /// As long as it pleases, or until somebody wants the lease.
    fn wait_a_little(&mut self) {
        match below(6) {
            0 => sync::sleep(GRACE * 3),
            1 => sync::sleep(Duration::from_micros(below(100_000))),
            2 => {
                let until = sync::now() + Duration::from_micros(below(200_000));
                let told = self.told.len();
                while sync::now() < until && self.told.len() == told && !self.gone {
                    sync::sleep(Duration::from_millis(1));
                    self.hear_events();
                }
            }
            _ => {}
        }
    }

    /// Commits these cells, or lets them go.
    fn end(&mut self, held: Held, cells: &[Option<u32>], is_whole: bool) {
        let life = self.life;
        let crc = crc32c(&bytes_of(&cells.iter().map(|cell| cell.unwrap_or(0)).collect::<Content>()));
        let op = Op::Write { at: held.at, cells: cells.to_vec() };
        match below(16) {
            0 => {
                let _over = block_on(life.engine.release(self.session, held.lease));
            }
            1 => {} // forgotten, until the session ends or somebody wants it
            2 => {
                self.endpoint.close();
                self.gone = true;
            }
            3 | 4 if is_whole => {
                let id = life.oracle().begin(held.inode, op);
                let committed = block_on(life.engine.commit(self.session, held.lease, crc));
                if committed.is_ok() || !life.is_over() {
                    let judged = life.oracle().end(held.inode, id, committed.is_ok());
                    life.judge(judged);
                }
                life.count("commits by call", committed.is_ok().into());
            }
            _ => {
                let request = self.number();
                let id = life.oracle().begin(held.inode, op);
                let crc32c = (is_whole && !chance(8)).then_some(crc);
                self.send(&Message::Commit(Commit { request, lease: held.lease.0, crc32c }));
                // Without a CRC, what comes before the fence would count.
                if crc32c.is_some() && chance(3) {
                    self.write(held, 0, &vec![LATE; held.count]);
                }
                self.hear_outcome(held, id, request, "commits");
            }
        }
    }

    /// Whether the lease goes on.
    fn capture(&mut self, held: Held, cells: &[Option<u32>]) -> bool {
        let from = below(held.count as u64) as usize;
        let count = 1 + below((held.count - from) as u64) as usize;
        let op = Op::Write { at: held.at + from, cells: cells[from..from + count].to_vec() };
        let (request, range) = (self.number(), range_of(from, count));
        let id = self.life.oracle().begin(held.inode, op);
        let (lease, offset, length) = (held.lease.0, range.start(), range.len());
        self.send(&Message::Capture(Capture { request, lease, offset, length }));
        self.hear_outcome(held, id, request, "captures")
    }

    fn fetch(&mut self, held: Held, contents: &BTreeSet<Content>) {
        let (length, request) = (range_of(0, held.count).len(), self.number());
        let memory = Memory::new(length as usize, 0xFF);
        let Ok(sink_tag) = self.endpoint.expose(memory.region(0, length as usize), RemoteAccess::Write)
        else {
            return;
        };
        let (lease, offset, sink_offset) = (held.lease.0, 0, 0);
        self.send(&Message::Fetch(Fetch { request, lease, offset, length, sink_tag, sink_offset }));
        let Some(Message::Fetched(fetched)) = self.answer(request) else { return };
        if fetched.status == Status::Ok {
            let found = cells_of(&memory.snapshot(0, length as usize));
            let cells = |content: &Content| -> Content {
                (held.at..held.at + held.count).map(|at| content.get(at).copied().unwrap_or(0)).collect()
            };
            let is_fine = contents.is_empty() || contents.iter().any(|content| cells(content) == found);
            assert!(is_fine || self.life.is_over(), "fetched {found:?}, of one of {contents:?}");
            self.life.count("fetches", 1);
        }
        let _over = block_on(self.life.engine.release(self.session, held.lease));
    }

    fn number(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// How a commit or capture went, as far as it is ever known. Whether it took effect.
    fn hear_outcome(&mut self, held: Held, id: u64, request: u64, what: &'static str) -> bool {
        let (status, text) = match self.answer(request) {
            Some(Message::Committed(committed)) => (committed.status, committed.text),
            Some(Message::Captured(captured)) => (captured.status, captured.text),
            _ => return false,
        };
        let faulty = matches!(status, Status::Io | Status::NoSpace);
        assert!(!faulty || self.life.may_fail(), "a disk without fault: {status:?} {text}");
        let judged = self.life.oracle().end(held.inode, id, status == Status::Ok);
        self.life.judge(judged);
        self.life.count(what, (status == Status::Ok).into());
        status == Status::Ok
    }

    /// The answer to a request; nothing if the connection ended before it came.
    fn answer(&mut self, request: u64) -> Option<Message> {
        if self.gone {
            return None;
        }
        match self.heard.recv_timeout(PATIENCE) {
            Ok(Heard::Message(message)) => {
                let of = match &message {
                    Message::Committed(answer) => answer.request,
                    Message::Captured(answer) => answer.request,
                    Message::Fetched(answer) => answer.request,
                    other => panic!("{other:?} is not for clients"),
                };
                assert_eq!(of, request, "an answer to something else");
                Some(message)
            }
            Ok(Heard::Closed) => {
                self.gone = true;
                None
            }
            Err(_) => panic!("no answer to request {request} of session {:?}", self.session),
        }
    }

    /// Nobody loses a lease to a breaker without having been told before.
    fn hear_events(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Break { lease, .. } => {
                    self.life.count("breaks", 1);
                    self.told.insert(lease);
                }
                Event::Revoked { lease, why, .. } if why.starts_with("it was broken") => {
                    self.life.count("revokes", 1);
                    assert!(
                        self.told.contains(&lease),
                        "{lease} was revoked, and its holder not told before"
                    );
                }
                Event::SessionEnded { .. } => self.gone = true,
                _ => {}
            }
        }
    }

    fn leave(mut self) {
        self.hear_events();
        match below(4) {
            0 => self.endpoint.close(),
            // Silent, until the server has had enough.
            1 => sync::sleep(Duration::from_secs(4)),
            _ => {}
        }
        self.life.engine.close_session(self.session, "it is done");
        self.endpoint.close();
    }
}
