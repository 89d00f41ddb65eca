//! `leasehold demo --scheme NAME`: what one of the designs does to real files, on a store that is thrown away.
//!
//! One story for all of them: each act puts a promise to the test and looks at the files with ordinary tools, so that
//! what is seen follows from what the engine did and not from which scheme it was told to run. In the end it is compared
//! with what the scheme's entry declares.

use super::narrate::{say, step};
use super::peer::{Held, Peer};
use super::verdict::{self, Seen, breaks};
use crate::command::exit::{Exit, Failure, Outcome};
use bytes::Bytes;
use leasehold_client::{Access, ByteRange, this_process};
use leasehold_core::output::{self, ChangeError};
use leasehold_core::promise::Promise;
use leasehold_core::scheme::{Admission, DataPath};
use leasehold_core::schemes::{self, Entry};
use leasehold_engine::engine::AcquireError;
use leasehold_engine::files::FileError;
use leasehold_engine::path::StorePath;
use leasehold_engine::throw_away::{FENCE_MS, GRACE_MS, ThrowAway};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What is in a file first, what the peer writes then, and what last.
const OLD: u8 = b'o';
const NEW: u8 = b'A';
const NEWEST: u8 = b'B';

const BLOCK: usize = 4096;
const FILE: usize = 16 * BLOCK;
/// Grace and fence: a layout change that takes longer breaks P5.
const BOUND: Duration = Duration::from_millis(GRACE_MS + FENCE_MS);
/// How often the story looks whether what it waits for has come.
const LOOK: Duration = Duration::from_millis(5);

/// The scheme of that name.
///
/// # Errors
/// Names them all.
pub(super) fn named(name: &str) -> Result<&'static Entry, String> {
    let names = || schemes::ALL.map(|entry| entry.scheme.name).join(", ");
    schemes::named(name).ok_or_else(|| format!("no scheme has this name; there are {}", names()))
}

/// Plays the story.
pub(super) async fn play(entry: &'static Entry, parent: PathBuf) -> Outcome {
    verdict::warn(entry);
    let scheme = entry.scheme;
    let faults = scheme.admission.cache_write == Admission::IfFaults;
    if faults {
        let store = start(entry, false, &parent).await?;
        refused(&store).await?;
    }
    let store = start(entry, faults, &parent).await?;
    let mut seen = Seen::new();
    stable_writeback(&store, &mut seen).await?;
    nothing_lost(&store, &mut seen).await?;
    no_disowned_page(&store, &mut seen).await?;
    if entry.layout_is_fixed {
        step(4, "No truncate, no punch: in this scheme's world the administrator has turned them off.")?;
    } else {
        truncated(&store, &mut seen).await?;
        if scheme.data_path != DataPath::Copied {
            coherent_reads(&store, &mut seen).await?;
        }
    }
    drop(store);
    verdict::conclude(entry, &seen)
}

async fn start(entry: &'static Entry, faults: bool, parent: &Path) -> anyhow::Result<ThrowAway> {
    let parent = parent.to_owned();
    let start = move || ThrowAway::start(entry.scheme, faults, &parent);
    let store = tokio::task::spawn_blocking(start).await??;
    // A file that another tool made is a file like any other: its checksums are taken when it is first read.
    for name in ["P1", "P2", "P4", "P3", "P7", "P8"] {
        std::fs::write(store.file(&path(name)?), [OLD; FILE])?;
    }
    Ok(store)
}

fn path(name: &str) -> anyhow::Result<StorePath> {
    Ok(StorePath::parse(&format!("/{name}"))?)
}

fn bytes(byte: u8, length: usize) -> Bytes {
    Bytes::from(vec![byte; length])
}

fn range(length: usize) -> ByteRange {
    ByteRange::new(0, length as u64).expect("not empty")
}

/// A device without page faults gets no key for writing under these schemes.
async fn refused(store: &ThrowAway) -> Outcome {
    step(0, "A peer whose device cannot fault asks for a key to write.")?;
    let peer = Peer::connect(store).await?;
    match peer.acquire(store, &path("P1")?, range(BLOCK), Access::Update).await {
        Err(error @ AcquireError::Refused { source: output::AcquireError::Refused { .. }, .. }) => {
            say(&format!("Refused: {error}."))?;
            say("From here on the device can fault (docs/schemes.md says how that is represented).")
        }
        Err(error) => Err(error.into()),
        Ok(_) => Err(Failure::new(Exit::Failed, "it was given one, which this scheme does not do").into()),
    }
}

/// P1: the peer writes between the checksum and the disk.
async fn stable_writeback(store: &ThrowAway, seen: &mut Seen) -> Outcome {
    step(
        1,
        "P1: a peer fills a block by RDMA. Writeback sums it up; before the disk has it, the peer writes again.",
    )?;
    let path = path("P1")?;
    let mut peer = Peer::connect(store).await?;
    let mut held = peer.acquire(store, &path, range(BLOCK), Access::Update).await?;
    peer.write(store, &mut held, bytes(NEW, BLOCK)).await?;
    let mut held_up = store.hold_writes();
    store.begin_writeback(&path).await?;
    if !held_up.caught().await {
        say("Writeback found nothing that it may write; so the peer commits first.")?;
        peer.commit(held).await?;
    }
    if !held_up.caught().await {
        say("The commit had nothing written either.")?;
    } else if store.is_parked(held.lease).await {
        say("The key had been taken back for the writeback: the peer has to wait.")?;
    } else {
        peer.write_blindly(held, bytes(NEWEST, BLOCK)).await?;
    }
    held_up.let_go().await;
    let on_disk = std::fs::read(store.file(&path))?;
    say(&format!("The disk got {} bytes of what came last.", count(&on_disk, NEWEST)))?;
    match store.engine().read(&path, range(BLOCK)).await {
        Ok(_) => say("What is on disk matches its checksum."),
        Err(FileError::Read { source: output::ReadError::Fault(_), .. }) => {
            breaks(seen, Promise::P1, format!("{BLOCK} bytes on disk do not match their checksum"))
        }
        Err(error) => Err(error.into()),
    }
}

/// P2: a write behind a writeback, a commit, an fsync.
async fn nothing_lost(store: &ThrowAway, seen: &mut Seen) -> Outcome {
    step(
        2,
        "P2: a peer fills a file by RDMA; periodic writeback; it writes again, commits, and calls fsync.",
    )?;
    let path = path("P2")?;
    let mut peer = Peer::connect(store).await?;
    let mut held = peer.acquire(store, &path, range(FILE), Access::Update).await?;
    peer.write(store, &mut held, bytes(NEW, FILE)).await?;
    store.write_back(&path).await?;
    peer.write(store, &mut held, bytes(NEWEST, FILE)).await?;
    let committed = peer.commit(held).await?;
    store.engine().sync(&path).await?;
    say(&format!(
        "The commit was {}; fsync was acknowledged.",
        if committed { "acknowledged" } else { "refused" }
    ))?;
    let on_disk = std::fs::read(store.file(&path))?;
    let stale = FILE - count(&on_disk, NEWEST);
    let files = |byte, what| format!("{} bytes of what {what}", count(&on_disk, byte));
    say(&format!(
        "cat sees {}, {}, {}.",
        files(OLD, "was there first"),
        files(NEW, "the peer wrote first"),
        files(NEWEST, "it wrote last")
    ))?;
    peer.release(store, held).await;
    if committed && stale > 0 {
        return breaks(seen, Promise::P2, format!("{stale} bytes that fsync acknowledged are not on disk"));
    }
    Ok(())
}

/// P4: writeback, reclaim, release.
async fn no_disowned_page(store: &ThrowAway, seen: &mut Seen) -> Outcome {
    step(3, "P4: a peer writes; writeback cleans the frame; memory is reclaimed; the peer lets go.")?;
    let path = path("P4")?;
    let mut peer = Peer::connect(store).await?;
    let mut held = peer.acquire(store, &path, range(BLOCK), Access::Update).await?;
    peer.write(store, &mut held, bytes(NEW, BLOCK)).await?;
    store.write_back(&path).await?;
    store.reclaim(&path).await?;
    peer.release(store, held).await;
    match store.disowned().await {
        None => say("No frame was marked dirty that the file had given up."),
        Some(lease) => {
            say(&format!("The release of lease {lease} marked a frame dirty that the file had given up."))?;
            breaks(seen, Promise::P4, "1 frame without buffers was marked dirty (ext4: BUG)".to_owned())
        }
    }
}

/// How a layout change ended.
enum Change {
    Done,
    Busy(String),
    /// It waited for a holder without a deadline, until that let go.
    WaitedForEver(Duration),
}

/// Runs a layout change under a live key of `peer`, who does nothing about it; lets go only if it would wait for ever.
async fn change(
    store: &ThrowAway,
    peer: &Peer,
    held: Held,
    change: impl Future<Output = Result<(), FileError>>,
) -> anyhow::Result<Change> {
    let began = Instant::now();
    let mut waited = None;
    tokio::pin!(change);
    loop {
        tokio::select! {
            ended = &mut change => return match (ended, waited) {
                (Ok(()), None) => Ok(Change::Done),
                (Ok(()), Some(waited)) => Ok(Change::WaitedForEver(waited)),
                (Err(FileError::Change { source: error @ ChangeError::Busy { .. }, .. }), _) => {
                    Ok(Change::Busy(error.to_string()))
                }
                (Err(error), _) => Err(error.into()),
            },
            () = tokio::time::sleep(LOOK) => {
                if waited.is_none() && began.elapsed() > BOUND && store.somebody_waits_for_ever().await {
                    waited = Some(began.elapsed());
                    peer.release(store, held).await;
                }
            }
        }
    }
}

/// P3, P5, P6, P7: a truncate under a live key.
async fn truncated(store: &ThrowAway, seen: &mut Seen) -> Outcome {
    step(
        4,
        "P3, P5, P6, P7: another process truncates a file to nothing under the key of a peer, who goes on writing.",
    )?;
    let (path, other) = (path("P3")?, path("P7")?);
    let mut peer = Peer::connect(store).await?;
    let mut held = peer.acquire(store, &path, range(FILE), Access::Update).await?;
    let bystander = peer.acquire(store, &other, range(BLOCK), Access::Update).await?;
    peer.write(store, &mut held, bytes(NEW, FILE)).await?;
    let truncate = store.engine().truncate(&path, 0, this_process());
    let ended = change(store, &peer, held, truncate).await?;
    let told = peer.was_told(held);
    match &ended {
        Change::Done => say("The truncate returned.")?,
        Change::Busy(why) => say(&format!("The truncate was refused: {why}."))?,
        Change::WaitedForEver(waited) => {
            say(&format!(
                "After {} ms it still waited, without a deadline; then the peer let go.",
                waited.as_millis()
            ))?;
            let text = format!(
                "a truncate waited longer than grace and fence ({} ms), for ever if need be",
                BOUND.as_millis()
            );
            breaks(seen, Promise::P5, text)?;
        }
    }
    let lost = match ended {
        Change::Done => late_bytes(store, &mut peer, held, &path, seen).await?,
        Change::Busy(_) => false,
        Change::WaitedForEver(_) => true,
    };
    if lost && !told {
        breaks(seen, Promise::P6, "the holder was told neither who nor what".to_owned())?;
    } else if told {
        say("The holder had been told who, and what for.")?;
    }
    let rows = store.engine().leases(Some(&other)).await;
    if !rows.iter().any(|row| row.lease == bystander.lease.0 && row.state == "live") {
        breaks(seen, Promise::P7, "1 lease on another file went with it".to_owned())?;
    }
    Ok(())
}

/// The peer goes on under its old key after the truncate. Whether the file was taken from under it.
async fn late_bytes(
    store: &ThrowAway,
    peer: &mut Peer,
    held: Held,
    path: &StorePath,
    seen: &mut Seen,
) -> anyhow::Result<bool> {
    let counters = store.engine().fabric_counters();
    let placed_before = counters.bytes_placed.load(Ordering::Relaxed);
    peer.write_blindly(held, bytes(NEWEST, FILE)).await?;
    let placed = counters.bytes_placed.load(Ordering::Relaxed) - placed_before;
    let committed = peer.commit(held).await?;
    store.engine().sync(path).await?;
    let found = count(&std::fs::read(store.file(path))?, NEWEST);
    say(&format!(
        "Then the peer wrote {FILE} bytes under its key: {placed} were placed in memory, {found} are in the file."
    ))?;
    peer.release(store, held).await;
    if placed > 0 && found == 0 {
        let said = if committed { ", though commit and fsync were acknowledged" } else { "" };
        let text = format!("{placed} bytes landed in frames that are no longer the file's{said}");
        breaks(seen, Promise::P3, text)?;
    }
    Ok(found == 0)
}

/// P8: a read through a key after a punch.
async fn coherent_reads(store: &ThrowAway, seen: &mut Seen) -> Outcome {
    step(5, "P8: another process punches a hole under a peer's key for reading; then the peer reads.")?;
    let path = path("P8")?;
    let mut peer = Peer::connect(store).await?;
    let held = peer.acquire(store, &path, range(FILE), Access::Read).await?;
    let punch = store.engine().punch(&path, range(FILE), this_process());
    match change(store, &peer, held, punch).await? {
        Change::Done => {}
        Change::Busy(why) => return say(&format!("The punch was refused: {why}.")),
        Change::WaitedForEver(_) => {
            return say("The punch waited until the peer let go, and had no deadline.");
        }
    }
    let on_disk = count(&std::fs::read(store.file(&path))?, 0);
    let Some(buffer) = peer.read(store, held, FILE).await? else {
        return say("The key is over: it reads nothing.");
    };
    let old = count(buffer.as_slice(), OLD);
    say(&format!(
        "The file has {on_disk} zeros; through its key the peer reads {old} bytes of what was there before."
    ))?;
    if on_disk == FILE && old > 0 {
        let text = format!("{old} bytes read through a live key are not the file's any more");
        return breaks(seen, Promise::P8, text);
    }
    Ok(())
}

fn count(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().filter(|byte| **byte == wanted).count()
}
