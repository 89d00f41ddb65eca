//! Thousands of inputs in any order, against the model world, which judges every output.

mod world;

use leasehold_core::ids::{FileId, LeaseId, RequestId, SessionId, WriteId};
use leasehold_core::input::{Access, Change, Fault, Input, OnConflict};
use leasehold_core::output::Reply;
use leasehold_core::range::ByteRange;
use leasehold_core::{Config, Limits, OnExpiry};
use proptest::prelude::*;
use world::{World, kib, want};

/// One throw of the dice: what to do, and three numbers to do it with.
type Throw = (u8, u8, u8, u8);

const FILE_KIB: u64 = 20;

fn range((_, _, b, c): Throw) -> ByteRange {
    let start = u64::from(b) % FILE_KIB;
    kib(start, start + 1 + u64::from(c) % 9)
}

/// Whole blocks.
fn blocks((_, _, b, c): Throw) -> ByteRange {
    let first = u64::from(b) % (FILE_KIB / 4);
    kib(4 * first, 4 * (first + 1 + u64::from(c) % 3))
}

/// Mostly a part of what is leased.
fn part(world: &World, lease: LeaseId, (_, _, b, c): Throw) -> ByteRange {
    let Some(view) = world.core.lease(lease).filter(|_| c % 16 != 0) else { return kib(0, 1) };
    let (start, sectors) = (view.range.start() / world::SECTOR, view.range.len() / world::SECTOR);
    let from = u64::from(b) / 4 % sectors;
    let length = 1 + u64::from(c) / 2 % (sectors - from);
    kib(start + from, start + from + length)
}

fn access(a: u8) -> Access {
    [Access::Read, Access::Overwrite, Access::Update][usize::from(a) % 3]
}

/// Every lease that some session was ever told of.
fn known_leases(world: &World) -> Vec<(SessionId, LeaseId)> {
    let live = world.core.leases().map(|view| (view.session, view.id));
    let over = world.replies.values().filter_map(|reply| match reply {
        Reply::Acquire(Ok(leases)) => leases.first().map(|&lease| (SessionId(1), lease)),
        _ => None,
    });
    live.chain(over).collect()
}

fn throw(world: &mut World, dice: Throw) {
    let (what, a, b, c) = dice;
    let session = world.sessions[usize::from(a) % 4];
    let file = 1 + u64::from(b) % 2;
    match what % 32 {
        0..=3 => {
            let mut wants = vec![want(file, range(dice), access(c))];
            if a % 3 == 0 {
                wants.push(want(3 - file, range((0, 0, c, b)), access(b)));
            }
            let on_conflict = [OnConflict::Refuse, OnConflict::Wait, OnConflict::Break][usize::from(c) % 3];
            world.ask_acquire(session, &wants, on_conflict, u64::from(b) * 20);
        }
        4..=7 => {
            let leases = known_leases(world);
            if !leases.is_empty() {
                let (session, lease) = leases[usize::from(b) % leases.len()];
                match what % 32 {
                    7 if c % 2 == 0 => world.ask_release(session.0, lease),
                    4 | 5 => world.ask_commit(session.0, lease),
                    _ => world.ask_capture(session.0, lease, part(world, lease, dice), u64::from(a) * 4),
                };
            }
        }
        8 | 9 => drop(world.ask_read(file, range(dice), u64::from(a) * 10)),
        10 => {
            let size = u64::from(c) % FILE_KIB * world::SECTOR;
            let change = match a % 16 {
                0..=5 => Change::Truncate { size },
                6 | 7 => Change::Punch { range: range(dice) },
                8 | 9 => Change::Zero { range: range(dice) },
                10 | 11 if c % 8 == 0 => Change::Collapse { range: range(dice) },
                10 | 11 => {
                    let first = u64::from(b) % 4;
                    Change::Collapse { range: kib(4 * first, 4 * (first + 1 + u64::from(c) % 2)) }
                }
                12 | 13 => Change::Clone,
                14 => Change::Adopt { range: range(dice) },
                _ if b == 0 => Change::Remove,
                _ => Change::Adopt { range: blocks(dice) },
            };
            world.ask_change(file, change);
        }
        11 => drop(world.ask_sync(file)),
        12 => {
            let asked: Vec<RequestId> = world.asked.iter().copied().collect();
            if !asked.is_empty() {
                let recent = asked.len().saturating_sub(1 + usize::from(a) % 8);
                world.cancel(asked[recent]);
            }
        }
        13..=23 => {
            if !world.pending.is_empty() {
                let at = usize::from(a) % world.pending.len();
                world.answer(at, b % 8 != 0);
            }
        }
        24 | 25 => {
            let keys: Vec<LeaseId> = world.core.leases().map(|view| view.id).collect();
            if !keys.is_empty() {
                world.dma(keys[usize::from(a) % keys.len()], 1 + c % 200);
            }
        }
        26 => {
            if let Some(&request) = world.lent.first() {
                world.finish_read(request);
            }
        }
        27 => world.pass(u64::from(a) * 4),
        28 if b % 4 == 0 => world.step(Input::SessionEnded { session: SessionId(session) }),
        28 => world.replace_session(usize::from(a) % 4),
        29 if b % 2 == 0 => world.step(Input::Poisoned { session: SessionId(session) }),
        29 | 30 => nonsense(world, dice),
        _ => world.dma(LeaseId(u64::from(a) * 4), 255),
    }
}

/// Answers that nobody waits for, and ids that nobody knows.
fn nonsense(world: &mut World, (_, a, b, c): Throw) {
    let id = 1_000_000 + u64::from(b);
    let (lease, write, request) = (LeaseId(id), WriteId(id), RequestId(id));
    let result = if c % 2 == 0 { Ok(()) } else { Err(Fault::Io) };
    let before = world.core.clone();
    world.step(match a % 13 {
        0 => Input::LeaseLoaded { lease, result },
        1 => Input::ReadLoaded { request, result },
        2 => Input::Exposed { lease, result },
        3 => Input::Fenced { lease },
        4 => Input::FenceUnproven { lease },
        5 => Input::Verified { lease, agrees: true },
        6 => Input::Merged { lease, result },
        7 => Input::Recorded { write, result },
        8 => Input::Written { write, result },
        9 => Input::Performed { request, result: result.map(|()| Some(7)) },
        10 => Input::Flushed { request, result },
        11 => Input::Captured { lease },
        _ => Input::FileOpened { file: FileId(1), size: 77 },
    });
    assert!(world.said.is_empty() || before.next_deadline() <= Some(world.now), "nonsense changes nothing");
}

fn config(expiry: bool, frames: u32) -> Config {
    Config {
        frames,
        grace_ms: 500,
        retry_ms: 100,
        on_expiry: if expiry { OnExpiry::FenceLease } else { OnExpiry::EndSession },
        limits: Limits {
            breaks_per_lease_max: 2,
            remembered_per_session_max: 3,
            leases_per_session_max: 12,
            requests_max: 40,
            ..Limits::default()
        },
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_every_request_is_answered_once_and_every_frame_comes_back(
        expiry in any::<bool>(),
        frames in 6_u32..24,
        throws in prop::collection::vec(any::<Throw>(), 1..500),
    ) {
        let mut world = World::new(config(expiry, frames));
        for dice in throws {
            throw(&mut world, dice);
        }
        world.wind_down();
    }

    /// A disk and a fabric that nearly always work, so that much is in flight at once and much gets through.
    #[test]
    fn commits_reads_and_changes_agree_with_the_truth_in_a_kind_world(
        throws in prop::collection::vec(any::<Throw>(), 1..600),
    ) {
        let mut world = World::new(config(true, 64));
        for (what, a, b, c) in throws {
            let well = if matches!(what % 32, 13..=23) { b | 1 } else { b };
            if !matches!(what % 32, 28 | 29) {
                throw(&mut world, (what, a, well, c));
            }
        }
        world.wind_down();
    }
}
