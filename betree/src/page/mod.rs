//! Data pages: the unit of reading, checksum and caching. The same bytes on disk and in memory.
//!
//! ```text
//!  0  u32  checksum (salted with the place; the pager's)
//!  4  u8   page type = 1
//!  5  u8   layout: 0 listed, 1 even
//!  6  u16  entries (≥ 1; even: ≥ 2)
//!  8  u16  prefix length: bytes that all keys of the page share
//! 10  u16  reserved, zero
//! 12  u32  end of the last entry
//! 16  …    prefix, then the entries, ascending by key
//!     …    zeros
//! len − 2·entries …  u16 per entry: its offset in the page (only listed)
//!
//! listed:  entry := lengths | key suffix | value
//! even:    lengths, once, before the first entry, then entry := key suffix | value
//! lengths := varint(suffix length << 2 | kind) | varint(value length)
//! ```
//!
//! An even page has entries of one kind, with keys and values of one length each: four bytes less for each of them, to write, to read and
//! to cache, and nothing to look up for where it begins. A page is a multiple of 4096 bytes. A page longer than 64 KiB holds exactly one entry, so offsets fit in 16 bits.
//! Invariants: `page.keys_ascend` (strictly), `page.kind_is_point` (no RangeDelete in a page: they are the run's spans). Every decode is bounds-checked:
//! a page that lies answers `None`, which callers report as corruption with its place.

mod builder;

use std::cmp::Ordering;

use crate::headed::head_of;
use crate::message::{Kind, get_varint};
use betree_storage::prefetch;

pub(crate) use builder::PageBuilder;

/// Bytes before the prefix.
pub(crate) const HEADER: usize = 16;
/// Page type of data pages.
pub(crate) const TYPE_DATA: u8 = 1;
/// Layout: each entry with its lengths, and an offset for each.
const LISTED: u8 = 0;
/// Layout: the lengths once.
const EVEN: u8 = 1;

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?) as usize)
}

/// Bytes of the offsets of the page with this header.
pub(crate) fn offsets_len(header: &[u8; HEADER]) -> u32 {
    if header[5] == LISTED { 2 * u32::from(u16::from_le_bytes([header[6], header[7]])) } else { 0 }
}

/// A borrowed data page.
#[derive(Copy, Clone)]
pub(crate) struct PageRef<'a> {
    bytes: &'a [u8],
    shape: Shape,
    prefix: &'a [u8],
}

/// What the header of a page says of its entries.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Shape {
    /// How many there are.
    pub count: usize,
    /// Length of the prefix.
    pub prefix: usize,
    even: Option<Even>,
}

/// Where the entries of an even page are.
#[derive(Copy, Clone, Debug)]
struct Even {
    kind: Kind,
    /// Where the first one begins.
    start: u32,
    suffix: u32,
    /// Suffix and value.
    stride: u32,
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
        if header[4] != TYPE_DATA || header[10] | header[11] != 0 {
            return None;
        }
        let count = u16_at(bytes, 6)?;
        let prefix = bytes.get(HEADER..HEADER + u16_at(bytes, 8)?)?;
        let even = match header[5] {
            LISTED if count > 0 && bytes.len() >= HEADER + prefix.len() + 2 * count => None,
            EVEN if count > 1 => Some(Even::of(bytes, HEADER + prefix.len(), count)?),
            _ => return None,
        };
        Some(PageRef { bytes, shape: Shape { count, prefix: prefix.len(), even }, prefix })
    }

    /// A page that [`PageRef::new`] has accepted, with the shape it had then. Another page gives wrong entries, or none.
    #[inline]
    pub(crate) fn again(bytes: &'a [u8], shape: Shape) -> Self {
        PageRef { bytes, shape, prefix: bytes.get(HEADER..HEADER + shape.prefix).unwrap_or_default() }
    }

    #[inline]
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.shape.count
    }

    /// The entry at `index`.
    #[inline(always)]
    pub(crate) fn entry(&self, index: usize) -> Option<EntryRef<'a>> {
        if index >= self.shape.count {
            return None;
        }
        if let Some(even) = self.shape.even {
            let at = even.start as usize + index * even.stride as usize;
            let value_at = at + even.suffix as usize;
            let (suffix, value) =
                (self.bytes.get(at..value_at)?, self.bytes.get(value_at..at + even.stride as usize)?);
            return Some(EntryRef { kind: even.kind, suffix, value, value_at });
        }
        let at = u16_at(self.bytes, self.bytes.len() - 2 * (self.shape.count - index))?;
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
            Ordering::Less => return Some(Err(self.shape.count)),
            Ordering::Greater => return Some(Err(0)),
            Ordering::Equal if key.len() < self.prefix.len() => return Some(Err(0)),
            Ordering::Equal => {}
        }
        self.search_suffix(&key[self.prefix.len()..], 0, self.shape.count)
    }

    /// As [`PageRef::search`] for a key that is in the page's range and probably near `share` of the way through it.
    #[inline]
    pub(crate) fn search_near(&self, key: &[u8], share: Share) -> Option<Result<usize, usize>> {
        if !key.starts_with(self.prefix) {
            return self.search(key);
        }
        let suffix = &key[self.prefix.len()..];
        let count = self.shape.count;
        let (mut low, mut high) = (0, count);
        let mut at = share.of(count).min(count - 1);
        let mut step = FIRST_STEP;
        // Away from the guess with growing steps, until the key is between two entries.
        while low < high {
            match self.entry(at)?.suffix.cmp(suffix) {
                Ordering::Equal => return Some(Ok(at)),
                Ordering::Less => {
                    low = at + 1;
                    if high < count || low + step >= high {
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

impl Even {
    /// Of the page with so many entries whose lengths are at `at`, if they all lie in it.
    #[inline]
    fn of(bytes: &[u8], at: usize, count: usize) -> Option<Even> {
        let mut rest = bytes.get(at..)?;
        let (head, value) = (get_varint(&mut rest)?, get_varint(&mut rest)?);
        let kind = Kind::from_u8((head & 3) as u8).filter(|kind| *kind != Kind::RangeDelete)?;
        let (suffix, value) = (u32::try_from(head >> 2).ok()?, u32::try_from(value).ok()?);
        let stride = suffix.checked_add(value)?;
        let all = (stride as usize).checked_mul(count)?;
        let start = u32::try_from(bytes.len() - rest.len()).ok()?;
        (all <= rest.len()).then_some(Even { kind, start, suffix, stride })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageRef;

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
        while builder.push(MessageRef { kind: Kind::Put, key: &key(count), value: &[7; 9] }) {
            count += 1;
        }
        // It would fit alone, but not what the others then get longer by.
        let mut page = vec![0; builder.page_len()];
        assert_eq!(page.len(), 4096);
        builder.finish(&mut page);
        let entries = entries_of(&page);
        assert_eq!(entries.len(), count as usize - 2);
        for i in 2..count - 10 {
            assert!(builder.push(MessageRef { kind: Kind::Put, key: &key(i), value: &[7; 9] }));
        }
        assert!(!builder.push(MessageRef { kind: Kind::Put, key: b"b", value: b"" }));
        assert!(builder.push(MessageRef { kind: Kind::Put, key: &key(count), value: &[7; 9] }));
    }

    /// Entries of a page's worth and what their lengths are.
    fn keyed(count: u32, value: &[u8]) -> Vec<(Kind, Vec<u8>, Vec<u8>)> {
        (0..count).map(|i| (Kind::Put, format!("user {i:06}").into_bytes(), value.to_vec())).collect()
    }

    fn push_all(builder: &mut PageBuilder, entries: &[(Kind, Vec<u8>, Vec<u8>)]) -> usize {
        let fits = |(kind, key, value): &&(Kind, Vec<u8>, Vec<u8>)| {
            builder.push(MessageRef { kind: *kind, key, value })
        };
        entries.iter().take_while(fits).count()
    }

    fn finished(builder: &mut PageBuilder) -> Vec<u8> {
        let mut out = vec![0xee; builder.page_len()];
        builder.finish(&mut out);
        out
    }

    #[test]
    fn entries_of_one_kind_and_one_length_are_laid_out_without_lengths_and_offsets() {
        for value in [&[7; 100][..], b"", &[1; 300]] {
            let entries = keyed(1000, value);
            let mut builder = PageBuilder::new(4096);
            let taken = push_all(&mut builder, &entries);
            assert_eq!(
                taken,
                (4096 - HEADER - 2 - if value.len() < 128 { 0 } else { 1 }) / (11 + value.len())
            );
            let page = finished(&mut builder);
            assert_eq!((page.len(), page[5]), (4096, EVEN));
            assert_eq!(entries_of(&page), entries[..taken]);
            // The next page has what all keys share only once.
            let more = push_all(&mut builder, &entries[taken..]);
            assert!(more > taken || value.len() > 100, "{more} after {taken}");
            let page = finished(&mut builder);
            assert_eq!(entries_of(&page), entries[taken..taken + more]);
            let page = PageRef::new(&page).unwrap();
            for (i, (_, key, _)) in entries[taken..taken + more].iter().enumerate() {
                assert_eq!(page.search(key), Some(Ok(i)));
                assert_eq!(page.search(&[&key[..], b"x"].concat()), Some(Err(i + 1)));
            }
        }
    }

    #[test]
    fn one_entry_that_differs_makes_a_page_listed_wherever_it_comes() {
        let others = [
            (Kind::Put, &b"user x"[..], &[7; 20][..]),
            (Kind::Put, b"user 000000+", &[7; 20]),
            (Kind::Put, b"user x", &[7; 21]),
            (Kind::Delete, b"user 999999", b""),
            (Kind::Merge, b"user 999999", &[7; 20]),
            (Kind::Put, b"v", &[7; 20]),
        ];
        for (kind, key, value) in others {
            let entries = keyed(1000, &[7; 20]);
            let most = push_all(&mut PageBuilder::new(4096), &entries);
            for before in 1..most {
                let mut builder = PageBuilder::new(4096);
                // So that there is a prefix to begin with.
                push_all(&mut builder, &entries[..2]);
                finished(&mut builder);
                let mut expected = entries[..before].to_vec();
                if key < &expected[before - 1].1[..] {
                    expected.truncate(1);
                }
                push_all(&mut builder, &expected);
                let other = MessageRef { kind, key, value };
                let fits = builder.push(other);
                // Four bytes more for each, and what the prefix is shorter by.
                assert!(fits || before * 36 > 3900, "{key:?} after {before}");
                if fits {
                    expected.push((kind, key.to_vec(), value.to_vec()));
                }
                let page = finished(&mut builder);
                assert_eq!(page[5] == EVEN, !fits && before > 1, "{key:?} after {before}");
                assert_eq!(entries_of(&page), expected, "{key:?} after {before}");
                if !fits {
                    assert!(builder.push(other), "an empty page takes any");
                    assert_eq!(entries_of(&finished(&mut builder)).len(), 1);
                }
            }
        }
    }

    #[test]
    fn an_even_page_with_a_shorter_prefix_stays_even() {
        let mut builder = PageBuilder::new(4096);
        build_after(&mut builder, &[(Kind::Put, b"user/11", b"1"), (Kind::Put, b"user/12", b"2")]);
        let entries = [
            (Kind::Put, &b"user/13"[..], &b"3"[..]),
            (Kind::Put, b"user/20", b"4"),
            (Kind::Put, b"vser/20", b"5"),
        ];
        let page = build_after(&mut builder, &entries);
        assert_eq!(page[5], EVEN);
        assert_eq!(PageRef::new(&page).unwrap().prefix(), b"");
        assert_eq!(entries_of(&page), entries.map(|(kind, key, value)| (kind, key.to_vec(), value.to_vec())));
    }

    #[test]
    fn a_header_that_claims_more_even_entries_than_there_are_is_no_page() {
        let entries = keyed(20, &[7; 100]);
        let mut builder = PageBuilder::new(4096);
        push_all(&mut builder, &entries);
        let good = finished(&mut builder);
        assert!(PageRef::new(&good).is_some());
        let cases: [(usize, &[u8]); 7] = [
            (5, &[2]),
            (6, &[37, 0]),
            (6, &[1, 0]),
            (6, &[0xff, 0xff]),
            (HEADER, &[11 << 2 | 3]),
            (HEADER, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            (HEADER + 1, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ];
        for (at, bytes) in cases {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            assert!(PageRef::new(&bad).is_none(), "{bytes:?} at {at}");
        }
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
