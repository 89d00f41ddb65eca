//! What this process says about itself.

use leasehold_core::identity::{Evidence, Identity};

/// This process: a claim, which a server on a unix socket replaces by what the kernel says.
#[must_use]
pub fn this_process() -> Identity {
    let program = std::env::current_exe()
        .ok()
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "unknown".to_owned());
    Identity {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        uid: rustix::process::getuid().as_raw(),
        program,
        evidence: Evidence::Claimed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_claims_its_own_pid_and_does_not_call_it_verified() {
        let me = this_process();
        assert_eq!(me.pid, std::process::id());
        assert_eq!(me.evidence, Evidence::Claimed);
        assert!(!me.host.is_empty() && !me.program.is_empty());
    }
}
