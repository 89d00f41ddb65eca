//! The RDMA devices, whether they can fault, and the memory regions that live on them.

use super::catalogue;
use super::finding::Finding;
use super::host::Host;
use super::kernel::{Kernel, Version};
use super::netlink::{Owner, Region, Regions, Unseen};
use serde::Serialize;

const CLASS: &str = "/sys/class/infiniband";

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `mlx5_0`.
    pub name: String,
    /// The kernel's driver, if sysfs tells.
    pub driver: Option<String>,
    /// Whether it can fault pages in, if the driver tells.
    pub on_demand_paging: Option<bool>,
    /// Live memory regions on it, if the kernel tells.
    pub regions: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
}

/// All that is known about RDMA.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rdma {
    pub(crate) devices: Vec<Device>,
    regions: Vec<Region>,
    /// Whether the kernel told of regions.
    pub(crate) is_told: bool,
}

impl Rdma {
    pub(crate) fn of(host: &Host, kernel: &Kernel, unseen: &mut Vec<String>) -> Rdma {
        let names = host.names(CLASS).unwrap_or_default();
        let told = if names.is_empty() { Ok(Regions::default()) } else { host.memory_regions() };
        let (regions, is_told) = match told {
            Ok(told) => (told.regions, true),
            Err(error) => {
                let remedy = match error {
                    Unseen::Refused(_) => "; `rdma resource show mr` as root shows them",
                    _ => "",
                };
                unseen.push(format!("memory regions of RDMA devices: {error}{remedy}"));
                (Vec::new(), false)
            }
        };
        let hidden = regions.iter().filter(|region| region.owner == Owner::Hidden).count();
        if hidden > 0 {
            unseen.push(format!("owners of {hidden} memory regions: they are in another PID namespace"));
        }
        let device = |name: String| {
            let driver = driver(host, &name);
            let of_device = || regions.iter().filter(|region| region.device == name);
            let on_demand_paging = on_demand_paging(driver.as_deref(), kernel.version);
            let count = is_told.then(|| of_device().count() as u64);
            let bytes = is_told.then(|| of_device().map(|region| region.bytes).sum());
            Device { driver, on_demand_paging, regions: count, bytes, name }
        };
        let devices = names.into_iter().map(device).collect();
        Rdma { devices, regions, is_told }
    }

    /// The regions of a process that pin its memory.
    pub(crate) fn pinned_by(&self, pid: u32) -> impl Iterator<Item = &Region> {
        self.regions.iter().filter(move |region| region.owner == Owner::Process(pid) && !region.is_on_demand)
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        let cannot = self.devices.iter().filter(|device| device.on_demand_paging == Some(false));
        let finding = |device: &Device| {
            let driver = device.driver.as_deref().unwrap_or("?");
            Finding::new(&catalogue::RDMA_NO_ODP, device.name.clone())
                .seen(format!("{}: driver {driver}", device.name))
                .with("device", device.name.clone())
        };
        cannot.map(finding).collect()
    }
}

fn driver(host: &Host, device: &str) -> Option<String> {
    if let Ok(target) = host.link(format!("{CLASS}/{device}/device/driver")) {
        return target.rsplit('/').next().map(str::to_owned);
    }
    // soft-RoCE and soft-iWARP have no device below them; soft-RoCE says on which network interface it is.
    host.has(format!("{CLASS}/{device}/parent")).then(|| "rdma_rxe".to_owned())
}

/// mlx5 has it; soft-RoCE had none on 6.1 and 6.12, where it was measured. Nothing in sysfs tells of others.
fn on_demand_paging(driver: Option<&str>, version: Option<Version>) -> Option<bool> {
    match driver? {
        "mlx5_core" | "mlx5_ib" => Some(true),
        "rdma_rxe" if version.is_some_and(|version| version <= Version(6, 12)) => Some(false),
        _ => None,
    }
}
