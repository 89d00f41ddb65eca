//! The fence: how a revocation knows that nothing is being placed any more.
//!
//! Each connection has one [`Slot`] a direction, written only by the thread that moves bytes in that direction. Before
//! it touches a region it *first* publishes the region's tag there, and *then* checks that the tag is still valid.
//! Revoking does the opposite: it *first* makes the tag invalid, and *then* waits until no slot names it. Between the
//! two steps each side has a sequentially consistent fence, so at least one of them sees the other: either the mover
//! sees that the tag is revoked and keeps its hands off, or the revoker sees the tag in the slot and waits.
//!
//! A tag is never used twice on a connection, so the tag alone says which exposure is meant, as a pair of a tag and a
//! generation would.
//!
//! Invariant: once [`prove`] has returned `Ok` for a tag whose validity was revoked before, no [`Held`] for it exists or
//! will ever exist. The model in `fence/model.rs` walks all interleavings, and shows that checking before publishing
//! would break it.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;
#[cfg(not(loom))]
use std::time::Instant;

const NOTHING: u32 = 0;

const LIVE: u32 = 0;
const REVOKED: u32 = 1;
const FORGOTTEN: u32 = 2;

/// Names the tag whose region one thread is touching, or nothing.
#[repr(align(128))]
pub(crate) struct Slot(AtomicU32);

/// Whether an exposure may be used. It goes from live to revoked to forgotten, and never back.
pub(crate) struct Validity(AtomicU32);

/// The right to touch a region, until dropped.
pub(crate) struct Held<'a>(&'a Slot);

impl Validity {
    pub(crate) fn live() -> Validity {
        Validity(AtomicU32::new(LIVE))
    }

    /// A hint, true only for the moment: to touch the region, [`Slot::hold`] it.
    pub(crate) fn is_live(&self) -> bool {
        self.0.load(Ordering::Relaxed) == LIVE
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.0.load(Ordering::Relaxed) == FORGOTTEN
    }

    /// Ends it. What is held now may still be used until [`prove`] says otherwise.
    pub(crate) fn revoke(&self) {
        let _ = self.0.compare_exchange(LIVE, REVOKED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Ends it, and says that the peer knows.
    pub(crate) fn forget(&self) {
        self.0.store(FORGOTTEN, Ordering::Release);
    }
}

impl Slot {
    pub(crate) fn new() -> Slot {
        Slot(AtomicU32::new(NOTHING))
    }

    /// Publishes the tag, then checks its validity. `None`: it is over, do not touch the region.
    ///
    /// Only one thread at a time may hold with one slot.
    pub(crate) fn hold(&self, tag: u32, validity: &Validity) -> Option<Held<'_>> {
        // A peer that goes on writing under a revoked tag must not keep a fence waiting.
        if !validity.is_live() {
            return None;
        }
        // Release: a revoker that sees this tag instead of the one before it sees what was done under that one.
        self.0.store(tag, Ordering::Release);
        let held = Held(self);
        fence(Ordering::SeqCst);
        validity.is_live().then_some(held)
    }

    /// The mistake that the model must find.
    #[cfg(all(test, loom))]
    fn hold_checking_first(&self, tag: u32, validity: &Validity) -> Option<Held<'_>> {
        if !validity.is_live() {
            return None;
        }
        fence(Ordering::SeqCst);
        self.0.store(tag, Ordering::Release);
        Some(Held(self))
    }

    fn names(&self, tag: u32) -> bool {
        self.0.load(Ordering::Acquire) == tag
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.0.store(NOTHING, Ordering::Release);
    }
}

/// Waits until no slot names `tag`, whose validity was ended before. `false`: not within `patience`.
///
/// It spins first, since a mover holds for some microseconds; then it yields, since the mover may have lost its
/// processor.
pub(crate) fn prove(slots: &[&Slot], tag: u32, patience: Duration) -> bool {
    fence(Ordering::SeqCst);
    slots.iter().all(|slot| wait_for(slot, tag, patience))
}

#[cfg(not(loom))]
fn wait_for(slot: &Slot, tag: u32, patience: Duration) -> bool {
    for _ in 0..2_000 {
        if !slot.names(tag) {
            return true;
        }
        std::hint::spin_loop();
    }
    let deadline = Instant::now() + patience;
    while slot.names(tag) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[cfg(loom)]
fn wait_for(slot: &Slot, tag: u32, _patience: Duration) -> bool {
    while slot.names(tag) {
        loom::thread::yield_now();
    }
    true
}

#[cfg(all(test, loom))]
mod model;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_tag_cannot_be_held() {
        let (slot, validity) = (Slot::new(), Validity::live());
        assert!(slot.hold(7, &validity).is_some());
        validity.revoke();
        assert!(slot.hold(7, &validity).is_none());
        assert!(prove(&[&slot], 7, Duration::ZERO));
    }

    #[test]
    fn a_fence_is_not_proven_while_its_tag_is_held_and_is_once_it_is_let_go() {
        let (slot, validity) = (Slot::new(), Validity::live());
        let held = slot.hold(7, &validity);
        validity.revoke();
        assert!(!prove(&[&slot], 7, Duration::from_millis(1)));
        assert!(prove(&[&slot], 8, Duration::ZERO), "another tag is nobody's concern");
        drop(held);
        assert!(prove(&[&slot], 7, Duration::ZERO));
    }
}
