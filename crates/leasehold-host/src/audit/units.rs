//! What systemd and cron start by themselves, from their files: nothing is asked of a running systemd.
//!
//! A unit counts as enabled if some `.wants` or `.requires` directory has it, and nobody has masked it. A timer has the
//! commands of its service.

use super::host::Host;
use std::collections::{BTreeMap, BTreeSet};

/// Where units are, the first one wins; systemd.unit(5).
const DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Tables of commands; the lines of those in directories of scripts are commands, too.
const CRONTABS: [&str; 1] = ["/etc/crontab"];
const CRON_DIRECTORIES: [&str; 7] = [
    "/etc/cron.d",
    "/etc/cron.hourly",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
    "/var/spool/cron",
    "/var/spool/cron/crontabs",
];

/// A unit that is started by itself.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) name: String,
    /// Its settings, with those that were dropped in beside it; the last of a name counts.
    pub(crate) settings: Vec<(String, String)>,
    /// What it runs; a timer, what its service runs.
    pub(crate) commands: Vec<String>,
}

impl Unit {
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.settings.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A file of cron's, and the commands in it.
#[derive(Clone, Debug)]
pub(crate) struct CronFile {
    pub(crate) path: String,
    pub(crate) commands: Vec<String>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Units {
    pub(crate) enabled: Vec<Unit>,
    pub(crate) cron: Vec<CronFile>,
}

impl Units {
    pub(crate) fn of(host: &Host, unseen: &mut Vec<String>) -> Units {
        let mut names = BTreeSet::new();
        for directory in DIRECTORIES {
            for wants in host.names(directory).unwrap_or_default() {
                if wants.ends_with(".wants") || wants.ends_with(".requires") {
                    names.extend(host.names(format!("{directory}/{wants}")).unwrap_or_default());
                }
            }
        }
        names.retain(|name| !is_masked(host, name));
        let mut enabled: Vec<Unit> = names.iter().map(|name| unit(host, name)).collect();
        let services: BTreeMap<String, Unit> = enabled
            .iter()
            .filter_map(|unit| {
                let stem = unit.name.strip_suffix(".timer")?;
                let service = unit.setting("Unit").map_or_else(|| format!("{stem}.service"), str::to_owned);
                Some((unit.name.clone(), self::unit(host, &service)))
            })
            .collect();
        for unit in &mut enabled {
            if let Some(service) = services.get(&unit.name) {
                unit.commands.clone_from(&service.commands);
            }
        }
        Units { enabled, cron: cron(host, unseen) }
    }
}

fn is_masked(host: &Host, name: &str) -> bool {
    DIRECTORIES[..2]
        .iter()
        .any(|directory| host.link(format!("{directory}/{name}")).is_ok_and(|target| target == "/dev/null"))
}

/// A unit by its files: its own, or the template's that it is an instance of.
fn unit(host: &Host, name: &str) -> Unit {
    let mut settings = Vec::new();
    for name in [Some(name.to_owned()), template(name)].into_iter().flatten() {
        let file = DIRECTORIES.iter().find_map(|directory| host.text(format!("{directory}/{name}")).ok());
        let is_found = file.is_some();
        settings.extend(parse(&file.unwrap_or_default()));
        for directory in DIRECTORIES.iter().rev() {
            let directory = format!("{directory}/{name}.d");
            for file in host.names(&directory).unwrap_or_default() {
                if file.ends_with(".conf") {
                    settings.extend(parse(&host.text(format!("{directory}/{file}")).unwrap_or_default()));
                }
            }
        }
        if is_found {
            break;
        }
    }
    let commands = settings.iter().filter(|(key, _)| key.starts_with("Exec")).map(|(_, value)| value.clone());
    Unit { name: name.to_owned(), commands: commands.collect(), settings }
}

/// `bees@.service` of `bees@data.service`.
fn template(name: &str) -> Option<String> {
    let (prefix, instance) = name.split_once('@')?;
    let (_, suffix) = instance.rsplit_once('.')?;
    Some(format!("{prefix}@.{suffix}"))
}

/// `Key=value`; a backslash at the end goes on in the next line.
fn parse(text: &str) -> Vec<(String, String)> {
    let joined = text.replace("\\\n", " ");
    let setting = |line: &str| {
        let line = line.trim();
        if line.starts_with(['#', ';', '[']) {
            return None;
        }
        let (key, value) = line.split_once('=')?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    joined.lines().filter_map(setting).collect()
}

fn cron(host: &Host, unseen: &mut Vec<String>) -> Vec<CronFile> {
    let mut paths: Vec<String> = CRONTABS.map(str::to_owned).into();
    for directory in CRON_DIRECTORIES {
        match host.names(directory) {
            Ok(names) => paths.extend(names.iter().map(|name| format!("{directory}/{name}"))),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                unseen.push(format!("users' crontabs: {directory}: not permitted; run it as root"));
            }
            Err(_) => {}
        }
    }
    let file = |path: String| {
        let text = host.text(&path).ok()?;
        let lines = text.lines().map(str::trim);
        let commands = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned);
        Some(CronFile { path, commands: commands.collect() })
    };
    paths.into_iter().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_over_lines_and_without_comments() {
        let text =
            "[Service]\n# ExecStart=/no\nExecStart=/usr/bin/duperemove \\\n  -r /data\nLimitMEMLOCK = 64M\n";
        let expected = [("ExecStart", "/usr/bin/duperemove    -r /data"), ("LimitMEMLOCK", "64M")];
        assert_eq!(parse(text), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn an_instance_has_its_template() {
        assert_eq!(template("bees@data.service").as_deref(), Some("bees@.service"));
        assert_eq!(template("fstrim.timer"), None);
    }
}
