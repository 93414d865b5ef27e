//! A set of free ranges: best fit with coalescing, every operation O(log n).
//!
//! Pure data; `space` holds it under its lock. Units are blocks.
//!
//! Invariants (`freemap.coalesced`): ranges are non-empty, disjoint, and no two touch; both indexes hold the same
//! ranges; `total` is their sum.

use std::collections::{BTreeMap, BTreeSet};

/// A range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Range {
    pub(crate) fn end(self) -> u64 {
        self.start + self.len
    }
}

/// Free ranges, found by place and by size.
#[derive(Debug, Default)]
pub(crate) struct FreeMap {
    by_start: BTreeMap<u64, u64>,
    /// (len, start): the first entry at or above (wanted, 0) is the best fit, the lowest one among equals, so that
    /// the file's tail empties and can be cut.
    by_len: BTreeSet<(u64, u64)>,
    total: u64,
}

impl FreeMap {
    /// Free blocks.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Number of ranges.
    #[cfg(test)]
    pub(crate) fn ranges(&self) -> usize {
        self.by_start.len()
    }

    /// Adds a range, joining it with its neighbours.
    pub(crate) fn insert(&mut self, range: Range) {
        assert!(range.len > 0, "an empty range has no place");
        let mut joined = range;
        if let Some((&start, &len)) = self.by_start.range(..range.end()).next_back()
            && start + len >= range.start
        {
            assert!(start + len == range.start, "extent.owned_once: blocks freed twice at {range:?}");
            self.drop_entry(Range { start, len });
            joined = Range { start, len: len + range.len };
        }
        if let Some(&len) = self.by_start.get(&range.end()) {
            self.drop_entry(Range { start: range.end(), len });
            joined.len += len;
        }
        self.by_start.insert(joined.start, joined.len);
        self.by_len.insert((joined.len, joined.start));
        self.total += joined.len;
    }

    /// Takes `len` blocks out of the smallest range that holds them, the lowest among equals.
    pub(crate) fn take(&mut self, len: u64) -> Option<Range> {
        let &(found, start) = self.by_len.range((len, 0)..).next()?;
        self.drop_entry(Range { start, len: found });
        if found > len {
            self.add_entry(Range { start: start + len, len: found - len });
        }
        Some(Range { start, len })
    }

    /// Takes the range that ends at `end`, whole.
    pub(crate) fn take_ending_at(&mut self, end: u64) -> Option<Range> {
        let (&start, &len) = self.by_start.last_key_value()?;
        (start + len == end).then(|| {
            let range = Range { start, len };
            self.drop_entry(range);
            range
        })
    }

    /// Takes the largest range if it has at least `min` blocks.
    pub(crate) fn take_largest(&mut self, min: u64) -> Option<Range> {
        let &(len, start) = self.by_len.last()?;
        (len >= min).then(|| {
            let range = Range { start, len };
            self.drop_entry(range);
            range
        })
    }

    /// Whether any block of the range is free.
    pub(crate) fn overlaps(&self, range: Range) -> bool {
        let before = self.by_start.range(..range.end()).next_back();
        before.is_some_and(|(start, len)| start + len > range.start)
    }

    /// What of `freemap.coalesced` does not hold.
    pub(crate) fn audit(&self) -> Option<String> {
        let mut before = None;
        for (&start, &len) in &self.by_start {
            if len == 0 || before.is_some_and(|end| end >= start) {
                return Some(format!("the free range at block {start} is empty or touches the one before"));
            }
            if !self.by_len.contains(&(len, start)) {
                return Some(format!("the free range at block {start} is not found by its length"));
            }
            before = Some(start + len);
        }
        let sum: u64 = self.by_start.values().sum();
        let agree = self.by_len.len() == self.by_start.len() && sum == self.total;
        (!agree).then(|| format!("{sum} free blocks, {} counted", self.total))
    }

    fn add_entry(&mut self, range: Range) {
        self.by_start.insert(range.start, range.len);
        self.by_len.insert((range.len, range.start));
        self.total += range.len;
    }

    fn drop_entry(&mut self, range: Range) {
        self.by_start.remove(&range.start);
        self.by_len.remove(&(range.len, range.start));
        self.total -= range.len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> Range {
        Range { start, len }
    }

    #[test]
    fn the_smallest_fitting_range_is_taken_and_the_lowest_among_equals() {
        let mut map = FreeMap::default();
        for (start, len) in [(100, 10), (0, 4), (50, 4), (20, 6)] {
            map.insert(range(start, len));
        }
        assert_eq!(map.take(4), Some(range(0, 4)));
        assert_eq!(map.take(5), Some(range(20, 5)));
        assert_eq!(map.take(4), Some(range(50, 4)));
        assert_eq!(map.take(11), None);
        assert_eq!((map.total(), map.ranges()), (11, 2));
    }

    #[test]
    fn neighbours_are_joined_on_both_sides() {
        let mut map = FreeMap::default();
        map.insert(range(0, 2));
        map.insert(range(4, 2));
        map.insert(range(2, 2));
        assert_eq!(map.ranges(), 1);
        assert_eq!(map.take_ending_at(6), Some(range(0, 6)));
    }

    #[test]
    #[should_panic(expected = "owned_once")]
    fn a_range_freed_twice_is_a_bug() {
        let mut map = FreeMap::default();
        map.insert(range(0, 4));
        map.insert(range(2, 4));
    }

    /// Compares with a bit per block.
    #[test]
    fn random_takes_and_inserts_match_a_bitmap() {
        let seed = 0x5eed_0001;
        println!("seed {seed:#x}");
        let mut state: u64 = seed;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        const BLOCKS: usize = 400;
        let mut free = [true; BLOCKS];
        let mut map = FreeMap::default();
        map.insert(range(0, BLOCKS as u64));
        let mut held: Vec<Range> = Vec::new();
        for _ in 0..20_000 {
            if random(2) == 0 && !held.is_empty() {
                let freed = held.swap_remove(random(held.len() as u64) as usize);
                free[freed.start as usize..freed.end() as usize].fill(true);
                map.insert(freed);
            } else {
                let len = 1 + random(20);
                let got = map.take(len);
                assert_eq!(got, best_fit(&free, len));
                if let Some(taken) = got {
                    free[taken.start as usize..taken.end() as usize].fill(false);
                    held.push(taken);
                }
            }
            assert_eq!(map.total(), free.iter().filter(|&&f| f).count() as u64);
        }
    }

    fn best_fit(free: &[bool], len: u64) -> Option<Range> {
        let mut best: Option<(u64, u64)> = None;
        let mut start = 0;
        while start < free.len() {
            if !free[start] {
                start += 1;
                continue;
            }
            let run = free[start..].iter().take_while(|&&f| f).count();
            if run as u64 >= len && best.is_none_or(|b| (run as u64, start as u64) < b) {
                best = Some((run as u64, start as u64));
            }
            start += run;
        }
        best.map(|(_, start)| range(start, len))
    }
}
