//! `leasehold get --recursive`: a directory of the store and all that is in it.
//!
//! Names come from the server, so each is checked before it becomes a local one, and nothing is written through a local
//! link. What fails is named, and the rest goes on.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::failures::Failures;
use crate::command::get::Get;
use crate::command::get::fetch::{Fetch, Fetching, cut};
use crate::command::get::part::Sink;
use crate::command::show;
use crate::size::rough;
use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use leasehold_client::proto::{self, file::Kind};
use leasehold_client::{ByteRange, convert};
use rustix::fs::{XattrFlags, setxattr};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// How many calls about names are under way at once.
const CALLS_MAX: usize = 32;
/// The most small files that are fetched together: each is a lease.
const BATCH_MAX: usize = 64;

/// A tree of the store, and what came of it.
#[derive(Default)]
struct Tree {
    failures: Failures,
    directories: RefCell<Vec<(String, PathBuf)>>,
    files: RefCell<Vec<(proto::File, PathBuf)>>,
    /// More names of files: a file's first local name, and the further one.
    more_names: RefCell<Vec<(PathBuf, PathBuf)>>,
    symlinks: RefCell<Vec<(String, PathBuf)>>,
    /// By inode, the first local name of files that have several.
    first_names: RefCell<HashMap<u64, PathBuf>>,
    done: RefCell<Vec<(String, PathBuf)>>,
    bytes: Cell<u64>,
    links: Cell<u64>,
}

impl Get {
    pub(crate) async fn tree(
        &self,
        common: &Common,
        fetch: Fetch,
        found: proto::File,
        contents: bool,
    ) -> Outcome {
        let started = Instant::now();
        let name = if contents { "" } else { found.path.rsplit('/').next().unwrap_or_default() };
        let root = destination(&self.file, name)?;
        let tree = Tree::default();
        std::fs::create_dir(&root)
            .or_else(|error| if root.is_dir() { Ok(()) } else { Err(error) })
            .with_context(|| format!("cannot make {}", root.display()))?;
        tree.list(&fetch, found.path.clone(), root.clone()).await?;
        fetch.progress.expect(tree.files.borrow().iter().map(|(file, _)| file.size).sum());
        tree.fetch_files(&fetch, self.resume).await;
        tree.make_links(&fetch).await;
        if self.preserve {
            tree.set_attributes(&fetch).await;
        }
        let fetched = fetch.fetched();
        let Fetch { line, progress, .. } = fetch;
        line.close().await;
        drop(progress);
        self.print_tree(common, &found.path, &tree, fetched, started)?;
        tree.failures.outcome("got")
    }

    fn print_tree(
        &self,
        common: &Common,
        path: &str,
        tree: &Tree,
        fetched: u64,
        started: Instant,
    ) -> Outcome {
        let took = started.elapsed();
        let (files, directories) = (tree.done.borrow().len(), tree.directories.borrow().len());
        let (links, bytes) = (tree.links.get(), tree.bytes.get());
        if common.json {
            let value = json!({
                "path": path,
                "files": files,
                "directories": directories,
                "links": links,
                "bytes": bytes,
                "fetched": fetched,
                "seconds": took.as_secs_f64(),
                "failures": tree.failures.json(),
            });
            return Ok(show::json_document(&value)?);
        }
        let part = if fetched == bytes { String::new() } else { format!(" ({} fetched)", rough(fetched)) };
        Ok(show::line(format_args!(
            "got {}, {}{part}, of {path} in {}",
            show::tree(files as u64, directories as u64, links),
            rough(bytes),
            show::duration(took),
        ))?)
    }
}

/// As `cp -r` has it: into a directory that exists, else as the destination itself.
fn destination(to: &Path, name: &str) -> anyhow::Result<PathBuf> {
    match std::fs::metadata(to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(to.to_owned()),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", to.display())),
        // The root, and `SRC/.`, have no name of their own.
        Ok(found) if found.is_dir() => Ok(to.join(name)),
        Ok(_) => {
            let text = format!("{} is not a directory, and /{name} is; choose another name", to.display());
            Err(Failure::new(Exit::Failed, text).into())
        }
    }
}

/// The local name of what the server calls `path`, in `directory`.
fn local_name(directory: &Path, path: &str) -> anyhow::Result<PathBuf> {
    let name = path.rsplit('/').next().unwrap_or_default();
    if matches!(name, "" | "." | "..") || name.contains('\0') {
        return Err(Failure::new(
            Exit::Failed,
            format!("the server sent the name {name:?}, which no file has"),
        )
        .into());
    }
    Ok(directory.join(name))
}

impl Tree {
    fn fail(&self, fetch: &Fetch, name: &str, error: &anyhow::Error) {
        fetch.progress.say(&self.failures.add(name, error));
    }

    /// Everything below, and the local directories for it. Fails only if the first list cannot be had.
    async fn list(&self, fetch: &Fetch, path: String, root: PathBuf) -> anyhow::Result<()> {
        let mut level = vec![(path, root)];
        while !level.is_empty() {
            let first = self.directories.borrow().is_empty();
            let mut below = Vec::new();
            let mut lists = stream::iter(std::mem::take(&mut level))
                .map(async |(path, local)| {
                    let list = fetch.line.hold(async |link| Ok(link.client().list(&path).await?)).await;
                    (path, local, list)
                })
                .buffer_unordered(CALLS_MAX);
            while let Some((path, local, list)) = lists.next().await {
                match list {
                    Ok(list) => {
                        for file in list {
                            let name = file.path.clone();
                            if let Err(error) = self.entry(&local, file, &mut below) {
                                self.fail(fetch, &name, &error);
                            }
                        }
                        self.directories.borrow_mut().push((path, local));
                    }
                    Err(error) if first => return Err(error),
                    Err(error) => self.fail(fetch, &path, &error),
                }
            }
            level = below;
        }
        Ok(())
    }

    fn entry(
        &self,
        directory: &Path,
        file: proto::File,
        below: &mut Vec<(String, PathBuf)>,
    ) -> anyhow::Result<()> {
        let local = local_name(directory, &file.path)?;
        let kind = file.kind();
        if matches!(kind, Kind::File | Kind::Link) && file.links > 1 && file.inode != 0 {
            let mut first_names = self.first_names.borrow_mut();
            if let Some(first) = first_names.get(&file.inode) {
                self.more_names.borrow_mut().push((first.clone(), local));
                return Ok(());
            }
            first_names.insert(file.inode, local.clone());
        }
        match kind {
            Kind::Directory => {
                let made = std::fs::create_dir(&local);
                // A link to a directory is none: what is below must not be written elsewhere.
                let there = || local.symlink_metadata().is_ok_and(|there| there.is_dir());
                made.or_else(|error| if there() { Ok(()) } else { Err(error) })
                    .with_context(|| format!("cannot make {}", local.display()))?;
                below.push((file.path, local));
            }
            Kind::File => self.files.borrow_mut().push((file, local)),
            Kind::Link => self.symlinks.borrow_mut().push((file.path, local)),
            _ => return Err(Failure::new(Exit::Failed, "it is not an ordinary file; left out").into()),
        }
        Ok(())
    }

    async fn fetch_files(&self, fetch: &Fetch, resume: bool) {
        let mut batches: Vec<Vec<(proto::File, PathBuf)>> = Vec::new();
        let mut bytes = u64::MAX;
        // A list has the lengths on disk; what was committed may be more if another tool has been there.
        let found: Vec<_> = stream::iter(self.files.take())
            .map(async |(file, local)| {
                let now = fetch.line.hold(async |link| Ok(link.client().stat(&file.path).await?)).await;
                now.map(|now| (now, local)).inspect_err(|error| self.fail(fetch, &file.path, error)).ok()
            })
            .buffered(CALLS_MAX)
            .collect()
            .await;
        for (file, local) in found.into_iter().flatten() {
            // A long file goes alone; with --resume each is compared by itself.
            let alone = file.size > fetch.chunk || resume;
            if alone
                || bytes.saturating_add(file.size) > fetch.chunk
                || batches.last().is_none_or(|last| last.len() >= BATCH_MAX)
            {
                batches.push(Vec::new());
                bytes = 0;
            }
            bytes = if alone { u64::MAX } else { bytes + file.size };
            batches.last_mut().expect("pushed above").push((file, local));
        }
        stream::iter(batches)
            .for_each_concurrent(fetch.depth, |batch| self.fetch_batch(fetch, resume, batch))
            .await;
    }

    async fn fetch_batch(&self, fetch: &Fetch, resume: bool, batch: Vec<(proto::File, PathBuf)>) {
        let fetchings: Vec<_> = batch
            .into_iter()
            .map(|(file, local)| (Arc::new(Fetching::new(&file, Sink::new(local.clone(), resume))), local))
            .collect();
        let mut now = None;
        match &fetchings[..] {
            [(fetching, _)] if fetching.size > fetch.chunk || resume => {
                fetch.whole(fetching).await;
                // Long enough under way to have become shorter.
                let path = &fetching.path;
                now = Some(fetch.line.hold(async |link| Ok(link.client().stat(path).await?.size)).await);
            }
            _ => {
                let whole = |fetching: &Arc<Fetching>| cut(0, fetching.size, u64::MAX / 2).next();
                let ranges: Vec<(Arc<Fetching>, ByteRange)> = fetchings
                    .iter()
                    .filter_map(|(fetching, _)| Some((fetching.clone(), whole(fetching)?)))
                    .collect();
                if !ranges.is_empty() {
                    fetch.fetch(ranges).await;
                }
            }
        }
        for (fetching, local) in fetchings {
            let now = now.take().unwrap_or(Ok(fetching.size));
            match now.and_then(|now| fetching.complete(now)) {
                Ok(()) => {
                    self.bytes.set(self.bytes.get() + fetching.size);
                    self.done.borrow_mut().push((fetching.path.clone(), local));
                }
                Err(error) => self.fail(fetch, &fetching.path, &error),
            }
        }
    }

    async fn make_links(&self, fetch: &Fetch) {
        for (path, local) in self.symlinks.take() {
            let says = fetch.line.hold(async |link| Ok(link.client().read_link(&path).await?)).await;
            let made = says.and_then(|says| replace(&local, |new| std::os::unix::fs::symlink(&says, new)));
            match made {
                Ok(()) => self.links.set(self.links.get() + 1),
                Err(error) => self.fail(fetch, &path, &error),
            }
        }
        for (first, local) in self.more_names.take() {
            match replace(&local, |new| std::fs::hard_link(&first, new)) {
                Ok(()) => self.links.set(self.links.get() + 1),
                Err(error) => self.fail(fetch, &local.to_string_lossy(), &error),
            }
        }
    }

    async fn set_attributes(&self, fetch: &Fetch) {
        let files = self.done.borrow().clone();
        // Directories behind what is in them, which changes their times; the deepest first.
        let directories = self.directories.borrow().iter().rev().cloned().collect::<Vec<_>>();
        let set = async |(path, local): (String, PathBuf)| {
            if let Err(error) = copy_attributes(fetch, &path, &local).await {
                self.fail(fetch, &path, &error);
            }
        };
        stream::iter(files).for_each_concurrent(CALLS_MAX, &set).await;
        for directory in directories {
            set(directory).await;
        }
    }
}

/// Makes a link under a name that something else may have: beside it first, so that the name is never without one.
fn replace(local: &Path, make: impl Fn(&Path) -> std::io::Result<()>) -> anyhow::Result<()> {
    let mut beside = local.to_owned().into_os_string();
    beside.push(".leasehold-part");
    let beside = PathBuf::from(beside);
    let made = match make(local) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            // Left by an earlier get that was killed.
            let _nothing_was_there = std::fs::remove_file(&beside);
            make(&beside).and_then(|()| {
                let renamed = std::fs::rename(&beside, local);
                // Two names of the same file already: then rename does nothing.
                let _it_has_gone = std::fs::remove_file(&beside);
                renamed
            })
        }
        made => made,
    };
    made.with_context(|| format!("cannot make {}", local.display()))
}

/// Gives a local file or directory what the one in the store has.
pub(crate) async fn copy_attributes(fetch: &Fetch, path: &str, local: &Path) -> Outcome {
    let found = fetch.line.hold(async |link| Ok(link.client().attributes(path).await?)).await?;
    let set = || -> std::io::Result<()> {
        for (name, value) in found.xattrs.iter().flat_map(|xattrs| &xattrs.values) {
            if name.starts_with("user.") {
                setxattr(local, name.as_str(), value, XattrFlags::empty())?;
            }
        }
        if let Some(modified) = found.modified {
            std::fs::File::open(local)?.set_modified(convert::time_in(Some(modified)))?;
        }
        if let Some(mode) = found.mode {
            // No setuid, setgid for a file by the word of a server.
            let may = if local.is_dir() { 0o3777 } else { 0o777 };
            std::fs::set_permissions(local, std::fs::Permissions::from_mode(mode & may))?;
        }
        Ok(())
    };
    set().with_context(|| format!("cannot set the attributes of {}", local.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_lead_elsewhere_is_refused() {
        let directory = Path::new("/tree");
        assert_eq!(local_name(directory, "/a/b").unwrap(), Path::new("/tree/b"));
        for bad in ["/a/..", "/a/.", "/a/", ".."] {
            assert!(local_name(directory, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_replaces_what_has_its_name_and_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("elsewhere"), "kept").unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("name")).unwrap();
        replace(&at("name"), |new| std::os::unix::fs::symlink("target", new)).unwrap();
        assert_eq!(std::fs::read_link(at("name")).unwrap(), Path::new("target"));
        assert_eq!(std::fs::read_to_string(at("elsewhere")).unwrap(), "kept");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
