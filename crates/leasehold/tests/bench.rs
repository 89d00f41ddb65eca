//! `leasehold bench --quick`: that every row runs and says what it must. What it measures is of no matter here.

use serde_json::Value;
use std::process::{Command, Stdio};

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.arg("bench").args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn every_row_runs_and_is_there_and_nothing_is_left_behind() {
    let directory =
        tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory beside the build");
    let there = directory.path().to_str().expect("UTF-8");
    let output = bench(&["--quick", "--json", "--directory", there]).output().expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = found["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().map(|row| row["row"].as_str().expect("a name")).collect();
    let all = [
        "put",
        "put-pwrite-cpu",
        "put-pwrite",
        "put-direct-cpu",
        "put-direct",
        "put-frames-cpu",
        "put-frames",
        "rsync",
        "nc",
        "mounted",
        "get",
        "tls-cpu",
        "tls-put",
        "tls-get",
        "clients",
        "clients-share",
        "acquire-commit",
        "fence",
        "truncate",
        "leases",
        "step",
        "metadata",
        "mtu-1500",
        "mount-write",
        "mount-read-cold",
        "mount-read-warm",
        "mount-random-read-cold",
        "mount-random-read-warm",
        "mount-random-write",
        "mount-durable-write",
        "mount-create",
        "mount-readdir-cold",
        "mount-readdir-warm",
        "mount-stat-cold",
        "mount-stat-warm",
        "mount-rename",
        "mount-unlink",
        "guard",
        "guard-open",
    ];
    assert_eq!(names, all);
    for row in rows {
        let name = &row["row"];
        if row["absent"].is_string() {
            let may = ["rsync", "nc", "mounted", "mtu-1500"].iter().any(|may| name == may);
            assert!(may || name.as_str().is_some_and(|name| name.starts_with("mount-")), "{row:#}");
            continue;
        }
        assert!(row["ours"]["median"].as_f64().is_some_and(|median| median >= 0.0), "{row:#}");
        let compared = row["baseline"].is_object();
        assert_eq!(compared, row["ratio"]["median"].is_f64(), "{row:#}");
        assert_eq!(row["bar"].is_null(), row["met"].is_null(), "{row:#}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn every_series_runs_and_has_a_plot() {
    let directory =
        tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory beside the build");
    let plots = directory.path().join("plots");
    let (there, into) = (directory.path().to_str().expect("UTF-8"), plots.to_str().expect("UTF-8"));
    let arguments = ["--quick", "--growth", "--json", "--directory", there, "--plots", into];
    let output = bench(&arguments).output().expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let series = found["series"].as_array().expect("series");
    assert_eq!(series.len(), 5);
    for one in series {
        let curves = one["curves"].as_array().expect("curves");
        assert!(
            curves.iter().all(|curve| curve["points"].as_array().is_some_and(|points| points.len() > 1)),
            "{one:#}"
        );
        let plot = plots.join(format!("{}.svg", one["series"].as_str().expect("a name")));
        assert!(std::fs::read_to_string(plot).expect("a plot").ends_with("</svg>\n"));
    }
}

#[test]
fn the_table_fits_in_80_columns() {
    let there = env!("CARGO_TARGET_TMPDIR");
    let output = bench(&["--quick", "step", "truncate", "--directory", there]).output().expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(table.lines().any(|line| line.contains("BASELINE") && line.chars().count() <= 80), "{table}");
    let table = table.split("BASELINE").nth(1).expect("a table");
    assert!(
        table.lines().take_while(|line| !line.is_empty()).all(|line| line.chars().count() <= 80),
        "{table}"
    );
}

#[test]
fn what_must_be_durable_is_not_measured_in_memory() {
    if !std::path::Path::new("/dev/shm").is_dir() {
        eprintln!("SKIPPED: there is no /dev/shm");
        return;
    }
    let output = bench(&["--quick", "put", "--directory", "/dev/shm"]).output().expect("a process");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("tmpfs") && said.contains("--directory"), "{said}");
}
