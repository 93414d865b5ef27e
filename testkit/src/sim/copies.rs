//! Copies of the disk, kept while a run goes on: what a crash before each operation would have left.
//!
//! Invariant: keeping copies changes nothing of the run itself: no random number is drawn from the run's generator and a copy
//! keeps no copies. Called by the simulated disk's state under its mutex.

use super::state::State;

/// What ended the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// What was not synced is lost in part.
    PowerLoss,
    /// The process died: everything written is there.
    Kill,
}

/// At which operations copies are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyPlan {
    /// A power loss before every so-many-th operation; 0: none.
    pub power_loss_every: u64,
    /// A kill before every so-many-th operation; 0: none.
    pub kill_every: u64,
    /// Where counting starts: strides with other starts cover other operations.
    pub start: u64,
}

#[derive(Debug, Default)]
pub(super) struct Copies {
    plan: Option<CopyPlan>,
    seed: u64,
    kept: Vec<(u64, Cause, State)>,
}

/// A copy of a disk keeps no copies of its own.
impl Clone for Copies {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Copies {
    pub(super) fn begin(&mut self, plan: CopyPlan, seed: u64) {
        (self.plan, self.seed) = (Some(plan), seed);
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// The causes for which a copy before operation `index` is wanted.
    pub(super) fn due(&self, index: u64) -> impl Iterator<Item = Cause> + use<> {
        let plan = self.plan.unwrap_or(CopyPlan { power_loss_every: 0, kill_every: 0, start: 0 });
        let hits = |every: u64| every > 0 && (index + plan.start).is_multiple_of(every);
        let causes = [(Cause::PowerLoss, hits(plan.power_loss_every)), (Cause::Kill, hits(plan.kill_every))];
        causes.into_iter().filter(|(_, due)| *due).map(|(cause, _)| cause)
    }

    pub(super) fn keep(&mut self, index: u64, cause: Cause, state: State) {
        self.kept.push((index, cause, state));
    }

    pub(super) fn take(&mut self) -> Vec<(u64, Cause, State)> {
        std::mem::take(&mut self.kept)
    }
}
