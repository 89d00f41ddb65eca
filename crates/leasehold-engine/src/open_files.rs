//! Which files are open, and which of them may be closed.
//!
//! The engine opens a file on first use and tells the core. Opening costs a descriptor and some memory, so idle files
//! beyond a limit are closed again: those that no call has pinned and the core has nothing to do with. One lock covers
//! opening and closing, so that a file is never closed under a call that has just opened it.

use crate::driver::{Driver, Work};
use crate::path::StorePath;
use crate::storage::{NamespaceError, OpenedFile, Storage};
use crate::sync::{Mutex, MutexGuard, mpsc};
use leasehold_core::ids::FileId;
use leasehold_core::input::Input;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many files are tried at most when one has to be closed.
const TRIES: usize = 64;

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It must be there.
    Existing,
    Create,
    /// It must be there, but its checksums may be damaged.
    ToAdopt,
}

pub(crate) struct OpenFiles {
    table: Mutex<Table>,
    storage: Arc<Storage>,
    driver: Driver,
    max: usize,
}

#[derive(Default)]
struct Table {
    /// How many calls are using each open file. Counted up under the lock only.
    pins: HashMap<FileId, Arc<AtomicU32>>,
    /// Open files, longest unused first, roughly: a file that is in use when its turn comes goes to the back.
    order: VecDeque<FileId>,
    /// Files that are being removed, to be closed soon: until then their space is not free.
    leaving: Vec<FileId>,
}

/// A file that stays open as long as this lives.
pub(crate) struct Pinned {
    opened: OpenedFile,
    pins: Arc<AtomicU32>,
}

impl OpenFiles {
    pub(crate) fn new(storage: Arc<Storage>, driver: Driver, max: usize) -> OpenFiles {
        OpenFiles { table: Mutex::default(), storage, driver, max }
    }

    /// Opens the file, tells the core, and keeps it open as long as the result lives. Blocks.
    pub(crate) fn pin(&self, path: &StorePath, how: Opening) -> Result<Pinned, NamespaceError> {
        let mut table = lock(&self.table);
        let opened = match how {
            Opening::Existing => self.storage.open_file(path)?,
            Opening::Create => self.storage.create(path)?,
            Opening::ToAdopt => self.storage.open_to_adopt(path)?,
        };
        let pins = table.pins.entry(opened.file).or_default().clone();
        if pins.fetch_add(1, Ordering::Relaxed) == 0 && !table.order.contains(&opened.file) {
            table.order.push_back(opened.file);
            let (file, size) = (opened.file, opened.size);
            self.driver.send_for_later(Work::Input(Input::FileOpened { file, size }));
        }
        self.close_left(&mut table);
        if table.order.len() > self.max {
            self.close_one(&mut table);
            // Whoever makes files faster than checkpoints let go of them waits here, before descriptors run out. A checkpoint
            // that fails has said so in the log, and its files stay.
            if self.storage.closing() > self.max {
                let _ = self.storage.checkpoint();
            }
        }
        Ok(Pinned { opened, pins })
    }

    /// Runs `change`, which changes names, while no file is being opened or closed. Blocks.
    pub(crate) fn rename<T>(&self, change: impl FnOnce(&Storage) -> T) -> T {
        let _table = lock(&self.table);
        change(&self.storage)
    }

    /// The file is about to lose its last name: it is closed as soon as nobody needs it.
    pub(crate) fn leaving(&self, file: FileId) {
        lock(&self.table).leaving.push(file);
    }

    /// Closes the files that have lost their last names, so that their space is free. Those that somebody needs wait for the next
    /// time. Blocks.
    pub(crate) fn close_leaving(&self) {
        self.close_left(&mut lock(&self.table));
    }

    fn close_left(&self, table: &mut Table) {
        for file in std::mem::take(&mut table.leaving) {
            if table.pins.contains_key(&file) && !self.close(table, file) {
                table.leaving.push(file);
            }
        }
    }

    fn close_one(&self, table: &mut Table) {
        for _ in 0..TRIES.min(table.order.len()) {
            let Some(file) = table.order.pop_front() else { return };
            table.order.push_back(file);
            if self.close(table, file) {
                return;
            }
        }
    }

    /// Closes the file unless somebody needs it. The core's thread never takes the table's lock, so waiting for it here
    /// cannot deadlock.
    fn close(&self, table: &mut Table, file: FileId) -> bool {
        if table.pins.get(&file).is_none_or(|pins| pins.load(Ordering::Acquire) > 0) {
            return false;
        }
        let (closed, answer) = mpsc::channel();
        self.driver.helping(|driver| driver.send(Work::CloseFile { file, closed }));
        if answer.recv() != Ok(true) {
            return false;
        }
        self.storage.forget(file);
        table.pins.remove(&file);
        table.order.retain(|open| *open != file);
        true
    }
}

impl Pinned {
    pub(crate) fn file(&self) -> FileId {
        self.opened.file
    }

    pub(crate) fn opened(&self) -> &OpenedFile {
        &self.opened
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.pins.fetch_sub(1, Ordering::Release);
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().expect("no code panics while it holds the table of open files")
}
