//! Locks, channels, threads and the clock, by one name: all that makes one run of the engine differ from the next.
//!
//! In a product they are the standard library's. In tests they are too, unless a simulation runs: then one seed decides
//! what they do (`simulation`). So nothing in this crate that a simulation shall reach takes them from elsewhere.

#[cfg(test)]
pub(crate) use crate::simulation::sync::*;
#[cfg(not(test))]
pub(crate) use real::*;

use std::cell::Cell;

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Polls calls of an engine on a thread that may block: what they would have another thread do, they do at once, until they have to
/// wait for the core. So a caller with threads of its own is spared the change between threads.
pub fn may_block<T>(poll: impl FnOnce() -> T) -> T {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            MAY_BLOCK.set(self.0);
        }
    }
    let _reset = Reset(MAY_BLOCK.replace(true));
    poll()
}

#[cfg(not(test))]
mod real {
    use std::any::Any;
    use std::io;
    use std::time::{Duration, Instant};

    pub(crate) use std::sync::mpsc;
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread::JoinHandle;

    /// The time.
    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// Starts a thread.
    pub(crate) fn spawn<T: Send + 'static>(
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        std::thread::Builder::new().name(name.into()).spawn(work)
    }

    /// Waits until the thread ends. Nothing if it panicked, which was reported, or is this one: it cannot wait for itself.
    pub(crate) fn join<T>(thread: JoinHandle<T>) -> Option<T> {
        if thread.thread().id() == std::thread::current().id() { None } else { thread.join().ok() }
    }

    /// Ends the process, because of a panic that was reported.
    pub(crate) fn end_process(_panic: Box<dyn Any + Send>) -> ! {
        std::process::abort()
    }

    /// Runs a blocking call on tokio's threads for those, if this one may not.
    pub(crate) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
        if super::MAY_BLOCK.get() {
            return call();
        }
        tokio::task::spawn_blocking(call).await.expect("a blocking call neither panics nor is aborted")
    }

    /// Goes on also if the caller is dropped.
    pub(crate) async fn detached<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
        tokio::spawn(future).await.expect("what goes on neither panics nor is aborted")
    }

    /// `None` if it takes longer.
    pub(crate) async fn timeout<T>(patience: Duration, future: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(patience, future).await.ok()
    }
}
