//! Room on the device for what is accepted: promises for writes, the reserve for deletes, and squeezing.
//!
//! **Promises.** Before a message is logged, the space that its memtable's flush will need is set aside in the data file
//! ([`betree_pager::Pager::promise`]), in steps, so that a write usually only counts. Without space the write is refused as
//! [`Error::NoSpace`] and had no effect. A flush redeems the promise segment by segment; should it fail, it makes it anew before it drops what it wrote. What was accepted can thus be flushed on a full device, by [`Purpose::NewData`](crate::writer::Purpose). What that takes at
//! most is estimated by [`FlushCost`]. All of it is backed by the device and idle meanwhile, so the estimate is tight where most data is: small messages.
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

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use betree_pager::Pager;

use crate::cuts::CUT_FRACTION;
use crate::message::{Kind, MessageRef};
use crate::shared::{Commit, Shared};
use crate::stats::Counters;
use crate::view::Head;
use crate::{Error, Result};

/// Messages of up to this fraction of a page are small.
const SMALL_FRACTION: usize = 16;
/// Bytes of a small message beside key and value, at most: in a page that lists its entries 4 for lengths and 2 for the offset; 2 of the page's header and of its row in
/// the meta block; 8 of the filter.
const PER_MESSAGE: usize = 16;
/// What even the smallest run takes: a page and a meta block.
const PER_MEMTABLE: u64 = 16 << 10;

/// Bytes of a segment on a full device, beside one page.
const SHORT_SEGMENT: usize = 28 << 10;

/// Most that a writer has promised to it at once.
const STEP: u64 = 4 << 20;
/// How many times what is spent between two looks is promised ahead, one memtable's bytes at most: a sixth of a second at full speed. The thread
/// that looks waits for the file system now and then, for the log's files as well; with an eighth a writer once had to make room itself, and waited for 57 ms.
const AHEAD: u64 = 64;

/// What writers will need soon, by what they spent lately.
#[derive(Debug, Default)]
pub(crate) struct Forecast {
    /// What they had spent at the last look.
    spent: u64,
    /// Bytes that should be promised ahead.
    ahead: u64,
}

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

impl Charge {
    /// Whether any of it is to come from the reserve.
    pub(crate) fn is_reserved(&self) -> bool {
        self.reserved.load(Relaxed) > 0
    }

    /// Bytes that are promised.
    #[cfg(test)]
    pub(crate) fn promised(&self) -> u64 {
        self.promised.load(Relaxed)
    }

    /// So many bytes of the flush are owned now: takes that part of the promise back, as far as it goes. How much it was.
    pub(crate) fn redeem(&self, pager: &Pager, bytes: u64) -> u64 {
        let rest = |promised: u64| Some(promised.saturating_sub(bytes));
        // The closure always answers.
        let before = self.promised.fetch_update(Relaxed, Relaxed, rest).unwrap_or_default();
        let redeemed = before.min(bytes);
        pager.release_promise(redeemed);
        redeemed
    }

    /// What was redeemed will be needed again. REQUIRES: its extents have not been dropped.
    pub(crate) fn renew(&self, pager: &Pager, redeemed: u64) {
        pager.renew_promise(redeemed);
        self.promised.fetch_add(redeemed, Relaxed);
    }
}

/// What the messages of a keyspace take in a run, at most. Cost of a look: a multiplication.
///
/// Where a page ends, what does not fit begins the next one. If that is small the page lacks a sixteenth, which the page's own messages are charged with; if not,
/// it is charged with twice its bytes, and pays for what the page before it lacks. The separator of a page of small messages is no longer than one of them, so that
/// is another sixteenth. Operands are never small: those of one key become one message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlushCost {
    /// The longest small message.
    small: usize,
    /// Bytes in a run per hundred bytes of small messages, and of others.
    small_percent: u64,
    percent: u64,
}

impl FlushCost {
    /// For trees of this shape. Segments end with part of a page and a meta block, at the earliest where [`CUT_FRACTION`] says, or are short while the device is full.
    pub(crate) fn new(tree: &crate::TreeOptions) -> FlushCost {
        let ends = (CUT_FRACTION * (tree.page_bytes + 4096)).div_ceil(tree.segment_bytes / 100);
        let segments = 100 + ends.max((100 * 4096usize).div_ceil(SHORT_SEGMENT)) as u64;
        FlushCost {
            small: tree.page_bytes / SMALL_FRACTION - PER_MESSAGE,
            small_percent: (114 * segments).div_ceil(100),
            percent: 2 * segments,
        }
    }

    /// Of messages that have so many bytes of keys and values together, and the longest of which has the [`length`] `longest`.
    #[inline]
    pub(crate) fn of(&self, longest: usize, bytes: u64, messages: u32) -> u64 {
        let percent = if longest <= self.small { self.small_percent } else { self.percent };
        ((bytes + u64::from(messages) * PER_MESSAGE as u64) * percent).div_ceil(100)
    }
}

/// Bytes of a message's key and value; more than any has if it is an operand, since those of one key become one message.
#[inline]
pub(crate) fn length(message: MessageRef<'_>) -> usize {
    if message.kind == Kind::Merge { usize::MAX } else { message.key.len() + message.value.len() }
}

/// What messages for `active` cost that take `cost` in a run, the cost of the memtable itself included if they are its first.
#[inline]
pub(crate) fn cost_in(active: &Head, cost: u64) -> u64 {
    let charge = &active.charge;
    let any = charge.promised.load(Relaxed) > 0 || charge.reserved.load(Relaxed) > 0;
    (if any { 0 } else { PER_MEMTABLE }) + cost
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
    /// writer under the commit lock should not. Writers that rest give back what they did not use.
    pub(crate) fn promise_ahead(&self, forecast: &mut Forecast) {
        // Small memtables need small steps, and small devices need their space.
        if (self.memtable_bytes as u64) < 4 * STEP {
            return;
        }
        let (allowance, spent) = {
            let commit = self.commit.lock();
            (commit.allowance, commit.spent)
        };
        let lately = AHEAD * (spent - forecast.spent);
        forecast.spent = spent;
        if lately == 0 {
            return self.release_allowance(STEP);
        }
        let ahead = ((7 * forecast.ahead + lately) / 8).min(self.memtable_bytes as u64);
        forecast.ahead = ahead;
        if allowance < ahead / 4 * 3 && !self.scheduler.squeezing() {
            let missing = ahead - allowance;
            if self.pager.promise(missing).is_ok() {
                self.commit.lock().allowance += missing;
            }
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

    /// `new` stands for `olds` now, whose flush would have cost more than the messages that are left: they cost `cost`.
    pub(crate) fn pass_charge(&self, olds: &[Arc<Head>], new: &Head, cost: u64) {
        let promised = olds.iter().map(|head| head.charge.promised.swap(0, Relaxed)).sum::<u64>();
        let reserved = olds.iter().map(|head| head.charge.reserved.swap(0, Relaxed)).sum();
        let kept = promised.min(PER_MEMTABLE + cost);
        new.charge.promised.fetch_add(kept, Relaxed);
        new.charge.reserved.fetch_add(reserved, Relaxed);
        self.pager.release_promise(promised - kept);
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
                let cost = PER_MEMTABLE + state.flush_cost.of(usize::MAX, head.table.bytes() as u64, 0);
                if !head.table.is_empty() && self.pager.promise(cost).is_ok() {
                    head.charge.promised.fetch_add(cost, Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use betree_testkit::{Rng, SimStorage};

    use super::*;
    use crate::{Append, Db, KeyspaceOptions, TreeOptions};

    /// What a memtable of some messages was charged with, and what its flush wrote.
    fn charged_and_written(seed: u64) -> Result<(u64, u64)> {
        let mut rng = Rng::new(seed);
        let tree = TreeOptions {
            page_bytes: [4096, 8192, 16384][rng.index(3)],
            segment_bytes: [64 << 10, 256 << 10, 2 << 20][rng.index(3)],
            filter_bits: [0, 20, 64][rng.index(3)],
            leaf_bytes: 128 << 10,
            ..TreeOptions::default()
        };
        let disk = SimStorage::new(seed);
        let builder = Db::builder().memory(64 << 20).memtable_bytes(8 << 20).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let options = KeyspaceOptions::new().merge_operator(Append);
        let keyspace = db.keyspace_with("records", options)?;
        // Leaves, so that segments end where they do.
        for i in 0..4000u64 {
            keyspace.insert(i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), rng.bytes(100))?;
        }
        db.compact()?;

        let longest = [20, 120, 230, 1000, 2500, 9000][rng.index(6)];
        let (even, merges) = (rng.chance(0.4), rng.chance(0.2));
        let before = db.stats().memtable_flush_bytes;
        let mut bytes = 0;
        while bytes < 1 << 20 {
            let key = rng.bytes(8);
            let key = if rng.chance(0.5) { key } else { [&[0; 4], &key[..]].concat() };
            let value = if even { longest } else { rng.index(longest + 1) };
            let value = rng.bytes(value);
            bytes += key.len() + value.len();
            if merges {
                keyspace.merge(&key[key.len() - 1..], value)?;
            } else if rng.chance(0.1) {
                let mut batch = db.batch();
                batch.insert(&keyspace, &key, &value)?;
                batch.remove(&keyspace, rng.bytes(8))?;
                db.write(batch)?;
            } else {
                keyspace.insert(key, value)?;
            }
        }
        let head = keyspace.state.view().heads[0].clone();
        let charged = head.charge.promised.load(Relaxed);
        keyspace.state.freeze();
        if rng.chance(0.3) {
            db.shared().scheduler.squeeze();
        }
        while keyspace.state.view().heads.len() > 1 {
            assert!(db.run_background()?, "the flush of the memtable");
        }
        assert_eq!(head.charge.promised.load(Relaxed), 0);
        Ok((charged, db.stats().memtable_flush_bytes - before))
    }

    #[test]
    fn a_flush_takes_no_more_than_was_promised_for_it() -> Result<()> {
        for seed in 0..60 {
            let (charged, written) = charged_and_written(seed)?;
            assert!(written > 0 && written <= charged, "seed {seed}: {written} of {charged}");
        }
        Ok(())
    }

    #[test]
    fn of_small_messages_not_much_more_is_promised_than_their_flush_takes() {
        let cost = FlushCost::new(&TreeOptions::default());
        let (small, large) = (cost.of(116, 116_000, 1000), cost.of(1016, 1_016_000, 1000));
        assert!((130_000..180_000).contains(&small), "{small}");
        assert!(large > 2_000_000, "{large}");
    }
}
