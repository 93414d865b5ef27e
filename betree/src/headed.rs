//! Keys with their first eight bytes beside them as a number, so that most comparisons follow no pointer.

use std::cmp::Ordering;
use std::ops::Deref;

/// The first eight bytes of a key as a number that orders as the keys do (ties are undecided).
#[inline]
pub(crate) fn head_of(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(head)
        }
    }
}

/// A key with its head. `T` owns the key's bytes, and does not change them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Headed<T> {
    head: u64,
    key: T,
}

impl<T: Deref<Target = [u8]>> Headed<T> {
    pub(crate) fn new(key: T) -> Self {
        Headed { head: head_of(&key), key }
    }

    /// Its head.
    #[inline]
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// How it compares with a key. REQUIRES that `head` is the key's.
    #[inline]
    pub(crate) fn compare(&self, head: u64, key: &[u8]) -> Ordering {
        self.head.cmp(&head).then_with(|| (*self.key).cmp(key))
    }
}

impl<T: Deref<Target = [u8]>> Deref for Headed<T> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.key
    }
}

/// The heads of ascending keys side by side. A search looks at a few lines of these, and at a key only where its head is the one sought; a read that
/// finds nothing in the caches of the processor waits for each.
#[derive(Debug, Clone)]
pub(crate) struct Heads(Box<[u64]>);

impl FromIterator<u64> for Heads {
    fn from_iter<I: IntoIterator<Item = u64>>(heads: I) -> Self {
        Heads(heads.into_iter().collect())
    }
}

impl Heads {
    /// Asks the processor for where a search begins.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let Some(middle) = self.0.get(self.0.len() / 2) {
            betree_storage::prefetch::value(middle);
        }
    }

    /// The number of keys before the first that does not precede one with this head. `precedes` is asked for those whose heads do not tell.
    #[inline]
    pub(crate) fn partition_point(&self, head: u64, precedes: impl Fn(usize) -> bool) -> usize {
        let mut low = self.0.partition_point(|other| *other < head);
        if self.0.get(low) != Some(&head) {
            return low;
        }
        let mut high = low + self.0[low..].partition_point(|other| *other == head);
        while low < high {
            let middle = low.midpoint(high);
            if precedes(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_of_heads_finds_what_one_of_the_keys_finds() {
        let same = (0..20u8).map(|last| [&b"12345678"[..], &[last]].concat());
        let keys: Vec<Vec<u8>> = [b"".to_vec(), b"0".to_vec(), b"1234567".to_vec()]
            .into_iter()
            .chain(same)
            .chain([b"2".to_vec(), b"9".to_vec()])
            .collect();
        for count in 0..=keys.len() {
            let some = &keys[..count];
            let heads: Heads = some.iter().map(|key| head_of(key)).collect();
            for key in &keys {
                let below = heads.partition_point(head_of(key), |i| some[i] < *key);
                assert_eq!(below, some.partition_point(|other| other < key), "{key:?} in {count}");
                let up_to = heads.partition_point(head_of(key), |i| some[i] <= *key);
                assert_eq!(up_to, some.partition_point(|other| other <= key), "{key:?} in {count}");
            }
        }
    }

    #[test]
    fn keys_compare_as_without_their_heads() {
        let keys: [&[u8]; 9] =
            [b"", b"\0", b"a", b"a\0", b"abcdefgh", b"abcdefgh\0", b"abcdefghi", b"abcdefgi", b"\xff"];
        for a in keys {
            for b in keys {
                assert_eq!(Headed::new(a).compare(head_of(b), b), a.cmp(b), "{a:?} {b:?}");
            }
        }
    }
}
