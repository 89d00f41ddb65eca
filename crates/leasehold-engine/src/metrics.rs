//! Counters of the engine, for `/metrics`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// So many kinds of breaks are counted apart.
const BREAKERS_MAX: usize = 256;

/// The upper bounds of the buckets of every [`Histogram`], in microseconds; one more bucket has none.
pub const BUCKETS_US: [u64; 14] = [
    10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000,
    60_000_000,
];

/// How long something took, counted in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// How many fell into each bucket (not cumulative), the one without an upper bound last.
    #[must_use]
    pub fn buckets(&self) -> [u64; BUCKETS_US.len() + 1] {
        std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed))
    }

    /// The sum of all, in microseconds.
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us.load(Ordering::Relaxed)
    }
}

/// Who broke leases, and how that ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Breaker {
    /// The program: `other` once too many have been counted apart.
    pub program: String,
    /// Its user.
    pub uid: u32,
    /// As the break log has it.
    pub outcome: &'static str,
}

/// How many breaks ended, by who broke.
#[derive(Debug, Default)]
pub struct Breakers(Mutex<BTreeMap<Breaker, u64>>);

impl Breakers {
    pub(crate) fn count(&self, mut breaker: Breaker) {
        let mut counts = self.lock();
        if counts.len() >= BREAKERS_MAX && !counts.contains_key(&breaker) {
            // Whoever calls himself by ever new names must not fill the page.
            (breaker.program, breaker.uid) = ("other".to_owned(), 0);
        }
        *counts.entry(breaker).or_default() += 1;
    }

    /// All, in order.
    #[must_use]
    pub fn counts(&self) -> Vec<(Breaker, u64)> {
        self.lock().iter().map(|(breaker, count)| (breaker.clone(), *count)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Breaker, u64>> {
        self.0.lock().expect("no code panics while it holds the counts")
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* ; $($(#[$took_doc:meta])* $took:ident: $record:ident),* $(,)?) => {
        /// What the engine has counted since it started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
            $($(#[$took_doc])* pub $took: Histogram,)*
            /// Who broke leases.
            pub breakers: Breakers,
        }

        impl Counters {
            /// Every counter, with its name.
            #[must_use]
            pub fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed))),*]
            }

            /// Every histogram, with its name.
            #[must_use]
            pub fn histograms(&self) -> Vec<(&'static str, &Histogram)> {
                vec![$((stringify!($took), &self.$took)),*]
            }

            $(pub(crate) fn $record(&self, took: Duration) {
                self.$took.record(took);
            })*
        }
    };
}

counters! {
    /// Leases granted.
    granted,
    /// Acquires refused.
    refused,
    /// Commits that took effect.
    committed,
    /// Commits that did not.
    commits_failed,
    /// Of these: the CRC did not match the bytes.
    mismatched,
    /// Captures that took effect.
    captured,
    /// Captures that did not.
    captures_failed,
    /// Break notices sent.
    breaks,
    /// Leases revoked.
    revoked,
    /// Fences that could not be proven in time.
    unproven,
    /// Data streams that failed a checksum.
    poisoned,
    /// Blocks whose bytes did not match their checksum when they were read.
    blocks_mismatched;
    /// From an acquire's arrival to its grant.
    acquire_took: acquire,
    /// From a commit's arrival to its reply.
    commit_took: commit,
    /// From a capture's arrival to its reply.
    capture_took: capture,
    /// From a layout operation's arrival (a truncate, a clone, a removal ..) to its reply.
    change_took: change,
    /// From an fsync's arrival to its reply.
    sync_took: sync,
    /// From a fence's beginning to its proof.
    fence_took: fence,
    /// From a break's notice to its outcome.
    break_took: broke,
}
