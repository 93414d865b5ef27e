//! Aligned buffers: the memory that direct I/O reads into and writes from.
//!
//! Invariants: the address of an [`AlignedBuf`] is a multiple of [`ALIGN`], even of an empty one; every byte up to its
//! capacity is initialised from the moment it exists, so that shrinking and growing within the capacity are safe.
//! Called by every crate that does I/O. No lock.

#![allow(unsafe_code, reason = "owns raw allocations: standard containers cannot be given an alignment")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::Region;

/// The alignment of buffers, offsets and lengths for direct I/O.
pub const ALIGN: usize = 4096;

/// Gives empty buffers an address that is aligned too, so that nobody need treat them apart.
#[repr(align(4096))]
struct Aligned;

const _: () = assert!(align_of::<Aligned>() == ALIGN);

/// A buffer aligned to [`ALIGN`], from the heap or part of a [`Region`].
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// What it is a part of; nobody else has the same part.
    region: Option<Arc<Region>>,
}

// SAFETY: the buffer owns its allocation or its part of a region exclusively, and neither has thread affinity.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access hands out `&[u8]` only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer without memory.
    #[must_use]
    pub const fn empty() -> Self {
        Self { ptr: NonNull::<Aligned>::dangling().cast(), len: 0, capacity: 0, region: None }
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
        Self { ptr, len, capacity, region: None }
    }

    /// A region of `count` buffers of `capacity` bytes, which is a multiple of [`ALIGN`].
    pub(crate) fn parts_of_region(capacity: usize, count: usize) -> (Arc<Region>, Vec<Self>) {
        assert!(capacity > 0 && capacity.is_multiple_of(ALIGN), "no capacity of a buffer: {capacity}");
        let region = Arc::new(Region::new(capacity * count));
        let part = |i: usize| {
            // SAFETY: offset i * capacity is inside the region, whose address is not null.
            let ptr = unsafe { NonNull::new_unchecked(region.as_mut_ptr().add(i * capacity)) };
            Self { ptr, len: capacity, capacity, region: Some(region.clone()) }
        };
        let parts = (0..count).map(part).collect();
        (region, parts)
    }

    /// Its first byte, for [`Region`], whose owner says who may write.
    pub(crate) fn start(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Whether it is a part of `region`.
    pub(crate) fn is_part_of(&self, region: &Arc<Region>) -> bool {
        self.region.as_ref().is_some_and(|own| Arc::ptr_eq(own, region))
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
        if self.capacity != 0 && self.region.is_none() {
            // SAFETY: allocated in `zeroed` with this very layout; neither a buffer without capacity nor a part of a region ever was.
            unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` initialised bytes owned by self (a region is zeroed when it is made); dangling only with length zero.
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
}
