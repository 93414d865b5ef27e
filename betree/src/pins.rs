//! Page indexes and filters that point reads have at hand: held by their segments, without a look-up in the page cache.
//!
//! A read of a key asks the filter of every run on its path. Through the page cache each costs a lock, a hash table and a reference count; held by
//! the segment it costs a few loads, which overlap between runs.
//!
//! After some reads that missed a block all are read ahead of their use, if all have room: a database just opened is then warm after a moment, and not
//! after a read of every part of it.
//!
//! While there are point reads, new segments hold theirs from the beginning: beside a load at full speed runs are replaced faster than they are read, and a get
//! would read more blocks than pages.
//!
//! Blocks lie side by side in huge pages where there are some (`Slabs` of `storage`): a path asks five filters, each in another place.
//!
//! Invariant `pins.charged_once`: the slabs' bytes are what segments hold; a block is charged until the last reader of it is gone, also when its segment
//! went before. What is over the limit is let go by [`Pins::trim`], least recently asked first, more or less: one that was asked since the last
//! round stays for another. Owned by the database; no locks but the slabs'.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use arc_swap::{ArcSwapOption, Guard};
use betree_pager::{Page, PageKind, Pager};
use betree_storage::Slabs;

use crate::node::Node;
use crate::segment::{Meta, Segment};

/// The meta block that a segment holds, if it does, for as long as it is looked at.
pub(crate) type Held = Guard<Option<Arc<Meta>>>;

/// The place in a segment.
#[derive(Debug, Default)]
pub(crate) struct Pin {
    held: ArcSwapOption<Meta>,
    asked: AtomicBool,
}

impl Pin {
    /// The meta block, if it is held.
    #[inline]
    pub(crate) fn get(&self) -> Held {
        let held = self.held.load();
        if held.is_some() && !self.asked.load(Relaxed) {
            self.asked.store(true, Relaxed);
        }
        held
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    slabs: Slabs,
    /// Reads so far that blocks not at hand may have held up: up to [`WARM_AFTER`], or [`WARMED`].
    demand: AtomicUsize,
    /// Whether there are point reads.
    in_use: AtomicBool,
}

/// Reads that make it worth while to have all blocks at hand: whoever opens a database for a few is left alone.
const WARM_AFTER: usize = 16;
/// All blocks have been read, or are being read.
const WARMED: usize = usize::MAX;
/// Blocks that are read together ahead of their use.
const TOGETHER: usize = 32;

impl Pins {
    /// Whether `bytes` more may be held.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.slabs.has_room(bytes)
    }

    /// Says whether there are point reads.
    pub(crate) fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Relaxed);
    }

    /// Takes note of a read that may have to wait for blocks.
    #[inline]
    pub(crate) fn demand(&self) {
        let seen = self.demand.load(Relaxed);
        if seen < WARM_AFTER {
            // Of several at once one counts.
            let _ = self.demand.compare_exchange(seen, seen + 1, Relaxed, Relaxed);
        }
    }

    /// Whether all blocks should be read ahead. Says so once.
    #[inline]
    pub(crate) fn takes_warming(&self) -> bool {
        self.demand.load(Relaxed) == WARM_AFTER
            && self.slabs.has_room(1)
            && self.demand.compare_exchange(WARM_AFTER, WARMED, Relaxed, Relaxed).is_ok()
    }

    /// Has the segments of these trees hold their blocks, if there is room for all that do not yet. Ends early when `stop` says so, and at the first
    /// failure, which is for the read that needs the block to report.
    pub(crate) fn warm(&self, pager: &Pager, roots: &[Arc<Node>], stop: impl Fn() -> bool) {
        let mut missing: Vec<&Arc<Segment>> = Vec::new();
        for root in roots {
            root.visit_segments(&mut |segment| {
                if segment.pin.held.load().is_none() {
                    missing.push(segment);
                }
            });
        }
        if !self.has_room(missing.iter().map(|segment| segment.meta_len as usize).sum()) {
            return;
        }
        for segments in missing.chunks(TOGETHER) {
            if stop() {
                return;
            }
            let wants: Vec<_> = segments.iter().map(|segment| segment.meta_ref(false)).collect();
            for (segment, page) in segments.iter().zip(pager.get_many(&wants)) {
                let meta = page.map_err(crate::Error::from).and_then(|page| segment.parse_meta(page));
                let Ok(meta) = meta else { return };
                self.pin(segment, &meta);
            }
        }
    }

    /// Memory behind what is held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.slabs.bytes()
    }

    /// Has the segment hold its meta block if there is room.
    pub(crate) fn pin(&self, segment: &Segment, meta: &Meta) {
        if segment.pin.held.load().is_none()
            && let Some(meta) = meta.copied_to(&self.slabs)
        {
            segment.pin.asked.store(true, Relaxed);
            segment.pin.held.store(Some(Arc::new(meta)));
        }
    }

    /// The same for a segment that was just laid out, with the sealed bytes of its block, if there are point reads. Whether it holds it.
    pub(crate) fn pin_new(&self, segment: &Segment, meta: &[u8]) -> bool {
        if self.in_use.load(Relaxed)
            && self.has_room(meta.len())
            && let Ok(meta) = segment.parse_meta(Page::copy_of(meta, PageKind::Meta))
        {
            self.pin(segment, &meta);
        }
        segment.pin.held.load().is_some()
    }

    /// Sets the limit, and lets go what is over it in the trees of these roots.
    pub(crate) fn trim(&self, limit: usize, roots: impl Fn() -> Vec<Arc<Node>>) {
        self.slabs.set_limit(limit);
        for round in 0..2 {
            if self.slabs.bytes() <= limit {
                return;
            }
            for root in roots() {
                root.visit_segments(&mut |segment| {
                    let again = segment.pin.asked.swap(false, Relaxed) && round == 0;
                    // What is free in a huge page has its memory until the limit is set.
                    if !again && self.slabs.used() > limit {
                        segment.pin.held.store(None);
                    }
                });
            }
            self.slabs.set_limit(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use betree_storage::HUGE_PAGE;

    use crate::{Db, Result, TreeOptions};

    #[test]
    fn what_segments_hold_stays_within_the_limit_and_reads_do_without_it() -> Result<()> {
        let disk = betree_testkit::SimStorage::new(1);
        let tree = TreeOptions { leaf_bytes: 64 << 10, segment_bytes: 32 << 10, ..TreeOptions::default() };
        let builder = Db::builder().memory(8 << 20).memtable_bytes(64 << 10).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        let key = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes();
        for i in 0..20_000 {
            keyspace.insert(key(i), [i as u8; 50])?;
            while i % 500 == 0 && db.run_background()? {}
        }
        let read_all = || -> Result<()> {
            for i in 0..20_000 {
                assert_eq!(keyspace.get(key(i))?.as_deref(), Some(&[i as u8; 50][..]), "record {i}");
                assert_eq!(keyspace.get(key(i + 20_000))?, None);
            }
            Ok(())
        };
        read_all()?;
        let pins = &db.shared().pins;
        let trim = |limit| {
            pins.trim(limit, || db.shared().states().iter().map(|state| state.peek().root.clone()).collect());
        };
        let held = pins.bytes();
        assert!(held > 100 << 10, "{held} bytes");
        trim(held / 2);
        assert!((held / 4..=held / 2).contains(&pins.bytes()), "{} of {held} bytes", pins.bytes());
        read_all()?;
        assert!(pins.bytes() <= held / 2, "{} of {held} bytes", pins.bytes());
        trim(0);
        assert_eq!(pins.bytes(), 0);
        read_all()?;
        trim(held);
        read_all()?;
        assert_eq!(pins.bytes(), held);

        // In a huge page that others fill, no more is let go than in pages of their own.
        trim(0);
        trim(64 << 20);
        read_all()?;
        let mut others = Vec::new();
        while pins.slabs.used() < HUGE_PAGE {
            others.extend(pins.slabs.copy_of(&[0; 4096]));
        }
        assert_eq!((pins.bytes(), others.len()), (HUGE_PAGE, (HUGE_PAGE - held) / 4096));
        let limit = HUGE_PAGE - held / 2;
        trim(limit);
        assert!((limit - held / 4..=limit).contains(&pins.bytes()), "{} of {limit} bytes", pins.bytes());
        read_all()?;
        Ok(())
    }

    #[test]
    fn new_segments_hold_their_blocks_while_there_are_point_reads() -> Result<()> {
        let disk = betree_testkit::SimStorage::new(1);
        let builder = Db::builder().memory(8 << 20).memtable_bytes(64 << 10).background_threads(0);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        let write = |from: u64| -> Result<()> {
            for i in from..from + 4000 {
                keyspace.insert(i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), [7; 50])?;
                while i % 500 == 0 && db.run_background()? {}
            }
            Ok(())
        };
        write(0)?;
        assert_eq!(db.shared().pins.bytes(), 0, "nobody has read anything");
        keyspace.get([0; 8])?;
        db.run_background()?;
        write(4000)?;
        let root = keyspace.state.peek().root.clone();
        let (mut held, mut all) = (0, 0);
        root.visit_segments(&mut |segment| {
            held += u32::from(segment.pin.get().is_some());
            all += 1;
        });
        assert!(held > 0 && 2 * held >= all, "{held} of {all}");
        Ok(())
    }
}
