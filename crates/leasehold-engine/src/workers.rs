//! Threads for checksums and for system calls that block.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

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
            let thread =
                std::thread::Builder::new().name("storage-work".into()).spawn(move || shared.run())?;
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
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock().expect("no panic while held");
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock().expect("no panic while held");
            } else if state.closed {
                return;
            } else {
                state = self.filled.wait(state).expect("no panic while held");
            }
        }
    }
}
