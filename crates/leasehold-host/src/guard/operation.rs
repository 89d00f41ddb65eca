//! What somebody who is held wants to do: the event has a range at most, /proc/PID/syscall has the call and its arguments.
//!
//! Whoever cannot be understood counts as a breaker of all that the event may be about.

use leasehold_core::range::ByteRange;
use std::fmt;
use std::fs;

const FICLONE: u64 = 0x4004_9409;
const FICLONERANGE: u64 = 0x4020_940d;
const FIDEDUPERANGE: u64 = 0xc018_9436;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// In the words that follow "wanted to".
    pub(super) what: String,
    /// The bytes that nobody may have under a lease meanwhile; `None`: it does no harm.
    pub(super) takes: Option<ByteRange>,
    /// It only makes others possible, each of which is seen by its range where the kernel tells ranges.
    pub(super) only_opens: bool,
}

impl Operation {
    fn taking(what: impl fmt::Display, takes: ByteRange) -> Operation {
        Operation { what: what.to_string(), takes: Some(takes), only_opens: false }
    }

    fn harmless(what: &str) -> Operation {
        Operation { what: what.to_owned(), takes: None, only_opens: false }
    }
}

/// What the event said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) is_open: bool,
    pub(super) range: Option<(u64, u64)>,
    /// Of the file.
    pub(super) inode: u64,
}

impl Seen {
    /// All that it may be about.
    fn all(self) -> ByteRange {
        match self.range {
            Some((offset, 0)) => ByteRange::from(offset),
            Some((offset, length)) => ByteRange::at(offset, length).unwrap_or(ByteRange::from(offset)),
            None => ByteRange::ALL,
        }
    }
}

/// What a descriptor of the process is.
trait Descriptors {
    /// The inode and the flags of an open file.
    fn look(&self, fd: u64) -> Option<(u64, u64)>;
}

struct Process(u32);

impl Descriptors for Process {
    fn look(&self, fd: u64) -> Option<(u64, u64)> {
        let text = fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", self.0)).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some((field("ino:")?.parse().ok()?, u64::from_str_radix(field("flags:")?, 8).ok()?))
    }
}

/// What the process, one of whose threads is held, wants to do.
pub(super) fn of(pid: u32, seen: Seen) -> Operation {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let calls = tasks.filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
    let mut found: Option<Operation> = None;
    for operation in calls.filter_map(|call| understood(&call, seen, &Process(pid))) {
        // Several threads may be at it: one that takes something counts.
        if found.as_ref().is_none_or(|found| found.takes.is_none()) {
            found = Some(operation);
        }
    }
    found.unwrap_or_else(|| unknown(seen))
}

fn unknown(seen: Seen) -> Operation {
    let what = if seen.is_open { "open it, for what is not known" } else { "use it, for what is not known" };
    Operation::taking(what, seen.all())
}

/// `None`: a thread that is not in a call that leads to such an event.
fn understood(call: &str, seen: Seen, descriptors: &dyn Descriptors) -> Option<Operation> {
    let mut words = call.split_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    if seen.is_open { opening(number, arguments) } else { using(number, arguments, seen, descriptors) }
}

fn opening(number: i64, arguments: [u64; 6]) -> Option<Operation> {
    let flags = match number {
        libc::SYS_openat => arguments[2],
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => arguments[1],
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat => (libc::O_WRONLY | libc::O_TRUNC) as u64,
        libc::SYS_execve | libc::SYS_execveat => return Some(Operation::harmless("run it")),
        // Its flags lie in memory of its own.
        libc::SYS_openat2 => return Some(Operation::taking("open it (openat2)", ByteRange::ALL)),
        _ => return None,
    };
    let has = |flag: i32| flags & flag as u64 != 0;
    Some(if has(libc::O_TRUNC) {
        Operation::taking("open it, and truncate to 0", ByteRange::ALL)
    } else if has(libc::O_ACCMODE) {
        Operation { only_opens: true, ..Operation::taking("open it for writing", ByteRange::ALL) }
    } else {
        Operation::harmless("open it for reading")
    })
}

fn using(number: i64, arguments: [u64; 6], seen: Seen, descriptors: &dyn Descriptors) -> Option<Operation> {
    let [first, second, third, fourth, fifth, _] = arguments;
    let look = |fd: u64| descriptors.look(fd).filter(|&(inode, _)| inode == seen.inode);
    let bytes = seen.all();
    Some(match number {
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 => {
            look(first)?;
            Operation::harmless("read it")
        }
        libc::SYS_sendfile => {
            look(second)?;
            Operation::harmless("read it")
        }
        libc::SYS_readahead | libc::SYS_execve | libc::SYS_execveat => Operation::harmless("read it"),
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
            let (_, flags) = look(first)?;
            let how = if flags & libc::O_DIRECT as u64 != 0 { " with O_DIRECT" } else { "" };
            Operation::taking(format_args!("write {bytes}{how}"), bytes)
        }
        libc::SYS_truncate => {
            Operation::taking(format_args!("truncate to {second}"), ByteRange::from(second))
        }
        libc::SYS_ftruncate => {
            look(first)?;
            Operation::taking(format_args!("truncate to {second}"), ByteRange::from(second))
        }
        libc::SYS_fallocate => {
            look(first)?;
            allocating(second, ByteRange::at(third, fourth).unwrap_or(bytes))
        }
        libc::SYS_mmap => {
            look(fifth)?;
            let (writes, shared) = (libc::PROT_WRITE as u64, libc::MAP_SHARED as u64);
            if third & writes != 0 && fourth & shared != 0 {
                Operation::taking(format_args!("map {bytes} for writing"), bytes)
            } else {
                Operation::harmless("map it for reading")
            }
        }
        libc::SYS_copy_file_range => {
            if look(third).is_some() {
                Operation::taking(format_args!("copy onto {bytes}"), bytes)
            } else {
                look(first)?;
                Operation::taking(format_args!("copy from {bytes}, sharing blocks"), bytes)
            }
        }
        libc::SYS_ioctl => {
            let (from, onto) = match second & 0xffff_ffff {
                FICLONE | FICLONERANGE => ("reflink from", "reflink onto"),
                FIDEDUPERANGE => ("share blocks of", "share blocks of"),
                _ => return None,
            };
            let what = if look(first).is_some() { onto } else { from };
            Operation::taking(format_args!("{what} it"), bytes)
        }
        _ => return None,
    })
}

fn allocating(mode: u64, range: ByteRange) -> Operation {
    let has = |flag: i32| mode & flag as u64 != 0;
    let behind = ByteRange::from(range.start());
    if has(libc::FALLOC_FL_PUNCH_HOLE) {
        Operation::taking(format_args!("punch {range}"), range)
    } else if has(libc::FALLOC_FL_COLLAPSE_RANGE) {
        Operation::taking(format_args!("collapse {range}"), behind)
    } else if has(libc::FALLOC_FL_INSERT_RANGE) {
        Operation::taking(format_args!("insert {range}"), behind)
    } else if has(libc::FALLOC_FL_ZERO_RANGE) {
        Operation::taking(format_args!("zero {range}"), range)
    } else if has(libc::FALLOC_FL_UNSHARE_RANGE) {
        Operation::taking(format_args!("unshare {range}"), range)
    } else {
        Operation::harmless("allocate blocks")
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::*;

    struct Open(Vec<(u64, u64)>);

    impl Descriptors for Open {
        fn look(&self, fd: u64) -> Option<(u64, u64)> {
            self.0.get(fd as usize).copied()
        }
    }

    const FILE: u64 = 42;

    fn said(call: &str, is_open: bool, range: Option<(u64, u64)>) -> Option<(String, Option<ByteRange>)> {
        let descriptors = Open(vec![(FILE, 0), (7, 0), (FILE, libc::O_DIRECT as u64)]);
        let seen = Seen { is_open, range, inode: FILE };
        understood(call, seen, &descriptors).map(|operation| (operation.what, operation.takes))
    }

    fn range(start: u64, end: u64) -> Option<ByteRange> {
        ByteRange::new(start, end)
    }

    #[test]
    fn what_the_kernel_shows_of_a_call_is_understood() {
        let some = |what: &str, takes| Some((what.to_owned(), takes));
        let at = Some((0, 4096));
        let all = Some(ByteRange::ALL);
        for (call, is_open, seen, expected) in [
            ("257 0xffffff9c 0x7ffc 0x0 0x0 0x0 0x0 0x1 0x2", true, None, some("open it for reading", None)),
            ("257 0xffffff9c 0x7ffc 0x2 0x0 0x0 0x0 0x1 0x2", true, None, some("open it for writing", all)),
            (
                "257 0xffffff9c 0x7ffc 0x241 0x0 0x0 0x0 0x1 0x2",
                true,
                None,
                some("open it, and truncate to 0", all),
            ),
            ("0 0x0 0x1 0x1000 0x0 0x0 0x0 0x1 0x2", false, at, some("read it", None)),
            (
                "1 0x2 0x1 0x1000 0x0 0x0 0x0 0x1 0x2",
                false,
                at,
                some("write 0..4096 with O_DIRECT", range(0, 4096)),
            ),
            (
                "76 0x7f 0x2000 0x0 0x0 0x0 0x0 0x1 0x2",
                false,
                Some((8192, 0)),
                some("truncate to 8192", Some(ByteRange::from(8192))),
            ),
            (
                "285 0x0 0x3 0x1000 0x1000 0x0 0x0 0x1 0x2",
                false,
                at,
                some("punch 4096..8192", range(4096, 8192)),
            ),
            (
                "285 0x0 0x8 0x1000 0x1000 0x0 0x0 0x1 0x2",
                false,
                at,
                some("collapse 4096..8192", Some(ByteRange::from(4096))),
            ),
            ("285 0x0 0x1 0x0 0x1000 0x0 0x0 0x1 0x2", false, at, some("allocate blocks", None)),
            ("16 0x1 0x40049409 0x0 0x0 0x0 0x0 0x1 0x2", false, at, some("reflink from it", range(0, 4096))),
            ("16 0x0 0x40049409 0x1 0x0 0x0 0x0 0x1 0x2", false, at, some("reflink onto it", range(0, 4096))),
            ("9 0x0 0x1000 0x1 0x1 0x0 0x0 0x1 0x2", false, at, some("map it for reading", None)),
            ("1 0x1 0x1 0x1000 0x0 0x0 0x0 0x1 0x2", false, at, None),
            ("running", false, at, None),
        ] {
            assert_eq!(said(call, is_open, seen), expected, "{call}");
        }
    }

    #[test]
    fn whoever_cannot_be_understood_takes_all_that_it_may_be_about() {
        let seen = |is_open, range| Seen { is_open, range, inode: FILE };
        assert_eq!(unknown(seen(true, None)).takes, Some(ByteRange::ALL));
        assert_eq!(unknown(seen(false, Some((4096, 4096)))).takes, range(4096, 8192));
    }
}
