//! This end of the baselines over plain TCP.

use super::peer::chunks;
use super::{CHUNK, DEPTH, source};
use leasehold_fabric::crc::crc32c;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A connection on which nothing happens for so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends `length` bytes to a peer that takes, and returns how many seconds passed until it had them where it puts them.
pub(super) async fn send(address: &str, length: u64, checked: bool) -> anyhow::Result<f64> {
    let address = address.to_owned();
    let sending = move || -> anyhow::Result<f64> {
        let source = source();
        let mut stream = connect(&address)?;
        let began = Instant::now();
        stream.write_all(&length.to_le_bytes())?;
        stream.write_all(&[u8::from(checked)])?;
        for (index, (_, part)) in chunks(length).enumerate() {
            let chunk = &source[index % DEPTH][..part];
            stream.write_all(chunk)?;
            if checked {
                stream.write_all(&crc32c(chunk).to_le_bytes())?;
            }
        }
        stream.read_exact(&mut [0])?;
        Ok(began.elapsed().as_secs_f64())
    };
    tokio::task::spawn_blocking(sending).await?
}

/// Takes `length` bytes from a peer that gives, into as many buffers as a get has.
pub(super) async fn receive(address: &str, length: u64) -> anyhow::Result<f64> {
    let address = address.to_owned();
    let receiving = move || -> anyhow::Result<f64> {
        let mut buffers = vec![vec![0; CHUNK]; DEPTH];
        let mut stream = connect(&address)?;
        let began = Instant::now();
        stream.write_all(&length.to_le_bytes())?;
        for (index, (_, part)) in chunks(length).enumerate() {
            stream.read_exact(&mut buffers[index % DEPTH][..part])?;
        }
        Ok(began.elapsed().as_secs_f64())
    };
    tokio::task::spawn_blocking(receiving).await?
}
