//! `leasehold watch`: what happens on the server, as it happens.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::place;
use crate::command::show;
use leasehold_client::{ByteRange, Event, Happening, Identity, proto};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

/// Follow what happens on the server, until interrupted
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// The server: leasehold://HOST[:PORT] [default: this machine's]
    server: Option<String>,
    /// Show only breaks and what comes of them
    #[arg(long)]
    breaks: bool,
}

impl Watch {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let client = place::connect(common, &place::server(common, self.server.as_deref())?).await?;
        let mut events = client.watch().await?;
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = &mut interrupted => return Ok(()),
            };
            let Some(event) = event else {
                return Err(Failure::new(Exit::Unreachable, "the server has stopped").into());
            };
            let event = event?;
            if self.breaks && matches!(event.what, Happening::Granted { .. } | Happening::SessionEnded { .. })
            {
                continue;
            }
            if common.json {
                show::json_line(&as_json(&event))?;
            } else {
                for line in lines(&event).iter().flat_map(|line| show::wrapped(line, "      ")) {
                    show::line(line)?;
                }
            }
        }
    }
}

/// An event in one or two lines.
pub(crate) fn lines(event: &Event) -> Vec<String> {
    let at = show::time_of_day(event.at);
    match &event.what {
        Happening::Granted { lease, session, path, range, writes } => {
            let path = show::name(path);
            let access = if *writes { "write" } else { "read" };
            vec![format!("{at} granted {lease} to {session}: {access} {} of {path}", show::range(*range))]
        }
        Happening::Break { id, lease, session, path, range, breaker, operation, grace, .. } => vec![
            format!(
                "{at} break {id} of {lease} ({session}): {} of {}",
                show::range(*range),
                show::name(path)
            ),
            format!("    {} wants to {operation}", show::who(breaker)),
            format!("    {} to commit or release", show::duration(*grace)),
        ],
        Happening::Revoked { lease, session, path, range, why, by } => {
            let (range, path) = (show::range(*range), show::name(path));
            let mut lines = vec![format!("{at} revoked {lease} ({session}): {range} of {path}: {why}")];
            lines.extend(by.as_ref().map(|by| format!("    by {}", show::who(by))));
            lines
        }
        Happening::BreakEnded { id, lease, outcome, took, grace, .. } => {
            let (took, grace) = (show::duration(*took), show::duration(*grace));
            vec![format!("{at} break {id} of {lease} ended: {outcome} after {took} (grace {grace})")]
        }
        Happening::SessionEnded { session, why } => vec![format!("{at} session {session} ended: {why}")],
        Happening::Missed { events } => vec![format!("{at} {events} events were missed: we read too slowly")],
        other => vec![format!("{at} {other:?}")],
    }
}

fn as_json(event: &Event) -> Value {
    let who = |identity: &Identity| show::json_who(Some(&proto::Identity::from(identity)));
    let range = |range: &ByteRange| json!({ "start": range.start(), "end": range.end() });
    let (kind, mut value) = match &event.what {
        Happening::Granted { lease, session, path, range: r, writes } => (
            "granted",
            json!({ "lease": lease.0, "session": session.0, "path": path, "range": range(r), "writes": writes }),
        ),
        Happening::Break { id, lease, session, path, range: r, breaker, operation, deadline, grace } => (
            "break",
            json!({
                "break": id.0, "lease": lease.0, "session": session.0, "path": path, "range": range(r),
                "breaker": who(breaker), "operation": operation,
                "deadline": show::json_moment(*deadline), "grace_ms": show::json_ms(*grace),
            }),
        ),
        Happening::Revoked { lease, session, path, range: r, why, by } => (
            "revoked",
            json!({
                "lease": lease.0, "session": session.0, "path": path, "range": range(r),
                "why": why, "by": by.as_ref().map(who),
            }),
        ),
        Happening::BreakEnded {
            id,
            lease,
            holder,
            breaker,
            path,
            range: r,
            operation,
            took,
            grace,
            outcome,
            ..
        } => (
            "break_ended",
            json!({
                "break": id.0, "lease": lease.0, "holder": who(holder), "breaker": who(breaker), "path": path,
                "range": range(r), "operation": operation, "took_ms": show::json_ms(*took),
                "grace_ms": show::json_ms(*grace), "outcome": outcome,
            }),
        ),
        Happening::SessionEnded { session, why } => {
            ("session_ended", json!({ "session": session.0, "why": why }))
        }
        Happening::Missed { events } => ("missed", json!({ "events": events })),
        other => ("other", json!({ "text": format!("{other:?}") })),
    };
    value["event"] = json!(kind);
    value["at"] = show::json_moment(event.at);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use leasehold_client::{BreakId, Evidence, LeaseId, SessionId};
    use std::time::{Duration, SystemTime};

    fn a_break() -> Event {
        let what = Happening::Break {
            id: BreakId(3),
            lease: LeaseId(12),
            session: SessionId(2),
            path: "/models/weights.bin".to_owned(),
            range: ByteRange::new(8 << 20, 16 << 20).unwrap(),
            breaker: Identity {
                host: "storage-1".to_owned(),
                pid: 4711,
                uid: 1000,
                program: "leasehold".to_owned(),
                evidence: Evidence::Verified,
            },
            operation: "truncate to 0".to_owned(),
            deadline: SystemTime::UNIX_EPOCH,
            grace: Duration::from_millis(500),
        };
        Event { at: SystemTime::UNIX_EPOCH, what }
    }

    #[test]
    fn a_break_says_who_and_what_and_how_long_within_80_columns() {
        let lines = lines(&a_break());
        assert!(lines.iter().all(|line| line.len() <= 80), "{lines:#?}");
        assert!(
            lines[0].ends_with("break b3 of l12 (s2): 8MiB..16MiB of /models/weights.bin"),
            "{}",
            lines[0]
        );
        assert_eq!(
            lines[1..],
            [
                "    leasehold (pid 4711, uid 1000 on storage-1, verified) wants to truncate to 0",
                "    500 ms to commit or release",
            ]
        );
    }

    #[test]
    fn a_name_in_an_event_cannot_drive_the_terminal() {
        let Event {
            at,
            what: Happening::Break { id, lease, session, range, breaker, operation, deadline, grace, .. },
        } = a_break()
        else {
            unreachable!("it is a break")
        };
        let path = "/a\x1b[2J\nb".to_owned();
        let what = Happening::Break { id, lease, session, path, range, breaker, operation, deadline, grace };
        let lines = lines(&Event { at, what });
        assert!(lines[0].ends_with("of /a\\u{1b}[2J\\nb"), "{lines:?}");
    }

    #[test]
    fn as_json_a_break_is_one_object_with_its_kind() {
        let value = as_json(&a_break());
        assert_eq!(value["event"], "break");
        assert_eq!(value["breaker"]["pid"], 4711);
        assert_eq!(value["at"], "1970-01-01T00:00:00Z");
        assert_eq!(value["grace_ms"], 500.0);
    }
}
