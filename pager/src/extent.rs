//! An owned piece of the data file.
//!
//! Not `Clone`: shared ownership is an `Arc<Extent>`, and the last owner's drop frees the blocks. Takes the space
//! map's lock on drop, for a few tree operations.

use std::fmt;
use std::sync::Arc;

use crate::BLOCK_U64;
use crate::freemap::Range;
use crate::pager::Shared;

/// Blocks of the data file that belong to nobody else. Dropping it frees them at once.
///
/// An extent that a durable checkpoint reaches must be kept alive until a later checkpoint is durable.
pub struct Extent {
    shared: Arc<Shared>,
    id: u64,
    offset: u64,
    len: u32,
}

impl Extent {
    pub(crate) fn new(shared: Arc<Shared>, id: u64, offset: u64, len: u32) -> Self {
        Self { shared, id, offset, len }
    }

    /// A number no other extent of this pager has or will have, though their places recur: names it in the cache.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it begins in the file, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its length in bytes, a multiple of [`BLOCK`](crate::BLOCK).
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an extent is never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it belongs to this pager.
    pub(crate) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let range = Range { start: self.offset / BLOCK_U64, len: u64::from(self.len) / BLOCK_U64 };
        self.shared.space.release(range);
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extent")
            .field("id", &self.id)
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
