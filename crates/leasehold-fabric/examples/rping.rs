//! The conversation of rdma-core's `rping`, on this fabric: a peer for the unmodified program on whatever RDMA device
//! speaks iWARP, such as Linux' siw. `cargo xtask lab --only siw` runs the two against each other.
//!
//! ```text
//! client                               server
//!   where the data are       -->
//!                            <--  an RDMA Read of them
//!                            <--  go ahead
//!   where to put them        -->
//!                            <--  an RDMA Write
//!                            <--  go ahead
//! ```
//! Each line but the Read and the Write is a message of 16 bytes, big-endian: offset 8, tag 4, length 4.
//!
//! `cargo run -p leasehold-fabric --example rping -- client|server ADDRESS:PORT [--size N] [--rounds N] [--no-crc]
//! [--strict] [--revision-1] [--no-ready] [--fences N] [--mistake NAME]`
//!
//! With `--fences`, a client fences the memory while the peer writes to it, in so many rounds more: the peer must not
//! notice, and nothing may land once the fence has returned.
//!
//! With `--mistake`, something is wrong in the round after the last (see [`Mistake`]), and the connection has to end with
//! a Terminate: from the end whose memory is in question, or that received what is broken.

use bytes::{Buf, BufMut, Bytes};
use leasehold_fabric::conformance::{
    Heard, Memory, PATIENCE, Record, done, readable, recorder, send, writable,
};
use leasehold_fabric::iwarp::{Config, Iwarp};
use leasehold_fabric::{Admitted, CloseReason, Endpoint, Fabric, Gate, OperationError, Remote, Source, Tag};
use std::error::Error;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the memory holds that was fenced, once others use it.
const NEXT_USE: u8 = 0xEE;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [role, address, options @ ..] = &words[..] else {
        return Err("client or server, and an address".into());
    };
    let options = Options::parse(options)?;
    let mut address: SocketAddr = address.parse()?;
    let breaks = Arc::new(AtomicBool::new(false));
    if let Some(direction) = options.mistake.and_then(Mistake::direction) {
        address = relay(address, direction, options.size, breaks.clone())?;
    }
    let fabric = Iwarp::new(options.config.clone())?;
    let (endpoint, record, _listener) = match &role[..] {
        "client" => {
            let (recorder, record) = recorder();
            let (endpoint, _) = fabric.connect(address, b"", Box::new(recorder), PATIENCE)?;
            (endpoint, record, None)
        }
        "server" => {
            let (records, peers) = channel();
            let listener = fabric.listen(address, Arc::new(Open(Mutex::new(records))))?;
            let record: Record = peers.recv_timeout(PATIENCE).map_err(|_| "nobody connected")?;
            (record.endpoint(), record, Some(listener))
        }
        _ => return Err(format!("{role} is neither client nor server").into()),
    };
    let is_client = role == "client";
    let talk = Talk { endpoint: &*endpoint, record, size: options.size };
    for round in 0..options.rounds {
        let went = if is_client { talk.ask(round, None) } else { talk.serve(None) };
        went.map_err(|error| format!("round {round}: {error}"))?;
    }
    let placed = fabric.counters().bytes_placed.load(Ordering::Relaxed);
    let bytes = options.rounds as u64 * options.size as u64;
    if placed != bytes {
        return Err(format!("{placed} bytes were placed here in place of {bytes}").into());
    }
    println!("{role}: {} rounds of {} bytes: {bytes} read, {bytes} written", options.rounds, options.size);
    if options.fences > 0 {
        for fence in 0..options.fences {
            talk.fence(fence).map_err(|error| format!("fence {fence}: {error}"))?;
        }
        talk.ask(options.rounds, None)?;
        let discarded = fabric.counters().bytes_discarded.load(Ordering::Relaxed);
        if discarded == 0 {
            return Err("no fence came before the bytes that it was for".into());
        }
        let sent = options.fences * options.size;
        println!(
            "{role}: {} fences: {discarded} of {sent} bytes dropped, and a good round after",
            options.fences
        );
    }
    if let Some(mistake) = options.mistake {
        breaks.store(true, Ordering::Relaxed);
        let went =
            if is_client { talk.ask(options.rounds, Some(mistake)) } else { talk.serve(Some(mistake)) };
        let why = talk.end(went.err().ok_or("the mistake had no consequence")?);
        let noticed_here = is_client != (mistake == Mistake::BitSent);
        let as_it_should = match why {
            CloseReason::Violation(_) => noticed_here,
            CloseReason::Terminated(_) => !noticed_here,
            _ => false,
        };
        if !as_it_should {
            return Err(format!("{mistake:?}: it ended otherwise than it should: {why}").into());
        }
        println!("{role}: {mistake:?}: {why}");
        return Ok(());
    }
    if is_client {
        endpoint.close();
    }
    let why = talk.record.closed();
    let expected = if is_client { CloseReason::Here } else { CloseReason::Peer };
    if why == expected { Ok(()) } else { Err(format!("it ended otherwise than it should: {why}").into()) }
}

/// What can be chosen.
struct Options {
    config: Config,
    size: usize,
    rounds: usize,
    fences: usize,
    mistake: Option<Mistake>,
}

/// What is wrong. A client gives the wrong place to its peer, a server uses it itself.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    /// To be written to: a tag that does not exist.
    SinkTag,
    /// To be written to: just past the end.
    SinkBounds,
    /// To be written to: memory that may only be read.
    SinkAccess,
    /// To be read: a tag that does not exist.
    SourceTag,
    /// To be read: just past the end.
    SourceBounds,
    /// A bit of what a client sends is flipped on its way.
    BitSent,
    /// A bit of what a client receives is flipped on its way.
    BitReceived,
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Sent,
    Received,
}

impl Mistake {
    fn parse(name: &str) -> Option<Mistake> {
        Some(match name {
            "sink-tag" => Mistake::SinkTag,
            "sink-bounds" => Mistake::SinkBounds,
            "sink-access" => Mistake::SinkAccess,
            "source-tag" => Mistake::SourceTag,
            "source-bounds" => Mistake::SourceBounds,
            "bit-sent" => Mistake::BitSent,
            "bit-received" => Mistake::BitReceived,
            _ => return None,
        })
    }

    /// Which way the bytes go that are broken on the way.
    fn direction(self) -> Option<Direction> {
        match self {
            Mistake::BitSent => Some(Direction::Sent),
            Mistake::BitReceived => Some(Direction::Received),
            _ => None,
        }
    }
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        let mut options =
            Options { config: Config::default(), size: 64, rounds: 10, fences: 0, mistake: None };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} lacks its value"));
            match word {
                "--size" => options.size = value()?.parse()?,
                "--rounds" => options.rounds = value()?.parse()?,
                "--fences" => options.fences = value()?.parse()?,
                "--no-crc" => options.config.crc = false,
                "--strict" => options.config.strict = true,
                "--revision-1" => options.config.enhanced = false,
                "--no-ready" => options.config.peer_to_peer = false,
                "--mistake" => {
                    let name = value()?;
                    let mistake = Mistake::parse(name).ok_or_else(|| format!("no such mistake: {name}"))?;
                    options.mistake = Some(mistake);
                }
                _ => return Err(format!("no such option: {word}").into()),
            }
        }
        Ok(options)
    }
}

/// Lets everybody in, and says so.
struct Open(Mutex<Sender<Record>>);

impl Gate for Open {
    fn admit(&self, _private_data: &[u8], _peer: SocketAddr) -> std::result::Result<Admitted, Bytes> {
        let (recorder, record) = recorder();
        let _ = self.0.lock().expect("not poisoned").send(record);
        Ok(Admitted { handler: Box::new(recorder), private_data: Bytes::new() })
    }
}

/// The conversation with one peer.
struct Talk<'a> {
    endpoint: &'a dyn Endpoint,
    record: Record,
    size: usize,
}

impl Talk<'_> {
    /// A round of the client's: the peer reads the data, and writes them back.
    fn ask(&self, round: usize, mistake: Option<Mistake>) -> Result<()> {
        let data = data(round, self.size);
        let source_tag = self.offer(&data, mistake)?;
        let sink = Memory::new(self.size, 0);
        let sink_tag = writable(self.endpoint, &sink, 0, self.size);
        self.say(match mistake {
            Some(Mistake::SinkTag) => (Tag(!sink_tag.0), 0),
            Some(Mistake::SinkBounds) => (sink_tag, 1),
            Some(Mistake::SinkAccess) => (source_tag, 0),
            _ => (sink_tag, 0),
        })?;
        self.message()?;
        for tag in [source_tag, sink_tag] {
            self.endpoint.fence(tag, PATIENCE)?;
            self.endpoint.forget(tag);
        }
        if sink.snapshot(0, self.size) == data { Ok(()) } else { Err("other bytes came back".into()) }
    }

    /// A round of the client's whose sink is fenced: before the peer hears of it in the first, later and later after.
    fn fence(&self, number: usize) -> Result<()> {
        let source_tag = self.offer(&data(number, self.size), None)?;
        let sink = Memory::new(self.size, 0);
        let sink_tag = writable(self.endpoint, &sink, 0, self.size);
        if number > 0 {
            self.say((sink_tag, 0))?;
            std::thread::sleep(Duration::from_micros(50 * number as u64));
        }
        self.endpoint.fence(sink_tag, PATIENCE)?;
        sink.fill(0, self.size, NEXT_USE);
        if number == 0 {
            self.say((sink_tag, 0))?;
        }
        self.message()?;
        if sink.snapshot(0, self.size) != vec![NEXT_USE; self.size] {
            return Err("bytes landed after the fence".into());
        }
        for tag in [source_tag, sink_tag] {
            self.endpoint.fence(tag, PATIENCE)?;
            self.endpoint.forget(tag);
        }
        Ok(())
    }

    /// The client's data, until the peer has read them.
    fn offer(&self, data: &[u8], mistake: Option<Mistake>) -> Result<Tag> {
        let source = Memory::new(self.size, 0);
        for (at, byte) in data.iter().enumerate() {
            source.fill(at, 1, *byte);
        }
        let tag = readable(self.endpoint, &source, 0, self.size);
        self.say(match mistake {
            Some(Mistake::SourceTag) => (Tag(!tag.0), 0),
            Some(Mistake::SourceBounds) => (tag, 1),
            _ => (tag, 0),
        })?;
        self.message()?;
        Ok(tag)
    }

    /// A round of the server's.
    fn serve(&self, mistake: Option<Mistake>) -> Result<()> {
        let memory = Memory::new(self.size, 0);
        let tag = writable(self.endpoint, &memory, 0, self.size);
        let mut source = self.place()?;
        match mistake {
            Some(Mistake::SourceTag) => source.tag = Tag(!source.tag.0),
            Some(Mistake::SourceBounds) => source.offset += 1,
            _ => {}
        }
        let (callback, result) = done();
        self.endpoint.read(source, self.size as u64, tag, 0, callback);
        result.recv_timeout(PATIENCE)??;
        self.endpoint.fence(tag, PATIENCE)?;
        self.endpoint.forget(tag);
        self.say((tag, 0))?;
        let mut sink = self.place()?;
        match mistake {
            Some(Mistake::SinkTag) => sink.tag = Tag(!sink.tag.0),
            Some(Mistake::SinkBounds) => sink.offset += 1,
            _ => {}
        }
        let (callback, result) = done();
        self.endpoint.write(Source::Bytes(memory.snapshot(0, self.size).into()), sink, callback);
        result.recv_timeout(PATIENCE)??;
        if mistake.is_some() {
            // Until the peer has noticed.
            self.place()?;
        }
        self.say((tag, 0))?;
        Ok(())
    }

    /// Sends the name of a place; also what says "go ahead", where nobody looks at it.
    fn say(&self, (tag, offset): (Tag, u64)) -> std::result::Result<(), OperationError> {
        let mut message = Vec::with_capacity(16);
        message.put_u64(offset);
        message.put_u32(tag.0);
        message.put_u32(self.size as u32);
        send(self.endpoint, &message)
    }

    /// A place that the peer names.
    fn place(&self) -> Result<Remote> {
        let message = self.message()?;
        let mut message = &message[..];
        let offset = message.get_u64();
        let tag = Tag(message.get_u32());
        let length = message.get_u32();
        if length as usize != self.size {
            return Err(format!("the peer talks of {length} bytes in place of {}", self.size).into());
        }
        Ok(Remote { tag, offset })
    }

    fn message(&self) -> Result<Vec<u8>> {
        match self.record.next() {
            Heard::Message(message) if message.len() == 16 => Ok(message),
            Heard::Closed(why) => Err(why.into()),
            other => Err(format!("{other:?} in place of 16 bytes").into()),
        }
    }

    /// How the connection ends, after this error.
    fn end(&self, error: Box<dyn Error>) -> CloseReason {
        error.downcast().map_or_else(|_| self.record.closed(), |why| *why)
    }
}

/// Stands between a client and its peer, and passes on what comes; once told, it flips a bit in the midst of so many
/// bytes that go in this direction. Where to connect to it.
fn relay(peer: SocketAddr, breaks: Direction, length: usize, told: Arc<AtomicBool>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> std::io::Result<()> {
        let (near, far) = (listener.accept()?.0, TcpStream::connect(peer)?);
        let (near_too, far_too, told_too) = (near.try_clone()?, far.try_clone()?, told.clone());
        let back = std::thread::spawn(move || {
            pass_on(&far_too, &near_too, length, (breaks == Direction::Received).then_some(&*told_too))
        });
        pass_on(&near, &far, length, (breaks == Direction::Sent).then_some(&*told))?;
        back.join().expect("it does not panic")
    });
    Ok(address)
}

fn pass_on(
    mut from: &TcpStream,
    mut to: &TcpStream,
    length: usize,
    told: Option<&AtomicBool>,
) -> std::io::Result<()> {
    to.set_nodelay(true)?;
    let mut bytes = vec![0; 1 << 16];
    loop {
        let got = from.read(&mut bytes)?;
        if got == 0 {
            return to.shutdown(Shutdown::Write);
        }
        if got >= length && told.is_some_and(|told| told.swap(false, Ordering::Relaxed)) {
            bytes[got / 2] ^= 1;
        }
        to.write_all(&bytes[..got])?;
    }
}

/// What is sent in a round: printable, and without a zero before the end, since rping's server echoes a string.
fn data(round: usize, size: usize) -> Vec<u8> {
    let mut data: Vec<u8> = (0..size).map(|at| b'!' + ((at + round) % 94) as u8).collect();
    if let Some(last) = data.last_mut() {
        *last = 0;
    }
    data
}
