use super::*;
use crate::disk::Done;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Everything succeeds, at once or when it is let go.
#[derive(Default)]
struct Gate(Mutex<Option<Vec<(Transfer, Done)>>>);

impl Disk for Gate {
    fn submit(&self, transfer: Transfer, done: Done) {
        let mut held = self.0.lock().unwrap();
        if let Some(held) = &mut *held {
            return held.push((transfer, done));
        }
        drop(held);
        done(Ok(transfer.memory.len()), transfer.memory);
    }

    fn finish(&self) {}
}

/// The batch with the cancellation had landed, its callback had not run yet, and a stop found the record open.
#[test]
fn a_clean_end_waits_until_a_cancellation_is_over() {
    let gate = Arc::new(Gate::default());
    let segment = || {
        let file = tempfile::tempfile().unwrap();
        Arc::new(DiskFile { file, name: "segment".to_owned() })
    };
    let start = LogStart {
        active: 0,
        epoch: 1,
        offset: BATCH_ALIGNMENT as u64,
        next_batch: 1,
        next_sequence: 1,
        unretired: false,
        undecided: None,
    };
    let disk: Arc<dyn Disk> = Arc::clone(&gate) as _;
    let log = Log::new(disk, [segment(), segment()], start);
    let identity = Identity([7; 32]);
    let mark = Body::Mark { size: 0, adopted_blocks: 0, path: "a".to_owned() };
    let entry = Entry { identity, mark, marked: 0, body: Body::Remove };
    let appended = log.append(entry, Box::new(|_| {}));
    // A first batch under way, so that the next takes a callback that takes its time, and the cancellation.
    *gate.0.lock().unwrap() = Some(Vec::new());
    log.note(identity, Body::Remove, Box::new(|_| {}));
    let ((entered, enters), (go, goes)) = (channel(), channel());
    let slow: Durable = Box::new(move |_| {
        entered.send(()).unwrap();
        goes.recv().unwrap();
    });
    log.note(identity, Body::Remove, slow);
    log.cancel(identity, appended.sequence);
    let held = gate.0.lock().unwrap().take().unwrap();
    let landing = std::thread::spawn(move || {
        for (transfer, done) in held {
            done(Ok(transfer.memory.len()), transfer.memory);
        }
    });
    enters.recv().unwrap();
    let (end, ends) = channel();
    let ending = std::thread::spawn({
        let log = Arc::clone(&log);
        move || end.send(log.retire_all()).unwrap()
    });
    assert_eq!(ends.recv_timeout(Duration::from_millis(200)).err(), Some(RecvTimeoutError::Timeout));
    go.send(()).unwrap();
    ends.recv().unwrap().unwrap();
    landing.join().unwrap();
    ending.join().unwrap();
}
