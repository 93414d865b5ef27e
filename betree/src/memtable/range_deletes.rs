//! The range deletes of a memtable, by the order of their Seqnos.
//!
//! Answers which one is the newest over a key as of a Seqno, and what they cover together. Any number of them may lie
//! over one another (a queue trimmed again and again from its start), so fragments with all their Seqnos would take
//! quadratic space. Instead: level 0 has one set per range delete, and every `FANOUT` sets of a level in a row have
//! their union on the next. A question looks at a few unions, newest first, and goes down where the key is in one.
//!
//! Invariant `range_deletes.unions_complete`: level k+1 has exactly len(level k) / FANOUT sets. Under the memtable's lock.

use crate::spans::Spans;
use crate::types::Seqno;

const FANOUT: usize = 8;

#[derive(Default)]
pub(super) struct RangeDeletes {
    seqnos: Vec<Seqno>,
    levels: Vec<Vec<Spans>>,
    bytes: usize,
}

impl RangeDeletes {
    /// Adds the range delete of `[start, end)`. REQUIRES a Seqno above all before.
    pub(super) fn push(&mut self, seqno: Seqno, start: &[u8], end: &[u8]) {
        if start >= end {
            return;
        }
        self.seqnos.push(seqno);
        let mut set = Spans::default();
        set.insert(start, end);
        self.bytes += start.len() + end.len() + size_of::<Seqno>();
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let sets = &mut self.levels[level];
            self.bytes += set.shallow_bytes() + size_of::<Spans>();
            sets.push(set);
            if !sets.len().is_multiple_of(FANOUT) {
                return;
            }
            set = Spans::default();
            sets[sets.len() - FANOUT..].iter().for_each(|part| set.union(part));
        }
    }

    /// All of them, the oldest first: Seqno, start and end.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Seqno, &[u8], &[u8])> {
        let sets = self.seqnos.iter().zip(self.levels.iter().take(1).flatten());
        sets.flat_map(|(&seqno, set)| set.iter().map(move |(start, end)| (seqno, start, end)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seqnos.is_empty()
    }

    /// Memory in use, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The newest range delete at or before `at` that covers `key`.
    pub(super) fn newest_over(&self, key: &[u8], at: Seqno) -> Option<Seqno> {
        let (mut level, mut block) = self.unions_to(at).find(|(l, b)| self.levels[*l][*b].contains(key))?;
        while level > 0 {
            level -= 1;
            let parts = block * FANOUT..(block + 1) * FANOUT;
            block = parts.rev().find(|b| self.levels[level][*b].contains(key))?;
        }
        self.seqnos.get(block).copied()
    }

    /// What the range deletes at or before `at` cover together.
    pub(super) fn spans(&self, at: Seqno) -> Spans {
        let mut all = Spans::default();
        self.unions_to(at).for_each(|(level, block)| all.union(&self.levels[level][block]));
        all
    }

    /// The fewest sets (level, index) that make up the range deletes at or before `at`, newest first.
    fn unions_to(&self, at: Seqno) -> impl Iterator<Item = (usize, usize)> {
        let mut end = self.seqnos.partition_point(|s| *s <= at);
        std::iter::from_fn(move || {
            let (mut level, mut size) = (0, 1);
            if end == 0 {
                return None;
            }
            while end.is_multiple_of(size * FANOUT) {
                (level, size) = (level + 1, size * FANOUT);
            }
            let block = end / size - 1;
            end -= size;
            Some((level, block))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_visible_range_delete_over_a_key_is_found() {
        let mut deletes = RangeDeletes::default();
        let mut model: Vec<(u64, u8, u8)> = Vec::new();
        for i in 0..700u64 {
            let (start, len) = ((i * 89 % 241) as u8, (i * 31 % 14) as u8);
            let seqno = i * 3 + 1;
            deletes.push(Seqno(seqno), &[start], &[start + len]);
            model.push((seqno, start, start + len));
            if i % 23 != 0 && i != 511 && i != 512 {
                continue;
            }
            for at in [0, 1, seqno / 2, seqno - 1, seqno, u64::MAX] {
                let spans = deletes.spans(Seqno(at));
                for key in 0..=255u8 {
                    let over = |d: &&(u64, u8, u8)| d.0 <= at && (d.1..d.2).contains(&key);
                    let newest = model.iter().rev().find(over).map(|d| Seqno(d.0));
                    assert_eq!(
                        deletes.newest_over(&[key], Seqno(at)),
                        newest,
                        "key {key} at {at}, {i} deletes"
                    );
                    assert_eq!(spans.contains(&[key]), newest.is_some());
                }
            }
        }
    }

    #[test]
    fn a_queue_trimmed_from_its_start_takes_linear_space() {
        let mut deletes = RangeDeletes::default();
        for i in 1..=20_000u32 {
            deletes.push(Seqno(u64::from(i)), b"", &i.to_be_bytes());
        }
        assert!(deletes.bytes() < 20_000 * 400, "{} bytes", deletes.bytes());
        assert_eq!(deletes.spans(Seqno(9_000)).len(), 1);
        assert_eq!(deletes.newest_over(&8_999u32.to_be_bytes(), Seqno(9_000)), Some(Seqno(9_000)));
        assert_eq!(deletes.newest_over(&9_000u32.to_be_bytes(), Seqno(9_000)), None);
    }
}
