//! The command on a server's socket, and a local directory for it.

use super::{Process, directory, leasehold};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

pub struct Shell {
    pub socket: PathBuf,
    pub local: TempDir,
}

impl Shell {
    pub fn on(socket: &Path) -> Shell {
        Shell { socket: socket.to_owned(), local: directory() }
    }

    /// A server in a process of its own, its store's directory, and the command on it.
    pub async fn with_a_server() -> (Process, TempDir, Shell) {
        let store = directory();
        let server = Process::start(store.path()).await;
        let shell = Shell::on(&server.socket);
        (server, store, shell)
    }

    /// A path in the local directory.
    pub fn at(&self, name: &str) -> PathBuf {
        self.local.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = leasehold();
        command.arg("--socket").arg(&self.socket).args(arguments).current_dir(self.local.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("a process")
    }

    /// What it prints as JSON, if it ends well.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The code it ends with, what it prints as JSON, and what it says.
    pub fn fails(&self, arguments: &[&str]) -> (i32, Value, String) {
        let Output { status, stdout, stderr } = self.run(&[&["--json"], arguments].concat());
        let json = serde_json::from_slice(&stdout).unwrap_or_default();
        (status.code().expect("it was not killed"), json, String::from_utf8(stderr).expect("UTF-8"))
    }
}
