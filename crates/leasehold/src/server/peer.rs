//! Who calls: what the kernel knows on a unix socket, what the caller claims on TCP.

use leasehold_client::proto;
use leasehold_core::identity::{Evidence, Identity};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tonic::Extensions;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};

/// The most characters of a name that a caller claims.
const NAME_CHARACTERS_MAX: usize = 64;

/// The caller of a request.
pub(crate) fn caller(extensions: &Extensions, claimed: Option<proto::Identity>) -> Identity {
    if let Some(credentials) = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred) {
        // Without a pid the process is of another pid namespace; its uid is still the kernel's word.
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        return Identity {
            host: this_host(),
            pid,
            uid: credentials.uid(),
            program: program_of(pid).unwrap_or_else(|| "unknown".to_owned()),
            evidence: Evidence::Verified,
        };
    }
    let claimed = claimed.unwrap_or_default();
    Identity {
        host: host(extensions, &claimed),
        pid: claimed.pid,
        uid: claimed.uid,
        program: shown(&claimed.program).unwrap_or_else(|| "unknown".to_owned()),
        evidence: Evidence::Claimed,
    }
}

/// What the caller's machine is called: as it claims, or its address.
pub(crate) fn host(extensions: &Extensions, claimed: &proto::Identity) -> String {
    let address = || remote(extensions).map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
    shown(&claimed.host).unwrap_or_else(address)
}

/// Where the caller's data connection will come from: from where its call comes. A caller on a unix socket connects to
/// `data` from this very host, so from that address, or from loopback if data is accepted everywhere.
pub(crate) fn data_peer(extensions: &Extensions, data: SocketAddr) -> IpAddr {
    let local = if data.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { data.ip() };
    remote(extensions).unwrap_or(local)
}

fn remote(extensions: &Extensions) -> Option<IpAddr> {
    let by_tls = || extensions.get::<TlsConnectInfo<TcpConnectInfo>>().map(TlsConnectInfo::get_ref);
    let tcp = extensions.get::<TcpConnectInfo>().or_else(by_tls)?;
    Some(tcp.remote_addr()?.ip().to_canonical())
}

pub(crate) fn this_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The name of the program that the process runs; the name it gives itself if we may not look.
pub(crate) fn program_of(pid: u32) -> Option<String> {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let name = exe.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let name = name.or_else(|| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok())?;
    shown(name.trim_end().trim_end_matches(" (deleted)"))
}

/// A name as it may be shown on a terminal: no control characters, not too long; `None` if nothing is left.
pub(crate) fn shown(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_CHARACTERS_MAX).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_marked_as_one_whatever_it_says_and_cannot_play_tricks_on_a_terminal() {
        let claimed = proto::Identity {
            host: "h".repeat(1000),
            pid: 1,
            uid: 0,
            program: "\u{1b}[2Jinit\n".to_owned(),
            verified: true,
        };
        let identity = caller(&Extensions::new(), Some(claimed));
        assert_eq!(identity.evidence, Evidence::Claimed);
        assert_eq!(identity.program, "[2Jinit");
        assert_eq!(identity.host.len(), NAME_CHARACTERS_MAX);
    }

    #[test]
    fn the_program_of_a_process_is_the_name_of_its_executable() {
        let me = std::env::current_exe().unwrap();
        let name: String = me.file_name().unwrap().to_string_lossy().chars().take(64).collect();
        assert_eq!(program_of(std::process::id()), Some(name));
        assert_eq!(program_of(u32::MAX), None);
    }
}
