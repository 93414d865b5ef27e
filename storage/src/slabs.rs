//! Memory for blocks that are kept long and asked at random: pieces side by side in slabs of a huge page each.
//!
//! A question to a filter goes to one line somewhere in all filters. In ordinary pages the processor's table of addresses knows few of them, and in a virtual machine
//! finding an address costs more than the line: 30 % of the time of a lookup that five filters answer, measured on 40 MiB of filters.
//!
//! A slab is **whole** (a huge page, whose memory counts from the first piece to the last) or **scattered** (ordinary pages, of which those of free blocks have been given back).
//! Where there is little room from the beginning, and where a lower limit finds slabs half empty, they are scattered.
//!
//! Invariant `slabs.one_owner`: a block of a slab is free or belongs to one [`Piece`]. `bytes` counts the memory behind the slabs, and stays within the limit but for pieces
//! that were there when it fell.
//!
//! Called by whoever holds page indexes and filters. One mutex over all slabs, with a system call under it where a slab comes, goes or is scattered.

#![allow(unsafe_code, reason = "blocks of bytes in a mapping, each with one owner")]

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::primitives::Mutex;
use crate::region::{HUGE_PAGE, Region};

/// Bytes of a block: a page of memory, the least that can be given back.
const BLOCK: usize = 4096;
/// A whole slab wastes at most this part of the limit.
const WASTE: usize = 16;

/// Where pieces come from and go back to. Clones are handles to the same.
#[derive(Clone, Default)]
pub struct Slabs(Arc<Inner>);

#[derive(Default)]
struct Inner {
    limit: AtomicUsize,
    /// Memory behind slabs.
    bytes: AtomicUsize,
    /// Memory of pieces.
    used: AtomicUsize,
    /// Places of slabs that are gone are used again.
    slabs: Mutex<Vec<Option<Slab>>>,
}

struct Slab {
    memory: Region,
    whole: bool,
    /// Whether a block belongs to a piece.
    taken: Box<[bool]>,
    free: usize,
}

impl Slab {
    fn new(blocks: usize, whole: bool) -> Slab {
        let memory = Region::new(blocks * BLOCK);
        Slab { whole, taken: vec![false; blocks].into(), free: blocks, memory }
    }

    /// The first of so many free blocks in a row.
    fn gap(&self, blocks: usize) -> Option<usize> {
        if self.free < blocks {
            return None;
        }
        self.gaps().find_map(|(first, count)| (count >= blocks).then_some(first))
    }

    /// Free blocks in a row: the first, and how many.
    fn gaps(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut next = 0;
        self.taken.chunk_by(|a, b| a == b).filter_map(move |same| {
            let first = next;
            next += same.len();
            (!same[0]).then_some((first, same.len()))
        })
    }

    fn take(&mut self, first: usize, blocks: usize) -> NonNull<u8> {
        self.taken[first..first + blocks].fill(true);
        self.free -= blocks;
        // A mapping does not begin at address zero.
        NonNull::new(self.memory.as_mut_ptr().wrapping_add(first * BLOCK)).unwrap_or(NonNull::dangling())
    }

    fn is_empty(&self) -> bool {
        self.free == self.taken.len()
    }

    /// Gives back the memory of free blocks. `false`: the platform cannot.
    fn scatter(&mut self) -> bool {
        #[cfg(target_os = "linux")]
        if let Some((map, start)) = self.memory.mapping() {
            // Refused where the kernel has no huge pages.
            let _refused = map.advise_range(memmap2::Advice::NoHugePage, start, self.memory.len());
            for (first, count) in self.gaps() {
                // SAFETY: free blocks belong to no piece (`slabs.one_owner`).
                unsafe { self.give_back(first * BLOCK, count * BLOCK) };
            }
            self.whole = false;
            return true;
        }
        false
    }

    /// Gives back the memory of some bytes, which read as zeros from now on.
    ///
    /// # Safety
    ///
    /// Nobody has a reference to them.
    unsafe fn give_back(&self, at: usize, len: usize) {
        #[cfg(target_os = "linux")]
        if let Some((map, start)) = self.memory.mapping() {
            // SAFETY: as above. Refused: they keep their memory, which is all that is lost.
            let _refused =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start + at, len) };
        }
        #[cfg(not(target_os = "linux"))]
        let _kept = (at, len);
    }
}

impl Inner {
    /// Room for so many blocks: which slab, and where they begin.
    fn place(&self, blocks: usize) -> Option<(usize, NonNull<u8>)> {
        let len = blocks * BLOCK;
        let mut slabs = self.slabs.lock();
        let (limit, bytes) = (self.limit.load(Relaxed), self.bytes.load(Relaxed));
        let find = |slabs: &[Option<Slab>], whole| {
            slabs.iter().enumerate().find_map(|(number, slab)| {
                let slab = slab.as_ref().filter(|slab| slab.whole == whole)?;
                Some((number, slab.gap(blocks)?))
            })
        };
        let slab_len = len.next_multiple_of(HUGE_PAGE);
        let (number, first, more) = if let Some((number, first)) = find(&slabs, true) {
            (number, first, 0)
        } else if slab_len <= limit / WASTE && bytes + slab_len <= limit {
            (put(&mut slabs, Slab::new(slab_len / BLOCK, true)), 0, slab_len)
        } else if bytes + len > limit {
            return None;
        } else if let Some((number, first)) = find(&slabs, false) {
            (number, first, len)
        } else {
            let mut slab = Slab::new(slab_len / BLOCK, true);
            let more = if slab.scatter() { len } else { slab_len };
            if bytes + more > limit {
                return None;
            }
            (put(&mut slabs, slab), 0, more)
        };
        let start = slabs[number].as_mut()?.take(first, blocks);
        self.bytes.fetch_add(more, Relaxed);
        self.used.fetch_add(len, Relaxed);
        Some((number, start))
    }
}

fn put(slabs: &mut Vec<Option<Slab>>, slab: Slab) -> usize {
    let number = slabs.iter().position(Option::is_none).unwrap_or(slabs.len());
    if number == slabs.len() {
        slabs.push(None);
    }
    slabs[number] = Some(slab);
    number
}

impl Slabs {
    /// A copy of `bytes`. `None`: it would go beyond the limit, or they are not whole blocks of 4096. Cost: a look at the free blocks of every slab until one fits, and the
    /// copy.
    #[must_use]
    pub fn copy_of(&self, bytes: &[u8]) -> Option<Piece> {
        let blocks = bytes.len() / BLOCK;
        if blocks == 0 || !bytes.len().is_multiple_of(BLOCK) {
            return None;
        }
        let (slab, start) = self.0.place(blocks)?;
        // SAFETY: so many bytes of a mapping begin there, and since `place` they are this piece's alone (`slabs.one_owner`), which nobody has a reference to yet.
        unsafe { start.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(Piece { start, len: bytes.len(), slab, slabs: self.clone() })
    }

    /// Whether `bytes` more are within the limit, even if nothing of them finds a place in a whole slab.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.bytes() + bytes <= self.0.limit.load(Relaxed)
    }

    /// Memory behind the slabs, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Relaxed)
    }

    /// Memory of the pieces, in bytes: what [`Slabs::bytes`] is at the least.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// Sets the limit in bytes, and gives back memory of free blocks, that of the emptiest slabs first, while there is more.
    pub fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Relaxed);
        if self.bytes() <= limit {
            return;
        }
        let mut slabs = self.0.slabs.lock();
        while self.bytes() > limit {
            let whole = slabs.iter_mut().flatten().filter(|slab| slab.whole && slab.free > 0);
            let Some(slab) = whole.max_by_key(|slab| slab.free) else { return };
            if !slab.scatter() {
                return;
            }
            self.0.bytes.fetch_sub(slab.free * BLOCK, Relaxed);
        }
    }
}

/// Bytes that are kept. Their blocks go back to where they came from when it is dropped.
pub struct Piece {
    start: NonNull<u8>,
    len: usize,
    slab: usize,
    slabs: Slabs,
}

// SAFETY: its bytes are its own (`slabs.one_owner`).
unsafe impl Send for Piece {}
// SAFETY: as above, and nobody writes to them.
unsafe impl Sync for Piece {}

impl Deref for Piece {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes in a mapping that stays while a piece lies in it; written before there was a piece, and this piece's (`slabs.one_owner`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let inner = &*self.slabs.0;
        let mut slabs = inner.slabs.lock();
        let place = &mut slabs[self.slab];
        // A slab is there while a piece lies in it.
        let Some(slab) = place else { return };
        let at = self.start.as_ptr().addr() - slab.memory.as_mut_ptr().addr();
        slab.taken[at / BLOCK..][..self.len / BLOCK].fill(false);
        slab.free += self.len / BLOCK;
        inner.used.fetch_sub(self.len, Relaxed);
        if !slab.whole {
            // SAFETY: whoever drops a piece has the only reference to its bytes, and with this they are free.
            unsafe { slab.give_back(at, self.len) };
            inner.bytes.fetch_sub(self.len, Relaxed);
        }
        if slab.is_empty() {
            if slab.whole {
                inner.bytes.fetch_sub(slab.memory.len(), Relaxed);
            }
            *place = None;
        }
    }
}

impl fmt::Debug for Slabs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slabs")
            .field("bytes", &self.bytes())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    fn with_limit(limit: usize) -> Slabs {
        let slabs = Slabs::default();
        slabs.set_limit(limit);
        slabs
    }

    fn piece(slabs: &Slabs, blocks: usize, with: u8) -> Option<Piece> {
        slabs.copy_of(&vec![with; blocks * BLOCK])
    }

    fn is_all(piece: &Piece, with: u8) -> bool {
        piece.iter().all(|&b| b == with)
    }

    #[test]
    fn what_is_not_whole_blocks_has_no_place() {
        let slabs = with_limit(1 << 30);
        assert!(slabs.copy_of(&[]).is_none());
        assert!(slabs.copy_of(&[1; BLOCK - 1]).is_none());
        assert!(slabs.copy_of(&[1; BLOCK + 1]).is_none());
        assert_eq!((slabs.bytes(), slabs.used()), (0, 0));
    }

    #[test]
    fn pieces_keep_their_bytes_and_free_blocks_are_used_before_new_slabs() {
        let slabs = with_limit(64 << 20);
        let mut all: Vec<(u8, Piece)> =
            (0..1000).map(|i| (i as u8, piece(&slabs, 1 + i % 7, i as u8).unwrap())).collect();
        let (bytes, used) = (slabs.bytes(), slabs.used());
        assert_eq!(used, all.iter().map(|(_, piece)| piece.len()).sum::<usize>());
        assert_eq!(bytes, used.next_multiple_of(HUGE_PAGE));
        for round in 0..50 {
            // What goes and what comes is of the same sizes, in another order.
            let gone: Vec<(u8, Piece)> =
                (0..100).map(|i| all.swap_remove((i * 7 + round) % all.len())).collect();
            let mut sizes: Vec<usize> = gone.iter().map(|(_, piece)| piece.len() / BLOCK).collect();
            drop(gone);
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            all.extend(
                sizes.iter().map(|&blocks| (round as u8, piece(&slabs, blocks, round as u8).unwrap())),
            );
            assert!(all.iter().all(|(with, piece)| is_all(piece, *with)));
        }
        assert_eq!(slabs.used(), used);
        assert!(slabs.bytes() <= bytes + 2 * HUGE_PAGE, "{} for {used}", slabs.bytes());
        drop(all);
        assert_eq!((slabs.bytes(), slabs.used()), (0, 0));
    }

    #[test]
    fn a_piece_longer_than_a_huge_page_has_several() {
        let slabs = with_limit(1 << 30);
        let long = piece(&slabs, HUGE_PAGE / BLOCK + 1, 3).unwrap();
        let short = piece(&slabs, 1, 4).unwrap();
        assert!(is_all(&long, 3) && is_all(&short, 4));
        assert_eq!(slabs.bytes(), 2 * HUGE_PAGE);
    }

    #[test]
    fn there_is_never_more_than_the_limit() {
        for limit in [0, 3 * BLOCK, HUGE_PAGE, 33 << 20] {
            let slabs = with_limit(limit);
            let held: Vec<Piece> = (0..10_000).map_while(|i| piece(&slabs, 1 + i % 3, 1)).collect();
            let most = slabs.used();
            assert!(slabs.bytes() <= limit && most <= slabs.bytes());
            if cfg!(target_os = "linux") {
                assert!(
                    limit - most < HUGE_PAGE + 3 * BLOCK && slabs.bytes() + 3 * BLOCK > limit,
                    "{most} of {limit}"
                );
            }
            assert!(!slabs.has_room(limit + 1 - most));
            drop(held);
            assert_eq!(slabs.bytes(), 0);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_lower_limit_gives_back_what_is_free_and_no_more() {
        use std::os::unix::fs::FileExt;
        let resident = |pieces: &[usize]| {
            let map = std::fs::File::open("/proc/self/pagemap").unwrap();
            let has_memory = |address: &&usize| {
                let mut entry = [0; 8];
                map.read_exact_at(&mut entry, (**address / BLOCK * 8) as u64).unwrap();
                u64::from_le_bytes(entry) >> 63 == 1
            };
            pieces.iter().filter(has_memory).count()
        };
        let slabs = with_limit(64 << 20);
        let mut all: Vec<Piece> = (0..2048).map(|i| piece(&slabs, 1, i as u8).unwrap()).collect();
        assert_eq!(slabs.bytes(), 4 * HUGE_PAGE);
        let places: Vec<usize> = all.iter().map(|piece| piece.as_ptr().addr()).collect();
        let mut i = 0;
        all.retain(|_| {
            i += 1;
            i % 4 == 1
        });
        assert_eq!((slabs.bytes(), slabs.used()), (4 * HUGE_PAGE, HUGE_PAGE));
        // Half of the slabs will do.
        slabs.set_limit(4 * HUGE_PAGE - 2 * (HUGE_PAGE / 4 * 3));
        assert_eq!(slabs.bytes(), 2 * HUGE_PAGE + HUGE_PAGE / 2);
        assert_eq!(resident(&places), 2 * 512 + 2 * 128);
        slabs.set_limit(0);
        assert_eq!(slabs.bytes(), HUGE_PAGE);
        assert_eq!(resident(&places), 512);
        for (i, piece) in all.iter().enumerate() {
            assert!(is_all(piece, (4 * i) as u8));
        }
        assert!(piece(&slabs, 1, 9).is_none());
        // One stays in the last slab, too: where a slab is gone, another test's mapping may begin.
        all.drain(300..all.len() - 1);
        assert_eq!(slabs.bytes(), 301 * BLOCK);
        assert_eq!(resident(&places), 301);
    }

    #[test]
    fn threads_share_slabs_and_a_piece_outlives_the_handle() {
        let slabs = with_limit(40 << 20);
        let last: Vec<Piece> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4u8)
                .map(|thread| {
                    let slabs = &slabs;
                    scope.spawn(move || {
                        let mut held = std::collections::VecDeque::new();
                        for i in 0..5_000u32 {
                            let with = i as u8 ^ thread << 6;
                            held.extend(piece(slabs, 1 + i as usize % 5, with).map(|piece| (with, piece)));
                            while held.len() > if i % 1000 == 0 { 10 } else { 300 } {
                                let (with, piece) = held.pop_front().unwrap();
                                assert!(is_all(&piece, with));
                            }
                            if i % 100 == 0 {
                                slabs.set_limit(if i % 200 == 0 { 1 << 20 } else { 40 << 20 });
                            }
                        }
                        held.pop_back().unwrap().1
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        drop(slabs);
        assert!(last.iter().all(|piece| is_all(piece, piece[0])));
    }
}
