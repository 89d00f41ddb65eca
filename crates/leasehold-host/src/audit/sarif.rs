//! The report as SARIF 2.1.0 (OASIS), for whoever gathers the results of such tools.
//!
//! A rule is an entry of the catalogue, a result is a finding; what was accepted is suppressed, and what could not be seen
//! is a notification of the run.

use super::catalogue::{CATALOGUE, Entry};
use super::finding::{Finding, Severity};
use super::report::Report;
use serde_json::{Value, json};

const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// The report, as one log.
#[must_use]
pub fn log(report: &Report) -> Value {
    let notifications = report
        .not_seen
        .iter()
        .map(|text| json!({"level": "note", "message": {"text": format!("not seen: {text}")}}));
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "leasehold audit",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": CATALOGUE.iter().map(|entry| rule(entry)).collect::<Vec<_>>(),
            }},
            "invocations": [{
                "executionSuccessful": true,
                "toolExecutionNotifications": notifications.collect::<Vec<_>>(),
            }],
            "results": report.findings.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

fn rule(entry: &Entry) -> Value {
    json!({
        "id": entry.id,
        "shortDescription": {"text": entry.title},
        "fullDescription": {"text": format!("{} [{}]", entry.why, entry.source)},
        "help": {"text": format!("{}\n{}", entry.remedy, entry.commands.join("\n"))},
        "defaultConfiguration": {"level": level(entry.severity)},
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low => "note",
    }
}

fn result(finding: &Finding) -> Value {
    let text = format!("{}: {} ({})", finding.subject, finding.entry.title, finding.evidence.join("; "));
    let index = CATALOGUE.iter().position(|entry| entry.id == finding.entry.id);
    let mut result = json!({
        "ruleId": finding.entry.id,
        "ruleIndex": index,
        "level": level(finding.severity),
        "message": {"text": text},
        "locations": [{"logicalLocations": [{"fullyQualifiedName": finding.subject, "kind": "resource"}]}],
        "partialFingerprints": {"idAndSubject/v1": format!("{}:{}", finding.entry.id, finding.subject)},
    });
    if finding.accepted {
        result["suppressions"] = json!([{"kind": "external", "justification": "accepted by the baseline"}]);
    }
    result
}
