//! Threads for checksums and for system calls that block.
//!
//! A job that panics ends the process, and so does a thread of the disk ([`or_abort`]): it may have held a lock, and its output would never be answered, so the store
//! would be half dead. The next start recovers, as after any crash.

use crate::sync::{self, Condvar, JoinHandle, Mutex};
use leasehold_core::ids::FileId;
use std::collections::{BTreeMap, VecDeque};
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

/// A queue of jobs and the threads that do them, in order of arrival; but those of one file are never on all threads at a time,
/// if there are several: what one file waits for, others need not wait for.
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
    jobs: VecDeque<(Option<FileId>, Job)>,
    /// How many threads are at work for a file.
    busy: BTreeMap<FileId, usize>,
    for_a_file_max: usize,
    closed: bool,
}

impl State {
    /// The next job that may be done now.
    fn next(&mut self) -> Option<(Option<FileId>, Job)> {
        let may = |file: &Option<FileId>| {
            file.is_none_or(|file| self.busy.get(&file).is_none_or(|busy| *busy < self.for_a_file_max))
        };
        let place = self.jobs.iter().position(|(file, _)| may(file))?;
        let (file, job) = self.jobs.remove(place).expect("found above");
        if let Some(file) = file {
            *self.busy.entry(file).or_default() += 1;
        }
        Some((file, job))
    }

    fn done(&mut self, file: FileId) {
        let busy = self.busy.get_mut(&file).expect("counted when it began");
        *busy -= 1;
        if *busy == 0 {
            self.busy.remove(&file);
        }
    }
}

impl Workers {
    /// `for_a_file_max`: so many threads at most do jobs of one file.
    pub(crate) fn start(count: usize, for_a_file_max: usize) -> io::Result<Workers> {
        let workers = Workers::default();
        workers.shared.state.lock().expect("no panic while held").for_a_file_max = for_a_file_max.max(1);
        for _ in 0..count.max(1) {
            let shared = Arc::clone(&workers.shared);
            let thread = sync::spawn("storage-work", move || shared.run())?;
            workers.threads.lock().expect("no panic while held").push(thread);
        }
        Ok(workers)
    }

    /// Does the job, which is of a file or of none, on one of the threads; drops it if they have ended.
    pub(crate) fn run(&self, file: Option<FileId>, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock().expect("no panic while held");
        if !state.closed {
            state.jobs.push_back((file, Box::new(job)));
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
            if let Some((file, job)) = state.next() {
                drop(state);
                or_abort(job);
                state = self.state.lock().expect("no panic while held");
                if let Some(file) = file {
                    state.done(file);
                    // Others may have passed over what may be done by now, and gone to sleep.
                    if state.closed {
                        self.filled.notify_all();
                    } else if !state.jobs.is_empty() {
                        self.filled.notify_one();
                    }
                }
            } else if state.closed && state.jobs.is_empty() {
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
    use crate::sync::mpsc;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::time::Duration;

    const CHILD: &str = "LEASEHOLD_TEST_WORKER_PANICS";

    #[test]
    fn jobs_of_one_file_that_wait_leave_a_thread_to_the_others() {
        let workers = Workers::start(3, 2).unwrap();
        let (told, tells) = mpsc::channel();
        let gates: Vec<_> = (0..4)
            .map(|number| {
                let (open, opens) = mpsc::channel::<()>();
                let told = told.clone();
                workers.run(Some(FileId(1)), move || {
                    opens.recv().unwrap();
                    told.send(number).unwrap();
                });
                open
            })
            .collect();
        for number in [10, 11] {
            let told = told.clone();
            workers.run(Some(FileId(2)), move || told.send(number).unwrap());
            assert_eq!(tells.recv_timeout(Duration::from_secs(20)), Ok(number));
        }
        gates.iter().for_each(|gate| gate.send(()).unwrap());
        // Without the others, in order and to the end.
        workers.finish();
        drop(told);
        let mut done: Vec<i32> = tells.iter().collect();
        done.sort_unstable();
        assert_eq!(done, [0, 1, 2, 3]);
    }

    /// A write far past what a sidecar can describe once panicked on a worker that held the file's sums: everything else
    /// went on, and that file's requests waited for ever.
    #[test]
    fn a_job_that_panics_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let workers = Workers::start(1, 1).unwrap();
            workers.run(None, || panic!("on purpose"));
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
