//! What must hold of a disk that a crash left, whichever simulator made the crash.
//!
//! It opens; its content is that after some allowed prefix of the committed batches; the checker finds nothing; a crash during its
//! recovery, and one during the recovery after that, leave the same; life goes on from it, and nothing leaks.

use std::ops::RangeInclusive;
use std::sync::Arc;

use betree_testkit::{Cause, CopyPlan, Oracle, Rng, SimStorage, Workload};

use crate::{Place, Session, Shape, Summary, digest_all, read_all};

/// What is known of a crash.
#[derive(Debug)]
pub(crate) struct Crash<'a> {
    pub oracle: &'a Oracle,
    /// With what options it is recovered from.
    pub shape: &'a Shape,
    /// Whether what was written is there though it is not durable: the process was killed.
    pub volatile: bool,
    /// Prefixes that may be there after it.
    pub allowed: RangeInclusive<usize>,
    /// Batches that were durable.
    pub durable: usize,
    /// Whether it came during a recovery already.
    pub in_recovery: bool,
    /// Whether what is written after it has one size only.
    pub uniform: bool,
    /// Tells crashes apart.
    pub number: u64,
}

/// How closely it is looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Depth<'a> {
    /// At which operations its recovery is crashed, then the recovery from that, and so on.
    pub again: &'a [CopyPlan],
    /// Whether every invariant is checked.
    pub check: bool,
    /// Whether there is a life after it.
    pub go_on: bool,
}

/// Opens what a crash left and checks all that must hold of it. The prefix that is there.
pub(crate) fn verify(
    disk: &Arc<SimStorage>,
    crash: &Crash<'_>,
    depth: Depth<'_>,
    summary: &mut Summary,
) -> Result<usize, String> {
    if let Some(&plan) = depth.again.first() {
        disk.keep_copies(plan);
    }
    let opened = crash.shape.builder().open_on(disk.as_storage());
    let db = opened.map_err(|e| format!("does not open: {e}"))?;
    let recovered_at = disk.op_count();
    let digest = digest_all(&db).map_err(|e| format!("does not read: {e}"))?;
    let Some(prefix) = crash.oracle.prefix_with(digest, crash.allowed.clone()) else {
        let content = read_all(&db).map_err(|e| format!("does not read: {e}"))?;
        return Err(crash.oracle.explain(&content, crash.allowed.clone()));
    };
    summary.lost += (crash.allowed.end() - prefix) as u64;
    if depth.check {
        summary.checks += 1;
        let report = db.check().map_err(|e| format!("check fails: {e}"))?;
        if !report.is_clean() {
            return Err(format!("check: {}", report.problems.join("; ")));
        }
    }
    drop(db);
    if !depth.again.is_empty() {
        crashes_of_recovery(disk, crash, prefix, recovered_at, depth.again, summary)?;
    }
    if depth.go_on {
        go_on(disk, crash, prefix).map_err(|e| format!("life after the crash: {e}"))?;
    }
    summary.take_disk(disk);
    Ok(prefix)
}

/// Verifies the copies that were kept of `disk` during the recovery from `crash`, which found `prefix` and was over at the
/// operation `recovered_at`.
pub(crate) fn crashes_of_recovery(
    disk: &Arc<SimStorage>,
    crash: &Crash<'_>,
    prefix: usize,
    recovered_at: u64,
    again: &[CopyPlan],
    summary: &mut Summary,
) -> Result<(), String> {
    let deeper = again.get(1..).unwrap_or_default();
    for copy in disk.take_copies() {
        summary.again += 1;
        summary.third += u64::from(crash.in_recovery);
        summary.crash_at(copy.state);
        // What a power loss left is durable; what a kill left is durable again when recovery is done.
        let volatile = crash.volatile && copy.index < recovered_at;
        let floor = if volatile && copy.cause == Cause::PowerLoss { crash.durable } else { prefix };
        let next = Crash {
            volatile: volatile && copy.cause == Cause::Kill,
            allowed: floor..=prefix,
            in_recovery: true,
            number: crash.number.wrapping_add(copy.index),
            ..*crash
        };
        let depth = Depth { again: deeper, check: copy.index.is_multiple_of(8), go_on: false };
        verify(&copy.disk, &next, depth, summary).map_err(|e| {
            let at = copy.state.map(|name| format!(" ({name})")).unwrap_or_default();
            format!("{:?} before operation {}{at} of recovery: {e}", copy.cause, copy.index)
        })?;
    }
    Ok(())
}

/// A new life from what a crash left: more operations, space compared, power lost again.
fn go_on(disk: &Arc<SimStorage>, crash: &Crash<'_>, prefix: usize) -> Result<(), String> {
    let said = |e: crate::Failure| e.to_string();
    let place = Place::Disk(disk.clone());
    let content = crash.oracle.after(prefix);
    let mut session = Session::open(place, crash.shape.clone(), Some(content)).map_err(said)?;
    session.create_keyspaces().map_err(said)?;
    let mut workload = Workload::new(crash.number).without_reopening().uniform(crash.uniform);
    // Few enough at times that no checkpoint comes before the power goes again.
    for _ in 0..Rng::new(crash.number).between(1, 70) {
        let op = workload.next(&session.oracle);
        session.apply(&op).map_err(said)?;
    }
    session.check().map_err(said)?;
    if crash.number.is_multiple_of(3) {
        session.close_and_compare_space().map_err(said)?;
    }
    let disk = disk.crash();
    let opened = crash.shape.builder().open_on(disk.as_storage());
    let db = opened.map_err(|e| format!("after the second life: {e}"))?;
    let found = read_all(&db).map_err(|e| format!("after the second life: {e}"))?;
    let allowed = session.durable..=session.oracle.len();
    if session.oracle.prefix_with(found.digest(), allowed.clone()).is_none() {
        return Err(format!("after the second life: {}", session.oracle.explain(&found, allowed)));
    }
    Ok(())
}
