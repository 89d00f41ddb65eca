//! Forgetting what is held in memory of a file: its checksums, which go back to the sidecar first, and the kernel's page
//! cache of its bytes, which others may have filled.

use crate::storage::Inner;
use leasehold_core::ids::FileId;
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// What was forgotten of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// How much memory is free now: of ours, and of the kernel's page cache where it can say (Linux 6.5).
    pub bytes: u64,
}

impl Inner {
    pub(crate) fn evict_file(self: &Arc<Inner>, id: FileId) -> io::Result<Evicted> {
        let file = self.file(id);
        if self.dirty().contains_key(&file.identity) {
            self.checkpoint()?;
        }
        let (pages, sidecar) = {
            let mut sums = file.sums();
            (sums.evict_clean(), sums.sidecar.clone())
        };
        let mut bytes = (pages * crate::sidecar::PAGE) as u64;
        for disk_file in [Some(Arc::clone(&file.disk)), sidecar].into_iter().flatten() {
            let before = cached_bytes(&disk_file.file);
            fadvise(&disk_file.file, 0, None, Advice::DontNeed)?;
            bytes += before.saturating_sub(cached_bytes(&disk_file.file));
        }
        Ok(Evicted { bytes })
    }
}

/// What the kernel has of the file in its page cache; 0 where it cannot say.
fn cached_bytes(file: &File) -> u64 {
    /// `SYS_cachestat`, which libc does not name everywhere; the number is the same on all machines.
    const CACHESTAT: libc::c_long = 451;
    // `struct cachestat_range`: from 0, of length 0, which is to the end.
    let range = [0u64; 2];
    // `struct cachestat`: cached, dirty, in writeback, evicted, evicted lately; in pages.
    let mut found = [0u64; 5];
    // SAFETY: both structures are as the kernel wants them, and live across the call.
    let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0) };
    if result == 0 { found[0] * rustix::param::page_size() as u64 } else { 0 }
}
