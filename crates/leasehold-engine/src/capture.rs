//! `Capture`: a copy of what lies under a live key, which then goes the way of a commit.

use crate::checksum::sum_range;
use crate::storage::Inner;
use leasehold_core::ids::LeaseId;
use leasehold_core::input::Input;
use leasehold_core::range::{ByteRange, Run};

impl Inner {
    pub(crate) fn capture(&self, lease: LeaseId, range: ByteRange, from: Run, into: Run) {
        // SAFETY: the core has just taken the frames for the capture: no key, load or write is on them.
        unsafe { self.arena.copy_live(from, into) };
        // SAFETY: as above. The sums are those of the copies, which nobody can change any more.
        sum_range(range, into.first, unsafe { self.arena.bytes(into) }, self.arena.sums());
        self.answer(Input::Captured { lease });
    }
}
