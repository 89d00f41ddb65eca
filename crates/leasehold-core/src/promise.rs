//! The promises, by number: what a design for DMA into files may keep or break.

use core::fmt;

/// One promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Promise {
    /// Stable writeback: what is on disk always matches its checksum.
    P1,
    /// Nothing acknowledged is lost: what was committed and synced survives whatever comes.
    P2,
    /// No stray DMA: no remote byte lands in what has stopped being the range it was leased for.
    P3,
    /// No disowned page: nothing is marked dirty after the file gave it up.
    P4,
    /// Bounded breaks: a layout change ends within grace and fence, whatever the holder does.
    P5,
    /// Both are told: the holder who takes its lease, the breaker whom it waits for.
    P6,
    /// No collateral: only the leases in conflict are revoked.
    P7,
    /// Coherent reads: a read after a commit sees it.
    P8,
    /// Clones stay as they were when they were taken.
    P9,
    /// Tenants are apart: a key is useless for another's bytes.
    P10,
}

impl Promise {
    /// All of them, in order.
    pub const ALL: [Promise; 10] = [
        Promise::P1,
        Promise::P2,
        Promise::P3,
        Promise::P4,
        Promise::P5,
        Promise::P6,
        Promise::P7,
        Promise::P8,
        Promise::P9,
        Promise::P10,
    ];

    /// Its short name, as in the design: `P1` to `P10`.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10"][self as usize]
    }

    /// Its title.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Promise::P1 => "stable writeback",
            Promise::P2 => "nothing acknowledged is lost",
            Promise::P3 => "no stray DMA",
            Promise::P4 => "no disowned page",
            Promise::P5 => "bounded breaks",
            Promise::P6 => "both are told",
            Promise::P7 => "no collateral",
            Promise::P8 => "coherent reads",
            Promise::P9 => "clones stay as they were",
            Promise::P10 => "tenants are apart",
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
