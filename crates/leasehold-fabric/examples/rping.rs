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
//! [--strict] [--revision-1] [--no-ready] [--mistake sink-tag|sink-bounds|sink-access|source-tag|source-bounds]`
//!
//! With `--mistake`, the round after the last names the wrong place: a client gives it to its peer, a server uses it
//! itself. Then the connection has to end with a Terminate, from the end whose memory it is.

use bytes::{Buf, BufMut, Bytes};
use leasehold_fabric::conformance::{
    Heard, Memory, PATIENCE, Record, done, readable, recorder, send, writable,
};
use leasehold_fabric::iwarp::{Config, Iwarp};
use leasehold_fabric::{Admitted, CloseReason, Endpoint, Fabric, Gate, OperationError, Remote, Source, Tag};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [role, address, options @ ..] = &words[..] else {
        return Err("client or server, and an address".into());
    };
    let options = Options::parse(options)?;
    let fabric = Iwarp::new(options.config.clone())?;
    let (endpoint, record, _listener) = match &role[..] {
        "client" => {
            let (recorder, record) = recorder();
            let (endpoint, _) = fabric.connect(address.parse()?, b"", Box::new(recorder), PATIENCE)?;
            (endpoint, record, None)
        }
        "server" => {
            let (records, peers) = channel();
            let listener = fabric.listen(address.parse()?, Arc::new(Open(Mutex::new(records))))?;
            let record: Record = peers.recv_timeout(PATIENCE).map_err(|_| "nobody connected")?;
            (record.endpoint(), record, Some(listener))
        }
        _ => return Err(format!("{role} is neither client nor server").into()),
    };
    let talk = Talk { endpoint: &*endpoint, record, size: options.size };
    for round in 0..options.rounds {
        let went = if role == "client" { talk.ask(round, None) } else { talk.serve(None) };
        went.map_err(|error| format!("round {round}: {error}"))?;
    }
    let placed = fabric.counters().bytes_placed.load(Ordering::Relaxed);
    let bytes = options.rounds as u64 * options.size as u64;
    if placed != bytes {
        return Err(format!("{placed} bytes were placed here in place of {bytes}").into());
    }
    println!("{role}: {} rounds of {} bytes: {bytes} read, {bytes} written", options.rounds, options.size);
    let why = match options.mistake {
        Some(mistake) => {
            let round = options.rounds;
            let went =
                if role == "client" { talk.ask(round, Some(mistake)) } else { talk.serve(Some(mistake)) };
            let why = talk.end(went.err().ok_or("the mistake had no consequence")?);
            println!("{role}: {mistake:?}: {why}");
            why
        }
        None => {
            if role == "client" {
                endpoint.close();
            }
            talk.record.closed()
        }
    };
    let expected = match (&role[..], options.mistake.is_some()) {
        ("client", true) => matches!(why, CloseReason::Violation(_)),
        ("client", false) => why == CloseReason::Here,
        (_, true) => matches!(why, CloseReason::Terminated(_)),
        (_, false) => why == CloseReason::Peer,
    };
    if expected { Ok(()) } else { Err(format!("it ended otherwise than it should: {why}").into()) }
}

/// What can be chosen.
struct Options {
    config: Config,
    size: usize,
    rounds: usize,
    mistake: Option<Mistake>,
}

/// A place that is named wrongly.
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
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        // As many reads at once as rping asks for.
        let config = Config { workers: 1, reads_max: 1, ..Config::default() };
        let mut options = Options { config, size: 64, rounds: 10, mistake: None };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} lacks its value"));
            match word {
                "--size" => options.size = value()?.parse()?,
                "--rounds" => options.rounds = value()?.parse()?,
                "--no-crc" => options.config.crc = false,
                "--strict" => options.config.strict = true,
                "--revision-1" => options.config.enhanced = false,
                "--no-ready" => options.config.peer_to_peer = false,
                "--mistake" => {
                    options.mistake = Some(match value()? {
                        "sink-tag" => Mistake::SinkTag,
                        "sink-bounds" => Mistake::SinkBounds,
                        "sink-access" => Mistake::SinkAccess,
                        "source-tag" => Mistake::SourceTag,
                        "source-bounds" => Mistake::SourceBounds,
                        other => return Err(format!("no such mistake: {other}").into()),
                    });
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
        let (source, sink) = (Memory::new(self.size, 0), Memory::new(self.size, 0));
        for (at, byte) in data.iter().enumerate() {
            source.fill(at, 1, *byte);
        }
        let source_tag = readable(self.endpoint, &source, 0, self.size);
        let sink_tag = writable(self.endpoint, &sink, 0, self.size);
        self.say(match mistake {
            Some(Mistake::SourceTag) => (Tag(!source_tag.0), 0),
            Some(Mistake::SourceBounds) => (source_tag, 1),
            _ => (source_tag, 0),
        })?;
        self.message()?;
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

/// What is sent in a round: printable, and without a zero before the end, since rping's server echoes a string.
fn data(round: usize, size: usize) -> Vec<u8> {
    let mut data: Vec<u8> = (0..size).map(|at| b'!' + ((at + round) % 94) as u8).collect();
    if let Some(last) = data.last_mut() {
        *last = 0;
    }
    data
}
