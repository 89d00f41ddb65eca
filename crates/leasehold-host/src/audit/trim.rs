//! Loop devices whose discards punch holes into the files below them.

use super::catalogue;
use super::finding::Finding;
use super::host::Host;
use super::lease_breakers::{Breaker, Effect};
use super::mounts::Mounts;
use super::services::Services;
use std::path::Path;

/// A loop device that discards.
#[derive(Clone, Debug)]
struct Loop {
    name: String,
    file: String,
    why: String,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loops(Vec<Loop>);

impl Loops {
    pub(crate) fn of(host: &Host, mounts: &Mounts, services: &Services) -> Loops {
        let names = host.names("/sys/block").unwrap_or_default();
        let discarding = |name: String| {
            if !name.starts_with("loop") {
                return None;
            }
            let at = |file: &str| host.text(format!("/sys/block/{name}/{file}")).ok();
            let file = at("loop/backing_file")?.trim_end().to_owned();
            let bytes: u64 = at("queue/discard_max_bytes")?.trim().parse().ok()?;
            // What is not mounted is trimmed by nobody, and neither is what is mounted read-only.
            let mount = mounts.all.iter().find(|mount| mount.source == format!("/dev/{name}"))?;
            if bytes == 0 || mount.read_only {
                return None;
            }
            let why = match mount.options.iter().any(|option| option.starts_with("discard")) {
                true => "mounted with discard",
                false if services.trims() => "fstrim is run by the clock",
                false => return None,
            };
            if !mounts.is_chosen(Path::new(&file)) {
                return None;
            }
            let why = format!("{name} is mounted on {}; {why}", mount.point.display());
            Some(Loop { name, file, why })
        };
        Loops(names.into_iter().filter_map(discarding).collect())
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        let finding = |device: &Loop| {
            Finding::new(&catalogue::TRIM_LOOP, device.file.clone())
                .seen(device.why.clone())
                .with("loop", device.name.clone())
        };
        self.0.iter().map(finding).collect()
    }

    pub(crate) fn breakers(&self) -> Vec<Breaker> {
        let breaker = |device: &Loop| {
            let how = "discards punch holes into its file";
            Breaker::new(Effect::Bypasses, format!("{} on {}", device.name, device.file), how)
        };
        self.0.iter().map(breaker).collect()
    }
}
