//! Random work for the storage, several pieces at a time, as the core would ask for it: what overlaps waits.

use super::super::*;
use super::Random;
use super::expect::Asked;
use super::recorder::{Event, Tape};
use super::volume::{BLOCK, InodeId};
use leasehold_core::range::BLOCK_BYTES;
use std::collections::BTreeMap;

/// Frames for each write under way.
const SLOT_FRAMES: u32 = 8;
const SLOTS: u32 = 4;
const SPAN: u64 = 30 * BLOCK_BYTES;
const FILES: usize = 4;

pub(super) struct Workload<'a> {
    driver: &'a Driver,
    tape: &'a Tape,
    random: Random,
    files: Vec<Worked>,
    under_way: BTreeMap<u64, Step>,
    slots: Vec<u32>,
    next_name: u32,
    directories: Vec<String>,
}

/// A file as whoever reads it would see it.
struct Worked {
    path: String,
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
    Remove {
        inode: InodeId,
        heir: Option<(InodeId, String)>,
    },
    Flush,
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
        match self.random.below(24) {
            0..12 => self.write(file),
            12..14 => self.truncate(file),
            14..17 => self.punch(file),
            17..19 => self.flush(file),
            19 => self.remove(file),
            20 => self.rename(file),
            21 => self.reopen(file),
            22 => self.directory(),
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
        self.files.push(Worked { path, id, inode, bytes: Vec::new(), busy: BTreeMap::new() });
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
        for file in &mut self.files {
            if let Some(rest) = file.path.strip_prefix(&from) {
                file.path = format!("{to}{rest}");
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
            self.change(file, Change::Punch { range }, range.blocks());
        }
    }

    fn flush(&mut self, file: usize) {
        let number = self.driver.number();
        self.tape.push(Event::Asked(number, Asked::Flush));
        self.under_way.insert(number, Step::Flush);
        let output = Output::Flush { request: RequestId(number), file: self.files[file].id };
        self.driver.storage().perform(output, Detail::None);
    }

    /// Everything, the last name too; half of the time to another file.
    fn remove(&mut self, file: usize) {
        if !self.free(file, BlockRange::new(0, u64::MAX).unwrap()) {
            return;
        }
        let removed = self.files.remove(file);
        let name = path(&removed.path);
        let heir = self.random.below(2) == 0 && !self.files.is_empty();
        let (detail, heir) = if heir {
            let heir = &self.files[self.random.below(self.files.len() as u64) as usize];
            let from = path(&heir.path);
            (Detail::RenameOver { from, to: name }, Some((heir.inode, removed.path)))
        } else {
            (Detail::Unlink { path: name }, None)
        };
        let number = self.driver.number();
        self.tape.push(Event::Asked(number, Asked::Remove { inode: removed.inode }));
        self.under_way.insert(number, Step::Remove { inode: removed.inode, heir });
        let output = Output::Perform { request: RequestId(number), file: removed.id, change: Change::Remove };
        self.driver.storage().perform(output, detail);
        // Names are not changed beside: whoever removes holds them, and the heir must be where it was.
        while self.under_way.contains_key(&number) {
            self.hear();
        }
        self.driver.storage().forget(removed.id);
    }

    fn rename(&mut self, file: usize) {
        let to = self.fresh_path();
        let worked = &mut self.files[file];
        self.driver.storage().rename(&path(&worked.path), &path(&to)).unwrap();
        worked.path = to;
    }

    fn reopen(&mut self, file: usize) {
        if !self.free(file, BlockRange::new(0, u64::MAX).unwrap()) {
            return;
        }
        let worked = &mut self.files[file];
        // A flush may still use its id.
        if self.under_way.values().any(|step| matches!(step, Step::Flush)) {
            return;
        }
        self.driver.storage().forget(worked.id);
        let opened = self.driver.storage().open_file(&path(&worked.path)).unwrap();
        assert_eq!(opened.size, worked.bytes.len() as u64, "{} was opened again", worked.path);
        worked.id = opened.file;
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
            Step::Change { inode } => self.over(inode, number),
            Step::Remove { inode, heir } => {
                self.over(inode, number);
                if let Some((heir, name)) = heir {
                    let heir = self.files.iter_mut().find(|file| file.inode == heir).expect("it inherits");
                    heir.path = name;
                }
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
