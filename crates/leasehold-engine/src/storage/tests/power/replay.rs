//! What a power loss at some moment may leave.
//!
//! - A write is durable once it is done; until then each of its sectors is there or not.
//! - Sizes, holes and names change in one order, as in a journal: a power loss leaves the changes up to some place in it, at
//!   least up to the last one that a flush of its file or directory has covered. A hole may be punched, and blocks behind
//!   what was taken out may have moved, in part.
//! - A write that is there makes its file long enough for it, even where a change of size before it is lost.

use super::recorder::Event;
use super::volume::{BLOCK, InodeId, Meta, SECTOR, Volume};
use crate::simulation::Random;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// The moment after some of the events.
pub(crate) struct Moment<'a> {
    events: &'a [Event],
    /// How many events have happened.
    pub(crate) at: usize,
    /// What the first events left for good.
    settled: Volume,
    settled_events: usize,
    settled_metas: usize,
    /// Changes of sizes, holes and names.
    metas: usize,
    /// Of these, durable ones.
    pub(crate) metas_durable: usize,
    /// The event and the place in the order of the changes of each inode.
    changes: HashMap<InodeId, Vec<(usize, usize)>>,
    landed: BTreeSet<u64>,
    /// Begun and not done: their lengths in sectors.
    under_way: BTreeMap<u64, usize>,
}

/// Which part of what is not durable is there.
#[derive(Clone)]
pub(crate) struct Variant {
    metas: usize,
    /// The last of these, if it is a hole or a collapse, is there in part. It is not durable then.
    in_part: bool,
    /// Sectors of writes under way; none of those that are missing here.
    writes: BTreeMap<u64, Vec<bool>>,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} changes of sizes and names", self.metas)?;
        if self.in_part {
            write!(f, ", the last in part")?;
        }
        for (write, sectors) in &self.writes {
            let sectors: String = sectors.iter().map(|landed| if *landed { '1' } else { '0' }).collect();
            write!(f, "; write {write}: {sectors}")?;
        }
        Ok(())
    }
}

impl<'a> Moment<'a> {
    /// Before the first event, on `volume`.
    pub(crate) fn new(volume: Volume, events: &'a [Event]) -> Moment<'a> {
        Moment {
            events,
            at: 0,
            settled: volume,
            settled_events: 0,
            settled_metas: 0,
            metas: 0,
            metas_durable: 0,
            changes: HashMap::new(),
            landed: BTreeSet::new(),
            under_way: BTreeMap::new(),
        }
    }

    /// How many changes there were before the event.
    pub(crate) fn advance(&mut self) -> Option<&'a Event> {
        let event = self.events.get(self.at)?;
        match event {
            Event::Meta(_, concerns) => {
                for inode in concerns {
                    self.changes.entry(*inode).or_default().push((self.at, self.metas));
                }
                self.metas += 1;
            }
            Event::Begun { write, bytes, .. } => {
                self.under_way.insert(*write, bytes.len() / SECTOR);
            }
            Event::Landed { write } => {
                self.under_way.remove(write);
                self.landed.insert(*write);
            }
            Event::Flushed { inode, before } => {
                let changes = self.changes.get(inode).into_iter().flatten();
                let covered = changes.filter(|(event, _)| event < before).map(|(_, place)| place + 1).max();
                self.metas_durable = self.metas_durable.max(covered.unwrap_or(0));
            }
            Event::Asked(..) | Event::Answered(_) | Event::Cloned { .. } | Event::Placed => {}
        }
        self.at += 1;
        self.settle();
        Some(event)
    }

    fn settle(&mut self) {
        while let Some(event) = self.events[..self.at].get(self.settled_events) {
            match event {
                Event::Meta(meta, _) if self.settled_metas < self.metas_durable => {
                    self.settled.apply(meta);
                    self.settled_metas += 1;
                }
                Event::Begun { write, inode, offset, bytes } if self.landed.contains(write) => {
                    self.settled.write(*inode, *offset, bytes, |_| true);
                }
                Event::Meta(..) | Event::Begun { .. } => return,
                _ => {}
            }
            self.settled_events += 1;
        }
    }

    /// The place in the order of changes that is reached.
    pub(crate) fn metas(&self) -> usize {
        self.metas
    }

    pub(crate) fn image(&self, variant: &Variant) -> Volume {
        let mut volume = self.settled.clone();
        let mut place = self.settled_metas;
        for event in &self.events[self.settled_events..self.at] {
            match event {
                Event::Meta(meta, _) => {
                    place += 1;
                    match meta {
                        Meta::Punch { inode, offset, length }
                            if place == variant.metas && variant.in_part =>
                        {
                            let length = length / 2 / BLOCK as u64 * BLOCK as u64;
                            volume.apply(&Meta::Punch { inode: *inode, offset: *offset, length });
                        }
                        Meta::Collapse { inode, offset, length }
                            if place == variant.metas && variant.in_part =>
                        {
                            volume.shift(*inode, *offset, *length, 3);
                        }
                        _ if place <= variant.metas => volume.apply(meta),
                        _ => {}
                    }
                }
                Event::Begun { write, inode, offset, bytes } => {
                    if self.landed.contains(write) {
                        volume.write(*inode, *offset, bytes, |_| true);
                    } else if let Some(sectors) = variant.writes.get(write) {
                        volume.write(*inode, *offset, bytes, |sector| sectors[sector]);
                    }
                }
                _ => {}
            }
        }
        volume
    }

    /// All or nothing of what is not durable; each write alone missing, alone there, or torn; and some at random.
    pub(crate) fn variants(&self, random: &mut Random, effort: &Effort) -> Vec<Variant> {
        let (durable, all) = (self.metas_durable, self.metas);
        let whole = |write: &u64| vec![true; self.under_way[write]];
        let everything: BTreeMap<u64, Vec<bool>> =
            self.under_way.keys().map(|write| (*write, whole(write))).collect();
        let nothing = BTreeMap::new();
        let variant = |metas, writes: &BTreeMap<u64, Vec<bool>>| Variant {
            metas,
            in_part: false,
            writes: writes.clone(),
        };
        let mut variants = vec![variant(all, &everything), variant(durable, &nothing)];
        if all > durable {
            variants.push(variant(durable, &everything));
            variants.push(variant(all, &nothing));
            variants.push(Variant { in_part: true, ..variant(all, &everything) });
        }
        let metas = |random: &mut Random| durable + random.below((all - durable) as u64 + 1) as usize;
        for write in self.under_way.keys().take(effort.singles) {
            let sectors = self.under_way[write];
            let mut without = everything.clone();
            without.remove(write);
            variants.push(variant(metas(random), &without));
            variants.push(variant(metas(random), &BTreeMap::from([(*write, whole(write))])));
            let cut = 1 + random.below(sectors as u64 - 1) as usize;
            let torn = [
                (0..sectors).map(|sector| sector < cut).collect(),
                (0..sectors).map(|sector| sector >= cut).collect(),
                (0..sectors).map(|_| random.below(2) == 0).collect(),
            ];
            for sectors in torn {
                let mut writes = if random.below(2) == 0 { everything.clone() } else { nothing.clone() };
                writes.insert(*write, sectors);
                variants.push(variant(metas(random), &writes));
            }
        }
        if self.under_way.len() + (all - durable) > 1 {
            for _ in 0..effort.random {
                let mut writes = BTreeMap::new();
                for (write, sectors) in &self.under_way {
                    match random.below(3) {
                        0 => {}
                        1 => drop(writes.insert(*write, whole(write))),
                        _ => {
                            drop(writes.insert(*write, (0..*sectors).map(|_| random.below(2) == 0).collect()))
                        }
                    }
                }
                let metas = metas(random);
                // What a flush has covered is there wholly.
                let in_part = metas > durable && random.below(4) == 0;
                variants.push(Variant { in_part, ..variant(metas, &writes) });
            }
        }
        variants
    }
}

/// How many of all possible variants to try at each moment.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Writes that are tried alone.
    pub(crate) singles: usize,
    pub(crate) random: usize,
    /// Every how many images a second power loss is tried, during recovery.
    pub(crate) second: u64,
}
