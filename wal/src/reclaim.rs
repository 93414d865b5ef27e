//! Giving back what the log no longer needs: cached pages behind the appender, files below the trim point.
//!
//! Called by the background thread (`prepare`), by sync leaders and by whoever trims; takes `queue` briefly, never
//! during I/O.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use crate::Lsn;
use crate::blank::{Content, file_name, make_blank};
use crate::files::{LiveFile, Shared, Spare};

/// Pieces left behind by the appender whose write-back was started and that are still cached.
const DRAINING: usize = 4;
/// Most bytes of files kept for recycling by a log that streams, if not more were asked for. It needs as many before the next trim as were filled since the last one, and
/// removing files and making new ones in their place frees and allocates all of their space, with discards where the file system does that, on a device that syncs wait
/// for.
const STREAM_SPARES: u64 = 128 << 20;

impl Shared {
    /// Starts write-back of one piece the appender left and drops an older one from the page cache, so that the log
    /// keeps a few megabytes of it whatever its speed. Returns whether there was one.
    pub fn process_left(&self) -> bool {
        let Some(mut left) = self.queue.lock().left.pop_front() else { return false };
        left.window = None;
        left.file.start_write_back(left.offset, left.len);
        let old = {
            let mut queue = self.queue.lock();
            queue.draining.push_back(left);
            if queue.draining.len() > DRAINING { queue.draining.pop_front() } else { None }
        };
        if let Some(old) = old {
            old.file.drop_cache(old.offset, old.len);
        }
        true
    }

    /// After a sync every piece the appender has left is clean.
    pub fn drop_drained(&self) {
        let drained = std::mem::take(&mut self.queue.lock().draining);
        for piece in drained {
            piece.file.drop_cache(piece.offset, piece.len);
        }
    }

    /// Gives back the files wholly below `upto`.
    ///
    /// A file to be recycled is zeroed here, by the caller that trims, and not when it is needed: where the device
    /// discards, that takes as long as the appender needs for several megabytes.
    pub fn trim(&self, upto: Lsn) {
        let mut victims = VecDeque::new();
        let room = {
            let mut queue = self.queue.lock();
            // A file none of whose bytes were synced may have no durable header: it cannot take over as the first
            // (`log.start_covered`).
            let durable = Lsn(self.durable.load(Ordering::Acquire));
            let covers = |second: &LiveFile| second.first <= upto && second.first < durable;
            while queue.live.get(1).is_some_and(covers) {
                victims.extend(queue.live.pop_front());
            }
            let most = if self.streams() { STREAM_SPARES / self.options.file_bytes } else { 0 } as usize;
            self.options.spare_files.max(most.min(victims.len())).saturating_sub(queue.spares.len())
        };
        for (index, victim) in victims.into_iter().enumerate() {
            let name = file_name(victim.number);
            let zeroed =
                || make_blank(&*self.storage, &name, Content::Stale, self.options.file_bytes).is_ok();
            if self.reserve_missing.load(Ordering::Relaxed) && zeroed() && self.becomes_reserve(victim.number)
            {
                continue;
            }
            if index < room && zeroed() {
                self.storage.reached("log-file-retired");
                self.queue.lock().spares.push(Spare { number: victim.number, zeroed: true });
            } else {
                self.remove(victim.number);
            }
        }
    }

    /// Removes files kept for recycling, the oldest first, until there are `keep`.
    pub fn remove_spares(&self, keep: usize) {
        let surplus: Vec<Spare> = {
            let mut queue = self.queue.lock();
            let surplus = queue.spares.len().saturating_sub(keep);
            queue.spares.drain(..surplus).collect()
        };
        surplus.into_iter().for_each(|spare| self.remove(spare.number));
    }
}
