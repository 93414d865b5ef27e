//! Memory for cached pages: frames of whole blocks in mappings of their own.
//!
//! A cache lets pages go one by one, from anywhere. On the heap each leaves a hole of its size, and a cache that shrinks so that others may
//! grow gives the operating system next to nothing back: with a budget of 460 MiB, a process that may have 512 was killed within a minute of reads. A frame that is free is given back by itself.
//!
//! Frames of one size come from one pool. Invariant `frames.one_owner`: a frame is owned by one [`Frame`], or is in one of the two lists of its pool. Freed frames are used
//! again, the last first; more than a few ([`Size::most_free`]) are given back. Mappings stay until the last frame and the pools are gone: addresses, not memory, unless the pools
//! were retired.
//!
//! Called by the page cache and by reads into it. One mutex over the lists of a pool, with no system call under it but for a new mapping.

#![allow(unsafe_code, reason = "blocks of bytes in a mapping, each with one owner")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use crate::primitives::Mutex;

/// Bytes of the smallest frame: a block, and a page of memory.
pub const FRAME: usize = 4096;
/// Blocks of the largest frame. A longer page is a large allocation, which does not depend on what lies beside it.
const MOST_BLOCKS: usize = 16;
/// Blocks of a mapping.
const SLAB: usize = 1024;
/// Free frames of a block that keep their memory. Half of them are given back at a time.
const MOST_FREE: usize = 256;

/// Where frames come from and go back to. Clones are handles to the same.
#[derive(Clone, Default)]
pub struct Frames(Arc<[Pool; MOST_BLOCKS]>);

/// The frames of one size.
#[derive(Default)]
struct Pool {
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    slabs: Vec<Arc<MmapRaw>>,
    /// See [`Frames::retire`].
    retired: bool,
    /// Free frames with memory behind them, the last freed last.
    warm: Vec<u32>,
    /// Those without.
    cold: Vec<u32>,
}

/// Blocks of a frame, 1 to [`MOST_BLOCKS`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Size(u32);

impl Size {
    /// `None`: there are no frames for so many bytes.
    fn of(bytes: usize) -> Option<Size> {
        let blocks = bytes / FRAME;
        (bytes.is_multiple_of(FRAME) && (1..=MOST_BLOCKS).contains(&blocks)).then_some(Size(blocks as u32))
    }

    fn blocks(self) -> usize {
        self.0 as usize
    }

    fn bytes(self) -> usize {
        self.blocks() * FRAME
    }

    /// Frames of a mapping.
    fn per_slab(self) -> usize {
        SLAB / self.blocks()
    }

    /// Free frames that keep their memory: a megabyte of blocks, a quarter of one for each of the other sizes.
    fn most_free(self) -> usize {
        if self.blocks() == 1 { MOST_FREE } else { MOST_FREE / 4 / self.blocks() }
    }

    /// Which mapping a frame is in, and where there.
    fn place(self, number: u32) -> (usize, usize) {
        (number as usize / self.per_slab(), number as usize % self.per_slab() * self.bytes())
    }
}

impl Lists {
    /// A free frame.
    fn take(&mut self, size: Size) -> Option<(u32, NonNull<u8>)> {
        if self.warm.is_empty() && self.cold.is_empty() {
            self.grow(size)?;
        }
        let number = self.warm.pop().or_else(|| self.cold.pop())?;
        let (slab, at) = size.place(number);
        let start = self.slabs.get(slab)?.as_mut_ptr().wrapping_add(at);
        Some((number, NonNull::new(start)?))
    }

    fn grow(&mut self, size: Size) -> Option<()> {
        let first = u32::try_from(self.slabs.len() * size.per_slab()).ok()?;
        let end = first.checked_add(size.per_slab() as u32)?;
        let slab = MmapRaw::from(MmapOptions::new().len(SLAB * FRAME).map_anon().ok()?);
        // A huge page would have memory behind free frames too. Refused where the kernel has none.
        #[cfg(target_os = "linux")]
        let _refused = slab.advise(memmap2::Advice::NoHugePage);
        self.slabs.push(Arc::new(slab));
        self.cold.extend((first..end).rev());
        Some(())
    }
}

impl Frames {
    /// A frame of `len` bytes, whatever is in it. It is aligned as direct I/O wants it. `None`: they are not whole blocks, or too many, there is no
    /// memory, or the platform is one on which frames could not be given back; the heap has to do then.
    #[must_use]
    pub fn take(&self, len: usize) -> Option<Frame> {
        if cfg!(not(target_os = "linux")) {
            return None;
        }
        let size = Size::of(len)?;
        let (number, start) = self.pool(size).lists.lock().take(size)?;
        Some(Frame { start, size, number, frames: self.clone() })
    }

    /// Says that most frames will be let go now and none taken: their memory goes with the mappings, at once and not frame by frame.
    pub fn retire(&self) {
        for pool in &*self.0 {
            pool.lists.lock().retired = true;
        }
    }

    /// A frame with a copy of `bytes`, as [`Frames::take`] has one.
    #[must_use]
    pub fn copy_of(&self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.take(bytes.len())?;
        frame.copy_from_slice(bytes);
        Some(frame)
    }

    fn pool(&self, size: Size) -> &Pool {
        &self.0[size.blocks() - 1]
    }
}

impl Pool {
    fn put(&self, size: Size, number: u32) {
        let most_free = size.most_free();
        let mut surplus: Vec<(u32, Arc<MmapRaw>)> = Vec::new();
        {
            let mut lists = self.lists.lock();
            lists.warm.push(number);
            if lists.warm.len() <= most_free || lists.retired {
                return;
            }
            // The first freed, which are the least likely to be in the processor's caches.
            let Lists { slabs, warm, .. } = &mut *lists;
            let first_freed = warm.drain(..most_free / 2);
            surplus.extend(first_freed.map(|number| (number, Arc::clone(&slabs[size.place(number).0]))));
        }
        surplus.sort_unstable_by_key(|&(number, _)| number);
        let ranges = surplus.chunk_by(|a, b| a.0 + 1 == b.0 && Arc::ptr_eq(&a.1, &b.1)).map(|side_by_side| {
            let (first, slab) = &side_by_side[0];
            Range { slab, at: size.place(*first).1, len: side_by_side.len() * size.bytes() }
        });
        give_back(&ranges.collect::<Vec<_>>());
        // The lowest is taken first: frames in use move together.
        self.lists.lock().cold.extend(surplus.iter().rev().map(|&(number, _)| number));
    }
}

/// Frames side by side.
struct Range<'a> {
    slab: &'a MmapRaw,
    at: usize,
    len: usize,
}

/// Gives their memory back, by one call for all if the kernel takes it: each call interrupts every other processor that runs a thread of this process.
///
/// REQUIRES that the bytes are those of frames that are in no list and that nobody owns.
#[cfg(target_os = "linux")]
fn give_back(ranges: &[Range<'_>]) {
    if !give_back_together(ranges) {
        give_back_each(ranges);
    }
}

/// As [`give_back`], by one call. False: the kernel does not know it (before Linux 6.14), or did not take all.
#[cfg(target_os = "linux")]
fn give_back_together(ranges: &[Range<'_>]) -> bool {
    /// The thread that calls, for calls that take a descriptor of a process.
    const SELF: libc::c_int = -10_000;
    let vectors: Vec<libc::iovec> = ranges
        .iter()
        .map(|range| libc::iovec {
            iov_base: range.slab.as_mut_ptr().wrapping_add(range.at).cast(),
            iov_len: range.len,
        })
        .collect();
    let (first, count) = (vectors.as_ptr(), vectors.len());
    // SAFETY: `vectors` outlives the call and names bytes of mappings that the caller holds. What is given back reads as zeros from now on, and nobody
    // has a reference to these frames (see above).
    let given =
        unsafe { libc::syscall(libc::SYS_process_madvise, SELF, first, count, libc::MADV_DONTNEED, 0) };
    usize::try_from(given).is_ok_and(|given| given == ranges.iter().map(|range| range.len).sum())
}

/// As [`give_back`], by a call for each. What was given back already may be once more.
#[cfg(target_os = "linux")]
fn give_back_each(ranges: &[Range<'_>]) {
    for range in ranges {
        // SAFETY: what is given back reads as zeros from now on. Nobody has a reference to these frames (see above).
        // Refused: they keep their memory, which is all that is lost.
        let _refused = unsafe {
            range.slab.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.at, range.len)
        };
    }
}

#[cfg(not(target_os = "linux"))]
fn give_back(_no_frames: &[Range<'_>]) {}

/// Blocks of memory side by side. Go back to where they came from when dropped.
pub struct Frame {
    start: NonNull<u8>,
    size: Size,
    number: u32,
    frames: Frames,
}

// SAFETY: its bytes are its own (`frames.one_owner`).
unsafe impl Send for Frame {}
// SAFETY: as above; who shares it reads only.
unsafe impl Sync for Frame {}

impl Deref for Frame {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes in a mapping that `frames` keeps, zeros from the beginning; they are this owner's (`frames.one_owner`), and he
        // writes to them through `deref_mut` only.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size.bytes()) }
    }
}

impl DerefMut for Frame {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and while the owner is borrowed mutably there is no other reference to them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size.bytes()) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.frames.pool(self.size).put(self.size, self.number);
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").finish_non_exhaustive()
    }
}

#[cfg(all(test, target_os = "linux", not(feature = "shuttle")))]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn filled(frames: &Frames, with: u8) -> Frame {
        frames.copy_of(&[with; FRAME]).unwrap()
    }

    /// Whether there is memory behind an address of this process.
    fn has_memory(address: usize) -> bool {
        let mut entry = [0; 8];
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        map.read_exact_at(&mut entry, (address / FRAME * 8) as u64).unwrap();
        u64::from_le_bytes(entry) >> 63 == 1
    }

    #[test]
    fn what_is_no_frame_is_left_to_the_heap() {
        let frames = Frames::default();
        assert!(frames.copy_of(&[]).is_none());
        assert!(frames.copy_of(&[1; FRAME - 1]).is_none());
        assert!(frames.copy_of(&[1; FRAME + 512]).is_none());
        assert!(frames.copy_of(&[1; (MOST_BLOCKS + 1) * FRAME]).is_none());
    }

    #[test]
    fn frames_that_are_let_go_are_given_back_but_for_a_few_and_are_good_again() {
        let frames = Frames::default();
        let mut all: Vec<Frame> = (0..3000).map(|i| filled(&frames, i as u8)).collect();
        let places: Vec<usize> = all.iter().map(|frame| frame.as_ptr() as usize).collect();
        assert!(places.iter().all(|&at| has_memory(at)));
        // Every third stays, so that holes are single frames.
        let mut i = 0;
        all.retain(|_| {
            i += 1;
            i % 3 == 0
        });
        let left = places.iter().filter(|&&at| has_memory(at)).count();
        assert!((1000..=1000 + MOST_FREE).contains(&left), "{left} frames have memory");
        for (i, frame) in all.iter().enumerate() {
            assert!(frame.iter().all(|&b| b == (3 * i + 2) as u8));
        }
        let again: Vec<Frame> = (0..2000).map(|_| filled(&frames, 77)).collect();
        assert!(again.iter().all(|frame| frame.iter().all(|&b| b == 77)));
        let before: std::collections::BTreeSet<usize> = places.into_iter().collect();
        assert!(again.iter().all(|frame| before.contains(&(frame.as_ptr() as usize))), "new memory for old");
    }

    #[test]
    fn a_kernel_that_does_not_take_ranges_together_takes_them_one_by_one() {
        let pools = Frames::default();
        let frames: Vec<Frame> = (0..8).map(|i| filled(&pools, i)).collect();
        let slabs = pools.pool(Size(1)).lists.lock().slabs.clone();
        let address = |i: usize| frames[i].as_ptr() as usize;
        let start = slabs[0].as_mut_ptr() as usize;
        let range = |i: usize| Range { slab: &slabs[0], at: address(i) - start, len: FRAME };
        give_back_each(&[range(1), range(4), range(6)]);
        let left: Vec<usize> = (0..8).filter(|&i| has_memory(address(i))).collect();
        assert_eq!(left, [0, 2, 3, 5, 7]);
    }

    #[test]
    fn frames_of_every_size_are_apart_and_are_given_back() {
        let frames = Frames::default();
        let mut all: Vec<Frame> = (0..4000)
            .map(|i| frames.copy_of(&vec![i as u8; (1 + i % MOST_BLOCKS) * FRAME]).unwrap())
            .collect();
        for (i, frame) in all.iter().enumerate() {
            assert_eq!(frame.len(), (1 + i % MOST_BLOCKS) * FRAME);
            assert!(frame.as_ptr().addr().is_multiple_of(FRAME) && frame.iter().all(|&b| b == i as u8));
        }
        let blocks = |frame: &Frame| -> Vec<usize> {
            (0..frame.len() / FRAME).map(|block| frame.as_ptr().addr() + block * FRAME).collect()
        };
        let of_every_third = |i: usize| i.is_multiple_of(3);
        let mut numbers = 0..;
        let gone: Vec<usize> = all
            .iter()
            .enumerate()
            .filter(|&(i, _)| !of_every_third(i))
            .flat_map(|(_, frame)| blocks(frame))
            .collect();
        all.retain(|_| numbers.next().is_some_and(of_every_third));
        let left = gone.iter().filter(|&&at| has_memory(at)).count();
        assert!(
            left <= MOST_FREE + (MOST_BLOCKS - 1) * MOST_FREE / 4,
            "{left} of {} blocks have memory",
            gone.len()
        );
        for (i, frame) in all.iter().enumerate() {
            assert!(frame.iter().all(|&b| b == (3 * i) as u8));
        }
    }

    #[test]
    fn a_retired_pool_gives_nothing_back_frame_by_frame() {
        let frames = Frames::default();
        let all: Vec<Frame> = (0..3000).map(|i| filled(&frames, i as u8)).collect();
        let places: Vec<usize> = all.iter().map(|frame| frame.as_ptr() as usize).collect();
        frames.retire();
        drop(all);
        assert!(places.iter().all(|&at| has_memory(at)));
    }

    #[test]
    fn a_frame_outlives_the_handle_that_made_it() {
        let frame = filled(&Frames::default(), 5);
        assert!(frame.iter().all(|&b| b == 5));
    }

    #[test]
    fn threads_share_frames_and_each_is_its_owners() {
        let frames = Frames::default();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let frames = &frames;
                scope.spawn(move || {
                    let mut held = std::collections::VecDeque::new();
                    for i in 0..20_000u32 {
                        held.push_back((i as u8 ^ thread << 6, filled(frames, i as u8 ^ thread << 6)));
                        // Let go in bursts, so that some are given back.
                        while held.len() > if i % 1000 == 0 { 10 } else { 700 } {
                            let (with, frame) = held.pop_front().unwrap();
                            assert!(frame.iter().all(|&b| b == with));
                        }
                    }
                });
            }
        });
    }
}
