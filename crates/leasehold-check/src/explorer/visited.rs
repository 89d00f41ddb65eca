//! Which states are known, and how each was reached first.
//!
//! A state costs at most 28 bytes: 12 for fingerprint and number in a table that is never less than 3/5 full, and 6 for its
//! parent and action in arrays that are never less than 4/5 full. (Doubling, as maps of the standard library do, would need 40.)

use foldhash::quality::FixedState;
use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
};

/// The number of a state: its place in the order in which they were found.
pub(super) type Number = u32;

/// The parent of an initial state.
pub(super) const NOBODY: Number = Number::MAX;

/// The visited states.
pub(super) struct Visited<State> {
    known: Known<State>,
    parents: Vec<Number>,
    actions: Vec<u16>,
}

enum Known<State> {
    Fingerprints(Fingerprints),
    States(HashMap<State, Number, FixedState>),
}

/// A state's fingerprint: the same in each run, so that a rare collision can be looked at.
pub(super) fn fingerprint<State: Hash>(representative: &State) -> u64 {
    // Not `fast`: it leaves some bits weak, and a table by the highest bits needs all of them.
    FixedState::with_seed(0).hash_one(representative)
}

impl<State: Clone + Eq + Hash> Visited<State> {
    pub(super) fn new(exact: bool) -> Self {
        let known = match exact {
            false => Known::Fingerprints(Fingerprints::default()),
            true => Known::States(HashMap::default()),
        };
        Self { known, parents: Vec::new(), actions: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.parents.len()
    }

    /// The number of a state, given its representative, if it is known.
    pub(super) fn find(&self, representative: &State, fingerprint: u64) -> Option<Number> {
        match &self.known {
            Known::Fingerprints(fingerprints) => fingerprints.find(fingerprint),
            Known::States(states) => states.get(representative).copied(),
        }
    }

    /// Adds a state that is not known.
    pub(super) fn insert(&mut self, representative: &State, fingerprint: u64, from: (Number, u16)) -> Number {
        let number = Number::try_from(self.len()).ok().filter(|&number| number < NOBODY);
        let number = number.expect("states_max is at most 4 billion");
        match &mut self.known {
            Known::Fingerprints(fingerprints) => fingerprints.insert(fingerprint, number),
            Known::States(states) => {
                states.insert(representative.clone(), number);
            }
        }
        if self.parents.len() == self.parents.capacity() {
            let more = self.parents.len() / 4 + 16;
            self.parents.reserve_exact(more);
            self.actions.reserve_exact(more);
        }
        self.parents.push(from.0);
        self.actions.push(from.1);
        number
    }

    /// Which actions lead to a state, the first being the number of an initial state.
    pub(super) fn actions_to(&self, mut number: Number) -> Vec<u16> {
        let mut actions = Vec::new();
        while number != NOBODY {
            actions.push(self.actions[number as usize]);
            number = self.parents[number as usize];
        }
        actions.reverse();
        actions
    }

    pub(super) fn bytes(&self) -> usize {
        let known = match &self.known {
            Known::Fingerprints(fingerprints) => fingerprints.bytes(),
            // One byte of control for each slot; 7/8 of them are of use.
            Known::States(states) => states.capacity() * 8 / 7 * (size_of::<(State, Number)>() + 1),
        };
        known + self.parents.capacity() * size_of::<Number>() + self.actions.capacity() * size_of::<u16>()
    }
}

/// Numbers by fingerprint, in shards by the highest bits: only one of them grows at a time, so that old and new together are
/// hardly more than one.
struct Fingerprints(Box<[Shard; SHARDS]>);

const SHARDS: usize = 64;

/// Open addressing, in the order of the fingerprints but for collisions. 0 is an empty slot.
#[derive(Default)]
struct Shard {
    fingerprints: Vec<u64>,
    numbers: Vec<Number>,
    len: usize,
}

impl Default for Fingerprints {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| Shard::default())))
    }
}

impl Fingerprints {
    fn find(&self, fingerprint: u64) -> Option<Number> {
        let (shard, within) = Self::place(fingerprint);
        self.0[shard].find(within)
    }

    fn insert(&mut self, fingerprint: u64, number: Number) {
        let (shard, within) = Self::place(fingerprint);
        self.0[shard].insert(within, number);
    }

    /// The shard, and the fingerprint with its highest bits, which are the same in all of a shard, last; never 0.
    fn place(fingerprint: u64) -> (usize, u64) {
        let within = fingerprint.max(1).rotate_left(SHARDS.ilog2());
        (within as usize % SHARDS, within)
    }

    fn bytes(&self) -> usize {
        let slot = size_of::<u64>() + size_of::<Number>();
        size_of::<[Shard; SHARDS]>()
            + self.0.iter().map(|shard| shard.fingerprints.capacity() * slot).sum::<usize>()
    }
}

impl Shard {
    fn find(&self, fingerprint: u64) -> Option<Number> {
        (self.len > 0).then(|| self.slot(fingerprint)).and_then(Result::ok).map(|slot| self.numbers[slot])
    }

    fn insert(&mut self, fingerprint: u64, number: Number) {
        if (self.len + 1) * 4 > self.fingerprints.len() * 3 {
            self.grow();
        }
        let slot = self.slot(fingerprint).expect_err("only what is not known is inserted");
        self.fingerprints[slot] = fingerprint;
        self.numbers[slot] = number;
        self.len += 1;
    }

    /// Where it is, or else where it belongs.
    fn slot(&self, fingerprint: u64) -> Result<usize, usize> {
        let slots = self.fingerprints.len();
        let mut slot = ((u128::from(fingerprint) * slots as u128) >> 64) as usize;
        loop {
            match self.fingerprints[slot] {
                0 => return Err(slot),
                there if there == fingerprint => return Ok(slot),
                _ => slot = if slot + 1 == slots { 0 } else { slot + 1 },
            }
        }
    }

    fn grow(&mut self) {
        let slots = (self.fingerprints.len() * 5 / 4).max(8);
        let grown = Self { fingerprints: vec![0; slots], numbers: vec![0; slots], len: 0 };
        let old = std::mem::replace(self, grown);
        for (fingerprint, number) in old.fingerprints.into_iter().zip(old.numbers) {
            if fingerprint != 0 {
                self.insert(fingerprint, number);
            }
        }
    }
}
