//! Range iterators.

use std::iter::FusedIterator;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use betree_pager::Pager;
use bytes::Bytes;

use crate::Result;
use crate::operator::MergeOperator;
use crate::types::Seqno;
use crate::view::View;
use crate::walk::{Direction, Walk};

/// Longer walks count as of this length: they read ahead in large pieces anyway.
const LONGEST_HABIT: u64 = 64 << 10;

/// Iterates over the records of a key range in bytewise order, from both ends.
///
/// It sees the state of the database at the moment it was made, however long it lives; it owns what it needs and may outlive
/// every handle. Cost: per leaf (about 4 MiB of records) two batches of reads, then large sequential reads. How much the first batches read follows
/// what iterators of the keyspace took lately. After an error it ends.
pub struct Iter {
    pager: Pager,
    operator: Option<Arc<dyn MergeOperator>>,
    view: Arc<View>,
    at: Seqno,
    /// What is left: keys from `low` on, below `high`.
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    front: Option<Walk>,
    back: Option<Walk>,
    ended: bool,
    /// Bytes of records that it gave.
    taken: u64,
    habit: Arc<ScanHabit>,
}

/// How many bytes of records iterators of a keyspace take before they are dropped, smoothed.
#[derive(Debug, Default)]
pub(crate) struct ScanHabit(AtomicU64);

impl ScanHabit {
    fn expected(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn took(&self, bytes: u64) {
        let before = self.0.load(Relaxed);
        self.0.store((3 * before + bytes.min(LONGEST_HABIT)) / 4, Relaxed);
    }
}

impl Drop for Iter {
    fn drop(&mut self) {
        self.habit.took(self.taken);
    }
}

impl std::fmt::Debug for Iter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Iter").field("low", &self.low).field("high", &self.high).finish_non_exhaustive()
    }
}

/// The keys from `low` on, below `high`, that a range means.
pub(crate) fn bounds<K: AsRef<[u8]>>(range: &impl RangeBounds<K>) -> (Vec<u8>, Option<Vec<u8>>) {
    let after = |key: &K| [key.as_ref(), &[0]].concat();
    let low = match range.start_bound() {
        Bound::Included(key) => key.as_ref().to_vec(),
        Bound::Excluded(key) => after(key),
        Bound::Unbounded => Vec::new(),
    };
    let high = match range.end_bound() {
        Bound::Included(key) => Some(after(key)),
        Bound::Excluded(key) => Some(key.as_ref().to_vec()),
        Bound::Unbounded => None,
    };
    (low, high)
}

/// The keys that begin with `prefix`, as bounds.
pub(crate) fn prefix_bounds(prefix: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut high = prefix.to_vec();
    while high.last() == Some(&0xff) {
        high.pop();
    }
    let bounded = high.last_mut().map(|last| *last += 1).is_some();
    (prefix.to_vec(), bounded.then_some(high))
}

impl Iter {
    pub(crate) fn new(
        pager: &Pager,
        operator: Option<Arc<dyn MergeOperator>>,
        view: Arc<View>,
        at: Seqno,
        (low, high): (Vec<u8>, Option<Vec<u8>>),
        habit: Arc<ScanHabit>,
    ) -> Iter {
        let ended = high.as_ref().is_some_and(|h| *h <= low);
        Iter {
            pager: pager.clone(),
            operator,
            view,
            at,
            low,
            high,
            front: None,
            back: None,
            ended,
            taken: 0,
            habit,
        }
    }

    fn step(&mut self, direction: Direction) -> Result<Option<(Bytes, Bytes)>> {
        let slot = match direction {
            Direction::Forward => &mut self.front,
            Direction::Backward => &mut self.back,
        };
        let walk = match slot {
            Some(walk) => walk,
            None => slot.insert(Walk::new(
                &self.pager,
                &self.view,
                self.at,
                direction,
                self.habit.expected(),
                &self.low,
                self.high.as_deref(),
            )?),
        };
        let found = walk.next(&self.low, self.high.as_deref(), &self.operator)?;
        if let Some((key, value)) = &found {
            self.taken += (key.len() + value.len()) as u64;
            match direction {
                Direction::Forward => {
                    self.low.clear();
                    self.low.extend_from_slice(key);
                    self.low.push(0);
                }
                Direction::Backward => match &mut self.high {
                    Some(high) => {
                        high.clear();
                        high.extend_from_slice(key);
                    }
                    None => self.high = Some(key.to_vec()),
                },
            }
        }
        Ok(found)
    }

    fn advance_from(&mut self, direction: Direction) -> Option<Result<(Bytes, Bytes)>> {
        if self.ended {
            return None;
        }
        let item = self.step(direction).transpose();
        if !matches!(item, Some(Ok(_))) {
            self.ended = true;
            self.front = None;
            self.back = None;
        }
        item
    }
}

impl Iterator for Iter {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance_from(Direction::Forward)
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.advance_from(Direction::Backward)
    }
}

impl FusedIterator for Iter {}
