//! Who owns the file's blocks: `extent.owned_once`.
//!
//! Every block from the superblock area to `end` is in exactly one place: owned by a live extent, free and *backed*
//! (the device has allocated it, writing it cannot run out of space), free and *unbacked* (a punched hole, or free
//! since before the file was opened and so not known), or on loan to a thread that is punching or backing it.
//! Extents are always backed, so ENOSPC shows at allocation, where it can be handled, and not at a write.
//!
//! # A full device
//! Backed free blocks are of three kinds, by number and not by place: *promised* to what the caller has accepted but not written yet,
//! the *reserve*, and the rest. A promise is given only if reserve and rest are left whole behind it, so whoever brings
//! new data is refused first, before anything was accepted. What was promised is then there. Work that makes room in the end
//! needs room at first: it may use the reserve ([`Claim::Rewrite`]) but neither what was promised nor the last quarter of the
//! reserve, and that quarter is left to those who publish what the others did ([`Claim::Reserved`]), because only a checkpoint
//! frees the blocks that rewriting replaced. So each step of making room can be followed by the next: rewriting at most three quarters of the
//! reserve, publishing, and both shares are free again. Where one rewriting needs more than that (much has piled up for one leaf), its owner
//! says so beforehand ([`Space::foresee`]), and no promise is given from that space either. The reserve is refilled at each publication, from holes, from the
//! device, or from what was dropped.
//!
//! What this does not cover: blocks are promised by number, and an extent needs them in one piece. A file whose free space is scattered in
//! pieces shorter than what is asked for may refuse although enough is free, until neighbours of free ranges are dropped. So ask for
//! short extents when the device is full.
//!
//! Locks: [`Space::map`] guards the maps for a few tree operations and is never held across a system call, because
//! extents are dropped wherever readers let go of a tree version. [`Space::resize`] is held across growing, cutting
//! and punching, and is taken before `map`. Punching ends when somebody waits for it who needs space.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use betree_storage::File;
use betree_storage::primitives::{Mutex, MutexGuard};

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
/// While the file is in use holes are punched when free space is more than this fraction of what extents own.
const PUNCH_FRACTION: u64 = 32;
/// At rest what is kept for the writes that will come is this fraction of what is in use.
const REST_FRACTION: u64 = 8;
/// The most holes punched at one checkpoint, so that it does not take long.
const MAX_PUNCHES: usize = 64;
/// Longer holes are punched piece by piece: who needs space need not wait long.
const LONGEST_PUNCH: u64 = (16 << 20) / BLOCK_U64;
/// Shorter holes are not worth a system call while the file is in use: what is written next takes space of that length again.
const SHORTEST_IN_USE: u64 = (1 << 20) / BLOCK_U64;
/// Nor are these at rest.
const SHORTEST_AT_REST: u64 = 4;
/// Space is promised from shorter holes only if less is missing: each costs a system call that a writer waits for.
const SHORTEST_PROMISED: u64 = 16;

/// Who asks for blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Leaves alone what was promised, and the reserve.
    Ordinary,
    /// Redeems a promise: leaves the last quarter of the reserve alone.
    Promised,
    /// Makes room in the end: leaves alone what was promised, and the last quarter of the reserve.
    Rewrite,
    /// May use everything: the publication that frees what others replaced.
    Reserved,
}

/// How much free space stays backed when space is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// A 32nd of what is in use, and what lies in pieces shorter than a MiB, so that it is not punched and backed again all the time.
    Share,
    /// An eighth of what is in use: the file is at rest, but will be written to again.
    Little,
    /// Nothing but what was promised, and the reserve: others need the device's space.
    Least,
}

/// The blocks of one file.
#[derive(Debug)]
pub(crate) struct Space {
    file: Arc<dyn File>,
    min_growth: u64,
    reserve: u64,
    resize: Mutex<()>,
    /// Who waits for `resize` because of needing space.
    waiting: AtomicU32,
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
    /// Blocks that rewriting will need beside the reserve, as its owner foresees: no promise is given from them.
    foreseen: u64,
    /// Bytes promised: as many backed free blocks as they fill are not given to others.
    promised_bytes: u64,
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
            waiting: AtomicU32::new(0),
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
        if let Some(range) = self.take_backed(len, claim) {
            return Ok(range);
        }
        let _resize = self.lock_for_space();
        // Another thread may have grown the file, or extents may have been dropped, while this one waited.
        if let Some(range) = self.take_backed(len, claim) {
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
            if let Some(range) = self.take_backed(len, claim) {
                return Ok(range);
            }
        }
    }

    /// Promises `bytes` to later claims with [`Claim::Promised`]. Fails, with nothing changed, if the device has not that much
    /// beside the reserve.
    pub(crate) fn promise(&self, bytes: u64) -> Result<()> {
        if self.map.lock().promise(bytes, self.reserve) {
            return Ok(());
        }
        let _resize = self.lock_for_space();
        loop {
            let (missing, hole) = {
                let mut map = self.map.lock();
                if map.promise(bytes, self.reserve) {
                    return Ok(());
                }
                let missing = map.needed(bytes, self.reserve).saturating_sub(map.backed.total());
                // Holes before growth, or a file that shrank inside would grow at its end.
                let shortest = missing.min(SHORTEST_PROMISED);
                let hole = map.unbacked.take(missing).or_else(|| map.unbacked.take_largest(shortest));
                (missing, hole)
            };
            let result = match hole {
                Some(hole) => {
                    let backed = self.back(hole);
                    let mut map = self.map.lock();
                    if backed.is_ok() {
                        map.backed.insert(hole)
                    } else {
                        map.unbacked.insert(hole)
                    }
                    backed.map_err(Error::from)
                }
                None => self.grow(missing, Claim::Reserved),
            };
            match result {
                Ok(()) => {}
                Err(Error::Storage(error)) if error.is_no_space() => {
                    return Err(self.no_space(bytes.div_ceil(BLOCK_U64)));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn lock_for_space(&self) -> MutexGuard<'_, ()> {
        self.waiting.fetch_add(1, Relaxed);
        let guard = self.resize.lock();
        self.waiting.fetch_sub(1, Relaxed);
        guard
    }

    /// Promises `bytes` that extents own which will be released.
    pub(crate) fn renew_promise(&self, bytes: u64) {
        self.map.lock().promised_bytes += bytes;
    }

    /// Takes a promise back: it was redeemed, or is not needed.
    pub(crate) fn release_promise(&self, bytes: u64) {
        let mut map = self.map.lock();
        debug_assert!(map.promised_bytes >= bytes, "more is taken back than was promised");
        map.promised_bytes = map.promised_bytes.saturating_sub(bytes);
    }

    /// Rewriting will need so many blocks: see [`Map::foreseen`].
    pub(crate) fn foresee(&self, blocks: u64) {
        self.map.lock().foreseen = blocks.saturating_sub(self.reserve * 3 / 4);
    }

    /// Bytes of the reserve.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.reserve * BLOCK_U64
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
    pub(crate) fn give_back(&self, keep: Keep, reached: impl Fn(&'static str)) -> u64 {
        let _resize = self.resize.lock();
        let cut = self.cut_tail();
        reached("space-tail-cut");
        let given = cut + self.punch_holes(keep);
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

    /// See [`crate::Pager::audit`]. Nothing is on loan while `resize` is held.
    pub(crate) fn audit(&self, owned: &[(u64, u32)]) -> Vec<String> {
        let _resize = self.resize.lock();
        let map = self.map.lock();
        let mut wrong = Vec::new();
        for free in [&map.backed, &map.unbacked] {
            wrong.extend(free.audit().map(|what| format!("freemap.coalesced: {what}")));
        }
        let sum = map.backed.total() + map.unbacked.total() + map.owned;
        if sum != map.end - FIRST {
            let (free, end) = (map.backed.total() + map.unbacked.total(), map.end);
            wrong.push(format!(
                "extent.owned_once: {free} free and {} owned blocks do not make the file's {}",
                map.owned,
                end - FIRST
            ));
        }
        for &(offset, len) in owned {
            let range = Range { start: offset / BLOCK_U64, len: u64::from(len) / BLOCK_U64 };
            if range.end() > map.end || map.backed.overlaps(range) || map.unbacked.overlaps(range) {
                wrong.push(format!("extent.owned_once: {len} bytes at offset {offset} are in use and free"));
            }
        }
        wrong
    }

    /// Backed free blocks that a claim must leave.
    fn kept_back(&self, map: &Map, claim: Claim) -> u64 {
        match claim {
            Claim::Ordinary => map.promised() + self.reserve,
            Claim::Promised => self.reserve / 4,
            Claim::Rewrite => map.promised() + self.reserve / 4,
            Claim::Reserved => 0,
        }
    }

    fn take_backed(&self, len: u64, claim: Claim) -> Option<Range> {
        let mut map = self.map.lock();
        let keep = self.kept_back(&map, claim);
        map.take_backed(len, keep)
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
        let (end, backed, keep) = {
            let map = self.map.lock();
            (map.end, map.backed.total(), self.kept_back(&map, claim))
        };
        // A free range at the end is not counted towards `len`: it may be taken before the growth is added.
        let least = len.max((len + keep).saturating_sub(backed));
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
            let wanted = self.reserve + map.promised() + map.foreseen;
            // What is missing lies behind as many holes as there are, at the worst.
            let keep = match wanted.saturating_sub(backed_below) {
                0 => self.min_growth,
                missing => self.min_growth.max(missing + unbacked),
            };
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
    fn punch_holes(&self, keep: Keep) -> u64 {
        let mut punched = 0;
        let shortest = match keep {
            Keep::Share => SHORTEST_IN_USE.min(self.min_growth),
            Keep::Little | Keep::Least => SHORTEST_AT_REST.min(self.min_growth),
        };
        for _ in 0..MAX_PUNCHES {
            if self.waiting.load(Relaxed) > 0 {
                break;
            }
            let range = {
                let mut map = self.map.lock();
                let share = match keep {
                    Keep::Share => map.owned / PUNCH_FRACTION,
                    Keep::Little => map.owned / REST_FRACTION,
                    Keep::Least => 0,
                };
                let keep = share.max(self.reserve + map.promised() + map.foreseen);
                if map.backed.total() <= keep {
                    break;
                }
                let surplus = map.backed.total() - keep;
                if surplus < shortest {
                    break;
                }
                let Some(range) = map.backed.take_largest(shortest) else { break };
                let most = surplus.min(LONGEST_PUNCH);
                if range.len > most {
                    // Its upper part goes: more would take too long, or eat into what is kept.
                    let upper = Range { start: range.end() - most, len: most };
                    map.backed.insert(Range { start: range.start, len: range.len - most });
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
        let missing = {
            let map = self.map.lock();
            (self.reserve + map.promised()).saturating_sub(map.backed.total())
        };
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
    /// Notes a promise if `reserve` backed free blocks remain behind it.
    fn promise(&mut self, bytes: u64, reserve: u64) -> bool {
        let kept = self.backed.total() >= self.needed(bytes, reserve);
        if kept {
            self.promised_bytes += bytes;
        }
        kept
    }

    /// Backed free blocks that must be there for `bytes` more to be promised.
    fn needed(&self, bytes: u64, reserve: u64) -> u64 {
        let promised = self.promised_bytes.saturating_add(bytes).div_ceil(BLOCK_U64);
        promised.saturating_add(reserve).saturating_add(self.foreseen)
    }

    fn promised(&self) -> u64 {
        self.promised_bytes.div_ceil(BLOCK_U64)
    }

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
mod tests;
