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
    #[inline(always)]
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

/// A share of a page or a segment, in 65536ths.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share(u32);

/// Two keys between which others lie, and how far a key is on the way: by the eight bytes after those that the two share.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    skip: usize,
    low: u64,
    high: u64,
}

impl Spread {
    #[inline]
    pub(crate) fn new(low: &[u8], high: &[u8]) -> Spread {
        let skip = common_prefix(low, high);
        Spread { skip, low: after(low, skip), high: after(high, skip) }
    }

    /// Where `key` is if keys are spread evenly. REQUIRES a key between the two.
    #[inline]
    pub(crate) fn share(&self, key: &[u8]) -> Share {
        let whole = self.high.saturating_sub(self.low);
        // Sixteen bits of the distance are precise enough, and cannot overflow.
        let shift = 48u32.saturating_sub(whole.leading_zeros());
        let way = after(key, self.skip).saturating_sub(self.low) >> shift;
        Share(((way << 16) / (whole >> shift).max(1)).min(1 << 16) as u32)
    }
}

/// The eight bytes after `skip`, as a number.
#[inline]
fn after(key: &[u8], skip: usize) -> u64 {
    head_of(key.get(skip..).unwrap_or_default())
}

impl Share {
    /// So much of `whole`.
    #[inline]
    pub(crate) fn of(self, whole: usize) -> usize {
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
///
/// An entry is written once, in its final form: the page's prefix is taken to be as long as the last page's would have been at best. Should a key not begin with
/// it, it is shortened, which moves the entries; that happens where the keys' first bytes change, once in many pages.
pub(crate) struct PageBuilder {
    page_bytes: usize,
    /// Room for a header, the prefix, the entries.
    page: Vec<u8>,
    /// Where each entry begins.
    offsets: Vec<u16>,
    first: Vec<u8>,
    /// Bytes of the prefix.
    prefix: usize,
    /// What the next page's prefix will be like.
    guess: usize,
}

fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// The two length fields of an entry.
#[inline]
fn put_lengths(out: &mut Vec<u8>, head: usize, value_len: usize) {
    if (head | value_len) < 0x80 {
        out.extend_from_slice(&[head as u8, value_len as u8]);
        return;
    }
    for mut length in [head, value_len] {
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
    }
}

/// Kind, key suffix and value of the entry that `bytes` begin with.
fn parts(bytes: &[u8]) -> Option<(usize, &[u8], &[u8])> {
    let mut rest = bytes;
    let (head, value_len) = (get_varint(&mut rest)? as usize, get_varint(&mut rest)? as usize);
    let (suffix, rest) = rest.split_at_checked(head >> 2)?;
    Some((head & 3, suffix, rest.get(..value_len)?))
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
            page: Vec::with_capacity(page_bytes),
            offsets: Vec::with_capacity(page_bytes / 32),
            first: Vec::new(),
            prefix: 0,
            guess: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    pub(crate) fn first_key(&self) -> &[u8] {
        &self.first
    }

    /// The last entry's key replaces what is in `out`. REQUIRES an entry.
    pub(crate) fn last_key_into(&self, out: &mut Vec<u8>) {
        out.clear();
        if let Some((_, suffix, _)) = self.last() {
            out.extend_from_slice(&self.first[..self.prefix]);
            out.extend_from_slice(suffix);
        }
    }

    /// Takes the entry, or answers false when the page has no room for it (an empty page takes any).
    #[inline]
    pub(crate) fn push(&mut self, message: MessageRef<'_>) -> bool {
        let key = message.key;
        if self.offsets.is_empty() {
            self.first.clear();
            self.first.extend_from_slice(key);
            self.prefix = self.guess.min(key.len()).min(self.page_bytes / 2);
            self.page.clear();
            self.page.extend_from_slice(&[0; HEADER]);
            self.page.extend_from_slice(&key[..self.prefix]);
        } else if !key.starts_with(&self.first[..self.prefix])
            && !self.shorten(common_prefix(&self.first, key))
        {
            return false;
        }
        let (suffix, value) = (&key[self.prefix..], message.value);
        let head = suffix.len() << 2 | message.kind as usize;
        let size = varint_len(head) + varint_len(value.len()) + suffix.len() + value.len();
        let count = self.offsets.len() + 1;
        if count > 1 && self.page.len() + size + 2 * count > self.page_bytes {
            return false;
        }
        // Of several entries all fit in a page of at most 64 KiB; a single one begins after the header in the end.
        self.offsets.push(self.page.len() as u16);
        put_lengths(&mut self.page, head, value.len());
        self.page.extend_from_slice(suffix);
        self.page.extend_from_slice(value);
        true
    }

    /// Makes the prefix `to` bytes long, if the entries then fit.
    #[cold]
    fn shorten(&mut self, to: usize) -> bool {
        let count = self.offsets.len();
        // Each suffix gets longer by so much, and its length field by a byte at most.
        let more = count * (self.prefix - to + 1);
        if count > 1 && self.page.len() + more + 2 * count > self.page_bytes {
            return false;
        }
        let old = std::mem::take(&mut self.page);
        self.page.reserve(self.page_bytes.max(old.len() + more));
        self.page.extend_from_slice(&old[..HEADER + to]);
        let missing = &self.first[to..self.prefix];
        for offset in &mut self.offsets {
            let Some((kind, suffix, value)) = parts(&old[usize::from(*offset)..]) else {
                // It was laid out by this builder.
                panic!("page: an entry at {offset} does not decode");
            };
            *offset = self.page.len() as u16;
            put_lengths(&mut self.page, (missing.len() + suffix.len()) << 2 | kind, value.len());
            self.page.extend_from_slice(missing);
            self.page.extend_from_slice(suffix);
            self.page.extend_from_slice(value);
        }
        self.prefix = to;
        true
    }

    /// Ends the page: the length that [`PageBuilder::finish`] lays out, which is the page size, or more for one large entry.
    pub(crate) fn page_len(&mut self) -> usize {
        if self.offsets.len() == 1 && self.prefix > 0 {
            // So that its offset fits however long the key is.
            self.shorten(0);
        }
        (self.page.len() + 2 * self.offsets.len()).next_multiple_of(4096).max(self.page_bytes)
    }

    /// Lays the page out in `out` ([`PageBuilder::page_len`] bytes) and empties the builder. The checksum is left to the pager.
    pub(crate) fn finish(&mut self, out: &mut [u8]) {
        let end = self.page.len();
        let slots = out.len() - 2 * self.offsets.len();
        self.page[4] = TYPE_DATA;
        self.page[6..8].copy_from_slice(&(self.offsets.len() as u16).to_le_bytes());
        self.page[8..10].copy_from_slice(&(self.prefix as u16).to_le_bytes());
        self.page[12..16].copy_from_slice(&(end as u32).to_le_bytes());
        out[..end].copy_from_slice(&self.page);
        out[end..slots].fill(0);
        for (slot, offset) in out[slots..].chunks_exact_mut(2).zip(&self.offsets) {
            slot.copy_from_slice(&offset.to_le_bytes());
        }
        if self.offsets.len() > 1
            && let Some((_, suffix, _)) = self.last()
        {
            // Keys ascend, so what the first and the last one share all do.
            self.guess = self.prefix + common_prefix(&self.first[self.prefix..], suffix);
        }
        self.offsets.clear();
    }

    fn last(&self) -> Option<(usize, &[u8], &[u8])> {
        parts(&self.page[usize::from(*self.offsets.last()?)..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(entries: &[(Kind, &[u8], &[u8])]) -> Vec<u8> {
        build_after(&mut PageBuilder::new(4096), entries)
    }

    fn build_after(builder: &mut PageBuilder, entries: &[(Kind, &[u8], &[u8])]) -> Vec<u8> {
        for &(kind, key, value) in entries {
            assert!(builder.push(MessageRef { kind, key, value }));
        }
        let mut out = vec![0xee; builder.page_len()];
        builder.finish(&mut out);
        out
    }

    fn entries_of(page: &[u8]) -> Vec<(Kind, Vec<u8>, Vec<u8>)> {
        let page = PageRef::new(page).unwrap();
        let mut key = Vec::new();
        let entry = |i| page.key_into(i, &mut key).map(|e| (e.kind, key.clone(), e.value.to_vec())).unwrap();
        (0..page.count()).map(entry).collect()
    }

    #[test]
    fn a_prefix_that_was_guessed_too_long_is_shortened_and_no_entry_changes() {
        let long = [7; 200];
        for (last, prefix) in [(&b"user/x"[..], &b"user/"[..]), (b"usf", b"us"), (b"v", b"")] {
            let mut builder = PageBuilder::new(4096);
            build_after(&mut builder, &[(Kind::Put, b"user/1", b"1"), (Kind::Put, b"user/2", b"2")]);
            let entries = [
                (Kind::Put, &b"user/3"[..], &long[..]),
                (Kind::Delete, b"user/4", b""),
                (Kind::Put, last, b"z"),
            ];
            let page = build_after(&mut builder, &entries);
            assert_eq!(PageRef::new(&page).unwrap().prefix(), prefix);
            assert_eq!(
                entries_of(&page),
                entries.map(|(kind, key, value)| (kind, key.to_vec(), value.to_vec()))
            );
        }
    }

    #[test]
    fn a_key_for_which_a_full_page_would_need_a_shorter_prefix_begins_the_next_page() {
        let mut builder = PageBuilder::new(4096);
        let key = |i: u32| format!("a long beginning that all of them have {i:04}").into_bytes();
        build_after(&mut builder, &[(Kind::Put, &key(0), b""), (Kind::Put, &key(1), b"")]);
        let mut count = 2;
        while builder.push(MessageRef { kind: Kind::Put, key: &key(count), value: b"v" }) {
            count += 1;
        }
        // It would fit alone, but not what the others then get longer by.
        let mut page = vec![0; builder.page_len()];
        assert_eq!(page.len(), 4096);
        builder.finish(&mut page);
        let entries = entries_of(&page);
        assert_eq!(entries.len(), count as usize - 2);
        for i in 2..count - 10 {
            assert!(builder.push(MessageRef { kind: Kind::Put, key: &key(i), value: b"v" }));
        }
        assert!(!builder.push(MessageRef { kind: Kind::Put, key: b"b", value: b"" }));
        assert!(builder.push(MessageRef { kind: Kind::Put, key: &key(count), value: b"" }));
    }

    #[test]
    fn a_page_answers_searches_for_keys_inside_between_and_outside_its_prefix() {
        let entries = [
            (Kind::Put, &b"usr/a"[..], &b"1"[..]),
            (Kind::Delete, b"usr/b", b""),
            (Kind::Merge, b"usr/bb", b"\x01\x01x"),
        ];
        let mut builder = PageBuilder::new(4096);
        build_after(&mut builder, &entries);
        let page = build_after(&mut builder, &entries);
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
        let share = |low: &[u8], key: &[u8], high: &[u8]| Spread::new(low, high).share(key).of(100);
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
