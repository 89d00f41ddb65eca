//! What may happen in a small world: who wants what, and which acts there are, once each, at any moment.

use crate::world::{FIRST, MAIN, OTHER, PART_BYTES, SECOND};
use leasehold_core::ids::SessionId;
use leasehold_core::input::{Access, Change};
use leasehold_core::range::ByteRange;
use std::ops::Range;

/// One act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The peer asks for what its slot says.
    Acquire(usize),
    /// The peer says that a round of its writes is complete.
    Commit(usize),
    /// The peer lets go.
    Release(usize),
    /// A breaker changes the layout of the main file, or clones it.
    Change(Change),
    /// fsync of the main file.
    Sync,
    /// A program on the host reads all of the main file.
    Read,
    /// The peer reads what is under its key.
    RemoteRead(usize),
    /// A program on the host writes these parts of the main file.
    LocalWrite(Range<usize>),
    /// Memory is short.
    Reclaim,
}

/// What a peer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whose it is.
    pub session: SessionId,
    /// Of which file.
    pub file: usize,
    /// Which parts.
    pub parts: Range<usize>,
    /// What for.
    pub access: Access,
    /// Which of them it writes. Only an update lease may leave some as they were.
    pub writes: Range<usize>,
    /// How often it writes them; each time in two pieces.
    pub rounds: u8,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Blocks of the main file.
    pub blocks: usize,
    /// What the peers want.
    pub slots: Vec<Slot>,
    /// What may be done.
    pub acts: Vec<Act>,
    /// Whether the power may be lost.
    pub crash: bool,
    /// Whether a fence may not be proven in time.
    pub unproven: bool,
    /// Whether a commit may overtake its data.
    pub commit_overtakes: bool,
    /// How often devices fault.
    pub faults_max: u8,
}

impl Scenario {
    pub(crate) fn new(name: &'static str, slots: Vec<Slot>, acts: Vec<Act>) -> Scenario {
        let blocks = 1;
        Scenario {
            name,
            blocks,
            slots,
            acts,
            crash: false,
            unproven: false,
            commit_overtakes: false,
            faults_max: 2,
        }
    }
}

fn slot(session: SessionId, parts: Range<usize>, access: Access, rounds: u8) -> Slot {
    Slot { session, file: MAIN, writes: parts.clone(), parts, access, rounds }
}

pub(crate) fn writer(parts: Range<usize>, rounds: u8) -> Slot {
    slot(FIRST, parts, Access::Overwrite, rounds)
}

fn tenant() -> Slot {
    Slot { session: SECOND, file: OTHER, ..writer(0..2, 1) }
}

fn truncate(parts: u64) -> Act {
    Act::Change(Change::Truncate { size: parts * PART_BYTES })
}

fn punch(parts: Range<u64>) -> Act {
    let range = ByteRange::new(parts.start * PART_BYTES, parts.end * PART_BYTES).expect("not empty");
    Act::Change(Change::Punch { range })
}

/// The small worlds, in which every verdict is found.
#[must_use]
pub fn all() -> Vec<Scenario> {
    use Act::{Acquire, Commit, LocalWrite, Read, Reclaim, Release, RemoteRead, Sync};
    vec![
        Scenario {
            crash: true,
            ..Scenario::new(
                "a peer writes, syncs, and the power is lost",
                vec![writer(0..2, 2)],
                vec![Acquire(0), Commit(0), Sync, Commit(0), Sync, Reclaim, Release(0)],
            )
        },
        Scenario {
            unproven: true,
            ..Scenario::new(
                "a truncate under a key, and another tenant behind it",
                vec![writer(0..2, 1), tenant()],
                vec![Acquire(0), truncate(0), Commit(0), Read, Acquire(1), Release(0)],
            )
        },
        Scenario {
            blocks: 2,
            faults_max: 1,
            ..Scenario::new(
                "a punch of one of two leases of a peer",
                vec![writer(0..2, 1), writer(2..4, 1)],
                vec![Acquire(0), Acquire(1), punch(0..2), Commit(1)],
            )
        },
        Scenario {
            ..Scenario::new(
                "a clone under a key",
                vec![writer(0..2, 2)],
                vec![Acquire(0), Commit(0), Act::Change(Change::Clone), Commit(0), Sync, Release(0)],
            )
        },
        Scenario {
            crash: true,
            ..Scenario::new(
                "two leases in one block",
                vec![writer(0..1, 1), writer(1..2, 1)],
                vec![Acquire(0), Acquire(1), Commit(0), Commit(1), Sync],
            )
        },
        Scenario::new(
            "two keys in one block, one of them released",
            vec![writer(0..1, 1), writer(1..2, 1)],
            vec![Acquire(0), Acquire(1), Release(0), Reclaim, Release(1)],
        ),
        Scenario {
            ..Scenario::new(
                "a key for reading, a local writer, and a punch",
                vec![slot(FIRST, 0..2, Access::Read, 0)],
                vec![Acquire(0), LocalWrite(0..2), punch(0..2), RemoteRead(0), Release(0), Read],
            )
        },
        Scenario::new(
            "a key for reading beside a peer that writes",
            vec![slot(FIRST, 0..2, Access::Read, 0), writer(0..2, 1)],
            vec![Acquire(0), Acquire(1), Commit(1), RemoteRead(0), Release(0)],
        ),
        Scenario {
            ..Scenario::new(
                "an unlink, or a rename over, under a key",
                vec![writer(0..2, 1), tenant()],
                vec![Acquire(0), Act::Change(Change::Remove), Release(0), Reclaim, Acquire(1)],
            )
        },
        Scenario {
            commit_overtakes: true,
            crash: true,
            ..Scenario::new(
                "a commit that overtakes its data",
                vec![slot(FIRST, 0..2, Access::Update, 1)],
                vec![Acquire(0), Commit(0), Read, Sync],
            )
        },
        Scenario {
            ..Scenario::new(
                "a local writer beside a peer in one block",
                vec![writer(0..1, 1)],
                vec![Acquire(0), LocalWrite(1..2), Commit(0), Sync, Read, Release(0)],
            )
        },
    ]
}

/// Larger worlds: power is lost and fences fail in all of them, and there are more acts.
#[must_use]
pub fn deep() -> Vec<Scenario> {
    use Act::{Acquire, Commit, LocalWrite, Read, Release, Sync};
    let larger = |scenario: Scenario| Scenario { crash: true, unproven: true, ..scenario };
    let mut deep: Vec<Scenario> = all().into_iter().map(larger).collect();
    deep.extend([
        larger(Scenario::new(
            "two changes, one behind the other",
            vec![writer(0..2, 1)],
            vec![Acquire(0), truncate(1), punch(0..2), Commit(0), LocalWrite(0..2), Sync],
        )),
        larger(Scenario {
            blocks: 2,
            ..Scenario::new(
                "leases across blocks, a clone and a truncate",
                vec![writer(0..3, 1), writer(3..4, 1)],
                vec![
                    Acquire(0),
                    Acquire(1),
                    Act::Change(Change::Clone),
                    Commit(0),
                    Commit(1),
                    truncate(1),
                    Sync,
                ],
            )
        }),
        larger(Scenario::new(
            "a reader and a writer of the same bytes",
            vec![slot(FIRST, 0..2, Access::Read, 0), slot(SECOND, 0..2, Access::Update, 1)],
            vec![Acquire(0), Acquire(1), Commit(1), Act::RemoteRead(0), Release(0), Read],
        )),
    ]);
    deep
}
