//! Channels, made of the locks beside.

use super::{Arc, Condvar, Duration, Mutex, MutexGuard, may_yield, now};
use std::collections::VecDeque;
pub(crate) use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError};

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    filled: Condvar,
}

struct Queue<T> {
    items: VecDeque<T>,
    senders: usize,
    receives: bool,
}

impl<T> Shared<T> {
    #[track_caller]
    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock_at_once().expect("no panic while held")
    }
}

pub(crate) struct Sender<T>(Arc<Shared<T>>);

pub(crate) struct Receiver<T>(Arc<Shared<T>>);

pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let queue = Mutex::new(Queue { items: VecDeque::new(), senders: 1, receives: true });
    let shared = Arc::new(Shared { queue, filled: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, item: T) -> Result<(), SendError<T>> {
        may_yield();
        let mut queue = self.0.queue();
        if !queue.receives {
            return Err(SendError(item));
        }
        queue.items.push_back(item);
        drop(queue);
        self.0.filled.notify_all();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.queue().senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.queue().senders -= 1;
        self.0.filled.notify_all();
    }
}

impl<T> Receiver<T> {
    #[track_caller]
    pub(crate) fn recv(&self) -> Result<T, RecvError> {
        let waits = |queue: &mut Queue<T>| queue.items.is_empty() && queue.senders > 0;
        let queue = self.0.filled.wait_while(self.0.queue(), waits);
        queue.expect("no panic while held").items.pop_front().ok_or(RecvError)
    }

    #[track_caller]
    pub(crate) fn recv_timeout(&self, patience: Duration) -> Result<T, RecvTimeoutError> {
        let waits = |queue: &mut Queue<T>| queue.items.is_empty() && queue.senders > 0;
        let until = now() + patience;
        let (mut queue, over) = self.0.filled.wait_while_until(self.0.queue(), until, waits);
        if !over {
            return Err(RecvTimeoutError::Timeout);
        }
        queue.items.pop_front().ok_or(RecvTimeoutError::Disconnected)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.receives = false;
        let left = std::mem::take(&mut queue.items);
        drop(queue);
        drop(left);
    }
}
