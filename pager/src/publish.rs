//! Publishing a checkpoint: `superblock.newest_valid_wins`.
//!
//! The order, and what breaks otherwise:
//!
//! 1. Sync the data. The superblock points at pages; were it durable first, a crash would leave a root whose pages
//!    are not there, and the root before it overwritten in its turn.
//! 2. Write copy 1, then copy 2, into the slots of the epoch's parity. They hold the epoch before the last, which
//!    nobody needs. The last epoch's slots are not touched, so whatever becomes of these two writes, lost, torn or
//!    reordered, the last epoch can be opened. No sync between the two: that would only order them.
//! 3. Sync. From here on this epoch is the durable one. A crash in 2 or 3 leaves either epoch, each with all its
//!    extents: the caller still holds the last one's.
//! 4. Give space back. Free now means free for this checkpoint and for all that came before it.
//!
//! Any failure in 1 to 3 leaves open which epoch is durable, and the kernel may have dropped what it could not write,
//! so that trying again proves nothing: the pager takes no more writes. Reads go on; reopening recovers.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use betree_storage as storage;

use crate::error::{Error, Result};
use crate::pager::{Pager, Shared};
use crate::space::Keep;
use crate::superblock::{self, MAX_PAYLOAD, Superblock};
use crate::{Epoch, file};

impl Pager {
    /// Makes `payload` what the next open returns. Every write of the checkpoint's pages has completed before.
    ///
    /// When it returns, the checkpoint is durable, and the extents that only earlier ones reach may be dropped.
    /// When it fails other than with [`Error::TooLong`], either this or the last checkpoint is the durable one, and
    /// the pager is poisoned: the caller keeps the extents of both.
    ///
    /// # Panics
    /// When `epoch` is not the [successor](Epoch::next) of the last: the slots hold two epochs of opposite parity.
    pub fn publish(&self, epoch: Epoch, payload: &[u8]) -> Result<()> {
        if payload.len() > MAX_PAYLOAD {
            let (len, limit) = (payload.len() as u64, MAX_PAYLOAD as u64);
            return Err(Error::TooLong { what: "superblock payload", len, limit });
        }
        let shared = &*self.0;
        let mut published = shared.published.lock();
        shared.check_poison()?;
        assert!(epoch == published.next(), "publishing {epoch:?} after {:?}", *published);
        let started = Instant::now();
        let superblock = Superblock {
            epoch,
            payload: payload.to_vec(),
            uuid: shared.uuid,
            file_len: shared.space.pin_length(),
        };
        if let Err(cause) = write_durably(shared, &superblock) {
            // A sync elsewhere may have been the first to fail; its error is the one to tell.
            let cause = shared.poison.get_or_init(|| cause);
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        *published = epoch;
        shared.space.unpin_to(superblock.file_len);
        shared.storage.reached("publish-durable");
        let given = shared.space.give_back(Keep::Share, |state| shared.storage.reached(state));
        shared.counters.given_back_bytes.fetch_add(given, Relaxed);
        shared.counters.publishes.fetch_add(1, Relaxed);
        shared.counters.publish_nanos.fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
        Ok(())
    }
}

/// Steps 1 to 3.
fn write_durably(shared: &Shared, superblock: &Superblock) -> storage::Result<()> {
    shared.file.sync()?;
    shared.storage.reached("publish-data-synced");
    let written = ["publish-one-copy", "publish-both-copies"];
    for (slot, state) in superblock::slots_of(superblock.epoch).into_iter().zip(written) {
        file::write_slot(&*shared.file, superblock, slot)?;
        shared.counters.wrote(superblock::SLOT_LEN);
        shared.storage.reached(state);
    }
    shared.file.sync()
}
