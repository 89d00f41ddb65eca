//! When files were written whose bytes are still in memory.
//!
//! The store's own file moves its time of modification when bytes reach it, some moments after a program wrote them. Until
//! then that program, and `make`, would be told that nothing had changed; and a time that a program sets in between
//! (`cp -p`, `tar`, `rsync -t`) would be lost to the bytes that come after it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

/// By what the kernel calls the file, since when it was last made durable, and as long as the kernel knows it.
#[derive(Default)]
pub(super) struct Times(Mutex<HashMap<u64, SystemTime>>);

impl Times {
    /// The file was written, or cut.
    pub fn written(&self, node: u64) {
        self.times().insert(node, SystemTime::now());
    }

    /// Its time of modification: the later one of what the store's own file has and when it was last written.
    pub fn modified(&self, node: u64, on_disk: SystemTime) -> SystemTime {
        self.times().get(&node).map_or(on_disk, |written| on_disk.max(*written))
    }

    /// When it was last written, if that may be in memory still: to be given to [`Times::durable`] once it is not.
    pub fn in_memory(&self, node: u64) -> Option<SystemTime> {
        self.times().get(&node).copied()
    }

    /// What was written until then is on disk.
    pub fn durable(&self, node: u64, until: Option<SystemTime>) {
        let mut times = self.times();
        if times.get(&node).copied() == until {
            times.remove(&node);
        }
    }

    /// The kernel has forgotten it.
    pub fn forget(&self, node: u64) {
        self.times().remove(&node);
    }

    fn times(&self) -> MutexGuard<'_, HashMap<u64, SystemTime>> {
        self.0.lock().expect("no code panics while it holds the times")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_write_shows_until_it_is_durable_and_one_that_came_meanwhile_goes_on_to() {
        let times = Times::default();
        assert_eq!(times.modified(1, UNIX_EPOCH), UNIX_EPOCH);
        times.written(1);
        let written = times.in_memory(1);
        assert_eq!(Some(times.modified(1, UNIX_EPOCH)), written);
        let later = SystemTime::now() + Duration::from_secs(9);
        assert_eq!(times.modified(1, later), later, "what others wrote shows, too");
        times.durable(1, Some(UNIX_EPOCH));
        assert_eq!(times.in_memory(1), written, "it was written again since");
        times.durable(1, written);
        assert_eq!(times.modified(1, UNIX_EPOCH), UNIX_EPOCH);
    }
}
