//! The pages of a shard by key: open addressing with linear probing, at most three quarters full.
//!
//! A slot has all that a look-up asks for, key, length and checksum, and all that eviction keeps, in half a cache line: a hit costs one miss of the processor's
//! caches here and one for the page's count of owners. (A map from keys to places in a list of entries cost four.) Removing moves what follows back, so there
//! are no marks of removed slots and a look-up ends at the first vacant one.
//!
//! Invariant: from the slot that a key's hash names up to the one that holds it none is vacant. Holds no lock.

use betree_storage::prefetch;

use super::{Page, PageKind};

/// Names a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) extent: u64,
    pub(crate) block: u32,
}

impl Key {
    /// A well-mixed hash: extent ids and blocks are small consecutive numbers.
    pub(crate) fn hash(self) -> u64 {
        let mut x = self.extent.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ u64::from(self.block).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^= x >> 32;
        x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^ x >> 29
    }
}

/// Where a page waits for its turn to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    Small,
    Main,
}

/// A page, with what look-ups and eviction ask of it.
#[derive(Debug)]
#[repr(align(32))]
pub(super) struct Slot {
    extent: u64,
    page: Page,
    block: u32,
    checksum: u32,
    /// As the page's, which is no longer than its place names.
    len: u32,
    pub(super) kind: PageKind,
    pub(super) queue: Queue,
    pub(super) credit: u8,
}

const _: () = assert!(size_of::<Option<Slot>>() == 32);

impl Slot {
    /// Of a page that enters `queue`.
    pub(super) fn new(key: Key, page: Page, queue: Queue) -> Slot {
        let (checksum, len, kind) = (page.checksum(), page.len() as u32, page.kind());
        Slot { extent: key.extent, page, block: key.block, checksum, len, kind, queue, credit: 0 }
    }

    /// The page, if it is the one.
    #[inline]
    pub(super) fn page(&self, len: u32, checksum: u32) -> Option<&Page> {
        (self.len == len && self.checksum == checksum).then_some(&self.page)
    }

    /// Replaces the page, and hands out the old one.
    pub(super) fn replace(&mut self, page: Page) -> Page {
        (self.checksum, self.len, self.kind) = (page.checksum(), page.len() as u32, page.kind());
        std::mem::replace(&mut self.page, page)
    }

    /// Asks for what is needed to let the page go from memory.
    pub(super) fn prefetch(&self) {
        self.page.prefetch();
    }

    pub(super) fn into_page(self) -> Page {
        self.page
    }

    /// Bytes of the page.
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    fn key(&self) -> Key {
        Key { extent: self.extent, block: self.block }
    }

    fn is_of(&self, key: Key) -> bool {
        self.extent == key.extent && self.block == key.block
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// A power of two of them, or none.
    slots: Vec<Option<Slot>>,
    len: usize,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Places for pages.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Asks for the place that the hash of a key names from memory.
    pub(super) fn prefetch(&self, key: Key) {
        self.slots
            .get(key.hash() as usize & self.slots.len().wrapping_sub(1))
            .inspect(|slot| prefetch::value(*slot));
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Slot> {
        let at = self.place_of(key)?;
        self.slots[at].as_mut()
    }

    /// Adds a slot. REQUIRES that its key is not there.
    pub(super) fn insert(&mut self, slot: Slot) {
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.resize((self.slots.len() * 2).max(8));
        }
        self.put(slot);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Slot> {
        let mut vacant = self.place_of(key)?;
        let removed = self.slots[vacant].take();
        self.len -= 1;
        let mask = self.slots.len() - 1;
        let mut at = vacant;
        loop {
            at = (at + 1) & mask;
            let Some(slot) = &self.slots[at] else { return removed };
            // What lies at or after its home as seen from the vacant slot stays findable only if it moves there.
            let from_home = at.wrapping_sub(slot.key().hash() as usize) & mask;
            if from_home >= at.wrapping_sub(vacant) & mask {
                self.slots[vacant] = self.slots[at].take();
                vacant = at;
            }
        }
    }

    /// Lets go of the memory that more pages needed than there are now.
    pub(super) fn shrink(&mut self) {
        let needed = (self.len * 2).next_power_of_two();
        if needed < self.slots.len() {
            self.resize(needed);
        }
    }

    #[inline]
    fn place_of(&self, key: Key) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = key.hash() as usize & mask;
        loop {
            match &self.slots[at] {
                Some(slot) if slot.is_of(key) => return Some(at),
                Some(_) => at = (at + 1) & mask,
                None => return None,
            }
        }
    }

    /// REQUIRES a vacant slot, and that the key is not there.
    fn put(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = slot.key().hash() as usize & mask;
        while self.slots[at].is_some() {
            at = (at + 1) & mask;
        }
        self.slots[at] = Some(slot);
    }

    /// REQUIRES room for more than the pages there are.
    fn resize(&mut self, slots: usize) {
        let mut vacant = Vec::new();
        vacant.resize_with(slots, || None);
        let old = std::mem::replace(&mut self.slots, vacant);
        old.into_iter().flatten().for_each(|slot| self.put(slot));
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        self.slots.iter().flatten().map(Slot::key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Against a set, with as many removals as insertions and few keys, so that clusters form and break up, at the end of the table too.
    #[test]
    fn a_table_holds_what_was_inserted_and_not_removed() {
        let page = Page::copy_of(&[7; 16], PageKind::Data);
        let (mut table, mut set, mut state) = (Table::default(), HashSet::new(), 0x2545_f491_u64);
        println!("seed {state:#x}");
        for step in 0..200_000u64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Few keys for a while, then many.
            let id = state % if step % 20_000 < 10_000 { 12 } else { 300 };
            let key = Key { extent: id / 3, block: (id % 3) as u32 };
            if state >> 40 & 1 == 0 {
                assert_eq!(table.get_mut(key).is_some(), !set.insert(id));
                if table.get_mut(key).is_none() {
                    table.insert(Slot::new(key, page.clone(), Queue::Small));
                }
            } else {
                assert_eq!(table.remove(key).is_some(), set.remove(&id));
            }
            if state >> 50 & 63 == 0 {
                table.shrink();
            }
            assert_eq!(table.len(), set.len());
            if step % 64 == 0 {
                for id in 0..300 {
                    let key = Key { extent: id / 3, block: (id % 3) as u32 };
                    assert_eq!(table.get_mut(key).is_some(), set.contains(&id), "{id} at step {step}");
                }
            }
        }
    }
}
