//! Commands that a task is made of.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// A cargo command at the root of the workspace.
pub struct Cargo(Command);

/// `cargo` with these arguments.
pub fn cargo(arguments: &[&str]) -> Cargo {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    Cargo(command)
}

impl Cargo {
    /// With this in the environment.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Cargo {
        self.0.env(name, value);
        self
    }

    /// With more arguments.
    pub fn args(&mut self, arguments: &[String]) -> &mut Cargo {
        self.0.args(arguments);
        self
    }

    /// Runs it to its end.
    pub fn run(&mut self) -> Result<()> {
        let status = self.0.status().with_context(|| format!("cannot run {:?}", self.0))?;
        if !status.success() {
            bail!("{:?}: {status}", self.0);
        }
        Ok(())
    }
}

/// Installs a cargo tool unless it is there.
pub fn cargo_tool(name: &str, version: &str) -> Result<()> {
    if found(name) {
        return Ok(());
    }
    println!("installing {name} {version} ..");
    cargo(&["install", "--quiet", "--locked", name, "--version", version]).run()
}

/// Installs a Debian package unless its command is there. A machine that cannot loses what `what_for` says, and the
/// test in question skips itself by name.
pub fn debian_package(name: &str, command: &str, what_for: &str) {
    if found(command) {
        return;
    }
    println!("installing {name} for {what_for} ..");
    let apt = |arguments: &[&str]| {
        Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !(apt(&["update"]) && apt(&["install", "--yes", "--no-install-recommends", name])) {
        println!("could not install {name}: {what_for} will be skipped");
    }
}

fn found(command: &str) -> bool {
    let silent = || Stdio::null();
    Command::new(command).arg("--version").stdin(silent()).stdout(silent()).stderr(silent()).status().is_ok()
}
