//! Threads for checksums and for system calls that block.
//!
//! A job that panics ends the process, and so does a thread of the disk ([`or_abort`]): it may have held a lock, and its output would never be answered, so the store
//! would be half dead. The next start recovers, as after any crash.

use crate::sync::{self, Condvar, JoinHandle, Mutex};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

type Job = Box<dyn FnOnce() + Send>;

/// Does what must not panic.
pub(crate) fn or_abort(job: impl FnOnce()) {
    // Nothing is looked at afterwards: that what it leaves is consistent need not be so.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
        tracing::error!("a storage thread panicked: the process ends, and the next start recovers");
        sync::end_process(panic);
    }
}

/// A queue of jobs and the threads that do them, in order of arrival.
#[derive(Default)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Workers {
    pub(crate) fn start(count: usize) -> io::Result<Workers> {
        let workers = Workers::default();
        for _ in 0..count.max(1) {
            let shared = Arc::clone(&workers.shared);
            let thread = sync::spawn("storage-work", move || shared.run())?;
            workers.threads.lock().expect("no panic while held").push(thread);
        }
        Ok(workers)
    }

    /// Does the job on one of the threads; drops it if they have ended.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock().expect("no panic while held");
        if !state.closed {
            state.jobs.push_back(Box::new(job));
            drop(state);
            self.shared.filled.notify_one();
        }
    }

    /// Does the jobs that are left, then ends the threads.
    pub(crate) fn finish(&self) {
        self.shared.state.lock().expect("no panic while held").closed = true;
        self.shared.filled.notify_all();
        for thread in self.threads.lock().expect("no panic while held").drain(..) {
            sync::join(thread);
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock().expect("no panic while held");
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                or_abort(job);
                state = self.state.lock().expect("no panic while held");
            } else if state.closed {
                return;
            } else {
                state = self.filled.wait(state).expect("no panic while held");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const CHILD: &str = "LEASEHOLD_TEST_WORKER_PANICS";

    /// A write far past what a sidecar can describe once panicked on a worker that held the file's sums: everything else
    /// went on, and that file's requests waited for ever.
    #[test]
    fn a_job_that_panics_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let workers = Workers::start(1).unwrap();
            workers.run(|| panic!("on purpose"));
            workers.finish();
            return;
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "workers::tests::a_job_that_panics_ends_the_process", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{child:?}");
    }
}
