//! The designs that the threads propose, as data: what each decides, who proposed it, and what it should keep.
//!
//! What an entry declares was written down before the checker first ran, from what the threads say. A verdict that
//! comes out otherwise is a fault of the scheme's model or of the declaration, and ends in a decision record.

use crate::promise::Promise;
use crate::scheme::{
    Admission, AdmissionRules, DataPath, DirtyWhen, FsyncRule, LayoutRule, Scheme, Writeback,
};

/// One proposal.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What it decides.
    pub scheme: Scheme,
    /// What it proposes, in a sentence.
    pub idea: &'static str,
    /// Who proposed it.
    pub sources: &'static [Source],
    /// Whether its world is one in which nobody changes a layout.
    pub layout_is_fixed: bool,
    /// What becomes of each promise, P1 to P10, and why.
    pub declares: [(Verdict, &'static str); 10],
}

impl Entry {
    /// What becomes of one promise, and why.
    #[must_use]
    pub fn declared(&self, promise: Promise) -> (Verdict, &'static str) {
        self.declares[promise as usize]
    }
}

/// Who proposed it, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The author.
    pub author: &'static str,
    /// The day of the message, or where else it is written.
    pub date: &'static str,
}

/// Whether a promise is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// In every interleaving, and there were some that put it to the test.
    Kept,
    /// Not in some interleaving.
    Broken,
    /// Nothing that could break it ever happens.
    Vacuous,
}

use Verdict::{Broken, Kept, Vacuous};

const fn source(author: &'static str, date: &'static str) -> Source {
    Source { author, date }
}

const fn dirty(when: &[u8]) -> DirtyWhen {
    let mut dirty =
        DirtyWhen { registered: false, faulted: false, released: false, committed: false, under_io: false };
    let mut at = 0;
    while at < when.len() {
        match when[at] {
            b'r' => dirty.registered = true,
            b'f' => dirty.faulted = true,
            b'l' => dirty.released = true,
            b'c' => dirty.committed = true,
            _ => dirty.under_io = true,
        }
        at += 1;
    }
    dirty
}

/// get_user_pages, DMA, set_page_dirty, put_page: what RDMA has done since 2005.
pub const NAIVE: Scheme = Scheme {
    name: "naive",
    admission: AdmissionRules::all(Admission::Allow),
    writeback: Writeback::AsIs,
    layout: LayoutRule::Ignore,
    data_path: DataPath::FileFrames,
    dirty: dirty(b"rl"),
    fsync: FsyncRule::Acknowledge,
};

/// The filesystem marks pages read-only during writeback. The device does not look at page tables.
pub const STABLE_PAGES: Scheme = Scheme { name: "stable_pages", writeback: Writeback::ProtectCpu, ..NAIVE };

/// Mmu notifiers and on-demand paging: the device's mapping is taken away for writeback, and faulted back.
pub const NOTIFIER: Scheme = Scheme {
    name: "notifier",
    admission: AdmissionRules::all(Admission::IfFaults),
    writeback: Writeback::Refault,
    layout: LayoutRule::Fence,
    data_path: DataPath::FileFrames,
    dirty: dirty(b"f"),
    fsync: FsyncRule::FenceAndWrite,
};

/// Mainline since 6.5: no key for writing a file mapping unless the device can fault; keys for reading are pins.
pub const REGISTRATION_REFUSED: Scheme = Scheme {
    name: "registration_refused",
    admission: AdmissionRules {
        cache_read: Admission::Allow,
        cache_write: Admission::IfFaults,
        dax_read: Admission::Refuse,
        dax_write: Admission::Refuse,
    },
    ..NOTIFIER
};

/// get_user_pages_longterm fails on DAX; the page cache is as it was.
pub const DAX_LONGTERM_FAILS: Scheme = Scheme {
    name: "dax_longterm_fails",
    admission: AdmissionRules {
        cache_read: Admission::Allow,
        cache_write: Admission::Allow,
        dax_read: Admission::Refuse,
        dax_write: Admission::Refuse,
    },
    ..NAIVE
};

/// A buffer of the peer's own, copied into the file. No key ever reaches the file, so nothing else needs an answer.
pub const BOUNCE: Scheme = Scheme {
    name: "bounce",
    data_path: DataPath::Copied,
    dirty: dirty(b"c"),
    fsync: FsyncRule::CommittedBytes,
    ..NAIVE
};

/// Dirty from the registration on, but not tagged, so that writeback does not find it; tagged at the release.
pub const DIRTY_UNTAGGED: Scheme = Scheme { name: "dirty_untagged", writeback: Writeback::Skip, ..NAIVE };

/// From the registration to the release, a "page under I/O" entry stands for the page.
pub const PAGE_UNDER_IO: Scheme =
    Scheme { name: "page_under_io", writeback: Writeback::Skip, dirty: dirty(b"lu"), ..NAIVE };

/// The DAX layout break as it was merged: truncate waits for the pins, without bound, and the holder hears nothing.
pub const BREAK_LAYOUTS: Scheme = Scheme { name: "break_layouts", layout: LayoutRule::Wait, ..NAIVE };

/// The filesystem guarantees safety: truncate fails while there are keys.
pub const REFUSE_TRUNCATE: Scheme = Scheme { name: "refuse_truncate", layout: LayoutRule::Refuse, ..NAIVE };

/// A lease for the key; whoever does not answer its break is killed.
pub const LEASE_SIGKILL: Scheme = Scheme {
    name: "lease_sigkill",
    admission: AdmissionRules::all(Admission::Lease),
    layout: LayoutRule::BreakThenKill,
    ..NAIVE
};

/// `naive` in a world whose administrator has turned off whatever could break a lease.
pub const AUDITED: Scheme = Scheme { name: "audited", ..NAIVE };

/// Ours: a lease on a byte range tied to one key; the commit fences; a break notifies, waits the grace period, and
/// fences only that lease. The only scheme that may serve a store.
pub const LEASEHOLD: Scheme = Scheme {
    name: "leasehold",
    admission: AdmissionRules::all(Admission::Lease),
    writeback: Writeback::FencedAtCommit,
    layout: LayoutRule::Break,
    data_path: DataPath::PrivateFrames,
    dirty: dirty(b"c"),
    fsync: FsyncRule::CommittedBytes,
};

/// What `leasehold guard` does for a process that exists already: its files are under leases, and a break has no key to
/// take away. The fence is that it lets go, or dies. Its leases are for overwriting: there is nothing to load. It is no proposal for a filesystem, so [`ALL`] is without it.
pub const GUARD: Scheme = Scheme { name: "guard", data_path: DataPath::Elsewhere, ..LEASEHOLD };

const CHANGES_IN_FLIGHT: (Verdict, &str) = (
    Broken,
    "DMA goes on while the filesystem writes the page: corrupted data, incorrect checksums (Lameter, 2018-05-18)",
);
const CLEANED_AND_FORGOTTEN: (Verdict, &str) = (
    Broken,
    "writeback cleans the page, and nothing dirties it again until the release: fsync finds nothing to write",
);
const OUTLIVES_ITS_PAGE: (Verdict, &str) = (
    Broken,
    "a hole punched in the middle of a registration succeeds, and leaves the file inconsistent with the RDMA that \
     goes on (Williams, 2019-02-08)",
);
const BUFFERS_ARE_GONE: (Verdict, &str) = (
    Broken,
    "memory reclaim frees the buffers of a clean page, then the release marks it dirty: the BUG in ext4 (Hubbard, \
     2018-05-18)",
);
const NEVER_WAITS: (Verdict, &str) = (Kept, "it waits for nobody");
const NOBODY_HEARS: (Verdict, &str) =
    (Broken, "the range is taken from under the key, and its holder hears nothing");
const REVOKES_NOTHING: (Verdict, &str) = (Vacuous, "no key is ever revoked");
const READS_ORPHANS: (Verdict, &str) = (
    Broken,
    "after a truncate or a punch the key reaches pages that the file has left: neither side sees the other",
);
const CLONE_IS_WRITTEN: (Verdict, &str) = (
    Broken,
    "a release dirties the page without asking the filesystem, which then overwrites blocks that the clone shares",
);
const BLOCKS_ARE_REUSED: (Verdict, &str) =
    (Broken, "on DAX the freed blocks are given to another file, and the key still reaches them");
const PINS_ARE_NOT_REUSED: (Verdict, &str) =
    (Kept, "an orphaned page is nobody else's until the key is released");
const TOLD_AND_WAITED_FOR: (Verdict, &str) =
    (Kept, "the layout changes only when no key reaches it any more");
const CLONES_LATER: (Verdict, &str) =
    (Kept, "a clone is a layout change too: none is taken under a live key");

const NAIVE_DECLARES: [(Verdict, &str); 10] = [
    CHANGES_IN_FLIGHT,
    CLEANED_AND_FORGOTTEN,
    OUTLIVES_ITS_PAGE,
    BUFFERS_ARE_GONE,
    NEVER_WAITS,
    NOBODY_HEARS,
    REVOKES_NOTHING,
    READS_ORPHANS,
    CLONE_IS_WRITTEN,
    BLOCKS_ARE_REUSED,
];

/// Every proposal, in the order of the design's table.
pub const ALL: [Entry; 13] = [
    Entry {
        scheme: NAIVE,
        idea: "get_user_pages, DMA, set_page_dirty, put_page",
        sources: &[source("John Hubbard", "2018-05-18"), source("Jason Gunthorpe", "2018-05-18")],
        layout_is_fixed: false,
        declares: NAIVE_DECLARES,
    },
    Entry {
        scheme: STABLE_PAGES,
        idea: "the filesystem marks pages read-only during writeback",
        sources: &[source("Christopher Lameter", "2018-05-18")],
        layout_is_fixed: false,
        declares: NAIVE_DECLARES,
    },
    Entry {
        scheme: NOTIFIER,
        idea: "mmu notifiers, on-demand paging: revoke for writeback, fault back",
        sources: &[source("Christopher Lameter", "2018-05-18"), source("Jason Gunthorpe", "2018-05-18")],
        layout_is_fixed: false,
        declares: [
            (Kept, "the RDMA device and the filesystem do not do concurrent writeback (Lameter, 2018-05-18)"),
            (Kept, "each fault that makes the page writable makes it dirty"),
            (Kept, "the mapping is taken away before the page is"),
            (Kept, "only a fault, which asks the filesystem, makes a page dirty"),
            (Kept, "nobody is asked"),
            (Broken, "the callback is for the device: the program hears neither who nor what"),
            (Kept, "only the mapping of that range is taken away"),
            (Kept, "whoever faults gets the page that is the file's now"),
            (Kept, "a clone takes the mappings away, and the fault after it asks the filesystem"),
            (Kept, "a mapping that is gone reaches nothing"),
        ],
    },
    Entry {
        scheme: REGISTRATION_REFUSED,
        idea: "no memory region over writable file mappings unless the device can fault (mainline since 6.5)",
        sources: &[source("Christopher Lameter", "2018-05-18"), source("Linux", "6.5, 2023-08-27")],
        layout_is_fixed: false,
        declares: [
            (Kept, "no pin can write, and a device that faults is fenced for writeback"),
            (Kept, "each fault that makes the page writable makes it dirty"),
            (Kept, "no pin can write, and a mapping is taken away before the page is"),
            (Kept, "only a fault, which asks the filesystem, makes a page dirty"),
            (Kept, "nobody is asked"),
            (Broken, "the range is taken from under a key for reading, and its holder hears nothing"),
            (Kept, "only the mapping of that range is taken away"),
            (
                Broken,
                "a key for reading is a pin: after punch, truncate or unlink it reads old pages (measured, 6.12)",
            ),
            (Kept, "a clone takes the mappings away, and the fault after it asks the filesystem"),
            PINS_ARE_NOT_REUSED,
        ],
    },
    Entry {
        scheme: DAX_LONGTERM_FAILS,
        idea: "get_user_pages_longterm fails on DAX",
        sources: &[source("Jason Gunthorpe", "2018-05-18"), source("Dan Williams", "2018-05-18")],
        layout_is_fixed: false,
        declares: [
            CHANGES_IN_FLIGHT,
            CLEANED_AND_FORGOTTEN,
            OUTLIVES_ITS_PAGE,
            BUFFERS_ARE_GONE,
            NEVER_WAITS,
            NOBODY_HEARS,
            REVOKES_NOTHING,
            READS_ORPHANS,
            CLONE_IS_WRITTEN,
            PINS_ARE_NOT_REUSED,
        ],
    },
    Entry {
        scheme: BOUNCE,
        idea: "a dedicated DMA buffer, copied into the file",
        sources: &[source("John Hubbard", "2018-05-18")],
        layout_is_fixed: false,
        declares: [
            (Kept, "what is written is a copy that no key reaches"),
            (Kept, "what was copied is the file's, like any write"),
            (Kept, "the buffer never was a part of the file"),
            (Kept, "the buffer never was a part of the file"),
            NEVER_WAITS,
            (Vacuous, "nobody loses anything, nobody waits"),
            REVOKES_NOTHING,
            (Kept, "a copy is a write like any other"),
            (Kept, "a copy is a write like any other, so the filesystem unshares its blocks"),
            (Kept, "the buffer is its peer's alone"),
        ],
    },
    Entry {
        scheme: DIRTY_UNTAGGED,
        idea: "dirty at registration, but tagged for writeback at release only",
        sources: &[source("Matthew Wilcox", "2018-05-21")],
        layout_is_fixed: false,
        declares: [
            (
                Broken,
                "of two keys in one page the first release tags it: trouble with simultaneous sub-page I/O (Wilcox)",
            ),
            (Broken, "fsync does not find the page either"),
            OUTLIVES_ITS_PAGE,
            (
                Broken,
                "of two keys in one page the first release lets it be cleaned, and its buffers go, under the second",
            ),
            NEVER_WAITS,
            NOBODY_HEARS,
            REVOKES_NOTHING,
            READS_ORPHANS,
            CLONE_IS_WRITTEN,
            BLOCKS_ARE_REUSED,
        ],
    },
    Entry {
        scheme: PAGE_UNDER_IO,
        idea: "a \"page under I/O\" entry in place of the page until release",
        sources: &[source("Matthew Wilcox", "2018-05-21"), source("John Hubbard", "2018-05-23")],
        layout_is_fixed: false,
        declares: [
            (Kept, "writeback does not find the page, and a second key in it must wait"),
            (Broken, "fsync does not find the page either"),
            OUTLIVES_ITS_PAGE,
            (
                Kept,
                "reclaim does not find the page; of a truncated one the mark is ignored (Hubbard, 2018-05-23)",
            ),
            NEVER_WAITS,
            NOBODY_HEARS,
            REVOKES_NOTHING,
            READS_ORPHANS,
            CLONE_IS_WRITTEN,
            BLOCKS_ARE_REUSED,
        ],
    },
    Entry {
        scheme: BREAK_LAYOUTS,
        idea: "DAX layout break: truncate waits for the pins",
        sources: &[source("Dan Williams", "2018-05-18")],
        layout_is_fixed: false,
        declares: [
            CHANGES_IN_FLIGHT,
            CLEANED_AND_FORGOTTEN,
            TOLD_AND_WAITED_FOR,
            BUFFERS_ARE_GONE,
            (Broken, "the truncate waits until the holder lets go: no timeout"),
            (Broken, "the holder does not learn that anybody waits"),
            REVOKES_NOTHING,
            TOLD_AND_WAITED_FOR,
            CLONES_LATER,
            TOLD_AND_WAITED_FOR,
        ],
    },
    Entry {
        scheme: REFUSE_TRUNCATE,
        idea: "the filesystem guarantees safety: truncate fails",
        sources: &[source("Jason Gunthorpe", "quoted 2019-02-08")],
        layout_is_fixed: false,
        declares: [
            CHANGES_IN_FLIGHT,
            CLEANED_AND_FORGOTTEN,
            TOLD_AND_WAITED_FOR,
            BUFFERS_ARE_GONE,
            (Kept, "it fails at once"),
            (
                Kept,
                "nobody loses a key or waits; the refusal names the holder (ETXTBSY alone would be a riddle: Williams)",
            ),
            REVOKES_NOTHING,
            TOLD_AND_WAITED_FOR,
            CLONES_LATER,
            TOLD_AND_WAITED_FOR,
        ],
    },
    Entry {
        scheme: LEASE_SIGKILL,
        idea: "lease, notify, SIGKILL on no answer",
        sources: &[source("Dan Williams", "2019-02-08")],
        layout_is_fixed: false,
        declares: [
            CHANGES_IN_FLIGHT,
            CLEANED_AND_FORGOTTEN,
            TOLD_AND_WAITED_FOR,
            BUFFERS_ARE_GONE,
            (Kept, "who does not answer is dead at the deadline"),
            (Kept, "SIGKILL with information of what led to it (Williams, 2019-02-08)"),
            (Broken, "all that the process holds dies with it"),
            TOLD_AND_WAITED_FOR,
            CLONES_LATER,
            TOLD_AND_WAITED_FOR,
        ],
    },
    Entry {
        scheme: AUDITED,
        idea: "the administrator turns off whatever could break a lease",
        sources: &[source("Dan Williams", "2019-02-08")],
        layout_is_fixed: true,
        declares: [
            CHANGES_IN_FLIGHT,
            CLEANED_AND_FORGOTTEN,
            (Vacuous, "no layout changes"),
            BUFFERS_ARE_GONE,
            (Vacuous, "no layout changes"),
            (Vacuous, "no layout changes"),
            REVOKES_NOTHING,
            (Kept, "the page stays the file's"),
            (Vacuous, "nothing is cloned"),
            (Kept, "a page is nobody else's until the key is released"),
        ],
    },
    Entry {
        scheme: LEASEHOLD,
        idea: "a range lease tied to one key; commit fences; break = notice, grace, fence",
        sources: &[source("this project", "2026")],
        layout_is_fixed: false,
        declares: [
            (Kept, "the commit fences before its blocks are written"),
            (Kept, "an fsync waits for every commit before it, and each is recorded before it overwrites"),
            (Kept, "the layout changes only behind the fences"),
            (Kept, "frames get into the file at commit only, by a write that the filesystem sees"),
            (Kept, "grace, then the fence, then quarantine"),
            (Kept, "a notice names the breaker, and `why` the holder"),
            (Kept, "one lease, one key"),
            (Kept, "a read waits for the writebacks of its blocks; a key for reading is a lease"),
            (Kept, "a clone sees what is committed, and nothing else ever is in the file"),
            (Kept, "frames change hands behind the fence, and zeroed"),
        ],
    },
];

/// The entry of that name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Entry> {
    ALL.iter().find(|entry| entry.scheme.name == name)
}
