//! What the kernel offers to whoever wants to guard files: fanotify, FUSE, leases.

use super::catalogue;
use super::finding::Finding;
use super::host::Host;
use flate2::read::GzDecoder;
use serde::Serialize;
use std::io::Read as _;

/// The most that is unpacked of a configuration.
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// What there is; `None` where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// fanotify as such.
    pub fanotify: Option<bool>,
    /// Permission events: an open can be delayed or denied.
    pub fanotify_permission: Option<bool>,
    /// FUSE filesystems can be mounted.
    pub fuse: Option<bool>,
    /// io_uring is there, and on.
    pub io_uring: Option<bool>,
}

impl Capabilities {
    pub(crate) fn of(host: &Host, release: &str, unseen: &mut Vec<String>) -> Capabilities {
        let config = config(host, release);
        if config.is_none() {
            unseen.push(
                "the kernel's configuration: neither /proc/config.gz nor one in /boot is there".to_owned(),
            );
        }
        let has = |name: &str| {
            let config = config.as_ref()?;
            Some(
                ["y", "m"]
                    .iter()
                    .any(|value| config.lines().any(|line| line == format!("CONFIG_{name}={value}"))),
            )
        };
        let filesystems = host.text("/proc/filesystems").ok();
        let fuse_is_loaded = filesystems
            .is_some_and(|text| text.lines().any(|line| line.split_whitespace().last() == Some("fuse")));
        let ring_is_off =
            host.text("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() == "2");
        Capabilities {
            fanotify: if host.has("/proc/sys/fs/fanotify") { Some(true) } else { has("FANOTIFY") },
            fanotify_permission: has("FANOTIFY_ACCESS_PERMISSIONS"),
            fuse: if fuse_is_loaded { Some(true) } else { has("FUSE_FS") },
            io_uring: if ring_is_off { Some(false) } else { has("IO_URING") },
        }
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        if self.fanotify_permission != Some(false) {
            return Vec::new();
        }
        let finding = Finding::new(&catalogue::FANOTIFY_NONE, "kernel configuration");
        vec![finding.seen("CONFIG_FANOTIFY_ACCESS_PERMISSIONS is not set")]
    }
}

fn config(host: &Host, release: &str) -> Option<String> {
    let places = [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")];
    if let Some(text) = places.iter().find_map(|path| host.text(path).ok()) {
        return Some(text);
    }
    let packed = host.bytes("/proc/config.gz").ok()?;
    let mut text = String::new();
    GzDecoder::new(packed.as_slice()).take(CONFIG_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}
