//! What this kernel does with pins of file pages: a table of what was measured and of the commits that changed it,
//! which the evidence of `leasehold probe` overrides.
//!
//! A release says little about a distribution's kernel, into which changes are carried back; that is said with what is
//! concluded from it.

use super::evidence::Evidence;
use super::host::Host;
use super::{catalogue, finding::Finding};
use serde::Serialize;

/// The version that file pages have been refused to long-term pins since.
const REFUSED_SINCE: Version = Version(6, 5);
/// What was measured: the oldest and the newest.
const MEASURED: (Version, Version) = (Version(6, 1), Version(6, 18));

/// The first two numbers of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What a kernel does when it is asked for a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Does {
    /// It pins.
    Accepts,
    /// It fails the call.
    Refuses,
    /// Nobody measured it.
    Unknown,
}

/// One way to pin, and what this kernel does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// Who asks for which pages.
    pub what: &'static str,
    /// What it does.
    pub does: Does,
    /// What comes of it, or how it fails.
    pub note: &'static str,
    /// How that is known.
    pub basis: String,
}

/// The kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// As uname(1) has it.
    pub release: String,
    /// What it does with pins, the most important first.
    pub pins: Vec<Pin>,
    #[serde(skip)]
    pub(crate) version: Option<Version>,
}

struct Row {
    what: &'static str,
    ranges: &'static [Range],
}

/// Of the versions from `from` on, and below the next range's.
struct Range {
    from: Version,
    does: Does,
    note: &'static str,
    basis: &'static str,
}

/// The first row decides how a process is judged that pins and maps files.
const TABLE: &[Row] = &[
    Row {
        what: "long-term pin for writing of a shared file mapping (RDMA, VFIO)",
        ranges: &[
            Range {
                from: Version(0, 0),
                does: Does::Accepts,
                note: "writes are lost",
                basis: "measured on 6.1; refused since 6.5",
            },
            Range {
                from: REFUSED_SINCE,
                does: Does::Refuses,
                note: "EFAULT",
                basis: "commits 8ac268436e6d, a6e79df92e4a; measured on 6.12",
            },
        ],
    },
    Row {
        what: "long-term pin for reading of a shared file mapping (RDMA)",
        ranges: &[
            Range { from: Version(0, 0), does: Does::Unknown, note: "", basis: "not measured below 6.1" },
            Range {
                from: Version(6, 1),
                does: Does::Accepts,
                note: "goes stale after truncate, punch, clone over it",
                basis: "measured on 6.1 and 6.12",
            },
        ],
    },
    Row {
        what: "io_uring fixed buffer in a shared file mapping",
        ranges: &[
            Range { from: Version(0, 0), does: Does::Unknown, note: "", basis: "not measured below 6.1" },
            Range {
                from: Version(6, 1),
                does: Does::Refuses,
                note: "EOPNOTSUPP or EFAULT",
                basis: "measured on 6.1, 6.12 and 6.18",
            },
        ],
    },
    Row {
        what: "short-term pin of a shared file mapping (O_DIRECT read into it)",
        ranges: &[
            Range { from: Version(0, 0), does: Does::Unknown, note: "", basis: "not measured below 6.18" },
            Range {
                from: Version(6, 18),
                does: Does::Accepts,
                note: "unsafe against truncate, punch, clone, freeze",
                basis: "measured on 6.18",
            },
        ],
    },
    Row {
        what: "long-term pin of a file on DAX",
        ranges: &[
            Range { from: Version(0, 0), does: Does::Unknown, note: "", basis: "not measured below 6.1" },
            Range {
                from: Version(6, 1),
                does: Does::Refuses,
                note: "EOPNOTSUPP",
                basis: "measured on 6.1 and 6.12",
            },
        ],
    },
    Row {
        what: "long-term pin of tmpfs, memfd, hugetlb, anonymous memory",
        ranges: &[
            Range { from: Version(0, 0), does: Does::Unknown, note: "", basis: "not measured below 6.1" },
            Range {
                from: Version(6, 1),
                does: Does::Accepts,
                note: "tmpfs loses it on truncate or punch",
                basis: "measured on 6.1 and 6.12",
            },
        ],
    },
];

impl Row {
    fn of(&self, version: Option<Version>) -> Pin {
        let range =
            self.ranges.iter().rev().find(|range| version.is_some_and(|version| version >= range.from));
        let unknown = Pin {
            what: self.what,
            does: Does::Unknown,
            note: "",
            basis: "the release is no version".to_owned(),
        };
        range.map_or(unknown, |range| Pin {
            what: self.what,
            does: range.does,
            note: range.note,
            basis: range.basis.to_owned(),
        })
    }
}

impl Kernel {
    pub(crate) fn of(host: &Host, evidence: Option<&Evidence>, unseen: &mut Vec<String>) -> Kernel {
        let release = host.text("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned());
        let release = release.unwrap_or_else(|error| {
            unseen.push(format!("the kernel's release: /proc/sys/kernel/osrelease: {error}"));
            "unknown".to_owned()
        });
        let version = version(&release);
        let mut pins: Vec<Pin> = TABLE.iter().map(|row| row.of(version)).collect();
        if let (Some(evidence), Some(pin)) = (evidence, pins.first_mut()) {
            match evidence.writable_pin(&release) {
                Ok(Some(does)) => {
                    pin.does = does;
                    pin.basis = format!("measured here: {}", evidence.name());
                }
                Ok(None) => unseen.push(format!(
                    "{}: it does not settle what this kernel does with long-term pins of file pages",
                    evidence.name()
                )),
                Err(other) => unseen.push(format!(
                    "{}: it is of kernel {other}, not of this one; run `leasehold probe` again",
                    evidence.name()
                )),
            }
        }
        if version.is_some_and(|version| version > MEASURED.1) {
            unseen.push(format!(
                "kernel {release} is newer than {}, the newest that was measured; `leasehold probe DIR` measures it",
                MEASURED.1
            ));
        }
        Kernel { release, pins, version }
    }

    /// What it does with a long-term pin for writing of a shared file mapping.
    pub(crate) fn writable_pin(&self) -> Does {
        self.pins.first().map_or(Does::Unknown, |pin| pin.does)
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        if self.writable_pin() != Does::Accepts {
            return Vec::new();
        }
        let subject = self.version.map_or_else(|| self.release.clone(), |version| version.to_string());
        let basis = self.pins.first().map(|pin| pin.basis.clone()).unwrap_or_default();
        let mut finding = Finding::new(&catalogue::KERNEL_FILE_PIN, format!("Linux {subject}"))
            .seen(format!("release {} ({basis})", self.release));
        if self.is_a_distributions() {
            finding =
                finding.seen("a distribution's kernel may have the refusal carried back: probe measures it");
        }
        vec![finding]
    }

    /// Whether somebody put a name to the release: 6.1.0-32-amd64.
    fn is_a_distributions(&self) -> bool {
        self.release.contains('-')
    }
}

/// The table, for the docs: mapping, versions, what is done, how that is known.
pub(crate) fn rows() -> impl Iterator<Item = [String; 4]> {
    TABLE.iter().flat_map(|row| {
        row.ranges.iter().map(|range| {
            let from = if range.from == Version(0, 0) { "always".to_owned() } else { range.from.to_string() };
            let does = match range.does {
                Does::Accepts => "accepts",
                Does::Refuses => "refuses",
                Does::Unknown => "not known",
            };
            let does =
                if range.note.is_empty() { does.to_owned() } else { format!("{does}: {}", range.note) };
            [row.what.to_owned(), from, does, range.basis.to_owned()]
        })
    })
}

fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some(Version(major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        for (release, expected) in [
            ("6.1.0-32-amd64", Some(Version(6, 1))),
            ("5.14.0-503.el9.x86_64", Some(Version(5, 14))),
            ("6.18.44", Some(Version(6, 18))),
            ("6.5-rc1", Some(Version(6, 5))),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn writable_pins_of_files_are_accepted_below_6_5_and_refused_from_there_on() {
        let does = |version| TABLE[0].of(version).does;
        assert_eq!(does(Some(Version(4, 18))), Does::Accepts);
        assert_eq!(does(Some(Version(6, 4))), Does::Accepts);
        assert_eq!(does(Some(Version(6, 5))), Does::Refuses);
        assert_eq!(does(Some(Version(7, 0))), Does::Refuses);
        assert_eq!(does(None), Does::Unknown);
    }

    #[test]
    fn the_ranges_of_each_row_are_in_order_and_cover_every_version() {
        for row in TABLE {
            assert_eq!(row.ranges[0].from, Version(0, 0), "{}", row.what);
            assert!(row.ranges.is_sorted_by(|a, b| a.from < b.from), "{}", row.what);
        }
    }
}
