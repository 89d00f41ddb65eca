//! What the kernel calls a file or directory (a number), which names that has, and who has it open.

use leasehold_engine::files::OpenFile;
use leasehold_engine::path::StorePath;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

/// The root's number.
pub(super) const ROOT: u64 = 1;

/// All that the kernel knows of.
pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    /// By the store's own inodes. A file without names is not in it: its inode may be another's soon.
    by_inode: HashMap<u64, u64>,
    by_name: BTreeMap<StorePath, u64>,
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
    /// The kernel may keep something of it: pages, or what it was told of its size.
    kept: bool,
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
        let by_name = BTreeMap::from([(root.clone(), ROOT)]);
        let root = Node { names: vec![root], lookups: 1, ..Node::default() };
        Nodes { nodes: HashMap::from([(ROOT, root)]), by_inode: HashMap::new(), by_name, next: ROOT + 1 }
    }

    /// The number of what has this inode and name; the kernel has it once more, and is about to be told of it.
    pub fn look_up(&mut self, inode: u64, name: &StorePath) -> u64 {
        let next = &mut self.next;
        let id = *self.by_inode.entry(inode).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
        if self.by_name.get(name).is_some_and(|other| *other != id) {
            self.take_name(name);
        }
        let node = self.nodes.entry(id).or_default();
        (node.inode, node.kept) = (inode, true);
        node.lookups += 1;
        if self.by_name.insert(name.clone(), id).is_none() {
            node.names.push(name.clone());
        }
        id
    }

    /// The name stands for nothing any more, or for something else. Whose it was.
    fn take_name(&mut self, name: &StorePath) -> Option<u64> {
        let id = self.by_name.remove(name)?;
        self.nodes.get_mut(&id)?.names.retain(|other| other != name);
        Some(id)
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
            node.names.iter().for_each(|name| _ = self.by_name.remove(name));
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
            node.kept = true;
            node.file = file;
        }
    }

    /// The file, if somebody has it open.
    pub fn file(&self, id: u64) -> Option<Arc<OpenFile>> {
        self.nodes.get(&id)?.file.clone()
    }

    /// Whether it is what has this inode in the store. Of the root, that is not asked.
    pub fn is_it(&self, id: u64, inode: u64) -> bool {
        id == ROOT || self.nodes.get(&id).is_some_and(|node| node.inode == inode)
    }

    /// The kernel is about to be told of it.
    pub fn told(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.kept = true;
        }
    }

    /// Whether the kernel has it, or is about to.
    pub fn is_known(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.lookups > 0)
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

    /// Whether the kernel may keep something of it.
    pub fn is_kept(&self, inode: u64) -> bool {
        self.by_inode.get(&inode).and_then(|id| self.nodes.get(id)).is_some_and(|node| node.kept)
    }

    /// The kernel is told to forget something of it. Its number, and whether that is to be all: of what nobody has open.
    pub fn forget_kept(&mut self, inode: u64) -> Option<(u64, bool)> {
        let id = *self.by_inode.get(&inode)?;
        let node = self.nodes.get_mut(&id)?;
        node.kept = !node.openers.is_empty();
        Some((id, !node.kept))
    }

    /// Others have removed it: its inode may be another's soon.
    pub fn removed(&mut self, inode: u64) {
        self.by_inode.remove(&inode);
    }

    /// The number of what has this name, if somebody has it open.
    pub fn is_open(&self, name: &StorePath) -> Option<u64> {
        let id = *self.by_name.get(name)?;
        (!self.nodes.get(&id)?.openers.is_empty()).then_some(id)
    }

    /// It has lost its last name, and is open.
    pub fn orphaned(&mut self, id: u64, file: File) {
        if let Some(node) = self.nodes.get_mut(&id) {
            (node.orphan, node.file) = (Some(Arc::new(file)), None);
        }
    }

    /// The name is gone.
    pub fn unlinked(&mut self, name: &StorePath) {
        let Some(id) = self.take_name(name) else { return };
        if let Some(node) = self.nodes.get(&id).filter(|node| node.names.is_empty())
            && self.by_inode.get(&node.inode) == Some(&id)
        {
            self.by_inode.remove(&node.inode);
        }
    }

    /// The two, and all that is below them, have exchanged their names.
    pub fn exchanged(&mut self, one: &StorePath, other: &StorePath) {
        let (ones, others) = (self.names_from(one), self.names_from(other));
        self.rename_each(ones, one, other);
        self.rename_each(others, other, one);
    }

    /// `from`, and all that is below it, has another name.
    pub fn renamed(&mut self, from: &StorePath, to: &StorePath) {
        self.take_name(to);
        let names = self.names_from(from);
        self.rename_each(names, from, to);
    }

    /// Takes the name, and all that are below it, out of the table.
    fn names_from(&mut self, name: &StorePath) -> Vec<(StorePath, u64)> {
        let below = format!("{}/", name.as_str());
        let all_below = self.by_name.range::<str, _>((Bound::Included(below.as_str()), Bound::Unbounded));
        let names = all_below.map(|(found, _)| found).take_while(|found| found.as_str().starts_with(&below));
        let names: Vec<StorePath> = names.chain([name]).cloned().collect();
        names.into_iter().filter_map(|found| self.by_name.remove_entry(&found)).collect()
    }

    fn rename_each(&mut self, names: Vec<(StorePath, u64)>, from: &StorePath, to: &StorePath) {
        for (name, id) in names {
            let anew = name.renamed(from, to);
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.names.retain(|other| *other != name);
            if let Some(anew) = anew {
                node.names.push(anew.clone());
                self.by_name.insert(anew, id);
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
        let file = nodes.look_up(50, &path("a/b/file"));
        let beside = nodes.look_up(51, &path("a-b"));
        assert_eq!(nodes.look_up(50, &path("other")), file);
        nodes.renamed(&path("a"), &path("c"));
        let mut names = nodes.nodes[&file].names.clone();
        names.sort();
        assert_eq!(names, [path("c/b/file"), path("other")]);
        assert_eq!(name(&nodes, beside).as_deref(), Some("/a-b"));
        nodes.unlinked(&path("c/b/file"));
        assert_eq!(name(&nodes, file).as_deref(), Some("/other"));
    }

    #[test]
    fn a_number_is_never_used_again_and_an_inode_may_be() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let first = nodes.look_up(50, &path("x"));
        nodes.opened(first, 7, 1, None);
        assert_eq!(nodes.is_open(&path("x")), Some(first));
        nodes.orphaned(first, tempfile::tempfile().unwrap());
        nodes.unlinked(&path("x"));
        assert_ne!(nodes.look_up(50, &path("y")), first);
        assert_eq!(name(&nodes, first).as_deref(), Some("orphan"));
        nodes.forget(first, 1);
        assert!(nodes.found(first).is_some(), "it is open");
        nodes.closed(first, 7);
        assert!(nodes.found(first).is_none());
    }

    #[test]
    fn an_exchange_takes_along_what_is_below_on_both_sides() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let (file, below) = (nodes.look_up(1, &path("a")), nodes.look_up(2, &path("d/e/b")));
        nodes.exchanged(&path("a"), &path("d/e"));
        assert_eq!(name(&nodes, file).as_deref(), Some("/d/e"));
        assert_eq!(name(&nodes, below).as_deref(), Some("/a/b"));
    }

    #[test]
    fn an_inode_that_others_removed_is_another_file_when_it_comes_again() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let first = nodes.look_up(50, &path("x"));
        nodes.opened(first, 7, 1, None);
        assert!(nodes.is_kept(50));
        nodes.removed(50);
        assert!(!nodes.is_kept(50));
        assert_ne!(nodes.look_up(50, &path("x")), first);
        nodes.forget(first, 1);
        nodes.closed(first, 7);
        assert!(name(&nodes, first).is_none());
        assert_eq!(nodes.look_up(50, &path("x")), first + 1);
    }

    #[test]
    fn what_is_renamed_over_has_its_name_no_more() {
        let mut nodes = Nodes::new(StorePath::ROOT);
        let (new, old) = (nodes.look_up(1, &path("new")), nodes.look_up(2, &path("old")));
        nodes.renamed(&path("new"), &path("old"));
        assert_eq!(name(&nodes, new).as_deref(), Some("/old"));
        assert_eq!(name(&nodes, old), None);
    }
}
