//! Each rule of the design, one by one.

mod world;

use leasehold_core::breaks::Outcome;
use leasehold_core::ids::{FileId, LeaseId, SessionId, TenantId};
use leasehold_core::input::{Access, Change, Fault, Input, OnConflict, Share};
use leasehold_core::output::{
    AcquireError, ChangeError, CommitError, NoSuchLease, Notice, Operation, Output, ReadError, Reply,
    RevokeReason, SyncError,
};
use leasehold_core::range::ByteRange;
use leasehold_core::schemes::{BREAK_LAYOUTS, GUARD, NAIVE};
use leasehold_core::view::{LeaseState, WaitKind, WaitOn};
use leasehold_core::{Config, Limits, OnExpiry};
use world::{SECTOR, World, kib, want, who};

use Access::{Overwrite, Read, Update};
use OnConflict::{Break, Refuse, Wait};

const GRACE_MS: u64 = 500;

fn config() -> Config {
    Config { frames: 32, grace_ms: GRACE_MS, retry_ms: 100, ..Config::default() }
}

fn world() -> World {
    World::new(config())
}

fn with_limits(limits: Limits) -> World {
    World::new(Config { limits, ..config() })
}

fn truncate(size_kib: u64) -> Change {
    Change::Truncate { size: size_kib * SECTOR }
}

fn is_fence(output: &Output) -> bool {
    matches!(output, Output::Fence { .. })
}
fn is_write(output: &Output) -> bool {
    matches!(output, Output::Write { .. })
}
fn is_perform(output: &Output) -> bool {
    matches!(output, Output::Perform { .. })
}
fn is_load(output: &Output) -> bool {
    matches!(output, Output::Load { .. })
}
fn is_merge(output: &Output) -> bool {
    matches!(output, Output::Merge { .. })
}
fn is_verify(output: &Output) -> bool {
    matches!(output, Output::Verify { .. })
}
fn is_expose(output: &Output) -> bool {
    matches!(output, Output::Expose { .. })
}

fn breaks_told(world: &World, lease: LeaseId) -> usize {
    let told = |notice: &Notice| matches!(notice, Notice::Break { lease: of, .. } if *of == lease);
    world.notices.iter().filter(|(_, notice)| told(notice)).count()
}

/// A lease of `value` that is committed but not durable: its write has failed.
fn failed_write(world: &mut World, range: ByteRange, value: u8) {
    let lease = world.lease(1, 1, range, Overwrite);
    world.dma(lease, value);
    let commit = world.ask_commit(1, lease);
    world.answer_all(|output| !is_write(output));
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    world.answer_one(is_write, false);
}

// Frames and visibility (rules 1 to 9)

#[test]
fn what_is_committed_is_read_and_an_abandoned_write_leaves_no_trace() {
    let mut world = world();
    world.fill(1, kib(0, 8), 7);
    let lease = world.lease(2, 1, kib(0, 12), Overwrite);
    world.dma(lease, 9);
    assert_eq!(world.see(1, kib(0, 12)), [7; 8], "uncommitted bytes are nobody's business");
    world.ask_release(2, lease);
    world.run();
    assert_eq!(world.see(1, kib(0, 12)), [7; 8]);
    world.wind_down();
}

#[test]
fn two_writers_in_one_block_with_disjoint_bytes_both_land() {
    let mut world = world();
    world.fill(1, kib(0, 4), 1);
    let a = world.lease(1, 1, kib(0, 1), Overwrite);
    let b = world.lease(2, 1, kib(2, 4), Overwrite);
    world.dma(a, 10);
    world.dma(b, 20);
    let (first, second) = (world.ask_commit(1, a), world.ask_commit(2, b));
    world.run();
    assert!(matches!(world.commit_reply(first), Some(Ok(_))));
    assert!(matches!(world.commit_reply(second), Some(Ok(_))));
    assert_eq!(world.see(1, kib(0, 4)), [10, 1, 20, 20]);
    world.wind_down();
}

#[test]
fn the_second_commit_of_a_block_waits_for_the_writeback_of_the_first() {
    let mut world = world();
    let a = world.lease(1, 1, kib(0, 1), Overwrite);
    let b = world.lease(2, 1, kib(1, 2), Overwrite);
    world.ask_commit(1, a);
    let second = world.ask_commit(2, b);
    world.answer_all(|output| !is_write(output));
    assert_eq!(world.commit_reply(second), None);
    assert!(!world.is_pending(is_merge), "its boundary would be read while it is being written");
    world.run();
    assert!(matches!(world.commit_reply(second), Some(Ok(_))));
    world.wind_down();
}

#[test]
fn a_commit_is_answered_once_visible_and_before_it_is_durable() {
    let mut world = world();
    let lease = world.lease(1, 1, kib(0, 6), Overwrite);
    let commit = world.ask_commit(1, lease);
    assert_eq!(world.commit_reply(commit), None, "not before the fence");
    world.answer_all(is_fence);
    world.answer_all(is_verify);
    world.answer_all(is_merge);
    assert_eq!(world.commit_reply(commit).map(|reply| reply.map(|done| done.size)), Some(Ok(6 * SECTOR)));
    assert_eq!(world.core.file_size(FileId(1)), Some(6 * SECTOR));
    assert_eq!(world.core.stats().frames.writeback, 2);
    world.wind_down();
}

#[test]
fn whole_blocks_are_committed_without_a_merge() {
    let mut world = world();
    let lease = world.lease(1, 1, kib(4, 12), Overwrite);
    world.ask_commit(1, lease);
    world.answer_all(is_fence);
    world.answer_all(is_verify);
    assert!(!world.is_pending(is_merge));
    world.wind_down();
}

#[test]
fn a_commit_whose_crc_does_not_match_aborts_the_lease() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    world.dma(lease, 6);
    let commit = world.ask_commit(1, lease);
    world.answer_all(is_fence);
    world.answer_one(is_verify, false);
    assert_eq!(world.commit_reply(commit), Some(Err(CommitError::Mismatch(lease))));
    assert_eq!(world.core.lease(lease), None);
    assert_eq!(world.see(1, kib(0, 4)), [5; 4]);
    world.wind_down();
}

#[test]
fn a_failed_merge_fails_the_commit_and_changes_nothing() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(1, 2), Overwrite);
    world.dma(lease, 6);
    let commit = world.ask_commit(1, lease);
    world.answer_all(is_fence);
    world.answer_all(is_verify);
    world.answer_one(is_merge, false);
    assert_eq!(world.commit_reply(commit), Some(Err(CommitError::Fault(Fault::NoSpace))));
    assert_eq!(world.see(1, kib(0, 4)), [5; 4]);
    world.wind_down();
}

#[test]
fn committing_a_read_lease_ends_it_and_says_why_nothing_was_committed() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Read);
    let commit = world.ask_commit(1, lease);
    world.run();
    assert_eq!(world.commit_reply(commit), Some(Err(CommitError::ReadOnly(lease))));
    assert_eq!(world.core.lease(lease), None);
    world.wind_down();
}

#[test]
fn an_update_lease_starts_from_the_committed_bytes() {
    let mut world = world();
    world.fill(1, kib(0, 8), 5);
    let lease = world.lease(1, 1, kib(0, 8), Update);
    world.ask_commit(1, lease);
    world.run();
    assert_eq!(world.see(1, kib(0, 8)), [5; 8], "what it did not write is as it was");
    world.wind_down();
}

#[test]
fn frames_are_zeroed_for_another_session_and_not_for_the_same() {
    let mut world = world();
    let is_zero = |output: &Output| matches!(output, Output::Zero { .. });
    let wants = [want(1, kib(0, 128), Overwrite)];
    for (session, zeroed) in [(1, false), (1, false), (2, true), (2, false), (0, true), (1, true)] {
        let request = world.ask_acquire(session, &wants, Refuse, 1000);
        assert_eq!(world.is_pending(is_zero), zeroed, "for session {session}");
        world.run();
        let lease = world.granted(request)[0];
        world.ask_release(session, lease);
        world.run();
    }
    world.wind_down();
}

#[test]
fn frames_that_held_bytes_of_a_file_are_zeroed_even_for_the_same_session() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 2), Read);
    world.ask_release(1, lease);
    world.run();
    world.ask_acquire(1, &[want(1, kib(0, 128), Overwrite)], Refuse, 1000);
    assert!(world.is_pending(|output| matches!(output, Output::Zero { .. })));
    world.wind_down();
}

#[test]
fn read_leases_overlap_freely_and_a_writer_conflicts_by_bytes() {
    let mut world = world();
    world.fill(1, kib(0, 8), 5);
    let a = world.lease(1, 1, kib(0, 4), Read);
    let _b = world.lease(2, 1, kib(2, 6), Read);
    let refused = world.ask_acquire(3, &[want(1, kib(0, 1), Overwrite)], Refuse, 1000);
    let Some(AcquireError::Conflict { holder: Some((holder, identity)), .. }) = world.acquire_error(refused)
    else {
        panic!("a writer under a reader: {:?}", world.replies[&refused]);
    };
    assert_eq!((holder, identity.program.as_str()), (a, "client1"), "the loser is told who is in the way");
    world.lease(3, 1, kib(6, 7), Overwrite);
    world.wind_down();
}

#[test]
fn an_acquire_gets_all_of_its_list_or_nothing() {
    let mut world = world();
    let held = world.lease(1, 2, kib(0, 1), Overwrite);
    let wants = [want(1, kib(0, 4), Overwrite), want(2, kib(0, 4), Overwrite)];
    let list = world.ask_acquire(2, &wants, Wait, 1000);
    world.run();
    assert_eq!(world.core.stats().leases, 1, "it holds nothing while it waits");
    world.ask_release(1, held);
    world.run();
    assert_eq!(world.granted(list).len(), 2);
    world.wind_down();
}

#[test]
fn one_key_that_cannot_be_made_refuses_the_whole_list() {
    let mut world = world();
    let wants = [want(1, kib(0, 4), Overwrite), want(2, kib(0, 4), Overwrite)];
    let list = world.ask_acquire(2, &wants, Wait, 1000);
    world.answer_one(is_expose, true);
    world.answer_one(is_expose, false);
    assert_eq!(world.acquire_error(list), Some(AcquireError::Fault(Fault::NoKey)));
    world.answer_one(is_fence, true);
    assert_eq!(world.core.stats().leases, 0);
    world.wind_down();
}

#[test]
fn a_failed_load_refuses_the_acquire_and_a_change_does_not_wait_for_it() {
    let mut world = world();
    world.fill(1, kib(0, 8), 5);
    let list = world.ask_acquire(2, &[want(1, kib(0, 4), Read)], Wait, 1000);
    let change = world.ask_change(1, truncate(0));
    world.answer_one(is_load, false);
    assert_eq!(world.acquire_error(list), Some(AcquireError::Fault(Fault::NoSpace)));
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    world.wind_down();
}

#[test]
fn the_same_byte_twice_in_one_list_is_refused() {
    let mut world = world();
    let wants = [want(1, kib(4, 8), Read), want(2, kib(0, 9), Read), want(1, kib(0, 5), Read)];
    let list = world.ask_acquire(1, &wants, Wait, 1000);
    assert_eq!(world.acquire_error(list), Some(AcquireError::Overlap { range: kib(4, 8) }));
}

#[test]
fn a_lease_past_the_end_extends_the_file_by_its_commit_only() {
    let mut world = world();
    let lease = world.lease(1, 1, kib(10, 11), Overwrite);
    assert_eq!(world.core.file_size(FileId(1)), Some(0));
    world.dma(lease, 3);
    world.ask_commit(1, lease);
    world.run();
    assert_eq!(world.core.file_size(FileId(1)), Some(11 * SECTOR));
    assert_eq!(world.see(1, kib(8, 12)), [0, 0, 3]);
    world.wind_down();
}

// Waiting and breaking (rules 10 to 16)

#[test]
fn who_waits_is_granted_in_line_and_at_most_until_the_deadline() {
    let mut world = world();
    let held = world.lease(1, 1, kib(0, 4), Overwrite);
    let first = world.ask_acquire(2, &[want(1, kib(0, 4), Overwrite)], Wait, 10_000);
    let late = world.ask_acquire(3, &[want(1, kib(0, 4), Overwrite)], Wait, 200);
    assert_eq!(breaks_told(&world, held), 0, "waiting breaks nothing");
    world.pass(200);
    assert!(matches!(world.acquire_error(late), Some(AcquireError::TimedOut { .. })));
    world.ask_release(1, held);
    world.run();
    world.granted(first);
    world.wind_down();
}

#[test]
fn who_comes_later_does_not_overtake_who_waits() {
    let mut world = world();
    world.lease(1, 1, kib(0, 4), Read);
    let writer = world.ask_acquire(2, &[want(1, kib(0, 8), Overwrite)], Wait, 10_000);
    let reader = world.ask_acquire(3, &[want(1, kib(2, 6), Read)], Refuse, 10_000);
    assert!(matches!(world.acquire_error(reader), Some(AcquireError::Conflict { holder: None, .. })));
    assert!(!world.replies.contains_key(&writer));
    world.wind_down();
}

#[test]
fn breaking_tells_the_holder_who_what_and_until_when() {
    let mut world = world();
    let held = world.lease(1, 1, kib(0, 4), Overwrite);
    let breaker = world.ask_acquire(0, &[want(1, kib(3, 5), Overwrite)], Break, 10_000);
    let (session, Notice::Break { lease, operation, deadline, range, .. }) = world.notices[0].clone() else {
        panic!("{:?}", world.notices);
    };
    assert_eq!((session, lease, range), (SessionId(1), held, kib(0, 4)));
    assert_eq!(operation, Operation::Acquire { range: kib(3, 5), access: Overwrite });
    assert_eq!(deadline, world.now.after_ms(GRACE_MS));
    world.pass(GRACE_MS);
    world.run();
    world.granted(breaker);
    assert_eq!(world.revokes(), [(held, RevokeReason::GraceOver)]);
    assert_eq!(world.outcomes(), [Outcome::Fenced]);
    world.wind_down();
}

#[test]
fn the_waiting_breaker_can_see_whom_it_waits_for() {
    let mut world = world();
    let held = world.lease(1, 1, kib(0, 4), Overwrite);
    let change = world.ask_change(1, truncate(0));
    // The file is empty, so this extends nothing and takes nothing.
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    let change = world.ask_change(1, Change::Remove);
    let wait = world.core.waits().find(|wait| wait.request == change).expect("it waits");
    let deadline = Some(world.now.after_ms(GRACE_MS));
    assert_eq!(wait.on, [WaitOn::Lease { id: held, holder: who("client1"), deadline }]);
    world.pass(GRACE_MS);
    let wait = world.core.waits().find(|wait| wait.request == change).expect("it waits");
    assert_eq!(wait.on, [WaitOn::Fence(held)]);
    world.wind_down();
}

#[test]
fn an_extending_truncate_breaks_nothing() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let held = world.lease(1, 1, kib(0, 20), Overwrite);
    for size in [4, 5, 12] {
        let change = world.ask_change(1, truncate(size));
        world.run();
        assert_eq!(world.change_reply(change), Some(Ok(())));
    }
    assert_eq!(breaks_told(&world, held), 0);
    assert_eq!(world.core.lease(held).map(|view| view.state), Some(LeaseState::Live));
    assert_eq!(world.core.file_size(FileId(1)), Some(12 * SECTOR));
    world.wind_down();
}

#[test]
fn a_shrinking_truncate_breaks_what_is_beyond_past_the_old_end_too_and_nothing_else() {
    let mut world = world();
    world.fill(1, kib(0, 10), 5);
    let before = world.lease(1, 1, kib(0, 6), Overwrite);
    let after = world.lease(1, 1, kib(7, 8), Overwrite);
    let past_the_end = world.lease(2, 1, kib(40, 41), Overwrite);
    let elsewhere = world.lease(2, 2, kib(7, 8), Overwrite);
    let change = world.ask_change(1, truncate(6));
    let told = [before, after, past_the_end, elsewhere].map(|lease| breaks_told(&world, lease));
    assert_eq!(told, [0, 1, 1, 0]);
    world.pass(GRACE_MS);
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    for lease in [before, elsewhere] {
        assert_eq!(
            world.core.lease(lease).map(|view| view.state),
            Some(LeaseState::Live),
            "P7: no collateral"
        );
    }
    world.wind_down();
}

#[test]
fn a_truncate_returns_only_after_the_revoked_key_is_fenced() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    world.lease(1, 1, kib(0, 4), Overwrite);
    let change = world.ask_change(1, truncate(0));
    world.pass(GRACE_MS);
    assert!(!world.is_pending(is_perform), "the key is revoked but not fenced");
    world.answer_one(is_fence, true);
    assert!(world.is_pending(is_perform));
    assert_eq!(world.change_reply(change), None);
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    world.wind_down();
}

#[test]
fn the_holder_may_commit_during_its_grace_and_the_fence_may_take_longer() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    world.dma(lease, 6);
    let change = world.ask_change(1, Change::Punch { range: kib(0, 1) });
    let commit = world.ask_commit(1, lease);
    world.pass(2 * GRACE_MS);
    world.run();
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.outcomes(), [Outcome::Committed]);
    assert_eq!(world.see(1, kib(0, 4)), [0, 6, 6, 6], "first the commit, then the punch");
    world.wind_down();
}

#[test]
fn a_commit_after_the_deadline_is_told_who_broke_the_lease() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    world.ask_change(1, truncate(0));
    world.pass(GRACE_MS);
    let revoked = Some(Err(CommitError::Revoked { lease, by: who("breaker") }));
    let early = world.ask_commit(1, lease);
    assert_eq!(world.commit_reply(early), revoked, "while it is being fenced");
    world.run();
    let late = world.ask_commit(1, lease);
    assert_eq!(world.commit_reply(late), revoked, "when it is over");
    let forget = Output::Forget { lease, session: SessionId(1) };
    assert!(world.said.contains(&forget), "the holder knows now, and its key may go");
    let again = world.ask_commit(1, lease);
    assert!(matches!(world.commit_reply(again), Some(Err(CommitError::NoLease(_)))));
    world.wind_down();
}

#[test]
fn releasing_answers_a_break() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    let change = world.ask_change(1, truncate(0));
    let release = world.ask_release(1, lease);
    world.run();
    assert_eq!(world.replies[&release], Reply::Release(Ok(())));
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.outcomes(), [Outcome::Released]);
    world.wind_down();
}

#[test]
fn grace_periods_run_in_parallel_and_the_earliest_deadline_counts() {
    let mut world = world();
    world.fill(1, kib(0, 16), 5);
    for at in 0..4 {
        world.lease(1 + at % 3, 1, kib(4 * at, 4 * at + 4), Overwrite);
    }
    let first = world.ask_change(1, truncate(8));
    world.pass(GRACE_MS / 2);
    let second = world.ask_change(1, truncate(0));
    world.pass(GRACE_MS / 2);
    world.run();
    assert_eq!(world.change_reply(first), Some(Ok(())));
    assert_eq!(world.change_reply(second), None);
    world.pass(GRACE_MS / 2);
    world.run();
    assert_eq!(world.change_reply(second), Some(Ok(())));
    assert_eq!(world.ended.len(), 6, "two breaks by the first change, four by the second");
    world.wind_down();
}

#[test]
fn during_a_break_overlapping_acquires_queue_behind_the_breaker() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let held = world.lease(1, 1, kib(0, 4), Overwrite);
    let waiting = world.ask_acquire(2, &[want(1, kib(0, 4), Overwrite)], Wait, 100_000);
    let change = world.ask_change(1, truncate(0));
    world.ask_release(1, held);
    world.run();
    let done: Vec<_> = world.replies.keys().filter(|&&id| id == waiting || id == change).collect();
    assert_eq!(done.len(), 2);
    assert_eq!(
        world.change_reply(change),
        Some(Ok(())),
        "and it broke no lease of who came before it in line"
    );
    assert_eq!(world.ended.len(), 1);
    world.wind_down();
}

#[test]
fn a_lease_granted_to_an_earlier_waiter_is_broken_for_the_breaker_behind_it() {
    let mut world = world();
    let held = world.lease(1, 1, kib(0, 4), Overwrite);
    let waiting = world.ask_acquire(2, &[want(1, kib(0, 4), Overwrite)], Wait, 100_000);
    let breaker = world.ask_acquire(3, &[want(1, kib(0, 4), Overwrite)], Break, 100_000);
    world.ask_release(1, held);
    world.run();
    let lease = world.granted(waiting)[0];
    assert_eq!(breaks_told(&world, lease), 1, "its holder hears of it once it knows of the lease");
    world.pass(GRACE_MS);
    world.run();
    world.granted(breaker);
    world.wind_down();
}

#[test]
fn a_lease_that_is_still_prepared_at_its_deadline_is_never_granted() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let slow = world.ask_acquire(2, &[want(1, kib(0, 4), Update)], Wait, 100_000);
    let change = world.ask_change(1, truncate(0));
    world.pass(GRACE_MS);
    assert!(matches!(world.acquire_error(slow), Some(AcquireError::Conflict { .. })));
    world.answer_one(is_load, true);
    assert!(!world.is_pending(is_expose), "nobody needs its key any more");
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.notices, [], "the holder never knew it");
    world.wind_down();
}

#[test]
fn a_break_that_has_begun_goes_on_when_its_breaker_gives_up() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    let change = world.ask_change(1, truncate(0));
    world.cancel(change);
    world.pass(GRACE_MS);
    world.run();
    assert_eq!(world.core.lease(lease), None);
    assert_eq!(world.core.file_size(FileId(1)), Some(4 * SECTOR), "but the change is not made");
    world.wind_down();
}

#[test]
fn ending_the_session_is_the_other_answer_to_silence() {
    let mut world = World::new(Config { on_expiry: OnExpiry::EndSession, ..config() });
    world.fill(1, kib(0, 4), 5);
    let broken = world.lease(1, 1, kib(0, 4), Overwrite);
    let other = world.lease(1, 2, kib(0, 4), Overwrite);
    let change = world.ask_change(1, truncate(0));
    world.pass(GRACE_MS);
    assert!(world.is_pending(|output| *output == Output::Disconnect { session: SessionId(1) }));
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(
        world.revokes(),
        [(broken, RevokeReason::SessionEnded), (other, RevokeReason::SessionEnded)],
        "with all it had"
    );
    assert_eq!(world.outcomes(), [Outcome::SessionEnded]);
    let refused = world.ask_acquire(1, &[want(1, kib(0, 1), Read)], Wait, 1000);
    assert_eq!(world.acquire_error(refused), Some(AcquireError::NoSession));
    world.wind_down();
}

fn guard(on_expiry: OnExpiry) -> World {
    let limits = Limits { lease_bytes_max: u64::MAX, ..Limits::default() };
    World::new(Config { scheme: GUARD, on_expiry, frames: 1, limits, ..config() })
}

#[test]
fn a_guarded_file_of_any_length_takes_no_frames_and_a_change_waits_until_it_is_let_go() {
    let mut world = guard(OnExpiry::RefuseBreaker);
    let lease = world.lease(1, 1, kib(0, 1 << 30), Overwrite);
    let change = world.ask_change(1, Change::Zero { range: kib(0, 4) });
    world.run();
    assert_eq!(world.change_reply(change), None);
    assert_eq!(breaks_told(&world, lease), 1);
    world.ask_release(1, lease);
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.outcomes(), [Outcome::Released]);
}

#[test]
fn each_breaker_is_refused_after_its_own_grace_and_the_lease_goes_on() {
    let mut world = guard(OnExpiry::RefuseBreaker);
    let lease = world.lease(1, 1, kib(0, 8), Overwrite);
    let first = world.ask_change(1, Change::Zero { range: kib(0, 4) });
    world.pass(GRACE_MS / 2);
    let second = world.ask_change(1, Change::Zero { range: kib(4, 8) });
    world.pass(GRACE_MS / 2);
    world.run();
    assert!(
        matches!(world.change_reply(first), Some(Err(ChangeError::Busy { lease: at, .. })) if at == lease)
    );
    assert_eq!(world.change_reply(second), None, "it has had half of its time");
    world.pass(GRACE_MS / 2);
    world.run();
    assert!(matches!(world.change_reply(second), Some(Err(ChangeError::Busy { .. }))));
    assert_eq!(world.outcomes(), [Outcome::Refused, Outcome::Refused]);
    assert_eq!(world.core.lease(lease).map(|view| view.state), Some(LeaseState::Live));
    let third = world.ask_change(1, Change::Zero { range: kib(0, 4) });
    assert_eq!(
        world.change_reply(third),
        None,
        "a refusal is no end of the lease: the next breaker waits, too"
    );
    assert_eq!(breaks_told(&world, lease), 3);
}

#[test]
fn nobody_is_fenced_for_a_breaker_that_has_gone() {
    let mut world = guard(OnExpiry::EndSession);
    let lease = world.lease(1, 1, kib(0, 8), Overwrite);
    let first = world.ask_change(1, Change::Zero { range: kib(0, 4) });
    world.pass(GRACE_MS / 2);
    let second = world.ask_change(1, Change::Zero { range: kib(4, 8) });
    world.withdraw(first);
    world.pass(GRACE_MS / 2);
    world.run();
    assert_eq!(world.core.lease(lease).map(|view| view.state), Some(LeaseState::Live));
    assert_eq!(world.outcomes(), [Outcome::Withdrawn]);
    world.pass(GRACE_MS / 2);
    world.run();
    assert_eq!(world.change_reply(second), Some(Ok(())), "the other one still counts");
    assert_eq!(world.revokes(), [(lease, RevokeReason::SessionEnded)]);
    assert_eq!(world.core.lease(lease), None);
}

#[test]
fn the_server_itself_only_loses_the_lease() {
    let mut world = World::new(Config { on_expiry: OnExpiry::EndSession, ..config() });
    world.fill(1, kib(0, 4), 5);
    world.lease(0, 1, kib(0, 4), Overwrite);
    let other = world.lease(0, 2, kib(0, 4), Overwrite);
    world.ask_change(1, truncate(0));
    world.pass(GRACE_MS);
    world.run();
    assert_eq!(world.core.lease(other).map(|view| view.state), Some(LeaseState::Live));
    world.wind_down();
}

#[test]
fn removing_breaks_everything_and_then_the_file_is_gone() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let read = world.lease(1, 1, kib(0, 1), Read);
    let past_the_end = world.lease(2, 1, kib(80, 84), Overwrite);
    let remove = world.ask_change(1, Change::Remove);
    assert_eq!([read, past_the_end].map(|lease| breaks_told(&world, lease)), [1, 1]);
    let acquire = world.ask_acquire(3, &[want(1, kib(8, 9), Overwrite)], Wait, 100_000);
    let again = world.ask_change(1, Change::Remove);
    world.pass(GRACE_MS);
    world.run();
    assert_eq!(world.change_reply(remove), Some(Ok(())));
    assert_eq!(world.change_reply(again), Some(Err(ChangeError::NoFile)));
    assert_eq!(world.acquire_error(acquire), Some(AcquireError::NoFile));
    let (read, sync) = (world.ask_read(1, kib(0, 1), 1000), world.ask_sync(1));
    assert_eq!(world.read_reply(read), Some(Err(ReadError::NoFile)));
    assert_eq!(world.sync_reply(sync), Some(Err(SyncError::NoFile)));
    world.wind_down();
}

#[test]
fn a_truncate_that_a_commit_overtook_breaks_what_it_then_takes() {
    let mut world = world();
    let long = world.lease(1, 1, kib(8, 12), Overwrite);
    let beyond = world.lease(2, 1, kib(20, 24), Overwrite);
    world.ask_commit(1, long);
    world.answer_all(is_fence);
    // The file is still empty, so this would extend it; the commit is first in line for the blocks.
    world.answer_one(is_verify, true);
    let other = world.lease(3, 1, kib(13, 14), Overwrite);
    world.ask_commit(3, other);
    world.answer_all(|output| is_fence(output) || is_verify(output));
    let change = world.ask_change(1, truncate(13));
    world.run();
    assert_eq!(breaks_told(&world, beyond), 1, "by now the file is longer than 13 KiB");
    world.pass(GRACE_MS);
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.core.file_size(FileId(1)), Some(13 * SECTOR));
    world.wind_down();
}

#[test]
fn a_failed_change_is_answered_and_the_file_is_as_it_was() {
    let mut world = world();
    world.fill(1, kib(0, 8), 5);
    let change = world.ask_change(1, truncate(4));
    world.answer_one(is_perform, false);
    assert_eq!(world.change_reply(change), Some(Err(ChangeError::Fault(Fault::NoSpace))));
    assert_eq!(world.see(1, kib(0, 8)), [5; 8]);
    world.wind_down();
}

#[test]
fn a_change_drains_the_writeback_of_its_range() {
    let mut world = world();
    let lease = world.lease(1, 1, kib(0, 8), Overwrite);
    world.ask_commit(1, lease);
    world.answer_all(|output| !is_write(output));
    let change = world.ask_change(1, truncate(4));
    assert!(!world.is_pending(is_perform), "the write would bring back what the truncate took");
    world.answer_one(is_write, true);
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(change), Some(Ok(())));
    world.wind_down();
}

// Fences and faults (rule 17 and P5)

#[test]
fn an_unproven_fence_quarantines_the_frames_and_the_breaker_still_returns() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    let change = world.ask_change(1, truncate(0));
    world.pass(GRACE_MS);
    world.answer_one(is_fence, false);
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.core.stats().frames.quarantined, 1);
    assert_eq!(world.outcomes(), [Outcome::Quarantined]);
    assert_eq!(world.revokes(), [(lease, RevokeReason::Unproven)]);
    world.answer_one(|output| matches!(output, Output::Disconnect { .. }), true);
    assert_eq!(world.core.stats().frames.quarantined, 0);
    world.wind_down();
}

#[test]
fn a_commit_whose_fence_is_unproven_does_not_land() {
    let mut world = world();
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    world.dma(lease, 9);
    let commit = world.ask_commit(1, lease);
    world.answer_one(is_fence, false);
    assert_eq!(world.commit_reply(commit), Some(Err(CommitError::Unproven(lease))));
    world.run();
    assert_eq!(world.see(1, kib(0, 4)), [5; 4]);
    world.wind_down();
}

#[test]
fn a_poisoned_lease_never_commits_however_far_its_commit_has_come() {
    for steps in 0..4 {
        let mut world = world();
        world.fill(1, kib(0, 4), 5);
        let reader = world.lease(1, 1, kib(3, 4), Read);
        let lease = world.lease(1, 1, kib(1, 2), Overwrite);
        world.dma(lease, 9);
        let early = (steps > 0).then(|| world.ask_commit(1, lease));
        for stage in [is_fence, is_verify].into_iter().take(usize::max(steps, 1) - 1) {
            world.answer_one(stage, true);
        }
        world.step(Input::Poisoned { session: SessionId(1) });
        world.run();
        let commit = early.unwrap_or_else(|| world.ask_commit(1, lease));
        assert_eq!(
            world.commit_reply(commit),
            Some(Err(CommitError::Poisoned(lease))),
            "after {steps} steps"
        );
        assert_eq!(world.see(1, kib(0, 4)), [5; 4]);
        assert!(world.core.lease(reader).is_some(), "a read lease wrote nothing that could be wrong");
        world.wind_down();
    }
}

#[test]
fn a_failed_write_keeps_its_frames_and_is_tried_again_in_time_and_by_a_sync() {
    let mut world = world();
    failed_write(&mut world, kib(0, 4), 5);
    assert_eq!(world.core.stats().writebacks_failed, 1);
    assert_eq!(world.core.stats().frames.writeback, 1);
    let sync = world.ask_sync(1);
    world.answer_one(is_write, false);
    assert_eq!(world.sync_reply(sync), Some(Err(SyncError::Fault(Fault::NoSpace))));
    world.pass(100);
    let sync = world.ask_sync(1);
    world.run();
    assert_eq!(world.sync_reply(sync), Some(Ok(())));
    assert_eq!(world.see(1, kib(0, 4)), [5; 4]);
    world.wind_down();
}

#[test]
fn a_change_that_takes_all_of_a_failed_write_goes_through_and_the_write_is_dropped() {
    for change in [truncate(0), Change::Remove] {
        let mut world = world();
        failed_write(&mut world, kib(0, 12), 5);
        let change = world.ask_change(1, change);
        world.answer_one(is_perform, true);
        assert_eq!(world.change_reply(change), Some(Ok(())));
        assert_eq!(world.core.stats().writebacks, 0);
        world.wind_down();
    }
}

#[test]
fn a_punch_in_the_middle_of_a_failed_write_leaves_both_sides_to_be_tried_again() {
    let mut world = world();
    failed_write(&mut world, kib(0, 12), 5);
    let change = world.ask_change(1, Change::Punch { range: kib(4, 8) });
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(change), Some(Ok(())));
    let sync = world.ask_sync(1);
    world.run();
    assert_eq!(world.sync_reply(sync), Some(Ok(())));
    assert_eq!(world.see(1, kib(0, 12)), [5, 5, 5, 5, 0, 0, 0, 0, 5, 5, 5, 5]);
    world.wind_down();
}

#[test]
fn a_punch_that_failed_gives_the_failed_write_back() {
    let mut world = world();
    failed_write(&mut world, kib(0, 12), 5);
    let change = world.ask_change(1, Change::Punch { range: kib(4, 8) });
    world.pass(1000);
    assert!(!world.is_pending(is_write), "it is not tried again behind the change's back");
    world.answer_one(is_perform, false);
    assert!(matches!(world.change_reply(change), Some(Err(ChangeError::Fault(_)))));
    world.run();
    assert_eq!(world.see(1, kib(0, 12)), [5; 12]);
    world.wind_down();
}

#[test]
fn a_change_or_commit_or_read_that_needs_a_failed_block_has_it_tried_once_and_then_fails() {
    let mut world = world();
    failed_write(&mut world, kib(0, 4), 5);
    let lease = world.lease(2, 1, kib(1, 2), Overwrite);
    let commit = world.ask_commit(2, lease);
    world.answer_all(|output| is_fence(output) || is_verify(output));
    world.answer_one(is_write, false);
    assert_eq!(world.commit_reply(commit), Some(Err(CommitError::Fault(Fault::NoSpace))));
    let change = world.ask_change(1, truncate(1));
    world.answer_one(is_write, false);
    assert_eq!(world.change_reply(change), Some(Err(ChangeError::Fault(Fault::NoSpace))));
    let read = world.ask_read(1, kib(0, 1), 1000);
    world.answer_one(is_write, false);
    assert_eq!(world.read_reply(read), Some(Err(ReadError::Fault(Fault::NoSpace))));
    assert_eq!(world.see(1, kib(0, 4)), [5; 4], "and when the disk has space again, it goes through");
    world.wind_down();
}

#[test]
fn a_commit_of_the_same_blocks_takes_the_place_of_a_failed_write() {
    let mut world = world();
    failed_write(&mut world, kib(0, 8), 5);
    let lease = world.lease(2, 1, kib(0, 4), Overwrite);
    world.dma(lease, 6);
    let commit = world.ask_commit(2, lease);
    world.answer_all(|output| is_fence(output) || is_verify(output));
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    world.run();
    assert_eq!(world.see(1, kib(0, 8)), [6, 6, 6, 6, 5, 5, 5, 5]);
    world.wind_down();
}

#[test]
fn a_sync_owes_what_was_committed_before_it_by_anybody_and_no_more() {
    let mut world = world();
    let before = world.lease(1, 1, kib(0, 4), Overwrite);
    let after = world.lease(2, 1, kib(4, 8), Overwrite);
    world.ask_commit(1, before);
    world.answer_all(|output| !is_write(output));
    let sync = world.ask_sync(1);
    world.ask_commit(2, after);
    world.answer_all(|output| !is_write(output));
    world.answer_one(is_write, true);
    world.answer_one(|output| matches!(output, Output::Flush { .. }), true);
    assert_eq!(world.sync_reply(sync), Some(Ok(())));
    assert!(world.is_pending(is_write), "the commit after it is still under way");
    world.wind_down();
}

/// A sync that came while a commit was about to take the place of a failed write used to be acknowledged when that was
/// dropped: a crash would then have left neither the old bytes nor the new.
#[test]
fn a_sync_waits_for_what_took_the_place_of_what_it_owes() {
    let mut world = world();
    failed_write(&mut world, kib(0, 12), 6);
    let punch = world.ask_change(1, Change::Punch { range: kib(4, 8) });
    let sync = world.ask_sync(1);
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(punch), Some(Ok(())));
    assert!(!world.is_pending(|output| matches!(output, Output::Flush { .. })), "both sides are still owed");
    world.run();
    assert_eq!(world.sync_reply(sync), Some(Ok(())));

    failed_write(&mut world, kib(0, 8), 7);
    let lease = world.lease(2, 1, kib(0, 9), Overwrite);
    world.dma(lease, 8);
    let commit = world.ask_commit(2, lease);
    world.answer_all(|output| is_fence(output) || is_verify(output));
    let sync = world.ask_sync(1);
    world.answer_one(is_merge, true);
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    assert!(
        !world.is_pending(|output| matches!(output, Output::Flush { .. })),
        "now it owes the newer bytes"
    );
    world.run();
    assert_eq!(world.sync_reply(sync), Some(Ok(())));
    world.wind_down();
}

// Other changes, and what needs a file to itself in the same way

fn zero(range: ByteRange) -> Change {
    Change::Zero { range }
}

fn collapse(range: ByteRange) -> Change {
    Change::Collapse { range }
}

fn adopt(range: ByteRange) -> Change {
    Change::Adopt { range }
}

#[test]
fn a_zero_breaks_what_it_takes_and_keeps_the_size() {
    let mut world = world();
    world.fill(1, kib(0, 8), 5);
    let taken = world.lease(1, 1, kib(0, 2), Overwrite);
    let kept = world.lease(1, 1, kib(3, 4), Overwrite);
    let change = world.ask_change(1, zero(kib(1, 3)));
    assert_eq!([taken, kept].map(|lease| breaks_told(&world, lease)), [1, 0]);
    world.ask_release(1, taken);
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.see(1, kib(0, 9)), [5, 0, 0, 5, 5, 5, 5, 5]);
    let past_the_end = world.ask_change(1, zero(kib(6, 100)));
    world.run();
    assert_eq!(world.change_reply(past_the_end), Some(Ok(())));
    assert_eq!(world.core.file_size(FileId(1)), Some(8 * SECTOR));
    world.wind_down();
}

#[test]
fn a_zero_takes_the_place_of_a_failed_write_except_of_the_tail_that_carries_the_size() {
    let mut world = world();
    failed_write(&mut world, kib(0, 12), 5);
    let change = world.ask_change(1, zero(kib(4, 8)));
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(change), Some(Ok(())), "the disk need not take the write first");
    world.run();
    assert_eq!(world.see(1, kib(0, 12)), [5, 5, 5, 5, 0, 0, 0, 0, 5, 5, 5, 5]);

    let mut world = self::world();
    failed_write(&mut world, kib(0, 12), 5);
    let change = world.ask_change(1, zero(kib(0, 12)));
    assert!(!world.is_pending(is_perform));
    world.answer_one(is_write, true);
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.see(1, kib(0, 12)), [0; 12]);
    world.wind_down();
}

#[test]
fn a_collapse_breaks_all_from_its_start_on_and_moves_what_is_behind_it_to_the_front() {
    let mut world = world();
    for at in 0..4 {
        world.fill(1, kib(4 * at, 4 * at + 4), 1 + at as u8);
    }
    let before = world.lease(1, 1, kib(0, 4), Update);
    let behind = world.lease(2, 1, kib(13, 14), Overwrite);
    let past_the_end = world.lease(2, 1, kib(40, 41), Overwrite);
    let change = world.ask_change(1, collapse(kib(4, 8)));
    assert_eq!([before, behind, past_the_end].map(|lease| breaks_told(&world, lease)), [0, 1, 1]);
    world.dma(behind, 9);
    let commit = world.ask_commit(2, behind);
    world.ask_release(2, past_the_end);
    world.run();
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))), "in time, at the offset of then");
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.core.file_size(FileId(1)), Some(12 * SECTOR));
    assert_eq!(world.see(1, kib(0, 16)), [1, 1, 1, 1, 3, 3, 3, 3, 4, 9, 4, 4]);
    assert!(world.core.lease(before).is_some());
    world.wind_down();
}

/// The first collapse counted all that was behind it as replaced, as a truncate does, and dropped it.
#[test]
fn what_moves_in_a_collapse_is_on_disk_first_and_if_it_cannot_be_nothing_moves() {
    let mut world = world();
    world.fill(1, kib(0, 12), 5);
    failed_write(&mut world, kib(8, 12), 6);
    let change = world.ask_change(1, collapse(kib(0, 4)));
    assert!(!world.is_pending(is_perform));
    world.answer_one(is_write, false);
    assert_eq!(world.change_reply(change), Some(Err(ChangeError::Fault(Fault::NoSpace))));
    world.run();
    assert_eq!(world.see(1, kib(0, 12)), [5, 5, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6], "nothing is lost");
    world.wind_down();
}

#[test]
fn what_a_collapse_takes_out_need_not_get_to_the_disk() {
    let mut world = world();
    world.fill(1, kib(0, 12), 5);
    failed_write(&mut world, kib(0, 8), 6);
    let change = world.ask_change(1, collapse(kib(4, 8)));
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(change), Some(Ok(())));
    world.run();
    assert_eq!(world.see(1, kib(0, 12)), [6, 6, 6, 6, 5, 5, 5, 5]);
    world.wind_down();
}

#[test]
fn a_collapse_that_cannot_be_made_is_refused_before_it_breaks_anything() {
    let mut world = world();
    world.fill(1, kib(0, 8), 5);
    let lease = world.lease(1, 1, kib(0, 8), Update);
    for range in [kib(1, 4), kib(0, 3), kib(4, 8), kib(4, 12)] {
        let change = world.ask_change(1, collapse(range));
        let size = 8 * SECTOR;
        assert_eq!(world.change_reply(change), Some(Err(ChangeError::CannotCollapse { range, size })));
    }
    assert_eq!(breaks_told(&world, lease), 0);
    world.wind_down();
}

#[test]
fn a_collapse_is_judged_by_the_size_at_its_turn() {
    let mut world = world();
    world.fill(1, kib(0, 16), 5);
    let lease = world.lease(1, 1, kib(12, 16), Update);
    let truncate = world.ask_change(1, truncate(8));
    let change = world.ask_change(1, collapse(kib(4, 8)));
    assert_eq!(world.change_reply(change), None, "of 16 KiB it could be made");
    world.ask_release(1, lease);
    world.run();
    assert_eq!(world.change_reply(truncate), Some(Ok(())));
    let error = ChangeError::CannotCollapse { range: kib(4, 8), size: 8 * SECTOR };
    assert_eq!(world.change_reply(change), Some(Err(error)));
    assert_eq!(world.see(1, kib(0, 16)), [5; 8]);
    world.wind_down();
}

#[test]
fn a_clone_is_what_was_committed_before_it_and_breaks_no_lease() {
    let mut world = world();
    let before = world.lease(1, 1, kib(0, 4), Overwrite);
    let after = world.lease(2, 1, kib(4, 8), Overwrite);
    world.dma(before, 5);
    world.dma(after, 6);
    world.ask_commit(1, before);
    world.answer_all(|output| !is_write(output));
    let clone = world.ask_change(1, Change::Clone);
    assert!(!world.is_pending(is_perform), "the commit is not on disk");
    let commit = world.ask_commit(2, after);
    world.answer_all(|output| is_fence(output) || is_verify(output));
    world.answer_one(is_write, true);
    assert!(world.is_pending(is_perform));
    assert_eq!(world.commit_reply(commit), None, "not while the file is cloned");
    assert_eq!(world.change_reply(clone), None);
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(clone), Some(Ok(())));
    world.run();
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    assert_eq!([before, after].map(|lease| breaks_told(&world, lease)), [0, 0]);
    assert_eq!(world.clones, [[5; 4]]);
    world.wind_down();
}

#[test]
fn a_clone_fails_with_the_fault_of_a_write_that_does_not_get_to_the_disk() {
    let mut world = world();
    failed_write(&mut world, kib(0, 4), 5);
    let clone = world.ask_change(1, Change::Clone);
    world.answer_one(is_write, false);
    assert_eq!(world.change_reply(clone), Some(Err(ChangeError::Fault(Fault::NoSpace))));
    let clone = world.ask_change(1, Change::Clone);
    world.run();
    assert_eq!(world.change_reply(clone), Some(Ok(())));
    world.wind_down();
}

#[test]
fn changes_that_take_nothing_keep_their_turn_and_go_when_they_are_cancelled_or_the_file_is_removed() {
    let mut world = world();
    world.fill(1, kib(0, 8), 5);
    let remove = world.ask_change(1, Change::Remove);
    let changes = [Change::Clone, adopt(kib(0, 4)), adopt(kib(0, 100)), Change::Clone];
    let waiting = changes.map(|change| world.ask_change(1, change));
    assert_eq!(world.pending.iter().filter(|output| is_perform(output)).count(), 1);
    let wait = world.core.waits().find(|wait| wait.request == waiting[0]).expect("it waits");
    assert_eq!(wait.on, [WaitOn::Request(remove)]);
    world.cancel(waiting[0]);
    world.run();
    assert_eq!(world.change_reply(remove), Some(Ok(())));
    for gone in &waiting[1..] {
        assert_eq!(world.change_reply(*gone), Some(Err(ChangeError::NoFile)));
    }
    assert!(world.clones.is_empty());

    let clone = world.ask_change(2, Change::Clone);
    let behind = world.ask_change(2, adopt(kib(0, 4)));
    world.cancel(clone);
    assert!(
        !world.is_pending(|output| matches!(output, Output::Perform { change: Change::Adopt { .. }, .. }))
    );
    world.run();
    assert_eq!(world.change_reply(behind), Some(Ok(())), "what is being performed goes on, unanswered");
    world.wind_down();
}

#[test]
fn an_adoption_does_not_lose_what_was_committed_to_its_blocks() {
    let mut world = world();
    world.fill(1, kib(0, 12), 5);
    failed_write(&mut world, kib(4, 8), 6);
    let elsewhere = world.ask_change(1, adopt(kib(0, 4)));
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(elsewhere), Some(Ok(())));
    let here = world.ask_change(1, adopt(kib(7, 8)));
    world.answer_one(is_write, false);
    assert_eq!(world.change_reply(here), Some(Err(ChangeError::Fault(Fault::NoSpace))));
    world.run();
    assert_eq!(world.see(1, kib(4, 8)), [6; 4]);
    world.wind_down();
}

#[test]
fn an_adoption_past_the_end_takes_the_size_while_no_commit_is_on_its_way() {
    let mut world = world();
    world.fill(1, kib(0, 12), 5);
    let far = world.lease(2, 1, kib(40, 44), Overwrite);
    let change = world.ask_change(1, adopt(kib(8, 100)));
    let commit = world.ask_commit(2, far);
    world.answer_all(|output| is_fence(output) || is_verify(output));
    assert_eq!(world.commit_reply(commit), None, "the size that is found would not count it");
    let endless = |output: &Output| matches!(output, Output::Perform { change, .. } if *change == adopt(ByteRange::from(8 * SECTOR)));
    assert!(world.is_pending(endless), "whoever performs it is told");
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(change), Some(Ok(())));
    world.run();
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    assert_eq!(world.core.file_size(FileId(1)), Some(44 * SECTOR));
    assert_eq!(breaks_told(&world, far), 0);
    world.wind_down();
}

#[test]
fn an_adoption_that_the_end_of_file_came_before_gets_in_line_again_for_all_blocks() {
    let mut world = world();
    world.fill(1, kib(0, 12), 5);
    let elsewhere = world.lease(2, 1, kib(0, 4), Overwrite);
    let truncate = world.ask_change(1, truncate(6));
    let change = world.ask_change(1, adopt(kib(4, 12)));
    world.answer_one(is_perform, true);
    assert_eq!(world.change_reply(truncate), Some(Ok(())));
    assert!(world.is_pending(is_perform), "now it takes the size as well");
    let commit = world.ask_commit(2, elsewhere);
    world.answer_all(|output| is_fence(output) || is_verify(output));
    assert_eq!(world.commit_reply(commit), None);
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    world.wind_down();
}

// Captures (rule 7)

fn is_capture(output: &Output) -> bool {
    matches!(output, Output::Capture { .. })
}

fn is_live(world: &World, lease: LeaseId) -> bool {
    world.core.lease(lease).is_some_and(|view| view.state == LeaseState::Live)
}

/// A file of 12 KiB of fives, of which 10 are under an update lease of session 1.
fn resident() -> (World, LeaseId) {
    let mut world = world();
    world.fill(1, kib(0, 12), 5);
    let lease = world.lease(1, 1, kib(1, 11), Update);
    (world, lease)
}

#[test]
fn a_capture_commits_what_was_placed_before_it_and_the_lease_goes_on() {
    let (mut world, lease) = resident();
    world.dma_into(lease, kib(2, 6), 7);
    let capture = world.ask_capture(1, lease, kib(2, 5), 1000);
    world.run();
    assert_eq!(world.capture_reply(capture).map(|reply| reply.map(|done| done.size)), Some(Ok(12 * SECTOR)));
    assert!(is_live(&world, lease));
    assert_eq!(world.see(1, kib(0, 12)), [5, 5, 7, 7, 7, 5, 5, 5, 5, 5, 5, 5], "of the range and no more");
    world.dma_into(lease, kib(3, 4), 8);
    let commit = world.ask_commit(1, lease);
    world.run();
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    assert_eq!(world.see(1, kib(0, 12)), [5, 5, 7, 8, 7, 7, 5, 5, 5, 5, 5, 5]);
    world.wind_down();
}

#[test]
fn a_capture_past_the_end_extends_the_file_and_a_sync_owes_it() {
    let mut world = world();
    let lease = world.lease(1, 1, kib(0, 40), Update);
    world.dma_into(lease, kib(8, 9), 7);
    let capture = world.ask_capture(1, lease, kib(8, 9), 1000);
    world.answer_all(|output| !is_write(output));
    assert!(matches!(world.capture_reply(capture), Some(Ok(_))), "visible, and not yet durable");
    assert_eq!(world.core.file_size(FileId(1)), Some(9 * SECTOR));
    let sync = world.ask_sync(1);
    assert_eq!(world.sync_reply(sync), None);
    world.run();
    assert_eq!(world.sync_reply(sync), Some(Ok(())));
    assert_eq!(world.see(1, kib(7, 12)), [0, 7]);
    world.wind_down();
}

#[test]
fn what_lands_during_a_capture_is_in_it_or_not_and_in_the_next_for_sure() {
    let (mut world, lease) = resident();
    world.dma(lease, 7);
    let first = world.ask_capture(1, lease, kib(4, 8), 1000);
    assert!(world.is_pending(is_capture));
    world.dma(lease, 8);
    world.run();
    assert!(matches!(world.capture_reply(first), Some(Ok(_))));
    assert_eq!(world.see(1, kib(4, 8)), [7, 8, 7, 8], "the world copies every other sector late");
    let second = world.ask_capture(1, lease, kib(4, 8), 1000);
    world.run();
    assert!(matches!(world.capture_reply(second), Some(Ok(_))));
    assert_eq!(world.see(1, kib(4, 8)), [8; 4]);
    world.wind_down();
}

#[test]
fn captures_of_one_lease_take_effect_one_after_the_other() {
    let (mut world, lease) = resident();
    let asked: Vec<_> = [kib(8, 10), kib(1, 3), kib(1, 9)]
        .into_iter()
        .enumerate()
        .map(|(at, range)| {
            world.dma(lease, 10 + at as u8);
            world.ask_capture(1, lease, range, 1000)
        })
        .collect();
    for at in 0..3 {
        if at == 2 {
            // It has blocks of the others, too, and waits for their writebacks.
            assert!(!world.is_pending(is_capture));
            world.answer_all(|output| matches!(output, Output::Record { .. }) || is_write(output));
        }
        world.answer_one(is_capture, true);
        assert!(!world.is_pending(is_capture), "one at a time");
        world.answer_one(is_merge, true);
        let answered = asked.iter().filter(|capture| world.capture_reply(**capture).is_some()).count();
        assert_eq!(answered, at + 1);
    }
    world.run();
    assert_eq!(world.see(1, kib(1, 10)), [12; 9]);
    world.wind_down();
}

#[test]
fn a_commit_comes_after_the_captures_before_it() {
    let (mut world, lease) = resident();
    world.dma(lease, 7);
    let captures = [kib(1, 9), kib(2, 3)].map(|range| world.ask_capture(1, lease, range, 1000));
    world.dma(lease, 8);
    let commit = world.ask_commit(1, lease);
    world.answer_one(is_fence, true);
    assert!(!world.is_pending(is_verify), "its frames are being copied");
    let wait = world.core.waits().find(|wait| wait.request == commit).expect("it waits");
    assert_eq!((wait.what, &wait.on[..]), (WaitKind::Commit(lease), &[WaitOn::Disk][..]));
    world.run();
    for capture in captures {
        assert!(matches!(world.capture_reply(capture), Some(Ok(_))));
    }
    assert!(matches!(world.commit_reply(commit), Some(Ok(_))));
    assert_eq!(world.see(1, kib(0, 12)), [5, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 5]);
    world.wind_down();
}

#[test]
fn a_truncate_waits_for_a_capture_as_for_a_commit_and_for_no_client() {
    let (mut world, lease) = resident();
    world.dma(lease, 7);
    let capture = world.ask_capture(1, lease, kib(1, 9), 1000);
    let change = world.ask_change(1, truncate(6));
    assert_eq!(world.notices.len(), 1, "of the capture nobody is told, and nobody could answer");
    world.pass(GRACE_MS);
    world.answer_one(is_fence, true);
    assert!(!world.is_pending(is_perform));
    assert_eq!(world.core.next_deadline(), None, "nobody is waited for but the disk");
    let late = world.ask_commit(1, lease);
    let revoked = CommitError::Revoked { lease, by: who("breaker") };
    assert_eq!(world.commit_reply(late), Some(Err(revoked)));
    world.run();
    assert!(matches!(world.capture_reply(capture), Some(Ok(_))));
    assert_eq!(world.change_reply(change), Some(Ok(())));
    assert_eq!(world.revokes(), [(lease, RevokeReason::GraceOver)]);
    assert_eq!(world.see(1, kib(0, 12)), [5, 7, 7, 7, 7, 7], "first the capture, then the truncate");
    world.wind_down();
}

#[test]
fn frames_stay_with_their_lease_while_they_are_copied_however_it_ends() {
    type End = fn(&mut World, LeaseId);
    let ends: [End; 4] = [
        |world, lease| {
            world.ask_release(1, lease);
        },
        |world, _| world.step(Input::SessionEnded { session: SessionId(1) }),
        |world, lease| {
            world.ask_commit(1, lease);
        },
        |world, _| {
            world.ask_change(1, Change::Remove);
            world.pass(GRACE_MS);
        },
    ];
    for (end, proven) in ends.into_iter().flat_map(|end| [(end, true), (end, false)]) {
        let (mut world, lease) = resident();
        world.dma(lease, 7);
        let capture = world.ask_capture(1, lease, kib(4, 8), 1000);
        let leased = world.core.stats().frames.leased;
        end(&mut world, lease);
        world.answer_one(is_fence, proven);
        assert_eq!(world.core.stats().frames.leased, leased);
        assert_eq!(world.core.stats().frames.quarantined, 0);
        world.answer_one(is_capture, true);
        world.run();
        assert!(matches!(world.capture_reply(capture), Some(Ok(_))), "it was received in time");
        assert_eq!(world.core.stats().frames.free, 32);
        world.wind_down();
    }
}

#[test]
fn what_cannot_be_trusted_is_not_captured_however_far_the_capture_has_come() {
    let stages: [fn(&Output) -> bool; 3] = [|_| false, is_capture, is_merge];
    for (steps, end_first) in (0..3).flat_map(|steps| [(steps, false), (steps, true)]) {
        let (mut world, lease) = resident();
        world.dma(lease, 7);
        let captures = [kib(2, 3), kib(2, 4)].map(|range| world.ask_capture(1, lease, range, 1000));
        for stage in &stages[1..steps.max(1)] {
            world.answer_one(stage, true);
        }
        if end_first {
            world.step(Input::SessionEnded { session: SessionId(1) });
        }
        world.step(Input::Poisoned { session: SessionId(1) });
        world.run();
        for capture in captures {
            assert_eq!(world.capture_reply(capture), Some(Err(CommitError::Poisoned(lease))), "at {steps}");
        }
        assert_eq!(world.see(1, kib(0, 12)), [5; 12]);
        world.wind_down();
    }
}

#[test]
fn a_capture_that_fails_changes_nothing_and_the_lease_goes_on() {
    let (mut world, lease) = resident();
    world.dma(lease, 7);
    let capture = world.ask_capture(1, lease, kib(2, 3), 1000);
    world.answer_one(is_capture, true);
    world.answer_one(is_merge, false);
    assert_eq!(world.capture_reply(capture), Some(Err(CommitError::Fault(Fault::NoSpace))));
    assert_eq!(world.see(1, kib(0, 12)), [5; 12]);
    let capture = world.ask_capture(1, lease, kib(2, 3), 1000);
    world.run();
    assert!(matches!(world.capture_reply(capture), Some(Ok(_))));
    world.wind_down();
}

#[test]
fn a_capture_of_whole_blocks_takes_the_place_of_a_failed_write_and_of_others_has_it_tried_once() {
    let (mut world, lease) = resident();
    world.dma(lease, 7);
    let first = world.ask_capture(1, lease, kib(4, 8), 1000);
    world.answer_all(|output| !is_write(output));
    assert!(matches!(world.capture_reply(first), Some(Ok(_))));
    world.answer_one(is_write, false);
    world.dma(lease, 8);
    let part = world.ask_capture(1, lease, kib(5, 6), 1000);
    let whole = world.ask_capture(1, lease, kib(4, 8), 1000);
    world.answer_one(is_write, false);
    assert_eq!(world.capture_reply(part), Some(Err(CommitError::Fault(Fault::NoSpace))));
    world.answer_one(is_capture, true);
    assert!(matches!(world.capture_reply(whole), Some(Ok(_))));
    world.run();
    assert_eq!(world.see(1, kib(4, 8)), [8; 4]);
    world.wind_down();
}

#[test]
fn a_capture_waits_in_line_for_frames_until_its_deadline() {
    let (mut world, lease) = resident();
    let held = world.lease(2, 2, kib(0, 27 * 4), Overwrite);
    let ahead = world.ask_acquire(3, &[want(2, kib(200, 212), Overwrite)], Wait, 10_000);
    let late = world.ask_capture(1, lease, kib(1, 2), 100);
    let patient = world.ask_capture(1, lease, kib(1, 2), 10_000);
    let gone = world.ask_capture(1, lease, kib(1, 2), 10_000);
    assert!(world.pending.is_empty(), "there is a frame, but the acquire was first");
    let wait = world.core.waits().find(|wait| wait.request == patient).expect("it waits");
    assert_eq!((wait.what, &wait.on[..]), (WaitKind::Capture(lease, kib(1, 2)), &[WaitOn::Frames][..]));
    world.pass(100);
    assert_eq!(world.capture_reply(late), Some(Err(CommitError::ArenaFull(lease))));
    world.cancel(gone);
    world.cancel(ahead);
    world.run();
    assert!(matches!(world.capture_reply(patient), Some(Ok(_))));
    world.ask_release(2, held);
    world.run();
    world.wind_down();
}

#[test]
fn a_capture_that_waits_for_frames_holds_up_nobody_and_ends_with_its_lease() {
    let (mut world, lease) = resident();
    world.lease(2, 2, kib(0, 29 * 4), Overwrite);
    let broken = world.ask_capture(1, lease, kib(1, 2), 1_000_000);
    let change = world.ask_change(1, truncate(0));
    world.pass(GRACE_MS);
    world.run();
    assert_eq!(world.change_reply(change), Some(Ok(())));
    let revoked = CommitError::Revoked { lease, by: who("breaker") };
    assert_eq!(world.capture_reply(broken), Some(Err(revoked)), "and its holder is told who broke it");

    let (mut world, lease) = resident();
    world.lease(2, 2, kib(0, 29 * 4), Overwrite);
    let waiting = world.ask_capture(1, lease, kib(1, 2), 1_000_000);
    world.step(Input::SessionEnded { session: SessionId(1) });
    assert_eq!(world.capture_reply(waiting), Some(Err(CommitError::NoLease(NoSuchLease(lease)))));
    world.wind_down();
}

#[test]
fn only_what_is_leased_for_updating_is_captured() {
    let (mut world, lease) = resident();
    let read = world.lease(2, 2, kib(0, 4), Read);
    let overwrite = world.lease(2, 2, kib(4, 8), Overwrite);
    let over = world.lease(2, 2, kib(8, 12), Update);
    world.ask_release(2, over);
    world.run();
    let outside = |range| CommitError::OutOfLease { lease, range };
    let refused = [
        (2, read, kib(0, 4), CommitError::ReadOnly(read)),
        (2, overwrite, kib(4, 8), CommitError::NotPreloaded(overwrite)),
        (2, over, kib(8, 12), CommitError::NoLease(NoSuchLease(over))),
        (2, lease, kib(4, 8), CommitError::NoLease(NoSuchLease(lease))),
        (1, lease, kib(0, 4), outside(kib(0, 4))),
        (1, lease, kib(10, 12), outside(kib(10, 12))),
    ];
    for (session, lease, range, error) in refused {
        let capture = world.ask_capture(session, lease, range, 1000);
        assert_eq!(world.capture_reply(capture), Some(Err(error)));
    }
    assert!([lease, read, overwrite].iter().all(|&lease| is_live(&world, lease)), "and all go on");
    world.wind_down();
}

#[test]
fn a_capture_counts_as_a_lease_and_is_never_larger_than_what_its_lease_leaves_of_the_arena() {
    let limit = |limit, max| Some(Err(CommitError::Limit { limit, max }));
    let limits = [
        (Limits { leases_max: 2, ..Limits::default() }, "leases_max", 2),
        (Limits { leases_per_session_max: 2, ..Limits::default() }, "leases_per_session_max", 2),
    ];
    for (limits, name, max) in limits {
        let mut world = with_limits(limits);
        let lease = world.lease(1, 1, kib(0, 4), Update);
        let first = world.ask_capture(1, lease, kib(0, 4), 1000);
        let refused = world.ask_capture(1, lease, kib(0, 4), 1000);
        assert_eq!(world.capture_reply(refused), limit(name, max));
        world.run();
        assert!(matches!(world.capture_reply(first), Some(Ok(_))));
        world.wind_down();
    }
    let mut world = with_limits(Limits { requests_max: 1, ..Limits::default() });
    let lease = world.lease(1, 1, kib(0, 4 * 20), Update);
    let refused = world.ask_capture(1, lease, kib(0, 4 * 20), 1000);
    assert_eq!(world.capture_reply(refused), limit("frames", 32), "it would wait for itself");
    world.ask_sync(1);
    let refused = world.ask_capture(1, lease, kib(0, 4), 1000);
    assert_eq!(world.capture_reply(refused), limit("requests_max", 1));
    world.wind_down();
}

#[test]
fn where_peers_write_into_the_files_own_frames_there_is_nothing_to_capture() {
    for scheme in [NAIVE, BREAK_LAYOUTS] {
        let mut world = World::new(Config { scheme, ..config() });
        let lease = world.lease(1, 1, kib(0, 8), Update);
        let capture = world.ask_capture(1, lease, kib(0, 6), 1000);
        assert_eq!(
            world.capture_reply(capture).map(|reply| reply.map(|done| done.size)),
            Some(Ok(8 * SECTOR))
        );
        assert!(is_live(&world, lease));
    }
}

// Ends

#[test]
fn a_session_that_ends_takes_its_leases_with_it_in_every_state() {
    let every_stage: [fn(&Output) -> bool; 6] =
        [is_load, is_expose, is_fence, is_verify, is_merge, |output| matches!(output, Output::Zero { .. })];
    for stage in every_stage {
        let mut world = world();
        world.fill(1, kib(0, 8), 5);
        let dirty = world.lease(2, 2, kib(0, 96), Overwrite);
        world.ask_release(2, dirty);
        world.run();
        world.lease(1, 1, kib(0, 1), Update);
        let committing = world.lease(1, 1, kib(1, 2), Overwrite);
        let commit = world.ask_commit(1, committing);
        for access in [Read, Overwrite] {
            world.ask_acquire(1, &[want(1, kib(4, 8), access)], Wait, 1000);
        }
        world.ask_acquire(1, &[want(1, kib(100, 101), Overwrite)], Wait, 1000);
        world.answer_all(|output| !stage(output));
        world.step(Input::SessionEnded { session: SessionId(1) });
        world.run();
        assert!(matches!(world.commit_reply(commit), Some(Ok(_))), "it was sent in time");
        assert_eq!(world.core.stats().leases, 0);
        assert_eq!(world.core.stats().frames.free, 32);
        let other = world.lease(2, 1, kib(0, 8), Overwrite);
        assert!(world.core.lease(other).is_some());
        world.wind_down();
    }
}

#[test]
fn who_is_cancelled_holds_up_nobody_and_hears_nothing() {
    let mut world = world();
    let held = world.lease(1, 1, kib(0, 4), Overwrite);
    let gone = world.ask_acquire(2, &[want(1, kib(0, 8), Overwrite)], Wait, 100_000);
    let behind = world.ask_acquire(3, &[want(1, kib(4, 8), Overwrite)], Wait, 100_000);
    assert!(!world.replies.contains_key(&behind));
    world.cancel(gone);
    world.run();
    world.granted(behind);
    let preparing = world.ask_acquire(2, &[want(2, kib(0, 8), Update)], Wait, 100_000);
    let reading = world.ask_read(2, kib(0, 8), 1000);
    world.cancel(preparing);
    world.cancel(reading);
    let committing = world.ask_commit(1, held);
    world.cancel(committing);
    world.run();
    assert_eq!(world.core.file_size(FileId(1)), Some(4 * SECTOR), "a commit takes effect even so");
    world.wind_down();
}

#[test]
fn a_full_arena_makes_acquires_and_reads_wait_in_line_until_their_deadlines() {
    let mut world = world();
    world.fill(2, kib(0, 4), 5);
    let held = world.lease(1, 1, kib(0, 124), Overwrite);
    let large = world.ask_acquire(2, &[want(2, kib(8, 16), Overwrite)], Wait, 10_000);
    let small = world.ask_read(2, kib(0, 4), 100);
    assert!(world.pending.is_empty(), "the small one does not overtake the large one");
    world.pass(100);
    assert_eq!(world.read_reply(small), Some(Err(ReadError::TimedOut("free frames"))));
    world.ask_release(1, held);
    world.run();
    world.granted(large);
    let hopeless = world.ask_acquire(2, &[want(2, kib(100, 300), Overwrite)], Wait, 10_000);
    assert_eq!(world.acquire_error(hopeless), Some(AcquireError::ArenaTooSmall { wanted: 50, frames: 32 }));
    let held = world.lease(1, 1, kib(0, 120), Overwrite);
    let late = world.ask_acquire(2, &[want(2, kib(20, 24), Overwrite)], Wait, 100);
    world.pass(100);
    assert_eq!(world.acquire_error(late), Some(AcquireError::ArenaFull));
    world.ask_release(1, held);
    world.wind_down();
}

#[test]
fn every_limit_is_an_ordinary_answer() {
    let few = Limits { leases_max: 2, ..Limits::default() };
    let limit = |world: &World, request| match world.acquire_error(request) {
        Some(AcquireError::Limit { limit, .. }) => limit,
        other => panic!("{other:?}"),
    };
    let wants = |from: u64, count: u64| -> Vec<_> {
        (from..from + count).map(|at| want(1, kib(at, at + 1), Overwrite)).collect()
    };

    let mut full = with_limits(few);
    full.ask_acquire(1, &wants(0, 2), Wait, 1000);
    let refused = full.ask_acquire(2, &wants(5, 1), Wait, 1000);
    assert_eq!(limit(&full, refused), "leases_max");
    full.wind_down();

    let mut full = with_limits(Limits { leases_per_session_max: 2, ..Limits::default() });
    full.ask_acquire(1, &wants(0, 2), Wait, 1000);
    let waiting = full.ask_acquire(2, &wants(0, 2), Wait, 1000);
    let refused = full.ask_acquire(2, &wants(5, 1), Wait, 1000);
    assert_eq!(limit(&full, refused), "leases_per_session_max", "what it waits for counts");
    full.cancel(waiting);
    let now = full.ask_acquire(2, &wants(5, 1), Wait, 1000);
    full.run();
    full.granted(now);
    full.wind_down();

    let mut full = with_limits(Limits { acquire_ranges_max: 2, lease_bytes_max: 2048, ..Limits::default() });
    let refused = full.ask_acquire(1, &wants(0, 3), Wait, 1000);
    assert_eq!(limit(&full, refused), "acquire_ranges_max");
    let refused = full.ask_acquire(1, &[want(1, kib(0, 3), Overwrite)], Wait, 1000);
    assert_eq!(limit(&full, refused), "lease_bytes_max");
    full.open(3, 1 << 20);
    let refused = full.ask_read(3, kib(0, 3), 1000);
    assert_eq!(full.read_reply(refused), Some(Err(ReadError::Limit { limit: "lease_bytes_max", max: 2048 })));
    full.wind_down();

    let mut full = with_limits(Limits { requests_max: 1, ..Limits::default() });
    let first = full.ask_sync(1);
    let (limit, max) = ("requests_max", 1);
    let refused = full.ask_sync(1);
    assert_eq!(full.sync_reply(refused), Some(Err(SyncError::Limit { limit, max })));
    let refused = full.ask_change(1, truncate(0));
    assert_eq!(full.change_reply(refused), Some(Err(ChangeError::Limit { limit, max })));
    let refused = full.ask_read(1, kib(0, 1), 1000);
    assert_eq!(full.read_reply(refused), Some(Err(ReadError::Limit { limit, max })));
    let refused = full.ask_acquire(1, &wants(0, 1), Wait, 1000);
    assert_eq!(full.acquire_error(refused), Some(AcquireError::Limit { limit, max }));
    full.run();
    assert_eq!(full.sync_reply(first), Some(Ok(())));
    full.wind_down();

    let mut full = with_limits(Limits { sessions_max: 3, files_max: 2, ..Limits::default() });
    full.step(Input::SessionOpened { session: SessionId(4), identity: who("one too many") });
    assert_eq!(full.said, [Output::Disconnect { session: SessionId(4) }]);
    full.step(Input::FileOpened { file: FileId(3), size: 0 });
    let refused = full.ask_sync(3);
    assert_eq!(full.sync_reply(refused), Some(Err(SyncError::NoFile)));
    full.wind_down();
}

/// Each of them waits for the one before it to be durable, and a breaker for all of them: a holder could have had thousands in
/// line when its grace was over.
#[test]
fn a_holder_has_no_more_captures_in_front_of_a_breaker_than_the_limit() {
    let mut world = with_limits(Limits { captures_per_lease_max: 2, ..Limits::default() });
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Update);
    let change = world.ask_change(1, truncate(0));
    let captures = [(); 3].map(|()| world.ask_capture(1, lease, kib(0, 1), 1000));
    let refused = CommitError::Limit { limit: "captures_per_lease_max", max: 2 };
    assert_eq!(world.capture_reply(captures[2]), Some(Err(refused)));
    world.pass(GRACE_MS);
    world.run();
    assert!(captures[..2].iter().all(|capture| matches!(world.capture_reply(*capture), Some(Ok(_)))));
    assert_eq!(world.change_reply(change), Some(Ok(())));
    let lease = world.lease(1, 1, kib(0, 4), Update);
    let again = world.ask_capture(1, lease, kib(0, 1), 1000);
    world.run();
    assert!(matches!(world.capture_reply(again), Some(Ok(_))));
    world.wind_down();
}

#[test]
fn breakers_beyond_the_limit_wait_like_the_others() {
    let mut world = with_limits(Limits { breaks_per_lease_max: 1, ..Limits::default() });
    world.fill(1, kib(0, 4), 5);
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    let changes = [truncate(0), Change::Remove].map(|change| world.ask_change(1, change));
    assert_eq!(breaks_told(&world, lease), 1);
    world.pass(GRACE_MS);
    world.run();
    for change in changes {
        assert_eq!(world.change_reply(change), Some(Ok(())));
    }
    world.wind_down();
}

#[test]
fn keys_of_dead_leases_are_forgotten_when_there_are_too_many() {
    let mut world = with_limits(Limits { remembered_per_session_max: 1, ..Limits::default() });
    let first = world.lease(1, 1, kib(0, 1), Overwrite);
    let second = world.lease(1, 1, kib(1, 2), Overwrite);
    world.ask_release(1, first);
    world.run();
    let forget = Output::Forget { lease: first, session: SessionId(1) };
    assert!(!world.said.contains(&forget), "late bytes of it may be on their way");
    world.ask_release(1, second);
    world.run();
    assert!(world.said.contains(&forget));
    world.wind_down();
}

#[test]
fn a_file_is_closed_only_when_nothing_is_left_of_it() {
    let mut world = world();
    let lease = world.lease(1, 1, kib(0, 4), Overwrite);
    world.step(Input::FileClosed { file: FileId(1) });
    assert_eq!(world.core.file_size(FileId(1)), Some(0));
    world.ask_commit(1, lease);
    world.answer_all(|output| !is_write(output));
    world.step(Input::FileClosed { file: FileId(1) });
    assert_eq!(world.core.file_size(FileId(1)), Some(4 * SECTOR));
    world.run();
    world.step(Input::FileClosed { file: FileId(1) });
    assert_eq!(world.core.file_size(FileId(1)), None);
}

#[test]
fn a_hundred_thousand_leases_in_one_file_do_not_slow_the_next() {
    let frames = 100_010;
    let mut core = leasehold_core::Core::new(Config {
        frames,
        limits: Limits { leases_per_session_max: 200_000, ..Limits::default() },
        ..Config::default()
    });
    let (mut out, now) = (Vec::new(), leasehold_core::ids::Tick(0));
    let file = FileId(1);
    core.step(now, Input::FileOpened { file, size: 0 }, &mut out);
    let started = std::time::Instant::now();
    for at in 0..100_000 {
        out.clear();
        let session = SessionId::LOCAL;
        let request = leasehold_core::ids::RequestId(at);
        let wants = vec![want(1, kib(4 * at, 4 * at + 4), Overwrite)];
        let deadline = now.after_ms(1);
        core.step(now, Input::Acquire { request, session, wants, on_conflict: Refuse, deadline }, &mut out);
        let [Output::Expose { lease, .. }] = out[..] else { panic!("{out:?}") };
        core.step(now, Input::Exposed { lease, result: Ok(()) }, &mut out);
    }
    let leases: Vec<LeaseId> = core.leases().map(|view| view.id).collect();
    for (at, lease) in leases.into_iter().enumerate() {
        let request = leasehold_core::ids::RequestId(1_000_000 + at as u64);
        core.step(now, Input::Release { request, session: SessionId::LOCAL, lease }, &mut out);
        core.step(now, Input::Fenced { lease }, &mut out);
        out.clear();
    }
    // A quadratic step would take minutes.
    assert!(started.elapsed().as_secs() < 20, "200,000 steps took {:?}", started.elapsed());
    core.check().expect("sound");
    assert_eq!(core.stats().frames.free, frames);
}

#[test]
fn a_crowd_that_wants_the_same_byte_is_served_one_by_one_without_looking_at_all_of_it_each_time() {
    let crowd = 30_000;
    let mut core = leasehold_core::Core::new(Config { frames: 4, ..Config::default() });
    let (mut out, now) = (Vec::new(), leasehold_core::ids::Tick(0));
    let (file, session) = (FileId(1), SessionId::LOCAL);
    core.step(now, Input::FileOpened { file, size: 0 }, &mut out);
    let started = std::time::Instant::now();
    for at in 0..crowd {
        let request = leasehold_core::ids::RequestId(at);
        let wants = vec![want(1, kib(0, 1), Overwrite)];
        let deadline = now.after_ms(1000);
        core.step(now, Input::Acquire { request, session, wants, on_conflict: Wait, deadline }, &mut out);
    }
    for at in 0..crowd {
        let [Output::Expose { lease, .. }] = out[..] else { panic!("{at}: {out:?}") };
        core.step(now, Input::Exposed { lease, result: Ok(()) }, &mut out);
        let request = leasehold_core::ids::RequestId(1_000_000 + at);
        core.step(now, Input::Release { request, session, lease }, &mut out);
        out.clear();
        core.step(now, Input::Fenced { lease }, &mut out);
        out.retain(|output| matches!(output, Output::Expose { .. }));
    }
    assert!(started.elapsed().as_secs() < 20, "a crowd of {crowd} took {:?}", started.elapsed());
    assert_eq!(core.stats().leases, 0);
}

#[test]
fn a_tenant_that_has_its_share_is_refused_at_once_and_nobody_else_is() {
    let mut world = world();
    for (session, tenant) in [(11, 7), (12, 7), (13, 8)] {
        let share = Share { leases_max: 3, frames_max: 8 };
        world.step(Input::SessionOpened { session: SessionId(session), identity: who("tenant") });
        world.step(Input::SessionShares { session: SessionId(session), tenant: TenantId(tenant), share });
    }
    let limit = |world: &World, request| match world.acquire_error(request) {
        Some(AcquireError::Limit { limit, max }) => (limit, max),
        other => panic!("{other:?}"),
    };
    let (leases, frames) =
        (("the tenant's leases_max", 3), ("the tenant's arena_max, in frames of 4 KiB,", 8));

    let first = world.lease(11, 1, kib(0, 16), Update);
    let refused = world.ask_acquire(12, &[want(1, kib(100, 120), Overwrite)], Wait, 1000);
    assert_eq!(limit(&world, refused), frames, "both sessions are of one tenant");
    let waiting = world.ask_acquire(12, &[want(1, kib(0, 4), Overwrite)], Wait, 1000);
    let refused = world.ask_acquire(11, &[want(1, kib(100, 116), Overwrite)], Wait, 1000);
    assert_eq!(limit(&world, refused), frames, "what it waits for counts");
    let capture = world.ask_capture(11, first, kib(0, 4), 1000);
    let refused = world.ask_capture(11, first, kib(4, 8), 1000);
    let (name, max) = leases;
    assert_eq!(world.capture_reply(refused), Some(Err(CommitError::Limit { limit: name, max })));
    let refused = world.ask_acquire(11, &[want(1, kib(100, 101), Overwrite)], Wait, 1000);
    assert_eq!(limit(&world, refused), leases);
    // Another tenant, and one of the server's clients that is nobody's, have what they want.
    world.lease(13, 2, kib(0, 32), Overwrite);
    world.lease(3, 2, kib(32, 64), Overwrite);

    // What is given up, committed, or ends with its session is there again.
    world.cancel(waiting);
    world.run();
    assert!(matches!(world.capture_reply(capture), Some(Ok(_))));
    world.ask_commit(11, first);
    world.run();
    let all = world.lease(12, 1, kib(100, 132), Overwrite);
    world.step(Input::SessionEnded { session: SessionId(12) });
    let refused = world.ask_acquire(11, &[want(1, kib(0, 4), Overwrite)], Wait, 1000);
    assert_eq!(limit(&world, refused), frames, "until {all} is fenced");
    world.run();
    world.lease(11, 1, kib(0, 32), Overwrite);
    for session in [11, 13] {
        world.step(Input::SessionEnded { session: SessionId(session) });
    }
    world.run();
    world.wind_down();
}
