//! What a scheme costs, and which costs are less than others.

use serde::{Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;

/// What a scheme costs, counted in runs of the same world: the most of all hosts on which it gives keys for writing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Costs {
    /// Copies by the CPU of each byte that a peer writes, until it is durable: of a block that is written whole.
    pub copies: f64,
    /// Times that a device must fault for each block that is written back while it is registered.
    pub refaults: f64,
    /// What waits for a holder, in order.
    pub waits: Vec<Wait>,
    /// Legitimate work that is refused, in order.
    pub refuses: Vec<Refusal>,
    /// Whether a holder can be killed.
    pub kills: bool,
    /// Whether what a peer wrote and never committed stays in the file.
    pub half_writes: bool,
    /// Whether a key is good for one commit only.
    pub one_commit: bool,
}

/// Something that waits for a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    /// What.
    pub what: Waiter,
    /// Until the holder pleases; else at most the grace period and a fence.
    pub for_ever: bool,
}

/// What can wait for a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the phrases say it")]
pub enum Waiter {
    Truncate,
    Clone,
    Fsync,
    LocalWrite,
    SecondKey,
    LocalRead,
}

/// Work that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// What.
    pub what: Work,
    /// Only if the device cannot fault.
    pub unless_faults: bool,
}

/// Legitimate work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the phrases say it")]
pub enum Work {
    WritePageCache,
    ReadPageCache,
    WriteDax,
    ReadDax,
    ChangeLayout,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            Waiter::Truncate => "a truncate for the holder",
            Waiter::Clone => "a clone for the holder",
            Waiter::Fsync => "an fsync for the holder",
            Waiter::LocalWrite => "a local write of the same bytes",
            Waiter::SecondKey => "a second key in the same block",
            Waiter::LocalRead => "a local read",
        };
        let how_long = if self.for_ever { "for ever" } else { "at most grace and fence" };
        write!(f, "{what}, {how_long}")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.what {
            Work::WritePageCache => "keys for writing the page cache",
            Work::ReadPageCache => "keys for reading the page cache",
            Work::WriteDax => "keys for writing DAX",
            Work::ReadDax => "keys for reading DAX",
            Work::ChangeLayout => "truncate, punch, unlink and clone under a key",
        })?;
        f.write_str(if self.unless_faults { ", unless the device can fault" } else { "" })
    }
}

impl Serialize for Wait {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Refusal {
    /// Whether one of these refuses the same, or more of it.
    pub(crate) fn is_among(&self, refusals: &[Refusal]) -> bool {
        let mut refusals = refusals.iter();
        refusals.any(|other| other.what == self.what && other.unless_faults <= self.unless_faults)
    }
}

impl Costs {
    /// All that is no number, a phrase each.
    pub(super) fn phrases(&self) -> impl Iterator<Item = String> {
        let flags = [
            (self.kills, "kills a holder"),
            (self.half_writes, "leaves half writes in the file"),
            (self.one_commit, "needs a key for each commit"),
        ];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, phrase)| phrase.to_owned());
        let waits = self.waits.iter().map(|wait| format!("waits: {wait}"));
        flags.chain(waits).chain(self.refuses.iter().map(|refusal| format!("refuses: {refusal}")))
    }

    /// Whether it is dearer in nothing.
    fn is_no_worse_than(&self, other: &Costs) -> bool {
        let waits = |wait: &Wait| {
            other.waits.iter().any(|theirs| theirs.what == wait.what && theirs.for_ever >= wait.for_ever)
        };
        self.copies <= other.copies
            && self.refaults <= other.refaults
            && self.kills <= other.kills
            && self.half_writes <= other.half_writes
            && self.one_commit <= other.one_commit
            && self.waits.iter().all(waits)
            && self.refuses.iter().all(|refusal| refusal.is_among(&other.refuses))
    }
}

/// Less is cheaper in something, and dearer in nothing: each wait, and each refusal, is a cost of its own, and no number of
/// one kind outweighs another.
impl PartialOrd for Costs {
    fn partial_cmp(&self, other: &Costs) -> Option<Ordering> {
        match (self.is_no_worse_than(other), other.is_no_worse_than(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Less),
            (false, true) => Some(Ordering::Greater),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(waits: &[(Waiter, bool)]) -> Costs {
        let waits = waits.iter().map(|&(what, for_ever)| Wait { what, for_ever }).collect();
        Costs { waits, ..Costs::default() }
    }

    fn refusing(refusals: &[(Work, bool)]) -> Costs {
        let refuses = refusals.iter().map(|&(what, unless_faults)| Refusal { what, unless_faults }).collect();
        Costs { refuses, ..Costs::default() }
    }

    #[test]
    fn a_bounded_wait_is_less_than_one_for_ever_and_more_than_none() {
        let (none, bounded) = (Costs::default(), waiting(&[(Waiter::Truncate, false)]));
        let for_ever = waiting(&[(Waiter::Truncate, true)]);
        assert!(none < bounded && bounded < for_ever);
        assert_eq!(bounded.partial_cmp(&waiting(&[(Waiter::Fsync, false)])), None);
    }

    #[test]
    fn what_is_refused_always_costs_more_than_what_a_device_that_faults_may_do() {
        let (sometimes, always) = (refusing(&[(Work::WriteDax, true)]), refusing(&[(Work::WriteDax, false)]));
        assert!(sometimes < always);
        let both = refusing(&[(Work::WritePageCache, false), (Work::ReadPageCache, false)]);
        assert_eq!(refusing(&[(Work::ChangeLayout, false)]).partial_cmp(&both), None);
    }

    #[test]
    fn a_copy_is_not_weighed_against_a_wait() {
        let copied = Costs { copies: 1.0, ..Costs::default() };
        assert_eq!(copied.partial_cmp(&waiting(&[(Waiter::Truncate, false)])), None);
        assert_eq!(copied.partial_cmp(&copied.clone()), Some(Ordering::Equal));
    }
}
