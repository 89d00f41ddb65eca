//! What the kernel calls a file or directory (a number), which names that has, and who has it open.

use leasehold_engine::files::OpenFile;
use leasehold_engine::path::StorePath;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::{Arc, Mutex};

/// The root's number.
pub(super) const ROOT: u64 = 1;

/// All that the kernel knows of.
pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    /// By the store's own inodes. A file without names is not in it: its inode may be another's soon.
    by_inode: HashMap<u64, u64>,
    next: u64,
}

#[derive(Default)]
struct Node {
    inode: u64,
    /// The names that we have seen. Several: hard links.
    names: Vec<StorePath>,
    lookups: u64,
    openers: Vec<Opener>,
    /// As long as somebody has it open, and it has a name.
    file: Option<Arc<OpenFile>>,
    /// The kernel may have pages of it.
    pages: bool,
    orphan: Option<Arc<File>>,
}

/// Who has it open, by which handle.
struct Opener {
    handle: u64,
    pid: u32,
}

/// What a number stands for.
pub(super) enum Found {
    /// Something with a name.
    Name(StorePath),
    /// A file that was removed and is open: its bytes are nobody else's business.
    Orphan(Arc<File>),
}

impl Nodes {
    /// For the filesystem, and for whoever else asks about its files.
    pub fn shared(root: StorePath) -> Arc<Mutex<Nodes>> {
        Arc::new(Mutex::new(Nodes::new(root)))
    }

    fn new(root: StorePath) -> Nodes {
        let root = Node { names: vec![root], lookups: 1, ..Node::default() };
        Nodes { nodes: HashMap::from([(ROOT, root)]), by_inode: HashMap::new(), next: ROOT + 1 }
    }

    /// The number of what has this inode and name; the kernel has it once more.
    pub fn look_up(&mut self, inode: u64, name: StorePath) -> u64 {
        let next = &mut self.next;
        let id = *self.by_inode.entry(inode).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
        self.displace(&name, id);
        let node = self.nodes.entry(id).or_default();
        node.inode = inode;
        node.lookups += 1;
        if !node.names.contains(&name) {
            node.names.push(name);
        }
        id
    }

    /// A name that stands for something else by now is nobody else's.
    fn displace(&mut self, name: &StorePath, but: u64) {
        for (_, node) in self.nodes.iter_mut().filter(|(id, node)| **id != but && node.names.contains(name)) {
            node.names.retain(|other| other != name);
        }
    }

    /// The kernel has it so many times less.
    pub fn forget(&mut self, id: u64, times: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.lookups = node.lookups.saturating_sub(times);
        self.drop_unused(id);
    }

    fn drop_unused(&mut self, id: u64) {
        let unused = self.nodes.get(&id).is_some_and(|node| node.lookups == 0 && node.openers.is_empty());
        if unused && id != ROOT {
            let node = self.nodes.remove(&id).expect("just seen");
            if self.by_inode.get(&node.inode) == Some(&id) {
                self.by_inode.remove(&node.inode);
            }
        }
    }

    pub fn found(&self, id: u64) -> Option<Found> {
        let node = self.nodes.get(&id)?;
        match (&node.orphan, node.names.first()) {
            (Some(orphan), _) => Some(Found::Orphan(orphan.clone())),
            (None, Some(name)) => Some(Found::Name(name.clone())),
            (None, None) => None,
        }
    }

    pub fn opened(&mut self, id: u64, handle: u64, pid: u32, file: Option<Arc<OpenFile>>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.openers.push(Opener { handle, pid });
            node.pages = true;
            node.file = file;
        }
    }

    /// The file, if somebody has it open.
    pub fn file(&self, id: u64) -> Option<Arc<OpenFile>> {
        self.nodes.get(&id)?.file.clone()
    }

    /// Its inode in the store.
    pub fn inode(&self, id: u64) -> Option<u64> {
        Some(self.nodes.get(&id)?.inode)
    }

    pub fn closed(&mut self, id: u64, handle: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.openers.retain(|opener| opener.handle != handle);
            if node.openers.is_empty() {
                node.file = None;
            }
        }
        self.drop_unused(id);
    }

    /// The processes that opened it, and have it open.
    pub fn openers(&self, id: u64) -> Vec<u32> {
        let openers = self.nodes.get(&id).map_or(&[][..], |node| &node.openers);
        let pids: BTreeSet<u32> = openers.iter().map(|opener| opener.pid).collect();
        pids.into_iter().collect()
    }

    /// Whether the kernel may have pages of it.
    pub fn has_pages(&self, inode: u64) -> bool {
        self.by_inode.get(&inode).and_then(|id| self.nodes.get(id)).is_some_and(|node| node.pages)
    }

    /// The kernel is told to forget pages of it. Its number, and whether that is to be all of them: of what nobody has open.
    pub fn forget_pages(&mut self, inode: u64) -> Option<(u64, bool)> {
        let id = *self.by_inode.get(&inode)?;
        let node = self.nodes.get_mut(&id)?;
        node.pages = !node.openers.is_empty();
        Some((id, !node.pages))
    }

    /// Others have removed it: its inode may be another's soon.
    pub fn removed(&mut self, inode: u64) {
        self.by_inode.remove(&inode);
    }

    /// The number of what has this name, if somebody has it open.
    pub fn is_open(&self, name: &StorePath) -> Option<u64> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, node)| !node.openers.is_empty() && node.names.contains(name)).map(|(id, _)| *id)
    }

    /// It has lost its last name, and is open.
    pub fn orphaned(&mut self, id: u64, file: File) {
        if let Some(node) = self.nodes.get_mut(&id) {
            (node.orphan, node.file) = (Some(Arc::new(file)), None);
        }
    }

    /// The name is gone.
    pub fn unlinked(&mut self, name: &StorePath) {
        self.displace(name, 0);
        let nameless = |id: &u64| self.nodes.get(id).is_none_or(|node| node.names.is_empty());
        self.by_inode.retain(|_, id| !nameless(id));
    }

    /// The two, and all that is below them, have exchanged their names.
    pub fn exchanged(&mut self, one: &StorePath, other: &StorePath) {
        for name in self.nodes.values_mut().flat_map(|node| &mut node.names) {
            if let Some(anew) = name.renamed(one, other).or_else(|| name.renamed(other, one)) {
                *name = anew;
            }
        }
    }

    /// `from`, and all that is below it, has another name.
    pub fn renamed(&mut self, from: &StorePath, to: &StorePath) {
        self.displace(to, 0);
        let below = format!("{}/", from.as_str());
        for name in self.nodes.values_mut().flat_map(|node| &mut node.names) {
            let renamed = if name == from {
                Some(to.clone())
            } else {
                let rest = name.as_str().strip_prefix(&below);
                rest.and_then(|rest| StorePath::parse(&format!("{}/{rest}", to.as_str())).ok())
            };
            if let Some(renamed) = renamed {
                *name = renamed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> StorePath {
        StorePath::parse(text).unwrap()
    }

    fn name(nodes: &Nodes, id: u64) -> Option<String> {
        match nodes.found(id)? {
            Found::Name(name) => Some(name.to_string()),
            Found::Orphan(_) => Some("orphan".to_owned()),
        }
    }

    #[test]
    fn hard_links_are_one_file_and_a_rename_takes_along_what_is_below() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let file = nodes.look_up(50, path("a/b/file"));
        assert_eq!(nodes.look_up(50, path("other")), file);
        nodes.renamed(&path("a"), &path("c"));
        assert_eq!(name(&nodes, file).as_deref(), Some("/c/b/file"));
        nodes.unlinked(&path("c/b/file"));
        assert_eq!(name(&nodes, file).as_deref(), Some("/other"));
    }

    #[test]
    fn a_number_is_never_used_again_and_an_inode_may_be() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let first = nodes.look_up(50, path("x"));
        nodes.opened(first, 7, 1, None);
        assert_eq!(nodes.is_open(&path("x")), Some(first));
        nodes.orphaned(first, tempfile::tempfile().unwrap());
        nodes.unlinked(&path("x"));
        assert_ne!(nodes.look_up(50, path("y")), first);
        assert_eq!(name(&nodes, first).as_deref(), Some("orphan"));
        nodes.forget(first, 1);
        assert!(nodes.found(first).is_some(), "it is open");
        nodes.closed(first, 7);
        assert!(nodes.found(first).is_none());
    }

    #[test]
    fn an_exchange_takes_along_what_is_below_on_both_sides() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let (file, below) = (nodes.look_up(1, path("a")), nodes.look_up(2, path("d/e/b")));
        nodes.exchanged(&path("a"), &path("d/e"));
        assert_eq!(name(&nodes, file).as_deref(), Some("/d/e"));
        assert_eq!(name(&nodes, below).as_deref(), Some("/a/b"));
    }

    #[test]
    fn an_inode_that_others_removed_is_another_file_when_it_comes_again() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let first = nodes.look_up(50, path("x"));
        nodes.opened(first, 7, 1, None);
        assert!(nodes.has_pages(50));
        nodes.removed(50);
        assert!(!nodes.has_pages(50));
        assert_ne!(nodes.look_up(50, path("x")), first);
        nodes.forget(first, 1);
        nodes.closed(first, 7);
        assert!(name(&nodes, first).is_none());
        assert_eq!(nodes.look_up(50, path("x")), first + 1);
    }

    #[test]
    fn what_is_renamed_over_has_its_name_no_more() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let (new, old) = (nodes.look_up(1, path("new")), nodes.look_up(2, path("old")));
        nodes.renamed(&path("new"), &path("old"));
        assert_eq!(name(&nodes, new).as_deref(), Some("/old"));
        assert_eq!(name(&nodes, old), None);
    }
}
