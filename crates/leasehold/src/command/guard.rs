//! `leasehold guard`: leases for a program that exists already.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::put::wait_time;
use crate::command::show;
use crate::size::Size;
use clap::ValueEnum;
use leasehold_client::ByteRange;
use leasehold_engine::break_log::{BreakLog, BreakRow, Who};
use leasehold_host::guard::{self, Broken, Event, GuardError, Options, Sight, Whom};
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};

/// Where breaks of guards are logged.
pub(crate) const LOG: &str = "/var/log/leasehold/guard.jsonl";

/// Hold the files that a program does DMA into, while others would change them
///
/// Whoever opens one of the files for writing, truncates, punches, collapses or reflinks it, or writes to it, waits until
/// the program has let go, or its time is over. The program and what it starts are let through. It is told by lines of JSON
/// on the descriptor in LEASEHOLD_BREAK_FD, and answers `release ID`. `leasehold breaks --guard` shows what happened. Needs
/// root. Ends with the program, and with its code. docs/guard.md has what cannot be seen.
#[derive(Debug, clap::Args)]
pub(crate) struct Guard {
    /// A file, or so many bytes of it; may be given many times
    #[arg(long = "file", value_name = "PATH[:START..END]", required = true)]
    files: Vec<OsString>,
    /// How long the program has to let go
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = wait_time)]
    grace: Duration,
    /// If it does not: refuse the breaker (EBUSY), or kill the program
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Expiry::Refuse)]
    on_expiry: Expiry,
    /// Also send the program this signal at a break
    #[arg(long, value_name = "NAME", value_parser = signal_number)]
    signal: Option<i32>,
    /// Keep the files from being unlinked or renamed, by mounting each on itself
    #[arg(long)]
    keep_names: bool,
    /// The log of breaks
    #[arg(long, value_name = "FILE", default_value = LOG)]
    log: PathBuf,
    /// Where guards are entered, so that no file has two
    #[arg(long, value_name = "DIR", default_value = guard::REGISTRY)]
    registry: PathBuf,
    /// Guard a process that runs already, and what descends from it
    #[arg(long, value_name = "PID", conflicts_with = "command", value_parser = clap::value_parser!(u32).range(2..))]
    pid: Option<u32>,
    /// The program and its arguments
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "pid")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Expiry {
    Refuse,
    Kill,
}

fn signal_number(name: &str) -> Result<i32, String> {
    let plain = name.to_uppercase();
    Ok(match plain.strip_prefix("SIG").unwrap_or(&plain) {
        "HUP" => 1,
        "INT" => 2,
        "USR1" => SignalKind::user_defined1().as_raw_value(),
        "USR2" => SignalKind::user_defined2().as_raw_value(),
        "TERM" => 15,
        _ => return Err(format!("{name:?} is none of HUP, INT, USR1, USR2, TERM")),
    })
}

/// A file and its range. A file whose name ends like a range is taken for a file.
fn file(text: &OsString) -> Result<(PathBuf, ByteRange), Failure> {
    let whole = (PathBuf::from(text), ByteRange::ALL);
    let Some((path, range)) = text.to_str().and_then(|text| text.rsplit_once(':')) else { return Ok(whole) };
    let Some((start, end)) = range.split_once("..") else { return Ok(whole) };
    if Path::new(text).exists() {
        return Ok(whole);
    }
    let parsed = match (start.parse::<Size>(), end.is_empty().then_some(Ok(Size(u64::MAX)))) {
        (Ok(start), open) => {
            open.unwrap_or_else(|| end.parse()).ok().and_then(|end| ByteRange::new(start.0, end.0))
        }
        (Err(_), _) => None,
    };
    let wrong =
        || Failure::new(Exit::Usage, format!("{range:?} is no range; write 0..4MiB, or 1GiB.. to the end"));
    Ok((PathBuf::from(path), parsed.ok_or_else(wrong)?))
}

impl Guard {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let files = self.files.iter().map(file).collect::<Result<Vec<_>, _>>()?;
        let mut log = Log::open(&self.log)?;
        let tell = if common.json { say_json } else { say };
        let whom = match self.pid {
            Some(pid) => Whom::Pid(pid),
            None => Whom::Command(self.command),
        };
        let passed_on = pass_signals_on()?;
        let options = Options {
            files,
            grace: self.grace,
            kill: self.on_expiry == Expiry::Kill,
            signal: self.signal,
            keep_names: self.keep_names,
            whom,
            registry: self.registry,
        };
        let guarded = tokio::task::spawn_blocking(move || {
            guard::run(&options, &passed_on, &mut |event| {
                tell(&event);
                log.take(&event);
            })
        });
        match guarded.await? {
            // The program's own code, whatever it is.
            Ok(code) => std::process::exit(code),
            Err(error) => Err(Failure::new(code(&error), error.to_string()).into()),
        }
    }
}

fn code(error: &GuardError) -> Exit {
    match error {
        GuardError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        GuardError::Registry(guard::RegistryError::Guarded { .. }) => Exit::Lease,
        _ => Exit::Failed,
    }
}

/// The number of a signal that we got and the program should have, until it is taken.
fn pass_signals_on() -> anyhow::Result<Arc<AtomicI32>> {
    let last = Arc::new(AtomicI32::new(0));
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let (mut signals, last) = (signal(kind)?, last.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                last.store(kind.as_raw_value(), Ordering::Relaxed);
            }
        });
    }
    Ok(last)
}

/// The log of breaks.
struct Log(BreakLog);

impl Log {
    fn open(path: &Path) -> Result<Log, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(
                Exit::Failed,
                format!("cannot log to {}: {error}; give another --log", path.display()),
            )
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        Ok(Log(BreakLog::open(path.to_owned()).map_err(failed)?))
    }

    fn take(&mut self, event: &Event) {
        if let Event::Ended(broken) = event
            && let Err(error) = self.0.append(&row(broken))
        {
            eprintln!("leasehold guard: cannot append to the log: {error}");
        }
    }
}

/// A line of JSON on standard error, since standard output is the program's.
fn say_json(event: &Event) {
    let value = match event {
        Event::Guarding { path, sight, holes } => {
            let sees = match sight {
                Sight::Ranges => "ranges",
                Sight::Opens => "opens",
            };
            json!({ "event": "guarding", "file": path, "sees": sees, "not_seen": holes })
        }
        Event::Killed(entry) => {
            json!({ "event": "earlier guard killed", "pid": entry.guard, "command": entry.command })
        }
        Event::Began(broken) => json!({ "event": "break began", "break": row(broken) }),
        Event::Ended(broken) => json!({ "event": "break ended", "break": row(broken) }),
        Event::Note(note) => json!({ "event": "note", "text": note }),
    };
    eprintln!("{value}");
}

fn say(event: &Event) {
    let text = match event {
        Event::Guarding { path, sight, holes } => {
            let seen = match sight {
                Sight::Ranges => "opens, and each operation with its range",
                Sight::Opens => "opens",
            };
            let mut text = format!("{} is held; it sees {seen}; not seen:", path.display());
            for hole in holes {
                text += &format!("\n  - {hole}");
            }
            text
        }
        Event::Killed(entry) => format!(
            "an earlier guard, process {} for {:?}, was killed: its files were not held since",
            entry.guard, entry.command
        ),
        Event::Began(broken) => format!(
            "{} wants to {}: {} has {} to let go",
            show::who(&broken.breaker),
            broken.operation,
            broken.holder.program,
            show::duration(broken.grace)
        ),
        Event::Ended(broken) => {
            let (outcome, took) = broken.ended.unwrap_or_default();
            format!("{} after {}: {}", outcome, show::duration(took), broken.path.display())
        }
        Event::Note(note) => note.clone(),
    };
    for line in text.lines() {
        for line in show::wrapped(&show::name(&format!("leasehold guard: {line}")), "    ") {
            eprintln!("{line}");
        }
    }
}

fn row(broken: &Broken) -> BreakRow {
    let (outcome, took) = broken.ended.unwrap_or_default();
    let since = broken.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    BreakRow {
        id: broken.id.0,
        lease: broken.lease.0,
        holder: Who::from(&*broken.holder),
        breaker: Who::from(&*broken.breaker),
        path: broken.path.to_string_lossy().into_owned(),
        start: broken.range.start(),
        end: broken.range.end(),
        operation: broken.operation.clone(),
        started_ms: since.as_millis() as u64,
        took_us: took.as_micros() as u64,
        grace_ms: broken.grace.as_millis() as u64,
        outcome: outcome.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_have_a_range_and_a_name_with_a_colon() {
        let parsed = |text: &str| file(&OsString::from(text)).map_err(|failure| failure.message);
        assert_eq!(parsed("/a"), Ok((PathBuf::from("/a"), ByteRange::ALL)));
        assert_eq!(parsed("/a:b"), Ok((PathBuf::from("/a:b"), ByteRange::ALL)));
        let range = ByteRange::new(4096, 8192).unwrap();
        assert_eq!(parsed("/a:4KiB..8KiB"), Ok((PathBuf::from("/a"), range)));
        assert_eq!(parsed("/a:1MiB.."), Ok((PathBuf::from("/a"), ByteRange::from(1 << 20))));
        assert!(parsed("/a:2..1").unwrap_err().contains("no range"));
    }
}
