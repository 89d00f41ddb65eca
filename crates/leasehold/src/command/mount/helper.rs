//! What mount(8) calls for a line of fstab: `mount.leasehold SOURCE DIR [-sfnv] [-o OPTIONS]`.
//!
//! Source: mount(8), "External helpers".

use super::Mount;
use crate::command::exit::Exit;
use crate::command::{Common, start};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const NAME: &str = "mount.leasehold";
/// "incorrect invocation or permissions"
const INCORRECT: u8 = 1;
/// "mount failure"
const FAILED: u8 = 32;

/// Mount a server's store, as ordinary files; for mount(8) and /etc/fstab
///
/// The same as `leasehold mount --daemon`, by the arguments of a helper of mount(8).
#[derive(Debug, Parser)]
#[command(name = NAME, version, max_term_width = 80)]
pub(in crate::command) struct Helper {
    /// The server, or a directory on it: leasehold://HOST[:PORT]/[PATH]
    source: String,
    /// Where: a directory of this machine
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Options as in fstab, between commas: ro, noexec, noatime, ..
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Do not mind unknown options
    #[arg(short)]
    sloppy: bool,
    /// Do nothing
    #[arg(short)]
    fake: bool,
    /// Without meaning here: there is no mtab
    #[arg(short)]
    no_mtab: bool,
    /// Say what is mounted
    #[arg(short)]
    verbose: bool,
    /// The type, which is ours
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

impl Helper {
    /// Whether this process was called by that name.
    pub(in crate::command) fn is_called() -> bool {
        let called = std::env::args_os().next().unwrap_or_default();
        Path::new(&called).file_name().is_some_and(|name| name == NAME)
    }

    /// Does what the arguments of this process say. The code is one of mount(8).
    pub(in crate::command) fn run() -> ExitCode {
        match Helper::try_parse() {
            Ok(helper) => helper.mount(),
            Err(error) => {
                // If there is nowhere to print it, nothing can be done.
                let _ = error.print();
                if error.use_stderr() { INCORRECT.into() } else { ExitCode::SUCCESS }
            }
        }
    }

    fn mount(self) -> ExitCode {
        if self.fake {
            return ExitCode::SUCCESS;
        }
        let mount = Mount {
            source: self.source,
            directory: self.directory,
            daemon: true,
            options: self.options,
            in_background: false,
            sloppy: self.sloppy,
            quiet: !self.verbose,
        };
        let common = Common { socket: None, credentials: None, fabric: None, json: false };
        match start(async move { mount.run(&common).await }) {
            Exit::Ok => ExitCode::SUCCESS,
            Exit::Usage => INCORRECT.into(),
            _ => FAILED.into(),
        }
    }
}
