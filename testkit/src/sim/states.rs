//! The named states of the engine at which crashes are tried, and which of them a disk has seen.
//!
//! Invariant: the names are those that the engine gives to `Storage::reached`, no more and no fewer; ARCHITECTURE.md says what
//! each means, and a tidy test compares the three. Called by the simulated disk's state under its mutex.

use std::collections::BTreeMap;

/// Every named state, in the order of the paths that reach them.
pub const NAMED_STATES: [&str; 27] = [
    "data-file-made",
    "data-file-renamed",
    "superblock-repaired",
    "recovery-read",
    "log-replayed",
    "log-tail-cut",
    "recovery-replayed",
    "memtable-frozen",
    "memtables-compacted",
    "memtable-written",
    "memtable-installed",
    "flush-written",
    "delta-written",
    "leaf-compacted",
    "checkpoint-log-synced",
    "checkpoint-nodes-written",
    "publish-data-synced",
    "publish-one-copy",
    "publish-both-copies",
    "publish-durable",
    "space-tail-cut",
    "space-given-back",
    "checkpoint-published",
    "log-file-retired",
    "log-file-renamed",
    "log-file-made",
    "log-file-synced",
];

/// Arrivals by name, and the one at which the power is to be cut.
#[derive(Debug, Clone, Default)]
pub(super) struct Arrivals {
    counts: BTreeMap<&'static str, u64>,
    cut: Option<(&'static str, u64)>,
}

impl Arrivals {
    /// Counts an arrival; its number (the first is 0) and whether the power goes now.
    pub(super) fn arrive(&mut self, name: &'static str) -> (u64, bool) {
        assert!(NAMED_STATES.contains(&name), "{name} is not in the table of named states");
        let count = self.counts.entry(name).or_default();
        *count += 1;
        let cut = match &mut self.cut {
            Some((at, after)) if *at == name => {
                *after = after.saturating_sub(1);
                *after == 0
            }
            _ => false,
        };
        (*count - 1, cut)
    }

    /// The power goes at the `nth` arrival at `name` from now on; 1 is the next.
    pub(super) fn cut_at(&mut self, name: &'static str, nth: u64) {
        self.cut = Some((name, nth.max(1)));
    }

    pub(super) fn forget_cut(&mut self) {
        self.cut = None;
    }

    pub(super) fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}
