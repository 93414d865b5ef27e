//! Copies of the disk, kept while a run goes on: what a crash before an operation, or at a named state, would have left.
//!
//! Invariant: keeping copies changes nothing of the run itself: no random number is drawn from the run's generator and a copy
//! keeps no copies. Called by the simulated disk's state under its mutex.

use std::sync::Arc;

use super::SimStorage;
use super::state::State;
use crate::rng::mix;

/// What ended the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// What was not synced is lost in part.
    PowerLoss,
    /// The process died: everything written is there.
    Kill,
}

/// Which of the operations copies are kept at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spread {
    /// Every so-many-th, counted from a start: strides with other starts cover other operations.
    Even(u64),
    /// Each with a chance of one in so many, drawn from the disk's seed. Arrivals at a named state become less likely with
    /// their number, so that rare states are not lost among frequent ones.
    #[default]
    Random,
}

/// When copies are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyPlan {
    /// A power loss before one in so many operations; 0: none.
    pub power_loss_every: u64,
    /// A kill before one in so many operations; 0: none.
    pub kill_every: u64,
    /// A crash at one in so many arrivals at each named state, by either cause in turn; 0: none.
    pub states_every: u64,
    /// Which ones these are.
    pub spread: Spread,
}

/// A disk as a crash would have left it.
#[derive(Debug)]
pub struct DiskCopy {
    /// The operation before which it was taken.
    pub index: u64,
    /// By what crash.
    pub cause: Cause,
    /// The named state it was taken at, if it was one.
    pub state: Option<&'static str>,
    /// The disk. It counts its faults and losses from zero.
    pub disk: Arc<SimStorage>,
}

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) index: u64,
    pub(super) cause: Cause,
    pub(super) name: Option<&'static str>,
    pub(super) state: State,
}

#[derive(Debug, Default)]
pub(super) struct Copies {
    plan: CopyPlan,
    seed: u64,
    kept: Vec<Kept>,
}

/// A copy of a disk keeps no copies of its own.
impl Clone for Copies {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Copies {
    pub(super) fn begin(&mut self, plan: CopyPlan, seed: u64) {
        (self.plan, self.seed) = (plan, seed);
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// The causes for which a copy before operation `index` is wanted.
    pub(super) fn due(&self, index: u64) -> impl Iterator<Item = Cause> + use<> {
        let (plan, seed) = (self.plan, self.seed);
        let hits = |every: u64, salt: u64| match plan.spread {
            _ if every == 0 => false,
            Spread::Even(start) => (index + start).is_multiple_of(every),
            Spread::Random => one_in(every, mix(seed ^ salt) ^ index),
        };
        let causes =
            [(Cause::PowerLoss, hits(plan.power_loss_every, 1)), (Cause::Kill, hits(plan.kill_every, 2))];
        causes.into_iter().filter(|(_, due)| *due).map(|(cause, _)| cause)
    }

    /// Whether a copy at the arrival at `name` with this number (the first is 0) is wanted, and for which cause.
    pub(super) fn due_at(&self, name: &str, number: u64) -> Option<Cause> {
        let every = self.plan.states_every;
        let place = name.bytes().fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte)));
        let (due, kill) = match self.plan.spread {
            _ if every == 0 => return None,
            Spread::Even(start) => ((number + start).is_multiple_of(every), number / every % 2 == 1),
            Spread::Random => (one_in(every * (number + 1), place ^ number), mix(place ^ !number) & 1 == 1),
        };
        due.then_some(if kill { Cause::Kill } else { Cause::PowerLoss })
    }

    pub(super) fn keep(&mut self, kept: Kept) {
        self.kept.push(kept);
    }

    pub(super) fn take(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.kept)
    }
}

fn one_in(every: u64, place: u64) -> bool {
    mix(place.wrapping_add(0x9e37_79b9_7f4a_7c15)).is_multiple_of(every)
}
