//! SCAN cursors: numbers that stand for a key to go on behind.
//!
//! Clients need numbers, and positions must survive writes, so the server remembers for each cursor it gave out the last
//! key seen. A scan in progress holds two entries at most: using a cursor drops the one before it (not itself: a
//! client that lost the reply may ask again). The table is bounded; the oldest entries go first, and a
//! cursor that is gone is an error, never a silent new start.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

use betree::Bytes;
use parking_lot::Mutex;

const MOST: usize = 16_384;
const MOST_BYTES: usize = 16 << 20;

#[derive(Debug, Clone)]
struct Position {
    db: u8,
    last: Bytes,
    previous: Option<u64>,
    age: u64,
}

#[derive(Debug, Default)]
struct Table {
    positions: HashMap<u64, Position>,
    by_age: BTreeMap<u64, u64>,
    bytes: usize,
    next: u64,
}

/// All cursors in use.
#[derive(Debug, Default)]
pub struct Cursors {
    table: Mutex<Table>,
    salt: RandomState,
}

impl Table {
    fn remove(&mut self, cursor: u64) {
        if let Some(position) = self.positions.remove(&cursor) {
            self.by_age.remove(&position.age);
            self.bytes -= position.last.len();
        }
    }
}

impl Cursors {
    /// The key to go on behind, or `None` if the cursor is not known (any more).
    pub fn resume(&self, db: u8, cursor: u64) -> Option<Bytes> {
        let mut table = self.table.lock();
        let position = table.positions.get(&cursor).filter(|p| p.db == db)?.clone();
        if let Some(previous) = position.previous {
            table.remove(previous);
        }
        Some(position.last)
    }

    /// A cursor for the position behind `last`, of the scan that came here by `previous` (0: its first step).
    pub fn save(&self, db: u8, last: Bytes, previous: u64) -> u64 {
        let mut table = self.table.lock();
        table.next += 1;
        let age = table.next;
        // Positive as i64, not guessable, never 0; a number in use is not given twice.
        let mut cursor = (self.salt.hash_one(age) >> 16) | 1 << 47;
        while table.positions.contains_key(&cursor) {
            cursor += 1;
        }
        table.bytes += last.len();
        let previous = (previous != 0).then_some(previous);
        table.positions.insert(cursor, Position { db, last, previous, age });
        table.by_age.insert(age, cursor);
        while table.positions.len() > MOST || (table.bytes > MOST_BYTES && table.positions.len() > 1) {
            let Some((_, &oldest)) = table.by_age.first_key_value() else { break };
            table.remove(oldest);
        }
        cursor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_scan_does_not_push_out_a_waiting_one() {
        let cursors = Cursors::default();
        let waiting = cursors.save(0, Bytes::from_static(b"w"), 0);
        let mut cursor = 0;
        for i in 0..100_000u32 {
            let next = cursors.save(0, Bytes::copy_from_slice(&i.to_be_bytes()), cursor);
            if cursor != 0 {
                assert!(cursors.resume(0, cursor).is_some());
            }
            cursor = next;
        }
        assert_eq!(cursors.resume(0, waiting), Some(Bytes::from_static(b"w")));
        assert_eq!(cursors.resume(1, waiting), None);
        assert!(cursors.table.lock().positions.len() < 10);
    }

    #[test]
    fn the_table_is_bounded_and_a_lost_cursor_is_known_to_be_lost() {
        let cursors = Cursors::default();
        let first = cursors.save(0, Bytes::from_static(b"a"), 0);
        for _ in 0..MOST {
            cursors.save(0, Bytes::from_static(b"b"), 0);
        }
        assert_eq!(cursors.resume(0, first), None);
        assert_eq!(cursors.table.lock().positions.len(), MOST);
    }
}
