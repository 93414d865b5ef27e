//! Data pages: the unit of reading, checksum and caching. The same bytes on disk and in memory.
//!
//! ```text
//!  0  u32  checksum (salted with the place; the pager's)
//!  4  u8   page type = 1
//!  5  u8   reserved, zero
//!  6  u16  entries (≥ 1)
//!  8  u16  prefix length: bytes that all keys of the page share
//! 10  u16  reserved, zero
//! 12  u32  end of the last entry
//! 16  …    prefix, then the entries, ascending by key
//!     …    zeros
//! len − 2·entries …  u16 per entry: its offset in the page
//!
//! entry := varint(suffix length << 2 | kind) | varint(value length) | key suffix | value
//! ```
//!
//! A page is a multiple of 4096 bytes. A page longer than 64 KiB holds exactly one entry, so offsets fit in 16 bits. Invariants: `page.keys_ascend`
//! (strictly), `page.kind_is_point` (no RangeDelete in a page: they are the run's spans). Every decode is bounds-checked:
//! a page that lies answers `None`, which callers report as corruption with its place.

use std::cmp::Ordering;

use crate::headed::head_of;
use crate::message::{Kind, MessageRef, get_varint};
use betree_storage::prefetch;

/// Bytes before the prefix.
pub(crate) const HEADER: usize = 16;
/// Page type of data pages.
pub(crate) const TYPE_DATA: u8 = 1;

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?) as usize)
}

/// A borrowed data page.
#[derive(Copy, Clone)]
pub(crate) struct PageRef<'a> {
    bytes: &'a [u8],
    count: usize,
    prefix: &'a [u8],
}

/// An entry whose key is `prefix` + `suffix`.
#[derive(Copy, Clone, Debug)]
pub(crate) struct EntryRef<'a> {
    pub kind: Kind,
    pub suffix: &'a [u8],
    pub value: &'a [u8],
    /// Where the value begins in the page.
    pub value_at: usize,
}

impl<'a> PageRef<'a> {
    /// Checks the header. `None`: not a data page.
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER>()?;
        let reserved_is_zero = header[5] | header[10] | header[11] == 0;
        if header[4] != TYPE_DATA || !reserved_is_zero {
            return None;
        }
        let count = u16_at(bytes, 6)?;
        let prefix = bytes.get(HEADER..HEADER + u16_at(bytes, 8)?)?;
        if count == 0 || bytes.len() < HEADER + prefix.len() + 2 * count {
            return None;
        }
        Some(PageRef { bytes, count, prefix })
    }

    /// A page that [`PageRef::new`] has accepted, with its count and the length of its prefix. Another page gives wrong entries, or none.
    #[inline]
    pub(crate) fn again(bytes: &'a [u8], count: usize, prefix: usize) -> Self {
        PageRef { bytes, count, prefix: bytes.get(HEADER..HEADER + prefix).unwrap_or_default() }
    }

    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The entry at `index`.
    #[inline]
    pub(crate) fn entry(&self, index: usize) -> Option<EntryRef<'a>> {
        if index >= self.count {
            return None;
        }
        let at = u16_at(self.bytes, self.bytes.len() - 2 * (self.count - index))?;
        let mut rest = self.bytes.get(at..)?;
        let (head, vlen) = if let [a, b, ..] = *rest
            && (a | b) < 0x80
        {
            rest = &rest[2..];
            (u64::from(a), u64::from(b))
        } else {
            (get_varint(&mut rest)?, get_varint(&mut rest)?)
        };
        let kind = Kind::from_u8((head & 3) as u8)?;
        let (klen, vlen) = ((head >> 2) as usize, vlen as usize);
        if klen.checked_add(vlen)? > rest.len() || kind == Kind::RangeDelete {
            return None;
        }
        let (suffix, rest) = rest.split_at(klen);
        let value_at = self.bytes.len() - rest.len();
        Some(EntryRef { kind, suffix, value: &rest[..vlen], value_at })
    }

    /// What all keys begin with.
    #[inline]
    pub(crate) fn prefix(&self) -> &'a [u8] {
        self.prefix
    }

    /// Appends the key at `index` to `out` after clearing it.
    pub(crate) fn key_into(&self, index: usize, out: &mut Vec<u8>) -> Option<EntryRef<'a>> {
        let entry = self.entry(index)?;
        out.clear();
        out.extend_from_slice(self.prefix);
        out.extend_from_slice(entry.suffix);
        Some(entry)
    }

    /// `Ok(i)`: the key is entry i; `Err(i)`: i entries are smaller. `None`: the page lies.
    #[inline]
    pub(crate) fn search(&self, key: &[u8]) -> Option<Result<usize, usize>> {
        let shared = self.prefix.len().min(key.len());
        match self.prefix[..shared].cmp(&key[..shared]) {
            Ordering::Less => return Some(Err(self.count)),
            Ordering::Greater => return Some(Err(0)),
            Ordering::Equal if key.len() < self.prefix.len() => return Some(Err(0)),
            Ordering::Equal => {}
        }
        self.search_suffix(&key[self.prefix.len()..], 0, self.count)
    }

    /// As [`PageRef::search`] for a key that is in the page's range and probably near `share` of the way through it.
    #[inline]
    pub(crate) fn search_near(&self, key: &[u8], share: Share) -> Option<Result<usize, usize>> {
        if !key.starts_with(self.prefix) {
            return self.search(key);
        }
        let suffix = &key[self.prefix.len()..];
        let (mut low, mut high) = (0, self.count);
        let mut at = share.of(self.count).min(self.count - 1);
        let mut step = FIRST_STEP;
        // Away from the guess with growing steps, until the key is between two entries.
        while low < high {
            match self.entry(at)?.suffix.cmp(suffix) {
                Ordering::Equal => return Some(Ok(at)),
                Ordering::Less => {
                    low = at + 1;
                    if high < self.count || low + step >= high {
                        break;
                    }
                    at = low + step;
                }
                Ordering::Greater => {
                    high = at;
                    if low > 0 || step + 1 >= high {
                        break;
                    }
                    at = high - 1 - step;
                }
            }
            step *= 2;
        }
        self.search_suffix(suffix, low, high)
    }

    #[inline]
    fn search_suffix(&self, suffix: &[u8], mut low: usize, mut high: usize) -> Option<Result<usize, usize>> {
        while low < high {
            let middle = (low + high) / 2;
            match self.entry(middle)?.suffix.cmp(suffix) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(Ok(middle)),
            }
        }
        Some(Err(low))
    }
}

/// How far [`PageRef::search_near`] looks first on the side where the key is: about how far a guess is wrong when keys are random.
const FIRST_STEP: usize = 2;
/// Bytes on either side of a guess that a search will probably look at.
const NEAR: usize = 320;

/// A share of a page, in 65536ths.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share(u32);

impl Share {
    /// How far `key` is on the way from `low` to `high`, by the eight bytes after those that `low` and `high` share.
    #[inline]
    pub(crate) fn between(low: &[u8], key: &[u8], high: &[u8]) -> Share {
        let skip = common_prefix(low, high);
        let number = |bytes: &[u8]| head_of(bytes.get(skip..).unwrap_or_default());
        let (low, key, high) = (number(low), number(key), number(high));
        // Sixteen bits of the distance are precise enough, and cannot overflow.
        let shift = 48u32.saturating_sub(high.saturating_sub(low).leading_zeros());
        let (way, whole) = (key.saturating_sub(low) >> shift, high.saturating_sub(low) >> shift);
        Share(((way << 16) / whole.max(1)).min(1 << 16) as u32)
    }

    #[inline]
    fn of(self, whole: usize) -> usize {
        ((self.0 as u64 * whole as u64) >> 16) as usize
    }

    /// Asks the processor for what a search for the key in `page` will look at: the header, the offsets, and the entries around the guess.
    #[inline]
    pub(crate) fn prefetch(self, page: &[u8]) {
        let start = page.as_ptr();
        let near = self.of(page.len()).saturating_sub(NEAR);
        prefetch::bytes(start, 1);
        prefetch::bytes(start.wrapping_add(page.len().saturating_sub(128)), 128);
        prefetch::bytes(start.wrapping_add(near), 2 * NEAR);
    }
}

/// Collects entries in key order and lays them out as one page.
pub(crate) struct PageBuilder {
    page_bytes: usize,
    /// Full keys and values back to back.
    bytes: Vec<u8>,
    /// Kind, key length, value length.
    entries: Vec<(Kind, u32, u32)>,
    /// Bytes that all keys share.
    shared: usize,
    /// Upper bound of all entries with full keys, length fields and offsets included.
    total: usize,
    last_start: usize,
}

fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

fn put_varint_at(out: &mut [u8], mut at: usize, mut value: usize) -> usize {
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        at += 1;
        value >>= 7;
    }
    out[at] = value as u8;
    at + 1
}

/// Length of the common prefix.
#[inline]
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let mut words = a.chunks_exact(8).zip(b.chunks_exact(8)).map(|(x, y)| {
        let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        word(x) ^ word(y)
    });
    let (mut equal, mut differ) = (0, 0);
    while differ == 0
        && let Some(difference) = words.next()
    {
        differ = difference;
        equal += 8;
    }
    if differ != 0 {
        return equal - 8 + differ.trailing_zeros() as usize / 8;
    }
    equal + a[equal..].iter().zip(&b[equal..]).take_while(|(x, y)| x == y).count()
}

impl PageBuilder {
    pub(crate) fn new(page_bytes: usize) -> Self {
        PageBuilder {
            page_bytes,
            bytes: Vec::with_capacity(page_bytes * 2),
            entries: Vec::with_capacity(page_bytes / 32),
            shared: 0,
            total: 0,
            last_start: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn first_key(&self) -> &[u8] {
        self.entries.first().map_or(&[], |e| &self.bytes[..e.1 as usize])
    }

    pub(crate) fn last_key(&self) -> &[u8] {
        self.entries.last().map_or(&[], |e| &self.bytes[self.last_start..self.last_start + e.1 as usize])
    }

    /// Takes the entry, or answers false when the page has no room for it (an empty page takes any).
    pub(crate) fn push(&mut self, message: MessageRef<'_>) -> bool {
        let (klen, vlen) = (message.key.len(), message.value.len());
        let size = varint_len(klen << 2) + varint_len(vlen) + klen + vlen + 2;
        let shared = if self.entries.is_empty() {
            klen
        } else {
            common_prefix(&self.first_key()[..self.shared], message.key)
        };
        if !self.entries.is_empty() {
            let count = self.entries.len() + 1;
            if HEADER + self.total + size + shared - count * shared > self.page_bytes {
                return false;
            }
        }
        self.shared = shared;
        self.last_start = self.bytes.len();
        self.bytes.extend_from_slice(message.key);
        self.bytes.extend_from_slice(message.value);
        self.entries.push((message.kind, klen as u32, vlen as u32));
        self.total += size;
        true
    }

    /// Bytes of the page's prefix. A page of one entry has none, so that its offset fits however long the key is.
    fn prefix_len(&self) -> usize {
        if self.entries.len() == 1 { 0 } else { self.shared }
    }

    /// Length of the page that [`PageBuilder::finish`] lays out: the page size, or more for one large entry.
    pub(crate) fn page_len(&self) -> usize {
        let shared = self.prefix_len();
        let used = HEADER + shared + self.total - self.entries.len() * shared;
        used.next_multiple_of(4096).max(self.page_bytes)
    }

    /// Lays the page out in `out` (zeroed here, `page_len` bytes) and empties the builder. The checksum is left to the pager.
    pub(crate) fn finish(&mut self, out: &mut [u8]) {
        let len = out.len();
        let shared = self.prefix_len();
        out[..HEADER].fill(0);
        out[4] = TYPE_DATA;
        out[6..8].copy_from_slice(&(self.entries.len() as u16).to_le_bytes());
        out[8..10].copy_from_slice(&(shared as u16).to_le_bytes());
        let prefix = &self.bytes[..shared];
        out[HEADER..HEADER + shared].copy_from_slice(prefix);
        let mut at = HEADER + shared;
        let mut source = 0;
        let mut slot = len - 2 * self.entries.len();
        let slots = slot;
        for &(kind, klen, vlen) in &self.entries {
            let (klen, vlen) = (klen as usize, vlen as usize);
            out[slot..slot + 2].copy_from_slice(&(at as u16).to_le_bytes());
            slot += 2;
            at = put_varint_at(out, at, ((klen - shared) << 2) | kind as usize);
            at = put_varint_at(out, at, vlen);
            let body = &self.bytes[source + shared..source + klen + vlen];
            out[at..at + body.len()].copy_from_slice(body);
            at += body.len();
            source += klen + vlen;
        }
        out[at..slots].fill(0);
        out[12..16].copy_from_slice(&(at as u32).to_le_bytes());
        self.bytes.clear();
        self.entries.clear();
        self.total = 0;
        self.shared = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(entries: &[(Kind, &[u8], &[u8])]) -> Vec<u8> {
        let mut builder = PageBuilder::new(4096);
        for &(kind, key, value) in entries {
            assert!(builder.push(MessageRef { kind, key, value }));
        }
        let mut out = vec![0xee; builder.page_len()];
        builder.finish(&mut out);
        out
    }

    #[test]
    fn a_page_answers_searches_for_keys_inside_between_and_outside_its_prefix() {
        let page = build(&[
            (Kind::Put, b"usr/a", b"1"),
            (Kind::Delete, b"usr/b", b""),
            (Kind::Merge, b"usr/bb", b"\x01\x01x"),
        ]);
        let page = PageRef::new(&page).unwrap();
        assert_eq!(page.prefix, b"usr/");
        assert_eq!(page.search(b"usr/b"), Some(Ok(1)));
        assert_eq!(page.search(b"usr/ab"), Some(Err(1)));
        assert_eq!(page.search(b"usr"), Some(Err(0)));
        assert_eq!(page.search(b"a"), Some(Err(0)));
        assert_eq!(page.search(b"v"), Some(Err(3)));
        assert_eq!(page.entry(2).unwrap().value, b"\x01\x01x");
        assert!(page.entry(3).is_none());
    }

    #[test]
    fn a_guess_that_is_wrong_does_not_change_what_a_search_finds() {
        let keys: Vec<Vec<u8>> = (0..40u8).map(|i| vec![b'k', i * 2 + 1, i % 3]).collect();
        for count in [1, 2, 3, 7, 40] {
            let entries: Vec<_> = keys[..count].iter().map(|k| (Kind::Put, &k[..], &b"v"[..])).collect();
            let bytes = build(&entries);
            let page = PageRef::new(&bytes).unwrap();
            let gaps = (0..=81).flat_map(|b| [vec![b'k', b], vec![b'k', b, 1], vec![b'k', b, 9]]);
            for key in gaps.chain([vec![], vec![b'a'], vec![b'k'], vec![b'z', 1]]) {
                let found = page.search(&key);
                for share in (0..=65_536).step_by(1024) {
                    assert_eq!(page.search_near(&key, Share(share)), found, "{key:?} of {count}");
                }
            }
        }
    }

    #[test]
    fn a_guess_is_near_where_evenly_spread_keys_are() {
        let share = |low: &[u8], key: &[u8], high: &[u8]| Share::between(low, key, high).of(100);
        assert_eq!(share(b"ab\x00", b"ab\x40", b"ab\x80"), 50);
        assert_eq!(share(b"ab\x00", b"ab\x00", b"ab\x80"), 0);
        assert_eq!(share(b"ab\x00", b"ab\x80", b"ab\x80"), 100);
        assert_eq!(share(b"\x00", b"\xff", b"\xff\xff\xff\xff\xff\xff\xff\xff"), 99);
        assert_eq!(share(b"", b"", b""), 0);
        assert_eq!(share(b"b", b"a", b"c"), 0);
        assert_eq!(share(b"b", b"d", b"c"), 100);
        assert_eq!(share(b"counter 1", b"counter 15", b"counter 2"), 20);
    }

    #[test]
    fn a_value_larger_than_a_page_gets_a_page_of_its_own() {
        let value = vec![9; 300_000];
        let page = build(&[(Kind::Put, b"k", &value)]);
        assert_eq!(page.len() % 4096, 0);
        assert_eq!(PageRef::new(&page).unwrap().entry(0).unwrap().value, &value[..]);
    }

    #[test]
    fn a_page_with_any_byte_changed_never_panics() {
        let good =
            build(&[(Kind::Put, b"key1", b"v"), (Kind::Put, b"key2", &[1; 200]), (Kind::Put, b"key3", b"")]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            if let Some(page) = PageRef::new(&bad) {
                let _ = page.search(b"key2");
                (0..page.count()).for_each(|i| {
                    let _ = page.entry(i);
                });
            }
        }
    }
}
