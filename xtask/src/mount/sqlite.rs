//! SQLite: transactions by a process that is killed again and again, and now and then the server with it. What was
//! acknowledged is there, and no transaction is there in part.

use super::served::Served;
use super::{shared_mappings, tool};
use crate::step::debian_package;
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// How SQLite keeps a transaction whole. The write-ahead log has its index in a shared mapping.
fn journals() -> &'static [&'static str] {
    if shared_mappings() { &["delete", "wal"] } else { &["delete"] }
}

const PATIENCE: Duration = Duration::from_secs(60);

pub fn installed() -> bool {
    debian_package("sqlite3", "sqlite3", "SQLite on the mount");
    Command::new("sqlite3").arg("--version").output().is_ok()
}

/// So many kills with each kind of journal; with every second, it is the server that is killed first.
pub fn killed(mut served: Served, kills: u32) -> Result<Served> {
    for journal in journals() {
        let database = served.at().join(format!("{journal}.db"));
        let create = format!(
            "PRAGMA journal_mode = {journal}; CREATE TABLE rows (n INTEGER PRIMARY KEY, bytes BLOB);
             CREATE TABLE last (n INTEGER); INSERT INTO last VALUES (0);"
        );
        ask(&database, &create)?;
        let mut committed = 0;
        for kill in 1..=kills {
            let acknowledged = insert_until_killed(&mut served, &database, committed, kill)?;
            committed = check(&database, acknowledged).with_context(|| {
                format!("journal {journal}, kill {kill} after {acknowledged} transactions")
            })?;
        }
        ensure!(committed >= u64::from(kills), "{kills} kills and only {committed} transactions");
        println!("sqlite: journal {journal}: {kills} kills, {committed} transactions, none lost");
    }
    Ok(served)
}

/// Returns the last transaction that was acknowledged before the process was gone.
fn insert_until_killed(served: &mut Served, database: &Path, committed: u64, kill: u32) -> Result<u64> {
    let with_the_server = kill.is_multiple_of(2);
    let mut sqlite = Command::new("sqlite3");
    sqlite.args(["-batch", "-bail"]).arg(database).stdin(Stdio::piped()).stdout(Stdio::piped());
    if with_the_server {
        // It says that it cannot go on.
        sqlite.stderr(Stdio::null());
    }
    let mut sqlite = tool::spawn(&mut sqlite)?;
    let mut orders = sqlite.stdin.take().context("its input is a pipe")?;
    // A line is one transaction, with the word that it was committed. SQLite says what it has to say before it reads the next.
    let writer = thread::spawn(move || {
        for n in committed + 1.. {
            let order = format!(
                "BEGIN; INSERT INTO rows VALUES ({n}, randomblob(9000)); UPDATE last SET n = {n}; COMMIT; SELECT {n};\n"
            );
            if orders.write_all(order.as_bytes()).is_err() {
                return;
            }
        }
    });
    let mut said = BufReader::new(sqlite.stdout.take().context("its output is a pipe")?).lines();
    let mut acknowledged = committed;
    for line in said.by_ref().take(1 + kill as usize % 5) {
        acknowledged = line?.parse().context("SQLite said something else than a number")?;
    }
    if with_the_server {
        // At once: what was acknowledged without being on disk would be there a moment later.
        served.kill()?;
    } else {
        // At any moment of a transaction, a different one each time.
        thread::sleep(Duration::from_micros(u64::from(kill) * 7919 % 30_000));
    }
    sqlite.kill()?;
    let status = sqlite.wait()?;
    if !with_the_server && status.signal() != Some(9) {
        bail!("SQLite ended by itself: {status}");
    }
    for line in said {
        acknowledged = line?.parse().unwrap_or(acknowledged);
    }
    writer.join().ok().context("the writer does not panic")?;
    if with_the_server {
        served.start_again()?;
    }
    Ok(acknowledged)
}

/// Returns the last transaction that is there: all of it and all before it, and at least what was acknowledged.
fn check(database: &Path, acknowledged: u64) -> Result<u64> {
    let found = ask(
        database,
        "PRAGMA integrity_check; SELECT count(*), max(n), sum(length(bytes)) / 9000 FROM rows; SELECT n FROM last;",
    )?;
    let (integrity, numbers) = found.trim().split_once('\n').context("SQLite says too little")?;
    let numbers: Vec<u64> = numbers.split(['|', '\n']).map(|number| number.parse().unwrap_or(0)).collect();
    let last = *numbers.last().context("there is a number")?;
    ensure!(integrity == "ok", "integrity: {found}");
    ensure!(numbers.iter().all(|&number| number == last), "a transaction is there in part: {found}");
    ensure!(last >= acknowledged, "transaction {acknowledged} was acknowledged, and {last} is the last");
    Ok(last)
}

/// What SQLite answers.
fn ask(database: &Path, question: &str) -> Result<String> {
    let (status, said) =
        tool::output(Command::new("sqlite3").arg("-bail").arg(database).arg(question), PATIENCE)?;
    ensure!(status.success(), "SQLite: {status}: {said}");
    Ok(said)
}
