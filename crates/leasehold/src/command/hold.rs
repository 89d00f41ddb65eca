//! `leasehold hold`: a holder under your control, to see what breaks do.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::layout;
use crate::command::place;
use crate::command::put::{Conflict, wait_time};
use crate::command::show;
use crate::size::Size;
use bytes::Bytes;
use leasehold_client::{
    Access, CaptureError, Lease, LeaseState, RevokeNotice, Session, SyncError, Want, WriteError,
};
use serde_json::json;
use std::time::{Duration, Instant, SystemTime};

/// Lease a range and hold it, to see what breaks do
///
/// On a break it releases the lease, or ignores the notice and is fenced at the deadline. Ends with code 4 if it loses
/// the lease, with 0 if it is interrupted. With --update and --write, the lease is a resident one: what was written is made
/// durable every --sync, and the lease goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct Hold {
    /// The file: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
    /// Where the range begins
    #[arg(long, value_name = "SIZE", default_value = "0")]
    offset: Size,
    /// How long it is
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    length: Size,
    /// For reading; without, for writing
    #[arg(long, conflicts_with = "write")]
    read: bool,
    /// Keep writing into the range while it is held
    #[arg(long)]
    write: bool,
    /// For updating: bytes that are not written stay as they are
    #[arg(long, conflicts_with = "read")]
    update: bool,
    /// With --update --write: how often to make durable what was written
    #[arg(long, value_name = "TIME", requires = "update", requires = "write", value_parser = wait_time)]
    sync: Option<Duration>,
    /// Do not answer breaks
    #[arg(long)]
    ignore_breaks: bool,
    #[command(flatten)]
    conflict: Conflict,
}

impl Hold {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let range = layout::range(self.offset, self.length)?;
        let (client, path) = place::open(common, &self.place).await?;
        let session = Session::open(&client).await?;
        let access = match (self.read, self.update) {
            (true, _) => Access::Read,
            (false, true) => Access::Update,
            (false, false) => Access::Overwrite,
        };
        let want = Want { path: path.clone(), range, access };
        let mut leases = session.acquire(&[want], self.conflict.options()).await?;
        let lease = leases.pop().expect("one range is one lease");
        let name = show::name(&path);
        let held = format!("holding lease {} on {} of {name}", lease.id(), show::range(range));
        say(common, &held, json!({ "event": "holding", "lease": lease.id().0, "pid": std::process::id() }))?;

        let outcome = tokio::select! {
            outcome = self.until_broken(common, &lease) => outcome,
            _ = tokio::signal::ctrl_c() => Ok(()),
            error = write_on(&lease, self.write) => Err(error.into()),
            error = self.sync_on(common, &lease) => Err(error),
        };
        lease.release().await?;
        session.close().await;
        outcome
    }

    async fn until_broken(&self, common: &Common, lease: &Lease) -> Outcome {
        let revoked = match lease.broken().await {
            LeaseState::Revoked(notice) => notice,
            LeaseState::Breaking(notice) => {
                let (who, grace) = (show::who(&notice.breaker), show::duration(notice.grace));
                let answer = if self.ignore_breaks { "ignoring it" } else { "releasing" };
                let text =
                    format!("break: {who}\n  wants to {}; {grace} to answer; {answer}", notice.operation);
                say(common, &text, json!({ "event": "break", "lease": lease.id().0, "answer": answer }))?;
                if !self.ignore_breaks {
                    let text = format!("released for {who}: {}", notice.operation);
                    return Err(Failure::new(Exit::Lease, text).into());
                }
                lease.revoked().await
            }
            LeaseState::Live => unreachable!("a live lease is not broken"),
        };
        let RevokeNotice { lease, why, by } = &revoked;
        let by = by.as_ref().map_or_else(String::new, |by| format!("\n  by {}", show::who(by)));
        say(
            common,
            &format!("revoked: {why}{by}"),
            json!({ "event": "revoked", "lease": lease.0, "why": why }),
        )?;
        Err(Failure::new(Exit::Lease, format!("lost lease {lease}: {why}")).into())
    }
}

impl Hold {
    /// Makes durable what was written, again and again, until it cannot; never returns if it was not asked to.
    async fn sync_on(&self, common: &Common, lease: &Lease) -> anyhow::Error {
        let Some(period) = self.sync else { return std::future::pending().await };
        let mut ticks = tokio::time::interval(period.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let began = Instant::now();
            match lease.sync(lease.range()).await {
                Ok(()) => {}
                // The one who waits for the revoke says so.
                Err(SyncError::Capture(CaptureError::Revoked(_))) => std::future::pending().await,
                Err(error) => return error.into(),
            }
            let took = began.elapsed();
            let text = format!("synced {} in {}", show::range(lease.range()), show::duration(took));
            let value = json!({ "event": "synced", "lease": lease.id().0, "took_ms": show::json_ms(took) });
            if let Err(error) = say(common, &text, value) {
                return error;
            }
        }
    }
}

/// Writes until it cannot; never returns if it does not write.
async fn write_on(lease: &Lease, write: bool) -> WriteError {
    let length = lease.range().len().min(1 << 20);
    let bytes = Bytes::from(vec![0xA5; usize::try_from(length).expect("at most a mebibyte")]);
    if write {
        loop {
            match lease.write(lease.range().start(), bytes.clone()).await {
                Ok(()) => {}
                // The one who waits for the revoke says so.
                Err(WriteError::Revoked(_)) => break,
                Err(error) => return error,
            }
        }
    }
    std::future::pending().await
}

fn say(common: &Common, text: &str, mut value: serde_json::Value) -> Outcome {
    let now = SystemTime::now();
    if common.json {
        value["at"] = show::json_moment(now);
        return Ok(show::json_line(&value)?);
    }
    for line in format!("{} {text}", show::time_of_day(now)).split('\n') {
        show::wrapped(line, "    ").into_iter().try_for_each(show::line)?;
    }
    Ok(())
}
