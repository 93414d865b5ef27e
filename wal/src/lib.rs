//! The write-ahead log: records of opaque bytes, appended by one, made durable for many, replayed after a crash.
//!
//! Owns: the log files of a directory (`log-<16 digits>`, and `log-reserve`, which never holds a record), their framing, group commit, recycling and replay.
//! Knows nothing of what a record means. Called by the engine: [`Appender`] under its commit lock, [`Wal`] from any
//! thread.
//!
//! # The log
//! The log is an endless sequence of bytes; an [`Lsn`] is a position in it. It holds frames; a record is one frame, or,
//! when it does not fit into what is left of a file, a first frame, middle frames and a last one, each filling its file to
//! the end. A file holds the bytes from the `first` in its header up to the `first` of the next file; what a file
//! has after that is not part of the log. The byte layout is in `format.rs`.
//!
//! # Invariants
//! - `log.lsn_in_place`: a frame is valid only at the position its Lsn names, so the former content of a recycled
//!   file never parses.
//! - `log.files_contiguous`: the numbers of live files have no gaps and each file begins where the one before ends.
//! - `log.entry_before_record`: a file's space and directory entry are durable before its first window is used.
//! - `log.oldest_first`: files are synced in order, so what is durable is a prefix of the log.
//! - `log.durable_is_synced`: the durable Lsn moves only after a sync of everything below it returned.
//! - `log.mark_below_durable`: a mark (in a frame) and `durable` (in a file header) name an Lsn that was durable
//!   before they were written.
//! - `log.whole_records`: the end moves only behind a whole record; all space for a record is there before its first
//!   byte is copied.
//! - `log.start_covered`: some file with a durable header begins at or below every Lsn a replay may begin at.
//! - `log.clean_tail`: when appending begins after recovery, everything behind the end is durably zero or removed.
//!
//! # What a crash leaves, and what is made of it
//! Killed process: all copied bytes are in the page cache. At most the last record is incomplete; its checksum or
//! its missing last fragment shows that, and the log is cut before it.
//!
//! Power loss: bytes below the durable Lsn are there. Of the bytes above it any subset of sectors is there, so valid
//! frames may lie behind a hole; that is no corruption. Replay stops at the first position `p` without a valid
//! frame (nor a next file that begins at `p`), taking an incomplete record's beginning for `p`. Is this a torn tail, or was
//! something damaged? Replay searches the rest of the log for valid frames and headers and takes the greatest
//! mark `d` among them, and what the caller knows to have been durable ([`Wal::reopen`]). By `log.mark_below_durable` everything below `d` was durable. So if `p < d` a durable byte has
//! changed: corruption, reported with file and offset, or a missing file. If `p >= d` nothing contradicts a torn
//! tail, and the log is cut at `p`. Every durable Lsn is written into the next frame after it became known, and at a
//! clean close into the file's header; so only damage above the last of these can be taken for a torn tail, and then
//! the result is still a prefix of whole records.
//!
//! The cut: everything behind `p` is zeroed in its file and synced, later files are removed, the directory is
//! synced, and only then appending begins. Without that, new frames of the same lengths could meet an old frame
//! whose Lsn fits, and a later crash would bring a lost record back. A crash during the cut leaves the frame at `p` as
//! invalid as before, and no greater mark: the next open cuts there again. Everything kept is synced as well, so after
//! an open all of the log is durable.
//!
//! Replay begins at an Lsn the caller has from elsewhere (its checkpoint). The log below it may be gone: trimmed,
//! or lost, when the checkpoint ran ahead of the log's sync. Then nothing is replayed and a new file begins at that Lsn.
//!
//! Trim gives back files wholly below an Lsn that the caller will never replay from again; it must be called only
//! after that is durable. The log is synced up to there first (`log.start_covered`): a checkpoint may be ahead of the
//! log's sync, and then the only durable headers could be those of the files to be trimmed. Removals and renames of trimmed files need no directory sync: a file that comes back is
//! below every later starting point, and is then removed or recycled by open. A recycled file is renamed, given zeroed
//! space, synced, and the directory synced, before use; a crash in between leaves it under one of both names,
//! with the old header (whose number or Lsn does not fit its new place) or none.

mod append;
mod blank;
mod dump;
mod error;
mod examine;
mod files;
mod format;
mod poison;
mod reader;
mod reclaim;
mod recover;
mod stats;
mod sync;

#[cfg(all(test, feature = "shuttle"))]
mod models;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use betree_storage::Storage;

pub use append::Appender;
pub use dump::dump;
pub use error::{Error, Result};
pub use examine::{Examined, Finding, examine};
pub use recover::Replayed;
pub use stats::Stats;

use files::Shared;

/// The longest record: 1 GiB for a value and 64 MiB for what surrounds it.
pub const MAX_RECORD: u64 = (1 << 30) + (64 << 20);

/// A position in the log: a byte in an endless sequence that grows over the life of the database.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
pub struct Lsn(pub u64);

/// What a replay callback returns.
pub type ReplayResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of a log file: a multiple of 4096, from 4 KiB (which only tests want) to 256 MiB. Larger files are changed less often and
    /// given back later. Two to three files exist at least. Files of another size, from earlier options, stay usable.
    pub file_bytes: u64,
    /// How many files below the trim point are kept for recycling; by a log at full speed up to 128 MiB of them, if that is more, until [`Wal::rest`].
    pub spare_files: usize,
    /// Whether one more file is held in reserve for [`Appender::append_reserved`], so that records that make room can still be
    /// written when the device is full.
    pub reserve_file: bool,
    /// A number of this database: logs of others are refused.
    pub salt: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { file_bytes: 16 << 20, spare_files: 2, reserve_file: false, salt: 0 }
    }
}

impl Options {
    fn check(&self) -> Result<()> {
        if self.file_bytes.is_multiple_of(4096) && (4096..=256 << 20).contains(&self.file_bytes) {
            return Ok(());
        }
        Err(Error::Option {
            name: "file_bytes",
            expected: "a multiple of 4096 from 4 KiB to 256 MiB",
            got: self.file_bytes,
        })
    }
}

/// A handle of the log for everything but appending.
#[derive(Debug, Clone)]
pub struct Wal {
    shared: Arc<Shared>,
}

impl Wal {
    /// Opens the log in `storage`, replays every whole record that begins at or after `from`, in order, and is
    /// then ready to append after the last one. Everything replayed is durable when this returns.
    ///
    /// `from` is zero or the Lsn some append returned. Where no log was ever created, one is created if `from` is
    /// zero; otherwise the log is missing, which is an error (see [`Wal::create`]).
    ///
    /// # Errors
    /// Damage below a known-durable Lsn, missing files, a log of another database or format version; each with its
    /// place. An error of the callback ends the replay. Nothing is changed on disk before the replay has succeeded.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: Options,
        from: Lsn,
        replay: &mut dyn FnMut(Lsn, &[u8]) -> ReplayResult,
    ) -> Result<(Self, Appender, Replayed)> {
        options.check()?;
        recover::open(storage, options, from, None, replay)
    }

    /// As [`Wal::open`], for a caller who knows from elsewhere (its checkpoint) that there is a log and that everything below
    /// `durable` was once durable in it: then a log that ends before is damaged, whatever marks it still has.
    ///
    /// # Errors
    /// Those of [`Wal::open`]; a missing log is one even if `from` is zero.
    pub fn reopen(
        storage: Arc<dyn Storage>,
        options: Options,
        from: Lsn,
        durable: Lsn,
        replay: &mut dyn FnMut(Lsn, &[u8]) -> ReplayResult,
    ) -> Result<(Self, Appender, Replayed)> {
        options.check()?;
        recover::open(storage, options, from, Some(durable), replay)
    }

    /// Creates an empty log that begins at `at`: for a new database, or for one restored without its log.
    ///
    /// # Errors
    /// There must be no log yet.
    pub fn create(storage: Arc<dyn Storage>, options: Options, at: Lsn) -> Result<(Self, Appender)> {
        options.check()?;
        recover::create(storage, options, at)
    }

    /// Returns when everything appended before `upto` is durable. Concurrent callers share syncs.
    ///
    /// # Errors
    /// The first failed sync poisons the log: this and every later sync and append fail.
    pub fn sync(&self, upto: Lsn) -> Result<()> {
        self.shared.sync_upto(upto)
    }

    /// Everything below is durable.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        Lsn(self.shared.durable.load(Ordering::Acquire))
    }

    /// Everything below was appended.
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn(self.shared.end.load(Ordering::Acquire))
    }

    /// Gives back the files wholly below `upto`. It must be durable, elsewhere, that no replay will begin below.
    ///
    /// # Errors
    /// The log is synced up to there first, and a poisoned log keeps its files.
    pub fn trim(&self, upto: Lsn) -> Result<()> {
        self.shared.sync_upto(upto)?;
        self.shared.trim(upto);
        Ok(())
    }

    /// Whether the file held in reserve is in use, or could not be made.
    #[must_use]
    pub fn reserve_missing(&self) -> bool {
        self.shared.reserve_missing.load(Ordering::Relaxed)
    }

    /// Removes the files kept for recycling, and those made ahead but for the next one: for a device so full that others need their space.
    pub fn remove_spares(&self) {
        self.shared.remove_files_ahead();
        self.shared.remove_spares(0);
    }

    /// Gives back the files that a log at full speed keeps at hand: for one to which nothing was appended for a while. For the thread that calls
    /// [`Wal::prepare`].
    pub fn rest(&self) {
        self.shared.rest();
    }

    /// Does ahead of time what would make an append slow: makes the next file, maps and populates the next windows;
    /// starts write-back of filled ones and lets the page cache drop older ones. For a background thread, in a loop with
    /// [`Wal::wait_for_work`]. Without it the appender does the necessary part itself.
    ///
    /// # Errors
    /// Those of making a file, a full device among them: nothing is lost, try again later.
    pub fn prepare(&self) -> Result<()> {
        self.shared.check_poison()?;
        self.shared.prepare()
    }

    /// Makes what was appended durable and records that in the log itself, so that later damage to any of it is told
    /// from a torn tail. For a clean close; appending may go on all the same.
    ///
    /// # Errors
    /// Those of [`Wal::sync`], and of writing.
    pub fn seal(&self) -> Result<()> {
        self.shared.sync_upto(self.end())?;
        self.shared.mark_durable()
    }

    /// Waits until [`Wal::prepare`] has something to do, at most for `timeout`; returns whether it has.
    #[must_use]
    pub fn wait_for_work(&self, timeout: Duration) -> bool {
        self.shared.wait_for_work(timeout)
    }

    /// Ends a [`Wal::wait_for_work`] of another thread early, the next one if there is none now.
    pub fn rouse(&self) {
        self.shared.rouse();
    }

    /// Counters since the log was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}
