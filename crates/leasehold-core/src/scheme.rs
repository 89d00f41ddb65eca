//! What a scheme is: one answer to each of the six questions that every proposal in the threads answers.
//!
//! The rows themselves are in [`crate::schemes`]. The state machine asks the scheme at the six places where the
//! designs part; it has no other policy. What a scheme does not choose is the host that it lives on ([`Host`]).

/// A design for DMA into files, as a row of six decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// The name that commands and documents use.
    pub name: &'static str,
    /// May a peer get a key to this memory?
    pub admission: AdmissionRules,
    /// What happens to a dirty block that a live key can change?
    pub writeback: Writeback,
    /// What does a layout change do about a live key?
    pub layout: LayoutRule,
    /// Where does the DMA land?
    pub data_path: DataPath,
    /// When is a block marked dirty?
    pub dirty: DirtyWhen,
    /// What does fsync do about a live key?
    pub fsync: FsyncRule,
}

/// May a peer get a key? By what it may do, and what backs the file's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdmissionRules {
    /// A key for reading, the page cache.
    pub cache_read: Admission,
    /// A key for writing, the page cache.
    pub cache_write: Admission,
    /// A key for reading, DAX.
    pub dax_read: Admission,
    /// A key for writing, DAX.
    pub dax_write: Admission,
}

impl AdmissionRules {
    /// The same answer everywhere.
    #[must_use]
    pub const fn all(admission: Admission) -> AdmissionRules {
        AdmissionRules {
            cache_read: admission,
            cache_write: admission,
            dax_read: admission,
            dax_write: admission,
        }
    }

    /// The answer for a key.
    #[must_use]
    pub fn of(self, backing: Backing, writes: bool) -> Admission {
        match (backing, writes) {
            (Backing::PageCache, false) => self.cache_read,
            (Backing::PageCache, true) => self.cache_write,
            (Backing::Dax, false) => self.dax_read,
            (Backing::Dax, true) => self.dax_write,
        }
    }
}

/// May a peer get a key?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Admission {
    /// Always; conflicting keys too.
    Allow,
    /// Never.
    Refuse,
    /// If the device can fault, so that the key can be taken back at any moment and come again.
    IfFaults,
    /// Only under a lease: write leases are exclusive by byte, and the key can be fenced.
    Lease,
}

/// Writeback of a block that a live key can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Writeback {
    /// Write it as it is, while the DMA goes on.
    AsIs,
    /// Keep the CPU from storing into it, then write it, while the DMA goes on.
    ProtectCpu,
    /// Leave it out, from the registration until a release puts it back.
    Skip,
    /// Fence the key, write, and let the device fault it back. A key that cannot be fenced is written under.
    Refault,
    /// Write a copy.
    Snapshot,
    /// The commit fences first, so the case cannot arise.
    FencedAtCommit,
}

/// A layout change (truncate, punch, collapse, clone, unlink) under a live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayoutRule {
    /// Go ahead; the key does not matter.
    Ignore,
    /// Wait until the holder releases the key, for ever if need be; the holder is told nothing.
    Wait,
    /// Refuse (ETXTBSY).
    Refuse,
    /// Fence the key at once. A key that cannot be fenced is ignored.
    Fence,
    /// Break the lease: tell the holder, give it the grace period, then fence. A key that cannot be fenced is waited for.
    Break,
    /// Break the lease: tell the holder, give it the grace period, then kill it, whatever else it holds.
    BreakThenKill,
}

/// Where the DMA lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataPath {
    /// In the file's own frames: visible at once.
    FileFrames,
    /// In other frames, of which a commit copies the bytes into the file.
    Copied,
    /// In private frames, swapped in at commit.
    PrivateFrames,
    /// In memory of which the core keeps no frames: a process's own mapping. Nothing is ever committed from there.
    Elsewhere,
}

/// When a block counts as dirty. More than one may hold. What the CPU stores is dirty at once under every scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirtyWhen {
    /// When the key is made.
    pub registered: bool,
    /// When the device faults: on its first access, and on the first after each fence.
    pub faulted: bool,
    /// When the key is released.
    pub released: bool,
    /// When the holder commits.
    pub committed: bool,
    /// From the registration to the release a "page under I/O" entry stands in the file in place of the block: nobody
    /// else finds it.
    pub under_io: bool,
}

/// fsync under a live key. One with a way of its own to write also finds what writeback skips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FsyncRule {
    /// Write what is dirty, as the writeback decision says, and acknowledge.
    Acknowledge,
    /// Wait until the holders have released their keys.
    Wait,
    /// Fence the keys, write what is dirty, let the device fault them back. A key that cannot be fenced is written under.
    FenceAndWrite,
    /// Write a copy of what is dirty.
    Snapshot,
    /// Acknowledge committed bytes only, once they are durable.
    CommittedBytes,
}

/// What a scheme does not choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// What backs the file's own memory.
    pub backing: Backing,
    /// Whether the device can fault: a key can be taken back at any moment, and comes again when the device needs it.
    pub device_faults: bool,
}

/// What backs the file's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backing {
    /// Pages, brought to the disk by writeback.
    PageCache,
    /// The storage itself: what lands there is on it.
    Dax,
}
