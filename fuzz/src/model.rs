//! Model runs: random operations on engine and oracle, answers compared, invariants checked, reopened with other options.

use betree_testkit::{Op, Rng, SimStorage, Workload};
use std::path::Path;

use crate::{Place, Session, Shape, guarded};

/// How a model run goes.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Operations.
    pub ops: usize,
    /// Background threads; 0: explicit steps.
    pub threads: usize,
    /// Whether every invariant is checked after every step that may change a tree.
    pub check_always: bool,
}

/// On a simulated disk.
///
/// # Errors
/// The first wrong answer, error or broken invariant, with the last operations.
pub fn on_simulated_disk(seed: u64, run: Run) -> Result<u64, String> {
    guarded(|| go(seed, run, |rng| Place::Disk(SimStorage::new(rng.next_u64()))))
        .map_err(|e| format!("seed {seed}: {e}"))
}

/// In a real directory, which must be empty.
///
/// # Errors
/// As [`on_simulated_disk`].
pub fn in_directory(seed: u64, run: Run, path: &Path) -> Result<u64, String> {
    guarded(|| go(seed, run, |_| Place::Directory(path.to_path_buf())))
        .map_err(|e| format!("seed {seed}: {e}"))
}

/// The height of the tree that was reached.
fn go(seed: u64, run: Run, place: impl FnOnce(&mut Rng) -> Place) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let place = place(&mut rng);
    // Which of the backends of a real disk; the next opening takes the other one.
    let mut portable = seed.is_multiple_of(2);
    let mut shape = Shape::tiny(&mut rng).threads(run.threads);
    shape.options.portable_io = portable;
    let mut workload = Workload::new(rng.next_u64());
    let mut session = Session::open(place, shape, None).map_err(|e| format!("first opening: {e}"))?;
    session.check_always = run.check_always;
    let mut height = 0;
    let mut step = || {
        session.create_keyspaces().map_err(|e| (0, e))?;
        for i in 0..run.ops {
            let op = workload.next(&session.oracle);
            if matches!(op, Op::Reopen(_)) {
                height = height.max(session.db().stats().tree_height);
                // The same database under other options.
                session.shape = Shape::tiny(&mut rng).threads(run.threads);
                portable = !portable;
                session.shape.options.portable_io = portable;
            }
            session.apply(&op).map_err(|e| (i, e))?;
        }
        session.compare().map_err(|e| (run.ops, e))?;
        session.check().map_err(|e| (run.ops, e))?;
        height = height.max(session.db().stats().tree_height);
        if run.threads == 0 {
            session.close_and_compare_space().map_err(|e| (run.ops, e))?;
        }
        session.apply(&Op::Compact).map_err(|e| (run.ops, e))?;
        session.compare().map_err(|e| (run.ops, e))?;
        session.check().map_err(|e| (run.ops, e))
    };
    step().map_err(|(i, e)| {
        format!("operation {i}: {e}\n  {:?}\n  last operations:\n    {}", session.shape, session.trace())
    })?;
    Ok(height)
}
