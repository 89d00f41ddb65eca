//! The machine that figures were measured on.

use anyhow::Context as _;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// `f_type` of tmpfs, from linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What a reader must know to compare figures with their own.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    directory: String,
    filesystem: String,
    device: String,
    load: String,
    governor: Option<String>,
    huge_pages_free: u64,
}

impl Machine {
    pub(super) fn look(directory: &Path) -> anyhow::Result<Machine> {
        let (filesystem, device) = mount_of(directory)?;
        let uname = rustix::system::uname();
        Ok(Machine {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib(field("/proc/meminfo", "MemTotal")) << 10,
            kernel: uname.release().to_string_lossy().into_owned(),
            directory: directory.display().to_string(),
            filesystem,
            device,
            load: load(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            huge_pages_free: kib(field("/proc/meminfo", "HugePages_Free")),
        })
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let gib = self.memory_bytes as f64 / (1u64 << 30) as f64;
        let governor = self.governor.as_deref().unwrap_or("not known");
        vec![
            format!("{} x {}, {gib:.1} GiB, Linux {}", self.cores, self.cpu, self.kernel),
            format!("{} on {}, {} free huge pages", self.filesystem, self.device, self.huge_pages_free),
            format!("load average {}, frequency governor {governor}", self.load),
        ]
    }
}

/// The load average now: how much else the machine does.
pub(super) fn load() -> String {
    let text = read("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Whether what is written there ever reaches a disk.
pub(super) fn is_memory(directory: &Path) -> anyhow::Result<bool> {
    let found = rustix::fs::statfs(directory)
        .with_context(|| format!("cannot look at the filesystem of {}", directory.display()))?;
    Ok(u64::try_from(found.f_type) == Ok(TMPFS_MAGIC))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The value behind `name:` in a file of such lines.
pub(super) fn field(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// The number of `123 kB`.
pub(super) fn kib(field: Option<String>) -> u64 {
    field.and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// The type and the device of the filesystem that a directory is on: the longest mount point above it.
fn mount_of(directory: &Path) -> anyhow::Result<(String, String)> {
    let directory = fs::canonicalize(directory)
        .with_context(|| format!("cannot find {}; name another with --directory", directory.display()))?;
    let mounts = read("/proc/self/mounts").context("/proc is not mounted; mount it")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, Path::new(words.next()?), words.next()?))
    });
    let found = mounts
        .filter(|(_, point, _)| directory.starts_with(point))
        .max_by_key(|(_, point, _)| point.as_os_str().len());
    let (device, _, filesystem) = found.context("no filesystem is mounted above the directory")?;
    Ok((filesystem.to_owned(), device.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_memory_and_a_filesystem_for_the_directory() {
        let machine = Machine::look(Path::new(".")).unwrap();
        assert!(machine.memory_bytes > 1 << 20 && !machine.kernel.is_empty());
        assert!(!machine.filesystem.is_empty() && machine.lines().iter().all(|line| !line.is_empty()));
    }
}
