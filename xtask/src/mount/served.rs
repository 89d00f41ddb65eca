//! A store of its own, served and mounted by a process of its own.

use super::tool::{self, wait};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::{NamedTempFile, TempDir};

/// A server comes, or goes, in this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store that is mounted as long as this lives. However it ends, the server ends and nothing stays mounted.
pub struct Served {
    program: PathBuf,
    server: Child,
    at: TempDir,
    store: TempDir,
    /// What it says of itself.
    log: NamedTempFile,
}

impl Served {
    /// Makes a new store in `directory`, which must be on a disk.
    pub fn start(program: &Path, directory: &Path) -> Result<Served> {
        let store = TempDir::with_prefix_in("mounted-store-", directory)?;
        let at = TempDir::with_prefix("leasehold-mount-")?;
        let log = NamedTempFile::new()?;
        let server = serve(program, store.path(), at.path(), &log)?;
        let mut served = Served { program: program.to_owned(), server, at, store, log };
        served.wait_until_mounted()?;
        Ok(served)
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        self.at.path()
    }

    /// `leasehold` with these arguments, for this server.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--socket").arg(self.store.path().join(".leasehold/control.sock"));
        command
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()?;
        self.server.wait()?;
        Ok(())
    }

    /// Starts one on the same store, which takes the dead mount away.
    pub fn start_again(&mut self) -> Result<()> {
        self.server = serve(&self.program, self.store.path(), self.at.path(), &self.log)?;
        self.wait_until_mounted()
    }

    /// All blocks match their checksums; the server ends with success, the mount with it, and it had no error to log.
    pub fn end(mut self) -> Result<()> {
        tool::run(self.command(&["scrub"]).arg("/"), PATIENCE)?;
        self.signal(Signal::TERM)?;
        let status = wait(&mut self.server, PATIENCE)?.context("the server does not end on SIGTERM")?;
        ensure!(status.success(), "the server ended with {status}");
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains(&self.at().display().to_string()), "a server that ends unmounts");
        // A program that was killed waits for no answer: the kernel has forgotten its call, and takes none (fuse.rst).
        let nobody_waits = "Failed to send FUSE reply: No such file or directory (os error 2)";
        let logged = std::fs::read_to_string(&self.log)?;
        let logged: Vec<&str> = logged.lines().filter(|line| !line.ends_with(nobody_waits)).collect();
        ensure!(logged.is_empty(), "the server logged:\n{}", logged.join("\n"));
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.server), signal)?)
    }

    /// It announces itself, with a line, once it is mounted.
    fn wait_until_mounted(&mut self) -> Result<()> {
        let said = self.server.stdout.take().context("its output is a pipe")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        if line.is_empty() {
            let logged = std::fs::read_to_string(&self.log)?;
            bail!("the server ended before it had mounted its store:\n{logged}");
        }
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // One that has ended gets no signal: its pid may be somebody else's by now.
        let running = matches!(self.server.try_wait(), Ok(None));
        let ends = |server| matches!(wait(server, PATIENCE), Ok(Some(_)));
        if running && (self.signal(Signal::TERM).is_err() || !ends(&mut self.server)) {
            let _ = self.kill();
        }
        // What a killed one leaves; else there is nothing.
        let _ = rustix::mount::unmount(self.at(), UnmountFlags::DETACH);
    }
}

fn serve(program: &Path, store: &Path, at: &Path, log: &NamedTempFile) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(["serve", "--json", "--log", "error,leasehold::mount::filesystem=warn", "--arena", "64MiB"]);
    for port in ["--listen", "--data", "--metrics"] {
        command.args([port, "127.0.0.1:0"]);
    }
    command.arg("--mount").arg(at).arg(store).stdin(Stdio::null()).stdout(Stdio::piped());
    // To its end: one that is started again goes on with it.
    command.stderr(OpenOptions::new().append(true).open(log)?);
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}
