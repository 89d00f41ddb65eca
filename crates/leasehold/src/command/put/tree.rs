//! `leasehold put --recursive`: a directory and all that is in it.
//!
//! Directories first, then files, many small ones at once, then links, and the directories' own attributes last, since
//! what is made in them changes their times. What fails is named, and the rest goes on.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::failures::Failures;
use crate::command::line::Link;
use crate::command::put::target::{From, Target};
use crate::command::put::transfer::Transfer;
use crate::command::put::walk::{Tree, walk};
use crate::command::put::{Put, attributes, source};
use crate::command::show;
use crate::size::rough;
use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use leasehold_client::{CallError, Reason, proto};
use serde_json::json;
use std::cell::Cell;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Instant;

/// How many calls about names are under way at once.
const CALLS_MAX: usize = 32;

/// What came of it.
#[derive(Default)]
struct Done {
    failures: Failures,
    files: Cell<u64>,
    bytes: Cell<u64>,
    sent: Cell<u64>,
    links: Cell<u64>,
    directories: Cell<u64>,
}

impl Put {
    pub(crate) async fn tree(&self, common: &Common, transfer: Transfer, from: &Path, to: String) -> Outcome {
        let started = Instant::now();
        let root = destination(&transfer, from, &to).await?;
        let done = Done::default();
        let progress = transfer.progress.clone();
        let tree = tokio::task::block_in_place(|| walk(from, &root, &done.failures, &progress));
        progress.expect(tree.bytes);
        done.make_directories(&transfer, &tree).await?;
        let targets =
            tree.files.iter().map(|(from, to)| Target::new(From::File(from.clone()), to.clone())).collect();
        let batches = source::read(targets, self.pipeline.chunk.0, transfer.stop.clone());
        let over = |target: &Target| done.file_is_over(&transfer, target);
        transfer.all(batches, usize::from(self.pipeline.depth), &over).await;
        done.make_links(&transfer, &tree).await;
        if self.preserve {
            done.set_directories(&transfer, &tree).await;
        }
        if !self.no_sync {
            // The names that came after the last file.
            transfer.line.hold(async |link| Ok(link.session.sync(&root).await?)).await?;
        }
        transfer.line.close().await;
        drop((transfer.progress, progress));
        self.print_tree(common, &root, &done, started)?;
        done.failures.outcome("put")
    }

    fn print_tree(&self, common: &Common, root: &str, done: &Done, started: Instant) -> Outcome {
        let (took, durable) = (started.elapsed(), !self.no_sync);
        let Done { failures, files, bytes, sent, links, directories } = done;
        if common.json {
            let value = json!({
                "path": root,
                "files": files.get(),
                "directories": directories.get(),
                "links": links.get(),
                "bytes": bytes.get(),
                "sent": sent.get(),
                "seconds": took.as_secs_f64(),
                "durable": durable,
                "failures": failures.json(),
            });
            return Ok(show::json_document(&value)?);
        }
        let state = if durable { "durable" } else { "not yet durable" };
        let sent = if sent == bytes { String::new() } else { format!(" ({} sent)", rough(sent.get())) };
        Ok(show::line(format_args!(
            "put {}, {}{sent}, into {root} in {}, {state}",
            show::tree(files.get(), directories.get(), links.get()),
            rough(bytes.get()),
            show::duration(took),
        ))?)
    }
}

/// As `cp -r` has it: into a directory that exists, else as the destination itself.
async fn destination(transfer: &Transfer, from: &Path, to: &str) -> anyhow::Result<String> {
    let to = match to.trim_end_matches('/') {
        "" => "/",
        to => to,
    };
    let found = transfer
        .line
        .hold(async |link| match link.client().stat(to).await {
            Ok(found) => Ok(Some(found.kind())),
            Err(error) if error.reason == Reason::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        })
        .await?;
    // `.`, `..` and `/` have no name of their own: what is in them goes into the destination.
    let name = if is_unnamed(from) { None } else { from.file_name() };
    match (found, name) {
        (None, _) | (Some(proto::file::Kind::Directory), None) => Ok(to.to_owned()),
        (Some(proto::file::Kind::Directory), Some(name)) => {
            let name =
                name.to_str().with_context(|| format!("{} is not UTF-8; rename it", from.display()))?;
            Ok(format!("{}/{name}", to.trim_end_matches('/')))
        }
        (Some(_), _) => {
            let text = format!("{to} is not a directory, and {} is; choose another name", from.display());
            Err(Failure::new(Exit::Failed, text).into())
        }
    }
}

/// `DIR/.`, which the standard library takes for `DIR`.
fn is_unnamed(path: &Path) -> bool {
    path == Path::new(".") || path.as_os_str().as_bytes().ends_with(b"/.")
}

impl Done {
    fn fail(&self, transfer: &Transfer, name: &str, error: &anyhow::Error) {
        transfer.progress.say(&self.failures.add(name, error));
    }

    fn file_is_over(&self, transfer: &Transfer, target: &Target) {
        let mut state = target.state();
        self.sent.set(self.sent.get() + state.sent_bytes);
        if let Some(error) = state.failed.take() {
            self.fail(transfer, &target.path, &error);
        } else {
            self.files.set(self.files.get() + 1);
            self.bytes.set(self.bytes.get() + state.length.unwrap_or_default());
        }
        // There may be a million files.
        state.committed = Vec::new();
        state.holes = Vec::new();
    }

    async fn make_directories(&self, transfer: &Transfer, tree: &Tree) -> Outcome {
        let Some(((_, root), below)) = tree.directories.split_first() else { return Ok(()) };
        // Without its parents: a name that was mistyped should not become a tree.
        let made = transfer
            .line
            .hold(async |link| match link.client().make_directory(root, false).await {
                Err(error) if error.reason != Reason::AlreadyExists && root != "/" => Err(error.into()),
                _ => Ok(link.client().make_directory(root, true).await?),
            })
            .await;
        made?;
        self.directories.set(1);
        let make = async |to: &String| {
            let make = transfer.line.hold(async |link| Ok(link.client().make_directory(to, true).await?));
            match make.await {
                Ok(()) => self.directories.set(self.directories.get() + 1),
                Err(error) => self.fail(transfer, to, &error),
            }
        };
        stream::iter(below).for_each_concurrent(CALLS_MAX, |(_, to)| make(to)).await;
        Ok(())
    }

    async fn set_directories(&self, transfer: &Transfer, tree: &Tree) {
        // What is below first: making it changed the times of what is above.
        for (from, to) in tree.directories.iter().rev() {
            let set = transfer.line.hold(async |link| attributes::copy_from(link, from.clone(), to).await);
            if let Err(error) = set.await {
                self.fail(transfer, to, &error);
            }
        }
    }

    async fn make_links(&self, transfer: &Transfer, tree: &Tree) {
        let made = async |to: &String, made: anyhow::Result<()>| match made {
            Ok(()) => self.links.set(self.links.get() + 1),
            Err(error) => self.fail(transfer, to, &error),
        };
        let symlinks = stream::iter(&tree.symlinks).for_each_concurrent(CALLS_MAX, async |(_, says, to)| {
            made(to, self.symlink(transfer, says, to).await).await;
        });
        symlinks.await;
        let more = stream::iter(&tree.more_names).for_each_concurrent(CALLS_MAX, async |(first, to)| {
            let link = transfer
                .line
                .hold(async |link| replacing(link, to, async || link.client().link(first, to).await).await);
            made(to, link.await).await;
        });
        more.await;
    }

    async fn symlink(&self, transfer: &Transfer, says: &Path, to: &str) -> Outcome {
        let Some(says) = says.to_str() else {
            let text = "it is a symbolic link to a name that is not UTF-8, which a store cannot hold";
            return Err(Failure::new(Exit::Failed, text).into());
        };
        transfer
            .line
            .hold(async |link| replacing(link, to, async || link.client().symlink(says, to).await).await)
            .await
    }
}

/// Makes a link; what has its name goes first, unless that is a directory.
async fn replacing(
    link: &Link,
    to: &str,
    make: impl AsyncFn() -> Result<(), CallError>,
) -> anyhow::Result<()> {
    match make().await {
        Err(error) if error.reason == Reason::AlreadyExists => {}
        made => return Ok(made?),
    }
    if link.client().stat(to).await?.kind() == proto::file::Kind::Directory {
        return Err(Failure::new(Exit::Failed, "a directory has its name; remove that first").into());
    }
    link.client().remove(to).await?;
    Ok(make().await?)
}
