//! What must be there: all that was acknowledged; and of what was not, each block's old or new bytes, a change wholly or
//! not at all.

use super::super::StorePath;
use super::Found;
use super::FoundFile;
use super::recorder::Event;
use super::volume::{BLOCK, InodeId, Meta, Volume};
use leasehold_core::input::{Change, Fault};
use leasehold_core::range::{BLOCK_BYTES, ByteRange};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the storage was asked to do.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// These blocks, of which `range` was committed; the file is at least `size` long afterwards.
    Write {
        inode: InodeId,
        range: ByteRange,
        blocks: Arc<[u8]>,
        size: u64,
    },
    Change {
        inode: InodeId,
        change: Change,
    },
    /// What is on disk counts, where others are writing these blocks.
    Adopt {
        inode: InodeId,
        range: ByteRange,
        foreign: BTreeMap<u64, Arc<[u8]>>,
    },
    /// A copy without a name yet, which changes nothing.
    Clone,
    /// The last name goes, and that is durable.
    Remove {
        inode: InodeId,
    },
    /// The last name goes, and may be there again.
    Unlink,
    /// All names that were changed before.
    Flush,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Expected {
    files: BTreeMap<InodeId, Committed>,
    under_way: BTreeMap<u64, Asked>,
    /// How many changes of sizes and names there were when the last name was changed, and when each flush was asked for.
    names: usize,
    flushes: BTreeMap<u64, usize>,
    /// So many changes of sizes and names must be durable, for the names' sake.
    pub(crate) names_due: usize,
    removed: BTreeSet<InodeId>,
}

#[derive(Clone, Default)]
struct Committed {
    /// Whole blocks, zeros past the size.
    bytes: Vec<u8>,
    size: u64,
    /// Blocks that are not holes.
    held: BTreeSet<u64>,
}

impl Committed {
    fn block(&self, block: u64) -> Vec<u8> {
        let start = block as usize * BLOCK;
        self.bytes.get(start..start + BLOCK).map_or_else(|| vec![0; BLOCK], <[u8]>::to_vec)
    }

    fn write(&mut self, range: ByteRange, blocks: &[u8], size: u64) {
        let start = range.blocks().start() as usize * BLOCK;
        self.bytes.resize(self.bytes.len().max(start + blocks.len()), 0);
        self.bytes[start..start + blocks.len()].copy_from_slice(blocks);
        self.size = self.size.max(size);
        self.held.extend(range.blocks().start()..range.blocks().end());
    }

    fn adopt(&mut self, range: ByteRange, foreign: &BTreeMap<u64, Arc<[u8]>>) {
        for (block, bytes) in foreign {
            self.bytes[*block as usize * BLOCK..][..BLOCK].copy_from_slice(bytes);
        }
        // Zeros that take space are no hole.
        let blocks = range.blocks();
        self.held.extend(blocks.start()..blocks.end().min(self.size.div_ceil(BLOCK_BYTES)));
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Truncate { size } => {
                let blocks = size.div_ceil(BLOCK_BYTES);
                self.bytes.resize(blocks as usize * BLOCK, 0);
                self.bytes[size as usize..].fill(0);
                self.size = size;
                self.held.retain(|block| *block < blocks);
            }
            Change::Collapse { range } => {
                self.bytes.drain(range.start() as usize..range.end() as usize);
                self.size -= range.len();
                let (first, taken) = (range.blocks().start(), range.blocks().len());
                let held = self.held.iter().filter(|block| !(first..first + taken).contains(block));
                self.held = held.map(|block| if *block < first { *block } else { block - taken }).collect();
            }
            Change::Punch { range } | Change::Zero { range } => {
                let end = range.end().min(self.size);
                if range.start() < end {
                    self.bytes[range.start() as usize..end as usize].fill(0);
                    let whole = if end == self.size { end.div_ceil(BLOCK_BYTES) } else { end / BLOCK_BYTES };
                    let hole = range.start().div_ceil(BLOCK_BYTES)..whole;
                    self.held.retain(|block| !hole.contains(block));
                }
            }
            other => unreachable!("{other:?} is not in the workload"),
        }
    }
}

impl Expected {
    /// `metas`: how many changes of sizes and names there have been, this one included.
    pub(crate) fn see(&mut self, event: &Event, metas: usize) {
        match event {
            Event::Meta(
                Meta::Create { path, .. }
                | Meta::MakeDirectory { path, .. }
                | Meta::Rename { to: path, .. }
                | Meta::Exchange { one: path, .. }
                | Meta::Link { to: path, .. }
                | Meta::Symlink { path, .. }
                | Meta::Remove { path },
                _,
            ) if path.starts_with("files/") => self.names = metas,
            Event::Asked(number, asked) => {
                if let Asked::Flush = asked {
                    self.flushes.insert(*number, self.names);
                }
                self.under_way.insert(*number, asked.clone());
            }
            Event::Answered(number) => match self.under_way.remove(number).expect("asked before") {
                Asked::Write { inode, range, blocks, size } => {
                    self.files.entry(inode).or_default().write(range, &blocks, size);
                }
                Asked::Change { inode, change } => self.files.entry(inode).or_default().change(change),
                Asked::Adopt { inode, range, foreign } => {
                    self.files.entry(inode).or_default().adopt(range, &foreign);
                }
                Asked::Clone | Asked::Unlink => {}
                Asked::Remove { inode } => drop(self.removed.insert(inode)),
                Asked::Flush => self.names_due = self.names_due.max(self.flushes[number]),
            },
            Event::Cloned { from, to } => {
                let clone = self.files.get(from).cloned().unwrap_or_default();
                self.files.insert(*to, clone);
            }
            Event::Placed => self.names_due = self.names_due.max(self.names),
            _ => {}
        }
    }

    /// Blocks that others write, to be adopted.
    fn foreign(&self, inode: InodeId) -> BTreeMap<u64, &Arc<[u8]>> {
        let adopted = self.under_way.values().filter_map(|asked| match asked {
            Asked::Adopt { inode: of, foreign, .. } if *of == inode => Some(foreign),
            _ => None,
        });
        adopted.flatten().map(|(block, bytes)| (*block, bytes)).collect()
    }

    /// `first`: nothing came between the power loss and this recovery, which therefore names what is torn.
    pub(crate) fn check(&self, image: &Volume, found: &Found, first: bool) -> Result<(), String> {
        let names = image.files();
        if !names.keys().eq(found.files.keys()) {
            let found: Vec<&String> = found.files.keys().collect();
            return Err(format!("the disk has the names {names:?}, and the store shows {found:?}"));
        }
        if image.symlinks() != found.symlinks {
            let (disk, found) = (image.symlinks(), &found.symlinks);
            return Err(format!("the disk has the symbolic links {disk:?}, and the store shows {found:?}"));
        }
        if found.staged > 0 {
            return Err(format!("{} files are staged, and nobody wants them", found.staged));
        }
        if let Some(gone) = names.iter().find(|(_, inode)| self.removed.contains(inode)) {
            return Err(format!("{gone:?} was removed, acknowledged, and is there"));
        }
        for (path, inode) in &names {
            let file = &found.files[path];
            self.check_file(*inode, file).map_err(|what| format!("{path} (inode {inode}): {what}"))?;
            if file.unknown > 0 {
                return Err(format!("{path}: {} blocks have lost their checksums", file.unknown));
            }
            // A block that others write differs, and is not torn.
            let foreign = self.foreign(*inode);
            let bad = (0..).zip(&file.blocks).filter(|(_, bytes)| bytes.is_err()).map(|(block, _)| block);
            let bad: BTreeSet<u64> = bad.filter(|block| !foreign.contains_key(block)).collect();
            let damage = found.damage.iter().filter(|damage| {
                let path = damage.path.as_ref().map(StorePath::as_str);
                path.and_then(|path| names.get(path)) == Some(inode)
            });
            let named: BTreeSet<u64> = damage
                .flat_map(|damage| damage.blocks.into_iter().flat_map(|blocks| blocks.start()..blocks.end()))
                .collect();
            if bad.len() as u64 != file.torn || !(named == bad || !first && named.is_subset(&bad)) {
                return Err(format!(
                    "{path}: blocks {bad:?} cannot be read, {} are torn, {named:?} are named",
                    file.torn
                ));
            }
        }
        if let Some(of_nothing) =
            found.damage.iter().find(|damage| damage.path.is_none() || damage.blocks.is_none())
        {
            return Err(format!("a power loss is no damage: {of_nothing:?}"));
        }
        Ok(())
    }

    fn check_file(&self, inode: InodeId, found: &FoundFile) -> Result<(), String> {
        let committed = self.files.get(&inode).cloned().unwrap_or_default();
        let changes: Vec<Change> = self
            .under_way
            .values()
            .filter_map(|asked| match asked {
                Asked::Change { inode: of, change } if *of == inode => Some(*change),
                _ => None,
            })
            .collect();
        let mut why = String::new();
        for chosen in 0..1 << changes.len() {
            let mut base = committed.clone();
            let done = changes.iter().enumerate().filter(|(index, _)| chosen & (1 << index) != 0);
            done.for_each(|(_, change)| base.change(*change));
            match self.check_against(inode, &base, found) {
                Ok(()) => return Ok(()),
                Err(what) => why += &format!("{what} (with {chosen:b} of {changes:?}); "),
            }
        }
        Err(why)
    }

    fn check_against(&self, inode: InodeId, base: &Committed, found: &FoundFile) -> Result<(), String> {
        let writes: Vec<(ByteRange, &Arc<[u8]>, u64)> = self
            .under_way
            .values()
            .filter_map(|asked| match asked {
                Asked::Write { inode: of, range, blocks, size } if *of == inode => {
                    Some((*range, blocks, *size))
                }
                _ => None,
            })
            .collect();
        let sizes = writes.iter().flat_map(|(range, _, size)| {
            let blocks = range.blocks();
            (blocks.start()..blocks.end()).map(move |block| (*size).min((block + 1) * BLOCK_BYTES))
        });
        let sizes: BTreeSet<u64> = sizes.chain([base.size]).map(|size| size.max(base.size)).collect();
        if !sizes.contains(&found.size) {
            return Err(format!("its size is {}, and must be one of {sizes:?}", found.size));
        }
        let last = found.blocks.len().wrapping_sub(1) as u64;
        let foreign = self.foreign(inode);
        for (block, bytes) in (0..).zip(&found.blocks) {
            let write = writes
                .iter()
                .find(|(range, ..)| (range.blocks().start()..range.blocks().end()).contains(&block));
            let new = write.map(|(range, blocks, _)| {
                &blocks[(block - range.blocks().start()) as usize * BLOCK..][..BLOCK]
            });
            match bytes {
                Ok(bytes) if foreign.get(&block).is_some_and(|new| bytes[..] == new[..]) => {}
                Err(Fault::Checksum) if foreign.contains_key(&block) => {}
                Ok(bytes) => {
                    let old = base.block(block);
                    let is_new = new.is_some_and(|new| new[..bytes.len()] == bytes[..]);
                    if old[..bytes.len()] != bytes[..] && !is_new {
                        return Err(format!(
                            "block {block} is not what was acknowledged, nor what is under way"
                        ));
                    }
                    if block == last && found.size > base.size && !is_new {
                        return Err(format!("it ends in block {block}, which is not what made it longer"));
                    }
                }
                Err(Fault::Checksum) => {
                    let (start, end) = (block * BLOCK_BYTES, ((block + 1) * BLOCK_BYTES).min(base.size));
                    let whole = write.is_some_and(|(range, ..)| range.start() <= start && end <= range.end());
                    if !whole || !base.held.contains(&block) {
                        return Err(format!(
                            "block {block} is torn, and was not being overwritten as a whole"
                        ));
                    }
                }
                Err(fault) => return Err(format!("block {block} cannot be read: {fault}")),
            }
        }
        Ok(())
    }
}
