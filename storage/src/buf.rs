//! Aligned buffers: the memory that direct I/O reads into and writes from, and a pool that recycles it.
//!
//! Invariants: the address of an [`AlignedBuf`] is a multiple of [`ALIGN`], even of an empty one; every byte up to its
//! capacity is initialised from the moment it exists, so that shrinking and growing within the capacity are safe.
//! Called by every crate that does I/O. The pool holds one short mutex per size class and nothing under it.

#![allow(unsafe_code, reason = "owns raw allocations: standard containers cannot be given an alignment")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

/// The alignment of buffers, offsets and lengths for direct I/O.
pub const ALIGN: usize = 4096;

/// Gives empty buffers an address that is aligned too, so that nobody need treat them apart.
#[repr(align(4096))]
struct Aligned;

const _: () = assert!(align_of::<Aligned>() == ALIGN);

/// A heap buffer aligned to [`ALIGN`].
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its allocation exclusively and has no thread affinity.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access hands out `&[u8]` only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer without memory.
    #[must_use]
    pub const fn empty() -> Self {
        Self { ptr: NonNull::<Aligned>::dangling().cast(), len: 0, capacity: 0 }
    }

    /// A buffer of `len` zero bytes. Its capacity is `len` rounded up to [`ALIGN`].
    ///
    /// # Panics
    /// When the size exceeds the address space; ends the process when memory is exhausted, as `Vec` does.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::empty();
        }
        let capacity = len.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero, `len` is at least one.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { ptr, len, capacity }
    }

    /// A buffer that holds a copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// The number of bytes in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of bytes [`AlignedBuf::resize_within`] can reach.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Shortens the buffer to `len` bytes; does nothing when it is no longer than that. Keeps the memory.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Sets the length to `len`; bytes that come into view hold whatever was there before.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn resize_within(&mut self, len: usize) {
        assert!(len <= self.capacity, "length {len} over capacity {}", self.capacity);
        self.len = len;
    }

    fn layout(capacity: usize) -> Layout {
        match Layout::from_size_align(capacity, ALIGN) {
            Ok(layout) => layout,
            Err(_) => panic!("buffer of {capacity} bytes exceeds the address space"),
        }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.capacity != 0 {
            // SAFETY: allocated in `zeroed` with this very layout; a buffer without capacity never was.
            unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` initialised bytes owned by self; dangling only with length zero.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Default for AlignedBuf {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The smallest recycled capacity; smaller buffers are rounded up to it.
const SMALLEST_CLASS: usize = ALIGN;
/// Number of size classes: powers of two from 4 KiB to 16 MiB.
const CLASSES: usize = 13;

/// Recycles buffers, so that large ones are not page-faulted in anew for every request.
///
/// Capacities are powers of two from 4 KiB to 16 MiB; larger buffers are never kept.
pub struct BufPool {
    classes: [Mutex<Vec<AlignedBuf>>; CLASSES],
    idle_bytes: AtomicUsize,
    limit: usize,
}

impl BufPool {
    /// A pool that keeps at most `limit` bytes of idle buffers.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let classes = std::array::from_fn(|_| Mutex::new(Vec::new()));
        Self { classes, idle_bytes: AtomicUsize::new(0), limit }
    }

    /// A buffer of `len` bytes whose contents are unspecified.
    #[must_use]
    pub fn get(&self, len: usize) -> AlignedBuf {
        if len == 0 {
            return AlignedBuf::empty();
        }
        let Some((class, capacity)) = class_for(len) else { return AlignedBuf::zeroed(len) };
        let recycled = self.classes[class].lock().pop();
        if recycled.is_some() {
            self.idle_bytes.fetch_sub(capacity, Relaxed);
        }
        let mut buf = recycled.unwrap_or_else(|| AlignedBuf::zeroed(capacity));
        buf.resize_within(len);
        buf
    }

    /// Takes a buffer back. One that is not of a size class, or beyond the bound, is freed.
    pub fn put(&self, buf: AlignedBuf) {
        let Some((class, capacity)) = class_for(buf.capacity()) else { return };
        if buf.capacity() != capacity {
            return;
        }
        if self.idle_bytes.fetch_add(capacity, Relaxed) + capacity > self.limit {
            self.idle_bytes.fetch_sub(capacity, Relaxed);
            return;
        }
        self.classes[class].lock().push(buf);
    }

    /// Bytes held by idle buffers.
    #[must_use]
    pub fn idle_bytes(&self) -> usize {
        self.idle_bytes.load(Relaxed)
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool").field("idle_bytes", &self.idle_bytes()).finish_non_exhaustive()
    }
}

/// The size class that holds `len` bytes and its capacity.
fn class_for(len: usize) -> Option<(usize, usize)> {
    if len == 0 || len > SMALLEST_CLASS << (CLASSES - 1) {
        return None;
    }
    let capacity = len.next_power_of_two().max(SMALLEST_CLASS);
    let class = (capacity / SMALLEST_CLASS).trailing_zeros() as usize;
    Some((class, capacity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_keeps_its_capacity_when_truncated() {
        let mut buf = AlignedBuf::zeroed(5000);
        assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
        assert!(buf.iter().all(|&b| b == 0));
        assert_eq!((buf.len(), buf.capacity()), (5000, 8192));
        buf[10] = 7;
        buf.truncate(11);
        buf.truncate(4000);
        assert_eq!((buf.len(), buf[10]), (11, 7));
        buf.resize_within(8192);
        assert_eq!(buf[8191], 0);
    }

    #[test]
    fn an_empty_buffer_owns_nothing() {
        let mut buf = AlignedBuf::empty();
        assert!(buf.is_empty() && buf.capacity() == 0);
        assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
        assert!(buf.iter_mut().next().is_none());
        assert_eq!(AlignedBuf::zeroed(0).capacity(), 0);
    }

    #[test]
    #[should_panic(expected = "over capacity")]
    fn growing_past_the_capacity_panics() {
        AlignedBuf::zeroed(1).resize_within(ALIGN + 1);
    }

    #[test]
    fn the_pool_recycles_by_size_class_and_stays_within_its_bound() {
        let pool = BufPool::new(64 << 10);
        let mut first = pool.get(60_000);
        assert_eq!((first.len(), first.capacity()), (60_000, 64 << 10));
        first[0] = 9;
        let address = first.as_ptr() as usize;
        pool.put(first);
        pool.put(AlignedBuf::zeroed(64 << 10));
        assert_eq!(pool.idle_bytes(), 64 << 10);
        let again = pool.get(40_000);
        assert_eq!((again.as_ptr() as usize, again[0], again.len()), (address, 9, 40_000));
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn the_pool_frees_buffers_of_odd_or_huge_capacity() {
        let pool = BufPool::new(usize::MAX);
        pool.put(AlignedBuf::zeroed(3 * ALIGN));
        pool.put(AlignedBuf::zeroed(32 << 20));
        pool.put(AlignedBuf::empty());
        assert_eq!(pool.idle_bytes(), 0);
        assert_eq!(pool.get(17 << 20).len(), 17 << 20);
    }
}
