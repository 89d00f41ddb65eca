//! `cargo xtask lab --only verbs`: this project over an RDMA device, which is soft-RoCE.
//!
//! In the guest the conformance suite and the revocation storm run on the device. Then, on each filesystem, a store whose data
//! go over it: put, get, breaks, a machine that is gone after an fsync, and what is there when it is back.

use super::{Kernel, boot, built, hazards, libraries, output};
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// The longest that a guest may run, in seconds.
const GUEST_MAX_S: &str = "1800";

/// Runs it in these kernels. What they said, for the page.
pub fn run(lab: &Path, root: &Path, kernels: &[Kernel]) -> Result<String> {
    let mut all = Vec::new();
    let suite = ["--package", "leasehold-fabric", "--features", "conformance", "--example", "verbs_suite"];
    let suite = built(lab, &suite, "examples/verbs_suite")?;
    for kernel in kernels {
        let started = Instant::now();
        let release = &kernel.release;
        let (file, devices) = hazards::prepare(lab, root, kernel, include_str!("verbs/verbs.sh"))?;
        // The kernel unpacks archives that follow one another.
        let mut shell = Command::new("sh");
        shell.args(["-euc", include_str!("verbs/initramfs.sh"), "sh"]).args([root, &file, &suite]);
        output(shell.env("LD_LIBRARY_PATH", libraries(root)))?;
        let mut said = vec![format!("Linux {release}")];
        for name in ["before", "after"] {
            let console = boot(root, kernel, &file, GUEST_MAX_S, &format!("boot={name}"), &devices)?;
            let mut whole = false;
            for line in console.lines().filter_map(|line| Some(line.split_once("VERBS ")?.1.trim())) {
                println!("{release}: {line}");
                ensure!(!line.starts_with("failed"), "{release}: {line}; the guest's console:\n{console}");
                whole = line.starts_with("done");
                // Of the tests, the sum is enough.
                if !line.starts_with("passed") && line != format!("done {release}") {
                    said.push(format!("    {}", line.trim_start_matches("done ")));
                }
            }
            ensure!(whole, "{release}: the guest ended before its last line; its console:\n{console}");
        }
        all.append(&mut said);
        println!("{release}: Leasehold over soft-RoCE ({:.0} s)", started.elapsed().as_secs_f64());
    }
    Ok(format!("```text\n{}\n```", all.join("\n")))
}
