//! Does the kernel let memory be pinned for long? io_uring's fixed buffers ask the same way as RDMA, VFIO and GPU drivers
//! do (`pin_user_pages` with `FOLL_LONGTERM`), and need no device.
//!
//! A writable shared mapping of a file is the hazard: writeback cleans the pages, nothing makes them dirty again, and what
//! DMA writes after that is lost. Linux refuses it since 6.5. The other kinds of memory are controls: if they are refused,
//! too, then something else is in the way, and the refusal of the first says nothing.

use super::hazards;
use super::mapping::Mapping;
use super::pattern::Mark;
use super::report::{Group, Row, Verdict};
use super::victim::{self, BYTES};
use io_uring::IoUring;
use std::io;
use std::path::Path;

const ID: &str = "pin-shared";
const WHAT: &str = "writable shared file mapping";

/// The row of the hazard, and those of the controls.
pub(super) fn rows(directory: &Path) -> Vec<Row> {
    let path = directory.join("pinned");
    let file = victim::write(&path, Mark(1));
    let of_file = |map: fn(&std::fs::File, usize) -> io::Result<Mapping>| match &file {
        Ok(file) => map(file, BYTES),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    let controls = [
        ("pin-private", "private file mapping", of_file(Mapping::private)),
        ("pin-memfd", "memfd (tmpfs)", Mapping::memfd(BYTES)),
        ("pin-anonymous", "anonymous memory", Mapping::anonymous(BYTES)),
    ];
    let mut works = false;
    let mut rows = Vec::new();
    for (id, what, mapping) in controls {
        let pinned = mapping.and_then(|mapping| pin(&mapping));
        works |= id == "pin-anonymous" && pinned.is_ok();
        let control = Row::new(Group::Pins, id, what, Verdict::Control { accepted: pinned.is_ok() });
        rows.push(match pinned {
            Ok(()) => control.with("harmless: not a file's pages"),
            Err(error) => control.with(hazards::name(&error)),
        });
    }
    rows.insert(0, shared(of_file(Mapping::shared), works));
    // With the scratch directory, at the latest.
    let _ = std::fs::remove_file(&path);
    rows
}

fn shared(mapping: io::Result<Mapping>, works: bool) -> Row {
    let row = |verdict| Row::new(Group::Pins, ID, WHAT, verdict);
    let mapping = match mapping {
        Ok(mapping) => mapping,
        Err(error) => return row(Verdict::CouldNot { why: format!("cannot map a file: {error}") }),
    };
    match pin(&mapping) {
        Ok(()) => {
            row(Verdict::counted(1, 1, "tries")).with("accepted: writes after the first writeback are lost")
        }
        Err(error) if works => {
            let note = format!("refused: {}", hazards::name(&error));
            row(Verdict::counted(0, 1, "tries")).with(note)
        }
        Err(error) => row(Verdict::not_applicable(format!(
            "even anonymous memory is refused ({}): no io_uring here, or RLIMIT_MEMLOCK is too small",
            hazards::name(&error)
        ))),
    }
}

/// Registers it as a fixed buffer of a ring of its own; the end of the ring lets it go.
fn pin(mapping: &Mapping) -> io::Result<()> {
    let ring = IoUring::new(2)?;
    let buffers = [mapping.iovec()];
    // SAFETY: the mapping outlives the ring, and no operation is ever given to the ring.
    unsafe { ring.submitter().register_buffers(&buffers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_nothing_where_even_anonymous_memory_is_refused() {
        let directory = tempfile::TempDir::new_in(".").unwrap();
        let file = victim::write(&directory.path().join("file"), Mark(1)).unwrap();
        let row = |works| shared(Mapping::shared(&file, BYTES), works);
        if row(true).verdict.is_seen() {
            eprintln!("SKIPPED in part: this kernel accepts the pin");
            return;
        }
        assert!(matches!(row(true).verdict, Verdict::NotSeen { .. }));
        assert!(matches!(row(false).verdict, Verdict::NotApplicable { .. }));
    }
}
