//! What administrators look at: who holds what, and who waits for whom.

use crate::break_log::Who;
use crate::driver::{View, unix_ms};
use crate::engine::Engine;
use crate::path::StorePath;
use crate::storage::NamespaceError;
use leasehold_core::input::Access;
use leasehold_core::view::{LeaseState, WaitKind, WaitOn};
use serde::Serialize;

/// One lease.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseRow {
    /// Its id.
    pub lease: u64,
    /// Whose.
    pub session: u64,
    /// Who that is.
    pub holder: Who,
    /// On which file.
    pub path: String,
    /// The first byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// `read`, `overwrite` or `update`.
    pub access: &'static str,
    /// `preparing`, `live`, `fencing`, `committing` or `abandoned`.
    pub state: &'static str,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it falls if its holder does not answer a break, in milliseconds since 1970.
    pub deadline_ms: Option<u64>,
}

/// One request that waits.
#[derive(Clone, Debug, Serialize)]
pub struct WaitRow {
    /// Its id.
    pub request: u64,
    /// Who asked, if that is known.
    pub who: Option<Who>,
    /// What it wants, for people.
    pub wants: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it gives up, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// What it waits for, for people, one line each.
    pub waits_for: Vec<String>,
}

impl Engine {
    /// Every lease, of one file or of all, ordered by id. Empty once the engine has stopped.
    pub async fn leases(&self, path: Option<&StorePath>) -> Vec<LeaseRow> {
        let wanted = path.cloned();
        self.look(move |view| {
            let row = |lease: leasehold_core::view::LeaseView| {
                let path = view.storage.path_of(lease.file);
                if wanted.is_some() && wanted != path {
                    return None;
                }
                Some(LeaseRow {
                    lease: lease.id.0,
                    session: lease.session.0,
                    holder: (&*lease.identity).into(),
                    path: path.map_or_else(|| lease.file.to_string(), |path| path.to_string()),
                    start: lease.range.start(),
                    end: lease.range.end(),
                    access: match lease.access {
                        Access::Read => "read",
                        Access::Overwrite => "overwrite",
                        Access::Update => "update",
                    },
                    state: match lease.state {
                        LeaseState::Preparing => "preparing",
                        LeaseState::Live => "live",
                        LeaseState::Parked => "parked",
                        LeaseState::Fencing => "fencing",
                        LeaseState::Committing => "committing",
                        LeaseState::Abandoned => "abandoned",
                    },
                    since_ms: unix_ms(view.clock.system(lease.since)),
                    deadline_ms: lease.deadline.map(|tick| unix_ms(view.clock.system(tick))),
                })
            };
            let mut rows: Vec<LeaseRow> = view.core.leases().filter_map(row).collect();
            rows.sort_by_key(|row| row.lease);
            rows
        })
        .await
        .unwrap_or_default()
    }

    /// Who waits for whom on the file, until when.
    ///
    /// # Errors
    /// The file does not exist.
    pub async fn why(&self, path: &StorePath) -> Result<Vec<WaitRow>, NamespaceError> {
        let pinned = self.pin(path).await?;
        let file = pinned.file();
        let rows = self
            .look(move |view| {
                let here = view.core.waits().filter(|wait| wait.file == file);
                here.map(|wait| WaitRow {
                    request: wait.request.0,
                    who: wait.who.as_deref().map(Who::from),
                    wants: match wait.what {
                        WaitKind::Operation(operation) => {
                            view.operations.describe(operation, wait.who.as_ref())
                        }
                        WaitKind::Read(range) => format!("read {range}"),
                        WaitKind::Sync => "fsync".to_owned(),
                        WaitKind::Commit(lease) => format!("commit lease {lease}"),
                        WaitKind::Release(lease) => format!("release lease {lease}"),
                        WaitKind::Capture(lease, range) => format!("capture {range} of lease {lease}"),
                    },
                    since_ms: unix_ms(view.clock.system(wait.since)),
                    until_ms: wait.until.map(|tick| unix_ms(view.clock.system(tick))),
                    waits_for: wait.on.iter().map(|on| wait_text(view, on)).collect(),
                })
                .collect()
            })
            .await;
        Ok(rows.unwrap_or_default())
    }
}

fn wait_text(view: &View<'_>, on: &WaitOn) -> String {
    match on {
        WaitOn::Lease { id, holder, deadline } => {
            let who = format!("lease {id} of {} (pid {} on {})", holder.program, holder.pid, holder.host);
            match deadline {
                Some(deadline) => {
                    let left_us = deadline.0.saturating_sub(view.clock.now().0);
                    format!("{who}, for {:.1} s at most", left_us as f64 / 1e6)
                }
                None => format!("{who}, which nobody breaks"),
            }
        }
        WaitOn::Fence(lease) => format!("the fence of lease {lease}"),
        WaitOn::Request(request) => format!("request {request}, which came first"),
        WaitOn::Writeback(write) => format!("writeback {write} of the same blocks"),
        WaitOn::Frames => "free frames in the arena".to_owned(),
        WaitOn::Disk => "the disk".to_owned(),
    }
}
