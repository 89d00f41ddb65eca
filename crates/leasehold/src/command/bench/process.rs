//! The processes of a bench: this very program as the server, and as the peer of a baseline. Each is ended by its own pid,
//! and none outlives us.

use super::machine;
use anyhow::{Context as _, bail};
use leasehold_client::{Client, Server};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// How long a process may take to begin or to end; a server with a million files opens a store within it.
const PATIENCE: Duration = Duration::from_secs(120);
/// The unit of processor time in /proc, 1/100 s on every architecture that Linux runs on today.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that has said on its first line where it can be reached.
pub(super) struct Process {
    child: Child,
    pid: u32,
    announced: String,
}

impl Process {
    /// With no settings but these.
    async fn start<'a>(
        mut command: Command,
        settings: impl IntoIterator<Item = (String, &'a &'a str)>,
    ) -> anyhow::Result<Process> {
        for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("LEASEHOLD_")) {
            command.env_remove(variable);
        }
        command.envs(settings);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start this program again")?;
        let pid = child.id().context("the process ended before it began")?;
        let stdout = child.stdout.take().context("a process has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let announced = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let announced = announced.context("a process of the bench did not start in time")??;
        let announced = announced.context("a process of the bench did not start; it says why above")?;
        Ok(Process { child, pid, announced })
    }

    /// Processor time so far, of all its threads, in seconds.
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name of the program, in brackets, may hold anything.
        let fields = text.rsplit_once(')').context("not what proc(5) describes")?.1;
        let ticks: Vec<f64> =
            fields.split_ascii_whitespace().skip(11).take(2).filter_map(|text| text.parse().ok()).collect();
        Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
    }

    /// Resident memory that is its own: without the arena, which is shared memory.
    pub(super) fn memory(&self) -> u64 {
        machine::kib(machine::field(format!("/proc/{}/status", self.pid), "RssAnon")) << 10
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = ended.context("a process of the bench did not end in time")??;
        if !status.success() {
            bail!("a process of the bench ended with {status}; it says why above");
        }
        Ok(())
    }
}

/// This program, in a network namespace if one is named.
fn program(namespace: Option<&str>) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(match namespace {
        None => Command::new(program),
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(program);
            command
        }
    })
}

/// How a server differs from the default.
#[derive(Clone, Debug, Default)]
pub(super) struct Serving<'a> {
    /// More arguments.
    pub(super) arguments: &'a [&'a str],
    /// Settings by their variables.
    pub(super) settings: &'a [(&'a str, &'a str)],
    /// The namespace, and its address.
    pub(super) namespace: Option<(&'a str, &'a str)>,
}

/// A server on a store.
pub(super) struct Served {
    pub(super) process: Process,
    pub(super) control: String,
    socket: PathBuf,
}

impl Served {
    pub(super) async fn start(directory: &Path, serving: Serving<'_>) -> anyhow::Result<Served> {
        let mut command = program(serving.namespace.map(|(name, _)| name))?;
        let any = format!("{}:0", serving.namespace.map_or("127.0.0.1", |(_, address)| address));
        command.args(["serve", "--json", "--log", "error"]);
        command.args(["--insecure=anywhere", "--listen", &any, "--data", &any, "--metrics", &any]);
        command.args(serving.arguments).arg(directory);
        let settings = serving.settings.iter().map(|(name, value)| (format!("LEASEHOLD_{name}"), value));
        let mut process = Process::start(command, settings).await?;
        let announced: serde_json::Value = serde_json::from_str(&std::mem::take(&mut process.announced))
            .context("the server announced itself in another way")?;
        let text = |name: &str| {
            announced[name].as_str().map(str::to_owned).with_context(|| format!("no {name} was announced"))
        };
        let (control, socket) = (text("control")?, text("socket")?.into());
        Ok(Served { process, control, socket })
    }

    /// A connection of its own to the server, as a client on this machine would have it.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&Server::Unix(self.socket.clone())).await?)
    }

    /// `leasehold` with these arguments, on the server's socket.
    pub(super) fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = program(None)?;
        command.args(arguments).arg("--socket").arg(&self.socket);
        Ok(command)
    }

    /// Asks the server to drain and end.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let pid =
            i32::try_from(self.process.pid).ok().and_then(Pid::from_raw).context("a pid is positive")?;
        kill_process(pid, Signal::TERM).context("cannot signal the server")?;
        self.process.wait().await
    }
}

/// The other end of a baseline: see [`super::peer`].
pub(super) struct Peer {
    pub(super) process: Process,
    pub(super) address: String,
}

impl Peer {
    pub(super) async fn start(arguments: &[&str], namespace: Option<&str>) -> anyhow::Result<Peer> {
        let mut command = program(namespace)?;
        command.arg("bench-peer").args(arguments);
        Ok(Peer::of(Process::start(command, []).await?))
    }

    fn of(mut process: Process) -> Peer {
        let address = std::mem::take(&mut process.announced);
        Peer { process, address }
    }

    /// It ends with its standard input.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.process.child.stdin.take());
        self.process.wait().await
    }
}

/// A guard of a file, and the program that it guards, which does nothing.
pub(super) struct Guarding(Peer);

impl Guarding {
    pub(super) async fn start(file: &Path, scratch: &Path) -> anyhow::Result<Guarding> {
        let mut command = program(None)?;
        command.arg("guard").arg("--file").arg(file).arg("--log").arg(scratch.join("guard.jsonl"));
        command.arg("--registry").arg(scratch.join("guards"));
        command.args(["--", "sh", "-c", "echo ready; read line || true"]).stderr(Stdio::null());
        Ok(Guarding(Peer::of(Process::start(command, []).await?)))
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.0.stop().await
    }
}

/// Runs a peer that is no server, in a namespace, to its end: the number that it prints.
pub(super) async fn peer_output(arguments: &[&str], namespace: &str) -> anyhow::Result<f64> {
    let mut peer = Peer::start(arguments, Some(namespace)).await?;
    peer.process.wait().await?;
    peer.address.parse().context("a peer printed no number")
}
