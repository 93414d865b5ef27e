//! A memtable as of a Seqno, one entry per key, in both directions.
//!
//! The collapse rule, the same that runs are built by: within one source, range deletes count as older than all entries the
//! cursor shows. So for each key, from its newest visible message to the oldest: operands gather; a Put ends the walk
//! and they are folded onto it; a Delete or a newer visible RangeDelete ends it and they are folded onto nothing. No
//! operands: the Put or Delete itself, and nothing for a key that is only covered, which [`Memtable::spans`] says. Only
//! operands: a Merge whose value is an operand list.
//!
//! The cursor takes the places of one leaf at a time under the read lock and works on the arena without it; a leaf that
//! has changed since does not matter, because the next one is sought by the last entry's key and Seqno.

use std::sync::Arc;

use super::Memtable;
use super::arena::{Entry, Loc};
use crate::message::{Kind, MessageRef};
use crate::operands;
use crate::types::Seqno;

/// Entries asked for ahead of their use: about as many as the processor fetches at once.
const AHEAD: usize = 8;

/// Messages of one key that a backward step looks at one by one.
const MANY: usize = 64;

enum Direction {
    Forward,
    Backward,
}

enum Current {
    Nothing,
    /// The message as stored.
    Stored(Loc),
    /// A folded value, or an operand list, for the key of the message here.
    Folded(Kind, Loc, Vec<u8>),
}

/// Collapsed view of a memtable. A seek chooses the direction of the steps after it.
pub(crate) struct MemCursor {
    table: Arc<Memtable>,
    direction: Direction,
    walk: Walk,
    current: Current,
}

/// The way through the places of the tree. Its methods are given the table, so that entries can be borrowed meanwhile.
pub(super) struct Walk {
    at: Seqno,
    /// Places still to be looked at, the next one last.
    batch: Vec<Loc>,
    /// The last place taken from a batch.
    taken: Option<Loc>,
    /// Whether there may be range deletes to ask for.
    range_deletes: bool,
}

impl MemCursor {
    pub(super) fn new(table: Arc<Memtable>, at: Seqno) -> MemCursor {
        let walk = Walk { at, batch: Vec::new(), taken: None, range_deletes: false };
        MemCursor { table, direction: Direction::Forward, walk, current: Current::Nothing }
    }

    /// To the first entry with a key at or after `key`; steps are [`MemCursor::advance`] from here.
    pub(crate) fn seek(&mut self, key: &[u8]) {
        self.direction = Direction::Forward;
        self.walk.taken = None;
        self.walk.fill_after(&self.table, key, Seqno(u64::MAX));
        self.current = self.walk.step_forward(&self.table, None);
    }

    /// To the last entry with a key before `key` (`None`: the last of all); steps are [`MemCursor::retreat`] from here.
    pub(crate) fn seek_before(&mut self, key: Option<&[u8]>) {
        self.direction = Direction::Backward;
        self.walk.taken = None;
        self.walk.fill_before(&self.table, key.map(|key| (key, Seqno(u64::MAX))));
        self.current = self.walk.step_backward(&self.table);
    }

    /// To the next entry. REQUIRES that the last seek was [`MemCursor::seek`].
    pub(crate) fn advance(&mut self) {
        assert!(matches!(self.direction, Direction::Forward), "MemCursor: advance after seek_before");
        let done = match &self.current {
            Current::Nothing => return,
            Current::Stored(loc) | Current::Folded(_, loc, _) => *loc,
        };
        self.current = self.walk.step_forward(&self.table, Some(self.table.arena.key(done)));
    }

    /// To the previous entry. REQUIRES that the last seek was [`MemCursor::seek_before`].
    pub(crate) fn retreat(&mut self) {
        assert!(matches!(self.direction, Direction::Backward), "MemCursor: retreat after seek");
        self.current = self.walk.step_backward(&self.table);
    }

    /// The entry here: a Put, Delete or Merge (with an operand list); `None` beyond the ends.
    #[inline]
    pub(crate) fn entry(&self) -> Option<MessageRef<'_>> {
        match &self.current {
            Current::Nothing => None,
            Current::Stored(loc) => Some(self.table.arena.entry(*loc).message()),
            Current::Folded(kind, loc, value) => {
                Some(MessageRef { kind: *kind, key: self.table.arena.key(*loc), value })
            }
        }
    }
}

impl Walk {
    /// Through all messages, by key and from the newest of each.
    pub(super) fn all(table: &Memtable) -> Walk {
        let mut walk = Walk { at: Seqno(u64::MAX), batch: Vec::new(), taken: None, range_deletes: false };
        walk.fill_after(table, b"", walk.at);
        walk
    }

    /// The next one's place.
    pub(super) fn next(&mut self, table: &Memtable) -> Option<Loc> {
        self.take_after(table, None)
    }

    /// `done`: the key that was shown last; its older messages are passed over.
    #[inline]
    fn step_forward<'a>(&mut self, table: &'a Memtable, mut done: Option<&'a [u8]>) -> Current {
        let arena = &*table.arena;
        while let Some(loc) = self.take_after(table, done) {
            let entry = arena.entry(loc);
            if done == Some(entry.key) || entry.seqno > self.at {
                continue;
            }
            done = Some(entry.key);
            let covered = self.newest_over(table, entry.key);
            if covered > Some(entry.seqno) {
                continue;
            }
            if entry.kind != Kind::Merge {
                return Current::Stored(loc);
            }
            let mut versions = vec![loc];
            while let Some(older) = self.take_after(table, None) {
                let older_entry = arena.entry(older);
                if older_entry.key != entry.key {
                    self.batch.push(older);
                    break;
                }
                versions.push(older);
                if older_entry.kind != Kind::Merge {
                    break;
                }
            }
            return collapse(table, &versions, covered);
        }
        Current::Nothing
    }

    fn step_backward(&mut self, table: &Memtable) -> Current {
        let arena = &*table.arena;
        while let Some(oldest) = self.take_before(table) {
            let entry = arena.entry(oldest);
            let Some(newer) = self.take_newer(table, entry.key) else {
                // A key with one message, as most are.
                if entry.seqno > self.at {
                    continue;
                }
                match collapse(table, &[oldest], self.newest_over(table, entry.key)) {
                    Current::Nothing => continue,
                    found => return found,
                }
            };
            let mut versions = vec![oldest, newer];
            while versions.len() <= MANY
                && let Some(newer) = self.take_newer(table, entry.key)
            {
                versions.push(newer);
            }
            if versions.len() > MANY {
                match self.jump_before(table, entry.key) {
                    Current::Nothing => continue,
                    found => return found,
                }
            }
            versions.retain(|loc| arena.entry(*loc).seqno <= self.at);
            versions.reverse();
            match collapse(table, &versions, self.newest_over(table, entry.key)) {
                Current::Nothing => {}
                found => return found,
            }
        }
        Current::Nothing
    }

    /// The entry of `key`, found from its newest visible message, and the way on before its first: a key with very many
    /// messages is not walked through from its oldest.
    fn jump_before(&mut self, table: &Memtable, key: &[u8]) -> Current {
        let mut forward = Walk { at: self.at, batch: Vec::new(), taken: None, range_deletes: false };
        forward.fill_after(table, key, self.at);
        let found = forward.step_forward(table, None);
        self.taken = None;
        self.fill_before(table, Some((key, Seqno(u64::MAX))));
        match &found {
            // All of the key's messages may be invisible or covered, and the entry another key's.
            Current::Stored(loc) | Current::Folded(_, loc, _) if table.arena.key(*loc) == key => found,
            _ => Current::Nothing,
        }
    }

    /// The newest range delete over `key` that the cursor sees.
    #[inline]
    fn newest_over(&self, table: &Memtable, key: &[u8]) -> Option<Seqno> {
        if !self.range_deletes {
            return None;
        }
        table.state.read().range_deletes.newest_over(key, self.at)
    }

    /// The next place in ascending order. `done`: a key whose messages may be left out from here on.
    #[inline]
    fn take_after(&mut self, table: &Memtable, done: Option<&[u8]>) -> Option<Loc> {
        if self.batch.is_empty() {
            let last = table.arena.entry(self.taken?);
            let older = last.seqno.0.saturating_sub(1).min(self.at.0);
            self.fill_after(table, last.key, Seqno(if done == Some(last.key) { 0 } else { older }));
        }
        self.take(table)
    }

    /// The next place in descending order.
    #[inline]
    fn take_before(&mut self, table: &Memtable) -> Option<Loc> {
        if self.batch.is_empty() {
            let last = table.arena.entry(self.taken?);
            self.fill_before(table, Some((last.key, last.seqno)));
        }
        self.take(table)
    }

    /// The next place in descending order if it is of `key`.
    #[inline]
    fn take_newer(&mut self, table: &Memtable, key: &[u8]) -> Option<Loc> {
        let loc = self.take_before(table)?;
        if table.arena.key(loc) == key {
            return Some(loc);
        }
        self.batch.push(loc);
        None
    }

    #[inline]
    fn take(&mut self, table: &Memtable) -> Option<Loc> {
        self.taken = self.batch.pop();
        if let Some(ahead) = self.batch.len().checked_sub(AHEAD) {
            table.arena.prefetch(self.batch[ahead]);
        }
        self.taken
    }

    fn fill_after(&mut self, table: &Memtable, key: &[u8], seqno: Seqno) {
        let state = table.state.read();
        self.range_deletes = !state.range_deletes.is_empty();
        self.batch.clear();
        self.batch.extend(state.tree.seek(&table.arena, key, seqno).after().iter().rev());
        drop(state);
        self.prefetch_first(table);
    }

    fn fill_before(&mut self, table: &Memtable, bound: Option<(&[u8], Seqno)>) {
        let state = table.state.read();
        self.range_deletes = !state.range_deletes.is_empty();
        let place = match bound {
            Some((key, seqno)) => state.tree.seek(&table.arena, key, seqno),
            None => state.tree.end(),
        };
        self.batch.clear();
        self.batch.extend(place.before());
        drop(state);
        self.prefetch_first(table);
    }

    fn prefetch_first(&self, table: &Memtable) {
        self.batch.iter().rev().take(AHEAD).for_each(|loc| table.arena.prefetch(*loc));
    }
}

/// The entry that visible `versions` of a key (newest first) make, under a range delete at `covered`.
fn collapse(table: &Memtable, versions: &[Loc], covered: Option<Seqno>) -> Current {
    let arena = &*table.arena;
    let mut found: Vec<&[u8]> = Vec::new();
    let mut end: Option<Entry<'_>> = None;
    for loc in versions {
        let entry = arena.entry(*loc);
        if covered > Some(entry.seqno) {
            break;
        }
        if entry.kind != Kind::Merge {
            if found.is_empty() {
                return Current::Stored(*loc);
            }
            end = Some(entry);
            break;
        }
        found.push(entry.value());
    }
    let (Some(operator), [first, ..], false) = (&table.operator, versions, found.is_empty()) else {
        return Current::Nothing;
    };
    found.reverse();
    let key = arena.key(*first);
    if end.is_none() && covered.is_none() {
        return Current::Folded(Kind::Merge, *first, operands::shorten(&**operator, key, &found));
    }
    let base = end.filter(|entry| entry.kind == Kind::Put).map(|entry| entry.value());
    Current::Folded(Kind::Put, *first, operator.full_merge(key, base, &found))
}
