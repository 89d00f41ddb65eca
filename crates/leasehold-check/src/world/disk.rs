//! The filesystem and its disk: files map blocks to extents of one block, clones share them.

use super::{Block, CLONE, FILES, MAIN, Value};

/// How the filesystem overwrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filesystem {
    /// In place, unless a clone shares the block and the filesystem was asked before (XFS).
    InPlace,
    /// Always to a new place (btrfs).
    CopyOnWrite,
}

/// The place of an extent on the disk.
pub(super) type Extent = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct File {
    map: Vec<Option<Extent>>,
    /// Blocks for which the filesystem was asked since the last clone, so that an overwrite gets a place of its own.
    asked: Vec<bool>,
    /// In parts.
    size: usize,
}

/// The disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    filesystem: Filesystem,
    files: [Option<File>; FILES],
    extents: Vec<Block>,
    /// The clone as it was when it was taken.
    cloned: Option<Vec<Block>>,
}

impl Disk {
    /// The main file of `blocks` blocks, durable, and another's of one, a hole.
    pub fn new(filesystem: Filesystem, blocks: usize, value: Value) -> Disk {
        let file =
            |map: Vec<Option<Extent>>| File { asked: vec![false; map.len()], size: 2 * map.len(), map };
        let main = file((0..blocks).map(|extent| Some(extent as Extent)).collect());
        let files = [Some(main), Some(file(vec![None])), None];
        Disk { filesystem, files, extents: vec![[value; 2]; blocks], cloned: None }
    }

    pub fn exists(&self, file: usize) -> bool {
        self.files[file].is_some()
    }

    /// A block as it reads: zeros in holes and past the end.
    pub fn block(&self, file: usize, block: usize) -> Block {
        let Some(found) = &self.files[file] else { return [0; 2] };
        let content = found
            .map
            .get(block)
            .copied()
            .flatten()
            .map_or([0; 2], |extent| self.extents[usize::from(extent)]);
        [0, 1].map(|part| if 2 * block + part < found.size { content[part] } else { 0 })
    }

    fn is_shared(&self, extent: Extent) -> bool {
        let maps = self.files.iter().flatten().flat_map(|file| &file.map);
        maps.filter(|&&other| other == Some(extent)).count() > 1
    }

    /// The extent's owner.
    pub fn owner(&self, extent: Extent) -> Option<usize> {
        self.files.iter().position(|file| file.as_ref().is_some_and(|file| file.map.contains(&Some(extent))))
    }

    fn allocate(&mut self, content: Block) -> Extent {
        let free = (0..self.extents.len()).find(|&extent| self.owner(extent as Extent).is_none());
        let extent = free.unwrap_or_else(|| {
            self.extents.push([0; 2]);
            self.extents.len() - 1
        });
        self.extents[extent] = content;
        extent as Extent
    }

    /// The filesystem is asked before somebody stores into the block (page_mkwrite, write).
    pub fn ask(&mut self, file: usize, block: usize) {
        if let Some(found) = &mut self.files[file] {
            found.grow(block);
            found.asked[block] = true;
        }
    }

    /// Where the block lies, with a place of its own for somebody who stores there directly (DAX).
    pub fn place(&mut self, file: usize, block: usize) -> Extent {
        let there = self.files[file].as_mut().and_then(|found| {
            found.grow(block);
            found.map[block]
        });
        match there {
            Some(extent) if !self.is_shared(extent) => extent,
            shared => {
                let content = shared.map_or([0; 2], |extent| self.extents[usize::from(extent)]);
                let extent = self.allocate(content);
                self.map(file, block, extent);
                extent
            }
        }
    }

    fn map(&mut self, file: usize, block: usize, extent: Extent) {
        if let Some(found) = &mut self.files[file] {
            found.map[block] = Some(extent);
        }
    }

    /// Stores directly (DAX).
    pub fn store(&mut self, extent: Extent, part: usize, value: Value) {
        self.extents[usize::from(extent)][part] = value;
    }

    pub fn extent(&self, extent: Extent) -> Block {
        self.extents[usize::from(extent)]
    }

    /// A block gets to the disk. `asks`: by a write that goes through the filesystem, not by writeback of a page.
    pub fn write(&mut self, file: usize, block: usize, content: Block, asks: bool) {
        let Some(found) = &mut self.files[file] else { return };
        found.grow(block);
        let asked = asks || std::mem::take(&mut found.asked[block]);
        let there = found.map[block];
        let keeps = match (self.filesystem, there) {
            (_, None) | (Filesystem::CopyOnWrite, _) => None,
            (Filesystem::InPlace, Some(extent)) => {
                Some(extent).filter(|&extent| !(asked && self.is_shared(extent)))
            }
        };
        match keeps {
            Some(extent) => self.extents[usize::from(extent)] = content,
            None => {
                let extent = self.allocate(content);
                self.map(file, block, extent);
            }
        }
    }

    /// Writes a part in place, and no more: what a power loss leaves of a write.
    pub fn tear(&mut self, file: usize, block: usize, part: usize, value: Value) {
        let mut content = self.block(file, block);
        content[part] = value;
        self.write(file, block, content, true);
    }

    /// The file is at least so long.
    pub fn grow(&mut self, file: usize, parts: usize) {
        if let Some(found) = &mut self.files[file] {
            found.size = found.size.max(parts);
        }
    }

    /// Cuts the file, and frees what is behind.
    pub fn truncate(&mut self, file: usize, parts: usize) {
        let Some(found) = &mut self.files[file] else { return };
        found.size = parts;
        for at in 0..found.map.len() {
            if at >= parts.div_ceil(2) {
                found.map[at] = None;
            }
        }
        // The rest of the last block is zeroed.
        if parts % 2 == 1 {
            let mut content = self.block(file, parts / 2);
            content[1] = 0;
            self.write(file, parts / 2, content, true);
        }
    }

    /// Frees the whole blocks of these parts, and zeroes the others.
    pub fn punch(&mut self, file: usize, parts: std::ops::Range<usize>) {
        for block in parts.start / 2..parts.end.div_ceil(2) {
            let within = [0, 1].map(|part| parts.contains(&(2 * block + part)));
            if within == [true, true] {
                if let Some(found) = &mut self.files[file]
                    && let Some(extent) = found.map.get_mut(block)
                {
                    *extent = None;
                }
            } else {
                let mut content = self.block(file, block);
                (0..2).filter(|&part| within[part]).for_each(|part| content[part] = 0);
                self.write(file, block, content, true);
            }
        }
    }

    /// Takes blocks out; those behind them move to the front.
    pub fn collapse(&mut self, file: usize, blocks: std::ops::Range<usize>) {
        if let Some(found) = &mut self.files[file] {
            found.size -= 2 * blocks.len();
            found.map.drain(blocks.clone());
            found.asked.drain(blocks);
        }
    }

    pub fn remove(&mut self, file: usize) {
        self.files[file] = None;
    }

    /// Takes a clone that shares all blocks.
    pub fn clone_main(&mut self) {
        let Some(main) = &mut self.files[MAIN] else { return };
        main.asked.fill(false);
        self.files[CLONE] = Some(main.clone());
        self.cloned = Some(self.content(CLONE));
    }

    fn content(&self, file: usize) -> Vec<Block> {
        let blocks = self.files[file].as_ref().map_or(0, |file| file.map.len());
        (0..blocks).map(|block| self.block(file, block)).collect()
    }

    pub fn has_clone(&self) -> bool {
        self.cloned.is_some()
    }

    /// Whether the clone, if there is one, is as it was.
    pub fn clone_is_as_it_was(&self) -> bool {
        self.cloned.as_ref().is_none_or(|cloned| *cloned == self.content(CLONE))
    }
}

impl File {
    fn grow(&mut self, block: usize) {
        if self.map.len() <= block {
            self.map.resize(block + 1, None);
            self.asked.resize(block + 1, false);
        }
    }
}
