//! All interleavings of one mover, two revokers and what they share, by loom.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p leasehold-fabric --release --lib fence::model`.

use super::*;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// One frame, and what decides about it. The cell is loom's: touching it from two threads without an order between
/// them is an error that loom reports.
struct World {
    slot: Slot,
    first: Validity,
    second: Validity,
    frame: UnsafeCell<u32>,
    other_frame: UnsafeCell<u32>,
}

const FIRST: u32 = 7;
const SECOND: u32 = 8;

fn world() -> Arc<World> {
    Arc::new(World {
        slot: Slot::new(),
        first: Validity::live(),
        second: Validity::live(),
        frame: UnsafeCell::new(0),
        other_frame: UnsafeCell::new(0),
    })
}

/// Places under the tag if it may.
fn place(frame: &UnsafeCell<u32>, held: Option<Held<'_>>) -> bool {
    let Some(_held) = held else { return false };
    // SAFETY: the tag is held, which is the very claim under test.
    frame.with_mut(|bytes| unsafe { *bytes = 1 });
    true
}

/// Fences and reuses the frame at once.
fn fence_and_reuse(world: &World, tag: u32, validity: &Validity, frame: &UnsafeCell<u32>) {
    validity.revoke();
    assert!(prove(&[&world.slot], tag, Duration::ZERO));
    // SAFETY: the fence was proven, which is the very claim under test.
    frame.with_mut(|bytes| unsafe { *bytes = 2 });
}

#[test]
fn nothing_is_placed_behind_a_fence() {
    loom::model(|| {
        let world = world();
        let mover = {
            let world = world.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    place(&world.frame, world.slot.hold(FIRST, &world.first));
                }
            })
        };
        fence_and_reuse(&world, FIRST, &world.first, &world.frame);
        mover.join().unwrap();
        // SAFETY: all threads are joined.
        assert_eq!(world.frame.with(|bytes| unsafe { *bytes }), 2);
    });
}

#[test]
fn a_mover_that_goes_on_to_another_tag_has_left_the_first() {
    loom::model(|| {
        let world = world();
        let mover = {
            let world = world.clone();
            thread::spawn(move || {
                place(&world.frame, world.slot.hold(FIRST, &world.first));
                place(&world.other_frame, world.slot.hold(SECOND, &world.second));
            })
        };
        fence_and_reuse(&world, FIRST, &world.first, &world.frame);
        fence_and_reuse(&world, SECOND, &world.second, &world.other_frame);
        mover.join().unwrap();
    });
}

/// So that the model cannot pass by never placing anything.
#[test]
fn something_is_placed_in_some_interleaving_and_refused_in_another() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static PLACED: AtomicBool = AtomicBool::new(false);
    static REFUSED: AtomicBool = AtomicBool::new(false);
    loom::model(|| {
        let world = world();
        let mover = {
            let world = world.clone();
            thread::spawn(move || place(&world.frame, world.slot.hold(FIRST, &world.first)))
        };
        fence_and_reuse(&world, FIRST, &world.first, &world.frame);
        let placed = mover.join().unwrap();
        if placed { PLACED.store(true, Ordering::Relaxed) } else { REFUSED.store(true, Ordering::Relaxed) }
    });
    assert!(PLACED.load(Ordering::Relaxed) && REFUSED.load(Ordering::Relaxed));
}

#[test]
#[should_panic]
fn checking_before_publishing_is_caught() {
    loom::model(|| {
        let world = world();
        let mover = {
            let world = world.clone();
            thread::spawn(move || place(&world.frame, world.slot.hold_checking_first(FIRST, &world.first)))
        };
        fence_and_reuse(&world, FIRST, &world.first, &world.frame);
        mover.join().unwrap();
    });
}
