//! `cargo xtask lab --only siw`: this project's iWARP against the kernel's, in one guest.
//!
//! Debian's kernels come without siw, the kernel's soft-iWARP driver: the module is built from Debian's source of the
//! same version with its headers, all unpacked under `target/lab`. In the guest the unmodified `rping` of rdma-core runs
//! on siw, and its peer is the fabric's example of that name, over TCP on the loopback. Then a verbs program in C, which
//! knows nothing of this project but `docs/wire.md`, is the client of a store.

use super::{Kernel, boot, built, initramfs, libraries, output, unpack};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What the guest loads, beside siw, with what these need.
const MODULES: [&str; 5] = ["crc32c_generic", "libcrc32c", "dummy", "ib_uverbs", "rdma_ucm"];

/// The longest that a guest may run, in seconds.
const GUEST_MAX_S: &str = "600";

/// Runs it in these kernels.
pub fn run(lab: &Path, root: &Path, kernels: &[Kernel]) -> Result<()> {
    let tools = lab.join("siw-tools");
    unpack(lab, &["rdmacm-utils"], &tools)?;
    let headers = lab.join("siw-headers");
    unpack(lab, &["librdmacm-dev", "libibverbs-dev"], &headers)?;
    let ours = built(lab, &["--package", "leasehold-fabric", "--example", "rping"], "examples/rping")?;
    let verbs = built(lab, &["--package", "leasehold-client", "--example", "verbs"], "examples/verbs")?;
    let leasehold = built(lab, &["--package", "leasehold"], "leasehold")?;
    let peer = peer(lab, root, &headers)?;
    for kernel in kernels {
        let started = Instant::now();
        let release = &kernel.release;
        let module = module(lab, root, kernel)?;
        let file = lab.join(format!("initramfs-siw-{release}.gz"));
        initramfs(root, kernel, &file, include_str!("siw/init.sh"), &MODULES)?;
        // The kernel unpacks archives that follow one another.
        let mut shell = Command::new("sh");
        shell.args(["-euc", include_str!("siw/initramfs.sh"), "sh"]);
        shell.args([root, &file, &module, &ours, &tools, &verbs, &peer, &leasehold]);
        output(shell.env("LD_LIBRARY_PATH", libraries(root)))?;
        let console = boot(root, kernel, &file, GUEST_MAX_S, "", &[])?;
        let lines = console.lines().filter_map(|line| line.split_once("SIW ").map(|(_, said)| said.trim()));
        let mut whole = false;
        for line in lines {
            println!("{release}: {line}");
            ensure!(!line.starts_with("failed"), "{release}: {line}; the guest's console:\n{console}");
            whole = line.starts_with("done");
        }
        ensure!(whole, "{release}: the guest ended before its last line; its console:\n{console}");
        println!("{release}: siw and this project's iWARP agree ({:.0} s)", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The verbs program.
fn peer(lab: &Path, root: &Path, headers: &Path) -> Result<PathBuf> {
    let program = lab.join("peer");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/leasehold-client/examples/verbs/peer.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source);
    compiler.arg("-isystem").arg(headers.join("usr/include"));
    for folder in libraries(root).split(':') {
        compiler.arg(format!("-L{folder}")).arg(format!("-Wl,-rpath-link,{folder}"));
    }
    output(compiler.args(["-l:librdmacm.so.1", "-l:libibverbs.so.1"]))?;
    Ok(program)
}

/// Builds siw for this kernel, once.
fn module(lab: &Path, root: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let Kernel { version, release, .. } = kernel;
    let folder = lab.join(format!("siw-{release}"));
    let module = folder.join("siw.ko");
    if module.exists() {
        return Ok(module);
    }
    println!("building siw for {release} ..");
    let headers = format!("linux-headers-{release}");
    let depends = output(Command::new("apt-cache").args(["depends", "--important", &headers]))?;
    let needed = |start: &str| -> Result<&str> {
        let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        names.into_iter().find(|name| name.starts_with(start)).with_context(|| {
            format!(
                "{headers} depends on no {start}*; Debian packs its headers otherwise than this task knows"
            )
        })
    };
    let (common, kbuild) = (needed("linux-headers-")?, needed("linux-kbuild-")?);
    let build = lab.join(&headers);
    unpack(lab, &[&headers, common, kbuild], &build)?;
    let source = format!("linux-source-{version}");
    unpack(lab, &[&source], &lab.join(&source))?;
    let (of_source, of_kernel) =
        (downloaded(lab, &source)?, downloaded(lab, &format!("linux-image-{release}"))?);
    ensure!(
        of_source == of_kernel,
        "{source} is of {of_source}, the kernel of {of_kernel}; remove both from target/lab, then try again"
    );
    std::fs::create_dir_all(&folder)?;
    let mut tar = Command::new("tar");
    tar.arg("-I").arg(root.join("usr/bin/xz")).arg("-C").arg(&folder).arg("--strip-components=5");
    tar.arg("-xf").arg(lab.join(format!("{source}/usr/src/{source}.tar.xz")));
    output(tar.arg(format!("{source}/drivers/infiniband/sw/siw")).env("LD_LIBRARY_PATH", libraries(root)))?;
    // The headers' own Makefile names the common ones by where they would be installed: make is pointed to them. Type
    // information (BTF) needs a tool that is not there, and nobody asks for it.
    let mut make = Command::new("make");
    make.arg("-C").arg(build.join("usr/src").join(&headers));
    make.arg("-f").arg(build.join("usr/src").join(common).join("Makefile"));
    make.arg(format!("M={}", folder.display())).args(["CONFIG_RDMA_SIW=m", "CONFIG_DEBUG_INFO_BTF_MODULES="]);
    output(make.arg("modules"))
        .context("cannot build siw; it takes make and the gcc that Debian's kernel names")?;
    Ok(module)
}

/// The version of a package that was downloaded.
fn downloaded(lab: &Path, package: &str) -> Result<String> {
    let files =
        std::fs::read_dir(lab.join("debs"))?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let version =
        |name: String| Some(name.strip_prefix(package)?.strip_prefix('_')?.split('_').next()?.to_owned());
    files.into_iter().find_map(version).with_context(|| format!("{package} was not downloaded"))
}
