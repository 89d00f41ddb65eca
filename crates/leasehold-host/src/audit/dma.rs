//! Processes that do DMA, and the files that they map: do the two meet?
//!
//! Where the kernel tells the address of what is registered, it is known whether it lies in a file's mapping. Elsewhere all
//! that is known is that both are there; how bad that is depends on whether the kernel lets them meet.

use super::catalogue::{self, Entry};
use super::finding::Finding;
use super::kernel::{Does, Kernel};
use super::processes::{DmaDevice, Mapping, Process, Processes};
use super::rdma::Rdma;
use serde::Serialize;

/// How many files are named, of one process.
const FILES_MAX: usize = 3;

/// A process that does DMA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DmaProcess {
    /// Which.
    pub pid: u32,
    /// Its program's name.
    pub name: String,
    /// The systemd unit that it runs in.
    pub unit: Option<String>,
    /// What it has open.
    pub devices: Vec<DmaDevice>,
    /// Its memory regions that are pinned, if the kernel tells.
    pub regions: Option<u64>,
    /// Memory that is pinned for long (`VmPin`), in bytes.
    pub pinned_bytes: u64,
    /// Memory that is locked (`VmLck`), in bytes.
    pub locked_bytes: u64,
    /// Fixed buffers of its io_urings.
    pub fixed_buffers: u64,
    /// Files that it maps shared and for writing.
    pub mapped_files: Vec<String>,
}

/// Who does DMA.
#[derive(Debug)]
pub(crate) struct Dma<'a> {
    processes: &'a Processes,
    rdma: &'a Rdma,
}

impl<'a> Dma<'a> {
    pub(crate) fn of(processes: &'a Processes, rdma: &'a Rdma) -> Dma<'a> {
        Dma { processes, rdma }
    }

    /// Whether anything was seen that does DMA, or could from one moment to the next.
    pub(crate) fn is_there(&self) -> bool {
        !self.rdma.devices.is_empty() || self.processes.all.iter().any(Process::does_dma)
    }

    /// Whether a process has devices write its memory for long.
    pub(crate) fn holds_for_long(&self, pid: u32) -> bool {
        let has_device = |process: &Process| process.pid == pid && !process.devices.is_empty();
        self.rdma.pinned_by(pid).next().is_some() || self.processes.all.iter().any(has_device)
    }

    pub(crate) fn list(&self) -> Vec<DmaProcess> {
        let does = |process: &&Process| process.does_dma() || self.holds_for_long(process.pid);
        let facts = |process: &Process| {
            let mut mapped_files: Vec<String> =
                process.written().map(|mapping| mapping.path.clone()).collect();
            mapped_files.sort();
            mapped_files.dedup();
            DmaProcess {
                pid: process.pid,
                name: process.name.clone(),
                unit: process.unit.clone(),
                devices: process.devices.iter().copied().collect(),
                regions: self.rdma.is_told.then(|| self.rdma.pinned_by(process.pid).count() as u64),
                pinned_bytes: process.pinned_kib * 1024,
                locked_bytes: process.locked_kib * 1024,
                fixed_buffers: process.buffers_count,
                mapped_files,
            }
        };
        self.processes.all.iter().filter(does).map(facts).collect()
    }

    pub(crate) fn findings(&self, kernel: &Kernel) -> Vec<Finding> {
        self.processes.all.iter().flat_map(|process| self.of_one(process, kernel)).collect()
    }

    fn of_one(&self, process: &Process, kernel: &Kernel) -> Vec<Finding> {
        let mut found: Vec<Finding> = Vec::new();
        found.extend(self.region_in_file(process));
        found.extend(buffer_in_file(process));
        let long = self.long(process);
        if found.is_empty() && process.written().next().is_some() {
            if let Some(first) = long.first() {
                let entry = match kernel.writable_pin() {
                    Does::Accepts => &catalogue::DMA_FILE_PIN,
                    Does::Refuses | Does::Unknown => first.entry,
                };
                let finding = long
                    .iter()
                    .fold(about(process, entry), |finding, pin| finding.seen(pin.evidence.clone()));
                found.push(files(finding, "maps for writing", process.written()));
            } else if let Some(file) = &process.direct {
                let finding = about(process, &catalogue::DIRECT_FILE).seen(format!("O_DIRECT: {file}"));
                found.push(files(finding, "maps for writing", process.written()));
            }
        }
        let is_deleted = |mapping: &&Mapping| mapping.is_writable && mapping.is_deleted;
        let mut deleted = process.mappings.iter().filter(is_deleted).peekable();
        let is_dma = !long.is_empty() || process.buffers_count > 0 || process.direct.is_some();
        if is_dma && deleted.peek().is_some() {
            found.push(files(about(process, &catalogue::DELETED_FILE), "maps, removed:", deleted));
        }
        found
    }

    /// A region of which the address is known, in a mapping of a file.
    fn region_in_file(&self, process: &Process) -> Option<Finding> {
        let mut hits = self.rdma.pinned_by(process.pid).filter_map(|region| {
            let address = region.address?;
            let mapping = process.mappings.iter().find(|mapping| mapping.has(address, region.bytes))?;
            Some((region, address, mapping))
        });
        let (region, address, mapping) = hits.next()?;
        let more = hits.count();
        let unit = process.unit.clone().unwrap_or_else(|| "UNIT".to_owned());
        let finding = about(process, &catalogue::MR_IN_FILE).with("unit", unit).seen(format!(
            "a region of {} bytes on {} at {address:#x} is in {}",
            region.bytes, region.device, mapping.path
        ));
        Some(if more == 0 { finding } else { finding.seen(format!("and {more} more regions")) })
    }

    /// What pins its memory for long, what is best known first.
    fn long(&self, process: &Process) -> Vec<Pin> {
        let mut pins = Vec::new();
        let regions: Vec<_> = self.rdma.pinned_by(process.pid).collect();
        let device = |device| process.devices.contains(&device);
        if let Some(region) = regions.first() {
            let bytes: u64 = regions.iter().map(|region| region.bytes).sum();
            let evidence = format!("memory regions: {} on {}, {}", regions.len(), region.device, size(bytes));
            pins.push(Pin { entry: &catalogue::RDMA_FILE, evidence });
        } else if device(DmaDevice::Rdma) && !self.rdma.is_told {
            let evidence = "has an RDMA device open".to_owned();
            pins.push(Pin { entry: &catalogue::RDMA_FILE, evidence });
        }
        if device(DmaDevice::Vfio) {
            let evidence = format!("has a VFIO device open; VmLck {}", size(process.locked_kib * 1024));
            pins.push(Pin { entry: &catalogue::VFIO_FILE, evidence });
        }
        if device(DmaDevice::Gpu) {
            pins.push(Pin { entry: &catalogue::GPU_FILE, evidence: "has a GPU open".to_owned() });
        }
        if process.pinned_kib > 0 {
            let evidence = format!("VmPin {}", size(process.pinned_kib * 1024));
            pins.push(Pin { entry: &catalogue::PINNED_FILE, evidence });
        }
        pins
    }
}

struct Pin {
    entry: &'static Entry,
    evidence: String,
}

fn buffer_in_file(process: &Process) -> Option<Finding> {
    let hit = process.buffers.iter().find_map(|(address, bytes)| {
        let mapping = process.mappings.iter().find(|mapping| mapping.has(*address, *bytes))?;
        Some(format!("a fixed buffer of {bytes} bytes at {address:#x} is in {}", mapping.path))
    });
    Some(about(process, &catalogue::URING_FILE).seen(hit?))
}

fn about(process: &Process, entry: &'static Entry) -> Finding {
    Finding::new(entry, process.name.clone()).seen(process.called()).with("pid", process.pid.to_string())
}

fn files<'a>(finding: Finding, what: &str, mappings: impl Iterator<Item = &'a Mapping>) -> Finding {
    let mut paths: Vec<&str> = mappings.map(|mapping| mapping.path.as_str()).collect();
    paths.sort_unstable();
    paths.dedup();
    let (first, rest) = paths.split_at(paths.len().min(FILES_MAX));
    let finding = first.iter().fold(finding, |finding, path| finding.seen(format!("{what} {path}")));
    if rest.is_empty() { finding } else { finding.seen(format!("and {} more files", rest.len())) }
}

/// `12 KiB`, `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for next in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    let digits = usize::from(value < 10.0 && value.fract() != 0.0);
    format!("{value:.digits$} {unit}")
}
