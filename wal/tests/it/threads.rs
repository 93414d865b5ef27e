//! Group commit and the background thread, with real threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use betree_storage::{Backend, DiskStorage};
use betree_testkit::SimStorage;
use betree_wal::{Error, Lsn};
use parking_lot::Mutex;

use crate::{open, open_sim, payload, small};

#[test]
fn many_threads_share_syncs_and_every_acknowledged_record_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let storage = DiskStorage::open(dir.path(), Backend::Auto).unwrap();
    let mut options = small();
    options.file_bytes = 65_536;
    let opened = open(storage.clone(), &options, Lsn(0)).unwrap();
    let (wal, appender) = (opened.wal, Mutex::new((opened.appender, 0)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                wal.prepare().unwrap();
                let _ = wal.wait_for_work(Duration::from_millis(5));
            }
        });
        let run = || {
            for _ in 0..100 {
                let end = {
                    let mut locked = appender.lock();
                    let n = locked.1;
                    locked.1 += 1;
                    locked.0.append(&[&payload(n, 500)]).unwrap()
                };
                wal.sync(end).unwrap();
                assert!(wal.durable() >= end);
            }
        };
        let writers: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
        for writer in writers {
            writer.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stats = wal.stats();
    assert!(stats.sync_callers <= 800 && stats.syncs <= stats.sync_callers, "{stats:?}");
    assert_eq!(stats.records, 800);
    drop((wal, appender));
    let records = open(storage, &options, Lsn(0)).unwrap().records;
    assert_eq!(records.len(), 800);
    for (n, (_, record)) in (0..).zip(&records) {
        assert!(*record == payload(n, 500));
    }
}

#[test]
fn a_sync_of_what_is_durable_costs_nothing_and_one_beyond_the_end_covers_the_end() {
    let disk = SimStorage::new(20);
    let mut opened = open_sim(&disk, Lsn(0));
    let end = opened.appender.append(&[b"x"]).unwrap();
    opened.wal.sync(end).unwrap();
    let before = disk.op_count();
    opened.wal.sync(end).unwrap();
    opened.wal.sync(Lsn(u64::MAX)).unwrap();
    assert_eq!((disk.op_count(), opened.wal.stats().syncs), (before, 1));
}

#[test]
fn a_failed_sync_poisons_the_log_for_good() {
    let disk = SimStorage::new(21);
    let mut opened = open_sim(&disk, Lsn(0));
    let end = opened.appender.append(&[b"durable"]).unwrap();
    opened.wal.sync(end).unwrap();
    let lost = opened.appender.append(&[b"unknown"]).unwrap();
    disk.inject(betree_testkit::FaultKind::SyncError, "log-", 0);
    assert!(matches!(opened.wal.sync(lost), Err(Error::Poisoned { .. })));
    assert!(matches!(opened.wal.sync(lost), Err(Error::Poisoned { .. })));
    assert!(matches!(opened.wal.sync(end), Err(Error::Poisoned { .. })));
    assert!(matches!(opened.appender.append(&[b"more"]), Err(Error::Poisoned { .. })));
    assert!(matches!(opened.wal.trim(end), Err(Error::Poisoned { .. })));
    assert!(matches!(opened.wal.prepare(), Err(Error::Poisoned { .. })));
    assert_eq!(opened.wal.durable(), end);
    let disk = disk.crash();
    let records = open_sim(&disk, Lsn(0)).records;
    assert_eq!(records[0].1, b"durable");
    assert!(records.len() <= 2);
}
