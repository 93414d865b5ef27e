//! The crash simulation: one seeded run, and a crash at every operation of its disk.
//!
//! The run goes through once; the disk keeps, for every operation, what a power loss (or a kill) before it would have left. Each of these
//! is opened and must hold: it opens; its content is that after some prefix of the committed batches, none split, with every durable
//! one; the checker finds nothing; a crash during its recovery leaves the same content; life goes on from it, and nothing leaks.

use betree_testkit::{Cause, CopyPlan, Op, Oracle, Rng, SimStorage, Spread, Workload};
use std::sync::Arc;

use crate::verify::{Crash, Depth, verify};
use crate::{Failure, Place, Session, Shape, Summary, guarded, read_all};

/// How much of a run is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Operations of the run.
    pub ops: usize,
    /// At which operations of the disk it is crashed.
    pub copies: CopyPlan,
    /// Every so many crashes: crash again at every operation of the recovery.
    pub again_every: u64,
    /// Every so many crashes: go on with more operations, and crash once more.
    pub go_on_every: u64,
    /// Every so many crashes: read and check every invariant.
    pub check_every: u64,
}

/// Power loss at every operation of the disk, a kill at every eighth.
const EVERYWHERE: CopyPlan =
    CopyPlan { power_loss_every: 1, kill_every: 8, states_every: 16, spread: Spread::Even(0) };
/// Crashes during recovery: at every operation, and at some of the recovery after that.
const AGAIN: [CopyPlan; 2] = [
    CopyPlan { kill_every: 3, states_every: 0, ..EVERYWHERE },
    CopyPlan { power_loss_every: 64, kill_every: 128, states_every: 0, spread: Spread::Random },
];

impl Plan {
    /// Power loss at every operation of the disk, a kill at every eighth.
    #[must_use]
    pub fn thorough(ops: usize) -> Self {
        Self { ops, copies: EVERYWHERE, again_every: 32, go_on_every: 32, check_every: 4 }
    }

    /// A share of the operations of the disk, another one for every `start`.
    #[must_use]
    pub fn share(ops: usize, every: u64, start: u64) -> Self {
        let spread = Spread::Even(start);
        let copies = CopyPlan { power_loss_every: every, kill_every: every * 3, states_every: 0, spread };
        Self { copies, again_every: 8, go_on_every: 8, ..Self::thorough(ops) }
    }
}

/// Runs the simulation of a seed.
///
/// # Errors
/// The violated invariant, with the crash point and the last operations.
pub fn run(seed: u64, plan: &Plan) -> Result<Summary, String> {
    guarded(|| simulate(seed, plan)).map_err(|e| format!("seed {seed}: {e}"))
}

fn simulate(seed: u64, plan: &Plan) -> Result<Summary, String> {
    let mut rng = Rng::new(seed);
    let shape = Shape::tiny(&mut rng);
    let disk = SimStorage::new(rng.next_u64());
    disk.keep_copies(plan.copies);
    let mut workload = Workload::new(rng.next_u64()).reads(0.25).without_reopening();
    let mut summary = Summary::default();
    let mut crashes = 0;

    let session = Session::open(Place::Disk(disk.clone()), shape, None);
    let mut session = session.map_err(|e| format!("first opening: {e}"))?;
    let verifier = |session: &Session, before: (usize, usize), summary: &mut Summary, crashes: &mut u64| {
        for copy in disk.take_copies() {
            *crashes += 1;
            summary.crash_at(copy.state);
            let (number, cause) = (*crashes, copy.cause);
            let committed = session.oracle.len();
            let floor = if cause == Cause::PowerLoss { before.0 } else { before.1 };
            let crash = Crash {
                oracle: &session.oracle,
                shape: &session.shape,
                volatile: cause == Cause::Kill,
                allowed: floor..=committed,
                durable: before.0,
                in_recovery: false,
                uniform: false,
                number,
            };
            let every = |n: u64| n > 0 && number.is_multiple_of(n);
            let depth = Depth {
                again: if every(plan.again_every) { &AGAIN } else { &[] },
                check: every(plan.check_every),
                go_on: every(plan.go_on_every),
            };
            let verified = guarded(|| verify(&copy.disk, &crash, depth, summary));
            verified.map_err(|e| {
                format!(
                    "{cause:?} before disk operation {} {}: {e}\n  {:?}\n  last operations:\n    {}",
                    copy.index,
                    copy.state.unwrap_or_default(),
                    session.shape,
                    session.trace()
                )
            })?;
            match cause {
                Cause::PowerLoss => summary.power_losses += 1,
                Cause::Kill => summary.kills += 1,
            }
        }
        Ok::<(), String>(())
    };
    verifier(&session, (0, 0), &mut summary, &mut crashes)?;
    for step in 0..plan.ops + crate::SPACES.len() {
        let op = match step.checked_sub(crate::SPACES.len()) {
            None => {
                Op::Single(betree_testkit::Edit { keyspace: step, change: betree_testkit::Change::Create })
            }
            Some(_) => workload.next(&session.oracle),
        };
        let before = (session.durable, session.oracle.len());
        if let Err(e) = session.apply(&op) {
            return Err(format!(
                "operation {step}: {e}\n  {:?}\n  last operations:\n    {}",
                session.shape,
                session.trace()
            ));
        }
        verifier(&session, before, &mut summary, &mut crashes)?;
    }
    let stats = session.db().stats();
    summary.height = stats.tree_height;
    summary.checkpoints = stats.checkpoint_count;
    summary.batches = session.oracle.len() as u64;
    summary.disk_ops = disk.op_count();
    let before = (session.durable, session.oracle.len());
    session.close_and_compare_space().map_err(|e| e.to_string())?;
    verifier(&session, before, &mut summary, &mut crashes)?;
    (summary.lives, summary.ops, summary.reached) = (1, plan.ops as u64, disk.arrivals());
    summary.take_disk(&disk);
    Ok(summary)
}

/// Runs a seed again and again with the power cut at every `stride`-th operation of the disk, so that the engine lives
/// through the failing operations itself; compares what is recovered each time. How many cuts there were.
///
/// # Errors
/// The violated invariant, with the operation that was cut and the last operations.
pub fn power_cuts(seed: u64, ops: usize, stride: u64) -> Result<u64, String> {
    guarded(|| {
        let (disk, _) = cut_run(seed, ops, u64::MAX)?;
        let total = disk.op_count();
        let mut cuts = 0;
        for at in (seed % stride..total).step_by(stride as usize) {
            cut_at(seed, ops, at).map_err(|e| format!("power cut at operation {at} of the disk: {e}"))?;
            cuts += 1;
        }
        Ok(cuts)
    })
    .map_err(|e| format!("seed {seed}: {e}"))
}

/// Runs until an operation fails for want of power. The session is absent when it did not even open.
fn cut_run(seed: u64, ops: usize, at: u64) -> Result<(Arc<SimStorage>, Option<Session>), String> {
    let mut rng = Rng::new(seed);
    let shape = Shape::tiny(&mut rng);
    let disk = SimStorage::new(rng.next_u64());
    disk.crash_at(at);
    let mut workload = Workload::new(rng.next_u64()).reads(0.25);
    let mut session = match Session::open(Place::Disk(disk.clone()), shape, None) {
        Ok(session) => session,
        Err(Failure::Engine(_)) if disk.is_gone() => return Ok((disk, None)),
        Err(e) => return Err(format!("first opening: {e}")),
    };
    let mut ended = session.create_keyspaces();
    for _ in 0..ops {
        if ended.is_err() {
            break;
        }
        let op = workload.next(&session.oracle);
        ended = session.apply(&op);
    }
    match ended {
        Ok(()) => {}
        Err(Failure::Engine(_)) if disk.is_gone() => {}
        Err(e) => return Err(format!("{e}\n  last operations:\n    {}", session.trace())),
    }
    Ok((disk, Some(session)))
}

fn cut_at(seed: u64, ops: usize, at: u64) -> Result<(), String> {
    let (disk, session) = cut_run(seed, ops, at)?;
    let (oracle, durable, shape) = match session {
        Some(mut session) => {
            session.abandon();
            let mut oracle = session.oracle.clone();
            if let Some(batch) = &session.attempted {
                oracle.commit(batch);
            }
            (oracle, session.durable, session.shape.clone())
        }
        None => {
            let folds = crate::SPACES.iter().map(|s| s.1).collect();
            (Oracle::new(folds), 0, Shape::tiny(&mut Rng::new(seed)))
        }
    };
    let disk = disk.crash();
    let db = shape.builder().open_on(disk.as_storage()).map_err(|e| format!("does not open: {e}"))?;
    let found = read_all(&db).map_err(|e| format!("does not read: {e}"))?;
    let allowed = durable..=oracle.len();
    if oracle.prefix_with(found.digest(), allowed.clone()).is_none() {
        return Err(oracle.explain(&found, allowed));
    }
    let report = db.check().map_err(|e| format!("check fails: {e}"))?;
    if !report.is_clean() {
        return Err(format!("check: {}", report.problems.join("; ")));
    }
    Ok(())
}
