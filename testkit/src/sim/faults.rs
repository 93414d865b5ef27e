//! Which operations of the simulated disk go wrong: planned ones, and random ones by rate.
//!
//! Invariant: the outcome depends on the seed and the order of operations only. Called under the storage's mutex.

use std::collections::BTreeMap;

use crate::Rng;

/// What goes wrong: the kinds up to [`FaultKind::FlippedBit`] are injected, by plan or by rate; the others are what power losses
/// did to writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// A read fails.
    ReadError,
    /// A read fills a part of the buffer and finds no more: [`betree_storage::Error::ShortRead`].
    ShortRead,
    /// A write fails after a part of it, perhaps nothing, was written.
    WriteError,
    /// A write ends after some of its bytes, at no border of anything, and says so.
    ShortWrite,
    /// A write, an allocation or the creation of a file finds the device full.
    NoSpace,
    /// A sync fails; a random part of what it should have made durable never will be.
    SyncError,
    /// A sync of the directory fails.
    DirSyncError,
    /// A write reports success and does not happen.
    LostWrite,
    /// A write reports success and lands elsewhere in the file.
    MisdirectedWrite,
    /// A write changes one bit on its way.
    FlippedBit,
    /// A write survived a power loss in part.
    TornWrite,
    /// A write survived a power loss, and one before it did not, or not whole.
    ReorderedWrite,
    /// A created, renamed or removed name did not survive a power loss.
    LostEntry,
}

#[derive(Debug, Clone)]
struct Planned {
    kind: FaultKind,
    prefix: String,
    after: u64,
}

/// The plan, the rates and the count of what happened.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    planned: Vec<Planned>,
    rates: BTreeMap<FaultKind, f64>,
    injected: BTreeMap<FaultKind, u64>,
}

impl Faults {
    pub(super) fn plan(&mut self, kind: FaultKind, prefix: &str, after: u64) {
        self.planned.push(Planned { kind, prefix: prefix.to_owned(), after });
    }

    pub(super) fn set_rate(&mut self, kind: FaultKind, rate: f64) {
        self.rates.insert(kind, rate);
    }

    /// Forgets plan and rates, keeps the counts.
    pub(super) fn clear(&mut self) {
        self.planned.clear();
        self.rates.clear();
    }

    /// Counts what a power loss did.
    pub(super) fn count(&mut self, kind: FaultKind, times: u64) {
        if times > 0 {
            *self.injected.entry(kind).or_default() += times;
        }
    }

    /// Counts begin anew.
    pub(super) fn forget_counts(&mut self) {
        self.injected.clear();
    }

    pub(super) fn injected(&self) -> &BTreeMap<FaultKind, u64> {
        &self.injected
    }

    /// Whether this operation on `file`, which could suffer from `kind`, does.
    pub(super) fn strikes(&mut self, kind: FaultKind, file: &str, rng: &mut Rng) -> bool {
        let mut hit = self.rates.get(&kind).is_some_and(|&rate| rng.chance(rate));
        self.planned.retain_mut(|planned| {
            if planned.kind != kind || !file.starts_with(&planned.prefix) {
                return true;
            }
            let due = planned.after == 0;
            hit |= due;
            planned.after = planned.after.saturating_sub(1);
            !due
        });
        if hit {
            self.count(kind, 1);
        }
        hit
    }
}
