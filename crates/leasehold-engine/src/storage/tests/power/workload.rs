//! Random work for the storage, several pieces at a time, as the core would ask for it: what overlaps waits.

use super::super::*;
use super::expect::Asked;
use super::recorder::{Event, Tape};
use super::volume::{BLOCK, InodeId};
use crate::simulation::Random;
use leasehold_core::range::BLOCK_BYTES;
use std::collections::BTreeMap;

/// Frames for each write under way.
const SLOT_FRAMES: u32 = 8;
const SLOTS: u32 = 4;
const SPAN: u64 = 30 * BLOCK_BYTES;
const FILES: usize = 4;
const NAMES: usize = 3;
const SYMLINKS: usize = 3;

pub(super) struct Workload<'a> {
    driver: &'a Driver,
    tape: &'a Tape,
    random: Random,
    files: Vec<Worked>,
    under_way: BTreeMap<u64, Step>,
    slots: Vec<u32>,
    next_name: u32,
    directories: Vec<String>,
    symlinks: Vec<String>,
}

/// A file as whoever reads it would see it.
struct Worked {
    names: Vec<String>,
    id: FileId,
    inode: InodeId,
    bytes: Vec<u8>,
    busy: BTreeMap<u64, BlockRange>,
}

/// What is under way, by the number that its answer carries.
enum Step {
    Write {
        inode: InodeId,
        file: FileId,
        range: ByteRange,
        run: Run,
        size: u64,
        size_before: u64,
        number: u64,
    },
    Change {
        inode: InodeId,
    },
    Adopt {
        inode: InodeId,
    },
    Clone {
        inode: InodeId,
    },
    Remove {
        inode: InodeId,
    },
    Flush,
}

/// Who takes a name.
enum Heir {
    Nobody,
    /// Another file, by this name of its.
    Named(InodeId, String),
    Staged(Staged),
}

fn all_blocks() -> BlockRange {
    BlockRange::new(0, u64::MAX).unwrap()
}

impl<'a> Workload<'a> {
    pub(super) fn new(driver: &'a Driver, tape: &'a Tape, seed: u64) -> Workload<'a> {
        Workload {
            driver,
            tape,
            random: Random::new(seed),
            files: Vec::new(),
            under_way: BTreeMap::new(),
            slots: (0..SLOTS).collect(),
            next_name: 0,
            directories: vec![String::new()],
            symlinks: Vec::new(),
        }
    }

    /// Begins `steps` pieces of work, and waits for all of them.
    pub(super) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            while self.under_way.len() > self.random.below(u64::from(SLOTS)) as usize {
                self.hear();
            }
            self.begin();
        }
        while !self.under_way.is_empty() {
            self.hear();
        }
    }

    fn begin(&mut self) {
        if self.files.len() < FILES && (self.files.is_empty() || self.random.below(6) == 0) {
            return self.create();
        }
        let file = self.random.below(self.files.len() as u64) as usize;
        match self.random.below(32) {
            0..13 => self.write(file),
            13..15 => self.truncate(file),
            15..17 => self.punch(file),
            17 => self.collapse(file),
            18..20 => self.flush(file),
            20..22 => self.remove(file),
            22 => self.rename(file),
            23 => self.reopen(file),
            24 => self.directory(),
            25 => self.link(file),
            26 => self.symlink(),
            27 => self.clone_file(file),
            28..30 => self.adopt(file),
            30 => self.exchange(file),
            _ => self.driver.storage().checkpoint().unwrap(),
        }
    }

    fn fresh_path(&mut self) -> String {
        self.next_name += 1;
        let directory = &self.directories[self.random.below(self.directories.len() as u64) as usize];
        format!("{directory}f{}", self.next_name)
    }

    fn create(&mut self) {
        let path = self.fresh_path();
        let id = self.driver.create(&path);
        let inode = self.tape.inode_at(&format!("files/{path}"));
        self.files.push(Worked { names: vec![path], id, inode, bytes: Vec::new(), busy: BTreeMap::new() });
    }

    fn link(&mut self, file: usize) {
        if self.files[file].names.len() < NAMES {
            let (from, to) = (self.a_name(file), self.fresh_path());
            self.driver.storage().link(&path(&from), &path(&to)).unwrap();
            self.files[file].names.push(to);
        }
    }

    fn symlink(&mut self) {
        if self.symlinks.len() < SYMLINKS {
            let (at, target) = (self.fresh_path(), format!("what/{}", self.next_name));
            self.driver.storage().symlink(&target, &path(&at)).unwrap();
            self.symlinks.push(at);
        } else {
            let gone = self.symlinks.remove(0);
            self.driver.storage().unlink_extra(&path(&gone)).unwrap();
        }
    }

    fn a_name(&mut self, file: usize) -> String {
        let names = &self.files[file].names;
        names[self.random.below(names.len() as u64) as usize].clone()
    }

    fn directory(&mut self) {
        if self.directories.len() < 3 {
            let name = format!("d{}", self.directories.len());
            self.driver.storage().make_directory(&path(&name)).unwrap();
            self.directories.push(format!("{name}/"));
            return;
        }
        // A rename of a directory takes all that is in it.
        let which = 1 + self.random.below(2) as usize;
        let from = self.directories[which].clone();
        self.next_name += 1;
        let to = format!("d{}/", self.next_name + 100);
        self.driver
            .storage()
            .rename(&path(from.trim_end_matches('/')), &path(to.trim_end_matches('/')))
            .unwrap();
        for name in self.files.iter_mut().flat_map(|file| &mut file.names).chain(&mut self.symlinks) {
            if let Some(rest) = name.strip_prefix(&from) {
                *name = format!("{to}{rest}");
            }
        }
        self.directories[which] = to;
    }

    /// Whether nothing under way touches the blocks; else one answer is awaited, and the work is dropped.
    fn free(&mut self, file: usize, blocks: BlockRange) -> bool {
        let free = !self.files[file].busy.values().any(|busy| busy.overlaps(blocks));
        if !free {
            self.hear();
        }
        free
    }

    fn write(&mut self, file: usize) {
        let (mut offset, mut length) = (self.random.below(SPAN), 1 + self.random.below(5 * BLOCK_BYTES));
        if self.random.below(2) == 0 {
            (offset, length) = (offset / BLOCK_BYTES * BLOCK_BYTES, length.next_multiple_of(BLOCK_BYTES));
        }
        if self.random.below(4) == 0 {
            offset = self.files[file].bytes.len() as u64;
        }
        let range = ByteRange::at(offset, length).unwrap();
        let blocks = range.blocks();
        if !self.free(file, blocks) {
            return;
        }
        let Some(slot) = self.slots.pop() else { return self.hear() };
        let bytes: Vec<u8> = self.random.bytes(length as usize);
        let driver = self.driver;
        let run = driver.fill(slot * SLOT_FRAMES, range, &bytes);
        let number = driver.number();
        let worked = &mut self.files[file];
        let size_before = worked.bytes.len() as u64;
        worked.bytes.resize(worked.bytes.len().max(range.end() as usize), 0);
        worked.bytes[offset as usize..range.end() as usize].copy_from_slice(&bytes);
        worked.busy.insert(number, blocks);
        let mut whole = worked.bytes[blocks.start() as usize * BLOCK..].to_vec();
        whole.resize(blocks.len() as usize * BLOCK, 0);
        let size = (worked.bytes.len() as u64).min(blocks.end() * BLOCK_BYTES);
        let (inode, id) = (worked.inode, worked.id);
        self.tape.push(Event::Asked(number, Asked::Write { inode, range, blocks: whole.into(), size }));
        self.under_way.insert(number, Step::Write { inode, file: id, range, run, size, size_before, number });
        let lease = LeaseId(number);
        let crc = Detail::Crc(Some(crc32c(&bytes)));
        driver.storage().perform(Output::Verify { lease, file: id, range, run }, crc);
    }

    fn change(&mut self, file: usize, change: Change, busy: BlockRange) {
        let number = self.driver.number();
        let worked = &mut self.files[file];
        worked.busy.insert(number, busy);
        let (inode, id) = (worked.inode, worked.id);
        self.tape.push(Event::Asked(number, Asked::Change { inode, change }));
        self.under_way.insert(number, Step::Change { inode });
        let request = RequestId(number);
        self.driver.storage().perform(Output::Perform { request, file: id, change }, Detail::None);
    }

    fn truncate(&mut self, file: usize) {
        let mut size = self.random.below(SPAN);
        if self.random.below(2) == 0 {
            size = size / BLOCK_BYTES * BLOCK_BYTES;
        }
        let old = self.files[file].bytes.len() as u64;
        let busy = BlockRange::new(size.min(old) / BLOCK_BYTES, u64::MAX).unwrap();
        if self.free(file, busy) {
            self.files[file].bytes.resize(size as usize, 0);
            self.change(file, Change::Truncate { size }, busy);
        }
    }

    fn punch(&mut self, file: usize) {
        let mut start = self.random.below(SPAN);
        if self.random.below(2) == 0 {
            start = start / BLOCK_BYTES * BLOCK_BYTES;
        }
        let range = ByteRange::at(start, 1 + self.random.below(8 * BLOCK_BYTES)).unwrap();
        if self.free(file, range.blocks()) {
            let bytes = &mut self.files[file].bytes;
            let end = (range.end() as usize).min(bytes.len());
            if (start as usize) < end {
                bytes[start as usize..end].fill(0);
            }
            let change =
                if self.random.below(3) == 0 { Change::Zero { range } } else { Change::Punch { range } };
            self.change(file, change, range.blocks());
        }
    }

    fn collapse(&mut self, file: usize) {
        let blocks = self.files[file].bytes.len() as u64 / BLOCK_BYTES;
        if blocks < 3 {
            return;
        }
        let first = self.random.below(blocks - 2);
        let end = first + 1 + self.random.below((blocks - first - 1).min(5));
        let range = ByteRange::new(first * BLOCK_BYTES, end * BLOCK_BYTES).unwrap();
        let busy = BlockRange::new(first, u64::MAX).unwrap();
        if end * BLOCK_BYTES < self.files[file].bytes.len() as u64 && self.free(file, busy) {
            self.files[file].bytes.drain(range.start() as usize..range.end() as usize);
            self.change(file, Change::Collapse { range }, busy);
        }
    }

    fn flush(&mut self, file: usize) {
        let number = self.driver.number();
        self.tape.push(Event::Asked(number, Asked::Flush));
        self.under_way.insert(number, Step::Flush);
        let output = Output::Flush { request: RequestId(number), file: self.files[file].id };
        self.driver.storage().perform(output, Detail::None);
    }

    /// One name, half of the time to another file; with the last one, everything.
    fn remove(&mut self, file: usize) {
        let name = self.a_name(file);
        let others = self.files.len() as u64 - 1;
        let heir = if others > 0 && self.random.below(2) == 0 {
            let other = (file + 1 + self.random.below(others) as usize) % self.files.len();
            Heir::Named(self.files[other].inode, self.a_name(other))
        } else {
            Heir::Nobody
        };
        self.take_name(file, name, heir);
    }

    /// Takes the name from the file and gives it to the heir. Whether it did: not if it is the last, and the file is busy.
    fn take_name(&mut self, file: usize, name: String, heir: Heir) -> bool {
        let storage = self.driver.storage();
        if self.files[file].names.len() > 1 {
            match &heir {
                Heir::Nobody => storage.unlink_extra(&path(&name)).unwrap(),
                Heir::Named(_, from) => storage.rename_over_extra(&path(from), &path(&name)).unwrap(),
                Heir::Staged(staged) => storage.place_over_extra(*staged, &path(&name)).unwrap(),
            }
            self.files[file].names.retain(|other| *other != name);
        } else {
            if !self.free(file, all_blocks()) {
                return false;
            }
            let removed = self.files.remove(file);
            let (inode, number, to) = (removed.inode, self.driver.number(), path(&name));
            let durable = self.random.below(2) == 0;
            let asked = match &heir {
                Heir::Nobody if !durable => Asked::Unlink,
                _ => Asked::Remove { inode },
            };
            let detail = match &heir {
                Heir::Nobody => Detail::Unlink { path: to, durable },
                Heir::Named(_, from) => Detail::RenameOver { from: path(from), to },
                Heir::Staged(staged) => Detail::PlaceOver { staged: *staged, to },
            };
            self.tape.push(Event::Asked(number, asked));
            self.under_way.insert(number, Step::Remove { inode });
            let (request, change) = (RequestId(number), Change::Remove);
            storage.perform(Output::Perform { request, file: removed.id, change }, detail);
            // Names are not changed beside: whoever removes holds them, and the heir must be where it was.
            self.hear_of(number);
            self.driver.storage().forget(removed.id);
        }
        if let Heir::Named(inode, from) = heir {
            let heir = self.files.iter_mut().find(|file| file.inode == inode).expect("it inherits");
            heir.names.retain(|other| *other != from);
            heir.names.push(name);
        }
        true
    }

    fn rename(&mut self, file: usize) {
        let (from, to) = (self.a_name(file), self.fresh_path());
        self.driver.storage().rename(&path(&from), &path(&to)).unwrap();
        let names = &mut self.files[file].names;
        names.retain(|name| *name != from);
        names.push(to);
    }

    /// Two names of files, which may be the same file's.
    fn exchange(&mut self, file: usize) {
        let with = self.random.below(self.files.len() as u64) as usize;
        let (one, other) = (self.a_name(file), self.a_name(with));
        self.driver.storage().exchange(&path(&one), &path(&other)).unwrap();
        for name in self.files.iter_mut().flat_map(|file| &mut file.names) {
            if *name == one {
                name.clone_from(&other);
            } else if *name == other {
                name.clone_from(&one);
            }
        }
    }

    fn reopen(&mut self, file: usize) {
        if !self.free(file, all_blocks()) {
            return;
        }
        // A flush may still use its id.
        if self.under_way.values().any(|step| matches!(step, Step::Flush)) {
            return;
        }
        let name = self.a_name(file);
        let worked = &mut self.files[file];
        self.driver.storage().forget(worked.id);
        let opened = self.driver.storage().open_file(&path(&name)).unwrap();
        assert_eq!(opened.size, worked.bytes.len() as u64, "{name} was opened again");
        worked.id = opened.file;
    }

    /// The clone gets a name of its own, or another file's, or none.
    fn clone_file(&mut self, file: usize) {
        if !self.free(file, all_blocks()) {
            return;
        }
        let (number, staged) = (self.driver.number(), self.driver.storage().stage());
        let worked = &mut self.files[file];
        worked.busy.insert(number, all_blocks());
        let (from, id, bytes) = (worked.inode, worked.id, worked.bytes.clone());
        self.tape.push(Event::Asked(number, Asked::Clone));
        self.under_way.insert(number, Step::Clone { inode: from });
        let request = RequestId(number);
        let output = Output::Perform { request, file: id, change: Change::Clone };
        self.driver.storage().perform(output, Detail::Clone { staged });
        self.hear_of(number);
        let inode = self.tape.inode_at(&format!(".leasehold/staging/{staged}"));
        self.tape.push(Event::Cloned { from, to: inode });
        let name = match self.random.below(4) {
            0 => return self.driver.storage().discard(staged),
            1 => {
                let name = self.fresh_path();
                self.driver.storage().place(staged, &path(&name)).unwrap();
                name
            }
            _ => {
                let victim = self.random.below(self.files.len() as u64) as usize;
                let name = self.a_name(victim);
                if !self.take_name(victim, name.clone(), Heir::Staged(staged)) {
                    return self.driver.storage().discard(staged);
                }
                name
            }
        };
        self.tape.push(Event::Placed);
        let id = self.driver.open_file(&name);
        assert_eq!(self.driver.size(id), bytes.len() as u64, "{name} is a clone");
        self.files.push(Worked { names: vec![name], id, inode, bytes, busy: BTreeMap::new() });
    }

    /// Others write some of its blocks, and that counts.
    fn adopt(&mut self, file: usize) {
        let size = self.files[file].bytes.len() as u64;
        let first = self.random.below(SPAN / BLOCK_BYTES);
        let range = ByteRange::at(first * BLOCK_BYTES, 1 + self.random.below(8 * BLOCK_BYTES)).unwrap();
        // The size is adopted, too, if the range reaches past it.
        let (range, busy) = match range.end() {
            end if end > size => (ByteRange::from(range.start()), all_blocks()),
            _ => (range, range.blocks()),
        };
        if !self.free(file, busy) {
            return;
        }
        let mut foreign = BTreeMap::new();
        // Where they would make the file longer is not theirs.
        let end = range.blocks().end().min(self.driver.size(self.files[file].id) / BLOCK_BYTES);
        for block in range.blocks().start()..end {
            if self.random.below(3) == 0 {
                let bytes: Arc<[u8]> = self.random.bytes(BLOCK).into();
                self.files[file].bytes[block as usize * BLOCK..][..BLOCK].copy_from_slice(&bytes);
                foreign.insert(block, bytes);
            }
        }
        if !foreign.is_empty() {
            // What is in the record only would be taken for torn if others overwrote it.
            self.driver.storage().checkpoint().unwrap();
        }
        let (number, name) = (self.driver.number(), self.a_name(file));
        let worked = &mut self.files[file];
        worked.busy.insert(number, busy);
        let (inode, id) = (worked.inode, worked.id);
        self.tape.push(Event::Asked(number, Asked::Adopt { inode, range, foreign: foreign.clone() }));
        for (block, bytes) in &foreign {
            self.tape.write_foreign(&format!("files/{name}"), block * BLOCK_BYTES, bytes);
        }
        self.under_way.insert(number, Step::Adopt { inode });
        let (request, change) = (RequestId(number), Change::Adopt { range });
        self.driver.storage().perform(Output::Perform { request, file: id, change }, Detail::None);
    }

    /// Awaits the answer with this number.
    fn hear_of(&mut self, number: u64) {
        while self.under_way.contains_key(&number) {
            self.hear();
        }
    }

    /// Awaits one answer, and goes on with what it belongs to.
    fn hear(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let answer = self.driver.answers.recv_timeout(Duration::from_secs(60)).expect("an answer");
        let number = match &answer {
            Input::Verified { lease, agrees: true } | Input::Merged { lease, result: Ok(()) } => lease.0,
            Input::Recorded { write, result: Ok(()) } | Input::Written { write, result: Ok(()) } => write.0,
            Input::Performed { request, result: Ok(_) } | Input::Flushed { request, result: Ok(()) } => {
                request.0
            }
            other => panic!("{other:?}"),
        };
        let step = self.under_way.remove(&number).expect("under way");
        match step {
            Step::Write { inode, file, range, run, size, size_before, number } => {
                let (lease, write, blocks) = (LeaseId(number), WriteId(number), range.blocks());
                let unaligned =
                    !range.start().is_multiple_of(BLOCK_BYTES) || !range.end().is_multiple_of(BLOCK_BYTES);
                let next = match answer {
                    Input::Verified { .. } if unaligned => {
                        Output::Merge { lease, file, range, size: size_before, run }
                    }
                    Input::Verified { .. } | Input::Merged { .. } => {
                        Output::Record { write, file, range, size, run }
                    }
                    Input::Recorded { .. } => Output::Write { write, file, blocks, size, run },
                    _ => {
                        self.slots.push(run.first.0 / SLOT_FRAMES);
                        self.over(inode, number);
                        return;
                    }
                };
                self.under_way
                    .insert(number, Step::Write { inode, file, range, run, size, size_before, number });
                self.driver.storage().perform(next, Detail::None);
            }
            Step::Adopt { inode } => {
                let file = self.files.iter().find(|file| file.inode == inode).expect("busy");
                match answer {
                    Input::Performed { result: Ok(None), .. } => {}
                    Input::Performed { result: Ok(Some(size)), .. } => {
                        assert_eq!(
                            size,
                            file.bytes.len() as u64,
                            "{:?} was adopted with its size",
                            file.names
                        );
                    }
                    other => panic!("{other:?}"),
                }
                self.over(inode, number);
            }
            Step::Change { inode } | Step::Clone { inode } | Step::Remove { inode } => {
                self.over(inode, number)
            }
            Step::Flush => {}
        }
    }

    fn over(&mut self, inode: InodeId, number: u64) {
        if let Some(file) = self.files.iter_mut().find(|file| file.inode == inode) {
            file.busy.remove(&number);
        }
    }
}
