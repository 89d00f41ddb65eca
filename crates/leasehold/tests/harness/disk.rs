//! Filesystems to try things on, on loop devices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A filesystem of its own, on a loop device. Unmounted when dropped, and the device goes with it.
pub struct Disk {
    pub at: PathBuf,
    _directory: TempDir,
}

impl Disk {
    /// `None`, and a word to the reader, where that cannot be had.
    pub fn make(test: &str, filesystem: &str) -> Option<Disk> {
        let skip = |why: &str| eprintln!("SKIPPED {test} on {filesystem}: {why}");
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            skip("needs root and loop devices");
            return None;
        }
        let directory = TempDir::new().expect("a directory");
        let (image, at) = (directory.path().join("image"), directory.path().join("mount"));
        fs::create_dir(&at).expect("a directory of ours");
        fs::File::create(&image).and_then(|file| file.set_len(1 << 30)).expect("a sparse file");
        let options: &[&str] = match filesystem {
            "ext4" => &["-F", "-q"],
            "xfs" => &["-f", "-q", "-m", "reflink=1"],
            "btrfs" => &["-f", "-q", "-m", "single", "-d", "single"],
            other => panic!("no options for mkfs.{other}"),
        };
        if let Err(why) = run(Command::new(format!("mkfs.{filesystem}")).args(options).arg(&image)) {
            skip(&why);
            return None;
        }
        let device =
            match run(Command::new("losetup").args(["--direct-io=on", "--find", "--show"]).arg(&image)) {
                Ok(device) => device.trim().to_owned(),
                Err(why) => {
                    skip(&why);
                    return None;
                }
            };
        let mounted = run(Command::new("mount").args(["-t", filesystem, &device]).arg(&at));
        // Now it is detached with its last user, whatever happens to us.
        run(Command::new("losetup").args(["--detach", &device])).expect("a loop device of ours");
        if let Err(why) = mounted {
            skip(&why);
            return None;
        }
        Some(Disk { at, _directory: directory })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(why) = run(Command::new("umount").arg(&self.at)) {
            eprintln!("cannot unmount {:?}: {why}", self.at);
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.at));
        }
    }
}

/// What it prints, or why it failed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
