//! The log under a model checker: the real code on the simulated disk, one interleaving after the other.
//!
//! What is checked at every moment of every interleaving: what a power cut leaves holds all records below the durable Lsn as it was before
//! the cut, in order and whole, and nothing else; nobody waits for ever. Runs with the feature `shuttle` only.

use std::sync::Arc;
use std::time::Duration;

use betree_storage::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use betree_storage::primitives::{Mutex, explore, thread};
use betree_testkit::SimStorage;

use crate::files::Shared;
use crate::{Appender, Lsn, Options, Wal};

fn options() -> Options {
    Options { file_bytes: 4096, salt: 0xfeed, ..Options::default() }
}

fn payload(n: u64) -> Vec<u8> {
    // Some go through the small buffer, some do not fit what is left of a file; the third fills the first file to its last byte, unless a
    // mark came before.
    let len = [40, 900, 3044, 300][n as usize % 4];
    (0..len).map(|at| (at * 7 + n * 13 + 1) as u8).collect()
}

/// A log, its disk, and the ends of the records appended so far.
struct Log {
    disk: Arc<SimStorage>,
    wal: Wal,
    ends: Mutex<Vec<Lsn>>,
    /// Below: trimmed.
    begin: AtomicU64,
}

impl Log {
    fn create() -> (Arc<Log>, Appender) {
        let disk = SimStorage::new(7);
        let (wal, appender) = Wal::create(disk.as_storage(), options(), Lsn(0)).unwrap();
        (Arc::new(Log { disk, wal, ends: Mutex::default(), begin: AtomicU64::new(0) }), appender)
    }

    fn append(&self, appender: &mut Appender, n: u64) -> Lsn {
        let payload = payload(n);
        let end = appender.append(&[&payload[..20], &payload[20..]]).unwrap();
        self.ends.lock().push(end);
        end
    }

    /// The power is cut now: what must be there?
    fn cut_power(&self, luck: u64) {
        let durable = self.wal.durable();
        let copy = self.disk.crashed_copy(luck);
        let begin = Lsn(self.begin.load(Ordering::SeqCst));
        let ends = self.ends.lock().clone();
        let first =
            if begin == Lsn(0) { 0 } else { ends.iter().position(|end| *end == begin).unwrap() as u64 + 1 };
        let mut next = first;
        let (wal, _, _) = Wal::open(copy.as_storage(), options(), begin, &mut |_, record| {
            assert_eq!(record, payload(next), "record {next} is another one");
            next += 1;
            Ok(())
        })
        .unwrap_or_else(|error| panic!("durable {durable:?}, begin {begin:?}: {error}"));
        assert!(
            wal.end() >= durable,
            "log.durable_is_synced: {durable:?} was durable, {:?} is there",
            wal.end()
        );
    }
}

/// Appender, two callers of sync, the thread that prepares, power cuts.
#[test]
fn what_is_durable_is_on_the_disk_in_every_interleaving_of_group_commit() {
    explore(400, || {
        let (log, mut appender) = Log::create();
        let mut threads = Vec::new();
        for _ in 0..2 {
            let log = log.clone();
            threads.push(thread::spawn(move || {
                for _ in 0..2 {
                    let end = log.wal.end();
                    log.wal.sync(end).unwrap();
                    assert!(log.wal.durable() >= end);
                }
            }));
        }
        let background = log.clone();
        threads.push(thread::spawn(move || {
            for _ in 0..3 {
                background.wal.prepare().unwrap();
            }
        }));
        let cutter = log.clone();
        threads.push(thread::spawn(move || {
            for luck in 0..3 {
                cutter.cut_power(luck);
            }
        }));
        for n in 0..6 {
            let end = log.append(&mut appender, n);
            if n % 3 == 2 {
                log.wal.sync(end).unwrap();
                assert!(log.wal.durable() >= end);
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
        log.wal.sync(log.wal.end()).unwrap();
        log.cut_power(9);
        let stats = log.wal.stats();
        assert!(stats.syncs <= stats.sync_callers && stats.records == 6, "{stats:?}");
    });
}

/// As above while files are given back and recycled under the appender.
#[test]
fn files_are_recycled_under_appender_and_syncs_without_a_hole_in_the_log() {
    explore(400, || {
        let (log, mut appender) = Log::create();
        let trimmer = log.clone();
        let trimming = thread::spawn(move || {
            for _ in 0..4 {
                // What a checkpoint does: it is durable that no replay begins below, then the log is trimmed.
                let Some(end) = trimmer.ends.lock().last().copied() else {
                    thread::yield_now();
                    continue;
                };
                trimmer.wal.sync(end).unwrap();
                trimmer.begin.store(end.0, Ordering::SeqCst);
                trimmer.wal.trim(end).unwrap();
                trimmer.cut_power(end.0);
            }
        });
        let background = log.clone();
        let preparing = thread::spawn(move || {
            for _ in 0..4 {
                background.wal.prepare().unwrap();
            }
        });
        for n in 0..10 {
            let end = log.append(&mut appender, n);
            if n % 4 == 3 {
                log.wal.sync(end).unwrap();
            }
        }
        trimming.join().unwrap();
        preparing.join().unwrap();
        log.wal.seal().unwrap();
        log.cut_power(9);
    });
}

/// The thread that prepares sleeps until there is work and ends when it is told to: were a wake-up lost, it would never end, as
/// there is no time.
#[test]
fn the_thread_that_prepares_is_never_left_asleep() {
    explore(400, || {
        let (log, mut appender) = Log::create();
        let stop = Arc::new(AtomicBool::new(false));
        let (background, stopped) = (log.clone(), stop.clone());
        let preparing = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if background.wal.wait_for_work(Duration::from_secs(1)) {
                    background.wal.prepare().unwrap();
                }
            }
        });
        for n in 0..6 {
            log.append(&mut appender, n);
        }
        // What the appender left behind is dealt with without another append.
        while Shared::has_work(&log.wal.shared.queue.lock()) {
            thread::yield_now();
        }
        stop.store(true, Ordering::SeqCst);
        log.wal.rouse();
        preparing.join().unwrap();
    });
}
