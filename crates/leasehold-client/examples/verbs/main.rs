//! The control plane of a third-party peer: a session and leases over gRPC, while a verbs program of its own (`peer.c`,
//! beside this file) moves the bytes. `cargo xtask lab --only siw` runs it in a guest, on the kernel's iWARP.
//!
//! `verbs SERVER FILES PEER`: the server as HOST:PORT, the directory of its files, and the program. First the peer
//! writes and commits, and its bytes have to be in the file. Then a truncate takes the range away between two of its writes:
//! the later bytes must land nowhere, the commit has to be refused, and the connection has to go on.

use leasehold_client::proto::leasehold_client::LeaseholdClient;
use leasehold_client::{Client, Server, proto};
use std::error::Error;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tonic::transport::Channel;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// No multiple of a block, of a segment or of a word.
const BYTES: u64 = (4 << 20) + 123;
/// The status of a commit after its lease was broken (docs/wire.md).
const REVOKED: u8 = 3;

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [server, files, peer] = &words[..] else { return Err("usage: verbs SERVER FILES PEER".into()) };
    let (host, port) = server.rsplit_once(':').ok_or("the server as HOST:PORT")?;
    let client = Client::connect(&Server::Tcp { host: host.to_owned(), port: port.parse()? }).await?;
    let mut calls = LeaseholdClient::connect(format!("http://{server}")).await?;
    let caller = proto::Identity { program: "verbs".to_owned(), ..Default::default() };
    let session = calls.open_session(proto::OpenSessionRequest { caller: Some(caller) }).await?.into_inner();
    let mut peer = Peer::start(peer, &session)?;
    let file = Path::new(files).join("a");
    client.create("/a").await?;

    let grant = acquire(&mut calls, &session, 0, BYTES).await?;
    peer.ask(&format!("write {} 0 {BYTES} 1", grant.tag), "written")?;
    peer.ask(&format!("commit {}", grant.lease), &format!("committed 0 {BYTES} "))?;
    client.sync("/a").await?;
    if std::fs::read(&file)? != pattern(BYTES, 1) {
        return Err("the file has other bytes than those that were written and committed".into());
    }
    println!("{BYTES} bytes written by verbs, committed, and in the file");

    let grant = acquire(&mut calls, &session, 0, BYTES).await?;
    peer.ask(&format!("write {} 0 1000000 2", grant.tag), "written")?;
    client.truncate("/a", 1000).await?;
    peer.ask(&format!("write {} 0 {BYTES} 3", grant.tag), "written")?;
    let refused = peer.answer(&format!("commit {}", grant.lease))?;
    if !refused.starts_with(&format!("committed {REVOKED} ")) {
        return Err(format!("a commit after a truncate was answered: {refused}").into());
    }
    client.sync("/a").await?;
    if std::fs::read(&file)? != pattern(1000, 1) {
        return Err("the truncated file has other bytes than before".into());
    }
    println!("truncated meanwhile: {}", refused.trim_end());

    let grant = acquire(&mut calls, &session, 1000, 3000).await?;
    peer.ask(&format!("write {} 0 2000 4", grant.tag), "written")?;
    peer.ask(&format!("commit {}", grant.lease), "committed 0 3000 ")?;
    client.sync("/a").await?;
    if std::fs::read(&file)? != [pattern(1000, 1), pattern(2000, 4)].concat() {
        return Err("the file lacks what was committed after the truncate".into());
    }
    println!("and the connection went on: 2000 bytes more");
    peer.end()
}

/// What the peer writes.
fn pattern(bytes: u64, seed: u64) -> Vec<u8> {
    (0..bytes).map(|at| ((at * 7 + seed) % 251) as u8).collect()
}

async fn acquire(
    calls: &mut LeaseholdClient<Channel>,
    session: &proto::OpenSessionResponse,
    start: u64,
    end: u64,
) -> Result<proto::Grant> {
    let want = proto::Want {
        path: "/a".to_owned(),
        range: Some(proto::Range { start, end }),
        access: proto::Access::Overwrite.into(),
        ..Default::default()
    };
    let request =
        proto::AcquireRequest { session: session.session.clone(), wants: vec![want], ..Default::default() };
    calls.acquire(request).await?.into_inner().grants.pop().ok_or_else(|| "no lease".into())
}

/// The program that speaks verbs.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start(program: &str, session: &proto::OpenSessionResponse) -> Result<Peer> {
        let (address, port) = session.data_address.rsplit_once(':').ok_or("a data address without a port")?;
        let token: String = session.token.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut command = Command::new(program);
        command.args([address, port, &token]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let input = child.stdin.take().ok_or("no pipe")?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
        match output.next().transpose()?.as_deref() {
            Some("connected") => Ok(Peer { child, input, output }),
            other => Err(format!("the peer did not connect: {other:?}").into()),
        }
    }

    fn answer(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}")?;
        Ok(self.output.next().ok_or_else(|| format!("the peer ended at: {line}"))??)
    }

    fn ask(&mut self, line: &str, expected: &str) -> Result<()> {
        let answer = self.answer(line)?;
        if answer == expected { Ok(()) } else { Err(format!("{line}: {answer:?}, not {expected:?}").into()) }
    }

    fn end(mut self) -> Result<()> {
        drop(self.input);
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the peer: {status}").into()) }
    }
}
