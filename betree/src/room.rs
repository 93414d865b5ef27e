//! Room on the device for what is accepted: promises for writes, the reserve for deletes, and squeezing.
//!
//! **Promises.** Before a message is logged, the space that its memtable's flush will need is set aside in the data file
//! ([`betree_pager::Pager::promise`]), in steps, so that a write usually only counts. Without space the write is refused as
//! [`Error::NoSpace`] and had no effect. What was accepted can thus be flushed on a full device, by [`Purpose::NewData`](crate::writer::Purpose). The estimate is
//! generous: twice the bytes, since a page is at least half full, and what the shortest segments are rounded up by.
//!
//! **Deletes** (messages and batches of nothing but Delete and RangeDelete) are accepted without a promise, up to half of the
//! data file's reserve, and may use the file that the log holds in reserve. Writers of anything else are refused before they touch either:
//! a promise leaves the reserve whole, and the log takes no ordinary record while its reserve is missing. Above the half a delete is refused as well;
//! the memtables that hold those before it are flushed meanwhile, so a later attempt succeeds.
//!
//! **Compactions** need as much space as what has piled up for a leaf. The scheduler tells the pager the most that one of them will take, and no promise is given
//! from that ([`betree_pager::Pager::foresee`]): a burst of writes cannot fill the device before the first compaction had its turn.
//!
//! **Squeezing** begins with the first refusal, and with the first delete that went to a reserve (`scheduler`): memtables are frozen and flushed,
//! everything pending goes down to the leaves, leaves are compacted, and checkpoints are taken every few tasks and
//! whenever a task found no space: a checkpoint alone frees what the tasks replaced, and lets the log be trimmed.
//! Who uses which claim, and why each step of this has the space that it needs, is argued in `pager/src/space.rs`. When nothing
//! is left to do, free space goes back to the device, and spare log files too, because log and data file may lack what the other has. Then writing
//! resumes by itself, with the first promise that succeeds.
//!
//! Called by `commit` with the commit lock held, by `flush` when a memtable is in the tree, and by `recovery`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::cuts::CUT_FRACTION;
use crate::shared::{Commit, Shared};
use crate::state::State;
use crate::stats::Counters;
use crate::view::Head;
use crate::{Error, Result};

/// Bytes of a message in a page beside key and value, and its part of filter and index, at most.
const PER_MESSAGE: u64 = 32;
/// What even the smallest run takes: a page and a meta block.
const PER_MEMTABLE: u64 = 16 << 10;

/// Bytes of a segment on a full device, beside one page.
const SHORT_SEGMENT: usize = 28 << 10;

/// Most that a writer has promised to it at once.
const STEP: u64 = 4 << 20;
/// How many times what was spent since the last look is promised ahead, two memtables' worth at most: a fifth of a second at full speed.
const AHEAD: u64 = 64;

/// What a batch consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Brings data, or may.
    Writes,
    /// Nothing but deletes: may use the reserves.
    Deletes,
}

/// How the flush of some messages is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    /// From bytes that were promised.
    Promise,
    /// From the reserve.
    Reserve,
}

/// What the flush of a memtable has been granted.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    promised: AtomicU64,
    reserved: AtomicU64,
}

/// Bytes that messages with so many bytes of keys and values take in a run, at most. `percent`: [`flush_percent`] of the tree.
pub(crate) fn flush_cost(percent: u64, bytes: u64, messages: u64) -> u64 {
    (bytes + messages * PER_MESSAGE) * percent / 100
}

/// Bytes in a run per hundred bytes of messages: half-full pages, and segments cut at the least length ([`CUT_FRACTION`]) that end with
/// part of a page and a meta block.
pub(crate) fn flush_percent(tree: &crate::TreeOptions) -> u64 {
    200 + 100 * CUT_FRACTION as u64 * (tree.page_bytes as u64 + 4096) / tree.segment_bytes as u64
}

/// What messages for `state` cost, the cost of its memtable `active` included if they are its first.
pub(crate) fn cost_in(state: &State, active: &Head, bytes: u64, messages: u64) -> u64 {
    let charge = &active.charge;
    let any = charge.promised.load(Relaxed) > 0 || charge.reserved.load(Relaxed) > 0;
    (if any { 0 } else { PER_MEMTABLE }) + flush_cost(state.flush_percent, bytes, messages)
}

impl Shared {
    /// Sees to it that a flush of this `cost` can be paid for, beside what was secured before.
    #[inline]
    pub(crate) fn secure(&self, commit: &mut Commit, cost: u64, nature: Nature) -> Result<Means> {
        if commit.allowance >= cost { Ok(Means::Promise) } else { self.secure_slow(commit, cost, nature) }
    }

    #[cold]
    fn secure_slow(&self, commit: &mut Commit, cost: u64, nature: Nature) -> Result<Means> {
        let least = cost - commit.allowance;
        let step = least.max((self.memtable_bytes as u64 / 4).clamp(64 << 10, STEP));
        let result = match self.pager.promise(step) {
            Ok(()) => Ok(step),
            Err(error) if error.is_no_space() && least < step => self.pager.promise(least).map(|()| least),
            Err(error) => Err(error),
        };
        match result.map_err(Error::from) {
            Ok(promised) => {
                commit.allowance += promised;
                Ok(Means::Promise)
            }
            Err(error @ Error::NoSpace { .. }) => {
                self.scheduler.squeeze();
                let limit = self.pager.reserve_bytes() / 2;
                if nature == Nature::Deletes && self.unpaid.load(Relaxed) + cost <= limit {
                    return Ok(Means::Reserve);
                }
                Err(error)
            }
            Err(error) => Err(self.poison.refuse(&error)),
        }
    }

    /// Promises for what writers will soon need, from the log's thread: growing the file may wait for the file system's journal, which a
    /// writer under the commit lock should not. `before` is what had been spent at the last call. Writers that rest give back what they did
    /// not use.
    pub(crate) fn promise_ahead(&self, before: &mut u64) {
        // Small memtables need small steps, and small devices need their space.
        if (self.memtable_bytes as u64) < 4 * STEP {
            return;
        }
        let (allowance, spent) = {
            let commit = self.commit.lock();
            (commit.allowance, commit.spent)
        };
        let ahead = (AHEAD * (spent - *before)).min(2 * self.memtable_bytes as u64);
        *before = spent;
        if ahead == 0 {
            self.release_allowance(STEP);
        } else if allowance < ahead / 2
            && !self.scheduler.squeezing()
            && self.pager.promise(ahead / 2).is_ok()
        {
            self.commit.lock().allowance += ahead / 2;
        }
    }

    /// Takes back what was promised beyond `keep` bytes and not charged yet.
    pub(crate) fn release_allowance(&self, keep: u64) {
        let mut commit = self.commit.lock();
        let over = commit.allowance.saturating_sub(keep);
        commit.allowance -= over;
        drop(commit);
        if over > 0 {
            self.pager.release_promise(over);
        }
    }

    /// The options by which a run is written: short segments while the device is full, since what is free then may lie scattered in short
    /// pieces. Later compactions make longer ones of them.
    pub(crate) fn writing_options(&self, mut tree: crate::TreeOptions) -> crate::TreeOptions {
        if self.scheduler.squeezing() {
            tree.segment_bytes = tree.segment_bytes.min(tree.page_bytes + SHORT_SEGMENT);
        }
        tree
    }

    /// Charges the messages that were just applied to `head`.
    pub(crate) fn charge(&self, commit: &mut Commit, head: &Head, cost: u64, means: Means) {
        match means {
            Means::Promise => {
                commit.allowance -= cost;
                commit.spent += cost;
                Counters::add_alone(&head.charge.promised, cost);
            }
            Means::Reserve => {
                self.unpaid.fetch_add(cost, Relaxed);
                head.charge.reserved.fetch_add(cost, Relaxed);
            }
        }
    }

    /// The memtable is in the tree, or gone with its keyspace.
    pub(crate) fn discharge(&self, head: &Head) {
        self.pager.release_promise(head.charge.promised.swap(0, Relaxed));
        self.unpaid.fetch_sub(head.charge.reserved.swap(0, Relaxed), Relaxed);
    }

    /// Asks for the space of memtables that recovery has filled. Their space was promised once and nobody else got it since, unless
    /// another program did; then they are flushed from what there is.
    pub(crate) fn promise_recovered(&self) {
        for state in self.states() {
            for head in &state.peek().heads {
                let cost = PER_MEMTABLE + flush_cost(state.flush_percent, head.table.bytes() as u64, 0);
                if !head.table.is_empty() && self.pager.promise(cost).is_ok() {
                    head.charge.promised.fetch_add(cost, Relaxed);
                }
            }
        }
    }
}
