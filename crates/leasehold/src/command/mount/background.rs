//! `--daemon`: the mount is a process of its own, and we wait until it is mounted.
//!
//! It is started anew, not forked: a fork takes along one thread of many. Its standard output is a pipe, on which it says that
//! it is mounted, and which it closes then; if it closes without a word, it has said why on standard error.

use super::Mount;
use crate::command::exit::{Exit, Outcome, Told};
use crate::command::{Common, show};
use rustix::fs::{CWD, Mode, OFlags};
use std::io::{self, Read as _};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

/// Starts it, and returns once it is mounted.
pub(super) fn start(mount: &Mount, common: &Common) -> Outcome {
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(socket) = &common.socket {
        command.arg("--socket").arg(socket);
    }
    if let Some(credentials) = &common.credentials {
        command.arg("--credentials").arg(credentials);
    }
    if common.json {
        command.arg("--json");
    }
    command.args(["mount", "--in-background"]);
    if mount.sloppy {
        command.arg("--sloppy");
    }
    for options in &mount.options {
        command.arg("-o").arg(options);
    }
    command.arg("--").arg(&mount.source).arg(&mount.directory);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    child.stdout.take().expect("it is a pipe").read_to_string(&mut said)?;
    if said.is_empty() {
        let code = child.wait()?.code().unwrap_or(Exit::Failed as i32);
        return Err(Told(Exit::of(code)).into());
    }
    if !mount.quiet {
        show::line(said.trim_end())?;
    }
    Ok(())
}

/// What the terminal sends is for others.
pub(super) fn leave_the_session() {
    // It fails for who leads a group already, which nobody does who was just started.
    let _ = rustix::process::setsid();
}

/// From now on there is nobody to talk to, and no directory that is in use.
pub(super) fn leave_the_terminal() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let nothing = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    Ok(())
}

/// Tells the system's log, if there is one.
pub(super) fn log(text: &str) {
    // <27>: an error, of a daemon.
    let line = format!("<27>leasehold[{}]: {text}", std::process::id());
    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(line.as_bytes(), "/dev/log"));
}
