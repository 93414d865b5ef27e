//! The large values of a memtable: an append-only list of shared values, read without a lock.
//!
//! Appended to by the arena's writer only, read by everyone. A value's number and address never change: bucket k holds
//! 2^k values and is never reallocated.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

const BUCKETS: usize = 32;

type Bucket = Box<[OnceLock<Bytes>]>;

pub(super) struct LargeValues {
    buckets: [OnceLock<Bucket>; BUCKETS],
    len: AtomicU32,
}

impl Default for LargeValues {
    fn default() -> Self {
        LargeValues { buckets: std::array::from_fn(|_| OnceLock::new()), len: AtomicU32::new(0) }
    }
}

/// Bucket and index of the value with this number.
fn place(number: u32) -> (usize, usize) {
    let n = u64::from(number) + 1;
    let bucket = n.ilog2();
    (bucket as usize, (n - (1 << bucket)) as usize)
}

impl LargeValues {
    /// Appends a value and answers its number.
    pub(super) fn push(&self, value: Bytes) -> u32 {
        let number = self.len.fetch_add(1, Ordering::Relaxed);
        let (bucket, index) = place(number);
        let slots =
            self.buckets[bucket].get_or_init(|| (0..1usize << bucket).map(|_| OnceLock::new()).collect());
        // The number is fresh, so the slot is empty.
        let _ = slots[index].set(value);
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&Bytes> {
        let (bucket, index) = place(number);
        self.buckets.get(bucket)?.get()?.get(index)?.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_numbers_and_addresses() {
        let values = LargeValues::default();
        assert!(values.get(0).is_none());
        values.push(Bytes::from_static(b"0"));
        let first = std::ptr::from_ref(values.get(0).unwrap());
        for i in 1..1_000u32 {
            assert_eq!(values.push(Bytes::from(i.to_string())), i);
        }
        assert_eq!(std::ptr::from_ref(values.get(0).unwrap()), first);
        for i in 0..1_000u32 {
            assert_eq!(values.get(i).unwrap(), i.to_string().as_bytes());
        }
        assert!(values.get(1_000).is_none() && values.get(u32::MAX).is_none());
    }
}
