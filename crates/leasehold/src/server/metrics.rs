//! `/metrics` for Prometheus: what the engine and the fabric have counted, read at each scrape.

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use leasehold_core::view::Stats;
use leasehold_engine::engine::Engine;
use leasehold_engine::metrics::{BUCKETS_US, Breaker, Histogram};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::atomic::Ordering;

/// The page.
pub(crate) fn router(engine: Engine) -> Router {
    Router::new().route("/metrics", get(move || page(engine.clone())))
}

async fn page(engine: Engine) -> Response {
    let stats = engine.stats().await;
    let mut registry = Registry::with_prefix("leasehold");
    registry.register_collector(Box::new(Scrape { engine, stats }));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

struct Scrape {
    engine: Engine,
    stats: Option<Stats>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (name, value) in self.engine.counters().counts() {
            count(&mut encoder, name, counter_help(name), value)?;
        }
        for (name, histogram) in self.engine.counters().histograms() {
            took(&mut encoder, name, histogram)?;
        }
        let help = "Breaks that ended, by the breaker's program and user, and how they ended";
        let mut breaks = encoder.encode_descriptor("breaks_ended", help, None, MetricType::Counter)?;
        for (Breaker { program, uid, outcome }, value) in self.engine.counters().breakers.counts() {
            let labels = [("program", program), ("uid", uid.to_string()), ("outcome", outcome.to_owned())];
            ConstCounter::new(value).encode(breaks.encode_family(&labels)?)?;
        }
        let fabric = self.engine.fabric_counters();
        let fabric = [
            ("fabric_segments", "Frames of the wire received whole", &fabric.segments),
            ("fabric_bytes_placed", "Bytes placed in leased memory", &fabric.bytes_placed),
            (
                "fabric_bytes_discarded",
                "Bytes dropped because their key was revoked",
                &fabric.bytes_discarded,
            ),
            ("fabric_bad_crcs", "Frames of the wire whose CRC was wrong", &fabric.bad_crcs),
            (
                "fabric_terminates_sent",
                "Connections ended because the peer broke the protocol",
                &fabric.terminates_sent,
            ),
            (
                "fabric_terminates_received",
                "Connections ended by a Terminate of the peer",
                &fabric.terminates_received,
            ),
            ("fabric_connections", "Data connections that stood", &fabric.connections),
            ("fabric_rejected", "Data connections that were not let in", &fabric.rejected),
            (
                "fabric_setup_timeouts",
                "Data connections that took too long to set up",
                &fabric.setup_timeouts,
            ),
        ];
        for (name, help, value) in fabric {
            count(&mut encoder, name, help, value.load(Ordering::Relaxed))?;
        }
        let Some(stats) = self.stats else { return Ok(()) };
        for (name, help, value) in gauges(&stats) {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

fn count(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn took(encoder: &mut DescriptorEncoder, name: &str, histogram: &Histogram) -> fmt::Result {
    let counts = histogram.buckets();
    let bounds = BUCKETS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
    let help = took_help(name);
    let mut metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    let sum = histogram.sum_us() as f64 / 1e6;
    metric.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
}

fn gauges(stats: &Stats) -> [(&'static str, &'static str, u64); 12] {
    let frames = &stats.frames;
    [
        ("sessions", "Sessions that are open", stats.sessions as u64),
        ("files", "Files that are open", stats.files as u64),
        ("leases", "Leases in any state", stats.leases as u64),
        ("requests", "Requests that are owed an answer", stats.requests as u64),
        ("breaks_open", "Breaks that go on", stats.breaks as u64),
        ("writebacks", "Commits on their way to the disk", stats.writebacks as u64),
        ("writebacks_failed", "Of these: failed, to be tried again", stats.writebacks_failed as u64),
        ("frames_free", "Frames that are nobody's", frames.free.into()),
        ("frames_leased", "Frames of leases", frames.leased.into()),
        ("frames_writeback", "Frames on their way to the disk", frames.writeback.into()),
        ("frames_reading", "Frames lent to readers", frames.reading.into()),
        ("frames_quarantined", "Frames whose fence could not be proven", frames.quarantined.into()),
    ]
}

fn counter_help(name: &str) -> &'static str {
    match name {
        "granted" => "Leases granted",
        "refused" => "Acquires refused",
        "committed" => "Commits that took effect",
        "commits_failed" => "Commits that did not take effect",
        "mismatched" => "Commits whose CRC did not match the bytes",
        "captured" => "Captures that took effect",
        "captures_failed" => "Captures that did not take effect",
        "breaks" => "Break notices sent",
        "revoked" => "Leases revoked",
        "unproven" => "Fences that could not be proven in time",
        "poisoned" => "Data streams that failed a checksum",
        "blocks_mismatched" => "Blocks that did not match their checksum when they were read",
        _ => "A count of the engine",
    }
}

fn took_help(name: &str) -> &'static str {
    match name {
        "acquire_took" => "From an acquire's arrival to its grant",
        "commit_took" => "From a commit's arrival to its reply",
        "capture_took" => "From a capture's arrival to its reply",
        "change_took" => "From a layout operation's arrival to its reply",
        "sync_took" => "From an fsync's arrival to its reply",
        "fence_took" => "From a fence's beginning to its proof",
        "break_took" => "From a break's notice to its outcome",
        _ => "A duration that the engine measures",
    }
}
