//! What is done with bytes that lie in a store, or name something in it, for fuzzing (`cargo xtask soak fuzz`): any bytes at all, and
//! nothing may happen but what each function checks.

use crate::arena::{Arena, Pages};
use crate::break_log;
use crate::identity::Identity;
use crate::log::segment::{SegmentHead, scan_bytes};
use crate::path::StorePath;
use crate::record::{BatchHead, Record};
use crate::sidecar::{BLOCKS_PER_PAGE, Header, PAGE, Page, seal};
use crate::storage::{Backend, Detail, Storage, StorageConfig};
use leasehold_core::ids::{FrameId, RequestId};
use leasehold_core::input::Input;
use leasehold_core::output::{Loader, Output};
use leasehold_core::range::{BlockRange, Run};
use leasehold_fabric::iwarp::fuzz::Target;
use std::fs;
use std::path::Path;
use std::sync::{Arc, mpsc};

/// The functions of this crate.
pub const TARGETS: &[Target] =
    &[("sidecar", sidecar), ("record", record), ("paths", paths), ("breaks", breaks), ("recovery", recovery)];

/// Both formats of a file's sums: what is read means the same once it is written again.
pub fn sidecar(bytes: &[u8]) {
    let mut page = [0; PAGE];
    let length = bytes.len().min(PAGE);
    page[..length].copy_from_slice(&bytes[..length]);
    let identity = Identity(*page[16..].first_chunk().expect("a page is longer"));
    let fallback = Header { identity, size: 0, adopted_blocks: u64::from(page[60]) };
    for sealed in [false, true] {
        if sealed {
            seal(&mut page);
        }
        if let Ok(header) = Header::decode(&page, identity) {
            assert_eq!(Header::decode(&header.encode(), identity), Ok(header));
        }
        let number = u32::from_le_bytes(*page[4..].first_chunk().expect("a page is longer"));
        if let Ok(mut decoded) = Page::decode(&page, number, &fallback) {
            let states =
                |page: &Page| (0..BLOCKS_PER_PAGE as usize).map(|index| page.get(index)).collect::<Vec<_>>();
            let before = states(&decoded);
            before.iter().enumerate().for_each(|(index, state)| decoded.set(index, *state));
            assert_eq!(states(&decoded), before);
        }
    }
}

/// The write-ahead record's segments: as they are, and with right checksums. What is read means the same once it is written again.
pub fn record(bytes: &[u8]) {
    scan_bytes(bytes);
    let head = BatchHead { epoch: 1, number: 1, durable_through: 0 };
    let batch = head.encode(bytes, bytes.first().map_or(0, |count| u32::from(*count % 8)));
    let mut segment = SegmentHead { epoch: 1, first_batch: 1, retired: false }.encode().to_vec();
    segment.resize(PAGE, 0);
    segment.extend(batch);
    for record in scan_bytes(&segment).records {
        let again = record.encode();
        assert_eq!(Record::decode(&again), Some((record, again.len())));
    }
}

/// A path of a client's: none that is taken leads out of the store's files, or into its own records.
pub fn paths(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(path) = StorePath::parse(text) {
        assert_eq!(StorePath::parse(&path.to_string()).as_ref(), Ok(&path));
        let parts: Vec<&str> = path.as_str().split('/').filter(|part| !part.is_empty()).collect();
        assert!(!parts.contains(&"..") && !parts.contains(&".") && parts.first() != Some(&".leasehold"));
        assert!(!path.as_str().starts_with('/') && !path.as_str().contains('\0'));
        if let Some((parent, name)) = path.split() {
            assert_eq!(parent.join(name), Ok(path));
        }
    }
    if let Some(identity) = Identity::parse(text) {
        assert_eq!(identity.to_string(), text);
    }
}

/// The break log: a line that is none is skipped, the others are read.
pub fn breaks(bytes: &[u8]) {
    let directory = scratch();
    let path = directory.path().join("breaks.jsonl");
    fs::write(&path, bytes).expect("room");
    let lines = bytes.split(|byte| *byte == b'\n').count();
    let rows = break_log::read(&path, usize::MAX).expect("any bytes are a log");
    assert!(rows.len() <= lines);
}

/// A store whose record and sums hold these bytes, behind right checksums: it opens, with a report, or says why not; and what it then
/// gives out as a file's bytes agrees with their checksums, or is an error.
///
/// Two bytes choose what becomes of the sums: a length to cut them to, or bytes to put there. Then come records: a length in 2 bytes, a kind,
/// and what follows the identity; each is of the file that is there.
pub fn recovery(bytes: &[u8]) {
    let directory = scratch();
    let file = directory.path().join("files/a");
    let open = |end: &dyn Fn(&Storage)| {
        let arena = Arena::new(1 << 20, Pages::Normal).expect("memory");
        let (send, answers) = mpsc::channel();
        let config = StorageConfig {
            backend: Backend::Threads,
            workers: 1,
            segment_bytes: 64 << 10,
            ..StorageConfig::new(directory.path())
        };
        let answer = Arc::new(move |input| drop(send.send(input)));
        let (storage, _) = Storage::open(config, arena, answer).ok()?;
        if let Ok(opened) = storage.open_file(&StorePath::parse("a").expect("a path")) {
            let size = opened.size.min(128 << 10);
            let blocks = BlockRange::new(0, size.div_ceil(PAGE as u64));
            if let Some(blocks) = blocks {
                let into = Run { first: FrameId(0), frames: blocks.len() as u32 };
                let load =
                    Output::Load { by: Loader::Read(RequestId(1)), file: opened.file, blocks, size, into };
                storage.perform(load, Detail::None);
                let answer = answers.recv().expect("an answer to each output");
                assert!(matches!(answer, Input::ReadLoaded { .. }), "{answer:?}");
            }
        }
        end(&storage);
        Some(())
    };
    open(&|_| ()).expect("an empty store opens");
    fs::write(&file, [7; 3 * PAGE]).expect("room");
    let identity = Identity::of(&fs::File::open(&file).expect("just written")).expect("it has one");
    open(&|storage| drop(storage.stop())).expect("a store with a file opens");
    write_record(directory.path(), identity, bytes);
    if open(&|storage| drop(storage.stop())).is_some() {
        open(&|_| ()).expect("what was recovered opens again");
    }
}

/// Replaces the store's record by one with these records in it.
fn write_record(store: &Path, identity: Identity, bytes: &[u8]) {
    let mut segment = SegmentHead { epoch: 1 << 20, first_batch: 1, retired: false }.encode().to_vec();
    segment.resize(PAGE, 0);
    let mut rest = bytes;
    let mut number = 1;
    while let Some(([low, high, kind, sequence], behind)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
        let (body, behind) = behind.split_at(length);
        rest = behind;
        let mut record = ((48 + length) as u32).to_le_bytes().to_vec();
        record.extend([kind % 10, 0, 0, 0]);
        record.extend(u64::from(*sequence).to_le_bytes());
        record.extend(identity.0);
        record.extend(body);
        segment.extend(BatchHead { epoch: 1 << 20, number, durable_through: 0 }.encode(&record, 1));
        number += 1;
    }
    fs::write(store.join(".leasehold/log/0"), segment).expect("room");
}

/// A directory in memory, where there is such a place.
fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    let made = builder.prefix("leasehold-fuzz").tempdir_in("/dev/shm");
    made.or_else(|_| tempfile::tempdir()).expect("a place for a store")
}
