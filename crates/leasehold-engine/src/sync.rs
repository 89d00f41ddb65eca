//! Locks, channels, threads, the clock and chance, by one name: all that makes one run of the engine differ from the next.
//!
//! In a product they are the standard library's. In tests they are too, unless a simulation runs: then one seed decides
//! what they do (`simulation`). So nothing in this crate that a simulation shall reach takes them from elsewhere.

#[cfg(test)]
pub(crate) use crate::simulation::sync::*;
#[cfg(not(test))]
pub(crate) use real::*;

use std::cell::RefCell;
use std::collections::VecDeque;

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    static HERE: RefCell<Here> = const { RefCell::new(Here { may_block: false, jobs: None }) };
}

/// What a thread may do.
#[derive(Default)]
pub(crate) struct Here {
    may_block: bool,
    /// What it is to do if it helps.
    jobs: Option<VecDeque<Job>>,
}

/// Polls calls of an engine on a thread that may block: what they would have another thread do, they do at once, until they have to
/// wait for the core. So a caller with threads of its own is spared the change between threads.
pub fn may_block<T>(poll: impl FnOnce() -> T) -> T {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            HERE.with_borrow_mut(|here| here.may_block = self.0);
        }
    }
    let _reset = Reset(HERE.with_borrow_mut(|here| std::mem::replace(&mut here.may_block, true)));
    poll()
}

/// Whether this thread is in [`may_block`], and may take the core's place.
pub(crate) fn is_allowed_to_block() -> bool {
    HERE.with_borrow(|here| here.may_block && here.jobs.is_none())
}

/// Whether this thread is in [`helping`].
pub(crate) fn is_helping() -> bool {
    HERE.with_borrow(|here| here.jobs.is_some())
}

/// Runs `help`, on a thread that does short jobs itself meanwhile: it takes them from [`jobs_here`].
pub(crate) fn helping<T>(help: impl FnOnce() -> T) -> T {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            let jobs = HERE.with_borrow_mut(|here| here.jobs.take());
            debug_assert!(
                std::thread::panicking() || jobs.is_some_and(|jobs| jobs.is_empty()),
                "all is done"
            );
        }
    }
    HERE.with_borrow_mut(|here| here.jobs = Some(VecDeque::new()));
    let _over = Over;
    help()
}

/// Has this thread do a short job, if it helps; else gives it back.
pub(crate) fn do_here<J: FnOnce() + Send + 'static>(job: J) -> Result<(), J> {
    HERE.with_borrow_mut(|here| match &mut here.jobs {
        Some(jobs) => {
            jobs.push_back(Box::new(job));
            Ok(())
        }
        None => Err(job),
    })
}

/// The jobs of this thread, as long as there are any.
pub(crate) fn jobs_here() -> impl Iterator<Item = Job> {
    std::iter::from_fn(|| HERE.with_borrow_mut(|here| here.jobs.as_mut()?.pop_front()))
}

/// For tasks that share a thread, and take turns.
#[cfg(test)]
pub(crate) fn swap_here(other: &mut Here) {
    HERE.with_borrow_mut(|here| std::mem::swap(here, other));
}

#[cfg(not(test))]
mod real {
    use std::any::Any;
    use std::io;
    use std::time::{Duration, Instant, SystemTime};

    pub(crate) use std::sync::mpsc;
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread::JoinHandle;

    /// The time.
    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// What people take for the time. It may jump, so nothing is decided by it.
    pub(crate) fn wall() -> SystemTime {
        SystemTime::now()
    }

    /// A number that nobody can guess.
    pub(crate) fn random() -> io::Result<u32> {
        Ok(getrandom::u32()?)
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
        if super::is_allowed_to_block() {
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
