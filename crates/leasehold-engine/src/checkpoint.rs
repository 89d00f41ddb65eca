//! Checkpoints: sidecar pages go back to their files, so that the write-ahead record can begin anew.
//!
//! ```text
//! switch the record's segments -> for each file: pages into the record -> file durable -> pages in place -> retire the old segment
//! ```
//! A page is in the record before it is overwritten in place, so that a torn page loses nothing. After a collapse, a note
//! behind the pages says that they are all there (`collapse.rs`). If any step fails, the old
//! segment stays and the next checkpoint goes on.

use crate::buffer::Buffer;
use crate::disk;
use crate::file::StoreFile;
use crate::record::Body;
use crate::sidecar::PAGE;
use crate::storage::Inner;
use crate::sums::page_offset;
use crate::sync::{self, Mutex, mpsc};
use std::io;
use std::sync::Arc;
use std::vec::IntoIter;

/// What goes into the record with the pages.
struct Notes {
    /// Before them: the file will go on changing.
    mark: Option<Body>,
    /// After them: they are all that a collapse has changed.
    shifted: Option<Body>,
}

/// Threads that write files back at once, where there are many.
const THREADS_MAX: usize = 16;
const FILES_A_THREAD: usize = 4;

impl Inner {
    /// Blocks. One at a time.
    pub(crate) fn checkpoint(self: &Arc<Inner>) -> io::Result<()> {
        let _one = self.checkpointing.lock().expect("no panic while held");
        self.log.switch()?;
        let files: Vec<Arc<StoreFile>> = self.dirty().values().cloned().collect();
        self.checkpoint_files(files)?;
        self.log.retire()?;
        self.evict();
        Ok(())
    }

    /// In any order: that the old segment stays until all are done is what makes them safe.
    fn checkpoint_files(self: &Arc<Inner>, files: Vec<Arc<StoreFile>>) -> io::Result<()> {
        // A file costs several flushes, and filesystems do those that wait at the same moment as one.
        let threads = (files.len() / FILES_A_THREAD).clamp(1, THREADS_MAX);
        let files = Arc::new(Mutex::new(files.into_iter()));
        let others = (1..threads).map(|_| {
            let (inner, files) = (Arc::clone(self), Arc::clone(&files));
            sync::spawn("storage-checkpoint", move || inner.checkpoint_each(&files))
        });
        let others: Vec<_> = others.collect();
        let mine = self.checkpoint_each(&files);
        let all = others.into_iter().map(|other| sync::join(other?).expect("a panic ends the process"));
        all.fold(mine, Result::and)
    }

    fn checkpoint_each(self: &Arc<Inner>, files: &Mutex<IntoIter<Arc<StoreFile>>>) -> io::Result<()> {
        loop {
            let next = files.lock().expect("no panic while held").next();
            let Some(file) = next else { return Ok(()) };
            self.checkpoint_file(&file).inspect_err(|error| {
                tracing::error!(path = %file.path(), %error, "cannot write the checksums back");
            })?;
        }
    }

    fn checkpoint_file(self: &Arc<Inner>, file: &Arc<StoreFile>) -> io::Result<()> {
        self.trim(file)?;
        let (pages, notes, busy) = {
            let mut sums = file.sums();
            if sums.removed {
                drop(sums);
                self.unmark_dirty(file);
                return Ok(());
            }
            let busy = sums.writes > 0 || sums.disk_size != sums.header.size;
            let shifted = sums.shifted.map(|sequence| Body::Shifted { sequence });
            (sums.take_dirty(), Notes { mark: busy.then(|| file.mark(&sums)), shifted }, busy)
        };
        let written = self.write_back(file, &pages, notes);
        let mut sums = file.sums();
        if let Err(error) = written {
            sums.still_dirty(pages.iter().map(|(number, _)| *number));
            return Err(error);
        }
        sums.written_back(pages.iter().map(|(number, _)| *number));
        // Collapses and checkpoints do not overlap.
        sums.shifted = None;
        let clean = !busy && sums.writes == 0 && !sums.is_dirty() && sums.disk_size == sums.header.size;
        if clean {
            self.unmark_dirty(file);
            drop(sums);
            self.release(file);
        }
        Ok(())
    }

    fn write_back(
        self: &Arc<Inner>,
        file: &StoreFile,
        pages: &[(Option<u32>, [u8; PAGE])],
        notes: Notes,
    ) -> io::Result<()> {
        let images =
            pages.iter().map(|(number, bytes)| Body::Page { number: *number, bytes: Box::new(*bytes) });
        let marks_file = notes.mark.is_some();
        let all = notes.mark.into_iter().chain(images).chain(notes.shifted);
        let epoch = self.note_all(file, all)?;
        let sidecar = {
            let mut sums = file.sums();
            if marks_file {
                sums.marked = sums.marked.max(epoch);
            }
            match &sums.sidecar {
                Some(sidecar) => Arc::clone(sidecar),
                None if pages.is_empty() => return self.disk.sync(&file.disk),
                None => Arc::clone(sums.sidecar.insert(self.store.create_sidecar(file.identity)?)),
            }
        };
        // The size, as the header will say.
        self.disk.sync(&file.disk)?;
        let mut rest = pages;
        while let Some((first, _)) = rest.first() {
            let start = page_offset(*first);
            let next_to = |index: usize| start + (index * PAGE) as u64;
            let count =
                (0..rest.len()).take_while(|index| page_offset(rest[*index].0) == next_to(*index)).count();
            let (together, others) = rest.split_at(count);
            let bytes: Vec<u8> = together.iter().flat_map(|(_, page)| page.iter().copied()).collect();
            disk::write(&*self.disk, &sidecar, start, Buffer::of(&bytes))?;
            rest = others;
        }
        self.disk.sync(&sidecar)
    }

    /// Waits until all are durable. The epoch that they went to.
    fn note_all(self: &Arc<Inner>, file: &StoreFile, bodies: impl Iterator<Item = Body>) -> io::Result<u64> {
        let (told, durable) = mpsc::channel();
        let (mut count, mut epoch) = (0, 0);
        for body in bodies {
            let told = told.clone();
            epoch = self.log.note(
                file.identity,
                body,
                Box::new(move |result| {
                    // The receiver waits right below.
                    let _ = told.send(result);
                }),
            );
            count += 1;
        }
        for result in durable.iter().take(count) {
            result.map_err(|error| io::Error::from(error.kind()))?;
        }
        Ok(epoch)
    }

    /// Drops pages that need not be in memory, if they are many.
    fn evict(&self) {
        let files: Vec<Arc<StoreFile>> = self.files().by_identity.values().cloned().collect();
        let pages: usize = files.iter().map(|file| file.sums().pages_in_memory()).sum();
        if (pages * PAGE) as u64 > self.config.sidecar_bytes_max {
            for file in &files {
                file.sums().evict_clean();
            }
        }
    }
}
