//! The lab: stock Debian kernels in QEMU, with the kernel's own soft-RoCE.
//!
//! Packages are downloaded and unpacked under `target/lab`, never installed. QEMU translates (TCG), since KVM may fail where virtual
//! machines nest. The kernel is booted as the ELF file inside its image, which saves the guest the unpacking.

mod crash;
mod hazards;
mod siw;
mod verbs;

use crate::step::cargo;
use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsString;
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

/// How the lab is called.
const USAGE: &str = "cargo xtask lab [--only PART] [--kernel VERSION] [--filesystem NAME] [--smoke], where PART is \
    boot, siw, verbs, crash, hazards or report, VERSION a release line such as 6.12, and NAME as in ext4-dax";

/// `cargo xtask lab`.
pub fn run(arguments: &[String]) -> Result<()> {
    let (mut versions, mut only, mut smoke) = (KERNELS.to_vec(), None, false);
    let mut filesystems = hazards::FILESYSTEMS.to_vec();
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        match argument {
            "--smoke" => (smoke, filesystems) = (true, vec![hazards::FILESYSTEMS[0]]),
            "--filesystem" => filesystems = vec![arguments.next().context(USAGE)?],
            "--kernel" => versions = vec![arguments.next().context(USAGE)?],
            "--only" => only = Some(arguments.next().context(USAGE)?),
            _ => bail!("unknown argument {argument:?}; usage: {USAGE}"),
        }
    }
    let started = Instant::now();
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    ensure!(
        ["boot", "siw", "verbs", "crash", "hazards", "report"].into_iter().any(wanted),
        "no part {only:?}; usage: {USAGE}"
    );
    let (lab, root) = prepare()?;
    let kernels =
        versions.iter().map(|version| Kernel::get(&lab, &root, version)).collect::<Result<Vec<_>>>()?;
    let tried = if smoke { &kernels[..1] } else { &kernels[..] };
    if wanted("boot") {
        kernels.iter().try_for_each(|kernel| soft_roce(&lab, &root, kernel))?;
    }
    if wanted("siw") {
        siw::run(&lab, &root, tried)?;
    }
    // It takes longer than a smoke test may.
    if wanted("verbs") && !smoke {
        let said = verbs::run(&lab, &root, tried)?;
        if versions == KERNELS {
            hazards::report::put(&[("verbs", said)])?;
        }
    }
    if wanted("crash") {
        crash::run(&lab, &root, tried)?;
    }
    if wanted("hazards") {
        hazards::run(&lab, &root, tried, &filesystems)?;
    }
    let whole = versions == KERNELS && filesystems == hazards::FILESYSTEMS;
    ensure!(
        whole || only != Some("report"),
        "the report is of all kernels and filesystems; leave the other options out"
    );
    if wanted("report") && whole {
        hazards::report(&lab, &kernels)?;
    }
    println!("the lab: passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// A kernel of Debian's, unpacked.
struct Kernel {
    /// As in `6.12`.
    version: String,
    /// As `uname -r` has it.
    release: String,
    /// Where its modules are.
    tree: PathBuf,
    vmlinux: PathBuf,
}

impl Kernel {
    /// The newest of a release line.
    fn get(lab: &Path, root: &Path, version: &str) -> Result<Kernel> {
        let package = newest_kernel(version)?;
        let tree = lab.join(&package);
        unpack(lab, &[&package], &tree)?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        let vmlinux = lab.join(format!("vmlinux-{release}"));
        if !vmlinux.exists() {
            extract(root, &tree.join(format!("boot/vmlinuz-{release}")), &vmlinux)?;
        }
        Ok(Kernel { version: version.to_owned(), release, tree, vmlinux })
    }
}

/// Boots one and sees whether soft-RoCE comes up.
fn soft_roce(lab: &Path, root: &Path, kernel: &Kernel) -> Result<()> {
    let release = &kernel.release;
    let file = lab.join(format!("initramfs-{release}.gz"));
    initramfs(root, kernel, &file, &soft_roce_and(&MODULES, include_str!("lab/boot.sh")), &MODULES)?;
    let console = boot(root, kernel, &file, BOOT_MAX_S, "", &[])?;
    let line = console.lines().find_map(|line| Some(line.split_once("LAB ")?.1.trim()));
    let line = line.with_context(|| format!("the guest ended without a result; its console:\n{console}"))?;
    println!("{line}");
    ensure!(line.contains("\"port\":\"ACTIVE\""), "{release}: soft-RoCE's port is not active: {line}");
    Ok(())
}

/// What a guest runs first: it loads these modules, brings soft-RoCE up, and goes on with `after`.
fn soft_roce_and(modules: &[&str], after: &str) -> String {
    include_str!("lab/init.sh").replace("@MODULES@", &modules.join(" ")) + after
}

/// Where the lab is, and the root of what it runs.
fn prepare() -> Result<(PathBuf, PathBuf)> {
    let has_apt = Command::new("apt-get").arg("--version").stdout(Stdio::null()).status().is_ok();
    ensure!(
        has_apt && cfg!(target_arch = "x86_64"),
        "the lab takes an x86-64 Debian with apt, whose packages it unpacks; run it on one"
    );
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

/// Builds something of this project for a guest: cargo's arguments, and what it is called among what is built.
fn built(lab: &Path, arguments: &[&str], name: &str) -> Result<PathBuf> {
    let target = lab.parent().context("the lab lies in the folder for what is built")?;
    let mut build = cargo(&[&["build", "--quiet", "--release"], arguments].concat());
    build.args(&["--target-dir".to_owned(), target.display().to_string()]).run()?;
    Ok(target.join("release").join(name))
}

/// What a file or folder is called until it is whole.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Packs what the guest runs: its first program, busybox, the tools with their libraries, the modules with what they need.
fn initramfs(root: &Path, kernel: &Kernel, file: &Path, init: &str, modules: &[&str]) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-euc", include_str!("lab/initramfs.sh"), "sh", &kernel.release]);
    shell.args([root, &kernel.tree, file]).arg(init).args(modules);
    output(shell.env("LD_LIBRARY_PATH", libraries(root)))?;
    Ok(())
}

/// Boots a guest and waits for its end, for at most so many seconds; its console. It has `words` on its command line, and
/// more devices if QEMU is told of them.
fn boot(
    root: &Path,
    kernel: &Kernel,
    initramfs: &Path,
    max_s: &str,
    words: &str,
    devices: &[OsString],
) -> Result<String> {
    let mut qemu = Command::new("timeout");
    qemu.args(["--kill-after=5", max_s]).arg(root.join("usr/bin/qemu-system-x86_64"));
    for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
        qemu.arg("-L").arg(root.join(folder));
    }
    let machine = "-M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nodefaults \
                   -no-user-config -display none -no-reboot -serial stdio";
    qemu.args(machine.split_whitespace()).arg("-kernel").arg(&kernel.vmlinux);
    qemu.arg("-initrd").arg(initramfs).args(["-append", &format!("console=ttyS0 panic=-1 quiet {words}")]);
    output(qemu.args(devices).env("LD_LIBRARY_PATH", libraries(root)))
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
