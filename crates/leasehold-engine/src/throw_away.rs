//! An engine under one of the other schemes, on a store that it made for that and throws away.
//!
//! Most schemes lose data; that is what they are run for. So nobody can name a store for them: [`ThrowAway::start`] makes
//! one in a fresh directory, and removes it when it is dropped. [`Engine::start`], which is all that a server has, knows
//! no scheme but [`leasehold_core::schemes::LEASEHOLD`].
//!
//! What the host does in the kernel happens here when it is asked for: writeback, reclaim, a device's fault.
//!
//! The caller upholds that a peer is quiet while its frames are written back, unless writes are held
//! ([`ThrowAway::hold_writes`]): then they have been summed up, and the kernel alone looks at them.

use crate::arena::Pages;
use crate::disk::{Disk, Done, Memory, Transfer, Verb};
use crate::driver::Work;
use crate::engine::{Config, Engine, StartError, fabric_config};
use crate::path::StorePath;
use crate::storage::{NamespaceError, StorageConfig};
use leasehold_core::ids::{LeaseId, SessionId};
use leasehold_core::input::Input;
use leasehold_core::scheme::Scheme;
use leasehold_core::view::{LeaseState, WaitOn};
use leasehold_core::violation::Violation;
use leasehold_fabric::iwarp::Iwarp;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::oneshot;

/// How long a holder has to answer, and how long a fence may take.
pub const GRACE_MS: u64 = 200;
/// See [`GRACE_MS`].
pub const FENCE_MS: u64 = 300;

/// How often a device asks again for what it could not have, and how often others look for what they wait for.
const AGAIN: Duration = Duration::from_millis(1);

/// See the module.
pub struct ThrowAway {
    engine: Engine,
    gate: Arc<Gate>,
    /// Dropped last.
    directory: TempDir,
}

/// Why there is no throw-away store.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum ThrowAwayError {
    /// The place is a store, or within one.
    #[error(
        "{store:?} is a store, and schemes that lose data stay away from stores; name a directory outside"
    )]
    Store { store: PathBuf },
    /// No directory.
    #[error("cannot make a directory in {parent:?}: {source}; name another one")]
    Directory {
        parent: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The engine.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl ThrowAway {
    /// Makes a store in a new directory below `parent`, and starts an engine on it. `device_faults`: whether the peers'
    /// device can have a key taken away and ask for it again, with [`ThrowAway::key`]. Blocks.
    ///
    /// # Errors
    /// [`ThrowAwayError`]; nothing is left behind.
    pub fn start(scheme: Scheme, device_faults: bool, parent: &Path) -> Result<ThrowAway, ThrowAwayError> {
        let no_directory = |source| ThrowAwayError::Directory { parent: parent.to_owned(), source };
        let parent_path = parent.canonicalize().map_err(no_directory)?;
        if let Some(store) = parent_path.ancestors().find(|path| path.join(".leasehold").exists()) {
            return Err(ThrowAwayError::Store { store: store.to_owned() });
        }
        let directory = tempfile::Builder::new()
            .prefix("leasehold-throw-away-")
            .tempdir_in(&parent_path)
            .map_err(no_directory)?;
        let config = Config {
            arena_bytes: 4 << 20,
            pages: Pages::Normal,
            data_address: ([127, 0, 0, 1], 0).into(),
            grace_ms: GRACE_MS,
            fence_ms: FENCE_MS,
            ..Config::new(directory.path().join("store"))
        };
        let gate = Arc::new(Gate::default());
        let behind = gate.clone();
        let wrap = move |disk| Arc::new(Gated { disk, gate: behind.clone() }) as Arc<dyn Disk>;
        let storage =
            StorageConfig { wrap_disk: Some(Arc::new(wrap)), ..StorageConfig::new(&config.directory) };
        let fabric = Iwarp::new(fabric_config(&config)).map_err(StartError::Thread)?;
        let counters = fabric.counters();
        let design = (scheme, device_faults);
        let engine = Engine::start_under(design, config, storage, Arc::new(fabric), counters)?;
        Ok(ThrowAway { engine, gate, directory })
    }

    /// The engine, for calls.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where the bytes of a file are, for ordinary tools.
    #[must_use]
    pub fn file(&self, path: &StorePath) -> PathBuf {
        self.directory.path().join("store/files").join(path.as_str().trim_start_matches('/'))
    }

    /// Writes back what is dirty of the file, as the kernel does from time to time.
    ///
    /// # Errors
    /// There is no such file.
    pub async fn write_back(&self, path: &StorePath) -> Result<(), NamespaceError> {
        self.begin_writeback(path).await?;
        self.quiet().await;
        Ok(())
    }

    /// [`ThrowAway::write_back`], without waiting for the end: for when writes are held.
    ///
    /// # Errors
    /// There is no such file.
    pub async fn begin_writeback(&self, path: &StorePath) -> Result<(), NamespaceError> {
        let pinned = self.engine.pin(path).await?;
        self.engine.0.driver.send(Work::Input(Input::Writeback { file: pinned.file() }));
        Ok(())
    }

    /// From now on what is written from frames waits on its way to the disk, when it has been summed up.
    #[must_use]
    pub fn hold_writes(&self) -> HeldWrites<'_> {
        HeldWrites { first: self.gate.close(), one_waits: false, store: self }
    }

    async fn quiet(&self) {
        while !self.is_quiet().await {
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn is_quiet(&self) -> bool {
        self.engine.stats().await.is_none_or(|stats| stats.writebacks == 0)
    }

    /// Memory is short: what is clean of the file goes, as under `kswapd`.
    ///
    /// # Errors
    /// There is no such file.
    pub async fn reclaim(&self, path: &StorePath) -> Result<(), NamespaceError> {
        let pinned = self.engine.pin(path).await?;
        self.engine.0.driver.send(Work::Input(Input::Reclaim { file: pinned.file() }));
        Ok(())
    }

    /// What a device finds when it looks for the translation of a key. If it was taken back, the device faults, and asks
    /// again until it is there; the peer's transfer is held up meanwhile. `None`: the lease is over.
    pub async fn key(&self, session: SessionId, lease: LeaseId) -> Option<u32> {
        loop {
            let sessions = self.engine.0.sessions.clone();
            let look = move |view: &crate::driver::View<'_>| {
                let state = view.core.lease(lease)?.state;
                let key = sessions.get(session).and_then(|session| session.key(lease));
                Some((state, key.filter(|key| !key.revoked).map(|key| key.tag.0)))
            };
            match self.engine.look(look).await.flatten()? {
                (LeaseState::Live, Some(tag)) => return Some(tag),
                (LeaseState::Parked, _) => {
                    self.engine.0.driver.send(Work::Input(Input::DeviceFault { lease }));
                }
                _ => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether the key was taken back, and comes again when the device faults.
    pub async fn is_parked(&self, lease: LeaseId) -> bool {
        let state = self.engine.look(move |view| view.core.lease(lease).map(|lease| lease.state)).await;
        state.flatten() == Some(LeaseState::Parked)
    }

    /// Whether somebody waits for a lease that has no deadline.
    pub async fn somebody_waits_for_ever(&self) -> bool {
        let without_end = |on: &WaitOn| matches!(on, WaitOn::Lease { deadline: None, .. });
        let found =
            self.engine.look(move |view| view.core.waits().any(|wait| wait.on.iter().any(without_end)));
        found.await == Some(true)
    }

    /// The lease that marked frames dirty after the file had given them up, if one did: what ext4 has its BUG for.
    pub async fn disowned(&self) -> Option<LeaseId> {
        let found = self.engine.look(|view| match view.core.check() {
            Err(Violation::DisownedDirty { lease }) => Some(lease),
            _ => None,
        });
        found.await.flatten()
    }
}

/// Writes that wait, until this is dropped.
pub struct HeldWrites<'a> {
    first: oneshot::Receiver<()>,
    one_waits: bool,
    store: &'a ThrowAway,
}

impl HeldWrites<'_> {
    /// Returns once one waits, or there is nothing to write: whether one does.
    pub async fn caught(&mut self) -> bool {
        while !self.one_waits {
            tokio::select! {
                biased;
                _ = &mut self.first => self.one_waits = true,
                () = tokio::time::sleep(AGAIN) => {
                    if self.store.is_quiet().await {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Lets them go, and waits until they are durable.
    pub async fn let_go(self) {
        self.store.gate.open();
        self.store.quiet().await;
    }
}

impl Drop for HeldWrites<'_> {
    fn drop(&mut self) {
        self.store.gate.open();
    }
}

/// Holds up what is written from frames while it is closed.
#[derive(Default)]
struct Gate(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// Who is told of the first one; there is none while the gate is open.
    closed: bool,
    tell: Option<oneshot::Sender<()>>,
    waiting: Vec<(Arc<dyn Disk>, Transfer, Done)>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("no code panics while it holds the gate")
    }

    /// From now on writes wait. Told of the first.
    fn close(&self) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        let mut held = self.lock();
        (held.closed, held.tell) = (true, Some(tell));
        told
    }

    fn open(&self) {
        let mut held = self.lock();
        (held.closed, held.tell) = (false, None);
        let waiting = std::mem::take(&mut held.waiting);
        drop(held);
        waiting.into_iter().for_each(|(disk, transfer, done)| disk.submit(transfer, done));
    }
}

/// A disk behind the gate.
struct Gated {
    disk: Arc<dyn Disk>,
    gate: Arc<Gate>,
}

impl Disk for Gated {
    fn submit(&self, transfer: Transfer, done: Done) {
        let from_frames = transfer.verb == Verb::Write && matches!(transfer.memory, Memory::Frames { .. });
        let mut held = self.gate.lock();
        if !from_frames || !held.closed {
            drop(held);
            return self.disk.submit(transfer, done);
        }
        held.waiting.push((self.disk.clone(), transfer, done));
        if let Some(tell) = held.tell.take() {
            let _nobody_waits = tell.send(());
        }
    }

    fn finish(&self) {
        self.gate.open();
        self.disk.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leasehold_core::schemes;

    #[test]
    fn a_scheme_that_loses_data_stays_away_from_stores() {
        let store = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(store.path().join(".leasehold")).unwrap();
        let within = store.path().join("files/a");
        std::fs::create_dir_all(&within).unwrap();
        for parent in [store.path(), &within] {
            let error = ThrowAway::start(schemes::NAIVE, false, parent).err().expect("refused");
            assert!(matches!(error, ThrowAwayError::Store { .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(&within).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn the_store_goes_with_its_engine() {
        let parent = tempfile::tempdir().unwrap();
        let store = ThrowAway::start(schemes::NAIVE, false, parent.path()).unwrap();
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
        drop(store);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
