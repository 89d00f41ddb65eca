//! The C header: it compiles without a warning, and a program that uses it hears and answers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

const PROGRAM: &str = r#"
#include "leasehold_guarded.h"
int main(void)
{
	char line[4096];
	int fd = lh_guard_fd();
	while (lh_guard_read(fd, line, sizeof line) > 0) {
		unsigned long long id = lh_guard_break(line);
		if (id && (lh_guard_release(fd, id) || lh_guard_hold(fd, "/a b")))
			return 1;
	}
	return lh_guard_make_durable(-1, NULL, 0) ? 0 : 2;
}
"#;

#[test]
fn a_c_program_hears_and_answers() {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (directory.path().join("a.c"), directory.path().join("a"));
    std::fs::write(&source, PROGRAM).unwrap();
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-I", include, "-o"]).arg(&program).arg(&source);
    match cc.status() {
        Ok(status) => assert!(status.success()),
        Err(error) => return eprintln!("SKIPPED a_c_program_hears_and_answers: no cc: {error}"),
    }
    let (guard, theirs) = UnixStream::pair().unwrap();
    guard.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    // Standard input is a descriptor that is inherited like any other.
    let mut child = Command::new(program)
        .env("LEASEHOLD_BREAK_FD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    writeln!(&guard, r#"{{"event":"held","file":"/a b"}}"#).unwrap();
    writeln!(&guard, r#"{{"breaker":{{"pid":1}},"event":"break","file":"/a b","id":42}}"#).unwrap();
    let mut answers = BufReader::new(&guard).lines();
    assert_eq!(answers.next().unwrap().unwrap(), "release 42");
    assert_eq!(answers.next().unwrap().unwrap(), "hold /a b");
    guard.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(child.wait().unwrap().success());
}
