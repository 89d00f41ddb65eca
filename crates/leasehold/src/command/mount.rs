//! `leasehold mount`: a server's store as a filesystem of this machine.

mod background;
pub(super) mod helper;

use crate::command::Common;
use crate::command::exit::{self, Exit, Failure, Outcome};
use crate::command::{place, show};
use crate::mount::device::Device;
use crate::mount::forward::{Lost, REQUESTS_MAX, forward};
use crate::mount::options::Options;
use leasehold_client::{Reason, Server};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

const SERVER_REMEDY: &str = "see whether `leasehold serve` runs there, then mount it again";

/// Mount a server's store, as ordinary files
///
/// Programs use it like any other directory. What they do there breaks leases, and the holders are told which program on
/// which machine it was. It takes root and /dev/fuse, and stays until it is interrupted, or until `umount DIR`; if the server
/// goes away, it ends with code 6. For /etc/fstab, make a link to this program that is called /sbin/mount.leasehold.
#[derive(Debug, clap::Args)]
pub(crate) struct Mount {
    /// The server, or a directory on it: leasehold://HOST[:PORT]/[PATH]
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where: a directory of this machine
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Go to the background once it is mounted
    #[arg(long)]
    daemon: bool,
    /// Options as in fstab, between commas: ro, noexec, noatime, credentials=FILE, ..
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Started by --daemon, which waits for a word on standard output
    #[arg(long, hide = true)]
    in_background: bool,
    /// As for mount(8): unknown options are no error
    #[arg(long, hide = true)]
    sloppy: bool,
    /// With --daemon: say nothing if all is well
    #[arg(skip)]
    quiet: bool,
}

impl Mount {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        // Of a line of fstab, the options are all that there is room for.
        let credentials = common.credentials.clone().or_else(|| self.credentials());
        let common = &Common { credentials, ..common.clone() };
        let options = Options::parse(self.options.iter().map(String::as_str), self.sloppy);
        let options = options.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        if self.daemon {
            return background::start(&self, common);
        }
        if self.in_background {
            background::leave_the_session();
        }
        // Before it is mounted, so that no signal is lost.
        let mut ends = Ends::new()?;
        let location = place::find(common, &self.source)?;
        let client = place::connect(common, &location.server).await?;
        let (send, requests) = mpsc::channel(REQUESTS_MAX);
        // What the server refuses is heard before anything is mounted.
        let replies = client.mount(&location.path, requests).await?;
        let (source, at) = (self.shown_source(&location.server), self.directory.clone());
        let mounting = tokio::task::spawn_blocking(move || Device::mount(&source, &at, options));
        let device = Arc::new(mounting.await??);
        let (ready, is_ready) = oneshot::channel();
        let ended = tokio::select! {
            ended = forward(device.clone(), send, replies, ready) => {
                ended.map_err(|lost| self.lost(&lost).into())
            }
            error = self.announce(common, &device, is_ready) => Err(error),
            () = ends.next() => Ok(()),
        };
        device.detach()?;
        if let (true, Err(error)) = (self.in_background, &ended) {
            background::log(&exit::text(error));
        }
        ended
    }

    /// The last `credentials=FILE` of the options.
    fn credentials(&self) -> Option<PathBuf> {
        let words = self.options.iter().flat_map(|words| words.split(','));
        words.filter_map(|word| word.strip_prefix("credentials=")).next_back().map(PathBuf::from)
    }

    /// What `mount` shows as the device: as it was given, since fstab is compared with it.
    fn shown_source(&self, server: &Server) -> String {
        match server {
            Server::Tcp { .. } => self.source.clone(),
            Server::Unix(socket) => format!("{}:{}", socket.display(), self.source),
        }
    }

    /// Says that programs can use it; returns only if who waits for it in the foreground is gone.
    async fn announce(
        &self,
        common: &Common,
        device: &Device,
        ready: oneshot::Receiver<()>,
    ) -> anyhow::Error {
        if ready.await.is_err() {
            return std::future::pending().await;
        }
        match self.say(common, device) {
            Err(error) if self.in_background => error,
            // It is mounted, whoever wants to hear of it.
            _ => std::future::pending().await,
        }
    }

    fn say(&self, common: &Common, device: &Device) -> Outcome {
        if common.json {
            let (at, pid) = (device.at(), std::process::id());
            show::json_line(&json!({ "source": self.source, "directory": at, "pid": pid }))?;
        } else {
            let end = if self.in_background { "" } else { "Ctrl-C, or " };
            let (source, at) = (show::name(&self.source), device.at().display().to_string());
            let at = show::name(&at);
            let text = format!("mounted {source} on {at} (to end: {end}`umount {at}`)");
            for line in show::wrapped(&text, "  ") {
                show::line(line)?;
            }
        }
        if self.in_background {
            background::leave_the_terminal()?
        }
        Ok(())
    }

    fn lost(&self, lost: &Lost) -> Failure {
        let (source, at) = (show::name(&self.source), self.directory.display());
        let (exit, why, remedy) = match lost {
            Lost::Server(error) if error.reason == Reason::Unreachable => {
                (Exit::Unreachable, "the server went away".to_owned(), SERVER_REMEDY)
            }
            Lost::Server(_) | Lost::Closed => (Exit::Unreachable, lost.to_string(), SERVER_REMEDY),
            Lost::Reply(source) | Lost::Device(source) => {
                (Exit::Failed, format!("{lost}: {source}"), "see dmesg, then mount it again")
            }
        };
        Failure::new(exit, format!("lost {source}, so it is not mounted on {at} any more: {why}; {remedy}"))
    }
}

/// The signals that end a mount.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> std::io::Result<Ends> {
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Ends([terminate?, interrupt?, hangup?]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
