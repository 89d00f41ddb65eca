//! Rows about what people use today: rsync, nc, a network filesystem. Whole processes on both sides, from a file in the
//! page cache to a durable one.

use super::figure::{Found, Row, Unit};
use super::process::{Served, Serving};
use super::{Context, GIB, source};
use anyhow::{Context as _, bail};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// No tool takes so long for what a bench transfers.
const PATIENCE: Duration = Duration::from_secs(120);

/// What `leasehold put` competes with: puts the source so that it is durable.
enum Tool<'a> {
    Rsync { port: u16 },
    Netcat { port: u16, into: PathBuf },
    Mounted { directory: &'a Path },
}

fn row(name: &'static str, what: &'static str, found: Found) -> Row {
    Row { name, what, unit: Unit::GibPerSecond, found, bar: None, note: None }
}

pub(super) async fn rsync(context: &Context) -> anyhow::Result<Vec<Row>> {
    let what = "put of a local file, against rsync to a daemon, with --fsync";
    if !installed("rsync") {
        return Ok(vec![row("rsync", what, Found::Absent("not installed".to_owned()))]);
    }
    let directory = context.store()?;
    let port = free_port()?;
    let configuration = directory.path().join("rsyncd.conf");
    // As ourselves: started by root, it would serve as nobody.
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let text = format!(
        "use chroot = no\naddress = 127.0.0.1\nport = {port}\nuid = {uid}\ngid = {gid}\n\
         [bench]\npath = {}\nread only = no\n",
        directory.path().display()
    );
    std::fs::write(&configuration, text)?;
    let mut daemon = Command::new("rsync");
    daemon.args(["--daemon", "--no-detach", "--config"]).arg(&configuration);
    let mut daemon = quiet(&mut daemon).stdin(Stdio::null()).spawn()?;
    let found = against(context, "rsync", &Tool::Rsync { port }).await;
    daemon.kill().await?;
    Ok(vec![row("rsync", what, found?)])
}

pub(super) async fn netcat(context: &Context) -> anyhow::Result<Vec<Row>> {
    let what = "put of a local file, against nc to a file with fsync";
    if !installed("nc") {
        return Ok(vec![row("nc", what, Found::Absent("not installed".to_owned()))]);
    }
    let directory = context.store()?;
    let tool = Tool::Netcat { port: free_port()?, into: directory.path().join("received") };
    Ok(vec![row("nc", what, against(context, "nc", &tool).await?)])
}

pub(super) async fn mounted(context: &Context) -> anyhow::Result<Vec<Row>> {
    let what = "put of a local file, against a copy to a mounted network filesystem, with fsync";
    let found = match &context.mounted {
        Some(directory) => against(context, "mount", &Tool::Mounted { directory }).await?,
        None => Found::Absent(kernel_has()),
    };
    Ok(vec![row("mounted", what, found)])
}

fn kernel_has() -> String {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| known.lines().any(|line| line.split_ascii_whitespace().last() == Some(name));
    if has("nfs") || has("nfs4") || has("9p") {
        "none named: --mounted DIR".to_owned()
    } else {
        "kernel has neither NFS nor 9p".to_owned()
    }
}

async fn against(context: &Context, name: &'static str, tool: &Tool<'_>) -> anyhow::Result<Found> {
    context.needs_a_disk()?;
    let store = context.store()?;
    let served = Served::start(store.path(), Serving::default()).await?;
    let client = served.client().await?;
    let local = context.scratch.join("source");
    write_source(&local, context.bytes)?;
    let rate = |took: f64| context.bytes as f64 / GIB / took;
    let mut pairs = Vec::new();
    for round in context.rounds() {
        let ours = timed(served.command(&["put", &local.display().to_string(), "/tool"])?).await?;
        client.remove("/tool").await?;
        let theirs = tool.put(&local).await?;
        if round.counts {
            pairs.push((rate(ours), rate(theirs)));
        }
    }
    served.stop().await?;
    std::fs::remove_file(local)?;
    Ok(Found::pairs(name, &pairs))
}

impl Tool<'_> {
    /// Seconds until the file is durable; it is removed again.
    async fn put(&self, local: &Path) -> anyhow::Result<f64> {
        match self {
            Tool::Rsync { port } => {
                let to = format!("rsync://127.0.0.1:{port}/bench/received");
                let mut command = Command::new("rsync");
                // As new each time: with the old one there, rsync would compare instead of transfer.
                command.args(["--whole-file", "--fsync", "--ignore-times", "--inplace"]).arg(local).arg(to);
                timed(command).await
            }
            Tool::Netcat { port, into } => {
                let _ = std::fs::remove_file(into);
                let mut listener = Command::new("nc");
                listener.args(["-l", "127.0.0.1", &port.to_string()]).stdout(std::fs::File::create(into)?);
                let mut listener = listener.stdin(Stdio::null()).kill_on_drop(true).spawn()?;
                until_listening(*port, &mut listener).await?;
                let began = Instant::now();
                let mut sender = Command::new("nc");
                sender.args(["-N", "127.0.0.1", &port.to_string()]).stdin(std::fs::File::open(local)?);
                timed(sender).await?;
                end(&mut listener).await?;
                std::fs::File::open(into)?.sync_all()?;
                Ok(began.elapsed().as_secs_f64())
            }
            Tool::Mounted { directory } => {
                let (local, to) = (local.to_owned(), directory.join("leasehold-bench"));
                let copy = move || -> anyhow::Result<f64> {
                    let began = Instant::now();
                    std::fs::copy(local, &to)?;
                    std::fs::File::open(&to)?.sync_all()?;
                    let took = began.elapsed().as_secs_f64();
                    std::fs::remove_file(to)?;
                    Ok(took)
                };
                tokio::task::spawn_blocking(copy).await?
            }
        }
    }
}

fn write_source(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut file = std::fs::File::create(path)?;
    for (index, (_, part)) in super::peer::chunks(bytes).enumerate() {
        file.write_all(&source()[index % source().len()][..part])?;
    }
    // What is still to be written would be another's burden.
    Ok(file.sync_all()?)
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).kill_on_drop(true)
}

/// Seconds from its start to its end.
async fn timed(mut command: Command) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut child = quiet(&mut command).spawn().context("cannot start a tool")?;
    end(&mut child).await?;
    Ok(began.elapsed().as_secs_f64())
}

async fn end(child: &mut Child) -> anyhow::Result<()> {
    let status =
        tokio::time::timeout(PATIENCE, child.wait()).await.context("a tool did not end in time")??;
    if !status.success() {
        bail!("a tool ended with {status}; it says why above");
    }
    Ok(())
}

fn installed(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|at| at.join(name).is_file()))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits until somebody listens at the port, by the kernel's table: a connection would use `nc -l` up.
async fn until_listening(port: u16, child: &mut Child) -> anyhow::Result<()> {
    let wanted = format!("0100007F:{port:04X} 00000000:0000 0A");
    let began = Instant::now();
    while !std::fs::read_to_string("/proc/net/tcp")?.contains(&wanted) {
        if child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
            bail!("nc does not listen; it says why above");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
