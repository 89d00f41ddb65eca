//! The commands that look: `leases`, `breaks`, `why`, `status`.

use crate::command::Common;
use crate::command::exit::Outcome;
use crate::command::guard;
use crate::command::place;
use crate::command::show::{self, CLAIMED_LEGEND};
use crate::server::rows;
use crate::size::rough;
use anyhow::Context as _;
use leasehold_client::{Client, convert, proto};
use leasehold_engine::break_log;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Show who holds what, since when
#[derive(Debug, clap::Args)]
pub(crate) struct Leases {
    /// A file; or a server, with / as the path: of all its files [default: this machine's]
    place: Option<String>,
}

/// Show who broke whose lease, what for, and what the holder did
#[derive(Debug, clap::Args)]
pub(crate) struct Breaks {
    /// The server: leasehold://HOST[:PORT] [default: this machine's]
    server: Option<String>,
    /// Of `leasehold guard`, not of a server: its log
    #[arg(long, value_name = "LOG", num_args = 0..=1, require_equals = true, default_missing_value = guard::LOG, conflicts_with = "server")]
    guard: Option<PathBuf>,
    /// Show so many of the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Show who waits for whom on a file, and until when
#[derive(Debug, clap::Args)]
pub(crate) struct Why {
    /// The file: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
}

/// Show the server: its store, its ports, how it does I/O
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// The server: leasehold://HOST[:PORT] [default: this machine's]
    server: Option<String>,
}

async fn connect(common: &Common, text: Option<&str>) -> anyhow::Result<Client> {
    place::connect(common, &place::server(common, text)?).await
}

fn legend(rows: &[Option<&proto::Identity>]) -> Outcome {
    if rows.iter().flatten().any(|who| !who.verified && !who.authenticated) {
        show::line(CLAIMED_LEGEND)?;
    }
    Ok(())
}

impl Leases {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let client = connect(common, self.place.as_deref()).await?;
        let path = match &self.place {
            Some(text) => Some(place::find(common, text)?.path).filter(|path| path != "/"),
            None => None,
        };
        let leases = client.leases(path.as_deref()).await?;
        if common.json {
            return Ok(show::json_document(&leases.iter().map(lease_json).collect())?);
        }
        if leases.is_empty() {
            return Ok(show::line("no leases")?);
        }
        let mut table = show::table(&["LEASE", "RANGE", "ACCESS", "STATE", "FOR", "HOLDER", "FILE"]);
        for lease in &leases {
            table.add_row([
                format!("l{}", lease.lease),
                show::wire_range(lease.range),
                access(lease.access()).to_owned(),
                lease_state(lease),
                age(lease.since),
                show::short(lease.holder.as_ref()),
                show::name(&lease.path).into_owned(),
            ]);
        }
        show::line(show::text(&table))?;
        legend(&leases.iter().map(|lease| lease.holder.as_ref()).collect::<Vec<_>>())
    }
}

fn access(access: proto::Access) -> &'static str {
    match access {
        proto::Access::Read => "read",
        proto::Access::Overwrite => "overwrite",
        proto::Access::Update => "update",
        proto::Access::Unspecified => "?",
    }
}

fn lease_state(lease: &proto::Lease) -> String {
    match lease.deadline {
        Some(deadline) => {
            let left = convert::time_in(Some(deadline)).duration_since(SystemTime::now());
            format!("{}, broken: {} left", lease.state, show::duration(left.unwrap_or_default()))
        }
        None => lease.state.clone(),
    }
}

fn age(since: Option<prost_types::Timestamp>) -> String {
    show::duration(convert::time_in(since).elapsed().unwrap_or_default())
}

fn lease_json(lease: &proto::Lease) -> Value {
    json!({
        "lease": lease.lease,
        "session": lease.session,
        "holder": show::json_who(lease.holder.as_ref()),
        "path": lease.path,
        "range": show::json_range(lease.range),
        "access": access(lease.access()),
        "state": lease.state,
        "since": show::json_some_moment(lease.since),
        "deadline": show::json_some_moment(lease.deadline),
    })
}

impl Breaks {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let breaks = match &self.guard {
            Some(log) => {
                let rows = break_log::read(log, self.limit as usize);
                let rows = rows.with_context(|| format!("cannot read {}", log.display()))?;
                rows.iter().map(rows::broken).collect()
            }
            None => connect(common, self.server.as_deref()).await?.breaks(self.limit).await?,
        };
        if common.json {
            return Ok(show::json_document(&breaks.iter().map(break_json).collect())?);
        }
        if breaks.is_empty() {
            return Ok(show::line("no lease was broken")?);
        }
        for row in &breaks {
            let (breaker, holder) = (show::short(row.breaker.as_ref()), show::short(row.holder.as_ref()));
            let (began, range) = (show::moment(convert::time_in(row.started)), show::wire_range(row.range));
            let (took, grace) = (convert::duration_in(row.took), convert::duration_in(row.grace));
            show::line(format_args!("{began}  {range} of {}", show::name(&row.path)))?;
            show::line(format_args!("  {breaker} wanted to {}", row.operation))?;
            show::line(format_args!(
                "  {holder} held it: {} after {} (grace {})",
                row.outcome,
                show::duration(took),
                show::duration(grace)
            ))?;
        }
        legend(&breaks.iter().flat_map(|row| [row.breaker.as_ref(), row.holder.as_ref()]).collect::<Vec<_>>())
    }
}

fn break_json(row: &proto::BreakRecord) -> Value {
    json!({
        "break": row.id,
        "lease": row.lease,
        "holder": show::json_who(row.holder.as_ref()),
        "breaker": show::json_who(row.breaker.as_ref()),
        "path": row.path,
        "range": show::json_range(row.range),
        "operation": row.operation,
        "started": show::json_some_moment(row.started),
        "took_ms": show::json_ms(convert::duration_in(row.took)),
        "grace_ms": show::json_ms(convert::duration_in(row.grace)),
        "outcome": row.outcome,
    })
}

impl Why {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        let waits = client.why(&path).await?;
        if common.json {
            return Ok(show::json_document(&waits.iter().map(wait_json).collect())?);
        }
        if waits.is_empty() {
            return Ok(show::line(format_args!("nobody waits on {}", show::name(&path)))?);
        }
        for wait in &waits {
            let who = show::short(wait.who.as_ref());
            let until = wait.until.map_or_else(String::new, |until| {
                let left = convert::time_in(Some(until)).duration_since(SystemTime::now());
                format!(", and gives up in {}", show::duration(left.unwrap_or_default()))
            });
            show::line(format_args!("{who} wants to {}", wait.wants))?;
            show::line(format_args!("  has waited {}{until}; waits for", age(wait.since)))?;
            for reason in &wait.waits_for {
                show::line(format_args!("  - {reason}"))?;
            }
        }
        legend(&waits.iter().map(|wait| wait.who.as_ref()).collect::<Vec<_>>())
    }
}

fn wait_json(wait: &proto::Wait) -> Value {
    json!({
        "request": wait.request,
        "who": show::json_who(wait.who.as_ref()),
        "wants": wait.wants,
        "since": show::json_some_moment(wait.since),
        "until": show::json_some_moment(wait.until),
        "waits_for": wait.waits_for,
    })
}

impl Status {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let client = connect(common, self.server.as_deref()).await?;
        let status = client.status().await?;
        let up = convert::time_in(status.started).elapsed().unwrap_or(Duration::ZERO);
        if common.json {
            return Ok(show::json_document(&json!({
                "version": status.version,
                "directory": status.directory,
                "data_address": status.data_address,
                "data_by": status.data_by,
                "notes": status.notes,
                "started": show::json_some_moment(status.started),
                "grace_ms": show::json_ms(convert::duration_in(status.grace)),
                "sessions": status.sessions,
                "leases": status.leases,
                "requests": status.requests,
                "arena_bytes": status.arena_bytes,
                "arena_used_bytes": status.arena_used_bytes,
                "writeback_bytes": status.writeback_bytes,
                "writebacks_failed": status.writebacks_failed,
                "breaks": status.breaks,
                "breaks_going_on": status.breaks_going_on,
            }))?);
        }
        show::line(format_args!("version   {}, up {}", status.version, show::duration(up)))?;
        show::line(format_args!("store     {}", status.directory))?;
        // A server from before there was a choice says nothing of it.
        let by = match &status.data_by[..] {
            [] => String::new(),
            by => format!(", by {}", by.join(" and ")),
        };
        show::line(format_args!("data      {}{by}", status.data_address))?;
        let (used, arena) = (rough(status.arena_used_bytes), rough(status.arena_bytes));
        show::line(format_args!("arena     {arena}, {used} in use"))?;
        let failed = match status.writebacks_failed {
            0 => String::new(),
            failed => format!("; {failed} failed and are tried again, see the server's log"),
        };
        show::line(format_args!("backlog   {} to be written back{failed}", rough(status.writeback_bytes)))?;
        show::line(format_args!("grace     {}", show::duration(convert::duration_in(status.grace))))?;
        show::line(format_args!("sessions  {}", status.sessions))?;
        show::line(format_args!("leases    {}", status.leases))?;
        show::line(format_args!("requests  {} under way", status.requests))?;
        let (breaks, now) = (status.breaks, status.breaks_going_on);
        show::line(format_args!("breaks    {breaks} since the start, {now} going on"))?;
        for note in &status.notes {
            show::wrapped(&format!("note      {note}"), "          ").into_iter().try_for_each(show::line)?;
        }
        Ok(())
    }
}
