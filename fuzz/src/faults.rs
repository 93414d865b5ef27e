//! Fault runs: the simulated disk fails, by seed, and the engine must say so: errors, never wrong answers.
//!
//! A failed commit had no effect when the error says so (device full, writes refused); otherwise it had all of it or none, which reading
//! shows. Reads go on. On a device that stays full everything can be deleted, and then writing resumes. Ending and opening anew recovers what was promised.

use betree::Error;
use betree_testkit::{Change, Edit, FaultKind, Op, Oracle, Rng, SimStorage, Workload};
use std::sync::Arc;

use crate::{Failure, Place, Session, Shape, guarded, read_all};

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The device is full for some time, again and again.
    FullDevice,
    /// Reads fail.
    Reads,
    /// Writes fail.
    Writes,
    /// Syncs fail.
    Syncs,
    /// All of it.
    Everything,
    /// Writes get lost, land elsewhere or change a bit, and nobody says so.
    Lies,
}

impl Trouble {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::FullDevice, Self::Reads, Self::Writes, Self::Syncs, Self::Everything, Self::Lies];

    pub(crate) fn kinds(self) -> &'static [FaultKind] {
        match self {
            Self::FullDevice => &[],
            Self::Reads => &[FaultKind::ReadError, FaultKind::ShortRead],
            Self::Writes => &[FaultKind::WriteError, FaultKind::ShortWrite, FaultKind::NoSpace],
            Self::Syncs => &[FaultKind::SyncError, FaultKind::DirSyncError],
            Self::Everything => &[
                FaultKind::ReadError,
                FaultKind::ShortRead,
                FaultKind::WriteError,
                FaultKind::ShortWrite,
                FaultKind::SyncError,
                FaultKind::DirSyncError,
                FaultKind::NoSpace,
            ],
            Self::Lies => &[FaultKind::LostWrite, FaultKind::MisdirectedWrite, FaultKind::FlippedBit],
        }
    }
}

/// What a run went through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Errors that the engine gave.
    pub errors: u64,
    /// Lives of the database.
    pub lives: u64,
    /// Times it refused to open or to read for corruption it found.
    pub corruption: u64,
    /// Batches committed.
    pub batches: u64,
    /// Times everything was deleted on a full device, and writing resumed.
    pub made_room: u64,
}

/// Runs `ops` operations of a seed under `trouble`.
///
/// # Errors
/// A wrong answer, or a promise not kept, with the last operations.
pub fn run(seed: u64, ops: usize, trouble: Trouble) -> Result<Summary, String> {
    guarded(|| go(seed, ops, trouble)).map_err(|e| format!("seed {seed} {trouble:?}: {e}"))
}

/// How the checker names pages and superblocks that are not what was written.
pub(crate) const LIES_SHOWN: [&str; 3] =
    ["page.checksum_in_parent", "page.sealed: the catalog", "superblock.newest_valid_wins"];

struct Life {
    disk: Arc<SimStorage>,
    session: Session,
}

fn go(seed: u64, ops: usize, trouble: Trouble) -> Result<Summary, String> {
    let mut rng = Rng::new(seed);
    let shape = Shape::tiny(&mut rng);
    let disk = SimStorage::new(rng.next_u64());
    let mut workload = Workload::new(rng.next_u64()).without_reopening().without_dropping();
    let session = Session::open(Place::Disk(disk.clone()), shape, None).map_err(|e| e.to_string())?;
    let mut life = Life { disk, session };
    life.session.create_keyspaces().map_err(|e| e.to_string())?;
    let mut summary = Summary { lives: 1, ..Summary::default() };
    let rate = [0.001, 0.01, 0.05][rng.index(3)];
    for step in 0..ops {
        if step % 64 == 0 {
            set_trouble(&life.disk, trouble, rate, &mut rng);
        }
        let op = workload.next(&life.session.oracle);
        let failed = match life.session.apply(&op) {
            Ok(()) => None,
            Err(Failure::Engine(error)) => Some(error),
            // The checker is there to find what the disk lied about.
            Err(Failure::Broken(text))
                if trouble == Trouble::Lies && LIES_SHOWN.iter().any(|shown| text.contains(shown)) =>
            {
                summary.corruption += 1;
                continue;
            }
            Err(Failure::Wrong(text) | Failure::Broken(text)) => return Err(context(&life, step, &text)),
        };
        let Some(error) = failed else { continue };
        summary.errors += 1;
        if trouble == Trouble::Lies {
            located(&error).map_err(|e| context(&life, step, &e))?;
            summary.corruption += 1;
            if !next_life_after_lies(&mut life, &mut rng, &mut summary)
                .map_err(|e| context(&life, step, &e))?
            {
                return Ok(summary);
            }
            continue;
        }
        settle_attempt(&life.disk, &mut life.session, &error)
            .map_err(|e| context(&life, step, &format!("after {error}: {e}")))?;
        if trouble == Trouble::FullDevice {
            if !matches!(error, Error::NoSpace { .. }) {
                return Err(context(&life, step, &format!("a full device is not told as such: {error}")));
            }
            if rng.chance(0.3) {
                make_room(&mut life).map_err(|e| context(&life, step, &format!("on a full device: {e}")))?;
                summary.made_room += 1;
            } else if rng.chance(0.3) {
                life.disk.set_capacity(None);
                let again = life.session.apply(&Op::Checkpoint);
                again.map_err(|e| context(&life, step, &format!("writing does not resume: {e}")))?;
            }
        } else if rng.chance(0.3) {
            next_life(&mut life, &mut rng, &mut summary)
                .map_err(|e| context(&life, step, &format!("after {error}: {e}")))?;
            set_trouble(&life.disk, trouble, rate, &mut rng);
        }
    }
    summary.batches += life.session.oracle.len() as u64;
    if trouble == Trouble::Lies {
        next_life_after_lies(&mut life, &mut rng, &mut summary).map_err(|e| context(&life, ops, &e))?;
    } else {
        next_life(&mut life, &mut rng, &mut summary).map_err(|e| context(&life, ops, &e))?;
        life.session.check().map_err(|e| context(&life, ops, &e.to_string()))?;
    }
    Ok(summary)
}

fn context(life: &Life, step: usize, text: &str) -> String {
    let faults = life.disk.injected();
    format!(
        "operation {step}: {text}\n  faults so far: {faults:?}\n  {:?}\n  last operations:\n    {}",
        life.session.shape,
        life.session.trace()
    )
}

pub(crate) fn set_trouble(disk: &SimStorage, trouble: Trouble, rate: f64, rng: &mut Rng) {
    disk.clear_faults();
    if trouble == Trouble::FullDevice {
        let room = [0, rng.below(16 << 10), rng.below(100 << 10), rng.below(2 << 20)][rng.index(4)];
        disk.set_capacity(rng.chance(0.7).then(|| disk.used_bytes() + room));
        return;
    }
    if rng.chance(0.8) {
        trouble.kinds().iter().for_each(|&kind| disk.set_fault_rate(kind, rate));
    }
}

/// Attempts that deleting, and then writing, may take on a full device, with background work in between.
const ATTEMPTS: usize = 20;

/// On a device that stays full, deletes everything; then writing resumes.
fn make_room(life: &mut Life) -> Result<(), String> {
    // They hold on to what is deleted.
    for _ in 0..4 {
        life.session.apply(&Op::DropSnapshot(0)).map_err(|e| e.to_string())?;
    }
    let spaces = life.session.oracle.content().keyspaces.iter().enumerate();
    let spaces: Vec<usize> = spaces.filter(|(_, records)| records.is_some()).map(|(i, _)| i).collect();
    let all = |&keyspace: &usize| Edit { keyspace, change: Change::RangeDelete(Vec::new(), vec![0xff; 300]) };
    insist(life, &Op::Batch(spaces.iter().map(all).collect(), false))?;
    let put = Change::Put(b"room again".to_vec(), vec![7; 600]);
    insist(life, &Op::Batch(vec![Edit { keyspace: spaces[0], change: put }], false))?;
    life.session.compare().map_err(|e| e.to_string())
}

/// Applies `op`, with background work between the attempts.
fn insist(life: &mut Life, op: &Op) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match life.session.apply(op) {
            Ok(()) => return Ok(()),
            Err(Failure::Engine(error @ Error::NoSpace { .. })) => last = error.to_string(),
            Err(other) => return Err(other.to_string()),
        }
        let mut idle = 0;
        while idle < 2 {
            match life.session.db().run_background() {
                Ok(true) | Err(Error::NoSpace { .. }) => {}
                Ok(false) => idle += 1,
                Err(error) => return Err(format!("background work: {error}")),
            }
        }
    }
    let stats = life.session.db().stats();
    Err(format!("refused {ATTEMPTS} times: {last}; {op:?}; {stats:?}; {:?}", life.disk.files()))
}

/// Finds out what became of the batch whose commit failed; checks that reads go on.
pub(crate) fn settle_attempt(disk: &SimStorage, session: &mut Session, error: &Error) -> Result<(), String> {
    disk.clear_faults();
    let found = read_all(session.db()).map_err(|e| format!("reads do not go on: {e}"))?;
    let attempted = session.attempted.take();
    if found == *session.oracle.content() {
        return Ok(());
    }
    let mut with_it: Oracle = session.oracle.clone();
    match attempted {
        Some(batch) if !matches!(error, Error::NoSpace { .. } | Error::Poisoned { .. }) => {
            with_it.commit(&batch)
        }
        Some(_) => return Err("the write had an effect that its error denies".into()),
        None => {}
    }
    if found != *with_it.content() {
        return Err(format!("content: {}", found.differences(with_it.content())));
    }
    session.oracle = with_it;
    Ok(())
}

/// Ends the process or the power, opens anew on a disk without faults, compares with what was promised.
fn next_life(life: &mut Life, rng: &mut Rng, summary: &mut Summary) -> Result<(), String> {
    summary.lives += 1;
    summary.batches += life.session.oracle.len() as u64;
    life.disk.clear_faults();
    life.disk.set_capacity(None);
    let sync_failed =
        life.disk.injected().keys().any(|k| matches!(k, FaultKind::SyncError | FaultKind::DirSyncError));
    // What a failed sync lost may still be seen by a process that starts anew, and is lost at the next power loss.
    let kill = !sync_failed && rng.chance(0.5);
    let disk = if kill { life.disk.kill() } else { life.disk.crash() };
    life.session.abandon();
    let shape = life.session.shape.clone();
    let db = shape.builder().open_on(disk.as_storage()).map_err(|e| format!("does not open: {e}"))?;
    let found = read_all(&db).map_err(|e| format!("does not read: {e}"))?;
    drop(db);
    let committed = life.session.oracle.len();
    let allowed = if kill { committed } else { life.session.durable }..=committed;
    if life.session.oracle.prefix_with(found.digest(), allowed.clone()).is_none() {
        return Err(life.session.oracle.explain(&found, allowed));
    }
    let session = Session::open(Place::Disk(disk.clone()), shape, Some(found)).map_err(|e| e.to_string())?;
    *life = Life { disk, session };
    Ok(())
}

/// After silent damage: a prefix of what was committed, or an error that says where. False: the run is over.
fn next_life_after_lies(life: &mut Life, rng: &mut Rng, summary: &mut Summary) -> Result<bool, String> {
    summary.lives += 1;
    let disk = if rng.chance(0.5) { life.disk.kill() } else { life.disk.crash() };
    life.session.abandon();
    let shape = life.session.shape.clone();
    let opened = shape.builder().open_on(disk.as_storage()).and_then(|db| Ok((read_all(&db)?, db)));
    let (found, db) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            summary.corruption += 1;
            return located(&error).map(|()| false);
        }
    };
    drop(db);
    // A lost write of the log's end looks like a torn tail.
    let oracle = &life.session.oracle;
    if oracle.prefix_with(found.digest(), 0..=oracle.len()).is_none() {
        return Err(format!("a wrong answer: {}", oracle.explain(&found, 0..=oracle.len())));
    }
    Ok(false)
}

/// Whether the error says where the damage is (or what the consequence of damage found earlier is).
pub(crate) fn located(error: &Error) -> Result<(), String> {
    let text = error.to_string();
    let named = text.contains("data") || text.contains("log");
    match error {
        Error::Corrupt { .. } | Error::Poisoned { .. } => Ok(()),
        Error::Log(_) | Error::Pager(_) | Error::Storage(_) if named => Ok(()),
        _ => Err(format!("the error does not say where: {error:?}: {text}")),
    }
}
