//! Wireshark, which knows the standards from another author, reads our traffic: every frame is an MPA frame with a good
//! CRC, holds the operation that was meant, and none is malformed.

use leasehold_fabric::conformance::{Memory, PATIENCE, Server, done, readable, send, writable, write};
use leasehold_fabric::iwarp::{Config, Iwarp};
use leasehold_fabric::{CloseReason, Remote, Tag};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// A tag that nobody has; the last write names it, and the Terminate quotes it.
const UNKNOWN: Tag = Tag(0xFEED_FACE);

/// Starts a capture of a port on the loopback. `None`: not on this machine.
fn capture(address: SocketAddr, file: &Path) -> Option<Child> {
    let filter = format!("tcp port {}", address.port());
    let child = Command::new("dumpcap")
        .args(["-q", "-i", "lo", "-f", &filter, "-w"])
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return None };
    // It captures once it has captured something: a connection that says nothing.
    let began = Instant::now();
    loop {
        drop(TcpStream::connect(address));
        if std::fs::metadata(file).is_ok_and(|data| data.len() > 600) {
            return Some(child);
        }
        if child.try_wait().expect("a child").is_some() {
            return None;
        }
        assert!(began.elapsed() < PATIENCE, "the capture does not begin");
        std::thread::yield_now();
    }
}

/// All that our two ends can say to each other.
fn traffic(fabric: &Iwarp, server: &Server) {
    let pair = server.connect(fabric, b"token");
    let memory = Memory::new(200_000, 3);
    let written = writable(&*pair.far, &memory, 0, 100_000);
    let read = readable(&*pair.far, &memory, 100_000, 100_000);
    let sink = Memory::new(100_000, 0);
    let sink_tag = writable(&*pair.near, &sink, 0, 100_000);
    write(&*pair.near, vec![1; 90_001], written, 7).expect("written");
    send(&*pair.near, b"a message").expect("sent");
    assert_eq!(pair.server.message(), b"a message");
    send(&*pair.far, b"an answer").expect("sent");
    assert_eq!(pair.client.message(), b"an answer");
    let (callback, result) = done();
    pair.near.read(Remote { tag: read, offset: 1 }, 3_003, sink_tag, 2, callback);
    assert_eq!(result.recv_timeout(PATIENCE), Ok(Ok(())));
    let (callback, result) = done();
    pair.near.send(bytes::Bytes::from_static(b"invalidated"), Some(written), callback);
    assert_eq!(result.recv_timeout(PATIENCE), Ok(Ok(())));
    assert_eq!(pair.server.message(), b"invalidated");
    let _ = write(&*pair.near, vec![1; 10], UNKNOWN, 0);
    assert!(matches!(pair.client.closed(), CloseReason::Terminated(_)));
}

/// What Wireshark says of the capture. The protocols that it guesses in messages are none of ours.
fn dissect(file: &Path, how: &[&str]) -> String {
    let mut command = Command::new("tshark");
    command.args(["-n", "--disable-protocol", "rpcordma", "--disable-protocol", "smb_direct", "-r"]);
    let output = command.arg(file).args(how).output().expect("tshark runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn wireshark_understands_every_frame() {
    if Command::new("tshark").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED wireshark_understands_every_frame: tshark is not installed");
        return;
    }
    // Segments that fit in one of TCP's on the loopback, as the dissector wants them.
    let fabric = Iwarp::new(Config { segment_max: 20_000, ..Config::default() }).expect("threads");
    let server = Server::new(&fabric, b"token");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("traffic.pcapng");
    let Some(mut child) = capture(server.address(), &file) else {
        eprintln!("SKIPPED wireshark_understands_every_frame: dumpcap may not capture on the loopback");
        return;
    };
    traffic(&fabric, &server);
    let began = Instant::now();
    let tag = UNKNOWN.0.to_be_bytes();
    while std::fs::read(&file).expect("a capture").windows(4).filter(|bytes| *bytes == tag).count() < 2 {
        assert!(began.elapsed() < PATIENCE, "the Terminate was not captured");
        std::thread::yield_now();
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .expect("it lives");
    child.wait().expect("an end");

    let opcodes = dissect(&file, &["-Y", "iwarp_rdma", "-T", "fields", "-e", "iwarp_rdma.opcode"]);
    let opcodes: Vec<&str> = opcodes.split([',', '\n']).filter(|opcode| !opcode.is_empty()).collect();
    let count = |opcode: &str| opcodes.iter().filter(|other| **other == opcode).count();
    assert_eq!(
        count("0x00"),
        1 + 5 + 1,
        "the ready-to-receive, 90,001 bytes in segments of 20,000, and the last write"
    );
    assert_eq!(count("0x01"), 1, "Read Request");
    assert_eq!(count("0x02"), 1, "Read Response");
    assert_eq!(count("0x03"), 2, "Sends");
    assert_eq!(count("0x04"), 1, "Send with Invalidate");
    assert_eq!(count("0x07"), 1, "Terminate");
    assert_eq!(opcodes.len(), 13, "{opcodes:?}");

    let text = dissect(&file, &["-V", "-Y", "iwarp_mpa"]);
    assert_eq!(text.matches("(Good CRC32)").count(), opcodes.len(), "every frame's CRC is good");
    assert!(!text.contains("Bad CRC32"));
    for line in [
        "ID Req frame: 4d504120494420526571204672616d65",
        "ID Rep frame: 4d504120494420526570204672616d65",
        "= Marker flag: False",
        "= OpCode: Read Response (0x2)",
        "= Layer: DDP (0x1)",
        "= Error Types for DDP layer: Tagged Buffer Error (0x1)",
        "Error Code for DDP Tagged Buffer: Invalid STag (0x00)",
    ] {
        assert!(text.contains(line), "{line:?} is not in what Wireshark says:\n{text}");
    }
    for problem in
        ["_ws.malformed", "iwarp_mpa.bad_length", "iwarp_mpa.res.not_set0", "iwarp_mpa.reject_bit_responder"]
    {
        assert_eq!(dissect(&file, &["-Y", problem]), "", "{problem}");
    }
}
