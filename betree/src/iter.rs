//! Range iterators.

use std::iter::FusedIterator;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use betree_pager::Pager;
use bytes::Bytes;

use crate::Result;
use crate::cursor::Direction;
use crate::operator::MergeOperator;
use crate::types::Seqno;
use crate::view::View;
use crate::walk::Walk;

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
    /// The range: keys from `low` on, below `high`.
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

    /// Moves one side on; whether there is a record.
    fn step(&mut self, direction: Direction) -> Result<bool> {
        let (own, other) = match direction {
            Direction::Forward => (&mut self.front, &self.back),
            Direction::Backward => (&mut self.back, &self.front),
        };
        let met = other.as_ref().and_then(Walk::found).map(|(key, _)| key);
        let walk = match own {
            Some(walk) => walk,
            None => {
                let (low, high) = match (direction, met) {
                    (Direction::Forward, met) => (&self.low[..], met.or(self.high.as_deref())),
                    (Direction::Backward, None) => (&self.low[..], self.high.as_deref()),
                    (Direction::Backward, Some(met)) => (met, self.high.as_deref()),
                };
                let expected = self.habit.expected();
                let operator = self.operator.clone();
                own.insert(Walk::new(
                    &self.pager,
                    &self.view,
                    operator,
                    self.at,
                    direction,
                    expected,
                    low,
                    high,
                )?)
            }
        };
        if !walk.step()? {
            return Ok(false);
        }
        let Some((key, _)) = walk.found() else { return Ok(false) };
        // Neither side gives what the other one gave.
        let inside = met.is_none_or(|met| match direction {
            Direction::Forward => key < met,
            Direction::Backward => key > met,
        });
        Ok(inside)
    }

    #[inline(never)]
    fn advance(&mut self, direction: Direction) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let stepped = self.step(direction);
        if !matches!(stepped, Ok(true)) {
            self.ended = true;
            self.front = None;
            self.back = None;
        }
        stepped
    }

    /// The next record in ascending order, lent until the next call: as [`Iterator::next`], without a copy of key and value.
    ///
    /// ```
    /// # fn main() -> betree::Result<()> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let db = betree::Db::open(directory.path())?;
    /// # let keyspace = db.keyspace("numbers")?;
    /// keyspace.insert("one", "1")?;
    /// keyspace.insert("two", "2")?;
    /// let mut iter = keyspace.iter();
    /// let mut bytes = 0;
    /// while let Some((key, value)) = iter.next_record()? {
    ///     bytes += key.len() + value.len();
    /// }
    /// assert_eq!(bytes, 8);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of the device, and damage found on the way.
    pub fn next_record(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        let there = match &mut self.front {
            // The other side has taken nothing.
            Some(walk) if self.back.is_none() => {
                let stepped = walk.step();
                if !matches!(stepped, Ok(true)) {
                    (self.ended, self.front) = (true, None);
                }
                stepped?
            }
            _ => self.advance(Direction::Forward)?,
        };
        let record = self.front.as_ref().filter(|_| there).and_then(Walk::found);
        self.taken += record.map_or(0, bytes);
        Ok(record)
    }

    /// The next record in descending order, as [`Iter::next_record`].
    ///
    /// # Errors
    /// As there.
    pub fn next_record_back(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        let there = self.advance(Direction::Backward)?;
        let record = self.back.as_ref().filter(|_| there).and_then(Walk::found);
        self.taken += record.map_or(0, bytes);
        Ok(record)
    }
}

fn bytes((key, value): (&[u8], &[u8])) -> u64 {
    (key.len() + value.len()) as u64
}

fn owned((key, value): (&[u8], &[u8])) -> (Bytes, Bytes) {
    (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
}

impl Iterator for Iter {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_record().map(|record| record.map(owned)).transpose()
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.next_record_back().map(|record| record.map(owned)).transpose()
    }
}

impl FusedIterator for Iter {}
