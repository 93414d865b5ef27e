//! One simulated file: what programs see, what is durable, and the changes in between.
//!
//! Invariants: `durable` with every pending change applied in order equals `current`, unless a sync failed (then some
//! of the changes are silently lost, as with a page cache that drops dirty pages) or the media was tampered with. On
//! power loss each 512-byte sector ends in the state after some prefix of the changes to it, drawn for every sector by
//! itself; the length is that after some prefix of all changes. Called under the storage's mutex.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::image::{BLOCK, ExtentSet, Image};
use crate::Rng;

/// The unit that reaches the media whole.
pub(super) const SECTOR: u64 = 512;

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    current: Image,
    len: u64,
    pub(super) allocated: ExtentSet,
    durable: Image,
    durable_len: u64,
    pending: Vec<Pending>,
    /// Open handles; an inode without name and handle is dropped.
    pub(super) handles: usize,
}

/// What a power loss did to the writes of a file that were not synced.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Survived in part.
    pub(super) torn: u64,
    /// Survived one before them that did not, or not whole.
    pub(super) reordered: u64,
}

#[derive(Debug, Clone)]
struct Pending {
    change: Change,
    len_after: u64,
}

#[derive(Debug, Clone)]
enum Change {
    /// The bytes are shared with every copy of the disk.
    Write {
        offset: u64,
        data: Arc<[u8]>,
    },
    Zero {
        start: u64,
        end: u64,
    },
    Shrink {
        start: u64,
        end: u64,
    },
    Extend,
}

impl Inode {
    /// A file whose content is durable from the start.
    pub(super) fn durable_with(bytes: &[u8]) -> Self {
        let mut inode = Self::default();
        inode.write(0, bytes);
        inode.sync();
        inode
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads inside the file; the caller has checked the range.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        self.current.read(offset, out);
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        self.current.write(offset, bytes);
        self.allocated.insert(offset, end);
        self.len = self.len.max(end);
        self.push(Change::Write { offset, data: bytes.into() });
    }

    pub(super) fn punch(&mut self, start: u64, end: u64) {
        let end = end.min(self.len.next_multiple_of(BLOCK));
        self.current.zero(start, end);
        self.allocated.remove(start, end);
        self.push(Change::Zero { start, end });
    }

    pub(super) fn allocate(&mut self, start: u64, end: u64) {
        self.allocated.insert(start, end);
        self.extend_to(end);
    }

    /// Lengthens the file; nothing happens when it is that long already.
    pub(super) fn extend_to(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            self.push(Change::Extend);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        let old = std::mem::replace(&mut self.len, len);
        if len < old {
            self.current.zero(len, old);
            self.allocated.remove(len, u64::MAX);
            self.push(Change::Shrink { start: len, end: old });
        } else if len > old {
            self.push(Change::Extend);
        }
    }

    /// Makes everything written durable.
    pub(super) fn sync(&mut self) {
        for pending in self.pending.drain(..) {
            match pending.change {
                Change::Write { offset, data } => self.durable.write(offset, &data),
                Change::Zero { start, end } | Change::Shrink { start, end } => self.durable.zero(start, end),
                Change::Extend => {}
            }
        }
        self.durable_len = self.len;
    }

    /// A sync that fails: a random part becomes durable, the rest never will, and nobody can see which.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        (self.durable, self.durable_len, _) = self.survivors(rng);
        self.pending.clear();
    }

    /// Power is lost: what is durable and a random part of the rest remain. What that did to the writes.
    pub(super) fn crash(&mut self, rng: &mut Rng) -> Losses {
        let (image, len, losses) = self.survivors(rng);
        self.allocated.remove(len, u64::MAX);
        for number in image.chunk_numbers() {
            self.allocated.insert(number * BLOCK, (number + 1) * BLOCK);
        }
        *self = Self {
            current: image.clone(),
            len,
            allocated: std::mem::take(&mut self.allocated),
            durable: image,
            durable_len: len,
            pending: Vec::new(),
            handles: 0,
        };
        losses
    }

    /// Changes stored bytes behind everybody's back, on the media and in what is about to get there.
    pub(super) fn tamper(&mut self, start: u64, mask: &[u8]) {
        self.current.xor(start, mask);
        self.durable.xor(start, mask);
        let end = start + mask.len() as u64;
        for pending in &mut self.pending {
            let Change::Write { offset, data } = &mut pending.change else { continue };
            let (from, to) = (start.max(*offset), end.min(*offset + data.len() as u64));
            if from >= to {
                continue;
            }
            let data = Arc::make_mut(data);
            for at in from..to {
                data[(at - *offset) as usize] ^= mask[(at - start) as usize];
            }
        }
    }

    fn push(&mut self, change: Change) {
        self.pending.push(Pending { change, len_after: self.len });
    }

    fn survivors(&self, rng: &mut Rng) -> (Image, u64, Losses) {
        let count = self.pending.len();
        if count == 0 {
            return (self.durable.clone(), self.durable_len, Losses::default());
        }
        let luck = Luck::draw(rng, count);
        let reached = luck.length_prefix(rng, count);
        let len = if reached == 0 { self.durable_len } else { self.pending[reached - 1].len_after };
        let cuts = self.sector_cuts(&luck, rng);
        let mut image = self.durable.clone();
        let (mut losses, mut all_before) = (Losses::default(), true);
        for (i, pending) in self.pending.iter().enumerate() {
            match &pending.change {
                Change::Write { offset, data } => {
                    let (mut kept, mut lost) = (false, false);
                    for (sector, range) in sectors(*offset, data.len()) {
                        if cuts.get(&sector).is_some_and(|&cut| cut > i) {
                            image.write(offset + range.start as u64, &data[range]);
                            kept = true;
                        } else {
                            lost = true;
                        }
                    }
                    losses.torn += u64::from(kept && lost);
                    losses.reordered += u64::from(kept && !all_before);
                    all_before &= !lost;
                }
                Change::Zero { start, end } => {
                    if luck.keeps(i, rng) {
                        image.zero(*start, *end);
                        continue;
                    }
                    // A sector whose later state survives went through this one.
                    for (&sector, _) in cuts.range(start / SECTOR..end.div_ceil(SECTOR)).filter(|c| *c.1 > i)
                    {
                        let base = sector * SECTOR;
                        image.zero(base.max(*start), (base + SECTOR).min(*end));
                    }
                }
                // Cutting a file is one step with its new length.
                Change::Shrink { start, end } if i < reached => image.zero(*start, *end),
                Change::Shrink { .. } | Change::Extend => {}
            }
        }
        image.zero(len, u64::MAX);
        (image, len, losses)
    }

    /// For each sector written to, the number of changes that its surviving state includes.
    fn sector_cuts(&self, luck: &Luck, rng: &mut Rng) -> BTreeMap<u64, usize> {
        let mut cuts = BTreeMap::new();
        for (i, pending) in self.pending.iter().enumerate() {
            let Change::Write { offset, data } = &pending.change else { continue };
            let whole = luck.keeps(i, rng);
            for (sector, _) in sectors(*offset, data.len()) {
                if luck.tears(i).map_or(whole, |p| rng.chance(p)) {
                    cuts.insert(sector, i + 1);
                }
            }
        }
        cuts
    }
}

/// Cuts a range at sector borders.
fn sectors(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let end = offset + len as u64;
    (offset / SECTOR..end.div_ceil(SECTOR)).map(move |sector| {
        let from = offset.max(sector * SECTOR);
        let to = end.min((sector + 1) * SECTOR);
        (sector, (from - offset) as usize..(to - offset) as usize)
    })
}

/// Which of the pending changes of a file survive. Several kinds, because bugs hide in the extremes as well.
#[derive(Debug)]
enum Luck {
    /// The first so many, and a torn part of the next: nothing with zero, everything with their number.
    Prefix(usize),
    /// Each change by itself, untorn.
    Changes(f64),
    /// Each sector of each change by itself.
    Sectors(f64),
}

impl Luck {
    fn draw(rng: &mut Rng, count: usize) -> Self {
        match rng.below(8) {
            0 => Self::Prefix(0),
            1 => Self::Prefix(count),
            2 | 3 => Self::Prefix(rng.index(count + 1)),
            4 => Self::Changes(0.5),
            5 => Self::Sectors(0.1),
            6 => Self::Sectors(0.9),
            _ => Self::Sectors(0.5),
        }
    }

    fn keeps(&self, i: usize, rng: &mut Rng) -> bool {
        match *self {
            Self::Prefix(n) => i < n,
            Self::Changes(p) | Self::Sectors(p) => rng.chance(p),
        }
    }

    /// The chance of each sector of a change that does not survive or vanish as a whole.
    fn tears(&self, i: usize) -> Option<f64> {
        match *self {
            Self::Prefix(n) if n != 0 && i == n => Some(0.5),
            Self::Sectors(p) => Some(p),
            Self::Prefix(_) | Self::Changes(_) => None,
        }
    }

    fn length_prefix(&self, rng: &mut Rng, count: usize) -> usize {
        match *self {
            Self::Prefix(n) if n == 0 || n == count => n,
            Self::Prefix(n) => n + rng.index(2),
            Self::Changes(_) | Self::Sectors(_) => rng.index(count + 1),
        }
    }
}
