//! What there is below a local directory, and what it is to be called in the store.

use crate::command::exit::{Exit, Failure};
use crate::command::failures::Failures;
use crate::command::progress::Progress;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::DirEntry;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// A tree, each directory before what is in it.
#[derive(Default)]
pub(crate) struct Tree {
    pub(crate) directories: Vec<(PathBuf, String)>,
    pub(crate) files: Vec<(PathBuf, String)>,
    /// More names of files: the file's first name in the store, and the further one.
    pub(crate) more_names: Vec<(String, String)>,
    /// Symbolic links: what they say, and their names in the store.
    pub(crate) symlinks: Vec<(PathBuf, PathBuf, String)>,
    /// The bytes of all files.
    pub(crate) bytes: u64,
    /// By device and inode, the first name of files that have several.
    first_names: HashMap<(u64, u64), String>,
}

/// Walks without following any link. What cannot be put is a failure; the rest goes on.
pub(crate) fn walk(root: &Path, to: &str, failures: &Failures, progress: &Progress) -> Tree {
    let mut tree = Tree::default();
    let mut walk = Walk { tree: &mut tree, failures, progress };
    walk.directory(root, to);
    tree
}

struct Walk<'a> {
    tree: &'a mut Tree,
    failures: &'a Failures,
    progress: &'a Progress,
}

impl Walk<'_> {
    fn fail(&self, path: &Path, why: impl Into<anyhow::Error>) {
        self.progress.say(&self.failures.add(&path.to_string_lossy(), &why.into()));
    }

    fn directory(&mut self, path: &Path, to: &str) {
        self.tree.directories.push((path.to_owned(), to.to_owned()));
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<DirEntry>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.fail(path, anyhow::Error::from(error).context("cannot list it")),
        };
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            match join(to, &entry.file_name()) {
                Ok(to) => self.entry(&path, to),
                Err(error) => self.fail(&path, error),
            }
        }
    }

    fn entry(&mut self, path: &Path, to: String) {
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(error) => return self.fail(path, anyhow::Error::from(error).context("it vanished")),
        };
        let kind = found.file_type();
        if kind.is_dir() {
            return self.directory(path, &to);
        }
        if (kind.is_file() || kind.is_symlink()) && found.nlink() > 1 {
            let first = self.tree.first_names.entry((found.dev(), found.ino()));
            if let std::collections::hash_map::Entry::Occupied(first) = first {
                return self.tree.more_names.push((first.get().clone(), to));
            }
            first.or_insert_with(|| to.clone());
        }
        if kind.is_file() {
            self.tree.bytes += found.len();
            self.tree.files.push((path.to_owned(), to));
        } else if kind.is_symlink() {
            match std::fs::read_link(path) {
                Ok(says) => self.tree.symlinks.push((path.to_owned(), says, to)),
                Err(error) => self.fail(path, anyhow::Error::from(error).context("cannot read the link")),
            }
        } else {
            let what = if kind.is_fifo() {
                "a pipe"
            } else if kind.is_socket() {
                "a socket"
            } else {
                "a device"
            };
            let text = format!("it is {what}, which a store cannot hold; leave it out");
            self.fail(path, Failure::new(Exit::Failed, text));
        }
    }
}

/// The name in the store of what is called `name` here.
fn join(directory: &str, name: &OsStr) -> Result<String, Failure> {
    let name = name.to_str().ok_or_else(|| {
        Failure::new(Exit::Failed, "its name is not UTF-8, and the store's names are; rename it")
    })?;
    Ok(format!("{}/{name}", directory.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_kept_and_not_followed_and_what_cannot_be_put_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("empty")).unwrap();
        std::fs::write(root.join("a\nb c"), "12345").unwrap();
        std::fs::hard_link(root.join("a\nb c"), root.join("again")).unwrap();
        symlink("/etc", root.join("link")).unwrap();
        symlink("..", root.join("up")).unwrap();
        std::fs::write(root.join(OsStr::from_bytes(b"bad\xff")), "x").unwrap();
        let failures = Failures::default();
        let tree = walk(root, "/to", &failures, &Progress::new(None, "put"));
        let names = |all: &[(PathBuf, String)]| all.iter().map(|(_, to)| to.clone()).collect::<Vec<_>>();
        assert_eq!(names(&tree.directories), ["/to", "/to/empty"]);
        assert_eq!(names(&tree.files), ["/to/a\nb c"]);
        assert_eq!(tree.more_names, [("/to/a\nb c".to_owned(), "/to/again".to_owned())]);
        let links: Vec<_> =
            tree.symlinks.iter().map(|(_, says, to)| (says.to_str().unwrap(), to.as_str())).collect();
        assert_eq!(links, [("/etc", "/to/link"), ("..", "/to/up")]);
        assert_eq!((tree.bytes, failures.json().as_array().unwrap().len()), (5, 1));
        assert!(failures.json()[0]["error"].as_str().unwrap().contains("not UTF-8"));
    }
}
