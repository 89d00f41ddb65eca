//! What lies on a disk: inodes and names, in memory, to be put into a real directory.

use crate::disk::Identity;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const BLOCK: usize = 4096;
pub(crate) const SECTOR: usize = 512;

/// Number of an inode in a recording; the store's directory is [`ROOT`].
pub(crate) type InodeId = usize;
pub(crate) const ROOT: InodeId = 0;

#[derive(Clone)]
enum Inode {
    File { identity: Identity, size: u64, blocks: BTreeMap<u64, Arc<[u8; BLOCK]>> },
    Directory,
    Symlink { target: String },
}

/// What changes sizes, holes and names.
#[derive(Clone, Debug)]
pub(crate) enum Meta {
    Create { path: String, inode: InodeId, identity: Identity },
    MakeDirectory { path: String, inode: InodeId },
    Rename { from: String, to: String },
    Exchange { one: String, other: String },
    Link { from: String, to: String },
    Symlink { path: String, inode: InodeId, target: String },
    Remove { path: String },
    Size { inode: InodeId, size: u64 },
    Punch { inode: InodeId, offset: u64, length: u64 },
    Collapse { inode: InodeId, offset: u64, length: u64 },
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Volume {
    inodes: BTreeMap<InodeId, Inode>,
    names: BTreeMap<String, InodeId>,
}

/// How the inodes of a volume are found in the directory that it was put into.
pub(crate) struct Placed {
    /// By the kernel's number.
    pub(crate) inodes: HashMap<u64, InodeId>,
    /// What each new file is to be taken for.
    pub(crate) identities: HashMap<Identity, Identity>,
}

impl Volume {
    /// An empty directory.
    pub(crate) fn empty() -> Volume {
        Volume { inodes: BTreeMap::from([(ROOT, Inode::Directory)]), names: BTreeMap::new() }
    }

    pub(crate) fn next_inode(&self) -> InodeId {
        self.inodes.last_key_value().map_or(0, |(last, _)| last + 1)
    }

    /// Ordinary files below `files/`, by what the store calls them.
    pub(crate) fn files(&self) -> BTreeMap<String, InodeId> {
        let named = self.names.iter().filter_map(|(path, inode)| {
            let path = path.strip_prefix("files/")?;
            matches!(self.inodes[inode], Inode::File { .. }).then(|| (path.to_owned(), *inode))
        });
        named.collect()
    }

    /// Symbolic links below `files/`, and what they say.
    pub(crate) fn symlinks(&self) -> BTreeMap<String, String> {
        let links = self.names.iter().filter_map(|(path, inode)| {
            let path = path.strip_prefix("files/")?;
            let Inode::Symlink { target } = &self.inodes[inode] else { return None };
            Some((path.to_owned(), target.clone()))
        });
        links.collect()
    }

    pub(crate) fn apply(&mut self, meta: &Meta) {
        match meta {
            Meta::Create { path, inode, identity } => {
                let file = Inode::File { identity: *identity, size: 0, blocks: BTreeMap::new() };
                self.inodes.insert(*inode, file);
                self.names.insert(path.clone(), *inode);
            }
            Meta::MakeDirectory { path, inode } => {
                self.inodes.insert(*inode, Inode::Directory);
                self.names.insert(path.clone(), *inode);
            }
            Meta::Rename { from, to } => {
                let below = format!("{from}/");
                let moved = |path: &String| path == from || path.starts_with(&below);
                let moving: Vec<String> = self.names.keys().filter(|path| moved(path)).cloned().collect();
                for path in moving {
                    let inode = self.names.remove(&path).expect("listed above");
                    self.names.insert(format!("{to}{}", &path[from.len()..]), inode);
                }
            }
            Meta::Exchange { one, other } => {
                let below = |path: &str, of: &str| {
                    path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                };
                let anew = |path: String| match path {
                    path if below(&path, one) => format!("{other}{}", &path[one.len()..]),
                    path if below(&path, other) => format!("{one}{}", &path[other.len()..]),
                    path => path,
                };
                let names = std::mem::take(&mut self.names);
                self.names = names.into_iter().map(|(path, inode)| (anew(path), inode)).collect();
            }
            Meta::Link { from, to } => {
                let inode = self.names[from];
                self.names.insert(to.clone(), inode);
            }
            Meta::Symlink { path, inode, target } => {
                self.inodes.insert(*inode, Inode::Symlink { target: target.clone() });
                self.names.insert(path.clone(), *inode);
            }
            Meta::Remove { path } => {
                self.names.remove(path);
            }
            Meta::Size { inode, size } => {
                let Some(Inode::File { size: old, blocks, .. }) = self.inodes.get_mut(inode) else { return };
                *old = *size;
                blocks.split_off(&size.div_ceil(BLOCK as u64));
                let tail = (*size % BLOCK as u64) as usize;
                if tail > 0
                    && let Some(block) = blocks.get_mut(&(size / BLOCK as u64))
                {
                    Arc::make_mut(block)[tail..].fill(0);
                }
            }
            Meta::Punch { inode, offset, length } => {
                let Some(Inode::File { blocks, .. }) = self.inodes.get_mut(inode) else { return };
                let hole = offset / BLOCK as u64..(offset + length) / BLOCK as u64;
                blocks.retain(|block, _| !hole.contains(block));
            }
            Meta::Collapse { inode, offset, length } => {
                let end = self.shift(*inode, *offset, *length, u64::MAX);
                self.apply(&Meta::Size { inode: *inode, size: end });
            }
        }
    }

    /// The beginning of a collapse: the first `count` blocks behind what is taken out have moved. The file's length after
    /// the whole of it.
    pub(crate) fn shift(&mut self, inode: InodeId, offset: u64, length: u64, count: u64) -> u64 {
        let Some(Inode::File { size, blocks, .. }) = self.inodes.get_mut(&inode) else { return 0 };
        let (first, taken) = (offset / BLOCK as u64, length / BLOCK as u64);
        let end = (first + taken).saturating_add(count);
        let moving: Vec<u64> = blocks.range(first + taken..end).map(|(block, _)| *block).collect();
        // What is taken out, and where the last of those that move were.
        blocks.retain(|block, _| *block < first || *block >= first + taken || moving.contains(block));
        for block in moving {
            let bytes = blocks.remove(&block).expect("listed above");
            blocks.insert(block - taken, bytes);
        }
        *size - length
    }

    /// Writes those sectors of `bytes` that `landed` says.
    pub(crate) fn write(
        &mut self,
        inode: InodeId,
        offset: u64,
        bytes: &[u8],
        landed: impl Fn(usize) -> bool,
    ) {
        let Some(Inode::File { size, blocks, .. }) = self.inodes.get_mut(&inode) else { return };
        assert!(offset.is_multiple_of(BLOCK as u64) && bytes.len().is_multiple_of(BLOCK));
        for (index, new) in bytes.chunks_exact(BLOCK).enumerate() {
            let first = index * BLOCK / SECTOR;
            let sectors = first..first + BLOCK / SECTOR;
            let Some(last) = sectors.clone().rfind(|sector| landed(*sector)) else { continue };
            *size = (*size).max(offset + ((last + 1) * SECTOR) as u64);
            let block = blocks.entry(offset / BLOCK as u64 + index as u64).or_insert([0; BLOCK].into());
            if sectors.clone().all(&landed) {
                *block = Arc::new(new.try_into().expect("a block"));
                continue;
            }
            let block = Arc::make_mut(block);
            for sector in sectors.filter(|sector| landed(*sector)) {
                let at = (sector - first) * SECTOR;
                block[at..at + SECTOR].copy_from_slice(&new[at..at + SECTOR]);
            }
        }
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, inode) in &self.names {
            (path, inode).hash(&mut hasher);
            match &self.inodes[inode] {
                Inode::File { size, blocks, .. } => (size, blocks).hash(&mut hasher),
                Inode::Symlink { target } => target.hash(&mut hasher),
                Inode::Directory => {}
            }
        }
        hasher.finish()
    }

    /// Puts it into an empty directory.
    pub(crate) fn place(&self, directory: &Path) -> Placed {
        let number = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
        let mut inodes = HashMap::from([(number(directory), ROOT)]);
        let mut identities = HashMap::new();
        let mut first_names: HashMap<InodeId, PathBuf> = HashMap::new();
        // Parents come before what is in them.
        for (name, inode) in &self.names {
            let path = directory.join(name);
            if let Some(first) = first_names.get(inode) {
                fs::hard_link(first, &path).unwrap();
                continue;
            }
            first_names.insert(*inode, path.clone());
            match &self.inodes[inode] {
                Inode::Directory => fs::create_dir(&path).unwrap(),
                Inode::Symlink { target } => std::os::unix::fs::symlink(target, &path).unwrap(),
                Inode::File { identity, size, blocks } => {
                    let file = File::create_new(&path).unwrap();
                    for (block, bytes) in blocks {
                        file.write_all_at(&bytes[..], block * BLOCK as u64).unwrap();
                    }
                    file.set_len(*size).unwrap();
                    identities.insert(Identity::of(&file).unwrap(), *identity);
                }
            }
            inodes.insert(number(&path), *inode);
        }
        Placed { inodes, identities }
    }
}
