//! Counts what a thread allocates, so that "nothing is allocated for a length that was not checked" is measured and not believed.
//!
//! Programs and tests install [`Counting`] as their global allocator and ask [`measured`]; without it every figure is zero. Per
//! thread, without locks: threads of other tests do not disturb. Invariant: the allocator itself never allocates and never panics.
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait; this one only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting.
#[derive(Debug)]
pub struct Counting;

/// What was asked for while a closure ran, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measure {
    /// The longest single request.
    pub largest: usize,
    /// The most that was held at once above what was held before.
    pub peak: usize,
}

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(added: usize, removed: usize) {
    // A thread that is ending has no counters left.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(added)));
    let _ = HELD.try_with(|held| {
        let now = held.get().wrapping_add_unsigned(added).wrapping_sub_unsigned(removed);
        held.set(now);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

/// Runs `run` and says what it asked of the allocator in this thread.
pub fn measured<T>(run: impl FnOnce() -> T) -> (T, Measure) {
    let before = HELD.get();
    LARGEST.set(0);
    PEAK.set(before);
    let result = run();
    let peak = usize::try_from(PEAK.get().wrapping_sub(before)).unwrap_or(0);
    (result, Measure { largest: LARGEST.get(), peak })
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches no memory that was allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the memory came from `System` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the memory came from `System` with this layout; the caller checked the new size.
        unsafe { System.realloc(memory, layout, size) }
    }
}
