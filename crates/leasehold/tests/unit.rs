//! The unit in dist/: what systemd thinks of it.

use std::path::Path;
use std::process::{Command, Output};

/// `None`, and a word to the reader, where there is no systemd.
fn analyze(arguments: &[&str], unit: &Path) -> Option<String> {
    let Ok(Output { status, stdout, stderr }) =
        Command::new("systemd-analyze").args(arguments).arg(unit).output()
    else {
        eprintln!("SKIPPED: there is no systemd-analyze here");
        return None;
    };
    let says = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    assert!(status.success(), "{arguments:?}: {says}");
    Some(says)
}

#[test]
fn the_unit_has_no_mistakes_and_leaves_little_exposed() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/leasehold.service");
    let text = std::fs::read_to_string(&shipped).expect("it is shipped");
    let installed = "/usr/local/bin/leasehold ";
    assert!(
        text.contains(installed) && text.contains("LimitMEMLOCK=infinity") && text.contains("User=leasehold")
    );
    // With the program where it is here.
    let directory = tempfile::tempdir().expect("a directory");
    let unit = directory.path().join("leasehold.service");
    let here = format!("{} ", env!("CARGO_BIN_EXE_leasehold"));
    std::fs::write(&unit, text.replace(installed, &here)).expect("our own directory");
    if let Some(says) = analyze(&["verify"], &unit) {
        assert!(!says.contains("leasehold.service:"), "{says}");
    }
    // Of 100, as `systemd-analyze security` counts: 20 is its "OK".
    analyze(&["security", "--offline=true", "--threshold=20"], &unit);
}
