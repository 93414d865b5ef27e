//! A sorted array of places in the arena, searched mostly without touching the arena: what leaves and inner nodes of a
//! memtable's tree are made of.
//!
//! A slot is the 8 bytes of its key that follow the bytes shared by all keys of the array (big-endian, so that integer
//! order is key order) and the place of the entry. Only slots whose 8 bytes tie with the sought key are compared in the
//! arena. Order: key ascending, then Seqno descending (newest first); no two slots are equal.
//!
//! Invariants: `slots.sorted`, `slots.skip_is_shared` (all keys begin with the same `skip` bytes). Callers hold the
//! memtable's lock.

use std::cmp::Ordering;

use super::arena::{Arena, Loc};
use crate::page::common_prefix;
use crate::types::Seqno;

/// Shared bytes kept in the array itself; longer ones are read from the arena.
const INLINE: usize = 24;

/// Shared bytes must grow by this much before the slots are cut anew, which touches every entry.
const WORTH_CUTTING: usize = 4;

pub(super) struct Slots<const N: usize> {
    len: u16,
    skip: u16,
    shared: [u8; INLINE],
    heads: [u64; N],
    locs: [Loc; N],
}

/// The 8 bytes of `key` after `skip`, zeros where it ends.
#[inline]
fn head(key: &[u8], skip: usize) -> u64 {
    let rest = key.get(skip..).unwrap_or_default();
    if let Some(first) = rest.first_chunk() {
        return u64::from_be_bytes(*first);
    }
    let mut padded = [0; 8];
    padded[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(padded)
}

impl<const N: usize> Slots<N> {
    pub(super) fn new() -> Self {
        Slots { len: 0, skip: 0, shared: [0; INLINE], heads: [0; N], locs: [Loc::default(); N] }
    }

    /// Empty, for keys that probably begin with what those of `other` share.
    pub(super) fn like(other: &Self) -> Self {
        let mut new = Self::new();
        if usize::from(other.skip) <= INLINE {
            (new.skip, new.shared) = (other.skip, other.shared);
        }
        new
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == N
    }

    #[inline]
    pub(super) fn locs(&self) -> &[Loc] {
        &self.locs[..self.len()]
    }

    #[inline]
    fn shared<'a>(&'a self, arena: &'a Arena) -> &'a [u8] {
        let skip = usize::from(self.skip);
        if skip <= INLINE { &self.shared[..skip] } else { &arena.key(self.locs[0])[..skip] }
    }

    /// Number of slots before (`key`, `seqno`): those of smaller keys and those of `key` newer than `seqno`.
    #[inline]
    pub(super) fn lower_bound(&self, arena: &Arena, key: &[u8], seqno: Seqno) -> usize {
        let skip = usize::from(self.skip);
        if skip > 0 {
            match key[..skip.min(key.len())].cmp(self.shared(arena)) {
                Ordering::Less => return 0,
                Ordering::Equal => {}
                Ordering::Greater => return self.len(),
            }
        }
        let head = head(key, skip);
        let heads = &self.heads[..self.len()];
        let from = heads.partition_point(|h| *h < head);
        if heads.get(from) != Some(&head) {
            return from;
        }
        let is_before = |loc: &Loc| {
            let entry = arena.entry(*loc);
            match entry.key.cmp(key) {
                Ordering::Less => true,
                Ordering::Equal => entry.seqno > seqno,
                Ordering::Greater => false,
            }
        };
        // Mostly there is one tie; and a newer message of a key with many goes before all of them.
        if !is_before(&self.locs[from]) {
            return from;
        }
        let from = from + 1;
        let ties = heads[from..].partition_point(|h| *h == head);
        from + self.locs[from..from + ties].partition_point(is_before)
    }

    /// The entry of slot `at` if it is one of `key`.
    #[inline]
    pub(super) fn of_key(&self, arena: &Arena, at: usize, key: &[u8]) -> Option<Loc> {
        let loc = *self.locs().get(at)?;
        (self.heads[at] == head(key, usize::from(self.skip)) && arena.key(loc) == key).then_some(loc)
    }

    /// REQUIRES not full, and `at` the lower bound of the entry at `loc`.
    pub(super) fn insert(&mut self, arena: &Arena, at: usize, key: &[u8], loc: Loc) {
        if self.skip > 0 {
            let common = common_prefix(self.shared(arena), key);
            if common < usize::from(self.skip) {
                self.cut(arena, common);
            }
        }
        let len = self.len();
        self.heads.copy_within(at..len, at + 1);
        self.locs.copy_within(at..len, at + 1);
        self.heads[at] = head(key, usize::from(self.skip));
        self.locs[at] = loc;
        self.len += 1;
    }

    /// Where to split: near the middle, between keys that differ early, so that keys with long shared beginnings come
    /// to lie in nodes of their own and are told apart without the arena.
    pub(super) fn split_point(&self) -> usize {
        let middle = self.len() / 2;
        let shared_bytes = |at: usize| (self.heads[at - 1] ^ self.heads[at]).leading_zeros() / 8;
        let mut best = (shared_bytes(middle), middle);
        for off in 1..=self.len() / 8 {
            for at in [middle - off, middle + off] {
                best = if shared_bytes(at) < best.0 { (shared_bytes(at), at) } else { best };
            }
        }
        best.1
    }

    /// Moves the slots from `at` on into `right`. REQUIRES `right` empty.
    pub(super) fn split_into(&mut self, at: usize, right: &mut Self) {
        let moved = at..self.len();
        right.len = moved.len() as u16;
        right.skip = self.skip;
        right.shared = self.shared;
        right.heads[..moved.len()].copy_from_slice(&self.heads[moved.clone()]);
        right.locs[..moved.len()].copy_from_slice(&self.locs[moved]);
        self.len = at as u16;
    }

    /// Drops and answers the last slot.
    pub(super) fn pop(&mut self) -> Option<Loc> {
        self.len = self.len.checked_sub(1)?;
        Some(self.locs[self.len()])
    }

    /// Cuts the slots behind what their keys share by now, where that is worth it. Called after splits.
    pub(super) fn tighten(&mut self, arena: &Arena) {
        if let [first, .., last] = self.locs() {
            let common = common_prefix(arena.key(*first), arena.key(*last));
            if common >= usize::from(self.skip) + WORTH_CUTTING {
                self.cut(arena, common);
            }
        }
    }

    fn cut(&mut self, arena: &Arena, skip: usize) {
        // A key has at most 65,535 bytes, and so has what keys share.
        self.skip = skip as u16;
        if skip <= INLINE && self.len > 0 {
            self.shared[..skip].copy_from_slice(&arena.key(self.locs[0])[..skip]);
        }
        for i in 0..self.len() {
            self.heads[i] = head(arena.key(self.locs[i]), skip);
        }
    }

    /// Asserts the invariants.
    #[cfg(test)]
    pub(super) fn check(&self, arena: &Arena) {
        let skip = usize::from(self.skip);
        for (i, loc) in self.locs().iter().enumerate() {
            let entry = arena.entry(*loc);
            assert_eq!(&entry.key[..skip], self.shared(arena), "slots.skip_is_shared");
            assert_eq!(self.heads[i], head(entry.key, skip), "slots.sorted: head of slot {i}");
            if let Some(next) = self.locs().get(i + 1) {
                let next = arena.entry(*next);
                assert!(
                    (entry.key, next.seqno) < (next.key, entry.seqno),
                    "slots.sorted: slots {i}, {}",
                    i + 1
                );
            }
        }
    }
}
