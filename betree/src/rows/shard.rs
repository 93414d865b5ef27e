//! One shard of the row cache: rows in chunks, found by a table of tags and places, evicted by S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi:
//! "FIFO queues are all you need for cache eviction", SOSP 2023) a chunk at a time.
//!
//! ```text
//! row := u64 at << 8 | credit    u32 value length, key length, keyspace: 13, 13 and 6 bits    [u32 keyspace]    key    value    padding to 4 bytes
//! ```
//! A new row is appended to the last chunk of the probation queue, which has a tenth of the memory; one that is remembered to have left it
//! lately goes to the main queue. When the oldest chunk of a queue has to go, rows that were read since are appended to the main queue, with less credit, the others leave.
//! Rows from before a restart come the best first, in a queue of their own, which goes from its end, before the main one does.
//!
//! Invariant `row.found_once`: every slot of the table that is not vacant names a row in a chunk of exactly one queue, no two name rows of
//! one key, and memory is within the limit whenever the lock is free.

use std::collections::VecDeque;

use betree_storage::prefetch;
use bytes::Bytes;

use super::{Row, RowKey, RowStats};
use crate::hash::hash;
use crate::types::{KeyspaceId, Seqno};

const CHUNK: usize = 64 << 10;
/// Places in a chunk are multiples of it.
const UNIT: usize = 4;
/// Most bytes of key and value together.
const LARGEST: usize = CHUNK / 16;
/// Bits of a length.
const LEN_BITS: u32 = 13;
const _: () = assert!(LARGEST < 1 << LEN_BITS);
/// Bytes of a row that are asked for ahead.
const EXPECTED: usize = 192;
/// Stands for a keyspace that follows.
const FOLLOWS: u32 = (1 << (32 - 2 * LEN_BITS)) - 1;
/// What a row that nobody asked for needs to be free: a chunk for it, and one for the next that somebody does.
const ROOM: usize = 2 * CHUNK;
/// The probation queue's part of the chunks.
const PROBATION: usize = 10;
const MAX_CREDIT: u8 = 3;
/// Slots that are asked for ahead of their use.
const AHEAD: usize = 12;
/// Slots of the smallest table.
const FEWEST_SLOTS: usize = 256;
/// Bytes of a slot, with its share of the ghosts.
const SLOT_BYTES: usize = size_of::<Slot>() + size_of::<u16>();
const VACANT: u32 = u32::MAX;
/// So many chunks can be named beside `VACANT`.
const MOST_BYTES: usize = ((VACANT >> Place::OFFSET_BITS) as usize) * CHUNK;

/// Where a row is: the number of its chunk, and its offset there in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(u32);

impl Place {
    const OFFSET_BITS: u32 = (CHUNK / UNIT).ilog2();

    fn new(chunk: u32, offset: usize) -> Place {
        Place(chunk << Self::OFFSET_BITS | (offset / UNIT) as u32)
    }

    fn chunk(self) -> usize {
        (self.0 >> Self::OFFSET_BITS) as usize
    }

    fn offset(self) -> usize {
        (self.0 & ((1 << Self::OFFSET_BITS) - 1)) as usize * UNIT
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    tag: u32,
    place: u32,
}

const EMPTY: Slot = Slot { tag: 0, place: VACANT };

#[derive(Debug)]
struct Chunk {
    bytes: Box<[u8]>,
    used: usize,
}

/// Chunks in the order in which they were filled; the last is being filled.
#[derive(Debug, Default)]
struct Queue(VecDeque<u32>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Probation,
    Main,
    Recalled,
}

/// A row's header.
#[derive(Debug, Clone, Copy)]
struct Header {
    at: Seqno,
    credit: u8,
    value_len: usize,
    key_len: usize,
    keyspace: KeyspaceId,
}

impl Header {
    fn new(key: RowKey<'_>, at: Seqno, value: &[u8]) -> Header {
        Header { at, credit: 0, value_len: value.len(), key_len: key.key.len(), keyspace: key.keyspace }
    }

    fn read(row: &[u8]) -> Header {
        let word = |at: usize| -> u32 {
            let mut word = [0; 4];
            word.copy_from_slice(&row[at..at + 4]);
            u32::from_le_bytes(word)
        };
        let when = u64::from(word(4)) << 32 | u64::from(word(0));
        let (lens, mask) = (word(8), (1 << LEN_BITS) - 1);
        let keyspace = lens >> (2 * LEN_BITS);
        Header {
            at: Seqno(when >> 8),
            credit: when as u8,
            value_len: (lens & mask) as usize,
            key_len: (lens >> LEN_BITS & mask) as usize,
            keyspace: KeyspaceId(if keyspace == FOLLOWS { word(12) } else { keyspace }),
        }
    }

    fn write(&self, row: &mut [u8]) {
        row[..8].copy_from_slice(&(self.at.0 << 8 | u64::from(self.credit)).to_le_bytes());
        let keyspace = self.keyspace.0.min(FOLLOWS);
        let lens = self.value_len as u32 | (self.key_len as u32) << LEN_BITS | keyspace << (2 * LEN_BITS);
        row[8..12].copy_from_slice(&lens.to_le_bytes());
        if keyspace == FOLLOWS {
            row[12..16].copy_from_slice(&self.keyspace.0.to_le_bytes());
        }
    }

    /// Length of the header.
    fn len(&self) -> usize {
        if self.keyspace.0 < FOLLOWS { 12 } else { 16 }
    }

    /// Where the key begins and ends, and the value ends.
    fn parts(&self) -> (usize, usize, usize) {
        let key = self.len();
        (key, key + self.key_len, key + self.key_len + self.value_len)
    }

    fn row_len(&self) -> usize {
        self.parts().2.next_multiple_of(UNIT)
    }
}

fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The place of a tag among `slots`: any number of them will do.
fn home(tag: u32, slots: usize) -> usize {
    ((u64::from(tag) * slots as u64) >> 32) as usize
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Shard {
    limit: usize,
    slots: Vec<Slot>,
    rows: usize,
    /// Low halves of the tags of rows that left the probation queue, each at its home.
    ghosts: Vec<u16>,
    chunks: Vec<Option<Chunk>>,
    vacant: Vec<u32>,
    probation: Queue,
    main: Queue,
    /// The best ones first.
    recalled: Queue,
    /// The memory of the chunk evicted last, for the next one.
    spare: Option<Box<[u8]>>,
    hits: u64,
}

impl Shard {
    pub(super) fn get(&mut self, key: RowKey<'_>) -> Option<(Seqno, Bytes)> {
        let slot = self.find(key)?;
        let row = self.row_mut(Place(self.slots[slot].place));
        let mut header = Header::read(row);
        if header.credit < MAX_CREDIT {
            header.credit += 1;
            header.write(row);
        }
        let (_, value, end) = header.parts();
        let found = (header.at, Bytes::copy_from_slice(&row[value..end]));
        self.hits += 1;
        Some(found)
    }

    /// Asks for the place of the ghost and the end of the probation queue from memory.
    pub(super) fn expect(&mut self, key: RowKey<'_>) {
        self.ghost_of(tag_of(key.hash)).inspect(|ghost| prefetch::value(&**ghost));
        let last = self.probation.0.back().and_then(|&last| self.chunks[last as usize].as_ref());
        last.inspect(|chunk| prefetch::bytes(chunk.bytes.as_ptr().wrapping_add(chunk.used), EXPECTED));
    }

    pub(super) fn insert(&mut self, key: RowKey<'_>, at: Seqno, value: &[u8]) {
        let header = Header::new(key, at, value);
        if key.key.len() + value.len() > LARGEST || at.0 >= 1 << 56 {
            return;
        }
        let mut which = Which::Probation;
        if let Some(slot) = self.find(key) {
            let row = self.row_mut(Place(self.slots[slot].place));
            let old = Header::read(row);
            if old.at >= at {
                return;
            }
            if old.value_len == value.len() {
                Header { credit: old.credit, ..header }.write(row);
                row[old.parts().1..][..value.len()].copy_from_slice(value);
                return;
            }
            self.forget(slot);
            which = Which::Main;
        }
        let tag = tag_of(key.hash);
        if let Some(ghost) = self.ghost_of(tag)
            && *ghost == tag as u16
        {
            *ghost = 0;
            which = Which::Main;
        }
        self.add(which, header, key, value);
    }

    /// Appends a row that is not there. Whether there was room for it.
    fn add(&mut self, which: Which, header: Header, key: RowKey<'_>, value: &[u8]) -> bool {
        let room = self.reserve_slot() && self.reserve_room(which, header.row_len());
        if room {
            self.append(which, header, tag_of(key.hash), key.key, value);
        }
        room
    }

    /// See [`super::Rows::recall`]. `hashes` are those of the rows' names.
    pub(super) fn recall(&mut self, rows: &[Row<'_>], hashes: &[u64]) -> u64 {
        // What is worth it at once, where there is room, instead of step by step.
        let slots = (self.rows + rows.len()) * 8 / 7 + 1;
        let more = slots.saturating_sub(self.slots.len());
        if more > self.slots.len() / 4 && self.bytes() + more * SLOT_BYTES + ROOM <= self.limit {
            self.resize(slots);
        }
        let mut taken = 0;
        for (i, (row, &hash)) in rows.iter().zip(hashes).enumerate() {
            if let Some(&ahead) = hashes.get(i + AHEAD)
                && !self.slots.is_empty()
            {
                prefetch::value(&self.slots[home(tag_of(ahead), self.slots.len())]);
            }
            taken += u64::from(self.recall_one(row, hash));
        }
        taken
    }

    fn recall_one(&mut self, row: &Row<'_>, hash: u64) -> bool {
        let key = RowKey { keyspace: row.keyspace, key: row.key, key_hash: 0, hash };
        let small = key.key.len() + row.value.len() <= LARGEST && row.at.0 < 1 << 56;
        if !small || self.bytes() + ROOM > self.limit || self.find(key).is_some() {
            return false;
        }
        let credit = row.credit.min(MAX_CREDIT).saturating_sub(1);
        let header = Header { credit, ..Header::new(key, row.at, row.value) };
        self.add(Which::Recalled, header, key, row.value)
    }

    pub(super) fn visit(&self, most: usize, visit: &mut dyn FnMut(Row<'_>)) {
        let mut found: Vec<(Header, Place)> = Vec::with_capacity(self.rows);
        let newest_first =
            self.main.0.iter().rev().chain(&self.recalled.0).chain(self.probation.0.iter().rev());
        for &number in newest_first {
            let Some(Some(chunk)) = self.chunks.get(number as usize) else { continue };
            let mut at = 0;
            while at < chunk.used {
                let header = Header::read(&chunk.bytes[at..]);
                found.push((header, Place::new(number, at)));
                at += header.row_len();
            }
        }
        found.sort_by_key(|(header, _)| std::cmp::Reverse(header.credit));
        let mut left = most;
        for (header, place) in found {
            let row = self.row(place);
            let (start, middle, end) = header.parts();
            let (key, value) = (&row[start..middle], &row[middle..end]);
            let tag = tag_of(RowKey::new(header.keyspace, key, hash(key)).hash);
            // Others were there twice, or are gone.
            if self.find_by(tag, |found| found == place).is_some() {
                if header.row_len() > left {
                    return;
                }
                left -= header.row_len();
                visit(Row { keyspace: header.keyspace, at: header.at, credit: header.credit, key, value });
            }
        }
    }

    pub(super) fn flushed(&mut self, key: RowKey<'_>, at: Seqno, value: &[u8]) {
        if self.bytes() + ROOM <= self.limit || self.find(key).is_some() {
            self.insert(key, at, value);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(MOST_BYTES);
        while self.bytes() > self.limit && self.evict() {}
        if self.rows == 0 {
            (self.slots, self.ghosts) = (Vec::new(), Vec::new());
        }
        let enough = FEWEST_SLOTS.max(self.rows * 5 / 4);
        if self.slots.len() > 2 * enough {
            self.resize(enough);
        }
        self.spare = None;
    }

    pub(super) fn add_stats(&self, sum: &mut RowStats) {
        sum.bytes += self.bytes();
        sum.rows += self.rows;
        sum.hits += self.hits;
    }

    fn bytes(&self) -> usize {
        (self.chunks.len() - self.vacant.len()) * CHUNK + self.slots.len() * SLOT_BYTES
    }

    fn row_mut(&mut self, place: Place) -> &mut [u8] {
        match self.chunks.get_mut(place.chunk()) {
            Some(Some(chunk)) => &mut chunk.bytes[place.offset()..chunk.used],
            _ => &mut [],
        }
    }

    fn row(&self, place: Place) -> &[u8] {
        match self.chunks.get(place.chunk()) {
            Some(Some(chunk)) => &chunk.bytes[place.offset()..chunk.used],
            _ => &[],
        }
    }

    fn find(&self, key: RowKey<'_>) -> Option<usize> {
        let tag = tag_of(key.hash);
        self.find_by(tag, |place| {
            let row = self.row(place);
            let header = Header::read(row);
            let (start, end, _) = header.parts();
            header.keyspace == key.keyspace && row[start..end] == *key.key
        })
    }

    fn find_by(&self, tag: u32, is_it: impl Fn(Place) -> bool) -> Option<usize> {
        let slots = self.slots.len();
        if slots == 0 {
            return None;
        }
        let mut at = home(tag, slots);
        loop {
            let slot = self.slots[at];
            if slot.place == VACANT {
                return None;
            }
            if slot.tag == tag && is_it(Place(slot.place)) {
                return Some(at);
            }
            at = self.after(at);
        }
    }

    /// Vacates a slot, and moves those behind it that would not be found any more.
    fn forget(&mut self, slot: usize) {
        let slots = self.slots.len();
        // How far `to` lies behind `from`, going round.
        let distance = |from: usize, to: usize| if to >= from { to - from } else { to + slots - from };
        let (mut hole, mut at) = (slot, slot);
        loop {
            at = self.after(at);
            let next = self.slots[at];
            if next.place == VACANT {
                break;
            }
            // Whether the hole lies between its home and where it is.
            if distance(home(next.tag, slots), at) >= distance(hole, at) {
                self.slots[hole] = next;
                hole = at;
            }
        }
        self.slots[hole] = EMPTY;
        self.rows -= 1;
    }

    fn occupy(&mut self, tag: u32, place: Place) {
        let mut at = home(tag, self.slots.len());
        while self.slots[at].place != VACANT {
            at = self.after(at);
        }
        self.slots[at] = Slot { tag, place: place.0 };
    }

    /// The slot after `at`, going round.
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    fn ghost_of(&mut self, tag: u32) -> Option<&mut u16> {
        let at = home(tag, self.ghosts.len());
        self.ghosts.get_mut(at)
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots]);
        self.ghosts = vec![0; slots];
        for slot in old.into_iter().filter(|slot| slot.place != VACANT) {
            self.occupy(slot.tag, Place(slot.place));
        }
    }

    /// A slot for one more row, of which at most seven of eight are in use.
    fn reserve_slot(&mut self) -> bool {
        if (self.rows + 1) * 8 <= self.slots.len() * 7 {
            return true;
        }
        let slots = (self.slots.len() / 4 * 5).max(FEWEST_SLOTS);
        let more = (slots - self.slots.len()) * SLOT_BYTES;
        while self.bytes() + more > self.limit {
            if !self.evict() {
                return false;
            }
            if (self.rows + 1) * 8 <= self.slots.len() * 7 {
                return true;
            }
        }
        self.resize(slots);
        true
    }

    fn queue(&mut self, which: Which) -> &mut Queue {
        match which {
            Which::Probation => &mut self.probation,
            Which::Main => &mut self.main,
            Which::Recalled => &mut self.recalled,
        }
    }

    /// Whether the chunk that is being filled takes `len` bytes more.
    fn fits(&mut self, which: Which, len: usize) -> bool {
        let last = self.queue(which).0.back().copied();
        let chunk = last.and_then(|last| self.chunks[last as usize].as_ref());
        chunk.is_some_and(|chunk| chunk.used + len <= CHUNK)
    }

    fn reserve_room(&mut self, which: Which, len: usize) -> bool {
        while !self.fits(which, len) {
            if self.bytes() + CHUNK > self.limit {
                if !self.evict() {
                    return false;
                }
            } else {
                self.begin_chunk(which);
            }
        }
        true
    }

    fn begin_chunk(&mut self, which: Which) {
        let bytes = self.spare.take().unwrap_or_else(|| vec![0; CHUNK].into());
        let chunk = Some(Chunk { bytes, used: 0 });
        let number = match self.vacant.pop() {
            Some(number) => {
                self.chunks[number as usize] = chunk;
                number
            }
            None => {
                self.chunks.push(chunk);
                (self.chunks.len() - 1) as u32
            }
        };
        self.queue(which).0.push_back(number);
    }

    /// REQUIRES a slot and room.
    fn append(&mut self, which: Which, header: Header, tag: u32, key: &[u8], value: &[u8]) {
        let Some(&number) = self.queue(which).0.back() else { return };
        let Some(chunk) = self.chunks[number as usize].as_mut() else { return };
        let at = chunk.used;
        chunk.used += header.row_len();
        let row = &mut chunk.bytes[at..chunk.used];
        header.write(row);
        let (start, middle, end) = header.parts();
        row[start..middle].copy_from_slice(key);
        row[middle..end].copy_from_slice(value);
        self.rows += 1;
        self.occupy(tag, Place::new(number, at));
    }

    /// Lets the oldest chunk of a queue go; rows that were read are appended to the main queue, for which there is room then. Credits are finite, so repeating this frees memory. False: there is no chunk.
    fn evict(&mut self) -> bool {
        let chunks = self.chunks.len() - self.vacant.len();
        let others = !self.main.0.is_empty() || !self.recalled.0.is_empty();
        let (which, number) = if self.probation.0.len() * PROBATION >= chunks || !others {
            (Which::Probation, self.probation.0.pop_front())
        } else if self.recalled.0.is_empty() {
            (Which::Main, self.main.0.pop_front())
        } else {
            (Which::Recalled, self.recalled.0.pop_back())
        };
        let Some(number) = number else { return false };
        let Some(Chunk { mut bytes, used }) = self.chunks[number as usize].take() else { return true };
        // Those that stay are moved together first.
        let (mut at, mut staying) = (0, 0);
        while at < used {
            let header = Header::read(&bytes[at..]);
            let (place, row) = (Place::new(number, at), at..at + header.row_len());
            at = row.end;
            let (start, end, _) = header.parts();
            let key = &bytes[row.start + start..row.start + end];
            let tag = tag_of(RowKey::new(header.keyspace, key, hash(key)).hash);
            let Some(slot) = self.find_by(tag, |found| found == place) else { continue };
            self.forget(slot);
            if header.credit > 0 {
                let len = row.len();
                bytes.copy_within(row, staying);
                staying += len;
            } else if which == Which::Probation
                && let Some(ghost) = self.ghost_of(tag)
            {
                *ghost = tag as u16;
            }
        }
        self.vacant.push(number);
        self.append_moving(&bytes[..staying]);
        self.spare = Some(bytes);
        true
    }

    /// What was in one chunk fits in the main queue's last and one more.
    fn append_moving(&mut self, mut rows: &[u8]) {
        while !rows.is_empty() {
            let mut header = Header::read(rows);
            let (row, rest) = rows.split_at(header.row_len());
            rows = rest;
            header.credit -= 1;
            if !self.fits(Which::Main, header.row_len()) {
                self.begin_chunk(Which::Main);
            }
            let (start, middle, end) = header.parts();
            let (key, value) = (&row[start..middle], &row[middle..end]);
            let tag = tag_of(RowKey::new(header.keyspace, key, hash(key)).hash);
            self.append(Which::Main, header, tag, key, value);
        }
    }

    /// Asserts `row.found_once`.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut seen = std::collections::HashSet::new();
        let mut rows = 0;
        for slot in self.slots.iter().filter(|slot| slot.place != VACANT) {
            let place = Place(slot.place);
            let number = place.chunk() as u32;
            let queues = [&self.probation, &self.main, &self.recalled];
            assert_eq!(queues.iter().map(|q| q.0.iter().filter(|&&c| c == number).count()).sum::<usize>(), 1);
            let row = self.row(place);
            let header = Header::read(row);
            let (start, end, _) = header.parts();
            let key = &row[start..end];
            assert!(seen.insert((header.keyspace, key.to_vec())));
            let named = RowKey::new(header.keyspace, key, hash(key));
            assert_eq!(self.find(named).map(|at| self.slots[at].place), Some(slot.place));
            rows += 1;
        }
        assert_eq!(rows, self.rows);
        let queued = self.probation.0.len() + self.main.0.len() + self.recalled.0.len();
        assert_eq!(queued, self.chunks.iter().flatten().count());
        assert!(self.bytes() <= self.limit, "{} of {}", self.bytes(), self.limit);
    }
}
