//! Copies that the server makes by itself: a clone of a whole file, and a range copied into another file.
//!
//! A clone is taken at one moment, shares its blocks with the source where the filesystem can, and appears under its name
//! whole or not at all: it is made beside the store's files, and gets its name last. A range is copied piece by piece, each
//! a read and a local write, so it is neither atomic nor more than one piece in memory.

use crate::engine::Engine;
use crate::files::{CALL_BYTES_MAX, FileError, OpenFile};
use crate::open_files::Pinned;
use crate::path::StorePath;
use crate::storage::{Detail, Kind, NamespaceError, Staged};
use crate::sync::{self, blocking};
use leasehold_core::identity::Identity;
use leasehold_core::input::Change;
use leasehold_core::range::ByteRange;

impl Engine {
    /// Makes a copy of the file as it is committed at one moment, durable when this returns. It breaks no lease on the
    /// source, whose blocks it shares where the filesystem can: the answer says whether it does. `replace`: a file that has the name is removed, which
    /// breaks the leases on that one.
    ///
    /// Once begun it goes on, also if the future is dropped: nobody else knows of the file in the making.
    ///
    /// # Errors
    /// [`FileError`]; there is no clone then, and what has the name keeps it.
    pub async fn clone_file(
        &self,
        from: &StorePath,
        to: &StorePath,
        replace: bool,
        breaker: Identity,
    ) -> Result<bool, FileError> {
        let source = self.pin(from).await?;
        self.check_place(&source, from, to, replace).await?;
        let (engine, from, to) = (self.clone(), from.clone(), to.clone());
        sync::detached(async move {
            let staged = engine.0.storage.stage();
            let detail = Detail::Clone { staged };
            engine.change(&from, &source, Change::Clone, detail, breaker.clone()).await?;
            let shares = !engine.0.storage.is_copy(staged);
            let placed = engine.place(staged, &to, replace, breaker).await;
            if placed.is_err() {
                blocking(move || engine.0.storage.discard(staged)).await;
            }
            placed.map(|()| shares)
        })
        .await
    }

    /// Before blocks are copied, and leases broken, for nothing.
    async fn check_place(
        &self,
        source: &Pinned,
        from: &StorePath,
        to: &StorePath,
        replace: bool,
    ) -> Result<(), FileError> {
        let kind = match self.stat(to).await {
            Ok(stat) => stat.kind,
            Err(FileError::Path(NamespaceError::NotFound { .. })) => return Ok(()),
            Err(error) => return Err(error),
        };
        if kind == Kind::File && self.pin(to).await?.file() == source.file() {
            return Err(FileError::SameFile { from: from.clone(), to: to.clone() });
        }
        match (kind, replace) {
            (_, false) => Err(NamespaceError::Exists { path: to.clone() }.into()),
            (Kind::File | Kind::Link, true) => Ok(()),
            (_, true) => Err(NamespaceError::NotAFile { path: to.clone() }.into()),
        }
    }

    /// Gives a staged file its name.
    async fn place(
        &self,
        staged: Staged,
        to: &StorePath,
        replace: bool,
        breaker: Identity,
    ) -> Result<(), FileError> {
        let name = to.clone();
        match self.names(move |storage| storage.place(staged, &name)).await {
            Err(FileError::Path(NamespaceError::Exists { .. })) if replace => {}
            placed => return placed,
        }
        let name = to.clone();
        match self.last_name(to).await? {
            Some(target) => self.remove(to, target, Detail::PlaceOver { staged, to: name }, breaker).await,
            None => self.names(move |storage| storage.place_over_extra(staged, &name)).await,
        }
    }

    /// Copies the committed bytes of `range`, up to the source's end, to `offset` of another file, or of the same one
    /// where they do not overlap. Breaks the leases on what is written, piece by piece. Returns how many bytes were
    /// copied; they are visible, and durable after a sync.
    ///
    /// # Errors
    /// [`FileError`]; the pieces before the failed one were copied.
    pub async fn copy_range(
        &self,
        from: &StorePath,
        range: ByteRange,
        to: &StorePath,
        offset: u64,
        breaker: Identity,
    ) -> Result<u64, FileError> {
        // Both stay open: a name may stand for another file by the next piece.
        let (source, target) = (self.open(from).await?, self.open(to).await?);
        self.copy_range_open(&source, range, &target, offset, breaker).await
    }

    /// [`Engine::copy_range`] between files that are open.
    ///
    /// # Errors
    /// [`FileError`]; the pieces before the failed one were copied.
    pub async fn copy_range_open(
        &self,
        from: &OpenFile,
        range: ByteRange,
        to: &OpenFile,
        offset: u64,
        breaker: Identity,
    ) -> Result<u64, FileError> {
        let (source, target) = (&from.pinned, &to.pinned);
        let size = source.file();
        let size = self.look(move |view| view.core.file_size(size)).await.ok_or(FileError::Stopping)?;
        let end = range.end().min(size.unwrap_or(source.opened().size));
        let Some(range) = ByteRange::new(range.start(), end) else { return Ok(0) };
        let into = self.writable(offset, range.len())?;
        if source.file() == target.file() && range.start() < into.end() && into.start() < range.end() {
            return Err(FileError::Overlap { path: from.path.clone(), from: range, to: into });
        }
        let mut copied = 0;
        while let Some(piece) = ByteRange::new(range.start() + copied, range.end()) {
            let piece = ByteRange::at(piece.start(), piece.len().min(CALL_BYTES_MAX)).expect("not empty");
            let bytes = self.read_file(source, &from.path, piece).await?;
            let Some(written) = ByteRange::at(offset + copied, bytes.len() as u64) else { break };
            copied += bytes.len() as u64;
            self.write_file(target, &to.path, written, bytes, breaker.clone(), None).await?;
        }
        Ok(copied)
    }
}
