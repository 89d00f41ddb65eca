//! What may be read, and what must be there after a power loss: a naive model of the files, judged from outside.
//!
//! Of each file, all states are kept that it may be in: whatever is under way may have taken effect, or not yet. An answer
//! leaves only those that agree with it. Content is counted in [`CELL`]s, each of which holds one number throughout, that
//! of the write it came by; 0 for nothing.

use super::trace;
use crate::storage::tests::power::volume::InodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub(super) const CELL: u64 = 512;
const BLOCK_CELLS: usize = 8;

/// So many states of a file are followed; a file with more is not judged any more.
const STATES_MAX: usize = 3000;

/// Of a block that recovery found torn.
pub(super) const TORN: u32 = u32::MAX;

/// The cells of a file, up to its size.
pub(super) type Content = Vec<u32>;

/// What changes a file.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// These cells from one on; of those without a number, only that they are there.
    Write { at: usize, cells: Vec<Option<u32>> },
    /// The size, in cells.
    Truncate(usize),
    /// Cells that read as zeros.
    Clear { from: usize, end: usize },
    /// Cells that are taken out.
    Collapse { from: usize, end: usize },
}

impl Op {
    fn apply(&self, content: &Content) -> Content {
        let mut content = content.clone();
        match self {
            Op::Write { at, cells } => {
                content.resize(content.len().max(at + cells.len()), 0);
                for (cell, new) in content[*at..].iter_mut().zip(cells) {
                    *cell = new.unwrap_or(*cell);
                }
            }
            Op::Truncate(size) => content.resize(*size, 0),
            Op::Clear { from, end } => {
                let end = (*end).min(content.len());
                content.get_mut(*from..end).into_iter().for_each(|cells| cells.fill(0));
            }
            Op::Collapse { from, end } => {
                if *end < content.len() {
                    content.drain(from..end);
                }
            }
        }
        content
    }
}

/// One state that a file may be in, and what of that which is under way has taken effect in it.
type State = (Content, BTreeSet<u64>);

#[derive(Default)]
struct File {
    states: BTreeSet<State>,
    under_way: BTreeMap<u64, Op>,
    /// What it may have been since what is durable for sure.
    since_durable: BTreeSet<Content>,
    /// The same since each sync or read that is under way began.
    since: BTreeMap<u64, BTreeSet<Content>>,
    lost_count: bool,
}

impl File {
    fn of(content: Content) -> File {
        let states = BTreeSet::from([(content.clone(), BTreeSet::new())]);
        File { states, since_durable: BTreeSet::from([content]), ..File::default() }
    }

    fn contents(&self) -> BTreeSet<Content> {
        self.states.iter().map(|(content, _)| content.clone()).collect()
    }

    /// Whatever is under way may take effect at any moment.
    fn close(&mut self) {
        let mut fresh: Vec<State> = self.states.iter().cloned().collect();
        while let Some((content, done)) = fresh.pop() {
            for (id, op) in self.under_way.iter().filter(|(id, _)| !done.contains(id)) {
                let mut done = done.clone();
                done.insert(*id);
                let next = (op.apply(&content), done);
                if self.states.insert(next.clone()) {
                    fresh.push(next);
                }
            }
            self.lost_count |= self.states.len() > STATES_MAX || self.since_durable.len() > STATES_MAX;
            if self.lost_count {
                return;
            }
        }
        let contents = self.contents();
        self.since.values_mut().for_each(|seen| seen.extend(contents.iter().cloned()));
        self.since_durable.extend(contents);
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Inode(InodeId),
    /// A file that is being made by this change of names.
    New(u64),
}

pub(super) type Names = BTreeMap<String, Named>;

/// What was found of a file after a power loss; of each block its cells, or that it is torn.
pub(super) struct FoundFile {
    pub(super) size: usize,
    pub(super) blocks: Vec<Option<Content>>,
}

/// See the module.
pub(super) struct Oracle {
    files: BTreeMap<InodeId, File>,
    /// What the names were, and became, one change after the other.
    names: Vec<Names>,
    /// The last one that was acknowledged.
    acknowledged_names: usize,
    /// From which of them on they may be found after a power loss.
    durable_names: usize,
    /// Where the names were when each sync began.
    syncs: BTreeMap<u64, usize>,
    next: u64,
    /// Nothing that is answered now counts: the power is gone.
    pub(super) over: bool,
    /// Files that were not judged to the end.
    pub(super) given_up: u64,
}

impl Oracle {
    pub(super) fn new() -> Oracle {
        Oracle {
            files: BTreeMap::new(),
            names: vec![Names::new()],
            acknowledged_names: 0,
            durable_names: 0,
            syncs: BTreeMap::new(),
            next: 1,
            over: false,
            given_up: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// A number for the cells of one write.
    pub(super) fn stamp(&mut self) -> u32 {
        self.number() as u32
    }

    /// Something is under way.
    pub(super) fn begin(&mut self, inode: InodeId, op: Op) -> u64 {
        let id = self.number();
        trace(|| format!("{id} begins: inode {inode}, {op:?}"));
        if let (false, Some(file)) = (self.over, self.files.get_mut(&inode)) {
            file.under_way.insert(id, op);
            file.close();
        }
        id
    }

    /// It took effect, or did not.
    pub(super) fn end(&mut self, inode: InodeId, id: u64, took_effect: bool) -> Result<(), String> {
        trace(|| format!("{id} ends: inode {inode}, took effect: {took_effect}"));
        let Some(file) = self.files.get_mut(&inode).filter(|_| !self.over) else { return Ok(()) };
        let Some(op) = file.under_way.remove(&id) else { return Ok(()) };
        let agree = file.states.iter().filter(|(_, done)| done.contains(&id) == took_effect);
        let without = |(content, done): &State| {
            let mut done = done.clone();
            done.remove(&id);
            (content.clone(), done)
        };
        let states: BTreeSet<State> = agree.map(without).collect();
        if states.is_empty() && !file.lost_count {
            return Err(format!(
                "nothing agrees with {op:?} of inode {inode} having taken effect: {took_effect}"
            ));
        }
        file.states = states;
        Ok(())
    }

    /// A read or a sync of the file begins.
    pub(super) fn look(&mut self, inode: InodeId) -> u64 {
        let id = self.number();
        trace(|| format!("{id} looks at inode {inode}"));
        self.syncs.insert(id, self.acknowledged_names);
        if let Some(file) = self.files.get_mut(&inode) {
            let contents = file.contents();
            file.since.insert(id, contents);
        }
        id
    }

    /// The look is over, and nothing is to be learnt from it.
    pub(super) fn look_away(&mut self, inode: InodeId, look: u64) -> BTreeSet<Content> {
        self.syncs.remove(&look);
        let file = self.files.get_mut(&inode);
        file.and_then(|file| file.since.remove(&look)).unwrap_or_default()
    }

    /// These cells were read from `at` on; fewer than `wanted` at the end of the file.
    pub(super) fn read(
        &mut self,
        inode: InodeId,
        look: u64,
        at: usize,
        wanted: usize,
        found: &[u32],
    ) -> Result<(), String> {
        let lost_count = self.files.get(&inode).is_none_or(|file| file.lost_count);
        let contents = self.look_away(inode, look);
        // A read is as long as the file was when its turn came, and shows what was committed when its bytes were loaded.
        let lengths: BTreeSet<usize> =
            contents.iter().map(|content| content.len().saturating_sub(at).min(wanted)).collect();
        let agrees = |content: &Content| {
            lengths.contains(&found.len()) && content.get(at..).unwrap_or(&[]).starts_with(found)
        };
        if self.over || lost_count || contents.iter().any(agrees) {
            return Ok(());
        }
        let may: Vec<_> = contents.iter().map(|content| content.get(at..).unwrap_or(&[])).collect();
        Err(format!(
            "inode {inode}, from cell {at} on ({wanted} wanted), reads {found:?}, and may be {may:?}"
        ))
    }

    /// A sync is acknowledged: what was acknowledged before it began is durable.
    pub(super) fn synced(&mut self, inode: InodeId, sync: u64) {
        trace(|| format!("{sync} is synced: inode {inode}"));
        let names = self.syncs.get(&sync).copied();
        let contents = self.look_away(inode, sync);
        if self.over {
            return;
        }
        self.durable_names = self.durable_names.max(names.unwrap_or(0));
        if let Some(file) = self.files.get_mut(&inode)
            && !contents.is_empty()
        {
            file.since_durable = contents;
        }
    }

    /// The store was stopped cleanly: all of it is durable.
    pub(super) fn stopped(&mut self) {
        self.durable_names = self.names.len() - 1;
        for file in self.files.values_mut() {
            file.since_durable = file.contents();
        }
    }

    /// The names, as far as they are known.
    pub(super) fn names(&self) -> &Names {
        self.names.last().expect("never empty")
    }

    pub(super) fn inode(&self, name: &str) -> Option<InodeId> {
        match self.names().get(name) {
            Some(Named::Inode(inode)) => Some(*inode),
            _ => None,
        }
    }

    /// Names are changed, one change at a time. What is made has the number that `change` is given.
    pub(super) fn rename(&mut self, change: impl FnOnce(&mut Names, u64)) -> u64 {
        let id = self.number();
        let mut names = self.names().clone();
        change(&mut names, id);
        trace(|| format!("{id} changes names to {names:?}"));
        if !self.over {
            self.names.push(names);
        }
        id
    }

    /// A change of names has failed, maybe after it took effect: these are the names now.
    pub(super) fn settle_names(&mut self, found: &[(&str, Option<InodeId>)]) {
        let named =
            found.iter().filter_map(|(name, inode)| Some(((*name).to_owned(), Named::Inode((*inode)?))));
        if !self.over {
            self.names.push(named.collect());
            self.acknowledged_names = self.names.len() - 1;
        }
    }

    pub(super) fn knows(&self, inode: InodeId) -> bool {
        self.files.contains_key(&inode)
    }

    /// What was made is this file, with one of these contents.
    pub(super) fn made(&mut self, id: u64, inode: InodeId, contents: BTreeSet<Content>) {
        if self.over {
            return;
        }
        for named in
            self.names.iter_mut().flat_map(BTreeMap::values_mut).filter(|named| **named == Named::New(id))
        {
            *named = Named::Inode(inode);
        }
        let states = contents.iter().map(|content| (content.clone(), BTreeSet::new())).collect();
        self.files.insert(inode, File { states, since_durable: contents, ..File::default() });
    }

    /// The last change of names is acknowledged, and maybe durable, as is all before it then.
    pub(super) fn renamed(&mut self, is_durable: bool) {
        if !self.over {
            self.acknowledged_names = self.names.len() - 1;
            if is_durable {
                self.durable_names = self.acknowledged_names;
            }
        }
    }

    /// What a power loss has left of the names.
    pub(super) fn check_names(&self, image: &BTreeMap<String, InodeId>) -> Result<(), String> {
        let agrees = |names: &Names| {
            names.len() == image.len()
                && names.iter().zip(image).all(|((name, named), (found, inode))| {
                    let is_it = match named {
                        Named::Inode(known) => known == inode,
                        Named::New(_) => !self.files.contains_key(inode),
                    };
                    name == found && is_it
                })
        };
        let may = &self.names[self.durable_names..];
        if may.iter().any(agrees) {
            return Ok(());
        }
        let before = &self.names[..self.durable_names];
        Err(format!(
            "after the power loss the names are {image:?}, and may be {may:?}, but no more {before:?}"
        ))
    }

    /// Whether what recovery made of a file is one of the things that it may be.
    pub(super) fn check_found(&mut self, inode: InodeId, found: &FoundFile) -> Result<(), String> {
        let Some(file) = self.files.get(&inode) else { return Ok(()) };
        if file.lost_count {
            self.given_up += 1;
            return Ok(());
        }
        let sizes: BTreeSet<usize> = file.since_durable.iter().map(Vec::len).collect();
        let (least, most) = (sizes.first().copied().unwrap_or(0), sizes.last().copied().unwrap_or(0));
        // A part of what made it longer may be there.
        let between = found.size.is_multiple_of(BLOCK_CELLS) && (least..most).contains(&found.size);
        if !sizes.contains(&found.size) && !between {
            return Err(format!("inode {inode} has {} cells, and may have {sizes:?}", found.size));
        }
        for (number, block) in found.blocks.iter().enumerate() {
            let (start, end) = (number * BLOCK_CELLS, ((number + 1) * BLOCK_CELLS).min(found.size));
            let may_be = |cells: Range<usize>| -> BTreeSet<Content> {
                let of = |content: &Content| {
                    cells.clone().map(|cell| content.get(cell).copied().unwrap_or(0)).collect()
                };
                file.since_durable.iter().map(of).collect()
            };
            let may = may_be(start..end);
            let is_fine = match block {
                Some(found) => may.contains(found),
                // Torn by a write that went on past what is the end of file again, maybe.
                None => {
                    let whole = may_be(start..start + BLOCK_CELLS);
                    whole.len() > 1 || whole.iter().flatten().any(|cell| *cell == TORN)
                }
            };
            if !is_fine {
                return Err(format!("block {number} of inode {inode} is {block:?}, and may be {may:?}"));
            }
        }
        Ok(())
    }

    /// A new life begins with this.
    pub(super) fn restart(&mut self, files: BTreeMap<InodeId, Content>, names: &BTreeMap<String, InodeId>) {
        self.files = files.into_iter().map(|(inode, content)| (inode, File::of(content))).collect();
        self.names = vec![names.iter().map(|(name, inode)| (name.clone(), Named::Inode(*inode))).collect()];
        (self.acknowledged_names, self.durable_names, self.over) = (0, 0, false);
        self.syncs.clear();
    }
}
