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

#[cfg(test)]
mod tests {
    use super::*;

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
