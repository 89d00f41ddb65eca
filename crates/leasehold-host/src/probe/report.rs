//! What a probe tells: data for programs, which a command shows to people.

use super::place::Place;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Something that a probe tells while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Where it looks.
    Place(Place),
    /// It has made this, or is about to; whoever kills the probe takes it away.
    Made {
        /// A directory.
        path: PathBuf,
        /// Something is mounted there.
        mount: bool,
    },
    /// What it tries now.
    Trying {
        /// For people.
        what: String,
    },
    /// A hazard was tried.
    Row(Row),
    /// The scratch directory could not be removed.
    NotRemoved {
        /// What, where, why.
        message: String,
    },
    /// Nothing (more) can be tried.
    Failed {
        /// What, where, and the remedy.
        message: String,
    },
    /// All was tried that could be.
    Done,
}

/// What kind of DMA the hazard is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Memory registered for long: io_uring fixed buffers, RDMA.
    Pins,
    /// An operation while a read into the file's mapping is under way, and certain to be.
    Held,
    /// An operation while a mapping of the file is registered with an RDMA device; then the device writes, or reads.
    Regions,
    /// The same as held, against a real device, by chance.
    Races,
    /// Leasehold's own store, in the same place.
    Store,
}

impl Group {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Group; 5] = [Group::Pins, Group::Held, Group::Regions, Group::Races, Group::Store];
}

/// One hazard, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// See [`Group`].
    pub group: Group,
    /// Its name for programs; `docs/probe.md` has them all.
    pub id: String,
    /// Its name for people.
    pub what: String,
    /// What was seen.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// More about it: which pages, which error.
    pub note: String,
}

/// What was seen of a hazard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It happened.
    Seen {
        /// So often.
        times: u64,
        /// In so many.
        tries: u64,
        /// Of these: `tries`, `pages`, `clones`.
        unit: String,
    },
    /// It did not happen. That proves nothing for a race.
    NotSeen {
        /// In so many.
        tries: u64,
        /// Of these.
        unit: String,
    },
    /// No hazard, but a control: what it shows tells whether the others can be believed.
    Control {
        /// What the kernel did.
        accepted: bool,
    },
    /// It cannot happen here, or there is no means to try it.
    NotApplicable {
        /// Why.
        why: String,
    },
    /// It should have been possible to try it, and was not.
    CouldNot {
        /// What failed.
        why: String,
    },
}

impl Verdict {
    /// By the number of times that it happened.
    #[must_use]
    pub fn counted(times: u64, tries: u64, unit: &str) -> Verdict {
        let unit = unit.to_owned();
        match (times, tries) {
            (0, 0) => Verdict::CouldNot { why: "stopped before the first try".to_owned() },
            (0, _) => Verdict::NotSeen { tries, unit },
            _ => Verdict::Seen { times, tries, unit },
        }
    }

    pub(super) fn not_applicable(why: impl Into<String>) -> Verdict {
        Verdict::NotApplicable { why: why.into() }
    }

    /// Whether it is the evidence of a hazard.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        matches!(self, Verdict::Seen { .. })
    }
}

impl Row {
    /// A row without a note.
    #[must_use]
    pub fn new(group: Group, id: &str, what: &str, verdict: Verdict) -> Row {
        Row { group, id: id.to_owned(), what: what.to_owned(), verdict, note: String::new() }
    }

    /// With a note.
    #[must_use]
    pub fn with(self, note: impl Into<String>) -> Row {
        Row { note: note.into(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hazard_is_seen_only_if_it_happened_and_nothing_is_said_of_what_was_not_tried() {
        assert!(Verdict::counted(1, 10, "tries").is_seen());
        assert_eq!(
            Verdict::counted(0, 10, "tries"),
            Verdict::NotSeen { tries: 10, unit: "tries".to_owned() }
        );
        assert!(matches!(Verdict::counted(0, 0, "tries"), Verdict::CouldNot { .. }));
    }

    #[test]
    fn what_a_probe_tells_survives_the_way_to_another_process() {
        let row = Row::new(Group::Held, "punch", "a hole", Verdict::counted(3, 4, "tries")).with("all zeros");
        for event in [Event::Row(row), Event::Done, Event::Made { path: "/x".into(), mount: true }] {
            let line = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event, "{line}");
        }
    }
}
