//! `cargo xtask lab --only hazards`: what kernels do to files that an RDMA device writes to, and Leasehold's store in the
//! same place.
//!
//! In the guest, `leasehold probe --compare` goes through each filesystem with soft-RoCE. What it finds is held against
//! what is known of the kernel ([`expected`]); the report of all kernels is a page of the docs.

mod expected;
pub mod report;

use super::crash::{self, Crash};
use super::{Kernel, boot, built, initramfs, libraries, output, soft_roce_and, unpack};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the guest loads, with what these need.
const MODULES: [&str; 14] = [
    "crc32c_generic",
    "crc32_generic",
    "dummy",
    "rdma_rxe",
    "ib_uverbs",
    "rdma_ucm",
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "xfs",
    "btrfs",
    "fuse",
    "nd_e820",
    "nd_pmem",
];

/// What makes filesystems, with the libraries that Debian's build is linked to.
const TOOLS: [&str; 14] = [
    "btrfs-progs",
    "e2fsprogs",
    "libblkid1",
    "libcom-err2",
    "libdevmapper1.02.1",
    "libext2fs2",
    "libinih1",
    "liblzo2-2",
    "libss2",
    "libudev1",
    "liburcu8",
    "libuuid1",
    "libzstd1",
    "xfsprogs",
];

/// The longest that a guest may run, in seconds: on a busy machine every filesystem takes minutes.
const GUEST_MAX_S: &str = "3600";

/// How much of the guest's memory is persistent for it, in MiB.
const PERSISTENT_MIB: u64 = 256;

/// The filesystems that are tried; the last is in memory that the guest takes for persistent.
pub const FILESYSTEMS: [&str; 5] = ["ext4", "xfs", "btrfs", "tmpfs", "ext4-dax"];

/// What the probe found on one filesystem of one kernel.
pub struct Found {
    pub kernel: String,
    pub filesystem: String,
    /// As `leasehold probe --json` has them.
    pub rows: Vec<Value>,
}

/// Runs it in these kernels, on these filesystems. What is known of both is held against it.
pub fn run(lab: &Path, root: &Path, kernels: &[Kernel], filesystems: &[&str]) -> Result<()> {
    if let Some(unknown) = filesystems.iter().find(|name| !FILESYSTEMS.contains(name)) {
        bail!("no filesystem {unknown:?}; there are {}", FILESYSTEMS.join(", "));
    }
    let mut found = Vec::new();
    for kernel in kernels {
        let (file, mut devices) = prepare(lab, root, kernel, include_str!("hazards/probe.sh"))?;
        let serial = lab.join("results.txt");
        devices.extend(["-serial".into(), format!("file:{}", serial.display()).into()]);
        println!("{}: the probe goes through {} ..", kernel.release, filesystems.join(", "));
        let words = format!("memmap={PERSISTENT_MIB}M!1G compare probe={}", filesystems.join(","));
        let console = boot(root, kernel, &file, GUEST_MAX_S, &words, &devices)?;
        let log = lab.join(format!("console-{}.txt", kernel.release));
        std::fs::write(&log, console)?;
        let of_kernel = parse(&std::fs::read_to_string(&serial)?)
            .with_context(|| format!("{}; the guest's console is in {}", kernel.release, log.display()))?;
        for found in &of_kernel {
            std::fs::write(document(lab, kernel, &found.filesystem), serde_json::to_vec(&found.rows)?)?;
        }
        found.extend(of_kernel);
    }
    report::print(&found);
    as_known(&found)
}

/// Writes the page in the docs by what was found last, on each filesystem of these kernels.
pub fn report(lab: &Path, kernels: &[Kernel]) -> Result<()> {
    let mut found = Vec::new();
    for kernel in kernels {
        for filesystem in FILESYSTEMS {
            let rows = std::fs::read(document(lab, kernel, filesystem)).with_context(|| {
                format!(
                    "{filesystem} was not tried on {}; run `cargo xtask lab --only hazards`",
                    kernel.release
                )
            })?;
            found.push(Found {
                kernel: kernel.release.clone(),
                filesystem: filesystem.to_owned(),
                rows: serde_json::from_slice(&rows)?,
            });
        }
    }
    as_known(&found)?;
    let mut crashes: Vec<Crash> = Vec::new();
    for kernel in kernels {
        let of_kernel = std::fs::read(crash::document(lab, kernel)).with_context(|| {
            format!("{} was not crashed; run `cargo xtask lab --only crash`", kernel.release)
        })?;
        crashes.extend(serde_json::from_slice::<Vec<Crash>>(&of_kernel)?);
    }
    report::write(&found, &crashes, &built(lab, &["--package", "leasehold"], "leasehold")?)
}

/// What is not as known is an error.
fn as_known(found: &[Found]) -> Result<()> {
    let wrong: Vec<String> = found.iter().flat_map(expected::differences).collect();
    ensure!(wrong.is_empty(), "not as known of these kernels:\n{}", wrong.join("\n"));
    Ok(())
}

/// Where the rows of one filesystem are kept.
fn document(lab: &Path, kernel: &Kernel, filesystem: &str) -> PathBuf {
    lab.join(format!("hazards-{}-{filesystem}.json", kernel.release))
}

/// Takes the guest's lines apart: what a filesystem's probe printed stands between two of them.
fn parse(said: &str) -> Result<Vec<Found>> {
    let (mut found, mut name, mut document) = (Vec::new(), None, String::new());
    let mut kernel = None;
    for line in said.lines().map(str::trim_end) {
        match (line.split_once(' '), &name) {
            (Some(("FAILED", why)), _) => bail!("the guest: {why}"),
            (Some(("NOT-MOUNTED", why)), _) => bail!("cannot mount {why}"),
            (Some(("BEGIN", rest)), _) => {
                name = rest.split(' ').next().map(str::to_owned);
                document.clear();
            }
            (Some(("END", how)), Some(filesystem)) => {
                let report: Value = serde_json::from_str(&document)
                    .with_context(|| format!("{filesystem}: no report: {how}: {document}"))?;
                ensure!(report["complete"] == true, "{filesystem}: the probe did not end: {how}");
                let rows = report["hazards"].as_array().cloned().unwrap_or_default();
                found.push(Found { kernel: String::new(), filesystem: filesystem.clone(), rows });
                name = None;
            }
            (Some(("DONE", rest)), _) => kernel = rest.split(' ').next().map(str::to_owned),
            (_, Some(_)) => document += line,
            _ => {}
        }
    }
    let kernel = kernel.context("the guest ended before its last line")?;
    for of_kernel in &mut found {
        of_kernel.kernel.clone_from(&kernel);
    }
    Ok(found)
}

/// What a guest runs that has soft-RoCE and filesystems: `after` follows what brings these up. And its fresh disks.
pub fn prepare(lab: &Path, root: &Path, kernel: &Kernel, after: &str) -> Result<(PathBuf, Vec<OsString>)> {
    let tools = lab.join("mkfs");
    unpack(lab, &TOOLS, &tools)?;
    let ours = built(lab, &["--package", "leasehold"], "leasehold")?;
    // What goes into the persistent memory: the guest has no mkfs.
    let persistent = lab.join("ext4-dax.img");
    make(&persistent, PERSISTENT_MIB, "mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096"], root, &tools)?;
    let file = lab.join(format!("initramfs-disks-{}.gz", kernel.release));
    initramfs(root, kernel, &file, &soft_roce_and(&MODULES, after), &MODULES)?;
    // The kernel unpacks archives that follow one another.
    let mut shell = Command::new("sh");
    shell.args(["-euc", include_str!("hazards/initramfs.sh"), "sh"]);
    shell.args([root, &file, &ours, &persistent]);
    output(shell.env("LD_LIBRARY_PATH", libraries(root)))?;
    Ok((file, disks(lab, root, &tools)?))
}

/// Fresh disks, each with its filesystem, as QEMU is told of them.
fn disks(lab: &Path, root: &Path, tools: &Path) -> Result<Vec<OsString>> {
    let mut arguments: Vec<OsString> = Vec::new();
    for (number, (name, program, options)) in [
        ("ext4", "mke2fs", &["-q", "-F", "-t", "ext4"][..]),
        ("xfs", "mkfs.xfs", &["-q", "-f", "-m", "reflink=1"]),
        ("btrfs", "mkfs.btrfs", &["-q", "-f"]),
    ]
    .into_iter()
    .enumerate()
    {
        let image = lab.join(format!("{name}.img"));
        make(&image, 1024, program, options, root, tools)?;
        let drive = format!("file={},format=raw,if=none,id=disk{number},cache=unsafe", image.display());
        arguments.extend(["-drive".into(), drive.into()]);
        arguments.extend(["-device".into(), format!("virtio-blk-pci,drive=disk{number}").into()]);
    }
    Ok(arguments)
}

/// A filesystem in a sparse file of so many MiB, with nothing of an earlier run in it.
fn make(image: &Path, mib: u64, program: &str, options: &[&str], root: &Path, tools: &Path) -> Result<()> {
    File::create(image)?.set_len(mib << 20)?;
    let found = ["sbin", "usr/sbin", "bin"].map(|folder| tools.join(folder).join(program));
    let program = found.iter().find(|path| path.exists()).with_context(|| format!("no {program}"))?;
    let path = format!("{}:{}", libraries(tools), libraries(root));
    output(Command::new(program).args(options).arg(image).env("LD_LIBRARY_PATH", path))?;
    Ok(())
}
