//! The campaign: a seed's run through several lives of one database, crashed at a random sample of its disk's operations.
//!
//! A life has options of its own and goes on from what the one before left. It is *calm* (copies of the disk are crashed on the way and
//! verified, the run itself ends by closing, by a kill or by power loss), *cut* (the power goes, or the process dies, while the engine works, at an operation or at
//! a named state), *faulty* (the disk fails and says so) or *lying* (it fails and does not; the database's last life). Recovery between
//! lives is crashed again, up to three times in a row, and meets faults too. The oracle goes through all of it, cut each time to the
//! prefix that survived.
//!
//! Invariants: `floor` batches must be there at the next opening, `durable` ones even if the power goes during it.

mod between;

use std::sync::Arc;

use betree_testkit::{
    Cause, CopyPlan, DiskCopy, FaultKind, NAMED_STATES, Op, Oracle, Rng, SimStorage, Spread, Workload,
};

use crate::faults::{LIES_SHOWN, Trouble, located, set_trouble, settle_attempt};
use crate::verify::{Crash, Depth, verify};
use crate::{Failure, Session, Shape, Summary, guarded};
use between::AGAIN;

/// Crashes of a calm life: some dozen in two thousand operations.
const CALM: CopyPlan =
    CopyPlan { power_loss_every: 90, kill_every: 270, states_every: 2, spread: Spread::Random };
/// Runs a seed for `ops` operations.
///
/// # Errors
/// The violated invariant, with the crash point and the last operations.
pub fn run(seed: u64, ops: usize) -> Result<Summary, String> {
    guarded(|| {
        let mut run = Run::new(seed);
        let mut left = ops;
        while left > 0 {
            let ops = left.min(60 + run.rng.index(ops / 2 + 1));
            let kind = Kind::draw(&mut run.rng);
            let before = run.summary.ops;
            run.live(kind, ops).map_err(|e| {
                run.told(&format!("life {}, {kind:?}, of {ops} operations: {e}", run.summary.lives))
            })?;
            // A life that errors cut short leaves its operations to the next.
            left = left.saturating_sub(((run.summary.ops - before) as usize).max(8));
        }
        run.end().map_err(|e| run.told(&format!("the last opening: {e}")))?;
        Ok(run.summary)
    })
    .map_err(|e| format!("seed {seed}: {e}"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Calm,
    Cut,
    Faulty(Trouble),
    Lying,
}

impl Kind {
    fn draw(rng: &mut Rng) -> Self {
        match rng.below(20) {
            0..10 => Self::Calm,
            10..14 => Self::Cut,
            14..19 => {
                let honest = Trouble::ALL.len() - 1;
                Self::Faulty(Trouble::ALL[rng.index(honest)])
            }
            _ => Self::Lying,
        }
    }
}

/// How the operations of a life came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// There were no more.
    Done,
    /// The power went, or the process was killed, in the middle of an operation.
    Cut,
    /// Errors made an end of it.
    Errors,
}

struct Run {
    rng: Rng,
    disk: Arc<SimStorage>,
    oracle: Oracle,
    floor: usize,
    durable: usize,
    /// Whether the process was killed, so that more than `durable` may be there and be lost.
    volatile: bool,
    /// Batches that were certainly committed before the power went.
    sure: usize,
    /// Whether all writes have one size.
    uniform: bool,
    /// Whether every invariant is checked after every change of a tree.
    check_changes: bool,
    crashes: u64,
    /// What each life was and how it ended, for messages.
    lives: Vec<String>,
    summary: Summary,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0063_616d_7061_6967);
        let disk = SimStorage::new(rng.next_u64());
        let check_changes = rng.chance(0.1);
        let summary = Summary::default();
        let uniform = rng.chance(0.25);
        let (oracle, lives) = (no_batches(), Vec::new());
        Self {
            rng,
            disk,
            oracle,
            floor: 0,
            durable: 0,
            volatile: false,
            sure: 0,
            uniform,
            check_changes,
            crashes: 0,
            lives,
            summary,
        }
    }

    fn told(&self, text: &str) -> String {
        format!("{text}\n  lives before: {}", self.lives.join("; "))
    }

    fn live(&mut self, kind: Kind, ops: usize) -> Result<(), String> {
        let shape = Shape::tiny(&mut self.rng);
        let shape = if self.rng.chance(0.3) { shape.deep() } else { shape };
        let mut session = self.open(&shape).map_err(|e| format!("opening: {e}\n  {shape:?}"))?;
        self.summary.lives += 1;
        let began = session.oracle.len();
        let sync_faults = sync_faults(&self.disk);
        match kind {
            Kind::Calm => self.disk.keep_copies(CALM),
            Kind::Cut => self.aim(ops as u64 * 2),
            Kind::Faulty(_) | Kind::Lying => {}
        }
        let ended = self.operate(&mut session, kind, ops).map_err(|e| context(&self.disk, &session, &e))?;
        self.summary.batches += (session.oracle.len() - began) as u64;
        if let Some(stats) = session.stats() {
            self.summary.height = self.summary.height.max(stats.tree_height);
            self.summary.checkpoints += stats.checkpoint_count;
        }
        let sync_failed = sync_faults != self::sync_faults(&self.disk);
        let end = if kind == Kind::Lying {
            self.end_after_lies(&mut session)
        } else {
            self.end_life(&mut session, kind, ended, sync_failed)
        };
        let said = format!("{kind:?} {ended:?}, {} durable, {} must be there", self.durable, self.floor);
        self.lives.push(format!("{said}, of {} batches", self.oracle.len()));
        end.map_err(|e| context(&self.disk, &session, &format!("the end ({ended:?}): {e}")))
    }

    /// The power goes at one of the next `ops` operations of the disk, or at a named state.
    fn aim(&mut self, ops: u64) {
        if self.rng.chance(0.5) {
            self.disk.crash_at(self.disk.op_count() + self.rng.below(ops));
        } else {
            let name = NAMED_STATES[self.rng.index(NAMED_STATES.len())];
            self.disk.crash_at_state(name, self.rng.between(1, 6));
        }
    }

    fn operate(&mut self, session: &mut Session, kind: Kind, ops: usize) -> Result<Ended, String> {
        let mut before = (session.durable, session.oracle.len());
        self.sure = before.1;
        match session.create_keyspaces() {
            Ok(()) => {}
            Err(Failure::Engine(_)) if self.disk.is_gone() => return Ok(Ended::Cut),
            Err(e) => return Err(e.to_string()),
        }
        let mut workload = Workload::new(self.rng.next_u64()).reads(0.25).uniform(self.uniform);
        let honest = matches!(kind, Kind::Calm | Kind::Cut);
        if !honest {
            workload = workload.without_reopening().without_dropping();
        }
        let rate = [0.003, 0.02, 0.1][self.rng.index(3)];
        let mut seen = self.disk.arrivals_in_all();
        self.verify_copies(session, before)?;
        before = (session.durable, session.oracle.len());
        for step in 0..ops {
            let trouble = match kind {
                Kind::Faulty(trouble) => Some(trouble),
                Kind::Lying => Some(Trouble::Lies),
                Kind::Calm | Kind::Cut => None,
            };
            if let Some(trouble) = trouble.filter(|_| step % 64 == 0) {
                set_trouble(&self.disk, trouble, rate, &mut self.rng);
            }
            let op = workload.next(&session.oracle);
            self.summary.ops += 1;
            self.sure = session.oracle.len();
            let mut result = session.apply(&op);
            if self.check_changes && honest && result.is_ok() && seen != self.disk.arrivals_in_all() {
                seen = self.disk.arrivals_in_all();
                self.summary.checks += 1;
                result = session.check();
            }
            let error = match result {
                Ok(()) => {
                    self.verify_copies(session, before)?;
                    if self.disk.is_gone() {
                        return Ok(Ended::Cut);
                    }
                    before = (session.durable, session.oracle.len());
                    continue;
                }
                Err(Failure::Engine(_)) if self.disk.is_gone() => return Ok(Ended::Cut),
                // The checker is there to find what the disk lied about.
                Err(Failure::Broken(text))
                    if kind == Kind::Lying && LIES_SHOWN.iter().any(|name| text.contains(name)) =>
                {
                    self.summary.corruption += 1;
                    continue;
                }
                Err(Failure::Engine(error)) if !honest => error,
                Err(e) => return Err(format!("operation {step}: {e}")),
            };
            let wrong = |e: String| format!("operation {step}, after {error}: {e}");
            self.summary.errors += 1;
            if kind == Kind::Lying {
                located(&error).map_err(wrong)?;
                self.summary.corruption += 1;
                return Ok(Ended::Errors);
            }
            settle_attempt(&self.disk, session, &error).map_err(wrong)?;
            let full = kind == Kind::Faulty(Trouble::FullDevice);
            if full && !matches!(error, betree::Error::NoSpace { .. }) {
                return Err(wrong("a full device is not told as such".into()));
            }
            if full && self.rng.chance(0.2) {
                self.disk.set_capacity(None);
                match session.apply(&Op::Checkpoint) {
                    Ok(()) => {}
                    Err(Failure::Engine(_)) if self.disk.is_gone() => return Ok(Ended::Cut),
                    Err(e) => return Err(wrong(format!("writing does not resume: {e}"))),
                }
            } else if self.rng.chance(if full { 0.02 } else { 0.15 }) {
                return Ok(Ended::Errors);
            }
        }
        Ok(Ended::Done)
    }

    /// Verifies what crashes since the last operation would have left; `before`: batches durable and committed then.
    fn verify_copies(&mut self, session: &Session, before: (usize, usize)) -> Result<(), String> {
        for DiskCopy { index, cause, state, disk } in self.disk.take_copies() {
            self.crashes += 1;
            let number = self.crashes;
            let (count, floor) = match cause {
                Cause::PowerLoss => (&mut self.summary.power_losses, before.0),
                Cause::Kill => (&mut self.summary.kills, before.1),
            };
            *count += 1;
            self.summary.crash_at(state);
            let other = Shape::tiny(&mut Rng::new(number));
            let crash = Crash {
                oracle: &session.oracle,
                shape: if number.is_multiple_of(4) { &other } else { &session.shape },
                volatile: cause == Cause::Kill,
                allowed: floor..=session.oracle.len(),
                durable: before.0,
                in_recovery: false,
                uniform: self.uniform,
                number,
            };
            let depth = Depth {
                again: if number.is_multiple_of(6) { &AGAIN } else { &[] },
                check: number.is_multiple_of(4),
                go_on: number.is_multiple_of(if cause == Cause::Kill { 5 } else { 15 }),
            };
            guarded(|| verify(&disk, &crash, depth, &mut self.summary)).map_err(|e| {
                let at = state.map(|name| format!(", at {name}")).unwrap_or_default();
                format!("{cause:?} before disk operation {index}{at}, crash {number}: {e}")
            })?;
        }
        Ok(())
    }
}

fn no_batches() -> Oracle {
    Oracle::new(crate::SPACES.iter().map(|s| s.1).collect())
}

/// How many syncs have failed on the disk.
fn sync_faults(disk: &SimStorage) -> u64 {
    let injected = disk.injected();
    [FaultKind::SyncError, FaultKind::DirSyncError].iter().filter_map(|kind| injected.get(kind)).sum()
}

fn context(disk: &SimStorage, session: &Session, text: &str) -> String {
    format!(
        "{text}\n  faults so far: {:?}\n  {:?}\n  last operations:\n    {}",
        disk.injected(),
        session.shape,
        session.trace()
    )
}
