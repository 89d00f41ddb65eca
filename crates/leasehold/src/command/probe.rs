//! `leasehold probe`: what does DMA into files do here? Tried in a process of its own, which a filesystem may hang.

mod compare;
pub(crate) mod flyer;
mod text;
pub(crate) mod worker;

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::show;
use anyhow::Context as _;
use indicatif::ProgressBar;
use leasehold_host::probe::{Event, Place, Row, Verdict};
use rustix::mount::UnmountFlags;
use serde_json::json;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// A directory that cannot be looked at within this time is on a filesystem that hangs.
const LOOK: Duration = Duration::from_secs(5);
/// No step takes longer than this, races aside, unless something hangs.
const STEP: Duration = Duration::from_secs(60);
/// How long a stopped probe may take to clean up after itself.
const STOP: Duration = Duration::from_secs(10);
/// How long a killed process may take to be gone, and what it left to be removed.
const KILL: Duration = Duration::from_secs(3);
/// How often we look whether the process was killed: its output may stay open then.
const GLANCE: Duration = Duration::from_secs(1);

/// Try what DMA into files does in a directory: is this host safe?
///
/// Makes a scratch directory there, removes it, and takes less than a minute. Exit code 0 if no hazard was seen, 1 if one
/// was, 2 if nothing could be tried. docs/probe.md explains each hazard, and what to do about it.
#[derive(Debug, clap::Args)]
pub(crate) struct Probe {
    #[command(flatten)]
    what: What,
}

/// What the process that tries it is told, too.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct What {
    /// Where to try it: a directory on the filesystem in question
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Try more, for what happens seldom; takes some minutes
    #[arg(long)]
    long: bool,
    /// Put a store of Leasehold's own through the same
    #[arg(long)]
    compare: bool,
    /// Freeze the filesystem for a moment, too: all its writers wait, for up to 1.5 s; needs root
    #[arg(long)]
    freeze: bool,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Report {
    place: Option<Place>,
    rows: Vec<Row>,
    /// What was made and not yet removed; whether something is mounted there.
    made: Vec<(PathBuf, bool)>,
    failure: Option<String>,
    not_removed: Option<String>,
    done: bool,
}

impl Probe {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let began = Instant::now();
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(200));
        let mut report = Report::default();
        let followed = self.follow(&mut report, &bar).await;
        bar.finish_and_clear();
        if let Some(place) = &report.place
            && !report.rows.is_empty()
        {
            let seconds = began.elapsed().as_secs_f64();
            if common.json {
                show::json_document(&document(&self.what, place, &report, seconds))?;
            } else {
                show::styled(&text::text(place, &report.rows))?;
                if report.done && report.not_removed.is_none() {
                    show::line(format_args!("\n({seconds:.0} s; the scratch directory is removed.)"))?;
                }
            }
        }
        followed?;
        outcome(&report)
    }

    /// Starts the process that tries it, and hears what it finds.
    async fn follow(&self, report: &mut Report, bar: &ProgressBar) -> Outcome {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut worker = Worker::start(&self.what)?;
        let mut stopping = false;
        let mut deadline = Instant::now() + LOOK;
        let mut glance = tokio::time::interval(GLANCE);
        let mut was_killed = false;
        let heard = loop {
            tokio::select! {
                line = worker.lines.next_line() => match line.context("cannot hear what the probe says")? {
                    None => break Ok(()),
                    Some(line) => {
                        let event = serde_json::from_str(&line).context("the probe says something else")?;
                        report.hear(event, bar);
                    }
                },
                _ = interrupt.recv() => stopping = true,
                _ = terminate.recv() => stopping = true,
                _ = glance.tick() => {
                    // What it said before is heard by the second time.
                    if was_killed {
                        break Ok(());
                    }
                    was_killed = worker.was_killed();
                    continue;
                }
                () = tokio::time::sleep_until(deadline) => break Err(()),
            }
            deadline = if stopping {
                // Once only: whoever asks twice does not wait longer.
                if worker.stop() { Instant::now() + STOP } else { deadline }
            } else if !report.has_scratch() {
                Instant::now() + LOOK
            } else {
                Instant::now() + STEP + if self.what.long { worker::LONG_STEP } else { Duration::ZERO }
            };
        };
        match heard {
            Ok(()) if report.done || report.failure.is_some() => worker.wait().await?,
            Ok(()) => {
                // A thread that reads the FUSE file, which this process serves, ends when that is gone.
                report.clean().await;
                let ended = worker.child.wait().await.context("cannot wait for the probe")?;
                let _ = timeout(KILL, &mut worker.complaints).await;
                report.failure = Some(format!("the probe's process ended early ({ended})"));
            }
            Err(()) => {
                let hung = self.hung(report);
                report.failure = Some(match worker.kill().await {
                    Ok(()) => {
                        report.clean().await;
                        hung
                    }
                    Err(pid) => format!(
                        "{hung}; process {pid}, which tried it, cannot be killed before the filesystem answers, \
                         and leaves {} behind",
                        report.paths()
                    ),
                });
            }
        }
        Ok(())
    }

    fn hung(&self, report: &Report) -> String {
        let directory = self.what.directory.display();
        match report.place {
            None => format!(
                "{directory} did not answer within {} s: the filesystem hangs; see what its server or disk does",
                LOOK.as_secs()
            ),
            Some(_) => format!("{directory} stopped answering: the filesystem hangs; see the kernel's log"),
        }
    }
}

impl Report {
    fn hear(&mut self, event: Event, bar: &ProgressBar) {
        match event {
            Event::Place(place) => self.place = Some(place),
            Event::Made { path, mount } => self.made.push((path, mount)),
            Event::Trying { what } => bar.set_message(format!("trying: {what}")),
            Event::Row(row) => self.rows.push(row),
            Event::NotRemoved { message } => self.not_removed = Some(message),
            Event::Failed { message } => self.failure = Some(message),
            Event::Done => self.done = true,
        }
    }

    /// Removes what a process that is gone has left.
    async fn clean(&mut self) {
        let made: Vec<_> = self.made.iter().rev().cloned().collect();
        let removing = tokio::task::spawn_blocking(move || {
            let mut left = Vec::new();
            for (path, mount) in made {
                if mount {
                    // Nobody answers there any more: whoever waits for that gets an error.
                    let _ = rustix::mount::unmount(&path, UnmountFlags::FORCE);
                    let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
                    let _ = std::fs::remove_dir(&path);
                } else {
                    let _ = std::fs::remove_dir_all(&path);
                }
                if path.symlink_metadata().is_ok() {
                    left.push(path.display().to_string());
                }
            }
            left.join(", ")
        });
        // Of what hangs, nobody knows whether it is still there.
        let left = timeout(KILL, removing).await.map_or_else(|_| self.paths(), Result::unwrap_or_default);
        if !left.is_empty() {
            self.not_removed = Some(format!("cannot remove {left}; remove it yourself"));
        }
    }

    /// Whether the filesystem has answered so far as to make a directory.
    fn has_scratch(&self) -> bool {
        self.made.iter().any(|(_, mount)| !mount)
    }

    /// What was made, without a look at it.
    fn paths(&self) -> String {
        let paths: Vec<String> = self.made.iter().map(|(path, _)| path.display().to_string()).collect();
        if paths.is_empty() { "nothing".to_owned() } else { paths.join(", ") }
    }
}

/// The process that tries it. Its standard input is its life line.
struct Worker {
    child: Child,
    pid: u32,
    life_line: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    complaints: JoinHandle<io::Result<u64>>,
}

impl Worker {
    fn start(what: &What) -> anyhow::Result<Worker> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.arg("probe-worker").arg(&what.directory);
        for (flag, given) in [("--long", what.long), ("--compare", what.compare), ("--freeze", what.freeze)] {
            if given {
                command.arg(flag);
            }
        }
        for (variable, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"LEASEHOLD_"))
        {
            command.env_remove(variable);
        }
        // The terminal's Ctrl-C is for us; we tell it.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("cannot start this program again")?;
        let pid = child.id().context("the process ended before it began")?;
        let life_line = child.stdin.take();
        let mut stderr = child.stderr.take().context("the probe has no standard error")?;
        // Not ours itself: who reads that would wait for a process that cannot be killed.
        let complaints =
            tokio::spawn(async move { tokio::io::copy(&mut stderr, &mut tokio::io::stderr()).await });
        let stdout = child.stdout.take().context("the probe has no standard output")?;
        Ok(Worker { child, pid, life_line, lines: BufReader::new(stdout).lines(), complaints })
    }

    /// Asks it to end; whether it was the first time.
    fn stop(&mut self) -> bool {
        self.life_line.take().is_some()
    }

    /// Whether it was killed, and some of its threads may not be able to end.
    fn was_killed(&self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    }

    async fn wait(&mut self) -> Outcome {
        self.stop();
        if timeout(STOP, self.child.wait()).await.is_err() {
            let _ = self.kill().await;
        }
        Ok(())
    }

    /// Its pid, if it does not go.
    async fn kill(&mut self) -> Result<(), u32> {
        let _ = self.child.start_kill();
        match timeout(KILL, self.child.wait()).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.pid),
        }
    }
}

/// As the exit code has it.
fn outcome(report: &Report) -> Outcome {
    let could_not = |text: String| Err(Failure::new(Exit::Usage, text).into());
    let mut seen: Vec<&str> = Vec::new();
    for row in report.rows.iter().filter(|row| row.verdict.is_seen()) {
        if !seen.contains(&row.id.as_str()) {
            seen.push(&row.id);
        }
    }
    if let Some(message) = &report.not_removed {
        eprintln!("leasehold: {}", show::name(message));
    }
    if !seen.is_empty() {
        if let Some(message) = &report.failure {
            eprintln!("leasehold: {}", show::name(message));
        }
        return Err(Failure::new(Exit::Failed, format!("hazards seen: {}", seen.join(", "))).into());
    }
    if let Some(message) = &report.failure {
        return could_not(message.clone());
    }
    let failed = report.rows.iter().find_map(|row| match &row.verdict {
        Verdict::CouldNot { why } => Some(format!("could not try {:?}: {why}", row.id)),
        _ => None,
    });
    if let Some(message) = failed {
        return could_not(message);
    }
    if !report.rows.iter().any(|row| matches!(row.verdict, Verdict::NotSeen { .. })) {
        return could_not("nothing of it could be tried; the table says why".to_owned());
    }
    match &report.not_removed {
        Some(_) => could_not("the scratch directory is still there".to_owned()),
        None => Ok(()),
    }
}

fn document(what: &What, place: &Place, report: &Report, seconds: f64) -> serde_json::Value {
    let seen = report.rows.iter().filter(|row| row.verdict.is_seen()).count();
    json!({
        "place": place,
        "long": what.long,
        "compare": what.compare,
        "freeze": what.freeze,
        "seconds": (seconds * 10.0).round() / 10.0,
        "hazards": report.rows,
        "seen": seen,
        "complete": report.done,
        "failure": report.failure,
        "not_removed": report.not_removed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use leasehold_host::probe::Group;

    fn report(verdicts: &[Verdict]) -> Report {
        let row = |verdict: &Verdict| Row::new(Group::Held, "punch", "a hole", verdict.clone());
        Report { rows: verdicts.iter().map(row).collect(), done: true, ..Report::default() }
    }

    fn code(report: &Report) -> Exit {
        match outcome(report) {
            Ok(()) => Exit::Ok,
            Err(error) => crate::command::exit::code(&error),
        }
    }

    #[test]
    fn the_exit_code_tells_a_hazard_from_none_and_both_from_a_probe_that_could_not_look() {
        let seen = Verdict::counted(1, 2, "tries");
        let not_seen = Verdict::counted(0, 2, "tries");
        let not_applicable = Verdict::NotApplicable { why: "no device".to_owned() };
        let could_not = Verdict::CouldNot { why: "EIO".to_owned() };
        assert_eq!(code(&report(&[not_seen.clone(), not_applicable.clone()])), Exit::Ok);
        assert_eq!(code(&report(&[not_seen.clone(), seen.clone()])), Exit::Failed);
        assert_eq!(code(&report(&[could_not.clone(), seen.clone()])), Exit::Failed);
        assert_eq!(code(&report(&[could_not, not_seen.clone()])), Exit::Usage);
        assert_eq!(code(&report(&[not_applicable])), Exit::Usage, "nothing was tried");
        assert_eq!(code(&report(&[])), Exit::Usage);
        let stopped = Report { failure: Some("stopped".to_owned()), ..report(&[not_seen]) };
        assert_eq!(code(&stopped), Exit::Usage);
        let stopped = Report { failure: Some("stopped".to_owned()), ..report(&[seen]) };
        assert_eq!(code(&stopped), Exit::Failed);
    }

    #[tokio::test]
    async fn what_a_killed_probe_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = directory.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        std::fs::write(scratch.join("file"), "x").unwrap();
        let mut report = Report { made: vec![(scratch.clone(), false)], ..Report::default() };
        report.clean().await;
        assert!(!scratch.exists());
        assert_eq!(report.not_removed, None);
    }
}
