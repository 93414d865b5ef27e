//! What a log does without faults: roundtrip, rotation, fragments, trimming, recycling, refusals.

use std::sync::Arc;

use betree_storage::{Backend, DiskStorage, Storage};
use betree_testkit::SimStorage;
use betree_wal::{Error, Lsn, MAX_RECORD, Wal, dump};

use crate::{append_all, open, open_sim, payload, small};

/// Lengths from nothing to several files, so that every way of fitting and not fitting occurs.
const LENS: [usize; 17] =
    [0, 1, 17, 100, 900, 1100, 3000, 20, 4016, 4032, 5, 12_000, 3900, 4000, 40_000, 1, 0];

fn backends() -> Vec<(Option<tempfile::TempDir>, Arc<dyn Storage>)> {
    let mut out: Vec<(_, Arc<dyn Storage>)> = vec![(None, SimStorage::new(1).as_storage())];
    for backend in [Backend::Auto, Backend::Portable] {
        let dir = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(dir.path(), backend).unwrap();
        out.push((Some(dir), storage));
    }
    out
}

#[test]
fn records_of_all_lengths_come_back_in_order() {
    for (_dir, storage) in backends() {
        let mut opened = open(storage.clone(), &small(), Lsn(0)).unwrap();
        assert!(opened.records.is_empty());
        let mut expected = append_all(&mut opened, 0, &LENS);
        drop(opened);
        for round in 1..4 {
            let mut opened = open(storage.clone(), &small(), Lsn(0)).unwrap();
            assert!(opened.records == expected, "{} round {round}", storage.backend());
            assert_eq!(opened.replayed.torn_bytes, 0);
            let more = append_all(&mut opened, round * 100, &LENS[..round as usize * 5]);
            expected.extend(more);
            if round == 2 {
                opened.wal.sync(opened.wal.end()).unwrap();
            }
        }
    }
}

#[test]
fn every_pair_of_lengths_around_the_end_of_a_file_comes_back() {
    let disk = SimStorage::new(2);
    let mut from = Lsn(0);
    for first in 3800..4100 {
        let mut opened = open_sim(&disk, from);
        let expected = append_all(&mut opened, first as u64, &[first, 300, 4096 - first % 100]);
        drop(opened);
        let opened = open_sim(&disk, from);
        assert!(opened.records == expected, "first {first}");
        from = opened.wal.end();
    }
}

#[test]
fn full_size_files_are_crossed_by_long_records_in_windows() {
    for (_dir, storage) in backends() {
        let mut options = small();
        options.file_bytes = (3 << 20) + 4096;
        let mut opened = open(storage.clone(), &options, Lsn(0)).unwrap();
        let lens = [100, 1 << 20, 700_000, (3 << 20) - 5, 10, 9 << 20, 2 << 20, 1, 1 << 20];
        let mut expected = append_all(&mut opened, 0, &lens[..5]);
        opened.wal.prepare().unwrap();
        expected.extend(append_all(&mut opened, 5, &lens[5..]));
        opened.wal.sync(opened.wal.end()).unwrap();
        opened.wal.prepare().unwrap();
        let opened = open(storage.clone(), &options, Lsn(0)).unwrap();
        assert!(opened.records == expected, "{}", storage.backend());
    }
}

#[test]
fn replay_begins_at_the_asked_record() {
    let disk = SimStorage::new(3);
    let mut opened = open_sim(&disk, Lsn(0));
    let expected = append_all(&mut opened, 0, &LENS);
    let end = opened.wal.end();
    for (index, (from, _)) in expected.iter().enumerate() {
        // On a copy: an open gives back what is below.
        let opened = open(disk.kill_copy(), &small(), *from).unwrap();
        assert!(opened.records == expected[index..], "from {from:?}");
        assert_eq!(opened.wal.end(), end);
    }
    assert!(open_sim(&disk, end).records.is_empty());
}

/// A copy of the disk as a program sees it.
trait KillCopy {
    fn kill_copy(&self) -> Arc<dyn Storage>;
}

impl KillCopy for Arc<SimStorage> {
    fn kill_copy(&self) -> Arc<dyn Storage> {
        let copy = SimStorage::new(self.seed());
        for name in self.files().keys() {
            copy.put(name, &self.contents(name).unwrap());
        }
        copy.as_storage()
    }
}

#[test]
fn a_log_at_full_speed_keeps_files_at_hand_and_gives_them_back_when_it_rests() {
    for (_dir, storage) in backends() {
        let mut opened = open(storage.clone(), &small(), Lsn(0)).unwrap();
        let fill = |opened: &mut crate::Opened, first: u64, files: u64| {
            let records: Vec<_> = (0..files)
                .flat_map(|n| {
                    let records = append_all(opened, first + n, &[3900]);
                    opened.wal.prepare().unwrap();
                    records
                })
                .collect();
            records
        };
        let files = |opened: &crate::Opened| {
            let stats = opened.wal.stats();
            let all = storage.list().unwrap().len() as u64;
            (all - stats.live_files - stats.spare_files, stats.spare_files)
        };
        // Two are the one of the next window and the one after it.
        let mut expected = fill(&mut opened, 0, 4);
        assert_eq!(files(&opened), (2, 0));
        expected.extend(fill(&mut opened, 4, 40));
        for _ in 0..3 {
            opened.wal.prepare().unwrap();
        }
        assert_eq!(files(&opened), (4, 0));

        // A crash leaves them, and they are gone afterwards.
        drop(opened);
        let mut opened = open(storage.clone(), &small(), Lsn(0)).unwrap();
        assert!(opened.records == expected);
        assert!(files(&opened).0 <= 1);
        let from = opened.wal.end();
        let after = fill(&mut opened, 44, 40);
        opened.wal.sync(from).unwrap();
        opened.wal.trim(from).unwrap();
        assert!(files(&opened).1 > 30, "{:?}", files(&opened));
        for _ in 0..3 {
            opened.wal.prepare().unwrap();
        }
        assert!(opened.wal.stats().recycled >= 2);
        opened.wal.rest();
        assert_eq!(files(&opened), (2, small().spare_files as u64));
        drop(opened);
        assert!(open(storage.clone(), &small(), from).unwrap().records == after);
    }
}

#[test]
fn a_log_at_full_speed_keeps_no_more_files_than_it_fills_between_two_trims() {
    let disk = SimStorage::new(10);
    let mut opened = open(disk.as_storage(), &small(), Lsn(0)).unwrap();
    let mut fill_and_trim = |files: u64| {
        for n in 0..files {
            append_all(&mut opened, n, &[3900]);
            opened.wal.prepare().unwrap();
        }
        let end = opened.wal.end();
        opened.wal.sync(end).unwrap();
        opened.wal.trim(end).unwrap();
        opened.wal.stats().spare_files
    };
    assert!(fill_and_trim(40) > 30);
    for _ in 0..12 {
        fill_and_trim(5);
    }
    let spares = fill_and_trim(5);
    assert!((4..=6).contains(&spares), "{spares}");
}

#[test]
fn trimmed_files_are_recycled_and_the_rest_removed() {
    for (_dir, storage) in backends() {
        let mut opened = open(storage.clone(), &small(), Lsn(0)).unwrap();
        let mut n = 0;
        for _ in 0..20 {
            append_all(&mut opened, n, &[1500; 12]);
            n += 12;
            let end = opened.wal.end();
            opened.wal.sync(end).unwrap();
            opened.wal.trim(end).unwrap();
            opened.wal.prepare().unwrap();
            let stats = opened.wal.stats();
            assert_eq!(stats.live_files, 1);
            assert!(storage.list().unwrap().len() <= 8, "{:?}", storage.list());
        }
        let stats = opened.wal.stats();
        assert!(stats.recycled >= 20 && stats.removed > 0, "{stats:?}");
        let from = opened.wal.end();
        let expected = append_all(&mut opened, n, &LENS);
        drop(opened);
        assert!(open(storage, &small(), from).unwrap().records == expected);
    }
}

#[test]
fn files_of_another_size_stay_usable() {
    let disk = SimStorage::new(4);
    let mut expected = Vec::new();
    let mut from = Lsn(0);
    for (round, bytes) in [8192, 4096, 65_536, 12_288, 4096].into_iter().enumerate() {
        let mut options = small();
        options.file_bytes = bytes;
        let mut opened = open(disk.as_storage(), &options, from).unwrap();
        assert!(opened.records == expected);
        expected.extend(append_all(&mut opened, 50 * round as u64, &LENS));
        if round == 2 {
            from = opened.wal.end();
            expected.clear();
            opened.wal.trim(from).unwrap();
        }
    }
}

#[test]
fn preparing_takes_the_work_from_the_appender() {
    let disk = SimStorage::new(5);
    let mut opened = open_sim(&disk, Lsn(0));
    opened.wal.prepare().unwrap();
    for n in 0..200 {
        opened.appender.append(&[&payload(n, 200)]).unwrap();
        if opened.wal.wait_for_work(std::time::Duration::ZERO) {
            opened.wal.prepare().unwrap();
        }
    }
    assert_eq!(opened.wal.stats().unprepared_windows, 0);
    assert_eq!(opened.wal.stats().records, 200);
}

#[test]
fn create_begins_anywhere_but_never_over_a_log() {
    let disk = SimStorage::new(6);
    let (wal, mut appender) = Wal::create(disk.as_storage(), small(), Lsn(123_456)).unwrap();
    appender.append(&[b"one"]).unwrap();
    drop((wal, appender));
    assert!(matches!(Wal::create(disk.as_storage(), small(), Lsn(0)), Err(Error::Exists { .. })));
    assert_eq!(open_sim(&disk, Lsn(123_456)).records, [(Lsn(123_456), b"one".to_vec())]);
    assert!(matches!(open(disk.as_storage(), &small(), Lsn(5)), Err(Error::Missing { .. })));
}

#[test]
fn a_log_that_should_be_there_and_is_not_is_an_error() {
    let disk = SimStorage::new(7);
    let Err(error) = open(disk.as_storage(), &small(), Lsn(77)) else { panic!("opened") };
    assert!(matches!(error, Error::Missing { lsn: Lsn(77), .. }), "{error}");
}

#[test]
fn a_log_of_another_database_or_version_is_refused() {
    let disk = SimStorage::new(8);
    append_all(&mut open_sim(&disk, Lsn(0)), 0, &[100]);
    let mut other = small();
    other.salt += 1;
    assert!(matches!(open(disk.as_storage(), &other, Lsn(0)), Err(Error::Foreign { got: 0xfeed, .. })));
    let name = "log-0000000000000001";
    let mut bytes = disk.contents(name).unwrap();
    bytes[8] = 9;
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    disk.put(name, &bytes);
    let refused = open(disk.as_storage(), &small(), Lsn(0));
    assert!(matches!(refused, Err(Error::Version { expected: 3, got: 9, .. })));
}

#[test]
fn options_and_records_out_of_range_are_named() {
    let disk = SimStorage::new(9);
    for bytes in [0, 4095, 6000, 512 << 20] {
        let mut options = small();
        options.file_bytes = bytes;
        let refused = open(disk.as_storage(), &options, Lsn(0));
        assert!(matches!(refused, Err(Error::Option { name: "file_bytes", .. })));
    }
    let mut opened = open_sim(&disk, Lsn(0));
    let piece = vec![0; 1 << 20];
    let parts = vec![&piece[..]; (MAX_RECORD >> 20) as usize + 1];
    assert!(matches!(opened.appender.append(&parts), Err(Error::TooLong { .. })));
    let expected = append_all(&mut opened, 0, &[10]);
    drop(opened);
    assert!(open_sim(&disk, Lsn(0)).records == expected);
}

#[test]
fn an_error_of_the_callback_ends_the_replay_and_changes_nothing() {
    let disk = SimStorage::new(10);
    let expected = append_all(&mut open_sim(&disk, Lsn(0)), 0, &LENS);
    let before = disk.op_count();
    let refused = Wal::open(disk.as_storage(), small(), Lsn(0), &mut |lsn, _| {
        if lsn == expected[4].0 { Err("no".into()) } else { Ok(()) }
    });
    assert!(matches!(refused, Err(Error::Replay { lsn, .. }) if lsn == expected[4].0));
    assert_eq!(disk.op_count(), before);
    assert!(open_sim(&disk, Lsn(0)).records == expected);
}

#[test]
fn dump_lists_files_and_records() {
    let disk = SimStorage::new(11);
    append_all(&mut open_sim(&disk, Lsn(0)), 0, &[10, 5000]);
    let mut out = Vec::new();
    dump(&*disk.as_storage(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    for part in [
        "log-0000000000000001 (4096 bytes): first lsn 0",
        "lsn 0  Full  10 bytes",
        "First",
        "Last",
        "end: zeros",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}
