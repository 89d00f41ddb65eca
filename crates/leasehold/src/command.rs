//! What people type: `leasehold serve`, `put`, `get`, `breaks`, `why`, `demo`, ..
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "clap shows the arguments' comments as they are: HOST[:PORT]"
)]

mod administer;
mod audit;
mod bench;
mod cert;
mod check;
mod demo;
mod exit;
mod failures;
mod files;
mod get;
mod guard;
mod hold;
mod layout;
mod line;
mod mount;
mod pace;
mod place;
mod probe;
mod progress;
mod put;
mod scrub;
mod serve;
mod show;
mod tenant;
mod watch;

use crate::command::exit::{Exit, Outcome};
use crate::command::mount::helper::Helper;
use crate::server::settings::FabricChoice;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// The codes that the command ends with; `docs/command.md` repeats them.
const EXIT_CODES: &str = "\
Files are named leasehold://HOST[:PORT]/PATH, or /PATH with --socket.

Exit codes:
  0  it worked
  1  it failed in another way
  2  the arguments make no sense
  3  there is no such file or directory
  4  a lease is in the way, was lost, or the time to wait for it was over
  5  a checksum does not match
  6  the server cannot be reached, or went away";

/// Remote machines write straight into your files over RDMA, under leases that
/// the filesystem can break.
#[derive(Debug, Parser)]
#[command(name = "leasehold", version, after_help = EXIT_CODES, max_term_width = 80, propagate_version = true)]
struct Command {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    action: Action,
}

/// What every command understands.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// Use the server's unix socket, where it knows for certain who calls (`serve` makes it there; by default at
    /// DIR/.leasehold/control.sock)
    #[arg(long, global = true, value_name = "PATH", env = "LEASEHOLD_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
    /// Who we are, and by what we know the server: a file made by `leasehold cert client`. Then leasehold:// means TLS
    #[arg(long, global = true, value_name = "FILE", env = "LEASEHOLD_CREDENTIALS", hide_env_values = true)]
    credentials: Option<PathBuf>,
    /// By which kind of fabric data go: auto (an RDMA device where both ends have one, else TCP), iwarp (RDMA over TCP),
    /// iwarp-tls (the same, encrypted), verbs (an RDMA device) [default: auto]
    #[arg(long, global = true, value_name = "KIND", env = "LEASEHOLD_FABRIC", hide_env_values = true)]
    fabric: Option<FabricChoice>,
    /// Print data as JSON: one document, or one a line where it comes bit by bit
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve the store in a directory
    Serve(serve::Serve),
    Mount(mount::Mount),
    /// Write a local file into the store, by RDMA
    Put(put::Put),
    /// Read a file of the store, by RDMA
    Get(get::Get),
    /// List a directory
    Ls(files::Ls),
    /// Show what is known about a file
    Stat(files::Stat),
    /// Remove files or empty directories; breaks the leases on them
    Rm(files::Rm),
    /// Rename; breaks the leases on a file that is replaced
    Mv(files::Mv),
    /// Give a file one more name, or make a symbolic link
    Ln(files::Ln),
    /// Make a directory
    Mkdir(files::Mkdir),
    /// Copy bytes within the server; breaks the leases on what is written
    Cp(layout::Cp),
    /// Copy a file at one moment, sharing its blocks where the disk can
    Clone(layout::Clone),
    /// Set a file's size; shrinking breaks the leases beyond it
    Truncate(layout::Truncate),
    /// Free a range, which then reads as zeros; breaks the leases on it
    Punch(layout::Punch),
    /// Zero a range, which stays allocated; breaks the leases on it
    Zero(layout::Zero),
    /// Take a range out; what is behind it moves to the front
    Collapse(layout::Collapse),
    /// Wait until everything committed to a file is durable
    Sync(files::Sync),
    /// Forget what the server holds of files in memory
    Evict(files::Evict),
    /// Show who holds what, since when
    Leases(administer::Leases),
    /// Show who broke whose lease, what for, and what the holder did
    Breaks(administer::Breaks),
    /// Show who waits for whom on a file, and until when
    Why(administer::Why),
    /// Show the server: its store, its ports, how it does I/O
    Status(administer::Status),
    /// Follow what happens on the server
    Watch(watch::Watch),
    /// Verify every checksum
    Scrub(scrub::Scrub),
    /// Lease a range and hold it, to see what breaks do
    Hold(hold::Hold),
    /// See it all work, on a throw-away store (30 seconds)
    Demo(demo::Demo),
    /// Make certificates for a server and its clients
    Cert(cert::Cert),
    /// Say who may do what in a store
    Tenant(tenant::Tenant),
    /// Check which promises each design for DMA into files keeps
    Check(check::Check),
    /// Judge whether this host is safe for DMA into files
    Audit(audit::Audit),
    /// Hold the files that a program does DMA into
    Guard(guard::Guard),
    /// Try what DMA into files does in a directory: is this host safe?
    Probe(probe::Probe),
    /// Measure this machine: Leasehold against the best one could do without it
    Bench(bench::Bench),
    #[command(hide = true)]
    BenchPeer(bench::peer::Peer),
    #[command(hide = true)]
    AuditLook(audit::Look),
    #[command(hide = true)]
    ProbeWorker(probe::worker::Worker),
    #[command(hide = true)]
    ProbeFlyer(probe::flyer::Flyer),
}

/// Runs the command that the process was given, by its arguments or by its name.
#[must_use]
pub fn run() -> ExitCode {
    if Helper::is_called() {
        return Helper::run();
    }
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // If there is nowhere to print it, nothing can be done.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    start(perform(command)).into()
}

/// Runs a command to its end.
fn start(command: impl Future<Output = Outcome>) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("leasehold: cannot start threads: {error}; check the limits of processes and memory");
            return Exit::Failed;
        }
    };
    let ended = runtime.block_on(command);
    // A read of standard input that is still waiting must not keep the process.
    runtime.shutdown_background();
    exit::report(ended)
}

async fn perform(command: Command) -> Outcome {
    let common = command.common;
    match command.action {
        Action::Serve(action) => action.run(&common).await,
        Action::Mount(action) => action.run(&common).await,
        Action::Put(action) => action.run(&common).await,
        Action::Get(action) => action.run(&common).await,
        Action::Ls(action) => action.run(&common).await,
        Action::Stat(action) => action.run(&common).await,
        Action::Rm(action) => action.run(&common).await,
        Action::Mv(action) => action.run(&common).await,
        Action::Ln(action) => action.run(&common).await,
        Action::Cp(action) => action.run(&common).await,
        Action::Clone(action) => action.run(&common).await,
        Action::Zero(action) => action.run(&common).await,
        Action::Collapse(action) => action.run(&common).await,
        Action::Evict(action) => action.run(&common).await,
        Action::Mkdir(action) => action.run(&common).await,
        Action::Truncate(action) => action.run(&common).await,
        Action::Punch(action) => action.run(&common).await,
        Action::Sync(action) => action.run(&common).await,
        Action::Leases(action) => action.run(&common).await,
        Action::Breaks(action) => action.run(&common).await,
        Action::Why(action) => action.run(&common).await,
        Action::Status(action) => action.run(&common).await,
        Action::Watch(action) => action.run(&common).await,
        Action::Scrub(action) => action.run(&common).await,
        Action::Hold(action) => action.run(&common).await,
        Action::Demo(action) => action.run().await,
        Action::Cert(action) => action.run(&common).await,
        Action::Tenant(action) => action.run(&common).await,
        Action::Check(action) => action.run(&common).await,
        Action::Bench(action) => action.run(&common).await,
        Action::Audit(action) => action.run(&common).await,
        Action::Guard(action) => action.run(&common).await,
        Action::Probe(action) => action.run(&common).await,
        Action::BenchPeer(action) => action.run().await,
        Action::AuditLook(action) => action.run().await,
        Action::ProbeWorker(action) => action.run().await,
        Action::ProbeFlyer(action) => action.run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn every_help_text_fits_in_80_columns() {
        let mut command = Command::command();
        command.build();
        let names: Vec<String> =
            command.get_subcommands().map(|action| action.get_name().to_owned()).collect();
        for name in names {
            let action = command.find_subcommand_mut(&name).unwrap();
            let help = format!("{}\n{}", action.render_help(), action.render_long_help());
            let longest = help.lines().max_by_key(|line| line.chars().count()).unwrap();
            assert!(longest.chars().count() <= 80, "{name}: {longest}");
        }
    }
}
