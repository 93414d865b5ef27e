//! What delete-range deletes and keeps: the ranks of the records are cut into equal slices, and of each slice the first tenth is kept
//! and the rest is one deleted range.
//!
//! Invariant `slices.derivable`: which records are left follows from their numbers and `present` alone, so a scan can check its rows.

use crate::record::{KEY_LEN, Key, Records};

/// Ranges that are deleted, if there are records for so many.
pub const RANGES: u64 = 1000;
/// One part in this many of each slice is kept.
const KEPT_PART: u64 = 10;

/// The slices of the records below some number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slices {
    records: Records,
    low: u64,
    count: u64,
    width: u64,
}

impl Slices {
    /// The slices of the records with numbers below `present`.
    pub(super) fn new(records: Records, present: u64) -> Self {
        let (low, ranks) = records.rank_span(present);
        let count = RANGES.min(ranks / KEPT_PART).max(1);
        Slices { records, low, count, width: (ranks / count).max(1) }
    }

    /// How many ranges there are to delete.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The first key that slice `index` loses, and the first of the next slice.
    pub(super) fn range(&self, index: u64) -> (Key, Key) {
        let start = self.low + index * self.width;
        (boundary(start.checked_add(self.kept_width())), boundary(start.checked_add(self.width)))
    }

    /// Whether record `number` is not in a range.
    pub(super) fn keeps(&self, number: u64) -> bool {
        let place = self.records.rank(number) - self.low;
        // What the division of the ranks left over at the end is kept.
        place / self.width >= self.count || place % self.width < self.kept_width()
    }

    /// As [`Slices::keeps`], for records that are looked at one after the other: `slice` is where that of the last one begins. A division per slice, not per
    /// record.
    #[inline]
    pub(super) fn keeps_near(&self, number: u64, slice: &mut u64) -> bool {
        let place = self.records.rank(number) - self.low;
        if place.wrapping_sub(*slice) >= self.width {
            *slice = place - place % self.width;
        }
        place - *slice < self.kept_width() || place / self.width >= self.count
    }

    /// How many of the records below `present` are kept.
    pub(super) fn kept(&self, present: u64) -> u64 {
        (0..present).filter(|&number| self.keeps(number)).count() as u64
    }

    fn kept_width(&self) -> u64 {
        self.width.div_ceil(KEPT_PART)
    }
}

/// A key above all with smaller ranks, and not above any with this one; the last key of all if there is no such rank.
fn boundary(rank: Option<u64>) -> Key {
    let Some(rank) = rank else { return [u8::MAX; KEY_LEN] };
    let mut key = [0; KEY_LEN];
    key[..8].copy_from_slice(&rank.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::KeyOrder;

    #[test]
    fn a_tenth_is_kept_in_every_order_of_keys_and_a_record_is_kept_if_it_is_in_no_range() {
        for order in [KeyOrder::Random, KeyOrder::Ascending, KeyOrder::Descending] {
            for present in [1, 9, 300, 20_000] {
                let records = Records::new(3, 10).in_order(order);
                let slices = Slices::new(records, present);
                let ranges: Vec<_> = (0..slices.count()).map(|index| slices.range(index)).collect();
                let mut slice = 0;
                for number in (0..present).step_by(7) {
                    assert_eq!(slices.keeps_near(number, &mut slice), slices.keeps(number));
                    let key = records.key(number);
                    let deleted = ranges.iter().any(|(start, end)| *start <= key && key < *end);
                    assert_eq!(slices.keeps(number), !deleted, "{order:?}, {number} of {present}");
                }
                let kept = slices.kept(present);
                assert!(present < 100 || (present / 15..=present / 7).contains(&kept), "{order:?}: {kept}");
            }
        }
    }
}
