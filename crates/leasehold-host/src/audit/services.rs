//! Services and jobs that change the files of others by themselves, found by what their units and cron's lines run, and by
//! what runs now.

use super::catalogue::{self, Entry};
use super::finding::Finding;
use super::host::Host;
use super::lease_breakers::{Breaker, Effect};
use super::processes::Processes;
use super::shell;
use super::units::Units;

/// What a service does to the files of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Dedup,
    Defrag,
    Snapshot,
    Balance,
    Freeze,
    Trim,
    Scrub,
    Clean,
    Backup,
}

/// Services that are known.
struct Known {
    does: Does,
    /// How the names of their units begin.
    units: &'static [&'static str],
    /// Words of a command, one behind the other; the first one is a program.
    commands: &'static [&'static [&'static str]],
}

const KNOWN: &[Known] = &[
    Known {
        does: Does::Dedup,
        units: &["duperemove", "bees@", "beesd@", "bees.", "dduper"],
        commands: &[&["duperemove"], &["bees"], &["beesd"], &["jdupes"], &["rmlint"], &["dduper"]],
    },
    Known {
        does: Does::Defrag,
        units: &["xfs_fsr", "e4defrag", "btrfs-defrag"],
        commands: &[
            &["xfs_fsr"],
            &["e4defrag"],
            &["btrfs", "filesystem", "defragment"],
            &["btrfs", "filesystem", "defrag"],
            &["btrfs", "fi", "defragment"],
            &["btrfs", "fi", "defrag"],
            &["btrfs-defrag.sh"],
        ],
    },
    Known {
        does: Does::Snapshot,
        units: &[
            "snapper-timeline",
            "snapper-boot",
            "btrbk",
            "sanoid",
            "zfs-auto-snapshot",
            "timeshift",
            "zrepl",
            "yabsnap",
        ],
        commands: &[
            &["btrbk"],
            &["sanoid"],
            &["zfs-auto-snapshot"],
            &["timeshift"],
            &["snapper", "create"],
            &["btrfs", "subvolume", "snapshot"],
            &["btrfs", "sub", "snap"],
            &["zfs", "snapshot"],
        ],
    },
    Known {
        does: Does::Balance,
        units: &["btrfs-balance"],
        commands: &[&["btrfs", "balance"], &["btrfs-balance.sh"]],
    },
    Known {
        does: Does::Freeze,
        units: &["qemu-guest-agent", "qemu-ga", "vmtoolsd", "open-vm-tools"],
        commands: &[&["qemu-ga"], &["vmtoolsd"], &["fsfreeze"], &["xfs_freeze"]],
    },
    Known { does: Does::Trim, units: &["fstrim"], commands: &[&["fstrim"]] },
    Known {
        does: Does::Scrub,
        units: &["btrfs-scrub", "xfs_scrub", "e2scrub", "zfs-scrub"],
        commands: &[&["btrfs", "scrub"], &["xfs_scrub"], &["e2scrub_all"], &["zpool", "scrub"]],
    },
    Known {
        does: Does::Clean,
        units: &["systemd-tmpfiles-clean"],
        commands: &[&["tmpreaper"], &["tmpwatch"], &["systemd-tmpfiles", "--clean"]],
    },
    Known {
        does: Does::Backup,
        units: &[
            "restic",
            "borg",
            "bacula-fd",
            "bareos-fd",
            "rsnapshot",
            "duplicity",
            "updatedb",
            "plocate-updatedb",
        ],
        commands: &[&["restic"], &["borg"], &["bacula-fd"], &["bareos-fd"], &["rsnapshot"], &["duplicity"]],
    },
];

impl Does {
    /// The finding that it is, if it is one.
    fn entry(self) -> Option<&'static Entry> {
        match self {
            Does::Dedup => Some(&catalogue::SERVICE_DEDUP),
            Does::Defrag => Some(&catalogue::SERVICE_DEFRAG),
            Does::Snapshot => Some(&catalogue::SERVICE_SNAPSHOT),
            Does::Balance => Some(&catalogue::SERVICE_BALANCE),
            Does::Freeze => Some(&catalogue::SERVICE_FREEZE),
            Does::Trim | Does::Scrub | Does::Clean | Does::Backup => None,
        }
    }

    /// What it does to leases.
    fn effect(self) -> (Effect, &'static str) {
        match self {
            Does::Dedup => (Effect::Bypasses, "exchanges blocks: opens files once, and keeps them open"),
            Does::Defrag => (Effect::Breaks, "moves blocks of files that it opens for writing"),
            Does::Snapshot => (Effect::Bypasses, "clones all files, opens none"),
            Does::Balance => (Effect::Bypasses, "moves blocks, opens no file"),
            Does::Freeze => (Effect::Bypasses, "stops the filesystem, not the devices"),
            Does::Trim => (Effect::Neither, "discards free blocks only"),
            Does::Scrub => (Effect::Neither, "reads blocks; finds what DMA damaged"),
            Does::Clean => {
                (Effect::Bypasses, "removes old files in /tmp and /var/tmp: unlink breaks nothing")
            }
            Does::Backup => (Effect::Breaks, "opens files for reading: write leases only"),
        }
    }
}

/// What was seen of such a service.
#[derive(Clone, Debug)]
struct Trace {
    does: Does,
    subject: String,
    evidence: String,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Unit,
    Cron(String),
    Process(u32),
}

/// The services of a host that change the files of others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    traces: Vec<Trace>,
    /// Files of logrotate's with rules to truncate in place, and what they are for.
    truncates: Vec<(String, String)>,
}

impl Services {
    pub(crate) fn of(host: &Host, units: &Units, processes: &Processes) -> Services {
        let mut traces = Vec::new();
        for unit in &units.enabled {
            let by_name =
                KNOWN.iter().find(|known| known.units.iter().any(|name| unit.name.starts_with(name)));
            let by_command = || {
                unit.commands.iter().find_map(|command| {
                    let (known, words) = known(command)?;
                    Some((known, format!("{} is enabled, and runs {words}", unit.name)))
                })
            };
            let found = by_name.map(|known| (known, format!("{} is enabled", unit.name))).or_else(by_command);
            traces.extend(found.map(|(known, evidence)| Trace {
                does: known.does,
                subject: unit.name.clone(),
                evidence,
                place: Place::Unit,
            }));
        }
        for file in &units.cron {
            let found = file.commands.iter().find_map(|command| known(command));
            traces.extend(found.map(|(known, words)| Trace {
                does: known.does,
                subject: file.path.clone(),
                evidence: format!("{} runs {words}", file.path),
                place: Place::Cron(file.path.clone()),
            }));
        }
        for process in &processes.all {
            let Some((known, _)) = known(&process.name) else { continue };
            if traces.iter().all(|trace| trace.does != known.does) {
                traces.push(Trace {
                    does: known.does,
                    subject: process.name.clone(),
                    evidence: format!("{} runs", process.called()),
                    place: Place::Process(process.pid),
                });
            }
        }
        Services { traces, truncates: truncates(host) }
    }

    /// Whether free blocks are discarded by the clock.
    pub(crate) fn trims(&self) -> bool {
        self.traces.iter().any(|trace| trace.does == Does::Trim)
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        let of_traces = self.traces.iter().filter_map(|trace| Some(trace.finding(trace.does.entry()?)));
        let of_rules = self.truncates.iter().filter(|(_, pattern)| !pattern.starts_with("/var/log/"));
        let of_rules = of_rules.map(|(file, pattern)| {
            Finding::new(&catalogue::SERVICE_TRUNCATE, pattern.clone())
                .seen(format!("{file} has copytruncate for {pattern}"))
                .with("file", file.clone())
        });
        of_traces.chain(of_rules).collect()
    }

    pub(crate) fn breakers(&self) -> Vec<Breaker> {
        let of_traces = self.traces.iter().map(|trace| {
            let (effect, how) = trace.does.effect();
            Breaker::new(effect, trace.subject.clone(), how)
        });
        let of_rules = self.truncates.iter().map(|(file, pattern)| {
            Breaker::new(Effect::Breaks, format!("logrotate: {pattern}"), "truncates in place")
                .seen(format!("copytruncate in {file}"))
        });
        of_traces.chain(of_rules).collect()
    }
}

impl Trace {
    fn finding(&self, entry: &'static Entry) -> Finding {
        let finding = Finding::new(entry, self.subject.clone()).seen(self.evidence.clone());
        match &self.place {
            Place::Unit => finding.with("unit", self.subject.clone()),
            // cron leaves out names with a dot.
            Place::Cron(path) if path.starts_with("/etc/cron.") => {
                let [path, off] = [path.clone(), format!("{path}.off")].map(|path| shell::quoted(&path));
                finding.instead(format!("mv {path} {off}"))
            }
            Place::Cron(path) => finding.instead(format!("grep -n . {}", shell::quoted(path))),
            Place::Process(pid) => finding.instead(format!("ps -o pid,unit,lstart,args -p {pid}")),
        }
    }
}

/// What a command is known for, and the words by which.
fn known(command: &str) -> Option<(&'static Known, String)> {
    let words: Vec<&str> = command
        .split(|c: char| c.is_whitespace() || "'\"`();&|".contains(c))
        .filter(|word| !word.is_empty())
        .collect();
    KNOWN.iter().find_map(|known| {
        let found = known.commands.iter().find(|expected| {
            words.windows(expected.len()).any(|window| {
                let is_program = window[0].rsplit('/').next() == Some(expected[0]);
                is_program && window[1..] == expected[1..]
            })
        })?;
        Some((known, found.join(" ")))
    })
}

/// The rules of logrotate's that truncate in place: the file, and the pattern of the names.
fn truncates(host: &Host) -> Vec<(String, String)> {
    let directory = "/etc/logrotate.d";
    let mut files = vec!["/etc/logrotate.conf".to_owned()];
    files.extend(host.names(directory).unwrap_or_default().iter().map(|name| format!("{directory}/{name}")));
    let rules = |file: String| -> Vec<(String, String)> {
        let text = host.text(&file).unwrap_or_default();
        let lines: Vec<&str> =
            text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).collect();
        lines
            .join("\n")
            .split('}')
            .filter_map(|rule| {
                let (patterns, options) = rule.split_once('{')?;
                let has = options.split_whitespace().any(|word| word == "copytruncate");
                let pattern =
                    patterns.split_whitespace().find(|word| word.trim_matches('"').starts_with('/'))?;
                has.then(|| (file.clone(), pattern.trim_matches('"').to_owned()))
            })
            .collect()
    };
    files.into_iter().flat_map(rules).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_known_by_programs_and_their_words_not_by_parts_of_words() {
        for (command, expected) in [
            ("/usr/sbin/xfs_fsr -t 7200", Some(Does::Defrag)),
            ("0 3 * * * root test -x /usr/sbin/xfs_fsr && xfs_fsr", Some(Does::Defrag)),
            ("/bin/sh -c 'btrfs filesystem defragment -r /data'", Some(Does::Defrag)),
            ("btrfs balance start /data", Some(Does::Balance)),
            ("btrfs filesystem show", None),
            ("/opt/not-duperemove -r", None),
            ("echo xfs_fsr_is_off", None),
            ("/usr/sbin/fstrim --listed-in /etc/fstab", Some(Does::Trim)),
        ] {
            assert_eq!(known(command).map(|(known, _)| known.does), expected, "{command}");
        }
    }
}
