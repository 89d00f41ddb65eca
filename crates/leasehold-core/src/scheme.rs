//! What a scheme is: one answer to each of the six questions that every proposal in the threads answers.
//!
//! The rows themselves are in [`crate::schemes`]. The state machine asks the scheme at the six places where the
//! designs part; it has no other policy.

/// A design for DMA into files, as a row of six decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// The name that commands and documents use.
    pub name: &'static str,
    /// May a peer get a key to this memory?
    pub admission: Admission,
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

/// May a peer get a key?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Admission {
    /// Always; conflicting keys too.
    Allow,
    /// Only under a lease: write leases are exclusive by byte.
    Lease,
}

/// Writeback of a block that a live key can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Writeback {
    /// Write it as it is, while the DMA goes on.
    AsIs,
    /// The commit fences first, so the case cannot arise.
    FencedAtCommit,
}

/// A layout change (truncate, punch, unlink) under a live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayoutRule {
    /// Go ahead; the key does not matter.
    Ignore,
    /// Wait until the holder releases the key, for ever if need be; the holder is told nothing.
    Wait,
    /// Break the lease: tell the holder, give it the grace period, then fence.
    Break,
}

/// Where the DMA lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataPath {
    /// In the file's own frames: visible at once.
    FileFrames,
    /// In private frames, swapped in at commit.
    PrivateFrames,
}

/// When a block counts as dirty. More than one may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirtyWhen {
    /// When the key is made.
    pub registered: bool,
    /// When the key is released.
    pub released: bool,
    /// When the holder commits.
    pub committed: bool,
}

/// fsync under a live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FsyncRule {
    /// Write what is dirty, as it is, and acknowledge.
    Acknowledge,
    /// Acknowledge committed bytes only, once they are durable.
    CommittedBytes,
}
