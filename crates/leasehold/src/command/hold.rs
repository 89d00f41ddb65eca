//! `leasehold hold`: a holder under your control, to see what breaks do.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::layout;
use crate::command::place;
use crate::command::put::Conflict;
use crate::command::show;
use crate::size::Size;
use bytes::Bytes;
use leasehold_client::{Access, Lease, LeaseState, RevokeNotice, Session, Want, WriteError};
use serde_json::json;
use std::time::SystemTime;

/// Lease a range and hold it, to see what breaks do
///
/// On a break it releases the lease, or ignores the notice and is fenced at the deadline. Ends with code 4 if it loses
/// the lease, with 0 if it is interrupted.
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
        let access = if self.read { Access::Read } else { Access::Overwrite };
        let want = Want { path: path.clone(), range, access };
        let mut leases = session.acquire(&[want], self.conflict.options()).await?;
        let lease = leases.pop().expect("one range is one lease");
        let held = format!("holding lease {} on {} of {path}", lease.id(), show::range(range));
        say(common, &held, json!({ "event": "holding", "lease": lease.id().0, "pid": std::process::id() }))?;

        let outcome = tokio::select! {
            outcome = self.until_broken(common, &lease) => outcome,
            _ = tokio::signal::ctrl_c() => Ok(()),
            error = write_on(&lease, self.write) => Err(error.into()),
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
    Ok(show::line(format_args!("{} {text}", show::time_of_day(now)))?)
}
