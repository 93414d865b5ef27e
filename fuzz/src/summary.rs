//! What runs of the simulators went through, to be added up and shown.

use std::collections::BTreeMap;
use std::fmt;

use betree_testkit::{FaultKind, NAMED_STATES, SimStorage};

/// Counts of one seed, or of many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Operations carried out.
    pub ops: u64,
    /// Operations of the disk.
    pub disk_ops: u64,
    /// Lives of the database: openings that the workload went on from.
    pub lives: u64,
    /// Power losses recovered from, without those during recovery.
    pub power_losses: u64,
    /// Kills recovered from, without those during recovery.
    pub kills: u64,
    /// Crashes during recovery.
    pub again: u64,
    /// Those that were the third in a row or a later one.
    pub third: u64,
    /// Batches committed.
    pub batches: u64,
    /// Batches that were lost to power losses, none of them durable.
    pub lost: u64,
    /// Times that every invariant was checked.
    pub checks: u64,
    /// Errors that the engine gave because of injected faults.
    pub errors: u64,
    /// Times that it found what a lying disk had done.
    pub corruption: u64,
    /// Height of the highest tree.
    pub height: u64,
    /// Checkpoints taken, but for those of lives that ended within an operation.
    pub checkpoints: u64,
    /// Arrivals at named states.
    pub reached: BTreeMap<&'static str, u64>,
    /// Crashes at named states, recovered from.
    pub crashed_at: BTreeMap<&'static str, u64>,
    /// Faults injected, and what power losses did.
    pub faults: BTreeMap<FaultKind, u64>,
    /// A hash over everything that any disk of the run was told: equal for equal runs.
    pub trace: u64,
}

impl Summary {
    /// Adds another's counts; heights and hashes are joined.
    pub fn add(&mut self, other: &Self) {
        let counts = [
            (&mut self.ops, other.ops),
            (&mut self.disk_ops, other.disk_ops),
            (&mut self.lives, other.lives),
            (&mut self.power_losses, other.power_losses),
            (&mut self.kills, other.kills),
            (&mut self.again, other.again),
            (&mut self.third, other.third),
            (&mut self.batches, other.batches),
            (&mut self.lost, other.lost),
            (&mut self.checks, other.checks),
            (&mut self.errors, other.errors),
            (&mut self.corruption, other.corruption),
            (&mut self.checkpoints, other.checkpoints),
        ];
        counts.into_iter().for_each(|(sum, count)| *sum += count);
        self.height = self.height.max(other.height);
        // In whatever order seeds end, the sum is the same.
        self.trace = self.trace.wrapping_add(other.trace);
        other.reached.iter().for_each(|(name, n)| *self.reached.entry(name).or_default() += n);
        other.crashed_at.iter().for_each(|(name, n)| *self.crashed_at.entry(name).or_default() += n);
        other.faults.iter().for_each(|(kind, n)| *self.faults.entry(*kind).or_default() += n);
    }

    /// Takes over what a disk counted that is not used any more.
    pub(crate) fn take_disk(&mut self, disk: &SimStorage) {
        disk.injected().iter().for_each(|(kind, n)| *self.faults.entry(*kind).or_default() += n);
        self.trace = (self.trace ^ disk.trace_hash()).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    /// Counts a crash at a named state.
    pub(crate) fn crash_at(&mut self, state: Option<&'static str>) {
        if let Some(state) = state {
            *self.crashed_at.entry(state).or_default() += 1;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {} operations, {} batches ({} of them lost, none durable), {} operations of the disk, {} lives, tree height up to {}",
            self.ops, self.batches, self.lost, self.disk_ops, self.lives, self.height
        )?;
        writeln!(
            f,
            "  crash points: {} power losses, {} kills, {} crashes during recovery ({} of them third in a row or later); {} checks of every invariant",
            self.power_losses, self.kills, self.again, self.third, self.checks
        )?;
        writeln!(f, "  named states, reached / crashed at:")?;
        for name in NAMED_STATES {
            let count = |map: &BTreeMap<&str, u64>| map.get(name).copied().unwrap_or_default();
            writeln!(f, "    {name:<26} {:>10} {:>8}", count(&self.reached), count(&self.crashed_at))?;
        }
        let faults: Vec<_> = self.faults.iter().map(|(kind, n)| format!("{kind:?} {n}")).collect();
        writeln!(f, "  faults: {}", if faults.is_empty() { "none".into() } else { faults.join(", ") })?;
        write!(
            f,
            "  {} errors given for them, {} times damage by a lying disk was found; trace {:016x}",
            self.errors, self.corruption, self.trace
        )
    }
}
