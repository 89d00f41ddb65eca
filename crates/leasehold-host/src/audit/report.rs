//! What an audit found, as data; the JSON document is this, field for field.

use super::baseline::{Accepted, Baseline};
use super::capabilities::Capabilities;
use super::dma::DmaProcess;
use super::finding::{Finding, Severity};
use super::kernel::Kernel;
use super::lease_breakers::Breaker;
use super::leases::Leases;
use super::{mounts::Mount, rdma};
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

/// The version of the JSON document.
pub const DOCUMENT_VERSION: u32 = 1;

/// All that was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// Accepted by the baseline, and not there any more.
    pub accepted_and_gone: Vec<Accepted>,
    /// What can break or bypass a lease here.
    pub lease_breakers: Vec<Breaker>,
    /// What there is.
    pub host: Facts,
    /// What could not be looked at, and why.
    pub not_seen: Vec<String>,
}

/// What there is on the host.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The kernel, and what it does with pins.
    pub kernel: Kernel,
    /// Those that were looked at.
    pub mounts: Vec<Mount>,
    /// RDMA devices.
    pub rdma: Vec<rdma::Device>,
    /// Whether anything was seen that does DMA.
    pub does_dma: bool,
    /// How many processes were looked at.
    pub processes: u64,
    /// Those that do DMA.
    pub dma_processes: Vec<DmaProcess>,
    /// The kernel's leases.
    pub leases: Leases,
    /// Files that `leasehold guard` holds.
    pub guards: Vec<crate::guard::Entry>,
    /// What guards could use.
    pub capabilities: Capabilities,
}

impl Report {
    /// The findings that no baseline has accepted.
    pub fn open(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| !finding.accepted)
    }

    /// Whether there is none of them.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.open().next().is_none()
    }

    /// Of this severity, and not accepted.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.open().filter(|finding| finding.severity == severity).count()
    }

    /// Accepts what the baseline has.
    pub fn accept(&mut self, baseline: &Baseline) {
        self.accepted_and_gone = baseline.apply(&mut self.findings);
    }

    /// As one JSON document.
    #[must_use]
    pub fn document(&self) -> serde_json::Value {
        let mut document = serde_json::to_value(self).expect("strings, numbers and lists");
        let totals = Severity::ALL.map(|severity| (severity.name().to_owned(), self.count(severity).into()));
        let mut totals: serde_json::Map<_, _> = totals.into_iter().collect();
        totals.insert("accepted".to_owned(), (self.findings.len() - self.open().count()).into());
        document["totals"] = totals.into();
        document["version"] = DOCUMENT_VERSION.into();
        document
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Finding", 10)?;
        fields.serialize_field("id", self.entry.id)?;
        fields.serialize_field("severity", &self.severity)?;
        fields.serialize_field("subject", &self.subject)?;
        fields.serialize_field("title", self.entry.title)?;
        fields.serialize_field("evidence", &self.evidence)?;
        fields.serialize_field("why", self.entry.why)?;
        fields.serialize_field("source", self.entry.source)?;
        fields.serialize_field("remedy", self.entry.remedy)?;
        fields.serialize_field("commands", &self.commands())?;
        fields.serialize_field("accepted", &self.accepted)?;
        fields.end()
    }
}
