//! The bytes of a memtable's messages: an append-only arena whose entries never move.
//!
//! Owns the chunks and the large values. [`ArenaWriter`] is the only way to append and there is one per arena, so
//! appends are exclusive by type; any number of threads read through [`Arena`] without a lock.
//!
//! Entry, at a multiple of 8 bytes, little-endian:
//!
//! ```text
//! seqno u64 | stored u32 | klen u16 | kind u8 | large u8 | key | stored bytes | zeros to a multiple of 8
//! ```
//!
//! `large` is 0 (the stored bytes are the value) or 1 (they are the value's number among the large values).
//!
//! Invariants: `arena.published_is_written` (bytes below a chunk's `len` are initialised and never written again),
//! `arena.entry_in_chunk` (no entry crosses a chunk's end). Because reads are checked against the published length, any
//! [`Loc`] is safe to read, also one of another arena: it gives wrong bytes or an assert, never undefined behaviour.
#![allow(
    unsafe_code,
    reason = "readers share chunks with the one writer that appends behind the published length"
)]

use std::ptr;
use std::sync::{Arc, OnceLock};

use betree_storage::Region;
use betree_storage::primitives::atomic::{AtomicUsize, Ordering};
use betree_storage::primitives::point;
use bytes::Bytes;

use super::large::LargeValues;
use super::pool::ArenaPool;
use crate::message::{Kind, MessageRef};
use crate::types::{MAX_KEY_LEN, Seqno};
use betree_storage::prefetch;

/// Values of this many bytes or more are kept outside the arena, so that readers share instead of copying them.
pub(super) const LARGE: usize = 16 * 1024;

const HEADER: usize = 16;

/// Bytes of an entry worth asking for ahead: header, key and a small value.
const PREFETCH: usize = 192;

const UNIT_SHIFT: u32 = 3;
const MIN_FIRST_SHIFT: u32 = 18;
const MAX_FIRST_SHIFT: u32 = 24;

/// Bytes that a [`Loc`] can address.
const ADDRESSABLE_SHIFT: u32 = 32 + UNIT_SHIFT;
const CHUNKS: usize = (ADDRESSABLE_SHIFT - MIN_FIRST_SHIFT + 1) as usize;

const _: () = assert!(HEADER + MAX_KEY_LEN + LARGE + 8 <= 1 << MIN_FIRST_SHIFT);
const _: () = assert!(MAX_KEY_LEN <= u16::MAX as usize);

/// Where an entry is, in units of 8 bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Loc(u32);

/// A stored message.
#[derive(Copy, Clone, Debug)]
pub(super) struct Entry<'a> {
    pub seqno: Seqno,
    pub kind: Kind,
    pub key: &'a [u8],
    stored: &'a [u8],
    large: Option<&'a Bytes>,
}

impl<'a> Entry<'a> {
    pub(super) fn value(&self) -> &'a [u8] {
        self.large.map_or(self.stored, |value| value)
    }

    /// The value to hand out: a share of a large one, a copy of a small one, so that it never pins the arena.
    pub(super) fn value_bytes(&self) -> Bytes {
        self.large.map_or_else(|| Bytes::copy_from_slice(self.stored), Bytes::clone)
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes_in_chunk() + self.large.map_or(0, Bytes::len)
    }

    fn bytes_in_chunk(&self) -> usize {
        (HEADER + self.key.len() + self.stored.len()).next_multiple_of(1 << UNIT_SHIFT)
    }

    pub(super) fn message(&self) -> MessageRef<'a> {
        MessageRef { kind: self.kind, key: self.key, value: self.value() }
    }
}

/// A piece of an arena. Its memory may have been another arena's before.
///
/// Bytes below `len` are only read, bytes from `len` on are only touched by the one ArenaWriter (`&mut self` in push), and `len` moves with
/// release/acquire after the bytes are written.
pub(super) struct Chunk {
    bytes: Region,
    len: AtomicUsize,
}

impl Chunk {
    pub(super) fn new(size: usize) -> Chunk {
        Chunk { bytes: Region::new(size), len: AtomicUsize::new(0) }
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The same memory with nothing published.
    pub(super) fn emptied(self) -> Chunk {
        Chunk { bytes: self.bytes, len: AtomicUsize::new(0) }
    }

    /// The published bytes from `start` on.
    #[inline]
    fn published(&self, start: usize) -> &[u8] {
        let len = self.len.load(Ordering::Acquire);
        assert!(start <= len, "arena.published_is_written: read at {start} of {len}");
        let from = self.bytes.as_mut_ptr();
        // SAFETY: start..len lies in the allocation and is initialised and frozen (arena.published_is_written, acquired
        // with `len`), so a shared slice of it may live as long as the chunk.
        unsafe { std::slice::from_raw_parts(from.add(start), len - start) }
    }
}

/// The readers' side.
pub(super) struct Arena {
    /// Chunk 0 has `1 << first_shift` bytes, chunk k+1 as many as chunks 0..=k together.
    chunks: [OnceLock<Chunk>; CHUNKS],
    first_shift: u32,
    large: LargeValues,
    pool: Arc<ArenaPool>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        for chunk in self.chunks.iter_mut().filter_map(OnceLock::take) {
            self.pool.put(chunk);
        }
    }
}

/// The writer's side.
pub(super) struct ArenaWriter {
    arena: Arc<Arena>,
    chunk: usize,
    /// Bytes used in the chunk; equals its published length.
    used: usize,
    total: usize,
}

impl Arena {
    /// An arena for a memtable of the pool's size, and its only writer.
    pub(super) fn new(pool: Arc<ArenaPool>) -> (Arc<Arena>, ArenaWriter) {
        let first_shift = (pool.memtable_bytes() / 16).max(1).ilog2().clamp(MIN_FIRST_SHIFT, MAX_FIRST_SHIFT);
        let chunks = std::array::from_fn(|_| OnceLock::new());
        let arena = Arc::new(Arena { chunks, first_shift, large: LargeValues::default(), pool });
        (arena.clone(), ArenaWriter { arena, chunk: 0, used: 0, total: 0 })
    }

    fn chunk_size(&self, chunk: usize) -> usize {
        1 << (self.first_shift as usize + chunk.saturating_sub(1))
    }

    /// Offset of the chunk's first byte in the address space of [`Loc`]s.
    fn chunk_start(&self, chunk: usize) -> u64 {
        if chunk == 0 { 0 } else { 1 << (self.first_shift as usize + chunk - 1) }
    }

    #[inline]
    fn locate(&self, loc: Loc) -> (usize, usize) {
        let offset = u64::from(loc.0) << UNIT_SHIFT;
        match (offset >> self.first_shift).checked_ilog2() {
            None => (0, offset as usize),
            Some(k) => (k as usize + 1, (offset - (1 << (self.first_shift + k))) as usize),
        }
    }

    #[inline]
    fn bytes_at(&self, loc: Loc) -> &[u8] {
        let (chunk, start) = self.locate(loc);
        self.chunks[chunk].get().map_or(&[], |chunk| chunk.published(start))
    }

    /// The entry at `loc`. REQUIRES `loc` from this arena's writer.
    #[inline]
    pub(super) fn entry(&self, loc: Loc) -> Entry<'_> {
        let Some(entry) = self.parse(self.bytes_at(loc)) else {
            // A place that names no entry is a bug of the caller, not bad input.
            panic!("arena: no entry at {loc:?}");
        };
        entry
    }

    #[inline]
    fn parse<'a>(&'a self, bytes: &'a [u8]) -> Option<Entry<'a>> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let seqno = Seqno(u64::from_le_bytes(*header.first_chunk()?));
        let stored_len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let klen = usize::from(u16::from_le_bytes([header[12], header[13]]));
        let kind = Kind::from_u8(header[14])?;
        let (key, rest) = rest.split_at_checked(klen)?;
        let stored = rest.get(..stored_len)?;
        let large = match header[15] {
            0 => None,
            _ => Some(self.large.get(u32::from_le_bytes(stored.try_into().ok()?))?),
        };
        Some(Entry { seqno, kind, key, stored, large })
    }

    #[inline]
    pub(super) fn key(&self, loc: Loc) -> &[u8] {
        self.entry(loc).key
    }

    /// The published bytes from `loc` to the end of its chunk.
    #[cfg(all(test, feature = "shuttle"))]
    pub(super) fn published(&self, loc: Loc) -> &[u8] {
        self.bytes_at(loc)
    }

    /// The first entry in `bytes` and how many of them it takes.
    #[cfg(all(test, feature = "shuttle"))]
    pub(super) fn first_of<'a>(&'a self, bytes: &'a [u8]) -> Option<(Entry<'a>, usize)> {
        let entry = self.parse(bytes)?;
        Some((entry, entry.bytes_in_chunk()))
    }

    /// Asks for the entry's first lines ahead of their use.
    #[inline]
    pub(super) fn prefetch(&self, loc: Loc) {
        let (chunk, start) = self.locate(loc);
        if let Some(chunk) = self.chunks[chunk].get() {
            prefetch::bytes(chunk.bytes.as_mut_ptr().wrapping_add(start), PREFETCH);
        }
    }
}

impl ArenaWriter {
    /// Appends a message. REQUIRES limits of key and value checked.
    pub(super) fn push(&mut self, seqno: Seqno, message: MessageRef<'_>) -> Loc {
        if message.value.len() < LARGE {
            return self.append(seqno, message, message.value, 0);
        }
        self.push_large(seqno, message, Bytes::copy_from_slice(message.value))
    }

    /// Appends an entry of another arena; a large value is shared.
    pub(super) fn push_entry(&mut self, entry: &Entry<'_>) -> Loc {
        match entry.large {
            Some(value) => self.push_large(entry.seqno, entry.message(), value.clone()),
            None => self.append(entry.seqno, entry.message(), entry.stored, 0),
        }
    }

    fn push_large(&mut self, seqno: Seqno, message: MessageRef<'_>, value: Bytes) -> Loc {
        self.total += value.len();
        let number = self.arena.large.push(value);
        self.append(seqno, message, &number.to_le_bytes(), 1)
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> usize {
        self.total
    }

    fn append(&mut self, seqno: Seqno, message: MessageRef<'_>, stored: &[u8], large: u8) -> Loc {
        let key = message.key;
        assert!(key.len() <= MAX_KEY_LEN && stored.len() < LARGE, "arena: message over its limit");
        let need = (HEADER + key.len() + stored.len()).next_multiple_of(1 << UNIT_SHIFT);
        if self.used + need > self.arena.chunk_size(self.chunk) {
            self.chunk += 1;
            self.used = 0;
        }
        let offset = self.arena.chunk_start(self.chunk) + self.used as u64;
        assert!(offset >> ADDRESSABLE_SHIFT == 0, "arena: memtable over 32 GiB");
        let size = self.arena.chunk_size(self.chunk);
        let chunk = self.arena.chunks[self.chunk].get_or_init(|| self.arena.pool.take(size));
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&seqno.0.to_le_bytes());
        header[8..12].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        header[12..14].copy_from_slice(&(key.len() as u16).to_le_bytes());
        header[14] = message.kind as u8;
        header[15] = large;
        point();
        // SAFETY: used..used+need lies in the chunk (checked against chunk_size above, the chunk's allocated length) and
        // behind its published length, where only this writer (`&mut self`, one per arena) touches bytes.
        unsafe {
            let to = chunk.bytes.as_mut_ptr().add(self.used);
            // The last unit first: whatever of it the value leaves is the padding.
            to.add(need - 8).cast::<[u8; 8]>().write([0; 8]);
            ptr::copy_nonoverlapping(header.as_ptr(), to, HEADER);
            ptr::copy_nonoverlapping(key.as_ptr(), to.add(HEADER), key.len());
            ptr::copy_nonoverlapping(stored.as_ptr(), to.add(HEADER + key.len()), stored.len());
            prefetch::append(to.wrapping_add(need));
        }
        self.used += need;
        self.total += need;
        chunk.len.store(self.used, Ordering::Release);
        Loc((offset >> UNIT_SHIFT) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back_over_many_chunks() {
        let (arena, mut writer) = Arena::new(Arc::new(ArenaPool::new(0)));
        let mut locs = Vec::new();
        for i in 0..3_000u64 {
            let key = vec![i as u8; (i as usize * 37) % 5_000];
            let value = vec![!i as u8; (i as usize * 101) % (LARGE + 500)];
            let kind = if i % 2 == 0 { Kind::Put } else { Kind::Merge };
            locs.push(writer.push(Seqno(i + 1), MessageRef { kind, key: &key, value: &value }));
        }
        assert!(writer.bytes() > 16 << 20 && writer.chunk > 4);
        for (i, loc) in locs.into_iter().enumerate() {
            let entry = arena.entry(loc);
            assert_eq!(entry.seqno, Seqno(i as u64 + 1));
            assert_eq!(entry.kind, if i % 2 == 0 { Kind::Put } else { Kind::Merge });
            assert_eq!(entry.key, vec![i as u8; (i * 37) % 5_000]);
            assert_eq!(entry.value(), vec![!i as u8; (i * 101) % (LARGE + 500)]);
            assert_eq!(entry.value_bytes(), entry.value());
        }
    }

    #[test]
    fn a_large_value_is_shared_and_a_small_one_copied() {
        let (arena, mut writer) = Arena::new(Arc::new(ArenaPool::new(1 << 20)));
        let big = vec![1; LARGE];
        let loc = writer.push(Seqno(1), MessageRef { kind: Kind::Put, key: b"k", value: &big });
        assert_eq!(arena.entry(loc).value_bytes().as_ptr(), arena.entry(loc).value().as_ptr());
        let loc = writer.push(Seqno(2), MessageRef { kind: Kind::Put, key: b"k", value: &big[1..] });
        assert_ne!(arena.entry(loc).value_bytes().as_ptr(), arena.entry(loc).value().as_ptr());
    }

    #[test]
    fn memory_of_an_arena_that_is_gone_is_used_again_and_shows_nothing_of_it() {
        let pool = Arc::new(ArenaPool::new(1 << 20));
        let (arena, mut writer) = Arena::new(pool.clone());
        let loc = writer.push(Seqno(1), MessageRef { kind: Kind::Put, key: b"old", value: &[7; 1000] });
        let before = arena.entry(loc).key.as_ptr();
        drop((arena, writer));
        let (arena, mut writer) = Arena::new(pool);
        let loc = writer.push(Seqno(2), MessageRef { kind: Kind::Delete, key: b"new", value: b"" });
        assert_eq!(arena.entry(loc).key.as_ptr(), before);
        assert_eq!((arena.entry(loc).key, arena.entry(loc).value()), (&b"new"[..], &b""[..]));
        assert!(arena.bytes_at(loc).len() < 1000, "what was there before is not published");
    }

    #[test]
    #[should_panic(expected = "arena")]
    fn a_place_that_was_never_written_is_an_assert() {
        let (arena, mut writer) = Arena::new(Arc::new(ArenaPool::new(1 << 20)));
        writer.push(Seqno(1), MessageRef { kind: Kind::Put, key: b"k", value: b"v" });
        arena.entry(Loc(1_000));
    }
}
