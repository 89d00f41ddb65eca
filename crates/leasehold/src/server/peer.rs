//! Who calls: what the kernel knows on a unix socket, what a certificate or a token shows, what the caller claims.

use crate::server::refusal::status;
use crate::server::tenants::{Tenant, Tenants};
use leasehold_client::{Reason, proto};
use leasehold_core::identity::{Evidence, Identity};
use leasehold_engine::engine;
use leasehold_engine::event::Event;
use leasehold_engine::path::StorePath;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tonic::metadata::MetadataMap;
use tonic::transport::CertificateDer;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};
use tonic::{Extensions, Status};

/// The most characters of a name that a caller claims.
const NAME_CHARACTERS_MAX: usize = 64;

/// Who makes a call. There is none for who has not shown who it is.
pub(crate) struct Caller {
    /// `None`: the operator, who may do everything. Who has the socket is, and everybody on a server that asks nobody.
    tenant: Option<Arc<Tenant>>,
    extensions: Extensions,
}

impl Caller {
    /// Who makes a call with this metadata, over the connection that the extensions tell of.
    pub(crate) fn known(
        tenants: &Tenants,
        metadata: &MetadataMap,
        extensions: Extensions,
    ) -> Result<Caller, Status> {
        let tenant = if extensions.get::<UdsConnectInfo>().is_some() {
            None
        } else if let Some(tls) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
            Some(match tls.peer_certs().as_deref().and_then(|chain| chain.first()) {
                Some(certificate) => with_certificate(tenants, certificate)?,
                None => with_token(tenants, metadata)?,
            })
        } else if extensions.get::<TcpConnectInfo>().is_some() {
            None // only with `insecure`
        } else {
            return Err(stranger("this way in is unknown"));
        };
        Ok(Caller { tenant, extensions })
    }

    /// The tenant, unless it is the operator.
    pub(crate) fn tenant(&self) -> Option<&Tenant> {
        self.tenant.as_deref()
    }

    /// What its sessions may have, all together.
    pub(crate) fn shares(&self) -> Option<engine::Tenant> {
        self.tenant().map(|tenant| tenant.shares)
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.tenant().map(|tenant| tenant.name.clone())
    }

    /// Whether it may know of what happens at a path.
    pub(crate) fn sees(&self, path: &str) -> bool {
        self.tenant().is_none_or(|tenant| StorePath::parse(path).is_ok_and(|path| tenant.sees(&path)))
    }

    /// Whether it may know of the event.
    pub(crate) fn hears(&self, event: &Event) -> bool {
        match event {
            Event::Granted { path, .. } | Event::Break { path, .. } | Event::Revoked { path, .. } => {
                self.sees(path)
            }
            Event::BreakEnded(row) => self.sees(&row.path),
            Event::SessionEnded { .. } => self.sees("/"),
        }
    }

    /// Who it is in other people's notices, by what it says itself and what we know better.
    pub(crate) fn identity(&self, claimed: Option<proto::Identity>) -> Identity {
        if let Some(credentials) = self.extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred) {
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
            host: self.host(&claimed),
            pid: claimed.pid,
            uid: claimed.uid,
            program: shown(&claimed.program).unwrap_or_else(|| "unknown".to_owned()),
            evidence: self.evidence(),
        }
    }

    /// How far to believe what it says of itself.
    pub(crate) fn evidence(&self) -> Evidence {
        if self.tenant.is_some() { Evidence::Authenticated } else { Evidence::Claimed }
    }

    /// What its machine is called: as it claims, or its address; behind the tenant's name.
    pub(crate) fn host(&self, claimed: &proto::Identity) -> String {
        let address = || remote(&self.extensions).map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
        let host = shown(&claimed.host).unwrap_or_else(address);
        self.tenant().map_or(host.clone(), |tenant| format!("{}/{host}", tenant.name))
    }

    /// Where its data connection will come from: from where its call comes. A caller on a unix socket connects to
    /// `data` from this very host, so from that address, or from loopback if data is accepted everywhere.
    pub(crate) fn data_peer(&self, data: SocketAddr) -> IpAddr {
        let local = if data.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { data.ip() };
        remote(&self.extensions).unwrap_or(local)
    }
}

/// The certificate was signed by our authority: TLS has seen to that.
fn with_certificate(tenants: &Tenants, certificate: &CertificateDer<'_>) -> Result<Arc<Tenant>, Status> {
    let certificate = webpki::EndEntityCert::try_from(certificate);
    let certificate =
        certificate.map_err(|error| stranger(&format!("the certificate cannot be read ({error})")))?;
    let names: Vec<&str> = certificate.valid_dns_names().collect();
    names.iter().find_map(|name| tenants.named(name)).ok_or_else(|| {
        stranger(&format!(
            "the certificate is good, and {names:?} is no tenant here; `leasehold tenant add` adds one"
        ))
    })
}

fn with_token(tenants: &Tenants, metadata: &MetadataMap) -> Result<Arc<Tenant>, Status> {
    let shown = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let token = shown.and_then(|value| value.strip_prefix("Bearer "));
    let token = token.ok_or_else(|| stranger("show a certificate or a token (--credentials)"))?;
    tenants
        .with_token(token)
        .ok_or_else(|| stranger("the token is unknown: it was replaced, or its tenant removed"))
}

fn stranger(why: &str) -> Status {
    status(Reason::Unauthenticated, why)
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
            authenticated: true,
        };
        let operator = Caller { tenant: None, extensions: Extensions::new() };
        let identity = operator.identity(Some(claimed));
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
