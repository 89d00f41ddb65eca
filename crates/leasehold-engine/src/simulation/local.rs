//! A program that uses the store without leases: it reads, writes, syncs, changes layouts and names, and so breaks leases.

use super::oracle::{CELL, Named, Op};
use super::sync::block_on;
use super::world::{Life, NAMES, bytes_of, cells_of, path, range_of, who};
use super::{below, chance};
use crate::files::FileError;
use crate::open_files::Pinned;
use crate::storage::Detail;
use crate::sync;
use leasehold_core::input::{Change, Fault};
use leasehold_core::output::{AcquireError, ChangeError, CommitError, ReadError, SyncError};
use leasehold_core::range::{BLOCK_BYTES, ByteRange};
use std::collections::BTreeSet;

/// Files have at most so many cells.
pub(super) const SPAN: u64 = 80;

pub(super) fn work(life: &Life) {
    let may_block = chance(2);
    for _ in 0..4 + below(24) {
        if life.is_over() {
            return;
        }
        if may_block { sync::may_block(|| block_on(act(life))) } else { block_on(act(life)) }
    }
}

async fn act(life: &Life) {
    let name = NAMES[below(NAMES.len() as u64) as usize];
    if life.oracle().names().is_empty() || chance(8) {
        return change_names(life, name).await;
    }
    let Ok(pinned) = life.engine.pin(&path(name)).await else { return };
    match below(20) {
        0..5 => read(life, name, &pinned).await,
        5..9 => write(life, name, &pinned).await,
        9..12 => sync(life, name, &pinned).await,
        12..19 => change(life, name, &pinned).await,
        _ => drop(life.engine.evict(&path(name)).await),
    }
}

/// Some cells: often whole blocks, seldom past the usual end.
pub(super) fn some_cells() -> (usize, usize) {
    let (mut at, mut count) = (below(SPAN), 1 + below(24));
    if chance(2) {
        (at, count) = (at / 8 * 8, count.next_multiple_of(8));
    }
    (at as usize, count as usize)
}

/// The fault of the disk, if that is what went wrong.
fn fault(error: &FileError) -> Option<Fault> {
    match error {
        FileError::Change { source: ChangeError::Fault(fault), .. }
        | FileError::Read { source: ReadError::Fault(fault), .. }
        | FileError::Acquire { source: AcquireError::Fault(fault), .. }
        | FileError::Commit { source: CommitError::Fault(fault), .. }
        | FileError::Sync { source: SyncError::Fault(fault), .. } => Some(*fault),
        _ => None,
    }
}

/// Whether something that failed is certain not to have taken effect.
fn has_failed(life: &Life, error: &FileError) -> bool {
    match fault(error) {
        // The file has been removed, or has got another name.
        Some(Fault::Moved) => true,
        Some(fault) => {
            assert!(life.may_fail(), "a disk without fault gave {fault:?}: {error}");
            life.count("faults", 1);
            false
        }
        None => true,
    }
}

async fn read(life: &Life, name: &str, pinned: &Pinned) {
    let Some(inode) = life.inode(pinned.file()) else { return };
    let (at, count) = some_cells();
    let look = life.oracle().look(inode);
    match life.engine.read_file(pinned, &path(name), range_of(at, count)).await {
        Ok(bytes) => {
            life.count("reads", 1);
            let cells = cells_of(&bytes);
            let judged = life.oracle().read(inode, look, at, count, &cells);
            life.judge(judged);
        }
        Err(error) => {
            has_failed(life, &error);
            life.oracle().look_away(inode, look);
        }
    }
}

async fn write(life: &Life, name: &str, pinned: &Pinned) {
    let Some(inode) = life.inode(pinned.file()) else { return };
    let (at, count) = some_cells();
    let stamp = life.oracle().stamp();
    let cells = vec![stamp; count];
    let id = life.oracle().begin(inode, Op::Write { at, cells: vec![Some(stamp); count] });
    let (range, data) = (range_of(at, count), bytes_of(&cells).into());
    let written = life.engine.write_file(pinned, &path(name), range, data, who("writer"), None).await;
    finish(life, inode, id, "writes", written.map(drop));
}

fn finish(life: &Life, inode: usize, id: u64, what: &'static str, result: Result<(), FileError>) {
    let judged = match result {
        Ok(()) => {
            life.count(what, 1);
            life.oracle().end(inode, id, true)
        }
        Err(error) if has_failed(life, &error) => life.oracle().end(inode, id, false),
        Err(_) => Ok(()),
    };
    life.judge(judged);
}

async fn sync(life: &Life, name: &str, pinned: &Pinned) {
    let Some(inode) = life.inode(pinned.file()) else { return };
    let look = life.oracle().look(inode);
    match life.engine.sync_file(pinned.file(), &path(name)).await {
        Ok(()) => {
            life.count("syncs", 1);
            life.oracle().synced(inode, look);
        }
        Err(error) => {
            has_failed(life, &error);
            life.oracle().look_away(inode, look);
        }
    }
}

async fn change(life: &Life, name: &str, pinned: &Pinned) {
    let Some(inode) = life.inode(pinned.file()) else { return };
    let (at, count) = some_cells();
    let (what, change, op) = match below(6) {
        0 | 1 => ("truncates", Change::Truncate { size: at as u64 * CELL }, Op::Truncate(at)),
        2 => ("zeros", Change::Zero { range: range_of(at, count) }, Op::Clear { from: at, end: at + count }),
        3 | 4 => {
            ("punches", Change::Punch { range: range_of(at, count) }, Op::Clear { from: at, end: at + count })
        }
        _ => {
            let (from, end) = (at / 8 * 8, (at / 8 + 1 + count / 8) * 8);
            let range = ByteRange::new(from as u64 * CELL, end as u64 * CELL).expect("not empty");
            assert!(range.start().is_multiple_of(BLOCK_BYTES));
            ("collapses", Change::Collapse { range }, Op::Collapse { from, end })
        }
    };
    let id = life.oracle().begin(inode, op);
    let began = sync::now();
    let changed = life.engine.change(&path(name), pinned, change, Detail::None, who("breaker")).await;
    life.took(began);
    finish(life, inode, id, what, changed);
}

/// A file is made, removed, cloned or renamed, over another one maybe.
async fn change_names(life: &Life, name: &'static str) {
    let _one = life.naming.lock().expect("no panic while held");
    let other = NAMES[below(NAMES.len() as u64) as usize];
    let here = life.oracle().inode(name);
    let there = life.oracle().inode(other);
    match (here, there) {
        (None, _) => create(life, name).await,
        (Some(_), None) if chance(3) => {
            let renamed = |names: &mut super::oracle::Names, _| {
                let named = names.remove(name).expect("it is there");
                names.insert(other.to_owned(), named);
            };
            life.oracle().rename(renamed);
            let done = life.engine.rename(&path(name), &path(other), who("renamer")).await;
            renamed_or_not(life, "renames", done, false);
        }
        (Some(source), _) if name != other && chance(3) => clone(life, name, source, other).await,
        (Some(_), Some(_)) if name != other => {
            life.oracle().rename(|names, _| {
                let named = names.remove(name).expect("it is there");
                names.insert(other.to_owned(), named);
            });
            let began = sync::now();
            let done = life.engine.rename(&path(name), &path(other), who("renamer")).await;
            life.took(began);
            renamed_or_not(life, "renames over", done, true);
        }
        (Some(_), _) => {
            life.oracle().rename(|names, _| _ = names.remove(name));
            let began = sync::now();
            let done = life.engine.unlink(&path(name), who("remover")).await;
            life.took(began);
            renamed_or_not(life, "removals", done, true);
        }
    }
}

/// Whether what has been done is durable, too.
fn renamed_or_not(life: &Life, what: &'static str, done: Result<(), FileError>, is_durable: bool) {
    match done {
        Ok(()) => {
            life.count(what, 1);
            life.oracle().renamed(is_durable);
        }
        Err(error) => {
            has_failed(life, &error);
            assert!(life.may_fail(), "{what} failed: {error}");
            // After a fault the name may have gone all the same.
            if !life.is_over() {
                let names = NAMES.map(|name| (name, life.has_name(name)));
                life.oracle().settle_names(&names);
            }
        }
    }
}

async fn create(life: &Life, name: &str) {
    let id = life.oracle().rename(|names, id| _ = names.insert(name.to_owned(), Named::New(id)));
    match life.engine.create(&path(name)).await {
        Ok(_) => {
            life.count("creations", 1);
            let inode = life.inode_at(name);
            let mut oracle = life.oracle();
            oracle.made(id, inode, BTreeSet::from([Vec::new()]));
            oracle.renamed(false);
        }
        Err(error) => {
            assert!(life.may_fail(), "{error}");
            settle_new(life, name, id, BTreeSet::from([Vec::new()]));
        }
    }
}

async fn clone(life: &Life, name: &str, source: usize, to: &str) {
    let look = life.oracle().look(source);
    let id = life.oracle().rename(|names, id| _ = names.insert(to.to_owned(), Named::New(id)));
    let began = sync::now();
    let done = life.engine.clone_file(&path(name), &path(to), true, who("cloner")).await;
    life.took(began);
    let contents = life.oracle().look_away(source, look);
    match done {
        Ok(_) => {
            life.count("clones", 1);
            let inode = life.inode_at(to);
            let mut oracle = life.oracle();
            oracle.made(id, inode, contents);
            oracle.renamed(true);
        }
        Err(error) => {
            has_failed(life, &error);
            assert!(life.may_fail(), "{error}");
            settle_new(life, to, id, contents);
        }
    }
}

/// A fault came between: either the new file has the name, or what had it before.
fn settle_new(life: &Life, name: &str, id: u64, contents: BTreeSet<super::oracle::Content>) {
    if life.is_over() {
        return;
    }
    let found = life.has_name(name);
    let known = found.is_some_and(|inode| life.oracle().knows(inode));
    match found {
        Some(inode) if !known => life.oracle().made(id, inode, contents),
        _ => {
            let names = NAMES.map(|name| (name, life.has_name(name)));
            life.oracle().settle_names(&names);
        }
    }
}
