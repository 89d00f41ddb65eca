//! Rows about the mount: against a plain FUSE filesystem on the same disk ([`super::plain`]), and, for the reader to know, the
//! filesystem below both.
//!
//! Each step is done in the three places in turn, on files of the same names, before the next step. Cold: with nothing in
//! the kernel's caches, nor in the server's memory. Warm: the same again, before it is done in another place.

use super::figure::{Bar, Found, Row, Spread, Unit};
use super::process::{Peer, Served, Serving};
use super::{Context, GIB, source};
use anyhow::Context as _;
use leasehold_client::Client;
use rustix::mount::UnmountFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;

/// Of sequential reads and writes.
const PIECE: usize = 1 << 20;
const BLOCK: u64 = 4096;
/// The file that bytes are written to, and the directory of small ones.
const FILE: &str = "file";
const DIRECTORY: &str = "directory";

/// How much each step does.
#[derive(Clone, Copy)]
struct Amount {
    bytes: u64,
    /// Reads and writes of a block.
    blocks: u64,
    /// Of those that are each made durable.
    durable: u64,
    files: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// As the step before has left it.
    Next,
    /// With nothing cached.
    Cold,
    /// Right after the step before, in the same place.
    Warm,
}

struct Step {
    name: &'static str,
    what: &'static str,
    unit: Unit,
    bar: Option<f64>,
    when: When,
    /// Returns what was done, in bytes or in calls.
    work: fn(Amount, &Path) -> io::Result<f64>,
}

const STEPS: &[Step] = &[
    Step {
        name: "mount-write",
        what: "mount: sequential write by 1 MiB, with fsync",
        unit: Unit::GibPerSecond,
        bar: Some(0.8),
        when: When::Next,
        work: write,
    },
    Step {
        name: "mount-read-cold",
        what: "mount: sequential read by 1 MiB, cold",
        unit: Unit::GibPerSecond,
        bar: Some(0.8),
        when: When::Cold,
        work: read,
    },
    Step {
        name: "mount-read-warm",
        what: "mount: the same again, warm",
        unit: Unit::GibPerSecond,
        bar: Some(0.8),
        when: When::Warm,
        work: read,
    },
    Step {
        name: "mount-random-read-cold",
        what: "mount: random read by 4 KiB, cold",
        unit: Unit::PerSecond,
        bar: Some(0.7),
        when: When::Cold,
        work: random_read,
    },
    Step {
        name: "mount-random-read-warm",
        what: "mount: the same again, warm",
        unit: Unit::PerSecond,
        bar: Some(0.7),
        when: When::Warm,
        work: random_read,
    },
    Step {
        name: "mount-random-write",
        what: "mount: random write by 4 KiB, with one fsync at the end",
        unit: Unit::PerSecond,
        bar: None,
        when: When::Next,
        work: random_write,
    },
    Step {
        name: "mount-durable-write",
        what: "mount: random write by 4 KiB, each with fdatasync",
        unit: Unit::PerSecond,
        bar: None,
        when: When::Next,
        work: durable_write,
    },
    Step {
        name: "mount-create",
        what: "mount: create small files",
        unit: Unit::PerSecond,
        bar: Some(0.5),
        when: When::Next,
        work: create,
    },
    Step {
        name: "mount-readdir-cold",
        what: "mount: list them, cold",
        unit: Unit::PerSecond,
        bar: Some(0.5),
        when: When::Cold,
        work: list,
    },
    Step {
        name: "mount-readdir-warm",
        what: "mount: list them, warm",
        unit: Unit::PerSecond,
        bar: Some(0.5),
        when: When::Warm,
        work: list,
    },
    Step {
        name: "mount-stat-cold",
        what: "mount: stat each, cold",
        unit: Unit::PerSecond,
        bar: Some(0.5),
        when: When::Cold,
        work: stat,
    },
    Step {
        name: "mount-stat-warm",
        what: "mount: stat each, warm",
        unit: Unit::PerSecond,
        bar: Some(0.5),
        when: When::Warm,
        work: stat,
    },
    Step {
        name: "mount-rename",
        what: "mount: rename each",
        unit: Unit::PerSecond,
        bar: Some(0.5),
        when: When::Next,
        work: rename,
    },
    Step {
        name: "mount-unlink",
        what: "mount: remove each",
        unit: Unit::PerSecond,
        bar: Some(0.5),
        when: When::Next,
        work: unlink,
    },
];

/// A directory that something is mounted on as long as this lives.
struct MountPoint(TempDir);

impl MountPoint {
    fn new() -> io::Result<MountPoint> {
        Ok(MountPoint(TempDir::with_prefix("leasehold-bench-mount-")?))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        // Whoever ended well has done so before.
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// The rates of one step: the mount's, the plain filesystem's, those of the filesystem below.
type Rates = Vec<[f64; 3]>;

pub(super) async fn against_plain_fuse(context: &Context) -> anyhow::Result<Vec<Row>> {
    if let Some(why) = cannot_mount() {
        return Ok(STEPS.iter().map(|step| step.row(Found::Absent(why.to_owned()), None)).collect());
    }
    context.needs_a_disk()?;
    // In this order, so that they go in the other one: first who serves, then where it was mounted, then the files.
    let (store, passed, bare) = (context.store()?, context.store()?, context.store()?);
    let (ours, plain) = (MountPoint::new()?, MountPoint::new()?);
    let at = ours.path().display().to_string();
    let served =
        Served::start(store.path(), Serving { arguments: &["--mount", &at], ..Serving::default() }).await?;
    let client = served.client().await?;
    let at = plain.path().display().to_string();
    let peer = Peer::start(&["plain", &passed.path().display().to_string(), &at], None).await?;

    let amount = Amount::new(context);
    let places = [ours.path(), plain.path(), bare.path()].map(Path::to_owned);
    let mut rates: Vec<Rates> = vec![Vec::new(); STEPS.len()];
    for round in context.rounds() {
        let mut found = Vec::with_capacity(STEPS.len());
        for steps in STEPS.chunk_by(|_, next| next.when == When::Warm) {
            let mut of_steps = vec![[0.0; 3]; steps.len()];
            for (which, place) in places.iter().enumerate() {
                if steps[0].when == When::Cold {
                    forget(&client).await?;
                }
                for (step, rates) in steps.iter().zip(&mut of_steps) {
                    rates[which] = step.rate(amount, place).await?;
                }
            }
            found.extend(of_steps);
        }
        if round.counts {
            rates.iter_mut().zip(found).for_each(|(rates, found)| rates.push(found));
        }
    }
    peer.stop().await?;
    served.stop().await?;
    Ok(STEPS.iter().zip(&rates).map(|(step, rates)| step.compared(rates)).collect())
}

fn cannot_mount() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        Some("it takes root")
    } else if !Path::new("/dev/fuse").exists() {
        Some("it takes /dev/fuse")
    } else {
        None
    }
}

/// Leaves nothing cached: neither by the kernel, of any filesystem, nor by the server.
async fn forget(client: &Client) -> anyhow::Result<()> {
    client.evict(&format!("/{FILE}")).await?;
    let drop = || {
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3")
    };
    tokio::task::spawn_blocking(drop).await?.context("cannot drop the kernel's caches")
}

impl Amount {
    fn new(context: &Context) -> Amount {
        // What was just read is to fit in the server's memory, of the size that it has by default.
        let bytes = (context.bytes / 8).next_multiple_of(PIECE as u64);
        if context.quick {
            Amount { bytes, blocks: 16, durable: 4, files: 16 }
        } else {
            Amount { bytes, blocks: 4096, durable: 200, files: 3000 }
        }
    }
}

impl Step {
    async fn rate(&self, amount: Amount, place: &Path) -> anyhow::Result<f64> {
        let (work, place): (_, PathBuf) = (self.work, place.to_owned());
        let timed = move || {
            let began = Instant::now();
            work(amount, &place).map(|done| done / began.elapsed().as_secs_f64())
        };
        let rate = tokio::task::spawn_blocking(timed).await?.with_context(|| self.what)?;
        Ok(if self.unit == Unit::GibPerSecond { rate / GIB } else { rate })
    }

    fn compared(&self, rates: &Rates) -> Row {
        let pairs: Vec<_> = rates.iter().map(|[ours, plain, _]| (*ours, *plain)).collect();
        let below = Spread::new(rates.iter().map(|[.., bare]| *bare).collect()).median();
        let ratio = Spread::new(rates.iter().map(|[ours, _, bare]| ours / bare).collect()).median();
        let note = format!("the filesystem below {}, ratio {ratio:.2}", self.unit.text(below));
        self.row(Found::pairs("plain FUSE", &pairs), Some(note))
    }

    fn row(&self, found: Found, note: Option<String>) -> Row {
        let bar = self.bar.map(Bar::RatioAtLeast);
        Row { name: self.name, what: self.what, unit: self.unit, found, bar, note }
    }
}

fn write(amount: Amount, place: &Path) -> io::Result<f64> {
    let path = place.join(FILE);
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let mut file = File::create_new(path)?;
    let pieces = source().iter().flat_map(|chunk| chunk.chunks(PIECE)).cycle();
    for piece in pieces.take((amount.bytes / PIECE as u64) as usize) {
        file.write_all(piece)?;
    }
    file.sync_all()?;
    Ok(amount.bytes as f64)
}

fn read(amount: Amount, place: &Path) -> io::Result<f64> {
    let mut file = File::open(place.join(FILE))?;
    let mut buffer = vec![0; PIECE];
    let mut read = 0;
    while read < amount.bytes {
        file.read_exact(&mut buffer)?;
        read += PIECE as u64;
    }
    Ok(read as f64)
}

/// Blocks all over the file, the same ones each time.
fn blocks(amount: Amount, many: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    (0..many).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (amount.bytes / BLOCK) * BLOCK
    })
}

fn random_read(amount: Amount, place: &Path) -> io::Result<f64> {
    let file = File::open(place.join(FILE))?;
    let mut buffer = [0; BLOCK as usize];
    for offset in blocks(amount, amount.blocks) {
        file.read_exact_at(&mut buffer, offset)?;
    }
    Ok(amount.blocks as f64)
}

fn random_write(amount: Amount, place: &Path) -> io::Result<f64> {
    let file = OpenOptions::new().write(true).open(place.join(FILE))?;
    for offset in blocks(amount, amount.blocks) {
        file.write_all_at(&source()[0][..BLOCK as usize], offset)?;
    }
    file.sync_all()?;
    Ok(amount.blocks as f64)
}

fn durable_write(amount: Amount, place: &Path) -> io::Result<f64> {
    let file = OpenOptions::new().write(true).open(place.join(FILE))?;
    for offset in blocks(amount, amount.durable) {
        file.write_all_at(&source()[0][..BLOCK as usize], offset)?;
        file.sync_data()?;
    }
    Ok(amount.durable as f64)
}

fn small(place: &Path, name: &str, number: u64) -> PathBuf {
    place.join(DIRECTORY).join(format!("{name}-{number}"))
}

fn create(amount: Amount, place: &Path) -> io::Result<f64> {
    fs::create_dir(place.join(DIRECTORY))?;
    for number in 0..amount.files {
        File::create_new(small(place, "old", number))?;
    }
    Ok(amount.files as f64)
}

fn list(amount: Amount, place: &Path) -> io::Result<f64> {
    let listed = fs::read_dir(place.join(DIRECTORY))?.collect::<io::Result<Vec<_>>>()?.len() as u64;
    if listed != amount.files {
        return Err(io::Error::other(format!("{listed} of {} files are listed", amount.files)));
    }
    Ok(listed as f64)
}

fn stat(amount: Amount, place: &Path) -> io::Result<f64> {
    for number in 0..amount.files {
        fs::metadata(small(place, "old", number))?;
    }
    Ok(amount.files as f64)
}

fn rename(amount: Amount, place: &Path) -> io::Result<f64> {
    for number in 0..amount.files {
        fs::rename(small(place, "old", number), small(place, "new", number))?;
    }
    Ok(amount.files as f64)
}

fn unlink(amount: Amount, place: &Path) -> io::Result<f64> {
    for number in 0..amount.files {
        fs::remove_file(small(place, "new", number))?;
    }
    fs::remove_dir(place.join(DIRECTORY))?;
    Ok(amount.files as f64)
}
