//! `leasehold demo`: the main job on a throw-away store, told step by step. Everything is done by real processes of
//! this very program; this one only starts them and tells.

mod narrate;
mod peer;
mod scheme;
mod stage;
mod verdict;

use crate::command::exit::{Exit, Failure, Outcome};
use crate::size::{Size, rough};
use leasehold_core::schemes::Entry;
use narrate::{say, step};
use stage::{Actor, Stage};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How long a holder has to answer in the demo.
const GRACE: Duration = Duration::from_millis(500);
/// No step takes longer, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the demo's truncates cut off must have been transferred.
const SIZE_MIN: u64 = 64 << 20;

/// See it all work, on a throw-away store (some seconds)
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// How much to transfer; at least 64MiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", conflicts_with = "scheme")]
    size: Size,
    /// See what another design for DMA into files does to them, instead: its name, as `leasehold check` has it
    #[arg(long, value_name = "NAME", value_parser = scheme::named)]
    scheme: Option<&'static Entry>,
    /// Where to make the throw-away store [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Demo {
    /// Plays it. On a signal, too, the store is thrown away and the children are stopped: they go with the play.
    pub(crate) async fn run(self) -> Outcome {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            played = self.play() => played,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Failed, "stopped; the store is thrown away").into()),
            _ = terminate.recv() => Err(Failure::new(Exit::Failed, "stopped; the store is thrown away").into()),
        }
    }

    async fn play(self) -> Outcome {
        if let Some(entry) = self.scheme {
            return scheme::play(entry, self.directory.unwrap_or_else(std::env::temp_dir)).await;
        }
        if self.size.0 < SIZE_MIN {
            return Err(Failure::new(
                Exit::Usage,
                "--size is too small to be cut in the middle; give 64MiB or more",
            )
            .into());
        }
        let began = Instant::now();
        let parent = self.directory.unwrap_or_else(std::env::temp_dir);
        let scratch =
            tempfile::Builder::new().prefix("leasehold-demo-").tempdir_in(&parent).map_err(|error| {
                let text = format!(
                    "cannot make a directory in {}: {error}; name another with --directory",
                    parent.display()
                );
                Failure::new(Exit::Failed, text)
            })?;
        let source = scratch.path().join("source");

        step(1, "A throw-away store, served by a process of its own.")?;
        let mut stage = Stage::open(&scratch.path().join("store"), GRACE).await?;
        say(&format!(
            "The server is process {}; a holder has {} ms to answer a break.",
            stage.server_pid(),
            GRACE.as_millis()
        ))?;

        let size = rough(self.size.0);
        step(2, &format!("Put {size}: by RDMA into the server's memory, from there to disk."))?;
        let (path, length) = (source.clone(), self.size.0);
        tokio::task::spawn_blocking(move || generate(&path, length)).await??;
        stage.play("put", &["put", &source.display().to_string(), "/data.bin"]).await?.succeed()?;

        step(3, "Read it back by RDMA, under read leases, and compare every byte.")?;
        let back = scratch.path().join("back");
        stage.play("get", &["get", "/data.bin", &back.display().to_string()]).await?.succeed()?;
        let (a, b) = (source.clone(), back.clone());
        if !tokio::task::spawn_blocking(move || same(&a, &b)).await?? {
            return Err(Failure::new(Exit::Checksum, "what came back differs from what was put").into());
        }
        say("Equal.")?;
        std::fs::remove_file(&back)?;

        broken_in_mid_transfer(&mut stage, &source).await?;
        unresponsive_holder(&mut stage).await?;

        step(6, "Scrub: is every block on disk what was committed?")?;
        stage.play("scrub", &["scrub"]).await?.succeed()?;
        step(7, "The break log: who broke whose lease, and what the holder did about it.")?;
        stage.play("", &["breaks"]).await?.succeed()?;

        step(8, "The server drains, and ends on SIGTERM.")?;
        stage.close().await?;
        say(&format!("Done in {:.1} s; the store is thrown away.", began.elapsed().as_secs_f64()))
    }
}

/// A cooperative holder: `put` answers a break by committing what is written, and releasing what is not. The leases
/// that the truncate does not need go on.
async fn broken_in_mid_transfer(stage: &mut Stage, source: &Path) -> Outcome {
    step(4, "Put it again, slowly; while that runs, another process truncates the file.")?;
    let source = source.display().to_string();
    let slow = ["put", &source, "/data.bin", "--rate", "48MiB", "--chunk", "8MiB", "--depth", "4"];
    let mut put = stage.start("put", &slow)?;
    stage.until_leased("/data.bin", 4, PATIENCE).await?;
    say("The put holds 4 leases of 8 MiB. A truncate to 16 MiB breaks two of them.")?;
    let (mut breaker, began) = start_truncate(stage, "16MiB")?;
    breaker.end(PATIENCE).await?.succeed()?;
    let took = began.elapsed();
    put.end(PATIENCE).await?.expect(Exit::Lease)?;
    say("The holder heard who, and let go at once; its other two leases went on.")?;
    say(&format!("The truncate came back after {} ms, process start included.", took.as_millis()))
}

/// A holder that does not answer: fenced at the deadline, and the truncate returns.
async fn unresponsive_holder(stage: &mut Stage) -> Outcome {
    step(5, "A holder that keeps writing and ignores the notice: fenced at the deadline.")?;
    let hold = ["hold", "/data.bin", "--offset", "4MiB", "--length", "4MiB", "--write", "--ignore-breaks"];
    let mut holder = stage.start("hold", &hold)?;
    stage.until_leased("/data.bin", 1, PATIENCE).await?;
    let (mut breaker, began) = start_truncate(stage, "1MiB")?;
    stage.until_somebody_waits("/data.bin", PATIENCE).await?;
    say("Why does it take so long?")?;
    stage.play("why", &["why", "/data.bin"]).await?.succeed()?;
    breaker.end(PATIENCE).await?.succeed()?;
    let took = began.elapsed();
    holder.end(PATIENCE).await?.expect(Exit::Lease)?;
    let (took, grace) = (took.as_millis(), GRACE.as_millis());
    say(&format!("The truncate returned after {took} ms: {grace} ms grace, revoke, fence."))?;
    say("Whatever the holder had sent by then can land nowhere any more.")
}

fn start_truncate(stage: &Stage, size: &str) -> anyhow::Result<(Actor, Instant)> {
    let began = Instant::now();
    let breaker = stage.start("truncate", &["truncate", "/data.bin", "--size", size])?;
    say(&format!("Process {} runs: leasehold truncate /data.bin --size {size}", breaker.pid()))?;
    Ok((breaker, began))
}

/// `length` bytes that look random and are the same every time (a splitmix64 sequence).
fn generate(path: &Path, length: u64) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut left = usize::try_from(length).unwrap_or(usize::MAX);
    let mut state = 0_u64;
    while left > 0 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bytes = (word ^ (word >> 31)).to_le_bytes();
        let now = left.min(bytes.len());
        file.write_all(&bytes[..now])?;
        left -= now;
    }
    file.flush()
}

fn same(a: &Path, b: &Path) -> std::io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let length = a.read(&mut left)?;
        if length == 0 {
            return Ok(true);
        }
        b.read_exact(&mut right[..length])?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_are_the_same_only_if_every_byte_is() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        generate(&a, (1 << 20) + 3).unwrap();
        generate(&b, (1 << 20) + 3).unwrap();
        assert!(same(&a, &b).unwrap());
        let mut bytes = std::fs::read(&b).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&b, &bytes).unwrap();
        assert!(!same(&a, &b).unwrap());
        bytes.pop();
        std::fs::write(&b, &bytes).unwrap();
        assert!(!same(&a, &b).unwrap());
    }
}
