//! How much memory services may pin, where they do RDMA.

use super::catalogue;
use super::dma::size;
use super::finding::Finding;
use super::processes::{DmaDevice, Limit, Process, Processes};
use super::units::{Unit, Units};

/// From this part of the limit on, in percent.
const NEAR_PERCENT: u64 = 90;

pub(crate) fn findings(units: &Units, processes: &Processes) -> Vec<Finding> {
    let mut found: Vec<Finding> = units.enabled.iter().filter_map(of_unit).collect();
    for process in &processes.all {
        found.extend(near(process));
        let low = of_process(process).filter(|low| {
            found.iter().all(|other| (other.entry.id, &other.subject) != (low.entry.id, &low.subject))
        });
        found.extend(low);
    }
    found
}

/// A unit that names RDMA devices, does not run as root, and may not lock what it wants.
fn of_unit(unit: &Unit) -> Option<Finding> {
    let names_rdma = unit.all("DeviceAllow").any(|device| {
        device.contains("/dev/infiniband") || device.contains("char-infiniband") || device.contains("rdma")
    }) || unit
        .all("SupplementaryGroups")
        .any(|groups| groups.split_whitespace().any(|group| group == "rdma"));
    let user = unit.setting("User").filter(|user| !matches!(*user, "root" | "0"))?;
    if unit.all("AmbientCapabilities").any(|capabilities| capabilities.contains("CAP_IPC_LOCK")) {
        return None;
    }
    let limit = match unit.setting("LimitMEMLOCK") {
        Some("infinity") => return None,
        Some(limit) => format!("LimitMEMLOCK={limit}"),
        None => "no LimitMEMLOCK=".to_owned(),
    };
    names_rdma.then(|| {
        Finding::new(&catalogue::LIMIT_MEMLOCK, unit.name.clone())
            .seen(format!("{}: names RDMA devices, runs as {user}, has {limit}", unit.name))
            .with("unit", unit.name.clone())
    })
}

fn finite(process: &Process) -> Option<u64> {
    match process.memlock {
        Some(Limit::Bytes(bytes)) if !process.may_lock_all => Some(bytes),
        _ => None,
    }
}

fn of_process(process: &Process) -> Option<Finding> {
    let limit = finite(process).filter(|_| process.devices.contains(&DmaDevice::Rdma))?;
    let subject = process.unit.clone().unwrap_or_else(|| process.name.clone());
    let finding = Finding::new(&catalogue::LIMIT_MEMLOCK, subject).seen(format!(
        "{}: has RDMA devices open, may lock {}",
        process.called(),
        size(limit)
    ));
    Some(match &process.unit {
        Some(unit) => finding.with("unit", unit.clone()),
        None => finding.instead(format!("prlimit --pid {} --memlock=unlimited", process.pid)),
    })
}

fn near(process: &Process) -> Option<Finding> {
    let limit = finite(process)?;
    let used = (process.pinned_kib + process.locked_kib) * 1024;
    (used > 0 && used >= limit / 100 * NEAR_PERCENT).then(|| {
        Finding::new(&catalogue::LIMIT_MEMLOCK_NEAR, process.name.clone())
            .seen(format!("{}: has pinned {} of {}", process.called(), size(used), size(limit)))
            .with("pid", process.pid.to_string())
    })
}
