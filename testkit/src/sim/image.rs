//! The bytes of a simulated file: a sparse map of shared 4 KiB chunks, and the set of its allocated blocks.
//!
//! Invariants: a missing chunk reads as zeros; chunks are copied when written while shared, so cloning an image is
//! cheap; extents in an [`ExtentSet`] are disjoint, not adjacent, and aligned to blocks. Called by the simulated
//! storage under its mutex.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Unit of sharing and of space accounting.
pub(super) const BLOCK: u64 = 4096;

type Chunk = [u8; BLOCK as usize];

/// A sparse, cheaply cloned byte array.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    chunks: BTreeMap<u64, Arc<Chunk>>,
}

impl Image {
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        for (number, at, range) in pieces(offset, out.len()) {
            let out = &mut out[range];
            match self.chunks.get(&number) {
                Some(chunk) => out.copy_from_slice(&chunk[at..at + out.len()]),
                None => out.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (number, at, range) in pieces(offset, bytes.len()) {
            let bytes = &bytes[range];
            self.chunk(number)[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Exclusive-ors `mask` onto the bytes at `offset`.
    pub(super) fn xor(&mut self, offset: u64, mask: &[u8]) {
        for (number, at, range) in pieces(offset, mask.len()) {
            let chunk = self.chunk(number);
            for (byte, mask) in chunk[at..].iter_mut().zip(&mask[range]) {
                *byte ^= mask;
            }
        }
    }

    /// Makes `start..end` read as zeros.
    pub(super) fn zero(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let touched: Vec<u64> =
            self.chunks.range(start / BLOCK..=(end - 1) / BLOCK).map(|(&n, _)| n).collect();
        for number in touched {
            let base = number * BLOCK;
            let (from, to) = (start.max(base) - base, end.min(base + BLOCK) - base);
            if to - from == BLOCK {
                self.chunks.remove(&number);
            } else {
                self.chunk(number)[from as usize..to as usize].fill(0);
            }
        }
    }

    /// The numbers of the chunks that hold data.
    pub(super) fn chunk_numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.keys().copied()
    }

    fn chunk(&mut self, number: u64) -> &mut Chunk {
        let chunk = self.chunks.entry(number).or_insert_with(|| Arc::new([0; BLOCK as usize]));
        Arc::make_mut(chunk)
    }
}

/// Cuts a range at chunk borders: chunk number, place in the chunk, place in the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % BLOCK) as usize;
        let size = (BLOCK as usize - within).min(len - done);
        let range = done..done + size;
        done += size;
        Some((at / BLOCK, within, range))
    })
}

/// A set of allocated blocks, kept as byte ranges.
#[derive(Debug, Clone, Default)]
pub(super) struct ExtentSet {
    ends: BTreeMap<u64, u64>,
    total: u64,
}

impl ExtentSet {
    /// Bytes in the set.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that [`ExtentSet::insert`] of this range would add.
    pub(super) fn missing(&self, start: u64, end: u64) -> u64 {
        let (start, end) = outward(start, end);
        let present: u64 = self.overlapping(start, end).map(|(s, e)| e.min(end) - s.max(start)).sum();
        (end - start) - present
    }

    /// Adds every block the range touches.
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = outward(start, end);
        if start >= end {
            return;
        }
        // One byte to either side, so that adjacent extents join.
        let touching: Vec<_> = self.overlapping(start.saturating_sub(1), end + 1).collect();
        for (s, e) in touching {
            self.ends.remove(&s);
            self.total -= e - s;
            start = start.min(s);
            end = end.max(e);
        }
        self.ends.insert(start, end);
        self.total += end - start;
    }

    /// Removes the blocks that lie wholly in the range.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        let (start, end) = (start.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        if start >= end {
            return;
        }
        let touching: Vec<_> = self.overlapping(start, end).collect();
        for (s, e) in touching {
            self.ends.remove(&s);
            self.total -= e - s;
            for (s, e) in [(s, start.min(e)), (end.max(s), e)] {
                if s < e {
                    self.ends.insert(s, e);
                    self.total += e - s;
                }
            }
        }
    }

    fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let before = self.ends.range(..start).next_back().filter(move |&(_, &e)| e > start);
        before.into_iter().chain(self.ends.range(start..end.max(start))).map(|(&s, &e)| (s, e))
    }
}

/// Rounds a byte range to the blocks it touches.
fn outward(start: u64, end: u64) -> (u64, u64) {
    if start >= end { (start, start) } else { (start / BLOCK * BLOCK, end.next_multiple_of(BLOCK)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn an_image_equals_a_plain_array_under_random_edits() {
        let mut rng = Rng::new(11);
        let (mut image, mut plain) = (Image::default(), vec![0u8; 40_000]);
        for _ in 0..500 {
            let start = rng.index(plain.len());
            let end = start + rng.index(plain.len() - start).min(9000);
            let bytes = rng.bytes(end - start);
            let kept = image.clone();
            match rng.below(3) {
                0 => {
                    image.zero(start as u64, end as u64);
                    plain[start..end].fill(0);
                }
                1 => {
                    image.xor(start as u64, &bytes);
                    plain[start..end].iter_mut().zip(&bytes).for_each(|(p, b)| *p ^= b);
                }
                _ => {
                    image.write(start as u64, &bytes);
                    plain[start..end].copy_from_slice(&bytes);
                }
            }
            drop(kept);
            let mut read = vec![1; plain.len()];
            image.read(0, &mut read);
            assert_eq!(read, plain);
        }
    }

    #[test]
    fn extents_equal_a_bitmap_under_random_edits() {
        let mut rng = Rng::new(12);
        let (mut set, mut blocks) = (ExtentSet::default(), [false; 64]);
        for _ in 0..2000 {
            let start = rng.below(64 * BLOCK);
            let end = rng.between(start, 64 * BLOCK);
            let touched =
                if start == end { 0..0 } else { (start / BLOCK) as usize..end.div_ceil(BLOCK) as usize };
            let missing = blocks[touched.clone()].iter().filter(|b| !**b).count() as u64;
            assert_eq!(set.missing(start, end), missing * BLOCK);
            if rng.chance(0.5) {
                set.insert(start, end);
                blocks[touched].fill(true);
            } else {
                set.remove(start, end);
                let (from, to) = (start.div_ceil(BLOCK) as usize, (end / BLOCK) as usize);
                if from < to {
                    blocks[from..to].fill(false);
                }
            }
            assert_eq!(set.total(), blocks.iter().filter(|b| **b).count() as u64 * BLOCK);
        }
    }
}
