//! Stores of format 1, put together here byte by byte as `docs/store-format.md` says, without this crate's encoders.

use super::*;
use crate::identity::Identity;
use crate::storage::tests::crash::stopping;
use std::fs::File;

/// CRC-32/ISCSI, a bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

/// CRC-64/NVME, a bit at a time.
fn crc64(bytes: &[u8]) -> u64 {
    let bit = |crc: u64| if crc & 1 == 1 { crc >> 1 ^ 0x9A6C_9329_AC4B_C9B5 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u64::from(*byte), |crc, _| bit(crc)))
}

fn sealed(mut page: Vec<u8>) -> Vec<u8> {
    page.resize(4096, 0);
    let sum = crc(&page[4..]);
    page[..4].copy_from_slice(&sum.to_le_bytes());
    page
}

fn record(kind: u8, sequence: u64, identity: &[u8; 32], body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let length = (48 + body.len()) as u32;
    [&length.to_le_bytes()[..], &[kind, 0, 0, 0], &sequence.to_le_bytes(), identity, &body].concat()
}

fn batch(epoch: u64, number: u64, records: &[Vec<u8>]) -> Vec<u8> {
    let all = records.concat();
    let rest = [
        &epoch.to_le_bytes()[..],
        &number.to_le_bytes(),
        &0u64.to_le_bytes(),
        &((40 + all.len()) as u32).to_le_bytes(),
        &(records.len() as u32).to_le_bytes(),
        &all,
    ]
    .concat();
    let mut bytes = [&b"LHB1"[..], &crc(&rest).to_le_bytes(), &rest].concat();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes
}

/// What the store holds: the file's bytes as they are to be found.
struct Expected {
    kept: Vec<u8>,
    written: Vec<u8>,
}

/// Two files: `kept` with a sidecar, the second of whose blocks is not known, and a recorded overwrite of its first block
/// and a recorded punch of its fourth and fifth, of which nothing was done; `written`, new, whose data is there and whose
/// record alone knows it.
fn make_version_1(root: &Path) -> Expected {
    let own = root.join(".leasehold");
    for directory in ["log", "sums"] {
        std::fs::create_dir_all(own.join(directory)).unwrap();
    }
    std::fs::create_dir_all(root.join("files")).unwrap();
    std::fs::write(own.join("format"), "leasehold store 1\n").unwrap();
    let mut kept = pattern(1, 6 * 4096 + 10);
    std::fs::write(root.join("files/kept"), &kept).unwrap();
    let written = pattern(2, 5000);
    std::fs::write(root.join("files/written"), &written).unwrap();
    let identity = |name: &str| Identity::of(&File::open(root.join("files").join(name)).unwrap()).unwrap().0;
    let (id, other) = (identity("kept"), identity("written"));
    let block = |bytes: &[u8], number: usize| {
        let mut block = bytes[number * 4096..bytes.len().min((number + 1) * 4096)].to_vec();
        block.resize(4096, 0);
        crc(&block)
    };

    let size = (kept.len() as u64).to_le_bytes();
    let header = [&[0; 4][..], &1u32.to_le_bytes(), b"LHSUMS\0\0", &id, &size, &0u64.to_le_bytes()].concat();
    let mut page = vec![0; 4096];
    page[8..16].copy_from_slice(&crc64(&id).to_le_bytes());
    for number in 0..7 {
        let state = if number == 1 { 2 } else { 1 };
        page[16 + number / 4] |= state << (2 * (number % 4));
        if state == 1 {
            page[256 + 4 * number..][..4].copy_from_slice(&block(&kept, number).to_le_bytes());
        }
    }
    let name: String = id[..4 + usize::from(id[1])].iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = own.join("sums").join(format!("{:02x}", crc64(&id) as u8));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(name), [sealed(header), sealed(page)].concat()).unwrap();

    let new = pattern(9, 4096);
    let zero = 0u64.to_le_bytes();
    let mark = |size: &[u8; 8], id, path: &str| record(1, 0, id, &[size, &zero, path.as_bytes()]);
    let overwrite = record(
        2,
        1,
        &id,
        &[
            &zero,
            &4096u64.to_le_bytes(),
            &1u32.to_le_bytes(),
            &1u32.to_le_bytes(),
            &[1],
            &block(&kept, 0).to_le_bytes(),
            &crc(&new).to_le_bytes(),
            &0u32.to_le_bytes(),
            &new,
        ],
    );
    let punch = record(3, 2, &id, &[&size, &3u64.to_le_bytes(), &5u64.to_le_bytes(), &0u32.to_le_bytes()]);
    let fresh = record(
        2,
        3,
        &other,
        &[
            &zero,
            &5000u64.to_le_bytes(),
            &2u32.to_le_bytes(),
            &0u32.to_le_bytes(),
            &[0, 0],
            &[0; 8],
            &block(&written, 0).to_le_bytes(),
            &block(&written, 1).to_le_bytes(),
        ],
    );
    let head =
        [&1u32.to_le_bytes()[..], b"LHLOG\0\0\0", &5u64.to_le_bytes(), &40u64.to_le_bytes(), &zero].concat();
    let mut segment = [&crc(&head).to_le_bytes()[..], &head].concat();
    segment.resize(4096, 0);
    segment.extend(batch(5, 40, &[mark(&size, &id, "kept"), overwrite]));
    segment.extend(batch(5, 41, &[punch, mark(&zero, &other, "written"), fresh]));
    // A torn end.
    segment.extend(&batch(5, 42, &[record(5, 0, &id, &[])])[..30]);
    segment.resize(8 << 20, 0);
    std::fs::write(own.join("log/0"), segment).unwrap();
    std::fs::write(own.join("log/1"), vec![0; 8 << 20]).unwrap();
    kept[..4096].copy_from_slice(&new);
    kept[3 * 4096..5 * 4096].fill(0);
    Expected { kept, written }
}

fn format_of(root: &Path) -> String {
    std::fs::read_to_string(root.join(".leasehold/format")).unwrap()
}

fn check(driver: &Driver, root: &Path, expected: &Expected) {
    assert_eq!(format_of(root), "leasehold store 2\n");
    assert_eq!(driver.opened.damage, []);
    let (kept, written) = (driver.open_file("kept"), driver.open_file("written"));
    assert_eq!(driver.survey(written), Survey { known: 2, ..Survey::default() });
    assert!(driver.content(kept) == expected.kept && driver.content(written) == expected.written);
    assert_eq!(driver.survey(kept), Survey { known: 5, holes: 2, ..Survey::default() });
}

#[test]
fn a_store_of_format_1_is_recovered_and_upgraded_with_every_byte() {
    for (_, directory) in places() {
        let root = directory.path().join("store");
        let expected = make_version_1(&root);
        let driver = Driver::open(&root);
        assert!(driver.opened.recovered);
        assert!(
            driver.opened.notes.iter().any(|note| note.contains("format 1")),
            "{:?}",
            driver.opened.notes
        );
        check(&driver, &root, &expected);
        // What only format 2 can record.
        let file = driver.open_file("kept");
        driver.zero(file, 0, 4096);
        driver.kill();
        let driver = Driver::open(&root);
        assert!(!driver.opened.notes.iter().any(|note| note.contains("format 1")));
        let file = driver.open_file("kept");
        assert!(driver.read(file, 0, 4096) == [0; 4096]);
        assert!(driver.read(file, 4096, 5 * 4096 + 10) == expected.kept[4096..]);
    }
}

#[test]
fn an_upgrade_that_is_interrupted_anywhere_goes_on_at_the_next_start() {
    for (place, directory) in places() {
        let mut stopped = 0;
        for count in (0..).step_by(if place == "disk" { 5 } else { 1 }) {
            let root = directory.path().join(count.to_string());
            let expected = make_version_1(&root);
            let (driver, left) = stopping(&root, count, false);
            let opened = driver.is_some();
            if !opened {
                assert_eq!(format_of(&root), "leasehold store 1\n", "older versions may still open it");
            }
            driver.into_iter().for_each(Driver::kill);
            check(&Driver::open(&root), &root, &expected);
            if opened && left.load(Ordering::SeqCst) >= 0 {
                break;
            }
            stopped += 1;
        }
        assert!(stopped > 3, "it was interrupted only {stopped} times");
        // Between the steps that do not pass the disk.
        for leftover in ["staging", "new format, half", "new format"] {
            let root = directory.path().join(leftover);
            let expected = make_version_1(&root);
            let own = root.join(".leasehold");
            match leftover {
                "staging" => std::fs::create_dir(own.join("staging")).unwrap(),
                "new format, half" => std::fs::write(own.join("format.new"), "leaseh").unwrap(),
                _ => std::fs::write(own.join("format.new"), "leasehold store 2\n").unwrap(),
            }
            check(&Driver::open(&root), &root, &expected);
        }
    }
}
