//! What the kernel keeps of the mounted files, pages and sizes, which must not outlive what they are copies of.

use super::message;
use super::nodes::Nodes;
use leasehold_core::range::ByteRange;
use leasehold_engine::pages::Keeper;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How often is looked whether the kernel knows a file by now.
const LOOK: Duration = Duration::from_millis(1);
/// The kernel takes in what it was told within microseconds. If it does not within this, nobody will hear of it any more.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells the kernel what to forget.
pub(super) struct Pages {
    nodes: Arc<Mutex<Nodes>>,
    runtime: Handle,
    /// The way to the kernel, once there is one. Before, it has no pages.
    pub kernel: OnceLock<Arc<OwnedFd>>,
}

impl Pages {
    pub fn new(nodes: Arc<Mutex<Nodes>>, runtime: Handle) -> Pages {
        Pages { nodes, runtime, kernel: OnceLock::new() }
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        lock(&self.nodes)
    }
}

impl Keeper for Pages {
    fn keeps(&self, inode: u64) -> bool {
        self.nodes().is_kept(inode)
    }

    fn forget(&self, inode: u64, range: ByteRange, then: Box<dyn FnOnce() + Send>) {
        let found = self.nodes().forget_kept(inode);
        let Some(((node, whole), kernel)) = found.zip(self.kernel.get()) else { return then() };
        let (kernel, nodes) = (kernel.clone(), self.nodes.clone());
        let range = if whole { ByteRange::ALL } else { range };
        // It waits for pages that are being read, and for what is changed in them to be written back.
        self.runtime.spawn_blocking(move || {
            forget(&kernel, &nodes, node, range);
            then();
        });
    }

    fn removed(&self, inode: u64) {
        self.nodes().removed(inode);
    }
}

fn forget(kernel: &OwnedFd, nodes: &Mutex<Nodes>, node: u64, range: ByteRange) {
    let word = message::forget(node, range);
    let began = Instant::now();
    loop {
        match rustix::io::write(kernel, &word) {
            Ok(_) => return,
            Err(Errno::NOENT) => {}
            Err(error) => return tracing::debug!(node, %range, "the kernel does not forget pages: {error}"),
        }
        // It does not know the file: any more, which it is about to say, or yet, since it has not taken in the answer by which
        // it will. There is no word for either.
        if !lock(nodes).is_known(node) {
            return;
        }
        if began.elapsed() > PATIENCE {
            return tracing::warn!(node, "the kernel was told of a file, and does not know it");
        }
        std::thread::sleep(LOOK);
    }
}

fn lock(nodes: &Mutex<Nodes>) -> MutexGuard<'_, Nodes> {
    nodes.lock().expect("no code panics while it holds the nodes")
}
