//! The kernel's pages of the mounted files, which must not outlive what they are copies of.

use super::nodes::Nodes;
use fuser::{INodeNo, Notifier};
use leasehold_core::range::ByteRange;
use leasehold_engine::pages::Keeper;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use tokio::runtime::Handle;

/// Tells the kernel what to forget.
pub(super) struct Pages {
    nodes: Arc<Mutex<Nodes>>,
    runtime: Handle,
    /// The way to the kernel, once there is one. Before, it has no pages.
    pub notifier: OnceLock<Notifier>,
}

impl Pages {
    pub fn new(nodes: Arc<Mutex<Nodes>>, runtime: Handle) -> Pages {
        Pages { nodes, runtime, notifier: OnceLock::new() }
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().expect("no code panics while it holds the nodes")
    }
}

impl Keeper for Pages {
    fn keeps(&self, inode: u64) -> bool {
        self.nodes().has_pages(inode)
    }

    fn forget(&self, inode: u64, range: ByteRange, then: Box<dyn FnOnce() + Send>) {
        let found = self.nodes().forget_pages(inode);
        let Some(((node, whole), notifier)) = found.zip(self.notifier.get().cloned()) else { return then() };
        let range = if whole { ByteRange::ALL } else { range };
        // It waits for pages that are being read, and for what is changed in them to be written back.
        self.runtime.spawn_blocking(move || {
            forget(&notifier, node, range);
            then();
        });
    }

    fn removed(&self, inode: u64) {
        self.nodes().removed(inode);
    }
}

fn forget(notifier: &Notifier, node: u64, range: ByteRange) {
    let offset = i64::try_from(range.start()).unwrap_or(i64::MAX);
    // Without an end, for the kernel: zero.
    let length = i64::try_from(range.end()).map_or(0, |end| end - offset);
    match notifier.inval_inode(INodeNo(node), offset, length) {
        Ok(()) => {}
        // It has forgotten the file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::debug!(node, %range, "the kernel does not forget pages: {error}"),
    }
}
