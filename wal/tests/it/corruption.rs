//! Damage at rest: a right prefix or a located error, never anything else; below a known-durable Lsn always an error.

use std::sync::Arc;

use betree_storage::Storage;
use betree_testkit::SimStorage;
use betree_wal::{Error, Finding, Lsn, Wal, examine};

use crate::{append_all, open, open_sim, small};

type Files = Vec<(String, Vec<u8>)>;
type Records = Vec<(Lsn, Vec<u8>)>;

/// A log of a few files, synced in the middle so that later frames and headers carry marks; how many records a
/// mark covers.
fn damaged_soon() -> (Files, Records, usize) {
    let disk = SimStorage::new(50);
    let mut opened = open_sim(&disk, Lsn(0));
    let mut expected = append_all(&mut opened, 0, &[100, 50, 700, 0, 6000, 300]);
    opened.wal.sync(opened.wal.end()).unwrap();
    expected.extend(append_all(&mut opened, 6, &[200, 900]));
    opened.wal.sync(opened.wal.end()).unwrap();
    let covered = expected.len();
    expected.extend(append_all(&mut opened, 8, &[150, 5000, 20]));
    opened.wal.sync(opened.wal.end()).unwrap();
    let files = disk.files();
    let files = files.keys().map(|name| (name.clone(), disk.contents(name).unwrap())).collect();
    (files, expected, covered)
}

fn disk_of(files: &Files) -> Arc<dyn Storage> {
    let disk = SimStorage::new(51);
    for (name, bytes) in files {
        disk.put(name, bytes);
    }
    disk.as_storage()
}

/// What `examine` says of the log must be what opening it comes to; behind damage it has what can be had.
fn check_examine(files: &Files, expected: &Records, what: &str) {
    let (mut records, mut damage) = (Records::new(), Vec::new());
    let disk = disk_of(files);
    let seen = examine(&*disk, Some(small().salt), Lsn(0), Lsn(0), &mut |finding| match finding {
        Finding::Record { lsn, payload } => records.push((lsn, payload.to_vec())),
        Finding::Damage { file, offset, what, .. } => damage.push(format!("{file} at {offset}: {what}")),
        Finding::Torn { .. } => {}
    });
    assert_eq!(seen.unwrap().records, records.len() as u64);
    let strange = records.iter().find(|record| !expected.contains(record));
    assert!(strange.is_none(), "{what}: a record that never was: {strange:?}");
    assert!(records.is_sorted(), "{what}: records out of order");
    match open(disk, &small(), Lsn(0)) {
        Ok(opened) => {
            assert_eq!(opened.records, records, "{what}");
            assert_eq!(damage, Vec::<String>::new(), "{what}: the log opens");
        }
        Err(error) => assert!(!damage.is_empty(), "{what}: no damage found, and {error}"),
    }
}

/// Opens a damaged log and checks the outcome. `durable` says whether the damage lies below a known-durable Lsn.
fn check(files: &Files, expected: &Records, durable: Option<bool>, what: &str) {
    check_examine(files, expected, what);
    match open(disk_of(files), &small(), Lsn(0)) {
        Ok(opened) => {
            let got = &opened.records;
            assert!(got.len() <= expected.len() && got[..] == expected[..got.len()], "{what}: not a prefix");
            assert_ne!(durable, Some(true), "{what}: damage to durable records went unnoticed");
        }
        Err(Error::Corrupt { file, .. } | Error::Missing { file, .. } | Error::Version { file, .. }) => {
            assert!(file.starts_with("log-"), "{what}: {file}");
            assert_ne!(durable, Some(false), "{what}: a torn tail was taken for damage");
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// The Lsn of a byte of a file, by the file's header; none in the header or where no header is.
fn lsn_of(bytes: &[u8], at: usize) -> Option<u64> {
    let first = u64::from_le_bytes(bytes[32..40].try_into().unwrap());
    (at >= 64 && bytes[..8] == *b"betreLOG").then(|| first + at as u64 - 64)
}

#[test]
fn a_bit_flipped_anywhere_gives_a_prefix_or_a_located_error() {
    let (files, expected, covered) = damaged_soon();
    let (covered, end) = (expected[covered].0.0, expected[expected.len() - 1].0.0 + 32);
    assert!(files.len() >= 4);
    for (index, (name, bytes)) in files.iter().enumerate() {
        for at in 0..bytes.len() {
            let mut files = files.clone();
            files[index].1[at] ^= 1 << (at % 8);
            let lsn = lsn_of(bytes, at);
            // Behind the end of a file's frames nothing is read.
            let next = files.get(index + 1).and_then(|(_, next)| lsn_of(next, 64));
            let used = lsn.is_some_and(|lsn| lsn < next.unwrap_or(end).min(end));
            let durable = used && lsn.is_some_and(|lsn| lsn < covered);
            let expectation = if durable {
                Some(true)
            } else if used {
                Some(false)
            } else {
                None
            };
            check(&files, &expected, expectation, &format!("{name} byte {at}"));
        }
    }
}

#[test]
fn a_file_cut_anywhere_gives_a_prefix_or_a_located_error() {
    let (files, expected, _) = damaged_soon();
    for (index, (name, bytes)) in files.iter().enumerate() {
        for at in (0..bytes.len()).step_by(7) {
            let mut files = files.clone();
            files[index].1.truncate(at);
            check(&files, &expected, None, &format!("{name} cut to {at}"));
        }
    }
}

#[test]
fn a_missing_file_below_a_durable_one_is_named() {
    let (files, expected, _) = damaged_soon();
    let live = files.iter().filter(|(_, bytes)| lsn_of(bytes, 64).is_some()).count();
    for index in 0..files.len() {
        let mut fewer = files.clone();
        let (name, _) = fewer.remove(index);
        match open(disk_of(&fewer), &small(), Lsn(0)) {
            // The last one, and blank ones, are above every mark.
            Ok(opened) => {
                assert!(index >= live - 1, "{name}");
                assert!(opened.records[..] == expected[..opened.records.len()]);
            }
            Err(Error::Missing { file, .. }) => assert!(index == 0 || file == name, "{name}: {file}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn an_earlier_version_of_a_file_is_found() {
    // A lost write: the file is as it was before a later sync.
    let disk = SimStorage::new(52);
    let mut opened = open_sim(&disk, Lsn(0));
    let name = "log-0000000000000001";
    append_all(&mut opened, 0, &[100, 100]);
    let old = disk.contents(name).unwrap();
    append_all(&mut opened, 2, &[100, 100]);
    opened.wal.sync(opened.wal.end()).unwrap();
    append_all(&mut opened, 4, &[5000]);
    drop(opened);
    disk.put(name, &old);
    let Err(error) = open(disk.as_storage(), &small(), Lsn(0)) else { panic!("opened") };
    let text = error.to_string();
    assert!(matches!(error, Error::Corrupt { offset: 296, lsn: Lsn(232), .. }), "{text}");
    assert!(text.contains(name), "{text}");
}

#[test]
fn files_of_garbage_are_no_log() {
    for bytes in [vec![], vec![0; 4096], vec![0xff; 4096], vec![7; 63]] {
        let disk = SimStorage::new(53);
        disk.put("log-0000000000000004", &bytes);
        let opened = open_sim(&disk, Lsn(0));
        assert!(opened.records.is_empty());
        let disk = SimStorage::new(53);
        disk.put("log-0000000000000004", &bytes);
        assert!(matches!(open(disk.as_storage(), &small(), Lsn(9)), Err(Error::Missing { .. })));
    }
}

#[test]
fn after_a_seal_damage_to_the_last_record_is_no_torn_tail() {
    for sealed in [false, true] {
        let disk = SimStorage::new(54);
        let mut opened = open_sim(&disk, Lsn(0));
        let expected = append_all(&mut opened, 0, &[100, 5000, 100]);
        opened.wal.sync(opened.wal.end()).unwrap();
        if sealed {
            opened.wal.seal().unwrap();
        }
        let last = disk.files().into_keys().rfind(|name| disk.contents(name).unwrap()[0] != 0).unwrap();
        drop(opened);
        let whole = disk.contents(&last).unwrap();
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
        for at in 64..=used {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            disk.put(&last, &bytes);
            let damaged = SimStorage::new(55);
            for name in disk.files().keys() {
                damaged.put(name, &disk.contents(name).unwrap());
            }
            match open(damaged.as_storage(), &small(), Lsn(0)) {
                Ok(opened) => {
                    assert!(!sealed && opened.records[..] == expected[..opened.records.len()], "{at}")
                }
                Err(error) => assert!(sealed && matches!(error, Error::Corrupt { .. }), "{at}: {error}"),
            }
        }
    }
}

#[test]
fn what_the_caller_knows_to_have_been_durable_counts_as_a_mark() {
    let disk = SimStorage::new(57);
    let mut opened = open_sim(&disk, Lsn(0));
    let expected = append_all(&mut opened, 0, &[100, 100, 100]);
    // Synced, but no later frame says so.
    opened.wal.sync(opened.wal.end()).unwrap();
    let end = opened.wal.end();
    drop(opened);
    let name = "log-0000000000000001";
    let whole = disk.contents(name).unwrap();
    let reopen = |bytes: Option<&[u8]>, durable| {
        let disk = SimStorage::new(58);
        bytes.iter().for_each(|bytes| disk.put(name, bytes));
        let mut records = Vec::new();
        Wal::reopen(disk.as_storage(), small(), Lsn(0), durable, &mut |lsn, record| {
            records.push((lsn, record.to_vec()));
            Ok(())
        })
        .map(|_| records)
    };
    assert_eq!(reopen(Some(&whole), end).unwrap(), expected);
    let mut damaged = whole.clone();
    // A long frame, which begins the file, and two short ones.
    damaged[64 + 124 + 108 + 30] ^= 1;
    assert_eq!(reopen(Some(&damaged), expected[2].0).unwrap(), expected[..2]);
    let examined = |bytes: Option<&[u8]>, known| {
        let disk = SimStorage::new(58);
        bytes.iter().for_each(|bytes| disk.put(name, bytes));
        let mut places = Vec::new();
        examine(&*disk.as_storage(), Some(small().salt), Lsn(0), known, &mut |finding| {
            if let Finding::Damage { offset, .. } = finding {
                places.push(offset);
            }
        })
        .unwrap();
        places
    };
    assert_eq!(examined(Some(&whole), end), []);
    assert_eq!(examined(Some(&damaged), expected[2].0), []);
    assert_eq!(examined(Some(&damaged), Lsn(expected[2].0.0 + 1)), [296]);
    assert_eq!(examined(Some(&whole[..64]), end), [64]);
    assert_eq!((examined(None, end), examined(None, Lsn(0))), (vec![0], vec![]));
    for durable in [Lsn(expected[2].0.0 + 1), end] {
        let error = reopen(Some(&damaged), durable).unwrap_err();
        assert!(matches!(error, Error::Corrupt { offset: 296, .. }), "{error}");
    }
    for missing in [None, Some(&whole[..0]), Some(&whole[..64])] {
        reopen(missing, end).unwrap_err();
    }
    // A log is known to be there, even if nothing was in it.
    assert!(matches!(reopen(None, Lsn(0)).unwrap_err(), Error::Missing { .. }));
}

#[test]
fn random_damage_of_any_extent_never_panics_and_never_invents_records() {
    let (files, expected, _) = damaged_soon();
    for seed in 0..2000 {
        let mut rng = betree_testkit::Rng::new(seed);
        let disk = SimStorage::new(seed);
        for (name, bytes) in &files {
            disk.put(name, bytes);
        }
        for _ in 0..rng.between(1, 4) {
            let (name, bytes) = rng.pick(&files).unwrap();
            let start = rng.below(bytes.len() as u64);
            let most = 1 << rng.below(12);
            let end = (start + rng.between(1, most)).min(bytes.len() as u64);
            match rng.below(4) {
                0 => disk.put(name, &bytes[..start as usize]),
                // A misdirected write: bytes of one file in the place of another's.
                1 => disk.put(name, &rng.pick(&files).unwrap().1),
                _ => {
                    let _ = disk.corrupt(name, start..end);
                }
            }
        }
        if let Ok(opened) = open(disk.as_storage(), &small(), Lsn(0)) {
            assert!(opened.records.len() <= expected.len(), "seed {seed}");
            assert!(opened.records[..] == expected[..opened.records.len()], "seed {seed}");
        }
        betree_wal::dump(&*disk.as_storage(), &mut Vec::new()).unwrap_or_default();
    }
}

#[test]
fn records_on_both_sides_of_a_damaged_frame_are_examined() {
    let (mut files, expected, _) = damaged_soon();
    let victim = &expected[1];
    let at = (victim.0.0 + 64 + 30) as usize;
    files[0].1[at] ^= 1;
    let mut records = Records::new();
    let mut places = Vec::new();
    examine(&*disk_of(&files), None, Lsn(0), Lsn(0), &mut |finding| match finding {
        Finding::Record { lsn, payload } => records.push((lsn, payload.to_vec())),
        Finding::Damage { file, offset, lsn, .. } => places.push((file, offset, lsn)),
        Finding::Torn { .. } => panic!("the log is not torn"),
    })
    .unwrap();
    let others: Records = expected.iter().filter(|record| *record != victim).cloned().collect();
    assert_eq!(records, others);
    assert_eq!(places, [(files[0].0.clone(), victim.0.0 + 64, victim.0)]);
}
