//! What processes do that matters to DMA into files: what they pin, which devices they hold, which files they map.
//!
//! /proc/PID/maps can wait for a process that is stuck, so a thread reads, and one that makes no progress is left behind
//! with the process that it waits for. All of it has a time of its own; what was not read in it is counted.

use super::host::Host;
use super::mounts::{Device, Mounts};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// For all processes together.
const TIME: Duration = Duration::from_secs(5);
/// For one of them.
const TIME_OF_ONE: Duration = Duration::from_secs(1);
/// Descriptors whose flags are read, of one process.
const FLAGS_MAX: usize = 1024;

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_PTRACE: u32 = 19;

/// A device that does DMA into a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DmaDevice {
    /// /dev/infiniband/uverbsN.
    Rdma,
    /// /dev/vfio/N, iommufd.
    Vfio,
    /// /dev/nvidiaN, /dev/kfd.
    Gpu,
}

/// A shared mapping of a file that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) is_writable: bool,
    pub(crate) is_deleted: bool,
    pub(crate) path: String,
}

impl Mapping {
    pub(crate) fn has(&self, address: u64, bytes: u64) -> bool {
        address < self.end && self.start < address.saturating_add(bytes)
    }
}

/// A limit of /proc/PID/limits, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    None,
    Bytes(u64),
}

/// A process, as far as it matters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// The systemd unit that it runs in.
    pub(crate) unit: Option<String>,
    pub(crate) pinned_kib: u64,
    pub(crate) locked_kib: u64,
    /// Whether no limit of locked memory holds for it.
    pub(crate) may_lock_all: bool,
    pub(crate) memlock: Option<Limit>,
    pub(crate) devices: BTreeSet<DmaDevice>,
    /// Fixed buffers of its io_urings: address and length, where the kernel tells.
    pub(crate) buffers: Vec<(u64, u64)>,
    pub(crate) buffers_count: u64,
    /// A file that it has open for direct I/O.
    pub(crate) direct: Option<String>,
    pub(crate) mappings: Vec<Mapping>,
}

impl Process {
    pub(crate) fn called(&self) -> String {
        format!("{} [{}]", self.name, self.pid)
    }

    /// The files that it can write through a mapping, and that still have a name.
    pub(crate) fn written(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().filter(|mapping| mapping.is_writable && !mapping.is_deleted)
    }

    pub(crate) fn does_dma(&self) -> bool {
        !self.devices.is_empty() || self.pinned_kib > 0 || self.buffers_count > 0
    }
}

/// What of a process could not be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hidden {
    descriptors: bool,
    mappings: bool,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processes {
    /// Those that do DMA, map files shared and writable, or hold anything that matters.
    pub(crate) all: Vec<Process>,
    /// How many were there, without threads of the kernel.
    pub(crate) count: usize,
    /// Of how many something could not be seen.
    pub(crate) hidden: usize,
}

impl Processes {
    pub(crate) fn of(host: &Arc<Host>, mounts: &Arc<Mounts>, unseen: &mut Vec<String>) -> Processes {
        let pids: Vec<u32> = match host.names("/proc") {
            Ok(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
            Err(error) => {
                unseen.push(format!("processes: /proc: {error}"));
                return Processes::default();
            }
        };
        let mut seen = Processes::default();
        let read = read_all(host, mounts, &pids);
        for (process, hidden) in read.found {
            seen.count += 1;
            seen.hidden += usize::from(hidden.descriptors || hidden.mappings);
            seen.all.push(process);
        }
        seen.all.sort_by_key(|process| process.pid);
        if seen.hidden > 0 {
            let remedy = if may_see_all(host) { "" } else { "; run it as root" };
            unseen.push(format!(
                "descriptors or mappings of {} of {} processes: not permitted{remedy}",
                seen.hidden, seen.count
            ));
        }
        for pid in &read.stuck {
            unseen.push(format!("process {pid}: its memory did not answer in {} s", TIME_OF_ONE.as_secs()));
        }
        if read.left > 0 {
            unseen.push(format!("{} processes: not read in {} s", read.left, TIME.as_secs()));
        }
        seen
    }
}

/// Whether whoever looks has CAP_SYS_PTRACE; some processes are hidden from those, too.
fn may_see_all(host: &Host) -> bool {
    let status = host.text("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    capabilities & 1 << CAP_SYS_PTRACE != 0
}

#[derive(Debug, Default)]
struct Read {
    found: Vec<(Process, Hidden)>,
    stuck: Vec<u32>,
    left: usize,
}

/// Reads them one after the other, on a thread that is replaced when it gets stuck.
fn read_all(host: &Arc<Host>, mounts: &Arc<Mounts>, pids: &[u32]) -> Read {
    let end = Instant::now() + TIME;
    let pids: Arc<[u32]> = pids.into();
    let (host, mounts) = (Arc::clone(host), Arc::clone(mounts));
    each_bounded(&pids, end, TIME_OF_ONE, move |pid| one(&host, &mounts, pid))
}

fn each_bounded(
    pids: &Arc<[u32]>,
    end: Instant,
    time_of_one: Duration,
    read: impl Fn(u32) -> Option<(Process, Hidden)> + Send + Sync + 'static,
) -> Read {
    let mut result = Read::default();
    let read = Arc::new(read);
    let next = Arc::new(AtomicUsize::new(0));
    while next.load(Ordering::Relaxed) < pids.len() {
        let (sender, receiver) = mpsc::sync_channel(64);
        let worker = {
            let (pids, read, next) = (Arc::clone(pids), Arc::clone(&read), Arc::clone(&next));
            move || {
                let mut index = next.load(Ordering::Relaxed);
                while let Some(pid) = pids.get(index) {
                    let is_sent = sender.send((*pid, read(*pid))).is_ok();
                    // Whoever was given up on must not go on beside the one that took its place.
                    if !is_sent || !advance(&next, index) {
                        return;
                    }
                    index += 1;
                }
            }
        };
        if thread::Builder::new().name("audit-processes".to_owned()).spawn(worker).is_err() {
            break;
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(time_of_one.min(left)) {
                Ok((_, item)) => result.found.extend(item),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let index = next.load(Ordering::Relaxed);
                    if Instant::now() >= end {
                        result.left = pids.len() - index;
                        return result;
                    }
                    let Some(pid) = pids.get(index).filter(|_| advance(&next, index)) else { continue };
                    let late: Vec<_> = receiver.try_iter().collect();
                    if late.iter().all(|(other, _)| other != pid) {
                        result.stuck.push(*pid);
                    }
                    result.found.extend(late.into_iter().filter_map(|(_, item)| item));
                    break;
                }
            }
        }
    }
    result.left = pids.len() - next.load(Ordering::Relaxed);
    result
}

/// From one to the next, unless somebody else has done that.
fn advance(next: &AtomicUsize, index: usize) -> bool {
    next.compare_exchange(index, index + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// What is known of one; `None` of a thread of the kernel, and of one that is gone.
fn one(host: &Host, mounts: &Mounts, pid: u32) -> Option<(Process, Hidden)> {
    let at = |name: &str| format!("/proc/{pid}/{name}");
    let status = host.text(at("status")).ok()?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    // A thread of the kernel has no memory of its own.
    field("VmSize")?;
    let kib = |name| field(name).and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0);
    let capabilities = field("CapEff").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    let mut process = Process {
        pid,
        name: field("Name").unwrap_or("?").to_owned(),
        pinned_kib: kib("VmPin"),
        locked_kib: kib("VmLck"),
        may_lock_all: capabilities & 1 << CAP_IPC_LOCK != 0,
        ..Process::default()
    };
    let mut hidden = Hidden::default();
    let descriptors = match links(host, pid) {
        Ok(descriptors) => descriptors,
        Err(error) => {
            hidden.descriptors = error.kind() == io::ErrorKind::PermissionDenied;
            Vec::new()
        }
    };
    for (number, target) in &descriptors {
        process.devices.extend(device(target));
        if target == "anon_inode:[io_uring]" {
            process.take_ring(&host.text(at(&format!("fdinfo/{number}"))).unwrap_or_default());
        }
    }
    match host.text(at("maps")) {
        Ok(maps) => process.mappings = mappings(&maps, mounts),
        Err(error) => hidden.mappings = error.kind() == io::ErrorKind::PermissionDenied,
    }
    if !process.mappings.is_empty() {
        process.direct = direct(host, pid, &descriptors);
    }
    if process.does_dma() {
        process.memlock = host.text(at("limits")).ok().and_then(|text| memlock(&text));
        process.unit = host.text(at("cgroup")).ok().and_then(|text| unit(&text));
    }
    Some((process, hidden))
}

/// Each descriptor's number, and what it is of.
fn links(host: &Host, pid: u32) -> io::Result<Vec<(String, String)>> {
    let directory = format!("/proc/{pid}/fd");
    let names = host.names(&directory)?;
    let link = |name: String| {
        let target = host.link(format!("{directory}/{name}")).ok()?;
        Some((name, target))
    };
    Ok(names.into_iter().filter_map(link).collect())
}

fn device(target: &str) -> Option<DmaDevice> {
    let numbered = |prefix: &str| {
        target.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    if numbered("/dev/infiniband/uverbs") {
        return Some(DmaDevice::Rdma);
    }
    if numbered("/dev/vfio/")
        || target.starts_with("/dev/vfio/devices/")
        || target == "anon_inode:[vfio-device]"
    {
        return Some(DmaDevice::Vfio);
    }
    (numbered("/dev/nvidia") || target == "/dev/kfd").then_some(DmaDevice::Gpu)
}

impl Process {
    /// `UserBufs:\t2`, and a line for each, `    0: 0x7f0000000000/4096`.
    fn take_ring(&mut self, fdinfo: &str) {
        let mut lines = fdinfo.lines().skip_while(|line| !line.starts_with("UserBufs:"));
        let count = lines.next().and_then(|line| line.split_once(':')?.1.trim().parse::<u64>().ok());
        self.buffers_count += count.unwrap_or(0);
        let buffers = lines.map_while(|line| {
            let (number, buffer) = line.trim().split_once(": ")?;
            number.parse::<u32>().ok()?;
            let (address, bytes) = buffer.split_once('/')?;
            Some((u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?, bytes.trim().parse().ok()?))
        });
        self.buffers.extend(buffers);
    }
}

/// The shared mappings of files that stay.
fn mappings(maps: &str, mounts: &Mounts) -> Vec<Mapping> {
    let mapping = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let _offset = fields.next()?;
        let device = Device::parse(fields.next()?, 16)?;
        let _inode = fields.next()?;
        let path = fields.next()?.trim_start();
        if !permissions.ends_with('s') || !path.starts_with('/') || !mounts.is_storage(device) {
            return None;
        }
        let (path, is_deleted) = match path.strip_suffix(" (deleted)") {
            Some(path) => (path, true),
            None => (path, false),
        };
        Some(Mapping {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            is_writable: permissions.contains('w'),
            is_deleted,
            path: path.to_owned(),
        })
    };
    maps.lines().filter_map(mapping).collect()
}

/// A file that is open for direct I/O.
fn direct(host: &Host, pid: u32, descriptors: &[(String, String)]) -> Option<String> {
    let files = descriptors.iter().filter(|(_, target)| target.starts_with('/')).take(FLAGS_MAX);
    let mut is_direct = files.filter(|(number, _)| {
        let info = host.text(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
        flags & rustix::fs::OFlags::DIRECT.bits() != 0
    });
    is_direct.next().map(|(_, target)| target.clone())
}

fn memlock(limits: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(Limit::None),
        number => number.parse().ok().map(Limit::Bytes),
    }
}

/// The unit in `0::/system.slice/trainer.service`, or in a line of an older hierarchy.
fn unit(cgroup: &str) -> Option<String> {
    let names = cgroup.lines().flat_map(|line| line.rsplit('/').next());
    names.into_iter().find(|name| name.ends_with(".service")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn devices_that_do_dma_are_known_by_their_names() {
        for (target, expected) in [
            ("/dev/infiniband/uverbs0", Some(DmaDevice::Rdma)),
            ("/dev/infiniband/rdma_cm", None),
            ("/dev/vfio/vfio", None),
            ("/dev/vfio/42", Some(DmaDevice::Vfio)),
            ("/dev/vfio/devices/vfio0", Some(DmaDevice::Vfio)),
            ("/dev/nvidia0", Some(DmaDevice::Gpu)),
            ("/dev/nvidiactl", None),
            ("/dev/kfd", Some(DmaDevice::Gpu)),
            ("/dev/null", None),
        ] {
            assert_eq!(device(target), expected, "{target}");
        }
    }

    #[test]
    fn fixed_buffers_are_counted_and_their_places_are_read() {
        let mut process = Process::default();
        process.take_ring("pos:\t0\nSqMask:\t0x7\nUserFiles:\t0\nUserBufs:\t2\n    0: 0x7f00/4096\n    1: 0x9000/8192\nPollList:\n");
        assert_eq!(process.buffers, [(0x7f00, 4096), (0x9000, 8192)]);
        process.take_ring("UserBufs:\t3\n");
        assert_eq!((process.buffers_count, process.buffers.len()), (5, 2));
        process.take_ring("pos:\t0\n");
        assert_eq!(process.buffers_count, 5);
    }

    #[test]
    fn limits_and_units_are_read() {
        let limits =
            "Limit  Soft  Hard  Units\nMax locked memory         8388608              8388608    bytes\n";
        assert_eq!(memlock(limits), Some(Limit::Bytes(8 << 20)));
        assert_eq!(memlock("Max locked memory  unlimited  unlimited bytes"), Some(Limit::None));
        assert_eq!(memlock(""), None);
        assert_eq!(unit("0::/system.slice/trainer.service\n").as_deref(), Some("trainer.service"));
        assert_eq!(unit("0::/user.slice/session-1.scope\n"), None);
    }

    #[test]
    fn a_process_that_does_not_answer_is_named_and_holds_up_nobody() {
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let read = move |pid| {
            if pid == 3 {
                // For as long as the test holds on to the other end.
                let _ = held.lock().unwrap().recv();
            }
            Some((Process { pid, ..Process::default() }, Hidden::default()))
        };
        let end = Instant::now() + Duration::from_secs(60);
        let result = each_bounded(&Arc::from([1, 2, 3, 4, 5]), end, Duration::from_millis(200), read);
        let pids: Vec<u32> = result.found.iter().map(|(process, _)| process.pid).collect();
        assert_eq!((pids, result.stuck, result.left), (vec![1, 2, 4, 5], vec![3], 0));
        drop(release);
    }

    #[test]
    fn what_is_not_read_in_time_is_counted() {
        let result = each_bounded(&Arc::from([1, 2, 3]), Instant::now(), TIME_OF_ONE, |_| {
            thread::park();
            None
        });
        assert_eq!((result.found.len(), result.left), (0, 3));
    }
}
