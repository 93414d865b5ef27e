//! The pager's handle and its shared state: open, recovery, allocation, checksums, stats.
//!
//! Called by the engine from any thread. Locks are those of the parts: `space`, `cache`, `publish`, the ring pool;
//! none is held while another part is called, except that publishing holds its own over the others.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use betree_storage::primitives::Mutex;
use betree_storage::{BufPool, File, Frames, Ring, Storage};

use crate::busy::BusyWait;
use crate::cache::Cache;
use crate::checksum::Sealer;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::foreground::Foreground;
use crate::options::Options;
use crate::space::{Claim, Keep, Space};
use crate::stats::{CacheStats, Counters, Stats};
use crate::superblock::Superblock;
use crate::{BLOCK_U64, Epoch, FILE_NAME, file};

/// An open data file. Clones are handles to the same.
#[derive(Clone)]
pub struct Pager(pub(crate) Arc<Shared>);

/// What all handles and extents share.
pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) file: Arc<dyn File>,
    pub(crate) uuid: u128,
    pub(crate) sealer: Sealer,
    pub(crate) space: Space,
    pub(crate) cache: Cache,
    pub(crate) frames: Frames,
    pub(crate) buffers: BufPool,
    pub(crate) rings: Mutex<Vec<Box<dyn Ring>>>,
    pub(crate) counters: Counters,
    pub(crate) foreground: Foreground,
    pub(crate) busy_wait: BusyWait,
    /// The last epoch published; its lock serialises publishing.
    pub(crate) published: Mutex<Epoch>,
    /// The failure after which nothing more is written.
    pub(crate) poison: OnceLock<betree_storage::Error>,
    next_extent: AtomicU64,
}

impl Shared {
    /// The error that stopped writing, if one did.
    pub(crate) fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The cache goes next.
        self.frames.retire();
    }
}

impl Pager {
    /// Opens the data file in `storage`, creating it if asked to.
    ///
    /// Returns what the last checkpoint published, or `None` when none ever was. In the former case the caller
    /// [adopts](Pager::adopt) every extent the payload reaches, then calls [`Pager::finish_recovery`]; nothing can be
    /// allocated before. The caller holds the directory's lock.
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<(Self, Option<Superblock>)> {
        let (file, newest) = file::open(&*storage, options.create, options.uuid)?;
        let recovering = newest.epoch > Epoch(0);
        let space =
            Space::new(Arc::clone(&file), file.len()?, options.min_growth, options.reserve, recovering);
        space.unpin_to(newest.file_len);
        let busy_wait = options.busy_wait && storage.can_busy_wait();
        let processors = if busy_wait { thread::available_parallelism().map_or(1, usize::from) } else { 0 };
        let shared = Shared {
            storage,
            file,
            uuid: newest.uuid,
            sealer: Sealer::new(newest.uuid),
            space,
            cache: Cache::new(options.cache_bytes),
            frames: Frames::default(),
            buffers: BufPool::new(options.idle_buffer_bytes),
            rings: Mutex::new(Vec::new()),
            counters: Counters::default(),
            foreground: Foreground::default(),
            busy_wait: BusyWait::new(processors),
            published: Mutex::new(newest.epoch),
            poison: OnceLock::new(),
            next_extent: AtomicU64::new(1),
        };
        Ok((Self(Arc::new(shared)), recovering.then_some(newest)))
    }

    /// The file's identity, drawn when it was created.
    #[must_use]
    pub fn uuid(&self) -> u128 {
        self.0.uuid
    }

    /// The last epoch published.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        *self.0.published.lock()
    }

    /// A new extent of at least `len` bytes, rounded up to [`BLOCK`](crate::BLOCK). Its content is unspecified.
    ///
    /// Fails with [`Error::NoSpace`] when nothing fits and the file cannot grow; dropping extents cures it.
    ///
    /// # Panics
    /// Between an open that returned a superblock and [`Pager::finish_recovery`].
    pub fn allocate(&self, len: usize) -> Result<Extent> {
        self.claim(len, Claim::Ordinary)
    }

    /// As [`Pager::allocate`], from space that [`Pager::promise`] set aside. The promise itself stays until it is
    /// [released](Pager::release_promise), and should then be: what it stood for is owned.
    pub fn allocate_promised(&self, len: usize) -> Result<Extent> {
        self.claim(len, Claim::Promised)
    }

    /// As [`Pager::allocate`], and may use three quarters of the [reserve](Options::reserve): for work that makes room once it is
    /// published.
    pub fn allocate_for_rewrite(&self, len: usize) -> Result<Extent> {
        self.claim(len, Claim::Rewrite)
    }

    /// As [`Pager::allocate`], and may use all of the [reserve](Options::reserve): for the checkpoint that frees what others
    /// replaced.
    pub fn allocate_reserved(&self, len: usize) -> Result<Extent> {
        self.claim(len, Claim::Reserved)
    }

    /// Sets `bytes` of space aside for later calls of [`Pager::allocate_promised`], beside what is promised already and the
    /// reserve.
    ///
    /// Fails with [`Error::NoSpace`], with nothing set aside, when the device has not that much.
    pub fn promise(&self, bytes: u64) -> Result<()> {
        self.0.check_poison()?;
        self.0.space.promise(bytes)
    }

    /// Takes a promise back, or that part of it.
    pub fn release_promise(&self, bytes: u64) {
        self.0.space.release_promise(bytes);
    }

    /// Makes a promise again that was released for extents which have not been dropped yet, and will be: their space is then set aside as before.
    pub fn renew_promise(&self, bytes: u64) {
        self.0.space.renew_promise(bytes);
    }

    /// The largest rewriting that is due, or will be, takes `bytes`: what of it is beyond its part of the reserve is kept free as well.
    pub fn foresee(&self, bytes: u64) {
        self.0.space.foresee(bytes.div_ceil(BLOCK_U64));
    }

    /// The [reserve](Options::reserve) in bytes.
    #[must_use]
    pub fn reserve_bytes(&self) -> u64 {
        self.0.space.reserve_bytes()
    }

    /// Gives free space back to the device, all but what was promised, the reserve, and what `keep` says: when others need it, and when the database is
    /// left alone. What is free now is free for the durable checkpoint as well. Returns the bytes given back: the largest free ranges go first,
    /// a bounded number at a time.
    pub fn give_back(&self, keep: Keep) -> u64 {
        let given = self.0.space.give_back(keep, |state| self.0.storage.reached(state));
        self.0.counters.given_back_bytes.fetch_add(given, Relaxed);
        given
    }

    /// Checkpoints published since the file was opened.
    #[must_use]
    pub fn publications(&self) -> u64 {
        self.0.counters.publishes.load(Relaxed)
    }

    fn claim(&self, len: usize, claim: Claim) -> Result<Extent> {
        const LONGEST: u64 = u32::MAX as u64 / BLOCK_U64 * BLOCK_U64;
        self.0.check_poison()?;
        if len as u64 > LONGEST {
            return Err(Error::TooLong { what: "extent", len: len as u64, limit: LONGEST });
        }
        let blocks = (len as u64).div_ceil(BLOCK_U64).max(1);
        let range = self.0.space.allocate(blocks, claim)?;
        Ok(self.extent(range.start * BLOCK_U64, (range.len * BLOCK_U64) as u32))
    }

    /// Takes ownership of an extent that the opened checkpoint reaches; recovery only.
    ///
    /// The coordinates come from disk: bounds that are not in the file, and blocks that have an owner already
    /// (`extent.owned_once`), are corruption.
    ///
    /// # Panics
    /// After [`Pager::finish_recovery`].
    pub fn adopt(&self, offset: u64, len: u32) -> Result<Extent> {
        self.0.space.adopt(offset, u64::from(len))?;
        Ok(self.extent(offset, len))
    }

    /// Frees everything that was not adopted; allocation is possible from here on. Does nothing when it is already.
    pub fn finish_recovery(&self) {
        self.0.space.finish_recovery();
    }

    fn extent(&self, offset: u64, len: u32) -> Extent {
        Extent::new(Arc::clone(&self.0), self.0.next_extent.fetch_add(1, Relaxed), offset, len)
    }

    /// Writes the page's checksum, salted with the file and with the page's place and length, into its first four
    /// bytes, and returns it for the parent to store.
    ///
    /// # Panics
    /// When the page is shorter than four bytes.
    pub fn seal(&self, page: &mut [u8], file_offset: u64) -> u32 {
        self.0.sealer.seal(page, file_offset)
    }

    /// Checks that the page's content, the checksum it carries and the parent's copy agree (`page.sealed`).
    pub fn verify(&self, page: &[u8], file_offset: u64, expected: u32) -> Result<()> {
        self.0.sealer.verify(FILE_NAME, page, file_offset, expected)
    }

    /// Bytes of the file that are in use.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.0.space.usage().1
    }

    /// The option of that name.
    #[must_use]
    pub fn idle_buffer_bytes(&self) -> usize {
        self.0.buffers.limit()
    }

    /// Gives idle buffers back to the operating system until `most` bytes of them are left.
    pub fn trim_buffers(&self, most: usize) {
        self.0.buffers.trim(most);
    }

    /// Changes the cache's budget; what is over it leaves at once.
    pub fn set_cache_bytes(&self, bytes: usize) {
        self.0.cache.set_budget(bytes);
    }

    /// The failure after which nothing more is written, if there was one.
    #[must_use]
    pub fn poisoned(&self) -> Option<Error> {
        self.0.check_poison().err()
    }

    /// A reading of all counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (file_bytes, allocated_bytes, backed, unbacked_bytes) = self.0.space.usage();
        let cache = CacheStats::of(&self.0.cache.stats(), self.0.cache.budget());
        let free_bytes = backed + unbacked_bytes;
        let mut stats =
            Stats { file_bytes, allocated_bytes, free_bytes, unbacked_bytes, cache, ..Stats::default() };
        self.0.counters.fill(&mut stats);
        stats
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("path", &self.0.storage.path()).finish_non_exhaustive()
    }
}
