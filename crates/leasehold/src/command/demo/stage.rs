//! The processes of the demo: this very program, again and again. Each is ended by its own pid, and none outlives us.

use super::narrate::quote;
use crate::command::exit::{Exit, Failure, Outcome};
use anyhow::{Context as _, bail};
use leasehold_client::{Client, Server};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// How often the server is asked about what the demo waits for.
const LOOK: Duration = Duration::from_millis(5);

/// The server and its socket.
pub(super) struct Stage {
    program: PathBuf,
    socket: PathBuf,
    server: Actor,
}

/// One process. What it prints is quoted as it comes.
pub(super) struct Actor {
    name: String,
    child: Child,
    pid: u32,
    quoting: JoinSet<Outcome>,
}

/// How a process ended.
#[must_use]
pub(super) struct Ended {
    name: String,
    status: ExitStatus,
}

impl Stage {
    /// Starts a server on ports that the system chooses, and waits until it says that it serves.
    pub(super) async fn open(directory: &Path, grace: Duration) -> anyhow::Result<Stage> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let any = "127.0.0.1:0";
        let mut command = Command::new(&program);
        command.args(["serve", "--json", "--log", "warn", "--listen", any, "--data", any, "--metrics", any]);
        command.arg("--grace-ms").arg(grace.as_millis().to_string()).arg(directory);
        for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("LEASEHOLD_")) {
            command.env_remove(variable);
        }
        let mut server = Actor::new("server", command)?;
        let stdout = server.child.stdout.take().context("the server has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let Some(announced) = lines.next_line().await? else {
            let ended = server.end(Duration::from_secs(5)).await?;
            bail!("the server did not start (exit code {:?}); it says why above", ended.status.code());
        };
        let announced: serde_json::Value =
            serde_json::from_str(&announced).context("the server announced itself in another way")?;
        let socket = announced["socket"].as_str().context("the server announced no socket")?.into();
        Ok(Stage { program, socket, server })
    }

    pub(super) fn server_pid(&self) -> u32 {
        self.server.pid
    }

    /// Starts `leasehold` with these arguments, on the server's socket.
    pub(super) fn start(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Actor> {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--socket").arg(&self.socket);
        let mut actor = Actor::new(name, command)?;
        let stdout = actor.child.stdout.take().context("a process has no standard output")?;
        actor.quote(stdout);
        Ok(actor)
    }

    /// Runs it to its end.
    pub(super) async fn play(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Ended> {
        self.start(name, arguments)?.end(super::PATIENCE).await
    }

    /// Returns once so many leases on the file are live.
    pub(super) async fn until_leased(&self, path: &str, leases: usize, patience: Duration) -> Outcome {
        let client = self.client().await?;
        let began = Instant::now();
        while client.leases(Some(path)).await?.iter().filter(|lease| lease.state == "live").count() < leases {
            look_again(began, patience).await?;
        }
        Ok(())
    }

    /// Returns once somebody waits on the file.
    pub(super) async fn until_somebody_waits(&self, path: &str, patience: Duration) -> Outcome {
        let client = self.client().await?;
        let began = Instant::now();
        while client.why(path).await?.is_empty() {
            look_again(began, patience).await?;
        }
        Ok(())
    }

    async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&Server::Unix(self.socket.clone())).await?)
    }

    /// Asks the server to drain and end.
    pub(super) async fn close(mut self) -> Outcome {
        let pid = i32::try_from(self.server.pid).ok().and_then(Pid::from_raw).context("a pid is positive")?;
        kill_process(pid, Signal::TERM).context("cannot signal the server")?;
        self.server.end(super::PATIENCE).await?.succeed()
    }
}

async fn look_again(began: Instant, patience: Duration) -> Outcome {
    if began.elapsed() > patience {
        bail!("what the demo waits for did not come within {} s", patience.as_secs());
    }
    tokio::time::sleep(LOOK).await;
    Ok(())
}

impl Actor {
    fn new(name: &str, mut command: Command) -> anyhow::Result<Actor> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start this program again")?;
        let pid = child.id().context("the process ended before it began")?;
        let stderr = child.stderr.take().context("a process has no standard error")?;
        let mut actor = Actor { name: name.to_owned(), child, pid, quoting: JoinSet::new() };
        actor.quote(stderr);
        Ok(actor)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    fn quote(&mut self, output: impl AsyncRead + Send + Unpin + 'static) {
        let name = self.name.clone();
        self.quoting.spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Some(line) = lines.next_line().await? {
                quote(&name, &line)?;
            }
            Ok(())
        });
    }

    /// Waits for its end, and until all that it said is quoted.
    pub(super) async fn end(&mut self, patience: Duration) -> anyhow::Result<Ended> {
        let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await else {
            bail!(
                "`leasehold {}` (process {}) did not end within {} s",
                self.name,
                self.pid,
                patience.as_secs()
            );
        };
        while let Some(quoted) = self.quoting.join_next().await {
            quoted??;
        }
        Ok(Ended { name: self.name.clone(), status: status? })
    }
}

impl Ended {
    pub(super) fn succeed(self) -> Outcome {
        self.expect(Exit::Ok)
    }

    pub(super) fn expect(self, exit: Exit) -> Outcome {
        if self.status.code() == Some(i32::from(exit as u8)) {
            return Ok(());
        }
        let text =
            format!("`leasehold {}` should have ended with code {}: {}", self.name, exit as u8, self.status);
        Err(Failure::new(Exit::Failed, text).into())
    }
}
