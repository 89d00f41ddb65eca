//! The other end of each baseline, as a process of its own: what a careful programmer would write without Leasehold.
//!
//! ```text
//! to a peer that takes:   length 8 | checked 1 | (chunk | CRC32C 4, if checked) ..     back: one byte, once all is durable
//! to a peer that gives:   length 8                                                     back: the bytes
//! ```
//! Numbers are little endian. A peer serves one connection after the other, and ends with its standard input.

use super::{CHUNK, DEPTH};
use crate::command::exit::Outcome;
use crate::command::show;
use anyhow::{Context as _, bail, ensure};
use leasehold_engine::arena::{Arena, Pages};
use leasehold_engine::bare::{BareFile, BareMemory, Flush, How};
use leasehold_fabric::crc::{BLOCK, append, append_block, crc32c};
use rustix::fs::{Advice, fadvise, sendfile};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// A connection on which nothing happens for so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// The other end of a baseline of `bench`; not for people
#[derive(Debug, clap::Args)]
pub(crate) struct Peer {
    #[command(subcommand)]
    role: Role,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Role {
    /// Takes bytes into memory
    Memory { address: String },
    /// Takes bytes into a file: heap buffers, pwrite, fdatasync
    Pwrite {
        address: String,
        directory: PathBuf,
        /// Flush all the time, not only at the end
        #[arg(long)]
        along: bool,
    },
    /// Takes bytes into a file: heap buffers, O_DIRECT by io_uring
    Direct {
        address: String,
        directory: PathBuf,
        #[arg(long)]
        each: bool,
        #[arg(long)]
        allocate: bool,
        #[arg(long)]
        piece: usize,
        /// Not from the heap, but from frames such as ours
        #[arg(long)]
        frames: bool,
    },
    /// Gives a file, by sendfile, from disk
    Sendfile { address: String, file: PathBuf },
    /// Mounts a directory at another, by a plain FUSE filesystem
    Plain { directory: PathBuf, at: PathBuf },
    /// Puts a file of a server, and prints how long that took: a client in a namespace of its own
    Put { server: String, bytes: u64 },
    /// Sends to a peer that takes, and prints how long that took
    Send { address: String, bytes: u64 },
}

impl Peer {
    pub(crate) async fn run(self) -> Outcome {
        match self.role {
            Role::Put { server, bytes } => {
                let location: leasehold_client::Location = server.parse()?;
                let client = leasehold_client::Client::connect(&location.server).await?;
                let took = super::put::put_once(&client, "/put", bytes).await?;
                Ok(show::line(took)?)
            }
            Role::Send { address, bytes } => {
                let took = super::tcp::send(&address, bytes, false).await?;
                Ok(show::line(took)?)
            }
            Role::Plain { directory, at } => {
                let session = super::plain::mount(&directory, &at)?;
                show::line(at.display())?;
                std::io::stdin().read_to_end(&mut Vec::new())?;
                Ok(session.umount_and_join()?)
            }
            role => tokio::task::spawn_blocking(move || serve(&role)).await?,
        }
    }
}

fn serve(role: &Role) -> Outcome {
    let (Role::Memory { address }
    | Role::Pwrite { address, .. }
    | Role::Direct { address, .. }
    | Role::Sendfile { address, .. }) = role
    else {
        bail!("not a role that serves");
    };
    let listener =
        TcpListener::bind(address.as_str()).with_context(|| format!("cannot listen at {address}"))?;
    show::line(listener.local_addr()?)?;
    std::thread::spawn(|| {
        // Whoever started us has no more use for us.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let mut buffers = Buffers::new();
    // Made once, as a server would.
    let mut memory = match role {
        Role::Direct { frames: true, .. } => {
            Some(BareMemory::Arena(Arena::new((CHUNK * DEPTH) as u64, Pages::Auto)?))
        }
        Role::Direct { .. } => Some(BareMemory::heap(DEPTH, CHUNK)),
        _ => None,
    };
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = number(&mut stream)?;
        match role {
            Role::Sendfile { file, .. } => {
                give(&stream, file, length)?;
                continue;
            }
            Role::Memory { .. } => into_memory(&mut stream, length, &mut buffers)?,
            Role::Pwrite { directory, along, .. } => {
                let file = tempfile::NamedTempFile::new_in(directory)?;
                buffers = into_page_cache(&mut stream, length, file.as_file(), *along, buffers)?;
                stream.write_all(&[1])?;
                continue;
            }
            Role::Direct { directory, each, allocate, piece, .. } => {
                let how = How {
                    flush: if *each { Flush::Each } else { Flush::AtTheEnd },
                    allocate: *allocate,
                    piece: *piece,
                };
                let path = directory.join(format!("direct-{}", std::process::id()));
                let lent = memory.take().expect("made above, and given back");
                memory = Some(into_direct(&mut stream, length, &path, how, lent)?);
                stream.write_all(&[1])?;
                std::fs::remove_file(path)?;
                continue;
            }
            Role::Put { .. } | Role::Send { .. } | Role::Plain { .. } => unreachable!("refused above"),
        }
        stream.write_all(&[1])?;
    }
}

fn number(stream: &mut TcpStream) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn is_checked(stream: &mut TcpStream) -> anyhow::Result<bool> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0] == 1)
}

/// As much memory as a put has under way.
struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    fn new() -> Buffers {
        Buffers((0..DEPTH).map(|_| vec![0; CHUNK]).collect())
    }
}

/// Read and summed up at once, so that they are in the cache both times.
const TOGETHER: usize = 256 << 10;

/// Takes one chunk. If it is checked, its blocks are summed up, and what they come to compared with the CRC behind it.
fn take(stream: &mut TcpStream, checked: bool, into: &mut [u8]) -> anyhow::Result<Vec<u32>> {
    let mut sums = Vec::new();
    if !checked {
        stream.read_exact(into)?;
        return Ok(sums);
    }
    let mut whole = 0;
    for part in into.chunks_mut(TOGETHER) {
        stream.read_exact(part)?;
        let (blocks, tail) = part.as_chunks::<BLOCK>();
        for block in blocks {
            let sum = crc32c(block);
            sums.push(sum);
            whole = append_block(whole, sum);
        }
        if !tail.is_empty() {
            sums.push(crc32c(tail));
            whole = append(whole, crc32c(tail), tail.len() as u64);
        }
    }
    let mut sent = [0; 4];
    stream.read_exact(&mut sent)?;
    ensure!(whole == u32::from_le_bytes(sent), "a chunk does not match its CRC");
    Ok(sums)
}

/// The chunks of `length` bytes: where each begins, and how long it is.
pub(super) fn chunks(length: u64) -> impl Iterator<Item = (u64, usize)> {
    let chunk = CHUNK as u64;
    (0..length.div_ceil(chunk)).map(move |n| (n * chunk, (length - n * chunk).min(chunk) as usize))
}

fn into_memory(stream: &mut TcpStream, length: u64, buffers: &mut Buffers) -> anyhow::Result<()> {
    let checked = is_checked(stream)?;
    for (index, (_, part)) in chunks(length).enumerate() {
        take(stream, checked, &mut buffers.0[index % DEPTH][..part])?;
    }
    Ok(())
}

/// One thread reads the socket, one writes into the page cache; one flushes all the time if that is wanted.
fn into_page_cache(
    stream: &mut TcpStream,
    length: u64,
    file: &File,
    along: bool,
    buffers: Buffers,
) -> anyhow::Result<Buffers> {
    let checked = is_checked(stream)?;
    let mut sums = Vec::new();
    let (give_back, free) = mpsc::channel();
    for buffer in buffers.0 {
        give_back.send(buffer)?;
    }
    let (fill, filled) = mpsc::sync_channel::<(u64, usize, Vec<u8>)>(DEPTH);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> anyhow::Result<()> {
            for (start, part, buffer) in filled {
                file.write_all_at(&buffer[..part], start)?;
                give_back.send(buffer)?;
            }
            Ok(())
        });
        let flusher = along.then(|| {
            scope.spawn(|| -> std::io::Result<()> {
                while !over.load(Ordering::Relaxed) {
                    file.sync_data()?;
                }
                Ok(())
            })
        });
        let mut read = || -> anyhow::Result<()> {
            for (start, part) in chunks(length) {
                let mut buffer = free.recv()?;
                sums.extend(take(stream, checked, &mut buffer[..part])?);
                fill.send((start, part, buffer))?;
            }
            Ok(())
        };
        let read = read();
        drop(fill);
        let written = writer.join().expect("no panic");
        over.store(true, Ordering::Relaxed);
        let flushed = flusher.map_or(Ok(()), |flusher| flusher.join().expect("no panic"));
        read.and(written)?;
        flushed?;
        file.sync_data()?;
        anyhow::Ok(())
    })?;
    Ok(Buffers(free.try_iter().collect()))
}

/// One thread does it all: the ring writes while it reads the socket.
fn into_direct(
    stream: &mut TcpStream,
    length: u64,
    path: &Path,
    how: How,
    memory: BareMemory,
) -> anyhow::Result<BareMemory> {
    let checked = is_checked(stream)?;
    let mut file = BareFile::create(path, length, CHUNK, how, memory)?;
    let mut sums = Vec::new();
    for (start, part) in chunks(length) {
        let slot = file.take()?;
        sums.extend(take(stream, checked, &mut file.memory(slot)[..part])?);
        // The last block is written whole; every size here is one of whole blocks.
        file.write(slot, start, part.next_multiple_of(4096))?;
    }
    Ok(file.finish()?)
}

/// From disk, not from what the page cache still has.
fn give(stream: &TcpStream, path: &Path, length: u64) -> anyhow::Result<()> {
    let file = File::open(path)?;
    forget(&file)?;
    fadvise(&file, 0, NonZeroU64::new(length), Advice::Sequential)?;
    let mut at = 0;
    while at < length {
        let part = usize::try_from((length - at).min(16 << 20)).expect("small");
        ensure!(sendfile(stream, &file, Some(&mut at), part)? > 0, "the file is shorter than asked for");
    }
    Ok(())
}

/// Drops what the page cache holds of a file.
fn forget(file: &File) -> anyhow::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_length_once() {
        let all: Vec<_> = chunks(2 * CHUNK as u64 + 5).collect();
        assert_eq!(all, [(0, CHUNK), (CHUNK as u64, CHUNK), (2 * CHUNK as u64, 5)]);
    }
}
