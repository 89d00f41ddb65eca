//! The model against real kernels: what was measured in November 2026, on Linux 6.1.192 and 6.12.117 with soft-RoCE, must come
//! out of the rows that these kernels implement (`naive` up to 6.4, `registration_refused` since 6.5, `dax_longterm_fails`).
//!
//! Each test quotes what was measured, and shows a world in which it comes out otherwise: another filesystem, another
//! backing, or another scheme. A block is two halves here, and stands for all 256 pages that were measured; a remote
//! write lands in two pieces.
//!
//! Not in the model: FICLONE *onto* a file (a clone has the file as its source here); an O_DIRECT write by another
//! descriptor (to the key it is what a punch is: both take the page from the file); that btrfs has no
//! COLLAPSE_RANGE; that short-term pins (O_DIRECT reads into mappings) end by themselves: they are keys that are released
//! soon.

use leasehold_check::scenario::{Act, Slot};
use leasehold_check::world::{Block, Experiment, FIRST, Filesystem, MAIN, OTHER, PART_BYTES, SECOND};
use leasehold_core::ids::SessionId;
use leasehold_core::input::{Access, Change};
use leasehold_core::promise::Promise;
use leasehold_core::range::ByteRange;
use leasehold_core::scheme::{Backing, DirtyWhen, Host, Scheme};
use leasehold_core::schemes::{DAX_LONGTERM_FAILS, LEASEHOLD, NAIVE, NOTIFIER, REGISTRATION_REFUSED};
use std::ops::Range;

use Act::{Acquire, Commit, LocalWrite, Reclaim, Release, Sync};
use Filesystem::{CopyOnWrite, InPlace};

const PAGE_CACHE: Host = Host { backing: Backing::PageCache, device_faults: false };
const FAULTING: Host = Host { backing: Backing::PageCache, device_faults: true };
const DAX: Host = Host { backing: Backing::Dax, device_faults: false };

/// What the file holds before the experiment.
const OLD: Block = [1; 2];
const ZEROS: Block = [0; 2];
/// The host's own write.
const LOCAL: Block = [2; 2];
/// The first remote write of the first slot, and its second one.
const WRITTEN: Block = [10; 2];
const WRITTEN_AGAIN: Block = [11; 2];
/// The first remote write of the second slot.
const BY_SECOND: Block = [14; 2];

fn slot(session: SessionId, file: usize, parts: Range<usize>, access: Access) -> Slot {
    Slot { session, file, writes: parts.clone(), parts, access, rounds: 2 }
}

fn writer(parts: Range<usize>) -> Slot {
    slot(FIRST, MAIN, parts, Access::Overwrite)
}

fn reader() -> Slot {
    slot(FIRST, MAIN, 0..2, Access::Read)
}

fn range(parts: Range<u64>) -> ByteRange {
    ByteRange::new(parts.start * PART_BYTES, parts.end * PART_BYTES).expect("not empty")
}

fn punch() -> Act {
    Act::Change(Change::Punch { range: range(0..2) })
}

fn zero() -> Act {
    Act::Change(Change::Zero { range: range(0..2) })
}

fn truncate(parts: u64) -> Act {
    Act::Change(Change::Truncate { size: parts * PART_BYTES })
}

fn remove() -> Act {
    Act::Change(Change::Remove)
}

/// One block, and whoever writes it; a second slot is there to register it once more.
fn one_block(scheme: Scheme, host: Host, filesystem: Filesystem) -> Experiment {
    Experiment::on(scheme, host, filesystem, 1, vec![writer(0..2), writer(0..2)])
}

/// Registered, and clean since an fsync.
fn registered_and_clean(scheme: Scheme, host: Host, filesystem: Filesystem) -> Experiment {
    let mut experiment = one_block(scheme, host, filesystem);
    assert!(experiment.does(Acquire(0)), "{} registers", scheme.name);
    assert!(experiment.does(Sync));
    experiment
}

/// "register, fsync, RDMA write, fsync, read with O_DIRECT | 256/256 stale | 256/256 | 256/256"
#[test]
fn an_rdma_write_after_an_fsync_is_not_on_disk_after_the_next_fsync() {
    for filesystem in [InPlace, CopyOnWrite] {
        let mut experiment = registered_and_clean(NAIVE, PAGE_CACHE, filesystem);
        assert!(experiment.writes(0));
        assert!(experiment.does(Sync), "every fsync returned 0");
        assert_eq!(experiment.on_disk(0), Some(OLD));
        assert_eq!(experiment.found(MAIN, 0), WRITTEN, "the page cache has it");

        assert!(experiment.does(Release(0)) && experiment.does(Sync));
        assert_eq!(experiment.on_disk(0), Some(WRITTEN), "after deregistration it is not stale");
    }
    let mut experiment = registered_and_clean(NAIVE, DAX, InPlace);
    assert!(experiment.writes(0) && experiment.does(Sync));
    assert_eq!(experiment.on_disk(0), Some(WRITTEN), "on DAX the page is the storage");
    let mut experiment = registered_and_clean(NOTIFIER, FAULTING, InPlace);
    assert!(
        !experiment.writes(0),
        "an fsync took the mapping from a device that faults: it must fault before it writes"
    );
}

/// "the same, then crash and reboot | 256/256 lost | 256/256 lost | 256/256 lost"
#[test]
fn an_rdma_write_after_an_fsync_is_lost_in_a_crash() {
    for (scheme, host, left) in
        [(NAIVE, PAGE_CACHE, OLD), (NAIVE, DAX, WRITTEN), (LEASEHOLD, PAGE_CACHE, WRITTEN)]
    {
        for filesystem in [InPlace, CopyOnWrite] {
            let mut experiment = registered_and_clean(scheme, host, filesystem);
            assert!(experiment.writes(0) && experiment.does(Commit(0)) && experiment.does(Sync));
            experiment.loses_power();
            assert_eq!(experiment.on_disk(0), Some(left), "{}", scheme.name);
            assert_eq!(experiment.breaks(Promise::P2), left == OLD, "{}", scheme.name);
        }
    }
}

/// "nothing; msync(MS_SYNC); sync_file_range | no, 0/256"
#[test]
fn writeback_alone_does_not_find_what_dma_has_written() {
    let mut experiment = registered_and_clean(NAIVE, PAGE_CACHE, InPlace);
    assert!(experiment.writes(0));
    experiment.writes_back();
    assert_eq!(experiment.on_disk(0), Some(OLD));
    // The registration itself had made it dirty, once.
    let mut experiment = one_block(NAIVE, PAGE_CACHE, InPlace);
    assert!(experiment.does(Acquire(0)) && experiment.writes(0));
    experiment.writes_back();
    assert_eq!(experiment.on_disk(0), Some(WRITTEN));
}

/// "MADV_POPULATE_WRITE; [...] | yes, 256/256": the holder says that its page is dirty, as `committed` in the dirty tracking of a
/// scheme does.
#[test]
fn a_page_that_its_holder_marks_dirty_after_the_write_is_durable_by_fsync() {
    let marks = DirtyWhen { committed: true, ..NAIVE.dirty };
    for (scheme, left) in [(Scheme { dirty: marks, ..NAIVE }, WRITTEN), (NAIVE, OLD)] {
        let mut experiment = registered_and_clean(scheme, PAGE_CACHE, InPlace);
        assert!(experiment.writes(0) && experiment.does(Commit(0)) && experiment.does(Sync));
        assert_eq!(experiment.on_disk(0), Some(left));
    }
}

/// "pwrite onto itself [...] | yes, 256/256": here the host writes one half of the block.
#[test]
fn a_page_that_the_host_writes_to_after_the_dma_is_durable_by_fsync() {
    let mut experiment = registered_and_clean(NAIVE, PAGE_CACHE, InPlace);
    assert!(experiment.writes(0) && experiment.does(LocalWrite(0..1)) && experiment.does(Sync));
    assert_eq!(experiment.on_disk(0), Some([LOCAL[0], WRITTEN[1]]));
    // It marks what is there, not what comes.
    assert!(experiment.writes(0) && experiment.does(Sync));
    assert_eq!(experiment.on_disk(0), Some([LOCAL[0], WRITTEN[1]]));
}

/// "deregister and register | yes, 256/256"
#[test]
fn to_deregister_and_register_again_makes_durable() {
    let mut experiment = registered_and_clean(NAIVE, PAGE_CACHE, InPlace);
    assert!(experiment.writes(0) && experiment.does(Release(0)) && experiment.does(Acquire(1)));
    assert!(experiment.does(Sync));
    assert_eq!(experiment.on_disk(0), Some(WRITTEN));
    assert!(experiment.writes(1) && experiment.does(Sync));
    assert_eq!(experiment.on_disk(0), Some(WRITTEN), "the second registration goes the way of the first");
}

/// "writer against an fsync loop | 256 stale until deregistered | 256 stale | 171 stale + 85 EIO"
#[test]
fn a_writer_against_an_fsync_loop_leaves_stale_blocks_and_bad_checksums_where_there_are_any() {
    for filesystem in [InPlace, CopyOnWrite] {
        let mut experiment = one_block(NAIVE, PAGE_CACHE, filesystem);
        assert!(experiment.does(Acquire(0)));
        for _ in 0..2 {
            assert!(experiment.writes(0) && experiment.does(Sync));
        }
        assert_eq!(
            experiment.on_disk(0),
            Some(WRITTEN),
            "the first fsync found the page dirty, the second did not"
        );
        assert_eq!(experiment.found(MAIN, 0), WRITTEN_AGAIN);
        assert!(experiment.does(Release(0)) && experiment.does(Sync));
        assert_eq!(experiment.on_disk(0), Some(WRITTEN_AGAIN));

        // The writer is in the midst of a block when an fsync writes it.
        let mut experiment = one_block(NAIVE, PAGE_CACHE, filesystem);
        assert!(experiment.does(Acquire(0)));
        experiment.begins(Sync);
        assert!(experiment.writes(0));
        experiment.settles();
        let silent = filesystem == InPlace;
        assert_eq!(experiment.on_disk(0), silent.then_some(WRITTEN), "EIO on btrfs");
        assert!(experiment.breaks(Promise::P1));
    }
    let mut experiment = one_block(LEASEHOLD, PAGE_CACHE, CopyOnWrite);
    assert!(experiment.does(Acquire(0)) && experiment.writes(0));
    experiment.begins(Commit(0));
    experiment.begins(Sync);
    experiment.settles();
    assert!(!experiment.writes(0), "its commit has fenced the key");
    assert_eq!(experiment.on_disk(0), Some(WRITTEN));
    assert!(!experiment.breaks(Promise::P1));
}

/// "writeback racing RDMA (torn pages on disk) | 39 of 15,360 | 41 of 19,200 | 6 torn + 1,925 of 14,592 EIO"
#[test]
fn writeback_that_races_rdma_leaves_torn_blocks_and_on_btrfs_eio() {
    let torn = [WRITTEN[0], OLD[1]];
    for (filesystem, raced) in [(InPlace, Some(torn)), (CopyOnWrite, None)] {
        // Between the halves: torn, and the checksum is of the torn block.
        let mut experiment = one_block(NAIVE, PAGE_CACHE, filesystem);
        assert!(experiment.does(Acquire(0)) && experiment.writes_half(0));
        experiment.writes_back();
        assert!(experiment.writes_half(0));
        assert_eq!(experiment.on_disk(0), Some(torn));
        // While the disk is at it: the checksum is of what was there before.
        let mut experiment = one_block(NAIVE, PAGE_CACHE, filesystem);
        assert!(experiment.does(Acquire(0)));
        experiment.begins(Sync);
        assert!(experiment.writes_half(0));
        experiment.settles();
        assert_eq!(experiment.on_disk(0), raced);
    }
    let mut experiment = one_block(LEASEHOLD, PAGE_CACHE, InPlace);
    assert!(experiment.does(Acquire(0)) && experiment.writes_half(0));
    experiment.writes_back();
    assert_eq!(experiment.on_disk(0), Some(OLD), "what is not committed is not in the file");
}

/// "ftruncate 0 and extend; PUNCH_HOLE; ZERO_RANGE | all lost, even after deregistration | same | same"
#[test]
fn after_truncate_punch_or_zero_all_further_rdma_is_lost_even_after_deregistration() {
    for filesystem in [InPlace, CopyOnWrite] {
        for acts in [vec![truncate(0), truncate(2)], vec![punch()], vec![zero()]] {
            let mut experiment = registered_and_clean(NAIVE, PAGE_CACHE, filesystem);
            assert!(experiment.writes(0));
            for act in acts.clone() {
                assert!(experiment.does(act));
            }
            assert!(experiment.writes(0), "its completions say success");
            assert_eq!(experiment.found_by_peer(0, 0), Some(WRITTEN_AGAIN), "an orphan has it");
            assert!(experiment.does(Release(0)) && experiment.does(Sync));
            assert_eq!((experiment.found(MAIN, 0), experiment.on_disk(0)), (ZEROS, Some(ZEROS)));
            assert!(experiment.breaks(Promise::P3));

            // A break comes first: the peer is told, and no key reaches anything when the change returns.
            let mut experiment = one_block(LEASEHOLD, PAGE_CACHE, filesystem);
            assert!(experiment.does(Acquire(0)) && experiment.writes(0));
            assert!(!experiment.does(acts[0].clone()), "it waits");
            experiment.grace_ends();
            assert!(!experiment.writes(0), "the key is fenced");
            assert!(!experiment.breaks(Promise::P3));
        }
    }
}

/// "COLLAPSE_RANGE of half | half zero, half at the wrong page"
#[test]
fn after_a_collapse_of_half_one_half_is_zero_and_the_other_holds_what_was_behind_it() {
    let mut experiment = Experiment::on(NAIVE, PAGE_CACHE, InPlace, 2, vec![writer(0..2), writer(2..4)]);
    assert!(experiment.does(Acquire(0)) && experiment.does(Acquire(1)));
    assert!(experiment.writes(0) && experiment.writes(1) && experiment.does(Sync));
    assert_eq!([experiment.on_disk(0), experiment.on_disk(1)], [Some(WRITTEN), Some(BY_SECOND)]);
    assert!(experiment.does(Act::Change(Change::Collapse { range: range(0..2) })));
    assert!(experiment.writes(0) && experiment.writes(1), "both keys are as live as before");
    for slot in 0..2 {
        assert!(experiment.does(Release(slot)) && experiment.does(Sync));
    }
    assert_eq!([experiment.found(MAIN, 0), experiment.found(MAIN, 1)], [BY_SECOND, ZEROS]);
}

/// "unlink, blocks reused | orphan pages, new file intact | same | same"
#[test]
fn after_an_unlink_the_key_reaches_orphans_and_the_new_file_is_intact() {
    let tenant = slot(SECOND, OTHER, 0..2, Access::Overwrite);
    for (host, intact) in [(PAGE_CACHE, true), (DAX, false)] {
        let mut experiment = Experiment::on(NAIVE, host, InPlace, 1, vec![writer(0..2), tenant.clone()]);
        assert!(experiment.does(Acquire(0)) && experiment.does(Sync) && experiment.does(remove()));
        assert!(experiment.does(Acquire(1)) && experiment.writes(1));
        assert!(experiment.writes(0), "the key is live");
        assert_eq!(experiment.found_by_peer(0, 0), Some(WRITTEN));
        assert_eq!(experiment.found(OTHER, 0), if intact { BY_SECOND } else { WRITTEN });
        assert_eq!(experiment.breaks(Promise::P10), !intact, "on DAX the new file has the block");
    }
}

/// "FICLONE, RDMA write, deregister, fsync | not supported | clone corrupted 256/256, no error anywhere | clone intact"
#[test]
fn an_rdma_write_after_a_clone_corrupts_the_clone_in_place_and_leaves_it_intact_on_btrfs() {
    for (filesystem, clone) in [(InPlace, WRITTEN), (CopyOnWrite, OLD)] {
        let mut experiment = registered_and_clean(NAIVE, PAGE_CACHE, filesystem);
        assert!(experiment.does(Act::Change(Change::Clone)));
        assert!(experiment.writes(0) && experiment.does(Release(0)));
        assert_eq!(experiment.in_clone(0), OLD);
        assert!(experiment.does(Sync), "no error anywhere");
        assert_eq!(experiment.on_disk(0), Some(WRITTEN));
        assert_eq!(experiment.in_clone(0), clone);
        assert_eq!(experiment.breaks(Promise::P9), clone == WRITTEN);
    }
    let mut experiment = one_block(LEASEHOLD, PAGE_CACHE, InPlace);
    assert!(experiment.does(Acquire(0)) && experiment.does(Act::Change(Change::Clone)));
    assert!(experiment.writes(0) && experiment.does(Commit(0)) && experiment.does(Sync));
    assert_eq!((experiment.on_disk(0), experiment.in_clone(0)), (Some(WRITTEN), OLD));
}

/// "ext4/XFS/btrfs/FUSE MAP_SHARED rw | ok (6.1) | EFAULT (6.12) | ok | ok" (remote-read only), and
/// "ext4-DAX, XFS-DAX, any | EOPNOTSUPP | EOPNOTSUPP | EOPNOTSUPP | EOPNOTSUPP"
#[test]
fn registrations_are_refused_where_kernels_refuse_them() {
    let granted =
        |scheme, host, wanted: Slot| Experiment::on(scheme, host, InPlace, 1, vec![wanted]).does(Acquire(0));
    // (scheme, host, for writing, for reading)
    for (scheme, host, writes, reads) in [
        (NAIVE, PAGE_CACHE, true, true),
        (DAX_LONGTERM_FAILS, PAGE_CACHE, true, true),
        (DAX_LONGTERM_FAILS, DAX, false, false),
        (REGISTRATION_REFUSED, PAGE_CACHE, false, true),
        (REGISTRATION_REFUSED, FAULTING, true, true),
        (REGISTRATION_REFUSED, DAX, false, false),
        (LEASEHOLD, PAGE_CACHE, true, true),
    ] {
        let what = (scheme.name, host);
        assert_eq!(granted(scheme, host, writer(0..2)), writes, "{what:?}, for writing");
        assert_eq!(granted(scheme, host, reader()), reads, "{what:?}, for reading");
    }
}

/// "remote-read MRs still go stale: after punch+pwrite, truncate+pwrite, [...] unlink+recreate the reader gets 256/256 old pages and
/// success" (6.12)
#[test]
fn a_remote_read_key_goes_stale_with_success_after_punch_truncate_and_unlink() {
    for acts in [vec![punch(), LocalWrite(0..2)], vec![truncate(0), LocalWrite(0..2)], vec![remove()]] {
        let mut experiment = Experiment::on(REGISTRATION_REFUSED, PAGE_CACHE, InPlace, 1, vec![reader()]);
        assert!(experiment.does(Acquire(0)));
        let rewritten = acts.len() > 1;
        for act in acts.clone() {
            assert!(experiment.does(act));
        }
        experiment.does(Act::RemoteRead(0));
        assert_eq!(experiment.found_by_peer(0, 0), Some(OLD), "old bytes, and success");
        assert_eq!(experiment.found(MAIN, 0), if rewritten { LOCAL } else { ZEROS });
        assert!(experiment.breaks(Promise::P8));

        let mut experiment = Experiment::on(LEASEHOLD, PAGE_CACHE, InPlace, 1, vec![reader()]);
        assert!(experiment.does(Acquire(0)));
        let first = experiment.begins(acts[0].clone());
        experiment.settles();
        assert!(!experiment.is_done(first), "the read lease is broken first");
        experiment.grace_ends();
        assert!(experiment.is_done(first));
        assert_eq!(experiment.found_by_peer(0, 0), None, "an error, not old bytes");
    }
}

/// What makes a key for reading stale, in the rows above, is that the page goes: of a page that stays it sees every write.
#[test]
fn a_remote_read_key_sees_a_local_write_to_a_page_that_is_still_the_files() {
    let mut experiment = Experiment::on(REGISTRATION_REFUSED, PAGE_CACHE, InPlace, 1, vec![reader()]);
    assert!(experiment.does(Acquire(0)) && experiment.does(LocalWrite(0..2)));
    assert_eq!(experiment.found_by_peer(0, 0), Some(LOCAL));
}

/// The BUG in ext4 of the thread of 2018: a release marks a page dirty whose buffers are gone. ("not reproducible on 6.1.192 (it no
/// longer reclaims pinned pages)": `naive` is as the kernels of the thread were, so the model shows it, and this is the one
/// place where it says more than was measured.)
#[test]
fn a_page_whose_buffers_were_reclaimed_is_marked_dirty_at_the_release() {
    for (reclaimed, broken) in [(true, true), (false, false)] {
        let mut experiment = registered_and_clean(NAIVE, PAGE_CACHE, InPlace);
        if reclaimed {
            experiment.does(Reclaim);
        }
        assert!(experiment.does(Release(0)));
        assert_eq!(experiment.breaks(Promise::P4), broken);
    }
}
