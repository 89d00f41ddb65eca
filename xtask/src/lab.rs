//! The lab: stock Debian kernels in QEMU, with the kernel's own soft-RoCE.
//!
//! Packages are downloaded and unpacked under `target/lab`, never installed. QEMU translates (TCG), since KVM may fail where virtual
//! machines nest. The kernel is booted as the ELF file inside its image, which saves the guest the unpacking.

mod siw;

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The release lines of Debian's kernels that are booted unless `--kernel` names one.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// QEMU with the libraries that Debian's build is linked to, and what goes into the guest.
const PACKAGES: &str = "qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu libbrlapi0.8 libcacard0 \
    libcapstone4 libepoxy0 libexecs0 libfdt1 libgstreamer-plugins-base1.0-0 libopus0 liborc-0.4-0 libslirp0 libsndio7.0 \
    libspice-server1 libusb-1.0-0 libusbredirparser1 libvdeplug2 busybox-static kmod cpio iproute2 ibverbs-utils \
    libibverbs1 ibverbs-providers librdmacm1 libnl-3-200 libnl-route-3-200 xz-utils zstd";

/// How a kernel is compressed within its image: what the stream begins with, and which program reads it.
const COMPRESSIONS: [(&[u8], &str); 2] = [(b"\xfd7zXZ\0", "usr/bin/xz"), (b"(\xb5/\xfd", "usr/bin/zstd")];

/// What the guest loads, with what these need.
const MODULES: [&str; 5] = ["crc32c_generic", "crc32_generic", "dummy", "rdma_rxe", "ib_uverbs"];

/// The longest that a guest may run, in seconds: it takes some ten.
const BOOT_MAX_S: &str = "120";

/// `cargo xtask lab`.
pub fn run(arguments: &[String]) -> Result<()> {
    if let [only, part, rest @ ..] = arguments
        && (&only[..], &part[..]) == ("--only", "siw")
    {
        let (lab, root) = prepare()?;
        return siw::run(&lab, &root, rest);
    }
    let kernels: Vec<&str> = match arguments {
        [] => KERNELS.to_vec(),
        [flag, version] if flag == "--kernel" => vec![version],
        _ => bail!(
            "unknown arguments {arguments:?}; usage: cargo xtask lab [--only siw] [--kernel VERSION], as in --kernel 6.12"
        ),
    };
    let (lab, root) = prepare()?;
    for version in kernels {
        let package = newest_kernel(version)?;
        let started = Instant::now();
        let tree = lab.join(&package);
        unpack(&lab, &[&package], &tree)?;
        let release = package.trim_start_matches("linux-image-");
        let vmlinux = lab.join(format!("vmlinux-{release}"));
        if !vmlinux.exists() {
            extract(&root, &tree.join(format!("boot/vmlinuz-{release}")), &vmlinux)?;
        }
        let initramfs = initramfs(&lab, &root, &tree, release)?;
        let line = boot(&root, &vmlinux, &initramfs)?;
        println!("{line}");
        ensure!(line.contains("\"port\":\"ACTIVE\""), "{release}: soft-RoCE's port is not active: {line}");
        println!("{release}: soft-RoCE is up ({:.0} s with preparation)", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Where the lab is, and the root of what it runs.
fn prepare() -> Result<(PathBuf, PathBuf)> {
    let lab = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/lab"));
    std::fs::create_dir_all(lab.join("debs"))?;
    let lab = lab.canonicalize()?;
    let root = lab.join("root");
    let packages: Vec<&str> = PACKAGES.split_whitespace().collect();
    unpack(&lab, &packages, &root)?;
    Ok((lab, root))
}

/// The newest package of a release line: the names change with the kernel's ABI.
fn newest_kernel(version: &str) -> Result<String> {
    let pattern =
        format!(r"^linux-image-{}\.[0-9.]+(\+deb[0-9]+)?(-[0-9]+)?-amd64$", version.replace('.', r"\."));
    let search = || output(Command::new("apt-cache").args(["search", "--names-only", &pattern]));
    let mut found = search()?;
    if found.is_empty() {
        println!("updating apt's lists ..");
        output(Command::new("apt-get").arg("update"))?;
        found = search()?;
    }
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    found
        .lines()
        .filter_map(|line| line.split(' ').next())
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
        .with_context(|| format!("apt knows no kernel {version}; give --kernel another release line"))
}

/// Downloads packages that are not there yet and unpacks them into `into`, once.
fn unpack(lab: &Path, packages: &[&str], into: &Path) -> Result<()> {
    if into.exists() {
        return Ok(());
    }
    let debs = lab.join("debs");
    let cached = |package: &str| -> Result<Option<PathBuf>> {
        let start = format!("{package}_");
        let mut files = std::fs::read_dir(&debs)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        Ok(files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start))))
    };
    let mut missing = Vec::new();
    for package in packages {
        if cached(package)?.is_none() {
            missing.push(*package);
        }
    }
    if !missing.is_empty() {
        println!("downloading {} packages ..", missing.len());
        output(Command::new("apt-get").arg("download").args(&missing).current_dir(&debs)).context(
            "cannot download the lab's packages; check the network, run `apt-get update`, then try again",
        )?;
    }
    let partial = partial(into);
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    for package in packages {
        let deb = cached(package)?.with_context(|| format!("apt-get download left no file of {package}"))?;
        output(Command::new("dpkg-deb").arg("--extract").args([&deb, &partial]))?;
    }
    std::fs::rename(&partial, into).with_context(|| format!("cannot name {}", into.display()))
}

/// The ELF file inside a kernel image.
fn extract(root: &Path, image: &Path, vmlinux: &Path) -> Result<()> {
    let bytes = std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let partial = partial(vmlinux);
    for (magic, program) in COMPRESSIONS {
        for start in (0..bytes.len()).filter(|start| bytes[*start..].starts_with(magic)) {
            // The stream is followed by other parts of the image: the program complains of these once it has written all of
            // it. What is no stream gives no ELF file.
            let script = "tail -c +\"$1\" \"$2\" | \"$4\" -dc > \"$3\" 2>/dev/null; true";
            let mut shell = Command::new("sh");
            shell.args(["-c", script, "sh", &(start + 1).to_string()]);
            output(shell.args([image, &partial, &root.join(program)]))?;
            if std::fs::read(&partial)?.starts_with(b"\x7fELF") {
                return Ok(std::fs::rename(&partial, vmlinux)?);
            }
        }
    }
    bail!(
        "{} holds no kernel compressed with xz or zstd; give --kernel another release line",
        image.display()
    )
}

/// What a file or folder is called until it is whole.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Packs what the guest runs: busybox, the tools with their libraries, the modules with what they need.
fn initramfs(lab: &Path, root: &Path, tree: &Path, release: &str) -> Result<PathBuf> {
    let file = lab.join(format!("initramfs-{release}.gz"));
    let mut shell = Command::new("sh");
    shell.args(["-euc", include_str!("lab/initramfs.sh"), "sh", release]).args([root, tree, &file]);
    shell.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lab/init.sh")).args(MODULES);
    output(shell.env("LD_LIBRARY_PATH", libraries(root)))?;
    Ok(file)
}

/// Boots the guest and waits for its end; its line of results.
fn boot(root: &Path, vmlinux: &Path, initramfs: &Path) -> Result<String> {
    let console = console(root, vmlinux, initramfs, BOOT_MAX_S)?;
    let line =
        console.lines().find_map(|line| line.split_once("LAB ").map(|(_, json)| json.trim().to_owned()));
    line.with_context(|| format!("the guest ended without a result; its console:\n{console}"))
}

/// Boots a guest and waits for its end, for at most so many seconds; its console.
fn console(root: &Path, vmlinux: &Path, initramfs: &Path, max_s: &str) -> Result<String> {
    let mut qemu = Command::new("timeout");
    qemu.args(["--kill-after=5", max_s]).arg(root.join("usr/bin/qemu-system-x86_64"));
    for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
        qemu.arg("-L").arg(root.join(folder));
    }
    qemu.args(
        "-M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nodefaults -no-user-config".split(' '),
    );
    qemu.args("-display none -no-reboot -serial stdio".split(' ')).arg("-kernel").arg(vmlinux);
    qemu.arg("-initrd").arg(initramfs).args(["-append", "console=ttyS0 panic=-1 quiet"]);
    output(qemu.env("LD_LIBRARY_PATH", libraries(root)))
}

/// Where the unpacked programs find their libraries.
fn libraries(root: &Path) -> String {
    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
        .map(|folder| root.join(folder).display().to_string())
        .join(":")
}

/// Runs a command to its end; what it wrote.
fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let (out, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{:?}: {}\n{out}{errors}", command.get_program(), done.status);
    Ok(out.into_owned())
}
