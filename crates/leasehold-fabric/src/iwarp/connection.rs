//! One connection, as its users see it: what it exposes, and what it sends.
//!
//! Any thread may call; the one that finds the sender free does the sending, at once. Whatever has to be told to users
//! is told without a lock held, and a user who starts another operation from within is served by the caller further
//! out, so that chains of operations do not grow the stack.

use super::config::Config;
use super::exposure::Exposures;
use super::operation::Operation;
use super::outgoing::OutFrame;
use super::rdmap::ReadRequest;
use super::reads::Reads;
use super::terminate::{Offender, Violation};
use super::transmit::{Pumped, Sender};
use super::worker::{Command, Mailbox};
use crate::{
    CloseReason, Done, Endpoint, ExposeError, OperationError, Region, Remote, RemoteAccess, Source, Tag,
    Unproven,
};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::Duration;

/// Our own messages are short enough for every peer.
const MESSAGE_MAX: usize = 4096;

/// One connection to one peer.
pub(crate) struct Connection {
    pub(crate) id: u64,
    this: Weak<Connection>,
    peer: SocketAddr,
    mailbox: Arc<Mailbox>,
    pub(crate) exposures: Exposures,
    pub(crate) reads: Reads,
    queue: Mutex<Queue>,
    sender: Mutex<Sender>,
    queue_max: usize,
    /// Reads at once that are served.
    serve_max: usize,
}

struct Queue {
    operations: VecDeque<Operation>,
    /// Waiting with the sender, when it last looked.
    with_sender: usize,
    closed: Option<CloseReason>,
}

impl Connection {
    pub(crate) fn new(
        id: u64,
        peer: SocketAddr,
        mailbox: Arc<Mailbox>,
        sender: Sender,
        ord: u16,
        config: &Config,
    ) -> Arc<Connection> {
        let exposures = Exposures::new(config.tags_max, config.discarding_max);
        #[cfg(feature = "mutation")]
        let exposures = exposures.skip_fence(config.unsafe_skip_fence);
        Arc::new_cyclic(|this| Connection {
            id,
            this: this.clone(),
            peer,
            mailbox,
            exposures,
            reads: Reads::new(ord),
            queue: Mutex::new(Queue { operations: VecDeque::new(), with_sender: 0, closed: None }),
            sender: Mutex::new(sender),
            queue_max: config.queue_max,
            serve_max: config.reads_max.into(),
        })
    }

    /// Queues an operation and sends what can be sent.
    pub(crate) fn submit(&self, operation: Operation) {
        let refused = {
            let mut queue = self.lock_queue();
            if let Some(why) = &queue.closed {
                Some((operation, OperationError::Closed(why.clone())))
            } else if queue.operations.len() + queue.with_sender >= self.queue_max {
                Some((operation, OperationError::QueueFull { max: self.queue_max }))
            } else {
                queue.operations.push_back(operation);
                None
            }
        };
        match refused {
            None => self.drive(),
            Some((operation, error)) => operation.abandon(error),
        }
    }

    /// Answers a peer's read.
    pub(crate) fn answer(&self, request: &ReadRequest, offender: Offender) -> Result<(), Violation> {
        let answering = self.lock_sender().answering();
        if answering >= self.serve_max {
            return Err(Violation::NoBuffer);
        }
        let sink = Remote { tag: Tag(request.sink_tag), offset: request.sink_offset };
        let length = u64::from(request.length);
        if length == 0 {
            self.submit(Operation::empty_answer(sink, offender));
            return Ok(());
        }
        let exposure = self.exposures.find(Tag(request.source_tag)).ok_or(Violation::UnknownTag)?;
        if !exposure.is_live() {
            return Err(Violation::RevokedRead);
        }
        if exposure.access() != RemoteAccess::Read {
            return Err(Violation::Access);
        }
        let offset = request.source_offset;
        if offset.checked_add(length).is_none() {
            return Err(Violation::Wrap);
        }
        if !exposure.contains(offset, length) {
            return Err(Violation::Bounds);
        }
        self.submit(Operation::write_exposed(exposure, offset, length, sink, Some(offender), None));
        Ok(())
    }

    /// The oldest read of this end is answered: says so, and asks the next.
    pub(crate) fn read_answered(&self) {
        if let Some((done, result)) = self.reads.answered() {
            done(result);
        }
        self.ask_reads();
    }

    /// The peer's first frame came.
    pub(crate) fn heard(&self) {
        self.lock_sender().heard();
        self.drive();
    }

    /// The socket takes bytes again. For the worker: it waits for the sender, so that the news is not lost.
    pub(crate) fn writable(&self) {
        self.lock_sender().unblock();
        self.drive();
    }

    /// Ends it: nothing is placed or sent any more, but for a last frame. Called by the worker, once.
    pub(crate) fn end(&self, why: &CloseReason, last: Option<OutFrame>) {
        let mut given_up = {
            let mut queue = self.lock_queue();
            queue.closed = Some(why.clone());
            std::mem::take(&mut queue.operations)
        };
        {
            let mut sender = self.lock_sender();
            given_up.append(&mut sender.finish(last));
            sender.flush_partial();
            sender.say_end();
        }
        self.exposures.close();
        for operation in given_up {
            operation.abandon(OperationError::Closed(why.clone()));
        }
        for done in self.reads.abandon() {
            done(Err(OperationError::Closed(why.clone())));
        }
    }

    /// Sends what is left of the last frame. `true`: nothing is left.
    pub(crate) fn flush(&self) -> bool {
        let mut sender = self.lock_sender();
        sender.unblock();
        sender.flush_partial()
    }

    /// Lets the socket go.
    pub(crate) fn let_go(&self) {
        self.lock_sender().close();
    }

    /// Sends until all is sent or the socket is full, and tells who is done. From within what it tells, it only notes
    /// that there is more.
    pub(crate) fn drive(&self) {
        let Some(this) = self.this.upgrade() else { return };
        let outermost = DRIVING.with_borrow_mut(|driving| match driving {
            Some(later) => {
                later.push_back(this.clone());
                false
            }
            None => {
                *driving = Some(VecDeque::new());
                true
            }
        });
        if !outermost {
            return;
        }
        let _guard = Outermost;
        let mut next = Some(this);
        while let Some(connection) = next {
            connection.send_and_tell();
            next = DRIVING.with_borrow_mut(|driving| driving.as_mut().and_then(VecDeque::pop_front));
        }
    }

    fn send_and_tell(&self) {
        loop {
            let mut sender = match self.sender.try_lock() {
                Ok(sender) => sender,
                // Who has it looks at the queue again when it is done.
                Err(TryLockError::WouldBlock) => return,
                Err(TryLockError::Poisoned(_)) => panic!("no code panics while it holds the sender"),
            };
            {
                let mut queue = self.lock_queue();
                sender.push(&mut queue.operations);
                queue.with_sender = sender.waiting();
            }
            let pumped = sender.pump(&self.exposures);
            let finished = sender.take_finished();
            let waiting = sender.waiting();
            drop(sender);
            self.lock_queue().with_sender = waiting;
            for (done, result) in finished {
                done(result);
            }
            match pumped {
                Pumped::Idle if self.lock_queue().operations.is_empty() => return,
                Pumped::Idle => {}
                Pumped::Blocked => return,
                Pumped::More => return self.mailbox.post(Command::Send(self.id)),
                Pumped::ReadRevoked(offender) => return self.read_revoked(offender),
            }
        }
    }

    fn read_revoked(&self, offender: Offender) {
        self.mailbox.post(Command::Violation(self.id, Violation::RevokedRead, Box::new(offender)));
    }

    fn ask_reads(&self) {
        {
            let mut queue = self.lock_queue();
            if queue.closed.is_some() {
                return;
            }
            self.reads.admit(|request| queue.operations.push_back(Operation::read(request)));
        }
        self.drive();
    }

    /// The tag was fenced: what was to be sent from it, or read into it, is not.
    fn drop_revoked(&self, tag: Tag) {
        let (finished, revoked) = {
            let mut sender = self.lock_sender();
            sender.push(&mut self.lock_queue().operations);
            let revoked = sender.purge(tag);
            (sender.take_finished(), revoked)
        };
        for (done, result) in finished {
            done(result);
        }
        if let Some(offender) = revoked {
            self.read_revoked(offender);
        }
        self.drive();
    }

    /// The exposure of a tag of this end, for an operation of this end.
    fn own(
        &self,
        tag: Tag,
        access: RemoteAccess,
        offset: u64,
        length: u64,
    ) -> Result<Arc<super::exposure::Exposure>, OperationError> {
        if let Some(why) = &self.lock_queue().closed {
            return Err(OperationError::Closed(why.clone()));
        }
        let exposure = self.exposures.find(tag).filter(|exposure| exposure.is_live());
        let exposure = exposure.ok_or(OperationError::Revoked(tag))?;
        if exposure.access() != access {
            return Err(OperationError::WrongAccess(tag));
        }
        if !exposure.contains(offset, length) {
            return Err(OperationError::OutOfBounds { tag, offset, length });
        }
        Ok(exposure)
    }

    fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no code panics while it holds the queue")
    }

    fn lock_sender(&self) -> MutexGuard<'_, Sender> {
        self.sender.lock().expect("no code panics while it holds the sender")
    }
}

impl Endpoint for Connection {
    fn expose(&self, region: Region, access: RemoteAccess) -> Result<Tag, ExposeError> {
        self.exposures.expose(region, access)
    }

    fn fence(&self, tag: Tag, patience: Duration) -> Result<(), Unproven> {
        if self.exposures.fence(tag, patience)?.is_some() {
            self.drop_revoked(tag);
        }
        Ok(())
    }

    fn forget(&self, tag: Tag) {
        self.exposures.forget(tag);
    }

    fn write(&self, source: Source, sink: Remote, done: Done) {
        match source {
            Source::Bytes(bytes) => self.submit(Operation::write(bytes, sink, Some(done))),
            Source::Exposed { tag, offset, length } => {
                match self.own(tag, RemoteAccess::Read, offset, length) {
                    Ok(exposure) => self.submit(Operation::write_exposed(
                        exposure,
                        offset,
                        length,
                        sink,
                        None,
                        Some(done),
                    )),
                    Err(error) => done(Err(error)),
                }
            }
        }
    }

    fn read(&self, source: Remote, length: u64, sink: Tag, sink_offset: u64, done: Done) {
        let exposure = match self.own(sink, RemoteAccess::Write, sink_offset, length) {
            Ok(exposure) => exposure,
            Err(error) => return done(Err(error)),
        };
        match self.reads.ask(source, length, &exposure, sink_offset, self.queue_max, done) {
            Ok(()) => self.ask_reads(),
            Err(done) => done(Err(OperationError::QueueFull { max: self.reads.at_once_max(self.queue_max) })),
        }
        let closed = self.lock_queue().closed.clone();
        if let Some(why) = closed {
            // It closed in between, and nobody would give the read up.
            for done in self.reads.abandon() {
                done(Err(OperationError::Closed(why.clone())));
            }
        }
    }

    fn send(&self, message: Bytes, invalidate: Option<Tag>, done: Done) {
        if message.len() > MESSAGE_MAX {
            return done(Err(OperationError::TooLong { length: message.len(), max: MESSAGE_MAX }));
        }
        self.submit(Operation::send(message, invalidate, Some(done)));
    }

    fn close(&self) {
        self.mailbox.post(Command::Close(self.id));
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }
}

thread_local! {
    /// On a thread that is sending: the connections that were given more to send from within.
    static DRIVING: RefCell<Option<VecDeque<Arc<Connection>>>> = const { RefCell::new(None) };
}

/// Ends the sending of this thread, also if a user's callback panics.
struct Outermost;

impl Drop for Outermost {
    fn drop(&mut self) {
        let later = DRIVING.with_borrow_mut(Option::take);
        drop(later);
    }
}
