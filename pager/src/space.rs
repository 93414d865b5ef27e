//! Who owns the file's blocks: `extent.owned_once`.
//!
//! Every block from the superblock area to `end` is in exactly one place: owned by a live extent, free and *backed*
//! (the device has allocated it, writing it cannot run out of space), free and *unbacked* (a punched hole, or free
//! since before the file was opened and so not known), or on loan to a thread that is punching or backing it.
//! Extents are always backed, so ENOSPC shows at allocation, where it can be handled, and not at a write.
//!
//! Locks: [`Space::map`] guards the maps for a few tree operations and is never held across a system call, because
//! extents are dropped wherever readers let go of a tree version. [`Space::resize`] is held across growing, cutting
//! and punching, and is taken before `map`.

use std::collections::BTreeMap;
use std::sync::Arc;

use betree_storage::File;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::freemap::{FreeMap, Range};
use crate::superblock::AREA;
use crate::{BLOCK_U64, FILE_NAME};

/// The first block an extent can have.
const FIRST: u64 = AREA / BLOCK_U64;
/// The most by which the file grows at once when it is asked for less.
const MAX_GROWTH: u64 = (256 << 20) / BLOCK_U64;
/// Large files grow by this fraction of their length.
const GROWTH_FRACTION: u64 = 64;
/// Holes are punched when free space is more than this fraction of the file.
const PUNCH_FRACTION: u64 = 4;
/// The most holes punched at one checkpoint, so that it does not take long.
const MAX_PUNCHES: usize = 64;

/// Who asks for blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Leaves the reserve alone.
    Ordinary,
    /// May use the reserve: what makes room.
    Reserved,
}

/// The blocks of one file.
#[derive(Debug)]
pub(crate) struct Space {
    file: Arc<dyn File>,
    min_growth: u64,
    reserve: u64,
    resize: Mutex<()>,
    map: Mutex<Map>,
}

#[derive(Debug, Default)]
struct Map {
    backed: FreeMap,
    unbacked: FreeMap,
    /// Blocks up to here are managed; the file is at least this long.
    end: u64,
    /// One past the last block that was owned when a superblock was last encoded. The file is never cut below it:
    /// the superblock says the file is that long.
    pinned: u64,
    /// Blocks owned by extents.
    owned: u64,
    /// Recovery only: what was adopted so far, start to length.
    adopted: Option<BTreeMap<u64, u64>>,
}

impl Space {
    /// The space of a file of `file_len` bytes. `recovering`: nothing can be allocated until
    /// [`Space::finish_recovery`].
    pub(crate) fn new(
        file: Arc<dyn File>,
        file_len: u64,
        growth: u64,
        reserve: u64,
        recovering: bool,
    ) -> Self {
        let end = (file_len / BLOCK_U64).max(FIRST);
        let map = Map { end, pinned: FIRST, adopted: recovering.then(BTreeMap::new), ..Map::default() };
        let space = Self {
            file,
            min_growth: growth.div_ceil(BLOCK_U64).max(1),
            reserve: reserve.div_ceil(BLOCK_U64),
            resize: Mutex::new(()),
            map: Mutex::new(map),
        };
        if !recovering && end > FIRST {
            space.map.lock().unbacked.insert(Range { start: FIRST, len: end - FIRST });
        }
        space
    }

    /// Claims the place of an extent that a checkpoint reaches.
    pub(crate) fn adopt(&self, offset: u64, len: u64) -> Result<()> {
        let bad = |what, expected: String, got: String| {
            Err(Error::Corruption { file: FILE_NAME.to_owned(), offset, what, expected, got })
        };
        let mut map = self.map.lock();
        let map = &mut *map;
        let end = map.end;
        let Some(adopted) = map.adopted.as_mut() else {
            panic!("adopt after recovery has finished");
        };
        if len == 0 || !offset.is_multiple_of(BLOCK_U64) || !len.is_multiple_of(BLOCK_U64) {
            let got = format!("{len} bytes at {offset}");
            return bad("extent bounds", format!("a positive multiple of {BLOCK_U64}"), got);
        }
        let range = Range { start: offset / BLOCK_U64, len: len / BLOCK_U64 };
        if range.start < FIRST || range.end() > end {
            let expected = format!("an extent within {AREA}..{}", end * BLOCK_U64);
            return bad("extent bounds", expected, format!("{len} bytes at {offset}"));
        }
        if let Some((&start, &other)) = adopted.range(..range.end()).next_back()
            && start + other > range.start
        {
            let expected = format!("{len} bytes owned by nothing else");
            let got = format!("an owner of {} bytes at {}", other * BLOCK_U64, start * BLOCK_U64);
            return bad("extent.owned_once", expected, got);
        }
        adopted.insert(range.start, range.len);
        map.owned += range.len;
        Ok(())
    }

    /// Frees what nobody adopted.
    pub(crate) fn finish_recovery(&self) {
        let mut map = self.map.lock();
        let Some(adopted) = map.adopted.take() else { return };
        let mut next = FIRST;
        let gap_to = |map: &mut Map, next: u64, start: u64| {
            if start > next {
                // Whether the device backs it is unknown: it may be a hole punched before the last close.
                map.unbacked.insert(Range { start: next, len: start - next });
            }
        };
        for (start, len) in adopted {
            gap_to(&mut map, next, start);
            next = start + len;
        }
        let end = map.end;
        gap_to(&mut map, next, end);
    }

    /// Takes `len` blocks; the file grows when nothing fits.
    pub(crate) fn allocate(&self, len: u64, claim: Claim) -> Result<Range> {
        if let Some(range) = self.map.lock().take_backed(len, self.kept_back(claim)) {
            return Ok(range);
        }
        let _resize = self.resize.lock();
        // Another thread may have grown the file, or extents may have been dropped, while this one waited.
        if let Some(range) = self.map.lock().take_backed(len, self.kept_back(claim)) {
            return Ok(range);
        }
        let hole = self.map.lock().unbacked.take(len);
        if let Some(hole) = hole {
            if self.back(hole).is_ok() {
                self.map.lock().owned += len;
                return Ok(hole);
            }
            self.map.lock().unbacked.insert(hole);
        }
        loop {
            match self.grow(len, claim) {
                Ok(()) => {}
                Err(Error::Storage(error)) if error.is_no_space() => return Err(self.no_space(len)),
                Err(error) => return Err(error),
            }
            // Threads that found room without growing may have taken some of it; each turn grows the file anew, so
            // this ends with the blocks or with a full device.
            if let Some(range) = self.map.lock().take_backed(len, self.kept_back(claim)) {
                return Ok(range);
            }
        }
    }

    /// Gives blocks back. Called by the last owner's drop, anywhere: a few tree operations, no system call.
    pub(crate) fn release(&self, range: Range) {
        let mut map = self.map.lock();
        map.owned -= range.len;
        match map.adopted.as_mut() {
            Some(adopted) => {
                adopted.remove(&range.start);
            }
            None => map.backed.insert(range),
        }
    }

    /// The file length the next superblock records, in bytes. The file is not cut below it until the next call.
    pub(crate) fn pin_length(&self) -> u64 {
        let mut map = self.map.lock();
        let end = map.end_of_owned();
        // The durable superblock's pin holds until the new one is durable; `unpin_to` lowers it then.
        map.pinned = map.pinned.max(end);
        end * BLOCK_U64
    }

    /// The superblock that recorded `bytes` is the durable one.
    pub(crate) fn unpin_to(&self, bytes: u64) {
        self.map.lock().pinned = bytes / BLOCK_U64;
    }

    /// Cuts the free tail, punches large free ranges and refills the reserve. Called after a checkpoint is durable:
    /// what is free now is free for it as well, because its tree is alive. Returns the bytes given back;
    /// `reached` is told the states on the way.
    ///
    /// Failures are not errors: the space stays usable by this file.
    pub(crate) fn give_back(&self, reached: impl Fn(&'static str)) -> u64 {
        let _resize = self.resize.lock();
        let cut = self.cut_tail();
        reached("space-tail-cut");
        let given = cut + self.punch_holes();
        reached("space-given-back");
        self.refill_reserve();
        given * BLOCK_U64
    }

    /// (file bytes, bytes owned by extents, free backed bytes, free unbacked bytes).
    pub(crate) fn usage(&self) -> (u64, u64, u64, u64) {
        let map = self.map.lock();
        let bytes = |blocks: u64| blocks * BLOCK_U64;
        (bytes(map.end), bytes(map.owned), bytes(map.backed.total()), bytes(map.unbacked.total()))
    }

    fn kept_back(&self, claim: Claim) -> u64 {
        match claim {
            Claim::Ordinary => self.reserve,
            Claim::Reserved => 0,
        }
    }

    fn no_space(&self, blocks: u64) -> Error {
        Error::NoSpace { file: self.file.name().to_owned(), len: blocks * BLOCK_U64 }
    }

    fn back(&self, range: Range) -> betree_storage::Result<()> {
        self.file.allocate(range.start * BLOCK_U64, range.len * BLOCK_U64)
    }

    /// Grows the file so that `len` blocks can be claimed, by a whole step if the device has that much.
    /// `resize` is held.
    fn grow(&self, len: u64, claim: Claim) -> Result<()> {
        let (end, backed) = {
            let map = self.map.lock();
            (map.end, map.backed.total())
        };
        // A free range at the end is not counted towards `len`: it may be taken before the growth is added.
        let least = len.max((len + self.kept_back(claim)).saturating_sub(backed));
        let step = (end / GROWTH_FRACTION).min(MAX_GROWTH).max(self.min_growth);
        let wanted = least.div_ceil(step) * step;
        let grown = match self.back(Range { start: end, len: wanted }) {
            Ok(()) => wanted,
            Err(error) if error.is_no_space() && wanted > least => {
                self.back(Range { start: end, len: least })?;
                least
            }
            Err(error) => return Err(error.into()),
        };
        let mut map = self.map.lock();
        map.end += grown;
        map.backed.insert(Range { start: end, len: grown });
        Ok(())
    }

    /// Cuts free ranges off the end, keeping the reserve and one growth step. `resize` is held.
    fn cut_tail(&self) -> u64 {
        let (old_end, new_end) = {
            let mut map = self.map.lock();
            let old_end = map.end;
            let (mut start, mut unbacked) = (old_end, 0);
            let mut tail = Vec::new();
            loop {
                if let Some(range) = map.backed.take_ending_at(start) {
                    start = range.start;
                    tail.push((range, true));
                } else if let Some(range) = map.unbacked.take_ending_at(start) {
                    start = range.start;
                    unbacked += range.len;
                    tail.push((range, false));
                } else {
                    break;
                }
            }
            let backed_below = map.backed.total();
            let keep = self.min_growth.max(self.reserve.saturating_sub(backed_below) + unbacked);
            let new_end = (start + keep).max(map.pinned).min(old_end);
            // Cutting by less than a step is not worth growing again.
            let new_end = if old_end - new_end < self.min_growth { old_end } else { new_end };
            for (range, backed) in tail {
                if range.start < new_end {
                    let kept = Range { start: range.start, len: range.end().min(new_end) - range.start };
                    if backed { map.backed.insert(kept) } else { map.unbacked.insert(kept) }
                }
            }
            map.end = new_end;
            (old_end, new_end)
        };
        // Beyond `end` nobody allocates, and growing needs `resize`. If the cut fails the file is merely longer.
        if new_end < old_end && self.file.set_len(new_end * BLOCK_U64).is_ok() {
            old_end - new_end
        } else {
            0
        }
    }

    /// Gives the largest free ranges back to the device while free space is out of proportion. `resize` is held.
    fn punch_holes(&self) -> u64 {
        let mut punched = 0;
        for _ in 0..MAX_PUNCHES {
            let range = {
                let mut map = self.map.lock();
                let keep = (map.end / PUNCH_FRACTION).max(self.reserve);
                if map.backed.total() <= keep {
                    break;
                }
                let surplus = map.backed.total() - keep;
                if surplus < self.min_growth {
                    break;
                }
                let Some(range) = map.backed.take_largest(self.min_growth) else { break };
                if range.len > surplus {
                    // Punching all of it would eat into what is kept: its upper part goes.
                    let upper = Range { start: range.end() - surplus, len: surplus };
                    map.backed.insert(Range { start: range.start, len: range.len - surplus });
                    upper
                } else {
                    range
                }
            };
            let result = self.file.punch_hole(range.start * BLOCK_U64, range.len * BLOCK_U64);
            self.map.lock().unbacked.insert(range);
            if result.is_err() {
                break;
            }
            punched += range.len;
        }
        punched
    }

    /// Backs free space until the reserve is there again. `resize` is held.
    fn refill_reserve(&self) {
        let missing = self.reserve.saturating_sub(self.map.lock().backed.total());
        if missing == 0 {
            return;
        }
        let hole = self.map.lock().unbacked.take(missing);
        match hole {
            Some(hole) => {
                let backed = self.back(hole).is_ok();
                let mut map = self.map.lock();
                if backed { map.backed.insert(hole) } else { map.unbacked.insert(hole) }
            }
            // On a full device the reserve fills again as extents are dropped.
            None => drop(self.grow(missing, Claim::Reserved)),
        }
    }
}

impl Map {
    /// Takes backed blocks if `keep` remain.
    fn take_backed(&mut self, len: u64, keep: u64) -> Option<Range> {
        assert!(self.adopted.is_none(), "allocate before recovery has finished");
        if self.backed.total() < len.saturating_add(keep) {
            return None;
        }
        let range = self.backed.take(len)?;
        self.owned += len;
        Some(range)
    }

    /// One past the last block that is not free.
    fn end_of_owned(&mut self) -> u64 {
        let (mut end, mut taken) = (self.end, Vec::new());
        loop {
            if let Some(range) = self.backed.take_ending_at(end) {
                taken.push((range, true));
                end = range.start;
            } else if let Some(range) = self.unbacked.take_ending_at(end) {
                taken.push((range, false));
                end = range.start;
            } else {
                break;
            }
        }
        for (range, backed) in taken {
            if backed { self.backed.insert(range) } else { self.unbacked.insert(range) }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use betree_storage::{Caching, OpenMode};
    use betree_testkit::SimStorage;

    use super::*;

    const STEP: u64 = 16;

    /// A fresh space that grows by [`STEP`] blocks, on an empty simulated file.
    fn space(reserve_blocks: u64) -> (Arc<SimStorage>, Space) {
        let sim = SimStorage::new(1);
        let file = sim.as_storage().open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
        file.allocate(0, AREA).unwrap();
        let space = Space::new(file, AREA, STEP * BLOCK_U64, reserve_blocks * BLOCK_U64, false);
        (sim, space)
    }

    #[test]
    fn the_file_is_never_cut_below_the_length_a_durable_superblock_records() {
        let (sim, space) = space(0);
        let low = space.allocate(1, Claim::Ordinary).unwrap();
        let high = space.allocate(100, Claim::Ordinary).unwrap();
        let recorded = space.pin_length();
        assert_eq!(recorded, high.end() * BLOCK_U64);
        // Dropped by another thread while the superblock that needs the length is being written.
        space.release(high);
        space.unpin_to(recorded);
        space.give_back(|_| ());
        assert!(sim.files()["f"] >= recorded);
        let recorded = space.pin_length();
        assert_eq!(recorded, low.end() * BLOCK_U64);
        space.give_back(|_| ());
        assert!(sim.files()["f"] >= high.end() * BLOCK_U64, "the older superblock is still the durable one");
        space.unpin_to(recorded);
        space.give_back(|_| ());
        assert!(sim.files()["f"] < high.end() * BLOCK_U64);
    }

    #[test]
    fn growth_falls_back_to_what_is_needed_and_a_failed_one_changes_nothing() {
        let (sim, space) = space(0);
        sim.set_capacity(Some(sim.used_bytes() + 5 * BLOCK_U64));
        let first = space.allocate(4, Claim::Ordinary).unwrap();
        let before = space.usage();
        assert!(space.allocate(3, Claim::Ordinary).unwrap_err().is_no_space());
        assert_eq!(space.usage(), before);
        space.release(first);
        assert_eq!(space.allocate(4, Claim::Ordinary).unwrap().start, FIRST);
    }

    #[test]
    fn the_reserve_survives_the_cut_and_is_filled_up_again() {
        let (_sim, space) = space(3 * STEP);
        let extent = space.allocate(1, Claim::Ordinary).unwrap();
        let taken = space.allocate(2 * STEP, Claim::Reserved).unwrap();
        space.pin_length();
        space.give_back(|_| ());
        let (_, _, backed, _) = space.usage();
        assert!(backed >= 3 * STEP * BLOCK_U64);
        space.release(taken);
        space.release(extent);
        space.unpin_to(AREA);
        space.give_back(|_| ());
        let (file, owned, backed, unbacked) = space.usage();
        assert!(backed >= 3 * STEP * BLOCK_U64 && owned == 0 && unbacked == 0);
        assert!(file <= AREA + 4 * STEP * BLOCK_U64);
    }

    #[test]
    fn threads_that_allocate_and_drop_at_once_never_share_a_block() {
        let (_sim, space) = space(STEP);
        let owners = Mutex::new(BTreeMap::<u64, u64>::new());
        std::thread::scope(|scope| {
            for thread in 1..=4u64 {
                let (space, owners) = (&space, &owners);
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for step in 0..2000u64 {
                        let range = space.allocate(1 + (step * thread) % 7, Claim::Ordinary).unwrap();
                        {
                            let mut owners = owners.lock();
                            let below = owners.range(..range.end()).next_back();
                            assert!(below.is_none_or(|(start, len)| start + len <= range.start));
                            owners.insert(range.start, range.len);
                        }
                        held.push(range);
                        if step % 3 == 0 || held.len() > 50 {
                            let range = held.swap_remove((step * 7) as usize % held.len());
                            owners.lock().remove(&range.start);
                            space.release(range);
                        }
                        if step % 500 == 0 && thread == 1 {
                            let recorded = space.pin_length();
                            space.unpin_to(recorded);
                            space.give_back(|_| ());
                        }
                    }
                });
            }
        });
        let (file, owned, backed, unbacked) = space.usage();
        assert_eq!(owned, owners.lock().values().sum::<u64>() * BLOCK_U64);
        assert_eq!(AREA + owned + backed + unbacked, file);
    }
}
