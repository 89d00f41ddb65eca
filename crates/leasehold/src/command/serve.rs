//! `leasehold serve`: settings, logging, signals; the server itself is [`crate::server`].

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::show;
use crate::mount::Mount;
use crate::server::Server;
use crate::server::settings::{self, Expiry, Insecure, PageKind, Settings};
use crate::size::Size;
use clap::ValueEnum;
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serve the store in a directory
///
/// The directory is made a store if it is empty. Without --tls or --insecure, it is served by its unix socket only. Settings come from a TOML file, then LEASEHOLD_* variables, then these
/// flags; --print-config shows them all. SIGTERM or SIGINT ends the server once what was committed is on disk.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// The store's directory
    #[arg(required_unless_present = "print_config")]
    directory: Option<PathBuf>,
    /// The file with settings [default: DIR/.leasehold/leasehold.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings that result, as such a file, and end
    #[arg(long)]
    print_config: bool,
    /// Mount it there, too: an empty directory outside of the store
    #[arg(long, value_name = "MOUNTPOINT")]
    mount: Option<PathBuf>,
    /// Serve clients with a certificate, by TLS: a directory that `leasehold cert` made
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Serve everybody, by TCP, on an address of this machine's own; on any address with --insecure=anywhere
    #[arg(
        long,
        value_name = "WHERE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "loopback",
        conflicts_with = "tls"
    )]
    insecure: Option<Insecure>,
    /// Where the control plane listens [default: 127.0.0.1:7117]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where data connections are accepted [default: 127.0.0.1:7118]
    #[arg(long, value_name = "ADDRESS")]
    data: Option<SocketAddr>,
    /// Where Prometheus finds /metrics [default: 127.0.0.1:7119]
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// The memory that clients write into [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    arena: Option<Size>,
    /// Of which pages that is made [default: auto]
    #[arg(long, value_name = "KIND")]
    pages: Option<PageKind>,
    /// How long a holder has to answer a break [default: 5000]
    #[arg(long, value_name = "MS")]
    grace_ms: Option<u64>,
    /// What happens to a holder that does not [default: fence-lease]
    #[arg(long, value_name = "WHAT")]
    on_expiry: Option<Expiry>,
    /// How long a session lives without a sign of life [default: 15000]
    #[arg(long, value_name = "MS")]
    session_ttl_ms: Option<u64>,
    /// Check each frame of the wire before placing its bytes; costs a copy
    #[arg(long)]
    strict_placement: bool,
    /// What to log: error, warn, info, debug, trace, or as in RUST_LOG [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl Serve {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let settings = self.settings(common)?;
        if self.print_config {
            return Ok(show::line(settings.to_toml().trim_end())?);
        }
        let directory = self.directory.as_deref().expect("required unless --print-config is given");
        log_to_stderr(&settings.log)?;
        for name in settings::unknown_variables(std::env::vars()) {
            tracing::warn!(
                "{name} is not a setting; see `leasehold serve --print-config` for those that are"
            );
        }
        // Before the start, so that a signal during recovery is not lost.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let is_new = !directory.join(".leasehold").exists();
        let server = Server::start(directory, &settings).await?;
        if is_new {
            tracing::warn!("{} was no store: made a new, empty one there", directory.display());
        }
        let mount = self.mount.as_deref().map(|at| Mount::new(server.engine().clone(), at)).transpose()?;
        announce(common, directory, &server, is_new)?;
        if let Some(mount) = &mount {
            tracing::info!("mounted at {}", mount.at().display());
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: no new work; sessions end; what was committed is written back");
        if let Some(mount) = mount {
            // Requests that are being answered need the engine.
            tokio::task::spawn_blocking(move || mount.unmount()).await??;
        }
        server.stop().await?;
        tracing::info!("stopped");
        Ok(())
    }

    fn settings(&self, common: &Common) -> anyhow::Result<Settings> {
        let beside = self.directory.as_ref().map(|directory| directory.join(".leasehold/leasehold.toml"));
        let file = self.config.clone().or(beside.filter(|path| path.exists()));
        let settings = Settings::load(file.as_deref(), std::env::vars(), &self.flags(common));
        Ok(settings.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?)
    }

    /// The flags that were given, by the names of the settings.
    fn flags(&self, common: &Common) -> Vec<(&'static str, String)> {
        fn name(value: impl ValueEnum) -> String {
            value.to_possible_value().expect("no value is hidden").get_name().to_owned()
        }
        let flags = [
            ("tls", self.tls.as_ref().map(|path| path.display().to_string())),
            ("insecure", self.insecure.map(name)),
            ("listen", self.listen.map(|address| address.to_string())),
            ("data", self.data.map(|address| address.to_string())),
            ("metrics", self.metrics.map(|address| address.to_string())),
            ("socket", common.socket.as_ref().map(|path| path.display().to_string())),
            ("arena", self.arena.map(|size| size.to_string())),
            ("pages", self.pages.map(name)),
            ("grace_ms", self.grace_ms.map(|ms| ms.to_string())),
            ("on_expiry", self.on_expiry.map(name)),
            ("session_ttl_ms", self.session_ttl_ms.map(|ms| ms.to_string())),
            ("strict_placement", self.strict_placement.then(|| "true".to_owned())),
            ("fabric", common.fabric.map(name)),
            ("log", self.log.clone()),
        ];
        flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

fn log_to_stderr(filter: &str) -> Outcome {
    // It warns of every unmount that was done already, and of calls that nobody needs.
    let quieter = if filter.contains("fuser") { filter.to_owned() } else { format!("fuser=error,{filter}") };
    let filter = EnvFilter::builder().parse(&quieter).map_err(|error| {
        Failure::new(
            Exit::Usage,
            format!("{filter:?} is not a log filter ({error}); write a level such as info"),
        )
    })?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .init();
    Ok(())
}

/// Says on standard output that clients can come: for people, and for whoever started us.
fn announce(common: &Common, directory: &Path, server: &Server, is_new: bool) -> Outcome {
    let (control, data, metrics) =
        (server.control_address(), server.data_address(), server.metrics_address());
    let by = server.data_by();
    if common.json {
        return Ok(show::json_line(&json!({
            "directory": directory,
            "new": is_new,
            "control": control.map(|address| address.to_string()),
            "data": data.to_string(),
            "data_by": by,
            "metrics": metrics.to_string(),
            "socket": server.socket(),
            "pid": std::process::id(),
        }))?);
    }
    let new = if is_new { " (a new, empty store)" } else { "" };
    show::line(format_args!("serving {}{new}", directory.display()))?;
    match control {
        Some(control) => {
            let by = by.join(" and ");
            show::line(format_args!("  leasehold://{control}/   (data by {by} at {data})"))?;
        }
        None => {
            show::line("  not by leasehold://, for which it takes --tls DIR, or --insecure on this machine")?;
        }
    }
    show::line(format_args!("  --socket {}", server.socket().display()))?;
    show::line(format_args!("  http://{metrics}/metrics"))?;
    Ok(())
}
