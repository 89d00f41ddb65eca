//! System calls on a connection's socket that are interrupted, cut short or refused: the n-th of each kind, for every n of a
//! script, with TLS and without.

use leasehold_fabric::conformance::{Heard, Memory, PATIENCE, Record, Server, done, recorder, write};
use leasehold_fabric::iwarp::{Call, Config, Fate, Fates, Iwarp, OverTls, ServerTls};
use leasehold_fabric::{Endpoint, Fabric, Remote, RemoteAccess};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const LENGTH: usize = 300_000;
const BYTE: u8 = 7;
const EINTR: Fate = Fate::Fails(4);
const ECONNRESET: Fate = Fate::Fails(104);
const ENOBUFS: Fate = Fate::Fails(105);

/// How a script ended.
#[derive(Debug, PartialEq)]
enum Ended {
    Well,
    /// The connection was refused, or did not come about.
    NotConnected,
    /// It was closed, and both ends heard so.
    Closed,
}

/// One end, and whether it has heard that the connection is over.
struct End {
    endpoint: Arc<dyn Endpoint>,
    record: Record,
    over: Cell<bool>,
}

impl End {
    fn new(endpoint: Arc<dyn Endpoint>, record: Record) -> End {
        End { endpoint, record, over: Cell::new(false) }
    }

    /// `None`: the end of the connection came in its place.
    fn message(&self) -> Option<()> {
        match self.record.next() {
            Heard::Message(_) => Some(()),
            Heard::Closed(_) => {
                self.over.set(true);
                None
            }
            Heard::Poisoned => panic!("no frame was changed"),
        }
    }

    fn hears_the_end(&self) {
        while !self.over.get() {
            self.message();
        }
    }
}

/// Connects, writes, sends, fences and reads. Whoever waits for longer than [`PATIENCE`] has found a hang.
fn script(fabric: &dyn Fabric) -> Ended {
    let server = Server::new(fabric, b"token");
    let (recorder, client) = recorder();
    let Ok((near, _)) = fabric.connect(server.address(), b"token", Box::new(recorder), PATIENCE) else {
        return Ended::NotConnected;
    };
    let server = server.record();
    let [near, far] = [End::new(near, client), End::new(server.endpoint(), server)];
    let (there, here) = (Memory::new(LENGTH, 0), Memory::new(LENGTH, 0));
    let went = exchange(&near, &far, &there, &here);
    if went.is_some() {
        near.endpoint.close();
    }
    near.hears_the_end();
    far.hears_the_end();
    for memory in [there, here] {
        let bytes = memory.snapshot(0, LENGTH);
        assert!(bytes.iter().all(|&byte| byte == BYTE || went.is_none() && byte == 0));
    }
    if went.is_some() { Ended::Well } else { Ended::Closed }
}

/// `None`: the connection was closed.
fn exchange(near: &End, far: &End, there: &Memory, here: &Memory) -> Option<()> {
    let tag = far.endpoint.expose(there.region(0, LENGTH), RemoteAccess::Write).ok()?;
    for at in (0..LENGTH).step_by(LENGTH / 3) {
        write(&*near.endpoint, vec![BYTE; LENGTH / 3], tag, at as u64).ok()?;
    }
    near.endpoint.send("written".into(), None, done().0);
    far.message()?;
    far.endpoint.fence(tag, PATIENCE).expect("the worker is alive");
    let tag = far.endpoint.expose(there.region(0, LENGTH), RemoteAccess::Read).ok()?;
    far.endpoint.send("fenced".into(), None, done().0);
    near.message()?;
    let sink = near.endpoint.expose(here.region(0, LENGTH), RemoteAccess::Write).ok()?;
    let (read, result) = done();
    near.endpoint.read(Remote { tag, offset: 0 }, LENGTH as u64, sink, 0, read);
    result.recv_timeout(PATIENCE).expect("the read to be done").ok()
}

/// From the `from`-th call of a kind on, one fate after the other. Returns how it ended, and how many such calls there were.
fn run(over_tls: bool, call: Call, from: usize, turn: &'static [Fate]) -> (Ended, usize) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let fates = Fates::new(move |called| {
        if called != call {
            return Fate::Asked;
        }
        let number = counted.fetch_add(1, Ordering::Relaxed);
        number.checked_sub(from).and_then(|index| turn.get(index)).copied().unwrap_or(Fate::Asked)
    });
    let config = Config { workers: 1, fates: Some(fates), ..Config::default() };
    let fabric = |config| Iwarp::new(config).expect("threads");
    let ended = if over_tls {
        let tls = ServerTls::generate().expect("random bytes");
        let key = tls.public_key().clone();
        script(&OverTls::new(Arc::new(fabric(Config { tls: Some(tls), ..config })), key))
    } else {
        script(&fabric(config))
    };
    (ended, calls.load(Ordering::Relaxed))
}

/// For every n, until the script makes fewer such calls.
fn every(call: Call, turn: &'static [Fate], judge: impl Fn(&Ended) -> bool) {
    for over_tls in [false, true] {
        let mut seen = [0; 3];
        for from in 0.. {
            let (ended, calls) = run(over_tls, call, from, turn);
            assert!(judge(&ended), "TLS {over_tls}, {call:?} number {from}: {ended:?}");
            seen[ended as usize] += 1;
            if from >= calls {
                break;
            }
        }
        println!("TLS {over_tls}, {call:?}, {turn:?}: well, not connected, closed: {seen:?}");
        assert!(seen.iter().sum::<usize>() > 5, "there were calls");
    }
}

#[test]
fn a_call_that_is_interrupted_is_made_again() {
    for call in [Call::Send, Call::Receive] {
        every(call, &[EINTR, EINTR, EINTR], |ended| *ended == Ended::Well);
    }
}

/// But for a set-up frame, which some peers want in one piece.
#[test]
fn what_a_send_did_not_take_is_sent_again() {
    every(Call::Send, &[Fate::Short(1), Fate::Short(7)], |ended| *ended != Ended::Closed);
}

/// Nobody waits for what will never come, and no byte is wrong.
#[test]
fn a_call_that_fails_ends_the_connection_at_both_ends() {
    for turn in [&[ECONNRESET], &[ENOBUFS]] {
        for call in [Call::Send, Call::Receive] {
            every(call, turn, |_| true);
        }
    }
}
