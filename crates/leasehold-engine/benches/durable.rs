//! How to make appended chunks durable without stalling: what docs/decisions/2026-11-21-write-ahead-record.md rests on.
//!
//! `cargo bench -p leasehold-engine --bench durable -- [DIRECTORY] [MIB]`: in DIRECTORY (default: target), for each way
//! to lay out the file, to make data durable and to record it, writes MIB MiB (default 512) in chunks of 1 MiB.

use io_uring::{IoUring, opcode, types};
use leasehold_core::ids::{FileId, FrameId, LeaseId, RequestId, WriteId};
use leasehold_core::input::Input;
use leasehold_core::output::Output;
use leasehold_core::range::{ByteRange, Run};
use leasehold_engine::arena::{Arena, Pages};
use leasehold_engine::path::StorePath;
use leasehold_engine::storage::{Answers, Detail, Storage, StorageConfig};
use std::alloc::{Layout, alloc_zeroed};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Instant;

const CHUNK: u64 = 1 << 20;
const LOG_BATCH: usize = 8 << 10;
const LOG_SPACE: u64 = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Extents {
    /// The file grows with each write.
    Append,
    /// `ftruncate` to the final size first: a hole within the size.
    Sparse,
    /// `fallocate` with KEEP_SIZE: unwritten extents past the size.
    KeepSize,
    /// `fallocate`: unwritten extents within the size.
    Allocated,
    /// Written before.
    Overwrite,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Durable {
    /// `RWF_DSYNC` on each write.
    Dsync,
    /// One `fdatasync` at a time, for all writes that ended before it began.
    Batched,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Record {
    None,
    /// One batch in flight, made durable beside the data (blocks that held nothing).
    Beside,
    /// One batch in flight, made durable before the data of its chunks (overwrites).
    Before,
}

fn open(path: &PathBuf) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("O_DIRECT")
}

fn prepare(path: &PathBuf, extents: Extents, bytes: u64, buffer: &[u8]) -> File {
    let _ = std::fs::remove_file(path);
    let file = open(path);
    let allocate = |flags| {
        // SAFETY: a plain system call on a descriptor that lives.
        assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), flags, 0, bytes as i64) }, 0);
    };
    match extents {
        Extents::Append => {}
        Extents::Sparse => file.set_len(bytes).expect("ftruncate"),
        Extents::KeepSize => allocate(libc::FALLOC_FL_KEEP_SIZE),
        Extents::Allocated => allocate(0),
        Extents::Overwrite => {
            (0..bytes / CHUNK).for_each(|i| file.write_all_at(buffer, i * CHUNK).expect("write"))
        }
    }
    file.sync_all().expect("fsync");
    file
}

fn cpu_seconds() -> f64 {
    // SAFETY: getrusage fills the struct it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

const LOG: u64 = u64::MAX;
const SYNC: u64 = u64::MAX - 1;

fn run(
    file: &File,
    log: &File,
    memory: &mut [u8],
    depth: usize,
    bytes: u64,
    durable: Durable,
    record: Record,
) -> (f64, f64) {
    let mut ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .build(256)
        .expect("io_uring");
    let base = memory.as_mut_ptr();
    let whole = [libc::iovec { iov_base: base.cast(), iov_len: memory.len() }];
    // SAFETY: the memory outlives the ring.
    unsafe { ring.submitter().register_buffers(&whole).expect("register") };
    let chunks = bytes / CHUNK;
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let mut free: Vec<usize> = (0..depth).collect();
    let (mut next, mut finished) = (0u64, 0u64);
    // Chunks by stage: waiting for a batch of the record, waiting for a flush.
    let (mut unrecorded, mut recording) = (VecDeque::new(), Vec::new());
    let (mut written, mut syncing) = (Vec::new(), Vec::new());
    let (mut log_busy, mut sync_busy, mut log_offset) = (false, false, 0u64);
    let mut slot_of = vec![0usize; chunks as usize];
    let mut halves: BTreeSet<u64> = BTreeSet::new();
    loop {
        let mut start = Vec::new();
        while next < chunks
            && let Some(slot) = free.pop()
        {
            slot_of[next as usize] = slot;
            if record != Record::None {
                unrecorded.push_back(next);
            }
            if record != Record::Before {
                start.push(next);
            }
            next += 1;
        }
        if !log_busy && !unrecorded.is_empty() {
            recording.extend(unrecorded.drain(..));
            // SAFETY: the last LOG_BATCH bytes of the memory are the record's.
            let from = unsafe { base.add(depth * CHUNK as usize) };
            let entry = opcode::WriteFixed::new(types::Fd(log.as_raw_fd()), from, LOG_BATCH as u32, 0)
                .offset(log_offset)
                .rw_flags(libc::RWF_DSYNC as _)
                .build()
                .user_data(LOG);
            log_offset = (log_offset + LOG_BATCH as u64) % LOG_SPACE;
            // SAFETY: as above.
            unsafe { ring.submission().push(&entry).expect("room") };
            log_busy = true;
        }
        if durable == Durable::Batched && !sync_busy && !written.is_empty() {
            syncing.append(&mut written);
            let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd()))
                .flags(types::FsyncFlags::DATASYNC)
                .build()
                .user_data(SYNC);
            // SAFETY: no memory is involved.
            unsafe { ring.submission().push(&entry).expect("room") };
            sync_busy = true;
        }
        let submit = |ring: &mut IoUring, chunk: u64, slot: usize| {
            // SAFETY: each slot is one chunk of the memory.
            let from = unsafe { base.add(slot * CHUNK as usize) };
            let flags = if durable == Durable::Dsync { libc::RWF_DSYNC } else { 0 };
            let entry = opcode::WriteFixed::new(types::Fd(file.as_raw_fd()), from, CHUNK as u32, 0)
                .offset(chunk * CHUNK)
                .rw_flags(flags as _)
                .build()
                .user_data(chunk);
            // SAFETY: as above.
            unsafe { ring.submission().push(&entry).expect("room") };
        };
        for chunk in start {
            submit(&mut ring, chunk, slot_of[chunk as usize]);
        }
        ring.submit_and_wait(1).expect("submit");
        let completions: Vec<_> = ring.completion().map(|c| (c.user_data(), c.result())).collect();
        let mut over = Vec::new();
        for (what, result) in completions {
            assert!(result >= 0, "{}", std::io::Error::from_raw_os_error(-result));
            match what {
                LOG => {
                    log_busy = false;
                    for chunk in recording.drain(..) {
                        if record == Record::Before {
                            submit(&mut ring, chunk, slot_of[chunk as usize])
                        } else if !halves.insert(chunk) {
                            over.push(chunk)
                        }
                    }
                }
                SYNC => {
                    sync_busy = false;
                    over.extend(syncing.drain(..).filter(|c| record != Record::Beside || !halves.insert(*c)));
                }
                chunk => {
                    assert_eq!(result as u64, CHUNK);
                    match durable {
                        Durable::Batched => written.push(chunk),
                        Durable::Dsync if record == Record::Beside && halves.insert(chunk) => {}
                        Durable::Dsync => over.push(chunk),
                    }
                }
            }
        }
        for chunk in over {
            free.push(slot_of[chunk as usize]);
            finished += 1;
        }
        if finished == chunks {
            return (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        }
    }
}

type MakeOutput = fn(WriteId, FileId, ByteRange, u64, Run) -> Output;

/// The whole storage: verify, record and write of `bytes` in chunks; then once more, over what is there.
fn run_storage(directory: &std::path::Path, depth: usize, bytes: u64) -> [(f64, f64); 2] {
    let store = directory.join("durable.store");
    let _ = std::fs::remove_dir_all(&store);
    let arena = Arena::new(depth as u64 * CHUNK, Pages::Normal).expect("an arena");
    let (send, answers) = mpsc::sync_channel(1024);
    let answer: Answers = Arc::new(move |input| send.send(input).expect("the bench listens"));
    let (storage, _) =
        Storage::open(StorageConfig::new(&store), Arc::clone(&arena), answer).expect("a store");
    let file = storage.create(&StorePath::parse("a").expect("a path")).expect("a file").file;
    let all = Run { first: FrameId(0), frames: arena.frames() };
    // SAFETY: nothing uses the arena yet.
    unsafe { arena.bytes_mut(all) }.fill(0x5a);
    let blocks = (CHUNK / 4096) as u32;
    let mut runs = [(0.0, 0.0); 2];
    for result in &mut runs {
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let mut slots = HashMap::new();
        let begin = |chunk: u64, slot: u32, slots: &mut HashMap<u64, u32>| {
            slots.insert(chunk, slot);
            let run = Run { first: FrameId(slot * blocks), frames: blocks };
            let range = ByteRange::at(chunk * CHUNK, CHUNK).expect("a range");
            storage.perform(Output::Verify { lease: LeaseId(chunk), file, range, run }, Detail::Crc(None));
        };
        let chunks = bytes / CHUNK;
        let mut next = (depth as u64).min(chunks);
        (0..next).for_each(|chunk| begin(chunk, chunk as u32, &mut slots));
        let mut finished = 0;
        while finished < chunks {
            let (chunk, output): (u64, MakeOutput) = match answers.recv().expect("an answer") {
                Input::Verified { lease, agrees: true } => (lease.0, |write, file, range, size, run| {
                    Output::Record { write, file, range, size, run }
                }),
                Input::Recorded { write, result: Ok(()) } => (write.0, |write, file, range, size, run| {
                    Output::Write { write, file, blocks: range.blocks(), size, run }
                }),
                Input::Written { write, result: Ok(()) } => {
                    finished += 1;
                    let slot = slots.remove(&write.0).expect("begun");
                    if next < chunks {
                        begin(next, slot, &mut slots);
                        next += 1;
                    }
                    continue;
                }
                other => panic!("{other:?}"),
            };
            let run = Run { first: FrameId(slots[&chunk] * blocks), frames: blocks };
            let range = ByteRange::at(chunk * CHUNK, CHUNK).expect("a range");
            storage.perform(output(WriteId(chunk), file, range, range.end(), run), Detail::None);
        }
        storage.perform(Output::Flush { request: RequestId(1), file }, Detail::None);
        answers.recv().expect("an answer");
        *result = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    }
    storage.stop().expect("a clean stop");
    std::fs::remove_dir_all(&store).expect("remove");
    runs
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned()));
    let bytes = arguments.next().map_or(512, |mib| mib.parse().expect("MiB")) << 20;
    let depth_max = 16;
    let size = depth_max * CHUNK as usize + LOG_BATCH;
    let layout = Layout::from_size_align(size, 4096).expect("layout");
    // SAFETY: the layout is not empty; the memory is never freed.
    let memory = unsafe { std::slice::from_raw_parts_mut(alloc_zeroed(layout), size) };
    memory.fill(0x5a);
    let (path, log_path) = (directory.join("durable.data"), directory.join("durable.log"));
    let log = prepare(&log_path, Extents::Overwrite, LOG_SPACE, &memory[..CHUNK as usize]);
    let mib = (bytes >> 20) as f64;
    println!("whole storage  depth   MiB/s  CPU ms/GiB");
    for depth in [8, 16] {
        for (name, (seconds, cpu)) in
            ["new", "overwrite"].into_iter().zip(run_storage(&directory, depth, bytes))
        {
            println!("{name:<14} {depth:>5} {:>7.0} {:>11.0}", mib / seconds, cpu * 1e3 / (mib / 1024.0));
        }
    }
    println!("file        durable   record   depth   MiB/s  CPU ms/GiB");
    for extents in
        [Extents::Append, Extents::Sparse, Extents::KeepSize, Extents::Allocated, Extents::Overwrite]
    {
        for durable in [Durable::Dsync, Durable::Batched] {
            for record in [Record::None, Record::Beside, Record::Before] {
                for depth in [8, 16] {
                    let mut best = (f64::MAX, 0.0);
                    for _ in 0..2 {
                        let file = prepare(&path, extents, bytes, &memory[..CHUNK as usize]);
                        let used = depth * CHUNK as usize + LOG_BATCH;
                        let got = run(&file, &log, &mut memory[..used], depth, bytes, durable, record);
                        if got.0 < best.0 {
                            best = got
                        }
                    }
                    let mib = (bytes >> 20) as f64;
                    println!(
                        "{:<11} {:<9} {:<8} {depth:>5} {:>7.0} {:>11.0}",
                        format!("{extents:?}"),
                        format!("{durable:?}"),
                        format!("{record:?}"),
                        mib / best.0,
                        best.1 * 1e3 / (mib / 1024.0)
                    );
                }
            }
        }
    }
    for path in [path, log_path] {
        std::fs::remove_file(path).expect("remove");
    }
}
