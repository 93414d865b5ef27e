//! Between two lives: how one ends, and how the next opens what it left.

use betree_testkit::{CopyPlan, FaultKind, NAMED_STATES, SimStorage, Spread};

use super::{Ended, Kind, Run, no_batches, sync_faults};
use crate::faults::located;
use crate::verify::{Crash, crashes_of_recovery};
use crate::{Failure, Place, Session, Shape, digest_all};

/// Crashes of a recovery, of the recovery from one of those, and of the one after that.
pub(super) const AGAIN: [CopyPlan; 3] = [
    CopyPlan { power_loss_every: 12, kill_every: 36, states_every: 6, spread: Spread::Random },
    CopyPlan { power_loss_every: 24, kill_every: 48, states_every: 24, spread: Spread::Random },
    CopyPlan { power_loss_every: 200, kill_every: 200, states_every: 100, spread: Spread::Random },
];
/// What may fail during recovery.
const RECOVERY_FAULTS: [FaultKind; 7] = [
    FaultKind::ReadError,
    FaultKind::ShortRead,
    FaultKind::WriteError,
    FaultKind::ShortWrite,
    FaultKind::NoSpace,
    FaultKind::SyncError,
    FaultKind::DirSyncError,
];
/// Openings of one life that may go wrong.
const OPENINGS: usize = 3;

impl Run {
    /// Opens the database for the next life; crashes and faults come between.
    pub(super) fn open(&mut self, shape: &Shape) -> Result<Session, String> {
        let mut in_recovery = false;
        for attempt in 0.. {
            let may_fail = attempt < OPENINGS;
            let cut = may_fail && self.rng.chance(0.3);
            let faulty = may_fail && !cut && self.rng.chance(0.15);
            self.disk.keep_copies(AGAIN[0]);
            if cut && self.rng.chance(0.5) {
                self.disk.crash_at(self.rng.below(30));
            } else if cut {
                // Those of making a file and of recovery come first.
                self.disk.crash_at_state(NAMED_STATES[self.rng.index(7)], 1);
            } else if faulty {
                let rate = [0.01, 0.1][self.rng.index(2)];
                RECOVERY_FAULTS.iter().for_each(|&kind| self.disk.set_fault_rate(kind, rate));
            }
            let sync_faults = sync_faults(&self.disk);
            let place = Place::Disk(self.disk.clone());
            let allowed = self.floor..=self.oracle.len();
            match Session::recover(place, shape.clone(), self.oracle.clone(), allowed.clone()) {
                Ok(session) => {
                    self.disk.clear_faults();
                    let prefix = session.oracle.len();
                    self.summary.lost += (allowed.end() - prefix) as u64;
                    let crash = Crash {
                        oracle: &self.oracle,
                        shape,
                        volatile: self.volatile,
                        allowed,
                        durable: self.durable,
                        in_recovery,
                        uniform: self.uniform,
                        number: self.crashes,
                    };
                    if !faulty {
                        // Where recovery was over is not known exactly: what a kill left counts as not durable yet.
                        crashes_of_recovery(&self.disk, &crash, prefix, u64::MAX, &AGAIN, &mut self.summary)?;
                    }
                    self.stop_copies();
                    return Ok(session);
                }
                Err(Failure::Engine(_)) if self.disk.is_gone() => {
                    self.summary.again += 1;
                    self.summary.third += u64::from(in_recovery);
                    in_recovery = true;
                    self.crash();
                }
                Err(Failure::Engine(error)) if faulty => {
                    in_recovery = true;
                    self.summary.errors += 1;
                    if matches!(error, betree::Error::Corrupt { .. }) {
                        return Err(format!("a failing device is told as damage: {error}"));
                    }
                    let kill = sync_faults == self::sync_faults(&self.disk) && self.rng.chance(0.5);
                    if kill { self.disk = self.disk.kill() } else { self.crash() }
                }
                Err(e) => return Err(format!("attempt {attempt}: {e}")),
            }
        }
        Err("unreachable: the last attempt is not disturbed".into())
    }

    /// Ends a life that told no lies, in one of the ways that are left to it.
    pub(super) fn end_life(
        &mut self,
        session: &mut Session,
        kind: Kind,
        ended: Ended,
        sync_failed: bool,
    ) -> Result<(), String> {
        let before = (session.durable, session.oracle.len());
        if ended == Ended::Done && !self.disk.is_gone() {
            self.sure = before.1;
        }
        if ended == Ended::Done && kind == Kind::Calm && !self.disk.is_gone() && self.rng.chance(0.3) {
            match session.close_and_compare_space() {
                Ok(()) => session.durable = session.oracle.len(),
                Err(Failure::Engine(_)) if self.disk.is_gone() => {}
                Err(e) => return Err(e.to_string()),
            }
            self.verify_copies(session, before)?;
        }
        // The power may also have gone in steps whose failure the engine may ignore: what came after was lost without a word.
        let ended = if self.disk.is_gone() { Ended::Cut } else { ended };
        let sure = if ended == Ended::Cut { self.sure } else { before.1 };
        if ended == Ended::Cut
            && let Some(batch) = session.attempted.take()
        {
            session.oracle.commit(&batch);
        }
        self.disk.set_capacity(None);
        self.stop_copies();
        self.oracle = std::mem::replace(&mut session.oracle, no_batches());
        self.durable = session.durable;
        // What a failed sync lost may still be seen by a process that starts anew, and is lost at the next power loss.
        let kill = !sync_failed && self.rng.chance(0.5);
        self.leave_disk();
        if kill {
            self.summary.kills += 1;
            self.disk = self.disk.kill();
            self.volatile = true;
            self.floor = sure.max(self.durable);
        } else {
            self.summary.power_losses += 1;
            self.crash();
        }
        session.abandon();
        Ok(())
    }

    /// After silent damage: a prefix of what was committed, or an error that says where. Then a new database on a new disk.
    pub(super) fn end_after_lies(&mut self, session: &mut Session) -> Result<(), String> {
        if let Some(batch) = session.attempted.take() {
            session.oracle.commit(&batch);
        }
        let disk = if self.rng.chance(0.5) { self.disk.kill() } else { self.disk.crash() };
        session.abandon();
        let opened = session.shape.builder().open_on(disk.as_storage());
        match opened.and_then(|db| Ok((digest_all(&db)?, db))) {
            // A lost write of the log's end looks like a torn tail.
            Ok((digest, db)) => {
                let allowed = 0..=session.oracle.len();
                if session.oracle.prefix_with(digest, allowed.clone()).is_none() {
                    let found = crate::read_all(&db).map_err(|e| e.to_string())?;
                    return Err(format!("a wrong answer: {}", session.oracle.explain(&found, allowed)));
                }
            }
            Err(error) => {
                self.summary.corruption += 1;
                located(&error)?;
            }
        }
        self.disk = disk;
        self.leave_disk();
        self.count_disk();
        self.disk = SimStorage::new(self.rng.next_u64());
        (self.oracle, self.floor, self.durable, self.volatile) = (no_batches(), 0, 0, false);
        Ok(())
    }

    /// The power goes now.
    fn crash(&mut self) {
        self.disk = self.disk.crash();
        self.floor = self.durable;
        self.volatile = false;
    }

    pub(super) fn stop_copies(&self) {
        drop(self.disk.take_copies());
        self.disk.keep_copies(CopyPlan::default());
    }

    /// Counts the operations of the disk's life, which begin anew with the next.
    fn leave_disk(&mut self) {
        self.summary.disk_ops += self.disk.op_count();
    }

    /// Counts what a disk has counted through all its lives.
    fn count_disk(&mut self) {
        self.summary.take_disk(&self.disk);
        for (name, count) in self.disk.arrivals() {
            *self.summary.reached.entry(name).or_default() += count;
        }
    }

    /// The last opening: everything is compared and checked, and nothing has leaked.
    pub(super) fn end(&mut self) -> Result<(), String> {
        let shape = Shape::tiny(&mut self.rng);
        self.disk.keep_copies(CopyPlan::default());
        let place = Place::Disk(self.disk.clone());
        let allowed = self.floor..=self.oracle.len();
        let said = |e: Failure| e.to_string();
        let mut session = Session::recover(place, shape, self.oracle.clone(), allowed).map_err(said)?;
        session.compare().map_err(said)?;
        session.check().map_err(said)?;
        self.summary.checks += 1;
        session.close_and_compare_space().map_err(said)?;
        session.abandon();
        self.leave_disk();
        self.count_disk();
        Ok(())
    }
}
