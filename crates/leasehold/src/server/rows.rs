//! The engine's rows and events, as the wire shows them.

use leasehold_client::{convert, proto};
use leasehold_core::range::ByteRange;
use leasehold_engine::about::BlockMap;
use leasehold_engine::break_log::{BreakRow, Who};
use leasehold_engine::event::Event;
use leasehold_engine::files::Stat;
use leasehold_engine::inspect::{LeaseRow, WaitRow};
use leasehold_engine::scrubber::{BadBlock, Scrubbed};
use leasehold_engine::storage::{Attributes, Kind, MapRun, MapState, Xattrs};
use std::time::{Duration, SystemTime};

fn who(who: &Who) -> proto::Identity {
    proto::Identity {
        host: who.host.clone(),
        pid: who.pid,
        uid: who.uid,
        program: who.program.clone(),
        verified: who.verified,
        authenticated: who.authenticated,
    }
}

fn time(unix_ms: u64) -> prost_types::Timestamp {
    (SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms)).into()
}

pub(crate) fn file(stat: Stat) -> proto::File {
    let kind = match stat.kind {
        Kind::File => proto::file::Kind::File,
        Kind::Directory => proto::file::Kind::Directory,
        Kind::Link => proto::file::Kind::Link,
        Kind::Other => proto::file::Kind::Other,
    };
    proto::File {
        path: stat.path.to_string(),
        kind: kind.into(),
        size: stat.size,
        links: stat.links,
        modified: Some(stat.modified.into()),
        target: stat.target.unwrap_or_default(),
        inode: stat.inode,
    }
}

pub(crate) fn block_map(map: BlockMap) -> proto::BlockMapResponse {
    use proto::block_run::State;
    let run = |run: MapRun| {
        let (state, crc32c) = match run.state {
            MapState::Hole => (State::Hole, Vec::new()),
            MapState::Known(sums) => (State::Known, sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()),
            MapState::Unknown => (State::Unknown, Vec::new()),
            MapState::Torn => (State::Torn, Vec::new()),
        };
        proto::BlockRun { state: state.into(), blocks: run.blocks.len(), crc32c: crc32c.into() }
    };
    proto::BlockMapResponse { size: map.size, runs: map.runs.into_iter().map(run).collect() }
}

pub(crate) fn attributes(attributes: Attributes) -> proto::Attributes {
    let Attributes { mode, modified, xattrs } = attributes;
    let values = |xattrs: Xattrs| xattrs.into_iter().map(|(name, value)| (name, value.into())).collect();
    let xattrs = xattrs.map(|xattrs| proto::Xattrs { values: values(xattrs) });
    proto::Attributes { mode, modified: modified.map(Into::into), xattrs }
}

pub(crate) fn attributes_in(attributes: proto::Attributes) -> Attributes {
    let proto::Attributes { mode, modified, xattrs } = attributes;
    let values =
        |xattrs: proto::Xattrs| xattrs.values.into_iter().map(|(name, value)| (name, value.to_vec()));
    Attributes {
        mode,
        modified: modified.map(|modified| convert::time_in(Some(modified))),
        xattrs: xattrs.map(|xattrs| values(xattrs).collect()),
    }
}

pub(crate) fn lease(row: &LeaseRow) -> proto::Lease {
    let access = match row.access {
        "read" => proto::Access::Read,
        "overwrite" => proto::Access::Overwrite,
        "update" => proto::Access::Update,
        _ => proto::Access::Unspecified,
    };
    proto::Lease {
        lease: row.lease,
        session: row.session,
        holder: Some(who(&row.holder)),
        path: row.path.clone(),
        range: Some(proto::Range { start: row.start, end: row.end }),
        access: access.into(),
        state: row.state.to_owned(),
        since: Some(time(row.since_ms)),
        deadline: row.deadline_ms.map(time),
    }
}

pub(crate) fn broken(row: &BreakRow) -> proto::BreakRecord {
    proto::BreakRecord {
        id: row.id,
        lease: row.lease,
        holder: Some(who(&row.holder)),
        breaker: Some(who(&row.breaker)),
        path: row.path.clone(),
        range: Some(proto::Range { start: row.start, end: row.end }),
        operation: row.operation.clone(),
        started: Some(time(row.started_ms)),
        took: Some(convert::duration_out(Duration::from_micros(row.took_us))),
        grace: Some(convert::duration_out(Duration::from_millis(row.grace_ms))),
        outcome: row.outcome.clone(),
    }
}

pub(crate) fn wait(row: &WaitRow) -> proto::Wait {
    proto::Wait {
        request: row.request,
        who: row.who.as_ref().map(who),
        wants: row.wants.clone(),
        since: Some(time(row.since_ms)),
        until: row.until_ms.map(time),
        waits_for: row.waits_for.clone(),
    }
}

pub(crate) fn event(event: Event) -> proto::Event {
    use proto::event::What;
    let range = |range: ByteRange| Some(range.into());
    let what = match event {
        Event::Granted { session, lease, path, range: r, writes } => What::Granted(proto::Granted {
            lease: lease.0,
            session: session.0,
            path,
            range: range(r),
            writes,
        }),
        Event::Break { session, id, lease, path, range: r, breaker, operation, deadline, grace } => {
            What::Break(proto::Break {
                id: id.0,
                lease: lease.0,
                session: session.0,
                path,
                range: range(r),
                breaker: Some((&breaker).into()),
                operation,
                deadline: Some(deadline.into()),
                grace: Some(convert::duration_out(grace)),
            })
        }
        Event::Revoked { session, lease, path, range: r, why, by } => What::Revoked(proto::Revoked {
            lease: lease.0,
            session: session.0,
            path,
            range: range(r),
            why: why.to_owned(),
            by: by.as_ref().map(Into::into),
        }),
        Event::BreakEnded(row) => What::BreakEnded(broken(&row)),
        Event::SessionEnded { session, why } => {
            What::SessionEnded(proto::SessionEnded { session: session.0, why })
        }
    };
    at_this_moment(what)
}

/// So many events were dropped because the listener was too slow.
pub(crate) fn missed(events: u64) -> proto::Event {
    at_this_moment(proto::event::What::Missed(events))
}

fn at_this_moment(what: proto::event::What) -> proto::Event {
    proto::Event { at: Some(SystemTime::now().into()), what: Some(what) }
}

/// What scrub found in one file; the totals grow.
pub(crate) fn scrubbed(file: Scrubbed, totals: &mut proto::ScrubTotals) -> proto::ScrubResponse {
    totals.files += 1;
    totals.blocks += file.blocks;
    totals.adopted += file.adopted;
    let adopted = file.mismatches.iter().filter(|bad| bad.adopted).count() as u64;
    totals.mismatched_adopted += adopted;
    totals.mismatched += file.mismatches.len() as u64 - adopted;
    totals.failed += u64::from(file.error.is_some());
    let mismatch = |bad: &BadBlock| proto::Mismatch {
        block: bad.block,
        committed_crc32c: bad.committed,
        found_crc32c: bad.found,
        adopted: bad.adopted,
    };
    scrub_item(proto::scrub_response::Item::File(proto::ScrubFile {
        path: file.path,
        blocks: file.blocks,
        adopted: file.adopted,
        adopted_size: file.adopted_size,
        mismatches: file.mismatches.iter().map(mismatch).collect(),
        error: file.error.unwrap_or_default(),
    }))
}

pub(crate) fn scrub_item(item: proto::scrub_response::Item) -> proto::ScrubResponse {
    proto::ScrubResponse { item: Some(item) }
}
