//! Sets of keys as sorted, disjoint half-open spans: what range deletes cover.
//!
//! Invariant `spans.sorted`: every span has start < end, and ends before the next one starts (touching spans are one).
//! A plain value without locks; used by memtables, runs and scans.
//!
//! Encoding: `count varint`, then per span `start_len varint | end_len varint | start | end`.

use bytes::Bytes;

use crate::message::{get_varint, put_varint};

/// A sorted set of disjoint spans `[start, end)`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Spans {
    spans: Vec<(Bytes, Bytes)>,
}

/// Least bytes that a span takes encoded: two lengths, and an end that is not empty.
const MIN_ENCODED: usize = 3;

impl Spans {
    /// Adds `[start, end)`; nothing if that is empty.
    pub(crate) fn insert(&mut self, start: &[u8], end: &[u8]) {
        if start >= end {
            return;
        }
        let from = self.spans.partition_point(|(_, e)| e.as_ref() < start);
        let to = from + self.spans[from..].partition_point(|(s, _)| s.as_ref() <= end);
        let joined = &self.spans[from..to];
        let start = match joined.first() {
            Some((s, _)) if s.as_ref() <= start => s.clone(),
            _ => Bytes::copy_from_slice(start),
        };
        let end = match joined.last() {
            Some((_, e)) if e.as_ref() >= end => e.clone(),
            _ => Bytes::copy_from_slice(end),
        };
        self.spans.splice(from..to, [(start, end)]);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Number of spans.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.span_at_or_after(key).is_some_and(|(start, _)| start <= key)
    }

    /// Whether every key of `[lo, hi)` is in the set; `None` is no bound, so never. REQUIRES lo < hi.
    pub(crate) fn covers(&self, lo: &[u8], hi: Option<&[u8]>) -> bool {
        let Some(hi) = hi else { return false };
        self.span_at_or_after(lo).is_some_and(|(start, end)| start <= lo && hi <= end)
    }

    /// The part of the set in `[lo, hi)`; `None` is no bound.
    pub(crate) fn clip(&self, lo: &[u8], hi: Option<&[u8]>) -> Spans {
        let from = self.spans.partition_point(|(_, e)| e.as_ref() <= lo);
        let to = hi.map_or(self.spans.len(), |hi| self.spans.partition_point(|(s, _)| s.as_ref() < hi));
        let mut spans = self.spans.get(from..to).unwrap_or_default().to_vec();
        if let Some((start, _)) = spans.first_mut()
            && start.as_ref() < lo
        {
            *start = Bytes::copy_from_slice(lo);
        }
        if let (Some((_, end)), Some(hi)) = (spans.last_mut(), hi)
            && end.as_ref() > hi
        {
            *end = Bytes::copy_from_slice(hi);
        }
        // An inverted range can leave one inverted span.
        spans.retain(|(start, end)| start < end);
        Spans { spans }
    }

    /// Adds the keys of `other`.
    pub(crate) fn union(&mut self, other: &Spans) {
        if other.spans.len() <= 1 {
            other.iter().for_each(|(start, end)| self.insert(start, end));
            return;
        }
        let ours = std::mem::take(&mut self.spans);
        self.spans.reserve(ours.len() + other.spans.len());
        let (mut ours, mut theirs) = (ours.into_iter().peekable(), other.spans.iter().peekable());
        loop {
            let next = match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) if a.0 <= b.0 => ours.next(),
                (Some(_), None) => ours.next(),
                _ => theirs.next().cloned(),
            };
            let Some((start, end)) = next else { return };
            match self.spans.last_mut() {
                Some(last) if start <= last.1 => last.1 = end.max(std::mem::take(&mut last.1)),
                _ => self.spans.push((start, end)),
            }
        }
    }

    /// The spans in ascending order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        self.spans.iter().map(|(start, end)| (start.as_ref(), end.as_ref()))
    }

    /// The first span that has a key at or after `key`: the one with `key` in it, else the next.
    pub(crate) fn span_at_or_after(&self, key: &[u8]) -> Option<(&[u8], &[u8])> {
        let at = self.spans.partition_point(|(_, end)| end.as_ref() <= key);
        self.spans.get(at).map(|(start, end)| (start.as_ref(), end.as_ref()))
    }

    /// The last span without a key at or after `key`.
    pub(crate) fn span_before(&self, key: &[u8]) -> Option<(&[u8], &[u8])> {
        let at = self.spans.partition_point(|(_, end)| end.as_ref() <= key).checked_sub(1)?;
        self.spans.get(at).map(|(start, end)| (start.as_ref(), end.as_ref()))
    }

    /// Memory in use without the keys, which clones and unions share.
    pub(crate) fn shallow_bytes(&self) -> usize {
        self.spans.capacity() * size_of::<(Bytes, Bytes)>()
    }

    /// Appends the encoding.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.spans.len() as u64);
        for (start, end) in &self.spans {
            put_varint(out, start.len() as u64);
            put_varint(out, end.len() as u64);
            out.extend_from_slice(start);
            out.extend_from_slice(end);
        }
    }

    /// Reads an encoding that takes up all of `bytes`; `None` if it is malformed or breaks `spans.sorted`.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Spans> {
        let count = usize::try_from(get_varint(&mut bytes)?).ok()?;
        if count > bytes.len() / MIN_ENCODED {
            return None;
        }
        let mut spans: Vec<(Bytes, Bytes)> = Vec::with_capacity(count);
        for _ in 0..count {
            let start_len = usize::try_from(get_varint(&mut bytes)?).ok()?;
            let end_len = usize::try_from(get_varint(&mut bytes)?).ok()?;
            let (start, rest) = bytes.split_at_checked(start_len)?;
            let (end, rest) = rest.split_at_checked(end_len)?;
            bytes = rest;
            if start >= end || spans.last().is_some_and(|(_, last)| last.as_ref() >= start) {
                return None;
            }
            spans.push((Bytes::copy_from_slice(start), Bytes::copy_from_slice(end)));
        }
        bytes.is_empty().then_some(Spans { spans })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set over the keys [0]..=[31] and their like with 0xff appended, so that bounds fall between keys too.
    struct Model(Spans, [bool; 64]);

    fn key(i: usize) -> Vec<u8> {
        let mut key = vec![i as u8 / 2];
        if i % 2 == 1 {
            key.push(0xff);
        }
        key
    }

    impl Model {
        fn random(next: &mut impl FnMut() -> usize, count: usize) -> Model {
            let mut model = Model(Spans::default(), [false; 64]);
            for _ in 0..next() % (count + 1) {
                let (a, b) = (next() % 64, next() % 64);
                let b = if next().is_multiple_of(2) { (a + b % 5).min(63) } else { b };
                model.0.insert(&key(a), &key(b));
                (a..b).for_each(|i| model.1[i] = true);
            }
            model
        }

        fn check(&self) {
            for i in 0..64 {
                assert_eq!(self.0.contains(&key(i)), self.1[i], "key {i}");
                let after = (i..64).find(|j| self.1[*j]);
                assert_eq!(
                    self.0.span_at_or_after(&key(i)).map(|s| s.0.max(&key(i)).to_vec()),
                    after.map(key)
                );
                for j in i + 1..64 {
                    let all = self.1[i..j].iter().all(|b| *b);
                    assert_eq!(self.0.covers(&key(i), Some(&key(j))), all, "{i}..{j}");
                }
                assert!(!self.0.covers(&key(i), None));
            }
            let flips = self.1.windows(2).filter(|w| w[0] != w[1]).count() + usize::from(self.1[0]);
            assert_eq!(self.0.len(), flips / 2, "coalesced");
            let mut out = Vec::new();
            self.0.encode(&mut out);
            assert_eq!(Spans::decode(&out).as_ref(), Some(&self.0));
            assert!((0..out.len()).all(|cut| Spans::decode(&out[..cut]).is_none()));
            out.push(0);
            assert_eq!(Spans::decode(&out), None);
        }
    }

    #[test]
    fn spans_are_the_set_of_keys_that_was_inserted() {
        for seed in 1..400u64 {
            println!("seed {seed}");
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 20) as usize
            };
            let (mut a, b) = (Model::random(&mut next, 12), Model::random(&mut next, 8));
            a.check();
            let (lo, hi) = (next() % 64, next() % 64);
            let clipped = a.0.clip(&key(lo), (seed % 5 > 0).then(|| key(hi)).as_deref());
            let hi = if seed % 5 > 0 { hi } else { 64 };
            Model(clipped, std::array::from_fn(|i| a.1[i] && i >= lo && i < hi)).check();
            a.0.union(&b.0);
            Model(a.0, std::array::from_fn(|i| a.1[i] || b.1[i])).check();
        }
    }

    #[test]
    fn malformed_encodings_are_refused() {
        let encoded = |spans: &[(&[u8], &[u8])]| {
            let mut out = vec![spans.len() as u8];
            for (s, e) in spans {
                out.extend([s.len() as u8, e.len() as u8]);
                out.extend_from_slice(s);
                out.extend_from_slice(e);
            }
            out
        };
        assert!(Spans::decode(&encoded(&[(b"", b"a"), (b"b", b"c")])).is_some());
        assert_eq!(Spans::decode(&encoded(&[(b"b", b"b")])), None, "empty span");
        assert_eq!(Spans::decode(&encoded(&[(b"c", b"b")])), None, "inverted span");
        assert_eq!(Spans::decode(&encoded(&[(b"a", b"b"), (b"b", b"c")])), None, "touching spans");
        assert_eq!(Spans::decode(&encoded(&[(b"c", b"d"), (b"a", b"b")])), None, "descending spans");
        assert_eq!(Spans::decode(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 1, 1]), None, "count beyond the bytes");
        assert_eq!(Spans::decode(&[1, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1]), None, "length beyond the bytes");
        assert_eq!(Spans::decode(&[]), None);
    }
}
