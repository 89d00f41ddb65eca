//! `Capture`: a copy of what lies under a live key, which then goes the way of a commit.

use crate::checksum::sum_range;
use crate::storage::Inner;
use leasehold_core::ids::{FileId, LeaseId};
use leasehold_core::input::Input;
use leasehold_core::range::{ByteRange, Run};

impl Inner {
    pub(crate) fn capture(&self, lease: LeaseId, file: FileId, range: ByteRange, from: Run, into: Run) {
        self.verified().touch(into);
        // SAFETY: the core has just taken the frames for the capture: no key, load or write is on them.
        unsafe { self.arena.copy_live(from, into) };
        // SAFETY: as above. The sums are those of the copies, which nobody can change any more.
        let sums = sum_range(range, unsafe { self.arena.bytes(into) });
        self.verified().insert(file, range, into, sums.blocks);
        self.answer(Input::Captured { lease });
    }
}
