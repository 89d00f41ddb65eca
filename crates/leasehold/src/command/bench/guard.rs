//! Rows about `leasehold guard`: what it costs to open a file that it guards, and any other.

use super::Context;
use super::figure::{Bar, Found, Row, Unit};
use super::process::Guarding;
use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

/// Opens in a row, each with its close.
const OPENS: u32 = 4000;

/// Opened for reading, which passes.
fn seconds_of_an_open(file: &Path) -> std::io::Result<f64> {
    let began = Instant::now();
    for _ in 0..OPENS {
        File::open(file)?;
    }
    Ok(began.elapsed().as_secs_f64() / f64::from(OPENS))
}

pub(super) async fn opens(context: &Context) -> anyhow::Result<Vec<Row>> {
    let row = |name, what, found, bar| Row { name, what, unit: Unit::Seconds, found, bar, note: None };
    let rows = |other, guarded| {
        vec![
            row(
                "guard",
                "an open of another file, while a file is guarded",
                other,
                Some(Bar::RatioAtMost(1.1)),
            ),
            row("guard-open", "an open of a guarded file", guarded, None),
        ]
    };
    if !rustix::process::geteuid().is_root() {
        let absent = || Found::Absent("only as root".to_owned());
        return Ok(rows(absent(), absent()));
    }
    let (file, other) = (context.scratch.join("guarded"), context.scratch.join("other"));
    fs::write(&file, [7; 4096])?;
    fs::write(&other, [7; 4096])?;
    let (mut others, mut guarded) = (Vec::new(), Vec::new());
    for round in context.rounds() {
        let without = seconds_of_an_open(&file)?;
        let guarding = Guarding::start(&file, &context.scratch).await?;
        let (of_other, of_file) = (seconds_of_an_open(&other)?, seconds_of_an_open(&file)?);
        guarding.stop().await?;
        if round.counts {
            others.push((of_other, without));
            guarded.push((of_file, without));
        }
    }
    Ok(rows(Found::pairs("without a guard", &others), Found::pairs("without a guard", &guarded)))
}
