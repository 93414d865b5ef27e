//! The data file: extents, superblocks, page checksums and the page cache. Pages are opaque bytes.
//!
//! Owns `data.betree`. Called by the engine only. What holds, in one place:
//!
//! - `extent.owned_once`: every block of the file is either free or owned by exactly one [`Extent`]. Dropping the
//!   extent frees its blocks at once. Deferred free follows from ownership: the engine keeps the tree version of the
//!   last durable checkpoint alive, so nothing a durable checkpoint reaches is dropped before the next one is durable.
//! - `superblock.newest_valid_wins`: [`Pager::publish`] makes a payload durable atomically; [`Pager::open`] returns
//!   the newest published one.
//! - `page.sealed`: a page carries a checksum salted with the file and its place, its parent stores the same
//!   checksum, and no page is handed out before both agree with its content.
//! - What is free is what recovery did not adopt: no free list is stored.
//!
//! The path of a page: [`Pager::allocate`] → [`Pager::seal`] → [`PagerIo::submit_write`] → [`Pager::publish`];
//! back: [`Pager::adopt`] → [`Pager::get`] → `cache/` → one read → [`Pager::verify`].

mod busy;
mod cache;
mod checksum;
mod dump;
mod error;
mod extent;
mod file;
mod foreground;
mod freemap;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod inspect;
mod io;
mod options;
mod pager;
mod publish;
mod read;
mod reads;
mod recent;
mod space;
mod stats;
mod superblock;

pub use cache::{Page, PageKind};
pub use dump::dump;
pub use error::{Error, Result};
pub use extent::Extent;
pub use inspect::{Inspector, SlotState};
pub use io::{IoCompletion, PagerIo};
pub use options::Options;
pub use pager::Pager;
pub use read::{MOST_TOGETHER, PageRef};
pub use reads::{Arrived, PageReads};
pub use space::Keep;
pub use stats::{CacheStats, KindStats, Stats};
pub use superblock::{MAX_PAYLOAD, Superblock};

/// The unit of allocation and the granularity of pages, offsets and lengths.
pub const BLOCK: usize = 4096;

/// The data file's name in its directory.
pub const FILE_NAME: &str = "data.betree";

/// A checkpoint generation. A new file is at epoch 0; each publish is exactly one higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// [`BLOCK`] for arithmetic on file offsets.
const BLOCK_U64: u64 = BLOCK as u64;

// Direct I/O asks for this alignment of every offset and length.
const _: () = assert!(BLOCK.is_multiple_of(betree_storage::ALIGN));
