//! Others' programs, each run to its end within a time.

use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Of what a program said that failed, so many lines are shown: the last.
const LINES_MAX: usize = 100;

/// Runs it; what it said is in the error if it fails.
pub fn run(command: &mut Command, patience: Duration) -> Result<()> {
    let (status, said) = output(command, patience)?;
    if !status.success() {
        let lines: Vec<&str> = said.lines().collect();
        let shown = lines[lines.len().saturating_sub(LINES_MAX)..].join("\n");
        bail!("{command:?} ended with {status}:\n{shown}");
    }
    Ok(())
}

/// Runs it: how it ended, and what it said on both its outputs.
pub fn output(command: &mut Command, patience: Duration) -> Result<(ExitStatus, String)> {
    let mut said = tempfile::tempfile()?;
    let mut child = spawn(command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?))?;
    let ended = wait(&mut child, patience)?;
    let Some(status) = ended else {
        // It may wait for the mount, which goes first: nobody waits for it here.
        let _ = child.kill();
        bail!("{command:?} did not end within {} s", patience.as_secs());
    };
    Ok((status, whole(&mut said)?))
}

/// Starts it; the error names it.
pub fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start {command:?}"))
}

/// How it ended, if it did so in time.
pub fn wait(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let give_up = Instant::now() + patience;
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() > give_up {
            return Ok(ended);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn whole(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
