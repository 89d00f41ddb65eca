//! `leasehold get`: files of the store, read by RDMA under read leases.
//!
//! ```text
//! plan         which ranges of which files: holes are skipped by the block map
//! fetch.rs     acquire, read, write locally, release; many ranges at once
//! part.rs      the local file until it is complete: NAME.leasehold-part
//! tree.rs      directories, links, attributes
//! ```

mod fetch;
mod part;
mod tree;

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::get::fetch::{Fetch, Fetching};
use crate::command::get::part::{Local, Sink};
use crate::command::line::{Line, Reconnect};
use crate::command::place;
use crate::command::progress::Progress;
use crate::command::put::{Conflict, Pipeline};
use crate::command::show;
use crate::size::rough;
use leasehold_client::proto;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Read a file or directory of the store, by RDMA
///
/// A local file appears under its name once it is complete; until then it is NAME.leasehold-part, from which --resume
/// goes on. Holes of the store's file are not sent, and become holes.
#[derive(Debug, clap::Args)]
// A piece is sent once all of it was read: smaller ones, and more of them, keep disk and network busy at once.
#[command(mut_arg("chunk", |chunk| chunk.default_value("4MiB")), mut_arg("depth", |depth| depth.default_value("8")))]
pub(crate) struct Get {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    from: String,
    /// The local file or directory; `-` for standard output
    file: PathBuf,
    /// Get a directory and all that is in it: into the local directory if that exists, else as it
    #[arg(short, long)]
    recursive: bool,
    /// Keep permissions, times of modification, and extended attributes (user.*)
    #[arg(short, long)]
    preserve: bool,
    /// Compare with what is here, by checksums, and fetch only what differs
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    reconnect: Reconnect,
    #[command(flatten)]
    pipeline: Pipeline,
    #[command(flatten)]
    conflict: Conflict,
}

impl Get {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let location = place::find(common, &self.from)?;
        let progress = Arc::new(Progress::new(None, "get"));
        let line = Line::open(common, &location.server, self.reconnect, progress.clone()).await?;
        // `SRC/.`: what is in it, as `cp` has it.
        let trimmed = location.path.trim_end_matches('/');
        let (path, contents) = trimmed.strip_suffix("/.").map_or((trimmed, false), |path| (path, true));
        let path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
        let found = line.hold(async |link| Ok(link.client().stat(&path).await?)).await?;
        let fetch = Fetch::new(line, self.conflict.options(), &self.pipeline, self.resume, progress);
        match found.kind() {
            proto::file::Kind::Directory if self.recursive => self.tree(common, fetch, found, contents).await,
            proto::file::Kind::Directory => {
                let text = format!("{path} is a directory; get it with --recursive");
                Err(Failure::new(Exit::Usage, text).into())
            }
            proto::file::Kind::File => self.one(common, fetch, found).await,
            _ => Err(Failure::new(Exit::Failed, format!("{path} is not an ordinary file; name one")).into()),
        }
    }

    async fn one(self, common: &Common, fetch: Fetch, found: proto::File) -> Outcome {
        let started = Instant::now();
        fetch.progress.expect(found.size);
        let local = Local::open(&self.file, self.resume)?;
        let to_a_file = matches!(local, Local::File(_));
        let file = match local {
            Local::Stream(stream) => {
                fetch.stream(&found, stream).await?;
                None
            }
            Local::File(sink) => Some(self.fetch_file(&fetch, &found, sink).await?),
        };
        if self.preserve && to_a_file {
            tree::copy_attributes(&fetch, &found.path, &self.file).await?;
        }
        let fetched = fetch.fetched();
        let Fetch { line, progress, .. } = fetch;
        line.close().await;
        drop(progress);
        let (path, bytes, took) = (&found.path, found.size, started.elapsed());
        if file.is_none() {
            return Ok(());
        }
        if common.json {
            let value =
                json!({ "path": path, "bytes": bytes, "fetched": fetched, "seconds": took.as_secs_f64() });
            return Ok(show::json_document(&value)?);
        }
        let rate = rough((fetched as f64 / took.as_secs_f64().max(1e-9)) as u64);
        let took = show::duration(took);
        let part = if fetched == bytes { String::new() } else { format!(" ({} fetched)", rough(fetched)) };
        Ok(show::line(format_args!("got {}{part} of {path} in {took} ({rate}/s)", rough(bytes)))?)
    }

    async fn fetch_file(&self, fetch: &Fetch, found: &proto::File, sink: Sink) -> Outcome {
        let fetching = Arc::new(Fetching::new(found, sink));
        fetch.whole(&fetching).await;
        let now = fetch.line.hold(async |link| Ok(link.client().stat(&found.path).await?.size)).await;
        fetching.complete(now?)
    }
}
