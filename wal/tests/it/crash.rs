//! Power loss and kill at every operation: what replays is a prefix of what was appended, with everything synced.

use std::sync::Arc;

use betree_testkit::{FaultKind, Rng, SimStorage};
use betree_wal::Lsn;

use crate::{Opened, open, payload, small};

/// What must hold of the log, kept outside of it.
#[derive(Debug, Clone, Default)]
struct Model {
    /// Everything appended since the log was created: start, payload.
    appended: Vec<(Lsn, Vec<u8>)>,
    /// Everything before was synced.
    synced: Lsn,
    /// Where the next replay begins (the caller's checkpoint, durable elsewhere).
    from: Lsn,
    next: u64,
}

impl Model {
    /// A random stretch of work. Stops early when the disk is gone; returns whether it is not.
    fn work(&mut self, opened: &mut Opened, rng: &mut Rng, steps: u64) -> bool {
        for _ in 0..steps {
            let result = match rng.below(20) {
                0..12 => {
                    let len = match rng.below(10) {
                        0 => rng.below(14_000),
                        1..4 => 200,
                        _ => rng.below(900),
                    };
                    let (start, record) = (opened.appender.end(), payload(self.next, len as usize));
                    self.next += 1;
                    opened.appender.append(&[&record]).map(|_| self.appended.push((start, record)))
                }
                12..15 => {
                    let upto = opened.wal.end();
                    opened.wal.sync(upto).map(|()| self.synced = self.synced.max(upto))
                }
                15..17 => opened.wal.prepare(),
                17 | 18 => {
                    // A checkpoint: sometimes of what was synced, sometimes ahead of the log.
                    let bound = if rng.chance(0.5) { self.synced } else { opened.wal.end() };
                    let starts = self.appended.iter().map(|(start, _)| *start);
                    self.from =
                        self.from.max(starts.filter(|start| *start <= bound).max().unwrap_or_default());
                    opened.wal.trim(self.from)
                }
                _ => {
                    let upto = opened.wal.end();
                    opened.wal.seal().map(|()| self.synced = self.synced.max(upto))
                }
            };
            match result {
                Err(error) if !error.is_no_space() => return false,
                _ => {}
            }
        }
        true
    }

    /// Checks what an open replayed and forgets what was lost.
    fn check(&mut self, opened: &Opened, what: &str) {
        let from = self.appended.iter().position(|(start, _)| *start >= self.from);
        let expected = &self.appended[from.unwrap_or(self.appended.len())..];
        let got = &opened.records;
        let lsns = |records: &[(Lsn, Vec<u8>)]| records.iter().map(|(lsn, _)| lsn.0).collect::<Vec<_>>();
        assert!(
            got.len() <= expected.len() && got[..] == expected[..got.len()],
            "{what}: not a prefix: {:?} of {:?}",
            lsns(got),
            lsns(expected)
        );
        assert!(opened.wal.end() >= self.synced, "{what}: a synced record is missing");
        assert!(opened.wal.end() >= self.from, "{what}");
        let end = opened.wal.end();
        self.appended.retain(|(start, _)| *start < end);
        self.synced = end;
    }
}

/// How many seeds a test runs: more with `SEEDS=<factor>` in the environment, for a longer search.
fn seeds(base: u64, count: u64) -> std::ops::Range<u64> {
    let factor = std::env::var("SEEDS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1);
    base..base + count * factor
}

fn reopen(disk: &Arc<SimStorage>, model: &mut Model, what: &str) -> Opened {
    let opened = open(disk.as_storage(), &small(), model.from);
    let opened = opened.unwrap_or_else(|error| {
        let mut listing = Vec::new();
        betree_wal::dump(&*disk.as_storage(), &mut listing).unwrap();
        panic!("{what}: {error}\nfrom {:?}\n{}", model.from, String::from_utf8_lossy(&listing))
    });
    model.check(&opened, what);
    opened
}

/// Runs a workload that is cut at operation `cut`; returns the disk before restart, or none when it ended before.
fn run_until(seed: u64, cut: u64) -> Option<(Arc<SimStorage>, Model)> {
    let disk = SimStorage::new(seed);
    disk.crash_at(cut);
    let mut model = Model::default();
    let mut rng = Rng::new(seed);
    if let Ok(mut opened) = open(disk.as_storage(), &small(), Lsn(0)) {
        model.work(&mut opened, &mut rng, 60);
    }
    disk.is_gone().then_some((disk, model))
}

#[test]
fn power_loss_at_every_operation_keeps_a_prefix_with_everything_synced() {
    for seed in seeds(0, 12) {
        for cut in 0.. {
            let Some((disk, mut model)) = run_until(seed, cut) else { break };
            let what = format!("seed {seed}, operation {cut}");
            let disk = disk.crash();
            let mut opened = reopen(&disk, &mut model, &what);
            // Life goes on, and is lost again: nothing of the first life may come back.
            let mut rng = Rng::new(seed ^ cut << 8);
            let steps = rng.below(15);
            model.work(&mut opened, &mut rng, steps);
            drop(opened);
            let disk = disk.crash();
            drop(reopen(&disk, &mut model, &format!("{what}, second life")));
            let disk = disk.crash();
            let lost = model.appended.len();
            drop(reopen(&disk, &mut model, &format!("{what}, third life")));
            assert_eq!(model.appended.len(), lost, "{what}: an open makes all it replays durable");
        }
    }
}

#[test]
fn power_loss_during_recovery_changes_nothing() {
    for seed in seeds(10_000, 6) {
        for cut in (0..).step_by(5) {
            let Some((disk, model)) = run_until(seed, cut) else { break };
            let disk = disk.crash();
            let mut recovery = 0;
            loop {
                let what = format!("seed {seed}, operation {cut}, then recovery {recovery}");
                let mut model = model.clone();
                let copy = disk.crashed_copy(cut);
                copy.crash_at(recovery);
                let first = open(copy.as_storage(), &small(), model.from);
                let done = !copy.is_gone();
                if let (true, Ok(opened)) = (done, &first) {
                    model.check(opened, &what);
                }
                let copy = copy.crash();
                let mut opened = reopen(&copy, &mut model, &what);
                let mut rng = Rng::new(seed ^ recovery);
                model.work(&mut opened, &mut rng, 8);
                drop(opened);
                reopen(&copy.crash(), &mut model, &what);
                if done {
                    break;
                }
                recovery += 1;
            }
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_appended() {
    for seed in seeds(20_000, 6) {
        for steps in 0..60 {
            let disk = SimStorage::new(seed);
            let mut model = Model::default();
            let mut rng = Rng::new(seed);
            let mut opened = open(disk.as_storage(), &small(), Lsn(0)).unwrap();
            assert!(model.work(&mut opened, &mut rng, steps), "seed {seed}");
            model.synced = opened.wal.end();
            drop(opened);
            let disk = disk.kill();
            let what = format!("seed {seed}, {steps} steps");
            let mut opened = reopen(&disk, &mut model, &what);
            model.work(&mut opened, &mut rng, 5);
            drop(opened);
            // What the open replayed is durable now.
            reopen(&disk.crash(), &mut model, &what);
        }
    }
}

#[test]
fn a_full_disk_failed_syncs_and_power_loss_together_keep_a_prefix_with_everything_synced() {
    for seed in seeds(40_000, 300) {
        let mut disk = SimStorage::new(seed);
        let mut model = Model::default();
        let mut rng = Rng::new(seed);
        for life in 0..4 {
            let what = format!("seed {seed}, life {life}");
            disk.set_fault_rate(FaultKind::NoSpace, 0.05);
            disk.set_fault_rate(FaultKind::SyncError, 0.02);
            disk.set_fault_rate(FaultKind::DirSyncError, 0.02);
            // An open may fail, as long as the next one without faults succeeds.
            if let Ok(mut opened) = open(disk.as_storage(), &small(), model.from) {
                model.check(&opened, &what);
                model.work(&mut opened, &mut rng, 60);
            }
            disk = disk.crash();
            drop(reopen(&disk, &mut model, &what));
        }
    }
}

#[test]
fn a_record_lost_once_does_not_come_back_behind_new_ones_of_the_same_length() {
    // Equal lengths put every new frame at the Lsn of an old one; without the cut an old one would follow.
    for seed in seeds(30_000, 200) {
        let disk = SimStorage::new(seed);
        let mut model = Model::default();
        let mut rng = Rng::new(seed);
        let mut opened = open(disk.as_storage(), &small(), Lsn(0)).unwrap();
        for n in 0..60 {
            let (start, record) = (opened.appender.end(), payload(n, 500));
            opened.appender.append(&[&record]).unwrap();
            model.appended.push((start, record));
        }
        drop(opened);
        let disk = disk.crash();
        let mut opened = reopen(&disk, &mut model, &format!("seed {seed}"));
        for n in 0..rng.below(12) {
            let (start, record) = (opened.appender.end(), payload(1000 + n, 500));
            opened.appender.append(&[&record]).unwrap();
            model.appended.push((start, record));
        }
        drop(opened);
        reopen(&disk.crash(), &mut model, &format!("seed {seed}, again"));
    }
}

#[test]
fn a_torn_tail_is_cut_wherever_the_bytes_end_or_turn() {
    let disk = SimStorage::new(40);
    let mut opened = open(disk.as_storage(), &small(), Lsn(0)).unwrap();
    let mut expected = Vec::new();
    for n in 0..6 {
        let (start, record) = (opened.appender.end(), payload(n, 40));
        opened.appender.append(&[&record]).unwrap();
        expected.push((start, record));
    }
    drop(opened);
    let name = "log-0000000000000001";
    let whole = disk.contents(name).unwrap();
    // A long frame begins the file.
    let (first, others) = (64 + 64, 48);
    let end = first + 5 * others;
    for at in 64..end {
        let left = if at < first { 0 } else { 1 + (at - first) / others };
        for (what, bytes) in [
            ("cut", whole[..at].to_vec()),
            ("zero", [&whole[..at], &vec![0; whole.len() - at]].concat()),
            ("garbage", [&whole[..at], &vec![0xa5; whole.len() - at]].concat()),
        ] {
            let disk = SimStorage::new(41);
            disk.put(name, &bytes);
            let mut opened = open(disk.as_storage(), &small(), Lsn(0)).unwrap();
            assert!(opened.records == expected[..left], "{what} at {at}");
            let last = (opened.appender.end(), payload(99, 56));
            opened.appender.append(&[&last.1]).unwrap();
            drop(opened);
            let opened = open(disk.as_storage(), &small(), Lsn(0)).unwrap();
            assert!(
                opened.records == [&expected[..left], &[last]].concat(),
                "{what} at {at}, after an append"
            );
            assert_eq!(opened.replayed.torn_bytes, 0);
        }
    }
}
